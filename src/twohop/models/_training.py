"""The frame of all training recipes: AdamW, warm-up and cosine, gradient clipping, checkpoints that a kill survives.

The only file this module touches is the checkpoint.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from twohop.errors import DataError

WARM_UP = 0.05
"""Share of the steps with a rising learning rate (LLaVA's stage 1 takes 0.03)."""
CLIP_NORM = 1.0
"""Largest gradient norm of a step."""
CHECKPOINT_EVERY = 25
"""Steps between two checkpoints."""
Progress = Callable[[int, float], None]


@dataclass(frozen=True)
class Schedule:
    """What the frame needs of a plan."""

    steps: int
    lr: float


def fit(
    module: nn.Module,
    schedule: Schedule,
    plan: Any,
    loss_of: Callable[[int], Tensor],
    checkpoint: Path | None = None,
    progress: Progress | None = None,
    faster: Mapping[str, float] | None = None,
) -> list[float]:
    """Train a module in place; the loss at every step.

    Args:
        module: all of its parameters are trained.
        schedule: steps and peak learning rate.
        plan: a dataclass that says everything the training depends on; a checkpoint of another plan is not used.
        loss_of: the loss at a step; must depend on the step and the module alone.
        checkpoint: file that is rewritten every few steps; a training with the same plan goes on from it.
        progress: called with (step, loss) after every step.
        faster: parameters whose names end so learn by this factor faster.

    Raises:
        DataError: the loss stops being a finite number.
    """
    optimizer = torch.optim.AdamW(_groups(module, faster or {}), lr=schedule.lr, weight_decay=0.0)
    losses = _resume(checkpoint, plan, module, optimizer)
    for step in range(len(losses), schedule.steps):
        losses.append(_update(loss_of(step), module, optimizer, schedule, step))
        if progress is not None:
            progress(step, losses[-1])
        if checkpoint is not None and (step + 1) % CHECKPOINT_EVERY == 0:
            _save(checkpoint, plan, module, optimizer, losses)
    return losses


def _groups(module: nn.Module, faster: Mapping[str, float]) -> Iterable[dict[str, Any]]:
    """One group per factor, the slowest first."""
    by_factor: dict[float, list[nn.Parameter]] = {1.0: []}
    for name, parameter in module.named_parameters():
        factor = next((f for end, f in faster.items() if name.endswith(end)), 1.0)
        by_factor.setdefault(factor, []).append(parameter)
    return [{"params": parameters, "factor": factor} for factor, parameters in by_factor.items()]


def _update(loss: Tensor, module: nn.Module, optimizer: torch.optim.Optimizer, schedule: Schedule, step: int) -> float:
    value = float(loss.detach())
    if not math.isfinite(value):
        raise DataError(f"the loss is {value} at step {step}", "train_projector", "lower train_projector.lr")
    optimizer.zero_grad()
    loss.backward()  # pyright: ignore[reportUnknownMemberType]
    nn.utils.clip_grad_norm_(module.parameters(), CLIP_NORM)
    for group in optimizer.param_groups:
        group["lr"] = schedule.lr * group["factor"] * rate(step, schedule.steps)
    optimizer.step()
    return value


def rate(step: int, steps: int) -> float:
    """Linear warm-up, then cosine to zero; a factor in (0, 1]."""
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _save(path: Path, plan: Any, module: nn.Module, optimizer: torch.optim.Optimizer, losses: list[float]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = path.with_name(f".{path.name}.tmp")
    tensors = {f"module.{name}": value.detach() for name, value in module.named_parameters()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in moments.items()}
    save_file(tensors, tmp, metadata={"plan": _text(plan), "losses": json.dumps(losses)})
    tmp.replace(path)


def _text(plan: Any) -> str:
    return json.dumps(asdict(plan), sort_keys=True)


def _resume(path: Path | None, plan: Any, module: nn.Module, optimizer: torch.optim.Optimizer) -> list[float]:
    """Losses so far; loads the checkpoint when it belongs to this plan."""
    if path is None or not path.exists():
        return []
    with safe_open(path, "pt") as f:
        saved: dict[str, str] = f.metadata()
        if saved["plan"] != _text(plan):
            return []
        tensors: dict[str, Tensor] = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118 (no mapping)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(tensors[f"module.{name}"])
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in below("optimizer.", tensors).items():
        index, _, key = name.partition(".")
        moments.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    return list(json.loads(saved["losses"]))


def below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names start so, without that."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
