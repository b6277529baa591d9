"""A user's table as rows of text: CSV, Parquet, JSON Lines; its columns compared with those that are known."""

import difflib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import polars as pl

from twohop.errors import DataError

SEPARATOR = "|"
"""Between the first name or answer of a cell and its aliases."""
FACT_COLUMNS = ("entity", "relation", "answer")
_FACT_KNOWN = (*FACT_COLUMNS, "aliases", "licence", "source", "url")
_SIMILAR = 0.8
"""From this ratio of difflib on, an unknown column is taken for a misspelt one."""


@dataclass(frozen=True)
class Rows:
    """A table: where it is, its columns, its rows as text with empty cells as ''."""

    where: str
    columns: tuple[str, ...]
    rows: tuple[dict[str, str], ...]

    def numbered(self) -> Iterator[tuple[int, dict[str, str]]]:
        """Rows with their numbers; 1 is the first under the header."""
        return enumerate(self.rows, 1)


def read_rows(path: Path) -> Rows:
    """Read a table; a list in a cell becomes its items with `|` between them.

    Raises:
        DataError: it has another ending, cannot be read, or has no row.
    """
    where = str(path)
    try:
        table = _read(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(f"cannot read the table: {error}", where, "write it as CSV with a header, in UTF-8") from None
    if table.is_empty():
        raise DataError("the table has no row", where, "write one row per entity")
    rows = tuple({k: _text(v) for k, v in row.items()} for row in table.iter_rows(named=True))
    return Rows(where, tuple(table.columns), rows)


def _read(path: Path) -> pl.DataFrame:
    if path.suffix == ".csv":
        return pl.read_csv(path, infer_schema=False)
    if path.suffix == ".parquet":
        return pl.read_parquet(path)
    if path.suffix == ".jsonl":
        return pl.read_ndjson(path, infer_schema_length=None)
    raise DataError(f"unknown ending {path.suffix!r}", str(path), "use .csv, .parquet or .jsonl")


def _text(value: Any) -> str:
    if isinstance(value, list):
        return SEPARATOR.join(_text(v) for v in cast("list[Any]", value))
    return "" if value is None else str(value).strip()


def split_cell(text: str) -> tuple[str, ...]:
    """`Paris|City of Paris` -> both, without empty and repeated ones."""
    return tuple(dict.fromkeys(filter(None, (part.strip() for part in text.split(SEPARATOR)))))


def column_faults(table: Rows, needed: Sequence[str], known: Collection[str]) -> Iterator[str]:
    """Needed columns that are absent, and unknown ones that look like a known one, each with the nearest name."""
    unknown = [c for c in table.columns if c not in known and c not in needed]
    absent = [c for c in needed if c not in table.columns]
    for name in absent:
        near = difflib.get_close_matches(name, unknown, n=1)
        hint = f"; did you mean your column {near[0]!r}?" if near else ""
        yield f"no column {name!r}{hint} (the table has {', '.join(table.columns)})"
    for name in unknown:
        near = difflib.get_close_matches(name, [c for c in known if c not in table.columns], n=1, cutoff=_SIMILAR)
        if near and near[0] not in absent:
            yield f"unknown column {name!r}; did you mean {near[0]!r}?"


def fact_faults(table: Rows) -> Iterator[str]:
    """Of a table with a row per answer: its columns, and rows that lack a cell that is needed."""
    columns = list(column_faults(table, FACT_COLUMNS, _FACT_KNOWN))
    yield from columns
    for number, cells in table.numbered() if not columns else ():
        yield from (f"row {number}: empty {name}" for name in FACT_COLUMNS if not cells[name])
