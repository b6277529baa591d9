"""Tuned lens: per layer an affine map that undoes the basis change up to the last layer (Belrose et al. 2023,
2303.08112, section 3).

    lens_l(h) = unembed(h + A_l h + b_l),    trained so that KL(p_final || p_lens) is small on text

As in the paper: residual form (zero is the logit lens), KL to the model's own final distribution, weight decay.
Ours, so that it costs seconds on a CPU and not hours:

1. Distributions are over a candidate vocabulary (the tokens that the model itself finds most probable on the training
   text, and every name's first token), renormalised there: what is compared later are names against names. `decode`
   gives logits of these candidates only.
2. The start is the best, on held-out prompts, of zero and of ridge regressions of (final residual - h) on h, in closed
   form; minibatch Adam then minimises the KL. Rows weigh 1 / |final residual|^2, as the final norm removes scale.
3. Held-out prompts choose the start and the step to stop at. Everything is seeded and in float32 (the normal equations
   in float64).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from twohop.errors import DataError

Decode = Callable[[Tensor], Tensor]
"""Residuals before the final norm -> logits of the candidate tokens."""
RIDGES = (0.01, 0.1, 1.0)
"""Ridge strengths that are tried, as multiples of the mean eigenvalue of the weighted second moment of h."""
BATCH = 256
"""Token positions of a step."""
STEP_SIZE = 0.01
"""Adam's first step moves a translated residual by about this share of the final residual's size."""
WEIGHT_DECAY = 1e-2
"""Decoupled, per step and relative to the step size (AdamW), towards the start of the paper: zero."""
LOOK_EVERY = 10
"""Steps between two looks at the held-out prompts; two looks without a gain end the training."""


@dataclass(frozen=True)
class Translator:
    """h -> h + A h + b."""

    weight: Float[Tensor, "d_model d_model"]
    bias: Float[Tensor, " d_model"]

    def __call__(self, resid: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
        """The residual in the basis of the last layer."""
        resid = resid.to(self.weight)
        return resid + resid @ self.weight.T + self.bias


@dataclass(frozen=True)
class LensFit:
    """A translator, and how it came about; KL in nats per held-out token."""

    translator: Translator
    start: str
    """`identity`, or the ridge strength that the training began from."""
    steps: int
    kl_identity: float
    """Of the logit lens."""
    kl_start: float
    kl: float


def fit_translator(
    states: Float[Tensor, "token d_model"],
    final: Float[Tensor, "token d_model"],
    held_out: Bool[Tensor, " token"],
    decode: Decode,
    max_steps: int,
    seed: int,
) -> LensFit:
    """Train one layer's translator.

    Args:
        states: residuals of the layer at tokens of text.
        final: residuals after the last layer at the same tokens, before the final norm.
        held_out: tokens of prompts that are kept out of the training.
        decode: from residuals to logits of the candidate tokens; gradients must pass.
        max_steps: of Adam, at most.
        seed: of the minibatches.

    Raises:
        DataError: no token to train on, or none held out.
    """
    if bool(held_out.all()) or not bool(held_out.any()):
        raise DataError("the tuned lens needs prompts to train on and others held out", "text", "give more prompts")
    with torch.no_grad():
        target = decode(final).log_softmax(-1)
    seen, rest = states[~held_out].float(), states[held_out].float()
    looked = _Held(rest, target[held_out], decode)
    starts = {"identity": _identity(states.shape[1])} | {
        f"ridge {r:g}": t
        for r, t in zip(RIDGES, ridge_translators(seen, final[~held_out].float(), RIDGES), strict=True)
    }
    losses = {name: looked.kl(translator) for name, translator in starts.items()}
    best = min(losses, key=lambda name: losses[name])
    reach = STEP_SIZE * float(final.float().pow(2).mean().sqrt())
    trained, steps, kl = _descend(starts[best], losses[best], seen, target[~held_out], looked, (reach, max_steps, seed))
    return LensFit(trained, best, steps, losses["identity"], losses[best], kl)


def ridge_translators(
    states: Float[Tensor, "token d_model"], final: Float[Tensor, "token d_model"], strengths: Sequence[float]
) -> list[Translator]:
    """Weighted ridge regressions of (final - h) on h with an intercept; a strong one gives zero plus a mean shift."""
    x, y = states.double(), (final - states).double()
    w = 1 / final.double().pow(2).mean(-1, keepdim=True).clamp_min(1e-12)
    w = w / w.sum()
    x_mean, y_mean = (w * x).sum(0), (w * y).sum(0)
    x, y = x - x_mean, y - y_mean
    moment, cross = x.T @ (w * x), x.T @ (w * y)
    scale = moment.diagonal().mean().clamp_min(1e-12)
    found: list[Translator] = []
    for strength in strengths:
        weight = torch.linalg.solve(moment + strength * scale * torch.eye(len(moment), dtype=x.dtype), cross).T
        found.append(Translator(weight.float(), (y_mean - weight @ x_mean).float()))
    return found


def _identity(d_model: int) -> Translator:
    return Translator(torch.zeros(d_model, d_model), torch.zeros(d_model))


@dataclass(frozen=True)
class _Held:
    """The held-out tokens of one layer."""

    states: Float[Tensor, "token d_model"]
    target: Float[Tensor, "token candidate"]
    decode: Decode

    @torch.no_grad()
    def kl(self, translator: Translator) -> float:
        """Mean KL(p_final || p_lens)."""
        return float(_kl(self.decode(translator(self.states)), self.target))


def _kl(logits: Tensor, target: Tensor) -> Tensor:
    return torch.nn.functional.kl_div(logits.log_softmax(-1), target, log_target=True, reduction="batchmean")


def _descend(
    start: Translator,
    start_kl: float,
    states: Float[Tensor, "token d_model"],
    target: Float[Tensor, "token candidate"],
    looked: _Held,
    how: tuple[float, int, int],
) -> tuple[Translator, int, float]:
    """Adam from a start; the translator of the best look, the step it was seen at, and its KL."""
    reach, max_steps, seed = how
    weight, bias = start.weight.clone().requires_grad_(), start.bias.clone().requires_grad_()
    size = float(states.abs().mean()) * states.shape[1]  # a step of Adam moves every entry of A equally
    groups = [{"params": [weight], "lr": reach / size}, {"params": [bias], "lr": reach}]
    optimiser = torch.optim.AdamW(groups, weight_decay=WEIGHT_DECAY)
    draw = torch.Generator().manual_seed(seed)
    best, best_step, best_kl, poor = start, 0, start_kl, 0
    for step in range(1, max_steps + 1):
        rows = torch.randint(len(states), (min(BATCH, len(states)),), generator=draw)
        optimiser.zero_grad()
        _kl(looked.decode(Translator(weight, bias)(states[rows])), target[rows]).backward()
        optimiser.step()
        if step % LOOK_EVERY == 0 or step == max_steps:
            now = Translator(weight.detach().clone(), bias.detach().clone())
            kl = looked.kl(now)
            best, best_step, best_kl, poor = (
                (now, step, kl, 0) if kl < best_kl else (best, best_step, best_kl, poor + 1)
            )
            if poor == 2:
                break
    return best, best_step, best_kl


def candidate_tokens(logits: Float[Tensor, "token vocab"], always: Sequence[int], n: int) -> list[int]:
    """The candidate vocabulary, ascending: `always`, and the `n` tokens of the largest summed probability."""
    total = logits.softmax(-1).sum(0)
    return sorted({*always, *total.topk(min(n, len(total))).indices.tolist()})
