"""The two engines on the tiny study: what runs, when nothing runs, and what a kill or a second run does."""

import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.workflow, pytest.mark.timeout(1500)]
PROBES = {"train_probes", "plot_figures", "render_report"}
PROBE_STAGES = {"train_probes@tiny-vlm", "train_probes@tiny-control"}
NOTHING = "Nothing to be done"
WAIT_S = 120


def test_second_run_does_nothing_and_dvc_is_clean(finished: Any) -> None:
    assert NOTHING in finished.snakemake()
    assert finished.changed_stages() == set()
    assert (finished.root / "results/render_report/report.html").stat().st_size > 0


def test_changed_probe_setting_names_the_probes_and_what_follows(finished: Any) -> None:
    finished.edit("params.yaml", "l2: [0.1]", "l2: [0.2]")
    assert finished.planned() == PROBES
    assert finished.changed_stages() == PROBE_STAGES  # DVC learns what follows when these have run
    finished.run("dvc", "repro", check=True)
    assert finished.changed_stages() == set()
    assert finished.planned() == set()


def test_edited_module_runs_the_steps_that_import_it(finished: Any) -> None:
    finished.edit("src/twohop/steps/train_probes.py", "STEP = Step(", "EDITED = True\nSTEP = Step(")
    assert finished.planned() == PROBES
    assert finished.changed_stages() == PROBE_STAGES


def test_a01_check_names_the_altered_file_and_the_next_run_makes_it_again(finished: Any) -> None:
    curves = finished.root / "results/train_probes/tiny-vlm/curves.parquet"
    data = bytearray(curves.read_bytes())
    data[len(data) // 2] ^= 1
    curves.write_bytes(data)
    told = finished.run("twohop", "lineage", "check")
    assert told.returncode == 2
    assert "results/train_probes/tiny-vlm/curves.parquet: its bytes differ" in told.stderr
    assert "train_probes" in finished.planned()
    finished.snakemake()
    assert finished.run("twohop", "lineage", "check").returncode == 0
    assert finished.changed_stages() == set()


def test_fresh_clone_with_pulled_artifacts_has_nothing_to_do(finished: Any, tmp_path: Path) -> None:
    finished.run("dvc", "remote", "add", "-d", "store", str(tmp_path / "store"), check=True)
    finished.run("dvc", "push", check=True)
    clone = type(finished)(tmp_path / "clone")
    finished.run("git", "clone", "-q", ".", str(clone.root), check=True)
    shutil.copy(finished.root / ".dvc/config", clone.root / ".dvc/config")
    clone.run("dvc", "pull", check=True)
    assert clone.planned() == set()
    assert NOTHING in clone.snakemake()
    assert clone.changed_stages() == set()
    clone.edit("params.yaml", "l2: [0.1]", "l2: [0.2]")
    assert clone.planned() == PROBES


def test_c01_c02_killed_run_is_finished_by_the_same_command(finished: Any) -> None:
    before = _bytes(finished)
    shutil.rmtree(finished.root / "results/train_probes")
    run = finished.start("snakemake", "--cores", "all")
    _wait_for(finished.root / ".snakemake/incomplete")
    run.send_signal(signal.SIGKILL)
    run.wait()
    finished.snakemake()
    assert _bytes(finished) == before
    assert finished.changed_stages() == set()


def test_k01_k03_second_run_stops_and_changes_nothing(finished: Any) -> None:
    shutil.rmtree(finished.root / "results/train_probes")
    run = finished.start("snakemake", "--cores", "all")
    _wait_for(finished.root / ".snakemake/incomplete")
    second = finished.run("snakemake", "--cores", "all")
    assert second.returncode == 2
    assert f"process {run.pid}" in second.stderr
    dvc = finished.run("dvc", "repro")
    assert dvc.returncode != 0
    assert f"PID {run.pid}" in dvc.stderr
    assert run.wait(600) == 0
    assert finished.planned() == set()


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("n_entities: 10", "n_entitys: 10", "did you mean n_entities?"),
        ("n_entities: 10", "n_entities: 1e1", "YAML"),
        ("inner_folds: 2", "inner_folds: 0", "train_probes.inner_folds"),
    ],
)
def test_b01_bad_params_stop_before_any_job(fresh: Any, old: str, new: str, told: str) -> None:
    fresh.edit("params.yaml", old, new)
    for words in (("snakemake", "--cores", "all"), ("snakemake", "-n"), ("twohop", "check_params")):
        done = fresh.run(*words)
        assert done.returncode == 2
        assert told in done.stderr
        assert "Traceback" not in done.stderr
    assert not (fresh.root / "results").exists()


def test_stale_dvc_yaml_is_an_error_at_start(fresh: Any) -> None:
    fresh.edit("params.yaml", "tiny-control:", "tiny-other:")
    done = fresh.run("dvc", "repro", "curate_entities")
    assert done.returncode != 0
    assert "twohop write_dvc" in done.stderr


def _bytes(tree: Any) -> dict[str, bytes]:
    """Everything below results/ that does not tell of a run's time or name."""
    names = ("lineage.json", "report.html")
    files = (p for p in (tree.root / "results").rglob("*") if p.is_file() and p.name not in names)
    return {str(p.relative_to(tree.root)): p.read_bytes() for p in files}


def _wait_for(folder: Path) -> None:
    """Until a job has begun."""
    end = time.monotonic() + WAIT_S
    while not (folder.exists() and any(p.is_file() for p in folder.rglob("*"))):
        assert time.monotonic() < end
        time.sleep(0.2)
