"""The answer in sentences, put together from the summary's numbers: what an interval does not show is not claimed.

Three questions (study, "The claim"): is recall from a picture worse than from a name, at which depth is the entity
known, and can the loss be repaired?
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from twohop.figures import STRATEGIES, vlms, words
from twohop.figures.words import p_words
from twohop.figures.words import percent as pct
from twohop.figures.words import small as few
from twohop.figures.words import zero_clause as zero

Record = Mapping[str, Any]
ALPHA = 0.05
"""Level of the tests; intervals are 95 %."""


@dataclass(frozen=True)
class Finding:
    """One question, a verdict in a few words, and the sentences that carry it."""

    question: str
    verdict: str
    sentences: tuple[str, ...]


def find(summary: Record) -> list[Finding]:
    """The three questions, answered."""
    return [recall(summary), depth(summary), repair(summary)]


def recall(summary: Record) -> Finding:
    """Does the VLM recall fewer facts from a picture than its language model from a name?"""
    models = vlms(summary)
    rows = {m: summary["degradation"][m]["a,c"]["all"]["all"] for m in models}
    worse = [m for m in models if _is_worse(rows[m])]
    open_ = [m for m in models if not _is_worse(rows[m])]
    verdict = "; ".join(
        [f"Yes for {words.listed(worse)}"] * bool(worse)
        + [f"{'not' if worse else 'Not'} shown for {words.listed(open_)}"] * bool(open_)
    )
    sentences = [_recall_sentence(summary, m) for m in models]
    if len(models) > 1:
        sentences.append(_difference({m: rows[m]["degradation"] for m in models}, "degradation"))
    return Finding(
        "Does it recall fewer facts from a picture than its language model from a name?", verdict, tuple(sentences)
    )


def _is_worse(row: Record) -> bool:
    p = row.get("p_holm")
    return words.sign(row["degradation"]) == "above" and p is not None and p < ALPHA


def _recall_sentence(summary: Record, model: str) -> str:
    tree = summary["degradation"][model]
    row, known = tree["a,c"]["all"]["all"], tree["a,c"]["recognised"]["all"]
    own = tree["b,c"]["all"]["all"]["degradation"]
    seen = summary["recognition"][model][summary["held_out"]["style"]]
    text = (
        f"{model} answers {pct(row['compared'])} of {row['n_questions']} questions from the picture; its language "
        f"model answers {pct(row['reference'])} from the name{few(row['n_entities'])}. Relative degradation: "
        f"{pct(row['degradation'])} ({zero(row['degradation'])}; McNemar {p_words(row['p_value'])}, "
        f"Holm-adjusted {p_words(row.get('p_holm'))}); against its own answers from the name: {pct(own)}. "
        f"It names {pct(seen['free'])} of the pictures of the held-out art source and ranks the right name first "
        f"for {pct(seen['ranked'])}. "
    )
    if not known["n_questions"]:
        return text + "It names none of the pictures that were asked about: nothing can be said of recognised ones."
    loss = known["degradation"]
    return text + (
        f"On the {known['n_questions']} questions whose picture it names the degradation is {pct(loss)} "
        f"({zero(loss)}{few(known['n_entities'])})."
    )


def _difference(intervals: Mapping[str, Record], what: str) -> str:
    names = list(intervals)
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    apart = [f"{a} and {b}" for a, b in pairs if words.overlap(intervals[a], intervals[b]) is False]
    if apart:
        return f"The intervals of the {what} do not overlap for {words.listed(apart)}: these models differ."
    if all(words.overlap(intervals[a], intervals[b]) is None for a, b in pairs):
        return f"There are too few data to compare the models' {what}."
    return f"The models' intervals of the {what} overlap, so these data do not show that the models differ in it."


def depth(summary: Record) -> Finding:
    """At which depth does the model know what it sees?"""
    style, feature = summary["held_out"]["style"], "image_last"
    found: dict[str, Record] = {}
    for model, styles in summary["probes"].items():
        curves = styles.get(style, {})
        if curves:
            feature = feature if feature in curves else next(iter(curves))
            found[model] = curves[feature]
    own = [m for m in vlms(summary) if m in found]
    verdict = "; ".join(_depth_words(m, found[m]) for m in own) or "Not measured"
    sentences = [_depth_sentence(summary, m, curve) for m, curve in found.items()]
    if len(own) > 1:
        sentences.append(_difference({m: found[m]["first"] for m in own}, "accuracy at the embedding"))
        sentences.append(_difference({m: found[m]["resolved_depth"] for m in own}, "depth of 90 % of the best probe"))
    return Finding("At which depth does it know what it sees?", verdict, tuple(sentences))


def _depth_words(model: str, curve: Record) -> str:
    best = curve["best"]["value"]
    return f"{model}: by {pct(curve['resolved_depth'])} of the depth (best probe {100 * best:.0f} %)"


def _depth_sentence(summary: Record, model: str, curve: Record) -> str:
    entry = summary["models"][model]
    control = f" (control{': ' * bool(entry['note'])}{entry['note']})" if entry["role"] == "control" else ""
    text = (
        f"{model}{control}: on pictures of a source that it never saw, a linear probe reads the entity off the "
        f"image with {pct(curve['first'])} accuracy at the input of the first layer and {pct(curve['best'])} at best "
        f"(layer {curve['best_layer']}; {curve['n_test']} pictures; with shuffled labels at most "
        f"{100 * curve['shuffled_best']:.0f} %; selectivity at best {pct(curve['selectivity'])}). It reaches 90 % of "
        f"that best at layer {curve['resolved_layer']}, at {pct(curve['resolved_depth'])} of the depth."
    )
    centre, backbone = _centre(summary, model, "image"), _centre(summary, entry["backbone"], "text")
    if centre is not None and backbone is not None:
        text += (
            f" Its MLPs' attribution at the picture is centred at {100 * centre:.0f} % of the depth; its language "
            f"model's at the name at {100 * backbone:.0f} %."
        )
    return text


def _centre(summary: Record, model: str, run: str) -> float | None:
    return summary["attribution"].get(model, {}).get(run, {}).get("mlp_centre_entity")


def repair(summary: Record) -> Finding:
    """Can the loss be repaired, by patching or by prompting?"""
    sentences: list[str] = []
    works: list[str] = []
    for model in vlms(summary):
        if model in summary["patching"]:
            sentences.append(_patch_sentence(model, summary["patching"][model]))
            if words.sign(summary["patching"][model]["heuristic_minus_random"]) == "above":
                works.append(f"patching repairs more than its control in {model}")
        if model in summary["recovery"]:
            sentences.append(_prompt_sentence(model, summary["recovery"][model]))
            works += [f"{s} in {model}" for s in _closing(summary["recovery"][model])]
    nothing = "No repair is shown by these data" if sentences else "Not measured"
    verdict = f"In part: {'; '.join(works)}" if works else nothing
    return Finding("Can the loss be repaired?", verdict, tuple(sentences))


def _closing(recovery: Record) -> list[str]:
    """Strategies (without the oracle) whose closed share has an interval above zero."""
    tried = {s: r for s, r in recovery.items() if s not in ("direct", "oracle_name")}
    return [f"the prompt “{STRATEGIES.get(s, s)}”" for s, r in tried.items() if words.sign(r["closed"]) == "above"]


def _patch_sentence(model: str, found: Record) -> str:
    if not found["n_lost"]:
        return f"{model}: no fact that its language model knows is lost on a recognised picture: nothing to patch."
    recovered, broken = found["recovered"], found["broken"]
    gap = found["heuristic_minus_random"]
    text = (
        f"{model}: writing the language model's early MLP outputs into the picture's span brings back "
        f"{pct(recovered.get('heuristic', {}))} of {found['n_lost']} lost facts, a random span "
        f"{pct(recovered.get('random', {}))} (difference {pct(gap, signed=True)}: {zero(gap)}"
        f"{few(gap.get('n_entities'))}). A wrong entity's activations bring back "
        f"{pct(recovered.get('wrong_entity', {}))} and move {pct(found['moved_to_donor'])} of the answers to that "
        f"entity's fact. Back-patching (pair chosen on the dev split) brings back "
        f"{pct(found['back_patch']['test'])} of the test split."
    )
    if "heuristic" in broken:
        text += f" Of {found['n_kept']} right answers the same patch breaks {pct(broken['heuristic'])}."
    return text


def _prompt_sentence(model: str, found: Record) -> str:
    tried = [(STRATEGIES[s], found[s]) for s in STRATEGIES if s in found and s != "direct"]
    parts = [
        f"{words_} {pct(r['accuracy'])} (closes {pct(r['closed'])} of the degradation; {zero(r['closed'])})"
        for words_, r in tried
    ]
    direct = pct(found["direct"]["accuracy"]) if "direct" in found else "undefined"
    return f"{model}, by prompt: direct {direct}, {words.listed(parts)}."
