"""Differences between two models are paired over entities."""

import numpy as np
import polars as pl
import pytest

from twohop.analysis._degradation import relative_loss
from twohop.analysis._pairs import loss_difference, paired_depths
from twohop.analysis._statistics import entity_sums


def answers(backbone: list[bool], image: list[bool]) -> pl.DataFrame:
    n = len(backbone)
    ids = {"question_id": [f"q{i}" for i in range(n)], "entity_id": [f"e{i // 2}" for i in range(n)]}
    return pl.DataFrame({**ids, "backbone": backbone, "image": image})


def test_difference_of_losses_is_that_of_the_two_losses() -> None:
    draw = np.random.default_rng(0)
    known, one, two = (list(map(bool, draw.random(60) < p)) for p in (0.8, 0.6, 0.3))
    first, second = answers(known, one), answers(known, two)
    losses = [
        relative_loss(entity_sums(t["entity_id"].to_list(), [t["backbone"], t["image"], [1.0] * 60]), 200, 0).value
        for t in (first, second)
    ]
    found = loss_difference(first, second, 200, 0)
    assert losses[0] is not None
    assert losses[1] is not None
    assert found.value == pytest.approx(losses[0] - losses[1])


def test_equal_answers_differ_by_exactly_nothing() -> None:
    table = answers([True, False] * 20, [True, True, False, False] * 10)
    found = loss_difference(table, table, 200, 0)
    assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)


def test_paired_depths_see_a_shift_and_models_of_other_depth() -> None:
    draw = np.random.default_rng(1)
    noise = draw.random((40, 5)) < 0.995
    early = np.where(np.arange(5) >= 1, noise, False).astype(float)
    late = np.where(np.arange(5) >= 3, noise, False).astype(float)
    found = paired_depths((late, range(5), 4), (early, range(5), 4), "near_maximum", 500, 0)
    assert found.value == pytest.approx(0.5)
    assert found.low is not None
    assert found.low > 0
    deeper = paired_depths((late, range(0, 10, 2), 8), (late, range(5), 4), "near_maximum", 500, 0)
    assert deeper.value == pytest.approx(0.0)


def test_one_step_of_the_grid_is_no_difference_and_two_are() -> None:
    def rise(at: int) -> np.ndarray:
        return np.tile((np.arange(10) >= at).astype(float), (30, 1))

    layers = range(0, 30, 3)
    one = paired_depths((rise(7), layers, 30), (rise(8), layers, 30), "near_maximum", 200, 0)
    assert (one.value, one.low, one.high) == (pytest.approx(-0.1), pytest.approx(-0.2), 0.0)
    two = paired_depths((rise(6), layers, 30), (rise(8), layers, 30), "near_maximum", 200, 0)
    assert two.high is not None
    assert two.high < 0
