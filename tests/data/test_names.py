import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twohop.data import fold, gives_away, spellings


@pytest.mark.parametrize(
    ("text", "folded"),
    [("Côte d\u2019Ivoire", "cote d ivoire"), ("  St.  John's ", "st john s"), ("São_Tomé", "sao tome"), ("!?", "")],
)
def test_fold(text, folded):
    assert fold(text) == folded


@settings(max_examples=50, deadline=None)
@given(st.text())
def test_fold_is_idempotent(text):
    assert fold(fold(text)) == fold(text)


def test_spellings_keep_the_first_and_repeat_none():
    made = spellings(["St. Kitts & Nevis", "Saint Kitts and Nevis", "Türkiye"])
    assert made[0] == "St. Kitts & Nevis"
    assert len(set(made)) == len(made)
    assert {"St. Kitts and Nevis", "Saint Kitts and Nevis", "Turkiye"} <= set(made)


@pytest.mark.parametrize(
    ("names", "answers", "expected"),
    [
        (["Mexico"], ["Mexico City"], True),
        (["Tunisia"], ["Tunis"], True),
        (["Guinea-Bissau"], ["Bissau"], True),
        (["Australia"], ["dollar", "Australian dollar"], False),
        (["Australia"], ["Australian dollar"], True),
        (["France"], ["Paris"], False),
        (["France"], ["", "!"], False),
    ],
)
def test_gives_away(names, answers, expected):
    assert gives_away(names, answers) is expected
