"""Rules, DVC stages, steps and sections of params.yaml are one list (promise B4); the generated file is up to date."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from twohop.config import Params
from twohop.lineage import HELPERS
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
    helpers = {name for names in HELPERS.values() for name in names}
    assert set(listed) - {"all", "train_projectors"} == set(STEPS) | helpers
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
        "theirs = {s.addressing: [sorted({str(d) for d in s.deps if not kind(d) and 'workflow/none' not in str(d)}),"
        " sorted(map(str, s.outs)), sorted(p for d in s.deps if kind(d) for p in d.params)]"
        " for s in Repo().index.stages if s.addressing != 'hash_code'}\n"
        "print('BOTH' + json.dumps([ours, theirs]))\n"
    )
    ours, theirs = json.loads(fresh.run("python", "-c", code, check=True).stdout.split("BOTH")[1])
    assert ours == theirs


def test_fetches_are_tried_again_and_nothing_else(fresh) -> None:
    code = (
        "from twohop.lineage._snakemake import graph\n"
        "with graph() as g:\n"
        "    print('RETRIES', {r.name: r._restart_times for r in g._workflow.rules if r._restart_times})\n"
    )
    assert fresh.run("python", "-c", code, check=True).stdout.endswith("RETRIES {'fetch_images': 3}\n")
    for profile in ROOT.glob("profiles/*/profile.yaml"):
        assert not {"retries", "restart-times", "slurm-requeue"} & set(yaml.safe_load(profile.read_text()))


def test_profiles_for_clusters_and_the_one_for_all_do_not_meet() -> None:
    """The keys of profiles/default win over those of `--profile`."""
    keys = {p.parent.name: set(yaml.safe_load(p.read_text())) for p in ROOT.glob("profiles/*/profile.yaml")}
    assert set(keys) == {"default", "slurm", "kubernetes"}
    assert not keys["default"] & (keys["slurm"] | keys["kubernetes"])
    assert not {"executor", "default-resources", "jobs", "cores"} & keys["default"]


def test_gpus_stop_no_run_on_a_machine_without_any(fresh) -> None:
    told = fresh.snakemake("-n", "--config", "gpu_mb=81920", "job_threads=8")
    assert "extract_activations" in told
    made = fresh.snakemake("--config", "gpu_mb=81920", "--", "results/extract_activations/tiny-llm/activations.h5")
    assert "100%" in made


@pytest.mark.parametrize("n", [1, 3])
def test_shards_are_no_stages_and_no_inputs_to_dvc(fresh, n: int) -> None:
    fresh.edit("params.yaml", "shards: 1", f"shards: {n}")
    assert ("extract_shard" in fresh.planned()) == (n > 1)
    before = (fresh.root / "dvc.yaml").read_text()
    fresh.run("twohop", "write_dvc", check=True)
    assert (fresh.root / "dvc.yaml").read_text() == before
    assert "shard" not in before


def test_a_stage_that_dvc_runs_alone_may_use_its_helpers(fresh) -> None:
    fresh.edit("params.yaml", "shards: 1", "shards: 2")
    fresh.snakemake("results/build_questions/tiny-llm/questions.parquet")
    fresh.run("dvc", "repro", "--single-item", "extract_activations@tiny-llm", check=True)
    assert "extract_activations@tiny-llm" not in fresh.changed_stages()
    assert sorted(p.name for p in (fresh.root / "logs/extract_shard/tiny-llm").iterdir()) == [
        "1-of-2.log",
        "2-of-2.log",
    ]
    assert "Nothing to be done" in fresh.snakemake("results/extract_activations/tiny-llm/activations.h5")


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
