"""Nominal 95 % intervals hold the truth in 93 to 97 % of simulated studies of this study's size."""

import numpy as np
import pytest
from interval_coverage import TRUTHS, Truth, measure

from twohop.analysis import Interval, ratio

N_ENTITIES, N_STUDIES, N_BOOT = 48, 2000, 500
EDGES = ("share 0.02", "share 0.98", "degradation .50 to .02")
"""About one right (or wrong) answer expected: counts are so few that an exact 95 % does not exist; wider is allowed."""


@pytest.mark.parametrize("truth", TRUTHS, ids=lambda truth: truth.name)
def test_intervals_cover_as_often_as_they_say(truth: Truth) -> None:
    found = measure(truth, N_ENTITIES, N_STUDIES, N_BOOT)
    assert found.none < 0.01
    assert 0.93 <= found.held <= (0.99 if truth.name in EDGES else 0.97)


def test_plain_percentiles_would_fail_this_check() -> None:
    """So the check has the power to find an interval that is too narrow."""

    counts = np.random.default_rng(0).multinomial(N_ENTITIES, np.full(N_ENTITIES, 1 / N_ENTITIES), size=N_BOOT)

    def percentiles(sums: np.ndarray, n_boot: int) -> Interval:
        drawn = counts @ sums
        low, high = np.quantile(ratio(drawn[:, 0], drawn[:, -1]), [0.025, 0.975])
        return Interval(0.0, float(low), float(high), len(sums))

    found = measure(Truth("share 0.05", (0.05,), percentiles, 0.05), N_ENTITIES, N_STUDIES, N_BOOT)
    assert found.held < 0.93
