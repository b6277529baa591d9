"""A tiny model of each family: the table of language models, and of vision-language models around them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from transformers import (
    CLIPVisionConfig,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    MistralForCausalLM,
    MllamaConfig,
    MllamaForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SiglipVisionConfig,
)
from transformers.models.mllama.configuration_mllama import MllamaTextConfig

from twohop.config import RandomModel
from twohop.models import _random_processors as processors
from twohop.models import _random_tokens as tokens
from twohop.models._random_tokens import END, IMAGE, Vocabulary

D_TOWER = 32
"""Width of a tiny tower."""
INITIALIZER_RANGE = 0.1
"""Standard deviation of the weights: wide enough that answers differ between prompts."""
WINDOW = 8
"""Tokens that a sliding or chunked layer sees."""
ROPE: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0}


@dataclass(frozen=True)
class Size:
    """What a family's configs are made from."""

    image_size: int
    """Side in pixels of what the tower sees."""
    d_model: int
    n_layers: int
    id_of: Callable[[str], int] = field(repr=False)
    """Id of a token."""
    text: dict[str, Any] = field(repr=False)
    """Settings of the language model, the vocabulary's size among them."""


@dataclass(frozen=True)
class Language:
    """A family of language models."""

    config: type[Any]
    net: type[Any]
    vocabulary: Vocabulary
    more: Callable[[RandomModel], dict[str, Any]] = lambda _: {}
    """Settings beside the common ones."""


@dataclass(frozen=True)
class Vision:
    """A family of vision-language models."""

    language: str
    """Family of its backbone."""
    net: type[Any]
    config: Callable[[Size], Any]
    processor: Callable[[Any, int], Any]
    added: tuple[str, ...] = ()
    """Tokens that it adds to its backbone's."""
    named: dict[str, str] = field(default_factory=dict[str, str])
    """Attributes of the tokenizer that its processor reads."""
    chat_template: str = ""
    unread: int = 0
    """Tokens at the vocabulary's end that have no row in the unembedding."""


# --- language models --------------------------------------------------------------------------------------------------

_QWEN = Vocabulary(END, pad="<|endoftext|>", others=("<|im_start|>",), chat_template=tokens.chatml())
_GEMMA = Vocabulary(
    "<eos>",
    begin="<bos>",
    pad="<pad>",
    others=("<start_of_turn>", "<end_of_turn>"),
    chat_template=tokens.gemma_turns(),
)


