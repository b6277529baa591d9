"""The way back from a result, told to its end: runs, then the model's source, the pictures' pages, the facts' licences.

A table is only read while it still is what its run wrote; otherwise the walk says so and leaves it at that.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from twohop.errors import ArtifactError
from twohop.lineage import Book, Node, Record, Target, check_unaltered, digest_of, read_value, walk
from twohop.store import read_json, read_table, schemas


@dataclass(frozen=True)
class ModelFacts:
    """What a model's card says of where it comes from."""

    name: str
    source: str
    revision: str
    """sha256 over the names and sha256s of all files, as `ModelCard.revision`."""
    licence: str
    files: int


@dataclass(frozen=True)
class Picture:
    """A row of the manifest: where a picture comes from, and under what licence."""

    picture_id: str
    source_page: str
    locator: str
    licence: str
    author: str
    sha256: str


@dataclass(frozen=True)
class FactSource:
    """Facts of one source under one licence."""

    source: str
    source_version: str
    licence: str
    url: str
    relations: tuple[str, ...]
    n_facts: int


@dataclass(frozen=True)
class Ancestry:
    """A target, its value if it is a number, the walk back, and what stands at its ends."""

    target: Target
    value: Any
    """None unless the target is a number (or another part of a JSON file)."""
    interval: tuple[float, float] | None
    nodes: tuple[Node, ...]
    models: Mapping[str, ModelFacts] = field(default_factory=dict[str, ModelFacts])
    """By run id of prepare_model."""
    pictures: Mapping[str, tuple[Picture, ...]] = field(default_factory=dict[str, tuple[Picture, ...]])
    """By run id of fetch_images: those that the walk's questions show, or all when it meets no questions."""
    facts: Mapping[str, tuple[FactSource, ...]] = field(default_factory=dict[str, tuple[FactSource, ...]])
    """By run id of curate_entities: those that the walk's questions ask, or all."""
    unread: Mapping[str, str] = field(default_factory=dict[str, str])
    """Run id: why its table or card can no longer be read."""

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        ends = ("models", "pictures", "facts")
        return {
            "id": self.target.id,
            "value": self.value,
            "interval": self.interval,
            "nodes": [_node_json(node) for node in self.nodes],
            **{name: {run: _plain(value) for run, value in getattr(self, name).items()} for name in ends},
            "unread": dict(self.unread),
        }


def _plain(value: Any) -> Any:
    return [asdict(v) for v in value] if isinstance(value, tuple) else asdict(value)


def _node_json(node: Node) -> dict[str, Any]:
    record = node.record.as_json() if node.record and not node.again else None
    return {
        "depth": node.depth,
        "run_id": node.record.run_id if node.record else None,
        "files": [asdict(f) for f in node.files],
        "notes": list(node.notes),
        "record": record,
    }


def trace(target: Target, book: Book, picture: str | None = None) -> Ancestry:
    """The walk back from a target.

    Args:
        target: what to start from.
        book: the records.
        picture: tell only of this picture.

    Raises:
        ArtifactError: the target's file or number is not there, or the walk meets no such picture.
    """
    value, interval = _value(target)
    nodes = tuple(walk(target.record, book))
    runs = [n.record for n in nodes if n.record and not n.again]
    ends = _Ends()
    asked = ends.asked(runs)
    for record in runs:
        ends.look(record, asked, picture)
    if picture is not None and not any(ends.pictures.values()):
        raise ArtifactError(
            f"no picture {picture} is behind it", target.id, "picture ids are in results/fetch_images/manifest.parquet"
        )
    return Ancestry(target, value, interval, nodes, ends.models, ends.pictures, ends.facts, ends.unread)


