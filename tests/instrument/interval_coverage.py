"""How often do the study's 95 % intervals hold the truth? Simulated questions of which the truth is known.

An entity has three questions; answers are right where a normal variable is below a threshold. A part of its variance
belongs to the entity (questions of one entity agree), a part to the question (conditions agree on it), the rest to the
answer. `python tests/instrument/interval_coverage.py` prints the table of docs/instrument.md.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import stats

from twohop.analysis import Interval, bootstrap, ratio, share
from twohop.analysis._degradation import relative_loss
from twohop.analysis._recovery import _closed

OF_ENTITY, OF_QUESTION = 0.3, 0.3
"""Parts of the variance."""
QUESTIONS = 3
Measure = Callable[[Float[np.ndarray, "entity column"], int], Interval]


@dataclass(frozen=True)
class Truth:
    """A quantity: chances of a right answer per condition, how it is measured, its true value."""

    name: str
    chances: tuple[float, ...]
    measure: Measure
    value: float


def _share(sums: Float[np.ndarray, "entity column"], n_boot: int) -> Interval:
    return share(np.stack([sums[:, 0], sums[:, -1]], 1), n_boot, 0)


def _difference(sums: Float[np.ndarray, "entity column"], n_boot: int) -> Interval:
    return bootstrap(sums, lambda s: ratio(s[:, 0] - s[:, 1], s[:, 2]), n_boot, 0)


def _degradation(sums: Float[np.ndarray, "entity column"], n_boot: int) -> Interval:
    return relative_loss(sums, n_boot, 0)


def _closed_share(sums: Float[np.ndarray, "entity column"], n_boot: int) -> Interval:
    return bootstrap(sums[:, :3], _closed, n_boot, 0)


TRUTHS = (
    *(Truth(f"share {p}", (p,), _share, p) for p in (0.02, 0.05, 0.2, 0.5, 0.8, 0.95, 0.98)),
    Truth("difference .50 - .35", (0.5, 0.35), _difference, 0.15),
    Truth("difference .40 - .40", (0.4, 0.4), _difference, 0.0),
    Truth("degradation .50 to .35", (0.5, 0.35), _degradation, 0.3),
    Truth("degradation .30 to .10", (0.3, 0.1), _degradation, 2 / 3),
    Truth("degradation .40 to .40", (0.4, 0.4), _degradation, 0.0),
    Truth("degradation .50 to .02", (0.5, 0.02), _degradation, 0.96),
    Truth("closed share, .30 to .45 of .60", (0.45, 0.3, 0.6), _closed_share, 0.5),
    Truth("closed share, .15 to .25 of .50", (0.25, 0.15, 0.5), _closed_share, 0.1 / 0.35),
)


def simulate(
    truth: Truth, n_entities: int, n_studies: int, rng: np.random.Generator
) -> Float[np.ndarray, "study entity column"]:
    """Right answers per entity and condition, and in the last column the number of questions."""
    shape = (n_studies, n_entities, QUESTIONS, len(truth.chances))
    entity = rng.normal(size=(*shape[:2], 1, 1)) * np.sqrt(OF_ENTITY)
    question = rng.normal(size=(*shape[:3], 1)) * np.sqrt(OF_QUESTION)
    answer = rng.normal(size=shape) * np.sqrt(1 - OF_ENTITY - OF_QUESTION)
    right = (entity + question + answer < stats.norm.ppf(truth.chances)).sum(2).astype(float)
    return np.concatenate([right, np.full((*right.shape[:2], 1), float(QUESTIONS))], 2)


@dataclass(frozen=True)
class Coverage:
    """Shares of the studies in which the interval held the truth, lay above it, lay below it, or was not given."""

    held: float
    above: float
    below: float
    none: float


def measure(truth: Truth, n_entities: int, n_studies: int, n_boot: int, seed: int = 0) -> Coverage:
    """The project's own intervals on simulated studies; shares are of those that have an interval."""
    found: list[tuple[float, float]] = []
    for sums in simulate(truth, n_entities, n_studies, np.random.default_rng(seed)):
        interval = truth.measure(sums, n_boot)
        if interval.low is not None and interval.high is not None:
            found.append((interval.low, interval.high))
    low, high = np.array(found).T
    slack = 1e-12  # ends such as 2/3 are found up to rounding
    above, below = float((low > truth.value + slack).mean()), float((high < truth.value - slack).mean())
    return Coverage(1 - above - below, above, below, 1 - len(found) / n_studies)


def main(sizes: Sequence[int] = (24, 48, 64), n_studies: int = 4000, n_boot: int = 1000) -> None:
    """Print the table."""
    error = 100 * np.sqrt(0.95 * 0.05 / n_studies)
    print(f"{n_studies} simulated studies, {n_boot} draws; Monte Carlo error {error:.1f} points")
    print("| quantity | " + " | ".join(f"{n} entities" for n in sizes) + " |")
    print("|---" * (len(sizes) + 1) + "|")
    for truth in TRUTHS:
        cells = [measure(truth, n, n_studies, n_boot) for n in sizes]
        shown = [f"{100 * c.held:.1f}" + (f" ({100 * c.none:.1f} none)" if c.none else "") for c in cells]
        print(f"| {truth.name} | " + " | ".join(shown) + " |", flush=True)


if __name__ == "__main__":
    main(n_studies=int(sys.argv[1]) if len(sys.argv) > 1 else 4000)
