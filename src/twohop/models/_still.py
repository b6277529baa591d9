"""A family's own processor class without its part for videos, which exists with torchvision only.

The study shows still pictures. Everything else of the processor is its own: tokenizer, image processor (PIL), and what
it writes for a picture.
"""

import json
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer

SAFE: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


class NoVideo:
    """Stands where the processor for videos would; none is ever given one."""

    model_input_names: tuple[str, ...] = ()
    unused_input_names: tuple[str, ...] = ()
    valid_kwargs: Any = None

    def to_dict(self) -> dict[str, Any]:
        """Nothing to save."""
        return {}


def load_still(folder: Path) -> Any:
    """The processor of a folder for still pictures.

    Raises:
        ImportError, OSError, ValueError, AttributeError: the family has no such processor, or needs torchvision for
            pictures, too.
    """
    base: Any = getattr(transformers, _class_name(folder))

    class Still(base):
        """The family's processor, for still pictures."""

        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            if argument_name == "video_processor":
                return NoVideo
            return super().check_argument_for_proper_class(argument_name, argument)

        def __repr__(self) -> str:  # the class's own writes all parts as JSON
            return f"{base.__name__} for still pictures"

    parts = {
        "image_processor": lambda: AutoImageProcessor.from_pretrained(folder, backend="pil", **SAFE),
        "tokenizer": lambda: AutoTokenizer.from_pretrained(folder, **SAFE),
        "video_processor": NoVideo,
    }
    settings, _ = base.get_processor_dict(folder, **SAFE)
    template = folder / "chat_template.jinja"
    if template.is_file() and "chat_template" not in settings:
        settings["chat_template"] = template.read_text(encoding="utf-8")
    Still.__name__ = base.__name__
    return Still.from_args_and_dict([parts[name]() for name in base.get_attributes()], settings)


def _class_name(folder: Path) -> str:
    """The processor's class: as the folder says, else as transformers has it for the family."""
    for file in ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json"):
        if (folder / file).is_file():
            name = json.loads((folder / file).read_text(encoding="utf-8")).get("processor_class")
            if isinstance(name, str):
                return name
    from transformers.models.auto.processing_auto import (
        PROCESSOR_MAPPING_NAMES,  # pyright: ignore[reportPrivateImportUsage]
    )

    return str(PROCESSOR_MAPPING_NAMES[AutoConfig.from_pretrained(folder, **SAFE).model_type])
