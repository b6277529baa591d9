"""How far two result folders differ, table by table: python benchmarks/same.py OLD NEW

Rows stand in one order in both, so they are compared one by one: texts, counts and true-or-false by the share that
differs, other numbers by the largest difference. Numbers of metrics.json files are compared by their place in them.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

UNLIKE = ("started", "ended", "seconds", "run_id", "digest", "record")
"""Columns that say when and by which run, not what."""


def columns(old: pl.DataFrame, new: pl.DataFrame) -> Iterator[str]:
    """What differs, column by column."""
    for name in old.columns:
        if name in UNLIKE or name not in new.columns:
            continue
        a, b = old[name], new[name]
        if a.dtype.is_float() and b.dtype.is_float():
            unlike = int((a.is_null() != b.is_null()).sum())
            worst = (a - b).abs().max()
            if unlike or worst:
                size = a.abs().max()
                yield f"{name}: at most {worst:.2g} of {size:.3g}" + (f", {unlike} missing in one" if unlike else "")
        else:
            differ = sum(x != y for x, y in zip(a.to_list(), b.to_list(), strict=True))
            if differ:
                yield f"{name}: {differ} rows"


def leaves(tree: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """Places and values."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from leaves(value, f"{at}.{key}" if at else str(key))
    elif isinstance(tree, list):
        for i, value in enumerate(tree):
            yield from leaves(value, f"{at}[{i}]")
    else:
        yield at, tree


def numbers(old: Any, new: Any) -> Iterator[str]:
    """Where two trees of numbers differ by more than a hundredth, relatively."""
    a, b = dict(leaves(old)), dict(leaves(new))
    for at in a.keys() | b.keys():
        x, y = a.get(at), b.get(at)
        if isinstance(x, int | float) and isinstance(y, int | float):
            if abs(x - y) > 0.01 * max(abs(x), abs(y)):
                yield f"{at}: {x:.4g} -> {y:.4g}"
        elif x != y:
            yield f"{at}: {x!r} -> {y!r}"


def main() -> None:
    """See the module."""
    old, new = map(Path, sys.argv[1:])
    for path in sorted(
        p.relative_to(old) for p in old.rglob("*") if p.suffix == ".parquet" or p.name == "metrics.json"
    ):
        if not (new / path).exists():
            print(f"{path}: missing")
            continue
        if path.suffix == ".parquet":
            a, b = (pl.read_parquet(folder / path) for folder in (old, new))
            found = [f"{len(a)} rows -> {len(b)}"] if len(a) != len(b) else list(columns(a, b))
            size = f"{len(a)} rows"
        else:
            a, b = (json.loads((folder / path).read_text()) for folder in (old, new))
            found, size = sorted(numbers(a, b)), f"{len(dict(leaves(a)))} values"
        print(f"{path} ({size}): {'; '.join(found) or 'equal'}")


if __name__ == "__main__":
    main()
