"""Attribution patching: a first-order estimate of what patching every node would do, and its check by true patching.

Nanda (2023), "Attribution patching"; Kramar et al. (2024), AtP*, section 2; Hanna et al. (2024), EAP-IG; study,
section 3.
1. `attribute`: one clean forward and backward pass, one corrupted forward pass, scores of every position at every site.
2. `group_scores`: summed over the tokens of a group, sign kept.
3. `patch_nodes`: what the estimate stands for: the corrupted activation written at one node, the change of the metric.

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
        """Float["batch seq d_model"] of every captured site."""
        ...


BatchT = TypeVar("BatchT", bound=BatchLike)
BatchIn = TypeVar("BatchIn", bound=BatchLike, contravariant=True)
PatchIn = TypeVar("PatchIn", contravariant=True)


@runtime_checkable
class Forward(Protocol[BatchIn, SiteT, PatchIn]):
    """A forward pass that captures and patches sites; with `grad` the captured activations are part of the graph."""

    def __call__(
        self, batch: BatchIn, capture: Collection[SiteT] = ..., patches: Sequence[PatchIn] = ..., grad: bool = ...
    ) -> RunLike[SiteT]:
        """Run the batch once."""
        ...


@dataclass(frozen=True)
class Runner(Generic[BatchT, SiteT, PatchT]):
    """All that the analysis needs of a model."""

    forward: Forward[BatchT, SiteT, PatchT]
    patch: Callable[[SiteT, Tensor, Tensor], PatchT]
    """(site, where Bool["batch seq"], values Float["n d_model"]) -> a patch that overwrites the site there."""


@dataclass(frozen=True)
class Contrast:
    """The two tokens of the metric m = logit[clean] - logit[corrupted], one pair per row of a batch."""

    clean: Int[Tensor, " batch"]
    corrupted: Int[Tensor, " batch"]

    def metric(self, logits: Float[Tensor, "batch vocab"]) -> Float[Tensor, " batch"]:
        """m of every row."""
        rows = torch.arange(logits.shape[0], device=logits.device)
        return logits[rows, self.clean.to(logits.device)] - logits[rows, self.corrupted.to(logits.device)]

    def repeat(self, row: int, n: int) -> "Contrast":
        """One row's pair, n times."""
        return Contrast(self.clean[row].repeat(n), self.corrupted[row].repeat(n))


@dataclass(frozen=True)
class Attribution(Generic[SiteT]):
    """Scores of one batch of twins."""

    clean_metric: Float[Tensor, " batch"]
    corrupted_metric: Float[Tensor, " batch"]
    positions: Mapping[SiteT, Float[Tensor, "batch seq"]]
    """Signed score of every position: an estimate of m(node patched) - m(clean)."""


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
    base = {site: run.activations[site].detach() for site in wanted}
    clean_metric = contrast.metric(run.logits)
    if steps == 1:
        grads = _gradients(run, clean_metric, sites)
    else:
        ends = (base[embedding], other.activations[embedding])
        grads = _path_gradients(runner, clean, contrast, sites, embedding, ends, steps)
    scores = {s: ((other.activations[s] - base[s]).double() * grads[s].double()).sum(-1) for s in sites}
    return Attribution(clean_metric.detach(), contrast.metric(other.logits).detach(), scores)


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
    positions: Mapping[SiteT, Float[Tensor, "batch seq"]], groups: Mapping[str, Bool[Tensor, "batch seq"]]
) -> dict[tuple[SiteT, str], Float[Tensor, " batch"]]:
    """Signed scores summed over each group's tokens; groups that no row of the batch has are left out."""
    present = {name: mask for name, mask in groups.items() if bool(mask.any())}
    return {
        (site, name): (score * mask.to(score.device)).sum(1)
        for site, score in positions.items()
        for name, mask in present.items()
    }


def patch_nodes(
    runner: Runner[BatchT, SiteT, PatchT],
    repeat: Callable[[int], BatchT],
    corrupted: Mapping[SiteT, Float[Tensor, "1 seq d_model"]],
    nodes: Sequence[tuple[SiteT, Bool[Tensor, " seq"]]],
    contrast: Contrast,
    size: int,
) -> Float[Tensor, " node"]:
    """Change of m when the corrupted activation is written at each node (site, positions) of one clean prompt.

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
    corrupted: Mapping[SiteT, Float[Tensor, "1 seq d_model"]],
    nodes: Sequence[tuple[SiteT, Bool[Tensor, " seq"]]],
) -> list[PatchT]:
    """Node i patched in row i only; the nodes of one site become one patch."""
    patches: list[PatchT] = []
    for site in dict.fromkeys(site for site, _ in nodes):
        rows = [mask if owner == site else torch.zeros_like(mask) for owner, mask in nodes]
        values = [corrupted[site][0][mask] for owner, mask in nodes if owner == site]
        patches.append(runner.patch(site, torch.stack(rows), torch.cat(values)))
    return patches


def _gradients(run: RunLike[SiteT], metric: Tensor, sites: Collection[SiteT]) -> dict[SiteT, Tensor]:
    order = list(sites)
    ends = [run.activations[site] for site in order]
    # rows do not touch each other, so the gradient of the sum holds every row's own; a site without a way to the
    # answer has none, which means 0
    grads = torch.autograd.grad([metric.sum()], ends, allow_unused=True, materialize_grads=True)
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
        for site, grad in _gradients(run, contrast.metric(run.logits), sites).items():
            total[site] = total[site] + grad / steps if site in total else grad / steps
    return total
