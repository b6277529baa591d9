"""A user's table whose picture cells are https addresses: fetched, and saved as a table with files in their place."""

import logging
from collections.abc import Collection, Iterator
from hashlib import sha256
from pathlib import Path
from urllib.parse import urlsplit

import polars as pl

from twohop.config import LinksSource
from twohop.data._downloads import PictureCache, Wanted, fetch_pictures
from twohop.data._tables import report_faults
from twohop.data._web import Web
from twohop.data.fetched import _saved
from twohop.data.table import PICTURE, Rows, column_faults, read_rows

LOG = logging.getLogger(__name__)
LEFT_OUT = "left_out"


def link_hosts(source: LinksSource) -> frozenset[str]:
    """Hosts that the table names: the only ones that are asked.

    Raises:
        DataError: the table cannot be read, or one line per fault of its picture cells.
    """
    return frozenset((urlsplit(cell).hostname or "") for _, _, cell in _links(_read(source, ())))


def fetch_links(source: LinksSource, web: Web) -> dict[str, int]:
    """Write the table and its pictures; counts by outcome.

    Raises:
        DataError: as `link_hosts`.
    """
    folder, table = Path(source.folder), _read(source, web.rules.let_in)
    addresses = dict.fromkeys(cell for _, _, cell in _links(table))
    cache = PictureCache(folder / "cache")
    fetched = {f.url: f for f in fetch_pictures([Wanted(u, u) for u in addresses], cache, web, len(addresses))}
    for failure in (f for f in fetched.values() if f.sha256 is None):
        LOG.warning("no picture from %s: %s", failure.url, failure.reason)
    found = {url: cache.read(f.sha256) for url, f in fetched.items() if f.sha256}
    rows: list[dict[str, str]] = []
    for number, row in table.numbered():
        files = dict(_keep(number, row, table, found, source))
        failed = any(row[c] and c not in files for c in _columns(table))
        reason = row.get(LEFT_OUT) or (_saved.NOT_FETCHED if failed else "")
        rows.append({**row, **dict.fromkeys(_columns(table), ""), **files, LEFT_OUT: reason})
    kept = [row[c] for row in rows for c in _columns(table) if row[c]]
    _saved.keep_only(folder, kept)
    _saved.write_table(folder / "entities.parquet", pl.DataFrame(rows, schema=dict.fromkeys(rows[0], pl.String())))
    failed = sum(row[LEFT_OUT] == _saved.NOT_FETCHED for row in rows)
    return {"entities": len(rows), "pictures": len(kept)} | ({_saved.NOT_FETCHED: failed} if failed else {})


def _read(source: LinksSource, let_in: Collection[str]) -> Rows:
    table = read_rows(Path(source.table))
    faults = [*column_faults(table, ("name",), ()), *_faults(table, Path(source.table).parent, let_in)]
    report_faults(faults, source.table)
    return table


def _keep(
    number: int, row: dict[str, str], table: Rows, found: dict[str, bytes], source: LinksSource
) -> Iterator[tuple[str, str]]:
    """Picture columns and the files that are kept, of a row."""
    for column in _columns(table):
        cell = row[column]
        data = found.get(cell) if _is_link(cell) else _own(cell, Path(source.table).parent)
        if data is not None and _saved.is_usable(data):
            name = f"{number}-{sha256(f'{column} {cell}'.encode()).hexdigest()[:12]}"
            yield column, _saved.keep_picture(Path(source.folder), name, data)


def _columns(table: Rows) -> list[str]:
    return [c for c in table.columns if c == PICTURE or c.startswith(f"{PICTURE}.")]


def _is_link(cell: str) -> bool:
    return "://" in cell


def _links(table: Rows) -> Iterator[tuple[int, str, str]]:
    for number, row in table.numbered():
        yield from ((number, c, row[c]) for c in _columns(table) if _is_link(row[c]))


def _faults(table: Rows, folder: Path, let_in: Collection[str]) -> Iterator[str]:
    """Cells that are neither an https address nor a file below the table's folder."""
    if not _columns(table):
        yield f"no column {PICTURE!r} (or {PICTURE}.x); the table has {', '.join(table.columns)}"
    for number, column, cell in _links(table):
        parts = urlsplit(cell)
        if parts.netloc not in let_in and (parts.scheme != "https" or not parts.hostname or "@" in parts.netloc):
            yield f"row {number}: {column} {cell!r} is no https address"
    for number, row in table.numbered():
        for column in _columns(table):
            if row[column] and not _is_link(row[column]) and _saved.file_below(folder, row[column]) is None:
                yield f"row {number}: {column} {row[column]!r} is no file below {folder}"


def _own(cell: str, folder: Path) -> bytes | None:
    """A file that the table names beside its addresses."""
    path = _saved.file_below(folder, cell) if cell else None
    return None if path is None else path.read_bytes()
