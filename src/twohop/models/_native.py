"""Recipe `native`: a model that was taught to see with its language weights open (early fusion, as Gemma-3 or Qwen-VL).

1. Warm-up of the projector alone: image tokens are drawn to the embeddings of the name, as in most steps of recipe
   `early`, which costs no pass through the language model.
2. The projector and low-rank updates of every linear layer of the decoder, together, on captions (cross-entropy of the
   entity's name after a caption prompt, as recipe `caption`) and replay (divergence from the frozen language model's
   own next-token distributions on plain texts, so that it keeps its words).

The file holds the projector in float32 and the updates in float16; they are merged when the model is put together.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from twohop.models import _embedded, _lora, _projector
from twohop.models._projector import Tokenizer, Trained, TrainingPlan, TrainingSet
from twohop.models._replay import Replay, divergence, held_out_texts, text_drift, training_texts
from twohop.models._training import Progress, Schedule, fit


@dataclass(frozen=True)
class NativePlan:
    """Everything that a training of recipe `native` depends on besides its data."""

    warm_up: TrainingPlan
    """Of the projector alone; recipe `early`, at the first layer's input."""
    steps: int
    batch: int
    lr: float
    rank: int
    replay_batch: int
    """Texts per step."""
    replay: float
    """Weight of their divergence."""
    seed: int


class _Trained(nn.Module):
    def __init__(self, projector: nn.Module, adapters: _lora.Adapters) -> None:
        super().__init__()
        self.projector, self.adapters = projector, adapters


def train_native(
    decoder: nn.Module,
    lm_head: nn.Module,
    tokenizer: Tokenizer,
    data: TrainingSet,
    plan: NativePlan,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> Trained:
    """Train projector and low-rank updates; the language model itself is not changed.

    Args:
        decoder: a Llama-style decoder (`.layers`, `.norm`, `.embed_tokens`), float32.
        lm_head: its output matrix.
        tokenizer: its tokenizer; no special tokens are added.
        data: features and names.
        plan: sizes, weights, seed.
        checkpoint: file that is rewritten every few steps; a training with the same plan goes on from it.
        progress: called with (step, loss) after every step.

    Raises:
        DataError: the loss stops being a finite number.
    """
    for part in (decoder, lm_head):
        part.requires_grad_(False)
    mean, std = _projector.moments(data.features)
    projector = _warmed_up(decoder, lm_head, tokenizer, data, plan, checkpoint)
    module = _Trained(projector, _lora.Adapters(decoder, plan.rank, plan.seed))
    caption = _projector.Caption(decoder, lm_head, tokenizer, data.names)
    replay = Replay.of(tokenizer, training_texts(data.names))

    def loss_of(step: int) -> Tensor:
        pictures, features = _projector.drawn(data, plan.batch, plan.seed, step)
        draw = torch.Generator().manual_seed(plan.seed * 1_000_003 + step)
        rows = torch.randint(len(replay.ids), (plan.replay_batch,), generator=draw)
        with torch.no_grad():
            before = replay.logits(decoder, lm_head, rows)
        with module.adapters.attached(decoder):
            drift = divergence(before, replay.logits(decoder, lm_head, rows)).mean()
            return caption(projector((features - mean) / std), pictures, step) + plan.replay * drift

    losses = fit(module, Schedule(plan.steps, plan.lr), plan, loss_of, checkpoint, progress)
    return Trained(_file(projector, module.adapters, mean, std), losses)


def _warmed_up(
    decoder: nn.Module,
    lm_head: nn.Module,
    tokenizer: Tokenizer,
    data: TrainingSet,
    plan: NativePlan,
    checkpoint: Path | None,
) -> _projector.Projector:
    """The projector after the warm-up, for standardised features."""
    mean, std = _projector.moments(data.features)
    own = None if checkpoint is None else checkpoint.with_name(f"warm_up-{checkpoint.name}")
    warm = _projector.train(decoder, lm_head, tokenizer, data, plan.warm_up, own).projector
    projector = _projector.Projector(data.features.shape[-1], warm["linear_2.weight"].shape[0])
    weight = warm["linear_1.weight"] * std
    bias = warm["linear_1.bias"] + warm["linear_1.weight"] @ mean
    projector.load_state_dict({**warm, "linear_1.weight": weight, "linear_1.bias": bias})
    return projector


def _file(projector: _projector.Projector, adapters: _lora.Adapters, mean: Tensor, std: Tensor) -> dict[str, Tensor]:
    updates = {name: value.half() for name, value in adapters.tensors().items()}
    return {**_projector.folded(projector, mean, std), **updates}


def split(trained: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The projector and the low-rank updates in a file of recipe `native`."""
    updates = {name: value for name, value in trained.items() if name.startswith(_lora.PREFIX)}
    return {name: value for name, value in trained.items() if name not in updates}, updates


def assemble_native(backbone_dir: Path, tower_dir: Path, trained: Mapping[str, Tensor], out: Path) -> None:
    """`_embedded.assemble_llava` with the updates merged into the decoder.

    Raises:
        ModelError: the parts do not fit together.
    """
    model, processor = native(backbone_dir, tower_dir, trained)
    with _embedded.new_folder(out) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)


def native(backbone_dir: Path, tower_dir: Path, trained: Mapping[str, Tensor]) -> tuple[Any, Any]:
    """The model and the processor that `assemble_native` writes.

    Raises:
        ModelError: the parts do not fit together.
    """
    projector, updates = split(trained)
    model, processor = _embedded.assembled(backbone_dir, tower_dir, projector)
    _lora.merge(model.model.language_model, updates)
    return model, processor


def native_drift(backbone_dir: Path, trained: Mapping[str, Tensor], names: tuple[str, ...]) -> dict[str, float]:
    """`text_drift` of the merged decoder on texts that no training saw."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    nets: list[Any] = [
        AutoModelForCausalLM.from_pretrained(backbone_dir, dtype=torch.float32, local_files_only=True).eval()
        for _ in range(2)
    ]
    tokenizer = cast("Tokenizer", AutoTokenizer.from_pretrained(backbone_dir, local_files_only=True))
    _lora.merge(nets[1].model, split(trained)[1])
    return text_drift(nets[0].model, nets[1].model, nets[0].lm_head, tokenizer, held_out_texts(names))
