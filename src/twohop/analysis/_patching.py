"""Activation patching: which questions, which span, which donor, and what the answers say (study, section 4).

Everything here is a choice or a count; the patched runs themselves belong to the step. A patched run is a `Plan`, so
that it can be listed, stored and compared before it is made.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from twohop.analysis._statistics import bootstrap, entity_sums, ratio, share
from twohop.errors import DataError

Pair = tuple[int, int]
"""Back-patching: (later layer that is read, earlier layer that is written)."""


@dataclass(frozen=True)
class Plan:
    """One intervention on one question: what is written where, from whom."""

    question_id: str
    intervention: str
    seed: int = 0
    layers: int = 0
    """Donor layers 0 .. layers - 1; of a back-patch the layer that is written; 0 when nothing is."""
    from_layer: int | None = None
    span_start: int | None = None
    """First receiving position, counted from the first image token."""
    span_length: int = 0
    donor_id: str | None = None
    """Question whose text run gives the activations; None: no other run does (none, mean, zero, back_patch)."""


def heuristic_start(scores: Float[np.ndarray, " position"], length: int) -> int:
    """Start of the contiguous span with the largest sum of |attribution|; the first of equals.

    Raises:
        DataError: the span does not fit into the positions.
    """
    if not 0 < length <= scores.size:
        raise DataError(f"a span of {length} tokens does not fit into {scores.size} positions", "receiving span")
    sums = np.convolve(scores, np.ones(length), mode="valid")
    # convolve rounds differently from start to start: sums that differ by less than that are equal
    return int(np.flatnonzero(sums >= sums.max() - 1e-12 * np.abs(scores).sum())[0])


def random_start(n_positions: int, length: int, seed: Sequence[int]) -> int:
    """Start of a span drawn uniformly from all that fit.

    Raises:
        DataError: the span does not fit into the positions.
    """
    if not 0 < length <= n_positions:
        raise DataError(f"a span of {length} tokens does not fit into {n_positions} positions", "receiving span")
    return int(np.random.default_rng(list(seed)).integers(n_positions - length + 1))


class SpanScores:
    """|Attribution| of the receiving positions, summed over the layers that a patch writes."""

    def __init__(self, spans: pl.DataFrame, layers: int) -> None:
        self._of: dict[str, Float[np.ndarray, " position"]] = {}
        chosen = spans.filter(pl.col("layer") < layers).select("question_id", "position_scores")
        for question_id, scores in chosen.iter_rows():
            row = np.asarray(scores, dtype=float)
            self._of[question_id] = self._of[question_id] + row if question_id in self._of else row
        self._mean = _mean_profile(list(self._of.values()))

    def __contains__(self, question_id: str) -> bool:
        return question_id in self._of

    def scores(self, question_id: str, n_positions: int) -> Float[np.ndarray, " position"]:
        """The question's own scores, else the mean over scored questions (zero where none reaches).

        Raises:
            DataError: the question was scored on another number of positions.
        """
        own = self._of.get(question_id)
        if own is None:
            return np.pad(self._mean[:n_positions], (0, max(0, n_positions - self._mean.size)))
        if own.size != n_positions:
            raise DataError(
                f"attribution has {own.size} positions, the prompt {n_positions}",
                f"spans of {question_id}",
                "make score_attribution again",
            )
        return own


def _mean_profile(rows: Sequence[Float[np.ndarray, " _"]]) -> Float[np.ndarray, " position"]:
    if not rows:
        return np.zeros(0)
    total, count = (np.zeros(max(r.size for r in rows)) for _ in range(2))
    for row in rows:
        total[: row.size] += row
        count[: row.size] += 1
    return total / count


def patching_sets(
    questions: pl.DataFrame, backbone_answers: pl.DataFrame, answers: pl.DataFrame, recognition: pl.DataFrame
) -> pl.DataFrame:
    """The questions with their `set`: "lost" (a recall failure to repair) or "kept" (a right answer to break).

    lost: the backbone is right from the name, the VLM wrong from the picture, and the VLM recognises that picture:
    under any recognition prompt it names the entity or ranks its name first. kept: both are right (recognised or not).
    Adds `set` and `image_answer` to the columns of the questions table; other questions are left out.
    """
    text = backbone_answers.filter(pl.col("condition") == "text")
    image = answers.filter(pl.col("condition") == "image")
    seen = recognition.group_by("picture_id").agg((pl.col("correct") | pl.col("ranked_correct")).any().alias("seen"))
    table = (
        questions.join(text.select("question_id", pl.col("correct").alias("known")), on="question_id")
        .join(
            image.select("question_id", pl.col("correct").alias("shown"), pl.col("answer_text").alias("image_answer")),
            on="question_id",
        )
        .join(seen, on="picture_id", how="left")
    )
    lost = pl.col("known") & ~pl.col("shown") & pl.col("seen").fill_null(False)
    kept = pl.col("known") & pl.col("shown")
    name = pl.when(lost).then(pl.lit("lost")).when(kept).then(pl.lit("kept")).otherwise(None).alias("set")
    chosen = table.with_columns(name).filter(pl.col("set").is_not_null())
    return chosen.drop("known", "shown", "seen").sort("question_id")


def sample_sets(sets: pl.DataFrame, max_examples: int, seed: int) -> pl.DataFrame:
    """At most `max_examples` questions of each set, drawn without replacement, in question order."""
    parts = [sets.filter(pl.col("set") == name) for name in ("lost", "kept")]
    drawn = [p.sample(min(max_examples, p.height), seed=seed) for p in parts]
    return pl.concat(drawn).sort("set", "question_id", descending=[True, False])


def wrong_donors(sampled: pl.DataFrame, questions: pl.DataFrame, known: set[str], seed: int) -> dict[str, str]:
    """Per question, one of the same relation about another entity with another answer, which the donor model knows.

    `known`: questions that the donor model answers right from the name, so that there is a fact to move. A name with as
    many tokens is preferred. Questions without such a donor are absent.
    """
    pool = questions.filter(pl.col("question_id").is_in(sorted(known))).sort("question_id").to_dicts()
    chosen: dict[str, str] = {}
    for i, row in enumerate(sampled.sort("question_id").iter_rows(named=True)):
        own = {a.casefold() for a in row["answer_aliases"]}
        others = [
            d
            for d in pool
            if d["relation"] == row["relation"]
            and d["entity_id"] != row["entity_id"]
            and own.isdisjoint(a.casefold() for a in d["answer_aliases"])
        ]
        as_long = [d for d in others if d["n_name_tokens"] == row["n_name_tokens"]]
        if others:
            rng = np.random.default_rng([seed, i])
            chosen[row["question_id"]] = str(rng.choice([d["question_id"] for d in as_long or others]))
    return chosen


@dataclass(frozen=True)
class Planner:
    """Makes plans: the receiving span of every question for donors of any length."""

    scores: SpanScores
    positions: Mapping[str, int]
    """Receiving positions of every question: image tokens and what follows them."""
    lengths: Callable[[str], int]
    """Name tokens of a question's donor run."""
    layers: int
    seed: int

    def heuristic(self, question_id: str, intervention: str, donor_id: str, layers: int | None = None) -> Plan:
        """The span of largest summed |attribution| over the donor layers of the main patch.

        A sweep over `layers` keeps that span, so that only the depth changes. A name longer than the prompt's receiving
        positions gives its last tokens.
        """
        n = self.positions[question_id]
        length = min(self.lengths(donor_id), n)
        start = heuristic_start(self.scores.scores(question_id, n), length)
        layers = self.layers if layers is None else layers
        named = None if intervention in ("mean", "zero") else donor_id
        return Plan(question_id, intervention, self.seed, layers, None, start, length, named)

    def random(self, question_id: str, draw: int) -> Plan:
        """The question's own donor at a span drawn uniformly; `draw` tells the draws of one question apart."""
        n = self.positions[question_id]
        length = min(self.lengths(question_id), n)
        start = random_start(n, length, [self.seed, draw, zlib.crc32(question_id.encode())])
        return Plan(question_id, "random", draw, self.layers, None, start, length, question_id)


