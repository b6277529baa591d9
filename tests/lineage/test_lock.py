"""One run per tree; a lock dies with its process."""

import json
import os
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from twohop.lineage import LockedError, acquire, free_dvc, is_free, occupy_dvc, release
from twohop.lineage._lock import WATCH

HOLD = """
    import sys, time
    from pathlib import Path
    from twohop.lineage import acquire, occupy_dvc
    acquire(Path(sys.argv[1]))
    occupy_dvc(Path(sys.argv[1]))
    print("held", flush=True)
    time.sleep(60)
"""


def _holder(root: Path) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLD), str(root)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").touch()
    return tmp_path


def test_k01_second_run_is_refused_and_names_the_first(root: Path) -> None:
    with _holder(root) as first:
        with pytest.raises(LockedError, match=f"process {first.pid}"):
            acquire(root)
        assert not is_free(root)
        first.kill()


def test_c02_the_lock_of_a_killed_run_is_taken_over(root: Path) -> None:
    with _holder(root) as first:
        first.kill()
    (root / ".snakemake/locks").mkdir(parents=True)
    (root / ".snakemake/locks/0.input.lock").touch()
    acquire(root)
    assert not list((root / ".snakemake/locks").iterdir())
    release(root)
    assert is_free(root)


def test_k01_a_lock_of_another_host_is_named_with_its_file(root: Path) -> None:
    entry = {"pid": 1, "started": 0.0, "cmd": "snakemake", "host": "elsewhere"}
    (root / ".cache/twohop").mkdir(parents=True)
    (root / ".cache/twohop/run.lock").write_text(json.dumps({"owner": entry, "runner": entry}))
    with pytest.raises(LockedError, match="process 1 on host elsewhere") as caught:
        acquire(root)
    assert caught.value.where.endswith("run.lock")
    assert "if elsewhere is gone, delete that file" in caught.value.todo


def test_k03_dvc_is_told_which_process_is_busy(root: Path) -> None:
    with _holder(root) as first:
        table = json.loads((root / ".dvc/tmp/rwlock").read_text())
        assert table["write"][str(root.resolve() / "results")]["pid"] == first.pid
        with pytest.raises(LockedError, match=f"process {first.pid}"):
            occupy_dvc(root)
        first.kill()
    occupy_dvc(root)
    free_dvc(root)
    assert json.loads((root / ".dvc/tmp/rwlock").read_text())["write"] == {}


def test_c01_a_step_ends_soon_after_its_run_is_killed(root: Path) -> None:
    step = """
        import sys, time
        from pathlib import Path
        from twohop.lineage import step_of_run
        with step_of_run(Path(sys.argv[1])):
            print("in", flush=True)
            time.sleep(60)
    """
    run = f"""
        import subprocess, sys
        from pathlib import Path
        from twohop.lineage import acquire
        acquire(Path(sys.argv[1]))
        child = subprocess.Popen([sys.executable, "-c", {textwrap.dedent(step)!r}, sys.argv[1]])
        print(child.pid, flush=True)
        child.wait()
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(run), str(root)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    child = int(process.stdout.readline())
    assert process.stdout.readline() == "in\n"
    with process:
        process.kill()
    started = time.monotonic()
    acquire(root)  # waits for the orphan
    release(root)
    assert time.monotonic() - started < 15
    assert not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text()


@pytest.fixture
def dead() -> "subprocess.Popen[bytes]":
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process


def test_c01_stage_of_a_dvc_that_was_killed_does_not_start(
    root: Path, dead: "subprocess.Popen[bytes]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(WATCH, raising=False)
    monkeypatch.setenv("DVC_STAGE", "curate_entities")
    (root / ".dvc/tmp").mkdir()
    table = {"write": {str(root / "results"): {"pid": dead.pid, "cmd": "dvc repro"}}}
    (root / ".dvc/tmp/rwlock").write_text(json.dumps(table))
    with pytest.raises(LockedError, match="the dvc that started this stage has ended"):
        acquire(root)
    assert is_free(root)


def test_c01_stage_of_a_living_dvc_starts_whatever_its_name(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(WATCH, raising=False)
    monkeypatch.setenv("DVC_STAGE", "curate_entities")
    (root / ".dvc/tmp").mkdir()
    table = {"write": {str(root / "results"): {"pid": os.getppid(), "cmd": "a program that uses dvc's Python API"}}}
    (root / ".dvc/tmp/rwlock").write_text(json.dumps(table))
    acquire(root)
    assert not is_free(root)
    release(root)


def test_c01_runner_whose_starter_was_killed_ends(root: Path, dead: "subprocess.Popen[bytes]") -> None:
    env = {**os.environ, "DVC_STAGE": "curate_entities", WATCH: f"{socket.gethostname()}:{dead.pid}:0.0"}
    late = subprocess.run([sys.executable, "-c", textwrap.dedent(HOLD), str(root)], env=env, timeout=30, check=False)
    assert late.returncode == 143
    assert is_free(root)
