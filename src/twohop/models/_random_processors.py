"""Processors of the tiny models: the families' own classes at a small size.

Processors with a video part, and those of Pixtral and Llama 4, can only be made where torchvision is installed, so
their files are written here in the form that their `save_pretrained` gives; `WrittenProcessor` does it.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import (
    CLIPImageProcessorPil,
    Gemma3ImageProcessorPil,
    Gemma3Processor,
    GotOcr2ImageProcessorPil,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaOnevisionImageProcessorPil,
    LlavaProcessor,
    MllamaImageProcessorPil,
    MllamaProcessor,
    PaliGemmaProcessor,
    PixtralImageProcessorPil,
    Qwen2VLImageProcessorPil,
    SiglipImageProcessorPil,
    SmolVLMImageProcessorPil,
)

from twohop.models._random_tokens import IMAGE

PATCH = 16
"""Side of a picture patch in pixels, one image token each (LLaVA, Pixtral, Mllama)."""


def patch_of(image_size: int, per_side: int = 4) -> int:
    """Side of a patch, so that a picture has `per_side` patches on a side whatever its size."""
    return image_size // per_side


def square(image_size: int) -> dict[str, int]:
    """A size as image processors take it."""
    return {"height": image_size, "width": image_size}


def pinpoints(image_size: int) -> list[list[int]]:
    """Resolutions of anyres pictures: two tiles beside or above each other, for a square picture four."""
    return [[image_size, 2 * image_size], [2 * image_size, image_size], [2 * image_size, 2 * image_size]]


@dataclass(frozen=True)
class WrittenProcessor:
    """A processor that is only written to files; it loads where torchvision is installed."""

    name: str
    tokenizer: Any
    parts: dict[str, Any]

    def save_pretrained(self, folder: Path) -> None:
        """Write the tokenizer, `processor_config.json` and `chat_template.jinja`."""
        self.tokenizer._set_processor_class(self.name)
        self.tokenizer.save_pretrained(folder)
        text = json.dumps({"processor_class": self.name, **self.parts}, indent=2, sort_keys=True) + "\n"
        (folder / "processor_config.json").write_text(text, encoding="utf-8")


def llava(tokenizer: Any, image_size: int) -> Any:
    """CLIP's pictures, one token per patch."""
    size = square(image_size)
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size=size, crop_size=size),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        image_token=IMAGE,
        num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )


def pixtral(tokenizer: Any, image_size: int, patch: int = PATCH, merge: int = 1) -> Any:
    """Pixtral's pictures keep their size up to the longest edge; rows end with a token of their own."""
    names = {"image_token": "[IMG]", "image_break_token": "[IMG_BREAK]", "image_end_token": "[IMG_END]"}
    images = PixtralImageProcessorPil(size={"longest_edge": image_size}, patch_size=square(patch * merge))
    sizes = {"patch_size": patch, "spatial_merge_size": merge}
    return WrittenProcessor("PixtralProcessor", tokenizer, {"image_processor": images.to_dict(), **names, **sizes})


def mistral3(tokenizer: Any, image_size: int) -> Any:
    """Pixtral's pictures, two by two patches a token."""
    return pixtral(tokenizer, image_size, patch_of(image_size), merge=2)


def llava_onevision(tokenizer: Any, image_size: int) -> Any:
    """The whole picture and its tiles, a newline after each row."""
    images = LlavaOnevisionImageProcessorPil(size=square(image_size), image_grid_pinpoints=pinpoints(image_size))
    parts = {
        "image_processor": images.to_dict(),
        "video_processor": _video("LlavaOnevision", images, do_sample_frames=False, size=square(image_size)),
        "image_token": IMAGE,
        "num_image_tokens": 4,
        "video_token": "<video>",
        "vision_aspect_ratio": "anyres_max_9",
        "vision_feature_select_strategy": "full",
    }
    return WrittenProcessor("LlavaOnevisionProcessor", tokenizer, parts)


def smolvlm(tokenizer: Any, image_size: int) -> Any:
    """As Idefics3."""
    edge = {"longest_edge": image_size}
    images = SmolVLMImageProcessorPil(size={"longest_edge": 2 * image_size}, max_image_size=edge)
    video = _video("SmolVLM", images, do_pad=True, do_sample_frames=False, size=edge, max_image_size=edge)
    parts = {"image_processor": images.to_dict(), "video_processor": video, "image_seq_len": 1}
    return WrittenProcessor("SmolVLMProcessor", tokenizer, parts)


def internvl(tokenizer: Any, image_size: int) -> Any:
    """Up to four tiles and the whole picture, four tokens each."""
    images = GotOcr2ImageProcessorPil(size=square(image_size), max_patches=4)
    video = _video("InternVL", images, do_sample_frames=False, initial_shift=True, size=square(image_size))
    parts = {"image_processor": images.to_dict(), "video_processor": video, "image_seq_length": 4}
    return WrittenProcessor("InternVLProcessor", tokenizer, parts)


