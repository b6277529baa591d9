"""Rules, DVC stages, steps and sections of params.yaml are one list (promise B4); the generated file is up to date."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from twohop.config import Params
from twohop.steps._names import STEPS, declared

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
pytestmark = pytest.mark.workflow


def _run(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([BIN / words[0], *words[1:]], cwd=ROOT, capture_output=True, text=True, check=False)


def test_b04_steps_and_sections_match() -> None:
    assert set(Params.model_fields) - {"models", "hash_code"} == set(STEPS)
    files = {p.stem for p in (ROOT / "src/twohop/steps").glob("[a-z]*.py")}
    assert files == set(STEPS)


def test_b04_rules_and_stages_match_the_steps(fresh) -> None:
    listed = fresh.run("snakemake", "--list-rules", check=True).stdout.split()
    assert set(listed) - {"all", "train_projectors"} == set(STEPS)
    stages = yaml.safe_load((fresh.root / "dvc.yaml").read_text())["stages"]
    assert set(stages) == set(STEPS) - {"train_projector"} | {"hash_code"}  # data/models belongs to git


def test_b04_rules_say_what_the_steps_declare(fresh) -> None:
    code = (
        "import json\n"
        "from twohop.lineage._snakemake import graph\n"
        "with graph() as g:\n"
        "    print('JOBS' + json.dumps([[j.rule, j.model, list(j.params), [k for k in dict(j.handle.input.items())],"
        " [k for k in dict(j.handle.output.items())]] for j in g.jobs]))\n"
    )
    out = fresh.run("python", "-c", code, check=True).stdout
    for rule, model, params, inputs, outputs in json.loads(out.split("JOBS")[1]):
        step = declared(rule)
        assert set(params) == {k.format(model=model) for k in step.params}
        assert set(inputs) == set(step.inputs)
        assert set(outputs) == {*step.outputs, "lineage"}
        assert (model is not None) == step.per_model


def test_dvc_resolves_the_stages_that_snakemake_plans(fresh) -> None:
    """Independent of the generator's templates."""
    code = (
        "import json\n"
        "from dvc.repo import Repo\n"
        "from twohop.lineage._snakemake import graph\n"
        "with graph() as g:\n"
        "    ours = {j.stage: [sorted(j.inputs), sorted(j.outputs), sorted([*j.params, j.rule])] for j in g.jobs}\n"
        "kind = lambda d: type(d).__name__ == 'ParamsDependency'\n"
        "theirs = {s.addressing: [sorted({str(d) for d in s.deps if not kind(d)} - {'workflow/none.txt'}),"
        " sorted(map(str, s.outs)), sorted(p for d in s.deps if kind(d) for p in d.params)]"
        " for s in Repo().index.stages if s.addressing != 'hash_code'}\n"
        "print('BOTH' + json.dumps([ours, theirs]))\n"
    )
    ours, theirs = json.loads(fresh.run("python", "-c", code, check=True).stdout.split("BOTH")[1])
    assert ours == theirs


def test_dvc_yaml_is_up_to_date() -> None:
    done = _run("twohop", "write_dvc", "--check")
    assert done.returncode == 0, f"run `twohop write_dvc` and commit dvc.yaml\n{done.stderr}"


def test_lint_asks_for_conda_only() -> None:
    done = _run("snakemake", "--lint")
    found = [line.strip(" *") for line in (done.stdout + done.stderr).splitlines() if line.startswith("    * ")]
    assert [line for line in found if not line.startswith("Specify a conda environment or container")] == []


def test_snakefmt_has_nothing_to_change() -> None:
    done = _run("snakefmt", "--check", "Snakefile", "workflow")
    assert done.returncode == 0, f"run `snakefmt Snakefile workflow`\n{done.stderr}"
