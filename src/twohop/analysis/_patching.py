"""Activation patching: which questions, which span, which donor (study, section 4).

Everything here is a choice; the patched runs themselves belong to the step. A patched run is an `Intervention`, so that
it can be listed, stored and compared before it is made.
"""

import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from twohop.analysis._interventions import DonorKind, Intervention, SiteName
from twohop.errors import DataError

Pair = tuple[int, int]
"""Back-patching: (later layer that is read, earlier layer that is written)."""
Layers = tuple[int, ...]
_DONORS: Mapping[str, DonorKind] = {"own_text": "own", "mean": "mean", "zero": "zero"}
"""Interventions whose donor is not the backbone."""
SELF = "self"
"""The engine's check of itself: a run's own activations, written where they were read."""


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

    def __init__(self, spans: pl.DataFrame, layers: Collection[int]) -> None:
        self._of: dict[str, Float[np.ndarray, " position"]] = {}
        chosen = spans.filter(pl.col("layer").is_in(sorted(layers))).select("question_id", "position_scores")
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
    """Makes interventions: the receiving span of every question for donors of any length."""

    scores: SpanScores
    positions: Mapping[str, int]
    """Receiving positions of every question: image tokens and what follows them."""
    images: Mapping[str, int]
    """How many of them are image tokens."""
    lengths: Callable[[str], int]
    """Name tokens of a question's donor run."""
    layers: Layers
    """Layers of the main patch, counted as the backbone's text run passes them."""
    seed: int
    donor_layers: Layers | None = None
    """The backbone's index of each of its layers that a text run passes; None: the same number."""
    receiver_layers: Layers | None = None
    """The VLM's index of the layer that came from it: cross-attention models have further layers between."""

    def heuristic(
        self, question_id: str, name: str, donor_id: str, layers: Layers | None = None, site: SiteName = "mlp_write"
    ) -> Intervention:
        """The span of largest summed |attribution| over the layers of the main patch.

        A sweep over layers and sites keeps that span, so that only depth and site change. A name longer than the
        prompt's receiving positions gives its last tokens.
        """
        length = self._length(donor_id, self.positions[question_id])
        start = heuristic_start(self.scores.scores(question_id, self.positions[question_id]), length)
        return self._at(question_id, name, donor_id, "heuristic", (start, length), self.seed, layers, site)

    def random(
        self,
        question_id: str,
        draw: int,
        name: str = "random",
        layers: Layers | None = None,
        site: SiteName = "mlp_write",
    ) -> Intervention:
        """The question's own donor at a span drawn uniformly; `draw` tells the draws of one question apart."""
        n = self.positions[question_id]
        length = self._length(question_id, n)
        start = random_start(n, length, [self.seed, draw, zlib.crc32(question_id.encode())])
        return self._at(question_id, name, question_id, "random", (start, length), draw, layers, site)

    def image_last(
        self, question_id: str, name: str, layers: Layers | None = None, site: SiteName = "mlp_write"
    ) -> Intervention:
        """The question's own donor at the last image tokens."""
        length = self._length(question_id, self.images[question_id])
        span = (self.images[question_id] - length, length)
        return self._at(question_id, name, question_id, "image_last", span, self.seed, layers, site)

    def back_patch(self, question_id: str, pair: Pair) -> Intervention:
        """The image tokens' `resid_post` of a later layer, written into an earlier one of the same run (Biran 2024)."""
        later, earlier = pair
        return self._own(question_id, "back_patch", "image", "resid_post", (later,), (earlier,))

    def unchanged(self, question_id: str, site: SiteName, layers: Layers) -> Intervention:
        """A run's own activations from the first image token on, written where they were read: changes nothing."""
        return self._own(question_id, SELF, "prompt", site, layers, layers)

    def plain(self, question_id: str) -> Intervention:
        """No patch."""
        return Intervention(question_id, "none", seed=self.seed)

    def _length(self, donor_id: str, room: int) -> int:
        return min(self.lengths(donor_id), room)

    def _own(
        self, question_id: str, name: str, span: str, site: SiteName, donor_layers: Layers, receiver_layers: Layers
    ) -> Intervention:
        n = (self.images if span == "image" else self.positions)[question_id]
        return Intervention(
            question_id, name, "own", "image", question_id, site, donor_layers, receiver_layers, span, 0, n, self.seed
        )

    def _at(
        self,
        question_id: str,
        name: str,
        donor_id: str,
        span: str,
        place: tuple[int, int],
        seed: int,
        layers: Layers | None,
        site: SiteName,
    ) -> Intervention:
        layers = self.layers if layers is None else layers
        donor = _DONORS.get(name, "backbone")
        run = None if donor in ("mean", "zero") else "text"
        who = donor_id if run else None
        receivers = _mapped(layers, self.receiver_layers)
        donors = receivers if donor == "own" else _mapped(layers, self.donor_layers)
        return Intervention(question_id, name, donor, run, who, site, donors, receivers, span, *place, seed)


def _mapped(layers: Layers, index: Layers | None) -> Layers:
    return layers if index is None else tuple(index[n] for n in layers)


def windows(depths: Sequence[int], n_layers: int) -> list[Layers]:
    """Layer windows of the sweep: the first n layers for every depth n, and the nth layer alone, without repeats.

    Depths beyond the model are left out.
    """
    fit = sorted(n for n in set(depths) if n <= n_layers)
    found = [tuple(range(n)) for n in fit] + [(n - 1,) for n in fit]
    return list(dict.fromkeys(found))


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