def _qwen(image_size: int, video: str, **more: Any) -> dict[str, Any]:
    grid: dict[str, Any] = {"merge_size": 2, "patch_size": patch_of(image_size), "temporal_patch_size": 2}
    size = {"shortest_edge": image_size**2, "longest_edge": image_size**2}
    images = Qwen2VLImageProcessorPil(size=size, **grid)
    frames: dict[str, Any] = {"min_frames": 4, "max_frames": 768, "size": size, **grid, **more}
    return {"image_processor": images.to_dict(), "video_processor": _video(video, images, **frames)}


def qwen2_5_vl(tokenizer: Any, image_size: int) -> Any:
    """Four by four patches, two by two a token."""
    parts = _qwen(image_size, "Qwen2VL", do_sample_frames=False, max_video_tokens=128000)
    return WrittenProcessor("Qwen2_5_VLProcessor", tokenizer, parts)


def qwen2_vl(tokenizer: Any, image_size: int) -> Any:
    """Four by four patches, two by two a token."""
    parts = _qwen(image_size, "Qwen2VL", do_sample_frames=False, max_video_tokens=128000)
    return WrittenProcessor("Qwen2VLProcessor", tokenizer, parts)


def qwen3_vl(tokenizer: Any, image_size: int) -> Any:
    """Four by four patches, two by two a token."""
    half = [0.5, 0.5, 0.5]
    more = {"do_sample_frames": True, "fps": 2, "max_video_tokens": 768, "image_mean": half, "image_std": half}
    return WrittenProcessor("Qwen3VLProcessor", tokenizer, _qwen(image_size, "Qwen3VL", **more))


def _video(family: str, images: Any, **more: Any) -> dict[str, Any]:
    """The video part of a processor: as the picture part, for what the class does not set otherwise."""
    shared = ("do_convert_rgb", "do_normalize", "do_rescale", "do_resize", "image_mean", "image_std", "resample")
    return {
        **{name: getattr(images, name) for name in shared},
        "rescale_factor": images.rescale_factor,
        "return_metadata": False,
        "video_processor_type": f"{family}VideoProcessor",
        **more,
    }


def llama4(tokenizer: Any, image_size: int) -> Any:
    """Up to four tiles and the whole picture; four tokens each."""
    half = [0.5, 0.5, 0.5]
    flags = ("do_convert_rgb", "do_normalize", "do_rescale", "do_resize")
    images = {
        **dict.fromkeys(flags, True),
        "image_mean": half,
        "image_std": half,
        "image_processor_type": "Llama4ImageProcessor",
        "max_patches": 4,
        "resample": 2,
        "rescale_factor": 1 / 255,
        "resize_to_max_canvas": False,
        "size": square(image_size),
    }
    names = {"image_token": "<|image|>", "fake_image_token": "<|image|>"}
    parts = {"image_processor": images, "patch_size": patch_of(image_size), **names}
    return WrittenProcessor("Llama4Processor", tokenizer, parts)


def llava_next(tokenizer: Any, image_size: int) -> Any:
    """The whole picture and its tiles, a newline after each row."""
    return LlavaNextProcessor(
        image_processor=LlavaNextImageProcessorPil(
            size={"shortest_edge": image_size},
            crop_size=square(image_size),
            image_grid_pinpoints=pinpoints(image_size),
        ),
        tokenizer=tokenizer,
        patch_size=patch_of(image_size, 2),
        vision_feature_select_strategy="default",
        image_token=IMAGE,
        num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )


def idefics3(tokenizer: Any, image_size: int) -> Any:
    """Two by two tiles with their row and column, then the whole picture; a token each."""
    return Idefics3Processor(
        image_processor=Idefics3ImageProcessorPil(
            size={"longest_edge": 2 * image_size}, max_image_size={"longest_edge": image_size}
        ),
        tokenizer=tokenizer,
        image_seq_len=1,
        chat_template=tokenizer.chat_template,
    )


def paligemma(tokenizer: Any, image_size: int) -> Any:
    """SigLIP's pictures before the text; the processor adds its tokens for places to the tokenizer."""
    images: Any = SiglipImageProcessorPil(size=square(image_size))
    images.image_seq_length = (image_size // patch_of(image_size, 2)) ** 2
    return PaliGemmaProcessor(image_processor=images, tokenizer=tokenizer, chat_template=tokenizer.chat_template)


def gemma3(tokenizer: Any, image_size: int) -> Any:
    """A picture's tokens between a start and an end, with empty lines around."""
    images = Gemma3ImageProcessorPil(size=square(image_size))
    return Gemma3Processor(images, tokenizer, chat_template=tokenizer.chat_template, image_seq_length=4)


def mllama(tokenizer: Any, image_size: int) -> Any:
    """Up to four tiles; the text has one token for the picture."""
    images = MllamaImageProcessorPil(size=square(image_size), max_image_tiles=4)
    return MllamaProcessor(images, tokenizer, chat_template=tokenizer.chat_template)
