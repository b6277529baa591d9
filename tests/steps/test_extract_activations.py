"""extract_activations on tiny random models: what is in the file is what the model computed."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image

from twohop.config import ExtractActivations, ModelEntry, PrepareModel, load_params, section_keys
from twohop.data import write_pictures
from twohop.errors import ArtifactError, DataError
from twohop.models import Model, Prompt, Site, materialise, open_model
from twohop.steps import extract_activations as step
from twohop.steps._step import Job, Part
from twohop.store import ActivationReader, schemas, write_json, write_table

SECTION: dict[str, Any] = {
    "sites": ["resid_post", "mlp_write", "attn_write"],
    "dtype": "float32",
    "batch": 3,
    "chunk_rows": 2,
    "pictures_prompt": "{entity}\nThe name of this country is",
    "copies": 2,
    "seed": 0,
}
NAMES = {"FR": "France", "US": "United States", "JP": "Japan"}
STYLES = {"1x1": "flag-icons", "noto_original": "noto"}


def entry(role: str) -> ModelEntry:
    backbone = None if role == "backbone" else "tiny"
    source = {"kind": "random", "seed": 1, "n_layers": 2, "d_model": 16}
    family = "llama" if role == "backbone" else "llava"
    return ModelEntry.model_validate(
        {"role": role, "family": family, "backbone": backbone, "source": source, "licence": "none"}
    )


def questions() -> pl.DataFrame:
    rows = [
        {
            "question_id": f"flags:{code}/{relation}",
            "entity_id": f"flags:{code}",
            "relation": relation,
            "name": name,
            "before": "Consider the country ",
            "after": f". The {relation} of this country is",
            "answer": "x",
            "answer_aliases": ["x"],
            "picture_id": f"flags:{code}/noto_original",
            "split": "test",
            "n_name_tokens": 1,
            "corrupted_id": None,
            "clean_token": None,
            "corrupted_token": None,
        }
        for code, name in NAMES.items()
        for relation in ("capital", "language")
    ]
    return pl.DataFrame(rows, schema=schemas.QUESTIONS)


def picture(i: int) -> bytes:
    pixels = np.random.default_rng(i).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).resize((48, 48), Image.Resampling.NEAREST).save(data, "PNG")
    return data.getvalue()


def manifest(files: dict[str, str]) -> pl.DataFrame:
    rows = [
        {
            **dict.fromkeys(schemas.MANIFEST, ""),
            "picture_id": p,
            "entity_id": p.split("/")[0],
            "style": p.split("/")[1],
            "art_source": STYLES[p.split("/")[1]],
            "status": "ok",
            "file": file,
            "sha256": file.split(".")[0],
            "size_bytes": 1,
            "width": 48,
            "height": 48,
        }
        for p, file in files.items()
    ]
    return pl.DataFrame(rows, schema=schemas.MANIFEST)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TWOHOP_CACHE", str(tmp_path / "cache"))
    torch.set_num_threads(1)
    for role in ("backbone", "vlm"):
        card = materialise(role, entry(role), PrepareModel(image_size=32, tower_layers=2))
        write_json(tmp_path / f"{role}.json", card.model_dump(mode="json"))
    ids = [f"flags:{code}/{style}" for code in NAMES for style in STYLES]
    import hashlib

    data = {p: picture(i) for i, p in enumerate(ids)}
    files = {p: f"{hashlib.sha256(d).hexdigest()}.png" for p, d in data.items()}
    write_pictures(tmp_path / "pictures.zip", {files[p]: d for p, d in data.items()})
    write_table(tmp_path / "manifest.parquet", manifest(files), schemas.MANIFEST)
    write_table(tmp_path / "questions.parquet", questions(), schemas.QUESTIONS)
    return tmp_path


def job(folder: Path, role: str, name: str = "a", **changes: Any) -> Job:
    inputs = {
        "questions": (folder / "questions.parquet",),
        "manifest": (folder / "manifest.parquet",),
        "pictures": (folder / "pictures.zip",),
        "card": (folder / f"{role}.json",),
    }
    params = {
        "extract_activations": {**SECTION, **changes},
        "fetch_images.background": [128, 128, 128],
        "build_questions.style": "noto_original",
        f"models.{role}": entry(role).model_dump(mode="json"),
    }
    out = {"activations": folder / f"{role}-{name}.h5"}
    return Job("extract_activations", role, params, inputs, out, folder / f"work-{role}-{name}", {"key": "1"})


def test_backbone_has_the_text_run_only(folder: Path) -> None:
    summary = step.run(job(folder, "backbone"))
    with ActivationReader(folder / "backbone-a.h5") as reader:
        assert reader.runs() == ["text"]
        assert reader.rows("text") == questions()["question_id"].to_list()
        assert reader.groups("text", "attn_write") == sorted(step.TEXT_GROUPS)
        assert reader.layers("text", "mlp_write") == [0, 1]
        assert reader.attrs["model"] == "backbone"
    assert summary["done"] == 6
    assert summary["failed"] == 0


def test_text_run_holds_what_the_model_computes(folder: Path) -> None:
    step.run(job(folder, "backbone"))
    model = open_model(folder / "backbone.json")
    with ActivationReader(folder / "backbone-a.h5") as reader:
        for i, row in enumerate(questions().to_dicts()):
            batch = model.batch([Prompt(row["before"], row["name"], row["after"])])
            for kind in SECTION["sites"]:
                for layer in range(2):
                    values = model.run(batch, [Site(kind, layer)]).activations[Site(kind, layer)][0].numpy()
                    start, end = batch.spans[0]
                    names = reader.read_entity_tokens("text", kind, layer, row["question_id"])
                    np.testing.assert_allclose(names, values[start:end], atol=1e-5)
                    want = {
                        "entity": values[start:end].mean(0),
                        "entity_last": values[end - 1],
                        "question": values[end:-1].mean(0),
                        "last": values[-1],
                    }
                    for group, vector in want.items():
                        np.testing.assert_allclose(reader.read("text", kind, group, layer)[i], vector, atol=1e-5)


def test_vlm_has_image_and_pictures_runs(folder: Path) -> None:
    step.run(job(folder, "vlm"))
    with ActivationReader(folder / "vlm-a.h5") as reader:
        assert reader.runs() == ["image", "pictures", "text"]
        assert reader.layers("pictures", "resid_post") == [-1, 0, 1]
        assert reader.groups("image", "mlp_write") == sorted(step.IMAGE_GROUPS)
        rows = reader.rows("pictures")
        # copies of everything but the held-out art source
        assert rows[:4] == ["flags:FR/1x1", "flags:FR/1x1#1", "flags:FR/1x1#2", "flags:FR/noto_original"]
        assert len(rows) == 3 * (3 + 1)


def seen(model: Model, folder: Path, picture_id: str) -> torch.Tensor:
    i = [f"flags:{code}/{style}" for code in NAMES for style in STYLES].index(picture_id)
    return model.encode_pictures([Image.open(io.BytesIO(picture(i)))])[0]


def test_image_and_pictures_runs_hold_what_the_model_computes(folder: Path) -> None:
    step.run(job(folder, "vlm"))
    model = open_model(folder / "vlm.json")
    sites = [Site("resid_post", -1), Site("resid_post", 0), Site("resid_post", 1)]
    with ActivationReader(folder / "vlm-a.h5") as reader:
        for i, row in enumerate(questions().to_dicts()):
            batch = model.batch([Prompt(row["before"], None, row["after"], seen(model, folder, row["picture_id"]))])
            found = model.run(batch, sites).activations
            want = found[sites[1]][0][batch.groups["image"][0]].mean(0).numpy()
            np.testing.assert_allclose(reader.read("image", "resid_post", "image", 0)[i], want, atol=1e-5)
        for i, row_id in enumerate(reader.rows("pictures")):
            if "#" in row_id:
                continue
            prompt = Prompt("", None, "\nThe name of this country is", seen(model, folder, row_id))
            batch = model.batch([prompt])
            for site in sites:
                values = model.run(batch, [site]).activations[site][0]
                for group in step.PICTURE_GROUPS:
                    want = values[batch.groups[group][0]].mean(0).numpy()
                    got = reader.read("pictures", "resid_post", group, site.layer)[i]
                    np.testing.assert_allclose(got, want, atol=1e-5)


def test_copies_differ_from_the_picture_and_follow_the_seed(folder: Path) -> None:
    def rows(name: str, **changes: Any) -> np.ndarray:
        step.run(job(folder, "vlm", name, **changes))
        with ActivationReader(folder / f"vlm-{name}.h5") as reader:
            return reader.read("pictures", "resid_post", "image", -1)[:4]

    first, again, other = rows("a"), rows("b"), rows("c", seed=1)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first[0], other[0])
    for k in (1, 2):
        assert np.abs(first[k] - first[0]).max() > 1e-3
        assert np.abs(first[k] - other[k]).max() > 1e-3


def test_c06_killed_extraction_goes_on_and_gives_the_same_bytes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step.run(job(folder, "vlm", "whole"))
    calls: list[int] = []
    original = step.extract_chunk

    def counted(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(step, "extract_chunk", counted)
    with pytest.raises(KeyboardInterrupt):
        step.run(job(folder, "vlm", "killed"))
    assert not (folder / "vlm-killed.h5").exists()
    calls[:] = [1] * 5  # past the kill
    summary = step.run(job(folder, "vlm", "killed"))
    total = 3 + 3 + 6
    assert len(calls) - 5 == total - 4
    assert summary["made_now"] == 6 + 6 + 12 - 4 * 2
    assert (folder / "vlm-killed.h5").read_bytes() == (folder / "vlm-whole.h5").read_bytes()


def gathered(folder: Path, name: str, n: int) -> Job:
    """The job that puts n shards together; the shards have run."""
    whole = job(folder, "vlm", name)
    for i in range(n):
        step.run_shard(replace(whole, outputs={}), Part(i, n))
    markers = tuple(folder / f"{i}-of-{n}.json" for i in range(n))
    for marker in markers:
        marker.touch()
    return replace(whole, shards=markers)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_shards_give_the_same_bytes_and_the_gathering_needs_no_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch, n: int
) -> None:
    step.run(job(folder, "vlm", "whole"))
    gather = gathered(folder, "shards", n)
    monkeypatch.setattr(step, "open_model", None)
    assert step.run(gather)["made_now"] == 0
    assert (folder / "vlm-shards.h5").read_bytes() == (folder / "vlm-whole.h5").read_bytes()


def test_shards_share_the_rows(folder: Path) -> None:
    whole = job(folder, "vlm")
    done = [step.run_shard(whole, Part(i, 3))["done"] for i in range(3)]
    assert sum(done) == 6 + 6 + 12
    assert min(done) >= 6
    assert [step.run_shard(whole, Part(i, 3))["done"] for i in range(3)] == [0, 0, 0]  # resumed per chunk


def test_gathering_stops_when_a_chunk_is_damaged_and_lets_the_shards_run_again(folder: Path) -> None:
    gather = gathered(folder, "a", 2)
    chunk = sorted(gather.work.rglob("*.chunk"))[3]
    chunk.write_bytes(chunk.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match="repeat the command"):
        step.run(gather)
    assert not any(m.exists() for m in gather.shards)
    assert sum(step.run_shard(gather, Part(i, 2))["done"] for i in range(2)) == 2  # that chunk
    step.run(gather)


def test_number_of_shards_is_not_told_to_the_step(folder: Path) -> None:
    """So that neither the file nor its record can depend on it."""
    params = load_params(Path(__file__).parents[1] / "tiny/params.yaml")
    assert params.extract_activations.shards == 1
    assert "shards" not in section_keys(params, ["extract_activations"])["extract_activations"]


def test_pictures_are_encoded_once_each(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[int] = []
    original = Model.encode_pictures

    def counted(self: Model, pictures: Any) -> Any:
        encoded.append(len(pictures))
        return original(self, pictures)

    monkeypatch.setattr(Model, "encode_pictures", counted)
    step.run(job(folder, "vlm"))
    assert sum(encoded) == 3 * (3 + 1)


def test_missing_picture_is_named(folder: Path) -> None:
    table = pl.read_parquet(folder / "manifest.parquet").filter(pl.col("picture_id") != "flags:US/noto_original")
    write_table(folder / "manifest.parquet", table, schemas.MANIFEST)
    with pytest.raises(DataError, match="flags:US/noto_original"):
        step.run(job(folder, "vlm"))


def test_question_group_is_left_out_when_a_prompt_has_none(folder: Path) -> None:
    table = questions().with_columns(pl.lit(".").alias("after"))
    write_table(folder / "questions.parquet", table, schemas.QUESTIONS)
    step.run(job(folder, "backbone"))
    with ActivationReader(folder / "backbone-a.h5") as reader:
        assert reader.groups("text", "mlp_write") == ["entity", "entity_last", "last"]


def test_params_are_what_the_step_declares() -> None:
    assert set(SECTION) == set(ExtractActivations.model_fields) - {"shards"}  # see the next test
    assert step.STEP.params[0] == step.STEP.name
