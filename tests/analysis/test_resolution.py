"""From readings to depths, on readings whose truth is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau

from twohop.analysis import (
    Readings,
    curve,
    depth_difference,
    first_near_maximum,
    headline_readouts,
    layers_of_windows,
    name_hits,
    order_agreement,
    permutation_p,
    resolution_depth,
    spread,
)
from twohop.analysis._resolution import depths_of

LAYERS, N = (0, 2, 4, 6, 8, 10), 24


def readings(from_layer: int, rate: float = 0.9, seed: int = 0) -> Readings:
    """Every entity is read from `from_layer` on with probability `rate`; else another name comes out."""
    draw = np.random.default_rng(seed)
    scores = np.zeros((len(LAYERS), N, N))
    for i, layer in enumerate(LAYERS):
        right = (draw.random(N) < rate) & (layer >= from_layer)
        named = np.where(right, np.arange(N), draw.integers(N, size=N))
        scores[i, np.arange(N), named] = 1
    return Readings(LAYERS, scores)


def knocked(centre: int) -> Readings:
    """Blocking costs the right name two nats around one layer, and every name noise."""
    draw = np.random.default_rng(1)
    scores = draw.normal(0, 0.3, (len(LAYERS), N, N))
    for i, layer in enumerate(LAYERS):
        scores[i][np.diag_indices(N)] += 2 * np.exp(-(((layer - centre) / 1.5) ** 2))
    return Readings(LAYERS, scores, "half_of_sum")


@pytest.mark.parametrize("layer", LAYERS)
def test_depth_is_where_names_begin_to_be_read(layer: int) -> None:
    found = resolution_depth(readings(layer, 1.0), 10, 200, 200, 0)
    assert found.layer == layer
    assert found.depth.value == layer / 10
    assert found.depth.low == found.depth.high == layer / 10
    assert found.p_value < 0.05


@pytest.mark.parametrize("centre", [2, 4, 8])
def test_knockout_depth_is_where_the_loss_lies(centre: int) -> None:
    found = resolution_depth(knocked(centre), 10, 200, 200, 0)
    assert found.layer == centre
    assert found.depth.low is not None
    assert found.depth.low <= centre / 10 <= found.depth.high


def test_what_reads_nothing_has_no_depth() -> None:
    found = resolution_depth(readings(99), 10, 200, 200, 0)
    assert found.layer is None
    assert found.depth.value is None
    assert found.depth.low is None


def test_test_keeps_its_level_over_many_layers() -> None:
    rejected = [permutation_p(readings(99, seed=s).scores, 100, s) < 0.05 for s in range(200)]
    assert np.mean(rejected) < 0.1


def test_one_entity_proves_nothing() -> None:
    alone = Readings((0, 1), np.ones((2, 1, 1)))
    assert resolution_depth(alone, 1, 100, 100, 0).depth.value is None


def test_chance_is_the_expectation_over_derangements() -> None:
    made = readings(4)
    shifted = [np.diagonal(np.roll(made.scores, -k, axis=2), axis1=1, axis2=2).mean(1) for k in range(1, N)]
    np.testing.assert_allclose(made.others.mean(axis=0), np.mean(shifted, axis=0))


def test_curve_holds_its_interval_and_its_chance() -> None:
    points = curve(readings(4), 200, 0)
    assert [p.layer for p in points] == list(LAYERS)
    assert points[-1].value is not None
    assert points[-1].low <= points[-1].value <= points[-1].high
    assert points[-1].value > 0.7 > 0.2 > points[-1].chance


def test_difference_of_two_methods_uses_the_same_entities() -> None:
    gap = depth_difference(readings(6, 1.0), readings(2, 1.0), 10, 200, 0)
    assert (gap.value, gap.low, gap.high) == pytest.approx((0.4, 0.4, 0.4))
    assert depth_difference(readings(6), readings(6), 10, 200, 0).value == 0


@given(st.lists(st.floats(0, 1), min_size=2, max_size=8).filter(lambda v: max(v) > 0))
def test_near_maximum_is_the_probes_rule(values: list[float]) -> None:
    layers = list(range(len(values)))
    (depth,) = depths_of(np.array([values]), layers, len(values), "near_maximum")
    assert round(depth * len(values)) == first_near_maximum(layers, values)


@settings(max_examples=30)
@given(st.lists(st.floats(-1, 1), min_size=3, max_size=8), st.floats(0.1, 10))
def test_depths_do_not_depend_on_the_unit(values: list[float], factor: float) -> None:
    curves, layers = np.array([values]), list(range(len(values)))
    one, other = (depths_of(curves * f, layers, 10, "half_of_sum") for f in (1.0, 2.0 ** round(np.log2(factor))))
    np.testing.assert_array_equal(one, other)


def test_names_that_share_their_first_token_share_a_hit() -> None:
    scores = np.array([[0.1, 0.9], [0.8, 0.2]])
    hits = name_hits(scores, tokens=[5, 7], names=[5, 7, 7], candidates=[7, 5, 7])
    np.testing.assert_array_equal(hits, [[0.5, 0, 0.5], [0, 1, 0]])


@pytest.mark.parametrize("width", [1, 2, 3, 6])
def test_windows_lie_in_the_model_and_hold_their_centre(width: int) -> None:
    for place, window in layers_of_windows(12, width, 2):
        assert 0 <= window.start < window.stop <= 12
        assert len(window) <= width
        assert place - 1 in window
    assert {len(w) for _, w in layers_of_windows(12, width, 1)[6:8]} == {width}


def test_agreement_over_models_equals_scipy() -> None:
    first, second = [0.1, 0.5, 0.5, 0.9, 0.3], [0.2, 0.4, 0.9, 0.8, None]
    tau, n = order_agreement(first, second)
    assert n == 4
    assert tau == pytest.approx(kendalltau(first[:4], second[:4]).statistic)
    assert order_agreement([0.1, 0.5], [0.2, 0.9]) == (1.0, 2)
    assert order_agreement([0.1, 0.5], [0.9, 0.2]) == (-1.0, 2)
    assert order_agreement([0.1, 0.1], [0.9, 0.2]) == (None, 2)
    assert order_agreement([None, 0.1], [0.9, 0.2]) == (None, 1)


def test_spread_needs_two_depths() -> None:
    assert spread({"a": 0.2, "b": None, "c": 0.7}) == pytest.approx(0.5)
    assert spread({"a": 0.2, "b": None}) is None


def test_headline_readouts_are_fixed() -> None:
    assert headline_readouts([("patchscope", "mean"), ("logit_lens", "best"), ("logit_lens", "last")]) == {
        "logit_lens": "last",
        "patchscope": "mean",
    }
