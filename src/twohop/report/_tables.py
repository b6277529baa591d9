"""The report's tables: plain headings and rows of text, made from the summary and the study."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from twohop.figures import CONDITIONS, INTERVENTIONS, METHODS, STRATEGIES, Study, words
from twohop.figures.words import percent as pct

Record = Mapping[str, Any]
GATES = {
    "all": "all questions",
    "recognised": "picture named",
    "ranked": "right name ranked first",
    "grounded": "wrong from a blank picture",
    "recognised+grounded": "named, and wrong from a blank picture",
}
COMPARISONS = {
    "a,c": "language model, name → VLM, picture",
    "b,c": "VLM, name → VLM, picture",
    "a,b": "language model, name → VLM, name",
}
_LIMITS = (
    "Intervals are bootstrap percentiles over entities, as an entity's questions share its picture. "
    "McNemar's test takes questions as independent and is therefore too sure of itself.",
    "An answer is graded by whole-word match of an alias in its first line; the table of answers shows which matched.",
    "Recognition is measured by free naming and by ranking all names, under several prompts: a model may know one "
    "and still fail to name it under a prompt that it was not trained on.",
    "Attribution is a first-order estimate; the scatter against truly patched nodes shows how far to trust it.",
    "A probe shows that the entity can be read off linearly, not that the model reads it. Flags are layouts of colour, "
    "so a tower with random weights belongs beside every probe curve.",
    "Models assembled for this study are small and narrow. What holds for them need not hold for larger VLMs, "
    "and the numbers reproduce no table of the paper (arXiv 2512.03276).",
)


@dataclass(frozen=True)
class Table:
    """A table with a title that says what it shows."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def tables(summary: Record) -> list[Table]:
    """All tables of numbers, the headline first."""
    return [
        _recall(summary),
        _degradation("Degradation", summary, ("a,c", "b,c"), ("all", "recognised")),
        _degradation("Degradation: every comparison and gate", summary, tuple(COMPARISONS), tuple(GATES)),
        _by_relation(summary),
        _recognition(summary),
        _patching(summary),
        _probes(summary),
        _resolution(summary),
        _method_agreement(summary),
        _recovery(summary),
    ]


def _recall(summary: Record) -> Table:
    style = summary["held_out"]["style"]
    rows: list[tuple[str, ...]] = []
    for model, conditions in summary["accuracy"].items():
        seen = summary["recognition"][model][style]
        for gate in ("all", "recognised"):
            values = [pct(conditions[c][gate]) for c in CONDITIONS]
            n = str(conditions["image"][gate]["n_questions"])
            rows.append(
                (
                    _label(summary, model),
                    GATES[gate],
                    n,
                    pct(seen["free"]),
                    pct(seen["ranked"]),
                    *values,
                )
            )
    head = ("model", "questions", "n", "names the picture", "ranks its name first", *CONDITIONS.values())
    source = summary["held_out"]["art_source"]
    return Table(
        f"Recognition and recall on the held-out art source ({source})",
        head,
        tuple(rows),
        "Brackets: 95 % intervals, bootstrap over entities.",
    )


def _label(summary: Record, model: str) -> str:
    return f"{model} (control)" if summary["models"][model]["role"] == "control" else model


def _degradation(title: str, summary: Record, comparisons: Sequence[str], gates: Sequence[str]) -> Table:
    rows = [
        (_label(summary, model), COMPARISONS[c], GATES[gate], str(row["n_questions"]), *_loss(row))
        for model, found in summary["degradation"].items()
        for c in comparisons
        for gate in gates
        for row in [found[c][gate]["all"]]
    ]
    head = (
        "model",
        "comparison",
        "questions",
        "n",
        "reference",
        "compared",
        "degradation",
        "lost / gained",
        "McNemar",
        "Holm",
    )
    note = (
        "Degradation: (reference - compared) / reference. Holm: adjusted over the VLMs, on all questions. "
        "McNemar's test takes questions as independent."
    )
    return Table(title, head, tuple(rows), note)


def _loss(row: Record) -> tuple[str, ...]:
    return (
        pct(row["reference"]),
        pct(row["compared"]),
        pct(row["degradation"]),
        f"{row['lost']} / {row['gained']}",
        words.p_words(row["p_value"]),
        words.p_words(row["p_holm"]) if "p_holm" in row else "",
    )


