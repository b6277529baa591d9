"""Linear probes for the entity, layer by layer (study, section 5).

A probe is multinomial logistic regression on standardised features, its L2 strength chosen by inner cross-validation
over the training pictures. It is tested on pictures of an art source of which it has seen nothing, so that it must
read the flag and not the drawing.

Control: the same probe trained with the labels of the training pictures permuted among them. (Hewitt & Liang 2019,
arXiv 1909.03368, give every type a random label; here the type is the entity itself, so that would be the same task
under other names. Permuting by picture leaves a probe nothing that could carry over to a new picture.) Selectivity is
the accuracy minus the control's; a control above chance would show that pictures of both sets are mixed.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from sklearn.exceptions import ConvergenceWarning  # pyright: ignore[reportMissingTypeStubs]
from sklearn.linear_model import LogisticRegression  # pyright: ignore[reportMissingTypeStubs]

from twohop.errors import DataError

TOLERANCE = 1e-4
"""Largest gradient entry at which L-BFGS stops (mean log-loss in nats).

At 1e-3 it stopped so early that held-out accuracies moved by up to 2 of 24 pictures; from 1e-4 to 1e-6, at three times
the time, they moved by at most 1 of 24 with l2 = 1 (with l2 = 0.01, where hardly anything bounds the optimum, by 3).
"""
MAX_ITERATIONS = 150
"""Bounds the time of a fit on features that hardly separate; a probe that ran into it says so (`Probe.converged`)."""


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
    """What one probe is fitted on; rows of one picture (plain and augmented) share a fold and, in the control, a
    label.
    """

    features: Float[np.ndarray, "row d_model"]
    labels: Int[np.ndarray, " row"]
    pictures: Sequence[str]


def fit_probe(data: TrainingSet, candidates: Sequence[float], folds: int, seed: int) -> Probe:
    """Choose the L2 strength by cross-validation (ties: the strongest) and fit on everything.

    Raises:
        DataError: fewer than two entities to tell apart.
    """
    if len(np.unique(data.labels)) < 2:
        raise DataError("a probe needs pictures of at least two entities", "training pictures", "raise n_entities")
    l2 = candidates[0] if len(candidates) == 1 else choose_l2(data, candidates, folds, seed)
    return _fit(data.features, data.labels, l2)


def choose_l2(data: TrainingSet, candidates: Sequence[float], folds: int, seed: int) -> float:
    """The L2 strength with the best accuracy over inner folds of pictures; the strongest of equals."""
    fold = picture_folds(data, folds, seed)
    score = {l2: sum(_fold_hits(data, fold == k, l2) for k in range(folds)) for l2 in candidates}
    return max(sorted(candidates, reverse=True), key=lambda l2: score[l2])


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
    return TrainingSet(data.features, np.array([moved[p] for p in data.pictures]), data.pictures)


def first_near_maximum(layers: Sequence[int], accuracy: Sequence[float], share: float = 0.9) -> int:
    """The first layer whose accuracy reaches `share` of the curve's own maximum (study, section 5)."""
    goal = share * max(accuracy)
    return min(layer for layer, value in zip(layers, accuracy, strict=True) if value >= goal)


def _fold_hits(data: TrainingSet, held: Bool[np.ndarray, " row"], l2: float) -> int:
    if not held.any() or len(np.unique(data.labels[~held])) < 2:
        return 0
    probe = _fit(data.features[~held], data.labels[~held], l2)
    return int((probe.predict(data.features[held]) == data.labels[held]).sum())


def _fit(features: Float[np.ndarray, "row d_model"], labels: Int[np.ndarray, " row"], l2: float) -> Probe:
    mean, spread = features.mean(axis=0), features.std(axis=0)
    scale = np.where(spread > 0, spread, 1.0).astype(features.dtype)
    model: Any = LogisticRegression(C=1 / l2, tol=TOLERANCE, max_iter=MAX_ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # recorded in Probe.converged instead
        model.fit((features - mean) / scale, labels)
    weight, bias = _all_classes(model, int(labels.max()) + 1)
    weight = weight / scale
    return Probe(weight, bias - weight @ mean, l2, bool(model.n_iter_.max() < MAX_ITERATIONS))


def _all_classes(model: Any, n: int) -> tuple[np.ndarray, np.ndarray]:
    """One row per entity index; one that has no training row gets a bias that never wins; two classes are unfolded."""
    coef, intercept = np.asarray(model.coef_, np.float32), np.asarray(model.intercept_, np.float32)
    if len(model.classes_) == 2:
        coef, intercept = np.concatenate([-coef, coef]) / 2, np.concatenate([-intercept, intercept]) / 2
    weight, bias = np.zeros((n, coef.shape[1]), coef.dtype), np.full(n, np.finfo(np.float32).min, coef.dtype)
    weight[model.classes_], bias[model.classes_] = coef, intercept
    return weight, bias
