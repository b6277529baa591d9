"""Can the loss be repaired by giving the VLM its backbone's early entity activations? (Study, section 4.)

inputs: the questions with pictures, the VLM's and its backbone's answers and activations, recognition, the
attribution's position scores. outputs: one graded answer per question and intervention, and what they say.
1. Sets: `lost` (backbone right, VLM wrong, recognised) and `kept` (both right).
2. Plans: for every intervention, which activations go where (`analysis.Plan`).
3. Patched greedy answers, graded; a finished intervention is a small file in the work folder, so a killed job resumes.
4. Recovered and broken shares with intervals.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import polars as pl
import torch
from torch import Tensor

from twohop.analysis import (
    Pair,
    Plan,
    Planner,
    SpanScores,
    choose_pair,
    grade,
    patching_sets,
    sample_sets,
    span_mask,
    stratified_sample,
    summarise_outcomes,
    wrong_donors,
)
from twohop.config import PatchActivations
from twohop.data import open_pictures
from twohop.models import Batch, Model, Patch, Prompt, Site, open_model
from twohop.steps._asking import encode_by_id
from twohop.steps._step import Job, Step, Summary
from twohop.store import ActivationReader, read_table, schemas, write_json, write_table

STEP = Step(
    name="patch_activations",
    params=("patch_activations", "models.{model}"),
    inputs=(
        "questions",
        "manifest",
        "pictures",
        "card",
        "activations",
        "answers",
        "recognition",
        "spans",
        "backbone_activations",
        "backbone_answers",
    ),
    outputs=("outcomes", "metrics"),
)
log = logging.getLogger(__name__)


class _Donors:
    """The `mlp_write` rows that plans write; a name's rows are read once."""

    def __init__(self, backbone: ActivationReader, own: ActivationReader, ids: Sequence[str]) -> None:
        self._backbone, self._own, self._ids = backbone, own, list(ids)
        self._rows: dict[tuple[bool, int, str], Tensor] = {}
        self._means: dict[int, Tensor] = {}

    def length(self, question_id: str) -> int:
        """Tokens of the donor's name."""
        return self._read(False, 0, question_id).shape[0]

    def values(self, plan: Plan, layer: int) -> Tensor:
        """Float["token d_model"] of the plan's length; of a longer donor the last tokens."""
        n = plan.span_length
        if plan.donor_id is not None:
            return self._read(plan.intervention == "own_text", layer, plan.donor_id)[-n:]
        mean = self._mean(layer).expand(n, -1)
        return torch.zeros_like(mean) if plan.intervention == "zero" else mean

    def _read(self, own: bool, layer: int, question_id: str) -> Tensor:
        key = (own, layer, question_id)
        if key not in self._rows:
            reader = self._own if own else self._backbone
            self._rows[key] = torch.tensor(reader.read_entity_tokens("text", "mlp_write", layer, question_id))
        return self._rows[key]

    def _mean(self, layer: int) -> Tensor:
        """Mean over every token of every donor of the sets."""
        if layer not in self._means:
            rows = [self._read(False, layer, i) for i in self._ids]
            self._means[layer] = torch.cat(rows).mean(0, keepdim=True)
        return self._means[layer]


@dataclass
class _Bench:
    """Everything that a patched run needs."""

    job: Job
    params: PatchActivations
    model: Model
    questions: dict[str, dict[str, Any]]
    sets: pl.DataFrame
    donors: _Donors
    prompts: dict[str, Prompt]
    wrong: dict[str, str]
    """Question -> question of the wrong donor."""
    available: dict[str, int]
    """Size of each set before drawing."""

    @cached_property
    def drawn(self) -> dict[str, dict[str, Any]]:
        """The drawn questions by id."""
        return {row["question_id"]: row for row in self.sets.iter_rows(named=True)}

    def ids(self, name: str) -> list[str]:
        """Question ids of a set."""
        return self.sets.filter(pl.col("set") == name)["question_id"].to_list()

    def grade(self, answer: str, question_id: str) -> str | None:
        """The alias of this question's answer that the answer holds."""
        return grade(answer, self.questions[question_id]["answer_aliases"])


