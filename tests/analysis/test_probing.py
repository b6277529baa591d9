"""Linear probes on features whose answer is known."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from scipy.special import logsumexp
from sklearn.linear_model import LogisticRegression

from twohop.analysis import (
    Probe,
    TrainingSet,
    _logistic,
    first_near_maximum,
    fit_probes,
    layers_at_once,
    picture_folds,
    resolution,
    selectivity,
    shuffle_labels,
)
from twohop.analysis._probing import choose_l2
from twohop.errors import DataError

N, PER, D = 8, 6, 24


def _world(noise: float, seed: int = 0, d: int = D) -> tuple[TrainingSet, np.ndarray, np.ndarray]:
    """One layer: N entities as points in d dimensions, PER pictures each with a copy; fresh test pictures."""
    rng = np.random.default_rng(seed)
    centre = rng.normal(size=(N, d))
    labels = np.repeat(np.arange(N), 2 * PER)
    pictures = [f"e{e}/p{k}" for e in range(N) for k in range(PER) for _ in range(2)]
    x = (centre[labels] + noise * rng.normal(size=(len(labels), d))).astype(np.float32)
    test = (centre + noise * rng.normal(size=(N, d))).astype(np.float32)
    return TrainingSet(x[None] * 5 + 3, labels, pictures), test * 5 + 3, np.arange(N)


def _fit(data: TrainingSet, candidates: list[float], folds: int = 3) -> tuple[Probe, Probe]:
    (probe,), (control,) = fit_probes(data, candidates, folds, 0)
    return probe, control


def test_a_probe_reads_what_is_there_and_its_control_does_not() -> None:
    data, test, labels = _world(0.3)
    probe, control = _fit(data, [0.01, 1.0])
    assert probe.converged
    assert control.converged
    assert control.l2 == probe.l2
    assert (probe.predict(test) == labels).mean() == 1
    assert (control.predict(test) == labels).mean() < 0.6


def _oracle(x: np.ndarray, labels: np.ndarray, l2: float) -> tuple[LogisticRegression, np.ndarray, np.ndarray]:
    mean, spread = x.mean(0), x.std(0)
    fitted = LogisticRegression(C=1 / l2, tol=1e-8, max_iter=5000).fit((x - mean) / spread, labels)
    return fitted, mean, spread


@pytest.mark.parametrize("l2", [0.1, 10.0])
@pytest.mark.parametrize("d", [24, 200], ids=["more rows than features", "more features than rows"])
def test_probes_are_scikit_learn_s_on_standardised_features(l2: float, d: int) -> None:
    layers = [_world(noise, seed, d) for seed, noise in enumerate((0.5, 1.5, 4.0))]
    data = replace(layers[0][0], features=np.concatenate([w.features for w, _, _ in layers]))
    probes, controls = fit_probes(data, [l2], 3, 0)
    shuffled = shuffle_labels(data, 0).labels
    for probe, control, x, (_, test, labels) in zip(probes, controls, data.features, layers, strict=True):
        for found, trained_on in ((probe, data.labels), (control, shuffled)):
            reference, mean, spread = _oracle(x.astype(np.float64), trained_on, l2)
            assert found.converged
            np.testing.assert_allclose(
                found.weight * spread, reference.coef_, atol=0.02 * np.abs(reference.coef_).max()
            )
            theirs = reference.predict((test - mean) / spread)
            right = (found.predict(test) == labels).mean(), (theirs == labels).mean()
            assert abs(right[0] - right[1]) <= 0.005
            assert _loss(found, x, trained_on, l2, spread) == pytest.approx(
                _sklearn_loss(reference, (x - mean) / spread, trained_on, l2), rel=1e-4
            )


def _loss(probe: Probe, x: np.ndarray, labels: np.ndarray, l2: float, spread: np.ndarray) -> float:
    logits = x.astype(np.float64) @ probe.weight.T + probe.bias
    picked = logits[np.arange(len(labels)), labels]
    return float((logsumexp(logits, axis=1) - picked).sum() + l2 / 2 * ((probe.weight * spread) ** 2).sum())


def _sklearn_loss(fitted: LogisticRegression, x: np.ndarray, labels: np.ndarray, l2: float) -> float:
    likely = fitted.predict_log_proba(x)[np.arange(len(labels)), labels]
    return float(-likely.sum() + l2 / 2 * (fitted.coef_**2).sum())


def test_layers_do_not_touch_each_other() -> None:
    one, two = _world(0.5, 0)[0], _world(4.0, 1)[0]
    both = replace(one, features=np.concatenate([one.features, two.features]))
    alone, together = _fit(two, [0.1, 10.0])[0], fit_probes(both, [0.1, 10.0], 3, 0)[0][1]
    assert alone.l2 == together.l2
    np.testing.assert_allclose(alone.weight, together.weight, atol=1e-3 * np.abs(alone.weight).max())


@pytest.mark.parametrize("d", [24, 200], ids=["more rows than features", "more features than rows"])
def test_a_start_elsewhere_ends_at_the_same_place(d: int) -> None:
    data = _world(1.0, d=d)[0]
    features, labels = _logistic.standardise(torch.from_numpy(data.features)), torch.from_numpy(data.labels)[None]

    def solve(l2: float, start: _logistic.Start | None = None) -> _logistic.Solution:
        return _logistic.solve(features, torch.tensor([0]), labels, torch.tensor([l2]), N, start)

    cold, warm = solve(0.1), solve(0.1, solve(10.0).end)
    assert bool(cold.converged.all() & warm.converged.all())
    torch.testing.assert_close(warm.weight, cold.weight, rtol=0, atol=0.02 * float(cold.weight.abs().max()))
    torch.testing.assert_close(warm.bias, cold.bias, rtol=0, atol=0.05 * float(cold.bias.abs().max()))


def test_features_that_repeat_each_other_have_one_answer() -> None:
    """Of fewer dimensions than rows and than features: weights are shared among the copies."""
    data = _world(0.5, d=4)[0]
    copies = replace(data, features=np.tile(data.features, (1, 1, 40)))
    probe = _fit(copies, [0.1])[0]
    assert probe.converged
    parts = probe.weight.reshape(N, 40, 4)
    np.testing.assert_allclose(parts, parts[:, :1].repeat(40, 1), atol=1e-3 * np.abs(parts).max())


def test_a_fit_that_runs_out_of_steps_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_logistic, "MAX_ITERATIONS", 3)
    probe, _ = _fit(_world(0.5)[0], [1e-3])
    assert not probe.converged
    assert np.isfinite(probe.weight).all()


def test_an_entity_without_training_rows_is_never_named() -> None:
    data, test, _ = _world(0.3)
    kept = data.labels != 3
    pictures = [p for p, t in zip(data.pictures, kept, strict=True) if t]
    probe, _ = _fit(TrainingSet(data.features[:, kept], data.labels[kept], pictures), [1.0])
    assert 3 not in probe.predict(test)


def test_noise_asks_for_more_l2_than_a_clean_signal() -> None:
    noisy, _, _ = _world(2.5)
    assert choose_l2(noisy, [1e-3, 100.0], 3, 0).tolist() == [100.0]
    clean, _, _ = _world(0.0)
    assert choose_l2(clean, [0.01, 0.1], 3, 0).tolist() == [0.1], "equal scores: the strongest"


def test_a_solved_problem_waits_for_the_others() -> None:
    """A layer without any signal is solved at once; numpy's warnings would be errors here."""
    hard = _world(4.0)[0]
    data = replace(hard, features=np.concatenate([np.ones_like(hard.features), hard.features, hard.features]))
    (flat, one, two), _ = fit_probes(data, [0.1], 3, 0)
    assert flat.converged
    assert one.converged
    assert not flat.weight.any()
    np.testing.assert_allclose(one.weight, two.weight, atol=1e-6)


