"""All layers, three sites, at the token groups, to a finished HDF5 file; beside forward passes that keep nothing."""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import h5py
import numpy as np
import polars as pl
import torch

from speed.measure import Bar, Case, Disagreement
from speed.world import World, given, tokens_once
from twohop.models import Batch, Model, Picture, Prompt
from twohop.steps import extract_activations as step
from twohop.store import ActivationReader, ActivationWriter, Dataset

KINDS = ("resid_post", "mlp_write", "attn_write")
SIZE = 32
ROUNDING = 2**-8
"""Of bfloat16, in which the file holds its numbers, relative to the largest of them."""
Found = dict[tuple[str, str], np.ndarray]
"""(kind, group) -> (row, layer, d_model)."""


class Seen:
    """Pictures that were encoded before."""

    def __init__(self, pictures: dict[str, Picture]) -> None:
        self.pictures = pictures

    def see(self, rows: Sequence[step.Row]) -> list[Picture | None]:
        """As the step's `Eyes`."""
        return [self.pictures[str(r.picture_id)] for r in rows]


def extract(model: Model, rows: Sequence[step.Row], pictures: dict[str, Picture], folder: Path) -> Path:
    """The step's own way, to a finished file."""
    ids, layers = tuple(r.row_id for r in rows), tuple(range(model.n_layers))
    folder.mkdir(exist_ok=True)
    attributes = dict.fromkeys(("revision", "prompts_sha256"), "-") | {"model": model.name}
    attributes |= {name: {"-": "-"} for name in ("sites", "groups", "versions", "lineage")}
    layout = Dataset("image", ids, KINDS, step.IMAGE_GROUPS, layers, model.d_model)
    writer = ActivationWriter(folder / "activations.h5", folder / "work", attributes, [layout], "bfloat16", SIZE)
    eyes = cast("step.Eyes", Seen(pictures))
    step._extract(writer, model, eyes, layout, rows, writer.missing("image"), SIZE)
    writer.finish()
    return folder / "activations.h5"


def case(world: World) -> Case:
    """The questions' picture runs."""
    model, questions = world.model, world.questions[: 16 if world.quick else 96]
    rows = step.image_rows(pl.DataFrame(questions, infer_schema_length=None))
    chunks = [world.shown(questions[i : i + SIZE]) for i in range(0, len(questions), SIZE)]

    whole, inputs = tempfile.TemporaryDirectory(), [given(model, batch) for _, _, batch in _batches(model, chunks)]

    def ours() -> Path:
        shutil.rmtree(folder := Path(whole.name, "ours"), ignore_errors=True)
        return extract(model, rows, world.pictures, folder)

    @torch.no_grad()
    def forward() -> None:
        for made in inputs:
            model.net(**made)

    def shared() -> None:
        for chunk in chunks:
            for _, batch in model.share(chunk, SIZE):
                model.run(batch)

    @torch.no_grad()
    def nnsight() -> Found:
        from nnsight import NNsight

        net = NNsight(model.net)
        shape = (len(questions), model.n_layers, model.d_model)
        with tempfile.TemporaryDirectory() as folder, h5py.File(Path(folder, "activations.h5"), "w") as file:
            found = {
                (k, g): file.create_dataset(f"{k}/{g}", shape, np.float32) for k in KINDS for g in step.IMAGE_GROUPS
            }
            for start, index, batch in _batches(model, chunks):
                with net.trace(**given(model, batch)):
                    kept = [].save()
                    for layer in net.model.language_model.layers:
                        attention = layer.self_attn.output[0]
                        mlp = layer.mlp.output
                        kept.append((layer.output, mlp, attention))
                for group in step.IMAGE_GROUPS:
                    mask = batch.groups[group].float()
                    weights = mask / mask.sum(1, keepdim=True)
                    for n, layer in enumerate(kept):
                        for kind, values in zip(KINDS, layer, strict=True):
                            pooled = torch.einsum("bs,bsd->bd", weights, values).numpy()
                            for row, i in enumerate(index):
                                found[kind, group][start + i, n] = pooled[row]
            return {key: values[:] for key, values in found.items()}

    return Case(
        "extraction",
        f"{len(questions)} prompts with pictures, {len(KINDS) * model.n_layers} sites, {len(step.IMAGE_GROUPS)} groups",
        {"ours": ours, "bare forward": forward, "bare forward, beginnings shared": shared, "nnsight": nnsight},
        same,
        [Bar("bare forward", 1.05, at_most=True)],
        world.flops(tokens_once(world, questions), 1),
        ["needed: common beginnings once, no logits; ours shares them within a chunk of the file"],
    )


def same(path: Path, b: Found | None) -> str:
    """The file against what was saved; a pass alone has no result."""
    if b is None:
        return "(a pass alone)"
    with ActivationReader(path) as reader:
        depth = len(reader.layers("image", KINDS[0]))
        a = {(k, g): _read(reader, k, g, depth) for k, g in b}
    worst = max(float(np.abs(a[key] - b[key]).max() / np.abs(b[key]).max()) for key in a)
    if not worst <= ROUNDING:
        raise Disagreement(f"activations differ by {worst:.2g} of the largest")
    return f"largest difference {worst:.1e} of the largest value (bfloat16 in the file)"


def _read(reader: ActivationReader, kind: str, group: str, n_layers: int) -> np.ndarray:
    return np.stack([reader.read("image", kind, group, n) for n in range(n_layers)], 1)


def _batches(model: Model, chunks: Sequence[Sequence[Prompt]]) -> list[tuple[int, list[int], Batch]]:
    """The chunks' batches, with the number of the chunk's first row and rows within it."""
    return [(n * SIZE, index, b) for n, chunk in enumerate(chunks) for index, b in model.batches(chunk, SIZE)]
