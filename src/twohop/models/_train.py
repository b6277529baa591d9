"""Training of what an assembled VLM adds to its frozen parts: tower features once, then the recipe's `train`.

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
from twohop.models import _cross, _embedded, _gemma, _mllama, _native, _projector
from twohop.models._card import ModelCard
from twohop.models._frame import find_frame
from twohop.models._model import Model
from twohop.models._prepare import language_folder, tower_folder
from twohop.models._processor import image_token
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
    source = _assembled(entry)
    tower, checkpoint = tower_folder(source.tower, prepare), work / "checkpoint.safetensors"
    if source.recipe == "gemma":
        return _train_gemma(tower, settings, pictures, names, work, progress)
    features = _kept(work / "features.safetensors", lambda: tower_features(tower, pictures))
    if source.recipe == "cross":
        net, processor = _mllama.crossed(language_folder(), tower, settings.cross.layers)
        data = _projector.TrainingSet(features, tuple(names))
        return _cross.train_cross(net, processor.tokenizer, data, cross_plan(settings), checkpoint, progress)
    net, tokenizer = _language_model()
    data = _projector.TrainingSet(features[:, :, 1:], tuple(names))  # without the class token
    parts = net.model, net.lm_head, tokenizer, data
    if source.recipe == "native":
        return _native.train_native(*parts, native_plan(settings), checkpoint, progress)
    return _projector.train(*parts, plan_of(source, settings), checkpoint, progress)


def _train_gemma(
    tower: Path,
    settings: TrainProjector,
    pictures: Sequence[Sequence[Image]],
    names: Sequence[str],
    work: Path,
    progress: Progress | None,
) -> _projector.Trained:
    net, processor = _gemma.gemma(language_folder(_gemma.PACKAGE), tower)
    eyes = net.model.vision_tower
    d_clip = eyes.config.hidden_size // 2
    features = _kept(
        work / "features.safetensors",
        lambda: _features(eyes, processor.image_processor, pictures)[..., d_clip:].contiguous(),
    )
    plan = _projector.TrainingPlan(recipe="caption", seed=settings.seed, **settings.caption.model_dump())
    data = _projector.TrainingSet(features, tuple(names))
    return _gemma.train_gemma(net, processor, data, plan, work / "checkpoint.safetensors", progress)


def _language_model() -> tuple[Any, _projector.Tokenizer]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = language_folder()
    net: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    return net, cast("_projector.Tokenizer", AutoTokenizer.from_pretrained(folder, local_files_only=True))


def plan_of(source: AssembledVlm, settings: TrainProjector) -> _projector.TrainingPlan:
    """The plan of recipe `caption` or `early`."""
    if source.recipe == "caption":
        return _projector.TrainingPlan(recipe="caption", seed=settings.seed, **settings.caption.model_dump())
    return _projector.TrainingPlan(recipe="early", seed=settings.seed, **settings.early.model_dump())


def native_plan(settings: TrainProjector) -> _native.NativePlan:
    """The plan of recipe `native`; its warm-up never compares residuals after a layer."""
    early, own = settings.early, settings.native.model_dump()
    steps = own.pop("warm_up")
    warm_up = _projector.TrainingPlan(
        recipe="early",
        steps=steps,
        batch=early.batch,
        lr=early.lr,
        seed=settings.seed,
        align_every=steps + 1,
        contrast=early.contrast,
    )
    return _native.NativePlan(warm_up=warm_up, seed=settings.seed, **own)


def cross_plan(settings: TrainProjector) -> _cross.CrossPlan:
    """The plan of recipe `cross`."""
    own = settings.cross.model_dump()
    return _cross.CrossPlan(layers=tuple(own.pop("layers")), seed=settings.seed, **own)


def assembled_model(name: str, entry: ModelEntry, prepare: PrepareModel, trained: Mapping[str, Tensor]) -> Model:
    """The model with what was trained, in memory only (to measure it before it is a card's)."""
    source = _assembled(entry)
    tower = tower_folder(source.tower, prepare)
    if source.recipe == "cross":
        net, processor = _mllama.crossed(language_folder(), tower, _mllama.cross_layers_of(trained))
        _mllama.load_trained(net, trained)
        n_image_tokens = 1
    else:
        make = {"native": _native.native, "gemma": _gemma.gemma}.get(source.recipe, _embedded.assembled)
        language = language_folder(_gemma.PACKAGE) if source.recipe == "gemma" else language_folder()
        net, processor = make(language, tower, trained)
        n_image_tokens = (prepare.image_size // _embedded.PATCH_PX) ** 2
    frame = find_frame(processor.tokenizer, processor)
    card = ModelCard.model_construct(
        name=name, role=entry.role, family=net.config.model_type, n_image_tokens=n_image_tokens
    )
    image_id = image_token(net.config, processor, tower)  # Gemma's processor calls another token its image token
    return Model(net, card, Tokens(processor.tokenizer, n_image_tokens, image_id, frame), processor)


def training_facts(
    entry: ModelEntry, trained: Mapping[str, Tensor], names: Sequence[str]
) -> dict[str, dict[str, float]]:
    """What the log says of a training besides loss and recognition.

    Recipe `native`: how far the language model drifted on texts that no training saw (`text`); `cross`: its `gates`.
    """
    recipe = _assembled(entry).recipe
    if recipe == "native":
        return {"text": _native.native_drift(language_folder(), trained, tuple(names))}
    return {"gates": _cross.gates(trained)} if recipe == "cross" else {}


def tower_features(
    tower_dir: Path, pictures: Sequence[Sequence[Image]]
) -> Float[Tensor, "picture copy image_token d_vision"]:
    """Last-layer features of every copy of every picture, float16, the class token first."""
    from transformers import CLIPVisionModel

    tower: Any = CLIPVisionModel.from_pretrained(tower_dir, dtype=torch.float32, local_files_only=True).eval()
    return _features(tower, _embedded.image_processor(tower.config.image_size), pictures)


@torch.no_grad()
def _features(
    tower: Any, processor: Any, pictures: Sequence[Sequence[Image]]
) -> Float[Tensor, "picture copy image_token d_vision"]:
    flat = [copy.convert("RGB") for copies in pictures for copy in copies]
    parts: list[Tensor] = []
    for i in range(0, len(flat), TOWER_BATCH):
        pixels = processor(images=flat[i : i + TOWER_BATCH], return_tensors="pt")["pixel_values"]
        parts.append(tower(pixels).last_hidden_state.half())
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
