"""Sections of the data steps: curate_entities, fetch_images, build_questions."""

from typing import Annotated, Literal

from pydantic import Field

from twohop.config._base import Section
from twohop.config._sources import EntitySource

Relation = Literal["capital", "continent", "language", "currency"]
ArtSource = Literal["flag-icons", "circle-flags", "noto"]
Style = Literal["1x1", "4x3", "circle", "simple", "noto_original", "noto_waved"]
Language = Literal["en", "de", "fr"]
MAX_ENTITIES = 100_000
MAX_STATES = 193
"""Entities that the source `flags` can have at most."""
Byte = Annotated[int, Field(ge=0, le=255)]


class CurateEntities(Section):
    """Which entities and facts the study is about."""

    source: EntitySource
    """Table of entities: `flags`, the embedded one, or a section that describes another ([sources.md](sources.md))."""
    n_entities: int = Field(ge=4, le=MAX_ENTITIES)
    """Entities to evaluate, drawn without replacement from those with a unique picture and facts that can be asked."""
    relations: list[str] = Field(min_length=1)
    """What is asked about every entity: for `flags` capital, continent, language, currency; for a table its columns."""
    seed: int = Field(ge=0)
    """Seed of the draw of entities."""


class FetchImages(Section):
    """How pictures are rendered and stored."""

    size_px: int = Field(ge=32, le=1024)
    """Side of the square canvas in pixels."""
    background: list[Byte] = Field(min_length=3, max_length=3)
    """RGB of the canvas round a picture that is not square, 0-255."""
    styles: list[str] = Field(min_length=1)
    """Pictures to make of every evaluated entity: for `flags` 1x1, 4x3, circle, simple, noto_original, noto_waved; for
    a table its picture columns, `main` for `picture` and `x` for `picture.x`."""
    max_failed_share: float = Field(ge=0, le=1)
    """The step fails when more than this share of the pictures cannot be made."""


class BuildQuestions(Section):
    """Twin prompts and their pairing."""

    templates: dict[str, str]
    """Prompt of each relation; `{entity}` stands for the name (named form) or the picture (shown form). A relation may
    be left out where a template of its name is shipped ([sources.md](sources.md))."""
    language: Language = "en"
    """Language of the shipped templates; names and answers come as the source has them."""
    style: str
    """Picture, one of fetch_images.styles, that the questions show; its art source is held out of every projector's
    training."""
    dev_share: float = Field(ge=0, lt=1)
    """Share of the entities whose questions form the dev split (choices are made there, results reported on test)."""
    seed: int = Field(ge=0)
    """Seed of the split and of the corrupted twins."""
