"""Entities, facts and picture names from Wikidata, as a dated snapshot (promises F5, F13).

One query at a time; after each as long a pause as it took, so that a minute holds 30 s of query time at most (the
service allows 60). A page of results is a file: a fetch that was killed goes on with the next page. When the last page
is there the tables are written with the day, and from then on no query is made.

1. items of the asked classes with at least so many sitelinks and a picture, page by page, by the number of the item;
2. labels and aliases of the items, and the values of the classes' relations with theirs, for `BATCH` items a query.
"""

import hashlib
import json
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from filelock import FileLock
from pydantic import TypeAdapter, ValidationError

from twohop.data._commons import plain_title
from twohop.data._downloads import write_whole
from twohop.data._web import Answer, NotYet, Refused, Web
from twohop.errors import DataError

LOG = logging.getLogger(__name__)
ENDPOINT = "https://query.wikidata.org/sparql"
HOSTS = frozenset({"query.wikidata.org"})
QUERY_S = 90.0
"""Deadline of a query; the service ends one after 60 s."""
LONGEST_PAUSE_S = 30.0
PAGE, BATCH = 500, 100
"""Items a page; items whose labels and values are asked at once."""
LICENCE = "CC0 1.0"
"""Of all that Wikidata states."""
TOO_SLOW = ("TimeoutException", "QueryTimeoutException")
"""What the service writes into the middle of an answer that it could not finish."""


@dataclass(frozen=True)
class Relation:
    """A relation of a class."""

    property: str
    """Wikidata's property."""
    year: bool = False
    """The value is a date of which the year is the answer."""


@dataclass(frozen=True)
class ItemClass:
    """A kind of entity."""

    items: tuple[str, ...]
    """Wikidata's classes; instances of their subclasses count."""
    picture: str
    """Property of the picture."""
    relations: Mapping[str, Relation]
    by: str = "wdt:P31/wdt:P279*"
    """Path from an item to its class."""


CLASSES: Mapping[str, ItemClass] = MappingProxyType(
    {
        "landmark": ItemClass(
            (
                "Q4989906",
                "Q12518",
                "Q12280",
                "Q23413",
                "Q16560",
                "Q2977",
            ),  # monument, tower, bridge, castle, palace, cathedral
            "P18",
            {"landmark_country": Relation("P17"), "landmark_city": Relation("P131"), "architect": Relation("P84")},
        ),
        "painting": ItemClass(
            ("Q3305213",),
            "P18",
            {"painter": Relation("P170"), "museum": Relation("P195"), "painting_year": Relation("P571", year=True)},
        ),
        "logo": ItemClass(
            ("Q4830453", "Q431289"),  # business, brand
            "P154",
            {"company_country": Relation("P17"), "industry": Relation("P452"), "founder": Relation("P112")},
        ),
        "animal": ItemClass(
            ("Q729",),
            "P18",
            {"parent_taxon": Relation("P171"), "conservation_status": Relation("P141")},
            by="wdt:P171*",
        ),
        "person": ItemClass(
            ("Q5",),
            "P18",
            {"citizenship": Relation("P27"), "occupation": Relation("P106"), "birthplace": Relation("P19")},
            by="wdt:P31",
        ),
    }
)
"""Classes that a study may name, with reviewed relations; `person` is off unless it is named."""


@dataclass(frozen=True)
class Question:
    """What a snapshot holds."""

    classes: tuple[str, ...]
    min_sitelinks: int
    """Least number of Wikipedia editions and sister projects that have a page: popularity."""
    language: str = "en"
    max_entities: int = 2000
    """Of each class."""


@dataclass(frozen=True)
class Item:
    """An entity of the snapshot."""

    id: str
    """Wikidata's number, e.g. Q243."""
    kind: str
    name: str
    aliases: tuple[str, ...]
    """The name first."""
    sitelinks: int
    pictures: tuple[str, ...]
    """Titles on Commons."""


@dataclass(frozen=True)
class Value:
    """A fact of the snapshot: one row per answer, several where Wikidata states several."""

    id: str
    relation: str
    answer: str
    aliases: tuple[str, ...]
    """The answer first."""


@dataclass(frozen=True)
class Snapshot:
    """What was fetched, and when."""

    date: str
    """Day of the last query, ISO."""
    items: tuple[Item, ...]
    values: tuple[Value, ...]


def snapshot(folder: Path, question: Question, web: Web, endpoint: str = ENDPOINT, again: bool = False) -> Snapshot:
    """The snapshot in a folder, fetched when it is not there, or when it is asked `again`.

    Raises:
        DataError: an unknown class, or the folder's snapshot answers another question.
        Refused: the service does not answer.
    """
    unknown = [c for c in question.classes if c not in CLASSES]
    if unknown:
        raise DataError(f"unknown classes {', '.join(unknown)}", "wikidata", f"use some of {', '.join(CLASSES)}")
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        path = folder / "snapshot.json"
        if path.exists() and not again:
            return _read(path, question)
        if again:
            for page in (folder / "pages").glob("*.json"):
                page.unlink()
        service = _Service(folder / "pages", web, endpoint)
        found = _fetch(service, question)
        write_whole(path, _FILE.dump_json(_Stored(question, LICENCE, found), indent=1))
        return found


