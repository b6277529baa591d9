"""How much recall is lost from a picture: paired answers, gates, degradation, the 2x2 table (study, section 2).

1. `pair_answers` puts the graded answers of a backbone and its VLM side by side, one row per question, with the two
   gates;
2. `degradation` gives, for every comparison, gate and relation, both accuracies, their relative loss with intervals,
   the 2x2 counts and McNemar's p.

`a` is the backbone with the name, `b` the VLM with the name, `c` the VLM with the picture: `a,c` is the paper's
degradation (arXiv 2512.03276), `b,c` PopVQA's (arXiv 2412.14133), and `a,b` shows what the VLM's training did to the
language model itself.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import polars as pl
from jaxtyping import Float

from twohop.analysis._statistics import Interval, bootstrap, entity_sums, mcnemar, ratio, share, wilson
from twohop.errors import DataError

RecognitionGate = Literal["free", "ranked"]
COMPARISONS: Mapping[str, tuple[str, str]] = {
    "a,c": ("backbone", "image"),
    "b,c": ("text", "image"),
    "a,b": ("backbone", "text"),
}
GATES: Mapping[str, tuple[str, ...]] = {
    "all": (),
    "recognised": ("recognised",),
    "ranked": ("ranked",),
    "grounded": ("grounded",),
    "recognised+grounded": ("recognised", "grounded"),
}
"""Gate name: the flags of `pair_answers` that a question must have."""


def recognised(recognition: pl.DataFrame, questions: pl.DataFrame, gate: RecognitionGate) -> pl.DataFrame:
    """Per question, whether the model knows what the question's picture shows, under any of the recognition prompts.

    Args:
        recognition: `schemas.RECOGNITION`.
        questions: `schemas.QUESTIONS`.
        gate: `free`: it writes an accepted name (the study's gate); `ranked`: the right name has the largest
            log-probability of all names, which favours no way of training.

    Returns:
        Columns question_id, recognised; False for a picture that was never shown.
    """
    column = "correct" if gate == "free" else "ranked_correct"
    known = recognition.group_by("picture_id").agg(pl.col(column).any().alias("recognised"))
    joined = questions.select("question_id", "picture_id").join(
        known, on="picture_id", how="left", maintain_order="left"
    )
    return joined.select("question_id", pl.col("recognised").fill_null(False))


def pair_answers(
    backbone_answers: pl.DataFrame, answers: pl.DataFrame, questions: pl.DataFrame, recognition: pl.DataFrame
) -> pl.DataFrame:
    """One row per question: right or wrong in each condition, and the gates.

    Returns:
        Columns question_id, entity_id, relation, split; flags backbone, text, image, blank (right answers),
        recognised, ranked, grounded (wrong from a blank picture).

    Raises:
        DataError: the backbone and the VLM, or two conditions, were not asked the same questions.
    """
    table = questions.select("question_id", "entity_id", "relation", "split")
    sources = {"backbone": (backbone_answers, "text")} | {c: (answers, c) for c in ("text", "image", "blank")}
    for column, (frame, condition) in sources.items():
        one = frame.filter(pl.col("condition") == condition).select("question_id", pl.col("correct").alias(column))
        _same_questions(table, one, column)
        table = table.join(one, on="question_id", how="left", maintain_order="left")
    gates: tuple[tuple[RecognitionGate, str], ...] = (("free", "recognised"), ("ranked", "ranked"))
    for gate, column in gates:
        known = recognised(recognition, questions, gate).rename({"recognised": column})
        table = table.join(known, on="question_id", how="left", maintain_order="left")
    return table.with_columns(grounded=~pl.col("blank"))


def degradation(paired: pl.DataFrame, n_boot: int, seed: int) -> pl.DataFrame:
    """Relative loss `(reference - compared) / reference` for every comparison, gate and relation ("all" and each one).

    Args:
        paired: as `pair_answers` makes it.
        n_boot: bootstrap draws over entities.
        seed: of the draws.

    Returns:
        Columns comparison, gate, relation, n_questions, n_entities; reference, compared, degradation, each with _low
        and _high; both_right, lost (reference right, compared wrong), gained, both_wrong; p_value (McNemar's exact
        test; questions as if independent). Numbers are null where
        undefined: no question passes the gate, or the reference answers none.
    """
    relations = ["all", *paired["relation"].unique().sort().to_list()]
    rows = [
        {"comparison": name, "gate": gate, "relation": relation, **_compare(part, *pair, n_boot, seed)}
        for name, pair in COMPARISONS.items()
        for gate, flags in GATES.items()
        for relation in relations
        for part in [_select(paired, flags, relation)]
    ]
    return pl.DataFrame(rows, infer_schema_length=None).with_columns(pl.col(_REALS).cast(pl.Float64))


_REALS = [f"{a}{b}" for a in ("reference", "compared", "degradation") for b in ("", "_low", "_high")] + ["p_value"]


def two_by_two(reference: Sequence[bool], compared: Sequence[bool]) -> dict[str, int]:
    """The 2x2 table of paired answers: both_right, lost, gained, both_wrong."""
    first, second = np.asarray(reference, dtype=bool), np.asarray(compared, dtype=bool)
    return {
        "both_right": int((first & second).sum()),
        "lost": int((first & ~second).sum()),
        "gained": int((~first & second).sum()),
        "both_wrong": int((~first & ~second).sum()),
    }


def _select(paired: pl.DataFrame, flags: Sequence[str], relation: str) -> pl.DataFrame:
    wanted = [pl.col(f) for f in flags] + ([] if relation == "all" else [pl.col("relation") == relation])
    return paired.filter(*wanted) if wanted else paired


def _compare(
    part: pl.DataFrame, reference: str, compared: str, n_boot: int, seed: int
) -> dict[str, float | int | None]:
    sums = entity_sums(part["entity_id"].to_list(), [part[reference], part[compared], np.ones(part.height)])
    counts = two_by_two(part[reference].to_list(), part[compared].to_list())
    return {
        "n_questions": part.height,
        "n_entities": len(sums),
        **_columns("reference", share(sums[:, [0, 2]], n_boot, seed)),
        **_columns("compared", share(sums[:, [1, 2]], n_boot, seed)),
        **_columns("degradation", relative_loss(sums, n_boot, seed)),
        **counts,
        "p_value": mcnemar(counts["lost"], counts["gained"]) if part.height else None,
    }


def relative_loss(sums: Float[np.ndarray, "entity 3"], n_boot: int, seed: int) -> Interval:
    """`(reference - compared) / reference` with its interval; columns are (reference right, compared right, asked).

    Where nothing is right any more every draw says 1; the end is then that of Wilson's interval of `compared`, as in
    `share`, so that a loss of everything does not look certain.
    """
    interval = bootstrap(sums, _loss, n_boot, seed)
    if interval.value == 1.0 and interval.low == interval.high:
        reference = float(sums[:, 0].sum() / sums[:, 2].sum())
        low = 1 - wilson(0, len(sums))[1] / reference
        return Interval(1.0, max(low, 0.0), 1.0, len(sums))
    return interval


def _loss(sums: Float[np.ndarray, "draw 3"]) -> Float[np.ndarray, " draw"]:
    return ratio(sums[:, 0] - sums[:, 1], sums[:, 0])


def _columns(name: str, interval: Interval) -> dict[str, float | None]:
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _same_questions(table: pl.DataFrame, one: pl.DataFrame, column: str) -> None:
    asked, answered = set(table["question_id"]), one["question_id"].to_list()
    if len(answered) != len(set(answered)) or asked != set(answered):
        raise DataError(
            f"{len(asked)} questions but {len(answered)} graded answers in condition {column!r}, or not the same ones",
            "answers of a backbone and its VLM",
            "make both from the same questions: snakemake --cores all",
        )
