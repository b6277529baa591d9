"""The table of tiny vision-language models, by model_type: each keeps what is peculiar to its family."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import transformers as hf
from transformers.models.idefics3.configuration_idefics3 import Idefics3VisionConfig
from transformers.models.internvl.configuration_internvl import InternVLVisionConfig
from transformers.models.mllama.configuration_mllama import MllamaTextConfig
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLTextConfig
from transformers.models.smolvlm.configuration_smolvlm import SmolVLMVisionConfig

from twohop.models import _random_processors as processors
from twohop.models import _random_tokens as tokens
from twohop.models._random_languages import INITIALIZER_RANGE, MARKS
from twohop.models._random_tokens import IMAGE

D_TOWER = 32
"""Width of a tiny tower."""


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


def _halves(size: Size) -> int:
    """Patches of half a side: four in all."""
    return processors.patch_of(size.image_size, 2)


def _quarters(size: Size) -> int:
    return processors.patch_of(size.image_size)


def _llava(size: Size) -> Any:
    patch = processors.PATCH
    return hf.LlavaConfig(
        vision_config=_tower(hf.CLIPVisionConfig, size.image_size, patch, projection_dim=D_TOWER),
        text_config=hf.LlamaConfig(**size.text),
        image_token_index=size.id_of(IMAGE),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=(size.image_size // patch) ** 2,
        tie_word_embeddings=True,
    )


def _pixtral(size: Size) -> Any:
    return hf.LlavaConfig(
        vision_config=_tower(hf.PixtralVisionConfig, size.image_size, processors.PATCH),
        text_config=hf.MistralConfig(**size.text),
        image_token_index=size.id_of("[IMG]"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_seq_length=1,
        tie_word_embeddings=True,
    )


def _mistral3(size: Size) -> Any:
    return hf.Mistral3Config(
        vision_config=_tower(hf.PixtralVisionConfig, size.image_size, _quarters(size)),
        text_config=hf.MistralConfig(**size.text),
        image_token_index=size.id_of("[IMG]"),
        vision_feature_layer=-1,
        spatial_merge_size=2,
        tie_word_embeddings=True,
    )


def _llava_next(size: Size) -> Any:
    return hf.LlavaNextConfig(
        vision_config=_tower(hf.CLIPVisionConfig, size.image_size, _halves(size), projection_dim=D_TOWER),
        text_config=hf.LlamaConfig(**size.text),
        image_token_index=size.id_of(IMAGE),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_grid_pinpoints=processors.pinpoints(size.image_size),
        image_seq_length=4,
        tie_word_embeddings=True,
    )


def _llava_onevision(size: Size) -> Any:
    return hf.LlavaOnevisionConfig(
        vision_config=_tower(hf.SiglipVisionConfig, size.image_size, _halves(size), vision_use_head=False),
        text_config=hf.Qwen2Config(**size.text),
        image_token_index=size.id_of(IMAGE),
        video_token_index=size.id_of("<video>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_grid_pinpoints=processors.pinpoints(size.image_size),
        vision_aspect_ratio="anyres_max_9",
        tie_word_embeddings=True,
    )


def _idefics3(size: Size) -> Any:
    return hf.Idefics3Config(
        vision_config=_tower(Idefics3VisionConfig, size.image_size, _halves(size)),
        text_config=hf.LlamaConfig(**size.text),
        image_token_id=size.id_of(IMAGE),
        scale_factor=2,
        tie_word_embeddings=True,
    )


def _smolvlm(size: Size) -> Any:
    return hf.SmolVLMConfig(
        vision_config=_tower(SmolVLMVisionConfig, size.image_size, _halves(size)),
        text_config=hf.LlamaConfig(**size.text),
        image_token_id=size.id_of(IMAGE),
        scale_factor=2,
        tie_word_embeddings=True,
    )


def _internvl(size: Size) -> Any:
    return hf.InternVLConfig(
        vision_config=_tower(InternVLVisionConfig, size.image_size, _quarters(size)),
        text_config=hf.Qwen2Config(**size.text),
        image_token_id=size.id_of("<IMG_CONTEXT>"),
        image_seq_length=4,
        downsample_ratio=0.5,
        tie_word_embeddings=True,
    )


def _paligemma(size: Size) -> Any:
    return hf.PaliGemmaConfig(
        vision_config=_tower(hf.SiglipVisionConfig, size.image_size, _halves(size), vision_use_head=False),
        text_config=hf.GemmaConfig(**size.text),
        image_token_index=size.id_of(IMAGE),
        projection_dim=size.d_model,
        hidden_size=size.d_model,
        tie_word_embeddings=True,
    )


def _gemma3(size: Size) -> Any:
    return hf.Gemma3Config(
        vision_config=_tower(hf.SiglipVisionConfig, size.image_size, _quarters(size), vision_use_head=False),
        text_config=hf.Gemma3TextConfig(**size.text),
        mm_tokens_per_image=4,
        image_token_index=size.id_of("<image_soft_token>"),
        boi_token_index=size.id_of("<start_of_image>"),
        eoi_token_index=size.id_of("<end_of_image>"),
        initializer_range=INITIALIZER_RANGE,
        tie_word_embeddings=True,
    )


def _sections(size: Size) -> dict[str, Any]:
    """Settings with a head's frequencies shared out to time, height and width."""
    half = size.text.get("head_dim", size.d_model // size.text["num_attention_heads"]) // 2
    quarter = max(1, half // 4)
    rope = {**size.text["rope_parameters"], "mrope_section": [half - 2 * quarter, quarter, quarter]}
    return {**size.text, "rope_parameters": rope}


def _qwen_tower(size: Size, **more: Any) -> dict[str, Any]:
    return {
        "depth": 2,
        "hidden_size": D_TOWER,
        "intermediate_size": 2 * D_TOWER,
        "num_heads": 2,
        "out_hidden_size": size.d_model,
        "patch_size": _quarters(size),
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "initializer_range": INITIALIZER_RANGE,
        **more,
    }


def _qwen_tokens(size: Size) -> dict[str, Any]:
    start, end, image, video = (size.id_of(t) for t in _QWEN)
    return {
        "image_token_id": image,
        "video_token_id": video,
        "vision_start_token_id": start,
        "vision_end_token_id": end,
        "tie_word_embeddings": True,
    }


def _qwen2_5_vl(size: Size) -> Any:
    """A layer with windows of one token, then one that sees the whole picture."""
    vision = _qwen_tower(size, window_size=2 * _quarters(size), fullatt_block_indexes=[1])
    text = Qwen2_5_VLTextConfig(**_sections(size))
    return hf.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **_qwen_tokens(size))


def _qwen3_vl(size: Size) -> Any:
    """The first tower layer's features are added to the first decoder layer's output (deepstack)."""
    vision = _qwen_tower(size, num_position_embeddings=36, deepstack_visual_indexes=[0])
    text = Qwen3VLTextConfig(**_sections(size))
    return hf.Qwen3VLConfig(text_config=text, vision_config=vision, **_qwen_tokens(size))


def _llama4(size: Size) -> Any:
    vision = _tower(
        hf.Llama4VisionConfig,
        size.image_size,
        _quarters(size),
        vision_output_dim=D_TOWER,
        projector_input_dim=D_TOWER,
        projector_output_dim=D_TOWER,
        pixel_shuffle_ratio=0.5,
    )
    vision.intermediate_size = 4 * D_TOWER  # the adapter takes four patches side by side in this width
    return hf.Llama4Config(
        vision_config=vision,
        text_config=hf.Llama4TextConfig(**size.text),
        boi_token_index=size.id_of("<|image_start|>"),
        eoi_token_index=size.id_of("<|image_end|>"),
        image_token_index=size.id_of("<|patch|>"),
        tie_word_embeddings=True,
    )


CROSSED = (1, 3)
"""Cross-attention layers of the tiny Mllama, beside the backbone's own layers."""


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
    own = {
        "vocab_size": size.text["vocab_size"] - 1,  # the picture's token is read but never written
        "num_hidden_layers": size.n_layers + len(CROSSED),
        "cross_attention_layers": list(CROSSED),
        "bos_token_id": size.id_of("<|begin_of_text|>"),
        "tie_word_embeddings": False,
    }
    text = MllamaTextConfig(**{**size.text, **own})
    return hf.MllamaConfig(vision_config=vision, text_config=text, image_token_index=size.id_of("<|image|>"))


# Tokens that a family adds, pictures' first. Mllama's picture has to be the last of all.
_ROWS = tuple(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7))
_IDEFICS = ("<fake_token_around_image>", "<end_of_utterance>", "<global-img>", *_ROWS)
_PIXTRAL = ("[IMG]", "[IMG_BREAK]", "[IMG_END]")
_QWEN = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
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
    "llava": Vision("llama", hf.LlavaForConditionalGeneration, _llava, processors.llava, chat_template=tokens.vicuna()),
    "llava-pixtral": Vision(
        "mistral",
        hf.LlavaForConditionalGeneration,
        _pixtral,
        processors.pixtral,
        _PIXTRAL,
        chat_template=tokens.instruct(),
    ),
    "llava_next": Vision(
        "llama",
        hf.LlavaNextForConditionalGeneration,
        _llava_next,
        processors.llava_next,
        chat_template=tokens.vicuna(),
    ),
    "llava_onevision": Vision(
        "qwen2",
        hf.LlavaOnevisionForConditionalGeneration,
        _llava_onevision,
        processors.llava_onevision,
        (IMAGE, "<video>"),
        chat_template=tokens.chatml(),
    ),
    "mistral3": Vision(
        "mistral",
        hf.Mistral3ForConditionalGeneration,
        _mistral3,
        processors.mistral3,
        _PIXTRAL,
        chat_template=tokens.instruct(),
    ),
    "idefics3": Vision(
        "llama",
        hf.Idefics3ForConditionalGeneration,
        _idefics3,
        processors.idefics3,
        _IDEFICS,
        chat_template=tokens.utterances(),
    ),
    "smolvlm": Vision(
        "llama",
        hf.SmolVLMForConditionalGeneration,
        _smolvlm,
        processors.smolvlm,
        (*_IDEFICS, "<video>"),
        chat_template=tokens.utterances(),
    ),
    "internvl": Vision(
        "qwen2",
        hf.InternVLForConditionalGeneration,
        _internvl,
        processors.internvl,
        tuple(_INTERNVL.values()),
        named=_INTERNVL,
        chat_template=tokens.chatml("<IMG_CONTEXT>\n"),
    ),
    "paligemma": Vision(
        "gemma",
        hf.PaliGemmaForConditionalGeneration,
        _paligemma,
        processors.paligemma,
        (IMAGE,),
        named={"image_token": IMAGE},
        chat_template=tokens.prefix(),
    ),
    "gemma3": Vision(
        "gemma3_text",
        hf.Gemma3ForConditionalGeneration,
        _gemma3,
        processors.gemma3,
        tuple(_GEMMA3.values()),
        named=_GEMMA3,
        chat_template=tokens.gemma_turns(),
    ),
    "qwen2_5_vl": Vision(
        "qwen2",
        hf.Qwen2_5_VLForConditionalGeneration,
        _qwen2_5_vl,
        processors.qwen2_5_vl,
        _QWEN,
        chat_template=tokens.chatml(_QWEN_PICTURE),
    ),
    "qwen3_vl": Vision(
        "qwen3",
        hf.Qwen3VLForConditionalGeneration,
        _qwen3_vl,
        processors.qwen3_vl,
        _QWEN,
        chat_template=tokens.chatml(_QWEN_PICTURE),
    ),
    "llama4": Vision(
        "llama4_text",
        hf.Llama4ForConditionalGeneration,
        _llama4,
        processors.llama4,
        _LLAMA4,
        chat_template=tokens.headers(marks=MARKS),
    ),
    "mllama": Vision(
        "llama",
        hf.MllamaForConditionalGeneration,
        _mllama,
        processors.mllama,
        _MLLAMA,
        named={"bos_token": "<|begin_of_text|>"},
        chat_template=tokens.headers(),
    ),
}
"""Vision-language models by model_type; `llava-pixtral` is a LLaVA with Pixtral's tower."""
