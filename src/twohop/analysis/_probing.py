"""Linear probes for the entity, layer by layer (study, section 5).

A probe is multinomial logistic regression on standardised features, its L2 strength chosen by inner cross-validation
over the training pictures; all layers, candidates of the L2 strength, and the control are fitted together
(`_logistic`). It is tested on pictures of an art source of which it has seen nothing, so that it must
read the flag and not the drawing.

Control: the same probe trained with the labels of the training pictures permuted among them. (Hewitt & Liang 2019,
arXiv 1909.03368, give every type a random label; here the type is the entity itself, so that would be the same task
under other names. Permuting by picture leaves a probe nothing that could carry over to a new picture.) Selectivity is
the accuracy minus the control's; a control above chance would show that pictures of both sets are mixed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from twohop.analysis._logistic import Solution, Standardised, Start, bytes_of_problem, solve, standardise
from twohop.analysis._statistics import Interval, bootstrap, entity_sums, ratio
from twohop.errors import DataError

MEMORY = 64 * 2**20
"""Bytes that the fits of one block of layers may hold at once, about."""


@dataclass(frozen=True)
class Probe:
    """A linear read-out on raw features, `features @ weight.T + bias`: the standardisation is folded in."""

    weight: Float[np.ndarray, "entity d_model"]
    bias: Float[np.ndarray, " entity"]
    l2: float
    converged: bool

    def predict(self, features: Float[np.ndarray, "picture d_model"]) -> Int[np.ndarray, " picture"]:
        """Index of the entity with the largest logit."""
        return np.argmax(features @ self.weight.T + self.bias, axis=1)


@dataclass(frozen=True)
class TrainingSet:
    """What the probes are fitted on; rows of one picture (plain and augmented) share a fold and, in the control, a
    label.
    """

    features: Float[np.ndarray, "layer row d_model"]
    labels: Int[np.ndarray, " row"]
    pictures: Sequence[str]


def fit_probes(
    data: TrainingSet, candidates: Sequence[float], folds: int, seed: int
) -> tuple[list[Probe], list[Probe]]:
    """Choose each layer's L2 strength by cross-validation (ties: the strongest) and fit on everything.

    Returns:
        Per layer the probe, and its control: shuffled labels (`shuffle_labels`) under the same L2 strength.

    Raises:
        DataError: fewer than two entities to tell apart.
    """
    if len(np.unique(data.labels)) < 2:
        raise DataError("a probe needs pictures of at least two entities", "training pictures", "raise n_entities")
    n = len(data.features)
    l2 = np.full(n, candidates[0]) if len(candidates) == 1 else choose_l2(data, candidates, folds, seed)
    features = standardise(torch.from_numpy(data.features))
    labels = [data.labels, shuffle_labels(data, seed).labels]
    l2_twice = np.tile(l2, 2)
    made = _probes(_fit(features, np.tile(np.arange(n), 2), np.repeat(labels, n, axis=0), l2_twice), l2_twice)
    return made[:n], made[n:]


def layers_at_once(n_rows: int, d_model: int, n_entities: int) -> int:
    """How many layers `fit_probes` may take together within MEMORY; at least one."""
    return max(1, MEMORY // (2 * bytes_of_problem(n_rows, d_model, n_entities)))


def choose_l2(data: TrainingSet, candidates: Sequence[float], folds: int, seed: int) -> Float[np.ndarray, " layer"]:
    """Per layer the L2 strength with the best accuracy over inner folds of pictures; the strongest of equals."""
    ordered = sorted(candidates, reverse=True)
    fold = picture_folds(data, folds, seed)
    hits = sum(_fold_hits(data, fold == k, ordered) for k in range(folds))
    return np.array(ordered)[np.argmax(hits, axis=1)]


def picture_folds(data: TrainingSet, folds: int, seed: int) -> Int[np.ndarray, " row"]:
    """Fold of every row: an entity's pictures are dealt out in random order, so that each fold holds nearly as many of
    each entity.
    """
    rng, fold = np.random.default_rng(seed), dict[str, int]()
    of_entity: dict[int, list[str]] = {}
    for picture, label in sorted(set(zip(data.pictures, data.labels.tolist(), strict=True))):
        of_entity.setdefault(label, []).append(picture)
    for label in sorted(of_entity):
        start = int(rng.integers(folds))
        for i, j in enumerate(rng.permutation(len(of_entity[label]))):
            fold[of_entity[label][j]] = (start + i) % folds
    return np.array([fold[p] for p in data.pictures])


def shuffle_labels(data: TrainingSet, seed: int) -> TrainingSet:
    """The control: labels permuted over the pictures; copies of a picture keep one label among them."""
    label_of = dict(zip(data.pictures, data.labels.tolist(), strict=True))
    pictures = sorted(label_of)
    order = np.random.default_rng(seed).permutation(len(pictures))
    moved = {p: label_of[pictures[j]] for p, j in zip(pictures, order, strict=True)}
    return replace(data, labels=np.array([moved[p] for p in data.pictures]))


def first_near_maximum(layers: Sequence[int], accuracy: Sequence[float], share: float = 0.9) -> int:
    """The first layer whose accuracy reaches `share` of the curve's own maximum (study, section 5)."""
    goal = share * max(accuracy)
    return min(layer for layer, value in zip(layers, accuracy, strict=True) if value >= goal)


