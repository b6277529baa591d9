"""Attribution patching: a first-order estimate of what patching every node would do, and its check by true patching.

Nanda (2023), "Attribution patching"; Kramar et al. (2024), AtP*, section 2; Hanna et al. (2024), EAP-IG; study,
section 3.
1. `attribute`: one clean forward and backward pass, one corrupted forward pass, scores of every position at every site.
2. `group_scores`: summed over the tokens of a group, sign kept.
3. `patch_nodes`: what the estimate stands for: the corrupted activation written at one node, the change of the metric.

A site that holds heads side by side is scored head by head, from the same passes. AtP* is in `_atp_star`.
The room knows no model: it takes a forward pass and a constructor of patches (`Runner`), as `twohop.models` has them.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from twohop.errors import DataError

SiteT = TypeVar("SiteT")
PatchT = TypeVar("PatchT")


@runtime_checkable
class BatchLike(Protocol):
    """Prompts side by side, with the token groups of each."""

    @property
    def groups(self) -> Mapping[str, Tensor]:
        """Bool["batch seq"] of every token group."""
        ...


@runtime_checkable
class RunLike(Protocol[SiteT]):
    """What a forward pass leaves behind."""

    @property
    def logits(self) -> Tensor:
        """Float["batch vocab"] at the position that predicts the answer."""
        ...

    @property
    def activations(self) -> Mapping[SiteT, Tensor]:
        """Float["batch seq width"] of every captured site."""
        ...


BatchT = TypeVar("BatchT", bound=BatchLike)
BatchIn = TypeVar("BatchIn", bound=BatchLike, contravariant=True)
PatchIn = TypeVar("PatchIn", contravariant=True)
PatchOut = TypeVar("PatchOut", covariant=True)
SiteIn = TypeVar("SiteIn", contravariant=True)


@runtime_checkable
class Forward(Protocol[BatchIn, SiteT, PatchIn]):
    """A forward pass that captures and patches sites; with `grad` the captured activations are part of the graph."""

    def __call__(
        self, batch: BatchIn, capture: Collection[SiteT] = ..., patches: Sequence[PatchIn] = ..., grad: bool = ...
    ) -> RunLike[SiteT]:
        """Run the batch once."""
        ...


@runtime_checkable
class MakePatch(Protocol[SiteIn, PatchOut]):
    """A patch that overwrites a site, or one head's slice of it, at some positions."""

    def __call__(self, site: SiteIn, where: Tensor, values: Tensor, head: int | None = ...) -> PatchOut:
        """`where` is Bool["batch seq"], `values` Float["n width"], one row per True."""
        ...


def _whole(_site: object) -> int | None:
    return None


@dataclass(frozen=True)
class Runner(Generic[BatchT, SiteT, PatchT]):
    """All that the analysis needs of a model."""

    forward: Forward[BatchT, SiteT, PatchT]
    patch: MakePatch[SiteT, PatchT]
    heads: Callable[[SiteT], int | None] = _whole
    """How many heads a site holds side by side; None where it is not made of heads."""


@dataclass(frozen=True)
class Node(Generic[SiteT]):
    """What is truly patched at once: a site, or one head of it, at some positions of a prompt."""

    site: SiteT
    where: Bool[Tensor, " seq"]
    head: int | None = None


@dataclass(frozen=True)
class Contrast:
    """The two tokens of the metric m = logit[clean] - logit[corrupted], one pair per row of a batch."""

    clean: Int[Tensor, " batch"]
    corrupted: Int[Tensor, " batch"]

    def metric(self, logits: Float[Tensor, "batch vocab"]) -> Float[Tensor, " batch"]:
        """m of every row."""
        rows = torch.arange(logits.shape[0], device=logits.device)
        return logits[rows, self.clean.to(logits.device)] - logits[rows, self.corrupted.to(logits.device)]

    def rows(self, index: Sequence[int]) -> "Contrast":
        """The pairs of some rows, in this order."""
        return Contrast(self.clean[list(index)], self.corrupted[list(index)])

    def repeat(self, row: int, n: int) -> "Contrast":
        """One row's pair, n times."""
        return Contrast(self.clean[row].repeat(n), self.corrupted[row].repeat(n))


