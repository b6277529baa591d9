"""The model card: the artifact of `prepare_model`, from which the weights' folder can be made again."""

import hashlib
import json
from pathlib import Path

from pydantic import Field, ValidationError

from twohop.config import ModelEntry, PrepareModel, Section
from twohop.errors import ModelError


class FileRecord(Section):
    """One file of the model's folder."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class ModelCard(Section):
    """What a model is, down to the bytes of its files."""

    name: str
    role: str
    family: str
    backbone: str | None
    """Catalogue name of the language model that it was trained from."""
    licence: str
    entry: ModelEntry
    """The catalogue entry: where the weights come from."""
    prepare: PrepareModel
    """Parameters of the recipe that made the folder."""
    folder: str
    """Name of the folder below the cache."""
    sources: dict[str, str]
    """sha256 of what the recipe was given: packages' payloads, the projector."""
    architecture: str
    n_layers: int = Field(ge=1)
    text_layers: list[int]
    """Layers that a text-only run passes: all but those that read a picture by cross-attention."""
    d_model: int = Field(ge=1)
    n_heads: int = Field(ge=1)
    vocab: int = Field(ge=1)
    parameters: int = Field(ge=1)
    n_image_tokens: int = Field(ge=0)
    """Of a picture of the study's size."""
    picture_px: int | None
    """Side in pixels of the study's pictures, for which image tokens were counted."""
    image_size: int | None
    """Side in pixels of what the tower sees."""
    image_token_id: int | None
    image_processor: str | None
    """Class and backend of the image processor; another backend can give other numbers."""
    files: dict[str, FileRecord]
    versions: dict[str, str]
    """Libraries that made the folder."""

    @property
    def revision(self) -> str:
        """sha256 over the names and sha256s of all files: what a hub's commit id is for a hub's model."""
        files = {name: record.sha256 for name, record in self.files.items()}
        return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()

    @property
    def source(self) -> str:
        """Where the weights come from, in a few words."""
        return " ".join(str(v) for v in self.entry.source.model_dump().values())


def read_card(path: Path) -> ModelCard:
    """Read a card.

    Raises:
        ModelError: absent, cut off or no card.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ModelError(f"cannot read the model card: {error}", str(path), "make it: prepare_model") from None
    try:
        return ModelCard.model_validate_json(text)
    except ValidationError as error:
        raise ModelError(f"not a model card: {error}", str(path), "make it again: prepare_model") from None
