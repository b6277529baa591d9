"""The instruments on models of which the truth is known by construction (planted.py)."""

from itertools import pairwise

import numpy as np
import planted
import polars as pl
import pytest
import torch
from planted import (
    ARRIVES,
    EMBEDDING,
    KINDS,
    LATE_LAYER,
    METHODS,
    N_ENTITIES,
    N_LAYERS,
    RECEIVERS,
    RELATIONS,
    TRAIN_STYLES,
    Found,
    Study,
)
from scipy import stats

from twohop.analysis import TrainingSet
from twohop.models import Patch, Site

CHANCE = 1 / N_ENTITIES


@pytest.fixture(scope="module")
def study() -> Study:
    torch.set_num_threads(1)
    return Study()


@pytest.fixture(scope="module")
def found(study: Study) -> dict[str, Found]:
    translators = planted.tune(study)
    named = {name: planted.look(study, study.receivers[name], translators) for name in RECEIVERS}
    return {"backbone": planted.look(study, None, translators)} | named


def _depth(found: Found, method: str) -> float:
    depth = found.depths[method]
    assert depth is not None, method
    return depth


# --- the plant is what it says ----------------------------------------------------------------------------------------


def test_the_language_model_knows_the_facts_and_recalls_them_early(found: dict[str, Found]) -> None:
    assert found["backbone"].recall == 1
    assert found["backbone"].naming == 1
    assert _depth(found["backbone"], "attribution") < 0.3


def test_below_its_layer_the_late_receiver_carries_nothing(study: Study) -> None:
    late = study.receivers["late"]
    pictures = study.test_pictures()
    batch = late.model.batch([late.prompt(p, planted.TEMPLATES[0], "name") for p in pictures])
    activations = late.model.run(batch, [EMBEDDING, *planted.all_sites()]).activations
    for site, values in activations.items():
        same = bool((values == values[:1]).all())
        assert same is (site.layer < LATE_LAYER or (site.layer == LATE_LAYER and site.kind != "resid_post")), site


def test_too_late_to_recall(found: dict[str, Found]) -> None:
    """The paper's phenomenon: both name what they see, but only the early one uses what the language model knows."""
    assert found["early"].naming > 0.9
    assert found["late"].naming > 0.9
    assert found["early"].recall > 0.85
    assert found["late"].recall < 0.3


# --- every instrument ranks them --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["attribution", "probes", *METHODS])
def test_every_depth_ranks_early_before_late(found: dict[str, Found], method: str) -> None:
    early, late = _depth(found["early"], method), _depth(found["late"], method)
    assert early <= 0.3
    assert late >= (ARRIVES if method != "attribution" else (LATE_LAYER + 1) / (N_LAYERS - 1))
    assert late - early >= 0.3


def test_probes_find_the_very_layer(found: dict[str, Found]) -> None:
    assert found["early"].depths["probes"] == 0
    assert found["late"].depths["probes"] == ARRIVES
    curves = found["late"].curves
    assert curves is not None
    below = curves.filter(pl.col("feature") == "image", pl.col("layer") <= LATE_LAYER)
    assert below["accuracy"].to_list() == [pytest.approx(CHANCE)] * (LATE_LAYER + 1)


def test_lenses_and_patchscopes_find_the_very_layer(found: dict[str, Found]) -> None:
    for method in ("logit_lens", "tuned_lens", "patchscope"):
        assert found["late"].depths[method] == ARRIVES
    assert found["early"].depths["logit_lens"] == 0
    assert found["early"].depths["patchscope"] == 0


def test_attribution_of_the_late_receiver_is_zero_below_its_layer(found: dict[str, Found]) -> None:
    scores = found["late"].scores
    for kind in KINDS:
        for layer in range(N_LAYERS):
            arrived = layer > LATE_LAYER or (layer == LATE_LAYER and kind == "resid_post")
            largest = max(float(scores[Site(kind, layer), g].abs().max()) for g in ("image", "question", "last"))
            if not arrived:
                assert largest == 0, (kind, layer)
            elif layer < N_LAYERS - 1:
                assert float(scores[Site(kind, layer), "image"].abs().max()) > 1e-3 or kind != "resid_post"
    assert float(scores[EMBEDDING, "image"].abs().max()) == 0
    assert float(scores[Site("resid_post", LATE_LAYER), "image"].abs().mean()) > 0.1


