"""How near each part is to the arithmetic it needs, beside the naive ways to the same numbers.

python benchmarks/fast.py [--cases sweep benchmark extraction attribution probes] [--rounds 3] [--quick]

Runs in a folder where `make run` has ended: model, questions and pictures are those of the default study. Each case
checks first that all ways give the same result, then times them in turn, several rounds, on pinned threads. A ratio is
of two times of one round. The bound is the floating-point operations that the question needs over those per second that
one large matrix product reaches here.
"""

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

THREADS = 2
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = str(THREADS)

import numpy as np  # noqa: E402
import polars as pl  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from sklearn.linear_model import LogisticRegression  # noqa: E402
from torch import Tensor  # noqa: E402

from twohop.analysis import Contrast, Runner, TrainingSet, attribute, fit_probes, picture_folds  # noqa: E402
from twohop.analysis._logistic import TOLERANCE  # noqa: E402
from twohop.config import art_source  # noqa: E402
from twohop.data import open_pictures  # noqa: E402
from twohop.models import KINDS, Batch, Model, Patch, Picture, Prompt, Site, open_model  # noqa: E402
from twohop.steps import extract_activations, train_probes  # noqa: E402
from twohop.steps._asking import ask  # noqa: E402
from twohop.store import ActivationReader, ActivationWriter  # noqa: E402

MODEL = "flags-early"
WRITES = ("mlp_write", "attn_write", "resid_post")


@dataclass(frozen=True)
class Bar:
    """What a way's time over ours has to reach (or, with `at_most`, ours over its)."""

    way: str
    goal: float
    at_most: bool = False


@dataclass
class Case:
    """Several ways to one result."""

    name: str
    what: str
    ways: dict[str, Callable[[], Any]]
    same: Callable[[Any, Any], str]
    """Says how near two results are; raises where they are not the same."""
    bars: list[Bar]
    flops: float
    notes: list[str] = field(default_factory=list[str])


@dataclass(frozen=True)
class World:
    """The default study's inputs."""

    results: Path
    model: Model
    questions: list[dict[str, Any]]
    images: dict[str, Image.Image]
    pictures: dict[str, Picture]

    def prompts(self, rows: Sequence[dict[str, Any]]) -> list[Prompt]:
        """Shown forms."""
        return [Prompt(q["before"], None, q["after"], self.pictures[q["picture_id"]]) for q in rows]

    def flops(self, tokens: int, logits: int, layers: float | None = None) -> float:
        """Of the matrix products with weights: `tokens` through the layers, `logits` rows unembedded."""
        decoder = self.model.decoder
        per_layer = sum(p.numel() for p in decoder.layers[0].parameters() if p.dim() == 2)
        head = self.model.net.get_output_embeddings().weight.numel()
        return 2.0 * (tokens * per_layer * (decoder.n_layers if layers is None else layers) + logits * head)


def open_world(results: Path) -> World:
    """Models, the questions and their pictures."""
    card = results / "prepare_model" / MODEL / "card.json"
    if not card.exists():
        sys.exit(f"{card} is missing: run `make run` first, or name a folder of results with --results")
    model = open_model(card)
    questions = pl.read_parquet(results / "build_questions" / MODEL / "questions.parquet")
    manifest = pl.read_parquet(results / "fetch_images" / "manifest.parquet")
    files = dict(manifest.select("picture_id", "file").iter_rows())
    ids = questions["picture_id"].unique(maintain_order=True).to_list()
    with open_pictures(results / "fetch_images" / "pictures.zip") as read:
        images = {i: read(files[i]) for i in ids}
    features = model.encode_pictures(list(images.values()))
    return World(results, model, questions.to_dicts(), images, dict(zip(ids, features, strict=True)))


# --- sweep: every layer x spans ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """One patch of the sweep."""

    layer: int
    start: int
    values: Tensor


