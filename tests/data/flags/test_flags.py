import subprocess
import sys

import pytest

from twohop.data import FlagsSource, fold
from twohop.data.flags._flags import ART, state_codes, state_names
from twohop.errors import DataError

RELATIONS = ["capital", "continent", "language", "currency"]
READS_RIGHT = {
    # code: name, capital, continent, language, currency; written by hand, not taken from the sources
    "FR": ("France", "Paris", "Europe", "French", "euro"),
    "BR": ("Brazil", "Brasília", "South America", "Portuguese", "real"),
    "CZ": ("Czech Republic", "Prague", "Europe", "Czech", "koruna"),
    "TR": ("Turkey", "Ankara", "Asia", "Turkish", "lira"),
    "US": ("United States", "Washington", "North America", "English", "dollar"),
    "GB": ("United Kingdom", "London", "Europe", "English", "pound"),
    "CI": ("Ivory Coast", "Yamoussoukro", "Africa", "French", "franc"),
    "KZ": ("Kazakhstan", "Astana", "Asia", "Kazakh", "tenge"),
    "IN": ("India", "New Delhi", "Asia", "Hindi", "rupee"),
    "CH": ("Switzerland", "Bern", "Europe", "German", "franc"),
    "CN": ("China", "Beijing", "Asia", "Chinese", "yuan"),
    "KE": ("Kenya", "Nairobi", "Africa", "Swahili", "shilling"),
    "AU": ("Australia", "Canberra", "Oceania", "English", "dollar"),
    "EG": ("Egypt", "Cairo", "Africa", "Arabic", "pound"),
    "PE": ("Peru", "Lima", "South America", "Spanish", "sol"),
    "MM": ("Myanmar", "Naypyidaw", "Asia", "Burmese", "kyat"),
    "UA": ("Ukraine", "Kyiv", "Europe", "Ukrainian", "hryvnia"),
    "LC": ("Saint Lucia", "Castries", "North America", "English", "dollar"),
    "ZA": ("South Africa", "Cape Town", "Africa", "Zulu", "rand"),
    "TL": ("East Timor", "Dili", "Asia", "Portuguese", "dollar"),
}


@pytest.fixture(scope="module")
def facts():
    return {(f.entity_id.removeprefix("flags:"), f.relation): f for f in FlagsSource().facts(RELATIONS)}


@pytest.fixture(scope="module")
def entities():
    return {e.entity_id.removeprefix("flags:"): e for e in FlagsSource().entities()}


def test_195_states_with_every_relation(facts, entities):
    assert len(state_codes()) == len(set(state_codes())) == 195
    assert set(entities) == set(state_codes())
    assert set(facts) == {(c, r) for c in state_codes() for r in RELATIONS}


@pytest.mark.parametrize("code", READS_RIGHT)
def test_twenty_countries_read_right(code, facts, entities):
    name, *answers = READS_RIGHT[code]
    assert entities[code].name == name
    for relation, answer in zip(RELATIONS, answers, strict=True):
        assert fold(answer) in {fold(a) for a in facts[code, relation].answer_aliases}, relation


@pytest.mark.parametrize(
    ("code", "alias"),
    [
        ("CZ", "Czechia"),
        ("CI", "Côte d'Ivoire"),
        ("TR", "Türkiye"),
        ("US", "USA"),
        ("KN", "St. Kitts and Nevis"),
        ("CV", "Cabo Verde"),
        ("MM", "Burma"),
        ("ST", "São Tomé and Príncipe"),
    ],
)
def test_other_names_that_people_write(code, alias):
    assert alias in state_names(code)


@pytest.mark.parametrize(
    ("code", "relation", "alias"),
    [
        ("BE", "language", "Dutch"),
        ("BE", "language", "German"),
        ("ZA", "language", "Afrikaans"),
        ("CN", "language", "Mandarin"),
        ("BO", "capital", "La Paz"),
        ("MX", "continent", "Americas"),
        ("CU", "continent", "Caribbean"),
        ("RU", "continent", "Asia"),
        ("AR", "currency", "peso"),
        ("AR", "currency", "Argentine peso"),
        ("IL", "currency", "new shekel"),
    ],
)
def test_every_right_answer_counts(code, relation, alias, facts):
    assert alias in facts[code, relation].answer_aliases


def test_america_alone_is_no_continent_it_stands_inside_the_other_one(facts):
    assert "America" not in facts["MX", "continent"].answer_aliases


def test_names_given_away_are_marked(facts):
    marked = {c for c, r in facts if r == "capital" and facts[c, r].name_in_answer}
    whole = {"AD", "DJ", "GT", "KW", "LU", "MX", "MC", "PA", "SM", "SG", "VA"}
    assert whole | {"TN", "ST", "GW"} <= marked
    assert not marked & {"FR", "BR", "DZ", "SV", "GB"}
    assert facts["RU", "language"].name_in_answer
    assert not facts["FR", "language"].name_in_answer
    assert not facts["AU", "currency"].name_in_answer, "'dollar' is enough and says nothing"


def test_facts_carry_their_origin(facts):
    for fact in facts.values():
        assert "GeoNames" in fact.source or "CLDR" in fact.source
        assert fact.source_version
        assert fact.licence in ("CC BY 4.0", "Unicode-3.0")
        assert fact.url.startswith("https://")
    assert "mended" in facts["KZ", "capital"].source
    assert "mended" not in facts["FR", "capital"].source


def test_six_pictures_of_three_sources_each_with_its_licence():
    pictures = list(FlagsSource().pictures())
    assert len({p.picture_id for p in pictures}) == len(pictures) == 195 * 6
    assert {p.art_source for p in pictures} == {"flag-icons", "circle-flags", "noto"}
    assert {p.style for p in pictures} == set(ART)
    assert all(p.licence and p.author and p.source_page for p in pictures)


def test_unknown_relation_is_a_data_error():
    with pytest.raises(DataError, match="anthem"):
        list(FlagsSource().facts(["anthem"]))


def test_known_look_alikes_are_found(entities):
    def alike(code):
        return {e.removeprefix("flags:") for e in entities[code].look_alikes}

    assert "ID" in alike("MC")
    assert {"RO", "MD", "AD"} <= alike("TD")
    assert "GH" in alike("BO")
    assert {"SY", "IQ", "YE"} <= alike("EG")
    assert "SN" in alike("ML")
    assert not any(alike(c) for c in ("FR", "BR", "JP", "CA", "KE"))
    for code in entities:
        assert all(code in alike(other) for other in alike(code)), "symmetric"


def test_a_flag_that_two_sources_draw_alike_is_repeated():
    assert {"flags:CH", "flags:VA", "flags:CD"} == FlagsSource().repeated()


def test_the_flags_package_is_never_imported():
    code = (
        "import sys; from twohop.data import FlagsSource, render_flag; render_flag('FR', 'simple', 32, (0, 0, 0));"
        "list(FlagsSource().facts(['capital'])); sys.exit('mpl_flags' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
