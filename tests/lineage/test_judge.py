"""DVC's view of a stage, with reasons: on a small pipeline of plain commands."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

PIPELINE = """
stages:
  up:
    cmd: cp in.txt up.txt
    deps: [in.txt]
    params: [up]
    outs: [up.txt]
  middle:
    cmd: cp up.txt middle.txt
    deps: [up.txt]
    params: [middle.deep]
    outs: [middle.txt]
  down:
    cmd: cp middle.txt down.txt
    deps: [middle.txt]
    outs: [down.txt]
"""
Judge = Callable[[], dict[str, list[str]]]


def _dvc(*words: str) -> None:
    subprocess.run([Path(sys.executable).parent / "dvc", *words], check=True, capture_output=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("judge")
    (root / "dvc.yaml").write_text(PIPELINE)
    (root / "params.yaml").write_text("up: 1\nmiddle: {deep: {a: 1, b: [2]}}\n")
    (root / "in.txt").write_text("x")
    for words in (["git", "init", "-q"], ["init", "-q"], ["repro", "-q"]):
        program = words[0] if words[0] == "git" else str(Path(sys.executable).parent / "dvc")
        rest = words[1:] if words[0] == "git" else words
        subprocess.run([program, *rest], cwd=root, check=True, capture_output=True)
    return root


@pytest.fixture
def judge(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Judge:
    """In a copy of the finished pipeline: stage -> reasons, by a process of its own."""
    import json
    import shutil

    shutil.copytree(made, tmp_path / "tree")
    monkeypatch.chdir(tmp_path / "tree")
    code = (
        "import json\nfrom twohop.lineage._judge import dvc_repo, judge\n"
        "with dvc_repo() as repo:\n    print(json.dumps({k: [*v.reasons, *(['partial'] * v.partial)]"
        " for k, v in judge(repo).items()}))"
    )

    def run() -> dict[str, list[str]]:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def test_nothing_changed(judge: Judge) -> None:
    assert judge() == {"up": [], "middle": [], "down": []}


def test_a_changed_param_is_told_with_both_values(judge: Judge) -> None:
    Path("params.yaml").write_text("up: 1\nmiddle: {deep: {a: 1, b: [3]}}\n")
    assert judge() == {"up": [], "middle": ["param middle.deep.b: [2] -> [3]"], "down": []}


def test_a_changed_input_and_output_are_told(judge: Judge) -> None:
    Path("in.txt").write_text("y")
    Path("down.txt").write_text("z")
    assert judge() == {"up": ["input in.txt changed"], "middle": [], "down": ["output down.txt differs from dvc.lock"]}


def test_absent_inputs_are_no_reason_by_themselves(judge: Judge) -> None:
    for name in ("up.txt", "middle.txt"):
        Path(name).unlink()
    assert judge() == {"up": [], "middle": ["partial"], "down": ["partial"]}


def test_absent_inputs_whose_makers_changed_are_a_reason_over_two_steps(judge: Judge) -> None:
    for name in ("up.txt", "middle.txt"):
        Path(name).unlink()
    Path("params.yaml").write_text("up: 2\nmiddle: {deep: {a: 1, b: [2]}}\n")
    found = judge()
    assert found["up"] == ["param up: 1 -> 2"]
    assert found["middle"] == ["through up: param up: 1 -> 2", "partial"]
    assert found["down"] == ["through up: param up: 1 -> 2", "partial"]


def test_a_source_that_is_gone_is_a_reason(judge: Judge) -> None:
    Path("in.txt").unlink()
    assert judge()["up"] == ["input in.txt is gone", "partial"]


def test_a_stage_without_a_lock_says_so(judge: Judge) -> None:
    Path("dvc.lock").unlink()
    assert all(reasons == ["not in dvc.lock"] for reasons in judge().values())
