"""Recipe `cross`: gated cross-attention layers in a frozen language model (Flamingo, Alayrac et al. 2022; Llama 3.2).

Captions: cross-entropy of the entity's name after a caption prompt. Answers: on texts that ask something else about the
entity, the divergence from what the language model itself says to the same text with the name in the picture's place
(distillation, in the place of LLaVA's visual instructions): a model that learns captions alone names whatever it is
asked. The gates start at 0, where the model is the language model itself; text without a picture never passes the new
layers, so that there is nothing to keep.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from twohop.models import _mllama
from twohop.models._projector import CAPTION_PROMPTS, Targets, Tokenizer, Trained, TrainingSet, drawn, ids_of, moments
from twohop.models._replay import OPEN_TEXTS, divergence
from twohop.models._training import Progress, Schedule, fit

GATE = "_gate"
"""End of the gates' names."""


@dataclass(frozen=True)
class CrossPlan:
    """Everything that a training of recipe `cross` depends on besides its data."""

    layers: tuple[int, ...]
    """Indices of the cross-attention layers among all layers."""
    steps: int
    batch: int
    lr: float
    gate_speed: float
    """The gates' learning rate in units of the others'."""
    answers: float
    """Weight of the answers' divergence."""
    answer_tokens: int
    """Length of an answer."""
    seed: int


class _Trained(nn.Module):
    """The trained modules under names without dots."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        super().__init__()
        for prefix, module in modules.items():
            self.add_module(prefix.replace(".", "_"), module)


def train_cross(
    net: Any,
    tokenizer: Tokenizer,
    data: TrainingSet,
    plan: CrossPlan,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> Trained:
    """Train the cross-attention layers and the projector of a model with closed gates, in place.

    Args:
        net: a `MllamaForConditionalGeneration` from `_mllama.crossed`, float32; what is not trained is not changed.
        tokenizer: its tokenizer; no special tokens are added but those of the prompt.
        data: CLIP's features with the class token, and names; the converted tower's are the same, centred.
        plan: sizes, seed.
        checkpoint: file that is rewritten every few steps; a training with the same plan goes on from it.
        progress: called with (step, loss) after every step.

    Raises:
        DataError: the loss stops being a finite number.
    """
    net.requires_grad_(False)
    modules = _mllama.trained_modules(net)
    _initialise(modules, plan.seed)
    trained = _Trained(modules).requires_grad_(True)
    data = TrainingSet(_centred(data.features), data.names)
    projector, mean_std = modules[_mllama.PROJECTOR_PREFIX], moments(data.features)
    d_wide = net.config.vision_config.hidden_size
    captions = _Captions(net, tokenizer, data.names)
    answers = _Answers(net, tokenizer, data.names, plan.answer_tokens)

    def loss_of(step: int) -> Tensor:
        pictures, features = drawn(data, plan.batch, plan.seed, step)
        states = projector(_placed((features - mean_std[0]) / mean_std[1], d_wide))
        loss = captions(states, pictures, step)
        return loss + plan.answers * answers(states, pictures, step) if plan.answers else loss

    schedule = Schedule(plan.steps, plan.lr)
    losses = fit(trained, schedule, plan, loss_of, checkpoint, progress, {GATE: plan.gate_speed})
    _fold(projector, *mean_std, d_wide)
    trained.requires_grad_(False)
    return Trained(
        {p + name: value.detach().clone() for p, m in modules.items() for name, value in m.state_dict().items()}, losses
    )


def gates(trained: Mapping[str, Tensor]) -> dict[str, float]:
    """tanh of every gate in a file of recipe `cross`: the factor on what its layer writes."""
    return {name: round(math.tanh(float(value)), 4) for name, value in trained.items() if name.endswith(GATE)}


def _initialise(modules: Mapping[str, nn.Module], seed: int) -> None:
    """Matrices keep the scale of their input, norms are 1, gates and biases 0; the same on every machine."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in modules.values():
            for name, value in module.named_parameters():
                if value.ndim == 2:
                    value.copy_(torch.randn(value.shape, generator=draw) / math.sqrt(value.shape[1]))
                else:
                    value.fill_(1.0 if "norm" in name else 0.0)


def _centred(features: Float[Tensor, "*rows d_clip"]) -> Float[Tensor, "*rows d_clip"]:
    """Without the mean over the dimensions, in the same dtype."""
    return torch.cat([(part.float() - part.float().mean(-1, keepdim=True)).to(part) for part in features.split(64)])


def _placed(features: Float[Tensor, "*rows d_clip"], d_wide: int) -> Float[Tensor, "*rows d_output"]:
    """Where the vision model's output has CLIP's features, zeros elsewhere (see `_mllama.clip_features`)."""
    return functional.pad(features, (d_wide, d_wide - features.shape[-1]))