def test_constant_features_give_chance_not_an_error() -> None:
    data, test, labels = _world(0.3)
    flat = replace(data, features=np.ones_like(data.features))
    assert (_fit(flat, [1.0])[0].predict(np.ones_like(test)) == labels).mean() <= 1 / N


def test_two_entities_and_missing_labels() -> None:
    data, test, _ = _world(0.2)
    two = np.isin(data.labels, [2, 5])
    pictures = [p for p, t in zip(data.pictures, two, strict=True) if t]
    some = TrainingSet(data.features[:, two], data.labels[two], pictures)
    assert _fit(some, [0.1], 2)[0].predict(test[[2, 5]]).tolist() == [2, 5]
    one = data.labels == 1
    with pytest.raises(DataError, match="two entities"):
        _fit(TrainingSet(data.features[:, one], data.labels[one], ["x"] * int(one.sum())), [1.0], 2)


def test_memory_decides_how_many_layers_go_together() -> None:
    assert layers_at_once(100, 64, 10) > layers_at_once(500, 576, 64) >= 1
    assert layers_at_once(100_000, 8192, 1000) == 1


def test_the_depth_of_resolution_has_an_interval_of_its_own() -> None:
    rows = [
        {"entity_id": f"e{e:02}", "layer": layer, "correct": e < right}
        for layer, right in ((0, 2), (10, 17), (2, 18), (4, 20))
        for e in range(20)
    ]
    found = resolution(pl.DataFrame(rows), 10, 500, 0)
    assert found.value == 0.2, "18 of 20 is 90 % of the best; layers are compared as numbers"
    assert found.low is not None
    assert found.high is not None
    assert found.low <= 0.2 < found.high <= 0.4


def test_selectivity_is_the_gain_over_the_control() -> None:
    hits, control = np.array([1, 1, 1, 0, 1, 1], bool), np.array([0, 1, 0, 0, 0, 0], bool)
    found = selectivity(hits, control, list("abcdef"), 200, 0)
    assert found.value == pytest.approx(4 / 6)
    assert found.low is not None
    assert found.low <= 4 / 6


def test_folds_keep_copies_together_and_deal_entities_out_evenly() -> None:
    data, _, _ = _world(0.3)
    fold = picture_folds(data, 3, 0)
    for picture in set(data.pictures):
        assert len({f for f, p in zip(fold, data.pictures, strict=True) if p == picture}) == 1
    for label in range(N):
        assert np.bincount(fold[data.labels == label], minlength=3).tolist() == [4, 4, 4]


def test_shuffled_copies_share_a_label_and_counts_stay() -> None:
    data, _, _ = _world(0.3)
    shuffled = shuffle_labels(data, 3)
    assert np.bincount(shuffled.labels).tolist() == np.bincount(data.labels).tolist()
    assert (shuffled.labels[0::2] == shuffled.labels[1::2]).all()
    assert (shuffled.labels != data.labels).mean() > 0.5


def test_first_layer_near_the_maximum() -> None:
    assert first_near_maximum([0, 2, 4, 6], [0.2, 0.89, 0.9, 1.0]) == 4
    assert first_near_maximum([0, 2], [0.0, 0.0]) == 0
