"""Wikidata's query service: pages, names, values, faults, and a snapshot that makes a run repeatable (F5, F13)."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from picture_server import PictureServer, failing
from test_web import Naps, client
from wiki_server import World, results, sparql

from twohop.data import _wikidata
from twohop.data._web import Refused
from twohop.data._wikidata import CLASSES, Question, Snapshot, items_query, snapshot
from twohop.errors import DataError

PAINTINGS = Question(("painting",), 20)


def paintings(n: int = 7) -> World:
    """Paintings of two painters, every second one with a year, one without a label."""
    world = World()
    for i in range(1, n + 1):
        item = f"Q{i * 7}"
        world.labels[item] = f"Painting {i}"
        world.aliases[item] = [f"P{i}", f"Painting {i}"]
        world.sitelinks[item] = 20 + i
        world.pictures[item] = [f"Painting {i}.jpg"]
        world.values[item, "P170"] = ["Q1001" if i % 2 else "Q1002"]
        world.values[item, "P195"] = ["Q2001", "Q2002"]
        if i % 2:
            world.values[item, "P571"] = ["1503-01-01T00:00:00Z"]
    world.labels |= {"Q1001": "Ann", "Q1002": "Bo", "Q2001": "Louvre", "Q2002": "Prado"}
    world.aliases["Q1001"] = ["Ann A."]
    return world


@pytest.fixture
def server():
    with PictureServer() as running:
        yield running


@pytest.fixture
def world(server):
    made = paintings()
    server.replies["/sparql"] = sparql(made)
    return made


def taken(server, folder: Path, question=PAINTINGS, naps=None, **more) -> Snapshot:
    with client(server, naps, **{k: v for k, v in more.items() if k != "again"}) as web:
        return snapshot(folder, question, web, server.url("/sparql"), **{k: v for k, v in more.items() if k == "again"})


def test_items_names_and_values(server, world, tmp_path):
    found = taken(server, tmp_path)
    assert [i.id for i in found.items] == [f"Q{i * 7}" for i in range(1, 8)]
    first = found.items[0]
    assert (first.kind, first.name, first.aliases) == ("painting", "Painting 1", ("Painting 1", "P1"))
    assert (first.sitelinks, first.pictures) == (21, ("Painting 1.jpg",))
    of_first = {(v.relation, v.answer): v.aliases for v in found.values if v.id == "Q7"}
    assert of_first == {
        ("painter", "Ann"): ("Ann", "Ann A."),
        ("museum", "Louvre"): ("Louvre",),
        ("museum", "Prado"): ("Prado",),
        ("painting_year", "1503"): ("1503",),
    }
    assert {v.relation for v in found.values if v.id == "Q14"} == {"painter", "museum"}
    assert found.date == time.strftime("%Y-%m-%d", time.gmtime())


def test_items_below_the_threshold_or_without_a_name_or_picture_are_absent(server, world, tmp_path):
    del world.labels["Q7"]
    world.pictures["Q14"] = []
    found = taken(server, tmp_path, Question(("painting",), 24))
    assert [i.id for i in found.items] == ["Q28", "Q35", "Q42", "Q49"]


def test_pages_follow_each_other_without_gap_or_overlap(server, world, tmp_path, monkeypatch):
    whole = taken(server, tmp_path / "whole")
    monkeypatch.setattr(_wikidata, "PAGE", 2)
    monkeypatch.setattr(_wikidata, "BATCH", 3)
    world.queries.clear()
    paged = taken(server, tmp_path / "paged")
    assert paged == whole
    assert len([q for q in world.queries if "wikibase:sitelinks" in q]) == 5  # four pages and the empty one after them


def test_no_more_items_than_asked_for(server, world, tmp_path):
    assert len(taken(server, tmp_path, Question(("painting",), 20, max_entities=3)).items) == 3


def test_second_run_makes_no_query(server, world, tmp_path):
    first = taken(server, tmp_path)
    asked = len(world.queries)
    assert taken(server, tmp_path) == first
    assert len(world.queries) == asked
    world.labels["Q7"] = "Renamed"
    assert taken(server, tmp_path) == first
    assert taken(server, tmp_path, again=True).items[0].name == "Renamed"
    assert len(world.queries) == 2 * asked


def test_snapshot_of_another_question_is_refused(server, world, tmp_path):
    taken(server, tmp_path)
    with pytest.raises(DataError, match="answers another question"):
        taken(server, tmp_path, Question(("painting",), 21))


def test_altered_snapshot_is_refused(server, world, tmp_path):
    taken(server, tmp_path)
    (tmp_path / "snapshot.json").write_text("{")
    with pytest.raises(DataError, match="not a snapshot"):
        taken(server, tmp_path)


def test_unknown_class_is_refused_before_a_query(server, world, tmp_path):
    with pytest.raises(DataError, match="unknown classes castle"):
        taken(server, tmp_path, Question(("castle",), 20))
    assert not world.queries


# --- manners ----------------------------------------------------------------------------------------------------------


def test_f05_after_a_query_as_long_a_pause_as_it_took(server, world, tmp_path):
    naps, reply = Naps(), server.replies["/sparql"]

    def slow(handler):
        naps.ahead += 10
        reply(handler)

    server.replies["/sparql"] = slow
    taken(server, tmp_path, naps=naps)
    pauses = [n for n in naps.slept if n > 5]
    assert len(pauses) == len(world.queries)
    assert all(9.9 < n < 12 for n in pauses)


# --- faults -----------------------------------------------------------------------------------------------------------


TRUNCATED = results([])[:-4] + b"java.util.concurrent.TimeoutException\n\tat java.base/java.util.concurrent.FutureTask"


def test_f13_exception_in_the_middle_of_a_good_status_is_told(server, world, tmp_path):
    server.replies["/sparql"] = lambda h: h.send(TRUNCATED, "application/sparql-results+json")
    with pytest.raises(Refused, match="the query is too slow"):
        taken(server, tmp_path)
    assert server.asked.total() == 1
    assert not (tmp_path / "snapshot.json").exists()
    assert not list((tmp_path / "pages").iterdir())


@pytest.mark.parametrize("body", [results([])[:-3], b"", b"<html>busy</html>", b"[]", b'{"results": {}}'])
def test_f13_cut_off_answers_are_asked_again_and_never_kept(server, world, tmp_path, body):
    reply, broken = server.replies["/sparql"], [1, 1]

    def sometimes(handler):
        if broken:
            broken.pop()
            handler.send(body, "application/sparql-results+json")
        else:
            reply(handler)

    server.replies["/sparql"] = sometimes
    whole = taken(server, tmp_path)
    assert len(whole.items) == 7
    server.replies["/sparql"] = lambda h: h.send(body, "application/sparql-results+json")
    with pytest.raises(Refused, match=r"the answer is cut off \(5 attempts\)"):
        taken(server, tmp_path / "never")


def test_f03_too_many_requests_wait_as_long_as_asked(server, world, tmp_path):
    naps, reply, left = Naps(), server.replies["/sparql"], [1]

    def busy(handler):
        if left:
            left.pop()
            failing(1, 429, b"", Retry_After="42")(handler)
        else:
            reply(handler)

    server.replies["/sparql"] = busy
    assert len(taken(server, tmp_path, naps=naps).items) == 7
    assert 42 in naps.slept


SNAP = """
import sys
from pathlib import Path
from twohop.data import _wikidata
from twohop.data._web import Rules, Web
_wikidata.PAGE = 5
place, folder = sys.argv[1], Path(sys.argv[2])
with Web(Rules("me@example.org", frozenset(), let_in=frozenset({place}))) as web:
    question = _wikidata.Question(("painting",), 20)
    print(len(_wikidata.snapshot(folder, question, web, f"http://{place}/sparql").items))
