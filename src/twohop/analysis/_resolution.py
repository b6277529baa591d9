"""Resolution depth: by which layer is the entity known? (study, section 7)

Four ways to look give, per layer and entity, a score of every candidate name (`Readings`). From there on they are
treated alike:

- curve: the mean score of the right name; chance: the mean score of every other entity's name in turn, that is the
  expectation of the same reading with names permuted over pictures.
- shown: a permutation test of the largest gap between the two over the layers (max-statistic, Westfall & Young 1993,
  so that looking at many layers is paid for). Where it does not reject, the method reads nothing and its depth is
  undefined, not 0.
- depth of a reading (logit lens, tuned lens, Patchscopes): the first layer at which the curve reaches 90 % of its own
  maximum, as for the probes (section 5).
- depth of a knockout (Geva et al. 2023, section 5): the centre of the first window by which half of the summed loss
  lies. A loss curve is a bump around the layers at which `last` reads the entity, so its median, not its rise, says
  when the information moves; negative losses count as none.
- intervals: bootstrap over entities; every draw has its own curve and its own depth.

A depth is as fine as the grid of layers or windows that were read; its interval knows nothing of that grid.

Layers count as the probes': 0 is the embedding, l what layer l - 1 writes, so that depth = layer / n_layers.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from twohop.analysis._statistics import Interval, bootstrap

Rule = Literal["near_maximum", "half_of_sum"]
NEAR = 0.9
"""Share of a curve's own maximum that counts as resolved (study, section 5)."""
HALF = 0.5
HEADLINE: Mapping[str, tuple[str, ...]] = {
    "logit_lens": ("last",),
    "tuned_lens": ("last",),
    "patchscope": ("last", "mean"),
    "knockout": ("name",),
}
"""Method -> readouts, the first that was measured speaks for it. The lenses and Patchscopes read the entity's last
token, as the probes' figure does: the one place that has seen the whole picture, and the same for all three."""
ALPHA = 0.05
"""Level of the test that a method reads anything."""
Layered = Float[np.ndarray, "draw layer"]


@dataclass(frozen=True)
class Readings:
    """What one method reads at one place, layer by layer.

    `scores[l, i, j]`: how well the reading of item i at `layers[l]` fits the name of candidate j: 1 for a hit, or the
    log-probability that a knockout costs. Items are entities, one each; candidate i is item i's own.
    """

    layers: tuple[int, ...]
    scores: Float[np.ndarray, "layer entity entity"]
    rule: Rule = "near_maximum"

    @property
    def own(self) -> Float[np.ndarray, "entity layer"]:
        """Score of the right name."""
        return np.diagonal(self.scores, axis1=1, axis2=2).T.astype(float)

    @property
    def others(self) -> Float[np.ndarray, "entity layer"]:
        """Mean score of the other entities' names: chance. NaN with one entity."""
        n = self.scores.shape[1]
        if n < 2:
            return np.full((n, len(self.layers)), np.nan)
        return (self.scores.sum(axis=2).T - self.own) / (n - 1)


@dataclass(frozen=True)
class Point:
    """One layer of a curve."""

    layer: int
    value: float | None
    low: float | None
    high: float | None
    chance: float
    n: int


@dataclass(frozen=True)
class Depth:
    """A resolution depth as a share of the layers; None where the method reads nothing."""

    depth: Interval
    layer: int | None
    p_value: float
    """Of the permutation test that the method reads anything."""


def name_hits(
    scores: Float[np.ndarray, "item token"], tokens: Sequence[int], names: Sequence[int], candidates: Sequence[int]
) -> Float[np.ndarray, "item candidate"]:
    """Hits of a read-out by first token: 1 where the candidate's first token is the best, shared among the names that
    begin with it.

    Args:
        scores: per item, the score of each of `tokens`.
        tokens: distinct first tokens of all names.
        names: first token of every name that competes; names that share one split its hit, as by drawing lots.
        candidates: first token of the candidates that are scored.
    """
    best = np.asarray(tokens)[np.argmax(scores, axis=1)]
    shared = {t: names.count(t) for t in set(candidates)}
    credit = np.array([1 / max(shared[t], 1) for t in candidates])
    return (best[:, None] == np.asarray(candidates)[None, :]) * credit


def curve(readings: Readings, n_boot: int, seed: int) -> list[Point]:
    """The mean score of the right name by layer with its interval, and chance."""
    own, chance, n = readings.own, readings.others.mean(axis=0), readings.scores.shape[1]
    points: list[Point] = []
    for i, layer in enumerate(readings.layers):
        sums = np.stack([own[:, i], np.ones(n)], axis=1)
        found = bootstrap(sums, lambda s: s[:, 0] / s[:, 1], n_boot, seed)
        points.append(Point(layer, found.value, found.low, found.high, float(chance[i]), n))
    return points


