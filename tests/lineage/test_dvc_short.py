"""dvc.yaml of a params.yaml in the short form: every stage tracks a key that the file has."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

TOP = Path(__file__).parents[2]
COMMIT = "0a1b2c3d4e" * 4
MODELS = {
    "my-vlm": {"vlm": "some/vlm", "revision": COMMIT, "backbone": "some/llm", "backbone_revision": COMMIT},
    "twin": {"vlm": "./twin", "backbone": "some/llm", "backbone_revision": COMMIT},
    "native": {"vlm": "./native"},
    "paper": {"catalog": "llava-1.5-7b", "revision": COMMIT, "backbone_revision": COMMIT},
}
READ = """
import json
from dvc.repo import Repo
found = {}
for stage in Repo().index.stages:
    found[stage.addressing] = {"deps": [str(d) for d in stage.deps], "params": {}}
    for dep in stage.deps:
        if hasattr(dep, "params") and str(dep) == "params.yaml":
            values = dep.read_params(flatten=True)
            found[stage.addressing]["params"] = {k: values.get(k) is not None for k in dep.params}
print(json.dumps(found))
"""


def run(tree: Path, *words: str) -> str:
    """A program in the project's own environment; what it prints."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {**os.environ, "PYTHONPATH": str(tree / "src"), "PATH": path}
    done = subprocess.run(words, cwd=tree, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("short") / "tree"
    shutil.copytree(TOP / "workflow", root / "workflow")
    shutil.copytree(TOP / "src", root / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(TOP / "Snakefile", root)
    params: dict[str, Any] = yaml.safe_load((TOP / "tests/tiny/params.yaml").read_text(encoding="utf-8"))
    (root / "params.yaml").write_text(yaml.safe_dump({**params, "models": {**params["models"], **MODELS}}))
    run(root, "git", "init", "-q")
    run(root, "dvc", "init", "-q")
    run(root, sys.executable, "-m", "twohop", "write_dvc")
    return root


@pytest.fixture(scope="module")
def stages(tree: Path) -> dict[str, Any]:
    return json.loads(run(tree, sys.executable, "-c", READ))


def test_every_stage_tracks_keys_that_the_file_has(stages: dict[str, Any]) -> None:
    keys = {(stage, key): there for stage, found in stages.items() for key, there in found["params"].items()}
    assert all(keys.values()), [k for k, there in keys.items() if not there]
    assert ("prepare_model@native-backbone", "models.native") in keys
    assert ("extract_activations@my-vlm-backbone", "models.my-vlm") in keys
    assert ("run_benchmark@tiny-llm", "models.tiny-llm") in keys
    assert ("run_benchmark@twin", "models.twin") in keys


def test_two_models_of_one_backbone_share_it(stages: dict[str, Any]) -> None:
    assert "prepare_model@twin-backbone" not in stages
    answers = "results/run_benchmark/my-vlm-backbone/answers.parquet"
    assert answers in stages["recover_recall@twin"]["deps"]
    assert answers in stages["recover_recall@my-vlm"]["deps"]


def test_the_shipped_catalogue_is_read_by_whom_it_serves(stages: dict[str, Any]) -> None:
    readers = {s for s, found in stages.items() if "src/twohop/catalog.yaml" in found["deps"]}
    assert {"prepare_model@paper", "prepare_model@paper-backbone", "plot_figures", "render_report"} <= readers
    assert not any(s.endswith(("@tiny-llm", "@my-vlm", "@native-backbone")) for s in readers)


def test_snakemake_plans_the_same_models(tree: Path) -> None:
    cards = [f"results/prepare_model/{m}/card.json" for m in ("my-vlm", "my-vlm-backbone", "native-backbone")]
    listed = run(tree, "snakemake", "-n", "-p", *cards)
    assert all(card in listed for card in cards)
    assert '"same_weights_as": "native"' in listed
