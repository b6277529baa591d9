"""A small study on disk: four countries, two relations, three styles, tiny random models of the real classes."""

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
from PIL import Image

from twohop.config import ModelEntry, PrepareModel
from twohop.data import write_pictures
from twohop.models import materialise
from twohop.steps._step import Job
from twohop.store import schemas, write_json, write_table

NAMES = {"FR": "France", "JP": "Japan", "BR": "Brazil", "KE": "Kenya"}
FACTS = {
    "capital": {"FR": "Paris", "JP": "Tokyo", "BR": "Brasilia", "KE": "Nairobi"},
    "continent": {"FR": "Europe", "JP": "Asia", "BR": "South America", "KE": "Africa"},
}
AFTER = {
    "capital": ". The capital of this country is",
    "continent": ". This country is in the continent of",
}
STYLES = {"1x1": "flag-icons", "circle": "circle-flags", "noto_waved": "noto"}
SIZE = 32
TINY = {"kind": "random", "seed": 1, "n_layers": 3, "d_model": 32}
ENTRIES: Mapping[str, dict[str, Any]] = {
    "lm": {"role": "backbone", "family": "llama", "source": TINY, "licence": "none"},
    "eyes": {"role": "vlm", "family": "llava", "backbone": "lm", "source": TINY, "licence": "none"},
}

BENCHMARK: dict[str, Any] = {
    "run_benchmark": {
        "batch": 3,
        "max_new_tokens": 4,
        "recognition_prompts": ["{entity}\nThe name of this country is", "This is the flag of {entity}. It is"],
        "n_boot": 100,
        "seed": 0,
    },
    "fetch_images.background": [128, 128, 128],
}
"""Parameters of the small benchmark."""


def make_study(folder: Path) -> Path:
    """Tables and pictures of the small study."""
    files: dict[str, bytes] = {}
    manifest = [_picture(e, style, files) for e in NAMES for style in STYLES]
    write_pictures(folder / "pictures.zip", files)
    write_table(folder / "manifest.parquet", pl.DataFrame(manifest, schema=schemas.MANIFEST), schemas.MANIFEST)
    entities = [_entity(e) for e in NAMES]
    write_table(folder / "entities.parquet", pl.DataFrame(entities, schema=schemas.ENTITIES), schemas.ENTITIES)
    questions = [_question(e, r) for e in NAMES for r in FACTS]
    write_table(folder / "questions.parquet", pl.DataFrame(questions, schema=schemas.QUESTIONS), schemas.QUESTIONS)
    return folder


def make_card(folder: Path, name: str) -> Path:
    """The card of a tiny model; its weights go to the cache that TWOHOP_CACHE names."""
    path = folder / f"{name}-card.json"
    prepare = PrepareModel(image_size=SIZE, tower_layers=2)
    write_json(path, materialise(name, ModelEntry.model_validate(ENTRIES[name]), prepare).model_dump(mode="json"))
    return path


def job(
    step: str, model: str | None, folder: Path, params: Mapping[str, Any], inputs: Mapping[str, Path], *outputs: str
) -> Job:
    """A call of a step on the small study; outputs and work go to `<folder>/<step>-<model>`."""
    out = folder / f"{step}-{model}"
    out.mkdir(exist_ok=True)
    named = {name: (path,) for name, path in inputs.items()}
    entry = {f"models.{model}": ENTRIES[model]} if model in ENTRIES else {}
    return Job(step, model, {**params, **entry}, named, {o: out / o for o in outputs}, out / "work", {"step": step})


def _picture(entity: str, style: str, files: dict[str, bytes]) -> dict[str, Any]:
    seed = hashlib.sha256(entity.encode()).digest()
    image = Image.new("RGB", (SIZE, SIZE), (seed[0], seed[1], len(style) * 9))
    image.paste((seed[2], seed[3], seed[4]), (0, 0, SIZE, SIZE // 2))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    files[f"{digest}.png"] = buffer.getvalue()
    return {
        "picture_id": f"flags:{entity}/{style}",
        "entity_id": f"flags:{entity}",
        "art_source": STYLES[style],
        "style": style,
        "licence": "MIT",
        "author": "a",
        "source_page": "p",
        "locator": "l",
        "status": "ok",
        "reason": "",
        "file": f"{digest}.png",
        "sha256": digest,
        "size_bytes": len(buffer.getvalue()),
        "width": SIZE,
        "height": SIZE,
    }


def _entity(entity: str) -> dict[str, Any]:
    return {
        "entity_id": f"flags:{entity}",
        "name": NAMES[entity],
        "aliases": [NAMES[entity]],
        "kind": "country",
        "look_alikes": [],
        "evaluated": True,
    }


def _question(entity: str, relation: str) -> dict[str, Any]:
    return {
        "question_id": f"flags:{entity}/{relation}",
        "entity_id": f"flags:{entity}",
        "relation": relation,
        "name": NAMES[entity],
        "before": "Consider the country ",
        "after": AFTER[relation],
        "answer": FACTS[relation][entity],
        "answer_aliases": [FACTS[relation][entity]],
        "picture_id": f"flags:{entity}/noto_waved",
        "split": "test",
        "n_name_tokens": 1,
        "corrupted_id": None,
        "clean_token": None,
        "corrupted_token": None,
    }
