"""The user's own table: every fault with its row, nothing read outside its folder, filters that find what they name."""

import itertools
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from twohop.config import TableSource, source_pictures, source_tables
from twohop.data import TableEntities, pass_filters
from twohop.errors import ConfigError, DataError

HEADER = "name,aliases,kind,picture,painter\n"
NAMES = ("Alpha", "Beta", "Gamma", "Delta", "Epsilon")


def paint(path, seed, side=64):
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC).save(path)


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Five paintings by five painters, in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "own/pics"
    folder.mkdir(parents=True)
    for i in range(len(NAMES)):
        paint(folder / f"p{i}.png", i)
    rows = [f"{n},{n} Picture|The {n},painting,pics/p{i}.png,Painter {i}|P. {i}" for i, n in enumerate(NAMES)]
    (tmp_path / "own/table.csv").write_text(HEADER + "\n".join(rows) + "\n")
    return tmp_path


def opened(relations=("painter",), **changes):
    values = {"kind": "table", "entities": "own/table.csv", "pictures": "own/pics", **changes}
    source = TableSource.model_validate(values)
    return TableEntities(source, relations, map(Path, source_pictures(source)))


def dropped(source):
    return {reason: set(ids) for reason, ids in source.rejected() if ids}


def edit(own, old, new):
    path = own / "own/table.csv"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_records_of_a_good_table(own):
    source = opened()
    first = next(iter(source.entities()))
    assert (first.entity_id, first.name, first.kind, first.look_alikes) == ("table:alpha", "Alpha", "painting", ())
    assert first.aliases == ("Alpha", "Alpha Picture", "The Alpha")
    facts = list(source.facts(["painter"]))
    assert [f.answer for f in facts] == [f"Painter {i}" for i in range(5)]
    assert facts[0].answer_aliases == ("Painter 0", "P. 0")
    assert {f.licence for f in facts} == {"user's own"}
    picture = next(source.pictures())
    assert (picture.style, picture.locator, picture.author) == ("main", "file:own/pics/p0.png", "user's own")
    assert dropped(source) == {}


def test_popularity_is_a_number_or_not_known(own):
    path = own / "own/table.csv"
    head, *rows = path.read_text().splitlines()
    path.write_text("\n".join([f"{head},popularity", *(f"{row},{'' if i else 42}" for i, row in enumerate(rows))]))
    assert [e.popularity for e in opened().entities()] == [42.0, None, None, None, None]
    edit(own, ",42", ",many")
    with pytest.raises(DataError, match="row 1: popularity 'many' is no number"):
        opened()


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_all_three_formats_say_the_same(own, ending):
    rows = pl.read_csv(own / "own/table.csv").to_dicts()
    rows = [{**r, "aliases": r["aliases"].split("|")} for r in rows]
    if ending == "jsonl":
        (own / "own/table.jsonl").write_text("\n".join(map(json.dumps, rows)))
    else:
        pl.DataFrame(rows).write_parquet(own / "own/table.parquet")
    assert list(opened(entities=f"own/table.{ending}").entities()) == list(opened().entities())


def test_every_fault_is_listed_with_its_row_at_once(own):
    lines = (own / "own/table.csv").read_text().splitlines()
    lines[1] = lines[1].replace("pics/p0.png", "https://example.org/a.png")
    lines[2] = lines[2].replace("Beta,", ",", 1)
    lines[3] = lines[3].replace("pics/p2.png", "pics/none.png")
    lines[4] = lines[4].replace("pics/p3.png", "../secret.png")
    lines[5] = lines[5].replace("Epsilon,", "Alpha,", 1)
    (own / "own/table.csv").write_text("\n".join(lines))
    with pytest.raises(DataError) as caught:
        opened()
    told = caught.value.what
    for line in (
        "row 1: picture 'https://example.org/a.png': pictures by URL are not fetched",
        "row 2: empty name",
        "row 3: picture 'pics/none.png': is no PNG, JPEG or WebP file in own/pics",
        "row 4: picture '../secret.png': lies outside the table's folder",
        "row 5: duplicate id 'alpha', first in row 1",
    ):
        assert line in told
    assert caught.value.where == "own/table.csv"


def test_a_misspelt_column_is_told_with_the_nearest_one(own):
    edit(own, "painter\n", "paintr\n")
    with pytest.raises(DataError, match="no column 'painter'; did you mean your column 'paintr'"):
        opened()
    edit(own, "name,aliases,kind,picture,paintr", "name,alliases,kind,pictur,painter")
    with pytest.raises(DataError) as caught:
        opened()
    assert "unknown column 'alliases'; did you mean 'aliases'?" in caught.value.what
    assert "no column 'picture'" in caught.value.what


