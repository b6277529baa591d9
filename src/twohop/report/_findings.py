"""The answer in sentences, put together from the summary's numbers: what an interval does not show is not claimed.

Three questions (study, "The claim"): is recall from a picture worse than from a name, at which depth is the entity
known, and can the loss be repaired?
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from twohop.figures import INSTRUMENTS, STRATEGIES, depth_words, vlms, words
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
    """The three questions, answered; a fourth where two VLMs share a backbone."""
    found = [recall(summary), depth(summary), repair(summary)]
    return [*found, apart(summary)] if summary["told_apart"] else found


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
    sentences += [_too_late(summary, m) for m in summary["resolution"] if summary["models"][m]["role"] != "backbone"]
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
    if centre and backbone:
        text += (
            f" Its MLPs' attribution at the picture is centred at {pct(centre)} of the depth; its language "
            f"model's at the name at {pct(backbone)}.{_likeness(summary, model)}"
        )
    return text


def _too_late(summary: Record, model: str) -> str:
    """The resolution depths against the depth at which the language model's MLPs recall; a verdict only where every
    defined depth's interval lies on one side.
    """
    resolved = summary["resolution"][model]
    text = f"{model}: by four methods the entity is resolved at these depths: {depth_words(resolved)}."
    if resolved["spread"] is not None:
        text += f" They span {100 * resolved['spread']:.0f} % of the depth."
    recall_at = _centre(summary, summary["models"][model]["backbone"], "text")
    known = [d for d in resolved["methods"].values() if d["value"] is not None]
    if recall_at is None or not known:
        return text
    text += f" The language model's MLPs recall from a name around {pct(recall_at)} of the depth: "
    if recall_at["low"] is None or any(d["low"] is None for d in known):
        return text + "there are too few data to say which comes first."
    if all(d["low"] > recall_at["high"] for d in known):
        return text + "every method that reads anything puts the entity after it, so too late to reuse it."
    if all(d["high"] < recall_at["low"] for d in known):
        return text + "every method that reads anything puts the entity before it, so early enough to reuse it."
    return text + "the methods' intervals do not agree on which comes first."


def apart(summary: Record) -> Finding:
    """Are VLMs of one language model told apart, by which instruments, and do those agree?"""
    pairs: list[Record] = summary["told_apart"]
    verdict = "; ".join(f"{p['first']} and {p['second']}: {_apart_verdict(p['by'])}" for p in pairs)
    return Finding(
        "Are VLMs of one language model told apart?", verdict, tuple(s for p in pairs for s in _apart_sentences(p))
    )


def _apart_verdict(by: Mapping[str, Record]) -> str:
    told = [INSTRUMENTS[k] for k, row in by.items() if row["apart"]]
    return f"yes, by {words.listed(told)}" if told else "not shown by any instrument"


def _apart_sentences(pair: Record) -> list[str]:
    by: Mapping[str, Record] = pair["by"]
    first, second = pair["first"], pair["second"]
    known = {k: row for k, row in by.items() if row["value"] is not None}
    told = [f"{INSTRUMENTS[k]} {pct(row, signed=True)}" for k, row in known.items() if row["apart"]]
    alike = [f"{INSTRUMENTS[k]} {pct(row, signed=True)}" for k, row in known.items() if not row["apart"]]
    sentences = [
        f"{first} minus {second}, the same entities drawn for both: "
        + "; ".join(
            [f"the interval leaves out zero for {words.listed(told)}"] * bool(told)
            + [f"it does not for {words.listed(alike)}"] * bool(alike)
        )
        + "."
    ]
    one = [f"{INSTRUMENTS[k]} (only {row['reads'][0]})" for k, row in by.items() if len(row.get("reads", ())) == 1]
    if one:
        sentences.append(
            f"Read in one of the two alone, so without a difference of depth: {words.listed(one)}. That a reading is "
            "shown in one and not in the other is itself no test of their difference."
        )
    return [*sentences, *_disagreement(known, first, second)]


def _disagreement(known: Mapping[str, Record], first: str, second: str) -> list[str]:
    """Instruments of depth that put the same pair in opposite orders."""
    depths = {k: row for k, row in known.items() if k != "degradation" and row["apart"]}
    deeper = [INSTRUMENTS[k] for k, row in depths.items() if row["value"] > 0]
    earlier = [INSTRUMENTS[k] for k, row in depths.items() if row["value"] < 0]
    if not deeper or not earlier:
        return []
    return [
        f"The instruments disagree: by {words.listed(deeper)} {first} is the later one, by {words.listed(earlier)} "
        f"{second} is."
    ]


def _likeness(summary: Record, model: str) -> str:
    alike = summary["profiles"].get(model, {}).get("image")
    if alike is None:
        return ""
    return (
        f" Over layers, components and tokens the two profiles of |score| have cosine {words.plain(alike['cosine'])} "
        f"and rank correlation {words.plain(alike['spearman'])} on {alike['n_questions']} shared questions."
    )


def _centre(summary: Record, model: str, run: str) -> Record | None:
    found = summary["attribution"].get(model, {}).get(run, {}).get("mlp_centre_entity")
    return found if found and found["value"] is not None else None


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
            sentences += _beside_sentence(model, summary["recovery"][model])
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
        f"entity's fact, which {pct(found['moved_to_donor_without_patch'])} are without a patch (difference "
        f"{pct(found['moved_by_patch'], signed=True)}: {zero(found['moved_by_patch'])}). "
        f"Back-patching (pair chosen on the dev split) brings back {pct(found['back_patch']['test'])} of the test "
        f"split."
    )
    change = found["logprob"]["lost"].get("heuristic", {})
    text += f" The patch changes the right answer's log-probability by {words.nats(change)} nats ({zero(change)})."
    if "heuristic" in broken:
        text += f" Of {found['n_kept']} right answers the same patch breaks {pct(broken['heuristic'])}."
    return text


def _beside_sentence(model: str, found: Record) -> list[str]:
    """The prompts that a user could type, beside the patch."""
    compared = {s: r["beside_patch"] for s, r in found.items() if s != "oracle_name" and "beside_patch" in r}
    parts = [
        f"“{STRATEGIES.get(s, s)}” brings back {pct(r['prompt'])} (difference {pct(r['difference'], signed=True)}: "
        f"{zero(r['difference'])})"
        for s, r in compared.items()
        if r["n_questions"]
    ]
    if not parts:
        return []
    first = next(iter(compared.values()))
    asked = f"the same {first['n_questions']} lost facts{few(first['patch']['n_entities'])}"
    return [f"{model}, {asked}: the patch brings back {pct(first['patch'])}; {words.listed(parts)}."]


def _prompt_sentence(model: str, found: Record) -> str:
    tried = [(STRATEGIES[s], found[s]) for s in STRATEGIES if s in found and s != "direct"]
    parts = [
        f"{words_} {pct(r['accuracy'])} (closes {pct(r['closed'])} of the degradation; {zero(r['closed'])})"
        for words_, r in tried
    ]
    direct = pct(found["direct"]["accuracy"]) if "direct" in found else "undefined"
    return f"{model}, by prompt: direct {direct}, {words.listed(parts)}."
