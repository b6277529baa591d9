import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from twohop.analysis import (
    Planner,
    SpanScores,
    patching_sets,
    sample_sets,
    span_mask,
    windows,
    wrong_donors,
)
from twohop.analysis._patching import heuristic_start, random_start
from twohop.errors import DataError
from twohop.store import schemas

scores_lists = st.lists(st.floats(0, 100, allow_nan=False), min_size=1, max_size=30)


@given(scores_lists, st.data())
def test_heuristic_span_has_the_largest_sum_and_fits(scores: list[float], data: st.DataObject):
    length = data.draw(st.integers(1, len(scores)))
    start = heuristic_start(np.array(scores), length)
    sums = [sum(scores[i : i + length]) for i in range(len(scores) - length + 1)]
    assert 0 <= start < len(sums)
    assert sums[start] == pytest.approx(max(sums), rel=1e-9)


@given(st.integers(1, 12), st.integers(1, 12), st.floats(0.1, 3.0))
def test_heuristic_span_of_equal_scores_is_the_first(n: int, length: int, value: float):
    if length <= n:
        assert heuristic_start(np.full(n, value), length) == 0


def test_heuristic_span_moves_with_its_peak():
    scores = np.array([0.0, 1.0, 0.0, 4.0, 3.0, 0.0])
    assert heuristic_start(scores, 2) == 3
    assert heuristic_start(scores, 1) == 3
    assert heuristic_start(scores, 6) == 0


@given(st.integers(1, 30), st.data(), st.integers(0, 99))
def test_random_span_fits_and_repeats(n: int, data: st.DataObject, seed: int):
    length = data.draw(st.integers(1, n))
    start = random_start(n, length, [seed, 1])
    assert 0 <= start <= n - length
    assert start == random_start(n, length, [seed, 1])


def test_random_spans_reach_every_start():
    assert {random_start(6, 3, [seed]) for seed in range(100)} == {0, 1, 2, 3}


@pytest.mark.parametrize("length", [0, 4])
def test_spans_that_do_not_fit_are_refused(length: int):
    with pytest.raises(DataError, match="does not fit"):
        heuristic_start(np.ones(3), length)
    with pytest.raises(DataError, match="does not fit"):
        random_start(3, length, [0])


def spans(rows: dict[tuple[str, int], list[float]]) -> pl.DataFrame:
    table = [{"question_id": q, "layer": layer, "position_scores": s} for (q, layer), s in rows.items()]
    return pl.DataFrame(table, schema=schemas.SPANS)


def test_span_scores_sum_the_donor_layers_only():
    table = spans({("a", 0): [1.0, 2.0], ("a", 1): [10.0, 20.0], ("a", 2): [500.0, 0.0]})
    found = SpanScores(table, layers=range(2))
    assert found.scores("a", 2).tolist() == [11.0, 22.0]
    assert "a" in found
    assert "b" not in found


def test_unscored_question_gets_the_mean_profile():
    found = SpanScores(spans({("a", 0): [1.0, 2.0], ("b", 0): [3.0, 4.0, 8.0]}), layers=[0])
    assert found.scores("c", 2).tolist() == [2.0, 3.0]
    assert found.scores("c", 5).tolist() == [2.0, 3.0, 8.0, 0.0, 0.0]


def test_no_scores_at_all_give_zeros():
    assert SpanScores(spans({}), layers=range(3)).scores("a", 4).tolist() == [0.0] * 4


def test_scores_of_another_prompt_are_refused():
    with pytest.raises(DataError, match="attribution has 2 positions, the prompt 3"):
        SpanScores(spans({("a", 0): [1.0, 2.0]}), layers=[0]).scores("a", 3)


def planner() -> Planner:
    table = spans({("a", 0): [0.0, 1.0, 5.0, 5.0, 0.0]})
    lengths = {"a": 2, "long": 9}
    return Planner(SpanScores(table, [0]), {"a": 5, "b": 3}, {"a": 4, "b": 1}, lengths.__getitem__, (0,), seed=7)


def test_plans_name_span_donor_and_depth():
    plan = planner().heuristic("a", "heuristic", "a")
    assert (plan.span_start, plan.span_length, plan.donor_id, plan.receiver_layers) == (2, 2, "a", (0,))
    assert (plan.donor, plan.donor_run, plan.site, plan.span) == ("backbone", "text", "mlp_write", "heuristic")
    swept = planner().heuristic("a", "sweep", "a", (3, 4), "attn_write")
    assert (swept.span_start, swept.donor_layers, swept.site) == (2, (3, 4), "attn_write")
    own, mean, zero = (planner().heuristic("a", name, "a") for name in ("own_text", "mean", "zero"))
    assert [(i.donor, i.donor_id) for i in (own, mean, zero)] == [("own", "a"), ("mean", None), ("zero", None)]


def test_name_longer_than_the_prompt_fills_it():
    plan = planner().heuristic("b", "wrong_entity", "long")
    assert (plan.span_start, plan.span_length) == (0, 3)


def test_last_image_tokens_are_a_span_within_the_picture():
    plan = planner().image_last("a", "sweep")
    assert (plan.span, plan.span_start, plan.span_length) == ("image_last", 2, 2)