def picture_titles(
    pages: Path, ids: Sequence[str], prop: str, web: Web, endpoint: str = ENDPOINT
) -> dict[str, tuple[str, ...]]:
    """Titles on Commons of items' pictures, by item; every answer is a file in `pages`.

    Args:
        pages: folder of the answers.
        ids: items, e.g. Q243.
        prop: property of the picture: P18, or P154 for a logo.
        web: the client.
        endpoint: address of the query service.

    Raises:
        Refused: the service does not answer.
    """
    service, found = _Service(pages, web, endpoint), dict[str, set[str]]()
    for start in range(0, len(ids), BATCH):
        for row in service.ask(values_query(ids[start : start + BATCH], prop)):
            found.setdefault(row["item"], set()).add(plain_title(row["value"]))
    return {item: tuple(sorted(titles)) for item, titles in found.items()}


@dataclass(frozen=True)
class _Stored:
    """The file."""

    question: Question
    licence: str
    snapshot: Snapshot


_FILE = TypeAdapter(_Stored)


def _read(path: Path, question: Question) -> Snapshot:
    try:
        stored = _FILE.validate_json(path.read_bytes())
    except ValidationError as error:
        what = f"not a snapshot: {error.errors()[0]['msg']}"
        raise DataError(what, str(path), "remove it: it is fetched again") from None
    if stored.question != question:
        what = f"the snapshot of {stored.snapshot.date} answers another question: {stored.question}"
        raise DataError(what, str(path), "give another folder, or ask again")
    return stored.snapshot


# --- the queries ------------------------------------------------------------------------------------------------------


def _fetch(service: "_Service", question: Question) -> Snapshot:
    items: dict[str, Item] = {}
    values: list[Value] = []
    for kind in question.classes:
        rows = list(_items(service, kind, question))
        ids = sorted({r["item"] for r in rows} - set(items), key=_number)
        for start in range(0, len(ids), BATCH):
            batch = ids[start : start + BATCH]
            named = _names(service, batch, question.language)
            items |= {i.id: i for i in _described(batch, kind, rows, named)}
            values += _values(service, [i for i in batch if i in items], kind, question.language)
            LOG.info("%s: %d of %d items", kind, min(start + BATCH, len(ids)), len(ids))
    values.sort(key=lambda v: _number(v.id))  # the batches leave no trace
    return Snapshot(time.strftime("%Y-%m-%d", time.gmtime()), tuple(items.values()), tuple(values))


def _described(
    ids: Sequence[str], kind: str, rows: Sequence[Mapping[str, str]], named: Mapping[str, Sequence[str]]
) -> Iterator[Item]:
    """Items that have a name in the language."""
    own: dict[str, list[Mapping[str, str]]] = {}
    for row in rows:
        own.setdefault(row["item"], []).append(row)
    for item in ids:
        if named.get(item):
            pictures = tuple(sorted({plain_title(r["picture"]) for r in own[item]}))
            names = tuple(named[item])
            yield Item(item, kind, names[0], names, int(own[item][0]["sitelinks"]), pictures)


def _items(service: "_Service", kind: str, question: Question) -> Iterator[Mapping[str, str]]:
    """Items by number: each page starts behind the last item of the page before, so that pages never overlap."""
    last, seen = 0, set[str]()
    while len(seen) < question.max_entities:
        rows = service.ask(items_query(CLASSES[kind], question.min_sitelinks, last, PAGE))
        fresh = [r for r in rows if _number(r["item"]) > last]
        if not fresh:
            return
        for row in fresh:
            if row["item"] in seen or len(seen) < question.max_entities:
                seen.add(row["item"])
                yield row
        last = max(_number(r["item"]) for r in fresh)


def _number(item: str) -> int:
    return int(item[1:])


def items_query(kind: ItemClass, min_sitelinks: int, after: int, limit: int) -> str:
    """Items of a class behind a number, in order, each with sitelinks and pictures."""
    classes = " ".join(f"wd:{c}" for c in kind.items)
    return f"""SELECT ?item ?sitelinks ?picture WHERE {{
  {{ SELECT DISTINCT ?item ?number ?sitelinks WHERE {{
      VALUES ?class {{ {classes} }}
      ?item {kind.by} ?class ; wikibase:sitelinks ?sitelinks ; wdt:{kind.picture} [] .
      FILTER(?sitelinks >= {min_sitelinks})
      BIND(xsd:integer(SUBSTR(STR(?item), 33)) AS ?number)
      FILTER(?number > {after})
    }} ORDER BY ?number LIMIT {limit} }}
  ?item wdt:{kind.picture} ?picture .
}} ORDER BY ?number ?picture"""


