"""The crate has what its profiles require.

The rules are the MUSTs of RO-Crate 1.1, Workflow RO-Crate 1.0, Process Run Crate 0.5 and Workflow Run Crate 0.5.
"""

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from twohop.errors import ArtifactError, TwohopError
from twohop.lineage import InputFile, read_book
from twohop.provenance import export

ROOT = Path(__file__).parents[2]
PROFILES = {
    "https://w3id.org/ro/wfrun/process/0.5",
    "https://w3id.org/ro/wfrun/workflow/0.5",
    "https://w3id.org/workflowhub/workflow-ro-crate/1.0",
}


@pytest.fixture
def crate(tmp_path: Path) -> Path:
    Path("workflow/rules").mkdir(parents=True)
    Path("src/twohop/steps").mkdir(parents=True)
    Path("Snakefile").write_text("rule all: input: []\n")
    Path("workflow/rules/a.smk").write_text("rule a: input: []\n")
    Path("src/twohop/steps/fetch_images.py").write_text("STEP = 1\n")
    Path("README.md").write_text("# x\n")
    assert export(Path("crate"), read_book().sorted()) == {"runs": 5, "files": 8}
    return tmp_path / "crate"


def _entities(crate: Path) -> dict[str, dict[str, Any]]:
    graph = json.loads((crate / "ro-crate-metadata.json").read_text())["@graph"]
    found = {e["@id"]: e for e in graph}
    assert len(found) == len(graph)
    return found


def _types(entity: dict[str, Any]) -> set[str]:
    return {entity["@type"]} if isinstance(entity["@type"], str) else set(entity["@type"])


def _ids(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value] if value else []
    return [v["@id"] for v in values]


