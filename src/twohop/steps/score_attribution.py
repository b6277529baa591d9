"""Which components move the answer when the entity changes? Attribution patching, validated (study, section 3).

inputs: questions, pictures with their manifest, the model's card. outputs: mean scores per node, magnitudes per
question (for intervals), the validation sample, the positions' scores for the heuristic receiving span, a summary.
1. Draw questions that have a corrupted twin, evenly over relations.
2. Per run (`text`; for a VLM also `image`): score every site (heads apart) x token group, clean against twin.
3. Patch a sample of the same nodes for real and correlate.
4. Control: the same two passes under the answers of other questions.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from twohop.analysis import (
    AttentionLayer,
    Attribution,
    Contrast,
    Drop,
    Node,
    Runner,
    agreement,
    attribute,
    attribute_star,
    patch_nodes,
    select_run,
    stratified_sample,
    summarise_run,
)
from twohop.config import ScoreAttribution
from twohop.data import open_pictures
from twohop.errors import DataError, ModelError
from twohop.models import Batch, Model, Patch, Prompt, Site, SiteKind, open_model
from twohop.steps._asking import KeptPictures
from twohop.steps._attribution_rows import Tally, span_rows
from twohop.steps._step import Job, Step, Summary
from twohop.store import read_table, schemas, write_bytes, write_json, write_table

STEP = Step(
    name="score_attribution",
    params=("score_attribution", "models.{model}"),
    inputs=("questions", "manifest", "pictures", "card"),
    outputs=("scores", "question_scores", "validation", "spans", "profile", "metrics"),
)
KINDS: tuple[SiteKind, ...] = ("mlp_write", "attn_write", "resid_post", "head")
STAR_KINDS: tuple[SiteKind, ...] = ("query", "key")
"""Scored under `method: atp_star` alone."""
EMBEDDING = Site("resid_post", -1)
Asked = Mapping[str, Any]
"""A row of QUESTIONS."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Twins:
    """The drawn questions of one run with their corrupted twins, in drawing order."""

    run: str
    clean: Sequence[Asked]
    corrupted: Sequence[Asked]
    contrast: Contrast
    permuted: list[int]
    """For each question another one of its relation with other answers; -1 where there is none."""
    prompts: Callable[[Sequence[Asked]], list[Prompt]]

    def batches(self, model: Model, size: int) -> Iterator[list[int]]:
        """Indices of questions of like length, at most `size` at a time."""
        texts = [q["before"] + (q["name"] if self.run == "text" else "") + q["after"] for q in self.clean]
        lengths = [len(model.tokenize(text)) for text in texts]
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        return (order[i : i + size] for i in range(0, len(order), size))

    def pair(self, model: Model, index: Sequence[int]) -> tuple[Batch, Batch]:
        """These questions and their twins."""
        clean, corrupted = ([questions[i] for i in index] for questions in (self.clean, self.corrupted))
        return model.batch(self.prompts(clean)), model.batch(self.prompts(corrupted))


@dataclass(frozen=True)
class _Scored:
    tally: Tally
    spans: pl.DataFrame
    changes: dict[str, float | int | None]
    """Means of the metric, clean and corrupted, and of its change under permuted answers."""


def run(job: Job) -> Summary:
    """Score, validate, summarise."""
    params = job.section(ScoreAttribution)
    model = open_model(job.input("card"))
    questions = read_table(job.input("questions"), schemas.QUESTIONS)
    drawn = _draw(questions, params)
    runner = Runner(model.run, Patch, model.heads)
    tables: dict[str, list[pl.DataFrame]] = {n: [] for n in ("scores", "question_scores", "validation", "spans")}
    metrics: dict[str, object] = {}
    for twins in _runs(job, model, questions, drawn):
        scored = _score(runner, model, twins, params)
        checked = _validate(runner, model, twins, scored.tally, params)
        scores = scored.tally.scores()
        made = (scores, scored.tally.question_scores(), checked, scored.spans)
        for part, table in zip(tables.values(), made, strict=True):
            part.append(table)
        metrics[twins.run] = _metrics(scores, checked, scored, twins.run, model.n_layers)
    for name, parts in tables.items():
        write_table(job.output(name), pl.concat(parts), getattr(schemas, name.upper()))
    write_bytes(job.output("profile"), plotted(pl.concat(tables["scores"])).write_csv().encode())
    write_json(job.output("metrics"), metrics)
    patched = sum(c.height for c in tables["validation"])
    return {"questions": drawn.height, "runs": len(metrics), "patched_nodes": patched}


def plotted(scores: pl.DataFrame) -> pl.DataFrame:
    """layer, share: the MLPs' |score| at the entity's tokens (the picture's in an image run) by layer, summing to 1;
    of the image run where there is one. What `dvc plots` draws.
    """
    run = "image" if "image" in scores["run"] else "text"
    rows = select_run(scores, run).filter(pl.col("kind") == "mlp_write", pl.col("group") == "entity").sort("layer")
    total = rows["mean_abs"].sum()
    return rows.select("layer", share=pl.col("mean_abs") / total if total else pl.lit(0.0))