def run(job: Job) -> Summary:
    """Choose, patch, grade, summarise."""
    params = job.section(PatchActivations)
    model = open_model(job.input("card"))
    with (
        ActivationReader(job.input("backbone_activations")) as backbone,
        ActivationReader(job.input("activations")) as own,
    ):
        bench = _bench(job, params, model, backbone, own)
        outcomes = _outcomes(bench)
    write_table(job.output("outcomes"), outcomes, schemas.OUTCOMES)
    write_json(job.output("metrics"), _metrics(bench, outcomes))
    lost, kept = len(bench.ids("lost")), len(bench.ids("kept"))
    return {"lost": lost, "kept": kept, "answers": outcomes.height}


def _bench(
    job: Job, params: PatchActivations, model: Model, backbone: ActivationReader, own: ActivationReader
) -> _Bench:
    questions = read_table(job.input("questions"), schemas.QUESTIONS)
    backbone_answers = read_table(job.input("backbone_answers"), schemas.ANSWERS)
    every = patching_sets(
        questions,
        backbone_answers,
        read_table(job.input("answers"), schemas.ANSWERS),
        read_table(job.input("recognition"), schemas.RECOGNITION),
    )
    named = set(backbone.rows("text")) & set(own.rows("text"))
    every = every.filter(pl.col("question_id").is_in(sorted(named)))
    sets = sample_sets(every, params.max_examples, params.seed)
    available = {name: every.filter(pl.col("set") == name).height for name in ("lost", "kept")}
    log.info("%d lost and %d kept questions, %d drawn", available["lost"], available["kept"], sets.height)
    known = backbone_answers.filter((pl.col("condition") == "text") & pl.col("correct"))["question_id"].to_list()
    manifest = read_table(job.input("manifest"), schemas.MANIFEST)
    features = encode_by_id(model, open_pictures(job.input("pictures")), manifest, sets["picture_id"].to_list())
    return _Bench(
        job=job,
        params=params,
        model=model,
        questions={row["question_id"]: row for row in questions.iter_rows(named=True)},
        sets=sets,
        donors=_Donors(backbone, own, sets["question_id"].to_list()),
        prompts={
            q["question_id"]: Prompt(q["before"], None, q["after"], features[q["picture_id"]])
            for q in sets.iter_rows(named=True)
        },
        wrong=wrong_donors(sets, questions, set(known) & named, params.seed),
        available=available,
    )


def _outcomes(bench: _Bench) -> pl.DataFrame:
    """Every intervention on both sets; finished ones are read back from the work folder."""
    parts = [pl.DataFrame(schema=schemas.OUTCOMES)]
    parts += [_finished(bench, name, lambda plans=plans: _answer(bench, plans)) for name, plans in _units(bench)]
    pairs = _back_pairs(bench)
    tried = _finished(bench, "back_patch-lost", lambda: _answer_back(bench, bench.ids("lost"), pairs))
    pair = choose_pair(tried.filter(pl.col("split") == "dev"), pairs)
    parts.append(tried)
    if pair is not None:
        name = f"back_patch-kept-{pair[0]}-{pair[1]}"
        parts.append(_finished(bench, name, lambda: _answer_back(bench, bench.ids("kept"), [pair])))
    return pl.concat(parts)


def _finished(bench: _Bench, name: str, make: Callable[[], pl.DataFrame]) -> pl.DataFrame:
    path = bench.job.work / f"{name}.parquet"
    if path.exists():
        log.info("%s: answered before", name)
        return read_table(path, schemas.OUTCOMES)
    table = make()
    write_table(path, table, schemas.OUTCOMES)
    log.info("%s: %d of %d answers right", name, int(table["correct"].sum()), table.height)
    return table