def span_mask(starts: Sequence[int | None], lengths: Sequence[int], seq: int) -> Bool[Tensor, "batch seq"]:
    """True on [start, start + length) of every row; a row without a start stays False.

    Raises:
        DataError: a span leaves its row.
    """
    mask = torch.zeros(len(starts), seq, dtype=torch.bool)
    for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        if start is None:
            continue
        if start < 0 or start + length > seq:
            raise DataError(f"span [{start}, {start + length}) leaves the row of {seq} tokens", f"row {row}")
        mask[row, start : start + length] = True
    return mask


def mean_share(outcomes: pl.DataFrame, column: str, n_boot: int, seed: int) -> dict[str, object]:
    """Mean of a flag with its 95 % bootstrap interval over entities, and how many questions and answers it rests on."""
    flags = outcomes[column].cast(pl.Float64).to_list()
    interval = share(entity_sums(outcomes["entity_id"].to_list(), [flags, [1.0] * len(flags)]), n_boot, seed)
    return {**interval.record(), "n_questions": outcomes["question_id"].n_unique(), "n_answers": len(flags)}


def difference(first: pl.DataFrame, second: pl.DataFrame, n_boot: int, seed: int) -> dict[str, object]:
    """Share right in `first` minus share right in `second`, the same entities drawn for both."""
    both = pl.concat([t.select("entity_id", "correct") for t in (first, second)])
    mine = [1.0] * first.height + [0.0] * second.height
    right = both["correct"].cast(pl.Float64).to_list()
    columns = [[r * m for r, m in zip(right, mine, strict=True)], mine]
    columns += [[r * (1 - m) for r, m in zip(right, mine, strict=True)], [1 - m for m in mine]]
    sums = entity_sums(both["entity_id"].to_list(), columns)
    return bootstrap(sums, lambda s: ratio(s[:, 0], s[:, 1]) - ratio(s[:, 2], s[:, 3]), n_boot, seed).record()


