import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from twohop.analysis import compare_profiles, correlate, stratified_sample, summarise_run
from twohop.errors import DataError
from twohop.store import schemas

LAYERS = 6


def table(run: str, values: dict[tuple[str, int, str], float]) -> pl.DataFrame:
    rows = [
        {"run": run, "kind": k, "layer": layer, "group": g, "mean_abs": v, "mean_signed": v, "n_examples": 4}
        for (k, layer, g), v in values.items()
    ]
    return pl.DataFrame(rows, schema=schemas.SCORES)


def profile(entity: str, weights: list[float]) -> dict[tuple[str, int, str], float]:
    nodes = [(k, g) for k in ("mlp_write", "attn_write", "resid_post") for g in (entity, f"{entity}_last", "last")]
    return {(k, layer, g): w * (1 + i) for i, (k, g) in enumerate(nodes) for layer, w in enumerate(weights)}


def test_image_and_entity_tokens_are_compared_as_one_group():
    weights = [5.0, 3.0, 2.0, 1.0, 0.5, 0.25]
    text, image = table("text", profile("entity", weights)), table("image", profile("image", weights))
    found = compare_profiles(text, "text", image, "image")
    assert found["cosine"] == pytest.approx(1.0)
    assert found["spearman"] == pytest.approx(1.0)
    assert found["n_nodes"] == 2 * 3 * LAYERS  # without resid_post


def test_reversed_depth_is_unlike():
    weights = [32.0, 16.0, 8.0, 4.0, 2.0, 1.0]
    early, late = table("text", profile("entity", weights)), table("text", profile("entity", weights[::-1]))
    found = compare_profiles(early, "text", late, "text", kinds=["mlp_write"])
    assert found["cosine"] is not None
    assert found["cosine"] < 0.5
    assert found["spearman"] is not None
    assert found["spearman"] < 0


def test_models_of_other_depth_are_not_compared():
    deep, flat = table("text", profile("entity", [1.0] * 6)), table("text", profile("entity", [1.0] * 4))
    with pytest.raises(DataError, match="different layers"):
        compare_profiles(deep, "text", flat, "text")


def test_missing_run_is_named():
    with pytest.raises(DataError, match="no attribution scores of the image run"):
        summarise_run(table("text", profile("entity", [1.0] * 6)), "image", LAYERS)


def test_shares_by_third_component_and_group():
    values = {("mlp_write", 0, "entity"): 6.0, ("attn_write", 5, "last"): 2.0, ("mlp_write", 3, "question"): 2.0}
    extra = {("resid_post", 0, "entity"): 100.0, ("mlp_write", 0, "entity_last"): 50.0}
    found = summarise_run(table("text", values | extra), "text", LAYERS)
    assert found["share_by_third"] == {"early": 0.6, "late": 0.2, "middle": 0.2}
    assert found["share_by_component"] == {"attn_write": 0.2, "mlp_write": 0.8}
    assert found["share_by_group"] == {"entity": 0.6, "last": 0.2, "question": 0.2}
    assert found["mlp_centre"] == pytest.approx((6 * 0 + 2 * 3) / 8 / 5)
    assert found["mlp_centre_entity"] == 0.0


@pytest.mark.parametrize(("layer", "centre"), [(0, 0.0), (5, 1.0), (2, 0.4)])
def test_centre_of_one_layer_is_that_layer(layer: int, centre: float):
    found = summarise_run(table("text", {("mlp_write", layer, "entity"): 3.0}), "text", LAYERS)
    assert found["mlp_centre"] == pytest.approx(centre)


def test_zero_scores_have_no_centre():
    found = summarise_run(table("text", {("mlp_write", 1, "entity"): 0.0}), "text", LAYERS)
    assert found["mlp_centre"] is None
    assert found["share_by_component"] == {"mlp_write": 0.0}


@pytest.mark.parametrize("levels", [3, 1000])
def test_correlations_equal_scipy_with_and_without_ties(levels: int):
    rng = np.random.default_rng(0)
    x, y = (rng.integers(0, levels, 40).astype(float) for _ in range(2))
    found = correlate(x, y + x)
    assert found["pearson"] == pytest.approx(stats.pearsonr(x, y + x).statistic)
    assert found["spearman"] == pytest.approx(stats.spearmanr(x, y + x).statistic)


@pytest.mark.parametrize("x", [[1.0, 1.0, 1.0], [1.0, 2.0]])
def test_correlation_without_spread_or_pairs_is_undefined(x: list[float]):
    assert correlate(np.array(x), np.arange(float(len(x)))) == {"pearson": None, "spearman": None}


@given(st.lists(st.sampled_from(["a", "b", "c"]), max_size=40), st.integers(0, 50), st.integers(0, 9))
def test_sample_is_balanced_over_strata_and_has_no_repeats(strata: list[str], n: int, seed: int):
    drawn = stratified_sample(strata, n, seed)
    assert len(drawn) == len(set(drawn)) == min(n, len(strata))
    assert drawn == stratified_sample(strata, n, seed)
    counts = {s: sum(strata[i] == s for i in drawn) for s in set(strata)}
    for s, count in counts.items():  # a stratum is behind the largest draw only when it is used up
        assert count >= max(counts.values()) - 1 or count == strata.count(s)
