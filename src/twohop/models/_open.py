"""Opening a prepared model: every file is checked against the card before a weight is read."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from twohop.errors import ModelError
from twohop.models._card import ModelCard, read_card
from twohop.models._check import check_folder, compare
from twohop.models._frame import find_frame
from twohop.models._loading import load_net
from twohop.models._model import Model
from twohop.models._prepare import cache_root, check_files, ensure_folder
from twohop.models._processor import load_processor, load_tokenizer, read_config, sees
from twohop.models._prompts import Tokens
from twohop.models._self_check import SIDE, check_picture_run

_checked: set[tuple[str, str]] = set()
"""Folders whose files this process has compared with a card already."""
_opened: dict[str, "OpenedModel"] = {}


@dataclass(frozen=True)
class OpenedModel:
    """What a lineage record says of a model that a process has opened."""

    name: str
    source: str
    revision: str
    dtype: str
    device: str
    attention: str

    def as_json(self) -> dict[str, str]:
        """Plain values."""
        return asdict(self)


def opened() -> list[OpenedModel]:
    """The models that this process has opened."""
    return list(_opened.values())


def open_model(card: Path) -> Model:
    """Load the model that a card describes, as its entry's `loading` says; nothing is read that would not fit.

    Raises:
        ModelError: the card is no card, or a file is not what it says.
    """
    record = read_card(card)
    folder = checked_folder(record)
    net = load_net(folder, record, cache_root().parent / "offload" / record.folder)
    tokens, processor = _tokens(record, folder)
    model = Model(net, record, tokens, processor)
    if (model.n_layers, model.d_model) != (record.n_layers, record.d_model):
        raise ModelError("the model's size is not the card's", str(card), "make the card again: prepare_model")
    if model.eyes is not None:
        check_picture_run(model, int(record.picture_px or SIDE))
    attention = str(net.config._attn_implementation)
    _opened[record.name] = OpenedModel(
        record.name, record.source, record.revision, str(model.dtype), model.device.type, attention
    )
    return model


def open_tokenizer(card: Path) -> Tokens:
    """The tokenizer alone, with the study's conventions; loads no weights."""
    record = read_card(card)
    return _tokens(record, checked_folder(record))[0]


def checked_folder(card: ModelCard) -> Path:
    """The card's folder, made again when absent; every file equals its record.

    Raises:
        ModelError: a file is missing or altered, or the recipe now gives other bytes than the card says.
    """
    path = cache_root() / card.folder
    key = (str(path.resolve()), card.model_dump_json())
    if key not in _checked or not path.is_dir():
        if not path.is_dir():
            ensure_folder(card.folder, card.entry, card.prepare)
        check_files(path, card.files)
        _checked.add(key)
    return path


def check_backbone(card: ModelCard, backbone: ModelCard) -> None:
    """Compare the shapes of a VLM's own layers with its backbone's, by config and headers; no weight is read.

    Raises:
        ModelError: they differ: the backbone is another model's.
    """
    folder, other = checked_folder(card), checked_folder(backbone)
    found = compare(folder, other, check_folder(folder, "vlm"), check_folder(other, "backbone"), distances=False)
    if found.faults:
        todo = f"name the language model that {card.name} was trained from (models.{card.name}.backbone)"
        raise ModelError("\n".join(found.faults), f"{card.name} beside {backbone.name}", todo)


def _tokens(card: ModelCard, folder: Path) -> tuple[Tokens, Any]:
    """The tokenizer with the frame of the card's prompts, and the processor of a model that is shown pictures."""
    processor = load_processor(folder) if sees(read_config(folder)) else None
    tokenizer = load_tokenizer(folder) if processor is None else processor.tokenizer
    frame = find_frame(tokenizer, processor, card.entry.prompt == "chat")
    return Tokens(tokenizer, card.n_image_tokens, card.image_token_id, frame), processor
