"""Step train_probes: at which layer can the entity be read off linearly? (study, section 5)

Trained on pictures (and their augmented copies) of every art source but the one that the questions show; tested on
that one, style by style. Where every picture is of one art source, as when a table has one picture of each entity,
nothing is held out to test on: the tables have no row, and what reads them says so.
"""

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float, Int
from safetensors.numpy import load_file, save_file  # pyright: ignore[reportUnknownVariableType]

from twohop.analysis import (
    Probe,
    TrainingSet,
    entity_sums,
    first_near_maximum,
    fit_probes,
    layers_at_once,
    resolution,
    selectivity,
    share,
)
from twohop.config import TrainProbes, art_source
from twohop.errors import ArtifactError, DataError
from twohop.steps._asking import finished_part
from twohop.steps._step import Job, Step, Summary
from twohop.store import ActivationReader, atomic_path, schemas, write_bytes, write_json, write_table

LOG = logging.getLogger(__name__)
STEP = Step(
    name="train_probes",
    params=("train_probes", "build_questions.style"),
    inputs=("activations",),
    outputs=("curves", "predictions", "curve", "probes", "metrics"),
)


@dataclass(frozen=True)
class Split:
    """Rows of the `pictures` run: which train, which test, and what they show."""

    entities: list[str]
    train: Int[np.ndarray, " train_row"]
    labels: Int[np.ndarray, " train_row"]
    pictures: list[str]
    """Picture of every training row (copies: the one that they were made from)."""
    test: dict[str, tuple[Int[np.ndarray, " test_row"], Int[np.ndarray, " test_row"]]]
    """Per style of the held-out art source: rows and labels."""


@dataclass(frozen=True)
class Block:
    """One feature at some layers, fitted together; layers as the reader counts (-1: the first layer's input)."""

    feature: str
    layers: tuple[int, ...]

    @property
    def name(self) -> str:
        """Of its part in the work folder."""
        return f"{self.feature}.{curve_layer(self.layers[0])}-{curve_layer(self.layers[-1])}"


def curve_layer(layer: int) -> int:
    """As `schemas.CURVES` counts: 0 = embeddings."""
    return layer + 1


def run(job: Job) -> Summary:
    """Fit and test probes of every feature and layer; write curves, predictions, probes and their summary."""
    params, style = job.section(TrainProbes), str(job.params["build_questions.style"])
    start, rows = time.monotonic(), list[dict[str, Any]]()
    with ActivationReader(job.input("activations")) as reader:
        if shown(reader)["art_source"].n_unique() == 1:
            return _write_nothing(job)
        split = split_pictures(reader.rows("pictures"), shown(reader), art_source(style), params.copies)
        layers = reader.layers("pictures", "resid_post")
        blocks = make_blocks(params, layers, split, _d_model(reader, params, layers))
        for done, block in enumerate(blocks, 1):
            rows += finished_part(job.work, block.name, lambda b=block: _probe(job.work, reader, b, split, params))
            LOG.info("block %d of %d (%s), %.0f s", done, len(blocks), block.name, time.monotonic() - start)
    unconverged = sum(not row["converged"] for row in rows)
    predictions = pl.concat(_predictions(row, split) for row in rows)
    curves = pl.DataFrame(rows).select(list(schemas.CURVES))
    write_table(job.output("curves"), curves, schemas.CURVES)
    write_table(job.output("predictions"), predictions, schemas.PREDICTIONS)
    write_bytes(job.output("curve"), plotted(curves, style, params.features).write_csv().encode())
    _write_probes(job.output("probes"), job.work, blocks, split.entities)
    metrics = summarise(curves, predictions, max(layers) + 1, params.n_boot, params.seed)
    write_json(job.output("metrics"), metrics)
    done = sum(len(b.layers) for b in blocks)
    return {"done": done, "failed": 0, "rows_not_converged": unconverged, "n_train": len(split.train)}


def _write_nothing(job: Job) -> Summary:
    """Tables without a row: the same picture never trains and tests."""
    LOG.warning("no probe is trained: there is one art source, so one picture of each entity (docs/sources.md)")
    curves, predictions = pl.DataFrame(schema=schemas.CURVES), pl.DataFrame(schema=schemas.PREDICTIONS)
    write_table(job.output("curves"), curves, schemas.CURVES)
    write_table(job.output("predictions"), predictions, schemas.PREDICTIONS)
    write_bytes(job.output("curve"), curves.select("layer", "accuracy", "low", "high").write_csv().encode())
    _write_probes(job.output("probes"), job.work, [], [])
    write_json(job.output("metrics"), {})
    return {"done": 0, "failed": 0, "rows_not_converged": 0, "n_train": 0}


