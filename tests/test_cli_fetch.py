"""`twohop fetch_entities` as a user meets it, before anything is asked of a service."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

PARAMS = Path(__file__).parent / "tiny/params.yaml"
WIKIDATA = {"kind": "wikidata", "folder": "data/own/art", "item_class": "painting", "contact": "me@example.org"}


@pytest.fixture
def fetch(tmp_path):
    """Run the command on params whose source is the given one; its exit code and what it says."""

    def run(source: object, *words: str) -> tuple[int, str]:
        params = yaml.safe_load(PARAMS.read_text())
        params["curate_entities"]["source"] = source
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
        command = [sys.executable, "-m", "twohop", "fetch_entities", *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert "Traceback" not in done.stderr
        return done.returncode, done.stderr

    return run


def test_source_that_fetches_nothing(fetch):
    code, said = fetch("flags")
    assert code == 2
    assert "this source fetches nothing" in said


def test_services_are_not_asked_without_a_contact(fetch):
    code, said = fetch(WIKIDATA | {"contact": ""})
    assert code == 2
    assert "params.yaml, curate_entities.source.contact" in said


def test_unknown_class_names_the_known_ones(fetch):
    code, said = fetch(WIKIDATA | {"item_class": "mountain"})
    assert code == 2
    assert "allowed: one of landmark, painting" in said
