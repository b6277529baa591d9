"""Sections of the model and analysis steps."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from twohop.config._base import Section
from twohop.config._data import ArtSource

SiteKind = Literal["resid_post", "mlp_write", "attn_write"]
Feature = Literal["image", "image_last", "last"]
Layer = Annotated[int, Field(ge=0)]
LayerPair = Annotated[list[Layer], Field(min_length=2, max_length=2)]


class PrepareModel(Section):
    """From a catalogue entry to a local, hash-checked folder."""

    image_size: int = Field(ge=16, le=512, multiple_of=16)
    """Side in pixels of what an assembled VLM's tower sees; 16-pixel patches, one image token each."""
    tower_layers: int = Field(ge=1, le=12)
    """Layers of the tower that are kept; the last one's output feeds the projector."""


class CaptionRecipe(Section):
    """LLaVA's stage 1: the name's cross-entropy through the whole frozen language model."""

    steps: int = Field(ge=1)
    """Optimiser steps."""
    batch: int = Field(ge=1)
    """Pictures per step."""
    lr: float = Field(gt=0)
    """Peak learning rate."""


class EarlyRecipe(Section):
    """Residual alignment: image tokens are aligned with the repeated name at the input and after an early layer."""

    steps: int = Field(ge=1)
    """Optimiser steps."""
    batch: int = Field(ge=1)
    """Pictures per step."""
    lr: float = Field(gt=0)
    """Peak learning rate."""
    align_layer: int = Field(ge=0)
    """Index of the LLM layer at whose output image tokens are aligned; only layers up to it are run."""
    align_every: int = Field(ge=1)
    """Every so many steps the residuals after `align_layer` are compared; on the others the first layer's input."""
    contrast: float = Field(ge=0)
    """Weight of the contrastive term (which entity is it, by distance)."""
    suffix: float = Field(ge=0)
    """Weight of the residuals of the text that follows the picture."""


class NativeRecipe(Section):
    """Early fusion: projector and low-rank updates of the language model, on captions mixed with text replay."""

    warm_up: int = Field(ge=1)
    """Steps before that of the projector alone, as recipe `early` (its `batch`, `lr`, `contrast`) at the input."""
    steps: int = Field(ge=1)
    """Optimiser steps."""
    batch: int = Field(ge=1)
    """Pictures per step."""
    lr: float = Field(gt=0)
    """Peak learning rate."""
    rank: int = Field(ge=1, le=64)
    """Rank of the update of every linear layer."""
    replay: float = Field(ge=0)
    """Weight of the divergence from the frozen language model on plain texts."""
    replay_batch: int = Field(ge=1)
    """Plain texts per step."""


class CrossRecipe(Section):
    """Gated cross-attention layers between the frozen language model's own, trained on captions and answers."""

    layers: list[Layer] = Field(min_length=1)
    """Indices of the new layers among all layers, ascending; the language model's own move up."""
    steps: int = Field(ge=1)
    """Optimiser steps."""
    batch: int = Field(ge=1)
    """Pictures per step."""
    lr: float = Field(gt=0)
    """Peak learning rate."""
    gate_speed: float = Field(gt=0)
    """Learning rate of the gates, which start at 0, in units of `lr`."""
    answers: float = Field(ge=0)
    """Weight of the divergence from what the language model says to the name, where something else is asked."""
    answer_tokens: int = Field(ge=1, le=32)
    """Tokens of the language model's answer that are compared."""

    @field_validator("layers")
    @classmethod
    def _ascending(cls, layers: list[int]) -> list[int]:
        if sorted(set(layers)) != layers:
            raise ValueError(f"is {layers}; allowed: ascending, each once")
        return layers


class TrainProjector(Section):
    """Training of what an assembled VLM adds to its frozen parts: a projector, and what its recipe adds to that."""

    train_sources: list[ArtSource] = Field(min_length=1)
    """Art sources seen in training; the source of `build_questions.style` must not be among them."""
    copies: int = Field(ge=1)
    """Copies of every training picture: the plain one, the others augmented."""
    caption: CaptionRecipe
    """Recipe `caption`."""
    early: EarlyRecipe
    """Recipe `early`."""
    native: NativeRecipe
    """Recipe `native`."""
    cross: CrossRecipe
    """Recipe `cross`."""
    seed: int = Field(ge=0)
    """Seed of the initial weights, the order of pictures and the augmentation."""


