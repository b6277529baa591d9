"""PopVQA's files as its authors' code reads them: prompts, relations, answers, pictures here and on Commons, faults."""

import json
from pathlib import Path

import fake_hub
import huggingface_hub
import huggingface_hub.constants
import polars as pl
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from picture_server import PictureServer, encoded
from test_web import client
from wiki_server import World, image, mediawiki, sparql

from twohop.config import HubDataset, PopvqaSource, source_pictures, source_table
from twohop.data import TableEntities
from twohop.data.fetched import Services, fetch_entities
from twohop.data.fetched._popvqa import parse_list
from twohop.data.fetched._saved import NO_FILE, NOT_THERE, UNREADABLE
from twohop.errors import DataError

SOURCE = PopvqaSource(kind="popvqa", folder="own/popvqa", files="got")
ENTITY = "http://www.wikidata.org/entity/"


def entity(number: int, **more: str) -> dict[str, str]:
    row = {"type": "paintings", "s_uri": f"{ENTITY}Q{number}", "subject": f"Painting {number}", "aliases": "[]"}
    return row | {"resized_path": f"pictures/{number}.png"} | more


def question(number: int, text: str = "Who made {}?", answers: object = ("Ann", "Ann A."), **more: str):
    subject = f"Painting {number}"
    row = {"s_uri": f"{ENTITY}Q{number}", "subject": subject, "question": text.format(subject)}
    return row | {"question_for_image": "Who made this?", "possible_answers": repr(list(answers))} | more


def write(entities, questions, folder: str = "got") -> None:
    Path(folder, "pictures").mkdir(parents=True, exist_ok=True)
    pl.DataFrame(entities).write_csv(f"{folder}/entities.csv")
    pl.DataFrame(questions).write_csv(f"{folder}/questions.csv")
    for i, row in enumerate(entities):
        if row["resized_path"].startswith("pictures/"):
            Path(folder, row["resized_path"]).write_bytes(encoded(seed=i))


def table(source=SOURCE, relations=("who_made",)) -> TableEntities:
    found = source_table(source)
    assert found is not None
    return TableEntities(found, relations, map(Path, source_pictures(source)))


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_entities_answers_prompts_and_pictures(capsys):
    write([entity(i) for i in range(1, 6)], [question(i) for i in range(1, 6)])
    counts = fetch_entities(SOURCE)
    assert counts == {"entities": 5, "with_picture": 5, "facts": 5}
    found = table()
    assert [e.name for e in found.entities()] == [f"Painting {i}" for i in range(1, 6)]
    assert {e.kind for e in found.entities()} == {"painting"}
    fact = next(found.facts(("who_made",)))
    assert (fact.answer, fact.answer_aliases) == ("Ann", ("Ann", "Ann A."))
    written = yaml.safe_load(Path("own/popvqa/templates.yaml").read_text())
    assert written["build_questions"]["templates"] == {"who_made": "Who made {entity}?"}
    assert written["curate_entities"]["relations"] == ["who_made"]
    assert source_pictures(SOURCE)[0] == "own/popvqa/pictures/Q1.png"


def test_relation_is_what_a_column_names_and_the_most_frequent_wording_is_its_prompt():
    wordings = ["Who made {}?", "Who painted {}?", "Who painted {}?", "Who made {}?", "Who painted {}?"]
    rows = [question(i, w, r_uri=f"{ENTITY}P170") for i, w in enumerate(wordings, 1)]
    write([entity(i) for i in range(1, 6)], rows)
    assert fetch_entities(SOURCE)["facts"] == 5
    written = yaml.safe_load(Path("own/popvqa/templates.yaml").read_text())
    assert written["build_questions"]["templates"] == {"p170": "Who painted {entity}?"}


def test_two_answers_to_one_question_are_ambiguous_and_two_wordings_are_not():
    rows = [question(i, r_uri="P170") for i in range(1, 6)]
    rows += [question(1, "Who painted {}?", r_uri="P170"), question(2, answers=["Bo"], r_uri="P170")]
    write([entity(i) for i in range(1, 6)], rows)
    fetch_entities(SOURCE)
    dropped = dict(table(relations=("p170",)).rejected())
    assert dropped["ambiguous answer"] == {"table:Q2"}


def test_people_are_left_out_unless_they_are_named():
    people = [entity(i, type="celebs") for i in (6, 7, 8)]
    write([entity(i) for i in range(1, 6)] + people, [question(i) for i in range(1, 9)])
    assert fetch_entities(SOURCE)["entities"] == 5
    assert fetch_entities(SOURCE.model_copy(update={"types": ["paintings", "celebs"]}))["entities"] == 8