def _names(service: "_Service", ids: Sequence[str], language: str) -> dict[str, list[str]]:
    """Label and aliases by item, the label first; items without a label are absent."""
    rows = service.ask(names_query(ids, language))
    found: dict[str, list[str]] = {}
    for row in sorted(rows, key=lambda r: (r["item"], r["what"] != "label", r["text"])):
        if row["what"] == "label" or row["item"] in found:
            found.setdefault(row["item"], []).append(row["text"])
    return {item: list(dict.fromkeys(texts)) for item, texts in found.items()}


def names_query(ids: Sequence[str], language: str) -> str:
    """Labels and aliases of items."""
    values = " ".join(f"wd:{i}" for i in ids)
    return f"""SELECT ?item ?what ?text WHERE {{
  VALUES ?item {{ {values} }}
  {{ ?item rdfs:label ?text . BIND("label" AS ?what) }} UNION {{ ?item skos:altLabel ?text . BIND("alias" AS ?what) }}
  FILTER(LANG(?text) = "{language}")
}} ORDER BY ?item ?what ?text"""


def _values(service: "_Service", ids: Sequence[str], kind: str, language: str) -> Iterator[Value]:
    for relation, how in CLASSES[kind].relations.items() if ids else ():
        rows = service.ask(values_query(ids, how.property))
        pairs = sorted({(r["item"], r["value"]) for r in rows}, key=lambda pair: (_number(pair[0]), pair[1]))
        if how.year:
            years = dict.fromkeys((item, _year(value)) for item, value in pairs if _year(value))
            yield from (Value(item, relation, year, (year,)) for item, year in years)
            continue
        named = _all_names(service, sorted({v for _, v in pairs if _is_item(v)}, key=_number), language)
        yield from (Value(i, relation, named[v][0], tuple(named[v])) for i, v in pairs if v in named)


def _all_names(service: "_Service", ids: Sequence[str], language: str) -> dict[str, list[str]]:
    named: dict[str, list[str]] = {}
    for start in range(0, len(ids), BATCH):
        named |= _names(service, ids[start : start + BATCH], language)
    return named


def values_query(ids: Sequence[str], prop: str) -> str:
    """Values of a property (the best ranked ones) of items."""
    values = " ".join(f"wd:{i}" for i in ids)
    return f"""SELECT ?item ?value WHERE {{
  VALUES ?item {{ {values} }}
  ?item wdt:{prop} ?value .
}} ORDER BY ?item ?value"""


def _is_item(value: str) -> bool:
    return value[:1] == "Q" and value[1:].isdigit()


def _year(value: str) -> str:
    """The year of a date such as 1503-01-01T00:00:00Z; empty for what is none, and before the year 1."""
    year = value.partition("-")[0].lstrip("+0")
    return year if year.isdigit() else ""


class _Service:
    """Asks, and keeps every whole answer as a file."""

    def __init__(self, pages: Path, web: Web, endpoint: str) -> None:
        self.pages, self.web, self.endpoint = pages, web, endpoint
        pages.mkdir(exist_ok=True)

    def ask(self, query: str) -> list[dict[str, str]]:
        """Rows of a query: text by variable; items by their number."""
        path = self.pages / f"{hashlib.sha256(query.encode()).hexdigest()}.json"
        try:
            return json.loads(path.read_text(encoding="utf-8"))["rows"]
        except (FileNotFoundError, ValueError, KeyError):
            pass
        start = self.web.clock.now()
        answer = self.web.get(
            self.endpoint,
            "api",
            {"query": query, "format": "json"},
            {"accept": "application/sparql-results+json"},
            QUERY_S,
            check_answer,
        )
        took = self.web.clock.now() - start
        rows = rows_of(answer)
        write_whole(path, json.dumps({"query": query, "rows": rows}, ensure_ascii=False).encode())
        self.web.clock.sleep(min(took, LONGEST_PAUSE_S))
        return rows


def rows_of(answer: Answer) -> list[dict[str, str]]:
    """Bindings of an answer, text by variable."""
    tree: Any = json.loads(answer.data)
    bindings: Iterable[Mapping[str, Mapping[str, str]]] = tree["results"]["bindings"]
    return [{name: _short(cell) for name, cell in row.items()} for row in bindings]


def _short(cell: Mapping[str, str]) -> str:
    value = cell["value"]
    return value.rsplit("/", 1)[-1] if cell["type"] == "uri" and "/entity/" in value else value


def check_answer(answer: Answer) -> None:
    """Is a query's answer whole?

    Raises:
        Refused: the query is too slow for the service.
        NotYet: cut off, or something else than an answer.
    """
    text = answer.data.decode("utf-8", "replace")
    try:
        tree: Any = json.loads(text)
        tree["results"]["bindings"]
    except (ValueError, KeyError, TypeError):
        if any(word in text for word in TOO_SLOW):
            todo = "raise min_sitelinks, or ask for fewer classes"
            raise Refused(
                "the service gave up in the middle of its answer: the query is too slow", answer.url, todo
            ) from None
        raise NotYet("the answer is cut off") from None