@dataclass(frozen=True)
class Attribution(Generic[SiteT]):
    """Scores of one batch of twins."""

    clean_metric: Float[Tensor, " batch"]
    corrupted_metric: Float[Tensor, " batch"]
    positions: Mapping[SiteT, Float[Tensor, "batch seq ..."]]
    """Signed score of every position: an estimate of m(node patched) - m(clean)."""
    nodes: Mapping[tuple[SiteT, str], Float[Tensor, "batch ..."]]
    """The same of every (site, token group)."""
    magnitudes: Mapping[tuple[SiteT, str], Float[Tensor, "batch ..."]]
    """How much a node matters: |score|, or what GradDrop makes of it (`attribute_star`)."""
    clean_logits: Float[Tensor, "batch vocab"]
    corrupted_logits: Float[Tensor, "batch vocab"]


def attribute(
    runner: Runner[BatchT, SiteT, PatchT],
    clean: BatchT,
    corrupted: BatchT,
    contrast: Contrast,
    sites: Collection[SiteT],
    embedding: SiteT,
    steps: int = 1,
) -> Attribution[SiteT]:
    """Score (a_corrupted - a_clean) . dm/da, summed over d_model, at every position of every site.

    With `steps` = 1 the gradient is taken at the clean prompt (attribution patching). With k > 1 it is the mean of the
    gradients at k points between the clean and the corrupted *input embeddings* (`embedding` is the first layer's
    input; midpoints (j - 1/2) / k), which is EAP-IG (Hanna et al. 2024, section 3): at the embedding itself the scores
    then sum to m(corrupted) - m(clean) as k grows.

    Raises:
        DataError: the twins' token groups do not lie at the same positions.
    """
    check_aligned(clean, corrupted)
    wanted = {*sites, embedding} if steps > 1 else set(sites)
    with torch.no_grad():
        other = runner.forward(corrupted, capture=wanted)
    run = runner.forward(clean, capture=wanted, grad=True)
    # of a model spread over devices
    base = {site: run.activations[site].detach().to(other.activations[site].device) for site in wanted}
    clean_metric = contrast.metric(run.logits)
    if steps == 1:
        grads = gradients(run, clean_metric, sites)
    else:
        ends = (base[embedding], other.activations[embedding])
        grads = _path_gradients(runner, clean, contrast, sites, embedding, ends, steps)
    scores = {s: dot(other.activations[s] - base[s], grads[s], runner.heads(s)) for s in sites}
    nodes = group_scores(scores, clean.groups)
    sizes = {key: score.abs() for key, score in nodes.items()}
    logits = run.logits.detach(), other.logits
    return Attribution(clean_metric.detach(), contrast.metric(other.logits), scores, nodes, sizes, *logits)


def dot(
    change: Float[Tensor, "batch seq width"], grad: Float[Tensor, "batch seq width"], heads: int | None
) -> Float[Tensor, "batch seq ..."]:
    """change . gradient over the whole width, or within each head; summed in double precision."""
    product = change * grad.to(change)
    parts = product if heads is None else product.unflatten(-1, (heads, -1))
    return parts.sum(-1, dtype=torch.float64)


def check_aligned(clean: BatchLike, corrupted: BatchLike) -> None:
    """Clean and corrupted prompts must have every token group at the same positions.

    Raises:
        DataError: they do not.
    """
    for name, mask in clean.groups.items():
        twin = corrupted.groups.get(name)
        if twin is None or twin.shape != mask.shape or not torch.equal(twin, mask):
            raise DataError(
                "a prompt and its corrupted twin differ in their token positions",
                f"token group {name!r}",
                "twins need the same relation and names of the same token count: make build_questions again",
            )


def group_scores(
    positions: Mapping[SiteT, Float[Tensor, "batch seq ..."]], groups: Mapping[str, Bool[Tensor, "batch seq"]]
) -> dict[tuple[SiteT, str], Float[Tensor, "batch ..."]]:
    """Signed scores summed over each group's tokens; groups that no row of the batch has are left out."""
    present = present_groups(groups)
    return {
        (site, name): torch.einsum("bs...,bs->b...", score, mask.to(score))
        for site, score in positions.items()
        for name, mask in present.items()
    }


