"""Training of the assembled VLMs' projectors: frozen tower, frozen language model, two recipes.

The projector is LLaVA's own `multi_modal_projector` (Liu et al. 2023, arXiv 2304.08485; linear-GELU-linear as in
LLaVA-1.5, arXiv 2310.03744). Both recipes see the same picture features and differ in their loss only:

1. `caption`: LLaVA's stage 1. Cross-entropy of the entity's name after a caption prompt, through the whole frozen
   language model.
2. `early`: the residual stream of the image tokens equals the language model's own residual at the tokens of the name,
   repeated as often as it fits ("residual alignment"), at two depths: at the input of the first layer on most steps,
   and after an early layer, in a text, on every few; only the layers up to that one are run.

Numbers in, numbers out: the only file this module touches is the checkpoint that lets a killed training go on.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from twohop.errors import DataError
from twohop.models._training import Progress, Schedule, fit

CAPTION_PROMPTS: tuple[str, ...] = (
    "Consider the country {entity}. The name of this country is",
    "{entity}\nThe name of this country is",
    "The flag of a country: {entity}\nThis is the flag of",
    "Country: {entity}\nName:",
    "The country is {entity}. This country is called",
)
"""Texts before the name, recipe `caption`. None of them states or asks for a fact."""

ALIGN_TEXTS: tuple[str, ...] = (
    "Consider the country {entity}. The",
    "Consider the following country: {entity}. This country",
    "The country is {entity}. It is",
    "I have been to {entity}. People in",
    "A map of {entity}, and its",
)
"""Texts whose residuals are matched, recipe `early`. None of them states or asks for a fact."""

TEMPERATURE = 0.2
"""Of the contrastive term, in units of the targets' variance."""
TARGET_BATCH = 32
"""Entities whose residuals are computed at once; bounds memory."""


@runtime_checkable
class Tokenizer(Protocol):
    """What is needed of a tokenizer: text to ids."""

    def __call__(self, text: str, *, add_special_tokens: bool) -> Mapping[str, list[int]]:
        """Ids of the text under `input_ids`."""
        ...


@dataclass(frozen=True)
class TrainingPlan:
    """Everything that a training depends on besides its data."""

    recipe: Literal["caption", "early"]
    steps: int
    batch: int
    lr: float
    seed: int
    align_layer: int = 5
    """Recipe `early`: index of the decoder layer whose output is aligned; layers 0 to this one are run."""
    align_every: int = 16
    """Recipe `early`: every so many steps compare residuals after `align_layer`, the others the first layer's input."""
    contrast: float = 0.3
    """Recipe `early`: weight of the contrastive term."""
    suffix: float = 0.3
    """Recipe `early`: weight of the residuals at the text after the picture."""


@dataclass(frozen=True)
class TrainingSet:
    """Frozen tower features of every training picture, and what each picture shows."""

    features: Float[Tensor, "picture copy image_token d_vision"]
    names: tuple[str, ...]
    """Entity name per picture."""

    def __post_init__(self) -> None:
        if self.features.ndim != 4 or len(self.names) != len(self.features) or not self.names:
            raise DataError(
                f"{len(self.names)} names for features of shape {tuple(self.features.shape)}",
                "train_projector",
                "give one name per picture and features (picture, copy, image_token, d_vision)",
            )


@dataclass(frozen=True)
class Trained:
    """A projector with the checkpoint keys of `multi_modal_projector`, and its loss at every step."""

    projector: dict[str, Tensor]
    losses: list[float]


