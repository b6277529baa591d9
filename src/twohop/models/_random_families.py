"""The table of tiny vision-language models, by model_type."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from twohop.models import _random_configs as configs
from twohop.models import _random_processors as processors
from twohop.models import _random_tokens as tokens
from twohop.models._random_configs import Size
from twohop.models._random_languages import MARKS
from twohop.models._random_tokens import IMAGE


@dataclass(frozen=True)
class Vision:
    """A family of vision-language models."""

    language: str
    """Family of its backbone."""
    net: str
    """Class of the model, by name: classes are loaded when one is built."""
    config: Callable[[Size], Any]
    processor: Callable[[Any, int], Any]
    """Makes the processor from the tokenizer and the picture's side in pixels."""
    added: tuple[str, ...] = ()
    """Tokens that it adds to its backbone's."""
    named: dict[str, str] = field(default_factory=dict[str, str])
    """Attributes of the tokenizer that its processor reads."""
    chat_template: str = ""
    """Jinja template of the processor and its tokenizer."""


# Tokens that a family adds, pictures' first. Mllama's picture has to be the last of all.
_ROWS = tuple(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7))
_IDEFICS = ("<fake_token_around_image>", "<end_of_utterance>", "<global-img>", *_ROWS)
_PIXTRAL = ("[IMG]", "[IMG_BREAK]", "[IMG_END]")
_LLAMA4 = (
    "<|image_start|>",
    "<|image_end|>",
    "<|image|>",
    "<|patch|>",
    "<|tile_x_separator|>",
    "<|tile_y_separator|>",
)
_GEMMA3 = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
_INTERNVL = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
_HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_MLLAMA = ("<|begin_of_text|>", "<|python_tag|>", *_HEADERS, "<|image|>")
_QWEN_PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"

VISIONS: dict[str, Vision] = {
    "llava": Vision(
        "llama", "LlavaForConditionalGeneration", configs.llava, processors.llava, chat_template=tokens.vicuna()
    ),
    "llava-pixtral": Vision(
        "mistral",
        "LlavaForConditionalGeneration",
        configs.pixtral,
        processors.pixtral,
        _PIXTRAL,
        chat_template=tokens.instruct(),
    ),
    "llava_next": Vision(
        "llama",
        "LlavaNextForConditionalGeneration",
        configs.llava_next,
        processors.llava_next,
        chat_template=tokens.vicuna(),
    ),
    "llava_onevision": Vision(
        "qwen2",
        "LlavaOnevisionForConditionalGeneration",
        configs.llava_onevision,
        processors.llava_onevision,
        (IMAGE, "<video>"),
        chat_template=tokens.chatml(),
    ),
    "mistral3": Vision(
        "mistral",
        "Mistral3ForConditionalGeneration",
        configs.mistral3,
        processors.mistral3,
        _PIXTRAL,
        chat_template=tokens.instruct(),
    ),
    "idefics3": Vision(
        "llama",
        "Idefics3ForConditionalGeneration",
        configs.idefics3,
        processors.idefics3,
        _IDEFICS,
        chat_template=tokens.utterances(),
    ),
    "smolvlm": Vision(
        "llama",
        "SmolVLMForConditionalGeneration",
        configs.smolvlm,
        processors.smolvlm,
        (*_IDEFICS, "<video>"),
        chat_template=tokens.utterances(),
    ),
    "internvl": Vision(
        "qwen2",
        "InternVLForConditionalGeneration",
        configs.internvl,
        processors.internvl,
        tuple(_INTERNVL.values()),
        named=_INTERNVL,
        chat_template=tokens.chatml("<IMG_CONTEXT>\n"),
    ),
    "paligemma": Vision(
        "gemma",
        "PaliGemmaForConditionalGeneration",
        configs.paligemma,
        processors.paligemma,
        (IMAGE,),
        named={"image_token": IMAGE},
        chat_template=tokens.prefix(),
    ),
    "gemma3": Vision(
        "gemma3_text",
        "Gemma3ForConditionalGeneration",
        configs.gemma3,
        processors.gemma3,
        tuple(_GEMMA3.values()),
        named=_GEMMA3,
        chat_template=tokens.gemma_turns(),
    ),
    "qwen2_5_vl": Vision(
        "qwen2",
        "Qwen2_5_VLForConditionalGeneration",
        configs.qwen2_5_vl,
        processors.qwen2_5_vl,
        configs.QWEN_TOKENS,
        chat_template=tokens.chatml(_QWEN_PICTURE),
    ),
    "qwen2_vl": Vision(
        "qwen2",
        "Qwen2VLForConditionalGeneration",
        configs.qwen2_vl,
        processors.qwen2_vl,
        configs.QWEN_TOKENS,
        chat_template=tokens.chatml(_QWEN_PICTURE),
    ),
    "qwen3_vl": Vision(
        "qwen3",
        "Qwen3VLForConditionalGeneration",
        configs.qwen3_vl,
        processors.qwen3_vl,
        configs.QWEN_TOKENS,
        chat_template=tokens.chatml(_QWEN_PICTURE),
    ),
    "llama4": Vision(
        "llama4_text",
        "Llama4ForConditionalGeneration",
        configs.llama4,
        processors.llama4,
        _LLAMA4,
        chat_template=tokens.headers(marks=MARKS),
    ),
    "mllama": Vision(
        "llama",
        "MllamaForConditionalGeneration",
        configs.mllama,
        processors.mllama,
        _MLLAMA,
        named={"bos_token": "<|begin_of_text|>"},
        chat_template=tokens.headers(),
    ),
}
"""Vision-language models by model_type; `llava-pixtral` is a LLaVA with Pixtral's tower."""
