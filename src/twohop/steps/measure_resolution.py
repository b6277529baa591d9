"""Step measure_resolution: by which layer is the entity known? Four methods, one depth each, and how far they agree
(study, section 7).

1. One picture (or, for a backbone, name) per entity, of the held-out style that the questions show.
2. Logit lens and tuned lens at the entity's tokens; the tuned lens is trained here, on text alone.
3. Patchscopes: the entity's residual in an identity prompt.
4. Knockout of attention from `last` to the entity's tokens, window by window.
5. Per method and place a curve with chance, a test that anything is read, and a depth with its interval.

A backbone's run is on names and is the reference, not a result: at a name's tokens a lens reads what was typed in, so
its depth is near 0 by construction and shows that the method can read; its knockout says by which depth the language
model has moved what it knows of a named entity to the place of the answer.
"""

import logging
from dataclasses import asdict
from typing import Any

import numpy as np
import polars as pl
import torch
from safetensors.torch import save_file

from twohop.analysis import (
    Depth,
    Interval,
    Translator,
    curve,
    depth_difference,
    headline_readouts,
    resolution_depth,
    spread,
    stratified_sample,
)
from twohop.config import MeasureResolution
from twohop.data import open_pictures
from twohop.models import Model, open_model
from twohop.steps._asking import encode_by_id, split_prompt
from twohop.steps._reading import (
    Item,
    Lens,
    Read,
    Reader,
    layers_met,
    lens_text,
    look_at_items,
    read_knockout,
    read_layers,
    read_lens,
    read_patchscope,
    tune_lens,
)
from twohop.steps._step import Job, Step, Summary
from twohop.store import atomic_path, read_table, schemas, write_bytes, write_json, write_table

LOG = logging.getLogger(__name__)
STEP = Step(
    name="measure_resolution",
    params=("measure_resolution", "models.{model}"),
    inputs=("entities", "questions", "manifest", "pictures", "card"),
    outputs=("resolution", "readings", "depths", "tuned_lens", "curve", "metrics"),
)


def run(job: Job) -> Summary:
    """Read, test, summarise."""
    params = job.section(MeasureResolution)
    reader = _reader(job, open_model(job.input("card")), params)
    n_layers = reader.model.n_layers
    reads, translators, log = _read(job, reader)
    found = {
        _key(r): resolution_depth(r.readings, n_layers, params.n_boot, params.permutations, params.seed) for r in reads
    }
    depths = pl.DataFrame(_depth_rows(reads, found, n_layers, params), schema=schemas.DEPTHS)
    points = pl.DataFrame([row for r in reads for row in _points(r, params)], schema=schemas.RESOLUTION)
    write_table(job.output("resolution"), points, schemas.RESOLUTION)
    write_table(job.output("readings"), pl.concat([_rows(r) for r in reads]), schemas.READINGS)
    write_table(job.output("depths"), depths, schemas.DEPTHS)
    write_bytes(job.output("curve"), plotted(points).write_csv().encode())
    with atomic_path(job.output("tuned_lens")) as tmp:
        save_file(_tensors(translators), tmp)
    write_json(job.output("metrics"), _metrics(depths, log))
    read = sum(d.depth.value is not None for d in found.values())
    return {"done": len(reads), "failed": 0, "entities": len(reader.items), "readouts_above_chance": read}


def _reader(job: Job, model: Model, params: MeasureResolution) -> Reader:
    entities = read_table(job.input("entities"), schemas.ENTITIES)
    questions = read_table(job.input("questions"), schemas.QUESTIONS).sort("question_id")
    shown = {q["entity_id"]: q for q in questions.iter_rows(named=True)}
    ids = sorted(shown)
    drawn = sorted(ids[i] for i in stratified_sample(["all"] * len(ids), params.max_pictures, params.seed))
    features: dict[str, Any] = {}
    if model.n_image_tokens:
        manifest = read_table(job.input("manifest"), schemas.MANIFEST)
        with open_pictures(job.input("pictures")) as picture:
            features = encode_by_id(model, picture, manifest, [shown[e]["picture_id"] for e in drawn])
    asked = _one_question_each(questions, drawn)
    spellings = {e: (n, *a) for e, n, a in entities.select("entity_id", "name", "aliases").iter_rows()}
    items = [Item(e, shown[e]["name"], spellings[e], features.get(shown[e]["picture_id"]), asked.get(e)) for e in drawn]
    return Reader(model, params, job.work, items, entities["name"].to_list())


def _one_question_each(questions: pl.DataFrame, entity_ids: list[str]) -> dict[str, dict[str, Any]]:
    """A question with a corrupted twin per entity, relations in turn."""
    found: dict[str, dict[str, Any]] = {}
    for n, entity in enumerate(entity_ids):
        own = questions.filter(pl.col("entity_id") == entity, pl.col("corrupted_id").is_not_null()).sort("relation")
        if not own.is_empty():
            found[entity] = own.row(n % own.height, named=True)
    return found


