"""Measuring: alternating rounds of all ways of a case, ratios of one round's times, and the bound."""

import gc
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

LIBRARIES = ("torch", "transformers", "nnsight", "transformer_lens", "scikit-learn", "h5py", "numpy")
CLASSES = {
    "matrix products": ("mm", "addmm", "bmm", "baddbmm", "linear", "matmul", "addmv", "mv", "dot"),
    "attention": ("scaled_dot_product_attention", "_scaled_dot_product_flash_attention_for_cpu", "_softmax", "softmax"),
    "copies": (
        *("copy_", "clone", "cat", "stack", "index", "index_select", "index_put_", "_index_put_impl_", "contiguous"),
        *("_to_copy", "to", "fill_", "zeros", "zero_", "empty", "masked_fill_", "gather", "select_backward", "repeat"),
    ),
    "set-up of tensors": ("view", "reshape", "transpose", "as_strided", "slice", "select", "t", "unsqueeze", "expand"),
}
"""PyTorch's operators by what they do; any other counts as elementwise."""


@dataclass(frozen=True)
class Bar:
    """What a way's time over ours has to reach (or, with `at_most`, what ours over its time may be)."""

    way: str
    goal: float
    at_most: bool = False


@dataclass
class Case:
    """Several ways to one result; the first is ours."""

    name: str
    what: str
    ways: dict[str, Callable[[], Any]]
    same: Callable[[Any, Any], str]
    """Says how near a way's result is to ours; raises where they are not the same."""
    bars: list[Bar]
    flops: float = 0.0
    """Floating-point operations that the question needs; 0: as many as ours does."""
    notes: list[str] = field(default_factory=list[str])


class Disagreement(Exception):
    """Two ways gave different results, so their times say nothing."""


def near(a: Tensor, b: Tensor, most: float) -> str:
    """The largest difference, which may be `most`."""
    worst = float((a.double() - b.double()).abs().max())
    if not worst <= most:
        raise Disagreement(f"results differ by {worst:.2g}, allowed is {most}")
    return f"largest difference {worst:.1e}"


def measured(case: Case, rounds: int) -> Iterator[str]:
    """The case's part of the page.

    Raises:
        Disagreement: a way's result is not ours.
    """
    results = {name: run() for name, run in case.ways.items()}  # this warms up, too
    ours, *others = case.ways
    agreement = {name: case.same(results[ours], results[name]) for name in others}
    del results
    speeds, times = list[float](), {name: list[float]() for name in case.ways}
    for k in range(rounds):
        speeds.append(matmul_speed())
        names = list(case.ways)
        for name in names if k % 2 == 0 else names[::-1]:
            times[name].append(timed(case.ways[name]))
            print(f"{case.name}, round {k + 1}: {name} {times[name][-1]:.2f} s", file=sys.stderr, flush=True)
    load, threads = os.getloadavg()[0], torch.get_num_threads()
    yield f"## {case.name}\n\n{case.what}.\n\n"
    yield f"{rounds} rounds on {datetime.now(UTC):%Y-%m-%d}, {threads} thread(s), load {load:.1f} at the end.\n\n"
    yield "| way | seconds, median | over ours: min | median | max | same result |\n|---|---|---|---|---|---|\n"
    yield f"| **{ours}** | {statistics.median(times[ours]):.3g} | | | | |\n"
    ratios = {n: [t / o for t, o in zip(times[n], times[ours], strict=True)] for n in others}
    for name, found in ratios.items():
        cells = [f"{x:.2f}" for x in (min(found), statistics.median(found), max(found))]
        yield f"| {name} | {statistics.median(times[name]):.3g} | {' | '.join(cells)} | {agreement[name]} |\n"
    yield "\n"
    yield from (_judged(bar, ratios[bar.way]) for bar in case.bars if bar.way in ratios)
    yield _bound(case, statistics.median(s * t for s, t in zip(speeds, times[ours], strict=True)))
    yield "".join(f"- {note}\n" for note in case.notes) + "\n"


def timed(run: Callable[[], Any]) -> float:
    """Seconds of one call; garbage of earlier ones is collected before."""
    gc.collect()
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _judged(bar: Bar, ratios: list[float]) -> str:
    """By the median, rounded against us; the worst round is said, too."""
    if bar.at_most:
        middle, worst = (_up(1 / x) for x in (statistics.median(ratios), min(ratios)))
        met, words = middle <= bar.goal, f"ours over {bar.way}: {middle:.2f} (worst round {worst:.2f}), bar: at most"
    else:
        middle, worst = (-_up(-x) for x in (statistics.median(ratios), min(ratios)))
        met, words = middle >= bar.goal, f"{bar.way} over ours: {middle:.2f} (worst round {worst:.2f}), bar: at least"
    return f"- {words} {bar.goal:g}: **{'met' if met else 'missed'}**\n"


def _up(x: float) -> float:
    return math.ceil(x * 100) / 100


def _bound(case: Case, reachable: float) -> str:
    """What is needed, what is done, and where the time goes, from further runs of ours.

    Args:
        case: the case.
        reachable: operations that one large product would have done in our time.
    """
    from torch.utils.flop_counter import FlopCounterMode

    run = next(iter(case.ways.values()))
    with FlopCounterMode(display=False) as counter:
        run()
    done = float(counter.get_total_flops())
    needed = case.flops or done
    share, spent = math.floor(100 * needed / reachable), ", ".join(f"{n} {x:.0%}" for n, x in profiled(run).items())
    return (
        f"- bound: {needed / 1e9:.1f} GFLOP needed, {done / 1e9:.1f} done; "
        f"ours reaches {share} % of one large product's speed. Time goes to: {spent}\n"
    )


def profiled(run: Callable[[], Any]) -> dict[str, float]:
    """Shares of the wall time of one run under PyTorch's profiler, by kind of operator, largest first."""
    from torch.profiler import ProfilerActivity, profile

    start = time.perf_counter()
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as found:
        run()
        wall = time.perf_counter() - start
    spent = dict.fromkeys((*CLASSES, "elementwise"), 0.0)
    for event in found.key_averages():
        name = event.key.removeprefix("aten::")
        kind = next((kind for kind, names in CLASSES.items() if name in names), "elementwise")
        if event.key.startswith("aten::"):
            spent[kind] += event.self_cpu_time_total / 1e6
    shares = {kind: seconds / wall for kind, seconds in spent.items()}
    shares["Python and all else"] = max(0.0, 1 - sum(shares.values()))
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def matmul_speed() -> float:
    """Floating-point operations per second of one large float32 product, the best of several."""
    a, best = torch.randn(2048, 2048), 0.0
    for _ in range(6):
        best = max(best, 2 * 2048**3 / timed(lambda: a @ a))
    return best


def machine() -> str:
    """Processor, memory and versions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    found = [f"{name} {version(name)}" for name in LIBRARIES if installed(name)]
    cores = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, {memory:.0f} GiB"
    speed = f"one 2048 x 2048 product: {matmul_speed() / 1e9:.0f} GFLOP/s"
    load = f"load {os.getloadavg()[0]:.1f} before the start"
    here = f"{names[0] if names else platform.machine()}, {cores}, {speed}, {load}"
    return f"{here}; Python {platform.python_version()}, {', '.join(found)}"


def installed(name: str) -> bool:
    """A package can be imported here."""
    try:
        version(name)
    except ModuleNotFoundError:
        return False
    return True


def exponent(sizes: list[float], values: list[float]) -> float:
    """Least-squares slope of log value over log size."""
    return float(np.polyfit(np.log(sizes), np.log(np.maximum(values, 1e-9)), 1)[0])
