"""A user's own table of entities, as CSV, Parquet or JSON lines: one row per entity, one column per relation.

    entity_id,name,aliases,kind,picture,licence,author,source_page,capital,capital_aliases
    FR,France,French Republic|La France,country,pictures/fr.png,own,me,,Paris,

`name` and `picture` are needed, the others may be absent. `picture` is a path below the table's folder or an https
address. Several aliases stand between `|`, or are a list. An empty answer is no fact. Every fault is listed, all at
once, with its row.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from twohop.data._names import fold, gives_away, spellings
from twohop.data._pictures import picture_format
from twohop.data._source import EntityRecord, FactRecord, PictureRecord
from twohop.data._tables import report_faults
from twohop.errors import DataError

NEEDED = ("name", "picture")
OWN = ("entity_id", "aliases", "kind", "licence", "author", "source_page", "popularity")
"""Columns that have a meaning of their own beside those and the relations."""
ALIASES = "_aliases"
"""End of the column with a relation's further answers."""
BETWEEN = "|"
ENDINGS = (".csv", ".parquet", ".jsonl", ".ndjson")
STYLE = "own"
"""Style and art source of all pictures of a table."""


@dataclass(frozen=True)
class UserTable:
    """What a table holds."""

    entities: tuple[EntityRecord, ...]
    facts: tuple[FactRecord, ...]
    pictures: tuple[PictureRecord, ...]
    popularity: Mapping[str, float]
    """By entity, where the table says it."""
    unused: tuple[str, ...]
    """Columns that nobody asked for."""


def read_user_table(path: Path, relations: Sequence[str]) -> UserTable:
    """Read and check a table.

    Args:
        path: the file; its ending says what it is.
        relations: columns with answers.

    Raises:
        DataError: it cannot be read, lacks a column, or has faulty rows; one line per fault.
    """
    table = _read(path)
    _check_columns(table.columns, relations, path)
    rows = [_filled(row, i) for i, row in enumerate(table.to_dicts(), 1)]
    report_faults([*_repeated(rows), *(f for row in rows for f in _row_faults(row, relations, path))], str(path))
    known = {*NEEDED, *OWN, *relations, *(r + ALIASES for r in relations)}
    return UserTable(
        tuple(_entity(row) for row in rows),
        tuple(fact for row in rows for fact in _facts(row, relations, path)),
        tuple(_picture(row) for row in rows),
        {row["entity_id"]: float(row["popularity"]) for row in rows if row.get("popularity") not in (None, "")},
        tuple(c for c in table.columns if c not in known),
    )