def _of(entities: dict[str, dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [e for e in entities.values() if kind in _types(e)]


def test_metadata_is_flat_json_ld_and_every_reference_leads_somewhere(crate: Path) -> None:
    raw = json.loads((crate / "ro-crate-metadata.json").read_text())
    assert raw["@context"][0] == "https://w3id.org/ro/crate/1.1/context"
    entities = _entities(crate)
    outside = {"https://w3id.org/ro/crate/1.1", "https://bioschemas.org/profiles/FormalParameter/1.0-RELEASE"}
    outside |= {"https://doi.org/10.1093/bioinformatics/bts480", "https://snakemake.readthedocs.io"}
    named = set(re.findall(r'"@id": "([^"]+)"', (crate / "ro-crate-metadata.json").read_text()))
    assert named - set(entities) - outside == set()


def test_root_has_name_description_date_licence_and_profiles(crate: Path) -> None:
    entities = _entities(crate)
    root = entities["./"]
    assert _ids(entities["ro-crate-metadata.json"]["about"]) == ["./"]
    assert root["name"]
    assert root["description"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:]+\+00:00", root["datePublished"])
    assert _ids(root["license"]) == ["https://spdx.org/licenses/Apache-2.0"]
    assert set(_ids(root["conformsTo"])) == PROFILES
    assert all({"name", "version"} <= set(entities[p]) and "CreativeWork" in _types(entities[p]) for p in PROFILES)


def test_the_main_entity_is_a_workflow_file_with_a_language(crate: Path) -> None:
    entities = _entities(crate)
    (main,) = _ids(entities["./"]["mainEntity"])
    workflow = entities[main]
    assert main == "Snakefile"
    assert _types(workflow) == {"File", "SoftwareSourceCode", "ComputationalWorkflow"}
    (language,) = _ids(workflow["programmingLanguage"])
    assert "ComputerLanguage" in _types(entities[language])
    assert entities[language]["name"] == "Snakemake"


def test_every_data_entity_is_part_of_the_root_and_there_or_named_by_its_hash(crate: Path) -> None:
    entities = _entities(crate)
    parts = set(_ids(entities["./"]["hasPart"]))
    files = _of(entities, "File")
    assert {f["@id"] for f in files} <= parts
    for file in files:
        if file["@id"].startswith("ni:///sha-256;"):
            assert len(file["sha256"]) == 64
            continue
        path = crate / unquote(file["@id"])
        assert path.is_file(), path
        if "sha256" in file:
            assert hashlib.sha256(path.read_bytes()).hexdigest() == file["sha256"]
    assert not (crate / "results/fetch_images/pictures.zip").exists()


def test_each_run_is_an_action_with_instrument_object_result_and_times(crate: Path, runs) -> None:
    entities = _entities(crate)
    actions = {a["@id"]: a for a in _of(entities, "CreateAction")}
    assert set(actions) == {"#run", *(f"#run-{r.run_id}" for r in runs.values())}
    assert set(_ids(entities["./"]["mentions"])) == set(actions)
    for action in actions.values():
        (tool,) = _ids(action["instrument"])
        assert _types(entities[tool]) & {"SoftwareApplication", "SoftwareSourceCode", "ComputationalWorkflow"}
        assert entities[tool]["name"]
        assert action["startTime"] <= action["endTime"]
        for entity in [*_ids(action["object"]), *_ids(action["result"])]:
            assert _types(entities[entity]) & {"File", "Dataset", "Collection", "CreativeWork", "PropertyValue"}
    fetched = actions[f"#run-{runs['fetch_images'].run_id}"]
    assert _ids(fetched["instrument"]) == ["src/twohop/steps/fetch_images.py"]
    assert "results/curate_entities/facts.parquet" in _ids(fetched["object"])
    assert "results/fetch_images/manifest.parquet" in _ids(fetched["result"])


def test_the_whole_run_is_of_the_workflow_and_its_values_are_of_its_parameters(crate: Path) -> None:
    entities = _entities(crate)
    run, workflow = entities["#run"], entities["Snakefile"]
    assert _ids(run["instrument"]) == ["Snakefile"]
    for side, key in (("input", "object"), ("output", "result")):
        parameters = set(_ids(workflow[side]))
        for entity in _ids(run[key]):
            example = set(_ids(entities[entity]["exampleOfWork"]))
            assert example
            assert example <= parameters
            assert all(entity in _ids(entities[p]["workExample"]) for p in example)
        assert all(_of_parameter(entities[p]) for p in parameters)


def _of_parameter(parameter: dict[str, Any]) -> bool:
    kinds = {"File", "Text", "Integer", "Float", "Boolean"}
    return "FormalParameter" in _types(parameter) and parameter["additionalType"] in kinds and bool(parameter["name"])


def test_params_are_values_with_a_type(crate: Path) -> None:
    entities = _entities(crate)
    values = {e["name"]: e["value"] for e in _of(entities, "PropertyValue") if e["@id"].startswith("#value-")}
    assert values["fetch_images.seed"] == 1
    assert values["fetch_images.rate"] == 0.5
    assert values["fetch_images.on"] is True
    assert values["fetch_images.names"] == '["a"]'
    types = {e["name"]: e["additionalType"] for e in _of(entities, "FormalParameter")}
    kinds = [types[f"fetch_images.{k}"] for k in ("seed", "rate", "on", "names")]
    assert kinds == ["Integer", "Float", "Boolean", "Text"]


def test_pictures_and_facts_keep_their_own_licences(crate: Path) -> None:
    entities = _entities(crate)
    (facts,) = [f for f in _of(entities, "File") if f["name"] == "facts.parquet"]
    assert [entities[i]["name"] for i in _ids(facts["license"])] == ["CC BY 4.0"]
    (pictures,) = [f for f in _of(entities, "File") if f["name"] == "pictures.zip"]
    assert [entities[i]["name"] for i in _ids(pictures["license"])] == ["MIT"]


def test_the_crate_opens_as_html_without_a_network(crate: Path) -> None:
    page = (crate / "ro-crate-preview.html").read_text()
    assert "where does a vision-language model lose a fact" in page
    assert not re.search(r"<script|<link|<img|src=", page)


def test_data_are_copied_when_asked_for(crate: Path) -> None:
    export(Path("full"), read_book().sorted(), with_data=True)
    assert Path("full/results/fetch_images/pictures.zip").exists()


@pytest.mark.parametrize("path", ["../outside.txt", "/tmp/outside.txt", "results/../../outside.txt"])
def test_a_record_cannot_write_outside_of_the_crate(crate: Path, path: str) -> None:
    records = read_book().sorted()
    bad = replace(records[0], inputs=(InputFile("x", path, "0" * 64, None),))
    with pytest.raises(ArtifactError, match="outside of the project"):
        export(Path("new"), [bad, *records[1:]])
    assert not Path("new").exists()


def test_an_altered_artifact_a_used_folder_and_an_empty_project_are_refused(crate: Path) -> None:
    records = read_book().sorted()
    with pytest.raises(TwohopError, match="not an empty folder"):
        export(crate, records)
    with pytest.raises(TwohopError, match="no finished run"):
        export(Path("new"), [])
    Path("results/plot_figures/summary.json").write_text("{}")
    with pytest.raises(ArtifactError, match="not what its record says"):
        export(Path("new"), records)
    assert not Path("new").exists()
