"""AtP*: attribution patching without two of its false negatives (Kramar et al. 2024, arXiv 2403.00745).

1. Query/key fix (section 3.1): a saturated softmax has no gradient, so queries and keys are not scored through it. The
   attention is done again with the corrupted queries (keys), and the change of the heads' outputs is scored with the
   gradient there. As the values stay the clean ones this equals the change of the attention probabilities times the
   gradient with respect to them.
2. GradDrop (section 3.2): a direct and an indirect effect may cancel. One backward pass per layer, in which what this
   layer writes passes no gradient; a node's magnitude is the mean of |score| over the passes.
"""

from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic

import torch
from jaxtyping import Float
from torch import Tensor

from twohop.analysis._attribution import (
    Attribution,
    BatchT,
    Contrast,
    PatchT,
    RunLike,
    Runner,
    SiteT,
    check_aligned,
    dot,
    gradients,
    group_scores,
    present_groups,
)
from twohop.errors import ModelError

TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.05}
"""Largest difference between the redone attention and the model's own, as a fraction of the largest output."""

Nodes = dict[tuple[SiteT, str], Tensor]


@dataclass(frozen=True)
class AttentionLayer(Generic[BatchT, SiteT]):
    """The sites of one layer's attention, and how its heads' outputs follow from queries, keys and values."""

    head: SiteT
    query: SiteT
    key: SiteT
    value: SiteT
    attend: Callable[[BatchT, Tensor, Tensor, Tensor], Tensor]

    def sites(self) -> tuple[SiteT, ...]:
        """All that must be captured."""
        return self.head, self.query, self.key, self.value


@dataclass(frozen=True)
class Drop(Generic[SiteT]):
    """One layer of GradDrop."""

    cut: tuple[SiteT, ...]
    """What the layer writes to the residual stream: no gradient passes."""
    inside: frozenset[SiteT]
    """Sites that act through these writes alone: silenced by this drop, so it is left out of their mean (1/(L-1))."""


@dataclass(frozen=True)
class _Change(Generic[SiteT]):
    """What a node's corruption does to the outputs of one layer's heads."""

    head: SiteT
    site: SiteT
    group: str | None
    """None: the change of each position is due to this position's own corruption (queries)."""
    change: Float[Tensor, "batch seq width"]


def attribute_star(
    runner: Runner[BatchT, SiteT, PatchT],
    clean: BatchT,
    corrupted: BatchT,
    contrast: Contrast,
    sites: Collection[SiteT],
    attention: Sequence[AttentionLayer[BatchT, SiteT]],
    drops: Sequence[Drop[SiteT]],
) -> Attribution[SiteT]:
    """Scores of `sites` and of every layer's queries and keys; magnitudes by GradDrop.

    Two forward passes and 1 + len(drops) backward passes. A key node is a key-value head at a token group: its keys are
    corrupted together, and all query heads that share it count. Takes the memory of `attribute`, and the changes of
    every layer's heads for the queries and for the keys of each token group besides.

    Raises:
        DataError: the twins' token groups do not lie at the same positions.
        ModelError: `attend` does not give what the model's own heads give.
    """
    check_aligned(clean, corrupted)
    scored = {*sites, *(layer.head for layer in attention)}
    wanted = scored | {s for layer in attention for s in layer.sites()} | {s for d in drops for s in d.cut}
    with torch.no_grad():
        other = runner.forward(corrupted, capture=wanted)
    run = runner.forward(clean, capture=wanted, grad=True)
    metric = contrast.metric(run.logits)
    changes = {s: other.activations[s] - run.activations[s].detach() for s in sites}
    redone = [c for layer in attention for c in _redone(layer, clean, run, other)]

    def score(grads: Mapping[SiteT, Tensor]) -> tuple[dict[SiteT, Tensor], Nodes[SiteT]]:
        positions = {s: dot(changes[s], grads[s], runner.heads(s)) for s in sites}
        return positions, group_scores(positions, clean.groups) | _attention_nodes(runner, clean, redone, grads)

    positions, nodes = score(gradients(run, metric, scored, again=True))
    dropped = ((drop, score(_dropped(run, metric, scored, drop))[1]) for drop in drops)
    sizes = _mean_magnitudes(nodes, dropped)
    logits = run.logits.detach(), other.logits
    return Attribution(metric.detach(), contrast.metric(other.logits), positions, nodes, sizes, *logits)


