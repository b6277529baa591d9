"""A project in miniature on disk: tables of two countries, their pictures, a model, and numbers made from them."""

import json
from pathlib import Path

import polars as pl
import pytest

from records import read_by, write_run
from study_tables import write_pictures_of
from twohop.lineage import InputFile, Record
from twohop.store import schemas, write_json, write_table

IDS = ["flags:AA", "flags:BB", "flags:CC"]
SUMMARY = {"late": {"value": 0.35, "low": 0.3, "high": 0.42}, "n": 3}
PLAN = {
    "curate_entities": ("curate_entities", ["entities.parquet", "facts.parquet"], ()),
    "fetch_images": ("fetch_images", ["pictures.zip", "manifest.parquet"], ("curate_entities",)),
    "prepare_model": ("prepare_model/late", ["card.json"], ()),
    "build_questions": (
        "build_questions/late",
        ["questions.parquet"],
        ("curate_entities", "fetch_images", "prepare_model"),
    ),
    "plot_figures": ("plot_figures", ["summary.json"], ("build_questions",)),
}
"""Step: its folder, its files, the steps whose files it reads."""


def _table(step: str, name: str, rows: list[dict[str, object]]) -> None:
    schema = getattr(schemas, name.upper())
    write_table(Path("results") / step / f"{name}.parquet", pl.DataFrame(rows, schema=schema), schema)


def _tables() -> None:
    _table("curate_entities", "entities", [])
    source = {"source": "GeoNames", "source_version": "1", "licence": "CC BY 4.0", "url": "u"}
    _table("curate_entities", "facts", [{"entity_id": e, "relation": "capital", **source} for e in IDS])
    write_pictures_of(Path("results"), IDS)
    asked = [{"question_id": f"{e}/capital", "entity_id": e, "relation": "capital"} for e in IDS[:2]]
    _table("build_questions/late", "questions", [{**q, "picture_id": f"{q['entity_id']}/noto_original"} for q in asked])
    entry = {"source": {"seed": 1, "kind": "random"}}
    card = {"name": "late", "licence": "MIT", "files": {"w": {"sha256": "ab" * 32, "bytes": 1}}, "entry": entry}
    write_json(Path("results/prepare_model/late/card.json"), card)


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Record]:
    """Step: its record; the working directory is the project."""
    monkeypatch.chdir(tmp_path)
    _tables()
    made: dict[str, Record] = {}
    own = InputFile("projector", "data/models/late/projector.safetensors", "cd" * 32, None)
    for i, (step, (folder, names, reads)) in enumerate(PLAN.items()):
        files = {n: json.dumps(SUMMARY) if n == "summary.json" else None for n in names}
        inputs = [*(i for r in reads for i in read_by(made[r])), *([own] if step == "prepare_model" else [])]
        params = {step: {"seed": i, "names": ["a"], "rate": 0.5, "on": True}}
        times = {"started": f"2026-01-01T0{i}:00:00+00:00", "ended": f"2026-01-01T0{i}:10:00+00:00"}
        fields = {"params": params, "commit": "c0ffee" * 6, "command": f"twohop {step} --params {{}}", **times}
        made[step] = write_run(Path("results") / folder, f"{i}{i}{i}{i}-{step}", files, inputs, **fields)
    return made
