"""Seconds and peak memory of ours by number of prompts and of layers, each in a process of its own."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import polars as pl
import torch

from speed import attribution, extraction, sweep
from speed.measure import exponent, timed
from speed.world import Question
from twohop.analysis import Contrast
from twohop.data import open_pictures
from twohop.models import Model, Picture, Prompt, open_model
from twohop.steps._asking import ask
from twohop.steps.extract_activations import Row

TIMES, LAYERS = (1, 4, 16), (4, 16, 30)
BASE = {"extraction": 32, "sweep": 1, "benchmark": 32, "attribution": 8}
"""Prompts of x1: a full batch, so that more of them are more batches."""


def measured(results: Path, name: str, rounds: int, quick: bool) -> Iterator[str]:
    """The page's part: two tables."""
    times, layers = (TIMES[:2], LAYERS[::2]) if quick else (TIMES, LAYERS)
    repeats = 1 if quick else max(1, min(3, rounds))
    yield "## scaling\n\nOurs alone; the quickest of several processes, the highest of their peaks.\n\n"
    yield "| step | | sizes | seconds | exponent | peak MiB above the opened model | exponent |\n"
    yield "|---|---|---|---|---|---|---|\n"
    flat = list[str]()
    for step in BASE:
        by_prompts = [(BASE[step] * k, LAYERS[-1]) for k in times]
        by_layers = [(BASE[step] * times[1], n) for n in layers]
        for word, at, asked in (("prompts", 0, by_prompts), ("layers", 1, by_layers)):
            found = [_apart(results, name, step, *size, repeats) for size in asked]
            sizes = [float(size[at]) for size in asked]
            seconds, peaks = ([f[key] for f in found] for key in ("seconds", "mib"))
            cells = [step, word, _row(sizes, "g"), _row(seconds, ".3g"), f"{exponent(sizes, seconds):.2f}"]
            yield f"| {' | '.join([*cells, _row(peaks, '.0f'), f'{exponent(sizes, peaks):.2f}'])} |\n"
            if step == "extraction" and word == "prompts":
                met = "met" if peaks[-1] <= 1.05 * peaks[0] else "missed"
                grown = f"x{times[-1]} over x1: {peaks[-1] / peaks[0]:.3f}"
                flat.append(f"- extraction's peak, {grown}, bar: 1 (5 % allowed): **{met}**\n")
    yield "\n" + "".join(flat) + "\n"


def _row(values: Sequence[float], how: str) -> str:
    return ", ".join(format(v, how) for v in values)


def _apart(results: Path, name: str, step: str, n: int, layers: int, repeats: int) -> dict[str, float]:
    command = [sys.executable, sys.argv[0], "--measure", step, str(n), str(layers)]
    command += ["--results", str(results), "--model", name]
    found = [
        json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])
        for _ in range(repeats)
    ]
    print(f"scaling: {step}, {n} prompts, {layers} layers: {found}", file=sys.stderr, flush=True)
    return {"seconds": min(f["seconds"] for f in found), "mib": max(f["mib"] for f in found)}


def measure(results: Path, name: str, step: str, n: int, layers: int) -> None:
    """What a process of its own does: prints seconds and the peak over what the opened model holds."""
    model = _cut(open_model(results / "prepare_model" / name / "card.json"), layers)
    run = _prepared(results, model, step, n)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here on
    seconds = timed(run)
    print(json.dumps({"seconds": seconds, "mib": (_status("VmHWM") - before) / 1024}))


def _status(key: str) -> int:
    """KiB of memory, as Linux counts them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def _cut(model: Model, n: int) -> Model:
    """The same model with its first layers only."""
    assert model.eyes is not None
    model.decoder.stack.layers = model.decoder.stack.layers[:n]
    model.decoder.config.num_hidden_layers = n
    return Model(model.net, model.card, model.tokens, model.eyes.processor)


def _prepared(results: Path, model: Model, step: str, n: int) -> Callable[[], Any]:
    questions = pl.read_parquet(results / "build_questions" / model.name / "questions.parquet").to_dicts()
    if step in ("sweep", "attribution"):
        of = {q["question_id"]: q for q in questions}
        twinned = [q for q in questions if q["corrupted_id"] and q["relation"] == "capital"]
        asked = list(islice(cycle(twinned), n))
        pictures = _encoded(results, model, [q["picture_id"] for q in questions if q["relation"] == "capital"])
        if step == "sweep":
            return lambda: [sweep.plan(model, q, _shown(pictures, [q])[0], 8).kept() for q in asked]
        return lambda: _attribute(model, asked, [of[q["corrupted_id"]] for q in asked], pictures)
    pictures, rows = _many(results, model, questions, n)
    if step == "benchmark":
        prompts = [Prompt(r.before, None, r.after, pictures[str(r.picture_id)]) for r in rows]
        return lambda: ask(model, prompts, 32, lambda batch: model.generate(batch, 8), step)
    return lambda: _extract(model, rows, pictures)


def _extract(model: Model, rows: Sequence[Row], pictures: dict[str, Picture]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        extraction.extract(model, rows, pictures, Path(folder))


def _attribute(
    model: Model, asked: Sequence[Question], twins: Sequence[Question], pictures: dict[str, Picture]
) -> None:
    size = BASE["attribution"]
    for at in range(0, len(asked), size):
        part = asked[at : at + size]
        ends = ([q[token] for q in part] for token in ("clean_token", "corrupted_token"))
        batches = (model.batch(_shown(pictures, rows)) for rows in (part, twins[at : at + size]))
        attribution.score(model, *batches, Contrast(*map(torch.tensor, ends)))


def _shown(pictures: dict[str, Picture], questions: Sequence[Question]) -> list[Prompt]:
    return [Prompt(q["before"], None, q["after"], pictures[q["picture_id"]]) for q in questions]


def _many(results: Path, model: Model, questions: Sequence[Question], n: int) -> tuple[dict[str, Picture], list[Row]]:
    """Prompts of every relation about pictures of every style: no two are alike."""
    manifest = pl.read_parquet(results / "fetch_images" / "manifest.parquet").filter(pl.col("status") == "ok")
    wordings = list(dict.fromkeys((q["before"], q["after"]) for q in questions))
    ids = manifest.sort("style", "picture_id")["picture_id"].to_list()
    rows = [Row(f"{i}/{k}", *words, picture_id=i) for i in ids for k, words in enumerate(wordings)][:n]
    if len(rows) < n:
        raise ValueError(f"{len(rows)} prompts, {n} are wanted")
    return _encoded(results, model, [str(r.picture_id) for r in rows]), rows


def _encoded(results: Path, model: Model, ids: Sequence[str]) -> dict[str, Picture]:
    files = dict(
        pl.read_parquet(results / "fetch_images" / "manifest.parquet").select("picture_id", "file").iter_rows()
    )
    read, wanted, found = open_pictures(results / "fetch_images" / "pictures.zip"), list(dict.fromkeys(ids)), []
    for at in range(0, len(wanted), 32):
        found += model.encode_pictures([read(files[i]) for i in wanted[at : at + 32]])
    return dict(zip(wanted, found, strict=True))