class RunBenchmark(Section):
    """Three conditions, two gates."""

    batch: int = Field(ge=1)
    """Prompts in a forward pass; of short ones that continue what is kept, up to 160 tokens for each."""
    max_new_tokens: int = Field(ge=1, le=64)
    """Longest answer, in tokens."""
    recognition_prompts: list[str] = Field(min_length=1)
    """Prompts that ask for the name of what is shown; `{entity}` stands for the picture."""
    n_boot: int = Field(ge=100)
    """Bootstrap draws over entities."""
    seed: int = Field(ge=0)
    """Seed of the bootstrap."""


class ExtractActivations(Section):
    """What is written to HDF5."""

    sites: list[SiteKind] = Field(min_length=1)
    """Where activations are read; train_probes needs resid_post, patch_activations mlp_write."""
    dtype: Literal["float32", "float16", "bfloat16"]
    """Number format on disk; bfloat16 and float16 take half the space of float32."""
    batch: int = Field(ge=1)
    """Prompts in a forward pass; of short ones that continue what is kept, up to 160 tokens for each."""
    chunk_rows: int = Field(ge=1)
    """Rows of a chunk; extraction resumes per chunk."""
    shards: int = Field(
        default=1, ge=1, le=1000, exclude=True
    )  # no part of what the step is told: the bytes are the same
    """Jobs that share the extraction of one model; more than 1 is for many nodes or GPUs. The file is the same."""
    pictures_prompt: str
    """Prompt of the `pictures` run, which asks for the name of what is shown; `{entity}` stands for the picture."""
    copies: int = Field(ge=0)
    """Augmented copies of every picture that is not of the held-out art source; train_probes trains on them."""
    seed: int = Field(ge=0)
    """Seed of the augmentation."""


class ScoreAttribution(Section):
    """Attribution patching (study, section 3)."""

    max_examples: int = Field(ge=2)
    """Questions scored per run."""
    method: Literal["plain", "integrated", "atp_star"]
    """plain: the gradient at the clean input; integrated: its mean between clean and corrupted input embeddings;
    atp_star: plain, with queries and keys scored through a softmax done again, and GradDrop (one backward pass per
    layer; families llama and llava)."""
    steps: int = Field(ge=1)
    """Points of method integrated between clean and corrupted; 1 for the other methods."""
    batch: int = Field(ge=1)
    """Prompts in a forward and backward pass."""
    validate_examples: int = Field(ge=1)
    """Questions on which the same nodes are truly patched."""
    validate_layer_stride: int = Field(ge=1)
    """Every n-th layer is truly patched."""
    validate_heads: int = Field(ge=1)
    """Heads drawn per question and validated layer that are truly patched."""
    seed: int = Field(ge=0)
    """Seed of the draw of questions."""


class PatchActivations(Section):
    """Activation patching with its controls (study, section 4)."""

    donor_layers: int = Field(ge=1)
    """The heuristic patch writes the backbone's `mlp_write` of layers 0 .. donor_layers - 1."""
    max_examples: int = Field(ge=1)
    """Largest number of questions in each of the two sets (lost facts; kept facts)."""
    random_spans: int = Field(ge=5)
    """Random receiving spans (the control of the heuristic span), one seed each."""
    sweep_layers: list[Annotated[int, Field(ge=1)]] = Field(min_length=1)
    """Depths n of the sweep: the first n layers together, and the nth alone."""
    sweep_sites: list[SiteKind] = Field(min_length=1)
    """Sites that the sweep writes; each must be in extract_activations.sites."""
    back_pairs: list[LayerPair] = Field(min_length=1)
    """Back-patching: candidate (later layer, earlier layer) pairs; one is chosen on the dev split."""
    sweep_examples: int = Field(ge=1)
    """Largest number of lost facts on which the main patch is deepened layer by layer, with written answers."""
    grid_examples: int = Field(ge=1)
    """Largest number of lost facts in every other cell of the sweep (depth x site x span), where only log P of the
    right answer is measured; the cost is about 6 * depths * sites * grid_examples forward passes of one prompt."""
    max_new_tokens: int = Field(ge=1, le=64)
    """Length of an answer; the same as in the benchmark, so that the unpatched re-run must give the same answers."""
    n_boot: int = Field(ge=100)
    """Bootstrap draws over entities."""
    batch: int = Field(ge=1)
    """Prompts in a forward pass; of short ones that continue what is kept, up to 160 tokens for each."""
    seed: int = Field(ge=0)
    """Seed of the draw of questions, the random spans and the wrong donors."""