def sweep(world: World, n_spans: int) -> Case:
    """The name's `mlp_write` of the text run at each layer, written at spans of the picture's run."""
    model = world.model
    q = next(q for q in world.questions if q["corrupted_id"] is not None)
    named = model.batch([Prompt(q["before"], q["name"], q["after"])])
    sites = [Site("mlp_write", n) for n in range(model.n_layers)]
    donor = model.run(named, sites).activations
    start, end = named.spans[0]
    batch = model.batch(world.prompts([q]))
    first, seq = batch.spans[0][0], int(batch.input_ids.shape[1])
    starts = np.linspace(first, seq - (end - start), n_spans).astype(int).tolist()
    cells = [Cell(s.layer, at, donor[s][0, start:end]) for s in sites for at in starts]
    tokens = torch.tensor([q["clean_token"], q["corrupted_token"]])
    length = end - start

    def margin(logits: Tensor) -> Tensor:
        picked = logits[..., tokens]
        return picked[..., 0] - picked[..., 1]

    def ours() -> Tensor:
        trunk, found = model.trunk(batch, range(model.n_layers + 1)), torch.empty(len(cells))
        order = sorted(range(len(cells)), key=lambda i: (cells[i].layer, cells[i].start))
        for at in range(0, len(order), 32):
            part = [cells[i] for i in order[at : at + 32]]
            fork = trunk.fork([0] * len(part))
            found[order[at : at + 32]] = margin(model.run(fork, patches=_rows(part, fork, length)).logits)
        return found

    def whole_runs() -> Tensor:
        return torch.stack([margin(model.run(batch, patches=_rows([c], batch, length)).logits)[0] for c in cells])

    given = _given(model, batch)

    @torch.no_grad()
    def hooks() -> Tensor:
        found: list[Tensor] = []
        for cell in cells:
            handle = model.decoder.layers[cell.layer].mlp.register_forward_hook(_writes(cell, length))
            found.append(margin(model.net(**given, use_cache=False, logits_to_keep=1).logits[0, -1]))
            handle.remove()
        return torch.stack(found)

    @torch.no_grad()
    def nnsight() -> Tensor:
        from nnsight import NNsight

        net, found = NNsight(model.net), list[Tensor]()
        for cell in cells:
            with net.trace(**given, use_cache=False, logits_to_keep=1):
                net.model.language_model.layers[cell.layer].mlp.output[:, cell.start : cell.start + length] = (
                    cell.values
                )
                logits = net.output.logits.save()
            found.append(margin(logits[0, -1]))
        return torch.stack(found)

    needed = sum(world.flops(seq - c.start, 1, model.n_layers - c.layer) for c in cells)
    return Case(
        "sweep",
        f"{model.n_layers} layers x {n_spans} spans of {length} tokens, one question of {seq} tokens: logit difference",
        {"ours": ours, "own naive loop": whole_runs, "plain transformers, hooks": hooks, "nnsight": nnsight},
        lambda a, b: _near(a, b, 1e-3),
        [Bar("nnsight", 10), Bar("own naive loop", 5)],
        needed + world.flops(seq, 1),
    )


def _rows(cells: Sequence[Cell], batch: Batch, length: int) -> list[Patch]:
    patches: list[Patch] = []
    for layer in sorted({c.layer for c in cells}):
        where = torch.zeros_like(batch.groups["last"])
        for row, c in enumerate(cells):
            where[row, c.start : c.start + length] = c.layer == layer
        values = torch.cat([c.values for c in cells if c.layer == layer])
        patches.append(Patch(Site("mlp_write", layer), where, values))
    return patches


def _given(model: Model, batch: Batch) -> dict[str, Any]:
    rest = {"attention_mask": batch.attention_mask, "position_ids": batch.position_ids}
    return {"inputs_embeds": model.embed(batch).detach(), **rest, **batch.extra}


def _writes(cell: Cell, length: int) -> Any:
    def hook(_module: Any, _args: Any, output: Tensor) -> Tensor:
        output = output.clone()
        output[:, cell.start : cell.start + length] = cell.values
        return output

    return hook


def _near(a: Tensor, b: Tensor, most: float) -> str:
    worst = float((a - b).abs().max())
    if worst > most:
        raise AssertionError(f"results differ by {worst}")
    return f"largest difference {worst:.1e}"


