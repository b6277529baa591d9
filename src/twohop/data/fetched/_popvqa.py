"""PopVQA (Cohen et al. 2024, arXiv 2412.14133): entities.csv and questions.csv, as its authors publish them.

    entities.csv   s_uri, subject, aliases, type, and where the picture is: resized_path or path
    questions.csv  s_uri, subject, question, possible_answers, and perhaps what is asked: relation, r_uri, ...

The columns are those that the authors' own code reads; lists are written as Python or JSON lists. An entity is its
Wikidata item. Its picture is the file that its row names, below the folder of the data set, and where there is none
the item's own on Wikidata and Commons. A relation is what a column names, or else the question's words round the name;
of several wordings the most frequent is the prompt. Several rows that answer one question differently make it
ambiguous, as everywhere (the authors count any of them as right).
"""

import ast
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any, cast

from twohop.config import PopvqaSource
from twohop.data import _wikidata
from twohop.data._names import fold
from twohop.data._tables import report_faults
from twohop.data._web import Web
from twohop.data.fetched import _saved
from twohop.data.fetched._origin import files_of
from twohop.data.fetched._saved import Credit, SavedEntity, SavedFact
from twohop.data.fetched._world import ITEM_PAGE, Services, Shown, show
from twohop.data.table import Rows, column_faults, read_rows
from twohop.errors import DataError

ENTITIES, QUESTIONS = "entities.csv", "questions.csv"
KINDS = MappingProxyType({"paintings": "painting", "brands": "logo", "landmarks": "landmark", "celebs": "person"})
"""Its types, and what they are called here."""
PICTURES = ("resized_path", "path")
"""Columns of the picture's file, the first that is there."""
ASKED = ("relation", "relation_id", "r_uri", "property", "attribute")
"""Columns that may name what is asked, the first that is there."""
POPULARITY = ("s_pop", "popularity")
SOURCE, LICENCE = "PopVQA", "MIT, as the data set's page says"
SLUG_CHARS = 48
_ITEM = re.compile(r"Q[1-9]\d*$")


@dataclass(frozen=True)
class _Row:
    """A row of questions.csv."""

    item: str
    template: str
    asked: str
    answers: tuple[str, ...]


def fetch_popvqa(source: PopvqaSource, web: Web | None, services: Services) -> dict[str, int]:
    """Write the tables, pictures and prompts; counts by outcome.

    Args:
        source: which files, and the folder.
        web: the client, for pictures that are not among the files; None: they are left out.
        services: addresses.

    Raises:
        DataError: a file is absent, or one line per fault of its rows.
    """
    files, folder = files_of(source, [ENTITIES, QUESTIONS]), Path(source.folder)
    entities = list(_entities(_read(files / ENTITIES, ("s_uri", "subject", "type")), source))
    questions, unnamed = _questions(_read(files / QUESTIONS, ("s_uri", "subject", "question", "possible_answers")))
    taken = {row["item"] for row in entities}
    asked = [q for q in questions if q.item in taken]
    if not asked:
        raise DataError("no question is about an entity of these types", str(files), "name other types, or more")
    shown = {row["item"]: _own_picture(row, files, folder) for row in entities}
    shown |= _looked_up([row for row in entities if not shown[row["item"]].file], source, web, services)
    templates = _templates(asked)
    _saved.save_templates(folder, dict(templates.values()))
    facts = {_fact(q, templates[q.asked][0]): None for q in asked}
    counts = _saved.save(folder, [_entity(row, shown[row["item"]]) for row in entities], facts)
    return counts | ({"questions that do not name their entity": unnamed} if unnamed else {})


def _read(path: Path, needed: Sequence[str]) -> Rows:
    if not path.is_file():
        raise DataError("no such file", str(path), "put PopVQA's files there, or name the folder that has them")
    table = read_rows(path)
    report_faults(list(column_faults(table, needed, ())), str(path))
    return table


def _entities(table: Rows, source: PopvqaSource) -> Iterator[Mapping[str, str]]:
    """The first `max_entities` rows of the asked types, each item once, with its number as `item`."""
    faults: list[str] = []
    rows: dict[str, Mapping[str, str]] = {}
    for number, row in table.numbered():
        if row["type"] not in KINDS:
            faults.append(f"row {number}: unknown type {row['type']!r}; known are {', '.join(KINDS)}")
        elif not _ITEM.search(row["s_uri"]):
            faults.append(f"row {number}: s_uri {row['s_uri']!r} names no Wikidata item")
        elif not fold(row["subject"]):
            faults.append(f"row {number}: empty subject")
        elif row["type"] in source.types and len(rows) < source.max_entities:
            item = _item(row["s_uri"])
            rows.setdefault(item, {**row, "item": item})
    report_faults(faults, table.where)
    yield from rows.values()


