"""A user's own table: what is read from it, and every fault with its row, all at once."""

from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from picture_server import encoded

from twohop.data._user_table import read_user_table
from twohop.errors import DataError

GOOD = [
    {"entity_id": "FR", "name": "France", "aliases": "La France|Gaul", "picture": "fr.png", "capital": "Paris"},
    {"entity_id": "SG", "name": "Singapore", "aliases": "", "picture": "sg.webp", "capital": "Singapore"},
    {"entity_id": "PE", "name": "Peru", "aliases": None, "picture": "https://pictures.example/pe.jpg", "capital": ""},
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "fr.png").write_bytes(encoded())
    (tmp_path / "sg.webp").write_bytes(encoded("WEBP"))
    return tmp_path


def write(folder: Path, rows, ending=".csv") -> Path:
    path = folder / f"table{ending}"
    table = pl.DataFrame(rows, infer_schema_length=None)
    {".csv": table.write_csv, ".parquet": table.write_parquet, ".jsonl": table.write_ndjson}[ending](path)
    return path


@pytest.mark.parametrize("ending", [".csv", ".parquet", ".jsonl"])
def test_the_three_formats_say_the_same(folder, ending):
    table = read_user_table(write(folder, GOOD, ending), ["capital"])
    assert [(e.entity_id, e.name, e.kind) for e in table.entities] == [
        ("FR", "France", "entity"),
        ("SG", "Singapore", "entity"),
        ("PE", "Peru", "entity"),
    ]
    assert table.entities[0].aliases == ("France", "La France", "Gaul")
    assert [(f.entity_id, f.answer, f.name_in_answer) for f in table.facts] == [
        ("FR", "Paris", False),
        ("SG", "Singapore", True),
    ]
    assert [p.locator for p in table.pictures] == ["file:fr.png", "file:sg.webp", "https://pictures.example/pe.jpg"]


def test_lists_and_numbers_of_parquet(folder):
    rows = [{"name": "France", "picture": "fr.png", "aliases": ["La France"], "year": 843, "popularity": 12.5}]
    table = read_user_table(write(folder, rows, ".parquet"), ["year"])
    assert table.entities[0].entity_id == "france"
    assert table.entities[0].aliases == ("France", "La France")
    assert table.facts[0].answer == "843"
    assert table.popularity == {"france": 12.5}


def test_columns_that_nobody_asked_for_are_named(folder):
    rows = [{**GOOD[0], "anthem": "La Marseillaise", "capital_aliases": "City of Light"}]
    table = read_user_table(write(folder, rows), ["capital"])
    assert table.unused == ("anthem",)
    assert table.facts[0].answer_aliases == ("Paris", "City of Light")


def test_provenance_is_kept_and_is_the_users_own_where_nothing_is_said(folder):
    said = {"licence": "CC0", "author": "Ann", "source_page": "https://example.org/fr"}
    table = read_user_table(write(folder, [{**GOOD[0], **said}, {**GOOD[1], **dict.fromkeys(said)}]), ["capital"])
    assert (table.pictures[0].licence, table.pictures[0].author) == ("CC0", "Ann")
    assert table.facts[0].url == "https://example.org/fr"
    assert (table.pictures[1].licence, table.pictures[1].author) == ("the user's own", "")


def test_every_fault_is_listed_with_its_row_all_at_once(folder):
    (folder / "notes.txt").write_text("x")
    (folder / "fake.png").write_bytes(b"<svg/>")
    rows = [
        GOOD[0],
        {**GOOD[0], "name": "Francia"},
        {**GOOD[1], "name": " "},
        {**GOOD[1], "entity_id": "A", "name": "A", "picture": ""},
        {**GOOD[1], "entity_id": "B", "name": "B", "picture": "fr.pgn"},
        {**GOOD[1], "entity_id": "C", "name": "C", "picture": "../secret.png"},
        {**GOOD[1], "entity_id": "D", "name": "D", "picture": "http://a.example/d.png"},
        {**GOOD[1], "entity_id": "E", "name": "E", "picture": "fake.png"},
        {**GOOD[1], "entity_id": "F", "name": "france", "capital": "?!"},
    ]
    with pytest.raises(DataError) as caught:
        read_user_table(write(folder, rows), ["capital"])
    assert caught.value.what.splitlines() == [
        "row 2: id 'FR' is also that of row 1",
        "row 9: name 'france' is also that of row 1",
        "row 3 (SG): empty name",
        "row 4 (A): no picture",
        "row 5 (B): no file 'fr.pgn'; nearest: 'fr.png'",
        "row 6 (C): picture '../secret.png' is outside the table's folder",
        "row 7 (D): picture 'http://a.example/d.png': allowed: a path below the table's folder, or an https address",
        "row 8 (E): 'fake.png' is no PNG, JPEG or WebP",
        "row 9 (F): capital is '?!', which has no letter and no digit",
    ]


def test_link_out_of_the_folder_is_outside(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other") / "x.png"
    other.write_bytes(encoded())
    (folder / "link.png").symlink_to(other)
    with pytest.raises(DataError, match="outside the table's folder"):
        read_user_table(write(folder, [{**GOOD[0], "picture": "link.png"}]), ["capital"])


def test_missing_columns_are_named_with_the_nearest(folder):
    rows = [{"Name": "France", "pictures": "fr.png", "capitol": "Paris"}]
    with pytest.raises(DataError) as caught:
        read_user_table(write(folder, rows), ["capital"])
    assert caught.value.what.splitlines() == [
        "no column 'name'; nearest: 'Name'",
        "no column 'picture'; nearest: 'pictures'",
        "no column 'capital'; nearest: 'capitol'",
        "columns are Name, pictures, capitol",
    ]


@pytest.mark.parametrize(
    ("name", "data", "why"),
    [
        ("table.xlsx", b"x", "ending; allowed: .csv"),
        ("table.csv", b"", "cannot read it"),
        ("table.csv", b"name,picture\n", "the table has no rows"),
        ("table.csv", b"name,picture\n\xff\xfe,a\n", "cannot read it"),
        ("table.csv", b"name,picture\na,b,c\n", "cannot read it"),
        ("table.parquet", b"no parquet", "cannot read it"),
        ("table.jsonl", b"{", "cannot read it"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, data, why):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=why):
        read_user_table(tmp_path / name, [])


def test_absent_file(tmp_path):
    with pytest.raises(DataError, match="no such table"):
        read_user_table(tmp_path / "table.csv", [])


@given(st.lists(st.text(min_size=1), min_size=1, max_size=6), st.text())
def test_any_text_is_read_or_refused_with_a_row(tmp_path_factory, names, answer):
    folder = tmp_path_factory.mktemp("any")
    (folder / "a.png").write_bytes(encoded())
    path = write(folder, [{"name": n, "picture": "a.png", "capital": answer} for n in names], ".parquet")
    table, faults = None, ["row "]
    try:
        table = read_user_table(path, ["capital"])
    except DataError as error:
        faults = error.what.splitlines()
    assert all(line.startswith(("row ", "...")) for line in faults)
    if table is not None:
        assert [e.name for e in table.entities] == [n.strip() for n in names]
        assert len(table.facts) in (0, len(names))
