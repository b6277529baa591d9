"""Step extract_activations: what every layer holds at the token groups, streamed into HDF5 (study, sections 4 and 5).

1. run `text`: every question in its named form; pooled per token group, and the name's tokens one by one;
2. run `image` (vision-language models): every question in its shown form, pooled;
3. run `pictures` (vision-language models): every picture of the manifest, and augmented copies of those that the
   projectors and probes may train on, under one prompt that asks for the name; the residual stream only.

One chunk of rows at a time; a finished chunk survives a kill. Several jobs may make the chunks (`run_shard`); the bytes
of the file are the same.
"""

import hashlib
import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float32
from torch import Tensor

from twohop.config import ExtractActivations, art_source
from twohop.data import augment, open_pictures
from twohop.errors import ArtifactError
from twohop.models import GROUP_MEANINGS, KIND_MEANINGS, Batch, Model, Picture, Prompt, Run, Site, open_model
from twohop.steps._asking import encode_by_id, split_prompt
from twohop.steps._step import Job, Part, Step, Summary
from twohop.store import ActivationWriter, Dataset, read_table, schemas

LOG = logging.getLogger(__name__)
STEP = Step(
    name="extract_activations",
    params=("extract_activations", "fetch_images.background", "build_questions.style", "models.{model}"),
    inputs=("questions", "manifest", "pictures", "card"),
    outputs=("activations",),
    in_shards=True,
)
TEXT_GROUPS = ("entity", "entity_last", "question", "last")
IMAGE_GROUPS = ("image", "image_last", "question", "last")
PICTURE_GROUPS = ("image", "image_last", "last")
PICTURE_COLUMNS = ("picture_id", "entity_id", "art_source", "style", "licence", "author", "source_page")
"""Columns of the manifest that go into the file."""


@dataclass(frozen=True)
class Row:
    """One row of a run: a text, and the name or the picture in it."""

    row_id: str
    before: str
    after: str
    name: str | None = None
    picture_id: str | None = None
    copy: int = 0
    """0: the picture itself."""
    about: Mapping[str, str] = field(default_factory=dict[str, str])
    """What the row is, for readers of the file that have no other table."""


@dataclass
class Eyes:
    """Features of pictures; those that questions show are kept, others are made for their chunk."""

    job: Job
    model: Model
    manifest: pl.DataFrame
    kept: dict[str, Picture] = field(default_factory=dict[str, Picture])

    def keep(self, picture_ids: Iterable[str]) -> None:
        """Encode what many rows show, once."""
        self.kept = encode_by_id(self.model, open_pictures(self.job.input("pictures")), self.manifest, picture_ids)

    def see(self, rows: Sequence[Row]) -> list[Picture | None]:
        """Features of each row; None for a row without a picture."""
        new = [i for i, r in enumerate(rows) if r.picture_id is not None and (r.copy or r.picture_id not in self.kept)]
        pictures = open_pictures(self.job.input("pictures")) if new else None
        files = dict(self.manifest.select("picture_id", "file").iter_rows())
        images = [self._drawn(rows[i], pictures(files[rows[i].picture_id])) for i in new] if pictures else []
        found = dict(zip(new, self.model.encode_pictures(images), strict=True)) if images else {}
        return [found.get(i, self.kept.get(r.picture_id or "")) for i, r in enumerate(rows)]

    def _drawn(self, row: Row, picture: Any) -> Any:
        if not row.copy:
            return picture
        red, green, blue = self.job.params["fetch_images.background"]
        seed = _number(row.picture_id, row.copy, self.job.section(ExtractActivations).seed)
        return augment(picture, (red, green, blue), np.random.default_rng(seed))


def run(job: Job) -> Summary:
    """Write the activations.

    Raises:
        DataError: a picture is missing.
        ModelError: a file of the model is not what its card says.
        ArtifactError: an activation is not a finite number, or a chunk is missing that a shard's job had made.
    """
    writer, made = ActivationWriter.whole(job.output("activations"), job.work), 0
    if writer is None and job.shards:
        raise _incomplete(job)
    if writer is None:
        writer, made = _make_chunks(job, job.output("activations"), Part(0, 1))
    writer.finish()
    size = job.output("activations").stat().st_size
    return {"done": sum(writer.rows.values()), "failed": 0, "made_now": made, "bytes": size}


