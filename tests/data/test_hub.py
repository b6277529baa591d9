"""Downloads against a hub on 127.0.0.1: the good case, and each thing that goes wrong with one message."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_hub
import huggingface_hub.constants
import numpy as np
import pytest
from fake_hub import Repo
from safetensors.numpy import save

from twohop.data import _hub
from twohop.data._hub import download, read_small_files, resolve
from twohop.errors import ModelError

COMMIT, OTHER = "c0ffee0123" * 4, "badbadbad0" * 4
WEIGHTS = save({"model.layers.0.w": np.arange(60_000, dtype=np.float32), "b": np.ones((2, 3), dtype=np.float32)})


def files(**more: bytes) -> dict[str, bytes]:
    return {
        "config.json": b'{"model_type": "llava"}',
        "tokenizer.json": b"{" + b" " * 2000 + b"}",
        "model.safetensors": WEIGHTS,
        "pytorch_model.bin": b"pickle",
        "modeling_evil.py": b"print(1)",
        "README.md": b"hello",
        "onnx/model.json": b"{}",
        "consolidated.safetensors": WEIGHTS,
        **more,
    }


@pytest.fixture
def repo() -> Repo:
    return Repo(COMMIT, files(), branches={"main": COMMIT}, card={"license": "mit", "base_model": "some/llm"})


@pytest.fixture
def hub(repo: Repo, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with fake_hub.serve({"some/vlm": repo}) as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.setenv("HF_TOKEN", "")
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        yield url
        huggingface_hub.close_session()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_hub, "PATIENCE_S", 0.3)
    monkeypatch.setattr(_hub, "ATTEMPTS", 2)
    monkeypatch.setattr(time, "sleep", lambda _: None)


def refusal(into: Path, revision: str = COMMIT, model: str = "some/vlm") -> str:
    with pytest.raises(ModelError) as caught:
        download(model, revision, into)
    assert not into.exists()
    assert not _hub.records_file(into).exists()
    return str(caught.value)


def test_good_repository(hub: str, repo: Repo, tmp_path: Path) -> None:
    into = tmp_path / "models" / "vlm"
    download("some/vlm", COMMIT, into)
    assert sorted(p.name for p in into.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert (into / "model.safetensors").read_bytes() == WEIGHTS
    records = json.loads(_hub.records_file(into).read_text())
    assert records["model.safetensors"] == {"sha256": hashlib.sha256(WEIGHTS).hexdigest(), "bytes": len(WEIGHTS)}
    asked = len(repo.asked)
    download("some/vlm", COMMIT, into)
    assert len(repo.asked) == asked, "a finished folder asks nobody"


def test_finished_folder_needs_no_network(hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    download("some/vlm", COMMIT, tmp_path / "vlm")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    download("some/vlm", COMMIT, tmp_path / "vlm")
    assert "ahead of runs without one: twohop models fetch" in refusal(tmp_path / "other")


def test_what_the_hub_knows(hub: str) -> None:
    found = resolve("some/vlm")
    assert (found.commit, found.gated, found.licence, found.base_models) == (COMMIT, False, "mit", ("some/llm",))


def test_small_files_and_headers_without_weights(hub: str, repo: Repo, tmp_path: Path) -> None:
    read_small_files("some/vlm", "main", tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors.header", "tokenizer.json"]
    header = (tmp_path / "model.safetensors.header").read_bytes()
    assert WEIGHTS.startswith(header)
    assert json.loads(header[8:])["b"]["shape"] == [2, 3]
    assert [span for name, span in repo.asked if name == "model.safetensors"] == [
        "bytes=0-7",
        f"bytes=8-{len(header) - 1}",
    ]


def test_headers_from_a_server_without_ranges(hub: str, repo: Repo, tmp_path: Path) -> None:
    repo.ranges = False
    read_small_files("some/vlm", COMMIT, tmp_path)
    assert WEIGHTS.startswith((tmp_path / "model.safetensors.header").read_bytes())


def test_branch_name_is_no_revision(hub: str, tmp_path: Path) -> None:
    text = refusal(tmp_path / "vlm", "main")
    assert "revision 'main' of some/vlm is no commit" in text
    assert "twohop models check some/vlm" in text


def test_commit_that_is_not_there(hub: str, tmp_path: Path) -> None:
    assert f"some/vlm has no commit or branch {OTHER}" in refusal(tmp_path / "vlm", OTHER)


def test_server_that_answers_with_another_commit(hub: str, repo: Repo, tmp_path: Path) -> None:
    repo.says_commit = OTHER
    assert f"the hub sends files of commit {OTHER}" in refusal(tmp_path / "vlm")
    repo.branches[OTHER] = COMMIT  # asked for OTHER, it lists COMMIT
    assert f"the hub answers with commit {COMMIT}" in refusal(tmp_path / "vlm", OTHER)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])  # sha256 of LFS, git's sha1
def test_altered_file(hub: str, repo: Repo, tmp_path: Path, name: str) -> None:
    data = bytearray(repo.files[name])
    data[-3] ^= 1
    repo.sends[name] = bytes(data)
    assert f"{name} of some/vlm is not what the commit says (hash)" in refusal(tmp_path / "vlm")
    repo.sends.clear()
    download("some/vlm", COMMIT, tmp_path / "vlm")
    assert (tmp_path / "vlm" / name).read_bytes() == repo.files[name]


def test_only_pickled_weights(hub: str, repo: Repo, tmp_path: Path) -> None:
    for name in ("model.safetensors", "consolidated.safetensors"):
        del repo.files[name]
    text = refusal(tmp_path / "vlm")
    assert "some/vlm holds no safetensors file" in text
    assert "pytorch_model.bin" in text
    assert not repo.asked


@pytest.mark.parametrize("status", [401, 403])
def test_gated_repository(hub: str, repo: Repo, tmp_path: Path, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    repo.gated, repo.refuse = "manual", status
    text = refusal(tmp_path / "vlm")
    assert "some/vlm is gated" in text
    assert f"{hub}/some/vlm" in text
    assert "HF_TOKEN" in text
    monkeypatch.setenv("HF_TOKEN", repo.token)
    download("some/vlm", COMMIT, tmp_path / "vlm")


def test_no_such_repository(hub: str, tmp_path: Path) -> None:
    assert "no model some/typo, or a private or gated one" in refusal(tmp_path / "vlm", model="some/typo")


def test_file_that_the_hub_lost(hub: str, repo: Repo, tmp_path: Path) -> None:
    repo.gone.add("tokenizer.json")
    assert "a file of the list is missing on the hub" in refusal(tmp_path / "vlm")


def test_hub_that_is_not_there(hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "no connection to the hub" in refusal(tmp_path / "vlm")


def test_no_space(hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_hub, "SPARE_BYTES", 10**18)
    text = refusal(tmp_path / "vlm")
    assert "of disk" in text
    assert "TWOHOP_CACHE" in text


def test_connections_that_break_off_are_gone_on_with(hub: str, repo: Repo, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(_hub, "LEAST_BYTES", 50_000)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    repo.breaks_after = 100_000
    download("some/vlm", COMMIT, tmp_path / "vlm")
    spans = [span for name, span in repo.asked if name == "model.safetensors"]
    assert spans == [None, "bytes=100000-", "bytes=200000-"]
    assert (tmp_path / "vlm/model.safetensors").read_bytes() == WEIGHTS


def test_server_that_drips(hub: str, repo: Repo, tmp_path: Path, impatient: None, monkeypatch: Any) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("HF_ENDPOINT", hub)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(_hub, "PATIENCE_S", 0.4)
    monkeypatch.setattr(_hub, "ATTEMPTS", 2)
    repo.drips = 0.05
    started = time.monotonic()
    text = refusal(tmp_path / "vlm")
    assert time.monotonic() - started < 10
    assert "the hub stalls" in text
    repo.drips = 0
    download("some/vlm", COMMIT, tmp_path / "vlm")


def test_two_at_once_share_one_download(hub: str, repo: Repo, tmp_path: Path) -> None:
    repo.slow_s = 0.05
    threads = [threading.Thread(target=download, args=("some/vlm", COMMIT, tmp_path / "vlm")) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([name for name, _ in repo.asked if name == "model.safetensors"]) == 1


def test_killed_download_is_gone_on_with(hub: str, repo: Repo, tmp_path: Path) -> None:
    into = tmp_path / "vlm"
    code = (
        f"from pathlib import Path; from twohop.data import _hub; _hub.download('some/vlm', '{COMMIT}', Path('{into}'))"
    )
    words = [sys.executable, "-c", code]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    repo.slow_s = 0.5  # four parts
    process = subprocess.Popen(words, env=env)
    partial = tmp_path / ".vlm.part/model.safetensors.incomplete"
    end = time.monotonic() + 60
    while not (partial.exists() and partial.stat().st_size > 0):
        assert time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not into.exists()
    have = partial.stat().st_size
    assert 0 < have < len(WEIGHTS)
    repo.slow_s = 0
    download("some/vlm", COMMIT, into)
    assert ("model.safetensors", f"bytes={have}-") in repo.asked
    assert (into / "model.safetensors").read_bytes() == WEIGHTS
    assert not (tmp_path / ".vlm.part").exists()


def test_names_that_would_leave_the_folder_are_left_out(hub: str, repo: Repo, tmp_path: Path) -> None:
    repo.files |= {"../evil.json": b"{}", "..json": b"{}", "a/b.json": b"{}"}
    download("some/vlm", COMMIT, tmp_path / "vlm")
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["vlm.files.json", "vlm.lock"]
    assert "..json" not in {p.name for p in (tmp_path / "vlm").iterdir()}
