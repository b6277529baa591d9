"""What all figures share: the style file, colours with a fixed meaning, intervals, empty panels, files."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (matplotlib types its methods only in part)

import io
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from twohop.store import write_bytes

mpl.use("agg")

MODEL_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""VLMs in the catalogue's order (Okabe & Ito)."""
BACKBONE, CONTROL = "#000000", "#8A8A8A"
CONDITION_COLOURS = {"backbone": "#4D4D4D", "text": "#0072B2", "image": "#D55E00", "blank": "#B8B8B8"}
KIND_COLOURS = {
    "mlp_write": "#0072B2",
    "attn_write": "#D55E00",
    "resid_post": "#8A8A8A",
    "head": "#E69F00",
    "query": "#CC79A7",
    "key": "#009E73",
}
NOTHING = "no question in this set"
UNDEFINED = "n/a"

Interval = Mapping[str, Any]
"""`value`, `low`, `high`; None where undefined."""


def styled(draw: Callable[[], Figure]) -> Figure:
    """Draw under the project's style file, whatever the user's own settings are."""
    with as_file(files("twohop.figures") / "twohop.mplstyle") as path, mpl.rc_context():
        mpl.rcdefaults()
        mpl.rc_file(path, use_default_template=False)
        return draw()


def save(figure: Figure, svg: Path, png: Path, dpi: int) -> None:
    """Write a figure twice, the same bytes each time: no dates, no version, salted element ids."""
    with as_file(files("twohop.figures") / "twohop.mplstyle") as path, mpl.rc_context(fname=path):
        vector, raster = io.BytesIO(), io.BytesIO()
        figure.savefig(vector, format="svg", metadata={"Date": None, "Creator": None})
        figure.savefig(raster, format="png", dpi=dpi, metadata={"Software": None})
    write_bytes(svg, vector.getvalue())
    write_bytes(png, raster.getvalue())


def panels(rows: int, columns: int, width: float, height: float, **options: Any) -> tuple[Figure, list[list[Axes]]]:
    """A figure of equal panels, always as a list of rows."""
    figure = Figure(figsize=(width, height))
    return figure, [list(row) for row in figure.subplots(rows, columns, squeeze=False, **options)]


def empty(ax: Axes, why: str = NOTHING) -> None:
    """Say that there is nothing to show, in place of empty axes."""
    ax.text(0.5, 0.5, why, transform=ax.transAxes, ha="center", va="center", color="#666666", style="italic")
    ax.set(xticks=[], yticks=[])
    ax.grid(False)


def whiskers(interval: Interval) -> list[list[float]] | None:
    """Distances from the value to its bounds, as matplotlib wants them; None when there is no interval."""
    value, low, high = (interval.get(k) for k in ("value", "low", "high"))
    if value is None or low is None or high is None:
        return None
    return [[max(0.0, value - low)], [max(0.0, high - value)]]


def bar(ax: Axes, x: float, interval: Interval, width: float, colour: str, label: str | None = None) -> None:
    """One bar with its 95 % interval and its value in percent; "n/a" where the number is undefined."""
    value = interval.get("value")
    if value is None:
        ax.text(x, 0.01, UNDEFINED, ha="center", va="bottom", color="#666666")
        ax.bar(x, 0, width, color=colour, label=label)
        return
    errors = whiskers(interval)
    ax.bar(x, value, width, color=colour, label=label, alpha=0.85)
    if errors:
        ax.errorbar(x, value, yerr=errors, color="#333333", linewidth=1, capsize=2, fmt="none")
    top = value if not errors else value + errors[1][0]
    ax.text(x, top + 0.012, f"{100 * value:.0f}", ha="center", va="bottom", fontsize=7)


def dot(ax: Axes, y: float, interval: Interval, colour: str, marker: str = "o", label: str | None = None) -> None:
    """One estimate with its 95 % interval on a horizontal scale; "n/a" where it is undefined."""
    value = interval.get("value")
    if value is None:
        ax.text(0.0, y, UNDEFINED, ha="center", va="center", color=colour)
        return
    face = "white" if marker == "D" else colour
    ax.errorbar(
        value, y, xerr=whiskers(interval), fmt=marker, color=colour, mfc=face, capsize=2, linewidth=1.2, label=label
    )


def percent_axis(ax: Axes, axis: str, label: str, low: float = 0.0, high: float = 1.0) -> None:
    """Ticks from `low` to `high` in percent."""
    ticks = [low + (high - low) * i / 5 for i in range(6)]
    words = [f"{100 * t:.0f}" for t in ticks]
    if axis == "y":
        ax.set(ylim=(low, high * 1.08), ylabel=f"{label} (%)")
        ax.set_yticks(ticks, words)
    else:
        ax.set(xlim=(low - 0.03, high * 1.03), xlabel=f"{label} (%)")
        ax.set_xticks(ticks, words)
        ax.grid(True, axis="x")
        ax.grid(False, axis="y")


def legend_below(figure: Figure, ax: Axes, columns: int = 5) -> None:
    """One legend for the figure, under the panels."""
    handles, labels = ax.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    if once:
        figure.legend(once.values(), once.keys(), loc="outside lower center", ncols=min(columns, len(once)))


def rows_from_top(ax: Axes, labels: Sequence[str]) -> None:
    """Named rows, the first on top."""
    ax.set_yticks(range(len(labels)), labels)
    ax.set_ylim(len(labels) - 0.5, -0.5)
