"""Which components move the answer when the entity changes? Attribution patching, validated (study, section 3).

inputs: questions, pictures with their manifest, the model's card. outputs: mean scores per node, the validation sample,
the positions' scores for the heuristic receiving span, a summary.
1. Draw questions that have a corrupted twin, evenly over relations.
2. Per run (`text`; for a VLM also `image`): score every site x token group, clean against twin.
3. Patch a sample of the same nodes for real and correlate.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from torch import Tensor

from twohop.analysis import (
    Contrast,
    Runner,
    attribute,
    correlate,
    group_scores,
    patch_nodes,
    select_run,
    stratified_sample,
    summarise_run,
)
from twohop.config import ScoreAttribution
from twohop.data import open_pictures
from twohop.errors import DataError
from twohop.models import Batch, Model, Patch, Prompt, Site, open_model
from twohop.steps._asking import encode_by_id
from twohop.steps._step import Job, Step, Summary
from twohop.store import read_table, schemas, write_bytes, write_json, write_table

STEP = Step(
    name="score_attribution",
    params=("score_attribution", "models.{model}"),
    inputs=("questions", "manifest", "pictures", "card"),
    outputs=("scores", "validation", "spans", "profile", "metrics"),
)
KINDS = ("mlp_write", "attn_write", "resid_post")
EMBEDDING = Site("resid_post", -1)
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Twins:
    """Clean and corrupted prompts of the drawn questions in one run, in drawing order."""

    run: str
    question_ids: list[str]
    clean: list[Prompt]
    corrupted: list[Prompt]
    contrast: Contrast


@dataclass(frozen=True)
class _Scored:
    nodes: pl.DataFrame
    """question_id, kind, layer, group, attributed."""
    spans: pl.DataFrame
    clean_metric: float
    corrupted_metric: float


def run(job: Job) -> Summary:
    """Score, validate, summarise."""
    params = job.section(ScoreAttribution)
    model = open_model(job.input("card"))
    questions = read_table(job.input("questions"), schemas.QUESTIONS)
    drawn = _draw(questions, params)
    runner = Runner(model.run, Patch)
    scores: list[pl.DataFrame] = []
    checks: list[pl.DataFrame] = []
    spans: list[pl.DataFrame] = []
    metrics: dict[str, object] = {}
    for twins in _runs(job, model, questions, drawn):
        scored = _score(runner, model, twins, params)
        checked = _validate(runner, model, twins, scored.nodes, params)
        table = _mean_scores(twins.run, scored.nodes)
        scores.append(table)
        checks.append(checked)
        spans.append(scored.spans)
        metrics[twins.run] = _metrics(table, checked, scored, twins.run, model.n_layers)
    write_table(job.output("scores"), pl.concat(scores), schemas.SCORES)
    write_table(job.output("validation"), pl.concat(checks), schemas.VALIDATION)
    write_table(job.output("spans"), pl.concat(spans), schemas.SPANS)
    write_bytes(job.output("profile"), plotted(pl.concat(scores)).write_csv().encode())
    write_json(job.output("metrics"), metrics)
    return {"questions": drawn.height, "runs": len(scores), "patched_nodes": sum(c.height for c in checks)}


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
    ids = drawn["question_id"].to_list()
    twins = drawn["corrupted_id"].to_list()
    contrast = Contrast(torch.tensor(drawn["clean_token"].to_list()), torch.tensor(drawn["corrupted_token"].to_list()))
    asked = {i: rows[i] for i in [*ids, *twins]}
    text = {i: Prompt(q["before"], q["name"], q["after"]) for i, q in asked.items()}
    found = [_Twins("text", ids, [text[i] for i in ids], [text[i] for i in twins], contrast)]
    if model.n_image_tokens:
        manifest = read_table(job.input("manifest"), schemas.MANIFEST)
        shown = [q["picture_id"] for q in asked.values()]
        features = encode_by_id(model, open_pictures(job.input("pictures")), manifest, shown)
        image = {i: Prompt(q["before"], None, q["after"], features[q["picture_id"]]) for i, q in asked.items()}
        found.append(_Twins("image", ids, [image[i] for i in ids], [image[i] for i in twins], contrast))
    return found


def _sites(model: Model, stride: int = 1) -> list[Site]:
    return [Site(kind, layer) for kind in KINDS for layer in range(0, model.n_layers, stride)]


def _score(runner: Runner[Batch, Site, Patch], model: Model, twins: _Twins, params: ScoreAttribution) -> _Scored:
    nodes: list[pl.DataFrame] = []
    spans = [pl.DataFrame(schema=schemas.SPANS)]
    clean: list[float] = []
    corrupted: list[float] = []
    for index, batch in model.batches(twins.clean, params.batch):
        other = model.batch([twins.corrupted[i] for i in index])
        contrast = Contrast(twins.contrast.clean[index], twins.contrast.corrupted[index])
        found = attribute(runner, batch, other, contrast, _sites(model), EMBEDDING, params.steps)
        ids = [twins.question_ids[i] for i in index]
        nodes.append(_node_rows(ids, group_scores(found.positions, batch.groups)))
        if twins.run == "image":
            spans.append(_span_rows(ids, batch, found.positions))
        clean += _floats(found.clean_metric)
        corrupted += _floats(found.corrupted_metric)
        log.info("%s run: %d of %d questions scored", twins.run, len(clean), len(twins.question_ids))
    return _Scored(pl.concat(nodes), pl.concat(spans), float(np.mean(clean)), float(np.mean(corrupted)))


def _floats(values: Tensor) -> list[float]:
    return values.detach().cpu().double().numpy().tolist()


def _node_rows(ids: Sequence[str], scores: Mapping[tuple[Site, str], Tensor]) -> pl.DataFrame:
    keys = list(scores)
    columns = {
        "question_id": [i for _ in keys for i in ids],
        "kind": [site.kind for site, _ in keys for _ in ids],
        "layer": [site.layer for site, _ in keys for _ in ids],
        "group": [group for _, group in keys for _ in ids],
        "attributed": _floats(torch.stack([scores[k] for k in keys]).flatten()),
    }
    return pl.DataFrame(columns)


def _span_rows(ids: Sequence[str], batch: Batch, positions: Mapping[Site, Tensor]) -> pl.DataFrame:
    """|score| from the first image token to `last`; what stands before the picture is the same in both twins."""
    rows = [
        {"question_id": i, "layer": site.layer, "position_scores": _floats(scores[row, batch.spans[row][0] :].abs())}
        for site, scores in positions.items()
        if site.kind == "mlp_write"
        for row, i in enumerate(ids)
    ]
    return pl.DataFrame(rows, schema=schemas.SPANS)


def _mean_scores(run: str, nodes: pl.DataFrame) -> pl.DataFrame:
    means = nodes.group_by("kind", "layer", "group").agg(
        pl.col("attributed").abs().mean().alias("mean_abs"),
        pl.col("attributed").mean().alias("mean_signed"),
        pl.len().cast(pl.Int64).alias("n_examples"),
    )
    return means.with_columns(pl.lit(run).alias("run")).sort("kind", "layer", "group").select(list(schemas.SCORES))


def _validate(
    runner: Runner[Batch, Site, Patch], model: Model, twins: _Twins, nodes: pl.DataFrame, params: ScoreAttribution
) -> pl.DataFrame:
    sites = _sites(model, params.validate_layer_stride)
    parts: list[pl.DataFrame] = []
    for i in range(min(params.validate_examples, len(twins.question_ids))):
        groups = {g: m[0] for g, m in model.batch([twins.clean[i]]).groups.items() if bool(m.any())}
        chosen = [(site, group) for site in sites for group in groups]
        activations = model.run(model.batch([twins.corrupted[i]]), capture=sites).activations
        changes = patch_nodes(
            runner,
            lambda n, i=i: model.batch([twins.clean[i]] * n),
            activations,
            [(site, groups[group]) for site, group in chosen],
            Contrast(twins.contrast.clean[[i]], twins.contrast.corrupted[[i]]),
            params.batch,
        )
        row = _node_rows([twins.question_ids[i]], dict(zip(chosen, changes[:, None], strict=True)))
        parts.append(row.rename({"attributed": "patched"}))
        log.info("%s run: %d nodes of question %d patched", twins.run, len(chosen), i + 1)
    checked = pl.concat(parts).join(nodes, on=["question_id", "kind", "layer", "group"], validate="1:1")
    return checked.with_columns(pl.lit(twins.run).alias("run")).select(list(schemas.VALIDATION))


def _metrics(
    scores: pl.DataFrame, checked: pl.DataFrame, scored: _Scored, run: str, n_layers: int
) -> dict[str, object]:
    agreement: dict[str, object] = {}
    for kind in KINDS:
        part = checked.filter(pl.col("kind") == kind)
        pair = correlate(part["attributed"].to_numpy(), part["patched"].to_numpy())
        agreement[kind] = {**pair, "n": part.height}
    return {
        **summarise_run(scores, run, n_layers),
        "validation": agreement,
        "clean_metric": scored.clean_metric,
        "corrupted_metric": scored.corrupted_metric,
        "n_examples": scored.nodes["question_id"].n_unique(),
    }