def choose_pair(outcomes: pl.DataFrame, pairs: Sequence[Pair]) -> Pair | None:
    """The back-patching pair that recovers most of these questions, the first of equals; None when there are none."""
    if outcomes.is_empty() or not pairs:
        return None
    right = {
        (later, earlier): n
        for later, earlier, n in outcomes.group_by("from_layer", "layers").agg(pl.col("correct").sum()).iter_rows()
    }
    return max(pairs, key=lambda pair: right.get(pair, -1))


def any_pair(outcomes: pl.DataFrame) -> pl.DataFrame:
    """One row per question: was it right under any pair? (The oracle that no one can choose in advance.)"""
    return outcomes.group_by("question_id", "entity_id").agg(pl.col("correct").any()).sort("question_id")


def summarise_outcomes(outcomes: pl.DataFrame, pairs: Sequence[Pair], n_boot: int, seed: int) -> dict[str, object]:
    """Recovered share of the lost facts and broken share of the kept ones, per intervention, with 95 % intervals.

    `outcomes` is the outcomes table with `entity_id`. Back-patching's pair is chosen on the dev split; its figures, and
    `recovered_test` of every other intervention for comparison, are of the test split.
    """
    lost, kept = (outcomes.filter(pl.col("set") == name) for name in ("lost", "kept"))
    plain = lost.filter(~pl.col("intervention").is_in(["back_patch", "sweep"]))
    heuristic, random = (lost.filter(pl.col("intervention") == name) for name in ("heuristic", "random"))
    return {
        "n_lost": lost["question_id"].n_unique(),
        "n_kept": kept["question_id"].n_unique(),
        "recovered": _by_intervention(plain, n_boot, seed),
        "recovered_test": _by_intervention(plain.filter(pl.col("split") == "test"), n_boot, seed),
        "broken": _broken(kept, n_boot, seed),
        "heuristic_minus_random": difference(heuristic, random, n_boot, seed),
        "back_patch": _back_patch(lost.filter(pl.col("intervention") == "back_patch"), pairs, n_boot, seed),
        "sweep": _sweep(lost.filter(pl.col("intervention") == "sweep"), n_boot, seed),
        "moved_to_donor": mean_share(
            lost.filter(pl.col("moved_to_donor").is_not_null()), "moved_to_donor", n_boot, seed
        ),
    }


def _by_intervention(outcomes: pl.DataFrame, n_boot: int, seed: int) -> dict[str, object]:
    parts = outcomes.partition_by("intervention", as_dict=True)
    return {str(k[0]): mean_share(v, "correct", n_boot, seed) for k, v in sorted(parts.items())}


def _broken(kept: pl.DataFrame, n_boot: int, seed: int) -> dict[str, object]:
    return _by_intervention(kept.with_columns((~pl.col("correct")).alias("correct")), n_boot, seed)


def _back_patch(outcomes: pl.DataFrame, pairs: Sequence[Pair], n_boot: int, seed: int) -> dict[str, object]:
    dev, test = (outcomes.filter(pl.col("split") == name) for name in ("dev", "test"))
    pair, best = choose_pair(dev, pairs), choose_pair(test, pairs)
    return {
        "pair": pair,
        "n_dev": dev["question_id"].n_unique(),
        "test": mean_share(_of_pair(test, pair), "correct", n_boot, seed),
        "oracle_pair": best,
        "oracle_pair_test": mean_share(_of_pair(test, best), "correct", n_boot, seed),
        "oracle_any_pair_test": mean_share(any_pair(test), "correct", n_boot, seed),
    }


def _of_pair(outcomes: pl.DataFrame, pair: Pair | None) -> pl.DataFrame:
    if pair is None:
        return outcomes.clear()
    return outcomes.filter((pl.col("from_layer") == pair[0]) & (pl.col("layers") == pair[1]))


def _sweep(outcomes: pl.DataFrame, n_boot: int, seed: int) -> list[Mapping[str, object]]:
    parts = outcomes.partition_by("layers", as_dict=True)
    return [{"layers": k[0], **mean_share(v, "correct", n_boot, seed)} for k, v in sorted(parts.items())]
