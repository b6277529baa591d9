"""Captions follow the numbers: change a number and the sentence changes."""

import copy

import pytest

from twohop.figures import CAPTIONS, words


def test_benchmark_caption_says_when_the_interval_includes_zero(summary):
    changed = copy.deepcopy(summary)
    row = changed["degradation"]["late"]["a,c"]["all"]["all"]
    row["degradation"] = {"value": 0.5, "low": 0.3, "high": 0.7}
    assert "relative degradation 50 % [30, 70], the interval lies above zero" in CAPTIONS["benchmark"](changed)
    row["degradation"] = {"value": 0.1, "low": -0.2, "high": 0.3}
    assert "10 % [-20, 30], the interval includes zero" in CAPTIONS["benchmark"](changed)


def test_patching_caption_holds_the_difference(summary):
    changed = copy.deepcopy(summary)
    changed["patching"]["late"]["heuristic_minus_random"] = {"value": -0.25, "low": -0.4, "high": -0.1}
    assert "the difference is -25 % [-40, -10] (the interval lies below zero)" in CAPTIONS["patching"](changed)


@pytest.mark.parametrize(
    ("interval", "text", "sign"),
    [
        ({"value": 0.414, "low": 0.33, "high": 0.5}, "41 % [33, 50]", "above"),
        ({"value": -0.2, "low": -0.3, "high": -0.1}, "-20 % [-30, -10]", "below"),
        ({"value": 0.0, "low": -0.3, "high": 0.1}, "0 % [-30, 10]", "includes"),
        ({"value": 0.2, "low": 0.0, "high": 0.3}, "20 % [0, 30]", "includes"),
        ({"value": 0.2, "low": None, "high": None}, "20 % [no interval]", "unknown"),
        ({"value": None, "low": None, "high": None}, "undefined", "unknown"),
        ({}, "undefined", "unknown"),
    ],
)
def test_intervals_in_words(interval, text, sign):
    assert words.percent(interval) == text
    assert words.sign(interval) == sign


@pytest.mark.parametrize(
    ("p", "text"), [(None, "p undefined"), (1e-9, "p < 0.001"), (0.0123, "p = 0.012"), (0.5, "p = 0.50")]
)
def test_p_values_in_words(p, text):
    assert words.p_words(p) == text


def test_small_samples_are_named():
    assert words.small(29) == ", only 29 entities"
    assert words.small(30) == ""
    assert words.small(None) == ""


def test_overlap_of_intervals():
    a, b = {"low": 0.1, "high": 0.2}, {"low": 0.3, "high": 0.4}
    assert words.overlap(a, b) is False
    assert words.overlap(a, {"low": 0.2, "high": 0.4}) is True
    assert words.overlap(a, {"low": None, "high": None}) is None
