"""The two engines on the tiny study: what runs, when nothing runs, and what a kill or a second run does.

Most of it are the scenarios of `make engines-check`, so that the table and the tests cannot disagree.
"""

from collections.abc import Callable
from typing import Any

import pytest
import scenarios
from scenarios import NOTHING, Scenario, Trees

pytestmark = [pytest.mark.workflow, pytest.mark.timeout(1500)]
SLOW = (scenarios.scratch_snakemake, scenarios.scratch_dvc, scenarios.crash_snakemake, scenarios.crash_dvc)
CLONES = {link: scenarios.fresh_clone(link) for link in ("copy", "hardlink", "symlink", "reflink")}


@pytest.fixture
def trees(fresh_tree: Callable[[], Any], finished_tree: Callable[[], Any]) -> Trees:
    return Trees(finished_tree, fresh_tree)


def test_second_run_does_nothing_and_dvc_is_clean(finished: Any) -> None:
    assert NOTHING in finished.snakemake()
    assert finished.changed_stages() == set()
    assert scenarios.uncached(finished) == []
    assert (finished.root / "results/render_report/report.html").stat().st_size > 0


@pytest.mark.parametrize(
    "scenario",
    [
        scenarios.param_snakemake,
        scenarios.param_dvc,
        scenarios.code_change,
        scenarios.comment_change,
        scenarios.library_change,
        scenarios.branch_switch,
        scenarios.experiment,
    ],
)
def test_engines_agree(trees: Trees, scenario: Scenario) -> None:
    scenario(trees)


@pytest.mark.parametrize("link", [pytest.param(n, marks=pytest.mark.slow) if n == "hardlink" else n for n in CLONES])
def test_fresh_clone_with_pulled_artifacts_has_nothing_to_do(trees: Trees, link: str) -> None:
    CLONES[link](trees)


@pytest.mark.parametrize("scenario", [scenarios.partial_pull, scenarios.partial_dvc])
def test_pulled_activations_of_one_model_are_analysed_alone(trees: Trees, scenario: Scenario) -> None:
    scenario(trees)


def test_a03_sync_finds_what_file_times_hide(trees: Trees) -> None:
    scenarios.tampered(trees)


def test_c03_a_failed_job_leaves_nothing_and_what_was_finished_is_kept(trees: Trees) -> None:
    scenarios.failed_job(trees)


def test_c07_full_disk(trees: Trees) -> None:
    scenarios.full_disk(trees)


def test_k01_k02_k03_second_run_stops_and_changes_nothing(trees: Trees) -> None:
    scenarios.two_at_once(trees)


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SLOW)
def test_c01_c02_from_scratch_and_killed(trees: Trees, scenario: Scenario) -> None:
    scenario(trees)


def test_c01_c02_killed_run_is_finished_by_the_same_command(finished: Any) -> None:
    before = scenarios.contents(finished)
    scenarios.shutil.rmtree(finished.root / "results/train_probes")
    run = finished.start("snakemake", "--cores", "all")
    scenarios.wait_for(finished.root / ".snakemake/incomplete")
    run.kill()
    run.wait()
    finished.snakemake()
    assert scenarios.contents(finished) == before
    assert finished.changed_stages() == set()


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