def _draw(questions: pl.DataFrame, params: ScoreAttribution) -> pl.DataFrame:
    twinned = questions.filter(pl.col("corrupted_id").is_not_null()).sort("question_id")
    if twinned.is_empty():
        raise DataError("no question has a corrupted twin", "questions", "curate more entities, then build_questions")
    return twinned[stratified_sample(twinned["relation"].to_list(), params.max_examples, params.seed)]


def _runs(job: Job, model: Model, questions: pl.DataFrame, drawn: pl.DataFrame) -> Sequence[_Twins]:
    rows = {row["question_id"]: row for row in questions.iter_rows(named=True)}
    asked = [rows[i] for i in drawn["question_id"]]
    twins = [rows[i] for i in drawn["corrupted_id"]]
    contrast = Contrast(torch.tensor(drawn["clean_token"].to_list()), torch.tensor(drawn["corrupted_token"].to_list()))
    permuted = permute_answers(drawn["relation"].to_list(), contrast)
    found = [_Twins("text", asked, twins, contrast, permuted, _named)]
    if model.n_image_tokens:
        manifest = read_table(job.input("manifest"), schemas.MANIFEST)
        pictures = KeptPictures(model, open_pictures(job.input("pictures")), manifest)
        found.append(_Twins("image", asked, twins, contrast, permuted, lambda rows: _shown(pictures, rows)))
    return found


def _named(questions: Sequence[Asked]) -> list[Prompt]:
    return [Prompt(q["before"], q["name"], q["after"]) for q in questions]


def _shown(pictures: KeptPictures, questions: Sequence[Asked]) -> list[Prompt]:
    features = pictures.take([q["picture_id"] for q in questions])
    return [Prompt(q["before"], None, q["after"], f) for q, f in zip(questions, features, strict=True)]


def permute_answers(relations: Sequence[str], contrast: Contrast) -> list[int]:
    """For each question the next of the same relation that shares no answer token with it; -1 where there is none."""
    pairs = list(zip(contrast.clean.tolist(), contrast.corrupted.tolist(), strict=True))
    n = len(pairs)
    others = [[k % n for k in range(i + 1, i + n)] for i in range(n)]
    fits = [
        [j for j in js if relations[j] == relations[i] and {*pairs[i]}.isdisjoint(pairs[j])]
        for i, js in enumerate(others)
    ]
    return [js[0] if js else -1 for js in fits]


def _kinds(params: ScoreAttribution) -> tuple[SiteKind, ...]:
    return (*KINDS, *STAR_KINDS) if params.method == "atp_star" else KINDS


def _sites(model: Model, run: str, kinds: Sequence[SiteKind], stride: int = 1) -> list[Site]:
    return [Site(kind, layer) for kind in kinds for layer in model.layers_of(run)[::stride]]


def _scorer(
    runner: Runner[Batch, Site, Patch], model: Model, run: str, params: ScoreAttribution
) -> Callable[[Batch, Batch, Contrast], Attribution[Site]]:
    """`attribute` or `attribute_star` with everything but the batches."""
    sites = _sites(model, run, KINDS)
    if params.method != "atp_star":
        return lambda c, o, contrast: attribute(runner, c, o, contrast, sites, EMBEDDING, params.steps)
    attention = [_attention_layer(model, layer) for layer in model.layers_of(run)]
    drops = [_drop(layer) for layer in model.layers_of(run)]
    return lambda c, o, contrast: attribute_star(runner, c, o, contrast, sites, attention, drops)


