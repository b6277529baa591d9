"""Numbers in sentences: percentages with intervals, and what an interval allows to be said."""

from collections.abc import Mapping, Sequence
from typing import Any

from twohop.figures._cited import cite

Interval = Mapping[str, Any]
FEW_ENTITIES = 30
"""Below this many entities a bootstrap may be too narrow; the sentence then says that n is small."""


def percent(interval: Interval, signed: bool = False) -> str:
    """`41 % [33, 50]`; `undefined` when there is no number; `41 % [no interval]` when there is no interval."""
    value, low, high = (interval.get(k) for k in ("value", "low", "high"))
    if value is None:
        return "undefined"
    head = f"{100 * value:+.0f} %" if signed else f"{100 * value:.0f} %"
    return f"{head} [no interval]" if low is None or high is None else f"{head} [{100 * low:.0f}, {100 * high:.0f}]"


def nats(interval: Interval) -> str:
    """`+0.80 [0.31, 1.24]`: a change of a log-probability, in nats."""
    value, low, high = (interval.get(k) for k in ("value", "low", "high"))
    if value is None:
        return "undefined"
    return f"{value:+.2f} [no interval]" if low is None or high is None else f"{value:+.2f} [{low:.2f}, {high:.2f}]"


def plain(interval: Interval) -> str:
    """As `percent`, for what is no share: `0.41 [0.33, 0.50]`."""
    value, low, high = (interval.get(k) for k in ("value", "low", "high"))
    if value is None:
        return "undefined"
    return f"{value:.2f} [no interval]" if low is None or high is None else f"{value:.2f} [{low:.2f}, {high:.2f}]"


def p_words(p: float | None) -> str:
    """`p < 0.001`, `p = 0.012`."""
    if p is None:
        return "p undefined"
    return f"p {cite(p, '< 0.001')}" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def sign(interval: Interval) -> str:
    """What an interval says about zero: `above`, `below`, `includes`, or `unknown` when there is none."""
    low, high = interval.get("low"), interval.get("high")
    if interval.get("value") is None or low is None or high is None:
        return "unknown"
    return "above" if low > 0 else "below" if high < 0 else "includes"


def zero_clause(interval: Interval) -> str:
    """The clause that follows an interval of a difference or a degradation."""
    return {
        "above": "the interval lies above zero",
        "below": "the interval lies below zero",
        "includes": "the interval includes zero",
        "unknown": "there are too few data for an interval",
    }[sign(interval)]


def overlap(a: Interval, b: Interval) -> bool | None:
    """Whether two intervals overlap; None when one is missing."""
    if any(x.get(k) is None for x in (a, b) for k in ("low", "high")):
        return None
    return bool(a["low"] <= b["high"] and b["low"] <= a["high"])


def listed(parts: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}" if parts else "none"


def small(n_entities: int | None) -> str:
    """A warning when an estimate rests on few entities."""
    return f", only {n_entities} entities" if n_entities is not None and n_entities < FEW_ENTITIES else ""
