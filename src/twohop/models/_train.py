"""Training of an assembled VLM's projector on pictures: tower features once, then `_projector.train`.

Only frozen parts of the model cache are read; the projector and its losses are returned, nothing is installed.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from PIL.Image import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from twohop.config import AssembledVlm, ModelEntry, PrepareModel, TrainProjector
from twohop.errors import ModelError
from twohop.models import _embedded, _projector
from twohop.models._card import ModelCard
from twohop.models._frame import find_frame
from twohop.models._model import Model
from twohop.models._prepare import language_folder, tower_folder
from twohop.models._prompts import Tokens

TOWER_BATCH = 64
"""Pictures that go through the tower at once; bounds memory."""
Progress = Callable[[int, float], None]


def train_assembled(
    entry: ModelEntry,
    prepare: PrepareModel,
    settings: TrainProjector,
    pictures: Sequence[Sequence[Image]],
    names: Sequence[str],
    work: Path,
    progress: Progress | None = None,
) -> _projector.Trained:
    """Train the projector of a catalogue entry.

    Args:
        entry: an entry with an `assembled` source.
        prepare: image size and depth of the tower.
        settings: recipes, seed.
        pictures: per training picture its copies, the plain one first, equally many of each.
        names: per training picture the name of what it shows.
        work: folder for features and checkpoint; a killed training goes on from there.
        progress: called with (step, loss).

    Raises:
        ModelError: the entry has no projector to train.
        DataError: names and pictures do not fit, or the loss diverges.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = _assembled(entry)
    features = _kept(
        work / "features.safetensors", lambda: tower_features(tower_folder(source.tower, prepare), pictures)
    )
    folder = language_folder()
    net: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    tokenizer = cast("_projector.Tokenizer", AutoTokenizer.from_pretrained(folder, local_files_only=True))
    data = _projector.TrainingSet(features, tuple(names))
    return _projector.train(
        net.model, net.lm_head, tokenizer, data, plan_of(source, settings), work / "checkpoint.safetensors", progress
    )


def plan_of(source: AssembledVlm, settings: TrainProjector) -> _projector.TrainingPlan:
    """The plan of a source's recipe."""
    recipe = settings.caption if source.recipe == "caption" else settings.early
    return _projector.TrainingPlan(recipe=source.recipe, seed=settings.seed, **recipe.model_dump())


def assembled_model(name: str, entry: ModelEntry, prepare: PrepareModel, projector: Mapping[str, Tensor]) -> Model:
    """The model with this projector, in memory only (to measure a projector before it is a card's)."""
    source = _assembled(entry)
    net, processor = _embedded.assembled(language_folder(), tower_folder(source.tower, prepare), projector)
    n_image_tokens = (prepare.image_size // _embedded.PATCH_PX) ** 2
    card = ModelCard.model_construct(name=name, role=entry.role, family=entry.family, n_image_tokens=n_image_tokens)
    frame = find_frame(processor.tokenizer, processor)
    tokens = Tokens(processor.tokenizer, n_image_tokens, processor.image_token_id, frame)
    return Model(net, card, tokens, processor)


@torch.no_grad()
def tower_features(
    tower_dir: Path, pictures: Sequence[Sequence[Image]]
) -> Float[Tensor, "picture copy image_token d_vision"]:
    """Last-layer patch features of every copy of every picture, float16 (class token left out)."""
    from transformers import CLIPVisionModel

    tower: Any = CLIPVisionModel.from_pretrained(tower_dir, dtype=torch.float32, local_files_only=True).eval()
    processor = _embedded.image_processor(tower.config.image_size)
    flat = [copy.convert("RGB") for copies in pictures for copy in copies]
    parts: list[Tensor] = []
    for i in range(0, len(flat), TOWER_BATCH):
        pixels = processor(images=flat[i : i + TOWER_BATCH], return_tensors="pt")["pixel_values"]
        parts.append(tower(pixels).last_hidden_state[:, 1:].half())
    return torch.cat(parts).unflatten(0, (len(pictures), -1))


def _kept(path: Path, make: Callable[[], Tensor]) -> Tensor:
    """What `make` gives, kept in a file for the next attempt."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        tmp = path.with_name(f".{path.name}.tmp")
        save_file({"features": make()}, tmp)
        tmp.replace(path)
    return load_file(path)["features"]


def _assembled(entry: ModelEntry) -> AssembledVlm:
    if not isinstance(entry.source, AssembledVlm):
        raise ModelError(f"a {entry.source.kind} model has no projector to train", "models", "name an assembled model")
    return entry.source
