"""A walk back ends at pictures, facts and the model's source."""

import json
from pathlib import Path

import pytest

from records import write_run
from twohop.errors import ArtifactError
from twohop.lineage import read_book, resolve
from twohop.models._card import FileRecord, ModelCard
from twohop.provenance import FactSource, trace, view_lines


def _trace(text: str, picture: str | None = None):
    book = read_book()
    return trace(resolve(text, book), book, picture)


def _view(text: str, show_all: bool = False) -> str:
    return "\n".join(view_lines(_trace(text), show_all))


def test_a_number_walks_back_to_pictures_facts_model_and_commit() -> None:
    text = _view("results/plot_figures/summary.json#/late/value")
    assert text.startswith("0.35  interval [0.3, 0.42]  at /late/value of results/plot_figures/summary.json\n")
    assert "plot_figures  run 4444-plo  2026-01-01 04:00  commit c0ffeec0ff" in text
    assert "2 facts (capital): GeoNames" in text
    assert "CC BY 4.0, u" in text
    assert "picture flags:AA/noto_original: x (x), MIT, x, sha256" in text
    assert "flags:CC" not in text
    assert "model late: from random (seed 1), revision" in text
    assert "data/models/late/projector.safetensors  (a file of the repository, sha256 cdcdcdcdcdcd)" in text
    assert "! data/models/late/projector.safetensors: absent now" in text


def test_only_questions_that_are_asked_count(runs) -> None:
    found = _trace("results/plot_figures")
    assert [p.picture_id for p in found.pictures[runs["fetch_images"].run_id]] == [
        "flags:AA/noto_original",
        "flags:BB/noto_original",
    ]
    asked = FactSource("GeoNames", "1", "CC BY 4.0", "u", ("capital",), 2)
    assert found.facts[runs["curate_entities"].run_id] == (asked,)


def test_without_questions_every_picture_is_told(runs) -> None:
    assert len(_trace("results/fetch_images/pictures.zip").pictures[runs["fetch_images"].run_id]) == 3


def test_one_picture_can_be_asked_for_and_must_be_there(runs) -> None:
    found = _trace("results/plot_figures", "flags:BB/noto_original")
    assert [p.picture_id for p in found.pictures[runs["fetch_images"].run_id]] == ["flags:BB/noto_original"]
    with pytest.raises(ArtifactError, match="no picture flags:ZZ"):
        _trace("results/plot_figures", "flags:ZZ")


def test_few_pictures_are_shown_unless_all_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twohop.provenance._words.FEW", 1)
    assert "... and 1 more pictures: --all" in _view("results/plot_figures")
    assert "more pictures" not in _view("results/plot_figures", show_all=True)


def test_a_table_that_was_overwritten_is_not_believed() -> None:
    Path("results/fetch_images/manifest.parquet").write_bytes(b"other")
    assert "! what it found cannot be told any more: results/fetch_images/manifest.parquet: the file was alt" in _view(
        "results/plot_figures"
    )
    write_run(Path("results/fetch_images"), "9999-new", {"manifest.parquet": "new"})
    assert "overwritten by run 9999-new" in _view("results/plot_figures")


def test_json_holds_the_same() -> None:
    found = json.loads(json.dumps(_trace("4444/summary.json#/late/value").as_json()))
    assert (found["id"], found["value"], found["interval"]) == ("4444-plo/summary.json#/late/value", 0.35, [0.3, 0.42])
    assert len(found["nodes"]) == 7
    assert [len(v) for v in found["pictures"].values()] == [2]


def test_a_count_has_no_interval() -> None:
    found = _trace("4444/summary.json#/n")
    assert (found.value, found.interval) == (3, None)


def test_the_revision_is_the_cards_own(runs) -> None:
    found = _trace("results/prepare_model/late/card.json").models[runs["prepare_model"].run_id]
    card = ModelCard.model_construct(files={"w": FileRecord(sha256="ab" * 32, bytes=1)})
    assert found.revision == card.revision
