"""A tiny study on a random backbone and VLM of one seed: all that score_attribution and patch_activations read."""

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from PIL import Image

from twohop.config import ModelEntry, PrepareModel
from twohop.data._pictures import write_pictures
from twohop.models import Model, Prompt, Site, materialise, open_model
from twohop.steps._step import Job
from twohop.store import ActivationWriter, Dataset, schemas, write_json, write_table

LAYERS, D_MODEL = 4, 32
TOKENS = 6
NAMES = ("France", "Japan", "Brazil", "Canada", "Kenya", "Ireland", "Germany", "Iceland", "Africa", "Saint Lucia")
AFTER = {"capital": ". The capital of this country is", "continent": ". This country is in the continent of"}
BEFORE = "Consider the country "


@dataclass(frozen=True)
class Study:
    """Folders and models of the study."""

    folder: Path
    vlm: Model
    backbone: Model
    questions: pl.DataFrame
    image_answers: dict[str, str]

    def path(self, name: str) -> Path:
        return self.folder / name

    def prompt(self, question_id: str, run: str) -> Prompt:
        row = self.questions.row(by_predicate=pl.col("question_id") == question_id, named=True)
        if run == "text":
            return Prompt(row["before"], row["name"], row["after"])
        return Prompt(row["before"], None, row["after"], self.vlm.encode_pictures([_picture(row["entity_id"])])[0])

    def job(self, step: str, model: str, params: Mapping[str, Any], inputs: Mapping[str, str], work: Path) -> Job:
        outputs = {
            n: work / f"{n}.parquet"
            for n in ("scores", "question_scores", "validation", "spans", "profile", "outcomes")
        }
        return Job(
            step=step,
            model=model,
            params={step: dict(params)},
            inputs={name: (self.path(file),) for name, file in inputs.items()},
            outputs={**outputs, "metrics": work / "metrics.json"},
            work=work / "work",
        )


def _entry(role: str) -> ModelEntry:
    return ModelEntry.model_validate(
        {
            "role": role,
            "family": "llava" if role == "vlm" else "llama",
            "backbone": "tiny-llm" if role == "vlm" else None,
            "source": {"kind": "random", "seed": 3, "n_layers": LAYERS, "d_model": D_MODEL},
            "licence": "Apache-2.0",
        }
    )


def _open(folder: Path, name: str, role: str) -> Model:
    card = materialise(name, _entry(role), PrepareModel(image_size=32, tower_layers=2))
    write_json(folder / f"{name}-card.json", card.model_dump(mode="json"))
    return open_model(folder / f"{name}-card.json")


def _picture(entity: str) -> Image.Image:
    noise = np.random.default_rng(sum(entity.encode())).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((32, 32), Image.Resampling.NEAREST)


def _png(entity: str) -> bytes:
    buffer = io.BytesIO()
    _picture(entity).save(buffer, "PNG")
    return buffer.getvalue()


def build(folder: Path) -> Study:
    """Write the study's inputs; every second question's answer is what the VLM says from the picture, so it is kept."""
    vlm, backbone = _open(folder, "tiny-vlm", "vlm"), _open(folder, "tiny-llm", "backbone")
    write_table(folder / "manifest.parquet", _pictures(folder), schemas.MANIFEST)
    rows = [_question(vlm, e, r, i) for i, e in enumerate(NAMES) for r in AFTER]
    twins = {q["question_id"]: _twin(q, rows) for q in rows}
    for q in rows:
        twin = twins[q["question_id"]]
        q |= {"corrupted_id": twin, "clean_token": 40, "corrupted_token": 41} if twin else {}
    study = Study(folder, vlm, backbone, pl.DataFrame(rows, schema=schemas.QUESTIONS), {})
    questions, said = _with_answers(study)
    study = Study(folder, vlm, backbone, questions, said)
    write_table(folder / "questions.parquet", questions, schemas.QUESTIONS)
    _write_answers(study)
    for model, name in ((vlm, "tiny-vlm"), (backbone, "tiny-llm")):
        _write_activations(study, model, folder / f"{name}-activations.h5")
    return study


