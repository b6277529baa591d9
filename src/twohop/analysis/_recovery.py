"""Recovery by prompting: the written name, and the share of the degradation that is closed (study, section 6)."""

import re
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float

from twohop.analysis._grading import first_line
from twohop.analysis._outcomes import difference, mean_share
from twohop.analysis._statistics import Interval, bootstrap, entity_sums, ratio

_ABBREVIATED = r"(?<!\bSt)(?<!\bMt)(?<!\bDr)(?<!\b[A-Z])"
_NAME_ENDS = re.compile(rf"""[,;:!?(<"\u201c\u201d\[]|{_ABBREVIATED}\.""")
_QUOTES = " *-\"'\u2018\u2019\u201c\u201d"
_SENTENCE_ENDS = (".", "!", "?", ";", ":", ",")


def cut_name(text: str) -> str:
    """The name at the start of what a model wrote: its first line up to punctuation that ends a name ("" when there
    is none).

    A dot after an initial or after St, Mt, Dr belongs to the name.
    """
    line = first_line(text).lstrip(_QUOTES).replace("\t", " ")
    return re.sub(r"\s+", " ", _NAME_ENDS.split(line, maxsplit=1)[0]).strip(_QUOTES)


def continue_with(before: str, after: str, name: str) -> str:
    """What follows the written name in the one-turn prompt: the question about it.

    A template whose entity ends its sentence ("Consider the country {entity}. The capital of this country is") goes
    on as it would after the name; any other ("The capital of {entity} is") is asked whole, with the name in it.
    """
    return after if after.lstrip().startswith(_SENTENCE_ENDS) else f". {before}{name}{after}"


def closed_share(recovered: pl.DataFrame, backbone: pl.DataFrame, strategy: str, n_boot: int, seed: int) -> Interval:
    """Share of the degradation that a strategy closes, `(acc_x - acc_direct) / (acc_backbone - acc_direct)`.

    Undefined (None) where the backbone is not better than the direct answers; without an interval where that holds in
    more than 2.5 % of the draws.

    Args:
        recovered: `schemas.RECOVERED`, with the rows of `strategy` and of `direct`.
        backbone: columns question_id, correct: the backbone's answers from the name.
        strategy: name of the strategy.
        n_boot: bootstrap draws over entities.
        seed: of the draws.
    """
    table = _correct(recovered, strategy, "x").join(
        _correct(recovered, "direct", "direct"), on="question_id", how="inner"
    )
    table = table.join(
        backbone.select("question_id", pl.col("correct").alias("backbone")), on="question_id", how="inner"
    )
    sums = entity_sums(table["entity_id"].to_list(), [table["x"], table["direct"], table["backbone"]])
    return bootstrap(sums, _closed, n_boot, seed)


def beside_patch(
    recovered: pl.DataFrame, outcomes: pl.DataFrame, strategy: str, n_boot: int, seed: int
) -> dict[str, Any]:
    """A prompt and the heuristic patch on the same lost facts: the share each brings back, their paired difference
    (prompt minus patch; entities are drawn for both), and the 2x2 of both.

    Args:
        recovered: `schemas.RECOVERED`, with the rows of `strategy`.
        outcomes: `schemas.OUTCOMES` of the same model.
        strategy: name of the strategy.
        n_boot: bootstrap draws over entities.
        seed: of the draws.
    """
    prompt = recovered.filter(pl.col("strategy") == strategy).select("question_id", "entity_id", "correct")
    lost = outcomes.filter((pl.col("intervention") == "heuristic") & (pl.col("set") == "lost"))
    both = prompt.join(lost.select("question_id", patch="correct"), on="question_id", how="inner")
    by_patch = both.select("question_id", "entity_id", correct="patch")
    cells = {"both": (True, True), "only_prompt": (True, False), "only_patch": (False, True), "neither": (False, False)}
    return {
        "prompt": mean_share(both, "correct", n_boot, seed),
        "patch": mean_share(by_patch, "correct", n_boot, seed),
        "difference": difference(both, by_patch, n_boot, seed),
        "n_questions": both.height,
        **{name: both.filter(correct=a, patch=b).height for name, (a, b) in cells.items()},
    }


def _closed(sums: Float[np.ndarray, "draw 3"]) -> Float[np.ndarray, " draw"]:
    return ratio(sums[:, 0] - sums[:, 1], sums[:, 2] - sums[:, 1])


def _correct(recovered: pl.DataFrame, strategy: str, column: str) -> pl.DataFrame:
    rows = recovered.filter(pl.col("strategy") == strategy)
    keys = ["question_id", "entity_id"] if column == "x" else ["question_id"]
    return rows.select(*keys, pl.col("correct").alias(column))
