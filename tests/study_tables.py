"""A small made-up study on disk, in the layout and the schemas of the real one."""

import hashlib
import io
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
from PIL import Image

from twohop.data import write_pictures
from twohop.steps import plot_figures
from twohop.steps._step import Job
from twohop.store import read_table, schemas, sha256_file, write_json, write_table

# ruff: noqa: E501 (tables read better in one line per case)
N_LAYERS = 6
RELATIONS = ("capital", "language")
STYLES = {"1x1": "flag-icons", "noto_original": "noto"}
CREDITS = {4: ("Ann <Bo>", "https://credits.example/1"), 5: ("Ann", "javascript:alert(1)")}
PAIRS = [[4, 1], [5, 2]]
MODELS: Mapping[str, dict[str, Any]] = {
    "lm": {"role": "backbone", "family": "llama", "licence": "Apache-2.0", "source": {"kind": "random", "seed": 0, "n_layers": 6, "d_model": 16}},
    "late": {"role": "vlm", "family": "llava", "backbone": "lm", "licence": "Apache-2.0", "source": {"kind": "random", "seed": 1, "n_layers": 6, "d_model": 16}},
    "early": {"role": "vlm", "family": "llava", "backbone": "lm", "licence": "Apache-2.0", "source": {"kind": "random", "seed": 2, "n_layers": 6, "d_model": 16}, "note": "resolved early"},
    "blind": {"role": "control", "family": "llava", "backbone": "lm", "licence": "Apache-2.0", "source": {"kind": "random", "seed": 3, "n_layers": 6, "d_model": 16}},
}  # fmt: skip
P_RIGHT = {"lm": {"text": 0.6}, "late": {"text": 0.6, "image": 0.2, "blank": 0.05}, "early": {"text": 0.6, "image": 0.45, "blank": 0.05}, "blind": {"text": 0.6, "image": 0.1, "blank": 0.05}}  # fmt: skip
P_SEEN = {"late": 0.9, "early": 0.7, "blind": 0.1}


def write_study(
    root: Path, n_entities: int = 12, seed: int = 0, nothing_lost: bool = False, one_picture: bool = False
) -> dict[str, tuple[Path, ...]]:
    """Write results/<step>/<model>/<file> below `root`; gives input name -> files."""
    made = _Maker(root, n_entities, random.Random(seed), nothing_lost, one_picture)
    made.entities()
    for model in MODELS:
        made.card(model)
        made.benchmark(model)
        made.resolving(model)
        if MODELS[model]["role"] != "control":
            made.attribution(model)
        if MODELS[model]["role"] == "vlm":
            made.patching(model)
            made.recovery(model)
        if MODELS[model]["role"] != "backbone":
            made.curves(model)
    return {name: tuple(paths) for name, paths in made.files.items()}