def test_back_patch_reads_later_and_writes_earlier_over_the_whole_picture():
    plan = planner().back_patch("a", (8, 2))
    assert (plan.donor, plan.donor_run, plan.donor_id, plan.site) == ("own", "image", "a", "resid_post")
    assert (plan.donor_layers, plan.receiver_layers, plan.span_start, plan.span_length) == ((8,), (2,), 0, 4)


def test_unchanged_writes_what_it_reads_on_the_whole_prompt():
    plan = planner().unchanged("a", "mlp_write", (0, 1))
    assert (plan.donor_layers, plan.receiver_layers, plan.span_length) == ((0, 1), (0, 1), 5)


def test_random_plans_differ_between_draws_only():
    starts = [planner().random("a", draw).span_start for draw in range(40)]
    assert set(starts) == {0, 1, 2, 3}
    assert starts == [planner().random("a", draw).span_start for draw in range(40)]


def test_windows_are_depths_and_single_layers_without_repeats():
    assert windows([4, 1, 2, 30], 4) == [(0,), (0, 1), (0, 1, 2, 3), (1,), (3,)]
    assert windows([9], 4) == []


def test_span_mask_marks_each_row():
    mask = span_mask([1, None, 0], [2, 3, 1], 4)
    assert mask.tolist() == [[False, True, True, False], [False] * 4, [True, False, False, False]]
    assert mask.dtype == torch.bool


@pytest.mark.parametrize("start", [-1, 3])
def test_span_outside_its_row_is_refused(start: int):
    with pytest.raises(DataError, match="leaves the row"):
        span_mask([start], [2], 4)


def question(entity: str, answer: str, split: str = "test", tokens: int = 2) -> dict[str, object]:
    return {
        "question_id": f"{entity}/capital",
        "entity_id": entity,
        "relation": "capital",
        "name": entity,
        "before": "the country ",
        "after": ". The capital is",
        "answer": answer,
        "answer_aliases": [answer],
        "picture_id": f"{entity}/flat",
        "split": split,
        "n_name_tokens": tokens,
        "corrupted_id": None,
        "clean_token": None,
        "corrupted_token": None,
    }


def questions(*rows: dict[str, object]) -> pl.DataFrame:
    return pl.DataFrame(list(rows), schema=schemas.QUESTIONS)


def answers(condition: str, right: dict[str, bool]) -> pl.DataFrame:
    rows = [
        {
            "question_id": f"{e}/capital",
            "entity_id": e,
            "relation": "capital",
            "condition": condition,
            "prompt": "",
            "answer_text": f"says {e}",
            "correct": ok,
            "matched_alias": None,
        }
        for e, ok in right.items()
    ]
    return pl.DataFrame(rows, schema=schemas.ANSWERS)


def recognition(rows: list[tuple[str, int, bool, bool]]) -> pl.DataFrame:
    table = [
        {
            "picture_id": f"{e}/flat",
            "entity_id": e,
            "art_source": "noto",
            "style": "noto_original",
            "prompt_id": prompt,
            "answer_text": "",
            "correct": named,
            "matched_alias": None,
            "ranked_name": "",
            "ranked_correct": ranked,
        }
        for e, prompt, named, ranked in rows
    ]
    return pl.DataFrame(table, schema=schemas.RECOGNITION)


def test_sets_are_lost_and_kept():
    table = questions(*[question(e, e.upper()) for e in "abcdef"])
    text = answers("text", dict.fromkeys("abcde", True) | {"f": False})
    image = answers("image", {"a": False, "b": False, "c": False, "d": False, "e": True, "f": True})
    seen = [("a", 0, True, False), ("b", 0, False, False), ("b", 1, False, True), ("c", 0, False, False)]
    found = patching_sets(table, text, image, recognition(seen))
    assert dict(found.select("entity_id", "set").iter_rows()) == {"a": "lost", "b": "lost", "e": "kept"}
    assert found.filter(pl.col("entity_id") == "a")["image_answer"].to_list() == ["says a"]


def test_sampling_is_seeded_and_bounded():
    table = questions(*[question(f"e{i}", "x") for i in range(20)])
    sets = table.with_columns(pl.Series("set", ["lost"] * 15 + ["kept"] * 5))
    drawn = sample_sets(sets, 8, seed=1)
    assert dict(drawn.group_by("set").len().iter_rows()) == {"lost": 8, "kept": 5}
    assert drawn.equals(sample_sets(sets, 8, seed=1))
    assert not drawn.equals(sample_sets(sets, 8, seed=2))


def test_sampling_nothing_gives_nothing():
    empty = questions().with_columns(pl.lit("lost").alias("set"))
    assert sample_sets(empty, 5, 0).is_empty()


def test_wrong_donor_has_another_answer_is_known_and_as_long():
    table = questions(
        question("a", "X"), question("b", "x"), question("c", "Y"), question("d", "Z", tokens=3), question("e", "W")
    )
    known = {"a/capital", "b/capital", "c/capital", "d/capital"}
    assert wrong_donors(table[:1], table, known, 0) == {"a/capital": "c/capital"}
    assert wrong_donors(table[:1], table, known - {"c/capital"}, 0) == {"a/capital": "d/capital"}
    assert wrong_donors(table[:1], table, {"a/capital", "b/capital"}, 0) == {}
