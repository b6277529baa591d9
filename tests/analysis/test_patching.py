import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from twohop.analysis import (
    Planner,
    SpanScores,
    choose_pair,
    patching_sets,
    sample_sets,
    span_mask,
    summarise_outcomes,
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
    found = SpanScores(table, layers=2)
    assert found.scores("a", 2).tolist() == [11.0, 22.0]
    assert "a" in found
    assert "b" not in found


def test_unscored_question_gets_the_mean_profile():
    found = SpanScores(spans({("a", 0): [1.0, 2.0], ("b", 0): [3.0, 4.0, 8.0]}), layers=1)
    assert found.scores("c", 2).tolist() == [2.0, 3.0]
    assert found.scores("c", 5).tolist() == [2.0, 3.0, 8.0, 0.0, 0.0]


def test_no_scores_at_all_give_zeros():
    assert SpanScores(spans({}), layers=3).scores("a", 4).tolist() == [0.0] * 4


def test_scores_of_another_prompt_are_refused():
    with pytest.raises(DataError, match="attribution has 2 positions, the prompt 3"):
        SpanScores(spans({("a", 0): [1.0, 2.0]}), layers=1).scores("a", 3)


def planner() -> Planner:
    table = spans({("a", 0): [0.0, 1.0, 5.0, 5.0, 0.0]})
    return Planner(SpanScores(table, 1), {"a": 5, "b": 3}, lambda i: {"a": 2, "long": 9}[i], layers=1, seed=7)


def test_plans_name_span_donor_and_depth():
    plan = planner().heuristic("a", "heuristic", "a")
    assert (plan.span_start, plan.span_length, plan.donor_id, plan.layers) == (2, 2, "a", 1)
    swept = planner().heuristic("a", "sweep", "a", layers=9)
    assert (swept.span_start, swept.layers) == (2, 9)
    assert planner().heuristic("a", "zero", "a").donor_id is None


def test_name_longer_than_the_prompt_fills_it():
    plan = planner().heuristic("b", "wrong_entity", "long")
    assert (plan.span_start, plan.span_length) == (0, 3)


def test_random_plans_differ_between_draws_only():
    starts = [planner().random("a", draw).span_start for draw in range(40)]
    assert set(starts) == {0, 1, 2, 3}
    assert starts == [planner().random("a", draw).span_start for draw in range(40)]


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


PAIRS = [(8, 2), (12, 4)]


def outcome(entity: str, intervention: str, correct: bool, **more: object) -> dict[str, object]:
    base: dict[str, object] = dict.fromkeys([*schemas.OUTCOMES, "entity_id"])
    base |= {"question_id": f"{entity}/capital", "entity_id": entity, "set": "lost", "split": "test", "seed": 0}
    base |= {"layers": 6, "answer_text": "", "span_length": 1}
    return base | {"intervention": intervention, "correct": correct} | more


def outcomes(*rows: dict[str, object]) -> pl.DataFrame:
    return pl.DataFrame(list(rows), schema={**schemas.OUTCOMES, "entity_id": pl.String})


def back(entity: str, pair: tuple[int, int], correct: bool, split: str) -> dict[str, object]:
    return outcome(entity, "back_patch", correct, from_layer=pair[0], layers=pair[1], split=split)


def test_pair_is_chosen_on_dev_and_reported_on_test():
    rows = [back("d", PAIRS[0], False, "dev"), back("d", PAIRS[1], True, "dev")]
    rows += [back(e, PAIRS[0], True, "test") for e in "ab"]
    rows += [back("a", PAIRS[1], False, "test"), back("b", PAIRS[1], False, "test")]
    rows += [back("c", PAIRS[0], False, "test"), back("c", PAIRS[1], True, "test")]
    found = summarise_outcomes(outcomes(*rows), PAIRS, 200, 0)["back_patch"]
    assert found["pair"] == (12, 4)
    assert found["test"]["value"] == pytest.approx(1 / 3)
    assert found["oracle_pair"] == (8, 2)
    assert found["oracle_pair_test"]["value"] == pytest.approx(2 / 3)
    assert found["oracle_any_pair_test"]["value"] == 1.0
    assert found["n_dev"] == 1


def test_first_of_equal_pairs_is_chosen():
    rows = [back("d", pair, True, "dev") for pair in PAIRS]
    assert choose_pair(outcomes(*rows), PAIRS) == PAIRS[0]
    assert choose_pair(outcomes(*rows), PAIRS[::-1]) == PAIRS[1]
    assert choose_pair(outcomes(), PAIRS) is None


def test_summary_counts_what_was_recovered_broken_and_moved():
    rows = [outcome(e, "heuristic", e in "ab") for e in "abcd"]
    rows += [outcome(e, "random", e == "a", seed=s) for e in "abcd" for s in range(5)]
    rows += [outcome(e, "heuristic", e == "x", set="kept") for e in "xy"]
    rows += [outcome(e, "wrong_entity", False, moved_to_donor=e == "a") for e in "abcd"]
    rows += [outcome(e, "sweep", n == 2, layers=n) for e in "ab" for n in (1, 2)]
    found = summarise_outcomes(outcomes(*rows), PAIRS, 500, 0)
    assert found["n_lost"] == 4
    assert found["n_kept"] == 2
    recovered = found["recovered"]["heuristic"]
    assert recovered["value"] == 0.5
    assert 0 <= recovered["low"] < 0.5 < recovered["high"] <= 1
    assert (recovered["n_entities"], recovered["n_questions"], recovered["n_answers"]) == (4, 4, 4)
    random = found["recovered"]["random"]
    assert (random["value"], random["n_questions"], random["n_answers"]) == (0.25, 4, 20)
    assert found["broken"]["heuristic"]["value"] == 0.5
    assert found["heuristic_minus_random"]["value"] == 0.25
    assert found["moved_to_donor"]["value"] == 0.25
    assert [(s["layers"], s["value"]) for s in found["sweep"]] == [(1, 0.0), (2, 1.0)]


def test_paired_difference_is_surer_than_its_parts():
    rows = [outcome(f"e{i}", name, i % 2 == 0) for i in range(30) for name in ("heuristic", "random")]
    found = summarise_outcomes(outcomes(*rows), PAIRS, 500, 0)["heuristic_minus_random"]
    assert (found["value"], found["low"], found["high"]) == (0.0, 0.0, 0.0)


def test_no_outcomes_at_all_give_counts_of_zero():
    found = summarise_outcomes(outcomes(), PAIRS, 200, 0)
    assert (found["n_lost"], found["n_kept"], found["recovered"], found["sweep"]) == (0, 0, {}, [])
    assert found["back_patch"]["pair"] is None
    assert found["back_patch"]["test"]["value"] is None
    assert found["heuristic_minus_random"]["value"] is None
