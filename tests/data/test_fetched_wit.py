"""wit_base's parquet files: which rows are taken, what their pictures say of themselves, faults, and memory."""

import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from picture_server import encoded

from twohop.config import WitSource, source_pictures, source_table
from twohop.data import TableEntities
from twohop.data.fetched import fetch_entities
from twohop.data.fetched._saved import NO_FILE, UNREADABLE
from twohop.errors import DataError

SOURCE = WitSource(kind="wit", folder="own/wit", files="got", parts=["*.parquet"], facts="facts.csv")
FACTS = "entity,relation,answer,aliases\n" + "".join(f"Tower {i},landmark_city,City {i},\n" for i in range(1, 6))


def row(title: str, picture: bytes | None, language: str = "en", main: bool = True, **more: object):
    article = {"language": language, "is_main_image": main, "page_title": title, "page_url": f"https://{title}"}
    other = {"language": "fr", "is_main_image": True, "page_title": f"Tour {title}", "page_url": "https://fr"}
    name = title.replace(" ", "_")
    return {
        "image": {"bytes": picture, "path": f"{name}.png"},
        "image_url": f"https://upload/{name}.png",
        "embedding": [0.0, 1.0],
        "metadata_url": f"https://commons/File:{name}.png",
        "caption_attribution_description": f"English:  A photo by Ann,\n{title}",
        "wit_features": [other, article],
    } | more


def write(name: str, rows: list[dict[str, object]], lists: bool = True) -> Path:
    """A file of the data set; a sequence of features is a struct of lists there, or a list of structs."""
    frame = pl.DataFrame(rows)
    if lists:
        fields = ["language", "is_main_image", "page_title", "page_url"]
        each = [pl.col("wit_features").list.eval(pl.element().struct.field(f)).alias(f) for f in fields]
        frame = frame.with_columns(wit_features=pl.struct(each))
    path = Path("got") / name
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.write_parquet(path, row_group_size=4)
    return path


def table(source=SOURCE) -> TableEntities:
    found = source_table(source)
    assert found is not None
    return TableEntities(found, ("landmark_city",), map(Path, source_pictures(source)))


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("facts.csv").write_text(FACTS)


@pytest.mark.parametrize("lists", [True, False])
def test_main_pictures_of_the_articles_that_the_facts_name(lists):
    write("data/train-00000-of-00330.parquet", [row(f"Tower {i}", encoded(seed=i)) for i in (1, 2, 9)], lists)
    write(
        "data/train-00001-of-00330.parquet", [row("Tower 1", encoded(seed=7)), row("Tower 3", encoded(seed=3))], lists
    )
    counts = fetch_entities(SOURCE)
    assert counts == {"entities": 5, "with_picture": 3, "facts": 5, NO_FILE: 2}
    found = table()
    assert [e.name for e in found.entities()] == [f"Tower {i}" for i in range(1, 6)]
    pictures = {p.entity_id: p for p in found.pictures()}
    first = next(p for p in pictures.values() if "Tower-1" in p.entity_id)
    assert Path(first.locator.removeprefix("file:")).read_bytes() == encoded(seed=1)  # the first file's
    assert first.source_page == "https://commons/File:Tower_1.png"
    assert first.author == "English: A photo by Ann, Tower 1"
    assert dict(found.rejected())[NO_FILE] == {e.entity_id for e in found.entities()} - set(pictures)


def test_picture_of_a_section_or_of_another_language_is_none():
    rows = [row("Tower 1", encoded(seed=1), main=False), row("Tower 2", encoded(seed=2), "de")]
    write("a.parquet", [*rows, row("Tower 3", encoded(seed=3))])
    assert fetch_entities(SOURCE)["with_picture"] == 1


def test_picture_that_cannot_be_decoded_is_counted():
    write("a.parquet", [row("Tower 1", b"<svg/>"), row("Tower 2", None), row("Tower 3", encoded(seed=3))])
    assert fetch_entities(SOURCE) == {"entities": 5, "with_picture": 1, "facts": 5, NO_FILE: 2, UNREADABLE: 2}


def test_no_more_than_are_asked():
    write("a.parquet", [row(f"Tower {i}", encoded(seed=i)) for i in range(1, 6)])
    assert fetch_entities(SOURCE.model_copy(update={"max_entities": 4}))["with_picture"] == 4


def test_second_time_writes_the_same_and_what_is_gone_goes():
    write("a.parquet", [row(f"Tower {i}", encoded(seed=i)) for i in range(1, 6)])
    fetch_entities(SOURCE)
    before = {p: p.read_bytes() for p in Path("own/wit").rglob("*.p*") if p.is_file()}
    fetch_entities(SOURCE)
    assert {p: p.read_bytes() for p in Path("own/wit").rglob("*.p*") if p.is_file()} == before
    Path("facts.csv").write_text(FACTS.replace("Tower 5", "Tower 6"))
    fetch_entities(SOURCE)
    assert len(source_pictures(SOURCE)) == 4


def test_faults_of_files_and_facts():
    with pytest.raises(DataError, match="no such folder"):
        fetch_entities(SOURCE)
    path = write("a.parquet", [row("Tower 1", encoded(seed=1))])
    with pytest.raises(DataError, match=r"no file fits b\*; there is a\.parquet"):
        fetch_entities(SOURCE.model_copy(update={"parts": ["b*"]}))
    pl.read_parquet(path).drop("metadata_url").write_parquet(path)
    with pytest.raises(DataError, match="no column metadata_url"):
        fetch_entities(SOURCE)
    pl.DataFrame([row("Tower 1", encoded(seed=1))]).with_columns(wit_features=pl.lit("x")).write_parquet(path)
    with pytest.raises(DataError, match=r"no column wit_features\.language"):
        fetch_entities(SOURCE)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match="cannot be read"):
        fetch_entities(SOURCE)
    Path("facts.csv").write_text("entity,relation,answer\nTower 1,landmark_city,\n")
    with pytest.raises(DataError, match="row 1: empty answer"):
        fetch_entities(SOURCE)


MEASURED = """
import resource
from twohop.config import WitSource
from twohop.data.fetched import fetch_entities
source = WitSource(kind="wit", folder="own/wit", files="got", parts=["*"], facts="facts.csv")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert fetch_entities(source)["with_picture"] == 5
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def test_memory_does_not_hold_the_pictures_of_a_file():
    filler = bytes(range(256)) * 4000  # a megabyte
    rows = [row(f"Filler {i}", bytes([i]) + filler) for i in range(200)]
    write("a.parquet", rows[:100] + [row(f"Tower {i}", encoded(seed=i)) for i in range(1, 6)] + rows[100:])
    pl.scan_parquet("got/a.parquet").sink_parquet("got/b.parquet", row_group_size=4, compression="uncompressed")
    Path("got/a.parquet").unlink()
    size = Path("got/b.parquet").stat().st_size
    assert size > 150e6
    done = subprocess.run([sys.executable, "-c", MEASURED], capture_output=True, text=True, check=True)
    assert int(done.stdout) < size / 2
