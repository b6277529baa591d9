"""The table of tiny language models, by model_type."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from twohop.config import RandomModel
from twohop.models import _random_tokens as tokens
from twohop.models._random_tokens import END, IMAGE, Vocabulary

INITIALIZER_RANGE = 0.1
"""Standard deviation of the weights: wide enough that answers differ between prompts."""
WINDOW = 8
"""Tokens that a sliding or chunked layer sees."""
SCALED_FROM = 128
"""Position from which Llama 4 scales queries (8192 in its checkpoints): no prompt of the tests is as long."""
MARKS = ("<|header_start|>", "<|header_end|>", "<|eot|>")
"""Llama 4's marks of a turn."""


@dataclass(frozen=True)
class Language:
    """A family of language models."""

    config: str
    net: str
    """Classes of config and model, by name: they are loaded when a model is built."""
    vocabulary: Vocabulary
    more: Callable[[RandomModel], dict[str, Any]] = lambda _: {}
    """Settings beside the common ones."""
    ends: tuple[str, ...] = ()
    """Tokens that end an answer beside the vocabulary's own, as the config names them."""


def text_settings(family: str, source: RandomModel, tokenizer: Any) -> dict[str, Any]:
    """Settings of a language model's config."""
    ends = [tokenizer.eos_token_id, *tokenizer.convert_tokens_to_ids(list(LANGUAGES[family].ends))]
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": source.d_model,
        "intermediate_size": 2 * source.d_model,
        "num_hidden_layers": source.n_layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": INITIALIZER_RANGE,
        "max_position_embeddings": 512,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": ends if len(ends) > 1 else ends[0],
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": True,
        **LANGUAGES[family].more(source),
    }


def _wide_heads(source: RandomModel) -> dict[str, Any]:
    """Heads that are wider side by side than the residual stream."""
    return {"head_dim": source.d_model // 2}


def _alternating(source: RandomModel) -> dict[str, Any]:
    """Sliding and full layers in turn, as in Gemma 2 and 3."""
    kinds = ["sliding_attention", "full_attention"]
    return {
        **_wide_heads(source),
        "query_pre_attn_scalar": source.d_model // 2,
        "sliding_window": WINDOW,
        "layer_types": [kinds[n % 2] for n in range(source.n_layers)],
    }


def _llama4(source: RandomModel) -> dict[str, Any]:
    """Every second layer sees everything and has no positions, the others see chunks; the second has experts."""
    return {
        **_wide_heads(source),
        "intermediate_size_mlp": 2 * source.d_model,
        "moe_layers": [1],
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "no_rope_layers": [int(n % 2 == 0) for n in range(source.n_layers)],
        "attention_chunk_size": WINDOW,
        "floor_scale": SCALED_FROM,
    }


_QWEN = Vocabulary(
    END,
    pad="<|endoftext|>",
    others=("<|im_start|>",),
    chat_template=tokens.chatml(),
    pattern=PRETOKENIZE_REGEX,  # Qwen2's tokenizer class splits so whatever its file says
)
_GEMMA = Vocabulary(
    "<eos>",
    begin="<bos>",
    pad="<pad>",
    others=("<start_of_turn>", "<end_of_turn>"),
    chat_template=tokens.gemma_turns(),
)
_LLAMA4 = Vocabulary(
    MARKS[2],
    begin="<|begin_of_text|>",
    pad="<|finetune_right_pad|>",
    others=MARKS[:2],
    chat_template=tokens.headers(marks=MARKS),
)
_MISTRAL = Vocabulary("</s>", "<s>", "<pad>", ("[INST]", "[/INST]"), chat_template=tokens.instruct())
_LLAMA = Vocabulary(END, added=(IMAGE,), chat_template=tokens.vicuna())

LANGUAGES: dict[str, Language] = {
    "llama": Language("LlamaConfig", "LlamaForCausalLM", _LLAMA),
    "mistral": Language(
        "MistralConfig", "MistralForCausalLM", _MISTRAL, lambda s: {**_wide_heads(s), "sliding_window": None}
    ),
    "qwen2": Language("Qwen2Config", "Qwen2ForCausalLM", _QWEN),
    "qwen3": Language("Qwen3Config", "Qwen3ForCausalLM", _QWEN, _wide_heads),
    "gemma": Language("GemmaConfig", "GemmaForCausalLM", _GEMMA, _wide_heads),
    "gemma2": Language("Gemma2Config", "Gemma2ForCausalLM", _GEMMA, _alternating),
    "gemma3_text": Language("Gemma3TextConfig", "Gemma3ForCausalLM", _GEMMA, _alternating, ("<end_of_turn>",)),
    "llama4_text": Language("Llama4TextConfig", "Llama4ForCausalLM", _LLAMA4, _llama4),
}
"""Language models by model_type."""
