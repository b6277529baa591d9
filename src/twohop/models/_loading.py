"""Putting weights into memory: number format, devices, offload; refused with the numbers when they cannot fit."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.utils import logging

from twohop.config import Loading
from twohop.errors import ModelError
from twohop.models._card import ModelCard
from twohop.models._processor import SAFE, read_config, sees

GB = 1e9
OVERHEAD = 1.05
"""Weights in memory over parameters x bytes: buffers, and the allocator's rounding."""
BYTES: Mapping[torch.dtype, int] = {torch.float32: 4, torch.bfloat16: 2, torch.float16: 2}
_UNITS = {"KB": 1e3, "MB": 1e6, "GB": 1e9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_CGROUP = Path("/sys/fs/cgroup/memory.max")


def dtype_of(loading: Loading) -> torch.dtype:
    """Number format in memory: bfloat16 on CUDA and float32 on a CPU, unless the entry says so."""
    if loading.dtype != "auto":
        return getattr(torch, loading.dtype)
    return torch.bfloat16 if torch.cuda.is_available() else torch.float32


def load_net(folder: Path, card: ModelCard, offload: Path) -> Any:
    """The weights of a prepared folder, ready to run.

    Args:
        folder: the prepared folder; its files have been checked.
        card: what the folder is.
        offload: where layers go that fit nowhere, if the entry allows it.

    Raises:
        ModelError: they do not fit into the memory that is free, or a device of the map is not there.
    """
    loading = card.entry.loading
    dtype = dtype_of(loading)
    check_memory(card, dtype)
    loader: Any = AutoModelForImageTextToText if sees(read_config(folder)) else AutoModelForCausalLM
    logging.disable_progress_bar()
    settings: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, **SAFE}
    if loading.device_map == "one":
        net: Any = loader.from_pretrained(folder, **settings)
        return net.to("cuda" if torch.cuda.is_available() else "cpu")
    settings |= {"device_map": loading.device_map, "max_memory": _per_device(loading.max_memory)}
    if loading.offload:
        settings["offload_folder"] = str(offload)
    try:
        return loader.from_pretrained(folder, **settings)
    except (ValueError, RuntimeError, AssertionError) as error:
        raise ModelError(
            f"cannot spread the model over devices: {str(error).strip().splitlines()[0]}",
            f"models.{card.name}.loading",
            "correct device_map and max_memory, or allow offload: true",
        ) from error


def _per_device(given: Mapping[str, str]) -> dict[int | str, str] | None:
    return {int(k) if k.isdigit() else k: v for k, v in given.items()} or None


def weight_bytes(card: ModelCard, dtype: torch.dtype) -> float:
    """What the weights take in memory."""
    return card.parameters * BYTES[dtype] * OVERHEAD


def check_memory(card: ModelCard, dtype: torch.dtype) -> None:
    """Compare what the weights take with what is free.

    Raises:
        ModelError: they do not fit; says both numbers and what would.
    """
    loading, need = card.entry.loading, weight_bytes(card, dtype)
    free, where = free_bytes(loading)
    if need <= free or (loading.offload and loading.device_map != "one"):
        return
    ways = ["loading.offload: true with device_map: auto (slow)", "a machine with more memory"]
    if BYTES[dtype] > 2:
        ways.insert(0, f"loading.dtype: bfloat16 ({need / 2 / GB:.1f} GB)")
    if torch.cuda.device_count() > 1 and loading.device_map == "one":
        ways.insert(0, "loading.device_map: auto, which takes all GPUs")
    name = str(dtype).removeprefix("torch.")
    raise ModelError(
        f"the weights take {need / GB:.2f} GB in {name}, {free / GB:.2f} GB are free {where}",
        f"model {card.name} ({card.parameters:,} parameters)",
        f"use {'; or '.join(ways)}",
    )


def free_bytes(loading: Loading) -> tuple[float, str]:
    """Memory that weights may take, and where."""
    if loading.device_map != "one" and loading.max_memory:
        return math.fsum(_bytes(v) for v in loading.max_memory.values()), "by loading.max_memory"
    if not torch.cuda.is_available():
        return _free_host(), "in this machine's memory"
    devices = range(torch.cuda.device_count()) if loading.device_map != "one" else [torch.cuda.current_device()]
    free = math.fsum(torch.cuda.mem_get_info(i)[0] for i in devices)
    if loading.device_map == "one":
        return free, "on the GPU"
    return free + _free_host(), "on the GPUs and in this machine's memory"


def _free_host() -> float:
    """Free memory, no more than a container's limit leaves."""
    free = float(psutil.virtual_memory().available)
    try:
        limit = _CGROUP.read_text(encoding="ascii").strip()
    except OSError:
        return free
    return min(free, float(limit) - psutil.Process().memory_info().rss) if limit.isdigit() else free


def _bytes(text: str) -> float:
    """`20GiB` in bytes.

    Raises:
        ModelError: no number with a unit.
    """
    unit = text.strip().lstrip("0123456789. ").upper()
    number = text.strip()[: len(text.strip()) - len(unit)]
    try:
        return float(number) * _UNITS[unit]
    except (ValueError, KeyError):
        raise ModelError(
            f"no amount of memory: {text!r}", "loading.max_memory", f"a number and one of {', '.join(_UNITS)}"
        ) from None
