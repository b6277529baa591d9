"""Wikidata's entities and facts, Commons' pictures: fetched once into a folder, and a user's table from then on.

    snapshot.json              what Wikidata said, with the day
    pages/                     every answer, so that a fetch which was killed asks nothing again
    cache/                     pictures by their own name (`PictureCache`)
    pictures/<item>.<ending>   those that are used
    attribution.csv            author, licence and page of every one
    entities.parquet           a row per item; one without a usable picture says why in `left_out`
    facts.parquet              a row per answer; several answers to one question make it ambiguous

No step of the pipeline asks the network for them: the tables and the pictures are inputs, as a user's own are.
"""

import io
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

import polars as pl
from filelock import FileLock

from twohop.config import WikidataSource
from twohop.data import _commons, _wikidata
from twohop.data._commons import CommonsPicture
from twohop.data._downloads import Fetched, PictureCache, Wanted, fetch_pictures, write_whole
from twohop.data._pictures import picture_format
from twohop.data._web import Rules, Web
from twohop.data._wikidata import Item, Question, Snapshot, Value

LOG = logging.getLogger(__name__)
HOSTS = _wikidata.HOSTS | _commons.HOSTS
ENDINGS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}
ITEM_PAGE = "https://www.wikidata.org/wiki/"
NOT_THERE, NOT_FREE, NOT_FETCHED = "no such picture on Commons", "licence or author", "picture could not be fetched"
"""Reasons of `left_out`."""


@dataclass(frozen=True)
class Services:
    """Addresses, so that tests can give their own."""

    sparql: str = _wikidata.ENDPOINT
    commons: str = _commons.API


@dataclass(frozen=True)
class _Shown:
    """An item and its picture, or why it has none."""

    item: Item
    picture: CommonsPicture | None
    left_out: str = ""
    file: str = ""
    """Relative to the folder."""


def rules_for(source: WikidataSource) -> Rules:
    """What the client may do for a source."""
    return Rules(contact=source.contact, hosts=HOSTS)


def fetch_entities(
    source: WikidataSource, web: Web, services: Services | None = None, again: bool = False
) -> dict[str, int]:
    """Fetch what is not there yet, and write the tables; counts by outcome.

    Args:
        source: what is asked for, and the folder.
        web: the client.
        services: other addresses than the real ones.
        again: ask the services again, for a snapshot of today; pictures that are there are kept.

    Raises:
        DataError: the folder holds the snapshot of another question.
        Refused: a service does not answer.
    """
    folder, at = Path(source.folder), services or Services()
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "fetch.lock"):
        if again:
            for old in [folder / "entities.parquet", folder / "facts.parquet", *folder.glob("pages/*.json")]:
                old.unlink(missing_ok=True)
        question = Question((source.item_class,), source.min_sitelinks, source.language, source.max_entities)
        found = _wikidata.snapshot(folder, question, web, at.sparql, again)
        LOG.info("snapshot of %s: %d items, %d answers", found.date, len(found.items), len(found.values))
        looked_up = _look_up(found, source, web, at.commons)
        shown = list(_pictures(found.items, looked_up, folder, web))
        _write(folder, shown, found)
    counts = {"entities": len(shown), "with_picture": sum(not s.left_out for s in shown), "facts": len(found.values)}
    return counts | {reason: sum(s.left_out == reason for s in shown) for reason in (NOT_THERE, NOT_FREE, NOT_FETCHED)}


def _look_up(found: Snapshot, source: WikidataSource, web: Web, api: str) -> dict[str, CommonsPicture]:
    """What Commons says of every title; an answer to 50 is a file."""
    titles = sorted({title for item in found.items for title in item.pictures})
    out: dict[str, CommonsPicture] = {}
    for start in range(0, len(titles), _commons.TITLES):
        batch = titles[start : start + _commons.TITLES]
        key = sha256(json.dumps([api, source.picture_width, batch]).encode()).hexdigest()
        path = Path(source.folder) / "pages" / f"commons-{key}.json"
        try:
            said = [CommonsPicture(**row) for row in json.loads(path.read_text(encoding="utf-8"))]
        except (FileNotFoundError, ValueError, TypeError):
            said = list(_commons.look_up(web, batch, source.picture_width, api))
            write_whole(path, json.dumps([asdict(picture) for picture in said], ensure_ascii=False).encode())
        out |= dict(zip(batch, said, strict=True))
        LOG.info("licences: %d of %d files", min(start + len(batch), len(titles)), len(titles))
    return out