class _Maker:
    def __init__(self, root: Path, n: int, rng: random.Random, nothing_lost: bool, one_picture: bool) -> None:
        self.root, self.rng, self.nothing_lost, self.one_picture = root, rng, nothing_lost, one_picture
        self.files: dict[str, list[Path]] = {}
        self.ids = [f"flags:{chr(65 + i // 26)}{chr(65 + i % 26)}" for i in range(n)]
        self.asked = [(e, r) for e in self.ids for r in RELATIONS]

    def put(self, name: str, step: str, model: str | None, rows: list[dict[str, Any]]) -> None:
        schema = getattr(schemas, name.upper())
        path = self.root / step / (model or "") / f"{name}.parquet"
        write_table(path, pl.DataFrame(rows, schema=schema), schema)
        self.files.setdefault(name, []).append(path)

    def entities(self) -> None:
        rows = [
            {"entity_id": e, "name": f"Land <{i}>", "aliases": [f"Land <{i}>"], "kind": "country", "look_alikes": [], "evaluated": True}
            for i, e in enumerate(self.ids)
        ]  # fmt: skip
        self.put("entities", "curate_entities", None, rows)

    def card(self, model: str) -> None:
        path = self.root / "prepare_model" / model / "card.json"
        entry = MODELS[model]
        card = {
            "name": model, "role": entry["role"], "family": entry["family"], "backbone": entry.get("backbone"), "licence": entry["licence"],
            "entry": entry, "architecture": "LlamaForCausalLM", "n_layers": N_LAYERS, "d_model": 16, "n_heads": 2, "vocab": 100,
            "parameters": 12345, "n_image_tokens": 4, "image_size": 32, "sources": {"seed": "ab" * 32},
            "files": {"model.safetensors": {"sha256": "cd" * 32, "bytes": 1000}}, "versions": {"torch": "2.13.0"},
        }  # fmt: skip
        write_json(path, card)
        self.files.setdefault("cards", []).append(path)

    def benchmark(self, model: str) -> None:
        questions = [
            {
                "question_id": f"{e}/{r}", "entity_id": e, "relation": r, "name": f"Land {e}", "before": "Consider ", "after": ". It is",
                "answer": "Yes", "answer_aliases": ["Yes"], "picture_id": f"{e}/noto_original", "split": "dev" if i % 4 == 0 else "test",
                "n_name_tokens": 2, "corrupted_id": None, "clean_token": None, "corrupted_token": None,
            }
            for i, (e, r) in enumerate(self.asked)
        ]  # fmt: skip
        self.put("questions", "build_questions", model, questions)
        rows = [
            {**self.answer(e, r, self.rng.random() < p), "condition": condition, "prompt": f"Consider Land {e}. It is"}
            for condition, p in P_RIGHT[model].items()
            for e, r in self.asked
        ]
        self.put("answers", "run_benchmark", model, rows)
        recognition = [self.seen(model, e, style, prompt) for e in self.ids for style in STYLES for prompt in (0, 1)]
        self.put("recognition", "run_benchmark", model, recognition if model in P_SEEN else [])

    def answer(self, entity: str, relation: str, right: bool) -> dict[str, Any]:
        text = " Yes, it is" if right else " No <b>&</b>"
        return {
            "question_id": f"{entity}/{relation}", "entity_id": entity, "relation": relation,
            "answer_text": text, "correct": right, "matched_alias": "Yes" if right else None,
        }  # fmt: skip

    def seen(self, model: str, entity: str, style: str, prompt: int) -> dict[str, Any]:
        right = self.rng.random() < P_SEEN.get(model, 0)
        return {
            "picture_id": f"{entity}/{style}", "entity_id": entity, "art_source": STYLES[style], "style": style, "prompt_id": prompt,
            "answer_text": "Land", "correct": right, "matched_alias": "Land" if right else None, "ranked_name": "Land", "ranked_correct": right,
        }  # fmt: skip

    def attribution(self, model: str) -> None:
        groups = {
            "text": ("entity", "entity_last", "question", "last"),
            "image": ("image", "image_last", "question", "last"),
        }
        runs = ("text",) if model == "lm" else ("text", "image")
        nodes = [
            (run, kind, layer, g)
            for run in runs
            for kind in ("mlp_write", "attn_write", "resid_post")
            for layer in range(N_LAYERS)
            for g in groups[run]
        ]
        late = 2 if model == "late" else 0
        scores = [
            {"run": run, "kind": kind, "layer": layer, "head": None, "group": g, "mean_abs": 1 / (1 + abs(layer - late)) * self.rng.uniform(0.5, 1), "mean_signed": -0.1, "n_examples": 8}
            for run, kind, layer, g in nodes
        ]  # fmt: skip
        heads = [{**row, "kind": "head", "head": h} for row in scores if row["kind"] == "attn_write" for h in range(2)]
        self.put("scores", "score_attribution", model, scores + heads)
        means = {(row["run"], row["kind"], row["group"], row["layer"]): row["mean_abs"] for row in scores}
        self.put("question_scores", "score_attribution", model, self.question_scores(means))
        checks = []
        heads = [(run, "head", layer, g) for run, kind, layer, g in nodes if kind == "resid_post"]
        for i, (run, kind, layer, g) in enumerate(nodes[::3] + heads[::2]):
            x = self.rng.gauss(0, 1)
            row = {"run": run, "kind": kind, "layer": layer, "group": g, "question_id": f"{self.ids[0]}/capital"}
            row["head"] = i % 2 if kind == "head" else None
            checks.append({**row, "attributed": x, "magnitude": abs(x), "patched": x + self.rng.gauss(0, 0.4)})
        self.put("validation", "score_attribution", model, checks)

    def question_scores(self, means: Mapping[tuple[str, str, str, int], float]) -> list[dict[str, Any]]:
        parts = dict.fromkeys((run, kind, g) for run, kind, g, _ in means if kind != "resid_post")
        return [
            {"run": run, "question_id": f"{e}/{r}", "entity_id": e, "kind": kind, "group": g, "scores": [means[run, kind, g, n] * self.rng.uniform(0.5, 1.5) for n in range(N_LAYERS)]}
            for run, kind, g in parts
            for e, r in self.asked
        ]  # fmt: skip

    def patching(self, model: str) -> None:
        plans: list[dict[str, Any]] = [
            {"intervention": i} for i in ("heuristic", "own_text", "wrong_entity", "mean", "zero", "none")
        ]
        plans += [{"intervention": "random", "seed": s} for s in range(5)]
        plans += [{"intervention": "back_patch", "from_layer": a, "first_layer": b, "last_layer": b} for a, b in PAIRS]
        plans += [
            {"intervention": "sweep", "site": site, "span": span, "first_layer": a, "last_layer": b, "correct": None}
            for site in ("mlp_write", "resid_post")
            for span in ("heuristic", "random")
            for a, b in ((0, 0), (0, 3), (3, 3))
            if (site, span) != ("mlp_write", "heuristic") or a
        ]
        plans += [{"intervention": "sweep", "last_layer": n - 1} for n in (1, 2, 4)]
        rows = []
        for i, (e, r) in enumerate(self.asked):
            group = "kept" if self.nothing_lost or i % 2 else "lost"
            rows += [self.outcome(e, r, group, i, plan) for plan in plans]
        self.put("outcomes", "patch_activations", model, rows)

    def outcome(self, entity: str, relation: str, group: str, i: int, plan: dict[str, Any]) -> dict[str, Any]:
        p = {"heuristic": 0.4, "random": 0.15, "back_patch": 0.2, "sweep": 0.3, "none": 0.0}.get(
            plan["intervention"], 0.1
        )
        right = self.rng.random() < (p if group == "lost" else 0.9)
        wrong = plan["intervention"] == "wrong_entity"
        base = {
            "question_id": f"{entity}/{relation}", "set": group, "split": "dev" if i % 4 == 0 else "test", "seed": 0,
            "digest": "d", "record": "{}", "site": "mlp_write", "first_layer": 0, "last_layer": 2, "span": "heuristic",
            "from_layer": None, "span_start": 0, "span_length": 2, "answer_text": "x", "correct": right, "matched_alias": None,
            "donor_entity_id": None, "moved_to_donor": (self.rng.random() < 0.5) if wrong else None,
            "moved_plain": (self.rng.random() < 0.1) if wrong else None, "right_logprob": -2.0 + self.rng.gauss(0.5 * right, 1.0),
            "right_logprob_plain": -2.0, "donor_logprob": -2.5 if wrong else None, "donor_logprob_plain": -4.0 if wrong else None,
        }  # fmt: skip
        return base | plan

    def curves(self, model: str) -> None:
        start = {"late": 0.3, "early": 0.6, "blind": 0.05}[model]
        rows = []
        for style in () if self.one_picture else STYLES:
            for feature in ("image", "image_last", "last"):
                for layer in range(0, N_LAYERS + 1, 2):
                    a = min(1.0, (0 if feature == "last" else start) + 0.1 * layer)
                    rows.append({
                        "feature": feature, "layer": layer, "test_style": style, "accuracy": a, "low": max(0.0, a - 0.1), "high": min(1.0, a + 0.1),
                        "shuffled_accuracy": 0.08, "selectivity": a - 0.08, "selectivity_low": a - 0.2, "selectivity_high": a, "l2": 1.0, "n_train": 40, "n_test": 12,
                    })  # fmt: skip
        self.put("curves", "train_probes", model, rows)
        self.put("predictions", "train_probes", model, [p for row in rows for p in self.predictions(row)])

    def predictions(self, row: dict[str, Any]) -> list[dict[str, Any]]:
        """One picture per entity; the first ones are read right."""
        right = round(row["accuracy"] * len(self.ids))
        return [
            {"feature": row["feature"], "layer": row["layer"], "test_style": row["test_style"], "entity_id": e,
             "predicted": e if i < right else self.ids[0], "correct": i < right, "shuffled_correct": False}
            for i, e in enumerate(self.ids)
        ]  # fmt: skip

    def resolving(self, model: str) -> None:
        late = {"late": 5, "early": 2, "blind": 4, "lm": 1}[model]
        readouts = {"logit_lens": "last", "tuned_lens": "last", "patchscope": "last", "knockout": "name"}
        rows, depths = [], []
        for method, readout in readouts.items():
            for layer in range(0, N_LAYERS + 1, 2):
                a = 0.8 if layer >= late else 0.1
                rows.append({"method": method, "readout": readout, "layer": layer, "value": a, "low": a - 0.1, "high": a + 0.1, "chance": 0.08, "logprob": None, "n": 12})  # fmt: skip
            blind = model == "blind" and method == "patchscope"
            d = None if blind else late / N_LAYERS
            ends = {"low": None, "high": None} if blind else {"low": d - 0.1, "high": d + 0.1}
            depths.append({"method": method, "readout": readout, "headline": True, "versus": None, "depth": d, **ends, "layer": None if blind else late, "p_value": 0.4 if blind else 0.001, "n": 12})  # fmt: skip
        pair = {
            "method": "logit_lens",
            "readout": "last",
            "headline": True,
            "versus": "knockout",
            "depth": 0.0,
            "low": -0.1,
            "high": 0.1,
        }
        depths.append({**pair, "layer": None, "p_value": None, "n": 12})
        self.put("resolution", "measure_resolution", model, rows)
        self.put("depths", "measure_resolution", model, depths)
        self.put("readings", "measure_resolution", model, [x for row in rows for x in self.read(row)])

    def read(self, row: dict[str, Any]) -> list[dict[str, Any]]:
        """The first entities are read."""
        right = round(row["value"] * len(self.ids))
        kept = {k: row[k] for k in ("method", "readout", "layer", "chance", "logprob")}
        return [{**kept, "entity_id": e, "value": float(i < right)} for i, e in enumerate(self.ids)]

    def recovery(self, model: str) -> None:
        rows = []
        for strategy, p in {"direct": 0.2, "name_then_answer": 0.35, "two_turns": 0.4, "oracle_name": 0.6}.items():
            for e, r in self.asked:
                named = None if strategy == "direct" else (strategy == "oracle_name" or self.rng.random() < 0.7)
                row = self.answer(e, r, self.rng.random() < p)
                rows.append(
                    {
                        **row,
                        "strategy": strategy,
                        "written_name": None if named is None else "Land",
                        "name_correct": named,
                    }
                )
        self.put("recovered", "recover_recall", model, rows)