def _by_relation(summary: Record) -> Table:
    rows = [
        (_label(summary, model), relation, str(row["n_questions"]), *_loss(row)[:5])
        for model, comparisons in summary["degradation"].items()
        for relation, row in comparisons["a,c"]["all"].items()
        if relation != "all"
    ]
    head = ("model", "relation", "n", "language model, name", "VLM, picture", "degradation", "lost / gained", "McNemar")
    return Table(
        "Degradation by relation (all questions)", head, tuple(rows), "These tests are not adjusted for their number."
    )


def _recognition(summary: Record) -> Table:
    rows = [
        (_label(summary, model), style, found["art_source"], _prompt(prompt), *_recognised(part))
        for model, styles in summary["recognition"].items()
        for style, found in styles.items()
        for prompt, part in [("any", found), *found["by_prompt"].items()]
    ]
    head = ("model", "style", "art source", "prompt", "pictures", "names it", "ranks its name first")
    return Table(
        "Recognition by picture style and prompt", head, tuple(rows), f"Ranking is among {summary['n_names']} names."
    )


def _recognised(part: Record) -> tuple[str, str, str]:
    return str(part["free"]["n_questions"]), pct(part["free"]), pct(part["ranked"])


def _prompt(name: str) -> str:
    return "any of them" if name == "any" else f"prompt {int(name) + 1}"


def _patching(summary: Record) -> Table:
    rows = [(model, *row) for model, found in summary["patching"].items() for row in _patched(found)]
    head = ("model", "intervention", "lost facts recovered", "… on the test split", "right answers broken")
    counts = "; ".join(f"{m}: {p['n_lost']} lost, {p['n_kept']} kept" for m, p in summary["patching"].items())
    return Table(
        "Activation patching", head, tuple(rows), f"Questions: {counts}." if counts else "No model was patched."
    )


def _patched(found: Record) -> Iterator[tuple[str, str, str, str]]:
    for name, text in INTERVENTIONS.items():
        row, test = found["recovered"].get(name), found["recovered_test"].get(name, {})
        if row is not None:
            yield text, pct(row), pct(test), pct(found["broken"].get(name, {}))
    back = found["back_patch"]
    yield f"back-patching, pair of dev{_pair(back['pair'])}", "", pct(back["test"]), ""
    yield f"… best pair (oracle){_pair(back['oracle_pair'])}", "", pct(back["oracle_pair_test"]), ""
    yield "… any pair (oracle)", "", pct(back["oracle_any_pair_test"]), ""
    yield "wrong entity: answers that become its fact", pct(found["moved_to_donor"]), "", ""


def _pair(pair: Sequence[int] | None) -> str:
    return f": layer {pair[0]} to {pair[1]}" if pair else ""


def _probes(summary: Record) -> Table:
    rows = [
        (_label(summary, model), style, feature, *_curve(curve))
        for model, styles in summary["probes"].items()
        for style, features in styles.items()
        for feature, curve in features.items()
    ]
    head = (
        "model",
        "test style",
        "feature",
        "pictures",
        "at the embedding",
        "at best",
        "best layer",
        "90 % of best at layer",
        "shuffled, best",
    )
    return Table("Probes for the entity", head, tuple(rows), "Layer 0 is the input of the first layer.")


def _curve(curve: Record) -> tuple[str, ...]:
    resolved = f"{curve['resolved_layer']} ({100 * curve['resolved_depth']:.0f} %)"
    ends = (pct(curve["first"]), pct(curve["best"]), str(curve["best_layer"]))
    return (str(curve["n_test"]), *ends, resolved, f"{100 * curve['shuffled_best']:.0f} %")


