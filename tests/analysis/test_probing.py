"""Linear probes on features whose answer is known."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from twohop.analysis import TrainingSet, first_near_maximum, fit_probe, picture_folds, shuffle_labels
from twohop.analysis._probing import choose_l2
from twohop.errors import DataError

N, PER, D = 8, 6, 24


def _world(noise: float, seed: int = 0) -> tuple[TrainingSet, np.ndarray, np.ndarray]:
    """N entities as points in D dimensions, PER pictures each and a copy of every picture; fresh test pictures."""
    rng = np.random.default_rng(seed)
    centre = rng.normal(size=(N, D))
    labels = np.repeat(np.arange(N), 2 * PER)
    pictures = [f"e{e}/p{k}" for e in range(N) for k in range(PER) for _ in range(2)]
    x = (centre[labels] + noise * rng.normal(size=(len(labels), D))).astype(np.float32)
    test = (centre + noise * rng.normal(size=(N, D))).astype(np.float32)
    return TrainingSet(x * 5 + 3, labels, pictures), test * 5 + 3, np.arange(N)


def test_a_probe_reads_what_is_there_and_its_control_does_not() -> None:
    data, test, labels = _world(0.3)
    probe = fit_probe(data, [0.01, 1.0], 3, 0)
    assert probe.converged
    assert (probe.predict(test) == labels).mean() == 1
    control = fit_probe(shuffle_labels(data, 0), [probe.l2], 3, 0)
    assert (control.predict(test) == labels).mean() < 0.6


def test_the_probe_is_scikit_learn_s_on_standardised_features() -> None:
    data, test, _ = _world(1.0)
    mean, spread = data.features.mean(0), data.features.std(0)
    reference = LogisticRegression(C=1 / 0.5, tol=1e-6, max_iter=1000)
    reference.fit((data.features - mean) / spread, data.labels)
    probe = fit_probe(data, [0.5], 3, 0)
    logits = test @ probe.weight.T + probe.bias
    ours = np.exp(logits - logits.max(1, keepdims=True))
    theirs = reference.predict_proba((test - mean) / spread)
    np.testing.assert_allclose(ours / ours.sum(1, keepdims=True), theirs, atol=0.01)


def test_noise_asks_for_more_l2_than_a_clean_signal() -> None:
    noisy, _, _ = _world(2.5)
    assert choose_l2(noisy, [1e-4, 100.0], 3, 0) == 100.0
    clean, _, _ = _world(0.0)
    assert choose_l2(clean, [1e-3, 1e-2], 3, 0) == 1e-2, "equal scores: the strongest"


def test_constant_features_give_chance_not_an_error() -> None:
    data, test, labels = _world(0.3)
    flat = TrainingSet(np.ones_like(data.features), data.labels, data.pictures)
    assert (fit_probe(flat, [1.0], 3, 0).predict(np.ones_like(test)) == labels).mean() <= 1 / N


def test_two_entities_and_missing_labels() -> None:
    data, test, _ = _world(0.2)
    two = np.isin(data.labels, [2, 5])
    some = TrainingSet(data.features[two], data.labels[two], [p for p, t in zip(data.pictures, two, strict=True) if t])
    assert fit_probe(some, [0.1], 2, 0).predict(test[[2, 5]]).tolist() == [2, 5]
    one = data.labels == 1
    with pytest.raises(DataError, match="two entities"):
        fit_probe(TrainingSet(data.features[one], data.labels[one], ["x"] * int(one.sum())), [1.0], 2, 0)


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
