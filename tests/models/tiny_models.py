"""Tiny random models of every family, built from config classes; weights wide enough that nothing is vacuous."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
    MllamaConfig,
    MllamaForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    SiglipVisionConfig,
)

from twohop.config import ModelEntry, PrepareModel
from twohop.models import Batch, Model, ModelCard, Picture, Prompt, Tokens
from twohop.models._eyes import Eyes
from twohop.models._frame import Frame
from twohop.models._random_configs import Size
from twohop.models._random_families import VISIONS
from twohop.models._random_tokens import IMAGE, tiny_tokenizer

D, LAYERS, IMAGE_PX = 32, 4, 32
WIDE = 0.15
"""Standard deviation of the weights."""
CLEAN = ["Consider the country France. The capital of this country is", "Consider the country Kenya. The"]
ROPE: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0}


@dataclass(frozen=True)
class Case:
    """A model with two batches of the same length, clean and corrupted."""

    model: Model
    clean: Batch
    corrupted: Batch
    cross_layers: tuple[int, ...] = ()


def tokens(n_image_tokens: int = 0) -> Tokens:
    raw = tiny_tokenizer()
    return Tokens(raw, n_image_tokens, raw.convert_tokens_to_ids(IMAGE) if n_image_tokens else None)


def text_settings(**more: Any) -> dict[str, Any]:
    return {
        "vocab_size": 400,
        "hidden_size": D,
        "intermediate_size": 2 * D,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": WIDE,
        "pad_token_id": 0,
        "bos_token_id": 0,
        "eos_token_id": 0,
        **more,
    }


def wrap(net: Any, family: str, role: str, n_image_tokens: int = 0) -> Model:
    """A model without files: only what the contract tests need of a card."""
    with torch.no_grad():
        for parameter in net.parameters():  # norms, gates and zero-initialised projections too
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    card = ModelCard.model_construct(name=family, family=family, role=role, n_image_tokens=n_image_tokens)
    return Model(net.double(), card, tokens(n_image_tokens))


def llama() -> Model:
    return wrap(LlamaForCausalLM(LlamaConfig(**text_settings())), "llama", "backbone")


def llava() -> Model:
    size = Size(IMAGE_PX, D, LAYERS, tiny_tokenizer().convert_tokens_to_ids, text_settings())
    return wrap(LlavaForConditionalGeneration(VISIONS["llava"].config(size)), "llava", "vlm", 4)


def gemma3() -> Model:
    text = Gemma3TextConfig(**text_settings(head_dim=16, sliding_window=8, query_pre_attn_scalar=16))
    vision = SiglipVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8
    )
    image = tiny_tokenizer().convert_tokens_to_ids(IMAGE)
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=image)
    model = wrap(Gemma3ForConditionalGeneration(config), "gemma3", "vlm", 4)
    model.eyes = Eyes(model.net, None, Frame(), image, {"token_type_ids": frozenset([image])})
    return model


def qwen() -> Model:
    text = text_settings(rope_scaling={**ROPE, "mrope_section": [2, 1, 1]})
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_heads": 2,
        "out_hidden_size": D,
        "patch_size": 4,
        "window_size": 16,
        "fullatt_block_indexes": [0],
    }
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    return wrap(Qwen2_5_VLForConditionalGeneration(config), "qwen2_5_vl", "vlm")


def mllama() -> Model:
    text = text_settings(cross_attention_layers=[1, 3], rope_scaling=ROPE)
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_global_layers": 1,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 8,
        "max_num_tiles": 1,
        "vision_output_dim": 32,
        "intermediate_layers_indices": [0],
        "supported_aspect_ratios": [[1, 1]],
    }
    return wrap(MllamaForConditionalGeneration(MllamaConfig(text_config=text, vision_config=vision)), "mllama", "vlm")


def text_batches(model: Model) -> tuple[Batch, Batch]:
    """Rows of different length (so one is padded), both batches of one shape."""
    clean = model.batch([Prompt("Consider the country ", "France", t) for t in (". The capital of", ". The")])
    corrupted = model.batch([Prompt("Consider the country ", "Japan", t) for t in (". The capital of", ". The")])
    return clean, corrupted


def picture_batches(model: Model) -> tuple[Batch, Batch]:
    shape = (2, 2, model.n_image_tokens, model.d_model)
    features = torch.randn(shape, generator=torch.Generator().manual_seed(5), dtype=model.dtype)
    rows = [
        [
            Prompt("Consider the country ", None, t, Picture(p))
            for t, p in zip((". The capital of", ". The"), f, strict=True)
        ]
        for f in features
    ]
    return model.batch(rows[0]), model.batch(rows[1])


def crossed_batches(model: Model) -> tuple[Batch, Batch]:
    """Mllama with something to attend to: states as the vision model would give them."""
    clean, corrupted = text_batches(model)
    draw = torch.Generator().manual_seed(6)
    made = [torch.randn(2, 5, D, generator=draw, dtype=model.dtype) for _ in range(2)]
    return (
        Batch(**{**clean.__dict__, "extra": {"cross_attention_states": made[0]}}),
        Batch(**{**corrupted.__dict__, "extra": {"cross_attention_states": made[1]}}),
    )


BUILDERS = {
    "llama": (llama, text_batches),
    "llava-text": (llava, text_batches),
    "llava-image": (llava, picture_batches),
    "gemma3-text": (gemma3, text_batches),
    "gemma3-image": (gemma3, picture_batches),
    "qwen2_5_vl-text": (qwen, text_batches),
    "mllama-text": (mllama, text_batches),
    "mllama-image": (mllama, crossed_batches),
}


def case(name: str) -> Case:
    torch.manual_seed(0)
    build, batches = BUILDERS[name]
    model = build()
    return Case(model, *batches(model), cross_layers=(1, 3) if name == "mllama-text" else ())


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
