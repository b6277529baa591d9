"""A folder's config, tokenizer and processor; no weights. Code from the folder never runs (promise M1)."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoProcessor, AutoTokenizer

from twohop.errors import ModelError
from twohop.models._still import SAFE, load_still


def read_config(folder: Path) -> Any:
    """The model's config.

    Raises:
        ModelError: no config, or a family that the installed transformers does not have (without code of its own).
    """
    try:
        return AutoConfig.from_pretrained(folder, **SAFE)
    except (OSError, ValueError, KeyError) as error:
        what = str(error).strip().splitlines()[0]
        todo = "give a folder in the transformers layout, of a family that transformers itself has (no remote code)"
        raise ModelError(f"cannot read the model's config: {what}", str(folder), todo) from None


def sees(config: Any) -> bool:
    """The config is a vision-language model's."""
    return getattr(config, "vision_config", None) is not None


def cross_layers(text: Any) -> tuple[int, ...]:
    """Decoder layers of a text config that read a picture by cross-attention; a text-only run skips them."""
    return tuple(int(i) for i in getattr(text, "cross_attention_layers", None) or ())


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer.

    Raises:
        ModelError: its files are missing or broken.
    """
    try:
        return AutoTokenizer.from_pretrained(folder, **SAFE)
    except (OSError, ValueError, KeyError) as error:
        what = str(error).strip().splitlines()[0]
        raise ModelError(f"cannot load the tokenizer: {what}", str(folder), "download its files again") from None


def load_processor(folder: Path) -> Any:
    """The whole processor, with the PIL backend where the family has one: torchvision's resizing gives other numbers.

    Raises:
        ModelError: torchvision is needed and not there, or the files are missing or broken.
    """
    processor = _first_that_loads(folder)
    if not hasattr(processor, "image_processor"):
        raise ModelError(
            "the folder has no image processor", str(folder), "add preprocessor_config.json and processor_config.json"
        )
    return processor


def _first_that_loads(folder: Path) -> Any:
    """PIL for all parts; else without the part for videos; else whatever backend the family has."""
    ways: tuple[Callable[[], Any], ...] = (
        lambda: AutoProcessor.from_pretrained(folder, backend="pil", **SAFE),
        lambda: load_still(folder),
        lambda: AutoProcessor.from_pretrained(folder, **SAFE),
    )
    errors: list[Exception] = []
    for way in ways:
        try:
            return way()
        except (ImportError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            errors.append(error)
    first = str(errors[0]).strip().splitlines()[0]
    if importlib.util.find_spec("torchvision") is None and any("torchvision" in str(e).lower() for e in errors):
        raise ModelError(
            f"this family's processor needs torchvision: {first}",
            str(folder),
            "install torch and torchvision of one release (docs/models.md says how)",
        )
    raise ModelError(f"cannot load the processor: {first}", str(folder), "download its files again")


def named_image_token(config: Any) -> int | None:
    """Id of the image token that a config names; None: it names none."""
    ids = (getattr(config, key, None) for key in ("image_token_id", "image_token_index"))
    return next((i for i in ids if isinstance(i, int)), None)


def image_token(config: Any, processor: Any, folder: Path) -> int:
    """Id of the tokens that a picture's features stand at.

    Raises:
        ModelError: the config names none, or the tokenizer does not have it.
    """
    found = named_image_token(config)
    if found is None:
        raise ModelError("the config names no image token", str(folder), "this family is not supported")
    if int(found) >= len(processor.tokenizer) or processor.tokenizer.convert_ids_to_tokens(int(found)) is None:
        raise ModelError(
            f"the tokenizer has no token {found}, which is the model's image token",
            str(folder),
            "take the tokenizer files of the vision-language model, not of its language model",
        )
    return int(found)