def _read(job: Job, reader: Reader) -> tuple[list[Read], dict[int, Translator], list[dict[str, Any]]]:
    params, n_layers = reader.params, reader.model.n_layers
    layers = layers_met(reader.model, read_layers(n_layers, params.layer_stride))
    patched = layers_met(reader.model, read_layers(n_layers, params.patchscope_stride))
    templates = _templates(read_table(job.input("questions"), schemas.QUESTIONS), params)
    translators, log = tune_lens(reader, lambda: lens_text(reader, layers, templates), layers)
    device = reader.model.device
    tuned = {n: Translator(t.weight.to(device), t.bias.to(device)) for n, t in translators.items()}
    lenses: dict[str, Lens] = {"logit_lens": lambda _, h: h, "tuned_lens": lambda n, h: tuned[n](h)}
    seen = look_at_items(reader, sorted({*layers, *patched}), lenses, layers)
    reads = [read for method, lens in lenses.items() for read in read_lens(reader, seen, layers, method, lens)]
    reads += [*read_patchscope(reader, seen, patched), *read_knockout(reader)]
    return reads, translators, log


def _templates(questions: pl.DataFrame, params: MeasureResolution) -> list[tuple[str, str]]:
    """What stands before and after a name in the questions and in the naming prompt."""
    return sorted({*questions.select("before", "after").iter_rows(), split_prompt(params.prompt)})


def _key(read: Read) -> tuple[str, str]:
    return read.method, read.readout


def _points(read: Read, params: MeasureResolution) -> list[dict[str, Any]]:
    points = curve(read.readings, params.n_boot, params.seed)
    return [
        {
            "method": read.method,
            "readout": read.readout,
            **asdict(point),
            "logprob": None if read.logprob is None else float(read.logprob[i].mean()),
        }
        for i, point in enumerate(points)
    ]


def _rows(read: Read) -> pl.DataFrame:
    """Per entity and layer: what a bootstrap needs."""
    n, layers = len(read.entity_ids), read.readings.layers
    columns = {
        "method": [read.method] * (n * len(layers)),
        "readout": [read.readout] * (n * len(layers)),
        "entity_id": [e for e in read.entity_ids for _ in layers],
        "layer": [layer for _ in read.entity_ids for layer in layers],
        "value": read.readings.own.flatten(),
        "chance": read.readings.others.flatten(),
        "logprob": [None] * (n * len(layers)) if read.logprob is None else read.logprob.T.flatten().astype(float),
    }
    return pl.DataFrame(columns, schema=schemas.READINGS)


def _depth_rows(
    reads: list[Read], found: dict[tuple[str, str], Depth], n_layers: int, params: MeasureResolution
) -> list[dict[str, Any]]:
    """A row per method and place, and one per pair of methods that have a depth."""
    main = headline_readouts(found)
    rows = [
        {
            "method": r.method,
            "readout": r.readout,
            "headline": main.get(r.method) == r.readout,
            "versus": None,
            **_interval(found[_key(r)].depth),
            "layer": found[_key(r)].layer,
            "p_value": found[_key(r)].p_value,
        }
        for r in reads
    ]
    known = [r for r in reads if main.get(r.method) == r.readout and found[_key(r)].depth.value is not None]
    for i, a in enumerate(known):
        for b in known[i + 1 :]:
            gap = depth_difference(a.readings, b.readings, n_layers, params.n_boot, params.seed)
            pair = {"method": a.method, "readout": a.readout, "headline": True, "versus": b.method}
            rows.append({**pair, **_interval(gap), "layer": None, "p_value": None})
    return rows


def _interval(found: Interval) -> dict[str, Any]:
    return {"depth": found.value, "low": found.low, "high": found.high, "n": found.n_entities}


def _tensors(translators: dict[int, Translator]) -> dict[str, torch.Tensor]:
    """`<layer>.weight`, `<layer>.bias`: h -> h + weight h + bias; layer 0 is the embedding."""
    named = {f"{n}.weight": t.weight for n, t in translators.items()} | {
        f"{n}.bias": t.bias for n, t in translators.items()
    }
    return {name: tensor.contiguous() for name, tensor in sorted(named.items())}


def plotted(points: pl.DataFrame) -> pl.DataFrame:
    """layer, value of the tuned lens at the entity's last token: what `dvc plots` draws."""
    rows = points.filter(pl.col("method") == "tuned_lens", pl.col("readout") == "last").sort("layer")
    return rows.select("layer", "value", "low", "high", "chance")


def _metrics(depths: pl.DataFrame, log: list[dict[str, Any]]) -> dict[str, Any]:
    """method -> readout -> depth; what the headline depths span; and how the tuned lens was trained."""
    tree: dict[str, Any] = {}
    for row in depths.filter(pl.col("versus").is_null()).iter_rows(named=True):
        tree.setdefault(row["method"], {})[row["readout"]] = {
            k: row[k] for k in ("depth", "low", "high", "layer", "p_value", "n", "headline")
        }
    main = depths.filter(pl.col("versus").is_null() & pl.col("headline"))
    gained = [entry["kl_identity"] - entry["kl"] for entry in log]
    return {
        "depths": tree,
        "spread": spread(dict(main.select("method", "depth").iter_rows())),
        "tuned_lens": {"layers": log, "mean_kl_gained": float(np.mean(gained))},
    }
