"""From a catalogue entry to a local folder of safetensors, and from a folder to its card.

The folder is a cache: it can be made again from the card alone, by the same recipe, and must then have the same bytes.
"""

import hashlib
import importlib.metadata
import json
import os
import shutil
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from safetensors import safe_open
from transformers.utils import logging

from twohop.config import (
    AssembledVlm,
    HubRepository,
    LocalFolder,
    ModelEntry,
    PackageBackbone,
    PrepareModel,
    RandomModel,
)
from twohop.errors import ModelError
from twohop.models import _embedded, _gemma, _mllama, _native
from twohop.models._card import FileRecord, ModelCard
from twohop.models._check import check_folder
from twohop.models._fetch import fetched
from twohop.models._frame import count_image_tokens, find_frame
from twohop.models._processor import cross_layers, image_token, load_processor, read_config, sees
from twohop.models._random import build_random

CACHE_VARIABLE = "TWOHOP_CACHE"
LIBRARIES = ("gguf", "onnx", "safetensors", "tokenizers", "torch", "transformers")
"""Libraries whose version can change the bytes that a recipe writes."""
RECIPES = (
    "_embedded.py",
    "_gemma.py",
    "_lora.py",
    "_mllama.py",
    "_native.py",
    "_random.py",
    "_random_configs.py",
    "_random_families.py",
    "_random_languages.py",
    "_random_processors.py",
    "_random_tokens.py",
)
"""Modules that hold the recipes; their text is part of a folder's fingerprint."""
RANDOM_TOWER_SEED = 0
"""Seed of the control's tower; its projector was trained for these weights."""
KEPT_SUFFIXES = (".json", ".safetensors", ".jinja", ".model", ".txt")
"""Files taken from a local folder; never code or pickles."""


def cache_root() -> Path:
    """Where model folders lie: `$TWOHOP_CACHE/models`, or `.cache/twohop/models`."""
    return Path(os.environ.get(CACHE_VARIABLE) or ".cache/twohop") / "models"


def materialise(name: str, entry: ModelEntry, prepare: PrepareModel, picture_px: int = 224) -> ModelCard:
    """Make the entry's folder unless it is there, check it, and write down what it is.

    Args:
        name: catalogue name.
        entry: where the weights come from.
        prepare: parameters of the recipes.
        picture_px: side of the study's pictures, which says how many image tokens each of them takes.

    Raises:
        ModelError: a source is missing, is not what its record says, or holds no safetensors.
    """
    sources = _sources(entry)
    folder = _folder_name(name, entry, prepare, sources)
    path = ensure_folder(folder, entry, prepare)
    return _card(name, entry, prepare, folder, sources, path, picture_px)


def ensure_folder(folder: str, entry: ModelEntry, prepare: PrepareModel) -> Path:
    """The entry's folder in the cache, made under a lock when absent; its files match their records."""
    path = cache_root() / folder
    with built(path) as tmp:
        if tmp is not None:
            _build(tmp, entry, prepare)
    check_files(path, read_records(path))
    return path


@contextmanager
def built(path: Path) -> Generator[Path | None]:
    """A temporary folder to fill, renamed onto `path` with its file records beside it; None when it is there already.

    One process builds, others wait (promise K4); what a killed build left behind is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f"{path.name}.lock")):
        if path.is_dir() and _records_path(path).is_file():
            yield None
            return
        tmp = path.with_name(f".{path.name}.tmp")
        for stale in (tmp, path):
            shutil.rmtree(stale, ignore_errors=True)
        tmp.mkdir()
        try:
            yield tmp
            records = {k: v.model_dump() for k, v in file_records(tmp).items()}
            _records_path(path).write_text(json.dumps(records, indent=1, sort_keys=True), encoding="utf-8")
            tmp.rename(path)
        finally:
            shutil.rmtree(tmp, ignore_errors=True)


def _records_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.files.json")


def read_records(path: Path) -> dict[str, FileRecord]:
    """What was written when the folder was made."""
    tree = json.loads(_records_path(path).read_text(encoding="utf-8"))
    return {name: FileRecord.model_validate(value) for name, value in tree.items()}


def file_records(path: Path) -> dict[str, FileRecord]:
    """Size and sha256 of every file of a folder."""
    files = sorted(p for p in path.rglob("*") if p.is_file())
    return {str(p.relative_to(path)): FileRecord(sha256=_sha256(p), bytes=p.stat().st_size) for p in files}


def check_files(path: Path, records: Mapping[str, FileRecord]) -> None:
    """Compare a folder with its records (promise M5).

    Raises:
        ModelError: a file is missing, altered or not on record; it is named.
    """
    todo = f"remove the folder {path}: it is made again from its recipe"
    have = {str(p.relative_to(path)) for p in path.rglob("*") if p.is_file()}
    for name in sorted(have | set(records)):
        if name not in have:
            raise ModelError("a file of the model is missing", str(path / name), todo)
        if name not in records:
            raise ModelError("a file that is not on the model's record", str(path / name), todo)
        record = records[name]
        if (path / name).stat().st_size != record.bytes or _sha256(path / name) != record.sha256:
            raise ModelError("a file of the model was altered (sha256)", str(path / name), todo)


def _sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


# --- recipes ----------------------------------------------------------------------------------------------------------


def _build(tmp: Path, entry: ModelEntry, prepare: PrepareModel) -> None:
    logging.disable_progress_bar()  # it would fill the job's log
    source = entry.source
    if isinstance(source, RandomModel):
        build_random(tmp, source, entry.family, entry.role, prepare.image_size)
    elif isinstance(source, LocalFolder):
        _copy_local(Path(source.path), tmp)
        _check_foreign(tmp, entry, source.path)
    elif isinstance(source, HubRepository):
        _copy_hub(source, tmp)
        _check_foreign(tmp, entry, f"{source.id} at {source.revision}")
    else:
        _build_embedded(tmp, source, prepare)


def _build_embedded(tmp: Path, source: PackageBackbone | AssembledVlm, prepare: PrepareModel) -> None:
    if isinstance(source, PackageBackbone):
        _copy_files(language_folder(source.package), tmp)
        return
    language = language_folder(_gemma.PACKAGE) if source.recipe == "gemma" else language_folder()
    projector = _embedded.read_projector(Path(source.projector))
    others = {"native": _native.assemble_native, "cross": _mllama.assemble_cross, "gemma": _gemma.assemble_gemma}
    assemble = others.get(source.recipe, _embedded.assemble_llava)
    assemble(language, tower_folder(source.tower, prepare), projector, tmp)


def language_folder(package: str = _embedded.BACKBONE.package) -> Path:
    """A package's language model as a plain folder; converted once and shared by all entries that use it."""
    if package == _gemma.PACKAGE:
        return _part("gemma", {"payload": _gemma.WHOLE}, _gemma.convert_gemma)
    return _part("language", {"payload": _embedded.BACKBONE.sha256}, _embedded.convert_backbone)


