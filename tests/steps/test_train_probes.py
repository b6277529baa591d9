"""Probes over a small activation file whose content is known."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from safetensors import safe_open
from small_study import job

from twohop.errors import DataError
from twohop.steps import train_probes
from twohop.steps._step import Job
from twohop.store import ActivationReader, ActivationWriter, Dataset, read_json, read_table, schemas

N, D, LAYERS = 12, 16, (-1, 0, 1, 2, 3)
STYLES = {
    "1x1": "flag-icons",
    "4x3": "flag-icons",
    "circle": "circle-flags",
    "noto_original": "noto",
    "noto_waved": "noto",
}
PARAMS: dict[str, Any] = {
    "train_probes": {
        "features": ["image", "last"],
        "layer_stride": 3,
        "l2": [0.01, 1.0],
        "inner_folds": 2,
        "copies": 1,
        "n_boot": 200,
        "seed": 0,
    },
    "build_questions.style": "noto_original",
}
ATTRS = {
    "model": "tiny",
    "revision": "0" * 64,
    "sites": ["resid_post"],
    "groups": {"image": "picture tokens", "last": "the predicting position"},
    "prompts_sha256": "1" * 64,
    "versions": {"torch": "2"},
    "lineage": {"step": "extract_activations", "key": "2" * 64},
}


SHOWN = ("picture_id", "entity_id", "art_source", "style")


def _manifest(styles: Mapping[str, str] = STYLES) -> pl.DataFrame:
    blank = {name: "" for name, kind in schemas.MANIFEST.items() if kind == pl.String}
    counts = {name: 0 for name, kind in schemas.MANIFEST.items() if kind == pl.Int64}
    rows = [
        {**blank, **counts, "picture_id": f"e{e:02}/{s}", "entity_id": f"e{e:02}", "art_source": a, "style": s}
        for e in range(N)
        for s, a in styles.items()
    ]
    return pl.DataFrame(rows, schema=schemas.MANIFEST)


def _rows(styles: Mapping[str, str] = STYLES) -> list[str]:
    plain = _manifest(styles)["picture_id"].to_list()
    return [row for p in plain for row in (p, f"{p}#1", f"{p}#2")]


def _activations(path: Path, styles: Mapping[str, str] = STYLES) -> None:
    """`image`: noise at layers -1 and 0, the entity from layer 1 on; `last`: noise everywhere."""
    rng, rows = np.random.default_rng(0), _rows(styles)
    centre = rng.normal(size=(N, D))
    noise = rng.normal(size=(len(rows), len(LAYERS), D)).astype(np.float32)
    image = noise * 0.3
    entity = [int(r[1:3]) for r in rows]
    image[:, 2:] += centre[entity][:, None]
    shown = {row["picture_id"]: row for row in _manifest(styles).select(*SHOWN).iter_rows(named=True)}
    columns = {name: tuple(shown[r.split("#")[0]][name] for r in rows) for name in SHOWN}
    layout = Dataset("pictures", tuple(rows), ("resid_post",), ("image", "last"), LAYERS, D, columns=columns)
    out = ActivationWriter(path, path.parent / "chunks", ATTRS, [layout], dtype="float32", chunk_rows=32)
    values = {"image": image, "last": noise}
    for chunk in out.missing("pictures"):
        out.put("pictures", chunk, {("resid_post", g): v[chunk.start : chunk.stop] for g, v in values.items()})
    out.finish()


@pytest.fixture(scope="module")
def call(tmp_path_factory: pytest.TempPathFactory) -> Job:
    folder = tmp_path_factory.mktemp("probes")
    _activations(folder / "activations.h5")
    inputs = {"activations": folder / "activations.h5"}
    made = job("train_probes", "tiny", folder, PARAMS, inputs, *train_probes.STEP.outputs)
    train_probes.run(made)
    return made


def test_curves_find_the_layer_where_the_entity_appears(call: Job) -> None:
    curves = read_table(call.output("curves"), schemas.CURVES)
    image = curves.filter(feature="image", test_style="noto_original").sort("layer")
    assert image["layer"].to_list() == [0, 1, 4]
    accuracy = image["accuracy"].to_list()
    assert max(accuracy[:2]) < 0.4
    assert accuracy[2] > 0.9
    assert curves.filter(feature="last")["accuracy"].max() < 0.4
    assert curves["shuffled_accuracy"].max() < 0.4
    assert (curves["low"] <= curves["accuracy"]).all()
    assert (curves["accuracy"] <= curves["high"]).all()


def test_one_picture_of_each_entity_trains_nothing_and_says_so(tmp_path: Path, caplog) -> None:
    _activations(tmp_path / "activations.h5", {"main": "main"})
    inputs = {"activations": tmp_path / "activations.h5"}
    params = PARAMS | {"build_questions.style": "main"}
    made = job("train_probes", "tiny", tmp_path, params, inputs, *train_probes.STEP.outputs)
    assert train_probes.run(made)["done"] == 0
    assert "no probe is trained" in caplog.text
    assert read_table(made.output("curves"), schemas.CURVES).is_empty()
    assert read_table(made.output("predictions"), schemas.PREDICTIONS).is_empty()
    assert all(path.exists() for path in made.outputs.values())


def test_summary_of_the_curves(call: Job) -> None:
    found = read_json(call.output("metrics"))["image"]["noto_waved"]
    assert found["near_maximum_layer"] == 4
    assert found["near_maximum_depth"]["value"] == 1.0
    assert found["near_maximum_depth"]["low"] <= found["near_maximum_depth"]["high"] <= 1.0
    assert found["layer_0"]["accuracy"] < 0.4
    assert found["selectivity"]["low"] > 0.5


def test_predictions_are_those_that_the_curves_count(call: Job) -> None:
    said = read_table(call.output("predictions"), schemas.PREDICTIONS)
    keys = ("feature", "layer", "test_style")
    counted = said.group_by(keys).agg(
        pl.col("correct").mean(),
        pl.col("shuffled_correct").mean(),
        right=(pl.col("predicted") == pl.col("entity_id")).mean(),
    )
    both = read_table(call.output("curves"), schemas.CURVES).join(counted, on=keys)
    assert both.height == 2 * 3 * 2
    for one, other in (("accuracy", "correct"), ("accuracy", "right"), ("shuffled_accuracy", "shuffled_correct")):
        assert both[one].to_list() == pytest.approx(both[other].to_list())
    gain = (both["accuracy"] - both["shuffled_accuracy"]).to_list()
    assert both["selectivity"].to_list() == pytest.approx(gain)


def test_training_and_test_share_no_picture_and_no_art_source() -> None:
    split = train_probes.split_pictures(_rows(), _manifest(), "noto", 1)
    rows = _rows()
    trained = {rows[i].partition("#")[0] for i in split.train}
    tested = {rows[i] for found, _ in split.test.values() for i in found}
    assert not trained & tested
    assert {p.split("/")[1] for p in trained} == {"1x1", "4x3", "circle"}
    assert {p.split("/")[1] for p in tested} == {"noto_original", "noto_waved"}
    assert not any("#" in p for p in tested), "an augmented copy is no test picture"
    assert len(split.train) == N * 3 * 2, "the plain pictures and one copy; #2 is beyond `copies`"
    assert [split.entities[n] for n in split.labels] == [rows[i][:3] for i in split.train]


def test_m06_probes_are_safetensors_that_predict_like_the_curves(call: Job) -> None:
    with safe_open(call.output("probes"), "np") as file:
        entities = json.loads(file.metadata()["entities"])
        weight, bias = file.get_tensor("image.4.weight"), file.get_tensor("image.4.bias")
    with ActivationReader(call.input("activations")) as reader:
        features, rows = reader.read("pictures", "resid_post", "image", 3), reader.rows("pictures")
    test = [i for i, r in enumerate(rows) if r.endswith("/noto_original")]
    hits = [entities[int(np.argmax(features[i] @ weight.T + bias))] == rows[i][:3] for i in test]
    curves = read_table(call.output("curves"), schemas.CURVES)
    expected = curves.filter(feature="image", layer=4, test_style="noto_original")["accuracy"].item()
    assert np.mean(hits) == pytest.approx(expected)


def test_c1_a_second_call_after_a_kill_gives_the_same_bytes(call: Job, tmp_path: Path) -> None:
    outputs = {name: tmp_path / name for name in call.outputs}
    for kept in sorted(call.work.glob("*.json"))[::2]:
        kept.unlink()
    train_probes.run(Job(call.step, call.model, call.params, call.inputs, outputs, call.work))
    for name in call.outputs:
        assert outputs[name].read_bytes() == call.output(name).read_bytes()


@pytest.mark.parametrize(
    ("n", "stride", "expected"), [(5, 2, [-1, 0, 2, 4]), (4, 2, [-1, 0, 2, 3]), (5, 9, [-1, 0, 4])]
)
def test_the_embedding_the_first_and_the_last_layer_are_always_probed(n: int, stride: int, expected: list[int]) -> None:
    assert train_probes.probe_layers(range(-1, n), stride) == expected


def test_pictures_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DataError, match="unknown pictures: e99/1x1"):
        train_probes.split_pictures([*_rows(), "e99/1x1"], _manifest(), "noto", 1)
    with pytest.raises(DataError, match="0 test pictures"):
        train_probes.split_pictures(_rows(), _manifest(), "nobody", 1)