def test_attribution_of_the_early_receiver_fades_along_the_image_tokens(found: dict[str, Found]) -> None:
    size = [
        float(found["early"].scores[Site("resid_post", n), "image"].abs().mean())
        for n in (-1, LATE_LAYER, N_LAYERS - 1)
    ]
    assert all(a > 2 * b for a, b in pairwise(size))
    assert size[-1] == 0


# --- controls ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["untrained", "blind"])
def test_controls_without_the_entity_s_name_are_told_apart(found: dict[str, Found], name: str) -> None:
    control, early = found[name], found["early"]
    assert control.recall < 0.3
    assert control.naming < 0.2
    assert all(control.depths[method] is None for method in METHODS)
    assert control.moved > 0.5 * early.moved, "a change that pulls towards the twin's answer is negative"


def test_probes_read_an_untrained_adapter_but_not_a_blind_tower(found: dict[str, Found]) -> None:
    """So a probe alone shows that the entity can be read, not that the model reads it."""
    untrained, blind = found["untrained"].curves, found["blind"].curves
    assert untrained is not None
    assert blind is not None
    assert float(untrained.filter(feature="image")["accuracy"].max()) > 0.9
    # entities, not pictures, are independent; and the largest of many layers is looked at
    bound = stats.binom.ppf(1 - 0.01 / blind.height, N_ENTITIES, CHANCE) / N_ENTITIES
    assert float(blind["accuracy"].max()) <= bound


@pytest.mark.parametrize("name", ["backbone", "early", "late"])
def test_permuted_pairs_have_hardly_any_signed_attribution(found: dict[str, Found], name: str) -> None:
    """Their means scatter around zero, and none comes near the true pairs'."""
    permuted = np.array(found[name].moved_permuted)
    assert found[name].moved < -0.5
    assert found[name].moved < 1.3 * permuted.min()
    assert abs(permuted.mean()) < 3 * permuted.std(ddof=1) / len(permuted) ** 0.5
    assert abs(permuted.mean()) < 0.25 * abs(found[name].moved)


@pytest.mark.parametrize("name", RECEIVERS)
def test_clean_into_clean_is_exactly_nothing(study: Study, name: str) -> None:
    receiver = study.receivers[name]
    batch = receiver.model.batch(planted.make_twins(study, receiver).clean[:4])
    sites = [EMBEDDING, *planted.all_sites()]
    run = receiver.model.run(batch, sites)
    everywhere = torch.ones_like(batch.attention_mask, dtype=torch.bool)
    for site, values in run.activations.items():
        again = receiver.model.run(batch, patches=[Patch(site, everywhere, values.flatten(0, 1))])
        assert torch.equal(again.logits, run.logits), site


def test_an_entity_that_is_its_own_twin_scores_exactly_nothing(study: Study) -> None:
    twins = planted.make_twins(study, study.receivers["early"])
    same = planted.Twins(twins.clean, twins.clean, twins.contrast)
    assert all(not v.any() for v in planted.score(study.receivers["early"].model, same).values())


def test_shuffled_labels_are_at_chance(study: Study) -> None:
    """Over several shuffles of the labels, on features from which the true labels are read without a fault."""
    early = study.receivers["early"]
    x = torch.stack([early.features[p.id][0] for p in study.world.pictures]).numpy()[None]
    labels = np.array([p.entity for p in study.world.pictures])
    seen = np.array([p.style in TRAIN_STYLES for p in study.world.pictures])
    names = [p.id for p in study.world.pictures if p.style in TRAIN_STYLES]
    hits: list[float] = []
    for seed in range(8):
        true, control = planted.fit_and_test(
            TrainingSet(x[:, seen], labels[seen], names), x[:, ~seen], labels[~seen], seed
        )
        assert true.mean() > 0.9
        hits.append(float(control.mean()))
    low, high = stats.binom.interval(0.99, len(hits) * N_ENTITIES, CHANCE)
    assert low <= sum(hits) * N_ENTITIES <= high


def test_study_is_the_same_each_time_and_knows_no_picture_of_the_test() -> None:
    world, again = planted.make_world(), planted.make_world()
    assert all(torch.equal(a.pixels, b.pixels) for a, b in zip(world.pictures, again.pictures, strict=True))
    assert world.facts == again.facts
    assert {p.style for p in world.pictures} == {*TRAIN_STYLES, planted.TEST_STYLE}
    assert all(len(set(world.facts[r])) == planted.N_ANSWERS for r in RELATIONS)