def _redone(
    layer: AttentionLayer[BatchT, SiteT], clean: BatchT, run: RunLike[SiteT], other: RunLike[SiteT]
) -> Iterator[_Change[SiteT]]:
    own, query, key, value = (run.activations[s].detach() for s in layer.sites())
    groups = present_groups(clean.groups)
    base = layer.attend(clean, query, key, value)
    _check_redone(layer, own, base, torch.stack(list(groups.values())).any(0))
    yield _Change(layer.head, layer.query, None, layer.attend(clean, other.activations[layer.query], key, value) - base)
    for name, mask in groups.items():
        keys = torch.where(mask.to(key.device)[..., None], other.activations[layer.key], key)
        yield _Change(layer.head, layer.key, name, layer.attend(clean, query, keys, value) - base)


def _check_redone(layer: AttentionLayer[BatchT, SiteT], own: Tensor, base: Tensor, where: Tensor) -> None:
    mask = where.to(own.device)
    off, scale = float((own - base)[mask].abs().max()), float(own[mask].abs().max())
    if not off <= TOLERANCES[own.dtype] * scale:
        raise ModelError(
            f"the attention done again differs from the model's own by {off:.2g} of {scale:.2g}",
            str(layer.head),
            "this model's attention is not what AtP* takes it for: use score_attribution.method plain or integrated",
        )


def _attention_nodes(
    runner: Runner[BatchT, SiteT, PatchT],
    clean: BatchT,
    redone: Sequence[_Change[SiteT]],
    grads: Mapping[SiteT, Tensor],
) -> Nodes[SiteT]:
    nodes: Nodes[SiteT] = {}
    for item in redone:
        score = dot(item.change, grads[item.head], runner.heads(item.head))
        if item.group is None:
            nodes |= group_scores({item.site: score}, clean.groups)
        else:  # query heads that share a key-value head stand side by side
            nodes[item.site, item.group] = score.sum(1).unflatten(-1, (runner.heads(item.site) or 1, -1)).sum(-1)
    return nodes


def _dropped(
    run: RunLike[SiteT], metric: Float[Tensor, " batch"], sites: Collection[SiteT], drop: Drop[SiteT]
) -> dict[SiteT, Tensor]:
    with _no_gradient(run.activations[s] for s in drop.cut):
        return gradients(run, metric, sites, again=True)


@contextmanager
def _no_gradient(tensors: Iterator[Tensor]) -> Generator[None]:
    """No gradient passes these tensors; what is read at themselves is left out of the mean (`Drop.inside`)."""
    handles = [t.register_hook(torch.zeros_like) for t in tensors]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _mean_magnitudes(nodes: Nodes[SiteT], dropped: Iterator[tuple[Drop[SiteT], Nodes[SiteT]]]) -> Nodes[SiteT]:
    """Mean of |score| over the drops that leave a node its say; |score| itself where there is none (a single layer)."""
    totals: Nodes[SiteT] = {}
    counts: dict[SiteT, int] = {}
    for drop, found in dropped:
        kept = {key: score.abs() for key, score in found.items() if key[0] not in drop.inside}
        totals |= {key: totals[key] + size if key in totals else size for key, size in kept.items()}
        for site in {site for site, _ in kept}:
            counts[site] = counts.get(site, 0) + 1
    return {k: totals[k] / counts[k[0]] if k in totals else score.abs() for k, score in nodes.items()}