def _value(target: Target) -> tuple[Any, tuple[float, float] | None]:
    """The number of a target and, when low and high stand beside it, its interval."""
    if target.pointer is None or target.output is None:
        return None, None
    value, (above, _, last) = read_value(target), target.pointer.rpartition("/")
    if last != "value":
        return value, None
    beside: dict[str, Any] = read_value(Target(target.record, target.output, above))
    low, high = beside.get("low"), beside.get("high")
    return value, None if low is None or high is None else (low, high)


class _Ends:
    """Collects what stands at the ends of a walk."""

    def __init__(self) -> None:
        self.models: dict[str, ModelFacts] = {}
        self.pictures: dict[str, tuple[Picture, ...]] = {}
        self.facts: dict[str, tuple[FactSource, ...]] = {}
        self.unread: dict[str, str] = {}

    def asked(self, runs: Iterable[Record]) -> pl.DataFrame | None:
        """Questions that the walk meets; None when it meets none."""
        columns = ("picture_id", "entity_id", "relation")
        tables = [self._table(r, "questions", schemas.QUESTIONS) for r in runs if r.step == "build_questions"]
        found = [t.select(columns) for t in tables if t is not None]
        return pl.concat(found).unique() if found else None

    def look(self, record: Record, asked: pl.DataFrame | None, picture: str | None) -> None:
        """Take from a run's tables what tells where it all comes from."""
        if record.step == "prepare_model" and (card := self._file(record, "card")):
            self.models[record.run_id] = read_model(card)
        if record.step == "fetch_images":
            manifest = self._table(record, "manifest", schemas.MANIFEST)
            if manifest is not None:
                self.pictures[record.run_id] = _pictures(manifest, asked, picture)
        if record.step == "curate_entities":
            facts = self._table(record, "facts", schemas.FACTS)
            if facts is not None:
                self.facts[record.run_id] = _fact_sources(facts, asked)

    def _table(self, record: Record, name: str, schema: Mapping[str, Any]) -> pl.DataFrame | None:
        file = self._file(record, name)
        return read_table(file, schema) if file else None

    def _file(self, record: Record, name: str) -> Path | None:
        output = next((o for o in record.outputs if o.name == name), None)
        try:
            return check_unaltered(Target(record, output))
        except ArtifactError as error:
            self.unread[record.run_id] = f"{error.where}: {error.what}"
            return None


def read_model(card: Path) -> ModelFacts:
    """What a card says of the model's source."""
    facts: dict[str, Any] = read_json(card)
    files: dict[str, Any] = facts["files"]
    source: dict[str, Any] = {**facts["entry"]["source"]}
    kind = source.pop("kind")
    return ModelFacts(
        name=facts["name"],
        source=f"{kind} ({', '.join(f'{k} {v}' for k, v in source.items() if v is not None)})",
        revision=digest_of({name: file["sha256"] for name, file in files.items()}),
        licence=facts["licence"],
        files=len(files),
    )


def _pictures(manifest: pl.DataFrame, asked: pl.DataFrame | None, picture: str | None) -> tuple[Picture, ...]:
    rows = manifest.filter(pl.col("status") == "ok")
    if picture is not None:
        rows = rows.filter(pl.col("picture_id") == picture)
    elif asked is not None:
        rows = rows.join(asked.select("picture_id").unique(), on="picture_id", how="semi")
    columns = list(Picture.__dataclass_fields__)
    return tuple(Picture(**row) for row in rows.sort("picture_id").select(columns).iter_rows(named=True))


def _fact_sources(facts: pl.DataFrame, asked: pl.DataFrame | None) -> tuple[FactSource, ...]:
    if asked is not None:
        facts = facts.join(asked, on=["entity_id", "relation"], how="semi")
    keys = ["source", "source_version", "licence", "url"]
    groups = facts.group_by(keys).agg(pl.col("relation").unique().sort(), n_facts=pl.len()).sort(keys)
    return tuple(
        FactSource(**{k: row[k] for k in keys}, relations=tuple(row["relation"]), n_facts=row["n_facts"])
        for row in groups.iter_rows(named=True)
    )
