"""What to see in each figure, said by the numbers: one function per figure, from the summary to a sentence or two."""

from collections.abc import Callable, Mapping
from typing import Any

from twohop.figures import words as w
from twohop.figures._draw import SPANS
from twohop.figures._resolution import METHODS

Record = Mapping[str, Any]


def vlms(summary: Record) -> list[str]:
    """The VLMs of the study, in the catalogue's order (controls are not among them)."""
    return [m for m, e in summary["models"].items() if e["role"] == "vlm"]


def benchmark(summary: Record) -> str:
    """Recall from a picture against recall from a name."""
    parts: list[str] = []
    for model in vlms(summary):
        row = summary["degradation"][model]["a,c"]["all"]["all"]
        shown, named = w.percent(row["compared"]), w.percent(row["reference"])
        parts.append(
            f"{model} answers {shown} from the picture, its language model {named} from the name: relative degradation "
            f"{w.percent(row['degradation'])}, {w.zero_clause(row['degradation'])}"
        )
    return "; ".join(parts) + ". Bars: 95 % intervals, bootstrap over entities."


def attribution(summary: Record) -> str:
    """Where in depth the MLPs matter."""
    parts: list[str] = []
    for model, runs in summary["attribution"].items():
        centres = [
            f"{'name' if run == 'text' else 'picture'} {w.plain(found['mlp_centre_entity'])}"
            for run, found in runs.items()
            if found["mlp_centre_entity"]["value"] is not None
        ]
        parts.append(f"{model} ({', '.join(centres) or 'undefined'})")
    if not parts:
        return "No model was scored."
    alike = [
        f"{m} {w.plain(p['image']['cosine'])}"
        for m, p in summary["profiles"].items()
        if p.get("image", {}).get("cosine", {}).get("value") is not None
    ]
    tail = f" Cosine of the picture's profile with the backbone's: {w.listed(alike)}." if alike else ""
    return (
        "Brighter: the node carries more of the difference between the two answers; one scale per row; heads where the "
        "answer is predicted. Centre of mass "
        f"of the MLPs at the entity's tokens (0 first layer, 1 last): {w.listed(parts)}.{tail}"
    )


def validation(summary: Record) -> str:
    """How far the estimate can be trusted."""
    parts: list[str] = []
    for model, runs in summary["attribution"].items():
        for run, found in runs.items():
            checked = found.get("validation", {}).get("all", {})
            if checked.get("pearson") is not None:
                name = "name" if run == "text" else "picture"
                parts.append(f"{model}, {name}: {checked['pearson']:.2f} ({checked['n_nodes']} nodes)")
    if not parts:
        return "Too few nodes were truly patched to say how good the estimate is."
    return f"On the dashed line the estimate equals true patching. Pearson's r: {'; '.join(parts)}."


def patching(summary: Record) -> str:
    """The heuristic patch against the random span."""
    parts: list[str] = []
    for model, found in summary["patching"].items():
        heuristic, random = found["recovered"].get("heuristic"), found["recovered"].get("random")
        if not found["n_lost"] or heuristic is None or random is None:
            parts.append(f"{model}: no lost fact to repair")
            continue
        gap = found["heuristic_minus_random"]
        parts.append(
            f"{model}: {w.percent(heuristic)} of {found['n_lost']} lost facts come back, {w.percent(random)} with a "
            f"random span; the difference is {w.percent(gap, signed=True)} ({w.zero_clause(gap)})"
        )
    return "; ".join(parts) + ". Diamonds: not a repair, or a choice that could not be made in advance."


def layer_sweep(summary: Record) -> str:
    """How deep the patch must go."""
    parts: list[str] = []
    for model, found in summary["patching"].items():
        points = [p for p in found["sweep"] if p["value"] is not None]
        if points:
            best = max(points, key=lambda p: p["value"])
            parts.append(f"{model} {w.percent(best)} with the first {best['layers']} layers")
    if not parts:
        return "There was no lost fact to sweep over."
    return f"Best of the sweep, chosen after the fact: {w.listed(parts)}. Bands: 95 % intervals.{_best_cells(summary)}"


def _best_cells(summary: Record) -> str:
    """The cell of the grid that helps the right answer most, per model."""
    parts: list[str] = []
    for model, found in summary["patching"].items():
        cells = [c for c in found["grid"] if c["value"] is not None]
        if cells:
            best = max(cells, key=lambda c: c["value"])
            window = f"layers {best['first_layer']} to {best['last_layer']}"
            where = f"{best['site']} at {SPANS.get(best['span'], best['span'])}, {window}"
            parts.append(f"{model} {where}: {w.nats(best)} nats, the best cell")
    if not parts:
        return ""
    return (
        f" Maps: change of log P(right answer) by site, span and layers, teacher-forced; {'; '.join(parts)} "
        "(chosen after the fact, few questions: a map to look at, no test)."
    )


def probes(summary: Record) -> str:
    """At which depth the entity is known."""
    style = summary["held_out"]["style"]
    parts: list[str] = []
    for model, found in summary["probes"].items():
        curve = found.get(style, {}).get("image_last") or next(iter(found.get(style, {}).values()), None)
        if curve:
            depth = f"layer {curve['resolved_layer']}, {w.percent(curve['resolved_depth'])} of the depth"
            parts.append(f"{model}: {w.percent(curve['first'])} at the embedding, 90 % of its best by {depth}")
    if not parts:
        return "No probe was trained: that needs a second picture of each entity, of another art source."
    return (
        f"A linear read-out of the entity at the last image token, on pictures of a source it never saw ({style}). "
        f"{'; '.join(parts)}. Dotted: probes trained on shuffled labels; dashed: the random tower."
    )


def resolution(summary: Record) -> str:
    """By which depth the entity is resolved, and how far the methods agree."""
    parts = [f"{m}: {depth_words(r)}" for m, r in summary["resolution"].items()]
    if not parts:
        return "Resolution was not measured."
    return (
        f"Depth by which the entity is resolved. {'; '.join(parts)}. Dotted: the same for other entities' names; "
        "dashed: the depth (lenses, Patchscopes: 90 % of the curve's own maximum; knockout: half of the summed loss). "
        "A backbone is read at its names, as a reference."
    )


def depth_words(found: Record) -> str:
    """`logit lens 100 % [90, 100], Patchscopes undefined (reads nothing)`."""
    parts = [
        f"{METHODS[m]} {w.percent(d) if d['value'] is not None else 'undefined (reads no name above chance)'}"
        for m, d in found["methods"].items()
    ]
    return ", ".join(parts)


def recovery(summary: Record) -> str:
    """What prompting repairs."""
    parts: list[str] = []
    for model, found in summary["recovery"].items():
        tried = {s: r for s, r in found.items() if s not in ("direct", "oracle_name")}
        closed = [f"{s.replace('_', ' ')} {w.percent(r['closed'])}" for s, r in tried.items()]
        parts.append(f"{model}: {w.listed(closed)}")
    if not parts:
        return "No strategy was tried."
    return (
        f"Share of the degradation closed by prompting. {'; '.join(parts)}. Dashed: the backbone, given the name. "
        "Right: the lost facts of the patching set, the same questions for patch and prompts."
    )


CAPTIONS: Mapping[str, Callable[[Record], str]] = {
    "benchmark": benchmark,
    "attribution": attribution,
    "validation": validation,
    "patching": patching,
    "layer_sweep": layer_sweep,
    "probes": probes,
    "resolution": resolution,
    "recovery": recovery,
}
"""Figure name: its caption."""
