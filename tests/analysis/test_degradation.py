"""Pairs, gates and relative loss, on a table whose numbers are known."""

import polars as pl
import pytest

from twohop.analysis import degradation, mcnemar, pair_answers, recognised, two_by_two
from twohop.errors import DataError

N = 20
RELATIONS = ("capital", "language")


def _questions() -> pl.DataFrame:
    rows = [
        {"question_id": f"e{i}/{r}", "entity_id": f"e{i}", "relation": r, "split": "test", "picture_id": f"e{i}/waved"}
        for i in range(N)
        for r in RELATIONS
    ]
    return pl.DataFrame(rows)


def _answers(**right: set[str]) -> pl.DataFrame:
    """Graded answers: per condition the ids that are right."""
    return pl.DataFrame(
        [
            {"question_id": q, "condition": c, "correct": q in ids}
            for c, ids in right.items()
            for q in _questions()["question_id"]
        ]
    )


def _ids(relation: str, numbers: range) -> set[str]:
    return {f"e{i}/{relation}" for i in numbers}


BACKBONE = _ids("capital", range(10)) | _ids("language", range(16))
IMAGE = _ids("capital", range(5, 12)) | _ids("language", range(8))
BLANK = _ids("language", range(4))
RECOGNITION = pl.DataFrame(
    [
        {"picture_id": f"e{i}/waved", "prompt_id": p, "correct": i < 8 and p == i % 2, "ranked_correct": i < 12}
        for i in range(N - 1)
        for p in (0, 1)
    ]
    + [{"picture_id": f"e{N - 1}/flat", "prompt_id": 0, "correct": True, "ranked_correct": True}]
)


def _paired() -> pl.DataFrame:
    vlm = _answers(text=BACKBONE, image=IMAGE, blank=BLANK)
    return pair_answers(_answers(text=BACKBONE), vlm, _questions(), RECOGNITION)


def _row(table: pl.DataFrame, comparison: str, gate: str, relation: str) -> dict[str, float]:
    return table.row(
        by_predicate=(pl.col("comparison") == comparison) & (pl.col("gate") == gate) & (pl.col("relation") == relation),
        named=True,
    )


def test_recognised_under_any_prompt_on_the_question_s_own_picture() -> None:
    free = recognised(RECOGNITION, _questions(), "free")
    known = {q.split("/")[0] for q in free.filter("recognised")["question_id"]}
    assert known == {f"e{i}" for i in range(8)}
    assert recognised(RECOGNITION, _questions(), "ranked")["recognised"].sum() == 24
    assert free["question_id"].to_list() == _questions()["question_id"].to_list()


def test_degradation_and_table_are_those_of_the_counts() -> None:
    table = degradation(_paired(), 400, 0)
    row = _row(table, "a,c", "all", "all")
    assert row["n_questions"] == 40
    assert row["reference"] == pytest.approx(26 / 40)
    assert row["compared"] == pytest.approx(15 / 40)
    assert row["degradation"] == pytest.approx(11 / 26)
    assert row["degradation_low"] < 11 / 26 < row["degradation_high"]
    counts = (row["both_right"], row["lost"], row["gained"], row["both_wrong"])
    assert counts == (13, 13, 2, 12)
    assert row["p_value"] == pytest.approx(mcnemar(13, 2))
    capital = _row(table, "a,c", "all", "capital")
    assert capital["degradation"] == pytest.approx(3 / 10)


def test_gates_keep_only_their_questions() -> None:
    table = degradation(_paired(), 200, 0)
    assert _row(table, "a,c", "recognised", "all")["n_questions"] == 16
    assert _row(table, "a,c", "ranked", "all")["n_questions"] == 24
    assert _row(table, "a,c", "grounded", "all")["n_questions"] == 36
    both = _row(table, "a,c", "recognised+grounded", "language")
    assert both["n_questions"] == 4
    assert both["degradation"] == pytest.approx(0)


def test_no_loss_between_equal_answers() -> None:
    row = _row(degradation(_paired(), 200, 0), "a,b", "all", "all")
    assert (row["degradation"], row["degradation_low"], row["degradation_high"]) == (0, 0, 0)
    assert row["p_value"] == 1


def test_undefined_is_null_not_a_number() -> None:
    nothing = pair_answers(
        _answers(text=set()), _answers(text=set(), image=IMAGE, blank=set()), _questions(), RECOGNITION
    )
    row = _row(degradation(nothing, 200, 0), "a,c", "all", "all")
    assert row["degradation"] is None
    assert row["compared"] == pytest.approx(15 / 40)
    empty = pair_answers(
        _answers(text=BACKBONE), _answers(text=BACKBONE, image=IMAGE, blank=BACKBONE), _questions(), RECOGNITION.clear()
    )
    row = _row(degradation(empty, 200, 0), "a,c", "recognised", "capital")
    assert (row["n_questions"], row["reference"], row["p_value"]) == (0, None, None)


def test_other_questions_are_refused() -> None:
    vlm = _answers(text=BACKBONE, image=IMAGE, blank=BLANK)
    with pytest.raises(DataError, match="39 graded answers in condition 'backbone'"):
        pair_answers(_answers(text=BACKBONE).head(39), vlm, _questions(), RECOGNITION)
    with pytest.raises(DataError, match="'blank'"):
        pair_answers(_answers(text=BACKBONE), _answers(text=BACKBONE, image=IMAGE), _questions(), RECOGNITION)


def test_two_by_two_counts() -> None:
    assert two_by_two([True, True, False, False, True], [True, False, True, False, False]) == {
        "both_right": 1,
        "lost": 2,
        "gained": 1,
        "both_wrong": 1,
    }
