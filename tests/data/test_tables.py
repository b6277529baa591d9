import polars as pl
import pytest

from twohop.data import check_entities, check_facts
from twohop.errors import DataError

GOOD = [
    {"entity_id": "me:1", "name": "One", "aliases": ["One", "1"], "look_alikes": ["me:2"]},
    {"entity_id": "me:2", "name": "Two", "aliases": ["Two"], "look_alikes": []},
]
FACT = {"entity_id": "me:1", "relation": "capital", "answer": "A", "answer_aliases": ["A", "B"]}
SCHEMA = {"entity_id": pl.String, "name": pl.String, "aliases": pl.List(pl.String), "look_alikes": pl.List(pl.String)}
FACT_SCHEMA = {"entity_id": pl.String, "relation": pl.String, "answer": pl.String, "answer_aliases": pl.List(pl.String)}


def changed(row, **values):
    return [{**r, **values} if i == row else r for i, r in enumerate(GOOD)]


def test_a_good_table_passes():
    check_entities(pl.DataFrame(GOOD, schema=SCHEMA), "mine.csv")
    check_facts(pl.DataFrame([FACT], schema=FACT_SCHEMA), ["me:1"], "mine.csv")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (changed(1, entity_id="me:1"), "row 2: duplicate id 'me:1', first in row 1"),
        (changed(1, entity_id=" "), "row 2: empty id"),
        (changed(1, entity_id=None), "row 2: empty id"),
        (changed(0, aliases=["One", ""]), r"row 1 \(me:1\): empty alias"),
        (changed(0, aliases=["One", " .!"]), r"row 1 \(me:1\): empty alias"),
        (changed(0, aliases=["One", None]), r"row 1 \(me:1\): empty alias"),
        (changed(1, name=""), r"row 2 \(me:2\): empty name"),
        (changed(1, name=None), r"row 2 \(me:2\): empty name"),
        (changed(1, name="Three"), "'Three' is not among the aliases"),
        (changed(1, aliases=None), "'Two' is not among the aliases"),
        (changed(0, look_alikes=["me:9"]), "look-alike 'me:9' is no other row"),
        (changed(0, look_alikes=["me:1"]), "look-alike 'me:1' is no other row"),
    ],
)
def test_each_fault_names_its_row(rows, message):
    with pytest.raises(DataError, match=message) as caught:
        check_entities(pl.DataFrame(rows, schema=SCHEMA), "mine.csv")
    assert "where: mine.csv" in str(caught.value)


def test_all_faults_are_listed_up_to_a_limit():
    rows = [{**GOOD[1], "name": ""} for _ in range(30)]
    with pytest.raises(DataError, match="and 39 more") as caught:
        check_entities(pl.DataFrame(rows, schema=SCHEMA), "mine.csv")
    assert len(caught.value.what.splitlines()) == 21


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ([FACT, FACT], "row 2: duplicate id 'me:1/capital'"),
        ([{**FACT, "entity_id": "me:9"}], "row 1: entity 'me:9' is not in the entity table"),
        ([{**FACT, "answer": ""}], "empty answer to capital"),
        ([{**FACT, "answer": "C"}], "'C' to capital is not among its aliases"),
        ([{**FACT, "answer_aliases": ["A", " "]}], "empty answer alias of capital"),
    ],
)
def test_each_fault_of_a_fact_names_its_row(facts, message):
    with pytest.raises(DataError, match=message):
        check_facts(pl.DataFrame(facts, schema=FACT_SCHEMA), ["me:1"], "mine.csv")