def resolution(predictions: pl.DataFrame, n_layers: int, n_boot: int, seed: int, near: float = 0.9) -> Interval:
    """The first layer near the curve's own maximum, as a share of the depth; each draw of entities finds its own.

    Args:
        predictions: `schemas.PREDICTIONS` of one feature and test style.
        n_layers: decoder layers.
        n_boot: draws.
        seed: of the draws.
        near: share of the maximum.
    """
    right = predictions.pivot("layer", index="entity_id", values="correct", aggregate_function="sum", sort_columns=True)
    table = right.sort("entity_id").drop("entity_id")
    depth = np.array([int(layer) for layer in table.columns]) / n_layers
    order = np.argsort(depth)

    def first(sums: Float[np.ndarray, "draw layer"]) -> Float[np.ndarray, " draw"]:
        return depth[order][np.argmax(sums >= near * sums.max(axis=1, keepdims=True) - ROUNDING, axis=1)]

    return bootstrap(table.to_numpy().astype(float)[:, order], first, n_boot, seed)


ROUNDING = 1e-9
"""Counts are whole, but `0.9 * 10` need not be."""


def selectivity(
    hits: Bool[np.ndarray, " picture"],
    control: Bool[np.ndarray, " picture"],
    entities: Sequence[str],
    n_boot: int,
    seed: int,
) -> Interval:
    """Accuracy minus the control's on the same pictures (Hewitt & Liang 2019, section 2.2)."""
    sums = entity_sums(entities, [hits, control, np.ones(len(hits))])
    return bootstrap(sums, lambda s: ratio(s[:, 0] - s[:, 1], s[:, 2]), n_boot, seed)


def _fold_hits(
    data: TrainingSet, held: Bool[np.ndarray, " row"], candidates: Sequence[float]
) -> Int[np.ndarray, "layer candidate"]:
    """Rows of the held-out fold that each layer's probe gets right under each L2 strength."""
    n, c = len(data.features), len(candidates)
    hits = np.zeros((n, c), dtype=np.int64)
    if not held.any() or len(np.unique(data.labels[~held])) < 2:
        return hits
    features = standardise(torch.from_numpy(data.features[:, ~held]))
    labels, start = np.tile(data.labels[~held], (n, 1)), None
    for k, strength in enumerate(candidates):  # each begins where the stronger one ended
        l2 = np.full(n, strength)
        solution = _fit(features, np.arange(n), labels, l2, start)
        start = solution.end
        for i, probe in enumerate(_probes(solution, l2)):
            hits[i, k] = (probe.predict(data.features[i, held]) == data.labels[held]).sum()
    return hits


def _fit(
    features: Standardised,
    layers: Int[np.ndarray, " problem"],
    labels: Int[np.ndarray, "problem row"],
    l2: Float[np.ndarray, " problem"],
    start: Start | None = None,
) -> Solution:
    tensors: list[Tensor] = [torch.from_numpy(np.ascontiguousarray(a)) for a in (layers, labels, l2)]
    return solve(features, *tensors, n_entities=int(labels.max()) + 1, start=start)


def _probes(found: Solution, l2: Float[np.ndarray, " problem"]) -> list[Probe]:
    """One probe per problem."""
    rows = zip(found.weight.numpy(), found.bias.numpy(), l2, found.converged.tolist(), strict=True)
    return [Probe(w, b, float(strength), done) for w, b, strength, done in rows]
