"""When does a run have to tell DVC something? The check that reads file times only."""

from pathlib import Path

import pytest

from twohop.lineage._files import write_state
from twohop.lineage._sync import _STAMP, _digest, in_step

LOCK = """
schema: '2.0'
stages:
  first:
    cmd: make it
    outs: [{path: results/first/a.json, hash: md5, md5: 0, size: 1}]
"""


@pytest.fixture
def committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree in which DVC knows one stage, and nothing has changed since."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "src/twohop").mkdir(parents=True)
    (tmp_path / "results/first").mkdir(parents=True)
    (tmp_path / "results/first/a.json").write_text("1")
    (tmp_path / "dvc.lock").write_text(LOCK)
    write_state(_STAMP, {"digest": _digest()})
    return tmp_path


def test_nothing_to_tell_after_a_commit(committed: Path) -> None:
    assert in_step()


def test_c01_a_stage_that_dvc_has_never_heard_of_is_told(committed: Path) -> None:
    """As after a killed run, whose commit knew the stages that it had finished."""
    (committed / "results/second").mkdir()
    (committed / "results/second/b.json").write_text("2")
    assert not in_step()


def test_an_altered_result_is_told(committed: Path) -> None:
    (committed / "results/first/a.json").write_text("22")
    assert not in_step()
