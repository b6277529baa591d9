"""Alias match on normalised words (study, section 1)."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from twohop.analysis import first_line, grade, judge, words
from twohop.analysis._grading import ARTICLES
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
        ("St. John\u2019s", ["Saint John's"], "Saint John's"),
        ("Saint Kitts and Nevis", ["St Kitts & Nevis"], "St Kitts & Nevis"),
        ("Ste-Marie", ["Sainte Marie"], "Sainte Marie"),
        ("Mt. Fuji", ["Mount Fuji"], "Mount Fuji"),
        ("1,000 islands", ["1000"], "1000"),
        ("1000", ["1,000"], "1,000"),
        ("1,0000", ["10000"], None),
        ("three", ["3"], "3"),
        ("3 of them", ["Three"], "Three"),
        ("Twenty-one", ["21"], "21"),
        ("twenty, then two", ["22"], None),
        ("seventeen", ["17"], "17"),
        ("thirty", ["3"], None),
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
    assert grade("Guinea, not Guinea-Bissau", ["Guinea"], rivals) == "Guinea"
    assert grade("Guinea-Bissau or Guinea", ["Guinea"], rivals) is None
    assert grade("Congo", ["Congo"], ["Congo"]) == "Congo"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("Paris", "alias"),
        ("Paris or Lyon", "alias"),
        ("Paris, Lyon, Marseille", "alias"),
        ("Lyon or Paris", "another name first"),
        ("Lyon, Paris", "another name first"),
        ("not Lyon but Paris", "alias"),
        ("not Paris but Lyon", "denied"),
        ("not only Paris", "alias"),
        ("Paris is not Lyon", "alias"),
        ("I don't know, perhaps Paris", "refusal"),
        ("I\u2019m sorry, but I cannot tell", "refusal"),
        ("Sorry, I do not know if it is Paris.", "refusal"),
        ("Unknown", "refusal"),
        ("It is not possible to say", "refusal"),
        ("Paris, but I am not sure", "alias"),
        ("I know it: Paris", "alias"),
        ("Paris sur Lyon", "inside another name"),
        ("Berlin", "no match"),
        ("", "no match"),
    ],
)
def test_several_answers_denials_and_refusals(answer: str, reason: str) -> None:
    found = judge(answer, ["Paris"], ["Lyon", "Paris sur Lyon"])
    assert found.reason == reason
    assert (found.alias == "Paris") == (reason == "alias")


def test_of_several_answers_any_counts_where_no_rival_is_known() -> None:
    assert grade("English and French", ["French"]) == "French"


def test_a_name_that_sounds_like_a_refusal_is_a_name() -> None:
    assert grade("The Unknown Woman", ["Unknown Woman"]) == "Unknown Woman"


def test_an_alias_without_words_is_refused() -> None:
    with pytest.raises(DataError, match="holds no word"):
        grade("Paris", ["Paris", " - "])


def test_an_alias_of_articles_only_keeps_them() -> None:
    assert words("The") == ("the",)
    assert words("the A team") == ("team",)


NUMBER = st.integers(0, 10**9)
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
UNITS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@given(NUMBER)
def test_a_grouped_number_is_the_number(n: int) -> None:
    assert words(f"{n:,}") == (str(n),)
    assert grade(f"about {n:,}.", [str(n)]) == str(n)


@given(st.sampled_from(range(8)), st.sampled_from(range(9)), st.sampled_from([" ", "-"]))
def test_number_words_are_numbers(tens: int, unit: int, joint: str) -> None:
    assert words(f"{TENS[tens]}{joint}{UNITS[unit]}") == (str(20 + 10 * tens + unit + 1),)


@given(st.sampled_from(["St", "St.", "Saint", "ST.", "saint"]), st.sampled_from(["St", "St.", "Saint"]), PHRASE)
def test_saints_are_one(said: str, accepted: str, name: str) -> None:
    assume(not set(words(name)) <= {"a", "an", "the"})
    assert grade(f"{said} {name}", [f"{accepted} {name}"]) is not None


@given(st.sampled_from(["a", "an", "the", "The"]), PHRASE)
def test_an_article_changes_no_grade(article: str, name: str) -> None:
    assume(not set(words(name)) <= {"a", "an", "the"})
    assert grade(f"{article} {name}", [name]) == name
    assert grade(name, [f"{article} {name}"]) is not None


@given(
    st.sampled_from(["I don't know", "I cannot tell", "unknown", "I am not sure", "Sorry, I can\u2019t say"]), PHRASE
)
def test_nothing_after_a_refusal_counts(refusal: str, name: str) -> None:
    assume(set(words(name)).isdisjoint(words(refusal)))
    assert judge(f"{refusal}: {name}", [name]).reason in ("refusal", "denied")


@given(PHRASE, PHRASE, st.sampled_from([", ", " or ", " / ", "; "]))
def test_of_two_candidates_the_first_counts(one: str, other: str, joint: str) -> None:
    assume(set(words(one)).isdisjoint({*words(other), *ARTICLES}) and set(words(other)).isdisjoint(ARTICLES))
    both = f"{one}{joint}{other}"
    assume(words(both) in ((*words(one), *words(joint), *words(other)),))
    assume(judge(one, [one]).reason == judge(other, [other]).reason == "alias" and not _plays(one, other))
    assert grade(both, [one], [other]) == one
    assert grade(both, [other], [one]) is None


def _plays(*names: str) -> bool:
    """Whether a made-up name holds a word of the rules themselves."""
    return bool(
        {w for n in names for w in words(n)} & {"or", "not", "neither", "nor", "never", "isnt", "none", "unknown", "i"}
    )


@given(PHRASE)
def test_every_alias_matches_itself_in_any_case(alias: str) -> None:
    assert grade(alias, [alias]) == alias
    assert grade(f"  {alias.upper().lower()}.", [alias]) == alias


@given(PHRASE, PHRASE, PHRASE)
def test_a_match_survives_surrounding_words(before: str, alias: str, after: str) -> None:
    assume(not set(words(alias)) <= {"a", "an", "the"})
    joined = words(f"{before} {alias}, {after}")
    assume(words(alias) == joined[len(words(before)) :][: len(words(alias))] and not _plays(before))
    assert grade(f"{before} {alias}, {after}", [alias]) == alias


@given(st.text(max_size=30), PHRASE)
def test_a_match_means_that_the_words_stand_there_in_a_row(answer: str, alias: str) -> None:
    assume(not _plays(answer))
    joined = " " + " ".join(words(first_line(answer))) + " "
    assert (grade(answer, [alias]) is not None) == (f" {' '.join(words(alias))} " in joined)


@given(st.text(max_size=40))
def test_normalising_twice_changes_nothing(text: str) -> None:
    once = words(text)
    assert words(" ".join(once)) == once
