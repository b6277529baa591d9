"""The trained models on the embedded weights: slow, as the backbone is converted first."""

from pathlib import Path

import pytest
import torch
from PIL.Image import Image
from transformers import AutoModelForCausalLM, AutoTokenizer, CLIPVisionModel

from twohop.data import FlagsSource, decode_picture, fetch_picture
from twohop.models import _embedded, _mllama, _native

pytestmark = pytest.mark.slow
TOP = Path(__file__).parents[2]
TEXT = "I have been to France. People in the north of the country speak quickly."


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    top = tmp_path_factory.mktemp("parts")
    _embedded.convert_backbone(top / "language")
    _embedded.convert_tower(top / "tower", 64, 9)
    return top / "language", top / "tower"


def flags(art_source: str, n: int) -> list[Image]:
    records = [r for r in FlagsSource().pictures() if r.art_source == art_source]
    step = len(records) // n
    chosen = records[::step][:n]
    return [decode_picture(fetch_picture(r.locator, 224, (128, 128, 128)), r.picture_id).convert("RGB") for r in chosen]


def test_converted_tower_gives_clips_features_of_flags(folders: tuple[Path, Path]) -> None:
    tower = CLIPVisionModel.from_pretrained(folders[1], dtype=torch.float32).eval()
    pictures = flags("noto", 24)
    pixels = _embedded.image_processor(64)(images=pictures, return_tensors="pt")["pixel_values"]
    inputs = _mllama.image_processor(64)(images=[[p] for p in pictures], return_tensors="pt")
    inputs.pop("num_tiles")
    with torch.no_grad():
        clip = tower(pixels).last_hidden_state
        new = _mllama.clip_features(_mllama.converted_tower(tower)(**inputs).last_hidden_state, tower.config)[:, 0, 0]
    clip = clip - clip.mean(-1, keepdim=True)
    assert torch.equal(pixels, inputs["pixel_values"][:, 0, 0])
    assert float((clip - new).norm() / clip.norm()) < 1e-3
    assert float(((clip - new).norm(dim=-1) / clip.norm(dim=-1)).max()) < 1e-2


def test_text_only_logits_of_the_cross_model_are_the_backbones(folders: tuple[Path, Path]) -> None:
    backbone = AutoModelForCausalLM.from_pretrained(folders[0], dtype=torch.float32).eval()
    net, processor = _mllama.crossed(*folders, [3, 9, 15, 21, 27])
    ids = processor.tokenizer(TEXT, return_tensors="pt")["input_ids"]
    assert ids.tolist() == AutoTokenizer.from_pretrained(folders[0])(TEXT, return_tensors="pt")["input_ids"].tolist()
    with torch.no_grad():
        assert torch.equal(net(input_ids=ids).logits, backbone(input_ids=ids).logits)


def test_the_native_model_keeps_the_backbones_words(folders: tuple[Path, Path]) -> None:
    trained = _embedded.read_projector(TOP / "data/models/flags-native/projector.safetensors")
    drift = _native.native_drift(folders[0], trained, tuple(e.name for e in FlagsSource().entities()))
    assert 0 < drift["kl"] < 0.1
    assert drift["agreement"] > 0.85