def test_pictures_that_are_not_there_not_readable_or_outside_are_counted():
    rows = [entity(i) for i in range(1, 8)]
    rows[4]["resized_path"], rows[5]["resized_path"] = "../secret.png", ""
    write(rows, [question(i) for i in range(1, 8)])
    Path("secret.png").write_bytes(encoded(seed=0))
    Path("got/pictures/7.png").write_bytes(b"<svg/>")
    counts = fetch_entities(SOURCE)
    assert counts == {"entities": 7, "with_picture": 4, "facts": 7, NO_FILE: 2, UNREADABLE: 1}


def test_question_that_does_not_name_its_entity_is_counted():
    rows = [question(i) for i in range(1, 6)] + [question(1, "What is this?")]
    write([entity(i) for i in range(1, 6)], rows)
    assert fetch_entities(SOURCE)["questions that do not name their entity"] == 1


def test_pictures_that_the_files_lack_come_from_commons_where_a_contact_is_given():
    rows = [entity(i) for i in range(1, 6)]
    rows[0]["resized_path"], rows[1]["resized_path"] = "absent.png", "absent.png"
    rows[1]["type"] = "brands"
    write(rows, [question(i) for i in range(1, 6)])
    source = SOURCE.model_copy(update={"contact": "me@example.org"})
    with PictureServer() as server, client(server) as web:
        world = World(files={"A b.jpg": image(server, "A b.jpg")})
        path = "http://commons.wikimedia.org/wiki/Special:FilePath/"
        world.values = {("Q1", "P18"): [path + "A%20b.jpg"], ("Q2", "P154"): [path + "Gone.svg"]}
        server.replies["/sparql"], server.replies["/api"] = sparql(world), mediawiki(world)
        services = Services(server.url("/sparql"), server.url("/api"))
        counts = fetch_entities(source, web, services)
        assert counts == {"entities": 5, "with_picture": 4, "facts": 5, NOT_THERE: 1}
        asked = server.asked.total()
        fetch_entities(source, web, services)
        assert server.asked.total() == asked
    credit = pl.read_csv("own/popvqa/attribution.csv")
    assert credit["licence"].to_list()[0] == "CC BY-SA 4.0"


def test_every_fault_is_listed_with_its_row():
    write([entity(1), entity(2, type="songs"), entity(3, s_uri="x"), entity(4, subject=" ")], [question(1)])
    with pytest.raises(DataError) as error:
        fetch_entities(SOURCE)
    said = str(error.value)
    for words in ("row 2: unknown type 'songs'", "row 3: s_uri 'x'", "row 4: empty subject"):
        assert words in said
    write([entity(1)], [question(1), question(1) | {"possible_answers": "Ann"}])
    with pytest.raises(DataError, match=r"row 2: .*possible_answers 'Ann'"):
        fetch_entities(SOURCE)


def test_missing_file_and_missing_column_say_what_is_needed():
    Path("got").mkdir()
    with pytest.raises(DataError, match="no such file") as error:
        fetch_entities(SOURCE)
    assert "PopVQA's files" in error.value.todo
    write([entity(1)], [{"s_uri": "Q1", "subject": "x", "question": "x?"}])
    with pytest.raises(DataError, match="no column 'possible_answers'"):
        fetch_entities(SOURCE)


def test_files_from_the_hub_are_those_of_the_commit(monkeypatch):
    write([entity(i) for i in range(1, 6)], [question(i) for i in range(1, 6)], "there")
    names = ("entities.csv", "questions.csv")
    files = {name: Path("there", name).read_bytes() for name in names} | {"run.py": b"evil"}
    repo = fake_hub.Repo("c0ffee0123" * 4, files)
    source = PopvqaSource(kind="popvqa", folder="own/popvqa", hub=HubDataset(id="some/PopVQA", revision=repo.commit))
    with fake_hub.serve({"datasets/some/PopVQA": repo}) as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        counts = fetch_entities(source)
        huggingface_hub.close_session()
    assert counts == {"entities": 5, "with_picture": 0, "facts": 5, NO_FILE: 5}
    assert sorted({name for name, _ in repo.asked}) == sorted(names)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8)))
def test_lists_are_read_as_python_and_as_json_writes_them(items):
    expected = tuple(dict.fromkeys(i.strip() for i in items if i.strip()))
    assert parse_list(repr(items)) == expected
    assert parse_list(json.dumps(items)) == expected


@pytest.mark.parametrize("text", ["", "Ann", "{'a': 1}", "[1, 2]", "__import__('os')", "[" * 5000])
def test_anything_else_is_no_list(text):
    assert parse_list(text) == ()
