import polars as pl
import pytest

from twohop.analysis import choose_pair, summarise_outcomes
from twohop.store import schemas

PAIRS = [(8, 2), (12, 4)]


def outcome(entity: str, intervention: str, correct: bool, **more: object) -> dict[str, object]:
    base: dict[str, object] = dict.fromkeys([*schemas.OUTCOMES, "entity_id"])
    base |= {"question_id": f"{entity}/capital", "entity_id": entity, "set": "lost", "split": "test", "seed": 0}
    base |= {"first_layer": 0, "last_layer": 5, "answer_text": "", "span_length": 1}
    return base | {"intervention": intervention, "correct": correct} | more


def outcomes(*rows: dict[str, object]) -> pl.DataFrame:
    return pl.DataFrame(list(rows), schema={**schemas.OUTCOMES, "entity_id": pl.String})


def back(entity: str, pair: tuple[int, int], correct: bool, split: str) -> dict[str, object]:
    return outcome(entity, "back_patch", correct, from_layer=pair[0], first_layer=pair[1], split=split)


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
    rows += [outcome(e, "wrong_entity", False, moved_to_donor=e == "a", moved_plain=False) for e in "abcd"]
    rows += [outcome(e, "sweep", n == 2, last_layer=n - 1) for e in "ab" for n in (1, 2)]
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
    assert found["moved_to_donor_without_patch"]["value"] == 0.0
    assert found["moved_by_patch"]["value"] == 0.25
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


def scored(entity: str, intervention: str, change: float, **more: object) -> dict[str, object]:
    logprobs = {"right_logprob": -3.0 + change, "right_logprob_plain": -3.0}
    return outcome(entity, intervention, False, **logprobs, **more)


def test_changes_of_log_probability_are_means_with_intervals():
    rows = [scored(f"e{i}", "heuristic", i % 3) for i in range(12)]
    rows += [scored(f"e{i}", "none", 0.0) for i in range(12)]
    rows += [scored("x", "heuristic", -2.0, set="kept")]
    found = summarise_outcomes(outcomes(*rows), PAIRS, 500, 0)["logprob"]
    change = found["lost"]["heuristic"]
    assert change["value"] == pytest.approx(1.0)
    assert change["low"] < 1.0 < change["high"]
    assert (change["n_entities"], change["n_answers"]) == (12, 12)
    assert "none" not in found["lost"]
    assert found["kept"]["heuristic"]["value"] == pytest.approx(-2.0)
    assert found["lost"]["back_patch"]["value"] is None


def test_change_of_back_patching_is_that_of_the_chosen_pair_on_test():
    def of(entity: str, pair: tuple[int, int], right: bool, split: str, change: float) -> dict[str, object]:
        row = scored(entity, "back_patch", change, from_layer=pair[0], first_layer=pair[1], split=split)
        return row | {"correct": right}

    rows = [of("d", PAIRS[0], False, "dev", 9.0), of("d", PAIRS[1], True, "dev", 9.0)]
    rows += [of("a", PAIRS[0], True, "test", 5.0), of("a", PAIRS[1], False, "test", 0.5)]
    assert summarise_outcomes(outcomes(*rows), PAIRS, 200, 0)["logprob"]["lost"]["back_patch"]["value"] == 0.5


def test_wrong_entity_is_measured_by_the_odds_of_its_fact():
    donor = {"donor_logprob": -1.0, "donor_logprob_plain": -4.0, "moved_to_donor": True, "moved_plain": True}
    rows = [scored(f"e{i}", "wrong_entity", -2.0, **donor) for i in range(6)]
    found = summarise_outcomes(outcomes(*rows), PAIRS, 200, 0)
    assert found["towards_donor"]["value"] == pytest.approx(5.0)
    # the answers were the donor's fact before, so the patch moved none of them
    assert (found["moved_to_donor"]["value"], found["moved_by_patch"]["value"]) == (1.0, 0.0)


def test_grid_compares_cells_on_the_same_questions():
    cell = {"site": "mlp_write", "span": "heuristic", "first_layer": 0}
    rows = [scored(e, "sweep", 1.0, **cell, last_layer=0) for e in "abc"]
    rows += [scored(e, "sweep", 2.0, **cell, last_layer=1) | {"correct": None} for e in "ab"]
    rows += [scored(e, "sweep", 3.0, **cell | {"span": "random"}, last_layer=1) | {"correct": None} for e in "ab"]
    found = summarise_outcomes(outcomes(*rows), PAIRS, 200, 0)
    assert [(c["span"], c["last_layer"], c["value"], c["n_answers"]) for c in found["grid"]] == [
        ("heuristic", 0, 1.0, 2),
        ("heuristic", 1, 2.0, 2),
        ("random", 1, 3.0, 2),
    ]
    assert [(s["layers"], s["n_answers"]) for s in found["sweep"]] == [(1, 3)]
    assert found["n_lost"] == 3
