"""The summary's numbers against the tables they come from."""

import json

import polars as pl
import pytest

from study_tables import MODELS, N_LAYERS, PAIRS, write_study
from twohop.errors import ArtifactError
from twohop.figures import load_study, restore_order, summarise


def share(table: pl.DataFrame, column: str = "correct") -> float:
    return table[column].cast(pl.Float64).mean()


def test_accuracy_is_the_share_of_right_answers(study, summary):
    answers = study.answers["late"].filter(pl.col("condition") == "image")
    found = summary["accuracy"]["late"]["image"]["all"]
    assert found["value"] == pytest.approx(share(answers))
    assert found["low"] <= found["value"] <= found["high"]
    assert found["n_questions"] == answers.height


def test_conditional_accuracy_looks_at_recognised_pictures_only(study, summary):
    seen = study.recognition["late"].filter(pl.col("correct"))["picture_id"].unique().to_list()
    asked = study.questions["late"].filter(pl.col("picture_id").is_in(seen)).select("question_id")
    answers = study.answers["late"].filter(pl.col("condition") == "image").join(asked, on="question_id")
    found = summary["accuracy"]["late"]["image"]["recognised"]
    assert found["value"] == pytest.approx(share(answers))
    assert found["n_questions"] == answers.height


def test_degradation_is_against_the_backbone_named_in_the_catalogue(study, summary):
    backbone = share(study.answers["lm"])
    image = share(study.answers["early"].filter(pl.col("condition") == "image"))
    row = summary["degradation"]["early"]["a,c"]["all"]["all"]
    assert row["degradation"]["value"] == pytest.approx((backbone - image) / backbone)


def test_holm_is_over_the_vlms_and_leaves_the_control_out(summary):
    rows = {m: summary["degradation"][m]["a,c"]["all"]["all"] for m in ("late", "early", "blind")}
    assert "p_holm" not in rows["blind"]
    smaller, larger = sorted((rows["late"], rows["early"]), key=lambda r: r["p_value"])
    assert smaller["p_holm"] == pytest.approx(min(1, 2 * smaller["p_value"]))
    assert larger["p_holm"] >= larger["p_value"]


def test_held_out_style_is_the_one_that_questions_show(summary):
    assert summary["held_out"] == {"style": "noto_original", "art_source": "noto"}


def test_resolution_is_the_first_layer_near_the_models_own_best(summary):
    curve = summary["probes"]["late"]["noto_original"]["image_last"]
    assert curve["first"]["value"] == pytest.approx(0.3)
    assert curve["best_layer"] == N_LAYERS
    assert curve["resolved_layer"] == 6
    assert curve["resolved_depth"]["value"] == 1.0
    assert curve["resolved_depth"]["low"] <= 1.0


def test_models_without_an_analysis_are_absent(summary):
    assert set(summary["recovery"]) == set(summary["patching"]) == {"late", "early"}
    assert set(summary["attribution"]) == {"lm", "late", "early"}
    assert set(summary["probes"]) == {"late", "early", "blind"}
    assert set(summary["profiles"]) == {"late", "early"}


def test_order_of_models_survives_a_file_with_sorted_keys(summary):
    again = restore_order(json.loads(json.dumps(summary, sort_keys=True, allow_nan=False)))
    assert list(again["models"]) == list(MODELS)
    assert list(again["degradation"]) == ["late", "early", "blind"]


def test_same_seed_same_summary(study, summary):
    assert summarise(study, [(a, b) for a, b in PAIRS], 100, 0) == summary


def test_results_of_an_unknown_model_are_refused(tmp_path):
    inputs = write_study(tmp_path, n_entities=4)
    with pytest.raises(ArtifactError, match="lacks: early"):
        load_study(inputs, {n: e for n, e in MODELS.items() if n != "early"})