# --- benchmark: greedy answers from pictures --------------------------------------------------------------------------


def benchmark(world: World, n_questions: int) -> Case:
    """Eight tokens for every question about a picture, the picture encoded within each way."""
    model, rows = world.model, world.questions[:n_questions]
    processor, net = model.eyes.processor if model.eyes else None, model.net
    texts = {q["question_id"]: f"{q['before'].rstrip()}<image>{q['after']}" for q in rows}
    holder = str(model.tokens.frame.placeholder)
    texts = {i: t.replace("<image>", holder) for i, t in texts.items()}

    def ours() -> list[str]:
        shown = list(dict.fromkeys(q["picture_id"] for q in rows))
        features = dict(zip(shown, model.encode_pictures([world.images[i] for i in shown]), strict=True))
        prompts = [Prompt(q["before"], None, q["after"], features[q["picture_id"]]) for q in rows]
        return ask(model, prompts, 32, lambda batch: model.generate(batch, 8), "benchmark")

    @torch.no_grad()
    def written(part: Sequence[dict[str, Any]]) -> list[str]:
        made = processor(
            text=[texts[q["question_id"]] for q in part],
            images=[world.images[q["picture_id"]] for q in part],
            return_tensors="pt",
            padding=True,
            padding_side="left",
            add_special_tokens=model.tokens.frame.special,
        )
        out = net.generate(**made, max_new_tokens=8, do_sample=False, pad_token_id=model.pad_id)
        said = [model.tokens.decode(ids) for ids in out[:, made["input_ids"].shape[1] :].tolist()]
        return [text.strip().split("\n")[0].strip() for text in said]

    def one_by_one() -> list[str]:
        return [text for q in rows for text in written([q])]

    def in_batches() -> list[str]:
        order = sorted(range(len(rows)), key=lambda i: len(model.tokenize(texts[rows[i]["question_id"]])))
        found: dict[int, str] = {}
        for at in range(0, len(order), 32):
            index = order[at : at + 32]
            found |= dict(zip(index, written([rows[i] for i in index]), strict=True))
        return [found[i] for i in range(len(rows))]

    encoded = [model.tokens.encode(p) for p in world.prompts(rows)]
    heads = {(*tuple(e.ids[: e.end]), q["picture_id"]): e.end for e, q in zip(encoded, rows, strict=True)}
    root = min(e.start for e in encoded)
    tokens = root + sum(n - root for n in heads.values()) + sum(len(e.ids) - e.end for e in encoded)
    return Case(
        "benchmark",
        f"{len(rows)} questions about {len({q['picture_id'] for q in rows})} pictures, greedy, 8 tokens",
        {"ours": ours, "one generate per question": one_by_one, "generate in sorted batches": in_batches},
        _answers_agree,
        [Bar("one generate per question", 3), Bar("generate in sorted batches", 1.5)],
        world.flops(tokens + 7 * len(rows), 8 * len(rows)),
        ["the bound leaves the tower out and counts eight tokens for every answer"],
    )


def _answers_agree(a: list[str], b: list[str]) -> str:
    differ = sum(x != y for x, y in zip(a, b, strict=True))
    if differ > 0.02 * len(a):
        raise AssertionError(
            f"{differ} of {len(a)} answers differ: {[p for p in zip(a, b, strict=True) if p[0] != p[1]][:5]}"
        )
    return f"{differ} of {len(a)} answers differ"


# --- extraction -------------------------------------------------------------------------------------------------------


