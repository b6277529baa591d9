"""Inputs of all cases: the default study's models, questions and pictures, made by its own steps where they are not."""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import torch
from PIL.Image import Image

from twohop.data import open_pictures
from twohop.models import Batch, Model, Picture, Prompt, open_model

BACKBONE = "smollm2-135m"
Question = dict[str, Any]


@dataclass(frozen=True)
class World:
    """The study's inputs."""

    results: Path
    model: Model
    questions: list[Question]
    images: dict[str, Image]
    """By picture id, those that the questions show."""
    pictures: dict[str, Picture]
    quick: bool

    def card(self, name: str) -> Path:
        """Of a prepared model."""
        return self.results / "prepare_model" / name / "card.json"

    def shown(self, questions: Sequence[Question]) -> list[Prompt]:
        """With the picture."""
        return [Prompt(q["before"], None, q["after"], self.pictures[q["picture_id"]]) for q in questions]

    def twins(self, relation: str) -> list[tuple[Question, Question]]:
        """Questions with a corrupted twin, and the twin."""
        of = {q["question_id"]: q for q in self.questions}
        return [(q, of[q["corrupted_id"]]) for q in self.questions if q["corrupted_id"] and q["relation"] == relation]

    def flops(self, tokens: int, logits: int, layers: float | None = None) -> float:
        """Of the products with weights; see `flops`."""
        return flops(self.model, tokens, logits, layers)

    def processed(self, questions: Sequence[Question]) -> dict[str, torch.Tensor]:
        """What the model's processor makes of texts and pictures, as its documentation has it."""
        frame, eyes = self.model.tokens.frame, self.model.eyes
        assert eyes is not None
        texts = [f"{q['before'].rstrip()}{frame.placeholder}{q['after']}" for q in questions]
        images = [self.images[q["picture_id"]] for q in questions]
        settings = {"padding": True, "padding_side": "left", "add_special_tokens": frame.special}
        return dict(eyes.processor(text=texts, images=images, return_tensors="pt", **settings))


def flops(model: Model, tokens: int, logits: int, layers: float | None = None) -> float:
    """Floating-point operations of the products with weights: `tokens` through the layers, `logits` unembedded.

    Attention's products between tokens are left out: below 2 % at these lengths.
    """
    decoder = model.decoder
    per_layer = sum(p.numel() for p in decoder.layers[0].parameters() if p.dim() == 2)
    head = model.net.get_output_embeddings().weight.numel()
    return 2.0 * (tokens * per_layer * (decoder.n_layers if layers is None else layers) + logits * head)


def tokens_once(world: World, questions: Sequence[Question]) -> int:
    """Tokens of the questions' picture runs, where what they begin with alike is counted once."""
    encoded = [world.model.tokens.encode(p) for p in world.shown(questions)]
    heads = {(*e.ids[: e.end], q["picture_id"]): e.end for e, q in zip(encoded, questions, strict=True)}
    root = min(e.start for e in encoded)
    return root + sum(n - root for n in heads.values()) + sum(len(e.ids) - e.end for e in encoded)


def given(model: Model, batch: Batch) -> dict[str, Any]:
    """A batch as the model's own forward takes it."""
    with torch.no_grad():
        embeds = model.embed(batch)
    rest = {"attention_mask": batch.attention_mask, "position_ids": batch.position_ids}
    return {"inputs_embeds": embeds, **rest, **batch.extra, "use_cache": False, "logits_to_keep": 1}


def set_up(results: Path, model: str) -> None:
    """Make what the cases need by the project's own steps, unless it is there."""
    files = [f"prepare_model/{name}/card.json" for name in (model, BACKBONE)]
    files += [
        f"build_questions/{model}/questions.parquet",
        "fetch_images/manifest.parquet",
        "fetch_images/pictures.zip",
    ]
    files.append(f"extract_activations/{model}/activations.h5")
    missing = [name for name in files if not (results / name).exists()]
    if not missing:
        return
    if results != Path("results"):
        sys.exit(f"{results / missing[0]} is missing; without --results it is made")
    subprocess.run(["snakemake", "--cores", "2", *(f"results/{name}" for name in missing)], check=True)


def open_world(results: Path, name: str, quick: bool) -> World:
    """Open the model, encode the pictures that questions show."""
    model = open_model(results / "prepare_model" / name / "card.json")
    questions = pl.read_parquet(results / "build_questions" / name / "questions.parquet")
    manifest = pl.read_parquet(results / "fetch_images" / "manifest.parquet")
    files = dict(manifest.select("picture_id", "file").iter_rows())
    ids = questions["picture_id"].unique(maintain_order=True).to_list()
    read = open_pictures(results / "fetch_images" / "pictures.zip")
    images = {i: read(files[i]) for i in ids}
    features = model.encode_pictures(list(images.values()))
    return World(results, model, questions.to_dicts(), images, dict(zip(ids, features, strict=True)), quick)
