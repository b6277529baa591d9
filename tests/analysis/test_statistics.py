"""Intervals and tests against scipy and known values."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from twohop.analysis import accuracy, bootstrap, entity_sums, holm, mcnemar, ratio, share, wilson


def test_bootstrap_of_a_mean_agrees_with_scipy() -> None:
    right = np.random.default_rng(1).integers(0, 4, size=80).astype(float)
    sums = np.stack([right, np.full(80, 3.0)], axis=1)
    ours = bootstrap(sums, lambda s: ratio(s[:, 0], s[:, 1]), n_boot=8000, seed=0)
    theirs = stats.bootstrap((right / 3,), np.mean, n_resamples=8000, method="percentile", rng=1).confidence_interval
    assert ours.value == pytest.approx(float((right / 3).mean()))
    assert ours.low == pytest.approx(theirs.low, abs=0.01)
    assert ours.high == pytest.approx(theirs.high, abs=0.01)


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
    assert accuracy(table, 500, 7) != accuracy(table, 500, 8)


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(300):
        sums = np.stack([rng.binomial(3, 0.4, size=60), np.full(60, 3)], axis=1).astype(float)
        found = share(sums, 400, trial)
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= 0.4 <= found.high
    assert 0.90 <= hits / 300 <= 0.985


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