def tower_folder(tower: str, prepare: PrepareModel) -> Path:
    """A vision tower as a plain folder: `clip-b16`, or `random` of the same shape."""
    seed = RANDOM_TOWER_SEED if tower == "random" else None
    payload = _embedded.TOWER.sha256 if seed is None else seed
    return _part(
        f"tower-{tower}",
        {"payload": payload, "prepare": prepare.model_dump(mode="json")},
        lambda out: _embedded.convert_tower(out, prepare.image_size, prepare.tower_layers, seed),
    )


def _part(name: str, made_from: Mapping[str, Any], make: Callable[[Path], None]) -> Path:
    key = _digest({**made_from, "recipes": _recipe_digest(), "versions": _versions()})
    path = cache_root() / "parts" / f"{name}-{key[:16]}"
    with built(path) as tmp:
        if tmp is not None:
            make(tmp)
    check_files(path, read_records(path))
    return path


def _copy_local(folder: Path, tmp: Path) -> None:
    _copy_files(folder, tmp, _local_files(folder))


def _check_foreign(tmp: Path, entry: ModelEntry, where: str) -> None:
    """Whether a model that was not made here can be studied, before a weight is loaded."""
    found = check_folder(tmp, "backbone" if entry.role == "backbone" else "vlm", entry.prompt)
    _same_family(found.family, entry, where)
    if found.faults:
        raise ModelError("\n".join(found.faults), where, "see docs/models.md, What is checked")


def _copy_hub(source: HubRepository, tmp: Path) -> None:
    """The downloaded folder's files, compared with what the hub said of them."""
    folder = fetched(cache_root(), source)
    check_files(folder, read_records(folder))
    _copy_local(folder, tmp)


def _copy_files(folder: Path, tmp: Path, names: list[str] | None = None) -> None:
    """Hard links where the disk can, copies where not."""
    for name in names if names is not None else sorted(p.name for p in folder.iterdir() if p.is_file()):
        try:
            os.link(folder / name, tmp / name)
        except OSError:
            shutil.copyfile(folder / name, tmp / name)


def _local_files(folder: Path) -> list[str]:
    """Files to take from a local transformers folder (promise M2).

    Raises:
        ModelError: no config, no safetensors, or a shard of the index is missing.
    """
    if not (folder / "config.json").is_file():
        raise ModelError("no config.json", str(folder), "give a folder in the transformers layout")
    names = sorted(p.name for p in folder.iterdir() if p.is_file() and p.suffix in KEPT_SUFFIXES)
    if not any(n.endswith(".safetensors") for n in names):
        others = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".pkl", ".gguf"))
        found = f"; found {', '.join(others)}, which may run code when loaded" if others else ""
        raise ModelError(f"no safetensors file{found}", str(folder), "convert the weights to safetensors first")
    for index in (n for n in names if n.endswith(".safetensors.index.json")):
        shards = set(json.loads((folder / index).read_text(encoding="utf-8"))["weight_map"].values())
        missing = sorted(shards - set(names))
        if missing:
            raise ModelError(f"missing weight file(s): {', '.join(missing)}", str(folder), "download the model again")
    return names


