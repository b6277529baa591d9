"""Uncertainty and tests (study, section 2): bootstrap over entities, McNemar's exact test, Holm's correction.

Entities, not questions, are drawn: the questions of one entity share its picture and its name, so they are not
independent. Every statistic of this project is a function of sums over questions, so a draw is a vector of
multiplicities per entity times a matrix of per-entity sums.

Plain percentiles of the draws cover less than they say at this study's sizes (measured, docs/instrument.md: 91 % for a
share of 0.05 over 48 entities), so the percentiles are corrected for bias and skewness and widened for few entities.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float
from numpy.typing import ArrayLike
from scipy.special import stdtrit

Statistic = Callable[[Float[np.ndarray, "draw column"]], Float[np.ndarray, " draw"]]
LEVEL = 0.95
UNDEFINED_SHARE = (1 - LEVEL) / 2
"""When the statistic is undefined in more than this share of the draws, an interval from the others would mislead."""

MIN_ENTITIES = 5
"""With fewer the draws repeat a handful of values, and no percentile of them is an interval."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval; None where it is undefined (a denominator that is not positive, no data)."""

    value: float | None
    low: float | None
    high: float | None
    n_entities: int

    def record(self) -> dict[str, Any]:
        """The plain values, for JSON."""
        return asdict(self)


def bootstrap(sums: Float[np.ndarray, "entity column"], statistic: Statistic, n_boot: int, seed: int) -> Interval:
    """Bootstrap over entities (Efron 1979) of a statistic of summed columns, with corrected percentiles.

    BCa (Efron 1987, sections 2 to 5): corrected for the draws' bias and for skewness (jackknife over entities); its
    normal quantile is replaced by sqrt(n / (n - 1)) times Student's of n - 1 degrees of freedom, since draws of few
    entities spread too little (Hesterberg 2015, section 4.5, "expanded percentiles").

    Args:
        sums: per entity, what the statistic needs summed (e.g. right answers, questions).
        statistic: from summed columns `(draw, column)` to one number per draw, NaN where undefined.
        n_boot: number of draws.
        seed: of the draws; equal inputs give equal intervals.

    Returns:
        The estimate; without ends for a handful of entities, or where too many draws are undefined. Both ends are the
        estimate where all draws are alike: the entities do not differ, which is not certainty.
    """
    n = len(sums)
    if n == 0:
        return Interval(None, None, None, 0)
    value = float(statistic(sums.sum(axis=0, keepdims=True))[0])
    draws = statistic(_multiplicities(n, n_boot, seed) @ sums)
    undefined = np.isnan(draws)
    if np.isnan(value):
        return Interval(None, None, None, n)
    if n < MIN_ENTITIES or undefined.mean() > UNDEFINED_SHARE:
        return Interval(value, None, None, n)
    draws = draws[~undefined]
    low, high = np.quantile(draws, _levels(value, draws, statistic(sums.sum(axis=0) - sums)))
    return Interval(value, min(float(low), value), max(float(high), value), n)


@lru_cache(maxsize=8)
def _multiplicities(n: int, n_boot: int, seed: int) -> Float[np.ndarray, "draw entity"]:
    """How often each entity is drawn; kept, as a report asks for the same ones hundreds of times."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=n_boot).astype(float)


def _levels(
    value: float, draws: Float[np.ndarray, " draw"], left_out: Float[np.ndarray, " entity"]
) -> tuple[float, float]:
    """Which quantiles of the draws are the interval's ends; `left_out` is the statistic without each entity."""
    n, normal = len(left_out), NormalDist()
    below = float(((draws < value).mean() + (draws <= value).mean()) / 2)
    bias = normal.inv_cdf(min(max(below, 0.5 / len(draws)), 1 - 0.5 / len(draws)))
    influence = left_out[~np.isnan(left_out)]
    influence = influence.mean() - influence
    spread = float((influence**2).sum())
    skewness = float((influence**3).sum()) / (6 * spread**1.5) if spread > 0 else 0.0
    reach = float(stdtrit(n - 1, (1 + LEVEL) / 2)) * math.sqrt(n / (n - 1))
    shifted = (bias - reach, bias + reach)
    low, high = (normal.cdf(bias + z / max(1 - skewness * z, 1e-6)) for z in shifted)
    return low, high


def share(sums: Float[np.ndarray, "entity 2"], n_boot: int, seed: int) -> Interval:
    """Share of right answers with its interval; columns are (right, asked).

    Where all entities have the same share (every answer right, say) the bootstrap has no spread, whatever their number,
    and for a handful of entities it has hardly any; Wilson's interval for that number of entities is given instead, so
    that 4 of 4 does not look as sure as 400 of 400.
    """
    interval = bootstrap(sums, lambda s: ratio(s[:, 0], s[:, 1]), n_boot, seed)
    if interval.value is not None and interval.low == interval.high:  # both None for a handful
        return Interval(interval.value, *wilson(interval.value * len(sums), len(sums)), len(sums))
    return interval


def accuracy(graded: pl.DataFrame, n_boot: int, seed: int) -> Interval:
    """Share of right answers of graded rows (columns entity_id, correct); see `share`."""
    sums = entity_sums(graded["entity_id"].to_list(), [graded["correct"], np.ones(graded.height)])
    return share(sums, n_boot, seed)


def ratio(top: Float[np.ndarray, " draw"], bottom: Float[np.ndarray, " draw"]) -> Float[np.ndarray, " draw"]:
    """`top / bottom`, NaN where the denominator is not positive."""
    safe = np.where(bottom > 0, bottom, np.nan)
    return top / safe


def entity_sums(entities: Sequence[str], columns: Sequence[ArrayLike]) -> Float[np.ndarray, "entity column"]:
    """Sums of per-question columns within each entity, entities sorted (so that a seed means the same draws)."""
    names, index = np.unique(np.asarray(entities, dtype=object).astype(str), return_inverse=True)
    table = np.zeros((len(names), len(columns)))
    for j, column in enumerate(columns):
        np.add.at(table[:, j], index, np.asarray(column, dtype=float))
    return table


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided exact p-value of McNemar's test (McNemar 1947) from the discordant counts; 1 when there are none."""
    n = only_first + only_second
    tail = sum(math.comb(n, k) for k in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / 2**n)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values of Holm's step-down procedure (Holm 1979), in the order given."""
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = running
    return adjusted


def wilson(right: int | float, n: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a share (Wilson 1927).

    Raises:
        ValueError: `n` is not positive.
    """
    if n <= 0:
        raise ValueError("Wilson's interval needs at least one observation")
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    p, denominator = right / n, 1 + z**2 / n
    centre = (p + z**2 / (2 * n)) / denominator
    half = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / denominator
    # rounding must not push an end past the share itself (0 of n, n of n)
    return max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half))
