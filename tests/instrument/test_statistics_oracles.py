"""Statistics equal those of scipy and statsmodels (bootstrap: tests/analysis/test_statistics.py)."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as reference_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from twohop.analysis import correlate, holm, mcnemar, two_by_two, wilson

EXACT = 1e-9
CHANCES = st.floats(0, 1, allow_nan=False)


@given(st.integers(0, 400), st.integers(0, 400))
@settings(max_examples=60, deadline=None)
def test_mcnemar_is_statsmodels_exact_test(only_first: int, only_second: int) -> None:
    theirs = reference_mcnemar([[7, only_first], [only_second, 5]], exact=True).pvalue
    assert mcnemar(only_first, only_second) == pytest.approx(float(theirs), rel=EXACT, abs=1e-300)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=80))
@settings(max_examples=40, deadline=None)
def test_paired_answers_give_statsmodels_p_value(pairs: list[tuple[bool, bool]]) -> None:
    first, second = (list(column) for column in zip(*pairs, strict=True))
    counts = two_by_two(first, second)
    table = [[counts["both_right"], counts["lost"]], [counts["gained"], counts["both_wrong"]]]
    theirs = reference_mcnemar(table, exact=True).pvalue
    assert mcnemar(counts["lost"], counts["gained"]) == pytest.approx(float(theirs), rel=EXACT)


@given(st.lists(CHANCES, min_size=1, max_size=14))
@settings(max_examples=5, deadline=None)  # theirs is slow
def test_holm_is_statsmodels(p_values: list[float]) -> None:
    np.testing.assert_allclose(holm(p_values), multipletests(p_values, method="holm")[1], rtol=EXACT)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
@settings(max_examples=60, deadline=None)
def test_wilson_is_statsmodels(counts: tuple[int, int]) -> None:
    np.testing.assert_allclose(wilson(*counts), proportion_confint(*counts, method="wilson"), rtol=EXACT, atol=1e-12)


NUMBERS = st.lists(st.tuples(st.integers(-50, 50), st.integers(-50, 50)), min_size=3, max_size=60)


@given(NUMBERS)
@settings(max_examples=60, deadline=None)
def test_correlations_are_scipy_s_with_ties(pairs: list[tuple[int, int]]) -> None:
    x, y = np.array(pairs, dtype=float).T
    ours = correlate(x, y)
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        assert ours == {"pearson": None, "spearman": None}
        return
    assert ours["pearson"] == pytest.approx(float(stats.pearsonr(x, y).statistic), abs=EXACT)
    assert ours["spearman"] == pytest.approx(float(stats.spearmanr(x, y).statistic), abs=EXACT)