def _attention_layer(model: Model, layer: int) -> AttentionLayer[Batch, Site]:
    def attend(batch: Batch, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return model.attend(batch, layer, query, key, value)

    head, query, key, value = (Site(kind, layer) for kind in ("head", "query", "key", "value"))
    return AttentionLayer(head, query, key, value, attend)


def _drop(layer: int) -> Drop[Site]:
    kinds: tuple[SiteKind, ...] = ("mlp_write", "attn_write", "head", "query", "key")
    return Drop((Site("mlp_write", layer), Site("attn_write", layer)), frozenset(Site(kind, layer) for kind in kinds))


def _score(runner: Runner[Batch, Site, Patch], model: Model, twins: _Twins, params: ScoreAttribution) -> _Scored:
    tally = Tally(twins.run, params.validate_examples)
    score = _scorer(runner, model, twins.run, params)
    spans = [pl.DataFrame(schema=schemas.SPANS)]
    changes: list[Tensor] = []
    for index, batch, found in _as_fits(twins, model, score, params.batch):
        asked = [twins.clean[i] for i in index]
        tally.add(index, [(q["question_id"], q["entity_id"]) for q in asked], found)
        if twins.run == "image":
            spans.append(span_rows([q["question_id"] for q in asked], batch, found.positions))
        changes.append(_changes(twins, index, found))
        log.info("%s run: %d of %d questions scored", twins.run, sum(map(len, changes)), len(twins.clean))
    return _Scored(tally, pl.concat(spans), _mean_changes(torch.cat(changes)))


def _as_fits(
    twins: _Twins, model: Model, score: Callable[[Batch, Batch, Contrast], Attribution[Site]], size: int
) -> Iterator[tuple[list[int], Batch, Attribution[Site]]]:
    """The batches with their scores; one for which the GPU's memory is too short is done in halves, as are those after
    it. Scores are of single questions, so that this changes nothing but rounding.

    Raises:
        ModelError: memory is too short for one question.
    """
    waiting = list(twins.batches(model, size))
    while waiting:
        index = waiting.pop(0)
        batch, other = twins.pair(model, index)
        try:
            found = score(batch, other, twins.contrast.rows(index))
        except torch.OutOfMemoryError as error:
            if len(index) == 1:
                what = "one question's backward pass does not fit the GPU's memory"
                raise ModelError(what, model.name, "see docs/models.md on `loading`, or use a larger GPU") from error
            most = len(index) // 2
            log.warning("memory is too short for %d questions at a time: %d from now on", len(index), most)
            waiting = [part[i : i + most] for part in (index, *waiting) for i in range(0, len(part), most)]
        else:
            yield index, batch, found


def _changes(twins: _Twins, index: Sequence[int], found: Attribution[Site]) -> Tensor:
    """Per question: clean metric, corrupted metric, and the change of a permuted pair's metric (NaN: no such pair)."""
    other = [twins.permuted[i] for i in index]
    wrong = twins.contrast.rows(other)
    change = wrong.metric(found.corrupted_logits) - wrong.metric(found.clean_logits)
    change = torch.where(torch.tensor(other, device=change.device) < 0, torch.nan, change)
    return torch.stack([found.clean_metric, found.corrupted_metric, change], 1).cpu().double()


def _mean_changes(changes: Tensor) -> dict[str, float | int | None]:
    clean, corrupted, wrong = changes.T
    known = wrong[~wrong.isnan()]
    return {
        "clean_metric": float(clean.mean()),
        "corrupted_metric": float(corrupted.mean()),
        "change": float((corrupted - clean).mean()),
        "permuted_change": float(known.mean()) if len(known) else None,
        "n_permuted": len(known),
    }


def _validate(
    runner: Runner[Batch, Site, Patch], model: Model, twins: _Twins, tally: Tally, params: ScoreAttribution
) -> pl.DataFrame:
    """VALIDATION: nodes of some layers of the first questions, truly patched."""
    sites = _sites(model, twins.run, _kinds(params), params.validate_layer_stride)
    rows: list[dict[str, object]] = []
    for i in sorted(tally.kept):
        clean, corrupted = twins.pair(model, [i])
        groups = {g: m[0] for g, m in clean.groups.items() if bool(m.any())}
        rng = np.random.default_rng([params.seed, i])
        chosen = [(s, h, g) for s in sites for h in _heads(model, s, params.validate_heads, rng) for g in groups]
        # nodes that a run may begin at stand together, so that it leaves out more
        chosen.sort(key=lambda node: (node[0].first_changed, int(groups[node[2]].nonzero()[0])))
        trunk = model.trunk(clean, {s.first_changed for s in sites})
        changes = patch_nodes(
            runner,
            lambda n, t=trunk: t.fork([0] * n),
            model.run(corrupted, capture=sites).activations,
            [Node(site, groups[group], head) for site, head, group in chosen],
            twins.contrast.rows([i]),
            params.batch,
        )
        asked = {"run": twins.run, "question_id": twins.clean[i]["question_id"]}
        rows += [
            asked | tally.kept_row(i, *node, change) for node, change in zip(chosen, changes.tolist(), strict=True)
        ]
        log.info("%s run: %d nodes of question %d patched", twins.run, len(chosen), i + 1)
    return pl.DataFrame(rows, schema=schemas.VALIDATION)


def _heads(model: Model, site: Site, n: int, rng: np.random.Generator) -> Sequence[int | None]:
    """Heads of a site to patch, drawn anew for each question and layer; [None] for a site without heads."""
    count = model.heads(site)
    return [None] if count is None else sorted(int(h) for h in rng.permutation(count)[:n])


def _metrics(
    scores: pl.DataFrame, checked: pl.DataFrame, scored: _Scored, run: str, n_layers: int
) -> dict[str, object]:
    return {
        **summarise_run(scores, run, n_layers),
        "validation": agreement(checked, n_layers),
        **scored.changes,
        "n_examples": scored.tally.question_scores()["question_id"].n_unique(),
    }