# --- identity ---------------------------------------------------------------------------------------------------------


def _sources(entry: ModelEntry) -> dict[str, str]:
    """sha256 of what goes into the recipe."""
    source = entry.source
    if isinstance(source, RandomModel):
        return {}
    if isinstance(source, LocalFolder):
        folder = Path(source.path)
        return {name: _sha256(folder / name) for name in _local_files(folder)}
    if isinstance(source, HubRepository):
        return {source.id: source.revision}
    sources = _language_sources(source)
    if isinstance(source, AssembledVlm):
        projector = Path(source.projector)
        if not projector.is_file():
            raise ModelError("no projector", str(projector), "train it: snakemake train_projectors")
        sources["projector"] = _sha256(projector)
        if source.tower != "random":
            sources[_embedded.TOWER.file] = _embedded.TOWER.sha256
    return sources


def _language_sources(source: PackageBackbone | AssembledVlm) -> dict[str, str]:
    gemma = source.package == _gemma.PACKAGE if isinstance(source, PackageBackbone) else source.recipe == "gemma"
    return {_gemma.FILE: _gemma.WHOLE} if gemma else {_embedded.BACKBONE.file: _embedded.BACKBONE.sha256}


def _folder_name(name: str, entry: ModelEntry, prepare: PrepareModel, sources: Mapping[str, str]) -> str:
    made_from = {
        "entry": entry.model_dump(mode="json", include={"role", "family", "source"}),
        "prepare": prepare.model_dump(mode="json"),
        "sources": dict(sources),
        "recipes": _recipe_digest(),
        "versions": _versions(),
    }
    return f"{name}-{_digest(made_from)[:16]}"


def _digest(tree: Any) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def _recipe_digest() -> str:
    here = Path(__file__).parent
    return _digest({name: _sha256(here / name) for name in RECIPES})


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in LIBRARIES}


def _card(
    name: str,
    entry: ModelEntry,
    prepare: PrepareModel,
    folder: str,
    sources: dict[str, str],
    path: Path,
    picture_px: int,
) -> ModelCard:
    """What the folder's config and weight headers say."""
    config = read_config(path)
    family = _family(config, entry, path)
    text: Any = config.get_text_config()
    is_vlm = entry.role != "backbone"
    seen = _seen(config, path, picture_px) if is_vlm else Seen(0, None, None, None)
    crossed = cross_layers(text)
    return ModelCard(
        name=name,
        role=entry.role,
        family=family,
        backbone=entry.backbone,
        licence=entry.licence,
        entry=entry,
        prepare=prepare,
        folder=folder,
        sources=sources,
        architecture=str((config.architectures or [type(config).__name__])[0]),
        n_layers=int(text.num_hidden_layers),
        d_model=int(text.hidden_size),
        n_heads=int(text.num_attention_heads),
        vocab=int(text.vocab_size),
        parameters=_parameters(path),
        text_layers=[i for i in range(int(text.num_hidden_layers)) if i not in crossed],
        n_image_tokens=seen.n_tokens,
        picture_px=picture_px if is_vlm else None,
        image_size=seen.image_size,
        image_token_id=seen.token_id,
        image_processor=seen.processor,
        files=read_records(path),
        versions=_versions(),
    )


def _family(config: Any, entry: ModelEntry, path: Path) -> str:
    return _same_family(str(config.model_type), entry, str(path))


def _same_family(model_type: str, entry: ModelEntry, where: str) -> str:
    model_type = model_type.removesuffix("_text")
    if entry.family is not None and model_type != entry.family.removesuffix("_text"):
        raise ModelError(
            f"the folder holds a {model_type} model, the catalogue says {entry.family}",
            where,
            "correct the entry's family in params.yaml",
        )
    return model_type


@dataclass(frozen=True)
class Seen:
    """What a card says about pictures."""

    n_tokens: int
    image_size: int | None
    token_id: int | None
    processor: str | None


def _seen(config: Any, path: Path, picture_px: int) -> Seen:
    """How a picture of the study's size enters a prompt; counted in what the real processor makes of one.

    Raises:
        ModelError: no vision tower, no image token, or the processor fails.
    """
    if not sees(config):
        raise ModelError("a vision-language model without a vision tower", str(path), "check the entry's role")
    processor = load_processor(path)
    token = image_token(config, processor, path)
    placeholder = find_frame(processor.tokenizer, processor).placeholder
    count = count_image_tokens(processor, placeholder, token, picture_px)
    if not count:
        raise ModelError("a picture takes no image token", str(path), "the processor's files do not fit the model")
    size = getattr(config.vision_config, "image_size", None)
    side = int(size) if isinstance(size, int) else None
    return Seen(count, side, token, type(processor.image_processor).__name__)


def _parameters(path: Path) -> int:
    """Numbers in the weight files, from their headers."""
    total = 0
    for file in sorted(path.glob("*.safetensors")):
        with safe_open(file, "pt") as f:
            for key in f.keys():  # noqa: SIM118
                size = 1
                for n in f.get_slice(key).get_shape():
                    size *= int(n)
                total += size
    return total
