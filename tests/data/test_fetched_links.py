"""A user's table with addresses of pictures: saved with files in their place; faults; what is stale is told."""

from pathlib import Path

import polars as pl
import pytest
from picture_server import PictureServer, encoded, failing
from test_web import client

from twohop.config import LinksSource, source_pictures, source_table
from twohop.data import TableEntities
from twohop.data.fetched import fetch_entities, rules_for
from twohop.data.fetched._saved import NOT_FETCHED
from twohop.errors import ConfigError, DataError

SOURCE = LinksSource(kind="links", folder="own/saved", table="own/table.csv", contact="me@example.org")


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("own").mkdir()
    with PictureServer() as running:
        for i in range(5):
            running.replies[f"/{i}.png"] = failing(0, 200, encoded(seed=i))
        yield running


def write(server, cells=None) -> None:
    cells = cells or [server.url(f"/{i}.png") for i in range(5)]
    rows = [{"name": f"Thing {i}", "picture": cell, "maker": f"Maker {i}"} for i, cell in enumerate(cells)]
    pl.DataFrame(rows).write_csv("own/table.csv")


def fetched(server, source=SOURCE):
    with client(server) as web:
        return fetch_entities(source, web)


def table(source=SOURCE) -> TableEntities:
    found = source_table(source)
    assert found is not None
    return TableEntities(found, ["maker"], map(Path, source_pictures(source)))


def test_pictures_stand_in_place_of_their_addresses_and_are_asked_once(server):
    write(server)
    assert fetched(server) == {"entities": 5, "pictures": 5}
    found = table()
    assert [f.answer for f in found.facts(["maker"])] == [f"Maker {i}" for i in range(5)]
    first = next(iter(found.pictures()))
    assert Path(first.locator.removeprefix("file:")).read_bytes() == encoded(seed=0)
    fetched(server)
    assert server.asked["/0.png"] == 1


def test_failed_picture_is_counted_and_left_out(server):
    server.replies["/3.png"] = failing(9, 404, b"")
    write(server)
    assert fetched(server) == {"entities": 5, "pictures": 4, NOT_FETCHED: 1}
    assert dict(table().rejected())[NOT_FETCHED] == {"table:thing-3"}


def test_files_beside_addresses_are_taken_as_they_are(server):
    Path("own/here.png").write_bytes(encoded(seed=9))
    write(server, [server.url("/0.png"), "here.png"])
    assert fetched(server)["pictures"] == 2


def test_every_fault_is_listed_with_its_row(server):
    write(server, ["http://example.org/1.png", "gone.png", "../x.png", "https://a:b@example.org/2.png"])
    with pytest.raises(DataError) as error:
        rules_for(SOURCE)
    for words in ("row 1: picture 'http:", "row 2: picture 'gone.png'", "row 3: picture '../x.png'", "row 4: picture"):
        assert words in str(error.value)


def test_only_the_hosts_of_the_table_are_asked(server):
    write(server, ["https://Example.org/1.png", "https://media.example.com:443/2.png"])
    assert rules_for(SOURCE).hosts == {"example.org", "media.example.com"}


def test_changed_table_or_setting_asks_for_a_fetch_and_a_filter_does_not(server):
    write(server)
    with pytest.raises(ConfigError, match="nothing fetched yet"):
        source_table(SOURCE)
    fetched(server)
    assert source_table(SOURCE.model_copy(update={"min_side_px": 64, "contact": "you@example.org"}))
    Path("own/other.csv").write_bytes(Path("own/table.csv").read_bytes())
    with pytest.raises(ConfigError, match=r"other settings \(table: 'own/table.csv', now 'own/other.csv'\)"):
        source_table(SOURCE.model_copy(update={"table": "own/other.csv"}))
    Path("own/table.csv").write_text(Path("own/table.csv").read_text().replace("Maker 1", "Maker One"))
    with pytest.raises(ConfigError, match=r"own/table\.csv changed since the fetch") as error:
        source_table(SOURCE)
    assert "twohop fetch_entities" in error.value.todo
    fetched(server)
    assert source_table(SOURCE)


def test_interrupted_fetch_is_no_fetch(server):
    write(server)
    fetched(server)
    write(server, ["http://example.org/1.png"])
    with pytest.raises(DataError):
        fetched(server)
    with pytest.raises(ConfigError, match=r"nothing fetched yet: no own/saved/made_of\.json"):
        source_table(SOURCE)