def _item(uri: str) -> str:
    found = _ITEM.search(uri)
    return found[0] if found else ""


def _questions(table: Rows) -> tuple[list[_Row], int]:
    """Questions that name their entity once, and how many do not."""
    faults: list[str] = []
    out: list[_Row] = []
    column = next((c for c in ASKED if c in table.columns), None)
    unnamed = 0
    for number, row in table.numbered():
        answers = parse_list(row["possible_answers"])
        if not answers or not _item(row["s_uri"]):
            faults.append(f"row {number}: s_uri {row['s_uri']!r}, possible_answers {row['possible_answers']!r}")
        elif row["question"].count(row["subject"]) != 1 or not row["subject"]:
            unnamed += 1
        else:
            template = row["question"].replace(row["subject"], "{entity}")
            asked = (row[column] if column else "") or template
            out.append(_Row(_item(row["s_uri"]), template, asked, answers))
    report_faults(faults, table.where)
    return out, unnamed


def parse_list(text: str) -> tuple[str, ...]:
    """A list as Python or JSON writes it, without empty and repeated items; () for anything else."""
    found: Any = None
    for parse in (json.loads, ast.literal_eval):
        try:
            found = parse(text)
            break
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    items = cast("Iterable[Any]", found) if isinstance(found, list | tuple) else ()
    return tuple(dict.fromkeys(i.strip() for i in items if isinstance(i, str) and i.strip()))


def _templates(asked: Sequence[_Row]) -> dict[str, tuple[str, str]]:
    """By what is asked: the relation's name, and its most frequent prompt (of equally frequent ones the first)."""
    counts: dict[str, Counter[str]] = {}
    for q in asked:
        counts.setdefault(q.asked, Counter())[q.template] += 1
    names: dict[str, str] = {}
    for what in counts:
        slug, n = _slug(what), 2
        while slug in names.values():
            slug, n = f"{_slug(what)}_{n}", n + 1
        names[what] = slug
    return {what: (names[what], counts[what].most_common(1)[0][0]) for what in counts}


def _slug(text: str) -> str:
    words = fold(text.rsplit("/", 1)[-1].replace("{entity}", " ").replace("_", " ")).split()
    slug = re.sub(r"[^a-z0-9_]", "", "_".join(words))[:SLUG_CHARS].strip("_")
    return slug or "asked"


def _own_picture(row: Mapping[str, str], files: Path, folder: Path) -> Shown:
    """The file that the row names, if it lies inside the data set's folder."""
    name = next((row[c] for c in PICTURES if row.get(c)), "")
    path = None if PurePosixPath(name).is_absolute() else _saved.file_below(files, name)
    if path is None:
        return Shown(left_out=_saved.NO_FILE)
    data = path.read_bytes()
    if not _saved.is_usable(data):
        return Shown(left_out=_saved.UNREADABLE)
    page = f"{ITEM_PAGE}{row['item']}"
    return Shown(_saved.keep_picture(folder, row["item"], data), Credit("not said", "not said", page))


def _looked_up(
    rows: Sequence[Mapping[str, str]], source: PopvqaSource, web: Web | None, services: Services
) -> dict[str, Shown]:
    """Pictures of Wikidata's own, for rows that have none."""
    if web is None or not rows:
        return {}
    folder, titles = Path(source.folder), dict[str, Sequence[str]]()
    for prop, kinds in {"P154": {"brands"}, "P18": set(KINDS) - {"brands"}}.items():
        ids = [row["item"] for row in rows if row["type"] in kinds]
        titles |= _wikidata.picture_titles(folder / "pages", ids, prop, web, services.sparql) if ids else {}
    return show(titles, source.picture_width, folder, web, services.commons)


def _entity(row: Mapping[str, str], shown: Shown) -> SavedEntity:
    popularity = next((row[c] for c in POPULARITY if row.get(c)), "")
    return SavedEntity(
        entity_id=row["item"],
        name=row["subject"],
        kind=KINDS[row["type"]],
        aliases=parse_list(row.get("aliases", "")),
        picture=shown.file,
        credit=shown.credit,
        left_out=shown.left_out,
        popularity=float(popularity) if re.fullmatch(r"\d+(\.\d+)?", popularity) else None,
    )


def _fact(question: _Row, relation: str) -> SavedFact:
    url = f"{ITEM_PAGE}{question.item}"
    return SavedFact(question.item, relation, question.answers[0], SOURCE, LICENCE, url, question.answers[1:])
