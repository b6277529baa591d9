"""Tiny random models of every family, opened from folders with a real tokenizer and processor; in double precision."""

import functools
import importlib.util
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from twohop.config import ModelEntry, PrepareModel, RandomModel
from twohop.models import Batch, Model, ModelCard, Prompt, Tokens
from twohop.models._frame import count_image_tokens, find_frame
from twohop.models._processor import image_token, load_processor, load_tokenizer, read_config
from twohop.models._random import build_random
from twohop.models._random_tokens import IMAGE, tiny_tokenizer

D, LAYERS, IMAGE_PX = 32, 4, 32
CLEAN = ["Consider the country France. The capital of this country is", "Consider the country Kenya. The"]
FAMILIES = (
    "llava",
    "llava_next",
    "llava_onevision",
    "idefics3",
    "smolvlm",
    "internvl",
    "paligemma",
    "gemma3",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "mllama",
)
NEED_TORCHVISION = ("llava-pixtral", "mistral3", "llama4")
"""Families of which transformers has no processor without torchvision."""
HAS_TORCHVISION = importlib.util.find_spec("torchvision") is not None
SEEING = (*FAMILIES, *(NEED_TORCHVISION if HAS_TORCHVISION else ()))
NAMES = ("llama", *(f"{family}:{run}" for family in SEEING for run in ("text", "image")))


@dataclass(frozen=True)
class Case:
    """A model with two batches of the same length, clean and corrupted."""

    model: Model
    clean: Batch
    corrupted: Batch
    run: str = "text"

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers that the run passes."""
        return self.model.layers_of(self.run)


def tokens(n_image_tokens: int = 0) -> Tokens:
    raw = tiny_tokenizer()
    return Tokens(raw, n_image_tokens, raw.convert_tokens_to_ids(IMAGE) if n_image_tokens else None)


@functools.cache
def folder_of(family: str, role: str = "vlm", seed: int = 0) -> Path:
    folder = Path(tempfile.mkdtemp(prefix=f"tiny-{family}-"))
    name, _, tower = family.partition("-")
    source = {"kind": "random", "seed": seed, "n_layers": LAYERS, "d_model": D, "tower": tower or "clip"}
    build_random(folder, RandomModel.model_validate(source), name, role, IMAGE_PX)
    return folder


def unsettled(net: Any) -> Any:
    """Norms, gates and biases off their plain values, and weights wide enough that no comparison is vacuous."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw, dtype=torch.float64) * 0.1)
    return net


def seeing(family: str, chat: bool = False) -> Model:
    folder = folder_of(family)
    net = unsettled(AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float64, local_files_only=True))
    processor, config = load_processor(folder), read_config(folder)
    frame = find_frame(processor.tokenizer, processor, chat)
    token = image_token(config, processor, folder)
    n = count_image_tokens(processor, frame.placeholder, token, IMAGE_PX)
    card = ModelCard.model_construct(name=family, family=config.model_type, role="vlm", n_image_tokens=n)
    return Model(net, card, Tokens(processor.tokenizer, n, token, frame), processor)


def blind(family: str, chat: bool = False) -> Model:
    folder = folder_of(family, "backbone")
    net = unsettled(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, local_files_only=True))
    card = ModelCard.model_construct(name=family, family=family, role="backbone", n_image_tokens=0)
    raw = load_tokenizer(folder)
    return Model(net, card, Tokens(raw, 0, None, find_frame(raw, None, chat)))


def llama() -> Model:
    return blind("llama")


def llava() -> Model:
    return seeing("llava")


def pictures(n: int, seed: int = 5) -> list[Image.Image]:
    draw = np.random.default_rng(seed)
    return [Image.fromarray(draw.integers(0, 255, (IMAGE_PX, IMAGE_PX, 3), dtype=np.uint8)) for _ in range(n)]


def text_batches(model: Model) -> tuple[Batch, Batch]:
    """Rows of different length (so one is padded), both batches of one shape."""
    clean = model.batch([Prompt("Consider the country ", "France", t) for t in (". The capital of", ". The")])
    corrupted = model.batch([Prompt("Consider the country ", "Japan", t) for t in (". The capital of", ". The")])
    return clean, corrupted


def picture_batches(model: Model) -> tuple[Batch, Batch]:
    seen = model.encode_pictures(pictures(4))
    rows = [
        [Prompt("Consider the country ", None, t, p) for t, p in zip((". The capital of", ". The"), pair, strict=True)]
        for pair in (seen[:2], seen[2:])
    ]
    return model.batch(rows[0]), model.batch(rows[1])


@functools.cache
def _kept(family: str) -> Model:
    torch.manual_seed(0)
    return blind(family) if family == "llama" else seeing(family)


def case(name: str, fresh: bool = False) -> Case:
    """`llama`, or `<family>:text` and `<family>:image`; `fresh`: a model of its own, to be changed."""
    family, _, run = name.partition(":")
    model = (blind(family) if family == "llama" else seeing(family)) if fresh else _kept(family)
    return Case(model, *(picture_batches if run == "image" else text_batches)(model), run or "text")


def entry(role: str = "vlm", seed: int = 0, **source: Any) -> ModelEntry:
    made_from = source or {"kind": "random", "seed": seed, "n_layers": 3, "d_model": 32}
    return ModelEntry.model_validate(
        {
            "role": role,
            "family": "llama" if role == "backbone" else "llava",
            "backbone": None if role == "backbone" else "tiny",
            "source": made_from,
            "licence": "none",
        }
    )


PREPARE = PrepareModel(image_size=IMAGE_PX, tower_layers=2)


def write_card(folder: Path, card: ModelCard) -> Path:
    path = folder / f"{card.name}.json"
    path.write_text(card.model_dump_json(), encoding="utf-8")
    return path
