"""The report's tables: plain headings and rows of text, made from the summary and the study."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from twohop.analysis import judge
from twohop.figures import CONDITIONS, INSTRUMENTS, INTERVENTIONS, METHODS, STRATEGIES, Study, pair, words
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
    "Intervals are bootstraps over entities (BCa, widened for few entities), as an entity's questions share its "
    "picture; docs/instrument.md says how often they cover. "
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
        _two_by_two(summary),
        _by_relation(summary),
        _recognition(summary),
        _depth(summary),
        _likeness(summary),
        _agreement(summary),
        _patching(summary),
        _wrong_entity(summary),
        _probes(summary),
        _resolution(summary),
        _method_agreement(summary),
        _told_apart(summary),
        _recovery(summary),
        _beside(summary),
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


def funnel_table(funnel: pl.DataFrame) -> Table:
    """Which filters lie between the source's entities and those that were asked about (`schemas.FUNNEL`)."""
    rows = [
        (row["filter"], str(row["rows_in"]), str(row["dropped"]), str(row["rows_out"]), ", ".join(row["examples"]))
        for row in funnel.iter_rows(named=True)
    ]
    return Table(
        "From the source's entities to those asked about",
        ("filter", "entities in", "left out", "left", "first of those left out"),
        tuple(rows),
        "An entity counts for the first filter that leaves it out.",
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


def _two_by_two(summary: Record) -> Table:
    rows = [
        (_label(summary, model), COMPARISONS[c], GATES[gate], str(row["n_questions"]), *_cells(row))
        for model, found in summary["degradation"].items()
        for c in ("a,c", "b,c")
        for gate in GATES
        for row in [found[c][gate]["all"]]
    ]
    head = ("model", "comparison", "questions", "n", "both right", "lost", "gained", "both wrong", "McNemar")
    note = (
        "Lost: right from the name, wrong from the picture. Gained: the reverse. McNemar's exact test compares the two."
    )
    return Table("Right and wrong, question by question", head, tuple(rows), note)


def _cells(row: Record) -> tuple[str, ...]:
    counts = (str(row[name]) for name in ("both_right", "lost", "gained", "both_wrong"))
    return (*counts, words.p_words(row["p_value"]))


def _by_relation(summary: Record) -> Table:
    rows = [
        (_label(summary, model), relation, COMPARISONS[c], GATES[gate], str(row["n_questions"]), *_loss(row)[:5])
        for model, comparisons in summary["degradation"].items()
        for relation in comparisons["a,c"]["all"]
        if relation != "all"
        for c in ("a,c", "b,c")
        for gate in ("all", "recognised", "grounded", "recognised+grounded")
        for row in [comparisons[c][gate].get(relation)]
        if row is not None
    ]
    head = (
        "model",
        "relation",
        "comparison",
        "questions",
        "n",
        "reference",
        "compared",
        "degradation",
        "lost / gained",
        "McNemar",
    )
    return Table(
        "Degradation by relation and gate", head, tuple(rows), "These tests are not adjusted for their number."
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


_RUNS = {"text": "name", "image": "picture"}
_THIRDS = ("early", "middle", "late")


def _depth(summary: Record) -> Table:
    rows = [
        (_label(summary, model), _RUNS[run], str(found["n_examples"]), *_depth_row(found))
        for model, runs in summary["attribution"].items()
        for run, found in runs.items()
    ]
    head = (
        "model",
        "prompt",
        "questions",
        *(f"{third} third" for third in _THIRDS),
        "MLPs",
        "attention",
        "centre of the MLPs",
        "… at the entity",
    )
    note = (
        "Shares of |score| over what MLPs and attention write; centre of mass in depth, 0 the first layer, 1 the last. "
        "Brackets: 95 % intervals, bootstrap over entities."
    )
    return Table("Attribution by depth and component", head, tuple(rows), note)


def _depth_row(found: Record) -> tuple[str, ...]:
    thirds = [pct(found["share_by_third"].get(third, {})) for third in _THIRDS]
    parts = [pct(found["share_by_component"].get(kind, {})) for kind in ("mlp_write", "attn_write")]
    return (*thirds, *parts, words.plain(found["mlp_centre"]), words.plain(found["mlp_centre_entity"]))


def _likeness(summary: Record) -> Table:
    rows = [
        (
            model,
            _RUNS[run],
            str(found["n_questions"]),
            str(found["n_nodes"]),
            words.plain(found["cosine"]),
            words.plain(found["spearman"]),
        )
        for model, runs in summary["profiles"].items()
        for run, found in runs.items()
    ]
    head = ("model", "prompt", "shared questions", "nodes", "cosine", "Spearman")
    note = (
        "Profile: mean |score| of every layer, component and token group. "
        "A draw takes the same entities for both models."
    )
    return Table("Likeness to the language model's attribution profile", head, tuple(rows), note)


def _agreement(summary: Record) -> Table:
    rows = [
        (_label(summary, model), _RUNS[run], kind.replace("_", " "), depth, *_agreed(part))
        for model, runs in summary["attribution"].items()
        for run, found in runs.items()
        for kind, whole in found.get("validation", {}).items()
        for depth, part in [("all", whole), *whole["by_third"].items()]
    ]
    head = ("model", "prompt", "kind of node", "third", "nodes", "Pearson", "Spearman", "Spearman of magnitudes")
    note = (
        "Estimate against true patching of the same nodes (a sample of questions, layers and heads): signed score with "
        "the change of the metric; magnitude with its absolute value."
    )
    return Table("Attribution against true patching, by kind of node and depth", head, tuple(rows), note)


def _agreed(part: Record) -> tuple[str, ...]:
    values = [part[k] for k in ("pearson", "spearman", "spearman_magnitude")]
    return str(part["n_nodes"]), *("undefined" if v is None else f"{v:.2f}" for v in values)


def _patching(summary: Record) -> Table:
    rows = [(model, *row) for model, found in summary["patching"].items() for row in _patched(found)]
    head = (
        "model",
        "intervention",
        "lost facts recovered",
        "… on the test split",
        "log P(right), lost facts",
        "right answers broken",
        "log P(right), kept facts",
    )
    counts = "; ".join(f"{m}: {p['n_lost']} lost, {p['n_kept']} kept" for m, p in summary["patching"].items())
    note = (
        f"Questions: {counts}. log P(right): mean change by the patch of the log-probability of the right answer, in "
        "nats, teacher-forced; of back-patching, and of its lost facts, on the test split."
    )
    return Table("Activation patching", head, tuple(rows), note if counts else "No model was patched.")


def _patched(found: Record) -> Iterator[tuple[str, ...]]:
    lost, kept = found["logprob"]["lost"], found["logprob"]["kept"]
    for name, text in INTERVENTIONS.items():
        row, test = found["recovered"].get(name), found["recovered_test"].get(name, {})
        if row is not None:
            broken = pct(found["broken"].get(name, {}))
            yield text, pct(row), pct(test), words.nats(lost.get(name, {})), broken, words.nats(kept.get(name, {}))
    back = found["back_patch"]
    chosen = (
        words.nats(lost["back_patch"]),
        pct(found["broken"].get("back_patch", {})),
        words.nats(kept["back_patch"]),
    )
    yield f"back-patching, pair of dev{_pair(back['pair'])}", "", pct(back["test"]), *chosen
    yield f"… best pair (oracle){_pair(back['oracle_pair'])}", "", pct(back["oracle_pair_test"]), "", "", ""
    yield "… any pair (oracle)", "", pct(back["oracle_any_pair_test"]), "", "", ""


def _wrong_entity(summary: Record) -> Table:
    rows = [
        (
            model,
            str(found["moved_to_donor"]["n_questions"]),
            pct(found["moved_to_donor_without_patch"]),
            pct(found["moved_to_donor"]),
            pct(found["moved_by_patch"], signed=True),
            words.nats(found["towards_donor"]),
        )
        for model, found in summary["patching"].items()
    ]
    head = (
        "model",
        "lost facts",
        "unpatched answer is that entity's fact",
        "patched answer is",
        "difference",
        "log P(its fact) - log P(right), change",
    )
    note = "The difference is paired; the last column is in nats, teacher-forced."
    return Table("A wrong entity's activations: does the answer become its fact?", head, tuple(rows), note)


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
        "selectivity at best",
    )
    return Table(
        "Probes for the entity",
        head,
        tuple(rows),
        "Layer 0 is the input of the first layer. Selectivity: accuracy minus that with shuffled labels.",
    )


def _curve(curve: Record) -> tuple[str, ...]:
    resolved = f"{curve['resolved_layer']} ({pct(curve['resolved_depth'])})"
    ends = (pct(curve["first"]), pct(curve["best"]), str(curve["best_layer"]))
    return (str(curve["n_test"]), *ends, resolved, f"{100 * curve['shuffled_best']:.0f} %", pct(curve["selectivity"]))


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


def _told_apart(summary: Record) -> Table:
    rows = [
        (pair["first"], pair["second"], INSTRUMENTS[name], pct(row, signed=True), _apart_words(row))
        for pair in summary["told_apart"]
        for name, row in pair["by"].items()
    ]
    note = (
        "First minus second, in points of the degradation or of the depth; the same entities are drawn for both. Ends "
        "of depths are moved out by the distance of the layers that were read: what lies between them is not known."
    )
    head = ("first", "second", "instrument", "difference", "the interval")
    return Table("Told apart: VLMs of one language model", head, tuple(rows), note)


def _apart_words(row: Record) -> str:
    if row["value"] is None and "reads" in row:
        return f"nothing is read in {'either' if not row['reads'] else 'one of them'}"
    return words.zero_clause(row).removeprefix("the interval ")


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


def _beside(summary: Record) -> Table:
    rows = [
        (model, text, str(found["n_questions"]), *_compared(found))
        for model, strategies in summary["recovery"].items()
        for s, text in STRATEGIES.items()
        for found in [strategies.get(s, {}).get("beside_patch")]
        if found is not None
    ]
    head = (
        "model",
        "prompt",
        "lost facts",
        "the prompt brings back",
        "the patch brings back",
        "difference",
        "both / only prompt / only patch / neither",
    )
    note = "The same questions for both: the backbone is right, the VLM wrong, the picture recognised."
    return Table("Patching beside prompting", head, tuple(rows), note)


def _compared(found: Record) -> tuple[str, ...]:
    cells = " / ".join(str(found[k]) for k in ("both", "only_prompt", "only_patch", "neither"))
    return pct(found["prompt"]), pct(found["patch"]), pct(found["difference"], signed=True), cells


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
    reason: str
    """Why it is wrong (`twohop.analysis.judge`); empty when right."""
    gates: str
    """The gates that the question passes for this model; empty for a language model."""
    named: str
    """What the model writes when it is asked for the name of the same picture, under every prompt."""


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
            "" if row["correct"] else judge(row["answer_text"], row["answer_aliases"]).reason,
            row["gates"] or "",
            (row["named"] or "") if row["condition"] == "image" else "",
        )