def _units(bench: _Bench) -> Iterator[tuple[str, list[Plan]]]:
    """What is answered, stored and resumed together: a name and its plans."""
    planner = _planner(bench)
    for kind, ids in (("lost", bench.ids("lost")), ("kept", bench.ids("kept"))):
        yield f"none-{kind}", [Plan(i, "none") for i in ids]
        for name in ("heuristic", "zero", *(("own_text", "mean") if kind == "lost" else ())):
            yield f"{name}-{kind}", [planner.heuristic(i, name, i) for i in ids]
        for draw in range(bench.params.random_spans if kind == "lost" else 1):
            yield f"random-{kind}-{draw}", [planner.random(i, draw) for i in ids]
    lost = bench.ids("lost")
    wrong = [(i, bench.wrong[i]) for i in lost if i in bench.wrong]
    yield "wrong_entity-lost", [planner.heuristic(i, "wrong_entity", donor) for i, donor in wrong]
    swept = stratified_sample(
        [bench.questions[i]["relation"] for i in lost], bench.params.sweep_examples, bench.params.seed
    )
    for layers in _sweep_layers(bench):
        yield f"sweep-lost-{layers}", [planner.heuristic(lost[j], "sweep", lost[j], layers) for j in sorted(swept)]


def _planner(bench: _Bench) -> Planner:
    layers = min(bench.params.donor_layers, bench.model.n_layers)
    spans = read_table(bench.job.input("spans"), schemas.SPANS)
    room = {i: _n_positions(bench.model.batch([prompt])) for i, prompt in bench.prompts.items()}
    return Planner(SpanScores(spans, layers), room, bench.donors.length, layers, bench.params.seed)


def _n_positions(batch: Batch) -> int:
    """Positions from the first image token to `last`."""
    return int(batch.groups["last"].shape[1]) - batch.spans[0][0]


def _sweep_layers(bench: _Bench) -> list[int]:
    fit = [n for n in bench.params.sweep_layers if n <= bench.model.n_layers]
    _warn_left_out("sweep_layers", len(bench.params.sweep_layers) - len(fit), bench.model)
    return fit


def _back_pairs(bench: _Bench) -> list[Pair]:
    fit = [(later, earlier) for later, earlier in bench.params.back_pairs if later < bench.model.n_layers]
    _warn_left_out("back_pairs", len(bench.params.back_pairs) - len(fit), bench.model)
    return fit


def _warn_left_out(key: str, n: int, model: Model) -> None:
    if n:
        log.warning(
            "%d of patch_activations.%s need more than %s's %d layers: left out", n, key, model.name, model.n_layers
        )


def _answer(bench: _Bench, plans: Sequence[Plan]) -> pl.DataFrame:
    """Greedy answers under the plans, graded."""
    rows: list[dict[str, Any]] = []
    for index, batch in bench.model.batches([bench.prompts[p.question_id] for p in plans], bench.params.batch):
        chosen = [plans[i] for i in index]
        answers = bench.model.generate(batch, bench.params.max_new_tokens, _patches(bench, chosen, batch))
        rows += [_outcome(bench, plan, answer) for plan, answer in zip(chosen, answers, strict=True)]
    return _table(rows)


def _patches(bench: _Bench, plans: Sequence[Plan], batch: Batch) -> list[Patch]:
    """One patch per layer; a row whose plan does not reach the layer is left alone."""
    patches: list[Patch] = []
    seq = int(batch.groups["last"].shape[1])
    for layer in range(max(p.layers for p in plans)):
        reached = [p.span_start is not None and layer < p.layers for p in plans]
        starts = [
            span[0] + p.span_start if p.span_start is not None and layer < p.layers else None
            for span, p in zip(batch.spans, plans, strict=True)
        ]
        values = [bench.donors.values(p, layer) for p, here in zip(plans, reached, strict=True) if here]
        where = span_mask(starts, [p.span_length for p in plans], seq)
        if values:
            patches.append(Patch(Site("mlp_write", layer), where, torch.cat(values)))
    return patches