def _d_model(reader: ActivationReader, params: TrainProbes, layers: Sequence[int]) -> int:
    return reader.read("pictures", "resid_post", params.features[0], layers[0]).shape[1]


def make_blocks(params: TrainProbes, layers: Sequence[int], split: Split, d_model: int) -> list[Block]:
    """The probed layers of every feature, as many together as memory allows."""
    size = layers_at_once(len(split.train), d_model, len(split.entities))
    probed = probe_layers(layers, params.layer_stride)
    starts = range(0, len(probed), size)
    return [Block(feature, tuple(probed[i : i + size])) for feature in params.features for i in starts]


def probe_layers(layers: Sequence[int], stride: int) -> list[int]:
    """Every `stride`-th layer; always the embedding, the first layer and the last."""
    ordered = sorted(layers)
    return sorted({*ordered[:2], *ordered[1::stride], ordered[-1]})


def shown(reader: ActivationReader) -> pl.DataFrame:
    """The pictures of an activation file: picture_id, entity_id, art_source, style.

    Raises:
        ArtifactError: the file does not say what its rows are.
    """
    about, names = reader.about("pictures"), ("picture_id", "entity_id", "art_source", "style")
    missing = [name for name in names if name not in about]
    if missing:
        raise ArtifactError(f"rows lack {', '.join(missing)}", "activations.h5", "extract the activations again")
    return pl.DataFrame({name: about[name] for name in names}).unique(maintain_order=True)


def split_pictures(rows: Sequence[str], manifest: pl.DataFrame, held_out: str, copies: int) -> Split:
    """Training rows (all art sources but one, with their first `copies` augmented copies) and plain test rows per
    style of that one.

    Raises:
        DataError: a row that the manifest does not know, or nothing to train or to test on.
    """
    known = {
        p: (e, a, s) for p, e, a, s in manifest.select("picture_id", "entity_id", "art_source", "style").iter_rows()
    }
    parsed = [(i, *_parse(row)) for i, row in enumerate(rows)]
    unknown = [p for _, p, _ in parsed if p not in known]
    if unknown:
        raise DataError(
            f"activations of unknown pictures: {', '.join(unknown[:5])}", "activations.h5", "extract them again"
        )
    train = [(i, p, known[p][0]) for i, p, k in parsed if known[p][1] != held_out and k <= copies]
    test = [(i, known[p][0], known[p][2]) for i, p, k in parsed if known[p][1] == held_out and k == 0]
    if not train or not test:
        raise DataError(
            f"{len(train)} training and {len(test)} test pictures", f"art source {held_out}", "render more styles"
        )
    entities = sorted({e for _, _, e in train})
    label = {e: n for n, e in enumerate(entities)}
    styles = {
        s: [(i, label[e]) for i, e, of in test if of == s and e in label] for s in sorted({s for _, _, s in test})
    }
    return Split(
        entities,
        np.array([i for i, _, _ in train]),
        np.array([label[e] for _, _, e in train]),
        [p for _, p, _ in train],
        {s: (np.array([i for i, _ in found]), np.array([n for _, n in found])) for s, found in styles.items() if found},
    )


def _parse(row: str) -> tuple[str, int]:
    """Picture id and number of the copy (0: the picture itself)."""
    picture, _, copy = row.partition("#")
    return picture, int(copy or 0)


def _probe(
    work: Path, reader: ActivationReader, block: Block, split: Split, params: TrainProbes
) -> list[dict[str, Any]]:
    """Fit the probes and their controls, keep the probes in `work`, return their rows, with what they predicted."""
    features = np.stack([reader.read("pictures", "resid_post", block.feature, n) for n in block.layers])
    data = TrainingSet(features[:, split.train], split.labels, split.pictures)
    probes, controls = fit_probes(data, params.l2, params.inner_folds, params.seed)
    tensors = {
        f"{block.feature}.{curve_layer(n)}.{name}": value
        for n, probe in zip(block.layers, probes, strict=True)
        for name, value in (("weight", probe.weight), ("bias", probe.bias))
    }
    with atomic_path(_kept(work, block)) as tmp:
        save_file(tensors, tmp)
    return [
        {"feature": block.feature, "layer": curve_layer(n), **_row(style, probe, control, x, split, params)}
        for n, probe, control, x in zip(block.layers, probes, controls, features, strict=True)
        for style in split.test
    ]