"""


def test_killed_fetch_goes_on_with_the_next_page(server, tmp_path):
    world = paintings(30)
    server.replies["/sparql"] = sparql(world)
    words = [sys.executable, "-c", SNAP, server.place, str(tmp_path)]
    with subprocess.Popen(words, start_new_session=True) as run:
        while len(world.queries) < 4:
            time.sleep(0.01)
        os.killpg(run.pid, signal.SIGKILL)
    kept = len(list((tmp_path / "pages").glob("*.json")))
    assert kept >= 2
    assert not (tmp_path / "snapshot.json").exists()
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "30"
    twice = [q for q in set(world.queries) if world.queries.count(q) > 1]
    assert len(twice) <= 1  # the one that was on its way


# --- the queries ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CLASSES)
def test_every_class_has_a_query_with_its_picture_and_numbers_that_go_on(kind):
    query = items_query(CLASSES[kind], 30, 12345, 500)
    assert f"wdt:{CLASSES[kind].picture} ?picture" in query
    assert "FILTER(?number > 12345)" in query
    assert "LIMIT 500" in query
    assert query.count("{") == query.count("}")
    # an item's address has 31 characters and a Q before its number
    assert len("http://www.wikidata.org/entity/Q") + 1 == 33


def test_logos_come_from_the_property_of_logos():
    assert CLASSES["logo"].picture == "P154"
    assert "person" in CLASSES
