"""The figure of the resolution depth: a curve per method, a mark where each says that the entity is resolved."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (matplotlib types its methods only in part)

from collections.abc import Mapping
from typing import Any

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from twohop.figures import _look as look
from twohop.figures._colour import colour
from twohop.figures._resolution import METHODS
from twohop.figures._study import Study

Record = Mapping[str, Any]
_SHADES = {"logit_lens": "#0072B2", "tuned_lens": "#009E73", "patchscope": "#CC79A7"}


def draw_resolution(study: Study, summary: Record) -> Figure:
    """Per model: what the lenses and Patchscopes read by layer; the knockout's loss; every method's depth below."""
    models = [m for m in study.models if m in summary["resolution"]]
    figure, axes = look.panels(3, max(len(models), 1), 1.0 + 2.7 * max(len(models), 1), 7.0, sharey=False)
    for ax, model in zip(axes[0], models, strict=False):
        found, points = summary["resolution"][model]["methods"], study.resolution[model]
        ax.set_title(model, color=colour(study, model))
        for method in _SHADES:
            _reading(ax, found, points, method, study.n_layers(model))
        look.percent_axis(ax, "y", "entities read" if ax is axes[0][0] else "")
    for ax, model in zip(axes[1], models, strict=False):
        _knockout(ax, summary["resolution"][model]["methods"], study.resolution[model], study.n_layers(model))
    for ax, model in zip(axes[2], models, strict=False):
        _depths(ax, summary["resolution"][model]["methods"], colour(study, model))
    if models:
        axes[1][0].set_ylabel("loss of log P(name) (nats)")
        look.legend_below(figure, axes[0][0], 4)
    else:
        for row in axes:
            look.empty(row[0], "resolution was not measured")
    return figure


def _reading(ax: Axes, found: Record, points: pl.DataFrame, method: str, n_layers: int) -> None:
    if method not in found:
        return
    rows = points.filter(method=method, readout=found[method]["readout"]).sort("layer")
    depth, shade = rows["layer"] / n_layers, _SHADES[method]
    ax.plot(depth, rows["value"], color=shade, label=METHODS[method])
    ax.fill_between(depth, rows["low"], rows["high"], color=shade, alpha=0.15, linewidth=0)
    ax.plot(depth, rows["chance"], ":", color=shade, linewidth=1, label=f"{METHODS[method]}, other names")
    if found[method]["value"] is not None:
        ax.axvline(found[method]["value"], color=shade, linewidth=0.8, linestyle="--")


def _knockout(ax: Axes, found: Record, points: pl.DataFrame, n_layers: int) -> None:
    if "knockout" not in found:
        look.empty(ax, "no window was blocked")
        return
    rows = points.filter(method="knockout", readout=found["knockout"]["readout"]).sort("layer")
    ax.plot(rows["layer"] / n_layers, rows["value"], color="#D55E00")
    ax.fill_between(rows["layer"] / n_layers, rows["low"], rows["high"], color="#D55E00", alpha=0.15, linewidth=0)
    ax.plot(rows["layer"] / n_layers, rows["chance"], ":", color="#D55E00", linewidth=1)
    if found["knockout"]["value"] is not None:
        ax.axvline(found["knockout"]["value"], color="#D55E00", linewidth=0.8, linestyle="--")


def _depths(ax: Axes, found: Record, shade: str) -> None:
    for i, method in enumerate(METHODS):
        depth = found.get(method)
        if depth is None or depth["value"] is None:
            words = "not measured" if depth is None else "reads nothing"
            ax.text(0, i, words, va="center", color="#666666", style="italic", fontsize=7)
        else:
            look.dot(ax, i, depth, shade)
    ax.set_xlim(-0.02, 1.02)
    look.rows_from_top(ax, list(METHODS.values()))
    ax.set_xlabel("depth (share of layers)")