def _row(
    style: str,
    probe: Probe,
    control: Probe,
    features: Float[np.ndarray, "row d_model"],
    split: Split,
    params: TrainProbes,
) -> dict[str, Any]:
    rows, labels = split.test[style]
    predicted, shuffled = probe.predict(features[rows]), control.predict(features[rows])
    hits, control_hits, entities = predicted == labels, shuffled == labels, _entities(labels, split)
    accuracy = share(entity_sums(entities, [hits, np.ones(len(hits))]), params.n_boot, params.seed)
    gain = selectivity(hits, control_hits, entities, params.n_boot, params.seed)
    return {
        "test_style": style,
        "accuracy": accuracy.value,
        "low": accuracy.low,
        "high": accuracy.high,
        "shuffled_accuracy": float(control_hits.mean()),
        "selectivity": gain.value,
        "selectivity_low": gain.low,
        "selectivity_high": gain.high,
        "l2": probe.l2,
        "n_train": len(split.train),
        "n_test": len(rows),
        "converged": probe.converged and control.converged,
        "predicted": predicted.tolist(),
        "shuffled": shuffled.tolist(),
    }


def _entities(labels: Int[np.ndarray, " row"], split: Split) -> list[str]:
    return [split.entities[n] for n in labels.tolist()]


def _predictions(row: dict[str, Any], split: Split) -> pl.DataFrame:
    """What one probe and its control said of every test picture."""
    _, labels = split.test[row["test_style"]]
    said, shuffled = np.array(row["predicted"]), np.array(row["shuffled"])
    return pl.DataFrame(
        {
            "feature": [row["feature"]] * len(labels),
            "layer": [row["layer"]] * len(labels),
            "test_style": [row["test_style"]] * len(labels),
            "entity_id": _entities(labels, split),
            "predicted": _entities(said, split),
            "correct": said == labels,
            "shuffled_correct": shuffled == labels,
        },
        schema=schemas.PREDICTIONS,
    )


def _kept(work: Path, block: Block) -> Path:
    return work / f"{block.name}.safetensors"


def _write_probes(path: Path, work: Path, blocks: Sequence[Block], entities: Sequence[str]) -> None:
    """All probes in one safetensors file; the entity of each row of a weight is in the metadata (one key: its order is
    the file's bytes).
    """
    tensors: dict[str, np.ndarray] = {}
    for block in blocks:
        tensors |= load_file(_kept(work, block))
    with atomic_path(path) as tmp:
        save_file(tensors, tmp, metadata={"entities": json.dumps(list(entities))})


def summarise(curves: pl.DataFrame, predictions: pl.DataFrame, n_layers: int, n_boot: int, seed: int) -> dict[str, Any]:
    """Per feature and test style: accuracy of the embedding and after the first layer, the maximum with its
    selectivity, and how deep 90 % of it is reached.

    Depth is a share of the decoder's layers: 0 = before the first, 1 = after the last; its resolution is that of the
    probed layers.
    """
    found: dict[str, Any] = {}
    for (feature, style), rows in curves.sort("layer").group_by("feature", "test_style", maintain_order=True):
        layers, accuracy = rows["layer"].to_list(), rows["accuracy"].to_list()
        near = first_near_maximum(layers, accuracy)
        best = rows.row(int(np.argmax(accuracy)), named=True)
        said = predictions.filter(pl.col("feature") == feature, pl.col("test_style") == style)
        found.setdefault(str(feature), {})[str(style)] = {
            "layer_0": _numbers(rows.row(0, named=True)),
            "layer_1": _numbers(rows.row(1, named=True)),
            "maximum": {**_numbers(best), "layer": best["layer"]},
            "selectivity": {name: best[f"selectivity{end}"] for name, end in _ENDS.items()},
            "largest_shuffled_accuracy": float(np.max(rows["shuffled_accuracy"].to_list())),
            "near_maximum_layer": near,
            "near_maximum_depth": resolution(said, n_layers, n_boot, seed).record(),
        }
    return found


_ENDS = {"value": "", "low": "_low", "high": "_high"}


def plotted(curves: pl.DataFrame, style: str, features: Sequence[str]) -> pl.DataFrame:
    """layer, accuracy of the last image token (or the first feature there is) on the style that questions show: what
    `dvc plots` draws.
    """
    feature = "image_last" if "image_last" in features else features[0]
    rows = curves.filter(pl.col("feature") == feature, pl.col("test_style") == style)
    return rows.sort("layer").select("layer", "accuracy", "low", "high")


def _numbers(row: dict[str, Any]) -> dict[str, float]:
    return {key: row[key] for key in ("accuracy", "low", "high")}
