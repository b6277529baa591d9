"""Configs of the tiny vision-language models: each keeps what is peculiar to its family."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import transformers as hf
from transformers.models.idefics3.configuration_idefics3 import Idefics3VisionConfig
from transformers.models.internvl.configuration_internvl import InternVLVisionConfig
from transformers.models.mllama.configuration_mllama import MllamaTextConfig
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLTextConfig
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLTextConfig
from transformers.models.smolvlm.configuration_smolvlm import SmolVLMVisionConfig

from twohop.models import _random_processors as processors
from twohop.models._random_languages import INITIALIZER_RANGE
from twohop.models._random_tokens import IMAGE

D_TOWER = 32
"""Width of a tiny tower."""
CROSSED = (1, 3)
"""Cross-attention layers of the tiny Mllama, beside the backbone's own layers."""
QWEN_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
"""Start and end of a picture, a picture's and a video's token."""


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


def llava(size: Size) -> Any:
    """CLIP, one token per patch."""
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


def pixtral(size: Size) -> Any:
    """Pixtral's tower in a LLaVA, rows of two-dimensional positions."""
    return hf.LlavaConfig(
        vision_config=_tower(hf.PixtralVisionConfig, size.image_size, processors.PATCH),
        text_config=hf.MistralConfig(**size.text),
        image_token_index=size.id_of("[IMG]"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_seq_length=1,
        tie_word_embeddings=True,
    )


def mistral3(size: Size) -> Any:
    """Pixtral's tower, two by two patches merged into a token."""
    return hf.Mistral3Config(
        vision_config=_tower(hf.PixtralVisionConfig, size.image_size, _quarters(size)),
        text_config=hf.MistralConfig(**size.text),
        image_token_index=size.id_of("[IMG]"),
        vision_feature_layer=-1,
        spatial_merge_size=2,
        tie_word_embeddings=True,
    )


def llava_next(size: Size) -> Any:
    """Anyres: the whole picture, its tiles, and a learnt newline after each row."""
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


def llava_onevision(size: Size) -> Any:
    """Anyres as LLaVA-NeXT, on SigLIP."""
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


def idefics3(size: Size) -> Any:
    """Tiles in their rows and columns, then the whole picture; pixel shuffle makes four patches one token."""
    return hf.Idefics3Config(
        vision_config=_tower(Idefics3VisionConfig, size.image_size, _halves(size)),
        text_config=hf.LlamaConfig(**size.text),
        image_token_id=size.id_of(IMAGE),
        scale_factor=2,
        tie_word_embeddings=True,
    )


def smolvlm(size: Size) -> Any:
    """As Idefics3."""
    return hf.SmolVLMConfig(
        vision_config=_tower(SmolVLMVisionConfig, size.image_size, _halves(size)),
        text_config=hf.LlamaConfig(**size.text),
        image_token_id=size.id_of(IMAGE),
        scale_factor=2,
        tie_word_embeddings=True,
    )


def internvl(size: Size) -> Any:
    """Tiles and a thumbnail; pixel shuffle makes four patches one token."""
    return hf.InternVLConfig(
        vision_config=_tower(InternVLVisionConfig, size.image_size, _quarters(size)),
        text_config=hf.Qwen2Config(**size.text),
        image_token_id=size.id_of("<IMG_CONTEXT>"),
        image_seq_length=4,
        downsample_ratio=0.5,
        tie_word_embeddings=True,
    )


def paligemma(size: Size) -> Any:
    """SigLIP before a prompt that attends in both directions (prefix mask)."""
    return hf.PaliGemmaConfig(
        vision_config=_tower(hf.SiglipVisionConfig, size.image_size, _halves(size), vision_use_head=False),
        text_config=hf.GemmaConfig(**size.text),
        image_token_index=size.id_of(IMAGE),
        projection_dim=size.d_model,
        hidden_size=size.d_model,
        tie_word_embeddings=True,
    )


def gemma3(size: Size) -> Any:
    """SigLIP pooled to four tokens that see each other."""
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


def _qwen_ids(size: Size) -> dict[str, Any]:
    start, end, image, video = (size.id_of(t) for t in QWEN_TOKENS)
    return {
        "image_token_id": image,
        "video_token_id": video,
        "vision_start_token_id": start,
        "vision_end_token_id": end,
        "tie_word_embeddings": True,
    }


def qwen2_5_vl(size: Size) -> Any:
    """A layer with windows of one token, then one that sees the whole picture."""
    vision = _qwen_tower(size, window_size=2 * _quarters(size), fullatt_block_indexes=[1])
    text = Qwen2_5_VLTextConfig(**_sections(size))
    return hf.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **_qwen_ids(size))


def qwen2_vl(size: Size) -> Any:
    """Every layer sees the whole picture."""
    vision = _qwen_tower(size, hidden_size=size.d_model, embed_dim=D_TOWER, mlp_ratio=2)
    vision = {k: v for k, v in vision.items() if k not in ("intermediate_size", "out_hidden_size")}
    text = Qwen2VLTextConfig(**_sections(size))
    return hf.Qwen2VLConfig(text_config=text, vision_config=vision, **_qwen_ids(size))


def qwen3_vl(size: Size) -> Any:
    """The first tower layer's features are added to the first decoder layer's output (deepstack)."""
    vision = _qwen_tower(size, num_position_embeddings=36, deepstack_visual_indexes=[0])
    text = Qwen3VLTextConfig(**_sections(size))
    return hf.Qwen3VLConfig(text_config=text, vision_config=vision, **_qwen_ids(size))


def llama4(size: Size) -> Any:
    """Pixel shuffle makes four patches one token."""
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


def mllama(size: Size) -> Any:
    """Cross-attention layers between the backbone's own."""
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
    own: dict[str, Any] = {
        "vocab_size": size.text["vocab_size"] - 1,  # the picture's token is read but never written
        "num_hidden_layers": size.n_layers + len(CROSSED),
        "cross_attention_layers": list(CROSSED),
        "bos_token_id": size.id_of("<|begin_of_text|>"),
        "tie_word_embeddings": False,
    }
    text = MllamaTextConfig(**{**size.text, **own})
    return hf.MllamaConfig(vision_config=vision, text_config=text, image_token_index=size.id_of("<|image|>"))