def _resolution(summary: Record) -> Table:
    rows = [
        (_label(summary, model), METHODS[r["method"]], r["readout"], *_resolved(r))
        for model, found in summary["resolution"].items()
        for r in found["readouts"]
    ]
    head = ("model", "method", "read at", "entities", "at best", "other names there", "test", "resolved at", "layer")
    note = (
        "Lenses and Patchscopes: share of entities whose name's first token ranks first among all names'; resolved "
        "where 90 % of the curve's own maximum is reached. Knockout: loss in nats (name), share of first ranks, or "
        "logits (answer); resolved where half of the summed loss is reached. Test: permuted names, over all layers. "
        "A depth is as fine as the layers or windows that are read, whatever its interval."
    )
    return Table("Resolution depth", head, tuple(rows), note)


def _resolved(row: Record) -> tuple[str, ...]:
    best = row["best"]
    depth = "reads nothing" if row["value"] is None else pct(row)
    layer = "" if row["layer"] is None else str(row["layer"])
    values = (f"{best['value']:.2f} (layer {best['layer']})", f"{best['chance']:.2f}")
    return (str(row["n_entities"]), *values, words.p_words(row["p_value"]), depth, layer)


def _method_agreement(summary: Record) -> Table:
    rows = [
        (_label(summary, model), _pair_of_methods(pair), pct(gap, signed=True), "")
        for model, found in summary["resolution"].items()
        for pair, gap in found["differences"].items()
    ]
    rows += [
        ("order of the VLMs", _pair_of_methods(pair), "", f"{o['tau']:+.1f} (n = {o['n_models']})")
        for pair, o in summary["resolution_agreement"].items()
        if o["tau"] is not None
    ]
    note = "Methods that read nothing have no depth to compare. Kendall's tau of two models only says same or opposite."
    return Table("Agreement of the methods", ("model", "methods", "difference of depth", "tau"), tuple(rows), note)


def _pair_of_methods(pair: str) -> str:
    return " - ".join(METHODS[m] for m in pair.split(" - "))


def _recovery(summary: Record) -> Table:
    rows = [
        (model, text, pct(row["accuracy"]), pct(row["closed"]), *_by_name(row))
        for model, strategies in summary["recovery"].items()
        for s, text in STRATEGIES.items()
        for row in [strategies.get(s)]
        if row is not None
    ]
    head = (
        "model",
        "prompt",
        "right answers",
        "share of degradation closed",
        "… when the written name is right",
        "… when it is wrong",
    )
    return Table("Recovery by prompting", head, tuple(rows))


def _by_name(row: Record) -> tuple[str, ...]:
    parts = (row["name_right"], row["name_wrong"])
    return tuple(f"{pct(part)} (n = {part['n_questions']})" if part["n_questions"] else "" for part in parts)


@dataclass(frozen=True)
class Answer:
    """One graded answer, as the searchable table shows it."""

    picture: str
    """Picture id; its thumbnail's key."""
    name: str
    relation: str
    model: str
    condition: str
    text: str
    correct: bool
    alias: str
    """The alias that matched; empty when wrong."""
    accepted: str


def answers(study: Study) -> Iterator[Answer]:
    """Every graded answer, by question, then model and condition."""
    frames = [_joined(study, m).with_columns(model=pl.lit(m), order=pl.lit(i)) for i, m in enumerate(study.answers)]
    table = pl.concat(frames).sort("question_id", "order", "condition")
    for row in table.iter_rows(named=True):
        yield Answer(
            row["picture_id"] if row["condition"] == "image" else "",
            row["name"],
            row["relation"],
            row["model"],
            {"text": "name", "image": "picture", "blank": "blank picture"}.get(row["condition"], row["condition"]),
            row["answer_text"].strip(),
            row["correct"],
            row["matched_alias"] or "",
            ", ".join(row["answer_aliases"]),
        )


def _joined(study: Study, model: str) -> pl.DataFrame:
    asked = study.questions[model].select("question_id", "name", "picture_id", "answer_aliases")
    columns = ["question_id", "relation", "condition", "answer_text", "correct", "matched_alias"]
    return study.answers[model].select(columns).join(asked, on="question_id", how="inner")


def limits(summary: Record) -> Sequence[str]:
    """What the numbers cannot say; those that depend on the data name their n."""
    few = summary["n_entities"] < words.FEW_ENTITIES
    grain = "intervals from so few entities are too narrow" if few else "differences of a few points cannot be seen"
    return (f"{summary['n_entities']} entities and {summary['n_questions']} questions: {grain}.", *_LIMITS)