def _wide_heads(source: RandomModel) -> dict[str, Any]:
    """Heads that are wider side by side than the residual stream, as in Gemma and Qwen3."""
    return {"head_dim": source.d_model // 2}


def _alternating(source: RandomModel) -> dict[str, Any]:
    kinds = ["sliding_attention", "full_attention"]
    return {
        **_wide_heads(source),
        "query_pre_attn_scalar": source.d_model // 2,
        "sliding_window": WINDOW,
        "layer_types": [kinds[n % 2] for n in range(source.n_layers)],
    }


LANGUAGES: dict[str, Language] = {
    "llama": Language(LlamaConfig, LlamaForCausalLM, Vocabulary(END, added=(IMAGE,), chat_template=tokens.vicuna())),
    "mistral": Language(
        MistralConfig,
        MistralForCausalLM,
        Vocabulary("</s>", "<s>", "<pad>", ("[INST]", "[/INST]"), chat_template=tokens.instruct()),
        lambda s: {**_wide_heads(s), "sliding_window": None},
    ),
    "qwen2": Language(Qwen2Config, Qwen2ForCausalLM, _QWEN),
    "qwen3": Language(Qwen3Config, Qwen3ForCausalLM, _QWEN, _wide_heads),
    "gemma": Language(GemmaConfig, GemmaForCausalLM, _GEMMA, _wide_heads),
    "gemma2": Language(Gemma2Config, Gemma2ForCausalLM, _GEMMA, _alternating),
    "gemma3_text": Language(Gemma3TextConfig, Gemma3ForCausalLM, _GEMMA, _alternating),
}
"""Language models by model_type."""


# --- vision-language models -------------------------------------------------------------------------------------------


def _tower(kind: type[Any], image_size: int, patch: int, **more: Any) -> Any:
    return kind(
        hidden_size=D_TOWER,
        intermediate_size=2 * D_TOWER,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=image_size,
        patch_size=patch,
        initializer_range=INITIALIZER_RANGE,
        **more,
    )


def _llava(size: Size) -> Any:
    patch = processors.PATCH
    return LlavaConfig(
        vision_config=_tower(CLIPVisionConfig, size.image_size, patch, projection_dim=D_TOWER),
        text_config=LlamaConfig(**size.text),
        image_token_index=size.id_of(IMAGE),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=(size.image_size // patch) ** 2,
        tie_word_embeddings=True,
    )


def _idefics3(size: Size) -> Any:
    from transformers.models.idefics3.configuration_idefics3 import Idefics3VisionConfig

    return Idefics3Config(
        vision_config=_tower(Idefics3VisionConfig, size.image_size, processors.patch_of(size.image_size, 2)),
        text_config=LlamaConfig(**size.text),
        image_token_id=size.id_of(IMAGE),
        scale_factor=2,
        tie_word_embeddings=True,
    )


def _gemma3(size: Size) -> Any:
    patch = processors.patch_of(size.image_size)
    return Gemma3Config(
        vision_config=_tower(SiglipVisionConfig, size.image_size, patch, vision_use_head=False),
        text_config=Gemma3TextConfig(**size.text),
        mm_tokens_per_image=4,
        image_token_index=size.id_of("<image_soft_token>"),
        boi_token_index=size.id_of("<start_of_image>"),
        eoi_token_index=size.id_of("<end_of_image>"),
        initializer_range=INITIALIZER_RANGE,
        tie_word_embeddings=True,
    )


def _mllama(size: Size) -> Any:
    vision = {
        "hidden_size": D_TOWER,
        "intermediate_size": 2 * D_TOWER,
        "num_hidden_layers": 2,
        "num_global_layers": 1,
        "attention_heads": 2,
        "image_size": size.image_size,
        "patch_size": processors.PATCH,
        "max_num_tiles": 4,
        "vision_output_dim": 2 * D_TOWER,
        "intermediate_layers_indices": [0],
        "initializer_range": INITIALIZER_RANGE,
    }
    cross = [1, 3]
    text = MllamaTextConfig(
        **{
            **size.text,
            "vocab_size": size.text["vocab_size"] - 1,
            "num_hidden_layers": size.n_layers + len(cross),
            "bos_token_id": size.id_of("<|begin_of_text|>"),
            "tie_word_embeddings": False,
        },
        cross_attention_layers=cross,
        rope_parameters=dict(ROPE),
        rms_norm_eps=1e-6,
    )
    return MllamaConfig(vision_config=vision, text_config=text, image_token_index=size.id_of("<|image|>"))


_ROWS = tuple(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7))
_IDEFICS = ("<fake_token_around_image>", "<end_of_utterance>", "<global-img>", *_ROWS)
_HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")

VISIONS: dict[str, Vision] = {
    "llava": Vision("llama", LlavaForConditionalGeneration, _llava, processors.llava, chat_template=tokens.vicuna()),
    "idefics3": Vision(
        "llama",
        Idefics3ForConditionalGeneration,
        _idefics3,
        processors.idefics3,
        added=_IDEFICS,
        chat_template=tokens.utterances(),
    ),
    "gemma3": Vision(
        "gemma3_text",
        Gemma3ForConditionalGeneration,
        _gemma3,
        processors.gemma3,
        added=("<start_of_image>", "<end_of_image>", "<image_soft_token>"),
        named={
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
            "image_token": "<image_soft_token>",
        },
        chat_template=tokens.gemma_turns(),
    ),
    "mllama": Vision(
        "llama",
        MllamaForConditionalGeneration,
        _mllama,
        processors.mllama,
        added=("<|begin_of_text|>", "<|python_tag|>", *_HEADERS, "<|image|>"),
        named={"bos_token": "<|begin_of_text|>"},
        chat_template=tokens.headers(),
        unread=1,
    ),
}
"""Vision-language models by model_type, one entry more for LLaVA with Pixtral's tower."""
