"""A model of a hub, prepared and opened: from the hub in miniature, and again when its folders are gone."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from twohop.config import HubRepository, ModelEntry, PrepareModel, RandomModel
from twohop.errors import ModelError
from twohop.models import materialise, open_model, set_fetcher, snapshot_folder
from twohop.models._random import build_random
from twohop.steps._fetching import fetch

TOP = Path(__file__).parents[2]
COMMIT = "c0ffee0123" * 4
PREPARE = PrepareModel(image_size=32, tower_layers=2)
ENTRY = ModelEntry.model_validate(
    {
        "role": "backbone",
        "source": {"kind": "hub", "id": "some/llm", "revision": COMMIT},
        "licence": "none",
    }
)


def _fake_hub() -> Any:
    """tests/data/fake_hub.py; its folder is on no path here."""
    spec = importlib.util.spec_from_file_location("fake_hub", TOP / "tests/data/fake_hub.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fake_hub"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A language model on the hub, and downloads as jobs do them: in a process of their own."""
    folder = tmp_path / "llm"
    folder.mkdir()
    build_random(folder, RandomModel(kind="random", seed=0, n_layers=3, d_model=32), None, "backbone", 32)
    hub = _fake_hub()
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    repo = hub.Repo(COMMIT, {p.name: p.read_bytes() for p in folder.iterdir()})
    monkeypatch.setenv("TWOHOP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(TOP / "src"))
    monkeypatch.setenv("TWOHOP_HUB_OFFLINE", "0")
    monkeypatch.chdir(tmp_path)
    with hub.serve({"some/llm": repo}) as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        set_fetcher(fetch)
        yield repo
        set_fetcher(None)


def test_prepared_opened_and_made_again(repo: Any, tmp_path: Path) -> None:
    assert os.environ["HF_HUB_OFFLINE"] == "1", "this process itself asks nobody"
    card = materialise("llm", ENTRY, PREPARE)
    assert card.sources == {"some/llm": COMMIT}
    assert card.n_layers == 3
    path = tmp_path / "card.json"
    path.write_text(card.model_dump_json())
    assert open_model(path).n_layers == 3
    asked = len(repo.asked)
    shutil.rmtree(tmp_path / "cache/models" / card.folder)
    assert open_model(path).n_layers == 3
    assert len(repo.asked) == asked, "what was downloaded is still there"
    shutil.rmtree(tmp_path / "cache")
    assert open_model(path).n_layers == 3
    assert len(repo.asked) > asked


def test_altered_download_is_refused(repo: Any, tmp_path: Path) -> None:
    source = ENTRY.source
    assert isinstance(source, HubRepository)
    folder = snapshot_folder(tmp_path / "cache/models", source)
    fetch("some/llm", COMMIT, folder)
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-2] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(ModelError, match=r"a file of the model was altered \(sha256\)"):
        materialise("llm", ENTRY, PREPARE)


def test_fault_of_the_download_is_told_as_it_is(repo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    repo.gated, repo.refuse = "manual", 403
    with pytest.raises(ModelError) as caught:
        materialise("llm", ENTRY, PREPARE)
    assert str(caught.value).startswith("some/llm is gated")
    assert "HF_TOKEN" in str(caught.value)
    monkeypatch.setenv("TWOHOP_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE is set"):
        materialise("llm", ENTRY, PREPARE)


def test_without_a_way_to_download(repo: Any) -> None:
    set_fetcher(None)
    with pytest.raises(ModelError, match="some/llm is not on this disk"):
        materialise("llm", ENTRY, PREPARE)


def test_a_job_downloads_what_it_lacks(repo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way: command line, runner, a process that downloads, card; the user said nothing of HF_HUB_OFFLINE."""
    for name in ("HF_HUB_OFFLINE", "TWOHOP_HUB_OFFLINE"):
        monkeypatch.delenv(name)
    params = {
        "prepare_model": PREPARE.model_dump(),
        "models.llm": ENTRY.model_dump(mode="json"),
        "fetch_images.size_px": 224,
    }
    words = ["prepare_model", "--model", "llm", "--params", json.dumps(params), "--in", "projector", "--in", "backbone"]
    out = ["--out", "card", "out/card.json", "--out", "lineage", "out/lineage.json"]
    done = subprocess.run([sys.executable, "-m", "twohop", *words, *out], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"some/llm at {COMMIT}: 5 files" in done.stderr
    assert json.loads((tmp_path / "out/card.json").read_text())["sources"] == {"some/llm": COMMIT}
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TWOHOP_CACHE", str(tmp_path / "empty"))
    done = subprocess.run([sys.executable, "-m", "twohop", *words, *out], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "error: some/llm is not on this disk, and HF_HUB_OFFLINE is set" in done.stderr
    assert not (tmp_path / "out/card.json").exists()


@pytest.mark.parametrize(
    ("config", "prompt", "what"),
    [
        ({"model_type": "brand_new"}, "plain", "family brand_new: unknown to transformers"),
        ({}, "chat", "no chat template, and its prompt is chat"),
    ],
)
def test_model_that_cannot_be_studied_is_refused_before_its_weights_are_loaded(
    repo: Any, config: dict[str, Any], prompt: str, what: str, tmp_path: Path
) -> None:
    repo.files["config.json"] = json.dumps({**json.loads(repo.files["config.json"]), **config}).encode()
    with pytest.raises(ModelError) as caught:
        materialise("llm", ENTRY.model_copy(update={"prompt": prompt}), PREPARE)
    assert caught.value.what.startswith(what)
    assert caught.value.where == f"some/llm at {COMMIT}"
    assert [p.name for p in (tmp_path / "cache/models").iterdir() if p.is_dir()] == ["hub"]
