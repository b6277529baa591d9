"""What the sources leave out and why, and what becomes of a server's faults; on servers and files made here.

python benchmarks/sources.py

1. the funnel of every kind of source: 40 entities, of which each fault has a few;
2. a table of faults: what a server does, what was asked of it, what is written down.
"""

import contextlib
import io
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import polars as pl
from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests/data"))

import picture_server as ps  # noqa: E402
import wiki_server as ws  # noqa: E402

from twohop.config import (  # noqa: E402
    FetchedSource,
    LinksSource,
    PopvqaSource,
    TableSource,
    WikidataSource,
    WitSource,
    source_pictures,
    source_table,
)
from twohop.data import TableEntities, pass_filters  # noqa: E402
from twohop.data._downloads import PictureCache, Wanted, fetch_picture_at  # noqa: E402
from twohop.data._web import Rules, Web  # noqa: E402
from twohop.data.fetched import Services, fetch_entities  # noqa: E402
from twohop.steps.curate_entities import find_filters  # noqa: E402

N = 40
CONTACT = "me@example.org"
NAMES = [f"{a}{b}" for a in ("Gold", "Silver", "Stone", "Water") for b in ("burg", "hall", "gate", "wick", "ford")]
NAMES = [*NAMES, *(f"New {name}" for name in NAMES)]


