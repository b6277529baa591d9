"""Every headline number with its interval, once: what figures, report and DVC metrics read.

The statistics themselves are `twohop.analysis`; here they meet the tables. An interval is `{value, low, high,
n_entities}` (95 %, bootstrap over entities) with None where a number is undefined; `n_questions` says what it rests on.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from twohop.analysis._degradation import GATES, degradation, pair_answers
from twohop.analysis._outcomes import summarise_outcomes
from twohop.analysis._patching import Pair
from twohop.analysis._probing import first_near_maximum, resolution
from twohop.analysis._profile_intervals import depth_intervals, likeness_intervals
from twohop.analysis._profiles import agreement
from twohop.analysis._recovery import beside_patch, closed_share
from twohop.analysis._statistics import entity_sums, holm, share
from twohop.figures._pairs import compare_pairs
from twohop.figures._resolution import order_of_depths, resolve
from twohop.figures._study import Study

Record = dict[str, Any]
CONDITIONS = {"backbone": "backbone, name", "text": "VLM, name", "image": "VLM, picture", "blank": "VLM, blank picture"}
"""Condition of a paired answer: how it is called."""
_PER_MODEL = (
    "models",
    "accuracy",
    "degradation",
    "recognition",
    "attribution",
    "profiles",
    "patching",
    "probes",
    "resolution",
    "recovery",
)
RESOLVED_SHARE = 0.9
"""A model knows what it sees from the first layer whose probe reaches this share of its best (study, section 5)."""


def summarise(study: Study, pairs: Sequence[Pair], n_boot: int, seed: int) -> Record:
    """The whole summary, in plain values.

    Args:
        study: the tables.
        pairs: candidate back-patching pairs, as params.yaml lists them (ties go to the first).
        n_boot: bootstrap draws over entities.
        seed: of the draws.
    """
    style, source = study.held_out()
    seen = {m: pair(study, m) for m in study.names("vlm", "control")}
    first = next(iter(seen.values()))
    return {
        "order": list(study.models),
        "held_out": {"style": style, "art_source": source},
        "n_entities": first["entity_id"].n_unique(),
        "n_questions": first.height,
        "n_names": study.entities.height,
        "models": {
            m: {"role": e.role, "backbone": e.backbone, "same_weights_as": e.same_weights_as, "note": e.note}
            for m, e in study.models.items()
        },
        "accuracy": {m: _accuracies(t, n_boot, seed) for m, t in seen.items()},
        "degradation": _degradations(study, seen, n_boot, seed),
        "recognition": {m: _recognition(study, m, n_boot, seed) for m in seen},
        "attribution": {m: _attribution(study, m, n_boot, seed) for m in study.question_scores},
        "profiles": {m: _profile(study, m, n_boot, seed) for m in study.names("vlm") if m in study.question_scores},
        "patching": {m: _patching(study, m, pairs, n_boot, seed) for m in study.outcomes},
        "probes": {m: _probes(study, m, n_boot, seed) for m in study.curves},
        "resolution": {m: resolve(study, m) for m in study.depths},
        "resolution_agreement": order_of_depths(study),
        "told_apart": compare_pairs(study, seen, n_boot, seed),
        "recovery": {m: _recovery(study, m, n_boot, seed) for m in study.recovered},
    }


def restore_order(summary: Mapping[str, Any]) -> Record:
    """The summary with models in the catalogue's order again (JSON files are written with sorted keys)."""
    order: list[str] = summary["order"]
    return {**summary, **{k: {m: summary[k][m] for m in order if m in summary[k]} for k in _PER_MODEL}}


def pair(study: Study, model: str) -> pl.DataFrame:
    """The model's paired answers (`twohop.analysis.pair_answers`)."""
    backbone = study.answers[study.backbone(model)]
    return pair_answers(backbone, study.answers[model], study.questions[model], study.recognition[model])


def _mean(table: pl.DataFrame, column: str, n_boot: int, seed: int) -> Record:
    sums = entity_sums(table["entity_id"].to_list(), [table[column].cast(pl.Float64).to_list(), [1.0] * table.height])
    return {**share(sums, n_boot, seed).record(), "n_questions": table.height}


def _accuracies(paired: pl.DataFrame, n_boot: int, seed: int) -> Record:
    """condition -> gate -> interval."""
    gated = {gate: paired.filter(*map(pl.col, flags)) if flags else paired for gate, flags in GATES.items()}
    return {c: {gate: _mean(rows, c, n_boot, seed) for gate, rows in gated.items()} for c in CONDITIONS}


def _degradations(study: Study, seen: Mapping[str, pl.DataFrame], n_boot: int, seed: int) -> Record:
    """model -> comparison -> gate -> relation -> row; `p_holm` is adjusted over the VLMs (all questions)."""
    found = {m: _by_path(degradation(t, n_boot, seed)) for m, t in seen.items()}
    vlms = study.names("vlm")
    for comparison in next(iter(found.values())):
        rows = [found[m][comparison]["all"]["all"] for m in vlms]
        tested = [r for r in rows if r["p_value"] is not None]
        for row, p in zip(tested, holm([r["p_value"] for r in tested]), strict=True):
            row["p_holm"] = p
    return found


