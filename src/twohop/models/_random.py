"""Tiny models with random weights, built from the classes' own configs: the pipeline's tests run on them.

A backbone and a VLM of the same seed and size share the same language model, as a real pair does.
"""

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from twohop.config import RandomModel

PATCH = 16
"""Side of a picture patch in pixels, one image token each."""
VOCABULARY = 384
"""Tokens of the tiny tokenizer, all bytes among them."""
D_TOWER = 32
"""Width of the tiny tower."""
INITIALIZER_RANGE = 0.1
"""Standard deviation of the weights: wide enough that answers differ between prompts."""
END, IMAGE = "<|im_end|>", "<image>"
CORPUS = (
    "Consider the country France. The capital of this country is Paris.",
    "Consider the country Japan. This country is in the continent of Asia.",
    "Consider the country Brazil. The official language of this country is Portuguese.",
    "The name of this country is Germany. This is the flag of Canada. The country is called Kenya.",
    "United States, United Kingdom, South Africa, New Zealand, Saint Lucia, North Macedonia, Ireland, Iceland",
)
"""Text that the tiny tokenizer learns its merges from: names of one and of several tokens come out of it."""


def build_random(folder: Path, source: RandomModel, with_tower: bool, image_size: int) -> None:
    """Write a tiny Llama (and a tiny CLIP tower wired in, LLaVA style) as a plain transformers folder.

    Args:
        folder: empty folder to fill.
        source: seed and size.
        with_tower: a LLaVA model instead of a Llama.
        image_size: side in pixels of what the tower sees.
    """
    tokenizer = tiny_tokenizer()
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=source.d_model,
        intermediate_size=2 * source.d_model,
        num_hidden_layers=source.n_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=INITIALIZER_RANGE,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=tokenizer.convert_tokens_to_ids(END),
        pad_token_id=tokenizer.convert_tokens_to_ids(END),
        tie_word_embeddings=True,
    )
    torch.manual_seed(source.seed)
    llama: Any = LlamaForCausalLM(text)
    if not with_tower:
        llama.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return
    llava = _llava(text, tokenizer.convert_tokens_to_ids(IMAGE), image_size)
    llava.model.language_model.load_state_dict(llama.model.state_dict())
    llava.tie_weights()
    llava.save_pretrained(folder)
    _processor(tokenizer, image_size).save_pretrained(folder)


def tiny_tokenizer() -> Any:
    """A byte-level BPE tokenizer with a few merges; it can write any text."""
    raw: Any = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    raw.train_from_iterator(CORPUS, trainer)
    raw.add_special_tokens([AddedToken(IMAGE, special=True, normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=END, pad_token=END)


def _llava(text: LlamaConfig, image_token_id: int, image_size: int) -> Any:
    tower = CLIPVisionConfig(
        hidden_size=D_TOWER,
        intermediate_size=2 * D_TOWER,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=image_size,
        patch_size=PATCH,
        projection_dim=D_TOWER,
        initializer_range=INITIALIZER_RANGE,
    )
    config = LlavaConfig(
        vision_config=tower,
        text_config=text,
        image_token_index=image_token_id,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=(image_size // PATCH) ** 2,
        tie_word_embeddings=True,
    )
    return LlavaForConditionalGeneration(config)


def _processor(tokenizer: Any, image_size: int) -> Any:
    size = {"height": image_size, "width": image_size}
    image_processor = CLIPImageProcessorPil(size=size, crop_size=size)
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        image_token=IMAGE,
        num_additional_image_tokens=1,
    )
