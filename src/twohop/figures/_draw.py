"""The figures: each is a function from the study and its summary to a matplotlib figure."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (matplotlib types its methods only in part)

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from twohop.analysis._profiles import select_run
from twohop.figures import _look as look
from twohop.figures._colour import colour
from twohop.figures._draw_resolution import draw_resolution
from twohop.figures._study import Study
from twohop.figures._summary import CONDITIONS

Record = Mapping[str, Any]
_GATES = {"all": "all questions", "recognised": "questions whose picture it names", "ranked": "… ranks first"}
_RUNS = {"text": "name", "image": "picture"}
_KINDS = {"mlp_write": "MLP write", "attn_write": "attention write"}
_GROUPS = {"entity": "entity", "entity_last": "entity, last token", "question": "question", "last": "last"}
INTERVENTIONS = {
    "heuristic": "backbone's MLPs, best span",
    "random": "… random span",
    "wrong_entity": "… of a wrong entity",
    "moved": "… which then gives its own fact",
    "own_text": "VLM's own text run",
    "mean": "mean activation",
    "zero": "zero",
    "back_patch": "back-patching, pair of dev",
    "oracle": "back-patching, best pair (oracle)",
}
"""Rows of the patching figure: name in the outcomes table, words."""
SPANS = {"heuristic": "best span", "image_last": "end of picture", "random": "random span"}
STRATEGIES = {
    "direct": "direct",
    "name_then_answer": "name it, then answer",
    "two_turns": "two turns",
    "oracle_name": "true name given",
}
_FEATURES = {"image": "mean over image tokens", "image_last": "last image token", "last": "last position"}


def draw_benchmark(study: Study, summary: Record) -> Figure:
    """Accuracy per condition and model, on all questions and on recognised ones; recognition beside it."""
    models = study.names("vlm", "control")
    figure, [axes] = look.panels(1, 3, 3.4 * 3 + 0.3 * len(models), 3.8, sharey=True)
    for ax, gate in zip(axes, ("all", "recognised"), strict=False):
        _accuracy_panel(ax, summary["accuracy"], models, gate)
    _recognition_panel(axes[2], summary, models)
    look.percent_axis(axes[0], "y", "right answers")
    look.legend_below(figure, axes[0], 4)
    return figure


def _accuracy_panel(ax: Axes, accuracy: Record, models: list[str], gate: str) -> None:
    for i, model in enumerate(models):
        for j, (condition, words) in enumerate(CONDITIONS.items()):
            shade = look.CONDITION_COLOURS[condition]
            look.bar(ax, i + (j - 1.5) * 0.2, accuracy[model][condition][gate], 0.18, shade, words)
    counts = [accuracy[m]["image"][gate]["n_questions"] for m in models]
    ax.set_xticks(range(len(models)), [f"{m}\nn = {n}" for m, n in zip(models, counts, strict=True)])
    ax.set_title(f"Recall: {_GATES[gate]}")


def _recognition_panel(ax: Axes, summary: Record, models: list[str]) -> None:
    style = summary["held_out"]["style"]
    for i, model in enumerate(models):
        found = summary["recognition"][model][style]
        first = i == 0
        look.bar(ax, i - 0.18, found["free"], 0.32, "#009E73", "names it" if first else None)
        look.bar(ax, i + 0.18, found["ranked"], 0.32, "#56B4E9", "ranks its name first" if first else None)
    counts = [summary["recognition"][m][style]["free"]["n_questions"] for m in models]
    ax.set_xticks(range(len(models)), [f"{m}\n{n} pictures" for m, n in zip(models, counts, strict=True)])
    ax.set_title(f"Recognition: {summary['held_out']['art_source']} (held out)")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)


def draw_attribution(study: Study, _summary: Record) -> Figure:
    """Mean |score| of every layer and token group, and of every head where the answer is predicted.

    One scale per kind of node, the backbone beside every VLM.
    """
    runs = [(m, r) for m in study.scores for r in ("text", "image") if _has_run(study.scores[m], r)]
    figure, axes = look.panels(3, max(len(runs), 1), 2.2 + 2.1 * len(runs), 7.0, sharex=False, sharey="row")
    for row, kind in zip(axes, _KINDS, strict=False):
        _heats(figure, row, [_grid(study, model, run, kind) for model, run in runs], _KINDS[kind])
        row[0].set_yticks(range(len(_GROUPS)), list(_GROUPS.values()))
    _heats(figure, axes[2], _head_grids(study, runs), "head, at last")
    axes[2][0].set_ylabel("head")
    for ax, (model, run) in zip(axes[0], runs, strict=False):
        ax.set_title(f"{model}\n{_RUNS[run]}", color=colour(study, model))
    for ax in axes[2]:
        ax.set_xlabel("layer")
    if not runs:
        for row in axes:
            look.empty(row[0], "no model was scored")
    return figure


def _heats(figure: Figure, row: list[Axes], grids: list[Float[np.ndarray, "row layer"]], words: str) -> None:
    finite = [float(np.nanmax(g)) for g in grids if not np.isnan(g).all()]
    images = [_heat(ax, g, max(finite, default=1.0)) for ax, g in zip(row, grids, strict=False)]
    if images:
        figure.colorbar(images[-1], ax=row, label=f"{words}\nmean |score| (logits)", shrink=0.9)


def _head_grids(study: Study, runs: list[tuple[str, str]]) -> list[Float[np.ndarray, "head layer"]]:
    """Mean |score| of every head at the position that predicts the answer; NaN where a model has no such head."""
    at_last = (pl.col("kind") == "head") & (pl.col("group") == "last")
    tables = [study.scores[m].filter(at_last & (pl.col("run") == r)) for m, r in runs]
    counts = [int(t["head"].max()) + 1 for t in tables if t.height]  # type: ignore[arg-type]
    grids = [np.full((max(counts, default=1), study.n_layers(m)), np.nan) for m, _ in runs]
    for grid, table in zip(grids, tables, strict=True):
        for row in table.iter_rows(named=True):
            grid[row["head"], row["layer"]] = row["mean_abs"]
    return grids


def _has_run(scores: pl.DataFrame, run: str) -> bool:
    return not scores.filter(pl.col("run") == run).is_empty()


def _grid(study: Study, model: str, run: str, kind: str) -> Float[np.ndarray, "group layer"]:
    """Mean |score|, NaN where a node was not scored."""
    grid = np.full((len(_GROUPS), study.n_layers(model)), np.nan)
    for row in select_run(study.scores[model], run).filter(pl.col("kind") == kind).iter_rows(named=True):
        if row["group"] in _GROUPS:
            grid[list(_GROUPS).index(row["group"]), row["layer"]] = row["mean_abs"]
    return grid


def _heat(ax: Axes, grid: Float[np.ndarray, "row layer"], top: float) -> AxesImage:
    ax.set_facecolor("#DDDDDD")
    image = ax.imshow(grid, aspect="auto", vmin=0, vmax=top or 1.0, interpolation="nearest")
    ax.grid(False)
    return image


def draw_validation(study: Study, summary: Record) -> Figure:
    """Attributed against truly patched change of the metric, one panel per model and run."""
    runs = [(m, r) for m in study.validation for r in ("text", "image") if _has_run(study.validation[m], r)]
    figure, [axes] = look.panels(1, max(len(runs), 1), 1.0 + 2.5 * max(len(runs), 1), 3.4)
    for ax, (model, run) in zip(axes, runs, strict=False):
        _scatter(ax, study.validation[model].filter(pl.col("run") == run))
        checked = summary["attribution"].get(model, {}).get(run, {}).get("validation", {}).get("all", {})
        r, rho = (_number(checked.get(k)) for k in ("pearson", "spearman"))
        ax.set_title(f"{model}: {_RUNS[run]}\nr = {r}, rho = {rho}", color=colour(study, model))
    axes[0].set_ylabel("truly patched, Δm (logits)")
    if not runs:
        look.empty(axes[0], "nothing was truly patched")
    look.legend_below(figure, axes[0])
    return figure


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.2f}"


def _scatter(ax: Axes, checks: pl.DataFrame) -> None:
    for kind, shade in look.KIND_COLOURS.items():
        part = checks.filter(pl.col("kind") == kind)
        if part.height:
            ax.scatter(part["attributed"], part["patched"], s=12, color=shade, alpha=0.6, linewidths=0, label=kind)
    both = checks.select("attributed", "patched").to_numpy()
    ends = [float(both.min()), float(both.max())]
    ax.plot(ends, ends, color="#666666", linewidth=0.8, linestyle="--", label="equal")
    ax.set_xlabel("attributed, Δm (logits)")


def draw_patching(study: Study, summary: Record) -> Figure:
    """Recovered share of the lost facts and broken share of the kept ones: the heuristic patch and its controls."""
    figure, axes = look.panels(1, 2, 10, 4.2, sharey=True)
    [left, right] = axes[0]
    models = [m for m in study.names("vlm") if m in summary["patching"]]
    for ax, part in ((left, "recovered"), (right, "broken")):
        _intervention_panel(ax, study, {m: summary["patching"][m] for m in models}, part)
    left.set_title("Lost facts that come back")
    right.set_title("Right answers that break")
    look.legend_below(figure, left if left.get_legend_handles_labels()[0] else right)
    return figure


def _intervention_panel(ax: Axes, study: Study, patching: Record, part: str) -> None:
    rows = {m: _interventions(p, part) for m, p in patching.items()}
    if not any(i["value"] is not None for found in rows.values() for i in found.values()):
        look.empty(ax)
        return
    measured = {name for found in rows.values() for name, i in found.items() if i["value"] is not None}
    step = 0.6 / max(len(rows), 1)
    for j, (model, found) in enumerate(rows.items()):
        for i, name in enumerate(INTERVENTIONS):
            if name in found and name in measured:
                y, marker = i + (j - (len(rows) - 1) / 2) * step, "D" if name in ("oracle", "moved") else "o"
                n = patching[model]["n_lost" if part == "recovered" else "n_kept"]
                look.dot(ax, y, found[name], colour(study, model), marker, f"{model} (n = {n})" if i == 0 else None)
    for i, name in enumerate(INTERVENTIONS):
        if name not in measured:
            ax.text(0, i, "not measured here", va="center", color="#666666", style="italic", fontsize=7)
    look.percent_axis(ax, "x", "share of questions")
    look.rows_from_top(ax, list(INTERVENTIONS.values()))


def _interventions(patching: Record, part: str) -> dict[str, Record]:
    found = dict(patching[part])
    if part == "recovered":
        found["moved"] = patching["moved_to_donor"]
        found["back_patch"] = patching["back_patch"]["test"]
        found["oracle"] = patching["back_patch"]["oracle_pair_test"]
    return found


def draw_layer_sweep(study: Study, summary: Record) -> Figure:
    """Recovered share against how many of the backbone's layers the patch writes; beside it, per model, the change of
    log P(right answer) in every cell of site x span x window of layers.
    """
    grids = {m: p["grid"] for m, p in summary["patching"].items() if p["grid"]}
    width = 6.4 + 3.6 * len(grids)
    figure, [[ax, *maps]] = look.panels(1, 1 + len(grids), width, 4.2 if grids else 3.8)
    _sweep_curves(ax, study, summary)
    limit = max((abs(c["value"]) for g in grids.values() for c in g if c["value"] is not None), default=1.0)
    images = [_sweep_map(ax, cells, limit or 1.0) for ax, cells in zip(maps, grids.values(), strict=True)]
    for ax, (model, cells) in zip(maps, grids.items(), strict=True):
        ax.set_title(f"{model} (n = {cells[0]['n_questions']})", color=colour(study, model))
    for before, ax in pairwise(maps):
        if [t.get_text() for t in before.get_yticklabels()] == [t.get_text() for t in ax.get_yticklabels()]:
            ax.tick_params(labelleft=False)
    if images:
        figure.colorbar(images[-1], ax=maps, label="mean change of log P(right answer), nats", shrink=0.9)
    return figure


def _sweep_curves(ax: Axes, study: Study, summary: Record) -> None:
    sweeps = {m: p["sweep"] for m, p in summary["patching"].items() if p["sweep"]}
    for model, points in sweeps.items():
        x, shade = [p["layers"] for p in points], colour(study, model)
        ax.plot(x, [p["value"] for p in points], "o-", color=shade, label=f"{model} (n = {points[0]['n_questions']})")
        _band(ax, x, points, shade)
    ax.set(xlabel="layers written (backbone's MLPs), from the first")
    ax.set_title("Lost facts that come back")
    look.percent_axis(ax, "y", "recovered")
    ax.set_xticks(sorted({p["layers"] for points in sweeps.values() for p in points}))
    if sweeps:
        ax.legend(loc="best")
    else:
        look.empty(ax)


def _sweep_map(ax: Axes, cells: list[Record], limit: float) -> AxesImage:
    """Rows: site, span, and whether one layer is written or all up to it; columns: the last layer that is written."""
    depths = sorted({c["last_layer"] for c in cells})
    kinds = list(dict.fromkeys((c["site"], c["span"], c["first_layer"] == 0) for c in cells if c["last_layer"]))
    grid = np.full((len(kinds), len(depths)), np.nan)
    for c in cells:
        for row, (site, span, from_first) in enumerate(kinds):
            # the window of layer 0 alone is the start of both kinds
            same = from_first == (c["first_layer"] == 0) or not c["last_layer"]
            if (site, span) == (c["site"], c["span"]) and same and c["value"] is not None:
                grid[row, depths.index(c["last_layer"])] = c["value"]
    ax.set_facecolor("#DDDDDD")
    image = ax.imshow(grid, aspect="auto", cmap="RdBu", vmin=-limit, vmax=limit, interpolation="nearest")
    ax.set_xticks(range(len(depths)), [str(d) for d in depths])
    words = [
        f"{site}, {SPANS.get(span, span)}, {'0 to layer' if many else 'layer alone'}" for site, span, many in kinds
    ]
    ax.set_yticks(range(len(kinds)), words, fontsize=6)
    ax.set_xlabel("last layer written")
    ax.grid(False)
    return image


def _band(ax: Axes, x: list[int], points: list[Record], shade: str) -> None:
    low = [np.nan if p["low"] is None else p["low"] for p in points]
    high = [np.nan if p["high"] is None else p["high"] for p in points]
    ax.fill_between(x, low, high, color=shade, alpha=0.15, linewidth=0)


def draw_probes(study: Study, summary: Record) -> Figure:
    """Probe accuracy by layer, one row per picture style of the test, one column per feature."""
    curves = [c.with_columns(model=pl.lit(m)) for m, c in study.curves.items()]
    if all(c.is_empty() for c in curves):
        figure, [[ax]] = look.panels(1, 1, 5, 3)
        look.empty(ax, "no probe was trained")
        return figure
    table = pl.concat(curves).sort("layer")
    held_out = summary["held_out"]["style"]
    styles = sorted(table["test_style"].unique(), key=lambda s: (s != held_out, s))
    features = [f for f in _FEATURES if f in set(table["feature"])]
    figure, axes = look.panels(len(styles), len(features), 3.3 * len(features), 0.8 + 2.4 * len(styles), sharey=True)
    for row, style in zip(axes, styles, strict=True):
        for ax, feature in zip(row, features, strict=True):
            part = table.filter((pl.col("test_style") == style) & (pl.col("feature") == feature))
            _probe_panel(ax, study, part)
        look.percent_axis(row[0], "y", f"{style}\naccuracy")
    for ax, feature in zip(axes[0], features, strict=True):
        ax.set_title(_FEATURES[feature])
    for ax in axes[-1]:
        ax.set_xlabel("layer (0: embedding)")
    look.legend_below(figure, axes[0][0], 4)
    return figure


def _probe_panel(ax: Axes, study: Study, part: pl.DataFrame) -> None:
    for model in study.names("vlm", "control"):
        curve = part.filter(pl.col("model") == model)
        if curve.is_empty():
            continue
        shade, line = colour(study, model), "--" if study.models[model].role == "control" else "-"
        words = f"{model} (control)" if line == "--" else model
        ax.plot(curve["layer"], curve["accuracy"], line, color=shade, label=words)
        ax.fill_between(curve["layer"], curve["low"], curve["high"], color=shade, alpha=0.15, linewidth=0)
        ax.plot(
            curve["layer"], curve["shuffled_accuracy"], ":", color=shade, linewidth=1, label=f"{model}, shuffled labels"
        )
    if part.is_empty():
        look.empty(ax, "no picture in this set")


def draw_recovery(study: Study, summary: Record) -> Figure:
    """Accuracy per prompting strategy, the share of the degradation that each closes, and prompts beside the patch."""
    figure, [[left, right, beside]] = look.panels(1, 3, 14, 3.6)
    models = [m for m in study.names("vlm") if m in summary["recovery"]]
    if not models:
        for ax in (left, right, beside):
            look.empty(ax)
        return figure
    width = 0.8 / len(models)
    for j, model in enumerate(models):
        for i, strategy in enumerate(STRATEGIES):
            x = i + (j - (len(models) - 1) / 2) * width
            found = summary["recovery"][model].get(strategy, {})
            label = f"{model}" if i == 0 else None
            look.bar(left, x, found.get("accuracy", {}), width * 0.9, colour(study, model), label)
            if strategy != "direct":
                y = i - 1 + (j - (len(models) - 1) / 2) * 0.25
                look.dot(right, y, found.get("closed", {}), colour(study, model), label=label)
    _reference_lines(left, right, summary, models)
    _recovery_axes(left, right)
    _beside_panel(beside, study, summary, models)
    look.legend_below(figure, left)
    return figure


def _beside_panel(ax: Axes, study: Study, summary: Record, models: list[str]) -> None:
    """Share of the same lost facts that the heuristic patch and every prompt bring back."""
    rows = {"patch": "backbone's MLPs, best span", **{s: w for s, w in STRATEGIES.items() if s != "direct"}}
    measured = False
    for j, model in enumerate(models):
        found = {s: r["beside_patch"] for s, r in summary["recovery"][model].items() if "beside_patch" in r}
        shares = {s: r["prompt"] for s, r in found.items()}
        if found:
            shares["patch"] = next(iter(found.values()))["patch"]
        measured |= any(r["n_questions"] for r in found.values())
        for i, name in enumerate(rows):
            if shares.get(name, {}).get("value") is not None:
                look.dot(ax, i + (j - (len(models) - 1) / 2) * 0.25, shares[name], colour(study, model))
    ax.set_title("The same lost facts: patch, prompts")
    if not measured:
        look.empty(ax)
        return
    look.percent_axis(ax, "x", "share of the same questions")
    look.rows_from_top(ax, list(rows.values()))


def _reference_lines(left: Axes, right: Axes, summary: Record, models: list[str]) -> None:
    reference = summary["accuracy"][models[0]]["backbone"]["all"]["value"]
    if reference is not None:
        left.axhline(reference, color="black", linewidth=1, linestyle="--", label="backbone, name")
    for x in (0, 1):
        right.axvline(x, color="black", linewidth=0.8, linestyle="--" if x else "-")


def _recovery_axes(left: Axes, right: Axes) -> None:
    left.set_xticks(range(len(STRATEGIES)), [w.replace(", ", ",\n") for w in STRATEGIES.values()])
    left.set_title("Recall from a picture, by prompt")
    look.percent_axis(left, "y", "right answers")
    look.rows_from_top(right, list(STRATEGIES.values())[1:])
    right.set_title("Share of the degradation closed")
    right.set(xlabel="0: as bad as the direct prompt; 1: as good as the backbone")
    right.grid(True, axis="x")


FIGURES: Mapping[str, Callable[[Study, Record], Figure]] = {
    "benchmark": draw_benchmark,
    "attribution": draw_attribution,
    "validation": draw_validation,
    "patching": draw_patching,
    "layer_sweep": draw_layer_sweep,
    "probes": draw_probes,
    "resolution": draw_resolution,
    "recovery": draw_recovery,
}
"""Figure name (the file's stem): how it is drawn."""