def extraction(world: World, n_questions: int) -> Case:
    """All layers, three sites, at the token groups, to a finished HDF5 file; beside the forward pass alone."""
    model, rows = world.model, world.questions[:n_questions]
    asked = extract_activations.image_rows(pl.DataFrame(rows, infer_schema_length=None))
    sites = [Site(kind, layer) for kind in WRITES for layer in range(model.n_layers)]
    prompts = world.prompts(rows)
    layout = extract_activations.Dataset(
        "image",
        tuple(r.row_id for r in asked),
        WRITES,
        extract_activations.IMAGE_GROUPS,
        tuple(range(model.n_layers)),
        model.d_model,
        None,
        {},
    )

    about = dict.fromkeys(
        ("model", "revision", "sites", "groups", "prompts_sha256", "versions", "lineage"), "benchmark"
    )

    class Eyes:
        def see(self, part: Sequence[Any]) -> list[Picture | None]:
            return [world.pictures[r.picture_id] for r in part]

    def ours() -> np.ndarray:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "activations.h5")
            writer = ActivationWriter(path, Path(folder, "work"), about, [layout], "bfloat16", 32)
            extract_activations._extract(writer, model, Eyes(), layout, asked, writer.missing("image"), 32)
            writer.finish()
            with ActivationReader(path) as reader:
                return reader.read("image", "resid_post", "last", model.n_layers - 1)

    @torch.no_grad()
    def forward() -> None:
        for at in range(0, len(prompts), 32):
            batch = model.batch(prompts[at : at + 32])
            model.net(**_given(model, batch), use_cache=False, logits_to_keep=1)

    @torch.no_grad()
    def nnsight() -> np.ndarray:
        from nnsight import NNsight

        net, last = NNsight(model.net), list[np.ndarray]()
        for at in range(0, len(prompts), 32):
            batch = model.batch(prompts[at : at + 32])
            with net.trace(**_given(model, batch), use_cache=False, logits_to_keep=1):
                kept = []
                for layer in net.model.language_model.layers:
                    kept.append((layer.self_attn.output[0].save(), layer.mlp.output.save(), layer.output.save()))
                kept = kept.save()
            last.append(kept[-1][2][:, -1].float().numpy())
        return np.concatenate(last)

    tokens = sum(len(model.tokens.encode(p).ids) for p in prompts)

    def same(a: Any, b: Any) -> str:
        if b is None:
            return "(a forward pass alone)"
        worst = float(np.abs(a - b).max() / np.abs(b).max())
        if worst > 2**-7:
            raise AssertionError(f"differ by {worst}")
        return f"largest difference {worst:.1e} of the largest value (stored in bfloat16)"

    return Case(
        "extraction",
        f"{len(rows)} prompts with pictures, {len(sites)} sites, four token groups",
        {"ours": ours, "bare forward": forward, "nnsight, nothing pooled or written": nnsight},
        same,
        [Bar("bare forward", 1.05, at_most=True)],
        world.flops(tokens, len(rows)),
        ["the bound counts every prompt's tokens; ours runs common beginnings once, so that it can pass it"],
    )


# --- attribution ------------------------------------------------------------------------------------------------------


def attribution(world: World, n_questions: int) -> Case:
    """Every site and head at every position, one batch of twins; beside one forward pass of that batch."""
    model = world.model
    of = {q["question_id"]: q for q in world.questions}
    rows = [q for q in world.questions if q["corrupted_id"] is not None and q["relation"] == "capital"][:n_questions]
    twins = [of[q["corrupted_id"]] for q in rows]
    clean, corrupted = model.batch(world.prompts(rows)), model.batch(world.prompts(twins))
    contrast = Contrast(
        torch.tensor([q["clean_token"] for q in rows]), torch.tensor([q["corrupted_token"] for q in rows])
    )
    kinds = [k for k in KINDS if k in (*WRITES, "head")]
    sites = [Site(kind, layer) for kind in kinds for layer in range(model.n_layers)]
    runner = Runner(model.run, Patch, model.heads)

    def ours() -> Tensor:
        found = attribute(runner, clean, corrupted, contrast, sites, Site("resid_post", -1))
        return found.positions[Site("mlp_write", 5)]

    @torch.no_grad()
    def forward() -> None:
        model.net(**_given(model, clean), use_cache=False, logits_to_keep=1)

    def nnsight() -> Tensor:
        from nnsight import NNsight

        net, values = NNsight(model.net), list[dict[int, Tensor]]()
        for batch, wants_grad in ((corrupted, False), (clean, True)):
            given = _given(model, batch)
            given["inputs_embeds"] = given["inputs_embeds"].requires_grad_(wants_grad)
            with torch.set_grad_enabled(wants_grad), net.trace(**given, use_cache=False, logits_to_keep=1):
                out = {}.save()
                for n, layer in enumerate(net.model.language_model.layers):
                    out[n] = layer.mlp.output
                logits = net.output.logits.save()
            values.append(dict(out))
            if wants_grad:
                total = contrast.metric(logits[:, -1]).sum()
                grads = torch.autograd.grad(total, [values[1][n] for n in sorted(values[1])])
        scores = [((values[0][n] - values[1][n].detach()) * g).sum(-1) for n, g in enumerate(grads)]
        return scores[5]

    tokens = int(clean.attention_mask.sum())
    return Case(
        "attribution",
        f"{len(rows)} twins, {len(sites)} sites of which {model.n_layers} by head",
        {"ours": ours, "one forward": forward, "nnsight, MLP writes alone": nnsight},
        lambda a, b: "(a forward pass alone)" if b is None else _near(a.float(), b.float(), 1e-3),
        [Bar("one forward", 4, at_most=True)],
        3 * world.flops(tokens, len(rows)),
    )