def write_pictures_of(root: Path, ids: list[str]) -> dict[str, tuple[Path, ...]]:
    """The pictures that the questions show, with their manifest."""
    files, rows = {}, []
    for i, entity in enumerate(ids):
        buffer = io.BytesIO()
        Image.new("RGB", (64, 64), (20 * i % 256, 90, 200)).save(buffer, format="PNG")
        digest = hashlib.sha256(buffer.getvalue()).hexdigest()
        author, page = CREDITS.get(i, ("x", "x"))
        files[f"{digest}.png"] = buffer.getvalue()
        rows.append({
            "picture_id": f"{entity}/noto_original", "entity_id": entity, "art_source": "noto", "style": "noto_original", "licence": "MIT",
            "author": author, "source_page": page, "locator": "x", "status": "ok", "reason": "", "file": f"{digest}.png", "sha256": digest,
            "size_bytes": len(buffer.getvalue()), "width": 64, "height": 64,
        })  # fmt: skip
    pictures, manifest = root / "fetch_images" / "pictures.zip", root / "fetch_images" / "manifest.parquet"
    pictures.parent.mkdir(parents=True, exist_ok=True)
    write_pictures(pictures, files)
    write_table(manifest, pl.DataFrame(rows, schema=schemas.MANIFEST), schemas.MANIFEST)
    return {"pictures": (pictures,), "manifest": (manifest,)}


