"""A real Slurm (slurmctld, slurmd, munge) runs what a real `snakemake --profile profiles/slurm` submits."""

import importlib.util
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from twohop.config import needs, parse_params, read_size

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1500)]
SCRIPTS = Path(__file__).parents[1] / "slurm"
PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch")
PROFILE, PARTITIONS = Path("profiles/slurm/profile.yaml"), Path("profiles/slurm/partitions.yaml")
TARGET = "results/train_probes/tiny-vlm/metrics.json"
ACTIVATIONS = "results/extract_activations/tiny-vlm/activations.h5"
QUICK = ("--slurm-init-seconds-before-status-checks", "1", "--seconds-between-status-checks", "2")
WAIT_S = 180


def _why_not() -> str:
    absent = [p for p in PROGRAMS if shutil.which(p) is None]
    if absent:
        return f"not installed: {', '.join(absent)}"
    if importlib.util.find_spec("snakemake_executor_plugin_slurm") is None:
        return "Snakemake's Slurm plugin is not importable: see requirements/slurm.txt"
    return "" if os.geteuid() == 0 else "the daemons are started as root"


def _plugin() -> Path:
    """The folder that the plugin is imported from."""
    spec = importlib.util.find_spec("snakemake_executor_plugin_slurm")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parents[1]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One node with two partitions and two GPUs that are none."""
    reason = _why_not()
    if reason:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("slurm")
    try:
        subprocess.run([SCRIPTS / "up.sh", folder], check=True)
        yield folder
    finally:
        subprocess.run([SCRIPTS / "down.sh", folder], check=True)


@pytest.fixture(scope="module")
def study(cluster: Path, slurm_tree: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The tiny study up to one model's probes, every job run by Slurm; no home folder."""
    slurm_tree.edit(PROFILE, "job_threads=8", "job_threads=1")  # the node has few cores
    slurm_tree.extra = {
        "HOME": "/proc/none",
        "XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache")),  # Snakemake wants to write somewhere
        "PYTHONPATH": f"{slurm_tree.root / 'src'}:{_plugin()}",
    }
    _snakemake(slurm_tree)
    return slurm_tree


def _words(target: str) -> list[str]:
    return ["snakemake", "--profile", "profiles/slurm", *QUICK, target]


def _snakemake(tree: Any, target: str = TARGET, check: bool = True) -> str:
    done = tree.run(*_words(target), check=check)
    return done.stdout + done.stderr


def _jobs(rule: str) -> list[dict[str, str]]:
    """What Slurm says of all jobs of a rule, oldest first."""
    text = subprocess.run(["scontrol", "-o", "show", "job"], capture_output=True, text=True, check=True).stdout
    found = [dict(re.findall(r"(\w+)=(\S*)", line)) for line in text.splitlines()]
    return [job for job in found if re.match(rf"rule_{rule}(_wildcards|$)", job.get("Comment", ""))]


def _asked(job: dict[str, str]) -> tuple[str, str, str, str]:
    return job["Partition"], job["MinMemoryNode"], job["TimeLimit"], job.get("TresPerJob", "")


def test_jobs_run_where_and_with_what_the_card_says(study: Any) -> None:
    params = parse_params(yaml.safe_load((study.root / "params.yaml").read_text()), "params.yaml")
    size = read_size(study.root / "results/prepare_model/tiny-vlm/card.json")
    for step, partition in (("extract_activations", "gpu"), ("train_probes", "cpu"), ("prepare_model", "cpu")):
        (job,) = _jobs(step)
        want = needs(step, params, size, 1, 81920)
        gpus = f"gres:gpu:{want.gpu}" if want.gpu else ""
        assert job["JobState"] == "COMPLETED"
        assert _asked(job) == (partition, f"{want.mem_mb}M", f"{want.runtime // 60:02}:{want.runtime % 60:02}:00", gpus)
    for step in ("curate_entities", "fetch_images", "build_questions"):
        (job,) = _jobs(step)
        assert (job["JobState"], *_asked(job)) == ("COMPLETED", "cpu", "2000M", "00:30:00", "")


def test_both_engines_have_nothing_to_do_afterwards(study: Any) -> None:
    assert "Nothing to be done" in _snakemake(study)
    assert "Nothing to be done" in study.snakemake(TARGET)
    stages = ("train_probes@tiny-vlm", "extract_activations@tiny-vlm", "fetch_images", "prepare_model@tiny-vlm")
    told = study.run("dvc", "status", *stages, check=True).stdout
    assert "up to date" in told, told


def test_c01_job_killed_by_slurm_is_finished_by_the_same_command(study: Any) -> None:
    before = _bytes(study.root / "results/train_probes/tiny-vlm")
    shutil.rmtree(study.root / "results/train_probes")
    known = {job["JobId"] for job in _jobs("train_probes")}
    run = study.start(*_words(TARGET))
    try:
        running = _until(lambda: [j for j in _jobs("train_probes") if j["JobId"] not in known and _is_running(j)])
        _until(lambda: _step_processes(study.root, "train_probes"))
        subprocess.run(["scancel", "--signal=KILL", "--full", running[0]["JobId"]], check=True)
        assert run.wait(WAIT_S) == 1
    finally:
        run.kill()
    assert not (study.root / TARGET).exists()
    assert len(_jobs("train_probes")) == 2  # one before, one killed: it was not tried again
    _snakemake(study)
    assert _bytes(study.root / "results/train_probes/tiny-vlm") == before


def test_shards_are_jobs_of_their_own_and_a_killed_one_is_made_again(study: Any) -> None:
    before = (study.root / ACTIVATIONS).read_bytes()
    study.edit("params.yaml", "shards: 1", "shards: 3")
    run = study.start(*_words(ACTIVATIONS))
    try:
        victims = _until(lambda: _step_processes(study.root, "extract_activations"))
        victims[0].kill()
        assert run.wait(WAIT_S) == 1
    finally:
        run.kill()
    assert sorted(j["JobState"] for j in _jobs("extract_shard")) == ["COMPLETED", "COMPLETED", "FAILED"]
    assert len(_jobs("extract_activations")) == 1  # that of the first run: nothing is gathered from two of three
    _snakemake(study, ACTIVATIONS)
    shards, (*_, gather) = _jobs("extract_shard"), _jobs("extract_activations")
    assert sorted(j["JobState"] for j in shards) == ["COMPLETED"] * 3 + ["FAILED"]
    assert {(j["Partition"], j["TresPerJob"]) for j in shards} == {("gpu", "gres:gpu:1")}
    assert (gather["Partition"], gather.get("TresPerJob")) == ("cpu", None)
    assert (study.root / ACTIVATIONS).read_bytes() == before
    assert not list((study.root / ".cache/twohop/shards").rglob("*.json"))


def _is_running(job: dict[str, str]) -> bool:
    return job["JobState"] == "RUNNING"


def _step_processes(root: Path, step: str) -> list[psutil.Process]:
    """Processes of a step that works in a tree."""
    found = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
            if len(words) > 2 and words[1].endswith("/twohop") and words[2] == step and process.cwd() == str(root):
                found.append(process)
        except psutil.Error:
            continue
    return found


def _until(find: Any) -> list[Any]:
    deadline = time.monotonic() + WAIT_S
    while not (found := find()):
        assert time.monotonic() < deadline, f"nothing after {WAIT_S} s"
        time.sleep(0.1)
    return found


def _bytes(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.name != "lineage.json"}