# --- probes -----------------------------------------------------------------------------------------------------------


def probes(world: World, n_layers: int) -> Case:
    """L2 by inner folds, the fit and its control, at some layers; scikit-learn in a loop, to the same tolerance."""
    path = world.results / "extract_activations" / MODEL / "activations.h5"
    with ActivationReader(path) as reader:
        style = "noto_original"
        split = train_probes.split_pictures(reader.rows("pictures"), train_probes.shown(reader), art_source(style), 1)
        layers = [reader.layers("pictures", "resid_post")[i] for i in (0, 10, 20, 30)[:n_layers]]
        features = np.stack([reader.read("pictures", "resid_post", "image_last", n) for n in layers])
    data = TrainingSet(features[:, split.train], split.labels, split.pictures)
    test, labels = split.test[style]
    strengths, folds = (10.0, 0.1), 3

    def ours() -> list[float]:
        found, _ = fit_probes(data, strengths, folds, 0)
        return [float((p.predict(x[test]) == labels).mean()) for p, x in zip(found, features, strict=True)]

    def fit(x: np.ndarray, y: np.ndarray, l2: float) -> Callable[[np.ndarray], np.ndarray]:
        mean, spread = x.mean(0), x.std(0)
        made = LogisticRegression(C=1 / l2, tol=TOLERANCE, max_iter=5000).fit((x - mean) / spread, y)
        return lambda new: made.predict((new - mean) / spread)

    def loop() -> list[float]:
        of, found = picture_folds(data, folds, 0), list[float]()
        shuffled = train_probes_control(data)
        for x, every in zip(data.features, features, strict=True):
            hits = [
                sum(
                    (fit(x[of != k], data.labels[of != k], l2)(x[of == k]) == data.labels[of == k]).sum()
                    for k in range(folds)
                )
                for l2 in strengths
            ]
            best = strengths[int(np.argmax(hits))]
            found.append(float((fit(x, data.labels, best)(every[test]) == labels).mean()))
            fit(x, shuffled, best)
        return found

    def same(a: list[float], b: list[float]) -> str:
        worst = max(abs(x - y) for x, y in zip(a, b, strict=True))
        if worst > 1.5 / len(labels):
            raise AssertionError(f"accuracies {a} and {b}")
        return f"accuracies differ by {worst:.4f} at most ({len(labels)} test pictures)"

    return Case(
        "probes",
        f"{n_layers} layers, {len(strengths)} strengths, {folds} folds, with controls; "
        f"{len(split.train)} rows of {features.shape[2]}",
        {"ours": ours, "scikit-learn in a loop": loop},
        same,
        [Bar("scikit-learn in a loop", 10)],
        0.0,
    )


def train_probes_control(data: TrainingSet) -> np.ndarray:
    """The control's labels."""
    from twohop.analysis import shuffle_labels

    return shuffle_labels(data, 0).labels


# --- measuring --------------------------------------------------------------------------------------------------------


