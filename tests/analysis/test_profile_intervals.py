import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from twohop.analysis import agreement, compare_profiles, depth_intervals, likeness_intervals, summarise_run
from twohop.errors import DataError
from twohop.store import schemas

LAYERS = 6
GROUPS = ("entity", "entity_last", "question", "last")


def question_scores(run: str, seed: int = 0, n: int = 24, noise: float = 1.0, peak: int = 1) -> pl.DataFrame:
    """Two questions per entity; scores around one profile that is largest at layer `peak`."""
    rng = np.random.default_rng(seed)
    rows = [
        {
            "run": run,
            "question_id": f"e{i // 2:02}/{i % 2}",
            "entity_id": f"e{i // 2:02}",
            "kind": kind,
            "group": group.replace("entity", "image") if run == "image" else group,
            "scores": (1 / (1 + np.abs(np.arange(LAYERS) - peak)) + noise * rng.exponential(size=LAYERS)).tolist(),
        }
        for i in range(n)
        for kind in ("mlp_write", "attn_write")
        for group in GROUPS
    ]
    return pl.DataFrame(rows, schema=schemas.QUESTION_SCORES)


def means(table: pl.DataFrame) -> pl.DataFrame:
    """The table of means that the step writes beside it."""
    layers = pl.int_ranges(0, LAYERS).cast(pl.List(pl.Int64)).alias("layer")
    long = table.with_columns(layers).explode("scores", "layer")
    found = long.group_by("run", "kind", "layer", "group").agg(pl.col("scores").mean().alias("mean_abs"))
    return found.with_columns(mean_signed=0.0, n_examples=1, head=None)


@given(st.integers(0, 99), st.sampled_from(["text", "image"]))
@settings(max_examples=10, deadline=None)
def test_estimates_are_those_of_the_means(seed: int, run: str):
    table = question_scores(run, seed)
    found, expected = depth_intervals(table, run, LAYERS, 20, 0), summarise_run(means(table), run, LAYERS)
    for name in ("share_by_third", "share_by_component", "share_by_group"):
        assert {k: v["value"] for k, v in found[name].items()} == pytest.approx(expected[name])
    for name in ("mlp_centre", "mlp_centre_entity"):
        assert found[name]["value"] == pytest.approx(expected[name])
        assert found[name]["low"] <= found[name]["value"] <= found[name]["high"]
        assert found[name]["n_entities"] == 12


def test_likeness_is_that_of_the_means():
    a, b = question_scores("image", 0), question_scores("text", 1, peak=4)
    found, expected = (
        likeness_intervals(a, "image", b, "text", 50, 0),
        compare_profiles(means(a), "image", means(b), "text"),
    )
    for name in ("cosine", "spearman"):
        assert found[name]["value"] == pytest.approx(expected[name])
        assert found[name]["low"] < found[name]["high"]
    assert found["n_nodes"] == expected["n_nodes"] == 2 * LAYERS * len(GROUPS)


def test_draws_are_paired_over_entities():
    """The same scores under another run's name are alike in every draw; as independent draws they would not be."""
    text = question_scores("text", noise=3.0)
    image = text.with_columns(run=pl.lit("image"))
    found = likeness_intervals(image, "image", text, "text", 50, 0)
    assert [found["cosine"][k] for k in ("value", "low", "high")] == pytest.approx([1.0, 1.0, 1.0])
    assert [found["spearman"][k] for k in ("value", "low", "high")] == pytest.approx([1.0, 1.0, 1.0])


def test_only_shared_questions_are_compared():
    a, b = question_scores("text", n=24), question_scores("text", 1, n=20)
    found = likeness_intervals(a, "text", b, "text", 20, 0)
    assert found["n_questions"] == 20
    assert found["cosine"]["n_entities"] == 10
    fewer = a.filter(pl.col("question_id").is_in(b["question_id"].to_list()))
    assert found == likeness_intervals(fewer, "text", b, "text", 20, 0)


def test_intervals_cover_the_true_centre():
    truth = summarise_run(means(question_scores("text", 999, n=3000)), "text", LAYERS)["mlp_centre"]
    intervals = [
        depth_intervals(question_scores("text", s, n=60), "text", LAYERS, 100, s)["mlp_centre"] for s in range(40)
    ]
    hits = [i["low"] <= truth <= i["high"] for i in intervals]
    assert np.mean(hits) > 0.85
    assert np.mean([i["high"] - i["low"] for i in intervals]) < 0.12


def test_few_entities_have_no_interval():
    found = depth_intervals(question_scores("text", n=4), "text", LAYERS, 20, 0)["mlp_centre"]
    assert found["value"] is not None
    assert found["low"] is None


def test_models_of_other_depth_are_not_compared():
    short = question_scores("text").with_columns(pl.col("scores").list.head(4))
    with pytest.raises(DataError, match="different layers"):
        likeness_intervals(question_scores("text"), "text", short, "text", 20, 0)


def test_agreement_per_kind_and_third_equals_scipy():
    rng = np.random.default_rng(0)
    rows = [
        {"run": "text", "kind": kind, "layer": n, "head": None, "group": "last", "question_id": str(q)}
        for kind in ("head", "mlp_write")
        for n in range(LAYERS)
        for q in range(5)
    ]
    x, y = rng.normal(size=(2, len(rows)))
    checks = pl.DataFrame(rows).with_columns(attributed=x, magnitude=np.abs(x) + 0.1, patched=x + y)
    found = agreement(checks, LAYERS)
    assert list(found) == ["all", "head", "mlp_write"]
    late = checks.filter((pl.col("kind") == "head") & (pl.col("layer") >= 4))
    part = found["head"]["by_third"]["late"]
    assert part["n_nodes"] == late.height == 10
    assert part["pearson"] == pytest.approx(stats.pearsonr(late["attributed"], late["patched"]).statistic)
    assert part["spearman"] == pytest.approx(stats.spearmanr(late["attributed"], late["patched"]).statistic)
    sizes = stats.spearmanr(late["magnitude"], late["patched"].abs()).statistic
    assert part["spearman_magnitude"] == pytest.approx(sizes)