def _pictures(
    items: Sequence[Item], looked_up: Mapping[str, CommonsPicture], folder: Path, web: Web
) -> Iterator[_Shown]:
    """Every item with its first usable picture, in order."""
    usable = {i.id: [p for t in i.pictures if not (p := looked_up[t]).reason] for i in items}
    wanted = [Wanted(i, p[0].url, p[0].sha1, p[0].size_bytes) for i, p in usable.items() if p]
    cache = PictureCache(folder / "cache")
    fetched = {f.key: f for f in fetch_pictures(wanted, cache, web, len(wanted))}
    kept: set[str] = set()
    (folder / "pictures").mkdir(exist_ok=True)
    for item in items:
        if not usable[item.id]:
            yield _Shown(item, None, _why_none([looked_up[t] for t in item.pictures]))
            continue
        outcome = fetched[item.id]
        if outcome.sha256 is None:
            LOG.warning("no picture of %s (%s): %s", item.id, item.name, outcome.reason)
            yield _Shown(item, None, NOT_FETCHED)
            continue
        file = _keep(folder / "pictures", item.id, outcome, cache)
        kept.add(file.name)
        yield _Shown(item, usable[item.id][0], "", f"pictures/{file.name}")
    for path in (folder / "pictures").iterdir():  # of an earlier snapshot, or half a file of a killed process
        if path.name not in kept:
            path.unlink()


def _why_none(pictures: Iterable[CommonsPicture]) -> str:
    absent = all(p.reason.startswith("no such file") for p in pictures)
    return NOT_THERE if absent else NOT_FREE


def _keep(folder: Path, name: str, outcome: Fetched, cache: PictureCache) -> Path:
    """The picture's own file, written where its bytes are others."""
    data = cache.read(str(outcome.sha256))
    path = folder / f"{name}.{ENDINGS[str(picture_format(data))]}"
    if not path.exists() or path.read_bytes() != data:
        write_whole(path, data)
    return path


def _write(folder: Path, shown: Sequence[_Shown], found: Snapshot) -> None:
    """The tables; entities last, so that they are there only when all is."""
    credits_ = [_credit(s, s.picture) for s in shown if s.picture is not None]
    write_whole(folder / "attribution.csv", pl.DataFrame(credits_, schema=_CREDITS).write_csv().encode())
    write_whole(folder / "facts.parquet", _parquet(pl.DataFrame([_fact(v) for v in found.values], schema=_FACTS)))
    entities = pl.DataFrame([_entity(s) for s in shown], schema=_ENTITIES)
    write_whole(folder / "entities.parquet", _parquet(entities))


def _parquet(table: pl.DataFrame) -> bytes:
    out = io.BytesIO()
    table.write_parquet(out)
    return out.getvalue()


_TEXT, _TEXTS = pl.String(), pl.List(pl.String)
_CREDIT_COLUMNS = ("picture", "name", "title", "author", "licence", "licence_url", "source_page")
_FACT_COLUMNS = ("entity", "relation", "answer", "source", "licence", "url")
_ENTITY_COLUMNS = ("entity_id", "name", "kind", "picture", "licence", "author", "source_page", "left_out")
_CREDITS: dict[str, pl.DataType] = dict.fromkeys(_CREDIT_COLUMNS, _TEXT)
_FACTS: dict[str, pl.DataType] = dict.fromkeys(_FACT_COLUMNS, _TEXT) | {"aliases": _TEXTS}
_ENTITIES: dict[str, pl.DataType | type[pl.DataType]] = {
    **dict.fromkeys(_ENTITY_COLUMNS, _TEXT),
    "aliases": _TEXTS,
    "sitelinks": pl.Int64(),
}


def _credit(shown: _Shown, picture: CommonsPicture) -> dict[str, str]:
    return {
        "picture": shown.file,
        "name": shown.item.name,
        "title": picture.title,
        "author": picture.author,
        "licence": picture.licence,
        "licence_url": picture.licence_url,
        "source_page": picture.source_page,
    }


def _fact(value: Value) -> dict[str, object]:
    return {
        "entity": value.id,
        "relation": value.relation,
        "answer": value.answer,
        "source": "Wikidata",
        "licence": _wikidata.LICENCE,
        "url": f"{ITEM_PAGE}{value.id}",
        "aliases": list(value.aliases),
    }


def _entity(shown: _Shown) -> dict[str, object]:
    item, picture = shown.item, shown.picture
    return {
        "entity_id": item.id,
        "name": item.name,
        "kind": item.kind,
        "picture": shown.file,
        "licence": picture.licence if picture else "",
        "author": picture.author if picture else "",
        "source_page": picture.source_page if picture else "",
        "left_out": shown.left_out,
        "aliases": list(item.aliases),
        "sitelinks": item.sitelinks,
    }
