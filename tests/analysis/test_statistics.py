"""Intervals and tests against scipy and known values."""

import math
from statistics import NormalDist

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from twohop.analysis import accuracy, bootstrap, entity_sums, holm, mcnemar, ratio, share, wilson

WIDENED = {n: 2 * NormalDist().cdf(math.sqrt(n / (n - 1)) * stats.t.ppf(0.975, n - 1)) - 1 for n in (12, 60)}
"""The level at which a plain BCa interval is ours for n entities."""


@pytest.mark.parametrize("n", WIDENED)
def test_bootstrap_of_a_mean_is_scipy_s_bca_at_the_widened_level(n: int) -> None:
    right = np.random.default_rng(1).binomial(3, 0.15, size=n).astype(float)
    sums = np.stack([right, np.full(n, 3.0)], axis=1)
    ours = bootstrap(sums, lambda s: ratio(s[:, 0], s[:, 1]), n_boot=20000, seed=0)
    theirs = stats.bootstrap(
        (right / 3,), np.mean, n_resamples=20000, confidence_level=WIDENED[n], method="BCa", rng=1
    ).confidence_interval
    assert ours.value == pytest.approx(float((right / 3).mean()))
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.006)


def test_bootstrap_of_a_ratio_is_scipy_s_bca_at_the_widened_level() -> None:
    rng = np.random.default_rng(2)
    sums = np.stack([rng.binomial(3, 0.5, size=60), rng.binomial(3, 0.2, size=60)], axis=1).astype(float)
    loss = lambda a, b, axis: (a.sum(axis) - b.sum(axis)) / a.sum(axis)  # noqa: E731
    theirs = stats.bootstrap(
        (sums[:, 0], sums[:, 1]),
        loss,
        n_resamples=20000,
        paired=True,
        confidence_level=WIDENED[60],
        method="BCa",
        rng=1,
    ).confidence_interval
    ours = bootstrap(sums, lambda s: ratio(s[:, 0] - s[:, 1], s[:, 0]), n_boot=20000, seed=0)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)


def test_entities_that_do_not_differ_are_not_certainty() -> None:
    same = share(np.tile([1.0, 3.0], (12, 1)), 200, 0)
    assert (same.low, same.high) == pytest.approx(wilson(4, 12))


@given(st.lists(st.integers(0, 3), min_size=5, max_size=30), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_interval_holds_its_estimate_and_stays_in_range(right: list[int], n_boot: int) -> None:
    found = share(np.array([[r, 3.0] for r in right]), n_boot, 0)
    assert found.value is not None
    assert found.low is not None
    assert found.high is not None
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_bootstrap_draws_entities_not_questions() -> None:
    """Ten questions of one entity that agree are one observation: the interval is as wide as that of one each."""
    entities = [f"e{i % 20}" for i in range(200)]
    right = [int(e[1:]) % 2 for e in entities]
    clustered = share(entity_sums(entities, [right, [1] * 200]), 4000, 0)
    single = share(entity_sums(entities[:20], [right[:20], [1] * 20]), 4000, 0)
    assert clustered == single
    assert clustered.n_entities == 20


def test_equal_seeds_give_equal_intervals_whatever_the_row_order() -> None:
    table = pl.DataFrame({"entity_id": [f"e{i}" for i in range(30)], "correct": [i % 3 == 0 for i in range(30)]})
    assert accuracy(table, 500, 7) == accuracy(table.reverse(), 500, 7)
    assert any(accuracy(table, 500, 7) != accuracy(table, 500, seed) for seed in range(8, 12))


def test_all_right_is_not_certain() -> None:
    few, many = (share(np.ones((n, 2)), 200, 0) for n in (4, 400))
    assert few.low == pytest.approx(wilson(4, 4)[0])
    assert few.low is not None
    assert many.low is not None
    assert few.low < 0.6 < 0.98 < many.low
    none = share(np.stack([np.zeros(4), np.ones(4)], axis=1), 200, 0)
    assert (none.value, none.low, none.high) == (0.0, 0.0, pytest.approx(wilson(0, 4)[1]))


def test_nothing_asked_is_undefined_not_zero() -> None:
    assert share(np.zeros((0, 2)), 200, 0).record() == {"value": None, "low": None, "high": None, "n_entities": 0}


def test_a_handful_of_entities_is_no_bootstrap() -> None:
    """One entity with two of three right: every draw is the same, which must not pass for certainty."""
    one = np.array([[2.0, 3.0]])
    assert bootstrap(one, lambda s: ratio(s[:, 0], s[:, 1]), 200, 0).low is None
    found = share(one, 200, 0)
    assert (found.low, found.high) == pytest.approx(wilson(2 / 3, 1))
    assert found.low is not None
    assert found.high is not None
    assert found.high - found.low > 0.5


def test_a_ratio_that_is_often_undefined_gets_no_interval() -> None:
    sums = np.array([[1.0, 2.0], *[[0.0, -0.2]] * 5])
    found = bootstrap(sums, lambda s: ratio(s[:, 0], s[:, 1]), 500, 0)
    assert found.value == pytest.approx(1)
    assert found.low is None
    assert found.high is None
    assert bootstrap(-sums, lambda s: ratio(s[:, 0], s[:, 1]), 500, 0).value is None


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_exact_binomial_test(b: int, c: int) -> None:
    expected = stats.binomtest(b, b + c, 0.5).pvalue if b + c else 1.0
    assert mcnemar(b, c) == pytest.approx(float(expected), rel=1e-9)


def test_mcnemar_of_large_counts_is_finite() -> None:
    assert mcnemar(900, 1100) == pytest.approx(float(stats.binomtest(900, 2000, 0.5).pvalue), rel=1e-9)


def test_holm_known_values() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
@settings(max_examples=50)
def test_holm_lies_between_raw_and_bonferroni_and_keeps_the_order(p: list[float]) -> None:
    adjusted = holm(p)
    assert all(raw <= a <= min(1, raw * len(p)) + 1e-12 for raw, a in zip(p, adjusted, strict=True))
    order = np.argsort(p, kind="stable")
    assert list(np.asarray(adjusted)[order]) == sorted(adjusted)


@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_agrees_with_scipy(counts: tuple[int, int]) -> None:
    expected = stats.binomtest(*counts).proportion_ci(0.95, method="wilson")
    assert wilson(*counts) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_needs_an_observation() -> None:
    with pytest.raises(ValueError, match="at least one"):
        wilson(0, 0)