def _by_path(table: pl.DataFrame) -> Record:
    tree: Record = {}
    for row in table.iter_rows(named=True):
        path = tree.setdefault(row.pop("comparison"), {}).setdefault(row.pop("gate"), {})
        intervals = {
            name: {"value": row.pop(name), "low": row.pop(f"{name}_low"), "high": row.pop(f"{name}_high")}
            for name in ("reference", "compared", "degradation")
        }
        path[row.pop("relation")] = {**row, **intervals}
    return tree


def _recognition(study: Study, model: str, n_boot: int, seed: int) -> Record:
    """style -> naming freely and by rank, under any of the prompts, and under each."""
    table = study.recognition[model].sort("style", "picture_id", "prompt_id")
    return {style[0]: _style(rows, n_boot, seed) for style, rows in table.partition_by("style", as_dict=True).items()}


def _style(rows: pl.DataFrame, n_boot: int, seed: int) -> Record:
    flags = {"free": "correct", "ranked": "ranked_correct"}
    pictures = rows.group_by("picture_id", "entity_id").agg(pl.col(c).any() for c in flags.values()).sort("picture_id")
    prompts = rows.partition_by("prompt_id", as_dict=True)
    return {
        "art_source": rows["art_source"][0],
        **{name: _mean(pictures, column, n_boot, seed) for name, column in flags.items()},
        "by_prompt": {
            str(prompt[0]): {name: _mean(part, column, n_boot, seed) for name, column in flags.items()}
            for prompt, part in prompts.items()
        },
    }


def _attribution(study: Study, model: str, n_boot: int, seed: int) -> Record:
    """run -> shares and centre of mass with intervals, and the agreement with true patching."""
    scores, checks, n_layers = study.question_scores[model], study.validation.get(model), study.n_layers(model)
    found: Record = {}
    for run in sorted(scores["run"].unique()):
        part = scores.filter(pl.col("run") == run)
        depth = depth_intervals(scores, run, n_layers, n_boot, seed)
        found[run] = {**depth, "n_examples": part["question_id"].n_unique()}
        if checks is not None:
            found[run]["validation"] = agreement(checks.filter(pl.col("run") == run), n_layers)
    return found


def _profile(study: Study, model: str, n_boot: int, seed: int) -> Record:
    """How alike the picture's (and the name's) profile is to the backbone's; absent where layers differ in number."""
    backbone, scores = study.backbone(model), study.question_scores
    if backbone not in scores or study.n_layers(model) != study.n_layers(backbone):
        return {}
    runs = sorted(scores[model]["run"].unique())
    return {r: likeness_intervals(scores[model], r, scores[backbone], "text", n_boot, seed) for r in runs}


def _patching(study: Study, model: str, pairs: Sequence[Pair], n_boot: int, seed: int) -> Record:
    entities = study.questions[model].select("question_id", "entity_id")
    outcomes = study.outcomes[model].join(entities, on="question_id", how="left", maintain_order="left")
    return dict(summarise_outcomes(outcomes, pairs, n_boot, seed))


def _probes(study: Study, model: str, n_boot: int, seed: int) -> Record:
    """test style -> feature -> accuracy at the embedding and at best, selectivity, and where it is resolved."""
    found: Record = {}
    curves = study.curves[model].partition_by("test_style", "feature", as_dict=True)
    for (style, feature), curve in sorted(curves.items()):
        said = study.predictions[model].filter(pl.col("test_style") == style, pl.col("feature") == feature)
        depth = resolution(said, study.n_layers(model), n_boot, seed, RESOLVED_SHARE)
        found.setdefault(style, {})[feature] = {**_curve(curve.sort("layer")), "resolved_depth": depth.record()}
    return found


def _curve(curve: pl.DataFrame) -> Record:
    best = curve.sort("accuracy", "layer", descending=[True, False]).row(0, named=True)
    first = curve.row(0, named=True)
    layer = first_near_maximum(curve["layer"].to_list(), curve["accuracy"].to_list(), RESOLVED_SHARE)
    return {
        "first": _point(first),
        "best": _point(best),
        "best_layer": best["layer"],
        "resolved_layer": layer,
        "selectivity": {"value": best["selectivity"], "low": best["selectivity_low"], "high": best["selectivity_high"]},
        "shuffled_best": curve["shuffled_accuracy"].max(),
        "n_test": best["n_test"],
    }


def _point(row: Mapping[str, Any]) -> Record:
    return {"value": row["accuracy"], "low": row["low"], "high": row["high"]}


def _recovery(study: Study, model: str, n_boot: int, seed: int) -> Record:
    """strategy -> accuracy, share of the degradation closed, accuracy by whether the written name was right, and the
    prompt beside the heuristic patch on the lost facts.
    """
    table, answers = study.recovered[model], study.answers[study.backbone(model)]
    backbone = answers.filter(pl.col("condition") == "text").select("question_id", "correct")
    found: Record = {}
    for strategy in table["strategy"].unique(maintain_order=True):
        rows = table.filter(pl.col("strategy") == strategy)
        closed = closed_share(table, backbone, strategy, n_boot, seed).record()
        found[strategy] = {"accuracy": _mean(rows, "correct", n_boot, seed), "closed": closed}
        for name, flag in (("name_right", True), ("name_wrong", False)):
            found[strategy][name] = _mean(rows.filter(pl.col("name_correct") == flag), "correct", n_boot, seed)
        if strategy != "direct" and model in study.outcomes:
            found[strategy]["beside_patch"] = beside_patch(table, study.outcomes[model], strategy, n_boot, seed)
    return found