def _joined(study: Study, model: str) -> pl.DataFrame:
    asked = study.questions[model].select("question_id", "name", "picture_id", "answer_aliases")
    columns = ["question_id", "relation", "condition", "answer_text", "correct", "matched_alias"]
    table = study.answers[model].select(columns).join(asked, on="question_id", how="inner")
    if study.models[model].role == "backbone":
        return table.with_columns(gates=pl.lit(None, pl.String), named=pl.lit(None, pl.String))
    table = table.join(_gates(study, model), on="question_id", how="left")
    return table.join(_named(study, model), on="picture_id", how="left")


def _gates(study: Study, model: str) -> pl.DataFrame:
    """Per question, the names of the flags that gates ask for."""
    flags = ("recognised", "ranked", "grounded")
    passed = [pl.when(pl.col(f)).then(pl.lit(f)) for f in flags]
    return pair(study, model).select("question_id", gates=pl.concat_str(passed, separator=", ", ignore_nulls=True))


def _named(study: Study, model: str) -> pl.DataFrame:
    """Per picture, what was written under each recognition prompt, with its grade."""
    said = study.recognition[model].sort("picture_id", "prompt_id")
    grade = pl.when(pl.col("correct")).then(pl.lit(" (right)")).otherwise(pl.lit(" (wrong)"))
    text = pl.col("answer_text").str.strip_chars() + grade
    return said.group_by("picture_id").agg(text.str.join("; ").alias("named"))


def limits(summary: Record) -> Sequence[str]:
    """What the numbers cannot say; those that depend on the data name their n."""
    few = summary["n_entities"] < words.FEW_ENTITIES
    grain = "intervals from so few entities are too narrow" if few else "differences of a few points cannot be seen"
    same = {m: e["same_weights_as"] for m, e in summary["models"].items() if e.get("same_weights_as")}
    native = tuple(
        f"{vlm} is compared with its own weights, run on text alone ({backbone}): what its training has cost the "
        "language model cannot be seen."
        for backbone, vlm in same.items()
    )
    first = f"{summary['n_entities']} entities and {summary['n_questions']} questions: {grain}."
    return (first, *native, *_LIMITS)
