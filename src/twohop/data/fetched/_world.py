"""Wikidata's entities and facts, Commons' pictures: a dated snapshot, of which nothing is asked twice (F13, F14).

In the folder, beside the tables: `snapshot.json`, what Wikidata said and when; `pages/`, every answer, so that a fetch
which was killed asks nothing again; `cache/`, the pictures by their own name (`PictureCache`).
"""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

from twohop.config import WikidataSource
from twohop.data import _commons, _wikidata
from twohop.data._commons import CommonsPicture
from twohop.data._downloads import PictureCache, Wanted, fetch_pictures, write_whole
from twohop.data._web import Web
from twohop.data._wikidata import Item, Question, Value
from twohop.data.fetched import _saved
from twohop.data.fetched._saved import Credit, SavedEntity, SavedFact

LOG = logging.getLogger(__name__)
HOSTS = _wikidata.HOSTS | _commons.HOSTS
ITEM_PAGE = "https://www.wikidata.org/wiki/"
SOURCE = "Wikidata"


@dataclass(frozen=True)
class Services:
    """Addresses, so that tests can give their own."""

    sparql: str = _wikidata.ENDPOINT
    commons: str = _commons.API


@dataclass(frozen=True)
class Shown:
    """What became of an entity's picture."""

    file: str = ""
    """Relative to the folder; empty when there is none."""
    credit: Credit | None = None
    left_out: str = ""


def fetch_wikidata(source: WikidataSource, web: Web, services: Services, again: bool) -> dict[str, int]:
    """Fetch what is not there yet, and write the tables; counts by outcome.

    Raises:
        DataError: the folder holds the snapshot of another question.
        Refused: a service does not answer.
    """
    folder = Path(source.folder)
    question = Question((source.item_class,), source.min_sitelinks, source.language, source.max_entities)
    found = _wikidata.snapshot(folder, question, web, services.sparql, again)
    LOG.info("snapshot of %s: %d items, %d answers", found.date, len(found.items), len(found.values))
    titles = {item.id: item.pictures for item in found.items}
    shown = show(titles, source.picture_width, folder, web, services.commons)
    entities = [_entity(item, shown[item.id]) for item in found.items]
    return _saved.save(folder, entities, map(_fact, found.values))


def show(
    titles: Mapping[str, Sequence[str]], width: int, folder: Path, web: Web, api: str = _commons.API
) -> dict[str, Shown]:
    """Of every entity the first picture that may be used, fetched and kept in the folder.

    Args:
        titles: files on Commons, by entity.
        width: of the thumbnails, in pixels.
        folder: of `pages`, `cache` and `pictures`.
        web: the client.
        api: of Commons.
    """
    looked_up = _look_up({t for ts in titles.values() for t in ts}, width, folder / "pages", web, api)
    usable = {e: [p for t in ts if not (p := looked_up[t]).reason] for e, ts in titles.items()}
    wanted = [Wanted(e, p[0].url, p[0].sha1, p[0].size_bytes) for e, p in usable.items() if p]
    cache = PictureCache(folder / "cache")
    out = {e: Shown(left_out=_why_none([looked_up[t] for t in ts])) for e, ts in titles.items()}
    for outcome in fetch_pictures(wanted, cache, web, len(wanted)):
        if outcome.sha256 is None:
            LOG.warning("no picture of %s: %s", outcome.key, outcome.reason)
            out[outcome.key] = Shown(left_out=_saved.NOT_FETCHED)
        else:
            file = _saved.keep_picture(folder, outcome.key, cache.read(outcome.sha256))
            out[outcome.key] = Shown(file, _credit(usable[outcome.key][0]))
    return out


def _look_up(titles: Iterable[str], width: int, pages: Path, web: Web, api: str) -> dict[str, CommonsPicture]:
    """What Commons says of every title; an answer to 50 is a file."""
    pages.mkdir(exist_ok=True)
    in_order = sorted(titles)
    out: dict[str, CommonsPicture] = {}
    for batch in _batches(in_order, _commons.TITLES):
        key = sha256(json.dumps([api, width, batch]).encode()).hexdigest()
        path = pages / f"commons-{key}.json"
        try:
            said = [CommonsPicture(**row) for row in json.loads(path.read_text(encoding="utf-8"))]
        except (FileNotFoundError, ValueError, TypeError):
            said = list(_commons.look_up(web, batch, width, api))
            write_whole(path, json.dumps([asdict(picture) for picture in said], ensure_ascii=False).encode())
        out |= dict(zip(batch, said, strict=True))
        LOG.info("licences: %d of %d files", len(out), len(in_order))
    return out


def _batches(items: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _why_none(pictures: Sequence[CommonsPicture]) -> str:
    absent = all(p.reason.startswith("no such file") for p in pictures)
    return _saved.NOT_THERE if absent else _saved.NOT_FREE


def _credit(picture: CommonsPicture) -> Credit:
    return Credit(picture.licence, picture.author, picture.source_page, picture.title, picture.licence_url)


def _entity(item: Item, shown: Shown) -> SavedEntity:
    return SavedEntity(
        entity_id=item.id,
        name=item.name,
        kind=item.kind,
        aliases=item.aliases,
        picture=shown.file,
        credit=shown.credit,
        left_out=shown.left_out,
        popularity=float(item.sitelinks),
    )


def _fact(value: Value) -> SavedFact:
    url = f"{ITEM_PAGE}{value.id}"
    return SavedFact(value.id, value.relation, value.answer, SOURCE, _wikidata.LICENCE, url, value.aliases)
