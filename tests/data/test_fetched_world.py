"""Wikidata and Commons, saved as a table: the funnel of a fetch, faults, a second fetch, a kill (F11, F12, F14)."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
from picture_server import PictureServer, failing
from test_web import client
from test_wikidata import paintings
from wiki_server import image, mediawiki, sparql

from twohop.config import WikidataSource, source_pictures, source_table, source_tables
from twohop.data import TableEntities, pass_filters
from twohop.data.fetched import Services, fetch_entities
from twohop.data.fetched._saved import NOT_FETCHED, NOT_FREE, NOT_THERE
from twohop.errors import ConfigError, DataError
from twohop.steps.curate_entities import find_filters

SOURCE = WikidataSource(
    kind="wikidata", folder="own/art", item_class="painting", contact="me@example.org", min_sitelinks=20
)


@pytest.fixture
def server():
    with PictureServer() as running:
        yield running


@pytest.fixture
def world(server, tmp_path, monkeypatch):
    """Seven paintings; one museum each, a picture each."""
    monkeypatch.chdir(tmp_path)
    made = paintings()
    made.values = {k: v[:1] for k, v in made.values.items()}
    for titles in made.pictures.values():
        made.files |= {t: image(server, t) for t in titles}
    server.replies["/sparql"], server.replies["/api"] = sparql(made), mediawiki(made)
    return made


def fetched(server, source=SOURCE, **more) -> dict[str, int]:
    with client(server) as web:
        services = Services(server.url("/sparql"), server.url("/api"))
        return fetch_entities(source, web, services, **more)


def table(source=SOURCE, relations=("painter", "museum")) -> TableEntities:
    found = source_table(source)
    assert found is not None
    return TableEntities(found, relations, map(Path, source_pictures(source)))


def contents(folder: str = "own/art") -> dict[str, bytes]:
    tables = ("*.parquet", "*.csv", "pictures/*")
    return {str(p): p.read_bytes() for pattern in tables for p in sorted(Path(folder).glob(pattern))}


def test_saved_table_has_names_answers_and_pictures_with_licence_and_author(server, world):
    counts = fetched(server)
    assert (counts["entities"], counts["with_picture"]) == (7, 7)
    found = table()
    assert [e.name for e in found.entities()] == [f"Painting {i}" for i in range(1, 8)]
    assert [e.popularity for e in found.entities()] == [float(20 + i) for i in range(1, 8)]
    facts = {(f.entity_id, f.relation): f for f in found.facts(("painter", "museum"))}
    assert facts["table:Q7", "painter"].answer_aliases == ("Ann", "Ann A.")
    assert facts["table:Q7", "museum"].licence == "CC0 1.0"
    picture = next(found.pictures())
    assert (picture.locator, picture.licence, picture.author) == (
        "file:own/art/pictures/Q7.jpg",
        "CC BY-SA 4.0",
        "Ann & Bo",
    )
    credit = pl.read_csv("own/art/attribution.csv")
    assert credit["picture"].to_list() == [f"pictures/Q{7 * i}.jpg" for i in range(1, 8)]
    assert set(credit["author"]) == {"Ann & Bo"}
    assert source_tables(SOURCE) == ["own/art/entities.parquet", "own/art/facts.parquet"]


def test_f14_and_f11_every_reason_without_a_picture_is_a_row_of_the_funnel(server, world):
    del world.files["Painting 1.jpg"]
    world.files["Painting 2.jpg"] = image(server, "Painting 2.jpg", meta={"LicenseShortName": "CC BY-NC 2.0"})
    world.files["Painting 2.jpg"]["extmetadata"]["License"]["value"] = "cc-by-nc-2.0"
    server.replies["/thumb/Painting_3.jpg"] = failing(10**6, 404, b"")
    world.values["Q28", "P195"] = ["Q2001", "Q2002"]  # two museums
    counts = fetched(server)
    assert (counts[NOT_THERE], counts[NOT_FREE], counts[NOT_FETCHED], counts["with_picture"]) == (1, 1, 1, 4)
    found = table()
    relations = ("painter", "museum")
    entities, facts = list(found.entities()), list(found.facts(relations))
    _, funnel = pass_filters([e.entity_id for e in entities], find_filters(found, entities, facts, relations))
    dropped = {row.filter: row.examples for row in funnel if row.dropped}
    assert dropped[NOT_THERE] == ("table:Q7",)
    assert dropped[NOT_FREE] == ("table:Q14",)
    assert dropped[NOT_FETCHED] == ("table:Q21",)
    assert dropped["ambiguous answer"] == ("table:Q28",)
    assert not Path("own/art/pictures/Q14.jpg").exists()


def test_second_picture_of_an_item_is_taken_where_the_first_is_not_free(server, world):
    world.pictures["Q7"] = ["Other.jpg", "Painting 1.jpg"]
    world.files["Other.jpg"] = image(server, "Other.jpg", meta={"Artist": None})
    assert fetched(server)["with_picture"] == 7
    assert next(table().pictures()).source_page.endswith("Painting_1.jpg")


def test_f12_second_fetch_asks_for_nothing_and_writes_the_same(server, world):
    fetched(server)
    first, asked = contents(), server.asked.total()
    fetched(server)
    assert server.asked.total() == asked
    assert contents() == first
    world.labels["Q7"] = "Renamed"
    fetched(server, again=True)
    assert next(iter(table().entities())).name == "Renamed"
    assert server.asked["/thumb/Painting_1.jpg"] == 1  # its picture was there


def test_other_settings_in_the_same_folder_are_refused(server, world):
    fetched(server)
    with pytest.raises(DataError, match="answers another question"):
        fetched(server, SOURCE.model_copy(update={"min_sitelinks": 21}))


def test_before_the_fetch_it_says_what_to_run(server, world):
    with pytest.raises(ConfigError) as error:
        source_tables(SOURCE)
    assert "twohop fetch_entities" in error.value.todo


def test_picture_that_is_gone_from_the_snapshot_is_gone_from_the_folder(server, world):
    fetched(server)
    world.pictures["Q7"] = []
    fetched(server, again=True)
    assert "own/art/pictures/Q7.jpg" not in source_pictures(SOURCE)


CHILD = """
import sys
from twohop.config import WikidataSource
from twohop.data.fetched import Services, fetch_entities
from twohop.data._web import Rules, Web
place, folder = sys.argv[1:]
source = WikidataSource(kind="wikidata", folder="own/art", item_class="painting", contact="me@example.org",
                        min_sitelinks=20)
