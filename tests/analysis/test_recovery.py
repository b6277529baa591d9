"""Cutting the written name, going on to the question, and the share of the loss that is closed."""

import polars as pl
import pytest

from twohop.analysis import beside_patch, closed_share, continue_with, cut_name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (" France.", "France"),
        ("France. The capital is Paris", "France"),
        ("France, a country in Europe", "France"),
        ("St. Lucia. It is", "St. Lucia"),
        ("the U.S. Virgin Islands.", "the U.S. Virgin Islands"),
        ("Guinea-Bissau (West Africa)", "Guinea-Bissau"),
        ("Côte d'Ivoire!", "Côte d'Ivoire"),
        ('"Kenya"', "Kenya"),
        ("\u201cKenya\u201d is", "Kenya"),
        ("\nKenya\nand more", "Kenya"),
        ("**Kenya**", "Kenya"),
        ("Sao  Tome and\tPrincipe", "Sao Tome and Principe"),
        ("", ""),
        ("...", ""),
    ],
)
def test_the_name_ends_where_its_sentence_does(text: str, name: str) -> None:
    assert cut_name(text) == name


def test_the_question_goes_on_after_the_name_or_is_asked_whole() -> None:
    on = continue_with("Consider the country ", ". The capital of this country is", "Chad")
    assert on == ". The capital of this country is"
    whole = continue_with("The capital of ", " is", "Chad")
    assert whole == ". The capital of Chad is"


def _recovered(direct: int, strategy: int, n: int = 40) -> pl.DataFrame:
    rows = [
        {"question_id": f"q{i}", "entity_id": f"e{i}", "strategy": s, "correct": i < k}
        for s, k in (("direct", direct), ("x", strategy))
        for i in range(n)
    ]
    return pl.DataFrame(rows)


def _backbone(right: int, n: int = 40) -> pl.DataFrame:
    return pl.DataFrame([{"question_id": f"q{i}", "correct": i < right} for i in range(n)])


def test_closed_share_of_known_counts() -> None:
    found = closed_share(_recovered(10, 20), _backbone(30), "x", 1000, 0)
    assert found.value == pytest.approx(0.5)
    assert found.low is not None
    assert found.high is not None
    assert 0.2 < found.low < 0.5 < found.high < 0.8
    assert closed_share(_recovered(10, 30), _backbone(30), "x", 200, 0).value == pytest.approx(1)
    worse = closed_share(_recovered(10, 5), _backbone(30), "x", 200, 0).value
    assert worse == pytest.approx(-0.25)


def test_no_degradation_means_nothing_to_close() -> None:
    assert closed_share(_recovered(30, 35), _backbone(30), "x", 200, 0).value is None
    shaky = closed_share(_recovered(30, 35), _backbone(31), "x", 500, 0)
    assert shaky.value == pytest.approx(5)
    assert shaky.low is None


def _patched(right: dict[str, bool]) -> pl.DataFrame:
    rows = [
        {"question_id": q, "intervention": "heuristic", "set": "lost", "correct": ok, "answer_text": ""}
        for q, ok in right.items()
    ]
    other = [{**rows[0], "set": "kept", "question_id": "q9"}, {**rows[0], "intervention": "random"}]
    return pl.DataFrame(rows + other)


def test_prompt_and_patch_are_compared_on_the_same_lost_facts() -> None:
    # the prompt is right on q0..q5; the patch was tried on q0..q7 and is right on q4..q6
    found = beside_patch(_recovered(0, 6, 10), _patched({f"q{i}": i in (4, 5, 6) for i in range(8)}), "x", 300, 0)
    assert (found["both"], found["only_prompt"], found["only_patch"], found["neither"]) == (2, 4, 1, 1)
    assert found["n_questions"] == found["prompt"]["n_questions"] == 8
    assert (found["prompt"]["value"], found["patch"]["value"]) == (6 / 8, 3 / 8)
    assert found["difference"]["value"] == pytest.approx(3 / 8)
    assert found["difference"]["low"] < 3 / 8 < found["difference"]["high"]


def test_prompt_and_patch_that_agree_everywhere_do_not_differ() -> None:
    found = beside_patch(_recovered(0, 3, 8), _patched({f"q{i}": i < 3 for i in range(8)}), "x", 300, 0)
    assert [found["difference"][k] for k in ("value", "low", "high")] == [0.0, 0.0, 0.0]


def test_without_a_lost_fact_nothing_is_compared() -> None:
    found = beside_patch(_recovered(0, 3, 8), _patched({"elsewhere": True}), "x", 300, 0)
    assert (found["n_questions"], found["both"], found["prompt"]["value"]) == (0, 0, None)
