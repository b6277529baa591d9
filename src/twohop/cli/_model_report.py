"""What `twohop models check` looks at and says: a model by any of its names, its backbone, what the study needs."""

import difflib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from twohop.config import HubRepository, LocalFolder, ModelEntry, ModelSize, Params, load_params, needs, shipped_models
from twohop.config._resources import WIDTHS, WORKS
from twohop.data._hub import HubModel, page, read_small_files
from twohop.errors import ModelError
from twohop.models import (
    Checked,
    Fit,
    cache_root,
    check_folder,
    checked_folder,
    compare,
    is_fetched,
    read_card,
    snapshot_folder,
)

CARD = "results/prepare_model/{}/card.json"
STEPS = [*WORKS, "train_probes"]
"""Steps whose memory depends on the model."""


@dataclass(frozen=True)
class Weights:
    """Where a model's files are: a folder, or a repository of the hub."""

    label: str
    prompt: str = "plain"
    folder: Path | None = None
    repository: str | None = None
    revision: str = "main"
    licence: str | None = None


@dataclass(frozen=True)
class Target:
    """What is to be checked."""

    label: str
    model: Weights
    backbone: Weights | None = None
    same_weights: bool = False
    """Whether the backbone is the model itself, on text alone."""
    is_backbone: bool = False
    """Whether the model is a language model."""


@dataclass(frozen=True)
class Half:
    """One model of the pair, looked at."""

    label: str
    where: str
    checked: Checked
    commit: str | None = None
    gated: bool | None = None
    """None: not asked, the files are on this disk."""
    licence: str | None = None
    base_models: tuple[str, ...] = ()
    download_bytes: int = 0


@dataclass(frozen=True)
class Report:
    """All that `check` says."""

    label: str
    model: Half
    backbone: Half | None
    same_weights: bool
    fit: Fit | None
    memory: Mapping[str, Mapping[str, int]] = field(default_factory=dict[str, Mapping[str, int]])
    """By step: MiB of memory of a job on the CPU, of one that uses a GPU, and of the GPU."""
    disk_bytes: int = 0

    @property
    def faults(self) -> list[str]:
        """Why the study cannot run, a line each."""
        halves = [self.model, *([self.backbone] if self.backbone is not None else [])]
        own = [f"{half.label}: {fault}" for half in halves for fault in half.checked.faults]
        return [*own, *(self.fit.faults if self.fit is not None else ())]

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "faults": self.faults}


def own_params() -> Params | None:
    """The params.yaml of the working directory, if there is one."""
    return load_params() if Path("params.yaml").exists() else None


def find(name: str, revision: str | None, backbone: str | None, prompt: str | None) -> Target:
    """The target that a name, a folder, a card or an id means; a backbone named beside it replaces its own.

    Raises:
        ModelError: it means nothing.
    """
    target = _find(name, revision, prompt)
    if backbone is not None:
        other = _find(backbone, None, prompt)
        target = Target(target.label, target.model, other.model, is_backbone=target.is_backbone)
    return target


def _find(name: str, revision: str | None, prompt: str | None) -> Target:
    path = Path(name)
    params = own_params()
    if name.endswith(".json") and path.is_file():
        card = read_card(path)
        model = Weights(card.name, prompt or card.entry.prompt, checked_folder(card), licence=card.licence)
        return Target(card.name, model, is_backbone=card.role == "backbone")
    if name.startswith((".", "/")) or path.is_dir():
        if not path.is_dir():
            raise ModelError("no such folder", name, "give a folder in the transformers layout")
        return Target(name, Weights(name, prompt or "plain", path), is_backbone=_is_language_model(path))
    if params is not None and name in params.models:
        return _of_params(params, name, prompt)
    if name in shipped_models():
        return _shipped(name, revision, prompt)
    if name.count("/") == 1:
        return Target(name, Weights(name, prompt or "plain", repository=name, revision=revision or "main"))
    known = [*(params.models if params else ()), *shipped_models()]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ModelError(
        f"no model {name}{hint}",
        "command line",
        "give a name that `twohop models list` shows, a folder (./name), a card.json, or owner/name on the hub",
    )


