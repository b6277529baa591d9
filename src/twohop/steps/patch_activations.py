"""Can the loss be repaired by giving the VLM its backbone's early entity activations? (Study, section 4.)

inputs: the questions with pictures, the VLM's and its backbone's answers and activations, recognition, the
attribution's position scores. outputs: one row per question and intervention, and what they say.
1. Sets: `lost` (backbone right, VLM wrong, recognised) and `kept` (both right).
2. Interventions: which activations go where (`analysis.Intervention`); one engine (`steps._intervening`) runs them all.
   It first patches runs with their own activations: no logit may change; and runs that begin as the unpatched one
   must give what whole ones give.
3. Patched greedy answers, graded, and log P of the right answer. What is finished together is a small file in the work
   folder, named by the digest of its interventions, so a killed job resumes.
4. The sweep: layers x site x span, by log P; greedy answers along its main curve.
5. Recovered and broken shares and changes of log P, with intervals.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import polars as pl

from twohop.analysis import (
    Intervention,
    Layers,
    Pair,
    Planner,
    SpanScores,
    choose_pair,
    digest_of,
    grade,
    patching_sets,
    sample_sets,
    stratified_sample,
    summarise_outcomes,
    windows,
    wrong_donors,
)
from twohop.config import PatchActivations
from twohop.data import open_pictures
from twohop.errors import ModelError
from twohop.models import Batch, Model, Prompt, open_model
from twohop.steps._asking import encode_by_id
from twohop.steps._intervening import Donors, Engine, Reply
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


RUNS_TOGETHER = 192
"""Patched runs that are answered before any of them is written down; a kill loses at most so many."""
SELF_CHECKED = 4
"""Questions of the engine's self-check; it holds every layer's activations at once."""


@dataclass(frozen=True)
class _Unit:
    """What is answered, stored and resumed together."""

    name: str
    interventions: list[Intervention]
    writes: bool = True
    """Greedy answers are written; else only given answers are scored."""


@dataclass
class _Bench:
    """Everything that a patched run needs."""

    job: Job
    params: PatchActivations
    model: Model
    questions: dict[str, dict[str, Any]]
    sets: pl.DataFrame
    engine: Engine
    wrong: dict[str, str]
    """Question -> question of the wrong donor."""
    available: dict[str, int]
    """Size of each set before drawing."""

    @cached_property
    def drawn(self) -> dict[str, dict[str, Any]]:
        """The drawn questions by id."""
        return {row["question_id"]: row for row in self.sets.iter_rows(named=True)}

    @cached_property
    def planner(self) -> Planner:
        """Makes this bench's interventions."""
        layers, receivers = tuple(range(min(self.params.donor_layers, len(self.shared[0])))), self.shared[1]
        spans = read_table(self.job.input("spans"), schemas.SPANS)
        batches = {i: self.model.batch([prompt]) for i, prompt in self.engine.prompts.items()}
        room = {i: _n_positions(batch) for i, batch in batches.items()}
        images = {i: batch.spans[0][1] - batch.spans[0][0] for i, batch in batches.items()}
        scores = SpanScores(spans, [receivers[n] for n in layers])
        donors, seed = self.engine.donors, self.params.seed
        return Planner(scores, room, images, donors.length, layers, seed, *self.shared)

    @cached_property
    def shared(self) -> tuple[Layers, Layers]:
        """Layers that a text run passes, in the backbone and in this model: the nth came from the nth.

        Raises:
            ModelError: they differ in number, so the backbone is another model's.
        """
        donors = tuple(self.engine.donors.backbone.layers("text", "mlp_write"))
        if len(donors) != len(self.model.text_layers):
            raise ModelError(
                f"{len(self.model.text_layers)} layers that a text run passes, its backbone has {len(donors)}",
                self.model.name,
                "name the language model that it was trained from (models.<name>.backbone)",
            )
        return donors, self.model.text_layers

    def answers(self, intervention: Intervention) -> list[str]:
        """Texts whose log P is wanted: the right answer; without a patch and from a wrong entity, that one's too."""
        question = intervention.question_id
        found = [self.questions[question]["answer"]]
        if intervention.name in ("none", "wrong_entity") and question in self.wrong:
            found.append(self.questions[self.wrong[question]]["answer"])
        return found

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
        changed = _self_check(bench)
        outcomes = _outcomes(bench)
    write_table(job.output("outcomes"), outcomes, schemas.OUTCOMES)
    write_json(job.output("metrics"), {**_metrics(bench, outcomes), "self_patch": changed})
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
        engine=Engine(
            model=model,
            donors=Donors(backbone, own),
            prompts={
                q["question_id"]: Prompt(q["before"], None, q["after"], features[q["picture_id"]])
                for q in sets.iter_rows(named=True)
            },
            batch=params.batch,
        ),
        wrong=wrong_donors(sets, questions, set(known) & named, params.seed),
        available=available,
    )


