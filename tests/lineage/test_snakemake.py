"""What is used of Snakemake's insides, one test each: an upgrade that breaks one fails by its name."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from twohop.errors import TwohopError
from twohop.lineage import _snakemake
from twohop.lineage._snakemake import POISON, _record_path, graph, record_is_good

SNAKEFILE = """
rule all:
    default_target: True
    input:
        "b/out.txt",

rule make:
    input:
        "in.txt",
    output:
        "{model}/out.txt",
    params:
        n=3,
    shell:
        "cp {input} {output}"
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of one rule that has run."""
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    (tmp_path / "in.txt").write_text("x")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(_snakemake.NO_HOOKS, raising=False)
    _run()
    return tmp_path


def _run(*words: str) -> str:
    command = [sys.executable, "-m", "snakemake", "--cores", "1", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def _job(code: str) -> str:
    """Evaluate code with the project's graph `g` and its one job, in a process of its own."""
    text = f"from twohop.lineage._snakemake import *\nwith graph() as g:\n    (job,) = g.jobs\n    {code}\n"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_internal_version_is_the_one_that_was_read() -> None:
    from importlib.metadata import version

    assert version("snakemake").startswith(_snakemake.SUPPORTED)


def test_internal_other_version_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_snakemake, "version", lambda name: "10.0.0")
    with pytest.raises(TwohopError, match=r"Snakemake 10\.0\.0 is installed") as caught, graph():
        pass
    assert caught.value.where.endswith("_snakemake.py")


def test_internal_dag_gives_rule_wildcards_and_files(project: Path) -> None:
    assert _job("print(job.rule, job.model, job.inputs, job.outputs)") == "make b ('in.txt',) ('b/out.txt',)"


def test_internal_dag_says_what_needs_to_run(project: Path) -> None:
    assert _job("print(g.needs_run(job))") == "False"
    (project / "b/out.txt").unlink()
    assert _job("print(g.needs_run(job))") == "True"


def test_internal_record_lies_where_it_is_looked_for(project: Path) -> None:
    record = json.loads(_record_path(Path("b/out.txt")).read_text())
    assert {"endtime", "code", "params", "input", "rule"} <= set(record)


def test_internal_record_holds_the_time_of_the_file(project: Path) -> None:
    assert record_is_good(Path("b/out.txt"))
    os.utime("b/out.txt", (time.time() + 5, time.time() + 5))
    assert not record_is_good(Path("b/out.txt"))


def test_internal_adopted_job_has_nothing_to_do_and_later_changes_are_seen(project: Path) -> None:
    _record_path(Path("b/out.txt")).unlink()
    assert not record_is_good(Path("b/out.txt"))
    _job("g.adopt(job)")
    assert record_is_good(Path("b/out.txt"))
    assert "Nothing to be done" in _run("-n")
    (project / "Snakefile").write_text(SNAKEFILE.replace("n=3", "n=4"))
    assert "make" in _run("-n")
    assert "Nothing to be done" not in _run("-n")


def test_internal_poisoned_job_runs_again(project: Path) -> None:
    _job("g.poison(job)")
    assert json.loads(_record_path(Path("b/out.txt")).read_text())["code"] == POISON
    assert "Nothing to be done" not in _run("-n")
    _run()
    assert record_is_good(Path("b/out.txt"))


def test_internal_poison_needs_no_earlier_record(project: Path) -> None:
    _record_path(Path("b/out.txt")).unlink()
    _job("g.poison(job)")
    assert "Nothing to be done" not in _run("-n")


def test_internal_allowed_rules_keeps_upstream_out(project: Path) -> None:
    (project / "Snakefile").write_text(
        SNAKEFILE.replace('"in.txt",\n    output', '"up.txt",\n    output')
        + '\nrule up:\n    output:\n        "up.txt",\n    shell:\n        "false"\n'
    )
    (project / "up.txt").write_text("here")
    (project / "b/out.txt").unlink()
    assert "1 of 1 steps" in _run("--allowed-rules", "make", "--", "b/out.txt")


@pytest.mark.parametrize("words", [["--lint"], ["-S"], ["--report=r.html"], ["--list-rules"]])
def test_internal_commands_that_only_look_are_told_apart(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    class Workflow:
        is_main_process = True

        class output_settings:
            dryrun = False

    monkeypatch.delenv(_snakemake.NO_HOOKS, raising=False)
    monkeypatch.setattr(sys, "argv", ["snakemake", *words])
    assert not _snakemake.works(Workflow)
    monkeypatch.setattr(sys, "argv", ["snakemake", "--cores", "1", "--report-stylesheet", "s"])
    assert _snakemake.works(Workflow)