def _read(path: Path) -> pl.DataFrame:
    readers = {".csv": _read_csv, ".parquet": pl.read_parquet, ".jsonl": pl.read_ndjson, ".ndjson": pl.read_ndjson}
    if path.suffix.lower() not in readers:
        raise DataError(f"{path.suffix or 'no'} ending; allowed: {', '.join(ENDINGS)}", str(path), "convert the table")
    try:
        table = readers[path.suffix.lower()](path)
    except FileNotFoundError:
        raise DataError("no such table", str(path), "correct curate_entities.source.path") from None
    except (pl.exceptions.PolarsError, OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read it: {str(error).splitlines()[0]}", str(path), "save it again as UTF-8") from None
    if table.is_empty():
        raise DataError("the table has no rows", str(path), "one row per entity")
    return table


def _read_csv(path: Path) -> pl.DataFrame:
    return pl.read_csv(path, infer_schema=False, truncate_ragged_lines=False)


def _check_columns(columns: Sequence[str], relations: Sequence[str], path: Path) -> None:
    missing = [c for c in (*NEEDED, *relations) if c not in columns]
    lines: list[str] = []
    for name in missing:
        near = difflib.get_close_matches(name, columns, n=1)
        lines.append(f"no column {name!r}" + (f"; nearest: {near[0]!r}" if near else ""))
    if lines:
        there = f"columns are {', '.join(columns)}"
        raise DataError("\n".join([*lines, there]), str(path), "name the columns so, or ask other relations")


def _filled(row: dict[str, Any], number: int) -> dict[str, Any]:
    """Texts without spaces round them; lists of aliases; an id where there is none, from the name."""
    clean = {k: v.strip() if isinstance(v, str) else v for k, v in row.items()}
    for key in clean:
        if key == "aliases" or key.endswith(ALIASES):
            clean[key] = _several(clean[key])
    clean["entity_id"] = str(clean.get("entity_id") or fold(str(clean.get("name") or "")).replace(" ", "-"))
    clean["row"] = number
    return clean


def _several(value: Any) -> list[str]:
    if value is None:
        return []
    parts = value.split(BETWEEN) if isinstance(value, str) else list(value)
    return [str(p).strip() for p in parts if p is not None and str(p).strip()]


def _repeated(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Ids and names that stand in two rows: a name that two entities have cannot be asked about."""
    for key, what in (("entity_id", "id"), ("name", "name")):
        first: dict[str, int] = {}
        for row in rows:
            value = fold(str(row.get(key) or ""))
            if value and first.setdefault(value, row["row"]) != row["row"]:
                yield f"row {row['row']}: {what} {row[key]!r} is also that of row {first[value]}"


def _row_faults(row: dict[str, Any], relations: Sequence[str], path: Path) -> Iterator[str]:
    at = f"row {row['row']} ({row['entity_id'] or 'no id'})"
    if not fold(str(row.get("name") or "")):
        yield f"{at}: empty name"
    for relation in relations:
        answer = row.get(relation)
        if answer is not None and not isinstance(answer, str | int | float):
            yield f"{at}: {relation} is {type(answer).__name__}, not a text"
        elif answer not in (None, "") and not fold(str(answer)):
            yield f"{at}: {relation} is {answer!r}, which has no letter and no digit"
        elif answer in (None, "") and row.get(relation + ALIASES):
            yield f"{at}: {relation}{ALIASES} without {relation}"
    yield from (f"{at}: {fault}" for fault in _picture_faults(str(row.get("picture") or ""), path.parent))
    popularity = row.get("popularity")
    if popularity not in (None, ""):
        try:
            float(popularity)
        except (TypeError, ValueError):
            yield f"{at}: popularity is {popularity!r}, not a number"


def _picture_faults(picture: str, folder: Path) -> Iterator[str]:
    if not picture:
        yield "no picture"
        return
    if picture.startswith("https://"):
        return
    if "://" in picture:
        yield f"picture {picture!r}: allowed: a path below the table's folder, or an https address"
        return
    path = folder / picture
    if not path.resolve().is_relative_to(folder.resolve()):
        yield f"picture {picture!r} is outside the table's folder"
    elif not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*")], n=1)
        yield f"no file {picture!r}" + (f"; nearest: {near[0]!r}" if near else "")
    else:
        with path.open("rb") as f:
            if picture_format(f.read(16)) is None:
                yield f"{picture!r} is no PNG, JPEG or WebP"


# --- records ----------------------------------------------------------------------------------------------------------


def _entity(row: dict[str, Any]) -> EntityRecord:
    names = spellings([row["name"], *row.get("aliases", [])])
    return EntityRecord(row["entity_id"], row["name"], names, str(row.get("kind") or "entity"))


def _facts(row: dict[str, Any], relations: Sequence[str], path: Path) -> Iterator[FactRecord]:
    names = _entity(row).aliases
    for relation in relations:
        if row.get(relation) in (None, ""):
            continue
        answer = str(row[relation])
        answers = spellings([answer, *row.get(relation + ALIASES, [])])
        yield FactRecord(
            entity_id=row["entity_id"],
            relation=relation,
            answer=answer,
            answer_aliases=answers,
            name_in_answer=gives_away(names, answers),
            source=path.name,
            source_version="",
            licence=str(row.get("licence") or "the user's own"),
            url=str(row.get("source_page") or ""),
        )


def _picture(row: dict[str, Any]) -> PictureRecord:
    picture = str(row["picture"])
    return PictureRecord(
        picture_id=f"{row['entity_id']}/{STYLE}",
        entity_id=row["entity_id"],
        art_source=STYLE,
        style=STYLE,
        licence=str(row.get("licence") or "the user's own"),
        author=str(row.get("author") or ""),
        source_page=str(row.get("source_page") or ""),
        locator=picture if picture.startswith("https://") else f"file:{picture}",
    )