def _self_check(bench: _Bench) -> dict[str, object]:
    """Every site of a few questions' own runs, patched into them: no logit may change. Patches at a middle layer: as in
    whole runs.
    """
    ids, layers = list(bench.drawn)[:SELF_CHECKED], tuple(range(bench.model.n_layers))
    sites = list(dict.fromkeys(("resid_post", *bench.params.sweep_sites)))
    planned = [bench.planner.unchanged(i, site, layers) for site in sites for i in ids]
    changed = bench.engine.self_check(planned)
    log.info("self-check: own activations of %d questions change a logit by at most %g", len(ids), changed)
    middle = (len(bench.shared[0]) // 2,)
    parted = [bench.planner.heuristic(i, "sweep", i, middle, site) for site in bench.params.sweep_sites for i in ids]
    differs = bench.engine.share_check(parted)
    log.info("self-check: leaving out what a patch does not change changes a logit by at most %g", differs)
    return {
        "largest_logit_change": changed,
        "largest_shared_change": differs,
        "n_questions": len(ids),
        "sites": sites,
        "n_layers": len(layers),
    }


def _outcomes(bench: _Bench) -> pl.DataFrame:
    """Every intervention on both sets; finished ones are read back from the work folder."""
    none = pl.concat(_finished(bench, _plain_units(bench), {}))
    plain = {row["question_id"]: row for row in none.iter_rows(named=True)}
    parts = [none]
    parts += _finished(bench, [*_units(bench), *_sweep_units(bench)], plain)
    pairs, back = _back_pairs(bench), bench.planner.back_patch
    tried = _Unit("back_patch-lost", [back(i, pair) for i in bench.ids("lost") for pair in pairs])
    parts += _finished(bench, [tried], plain)
    pair = choose_pair(parts[-1].filter(pl.col("split") == "dev"), pairs)
    if pair is not None:
        chosen = _Unit("back_patch-kept", [back(i, pair) for i in bench.ids("kept")])
        parts += _finished(bench, [chosen], plain)
    return pl.concat(parts)


def _finished(bench: _Bench, units: Iterable[_Unit], plain: Mapping[str, Mapping[str, Any]]) -> Iterator[pl.DataFrame]:
    """The units' rows, from the work folder where they were finished before.

    Args:
        bench: everything that a patched run needs.
        units: what is run.
        plain: question to its row without a patch.
    """
    for group in _together(bench, units):
        named = [(unit, f"{unit.name}-{digest_of(unit.interventions)}") for unit in group]
        paths = {name: bench.job.work / f"{name}.parquet" for _, name in named}
        missing = {name for name, path in paths.items() if not path.exists()}
        asked = [i for unit, name in named if name in missing for i in unit.interventions]
        length = bench.params.max_new_tokens if group[0].writes else 0
        replies = iter(bench.engine.replies(asked, {i.question_id: bench.answers(i) for i in asked}, length))
        for unit, name in named:
            if name not in missing:
                log.info("%s: answered before", name)
                yield read_table(paths[name], schemas.OUTCOMES)
                continue
            table = _table([_outcome(bench, i, next(replies), plain) for i in unit.interventions])
            write_table(paths[name], table, schemas.OUTCOMES)
            right, change = int(table["correct"].sum()), (table["right_logprob"] - table["right_logprob_plain"]).mean()
            log.info("%s: %d runs, %d right, log P(right) %s", name, table.height, right, change)
            yield table


def _together(bench: _Bench, units: Iterable[_Unit]) -> Iterator[list[_Unit]]:
    """Consecutive units on the same questions and answers, up to RUNS_TOGETHER runs, so that they fill passes."""
    group, given = list[_Unit](), dict[str, list[str]]()
    for unit in units:
        answers = {i.question_id: list(bench.answers(i)) for i in unit.interventions}
        runs = sum(len(u.interventions) for u in (*group, unit))
        alike = given.items() <= answers.items() or answers.items() <= given.items()
        if group and (unit.writes != group[0].writes or not alike or runs > RUNS_TOGETHER):
            yield group
            group, given = [], {}
        group.append(unit)
        given |= answers
    if group:
        yield group


def _plain_units(bench: _Bench) -> Iterator[_Unit]:
    for kind in ("lost", "kept"):
        yield _Unit(f"none-{kind}", [bench.planner.plain(i) for i in bench.ids(kind)])


def _units(bench: _Bench) -> Iterator[_Unit]:
    """The heuristic patch and its controls, on both sets."""
    planner = bench.planner
    for kind in ("lost", "kept"):
        ids = bench.ids(kind)
        for name in ("heuristic", "zero", "own_text", "mean"):
            yield _Unit(f"{name}-{kind}", [planner.heuristic(i, name, i) for i in ids])
        for draw in range(bench.params.random_spans):
            yield _Unit(f"random-{kind}-{draw}", [planner.random(i, draw) for i in ids])
        wrong = [(i, bench.wrong[i]) for i in ids if i in bench.wrong]
        yield _Unit(f"wrong_entity-{kind}", [planner.heuristic(i, "wrong_entity", donor) for i, donor in wrong])


def _sweep_units(bench: _Bench) -> Iterator[_Unit]:
    """Windows of layers x site x span on some lost facts.

    The main patch, deepened layer by layer, is the curve: it has greedy answers and more questions than other cells.
    """
    planner, params, lost = bench.planner, bench.params, bench.ids("lost")
    drawn = stratified_sample(
        [bench.questions[i]["relation"] for i in lost], max(params.sweep_examples, params.grid_examples), params.seed
    )
    curve_ids, grid_ids = ([lost[j] for j in drawn[:n]] for n in (params.sweep_examples, params.grid_examples))
    depth = len(bench.shared[0])
    every = windows(params.sweep_layers, depth)
    _warn_left_out("sweep_layers", sum(n > depth for n in params.sweep_layers), bench.model)
    curve = [w for w in every if w[0] == 0]
    yield _Unit("sweep-curve", [planner.heuristic(i, "sweep", i, w) for i in curve_ids for w in curve])
    for site in params.sweep_sites:
        cells = [(i, w) for i in grid_ids for w in every]
        best = [planner.heuristic(i, "sweep", i, w, site) for i, w in cells if site != "mlp_write" or w not in curve]
        yield _Unit(f"sweep-{site}-heuristic", best, writes=False)
        last = [planner.image_last(i, "sweep", w, site) for i, w in cells]
        yield _Unit(f"sweep-{site}-image_last", last, writes=False)
        drawn_spans = [planner.random(i, 0, "sweep", w, site) for i, w in cells]
        yield _Unit(f"sweep-{site}-random", drawn_spans, writes=False)


def _n_positions(batch: Batch) -> int:
    """Positions from the first image token to `last`."""
    return int(batch.groups["last"].shape[1]) - batch.spans[0][0]


def _back_pairs(bench: _Bench) -> list[Pair]:
    fit = [(later, earlier) for later, earlier in bench.params.back_pairs if later < bench.model.n_layers]
    _warn_left_out("back_pairs", len(bench.params.back_pairs) - len(fit), bench.model)
    return fit


def _warn_left_out(key: str, n: int, model: Model) -> None:
    if n:
        log.warning(
            "%d of patch_activations.%s need more than %s's %d layers: left out", n, key, model.name, model.n_layers
        )


def _table(rows: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    keys = ["intervention", "seed", "site", "span", "first_layer", "last_layer", "from_layer", "question_id"]
    return pl.DataFrame(rows, schema=schemas.OUTCOMES).sort(keys)


def _outcome(bench: _Bench, i: Intervention, reply: Reply, plain: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    row = bench.drawn[i.question_id]
    written = i.receiver_layers or (None,)
    return {
        "question_id": i.question_id,
        "set": row["set"],
        "split": row["split"],
        "intervention": i.name,
        "digest": i.digest,
        "record": i.record(),
        "seed": i.seed,
        "site": i.site if i.receiver_layers else None,
        "first_layer": written[0],
        "last_layer": written[-1],
        "from_layer": i.donor_layers[0] if i.name == "back_patch" else None,
        "span": i.span,
        "span_start": i.span_start,
        "span_length": i.span_length,
        **_said(bench, i, reply, plain.get(i.question_id)),
    }


def _said(bench: _Bench, i: Intervention, reply: Reply, plain: Mapping[str, Any] | None) -> dict[str, Any]:
    """Answer and log-probabilities, beside those of the question's row without a patch (None: this is that row)."""
    alias = None if reply.text is None else bench.grade(reply.text, i.question_id)
    scored = {"right_logprob": reply.logprobs[0], "donor_logprob": None}
    if len(reply.logprobs) > 1:
        scored["donor_logprob"] = reply.logprobs[1]
    before = plain or scored
    named = i.donor_id if i.donor_run == "text" else None
    wrong = named if i.name == "wrong_entity" else None
    said, unpatched = reply.text or "", str(before.get("answer_text") or "")
    return {
        "answer_text": reply.text,
        "correct": None if reply.text is None else alias is not None,
        "matched_alias": alias,
        **scored,
        "right_logprob_plain": before["right_logprob"],
        "donor_logprob_plain": before["donor_logprob"] if scored["donor_logprob"] is not None else None,
        "donor_entity_id": bench.questions[named]["entity_id"] if named else None,
        "moved_to_donor": bench.grade(said, wrong) is not None if wrong else None,
        "moved_plain": bench.grade(unpatched, wrong) is not None if wrong else None,
    }


def _metrics(bench: _Bench, outcomes: pl.DataFrame) -> dict[str, object]:
    entities = bench.sets.select("question_id", "entity_id")
    summary = summarise_outcomes(
        outcomes.join(entities, on="question_id"), _back_pairs(bench), bench.params.n_boot, bench.params.seed
    )
    plain = outcomes.filter(pl.col("intervention") == "none").select("question_id", "set", "answer_text", "correct")
    return {
        **summary,
        "donor_layers": min(bench.params.donor_layers, len(bench.shared[0])),
        "baseline": _baseline(plain.join(bench.sets.select("question_id", "image_answer"), on="question_id")),
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
