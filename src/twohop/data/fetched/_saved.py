"""What a fetch leaves in its folder: a user's table, its pictures and their credits.

pictures/<entity>.<ending>   the pictures that are used
attribution.csv              author, licence and page of every one
facts.parquet                a row per answer; several answers to one question make it ambiguous
entities.parquet             a row per entity; one without a usable picture says why in `left_out`
made_of.json                 what was asked for, written last
"""

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from twohop.data._downloads import write_whole
from twohop.data._pictures import picture_format

ENDINGS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}
NOT_THERE, NOT_FREE, NOT_FETCHED = "no such picture on Commons", "licence or author", "picture could not be fetched"
NO_FILE, UNREADABLE = "no picture in the source", "picture of another format"
REASONS = (NOT_THERE, NOT_FREE, NOT_FETCHED, NO_FILE, UNREADABLE)
"""Reasons of `left_out`."""


@dataclass(frozen=True)
class Credit:
    """Whose picture it is."""

    licence: str
    author: str
    source_page: str
    title: str = ""
    licence_url: str = ""


@dataclass(frozen=True)
class SavedEntity:
    """A row of `entities`; without a picture, `left_out` says why."""

    entity_id: str
    name: str
    kind: str
    aliases: tuple[str, ...] = ()
    picture: str = ""
    """Relative to the folder."""
    credit: Credit | None = None
    left_out: str = ""
    popularity: float | None = None
    """As the source measures it."""


@dataclass(frozen=True)
class SavedFact:
    """A row of `facts`."""

    entity: str
    relation: str
    answer: str
    source: str
    licence: str
    url: str
    aliases: tuple[str, ...] = ()


def is_usable(data: bytes) -> bool:
    """Whether bytes start as a PNG, JPEG or WebP file does."""
    return picture_format(data) in ENDINGS


def file_below(folder: Path, name: str) -> Path | None:
    """The file of that name inside a folder, whatever links lead there; None for anything else."""
    path = (folder / name).resolve()
    return path if path.is_file() and path.is_relative_to(folder.resolve()) else None


def keep_picture(folder: Path, entity: str, data: bytes) -> str:
    """Write an entity's picture where its bytes are others; the file, relative to the folder."""
    path = folder / "pictures" / f"{entity}.{ENDINGS[str(picture_format(data))]}"
    path.parent.mkdir(exist_ok=True)
    if not path.exists() or path.read_bytes() != data:
        write_whole(path, data)
    return f"pictures/{path.name}"


def keep_only(folder: Path, files: Iterable[str]) -> None:
    """Remove every other picture: of an earlier fetch, or half a file of a killed process."""
    named = {Path(f).name for f in files}
    (folder / "pictures").mkdir(exist_ok=True)
    for path in (folder / "pictures").iterdir():
        if path.name not in named:
            path.unlink()


def save(folder: Path, entities: Sequence[SavedEntity], facts: Iterable[SavedFact]) -> dict[str, int]:
    """Write the tables, and remove pictures that no row names; counts by outcome."""
    keep_only(folder, (e.picture for e in entities if e.picture))
    rows = [_fact(f) for f in facts]
    shown = [_credit(e, e.credit) for e in entities if e.credit is not None]
    write_whole(folder / "attribution.csv", pl.DataFrame(shown, schema=_CREDITS).write_csv().encode())
    write_table(folder / "facts.parquet", pl.DataFrame(rows, schema=_FACTS))
    write_table(folder / "entities.parquet", pl.DataFrame([_entity(e) for e in entities], schema=_ENTITIES))
    counts = {"entities": len(entities), "with_picture": len(shown), "facts": len(rows)}
    return counts | {r: n for r in REASONS if (n := sum(e.left_out == r for e in entities))}


def save_templates(folder: Path, templates: Mapping[str, str]) -> None:
    """Write the source's own prompts as a piece of params.yaml, for a person to review and take over."""
    lines = ["# for params.yaml", "curate_entities:", f"  relations: [{', '.join(sorted(templates))}]"]
    lines += ["build_questions:", "  templates:"]
    lines += [f"    {name}: {json.dumps(text, ensure_ascii=False)}" for name, text in sorted(templates.items())]
    write_whole(folder / "templates.yaml", ("\n".join(lines) + "\n").encode())


def write_table(path: Path, table: pl.DataFrame) -> None:
    """Write a Parquet file as a whole."""
    out = io.BytesIO()
    table.write_parquet(out)
    write_whole(path, out.getvalue())


_TEXT, _TEXTS = pl.String(), pl.List(pl.String)
_CREDIT_COLUMNS = ("picture", "name", "title", "author", "licence", "licence_url", "source_page")
_FACT_COLUMNS = ("entity", "relation", "answer", "source", "licence", "url")
_ENTITY_COLUMNS = ("entity_id", "name", "kind", "picture", "licence", "author", "source_page", "left_out")
_CREDITS: Mapping[str, Any] = dict.fromkeys(_CREDIT_COLUMNS, _TEXT)
_FACTS: Mapping[str, Any] = {**dict.fromkeys(_FACT_COLUMNS, _TEXT), "aliases": _TEXTS}
_ENTITIES: Mapping[str, Any] = {**dict.fromkeys(_ENTITY_COLUMNS, _TEXT), "aliases": _TEXTS, "popularity": pl.Float64()}


def _credit(entity: SavedEntity, credit: Credit) -> dict[str, str]:
    values = (credit.title, credit.author, credit.licence, credit.licence_url, credit.source_page)
    return dict(zip(_CREDIT_COLUMNS, (entity.picture, entity.name, *values), strict=True))


def _fact(fact: SavedFact) -> dict[str, object]:
    values = (fact.entity, fact.relation, fact.answer, fact.source, fact.licence, fact.url)
    return {**dict(zip(_FACT_COLUMNS, values, strict=True)), "aliases": list(fact.aliases)}


def _entity(entity: SavedEntity) -> dict[str, object]:
    credit = entity.credit or Credit("", "", "")
    values = (entity.entity_id, entity.name, entity.kind, entity.picture, credit.licence, credit.author)
    row = dict(zip(_ENTITY_COLUMNS, (*values, credit.source_page, entity.left_out), strict=True))
    return {**row, "aliases": list(entity.aliases), "popularity": entity.popularity}