def write_lineage(
    path: Path, step: str, model: str | None, made_by: str | None = None, wrote: Path | None = None
) -> Path:
    """A lineage record as the runner leaves it; `wrote` is a real file that it names."""
    name = f"{step}-{model}"
    read = {"name": "x", "path": "results/x", "sha256": "12" * 32, "run_id": made_by}
    made = {"name": "y", "path": f"results/{step}/y", "sha256": "34" * 32, "bytes": 5}
    if wrote is not None:
        made = {"name": wrote.stem, "path": str(wrote), "sha256": sha256_file(wrote), "bytes": wrote.stat().st_size}
    record = {
        "run_id": name, "step": step, "model": model, "params": {"seed": 0, "note": "</pre><script>alert(1)</script>"}, "inputs": [read],
        "outputs": [made], "code": {}, "commit": "f" * 40, "dirty": False, "versions": {}, "host": {}, "threads": 1,
        "format": 2, "key": "k", "params_sha256": "p", "code_sha256": "c", "batch": None, "models": [], "command": "twohop",
        "started": "2026-01-01T00:00:00+00:00", "ended": "2026-01-01T00:00:01+00:00", "seconds": 1.5, "peak_mib": 100.0, "summary": {"done": 3},
    }  # fmt: skip
    write_json(path, record)
    return path