def run_shard(job: Job, part: Part) -> Summary:
    """Make a part of the chunks; `run` then finds them in the job's folder.

    Raises:
        As `run`.
    """
    writer, made = _make_chunks(job, job.work / STEP.outputs[0], part)
    writer.keep_plan()
    return {"done": made, "failed": 0, "part": part.index + 1, "of": part.of}


def _incomplete(job: Job) -> ArtifactError:
    """The markers go, so that the shards' jobs look again for what is missing."""
    for marker in job.shards:
        marker.unlink(missing_ok=True)
    return ArtifactError(
        "a chunk is missing or damaged, or shards were made on different devices", str(job.work), "repeat the command"
    )


def _make_chunks(job: Job, path: Path, part: Part) -> tuple[ActivationWriter, int]:
    """Make what is missing of a part; returns the number of rows made now, too."""
    params, model = job.section(ExtractActivations), open_model(job.input("card"))
    questions = read_table(job.input("questions"), schemas.QUESTIONS)
    manifest = read_table(job.input("manifest"), schemas.MANIFEST).filter(pl.col("status") == "ok")
    runs = {"text": text_rows(questions)}
    eyes = Eyes(job, model, manifest)
    if model.n_image_tokens:
        held_out = art_source(str(job.params["build_questions.style"]))
        runs["image"] = image_rows(questions)
        runs["pictures"] = picture_rows(manifest, params, held_out)
        eyes.keep(questions["picture_id"].unique().sort())
    layout = [_layout(model, name, rows, params) for name, rows in runs.items()]
    attrs = _attributes(job, model, runs, params)
    writer = ActivationWriter(path, job.work, attrs, layout, params.dtype, params.chunk_rows)
    made = 0
    for d in layout:
        todo = [c for c in writer.missing(d.run) if part.takes(c.start // params.chunk_rows)]
        made += _extract(writer, model, eyes, d, runs[d.run], todo, params.batch)
    return writer, made


def text_rows(questions: pl.DataFrame) -> list[Row]:
    """The named form of every question."""
    return [
        Row(q["question_id"], q["before"], q["after"], name=q["name"], about=_about_question(q))
        for q in questions.iter_rows(named=True)
    ]


def image_rows(questions: pl.DataFrame) -> list[Row]:
    """The shown form of every question."""
    return [
        Row(
            q["question_id"],
            q["before"],
            q["after"],
            picture_id=q["picture_id"],
            about={**_about_question(q), "picture_id": q["picture_id"]},
        )
        for q in questions.iter_rows(named=True)
    ]


def _about_question(q: Mapping[str, Any]) -> dict[str, str]:
    prompt = f"{q['before']}{{entity}}{q['after']}"
    return {**{key: q[key] for key in ("entity_id", "name", "relation", "answer", "split")}, "prompt": prompt}


def picture_rows(manifest: pl.DataFrame, params: ExtractActivations, held_out: str) -> list[Row]:
    """Every picture under the recognition prompt, followed by its augmented copies unless it is held out."""
    before, after = split_prompt(params.pictures_prompt)
    rows: list[Row] = []
    for found in manifest.sort("picture_id").iter_rows(named=True):
        picture, about = found["picture_id"], {key: found[key] for key in PICTURE_COLUMNS}
        rows.append(Row(picture, before, after, picture_id=picture, about=about))
        copies = 0 if found["art_source"] == held_out else params.copies
        rows += [Row(f"{picture}#{k}", before, after, None, picture, k, about) for k in range(1, copies + 1)]
    return rows


def _layout(model: Model, run_name: str, rows: Sequence[Row], params: ExtractActivations) -> Dataset:
    ids = tuple(r.row_id for r in rows)
    layers = model.layers_of("text" if run_name == "text" else "image")
    columns = {name: tuple(r.about[name] for r in rows) for name in (rows[0].about if rows else ())}
    if run_name == "pictures":
        return Dataset(run_name, ids, ("resid_post",), PICTURE_GROUPS, (-1, *layers), model.d_model, None, columns)
    counts: tuple[int, ...] | None = None
    if run_name == "text":
        counts = tuple(model.tokens.name_span_length(r.before, r.name or "", r.after) for r in rows)
    groups = TEXT_GROUPS if run_name == "text" else IMAGE_GROUPS
    # a prompt that ends one token after the entity has no question tokens: the group is left out for the whole run
    if any(len(model.tokenize(r.after + model.tokens.frame.tail)) < 2 for r in rows):
        groups = tuple(g for g in groups if g != "question")
    return Dataset(run_name, ids, tuple(params.sites), groups, layers, model.d_model, counts, columns)


def _attributes(
    job: Job, model: Model, runs: Mapping[str, Sequence[Row]], params: ExtractActivations
) -> dict[str, Any]:
    """What the file says about itself (promise H5); no times and no run ids: the same work gives the same bytes."""
    prompts = {name: [[r.before, r.name, r.picture_id, r.copy, r.after] for r in rows] for name, rows in runs.items()}
    libraries = {**model.card.versions, **{name: version(name) for name in ("h5py", "numpy")}}
    return {
        "model": model.name,
        "revision": model.card.revision,
        "sites": {kind: KIND_MEANINGS[kind] for kind in params.sites},
        "groups": dict(GROUP_MEANINGS),
        "prompts_sha256": _sha256(prompts),
        "lineage": dict(job.identity),
        "versions": {**libraries, "computed_as": str(model.dtype), "device": model.device.type, "seed": params.seed},
    }


def _extract(
    writer: ActivationWriter,
    model: Model,
    eyes: Eyes,
    layout: Dataset,
    rows: Sequence[Row],
    chunks: Iterable[range],
    size: int,
) -> int:
    """Make chunks of one run; the number of rows made now. One chunk is written while the next one is computed."""
    sites = [Site(cast("Any", kind), layer) for kind in layout.kinds for layer in layout.layers]
    start, made, written = time.monotonic(), 0, None
    with ThreadPoolExecutor(1, "writer") as behind:
        for chunk in chunks:
            pooled, tokens = extract_chunk(model, eyes, layout, [rows[i] for i in chunk], sites, size)
            if written is not None:
                written.result()  # so that at most one chunk waits, and an error ends the run
            written = behind.submit(writer.put, layout.run, chunk, pooled, tokens)
            made += len(chunk)
            LOG.info("run %s: %d of %d rows, %.0f s", layout.run, chunk.stop, len(rows), time.monotonic() - start)
        if written is not None:
            written.result()
    return made


def extract_chunk(
    model: Model, eyes: Eyes, layout: Dataset, rows: Sequence[Row], sites: Sequence[Site], size: int
) -> tuple[dict[tuple[str, str], Float32[np.ndarray, "row layer d_model"]], dict[str, list[np.ndarray]] | None]:
    """Activations of a chunk, in the order of its rows: pooled per (kind, group), and the names' tokens per kind."""
    shape = (len(rows), len(layout.layers), layout.d_model)
    pooled = {(k, g): np.empty(shape, np.float32) for k in layout.kinds for g in layout.groups}
    tokens: dict[str, list[np.ndarray]] = {k: [np.empty(0)] * len(rows) for k in layout.kinds}
    prompts = [Prompt(r.before, r.name, r.after, seen) for r, seen in zip(rows, eyes.see(rows), strict=True)]
    for index, batch in model.share(prompts, size, sites):
        found = model.run(batch, sites)
        for kind in layout.kinds:
            for group in layout.groups:
                pooled[kind, group][index] = _pooled(found, batch.groups[group], kind, layout.layers)
            if layout.token_counts is not None:
                for i, values in zip(index, _names(found, batch, kind, layout.layers), strict=True):
                    tokens[kind][i] = values
    return pooled, tokens if layout.token_counts is not None else None


def _pooled(
    found: Run, group: Bool[Tensor, "batch seq"], kind: Any, layers: Sequence[int]
) -> Float32[np.ndarray, "batch layer d_model"]:
    """Mean over the group's tokens."""
    weights = group.float() / group.sum(1, keepdim=True)
    parts = [torch.einsum("bs,bsd->bd", weights, found.activations[Site(kind, n)].float()) for n in layers]
    return torch.stack(parts, 1).cpu().numpy()


def _names(found: Run, batch: Batch, kind: Any, layers: Sequence[int]) -> list[np.ndarray]:
    """Per row the name's tokens, (token, layer, d_model)."""
    stacked = [found.activations[Site(kind, n)] for n in layers]
    return [
        torch.stack([values[i, start:end] for values in stacked], 1).float().cpu().numpy()
        for i, (start, end) in enumerate(batch.spans)
    ]


def _sha256(tree: Any) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def _number(*parts: Any) -> int:
    """A seed of its own for every picture and copy, whatever the order."""
    return int(_sha256(parts)[:16], 16)