class Projector(nn.Module):
    """LLaVA's `multi_modal_projector`: linear, GELU, linear."""

    def __init__(self, d_vision: int, d_model: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(d_vision, d_model)
        self.linear_2 = nn.Linear(d_model, d_model)

    def forward(self, features: Float[Tensor, "*rows d_vision"]) -> Float[Tensor, "*rows d_model"]:
        """Tower features to the language model's embedding space."""
        return self.linear_2(functional.gelu(self.linear_1(features)))


def train(
    decoder: nn.Module,
    lm_head: nn.Module,
    tokenizer: Tokenizer,
    data: TrainingSet,
    plan: TrainingPlan,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> Trained:
    """Train a projector; the language model is not changed.

    Args:
        decoder: a Llama-style decoder (`.layers`, `.norm`, `.embed_tokens`), float32.
        lm_head: its output matrix.
        tokenizer: its tokenizer; no special tokens are added.
        data: features and names.
        plan: recipe, size, seed.
        checkpoint: file that is rewritten every few steps; a training with the same plan goes on from it.
        progress: called with (step, loss) after every step.

    Raises:
        DataError: the loss stops being a finite number.
    """
    torch.manual_seed(plan.seed)
    for part in (decoder, lm_head):
        part.requires_grad_(False)
    mean, std = moments(data.features)
    projector = initial(data.features.shape[-1], cast("nn.Embedding", decoder.embed_tokens), plan.seed)
    objective = _objective(decoder, lm_head, tokenizer, data, plan)

    def loss_of(step: int) -> Tensor:
        pictures, features = drawn(data, plan.batch, plan.seed, step)
        return objective(projector((features - mean) / std), pictures, step)

    losses = fit(projector, Schedule(plan.steps, plan.lr), plan, loss_of, checkpoint, progress)
    return Trained(folded(projector, mean, std), losses)


def project(projector: Mapping[str, Tensor], features: Float[Tensor, "*rows d_vision"]) -> Tensor:
    """Apply a trained projector's state dict: (*rows, d_vision) -> (*rows, d_model)."""
    hidden = functional.linear(features, projector["linear_1.weight"], projector["linear_1.bias"])
    return functional.linear(functional.gelu(hidden), projector["linear_2.weight"], projector["linear_2.bias"])


# --- the frame of both recipes --------------------------------------------------------------------------------------

Objective = Callable[[Float[Tensor, "batch image_token d_model"], Int[Tensor, " batch"], int], Tensor]


def _objective(
    decoder: nn.Module, lm_head: nn.Module, tokenizer: Tokenizer, data: TrainingSet, plan: TrainingPlan
) -> Objective:
    if plan.recipe == "caption":
        return Caption(decoder, lm_head, tokenizer, data.names)
    return _Early(decoder, tokenizer, data.names, data.features.shape[2], plan)


def moments(features: Tensor) -> tuple[Float[Tensor, " d_vision"], Float[Tensor, " d_vision"]]:
    """Mean and standard deviation per feature, over at most 2,000 pictures of copy 0."""
    rows = features[:2000, 0].float().flatten(0, 1)
    return rows.mean(0), rows.std(0).clamp_min(1e-4)


def initial(d_vision: int, embeddings: nn.Embedding, seed: int) -> Projector:
    """Outputs start with the scale of the language model's own embeddings, round their mean."""
    torch.manual_seed(seed)
    table = embeddings.weight
    projector = Projector(d_vision, table.shape[1])
    with torch.no_grad():
        probe = projector(torch.randn(256, d_vision))
        projector.linear_2.weight.mul_(table.std() / probe.std(0).mean())
        projector.linear_2.bias.copy_(table.mean(0))
    return projector


def folded(projector: Projector, mean: Tensor, std: Tensor) -> dict[str, Tensor]:
    """The state dict for raw features: (x - mean) / std goes into the first layer."""
    state = {name: value.detach().clone() for name, value in projector.state_dict().items()}
    state["linear_1.bias"] = state["linear_1.bias"] - state["linear_1.weight"] @ (mean / std)
    state["linear_1.weight"] = (state["linear_1.weight"] / std).contiguous()
    return state


def drawn(
    data: TrainingSet, batch: int, seed: int, step: int
) -> tuple[Int[Tensor, " batch"], Float[Tensor, "batch image_token d_vision"]]:
    """A step's pictures and the features of one copy of each, float32; from (seed, step) alone."""
    draw = torch.Generator().manual_seed(seed * 1_000_003 + step)
    pictures = torch.randperm(len(data.names), generator=draw)[:batch]
    copies = torch.randint(data.features.shape[1], (len(pictures),), generator=draw)
    return pictures, data.features[pictures, copies].float()


# --- texts ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Text:
    """A prompt in ids: what stands before and after the picture."""

    before: list[int]
    after: list[int]


def tokenized(tokenizer: Tokenizer, template: str) -> Text:
    """The space before `{entity}` belongs to the name's first token; a picture takes its place too."""
    before, after = template.split("{entity}")
    return Text(ids_of(tokenizer, before.removesuffix(" ")), ids_of(tokenizer, after))


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []


def with_text(
    embed: nn.Module, before: Sequence[int], image: Tensor, after: Tensor
) -> Float[Tensor, "batch seq d_model"]:
    """Embeddings of before (the same in every row), image tokens, after (ids per row)."""
    rows = len(image)
    parts = [image, embed(after)]
    if before:
        parts.insert(0, embed(torch.tensor([list(before)])).expand(rows, -1, -1))
    return torch.cat(parts, 1)


@dataclass(frozen=True)
class Targets:
    """What a caption prompt asks for: "<name>." in ids."""

    ids: Mapping[str, list[int]]
    names: Sequence[str]
    """Name per picture."""

    @classmethod
    def of(cls, tokenizer: Tokenizer, names: Sequence[str]) -> "Targets":
        """Of all pictures' names."""
        return cls({name: ids_of(tokenizer, f" {name}.") for name in dict.fromkeys(names)}, names)

    def labels(self, pictures: Int[Tensor, " batch"]) -> Int[Tensor, "batch label"]:
        """Ids of some pictures' names, right-padded with -100."""
        wanted = [self.ids[self.names[int(i)]] for i in pictures]
        longest = max(map(len, wanted))
        return torch.tensor([ids + [-100] * (longest - len(ids)) for ids in wanted])


# --- recipe 1: caption ----------------------------------------------------------------------------------------------


class Caption:
    """Cross-entropy of "<name>." after a caption prompt; one prompt per step, in turn."""

    def __init__(self, decoder: nn.Module, lm_head: nn.Module, tokenizer: Tokenizer, names: Sequence[str]) -> None:
        self.decoder, self.lm_head = decoder, lm_head
        self.texts = [tokenized(tokenizer, prompt) for prompt in CAPTION_PROMPTS]
        self.targets = Targets.of(tokenizer, names)

    def __call__(self, image: Tensor, pictures: Tensor, step: int) -> Tensor:
        text, labels = self.texts[step % len(self.texts)], self.targets.labels(pictures)
        after = torch.cat([torch.tensor([text.after]).expand(len(labels), -1), labels[:, :-1].clamp_min(0)], 1)
        embeds = with_text(cast("nn.Module", self.decoder.embed_tokens), text.before, image, after)
        hidden = self.decoder(inputs_embeds=embeds, use_cache=False).last_hidden_state[:, -labels.shape[1] :]
        kept = labels != -100
        return functional.cross_entropy(self.lm_head(hidden[kept]), labels[kept])


# --- recipe 2: early ------------------------------------------------------------------------------------------------


class _Early:
    """Residual alignment at two depths.

    Image token p is compared with token p of the name repeated to the picture's length, right-aligned, so that every
    image token carries the entity wherever later tokens look. On most steps the comparison is at the first layer's
    input: squared distance plus a contrast against all entities (InfoNCE, van den Oord et al. 2018, arXiv 1807.03748).
    On every `align_every`-th step the first layers run on a text, and the residuals of the image tokens and of the
    tokens after them are compared with the language model's own, all in units of the targets' spread.
    """

    def __init__(
        self, decoder: nn.Module, tokenizer: Tokenizer, names: Sequence[str], n_image: int, plan: TrainingPlan
    ) -> None:
        self.decoder, self.plan = first_layers(decoder, plan.align_layer + 1), plan
        unique = list(dict.fromkeys(names))
        self.entity = torch.tensor([unique.index(name) for name in names])
        ids = torch.tensor([_repeated(ids_of(tokenizer, f" {name}"), n_image) for name in unique])
        self.inputs: Float[Tensor, "entity image_token d_model"] = cast("nn.Module", decoder.embed_tokens)(ids).detach()
        self.spread = (self.inputs - self.inputs.mean((0, 1))).square().mean()
        self.texts = [tokenized(tokenizer, text) for text in ALIGN_TEXTS]
        needed = plan.align_every <= plan.steps
        self.targets = [_targets(self.decoder, text, self.inputs) for text in self.texts] if needed else []

    def __call__(self, image: Tensor, pictures: Tensor, step: int) -> Tensor:
        entity, turn = self.entity[pictures], (step + 1) // self.plan.align_every
        if (step + 1) % self.plan.align_every:
            return self._at_input(image, entity)
        which = turn % len(self.texts)
        return self._after_layers(image, entity, self.texts[which], self.targets[which])

    def _at_input(self, image: Tensor, entity: Tensor) -> Tensor:
        gap = (image - self.inputs[entity]).square().mean() / self.spread
        if not self.plan.contrast:
            return gap
        return gap + self.plan.contrast * _contrast(image, self.inputs, entity, self.spread)

    def _after_layers(self, image: Tensor, entity: Tensor, text: "Text", target: "_Targets") -> Tensor:
        n_image, after = image.shape[1], torch.tensor([text.after]).expand(len(image), -1)
        embeds = with_text(cast("nn.Module", self.decoder.embed_tokens), text.before, image, after)
        resid = self.decoder(inputs_embeds=embeds, use_cache=False).last_hidden_state[:, len(text.before) :]
        gap = ((resid[:, :n_image] - target.name[entity]) / target.scale).square().mean()
        follow = ((resid[:, n_image:] - target.after[entity]) / target.after_scale).square().mean()
        return gap + self.plan.suffix * follow


def _repeated(ids: Sequence[int], length: int) -> list[int]:
    """The name's tokens again and again, ending with its last one; of a longer name the last tokens."""
    return [ids[(i - length) % len(ids)] for i in range(length)] if len(ids) <= length else list(ids[-length:])


@dataclass(frozen=True)
class _Targets:
    """The language model's own residuals in one text, per entity."""

    name: Float[Tensor, "entity image_token d_model"]
    after: Float[Tensor, "entity after_token d_model"]
    scale: Float[Tensor, "image_token d_model"]
    """Standard deviation between entities."""
    after_scale: Float[Tensor, "after_token d_model"]


@torch.no_grad()
def _targets(decoder: nn.Module, text: Text, inputs: Float[Tensor, "entity image_token d_model"]) -> _Targets:
    embed, resid = cast("nn.Module", decoder.embed_tokens), []
    for rows in inputs.split(TARGET_BATCH):
        after = torch.tensor([text.after]).expand(len(rows), -1)
        embeds = with_text(embed, text.before, rows, after)
        resid.append(decoder(inputs_embeds=embeds, use_cache=False).last_hidden_state[:, len(text.before) :])
    name, follow = torch.cat(resid).split([inputs.shape[1], len(text.after)], 1)
    return _Targets(name, follow, _spread(name), _spread(follow))


def _spread(values: Tensor) -> Tensor:
    """Standard deviation over the first axis, no smaller than a tenth of its mean (dead dimensions carry no name)."""
    std = values.std(0)
    return std.clamp_min(0.1 * float(std.mean()))


def _contrast(
    image: Float[Tensor, "batch image_token d_model"],
    inputs: Float[Tensor, "entity image_token d_model"],
    entity: Tensor,
    spread: Tensor,
) -> Tensor:
    """InfoNCE of every image token over all entities' tokens at its place, by mean squared distance."""
    dot = torch.einsum("bpd,epd->bpe", image, inputs)
    squares = image.square().sum(-1)[..., None] + inputs.square().sum(-1).T[None]
    distance = (squares - 2 * dot) / (image.shape[-1] * spread)
    return functional.cross_entropy((-distance / TEMPERATURE).flatten(0, 1), entity.repeat_interleave(image.shape[1]))


def first_layers(decoder: nn.Module, n_layers: int) -> nn.Module:
    """A view of a Llama-style decoder that ends with the residual after its first `n_layers` layers (no final norm)."""
    view = copy.copy(decoder)
    view._modules = dict(decoder._modules)
    view.layers = nn.ModuleList(list(cast("nn.ModuleList", decoder.layers))[:n_layers])
    view.norm = nn.Identity()
    view.config = copy.copy(cast("Any", decoder.config))
    view.config.num_hidden_layers = n_layers
    return view