def main() -> None:
    """Print both tables."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), ps.PictureServer() as server:
        for kind in (wikidata, popvqa, wit, links, table):
            Path(kind.__name__).mkdir()
            source, relations = kind(server)
            _print_funnel(kind.__name__, source, relations)
        _print_faults(server)


# --- the funnels ------------------------------------------------------------------------------------------------------


def _print_funnel(kind: str, source: FetchedSource | TableSource, relations: list[str]) -> None:
    found = source_table(source)
    assert found is not None
    entities = TableEntities(found, relations, map(Path, source_pictures(source)))
    listed, facts = list(entities.entities()), list(entities.facts(relations))
    kept, funnel = pass_filters([e.entity_id for e in listed], find_filters(entities, listed, facts, relations))
    print(f"\n{kind}: {len(listed)} entities, asked: {', '.join(relations)}; {len(kept)} candidates\n")
    print("| filter | in | left out | left |\n|---|---|---|---|")
    for row in funnel:
        if row.dropped:
            print(f"| {row.filter} | {row.rows_in} | {row.dropped} | {row.rows_out} |")


def picture(i: int) -> bytes:
    """A picture like no other; 5 and 6 are near-duplicates, 7 is small, 8 broken."""
    noise = np.random.default_rng(5 if i == 6 else i).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    noise[0, 0, 0] = i
    side = 16 if i == 7 else 60
    out = io.BytesIO()
    Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC).save(out, "PNG")
    data = out.getvalue()
    return data[: len(data) // 2] if i == 8 else data


def wikidata(server: ps.PictureServer) -> tuple[WikidataSource, list[str]]:
    """Paintings; some without a usable picture, some in two museums, some without a painter."""
    world = ws.World(aliases={})
    world.labels |= {"Q1001": "Ann", "Q1002": "Bo", "Q2001": "Louvre", "Q2002": "Prado", "Q2003": "Goldburg Museum"}
    for i in range(N):
        item, title = f"Q{i + 1}", f"File {i}.png"
        world.labels[item], world.sitelinks[item], world.pictures[item] = NAMES[i], 50 + i, [title]
        world.values[item, "P170"] = ["Q1001" if i % 2 else "Q1002"] * (i != 9)
        world.values[item, "P195"] = ["Q2001", "Q2002"] if i in (10, 11) else ["Q2003"] if i == 0 else ["Q2001"]
        world.files[title] = ws.image(server, title) | {"mime": "image/png"}
        server.picture(f"/thumb/{title.replace(' ', '_')}", picture(i))
    del world.files["File 1.png"]
    for i, licence in ((2, "CC BY-NC 2.0"), (3, "FAL")):
        for key in ("License", "LicenseShortName"):
            world.files[f"File {i}.png"]["extmetadata"][key]["value"] = licence
    world.files["File 4.png"]["extmetadata"].pop("Artist")
    server.replies["/thumb/File_12.png"] = ps.redirect("http://127.0.0.1:9/x.png")
    server.replies["/sparql"], server.replies["/api"] = ws.sparql(world), ws.mediawiki(world)
    source = WikidataSource(kind="wikidata", folder="wikidata/saved", item_class="painting", contact=CONTACT)
    with _client(server) as web, contextlib.redirect_stderr(io.StringIO()):
        fetch_entities(source, web, Services(server.url("/sparql"), server.url("/api")))
    return source, ["painter", "museum"]


def popvqa(_: ps.PictureServer) -> tuple[PopvqaSource, list[str]]:
    """Landmarks; one without a picture, one with two answers, one that its answer names."""
    Path("popvqa/got/images").mkdir(parents=True)
    rows = []
    for i, name in enumerate(NAMES):
        path = f"images/{i}.png"
        if i != 3:
            Path("popvqa/got", path).write_bytes(picture(i))
        rows.append({"type": "landmarks", "s_uri": f"Q{i + 1}", "subject": name, "aliases": "[]", "path": path})
    asked = [(i, ["Town of Goldburg"] if i == 0 else [f"Town {i}"]) for i in range(N)] + [(9, ["Another town"])]
    questions = [
        {"s_uri": f"Q{i + 1}", "subject": NAMES[i], "question": f"Where is {NAMES[i]}?", "possible_answers": repr(a)}
        for i, a in asked
    ]
    pl.DataFrame(rows).write_csv("popvqa/got/entities.csv")
    pl.DataFrame(questions).write_csv("popvqa/got/questions.csv")
    source = PopvqaSource(kind="popvqa", folder="popvqa/saved", files="popvqa/got")
    fetch_entities(source)
    return source, ["where_is"]


def wit(_: ps.PictureServer) -> tuple[WitSource, list[str]]:
    """Articles; some are not in the files, some have no main picture there."""
    rows = []
    for i, name in enumerate(NAMES):
        article = {"language": "en", "is_main_image": i != 1, "page_title": name, "page_url": "https://en.example"}
        text = {"image_url": "https://x", "metadata_url": "https://y", "caption_attribution_description": "Ann"}
        rows.append({"image": {"bytes": picture(i), "path": f"{i}.png"}, **text, "wit_features": [article]})
    Path("wit/got").mkdir()
    pl.DataFrame(rows[4:] + rows[:2]).write_parquet("wit/got/train-00000-of-00330.parquet")
    facts = [{"entity": n, "relation": "landmark_city", "answer": f"Town {i}"} for i, n in enumerate(NAMES)]
    pl.DataFrame(facts).write_csv("wit/facts.csv")
    source = WitSource(kind="wit", folder="wit/saved", files="wit/got", parts=["*"], facts="wit/facts.csv")
    fetch_entities(source)
    return source, ["landmark_city"]


def links(server: ps.PictureServer) -> tuple[LinksSource, list[str]]:
    """A table with addresses; some are dead."""
    rows = []
    for i, name in enumerate(NAMES):
        url = server.picture(f"/links/{i}.png", picture(i))
        rows.append({"name": name, "picture": url, "landmark_city": "" if i == 9 else f"Town {i}"})
    server.replies["/links/1.png"] = ps.failing(9, 410, b"")
    server.picture("/links/2.png", b"<html>", "text/html")
    pl.DataFrame(rows).write_csv("links/table.csv")
    source = LinksSource(kind="links", folder="links/saved", table="links/table.csv", contact=CONTACT)
    with _client(server) as web:
        fetch_entities(source, web)
    return source, ["landmark_city"]


def table(_: ps.PictureServer) -> tuple[TableSource, list[str]]:
    """A table with files; some cells are empty."""
    Path("table/pictures").mkdir()
    rows = []
    for i, name in enumerate(NAMES):
        Path(f"table/pictures/{i}.png").write_bytes(picture(i))
        cell = "" if i == 1 else f"pictures/{i}.png"
        rows.append({"name": name, "picture": cell, "landmark_city": f"Town {i}", "licence": "CC0" if i != 2 else "?"})
    pl.DataFrame(rows).write_csv("table/table.csv")
    source = TableSource(kind="table", entities="table/table.csv", pictures="table/pictures", licences=["CC0"])
    return source, ["landmark_city"]


def _client(server: ps.PictureServer, **changes: float) -> Web:
    return Web(Rules(CONTACT, frozenset(), let_in=frozenset({server.place}), **changes))  # type: ignore[arg-type]


# --- the faults -------------------------------------------------------------------------------------------------------

FAULTS: dict[str, Callable[[ps.Handler], None]] = {
    "a byte of the body every 50 ms": ps.drip,
    "a byte of the headers every 50 ms": ps.drip_headers,
    "a body without end": ps.endless,
    "100 MB of zeros, gzipped": ps.gzip_bomb,
    "fewer bytes than announced": ps.short,
    "redirect to loopback": ps.redirect("http://127.0.0.1:1/a.png"),
    "redirect to 169.254.169.254": ps.redirect("http://169.254.169.254/latest"),
    "redirect to file:": ps.redirect("file:///etc/passwd"),
    "429 with Retry-After: 1, then the picture": ps.failing(1, 429, ps.encoded(), Retry_After="1"),
    "503 twice, then the picture": ps.failing(2, 503, ps.encoded()),
    "503 for ever": ps.failing(99, 503, b""),
    "404": ps.failing(99, 404, b""),
    "a truncated JPEG": lambda h: h.send(ps.encoded("JPEG")[:300], "image/jpeg"),
    "a PNG of 60,000 x 60,000 pixels": lambda h: h.send(ps.bomb()),
    "an SVG": lambda h: h.send(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml"),
    "a PNG that calls itself JPEG": lambda h: h.send(ps.encoded(), "image/jpeg"),
    "a page of HTML": lambda h: h.send(b"<html>", "text/html"),
}
CHANGED = "a picture that is not the announced one (SHA-1)"


def _print_faults(server: ps.PictureServer) -> None:
    print("\n| the server sends | requests | seconds | outcome |\n|---|---|---|---|")
    for what, asked, seconds, outcome in _outcomes(server):
        print(f"| {what} | {asked} | {seconds:.1f} | {outcome} |")


def _outcomes(server: ps.PictureServer) -> Iterator[tuple[str, int, float, str]]:
    faults = FAULTS | {CHANGED: lambda h: h.send(ps.encoded())}
    for i, (what, reply) in enumerate(faults.items()):
        path = f"/fault/{i}.png"
        server.replies[path] = reply
        sha1 = "0" * 40 if what == CHANGED else None
        start = time.monotonic()
        with _client(server, deadline_s=5.0, max_bytes=1_000_000) as web:
            found = fetch_picture_at(Wanted(what, server.url(path), sha1), PictureCache(Path("faults")), web)
        took = time.monotonic() - start
        yield what, server.asked[path], took, found.reason.replace(server.place, "host") or "the picture"


if __name__ == "__main__":
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    main()