def figure_job(root: Path, inputs: Mapping[str, tuple[Path, ...]]) -> Job:
    """The job of plot_figures."""
    params = {
        "plot_figures": {"dpi": 50, "n_boot": 100, "seed": 0},
        "models": MODELS,
        "patch_activations.back_pairs": PAIRS,
    }
    outputs = {
        name: root / "plot_figures" / (name.replace("_svg", ".svg").replace("_png", ".png"))
        for name in plot_figures.STEP.outputs
    }
    outputs |= {name: root / "plot_figures" / f"{name}.json" for name in ("summary", "headline")}
    return Job("plot_figures", None, params, inputs, outputs)


def report_job(root: Path, inputs: Mapping[str, tuple[Path, ...]], figures: Job, max_answers: int = 50) -> Job:
    """The job of render_report, after that of plot_figures."""
    ids = read_table(inputs["entities"][0], schemas.ENTITIES)["entity_id"].to_list()
    pictures = write_pictures_of(root, ids)
    lineages = (
        write_lineage(root / "prepare_model" / "lm" / "lineage.json", "prepare_model", "lm"),
        write_lineage(root / "run_benchmark" / "lm" / "lineage.json", "run_benchmark", "lm", "prepare_model-lm"),
        write_lineage(root / "plot_figures" / "lineage.json", "plot_figures", None, wrote=figures.outputs["summary"]),
    )
    paths = tuple(p for n, p in figures.outputs.items() if n not in ("summary", "headline"))
    funnel = root / "curate_entities" / "funnel.parquet"
    row = {"filter": "no <picture>", "rows_in": 9, "dropped": 3, "rows_out": 6, "examples": ["x:1", "x:2"]}
    write_table(funnel, pl.DataFrame([row], schema=schemas.FUNNEL), schemas.FUNNEL)
    given = {
        **inputs,
        **pictures,
        "funnel": (funnel,),
        "summary": (figures.outputs["summary"],),
        "figures": paths,
        "lineages": lineages,
    }
    params = {"render_report": {"title": "Where <is> it lost?", "max_answers": max_answers}, "models": MODELS}
    return Job("render_report", None, params, given, {"report": root / "render_report" / "report.html"})