def permutation_p(scores: Float[np.ndarray, "layer entity entity"], permutations: int, seed: int) -> float:
    """p-value that names are read better than permuted ones at any layer: max over layers of the mean score, each
    layer in units of its own spread over permutations (Westfall & Young 1993).
    """
    layers, n, _ = scores.shape
    if n < 2:
        return 1.0
    draw, rows = np.random.default_rng(seed), np.arange(n)
    orders = [draw.permutation(n) for _ in range(permutations)]
    null = np.array([scores[:, rows, order].mean(axis=1) for order in orders])
    real = np.diagonal(scores, axis1=1, axis2=2).mean(axis=1)
    every = np.concatenate([null, real[None]])
    spread = every.std(axis=0)
    z = (every - every.mean(axis=0)) / np.where(spread > 0, spread, np.inf)
    largest = z.max(axis=1) if layers else np.zeros(permutations + 1)
    return float((largest >= largest[-1] - 1e-12).mean())


def depths_of(curves: Layered, layers: Sequence[int], n_layers: int, rule: Rule) -> Float[np.ndarray, " draw"]:
    """Depth of every row of curves as a share of the layers; NaN where a curve is nowhere above zero."""
    values, places = np.clip(curves, 0, None), np.asarray(layers, dtype=float)
    reached = values if rule == "near_maximum" else np.cumsum(values, axis=1)
    top = reached.max(axis=1, keepdims=True)
    goal = (NEAR if rule == "near_maximum" else HALF) * top
    first = np.argmax(reached >= goal, axis=1)
    return np.where(top[:, 0] > 0, places[first] / n_layers, np.nan)


def resolution_depth(readings: Readings, n_layers: int, n_boot: int, permutations: int, seed: int) -> Depth:
    """The depth of one method with its bootstrap interval over entities.

    Args:
        readings: scores by layer; layers ascending.
        n_layers: of the model; depth 1 is after its last layer.
        n_boot: draws of the bootstrap.
        permutations: of the test that anything is read.
        seed: of both.
    """
    n = readings.scores.shape[1]
    p = permutation_p(readings.scores, permutations, seed)
    if p >= ALPHA:
        return Depth(Interval(None, None, None, n), None, p)
    found = bootstrap(readings.own, lambda s: depths_of(s, readings.layers, n_layers, readings.rule), n_boot, seed)
    layer = None if found.value is None else round(found.value * n_layers)
    return Depth(found, layer, p)


Curves = tuple[Float[np.ndarray, "entity layer"], Sequence[int], int]
"""Scores of every entity by layer, those layers (ascending), and how many layers the model has."""


def depth_difference(first: Readings, second: Readings, n_layers: int, n_boot: int, seed: int) -> Interval:
    """How much deeper the first method's depth is than the second's, on the same entities in every draw."""
    curves = ((first.own, first.layers, n_layers), (second.own, second.layers, n_layers))
    return curve_difference(*curves, (first.rule, second.rule), n_boot, seed)


def curve_difference(first: Curves, second: Curves, rules: tuple[Rule, Rule], n_boot: int, seed: int) -> Interval:
    """Depth of the first curve minus the second's, each as a share of its own model's layers, over paired entities."""
    split = len(first[1])

    def difference(sums: Layered) -> Float[np.ndarray, " draw"]:
        a = depths_of(sums[:, :split], first[1], first[2], rules[0])
        return a - depths_of(sums[:, split:], second[1], second[2], rules[1])

    return bootstrap(np.concatenate([first[0], second[0]], axis=1), difference, n_boot, seed)


def headline_readouts(found: Collection[tuple[str, str]]) -> dict[str, str]:
    """Method -> the readout that speaks for it: the first of `HEADLINE` that was measured. Fixed, never chosen by what
    it gives.
    """
    return {
        m: next(r for r in wanted if (m, r) in found)
        for m, wanted in HEADLINE.items()
        if any((m, r) in found for r in wanted)
    }


def spread(depths: Mapping[str, float | None]) -> float | None:
    """Largest minus smallest depth of the methods that have one; None with fewer than two."""
    known = [d for d in depths.values() if d is not None]
    return max(known) - min(known) if len(known) > 1 else None


def order_agreement(first: Sequence[float | None], second: Sequence[float | None]) -> tuple[float | None, int]:
    """Kendall's tau-b (Kendall 1945) of two methods' depths over models, and on how many models it rests.

    With two models it is 1 (same order), -1 (opposite) or None (one of the methods does not tell them apart).
    """
    known = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    pairs = [(a, b) for i, a in enumerate(known) for b in known[i + 1 :]]
    signs = [(int(np.sign(a[0] - b[0])), int(np.sign(a[1] - b[1]))) for a, b in pairs]
    ties = [sum(1 for s in signs if s[k] != 0) for k in (0, 1)]
    if not ties[0] or not ties[1]:
        return None, len(known)
    return float(sum(s * t for s, t in signs) / np.sqrt(ties[0] * ties[1])), len(known)


def layers_of_windows(n_layers: int, width: int, stride: int) -> list[tuple[int, range]]:
    """Windows of `width` decoder layers around every `stride`-th layer, cut off at the ends; with each the place of
    its central layer's output (that layer + 1).
    """
    half = width // 2
    windows: list[tuple[int, range]] = []
    for centre in range(0, n_layers, stride):
        window = range(max(0, centre - half), min(n_layers, centre - half + width))
        windows.append((centre + 1, window))
    return windows