class TrainProbes(Section):
    """Linear probes for the entity (study, section 5)."""

    features: list[Feature] = Field(min_length=1)
    """What a probe sees: mean over the image tokens, the last image token, or the last position of the prompt."""
    layer_stride: int = Field(ge=1)
    """Every n-th layer is probed; the embedding and the last layer always are."""
    l2: list[Annotated[float, Field(gt=0)]] = Field(min_length=1)
    """Candidate L2 strengths (1/C); chosen by inner cross-validation at each layer (one number: a list of it)."""
    inner_folds: int = Field(ge=2)
    """Folds of the inner cross-validation."""
    copies: int = Field(ge=0)
    """Augmented copies of every training picture besides the plain one."""
    n_boot: int = Field(ge=100)
    """Bootstrap draws over entities."""
    seed: int = Field(ge=0)
    """Seed of the folds, the shuffled labels and the bootstrap."""

    @field_validator("l2", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: object) -> object:
        """So that `dvc exp run -S train_probes.l2=0.1` says what it means."""
        return [value] if isinstance(value, int | float) and not isinstance(value, bool) else value


class MeasureResolution(Section):
    """By which layer the entity is known: lenses, Patchscopes, attention knockout (study, section 7)."""

    prompt: str
    """Naming prompt; `{entity}` is the picture (in a backbone's run: the name)."""
    max_pictures: int = Field(ge=1)
    """Largest number of entities, one picture each."""
    layer_stride: int = Field(ge=1)
    """Every n-th layer is read with the lenses; the embedding, the first and the last layer always are."""
    lens_prompts: int = Field(ge=2)
    """Named prompts, one entity each, that the tuned lens is trained on."""
    lens_held_out: float = Field(gt=0, lt=1)
    """Share of them that chooses its start and its end."""
    lens_tokens: int = Field(ge=1)
    """Candidate vocabulary of the tuned lens: this many of the model's most probable tokens, and the names' first."""
    lens_steps: int = Field(ge=0)
    """Largest number of optimiser steps per layer (0: the closed-form start)."""
    patchscope_prompt: str
    """Identity prompt; the entity's residual is written at a `?` in the place of `{entity}`."""
    patchscope_target: Literal["same", "embedding"]
    """Where it is written: at the layer that it comes from, or as an input embedding."""
    patchscope_places: list[Literal["last", "mean"]] = Field(min_length=1)
    """Which residual is written: that of the entity's last token, or the mean over its tokens."""
    patchscope_stride: int = Field(ge=1)
    """Every n-th layer is decoded; the embedding, the first and the last layer always are."""
    patchscope_tokens: int = Field(ge=1, le=64)
    """Length of the freely written text."""
    knockout_window: int = Field(ge=1)
    """Layers of a window in which `last` cannot see the entity."""
    knockout_stride: int = Field(ge=1)
    """Windows are centred at every n-th layer."""
    batch: int = Field(ge=1)
    """Prompts in a forward pass; of short ones that continue what is kept, up to 160 tokens for each."""
    n_boot: int = Field(ge=100)
    """Bootstrap draws over entities."""
    permutations: int = Field(ge=100)
    """Permutations of names in the test that a method reads anything."""
    seed: int = Field(ge=0)
    """Seed of the draws of entities and prompts, the tuned lens, the test and the bootstrap."""


class RecoverRecall(Section):
    """Recovery by prompting (study, section 6)."""

    name_then_answer: str
    """Prompt of the one-turn strategy; `{entity}` is the picture. It writes the name, then the question follows."""
    max_new_tokens: int = Field(ge=1, le=64)
    """Longest written name, in tokens; the answers have run_benchmark.max_new_tokens, so that strategies compare."""
    batch: int = Field(ge=1)
    """Prompts in a forward pass; of short ones that continue what is kept, up to 160 tokens for each."""
    n_boot: int = Field(ge=100)
    """Bootstrap draws over entities."""
    seed: int = Field(ge=0)
    """Seed of the bootstrap."""


class PlotFigures(Section):
    """Figures and the numbers they show."""

    dpi: int = Field(ge=50, le=600)
    """Resolution of the PNG figures, in dots per inch."""
    n_boot: int = Field(ge=100)
    """Bootstrap draws over entities for every interval in figures and report."""
    seed: int = Field(ge=0)
    """Seed of the bootstrap."""


class RenderReport(Section):
    """The page a person reads."""

    title: str
    """Heading of the page."""
    max_answers: int = Field(ge=1)
    """Graded answers listed in the searchable table."""
