from dataclasses import replace

import polars as pl
import pytest

from twohop.data import EntityRecord, FactRecord, FlagsSource, pass_filters
from twohop.errors import DataError
from twohop.steps import curate_entities
from twohop.steps._step import Job
from twohop.store import read_table, schemas

OUTPUTS = ("entities", "facts", "picture_sources", "funnel")
PARAMS = {"source": "flags", "n_entities": 10, "relations": ["capital", "continent", "language"], "seed": 0}


def job(folder, **changes):
    params = {"curate_entities": {**PARAMS, **changes}}
    return Job("curate_entities", None, params, {}, {o: folder / f"{o}.parquet" for o in OUTPUTS}, folder / "work")


def tables(folder):
    kinds = (schemas.ENTITIES, schemas.FACTS, schemas.PICTURE_SOURCES, schemas.FUNNEL)
    return [read_table(folder / f"{o}.parquet", s) for o, s in zip(OUTPUTS, kinds, strict=True)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("curated")
    return curate_entities.run(job(folder)), *tables(folder)


def test_tables_hold_every_state_and_the_asked_relations_only(made):
    _, entities, facts, pictures, _ = made
    assert entities.height == 195
    assert set(facts["relation"]) == set(PARAMS["relations"])
    assert facts.height == 3 * 195
    assert pictures.height == 6 * 195


def test_evaluated_entities_have_a_picture_of_their_own_and_every_fact(made):
    _, entities, facts, _, _ = made
    drawn = entities.filter("evaluated")
    assert drawn.height == 10
    assert drawn["look_alikes"].list.len().max() == 0
    usable = facts.filter(~pl.col("name_in_answer")).join(drawn, on="entity_id", how="semi")
    assert usable.height == 3 * 10
    assert not set(drawn["entity_id"]) & {"flags:CH", "flags:MC", "flags:RO", "flags:SM"}


def test_summary_counts_what_the_tables_hold(made):
    summary, entities, facts, _, _ = made
    assert summary["evaluated"] == 10
    assert summary["entities"] == entities.height
    assert summary["with_look_alikes"] == (entities["look_alikes"].list.len() > 0).sum()
    assert summary["name_in_answer"] == facts["name_in_answer"].sum()
    assert summary["repeated_pictures"] == 3
    assert 64 <= summary["candidates"] < 195 - summary["with_look_alikes"]


def test_c01_same_bytes_again_and_another_draw_with_another_seed(tmp_path, made):
    _, entities, *_ = made
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        curate_entities.run(job(tmp_path / name, seed=seed))
    for output in OUTPUTS:
        a, b = ((tmp_path / x / f"{output}.parquet").read_bytes() for x in "ab")
        assert a == b
    other = tables(tmp_path / "c")[0].filter("evaluated")["entity_id"]
    assert set(other) != set(entities.filter("evaluated")["entity_id"])


def test_too_many_entities_is_an_error_and_leaves_nothing(tmp_path):
    with pytest.raises(DataError, match=r"n_entities is 193, but only 1\d\d entities"):
        curate_entities.run(job(tmp_path, n_entities=193))
    assert not list(tmp_path.iterdir())


def test_a_faulty_source_is_refused_with_the_row(tmp_path, monkeypatch):
    class Broken(curate_entities.SOURCES["flags"]):
        def entities(self):
            first, second, *rest = super().entities()
            return [first, replace(second, entity_id=first.entity_id), *rest]

    monkeypatch.setattr(curate_entities, "SOURCES", {"flags": Broken})
    with pytest.raises(DataError, match="row 2: duplicate id 'flags:AD'"):
        curate_entities.run(job(tmp_path))
    assert not list(tmp_path.iterdir())


def test_candidates():
    entities = [EntityRecord(e, e, (e,), "thing", ("b",) if e == "a" else ()) for e in "abcd"]
    facts = [FactRecord(e, r, "x", ("x",), e == "c", "s", "1", "l", "u") for e in "abc" for r in ("p", "q")]
    facts.append(FactRecord("d", "p", "x", ("x",), False, "s", "1", "l", "u"))

    def left(relations):
        filters = curate_entities.find_filters(FlagsSource(), entities, facts, relations)
        return pass_filters("abcd", filters)[0]

    assert left(["p", "q"]) == ["b"]
    assert left(["p"]) == ["b", "d"]


def test_funnel_adds_up_from_all_states_to_those_evaluated(made):
    summary, _, _, _, funnel = made
    assert funnel["rows_in"][0] == 195
    assert funnel["rows_out"][-1] == 10
    assert 195 - funnel["dropped"].sum() == 10
    assert funnel["rows_in"][1:].to_list() == funnel["rows_out"][:-1].to_list()
    assert (
        funnel.filter(pl.col("filter") == "looks like another entity")["dropped"].item() == summary["with_look_alikes"]
    )
