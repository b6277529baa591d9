"""Alias match on normalised words (study, section 1)."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from twohop.analysis import first_line, grade, words
from twohop.errors import DataError

WORD = st.text(st.characters(categories=["Lu", "Ll", "Nd"], max_codepoint=0xFF), min_size=1, max_size=8)
PHRASE = st.lists(WORD, min_size=1, max_size=4).map(" ".join)


@pytest.mark.parametrize(
    ("answer", "aliases", "matched"),
    [
        (" Paris.", ["Paris"], "Paris"),
        ("the city of PARIS, in France", ["Paris"], "Paris"),
        ("Brasilia", ["Brasília"], "Brasília"),
        ("BRASÍLIA", ["Brasilia"], "Brasilia"),
        ("the Bahamas", ["Bahamas"], "Bahamas"),
        ("Gambia", ["The Gambia"], "The Gambia"),
        ("N'Djamena", ["N\u2019Djamena"], "N\u2019Djamena"),
        ("Port au Prince", ["Port-au-Prince"], "Port-au-Prince"),
        ("France's capital", ["France"], "France"),
        ("France\u2019s capital", ["France"], "France"),
        ("in the U.S.A.", ["USA"], "USA"),
        ("Trinidad & Tobago", ["Trinidad and Tobago"], "Trinidad and Tobago"),
        ("\uff30\uff21\uff32\uff29\uff33", ["Paris"], "Paris"),
        ("\n Paris\nLondon", ["Paris"], "Paris"),
        ("London\nParis", ["Paris"], None),
        ("Nigeria", ["Niger"], None),
        ("Parisian", ["Paris"], None),
        ("", ["Paris"], None),
        ("New, York", ["New York"], "New York"),
        ("York New", ["New York"], None),
    ],
)
def test_matches_whole_words_of_the_first_line(answer: str, aliases: list[str], matched: str | None) -> None:
    assert grade(answer, aliases) == matched


def test_the_longest_alias_is_recorded() -> None:
    assert grade("Mandarin Chinese is spoken", ["Chinese", "Mandarin Chinese", "Mandarin"]) == "Mandarin Chinese"
    assert grade("Mandarin", ["Chinese", "Mandarin"]) == "Mandarin"


def test_a_match_inside_a_longer_rival_does_not_count() -> None:
    rivals = ["Equatorial Guinea", "Guinea-Bissau", "Congo"]
    assert grade("Guinea", ["Guinea"]) == "Guinea"
    assert grade("Equatorial Guinea", ["Guinea"], rivals) is None
    assert grade("Guinea-Bissau or Guinea", ["Guinea"], rivals) == "Guinea"
    assert grade("Congo", ["Congo"], ["Congo"]) == "Congo"


def test_an_alias_without_words_is_refused() -> None:
    with pytest.raises(DataError, match="holds no word"):
        grade("Paris", ["Paris", " - "])


def test_an_alias_of_articles_only_keeps_them() -> None:
    assert words("The") == ("the",)
    assert words("the A team") == ("team",)


@given(PHRASE)
def test_every_alias_matches_itself_in_any_case(alias: str) -> None:
    assert grade(alias, [alias]) == alias
    assert grade(f"  {alias.upper().lower()}.", [alias]) == alias


@given(PHRASE, PHRASE, PHRASE)
def test_a_match_survives_surrounding_words(before: str, alias: str, after: str) -> None:
    assume(not set(words(alias)) <= {"a", "an", "the"})
    assert grade(f"{before} {alias}, {after}", [alias]) == alias


@given(st.text(max_size=30), PHRASE)
def test_a_match_means_that_the_words_stand_there_in_a_row(answer: str, alias: str) -> None:
    joined = " " + " ".join(words(first_line(answer))) + " "
    assert (grade(answer, [alias]) is not None) == (f" {' '.join(words(alias))} " in joined)


@given(st.text(max_size=40))
def test_normalising_twice_changes_nothing(text: str) -> None:
    once = words(text)
    assert words(" ".join(once)) == once