def matmul_speed() -> float:
    """Floating-point operations per second of one large float32 product, the best of several."""
    a, best = torch.randn(2048, 2048), 0.0
    for _ in range(8):
        start = time.perf_counter()
        a @ a
        best = max(best, 2 * 2048**3 / (time.perf_counter() - start))
    return best


def measured(case: Case, rounds: int) -> Iterator[str]:
    """The case's part of the page."""
    results = {name: way() for name, way in case.ways.items()}
    yield f"## {case.name}\n\n{case.what}.\n"
    agreement = {name: case.same(results["ours"], found) for name, found in results.items() if name != "ours"}
    times: dict[str, list[float]] = {name: [] for name in case.ways}
    speeds: list[float] = []
    for k in range(rounds):
        speeds.append(matmul_speed())
        names = list(case.ways)
        for name in names if k % 2 == 0 else names[::-1]:
            start = time.perf_counter()
            case.ways[name]()
            times[name].append(time.perf_counter() - start)
            print(f"{case.name}, round {k + 1}: {name} {times[name][-1]:.2f} s", file=sys.stderr, flush=True)
    yield "| way | seconds (median) | over ours: min | median | max | same result |\n|---|---|---|---|---|---|\n"
    yield f"| ours | {statistics.median(times['ours']):.2f} | 1 | 1 | 1 | |\n"
    ratios = {n: sorted(t / o for t, o in zip(times[n], times["ours"], strict=True)) for n in agreement}
    for name, found in ratios.items():
        low, middle, high = found[0], statistics.median(found), found[-1]
        spread = f"{low:.2f} | {middle:.2f} | {high:.2f}"
        yield f"| {name} | {statistics.median(times[name]):.2f} | {spread} | {agreement[name]} |\n"
    yield "\n"
    for bar in case.bars:
        middle = statistics.median(ratios[bar.way])
        value, kind = (1 / middle, "at most") if bar.at_most else (middle, "at least")
        met = value <= bar.goal if bar.at_most else value >= bar.goal
        subject = f"ours over {bar.way}" if bar.at_most else f"{bar.way} over ours"
        yield f"- {subject}: {value:.2f}, wanted {kind} {bar.goal}: **{'met' if met else 'missed'}**\n"
    if case.flops:
        shares = [case.flops / s / t for s, t in zip(speeds, times["ours"], strict=True)]
        middle = statistics.median(shares)
        yield f"- bound: {case.flops / 1e9:.0f} GFLOP; ours reaches {middle:.0%} of one large product's speed\n"
    yield from (f"- {note}\n" for note in case.notes)
    yield "\n"


def machine() -> str:
    """Processor, memory and versions."""
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    libraries = ", ".join(f"{n} {version(n)}" for n in ("torch", "transformers", "nnsight", "scikit-learn", "h5py"))
    name = names[0] if names else platform.machine()
    return f"{name}, {THREADS} threads, {memory:.0f} GiB; Python {platform.python_version()}, {libraries}"


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    makers = {
        "sweep": sweep,
        "benchmark": benchmark,
        "extraction": extraction,
        "attribution": attribution,
        "probes": probes,
    }
    sizes = {"sweep": (4, 1), "benchmark": (48, 6), "extraction": (96, 32), "attribution": (16, 4), "probes": (2, 1)}
    parser.add_argument("--cases", nargs="*", choices=makers, default=list(makers))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="small sizes: does every way give the same?")
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/RESULTS.md"))
    given = parser.parse_args()
    torch.set_num_threads(THREADS)
    world = open_world(given.results)
    quick = " --quick" if given.quick else ""
    command = f"python benchmarks/fast.py --rounds {given.rounds}{quick} --cases {' '.join(given.cases)}"
    page = "# How fast, beside the naive ways\n\n<!-- written by benchmarks/fast.py; do not edit -->\n\n"
    page += f"`{command}`\n\n{machine()}.\n\n"
    page += "Times are of this machine, which others share: read the ratios.\n\n"
    for name in given.cases:
        page += "".join(measured(makers[name](world, sizes[name][given.quick]), given.rounds))
        given.out.write_text(page)


if __name__ == "__main__":
    main()
