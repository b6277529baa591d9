"""prepare_model writes a card from which the model opens."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from twohop.errors import ModelError
from twohop.models import open_model, read_card
from twohop.steps import prepare_model as step
from twohop.steps._step import Job


def job(tmp_path: Path, source: dict[str, Any]) -> Job:
    entry = {"role": "backbone", "family": "llama", "source": source, "licence": "none"}
    params = {"prepare_model": {"image_size": 32, "tower_layers": 2}, "models.tiny": entry, "fetch_images.size_px": 32}
    return Job(
        "prepare_model",
        "tiny",
        params,
        {"projector": (), "backbone": ()},
        {"card": tmp_path / "card.json"},
        tmp_path / "work",
    )


def test_card_opens_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWOHOP_CACHE", str(tmp_path / "cache"))
    torch.set_num_threads(1)
    source = {"kind": "random", "seed": 0, "n_layers": 2, "d_model": 16}
    summary = step.run(job(tmp_path, source))
    card = read_card(tmp_path / "card.json")
    assert summary == {
        "done": 1,
        "failed": 0,
        "files": len(card.files),
        "bytes": sum(f.stat().st_size for f in (tmp_path / "cache" / "models" / card.folder).iterdir()),
        "parameters": card.parameters,
    }
    assert open_model(tmp_path / "card.json").n_layers == card.n_layers == 2


def test_m02_folder_that_cannot_be_used_leaves_no_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWOHOP_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ModelError):
        step.run(job(tmp_path, {"kind": "local", "path": str(tmp_path / "nothing")}))
    assert not (tmp_path / "card.json").exists()


@pytest.mark.parametrize(("n_layers", "d_model", "why"), [(3, 16, "has 2 layers on text"), (2, 32, "has 16 d_model")])
def test_backbone_of_another_shape_is_refused_before_weights_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_layers: int, d_model: int, why: str
) -> None:
    monkeypatch.setenv("TWOHOP_CACHE", str(tmp_path / "cache"))
    size = {"n_layers": n_layers, "d_model": d_model}
    step.run(job(tmp_path, {"kind": "random", "seed": 0, **size}))
    (tmp_path / "card.json").rename(tmp_path / "backbone.json")
    plain = job(tmp_path, {"kind": "random", "seed": 0, "n_layers": 2, "d_model": 16})
    entry = {**plain.params["models.tiny"], "role": "vlm", "family": "llava", "backbone": "other"}
    inputs = {"projector": (), "backbone": (tmp_path / "backbone.json",)}
    vlm = replace(plain, params={**plain.params, "models.tiny": entry}, inputs=inputs)
    with pytest.raises(ModelError, match=why):
        step.run(vlm)
    assert not (tmp_path / "card.json").exists()
