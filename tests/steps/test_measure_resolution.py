"""The four methods on tiny models: what is written, and that each number is what the model says."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from small_study import NAMES, job, make_card, make_study

from twohop.models import Knockout, Model, Patch, Prompt, Site, open_model
from twohop.steps import _reading, measure_resolution
from twohop.steps._step import Job
from twohop.store import read_json, read_table, schemas, write_table

PARAMS: dict[str, Any] = {
    "measure_resolution": {
        "prompt": "Consider the country {entity}. This country is called",
        "max_pictures": 4,
        "layer_stride": 2,
        "lens_prompts": 4,
        "lens_held_out": 0.25,
        "lens_tokens": 20,
        "lens_steps": 10,
        "patchscope_prompt": "cat -> cat; {entity} ->",
        "patchscope_target": "same",
        "patchscope_places": ["last", "mean"],
        "patchscope_stride": 2,
        "patchscope_tokens": 2,
        "knockout_window": 2,
        "knockout_stride": 2,
        "batch": 3,
        "n_boot": 100,
        "permutations": 100,
        "seed": 0,
    }
}
LAYERS = [0, 1, 3]


def _call(study: Path, model: str) -> Job:
    inputs = {n: study / f"{n}.parquet" for n in ("entities", "questions", "manifest")}
    inputs |= {"pictures": study / "pictures.zip", "card": make_card(study, model)}
    return job("measure_resolution", model, study, PARAMS, inputs, *measure_resolution.STEP.outputs)


def _with_twins(study: Path) -> None:
    """One country has a corrupted twin, so that answers can be compared."""
    path = study / "questions.parquet"
    found = read_table(path, schemas.QUESTIONS)
    twinned = pl.col("entity_id") != "flags:KE"
    write_table(
        path,
        found.with_columns(
            corrupted_id=pl.when(twinned).then(pl.lit("flags:KE/capital")),
            clean_token=pl.when(twinned).then(pl.int_range(pl.len()) + 5),
            corrupted_token=pl.when(twinned).then(pl.lit(3)),
        ).cast({"clean_token": pl.Int64, "corrupted_token": pl.Int64}),
        schemas.QUESTIONS,
    )


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Job]:
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        study = make_study(tmp_path_factory.mktemp("study"))
        _with_twins(study)
        patch.setenv("TWOHOP_CACHE", str(study / "cache"))
        made = {model: _call(study, model) for model in ("eyes", "lm")}
        for call in made.values():
            measure_resolution.run(call)
            opened[call.model or ""] = open_model(call.input("card"))
        return made


opened: dict[str, Model] = {}


def _readings(call: Job, method: str, readout: str) -> pl.DataFrame:
    found = read_table(call.output("readings"), schemas.READINGS).filter(method=method, readout=readout)
    return found.sort("entity_id", "layer")


@pytest.mark.parametrize("model", ["eyes", "lm"])
def test_every_method_has_curves_readings_and_a_tested_depth(calls: dict[str, Job], model: str) -> None:
    call = calls[model]
    points = read_table(call.output("resolution"), schemas.RESOLUTION)
    depths = read_table(call.output("depths"), schemas.DEPTHS)
    assert set(points["method"]) == {"logit_lens", "tuned_lens", "patchscope", "knockout"}
    for method in ("logit_lens", "tuned_lens"):
        assert points.filter(method=method, readout="last")["layer"].to_list() == LAYERS
    own = depths.filter(pl.col("versus").is_null())
    assert own["headline"].sum() == 4
    assert own["p_value"].null_count() == 0
    undefined = own.filter(pl.col("p_value") >= 0.05)
    assert undefined["depth"].null_count() == undefined.height
    answer = points.filter(method="knockout", readout="answer")
    assert answer["n"].unique().to_list() == [3]


def test_curves_are_means_of_the_readings(calls: dict[str, Job]) -> None:
    points = read_table(calls["eyes"].output("resolution"), schemas.RESOLUTION)
    readings = read_table(calls["eyes"].output("readings"), schemas.READINGS)
    means = readings.group_by("method", "readout", "layer").agg(pl.col("value").mean(), pl.col("chance").mean())
    both = points.join(means, on=["method", "readout", "layer"], validate="1:1")
    assert both.height == points.height
    np.testing.assert_allclose(both["value"], both["value_right"], atol=1e-9)
    np.testing.assert_allclose(both["chance"], both["chance_right"], atol=1e-9)


def _first_tokens(model: Model) -> list[int]:
    return [model.tokenize(f" {name}")[0] for name in sorted(NAMES.values())]


def test_lens_reads_what_the_unembedding_says(calls: dict[str, Job]) -> None:
    model = opened["lm"]
    batch = model.batch([Prompt("Consider the country ", "France", "")])
    resid = model.run(batch, [Site("resid_post", 0)]).activations[Site("resid_post", 0)]
    tokens = sorted(set(_first_tokens(model)))
    said = model.unembed(resid[batch.groups["entity_last"]], tokens)[0].log_softmax(-1)
    found = _readings(calls["lm"], "logit_lens", "last").filter(entity_id="flags:FR", layer=1)
    france = tokens.index(model.tokenize(" France")[0])
    assert found["logprob"].item() == pytest.approx(float(said[france]), abs=1e-4)
    shared = _first_tokens(model).count(model.tokenize(" France")[0])
    assert found["value"].item() == (1 / shared if int(said.argmax()) == france else 0)


def test_tuned_lens_of_the_last_layer_is_the_logit_lens(calls: dict[str, Job]) -> None:
    for readout in ("mean", "last", "best"):
        logit, tuned = (_readings(calls["eyes"], m, readout).filter(layer=3) for m in ("logit_lens", "tuned_lens"))
        np.testing.assert_allclose(logit["logprob"], tuned["logprob"], atol=1e-6)
    tensors = load_file(calls["eyes"].output("tuned_lens"))
    assert set(tensors) == {f"{n}.{part}" for n in LAYERS for part in ("weight", "bias")}
    assert tensors["3.weight"].abs().max() == 0
    log = read_json(calls["eyes"].output("metrics"))["tuned_lens"]["layers"]
    assert [entry["layer"] for entry in log] == LAYERS
    assert all(entry["kl"] <= entry["kl_identity"] for entry in log)


def test_patchscope_writes_the_residual_into_the_identity_prompt(calls: dict[str, Job]) -> None:
    model = opened["lm"]
    source = model.batch([Prompt("Consider the country ", "Japan", "")])
    site = Site("resid_post", 0)
    values = model.run(source, [site]).activations[site][source.groups["entity_last"]]
    target = model.batch([Prompt("cat -> cat; ", "?", " ->")])
    logits = model.run(target, patches=[Patch(site, target.groups["entity_last"], values)]).logits
    tokens = sorted(set(_first_tokens(model)))
    said = logits[:, tokens].log_softmax(-1)[0]
    found = _readings(calls["lm"], "patchscope", "last").filter(entity_id="flags:JP", layer=1)
    assert found["logprob"].item() == pytest.approx(float(said[tokens.index(model.tokenize(" Japan")[0])]), abs=1e-4)


def test_knockout_is_the_loss_of_the_right_name(calls: dict[str, Job]) -> None:
    model = opened["lm"]
    batch = model.batch([Prompt("Consider the country ", "Brazil", ". This country is called")])
    tokens = sorted(set(_first_tokens(model)))
    brazil = tokens.index(model.tokenize(" Brazil")[0])
    cut = Knockout(1, 3, batch.groups["last"], batch.groups["entity"])
    plain, blocked = (
        model.run(batch, knockouts=cuts).logits[:, tokens].log_softmax(-1)[0, brazil] for cuts in ((), (cut,))
    )
    found = _readings(calls["lm"], "knockout", "name").filter(entity_id="flags:BR", layer=3)
    assert found["value"].item() == pytest.approx(float(plain - blocked), abs=1e-4)


def test_finished_parts_are_not_measured_again(calls: dict[str, Job], monkeypatch: pytest.MonkeyPatch) -> None:
    call = calls["eyes"]
    before = {name: call.output(name).read_bytes() for name in measure_resolution.STEP.outputs}

    def again(*_: Any, **__: Any) -> None:
        raise AssertionError("measured again")

    monkeypatch.setenv("TWOHOP_CACHE", str(call.work.parents[1] / "cache"))
    for name in ("fit_translator", "_patched", "_windows"):
        monkeypatch.setattr(_reading, name, again)
    measure_resolution.run(call)
    assert {name: call.output(name).read_bytes() for name in measure_resolution.STEP.outputs} == before


def test_metrics_say_which_readout_speaks(calls: dict[str, Job]) -> None:
    metrics = json.loads(calls["eyes"].output("metrics").read_text())
    said = {m: [r for r, found in readouts.items() if found["headline"]] for m, readouts in metrics["depths"].items()}
    assert said == {"logit_lens": ["last"], "tuned_lens": ["last"], "patchscope": ["last"], "knockout": ["name"]}


def test_windows_and_layers_cover_the_model() -> None:
    assert _reading.read_layers(30, 4) == [0, 1, 5, 9, 13, 17, 21, 25, 29, 30]
    assert _reading.read_layers(1, 5) == [0, 1]
