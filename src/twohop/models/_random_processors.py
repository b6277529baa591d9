"""Processors of the tiny models: the families' own classes at a small size.

Processors with a video part (and Llama 4's) can only be made where torchvision is installed, so their files are
written here in the form that their `save_pretrained` gives; `WrittenProcessor` does it.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import (
    CLIPImageProcessorPil,
    Gemma3ImageProcessorPil,
    Gemma3Processor,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaProcessor,
    MllamaImageProcessorPil,
    MllamaProcessor,
    PaliGemmaProcessor,
    PixtralImageProcessorPil,
    PixtralProcessor,
    SiglipImageProcessorPil,
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


def pixtral(tokenizer: Any, image_size: int, merge: int = 1) -> Any:
    """Pixtral's pictures keep their size up to the longest edge; rows end with a token of their own."""
    patch = PATCH if merge == 1 else patch_of(image_size)
    edge = patch * merge
    return PixtralProcessor(
        image_processor=PixtralImageProcessorPil(size={"longest_edge": image_size}, patch_size=square(edge)),
        tokenizer=tokenizer,
        patch_size=patch,
        spatial_merge_size=merge,
        chat_template=tokenizer.chat_template,
    )


def mistral3(tokenizer: Any, image_size: int) -> Any:
    """Pixtral's pictures, two by two patches a token."""
    return pixtral(tokenizer, image_size, merge=2)


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
