"""What tells two VLMs of one backbone apart: paired differences, the same entities drawn for both models."""

from dataclasses import replace

import numpy as np
import polars as pl

from twohop.analysis._resolution import Curves, Rule, curve_difference
from twohop.analysis._statistics import Interval, bootstrap, entity_sums, ratio


def loss_difference(first: pl.DataFrame, second: pl.DataFrame, n_boot: int, seed: int) -> Interval:
    """Relative degradation (backbone's name to picture, all questions) of the first VLM minus the second's.

    Both are as `pair_answers` makes them; questions that only one has are left out.
    """
    both = first.join(second.select("question_id", pl.col("image").alias("other")), on="question_id")
    sums = entity_sums(both["entity_id"].to_list(), [both["backbone"], both["image"], both["other"]])
    return bootstrap(sums, lambda s: ratio(s[:, 2] - s[:, 1], s[:, 0]), n_boot, seed)


def paired_depths(first: Curves, second: Curves, rule: Rule, n_boot: int, seed: int) -> Interval:
    """Depth of the first model's curve minus the second's, as shares of their layers (`depths_of`).

    A depth of d says that the truth lies between the layer read before d and d itself, so the interval's ends are moved
    out by a step of the grid: the low one by the first's, the high one by the second's. Otherwise a difference of one
    step, which every draw repeats, would look certain.
    """
    found = curve_difference(first, second, (rule, rule), n_boot, seed)
    if found.low is None or found.high is None:
        return found
    low, high = found.low - _step(first), found.high + _step(second)
    return replace(found, low=round(low, _DIGITS), high=round(high, _DIGITS))


_DIGITS = 9
"""A difference of exactly one step must not be told from zero by rounding."""


def _step(curves: Curves) -> float:
    """Largest gap between layers that were read, as a share of the depth."""
    return float(np.diff(curves[1]).max(initial=0)) / curves[2]
