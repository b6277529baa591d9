"""All results of a study in one place: the tables of every model, read and schema-checked."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from twohop.config import ModelEntry
from twohop.errors import ArtifactError
from twohop.store import read_json, read_table, schemas

Tables = Mapping[str, pl.DataFrame]
"""Model name: its table; a model that a step does not look at is absent."""


@dataclass(frozen=True)
class Study:
    """What the figures and the report show."""

    models: Mapping[str, ModelEntry]
    entities: pl.DataFrame
    cards: Mapping[str, Mapping[str, Any]]
    questions: Tables
    answers: Tables
    recognition: Tables
    scores: Tables = field(default_factory=dict[str, pl.DataFrame])
    question_scores: Tables = field(default_factory=dict[str, pl.DataFrame])
    validation: Tables = field(default_factory=dict[str, pl.DataFrame])
    outcomes: Tables = field(default_factory=dict[str, pl.DataFrame])
    curves: Tables = field(default_factory=dict[str, pl.DataFrame])
    resolution: Tables = field(default_factory=dict[str, pl.DataFrame])
    readings: Tables = field(default_factory=dict[str, pl.DataFrame])
    depths: Tables = field(default_factory=dict[str, pl.DataFrame])
    predictions: Tables = field(default_factory=dict[str, pl.DataFrame])
    recovered: Tables = field(default_factory=dict[str, pl.DataFrame])

    def names(self, *roles: str) -> list[str]:
        """Models with one of these roles, in the catalogue's order."""
        return [n for n, e in self.models.items() if e.role in roles]

    def backbone(self, model: str) -> str:
        """The language model that this VLM was trained from.

        Raises:
            ArtifactError: it is itself a backbone.
        """
        name = self.models[model].backbone
        if name is None:
            raise ArtifactError("a backbone has no backbone", f"model {model}")
        return name

    def n_layers(self, model: str) -> int:
        """Decoder layers, as the card says."""
        return int(self.cards[model]["n_layers"])

    def held_out(self) -> tuple[str, str]:
        """Style and art source of the pictures that the questions show; no projector was trained on that source."""
        model = self.names("vlm", "control")[0]
        asked = self.questions[model].select("picture_id").unique()
        shown = self.recognition[model].join(asked, on="picture_id")
        styles = shown.select("style", "art_source").unique().sort("style")
        if styles.is_empty():
            raise ArtifactError("no picture of a question was shown in the recognition test", f"model {model}")
        return styles.row(0)


def load_study(inputs: Mapping[str, tuple[Path, ...]], models: Mapping[str, Any]) -> Study:
    """Read the tables of every model; the model is the name of the folder that holds a file.

    Args:
        inputs: input name to files, `results/<step>/<model>/<file>`, as a job has them.
        models: the catalogue, as plain values of params.yaml.

    Raises:
        ArtifactError: a file is unreadable, of another schema, or of a model that the catalogue lacks.
    """
    entries = {name: ModelEntry.model_validate(value) for name, value in models.items()}
    (entities,) = inputs["entities"]
    names = ("questions", "answers", "recognition", "scores", "question_scores", "validation")
    names += ("outcomes", "curves", "predictions", "resolution", "readings", "depths", "recovered")
    tables = {n: _tables(inputs.get(n, ()), getattr(schemas, n.upper()), entries) for n in names}
    cards = {p.parent.name: read_json(p) for p in inputs["cards"]}
    return Study(entries, read_table(entities, schemas.ENTITIES), cards, **tables)


def _tables(paths: tuple[Path, ...], schema: Mapping[str, Any], entries: Mapping[str, ModelEntry]) -> Tables:
    for path in paths:
        if path.parent.name not in entries:
            todo = "make results of this catalogue: snakemake --cores all"
            raise ArtifactError(f"results of a model that params.yaml lacks: {path.parent.name}", str(path), todo)
    found = {path.parent.name: path for path in paths}
    return {name: read_table(found[name], schema) for name in entries if name in found}