def find_in(params: Params, name: str) -> Target:
    """A model of params, with its backbone."""
    return _of_params(params, name, None)


def _is_language_model(folder: Path) -> bool:
    text = (folder / "config.json").read_text(encoding="utf-8") if (folder / "config.json").is_file() else ""
    return "vision_config" not in text and "CausalLM" in text


def _of_params(params: Params, name: str, prompt: str | None) -> Target:
    entry = params.models[name]
    model = _weights(name, entry, prompt)
    if entry.backbone is None:
        return Target(name, model, is_backbone=True)
    other = params.models[entry.backbone]
    if other.same_weights_as == name:
        return Target(name, model, same_weights=True)
    return Target(name, model, _weights(entry.backbone, other, prompt))


def _weights(name: str, entry: ModelEntry, prompt: str | None) -> Weights:
    source, prompt = entry.source, prompt or entry.prompt
    if isinstance(source, LocalFolder):
        return Weights(name, prompt, Path(source.path), licence=entry.licence)
    if isinstance(source, HubRepository):
        folder = snapshot_folder(cache_root(), source)
        if is_fetched(folder):
            return Weights(name, prompt, folder, source.id, source.revision, entry.licence)
        return Weights(name, prompt, None, source.id, source.revision)
    card = Path(CARD.format(name))
    if not card.is_file():
        raise ModelError(
            f"{name} is made here and is not yet made", str(card), f"make it: snakemake --cores all {card}"
        )
    return Weights(name, prompt, checked_folder(read_card(card)), licence=entry.licence)


def _shipped(name: str, revision: str | None, prompt: str | None) -> Target:
    shipped = shipped_models()[name]
    if shipped.vlm is None:
        raise ModelError(
            f"{name} is made here", name, f"write `{name}: {{catalog: {name}}}` in params.yaml; prepare_model makes it"
        )
    asked = prompt or shipped.prompt
    model = Weights(name, asked, None, shipped.vlm, revision or shipped.revision or "main", shipped.licence)
    if shipped.backbone is None:
        return Target(name, model, same_weights=True)
    text = prompt or shipped.backbone_prompt or asked
    return Target(
        name, model, Weights(f"{name}-backbone", text, None, shipped.backbone, shipped.backbone_revision or "main")
    )


def report(target: Target, gpu_mb: int) -> Report:
    """Look at the target and its backbone; only configs, tokenizers and headers are read, or fetched from a hub."""
    params = own_params()
    size_px = params.fetch_images.size_px if params is not None else 224
    with tempfile.TemporaryDirectory(prefix="twohop-check-") as tmp:
        model, folder = _look(target.model, "backbone" if target.is_backbone else "vlm", size_px, Path(tmp) / "model")
        backbone = fit = None
        if target.backbone is not None:
            backbone, other = _look(target.backbone, "backbone", size_px, Path(tmp) / "backbone")
            fit = compare(folder, other, model.checked, backbone.checked)
    halves = [model, *([backbone] if backbone is not None else [])]
    return Report(
        label=target.label,
        model=model,
        backbone=backbone,
        same_weights=target.same_weights,
        fit=fit,
        memory=_memory(params, model.checked, gpu_mb, target.label) if params is not None else {},
        disk_bytes=sum(half.checked.weight_bytes for half in halves),
    )


def _look(weights: Weights, kind: Any, size_px: int, tmp: Path) -> tuple[Half, Path]:
    if weights.folder is not None:
        checked = check_folder(weights.folder, kind, weights.prompt, size_px)
        commit = weights.revision if weights.repository else None
        return Half(weights.label, str(weights.folder), checked, commit, licence=weights.licence), weights.folder
    assert weights.repository is not None
    tmp.mkdir()
    found: HubModel = read_small_files(weights.repository, weights.revision, tmp)
    half = Half(
        label=weights.label,
        where=page(found.id, found.commit),
        checked=check_folder(tmp, kind, weights.prompt, size_px),
        commit=found.commit,
        gated=found.gated,
        licence=found.licence or weights.licence,
        base_models=found.base_models,
        download_bytes=sum(f.bytes for f in found.wanted),
    )
    return half, tmp


