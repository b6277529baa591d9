"""When does a run have to tell DVC something? The check that reads file times only."""

import contextlib
from pathlib import Path
from types import SimpleNamespace

import pytest

from twohop.errors import TwohopError
from twohop.lineage import _sync
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


def test_a_job_that_dvc_yaml_has_no_stage_for_says_what_to_do(committed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a model was added to params.yaml and dvc.yaml was not made anew."""
    dag = SimpleNamespace(jobs=[SimpleNamespace(stage="prepare_model@new")])
    repo = SimpleNamespace(index=SimpleNamespace(stages=[SimpleNamespace(addressing="first")]))
    monkeypatch.setattr(_sync, "graph", lambda: contextlib.nullcontext(dag))
    monkeypatch.setattr(_sync, "dvc_repo", lambda: contextlib.nullcontext(repo))
    monkeypatch.setattr(_sync, "judge", lambda _repo: {})
    monkeypatch.setattr(_sync, "_doubtful", lambda _dag, _job: True)
    with pytest.raises(TwohopError, match=r"no stage prepare_model@new[\s\S]*twohop write_dvc"):
        _sync.adopt()
