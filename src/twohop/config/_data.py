"""Sections of the data steps: curate_entities, fetch_images, build_questions."""

from typing import Annotated, Literal

from pydantic import Field

from twohop.config._base import Section

Relation = Literal["capital", "continent", "language", "currency"]
ArtSource = Literal["flag-icons", "circle-flags", "noto"]
Style = Literal["1x1", "4x3", "circle", "simple", "noto_original", "noto_waved"]
Byte = Annotated[int, Field(ge=0, le=255)]


class CurateEntities(Section):
    """Which entities and facts the study is about."""

    source: Literal["flags"]
    """Table of entities; `flags` is the embedded one."""
    n_entities: int = Field(ge=4, le=193)
    """Entities to evaluate, drawn without replacement from those with a unique picture and facts that can be asked."""
    relations: list[Relation] = Field(min_length=1)
    """What is asked about every entity."""
    seed: int = Field(ge=0)
    """Seed of the draw of entities."""


class FetchImages(Section):
    """How pictures are rendered and stored."""

    size_px: int = Field(ge=32, le=1024)
    """Side of the square canvas in pixels."""
    background: list[Byte] = Field(min_length=3, max_length=3)
    """RGB of the canvas round a picture that is not square, 0-255."""
    styles: list[Style] = Field(min_length=1)
    """Renderings to make of every evaluated entity."""
    max_failed_share: float = Field(ge=0, le=1)
    """The step fails when more than this share of the pictures cannot be made."""


class BuildQuestions(Section):
    """Twin prompts and their pairing."""

    templates: dict[Relation, str]
    """Prompt of each relation; `{entity}` stands for the name (named form) or the picture (shown form)."""
    style: Style
    """Rendering that the questions show; its art source is held out of every projector's training."""
    dev_share: float = Field(ge=0, lt=1)
    """Share of the entities whose questions form the dev split (choices are made there, results reported on test)."""
    seed: int = Field(ge=0)
    """Seed of the split and of the corrupted twins."""