def test_f06_a_link_out_of_the_folder_is_no_picture(own):
    paint(own / "secret.png", 99)
    (own / "own/pics/link.png").symlink_to(own / "secret.png")
    edit(own, "pics/p0.png", "pics/link.png")
    assert "own/pics/link.png" not in source_pictures(
        TableSource(kind="table", entities="own/table.csv", pictures="own/pics")
    )
    with pytest.raises(DataError, match=r"row 1: picture 'pics/link.png': lies outside"):
        opened()


def test_filters_find_what_they_name(own):
    paint(own / "own/pics/p0.png", 0, side=16)
    (own / "own/pics/p1.png").write_bytes((own / "own/pics/p1.png").read_bytes()[:-200])
    edit(own, "pics/p2.png", "")
    paint(own / "own/pics/the-delta-1.png", 3)
    edit(own, "pics/p3.png", "pics/the-delta-1.png")
    source = opened(named_files="drop", licences=["user's own"])
    assert dropped(source) == {
        "picture too small or broken": {"table:alpha", "table:beta"},
        "no picture": {"table:gamma"},
        "name in the picture's file name": {"table:delta"},
    }
    assert dropped(opened(licences=["CC0"]))["licence"] == {f"table:{n.lower()}" for n in NAMES}


def test_near_duplicates_are_look_alikes(own):
    picture = Image.open(own / "own/pics/p0.png")
    picture.resize((200, 200)).save(own / "own/pics/p1.png")
    alike = {e.entity_id: e.look_alikes for e in opened().entities() if e.look_alikes}
    assert alike == {"table:alpha": ("table:beta",), "table:beta": ("table:alpha",)}


def test_a_table_of_facts_and_its_ambiguous_answers(own):
    rows = ["entity,relation,answer,aliases,source", "Alpha,museum,Louvre,Le Louvre,guide", "alpha,museum,the Prado,,"]
    rows += [f"{n},museum,House of {i},," for i, n in enumerate(NAMES[1:])]
    (own / "own/facts.csv").write_text("\n".join(rows))
    source = opened(relations=["museum"], facts="own/facts.csv")
    assert {f.entity_id for f in source.facts(["museum"])} == {f"table:{n.lower()}" for n in NAMES[1:]}
    assert dropped(source) == {"ambiguous answer": {"table:alpha"}}
    (own / "own/facts.csv").write_text("entity,relation,answer\nOmega,museum,x\nBeta,museum,\n")
    with pytest.raises(DataError) as caught:
        opened(relations=["museum"], facts="own/facts.csv")
    assert "row 1: 'Omega' is no name" in caught.value.what
    assert "row 2: empty answer" in caught.value.what


@pytest.mark.parametrize("n", range(20))
def test_a_funnel_adds_up_whatever_the_filters(n):
    rng = np.random.default_rng(n)
    ids = [str(i) for i in range(rng.integers(0, 60))]
    filters = [(f"f{k}", {str(i) for i in rng.integers(0, 80, rng.integers(0, 40))}) for k in range(rng.integers(1, 7))]
    left, rows = pass_filters(ids, filters)
    assert rows[0].rows_in == len(ids)
    assert rows[-1].rows_out == len(left) == len(ids) - sum(r.dropped for r in rows)
    assert all(r.rows_in == r.rows_out + r.dropped for r in rows)
    assert all(a.rows_out == b.rows_in for a, b in itertools.pairwise(rows))
    assert left == [i for i in ids if not any(i in drops for _, drops in filters)]


def test_files_of_a_source(own):
    source = TableSource(kind="table", entities="own/table.csv", facts="own/facts.csv", pictures="own/pics")
    assert source_tables(source) == ["own/table.csv", "own/facts.csv"]
    assert source_pictures(source) == [f"own/pics/p{i}.png" for i in range(5)]
    assert source_tables("flags") == source_pictures("flags") == []
    (own / "own/pics/a b.png").touch()
    with pytest.raises(ConfigError, match="unusable file name"):
        source_pictures(source)
    (own / "own/pics/a b.png").unlink()
    (own / "own/many").mkdir()
    for i in range(600):
        (own / f"own/many/{'x' * 160}{i}.png").touch()
    many = TableSource(kind="table", entities="own/table.csv", pictures="own/many")
    with pytest.raises(ConfigError, match="more than 100000 letters in all"):
        source_pictures(many)
    for i in range(600, 1001):
        (own / f"own/many/{i}.png").touch()
    with pytest.raises(ConfigError, match="1001 pictures, more than 1000"):
        source_pictures(many)
    with pytest.raises(ConfigError, match="no folder own/nowhere"):
        source_pictures(TableSource(kind="table", entities="own/table.csv", pictures="own/nowhere"))
