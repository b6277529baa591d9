"""What patched answers and log-probabilities say: recovered, broken, moved, by how many nats (study, section 4).

Frames of `schemas.OUTCOMES` with `entity_id` in, plain records with 95 % bootstrap intervals over entities out.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl
from jaxtyping import Float

from twohop.analysis._patching import Pair
from twohop.analysis._statistics import bootstrap, entity_sums, ratio, share

PLAIN = ("back_patch", "sweep")
"""Interventions that have a summary of their own."""


def mean_share(outcomes: pl.DataFrame, column: str, n_boot: int, seed: int) -> dict[str, object]:
    """Mean of a flag with its 95 % bootstrap interval over entities, and how many questions and answers it rests on."""
    flags = outcomes[column].cast(pl.Float64).to_list()
    interval = share(entity_sums(outcomes["entity_id"].to_list(), [flags, [1.0] * len(flags)]), n_boot, seed)
    return {**interval.record(), "n_questions": outcomes["question_id"].n_unique(), "n_answers": len(flags)}


def mean_change(outcomes: pl.DataFrame, change: pl.Expr, n_boot: int, seed: int) -> dict[str, object]:
    """Mean of an expression (nats) over the rows where it is defined, with its interval."""
    rows = outcomes.with_columns(change=change).filter(pl.col("change").is_not_null())
    values = rows["change"].to_list()
    sums = entity_sums(rows["entity_id"].to_list(), [values, [1.0] * len(values)])
    interval = bootstrap(sums, _mean, n_boot, seed)
    return {**interval.record(), "n_questions": rows["question_id"].n_unique(), "n_answers": len(values)}


def _mean(sums: Float[np.ndarray, "draw 2"]) -> Float[np.ndarray, " draw"]:
    return ratio(sums[:, 0], sums[:, 1])


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
        for later, earlier, n in outcomes.group_by("from_layer", "first_layer").agg(pl.col("correct").sum()).iter_rows()
    }
    return max(pairs, key=lambda pair: right.get(pair, -1))


def any_pair(outcomes: pl.DataFrame) -> pl.DataFrame:
    """One row per question: was it right under any pair? (The oracle that no one can choose in advance.)"""
    return outcomes.group_by("question_id", "entity_id").agg(pl.col("correct").any()).sort("question_id")


RIGHT = pl.col("right_logprob") - pl.col("right_logprob_plain")
"""Change of log P(right answer) by the patch, in nats."""
TOWARDS_DONOR = pl.col("donor_logprob") - pl.col("donor_logprob_plain") - RIGHT
"""Change of log P(donor's answer) - log P(right answer), in nats."""


def summarise_outcomes(outcomes: pl.DataFrame, pairs: Sequence[Pair], n_boot: int, seed: int) -> dict[str, object]:
    """Recovered share of the lost facts and broken share of the kept ones, per intervention, with 95 % intervals.

    `outcomes` is the outcomes table with `entity_id`. Back-patching's pair is chosen on the dev split; its figures, and
    `recovered_test` of every other intervention for comparison, are of the test split. `logprob` is the change of
    log P(right answer) in nats, teacher-forced, per set and intervention (of back-patching: the chosen pair, of the
    lost facts the test split): a finer measure than the share, as it needs no answer to change.
    """
    graded = outcomes.filter(pl.col("correct").is_not_null())
    lost, kept = (graded.filter(pl.col("set") == name) for name in ("lost", "kept"))
    plain = lost.filter(~pl.col("intervention").is_in(PLAIN))
    heuristic, random = (lost.filter(pl.col("intervention") == name) for name in ("heuristic", "random"))
    back = _back_patch(lost.filter(pl.col("intervention") == "back_patch"), pairs, n_boot, seed)
    swept = outcomes.filter((pl.col("intervention") == "sweep") & (pl.col("set") == "lost"))
    return {
        "n_lost": lost["question_id"].n_unique(),
        "n_kept": kept["question_id"].n_unique(),
        "recovered": _by_intervention(plain, n_boot, seed),
        "recovered_test": _by_intervention(plain.filter(pl.col("split") == "test"), n_boot, seed),
        "broken": _broken(kept, n_boot, seed),
        "heuristic_minus_random": difference(heuristic, random, n_boot, seed),
        "logprob": {
            name: _changes(t, name, back["pair"], n_boot, seed) for name, t in (("lost", lost), ("kept", kept))
        },
        "back_patch": back,
        "sweep": _sweep(swept, n_boot, seed),
        "grid": _grid(swept, n_boot, seed),
        **_moved(lost, n_boot, seed),
    }


def _by_intervention(outcomes: pl.DataFrame, n_boot: int, seed: int) -> dict[str, object]:
    parts = outcomes.partition_by("intervention", as_dict=True)
    return {str(k[0]): mean_share(v, "correct", n_boot, seed) for k, v in sorted(parts.items())}


def _broken(kept: pl.DataFrame, n_boot: int, seed: int) -> dict[str, object]:
    return _by_intervention(kept.with_columns((~pl.col("correct")).alias("correct")), n_boot, seed)


def _changes(outcomes: pl.DataFrame, name: str, pair: object, n_boot: int, seed: int) -> dict[str, object]:
    """intervention -> change of log P(right answer)."""
    parts = outcomes.filter(~pl.col("intervention").is_in(PLAIN)).partition_by("intervention", as_dict=True)
    found: dict[str, object] = {
        str(k[0]): mean_change(v, RIGHT, n_boot, seed) for k, v in sorted(parts.items()) if k[0] != "none"
    }
    back = outcomes.filter(pl.col("intervention") == "back_patch")
    if name == "lost":
        back = back.filter(pl.col("split") == "test")
    chosen = _of_pair(back, pair if isinstance(pair, tuple) else None)
    return found | {"back_patch": mean_change(chosen, RIGHT, n_boot, seed)}


def _moved(lost: pl.DataFrame, n_boot: int, seed: int) -> dict[str, object]:
    """Does a wrong entity's donor bring that entity's fact? Beside how often the unpatched answer is that fact."""
    rows = lost.filter(pl.col("moved_to_donor").is_not_null())
    patched, plain = (rows.select("entity_id", correct=column) for column in ("moved_to_donor", "moved_plain"))
    return {
        "moved_to_donor": mean_share(rows, "moved_to_donor", n_boot, seed),
        "moved_to_donor_without_patch": mean_share(rows, "moved_plain", n_boot, seed),
        "moved_by_patch": difference(patched, plain, n_boot, seed),
        "towards_donor": mean_change(rows, TOWARDS_DONOR, n_boot, seed),
    }


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
    return outcomes.filter((pl.col("from_layer") == pair[0]) & (pl.col("first_layer") == pair[1]))


def _sweep(swept: pl.DataFrame, n_boot: int, seed: int) -> list[Mapping[str, object]]:
    """Recovered share by the number of layers written from the first, where answers were written and graded."""
    graded = swept.filter(pl.col("correct").is_not_null() & (pl.col("first_layer") == 0))
    parts = graded.partition_by("last_layer", as_dict=True)
    return [
        {
            "layers": k[0] + 1,
            **mean_share(v, "correct", n_boot, seed),
            "logprob": mean_change(v, RIGHT, n_boot, seed),
        }
        for k, v in sorted(parts.items())
    ]


def _grid(swept: pl.DataFrame, n_boot: int, seed: int) -> list[Mapping[str, object]]:
    """Change of log P(right answer) in every cell of site x span x window, on the questions that all cells have."""
    keys = ["site", "span", "first_layer", "last_layer"]
    counted = swept.with_columns(cells=pl.len().over("question_id"))
    parts = counted.filter(pl.col("cells") == pl.col("cells").max()).partition_by(keys, as_dict=True)
    cells = [(dict(zip(keys, k, strict=True)), rows) for k, rows in sorted(parts.items())]
    return [{**cell, **mean_change(rows, RIGHT, n_boot, seed)} for cell, rows in cells]