def present_groups(groups: Mapping[str, Bool[Tensor, "batch seq"]]) -> dict[str, Bool[Tensor, "batch seq"]]:
    """Token groups that at least one row of the batch has."""
    return {name: mask for name, mask in groups.items() if bool(mask.any())}


def patch_nodes(
    runner: Runner[BatchT, SiteT, PatchT],
    repeat: Callable[[int], BatchT],
    corrupted: Mapping[SiteT, Float[Tensor, "1 seq width"]],
    nodes: Sequence[Node[SiteT]],
    contrast: Contrast,
    size: int,
) -> Float[Tensor, " node"]:
    """Change of m when the corrupted activation is written at each node of one clean prompt.

    `repeat(n)` is the clean prompt n times; `size` nodes share a forward pass, one per row, since rows are independent.
    `contrast` holds the prompt's own pair of tokens in its first row.
    """
    with torch.no_grad():
        clean = contrast.repeat(0, 1).metric(runner.forward(repeat(1)).logits)
        changes: list[Tensor] = []
        for start in range(0, len(nodes), size):
            chunk = nodes[start : start + size]
            logits = runner.forward(repeat(len(chunk)), patches=_row_patches(runner, corrupted, chunk)).logits
            changes.append(contrast.repeat(0, len(chunk)).metric(logits) - clean)
    return torch.cat(changes) if changes else clean[:0]


def _row_patches(
    runner: Runner[BatchT, SiteT, PatchT],
    corrupted: Mapping[SiteT, Float[Tensor, "1 seq width"]],
    nodes: Sequence[Node[SiteT]],
) -> list[PatchT]:
    """Node i patched in row i only; the nodes of one site and head become one patch."""
    patches: list[PatchT] = []
    for site, head in dict.fromkeys((node.site, node.head) for node in nodes):
        chosen = [node.site == site and node.head == head for node in nodes]
        rows = [n.where if mine else torch.zeros_like(n.where) for n, mine in zip(nodes, chosen, strict=True)]
        source = corrupted[site][0]
        if head is not None:
            source = source.unflatten(-1, (runner.heads(site) or 1, -1))[:, head]
        values = [source[n.where] for n, mine in zip(nodes, chosen, strict=True) if mine]
        patches.append(runner.patch(site, torch.stack(rows), torch.cat(values), head))
    return patches


def gradients(
    run: RunLike[SiteT], metric: Float[Tensor, " batch"], sites: Collection[SiteT], again: bool = False
) -> dict[SiteT, Tensor]:
    """dm/da at every site; `again` keeps the graph for another backward pass."""
    order = list(sites)
    ends = [run.activations[site] for site in order]
    # rows do not touch each other, so the gradient of the sum holds every row's own; a site without a way to the
    # answer has none, which means 0
    grads = torch.autograd.grad([metric.sum()], ends, retain_graph=again, allow_unused=True, materialize_grads=True)
    return dict(zip(order, grads, strict=True))


def _path_gradients(
    runner: Runner[BatchT, SiteT, PatchT],
    clean: BatchT,
    contrast: Contrast,
    sites: Collection[SiteT],
    embedding: SiteT,
    ends: tuple[Float[Tensor, "batch seq d_model"], Float[Tensor, "batch seq d_model"]],
    steps: int,
) -> dict[SiteT, Tensor]:
    everywhere = torch.ones(ends[0].shape[:2], dtype=torch.bool, device=ends[0].device)
    total: dict[SiteT, Tensor] = {}
    for j in range(1, steps + 1):
        point = torch.lerp(ends[0], ends[1], (j - 0.5) / steps)
        patch = runner.patch(embedding, everywhere, point.flatten(0, 1))
        run = runner.forward(clean, capture=sites, patches=[patch], grad=True)
        for site, grad in gradients(run, contrast.metric(run.logits), sites).items():
            total[site] = total[site] + grad / steps if site in total else grad / steps
    return total