def _answer_back(bench: _Bench, ids: Sequence[str], pairs: Sequence[Pair]) -> pl.DataFrame:
    """Back-patching: the image tokens' `resid_post` of a later layer, written into an earlier one of the same run."""
    rows: list[dict[str, Any]] = []
    later = {Site("resid_post", late) for late, _ in pairs}
    for index, batch in bench.model.batches([bench.prompts[i] for i in ids] if pairs else [], bench.params.batch):
        own = bench.model.run(batch, capture=later).activations
        where = batch.groups["image"]
        for late, early in pairs:
            patch = Patch(Site("resid_post", early), where, own[Site("resid_post", late)][where])
            answers = bench.model.generate(batch, bench.params.max_new_tokens, [patch])
            for i, span, answer in zip(index, batch.spans, answers, strict=True):
                plan = Plan(ids[i], "back_patch", bench.params.seed, early, late, 0, span[1] - span[0])
                rows.append(_outcome(bench, plan, answer))
    return _table(rows)


def _table(rows: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    keys = ["intervention", "seed", "layers", "from_layer", "question_id"]
    return pl.DataFrame(rows, schema=schemas.OUTCOMES).sort(keys)


def _outcome(bench: _Bench, plan: Plan, answer: str) -> dict[str, Any]:
    alias = bench.grade(answer, plan.question_id)
    donor = None if plan.donor_id is None else bench.questions[plan.donor_id]["entity_id"]
    moved = None
    if plan.intervention == "wrong_entity" and plan.donor_id is not None:
        moved = bench.grade(answer, plan.donor_id) is not None
    row = bench.drawn[plan.question_id]
    return {
        "question_id": plan.question_id,
        "set": row["set"],
        "split": row["split"],
        "intervention": plan.intervention,
        "seed": plan.seed,
        "layers": plan.layers,
        "from_layer": plan.from_layer,
        "span_start": plan.span_start,
        "span_length": plan.span_length,
        "answer_text": answer,
        "correct": alias is not None,
        "matched_alias": alias,
        "donor_entity_id": donor,
        "moved_to_donor": moved,
    }


def _metrics(bench: _Bench, outcomes: pl.DataFrame) -> dict[str, object]:
    entities = bench.sets.select("question_id", "entity_id")
    summary = summarise_outcomes(
        outcomes.join(entities, on="question_id"), _back_pairs(bench), bench.params.n_boot, bench.params.seed
    )
    plain = outcomes.filter(pl.col("intervention") == "none").select("question_id", "set", "answer_text", "correct")
    return {
        **summary,
        "donor_layers": min(bench.params.donor_layers, bench.model.n_layers),
        "baseline": _baseline(plain.join(bench.sets.select("question_id", "image_answer"), on="question_id")),
        "moved_to_donor_without_patch": _moved_without_patch(bench, plain),
        "n_available": bench.available,
    }


def _baseline(plain: pl.DataFrame) -> dict[str, int]:
    """Does the unpatched re-run give the benchmark's answers? Another batch may round a near-tie the other way."""
    same_text = int((plain["answer_text"] == plain["image_answer"]).sum())
    same_grade = int((plain["correct"] == (plain["set"] == "kept")).sum())
    if same_grade < plain.height:
        log.warning(
            "the unpatched re-run grades %d of %d answers unlike the benchmark", plain.height - same_grade, plain.height
        )
    return {"n": plain.height, "same_text": same_text, "same_grade": same_grade}


def _moved_without_patch(bench: _Bench, plain: pl.DataFrame) -> dict[str, int]:
    """How often the unpatched answer is the wrong donor's fact already: what `moved_to_donor` has to exceed."""
    answers = dict(plain.filter(pl.col("set") == "lost").select("question_id", "answer_text").iter_rows())
    pairs = [(answers[i], donor) for i, donor in bench.wrong.items() if i in answers]
    moved = sum(bench.grade(answer, donor) is not None for answer, donor in pairs)
    return {"n_questions": len(pairs), "moved": moved}
