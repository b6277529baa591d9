"""What Wikidata's query service and the MediaWiki API of Commons say, on `PictureServer`, from a small world."""

import json
import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from picture_server import Handler, PictureServer, encoded

ENTITY = "http://www.wikidata.org/entity/"


@dataclass
class World:
    """Items and files; every query is written down."""

    labels: dict[str, str] = field(default_factory=dict)
    aliases: dict[str, list[str]] = field(default_factory=dict)
    sitelinks: dict[str, int] = field(default_factory=dict)
    pictures: dict[str, list[str]] = field(default_factory=dict)
    values: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    """(item, property) -> items or dates."""
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    """imageinfo by title."""
    queries: list[str] = field(default_factory=list)
    asked_titles: list[list[str]] = field(default_factory=list)


def binding(**cells: str) -> dict[str, Any]:
    def cell(value: str) -> dict[str, str]:
        if re.fullmatch(r"Q\d+", value):
            return {"type": "uri", "value": ENTITY + value}
        return {"type": "uri" if value.startswith("http") else "literal", "value": value}

    return {name: cell(value) for name, value in cells.items()}


def results(rows: list[dict[str, Any]]) -> bytes:
    names = sorted({n for row in rows for n in row})
    return json.dumps({"head": {"vars": names}, "results": {"bindings": rows}}).encode()


def number(item: str) -> int:
    return int(item[1:])


def answer(world: World, query: str) -> list[dict[str, Any]]:
    """Rows for the three shapes of query that are asked."""
    asked = re.findall(r"wd:(Q\d+)", query.partition("VALUES ?item")[2].partition("}")[0])
    if "wikibase:sitelinks" in query:
        least, after, limit = (
            int(re.search(pattern, query)[1])
            for pattern in (r"\?sitelinks >= (\d+)", r"\?number > (\d+)", r"LIMIT (\d+)")
        )
        items = [q for q, n in world.sitelinks.items() if n >= least and number(q) > after and world.pictures.get(q)]
        items = sorted(items, key=number)[:limit]
        path = "http://commons.wikimedia.org/wiki/Special:FilePath/"
        return [
            binding(item=q, sitelinks=str(world.sitelinks[q]), picture=path + p.replace(" ", "%20"))
            for q in items
            for p in world.pictures[q]
        ]
    if "rdfs:label" in query:
        rows = [binding(item=q, what="label", text=world.labels[q]) for q in asked if q in world.labels]
        return rows + [binding(item=q, what="alias", text=a) for q in asked for a in world.aliases.get(q, [])]
    prop = re.search(r"wdt:(P\d+) \?value", query)[1]
    return [binding(item=q, value=v) for q in asked for v in world.values.get((q, prop), [])]


def sparql(world: World) -> Any:
    def reply(handler: Handler) -> None:
        query = parse_qs(urlsplit(handler.path).query)["query"][0]
        world.queries.append(query)
        handler.send(results(answer(world, query)), "application/sparql-results+json")

    return reply


def image(server: PictureServer, title: str, **changes: Any) -> dict[str, Any]:
    """A good file's imageinfo, whose address works."""
    path = "/thumb/" + title.replace(" ", "_")
    server.picture(path, encoded("JPEG", seed=len(title)), "image/jpeg")
    meta = {
        "LicenseShortName": "CC BY-SA 4.0",
        "License": "cc-by-sa-4.0",
        "LicenseUrl": "https://creativecommons.org/licenses/by-sa/4.0",
        "Artist": '<a href="//example.org/u">Ann &amp; Bo</a>',
    } | changes.pop("meta", {})
    info = {
        "size": 900_000,
        "width": 3000,
        "height": 2000,
        "thumburl": server.url(path),
        "thumbwidth": 500,
        "thumbheight": 333,
        "url": server.url("/original" + path),
        "descriptionurl": "https://commons.wikimedia.org/wiki/File:" + title.replace(" ", "_"),
        "sha1": "0" * 40,
        "mime": "image/jpeg",
        "extmetadata": {k: {"value": v, "source": "commons-desc-page"} for k, v in meta.items() if v is not None},
    }
    return info | changes


def mediawiki(world: World) -> Any:
    def reply(handler: Handler) -> None:
        asked = parse_qs(urlsplit(handler.path).query)
        titles = [unquote(t) for t in asked["titles"][0].split("|")]
        world.asked_titles.append(titles)
        pages = [
            {"ns": 6, "title": t, "imageinfo": [world.files[t.removeprefix("File:")]]}
            if t.removeprefix("File:") in world.files
            else {"ns": 6, "title": t, "missing": True}
            for t in titles
        ]
        handler.send(json.dumps({"batchcomplete": True, "query": {"pages": pages}}).encode(), "application/json")

    return reply
