"""The shipped prompts."""

from pathlib import Path

import pytest
import yaml

from twohop.config import parse_params
from twohop.config.templates import find_template, shipped_templates
from twohop.errors import ConfigError

STARTS = {"en": "Consider ", "de": "Betrachte ", "fr": "Considère "}
PARAMS = Path(__file__).parents[1] / "tiny/params.yaml"
TABLE = {"kind": "table", "entities": "own/t.csv", "pictures": "own/p"}


@pytest.mark.parametrize("language", STARTS)
def test_every_prompt_holds_the_entity_once_and_ends_where_the_answer_starts(language):
    found = shipped_templates(language)
    assert found.keys() == shipped_templates("en").keys()
    assert len(found) == len(set(found.values())) == 23
    for text in found.values():
        assert text.count("{entity}") == 1
        assert text.startswith(STARTS[language])
        assert text[-1].isalpha()


def params(source, relations, **questions):
    values = yaml.safe_load(PARAMS.read_text())
    values["curate_entities"] |= {"source": source, "relations": relations}
    values["build_questions"] |= {"templates": {}, **questions}
    return parse_params(values, "params.yaml")


def test_relation_without_a_template_takes_the_shipped_one_of_the_language():
    found = params(TABLE, ["painter", "museum"], language="de", templates={"museum": "{entity} hängt in"})
    assert find_template(found.build_questions, "painter") == (
        "Betrachte das folgende Gemälde: {entity}. Dieses Gemälde wurde gemalt von"
    )
    assert find_template(found.build_questions, "museum") == "{entity} hängt in"


def test_b1_relation_that_has_none_is_refused_before_the_first_job():
    with pytest.raises(ConfigError, match="none for taste, colour; allowed: a text of yours, or one of capital, "):
        params(TABLE, ["taste", "painter", "colour"])


def test_embedded_answers_are_english():
    with pytest.raises(ConfigError, match=r"build_questions\.language: is 'de'; allowed: en"):
        params("flags", ["capital"], language="de")
