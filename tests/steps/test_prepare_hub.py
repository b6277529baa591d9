"""A model of a hub, prepared and opened: from the hub in miniature, and again when its folders are gone."""

import importlib.util
import os
import shutil
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
        "family": "llama",
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
    build_random(folder, RandomModel(kind="random", seed=0, n_layers=3, d_model=32), False, 32)
    hub = _fake_hub()
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
