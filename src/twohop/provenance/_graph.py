"""The graph of runs as one HTML page that opens without a network: columns by depth, rows by model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from twohop.lineage import Book, Record, describe, maker_of

COLUMN, ROW, WIDTH, HEIGHT = 236, 58, 190, 42
"""Distances between nodes and their size, in units of the drawing."""
LEFT, BAND_GAP, TOP = 130, 18, 30
"""Room for the models' names, between models, and above the first."""
_SHARED = ""
"""Row of the runs that are of no single model."""


@dataclass(frozen=True)
class Box:
    """A run, or a file of the repository, in the drawing."""

    id: str
    step: str
    """What the box says on its first line: the step, or the file's name."""
    band: str
    run: str
    """Short id; empty for a file."""
    depth: int
    x: int = 0
    y: int = 0


def graph_page(records: Sequence[Record]) -> str:
    """The page.

    Args:
        records: the runs to draw, e.g. those that made what lies in results/.
    """
    edges = _edges(records)
    boxes, bands, size = _placed(records, edges)
    at = {box.id: box for box in boxes}
    env = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = env.from_string(_asset("graph.html"))
    return template.render(
        style=Markup(_asset("graph.css")),
        script=Markup(_asset("graph.js")),
        boxes=boxes,
        bands=bands,
        edges=[(a, b, _curve(at[a], at[b])) for a, b in edges],
        size=size,
        width=WIDTH,
        height=HEIGHT,
        details=_details(records),
        n_runs=len(records),
    )


def _asset(name: str) -> str:
    return (files("twohop.provenance") / name).read_text(encoding="utf-8")


def _edges(records: Sequence[Record]) -> list[tuple[str, str]]:
    """From maker to reader; a file of the repository is its own maker."""
    book = Book(records)
    made = {(maker_of(i, book), i.path, r.run_id) for r in records for i in r.inputs}
    return sorted({(run if run and run in book.all else f"file:{path}", reader) for run, path, reader in made})


def _placed(
    records: Sequence[Record], edges: Sequence[tuple[str, str]]
) -> tuple[list[Box], list[tuple[str, int, int]], tuple[int, int]]:
    """Boxes with their places, the bands (name, top, height), and the size of the drawing."""
    boxes = _boxes(records, edges)
    order = [_SHARED, *sorted({b.band for b in boxes} - {_SHARED})]
    bands: list[tuple[str, int, int]] = []
    placed: list[Box] = []
    top = TOP
    for band in order:
        columns: dict[int, list[Box]] = {}
        for box in (b for b in boxes if b.band == band):
            columns.setdefault(box.depth, []).append(box)
        height = max(map(len, columns.values()), default=0) * ROW
        for depth, column in columns.items():
            start = top + (height - len(column) * ROW) // 2
            placed += [_put(box, LEFT + depth * COLUMN, start + i * ROW) for i, box in enumerate(column)]
        if height:
            bands.append((band or "all models", top - BAND_GAP // 2, height + BAND_GAP // 2))
            top += height + BAND_GAP
    width = LEFT + (max((b.depth for b in boxes), default=0) + 1) * COLUMN
    return placed, bands, (width, top)


def _put(box: Box, x: int, y: int) -> Box:
    return Box(box.id, box.step, box.band, box.run, box.depth, x, y)


def _boxes(records: Sequence[Record], edges: Sequence[tuple[str, str]]) -> list[Box]:
    depths = _depths(edges)
    runs = [Box(r.run_id, r.step, r.model or _SHARED, r.run_id[:8], depths.get(r.run_id, 0)) for r in records]
    bands = {r.run_id: r.model or _SHARED for r in records}
    sources = {a: bands[b] for a, b in reversed(edges) if a.startswith("file:")}
    return [*(Box(a, Path(a).name, band, "", 0) for a, band in sorted(sources.items())), *runs]


def _depths(edges: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Longest way from a node without makers; a circle, which no honest records have, is cut off."""
    makers: dict[str, list[str]] = {}
    for a, b in edges:
        makers.setdefault(b, []).append(a)
    depths: dict[str, int] = {}

    def depth(node: str, below: frozenset[str]) -> int:
        if node not in depths and node not in below:
            depths[node] = max((depth(m, below | {node}) + 1 for m in makers.get(node, ())), default=0)
        return depths.get(node, 0)

    for a, b in edges:
        depth(a, frozenset())
        depth(b, frozenset())
    return depths


def _curve(a: Box, b: Box) -> str:
    x0, y0, x1, y1 = a.x + WIDTH, a.y + HEIGHT // 2, b.x, b.y + HEIGHT // 2
    bend = max(24, (x1 - x0) // 2 if x1 - x0 < COLUMN else COLUMN // 3)
    return f"M{x0} {y0}C{x0 + bend} {y0} {x1 - bend} {y1} {x1} {y1}"


def _details(records: Sequence[Record]) -> Mapping[str, Any]:
    """What the page shows of a run: its record without the digests of its code."""
    hidden = {"code", "format", "batch"}
    return {
        r.run_id: {"title": describe(r), **{k: v for k, v in r.as_json().items() if k not in hidden}} for r in records
    }