with Web(Rules("me@example.org", frozenset(), let_in=frozenset({place}))) as web:
    fetch_entities(source, web, Services(f"http://{place}/sparql", f"http://{place}/api"))
"""


def test_f12_killed_fetch_goes_on_and_no_picture_is_asked_twice(server, world, tmp_path):
    replies = server.replies
    slow = replies["/thumb/Painting_5.jpg"]

    def late(handler):
        time.sleep(1.5)
        slow(handler)

    replies["/thumb/Painting_5.jpg"] = late
    child = subprocess.Popen([sys.executable, "-c", CHILD, server.place, "own/art"], cwd=tmp_path)
    deadline = time.monotonic() + 60
    while server.asked["/thumb/Painting_5.jpg"] == 0 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert server.asked["/thumb/Painting_5.jpg"] == 1
    time.sleep(0.5)  # the pictures before it are whole by now
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert not Path("own/art/entities.parquet").exists()
    replies["/thumb/Painting_5.jpg"] = slow
    queries = len(world.queries)
    assert fetched(server)["with_picture"] == 7
    assert len(world.queries) == queries
    repeated = {path for path, n in server.asked.items() if n > 1 and path.startswith("/thumb")}
    assert repeated <= {"/thumb/Painting_5.jpg", "/thumb/Painting_6.jpg"}  # those that were on their way