def _question(vlm: Model, entity: str, relation: str, index: int) -> dict[str, Any]:
    batch = vlm.batch([Prompt(BEFORE, entity, AFTER[relation])])
    return {
        "question_id": f"{entity}/{relation}",
        "entity_id": entity,
        "relation": relation,
        "name": entity,
        "before": BEFORE,
        "after": AFTER[relation],
        "answer": "nothing",
        "answer_aliases": ["nothing"],
        "picture_id": f"{entity}/flat",
        "split": "dev" if index % 4 == 0 else "test",
        "n_name_tokens": batch.spans[0][1] - batch.spans[0][0],
        "corrupted_id": None,
        "clean_token": None,
        "corrupted_token": None,
    }


def _twin(question: dict[str, Any], rows: list[dict[str, Any]]) -> str | None:
    same = [
        q["question_id"]
        for q in rows
        if q["relation"] == question["relation"]
        and q["n_name_tokens"] == question["n_name_tokens"]
        and q["entity_id"] != question["entity_id"]
    ]
    return same[0] if same else None


def _pictures(folder: Path) -> pl.DataFrame:
    files = {f"{hashlib.sha256(_png(e)).hexdigest()}.png": _png(e) for e in NAMES}
    write_pictures(folder / "pictures.zip", files)
    rows = [
        {
            **dict.fromkeys(schemas.MANIFEST, ""),
            "picture_id": f"{e}/flat",
            "entity_id": e,
            "status": "ok",
            "file": file,
            "sha256": file.removesuffix(".png"),
            "size_bytes": len(data),
            "width": 32,
            "height": 32,
        }
        for e, (file, data) in zip(NAMES, files.items(), strict=True)
    ]
    return pl.DataFrame(rows, schema=schemas.MANIFEST)


def _with_answers(study: Study) -> tuple[pl.DataFrame, dict[str, str]]:
    ids = study.questions["question_id"].to_list()
    texts: dict[str, str] = {}
    for index, batch in study.vlm.batches([study.prompt(i, "image") for i in ids], 8):
        texts |= dict(zip([ids[i] for i in index], study.vlm.generate(batch, TOKENS), strict=True))
    aliases = [[texts[q], f"fact {q}"] if i % 2 else [f"fact {q}"] for i, q in enumerate(ids)]
    return study.questions.with_columns(pl.Series("answer_aliases", aliases)), texts


def _write_answers(study: Study) -> None:
    text, image, seen = [], [], []
    for i, q in enumerate(study.questions.iter_rows(named=True)):
        row = {"question_id": q["question_id"], "entity_id": q["entity_id"], "relation": q["relation"], "prompt": ""}
        text.append({**row, "condition": "text", "answer_text": "", "correct": True, "matched_alias": ""})
        said = study.image_answers[q["question_id"]]
        image.append({**row, "condition": "image", "answer_text": said, "correct": i % 2 == 1, "matched_alias": None})
        named = {"picture_id": q["picture_id"], "entity_id": q["entity_id"], "prompt_id": 0, "ranked_correct": True}
        seen.append({**dict.fromkeys(schemas.RECOGNITION, ""), **named, "correct": False})
    write_table(study.path("backbone-answers.parquet"), pl.DataFrame(text, schema=schemas.ANSWERS), schemas.ANSWERS)
    write_table(study.path("answers.parquet"), pl.DataFrame(image, schema=schemas.ANSWERS), schemas.ANSWERS)
    table = pl.DataFrame(seen, schema=schemas.RECOGNITION)
    write_table(study.path("recognition.parquet"), table, schemas.RECOGNITION)


def _write_activations(study: Study, model: Model, path: Path) -> None:
    ids = study.questions["question_id"].to_list()
    sites = [Site("mlp_write", layer) for layer in range(LAYERS)]
    pooled, tokens = [], []
    for i in ids:
        batch = model.batch([study.prompt(i, "text")])
        found = model.run(batch, capture=sites).activations
        values = np.stack([found[s][0][batch.groups["entity"][0]].numpy() for s in sites], axis=1)
        tokens.append(values)
        pooled.append(values.mean(0))
    counts = tuple(len(t) for t in tokens)
    layout = Dataset("text", tuple(ids), ("mlp_write",), ("entity",), tuple(range(LAYERS)), D_MODEL, counts)
    attrs = dict.fromkeys(("model", "revision", "sites", "groups", "prompts_sha256", "versions", "lineage"), "test")
    writer = ActivationWriter(path, path.with_suffix(".work"), attrs, [layout], "float32", 8)
    for rows in writer.missing("text"):
        group = {("mlp_write", "entity"): np.stack([pooled[i] for i in rows])}
        writer.put("text", rows, group, {"mlp_write": [tokens[i] for i in rows]})
    writer.finish()