@torch.no_grad()
def _fold(projector: Any, mean: Tensor, std: Tensor, d_wide: int) -> None:
    """(x - mean) / std goes into the projector, which then takes raw features and nothing else."""
    inverse, wide_mean = _placed(1 / std, d_wide), _placed(mean, d_wide)
    projector.weight.mul_(inverse)
    projector.bias.sub_(projector.weight @ wide_mean)


class _Captions:
    """Cross-entropy of "<name>." after a caption prompt with a picture token; one prompt per step, in turn.

    On every other turn the prompt starts with the tokenizer's first token, which `MllamaProcessor` writes.
    """

    def __init__(self, net: Any, tokenizer: Tokenizer, names: Sequence[str]) -> None:
        self.net = net
        self.prompts = [prompt_ids(tokenizer, net.config, text, first) for first in (0, 1) for text in CAPTION_PROMPTS]
        self.targets = Targets.of(tokenizer, names)

    def __call__(self, states: Tensor, pictures: Tensor, step: int) -> Tensor:
        prompt, labels = self.prompts[step % len(self.prompts)], self.targets.labels(pictures)
        ids = torch.cat([torch.tensor([prompt]).expand(len(labels), -1), labels[:, :-1].clamp_min(0)], 1)
        hidden = seen(self.net, ids, states)[:, -labels.shape[1] :]
        kept = labels != -100
        return functional.cross_entropy(self.net.lm_head(hidden[kept]), labels[kept])


class _Answers:
    """Divergence from the language model's own words after a text with the name, once it is the picture that is seen.

    One text per step, in turn; the language model answers greedily, and every token of its answer is compared.
    """

    def __init__(self, net: Any, tokenizer: Tokenizer, names: Sequence[str], n_tokens: int) -> None:
        self.net, self.names, self.n_tokens = net, names, n_tokens
        self.texts = [(text, first) for first in (0, 1) for text in OPEN_TEXTS]
        self.tokenizer = tokenizer

    def __call__(self, states: Tensor, pictures: Tensor, step: int) -> Tensor:
        text, first = self.texts[step % len(self.texts)]
        answer, teacher = self.said(text, first, [self.names[int(i)] for i in pictures])
        prompt = torch.tensor([prompt_ids(self.tokenizer, self.net.config, text, first)]).expand(len(pictures), -1)
        hidden = seen(self.net, torch.cat([prompt, answer[:, :-1]], 1), states)[:, -self.n_tokens :]
        return divergence(teacher.flatten(0, 1), self.net.lm_head(hidden).flatten(0, 1)).mean()

    @torch.no_grad()
    def said(
        self, text: str, first: int, names: Sequence[str]
    ) -> tuple[Int[Tensor, "batch answer"], Float[Tensor, "batch answer token"]]:
        """The greedy answer to the text with each name, and the logits at every token of it."""
        bos = [self.net.config.text_config.bos_token_id] * first
        rows = [bos + ids_of(self.tokenizer, text.format(entity=name)) for name in names]
        longest = max(map(len, rows))
        ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        logits: list[Tensor] = []
        cache = None
        for _ in range(self.n_tokens):
            new = ids if cache is None else ids[:, -1:]
            positions = (mask.cumsum(1) - 1).clamp_min(0)[:, -new.shape[1] :]
            out = self.net.model(
                input_ids=new, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
            )
            cache = out.past_key_values
            logits.append(self.net.lm_head(out.last_hidden_state[:, -1]))
            ids = torch.cat([ids, logits[-1].argmax(-1, keepdim=True)], 1)
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
        return ids[:, longest:], torch.stack(logits, 1)


def prompt_ids(tokenizer: Tokenizer, config: Any, template: str, first_token: bool | int) -> list[int]:
    """Ids of a prompt with the picture token in the place of the name and of the space before it."""
    before, after = template.split("{entity}")
    words = [*ids_of(tokenizer, before.removesuffix(" ")), config.image_token_id, *ids_of(tokenizer, after)]
    return [config.text_config.bos_token_id, *words] if first_token else words


def seen(
    net: Any, ids: Int[Tensor, "batch seq"], states: Float[Tensor, "batch image_token d_model"]
) -> Float[Tensor, "batch seq d_model"]:
    """Residuals after the final norm, with the mask that the processor gives: open from the picture token on.

    To tokens before it, `MllamaForConditionalGeneration` closes the feed-forward part of a cross-attention layer only.
    """
    shown = (ids == net.config.image_token_id).long().cumsum(1).clamp_max(1)
    out = net.model(
        input_ids=ids, cross_attention_states=states, cross_attention_mask=shown[:, :, None, None], use_cache=False
    )
    return cast("Tensor", out.last_hidden_state)
