"""Probes of layers, with strengths chosen by folds and their controls; beside scikit-learn in a loop."""

from collections.abc import Callable

import numpy as np
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from speed.measure import Bar, Case, Disagreement
from speed.world import World
from twohop.analysis import TrainingSet, fit_probes, picture_folds, shuffle_labels
from twohop.analysis._logistic import TOLERANCE
from twohop.config import art_source
from twohop.steps import train_probes
from twohop.store import ActivationReader

STYLE = "noto_original"
STRENGTHS, FOLDS, COPIES = (10.0, 0.1), 3, 1
"""As in params.yaml; the strongest first, which wins ties."""


def case(world: World) -> Case:
    """The step's features at some layers."""
    wanted = (20,) if world.quick else (0, 10, 20, 30)
    with ActivationReader(world.results / "extract_activations" / world.model.name / "activations.h5") as reader:
        about, held_out = train_probes.shown(reader), art_source(STYLE)
        split = train_probes.split_pictures(reader.rows("pictures"), about, held_out, COPIES)
        layers = [reader.layers("pictures", "resid_post")[i] for i in wanted]
        every = np.stack([reader.read("pictures", "resid_post", "image_last", n) for n in layers])
    data = TrainingSet(np.ascontiguousarray(every[:, split.train]), split.labels, split.pictures)
    test, labels = split.test[STYLE]

    def ours() -> list[float]:
        probes, controls = fit_probes(data, STRENGTHS, FOLDS, 0)
        if not all(p.converged for p in (*probes, *controls)):
            raise Disagreement("a probe of ours did not converge")
        pairs = zip((*probes, *controls), (*every, *every), strict=True)
        return [float((p.predict(x[test]) == labels).mean()) for p, x in pairs]

    @threadpool_limits.wrap(limits=1)
    def loop() -> list[float]:
        of, shuffled = picture_folds(data, FOLDS, 0), shuffle_labels(data, 0).labels
        found, controls = list[float](), list[float]()
        for x, whole in zip(data.features, every, strict=True):
            hits = [sum(_hits(x, data.labels, of == k, l2) for k in range(FOLDS)) for l2 in STRENGTHS]
            best = STRENGTHS[int(np.argmax(hits))]
            for accuracies, y in ((found, data.labels), (controls, shuffled)):
                accuracies.append(float((_fit(x, y, best)(whole[test]) == labels).mean()))
        return found + controls

    def same(a: list[float], b: list[float]) -> str:
        worst = max(abs(x - y) for x, y in zip(a, b, strict=True))
        if worst > 1.5 / len(labels):
            raise Disagreement(f"accuracies {a} and {b}")
        return f"accuracies differ by {worst:.4f} at most, of {len(labels)} pictures of another art source"

    fits = len(layers) * (len(STRENGTHS) * FOLDS + 2)
    return Case(
        "probes",
        f"{fits} fits of {len(split.train)} rows ({len(layers)} layers: folds, strengths, controls)",
        {"ours": ours, "scikit-learn in a loop, one thread": loop},
        same,
        [Bar("scikit-learn in a loop, one thread", 10)],
        notes=[
            "needed here: what ours does, as the number of steps is the solver's own",
            "scikit-learn's BLAS has one thread: two make it several times slower here",
        ],
    )


def _hits(x: np.ndarray, y: np.ndarray, held: np.ndarray, l2: float) -> int:
    return int((_fit(x[~held], y[~held], l2)(x[held]) == y[held]).sum())


def _fit(x: np.ndarray, y: np.ndarray, l2: float) -> Callable[[np.ndarray], np.ndarray]:
    """The same loss, standardisation and tolerance: the largest gradient entry of the mean log-loss."""
    mean, spread = x.mean(0), x.std(0)
    spread[spread == 0] = 1
    made = LogisticRegression(C=1 / l2, tol=TOLERANCE, max_iter=5000).fit((x - mean) / spread, y)
    return lambda new: made.predict((new - mean) / spread)
