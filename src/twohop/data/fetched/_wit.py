"""WIT as Wikimedia published it, wit_base: parquet files that hold the pictures; the facts are the user's.

A row is a picture with what each article that shows it says. Taken is, for every title that the facts name, the first
main picture of that article in the asked language, in the order of the files. The columns of text are read first, and
pictures only of the rows that are taken, one file at a time: memory does not grow with the data set.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import polars as pl

from twohop.config import WitSource
from twohop.data._tables import report_faults
from twohop.data.fetched import _saved
from twohop.data.fetched._origin import files_of
from twohop.data.fetched._saved import Credit, SavedEntity, SavedFact
from twohop.data.table import Rows, fact_faults, read_rows, split_cell
from twohop.errors import DataError

LOG = logging.getLogger(__name__)
NEEDED = ("image", "image_url", "metadata_url", "caption_attribution_description", "wit_features")
FEATURES = ("language", "is_main_image", "page_title", "page_url")
"""Of `wit_features`: lists of one length, an item per article that shows the picture."""
LICENCE = "as its page on Commons says"
"""Of a picture: the data set is CC BY-SA 4.0, and does not say it picture by picture."""


@dataclass(frozen=True)
class _Found:
    """A row that is taken."""

    part: Path
    row: int
    title: str
    page_url: str
    source_page: str
    author: str
    image_url: str


def fetch_wit(source: WitSource) -> dict[str, int]:
    """Write the tables and pictures; counts by outcome.

    Raises:
        DataError: a file is absent or has other columns, or one line per fault of the facts.
        ModelError: the hub does not give the files.
    """
    folder = Path(source.folder)
    facts = read_rows(Path(source.facts))
    report_faults(list(fact_faults(facts)), facts.where)
    titles = dict.fromkeys(row["entity"] for row in facts.rows)
    found: dict[str, _Found] = {}
    pictures: dict[str, str] = {}
    for part in _parts(source):
        wanted = [t for t in titles if t not in found]
        rows = _find(part, wanted, source.language)
        fresh = {f.title: f for f in islice(rows, source.max_entities - len(found))}
        found |= fresh
        pictures |= dict(_keep(part, list(fresh.values()), folder))
        LOG.info("%s: %d of %d titles so far", part.name, len(found), len(titles))
    entities = [_entity(t, found.get(t), pictures.get(t, ""), source.entity_kind) for t in titles]
    return _saved.save(folder, entities, _facts(facts))


def _parts(source: WitSource) -> list[Path]:
    """The files that are read, in the order of their names."""
    folder = files_of(source, source.parts)
    names = {p: p.relative_to(folder).as_posix() for p in sorted(folder.rglob("*.parquet"))}
    found = [p for p, name in names.items() if any(fnmatch(name, pattern) for pattern in source.parts)]
    if not found:
        few = ", ".join(list(names.values())[:5]) or "no parquet file"
        raise DataError(
            f"no file fits {', '.join(source.parts)}; there is {few}",
            str(folder),
            "correct curate_entities.source.parts",
        )
    return found


def _find(part: Path, titles: Sequence[str], language: str) -> Iterator[_Found]:
    """The first row of each title; no picture is read."""
    scan, where = _scan(part), str(part)
    each = [pl.col("wit_features").struct.field(name).alias(name) for name in FEATURES]
    columns = ["image_url", "metadata_url", "caption_attribution_description"]
    query = (
        scan.with_row_index("row")
        .select("row", *columns, *each)
        .explode(FEATURES)
        .filter((pl.col("language") == language) & pl.col("is_main_image") & pl.col("page_title").is_in(titles))
        .unique("page_title", keep="first", maintain_order=True)
    )
    try:
        rows = query.collect(engine="streaming")
    except pl.exceptions.PolarsError as error:
        raise DataError(f"cannot be read: {error}", where, "fetch the file again") from None
    for row in rows.sort("row").iter_rows(named=True):
        page = row["metadata_url"] or row["page_url"] or row["image_url"] or ""
        author = _one_line(row["caption_attribution_description"])
        yield _Found(part, row["row"], row["page_title"], row["page_url"] or "", page, author, row["image_url"] or "")


def _scan(part: Path) -> pl.LazyFrame:
    """A file whose columns are the data set's; a list of articles becomes lists of their fields.

    Raises:
        DataError: it is no parquet file, or has other columns.
    """
    scan = pl.scan_parquet(part)
    try:
        schema = scan.collect_schema()
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(f"cannot be read: {error}", str(part), "fetch the file again") from None
    absent = [c for c in NEEDED if c not in schema]
    features = schema.get("wit_features")
    if isinstance(features, pl.List) and isinstance(features.inner, pl.Struct):  # a list of articles
        lists = [pl.col("wit_features").list.eval(pl.element().struct.field(f)).alias(f) for f in FEATURES]
        scan, features = scan.with_columns(wit_features=pl.struct(lists)), features.inner
    fields = {f.name for f in features.fields} if isinstance(features, pl.Struct) else set[str]()
    absent += [f"wit_features.{f}" for f in FEATURES if f not in fields]
    if absent:
        raise DataError(f"no column {', '.join(absent)}", str(part), "name files of wit_base")
    return scan


def _keep(part: Path, found: Sequence[_Found], folder: Path) -> Iterator[tuple[str, str]]:
    """Title and file of every picture that can be decoded; one row at a time."""
    image = pl.col("image")
    if isinstance(pl.scan_parquet(part).collect_schema()["image"], pl.Struct):
        image = image.struct.field("bytes")
    for f in found:
        data: Any = pl.scan_parquet(part).slice(f.row, 1).select(image.alias("bytes")).collect()["bytes"][0]
        if isinstance(data, bytes) and _saved.is_usable(data):
            yield f.title, _saved.keep_picture(folder, _identifier(f.title), data)


def _identifier(title: str) -> str:
    """Letters and digits of a title, and what makes it one of its own."""
    plain = "".join(c if c.isascii() and c.isalnum() else "-" for c in title).strip("-")
    return f"{plain[:40]}-{sha256(title.encode()).hexdigest()[:8]}"


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())[:300]


def _entity(title: str, found: _Found | None, picture: str, kind: str) -> SavedEntity:
    credit = Credit(LICENCE, found.author or "not said", found.source_page, found.image_url) if found else None
    return SavedEntity(
        entity_id=_identifier(title),
        name=title,
        kind=kind,
        picture=picture,
        credit=credit if picture else None,
        left_out="" if picture else _saved.NO_FILE if found is None else _saved.UNREADABLE,
    )


def _facts(table: Rows) -> Iterator[SavedFact]:
    """The user's facts, as they are."""
    for row in table.rows:
        yield SavedFact(
            entity=_identifier(row["entity"]),
            relation=row["relation"],
            answer=row["answer"],
            source=row.get("source", ""),
            licence=row.get("licence", ""),
            url=row.get("url", ""),
            aliases=_aliases(row),
        )


def _aliases(row: Mapping[str, str]) -> tuple[str, ...]:
    return split_cell(row.get("aliases", ""))