def _memory(params: Params, checked: Checked, gpu_mb: int, label: str) -> dict[str, dict[str, int]]:
    shape = checked.shape
    if shape is None or checked.vocab is None or not checked.parameters:
        return {}
    own = params.models.get(label)
    size = ModelSize(
        checked.parameters,
        shape.d_model,
        shape.n_layers,
        checked.vocab,
        checked.n_image_tokens or 0,
        WIDTHS.get(own.loading.dtype) if own is not None else None,
    )
    found: dict[str, dict[str, int]] = {}
    for step in STEPS:
        cpu, gpu = needs(step, params, size), needs(step, params, size, gpu_mb=gpu_mb)
        found[step] = {"cpu_mb": cpu.mem_mb, "job_mb": gpu.mem_mb, "gpus": gpu.gpu}
    return found


# --- for people -------------------------------------------------------------------------------------------------------


def lines(report: Report, gpu_mb: int) -> Iterator[str]:
    """The report as text."""
    yield from _half_lines(report.label, report.model)
    if report.same_weights:
        yield "backbone: the same weights, on text alone"
    if report.backbone is not None:
        yield from _half_lines("backbone", report.backbone)
    if report.fit is not None:
        yield from _fit_lines(report.fit)
    yield f"disk: {_gb(report.disk_bytes)} of weights"
    if report.memory:
        yield f"memory (params.yaml's batches; one GPU of {gpu_mb} MB):"
        yield f"  {'step':20} {'on a CPU':>12} {'with GPUs':>12} {'GPUs':>5}"
        for step, need in report.memory.items():
            yield f"  {step:20} {need['cpu_mb']:>9} MB {need['job_mb']:>9} MB {need['gpus']:>5}"
    else:
        yield "memory: not estimated, without params.yaml here or without the model's sizes"


def _half_lines(label: str, half: Half) -> Iterator[str]:
    checked, shape = half.checked, half.checked.shape
    yield f"{label}: {half.where}"
    if half.commit is not None:
        yield f"  commit      {half.commit}"
    yield f"  family      {checked.family}, {checked.architecture} (transformers {checked.transformers})"
    if shape is not None:
        cross = f" and {len(checked.cross_layers)} that see the picture" if checked.cross_layers else ""
        heads = f"{shape.n_heads} heads ({shape.n_kv_heads} for keys and values)"
        yield f"  text model  {shape.n_layers} layers{cross}, d_model {shape.d_model}, {heads}, vocab {checked.vocab}"
    if checked.kind == "vlm":
        count = "not known" if checked.n_image_tokens is None else checked.n_image_tokens
        yield f"  pictures    token {checked.image_token} ({checked.image_token_id}), {count} of them a picture"
    yield f"  template    {'yes' if checked.chat_template else 'none'}"
    files = f"in {checked.n_files} safetensors file{'' if checked.n_files == 1 else 's'}"
    numbers = f"{checked.parameters / 1e6:.1f} million numbers ({', '.join(checked.dtypes)})"
    yield f"  weights     {numbers}, {_gb(checked.weight_bytes)} {files}"
    access = {None: "on this disk", True: "gated: ask its owner, set HF_TOKEN", False: "open"}[half.gated]
    yield f"  access      {access}; licence: {half.licence or 'not stated'}"
    if half.base_models:
        yield f"  made from   {', '.join(half.base_models)} (says its card)"


def _fit_lines(fit: Fit) -> Iterator[str]:
    if not fit.faults:
        yield f"fit: the same shapes, layer by layer ({fit.n_tensors} tensors)"
    if fit.distances is not None:
        yield "relative distance of the weights, by layer: " + " ".join(f"{d:.3g}" for d in fit.distances)
    elif not fit.faults:
        yield "relative distance of the weights: not known, they are not both on this disk"


def _gb(count: int) -> str:
    return f"{count / 1e9:.2f} GB"
