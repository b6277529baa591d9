"""What a model's attribution scores say in a few numbers, and how two models' profiles compare (study, section 3).

A profile is the mean absolute score of every (kind, layer, token group) of one run. The groups `image` and `entity`
hold the entity in image and text runs, so they have one name here: a backbone's text run and a VLM's image run line up.
"""

from collections.abc import Sequence

import numpy as np
import polars as pl
from jaxtyping import Float

from twohop.errors import DataError

WRITES = ("mlp_write", "attn_write")
"""Kinds that add up to the residual stream; `resid_post` repeats them all and stays out of shares."""
_SAME = {"image": "entity", "image_last": "entity_last"}
PARTS = ("entity", "question", "last")
"""Groups that hold no token twice."""
THIRDS = ("early", "middle", "late")
"""Of the depth, by layer * 3 // n_layers."""


def select_run(scores: pl.DataFrame, run: str, kinds: Sequence[str] = WRITES) -> pl.DataFrame:
    """One run's scores of these kinds with `group` made comparable between text and image runs.

    Raises:
        DataError: the run was not scored.
    """
    chosen = scores.filter((pl.col("run") == run) & pl.col("kind").is_in(list(kinds)))
    if chosen.is_empty():
        have = ", ".join(sorted(set(scores["run"].to_list()))) or "none"
        raise DataError(f"no attribution scores of the {run} run", f"runs in the table: {have}")
    return chosen.with_columns(pl.col("group").replace(_SAME))


def compare_profiles(
    scores: pl.DataFrame, run: str, other: pl.DataFrame, other_run: str, kinds: Sequence[str] = WRITES
) -> dict[str, float | int | None]:
    """Cosine and Spearman correlation of two runs' profiles over the nodes (kind, layer, group) that both have.

    A cosine or correlation of a profile without spread is None.

    Raises:
        DataError: a run was not scored, or the models have not the same layers.
    """
    keys = ["kind", "layer", "group"]
    a, b = select_run(scores, run, kinds), select_run(other, other_run, kinds)
    if set(a["layer"].to_list()) != set(b["layer"].to_list()):
        raise DataError("profiles of models with different layers cannot be compared", f"{run} against {other_run}")
    both = a.join(b.select([*keys, pl.col("mean_abs").alias("other_abs")]), on=keys).sort(keys)
    x, y = both["mean_abs"].to_numpy(), both["other_abs"].to_numpy()
    return {"cosine": cosine(x, y), "spearman": correlate(x, y)["spearman"], "n_nodes": both.height}


def cosine(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> float | None:
    """Cosine of the angle between two vectors; None when one is zero."""
    scale = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y) / scale if scale > 0 else None


def correlate(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> dict[str, float | None]:
    """Pearson and Spearman correlation; None where fewer than three pairs or no spread leave it undefined."""
    if x.size < 3 or float(np.ptp(x)) == 0.0 or float(np.ptp(y)) == 0.0:
        return {"pearson": None, "spearman": None}
    ranks = [pl.Series(values).rank("average").to_numpy() for values in (x, y)]
    return {"pearson": _pearson(x, y), "spearman": _pearson(*ranks)}


def _pearson(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> float:
    return float(np.corrcoef(x, y)[0, 1])


def summarise_run(scores: pl.DataFrame, run: str, n_layers: int) -> dict[str, object]:
    """Shares of mean |score| by layer third, component and token group, and the MLPs' centre of mass in depth.

    Shares are over `mlp_write` and `attn_write` and over the token groups that hold no token twice. The centre of mass
    is sum(share of layer l * l / (n_layers - 1)): 0 is the first layer, 1 the last; `mlp_centre_entity` looks at the
    entity's tokens only.
    """
    chosen = select_run(scores, run)
    chosen = chosen.filter(pl.col("group").is_in(PARTS))
    chosen = chosen.with_columns(_third(n_layers))
    mlp = chosen.filter(pl.col("kind") == "mlp_write")
    return {
        "share_by_third": _shares(chosen, "third"),
        "share_by_component": _shares(chosen, "kind"),
        "share_by_group": _shares(chosen, "group"),
        "mlp_centre": centre_of_mass(mlp, n_layers),
        "mlp_centre_entity": centre_of_mass(mlp.filter(pl.col("group") == "entity"), n_layers),
    }


def agreement(checks: pl.DataFrame, n_layers: int) -> dict[str, dict[str, object]]:
    """How well the estimate foretells true patching, per kind of node and third of the depth; `all` is every kind.

    pearson and spearman: of the signed score with the change of m; spearman_magnitude: of the magnitude with |change|.
    """
    table = checks.with_columns(_third(n_layers))
    kinds = {"all": table, **{k: table.filter(pl.col("kind") == k) for k in sorted(set(table["kind"].to_list()))}}
    return {
        kind: {**_agreement(rows), "by_third": {t: _agreement(rows.filter(pl.col("third") == t)) for t in THIRDS}}
        for kind, rows in kinds.items()
    }


def _agreement(rows: pl.DataFrame) -> dict[str, object]:
    estimate, size, patched = (rows[c].to_numpy() for c in ("attributed", "magnitude", "patched"))
    sizes = correlate(size, np.abs(patched))["spearman"]
    return {**correlate(estimate, patched), "spearman_magnitude": sizes, "n_nodes": rows.height}


def _third(n_layers: int) -> pl.Expr:
    names = dict(enumerate(THIRDS))
    return (pl.col("layer") * 3 // n_layers).replace_strict(names, return_dtype=pl.String).alias("third")


def centre_of_mass(scores: pl.DataFrame, n_layers: int) -> float | None:
    """Mean depth, weighted by `mean_abs`, as a fraction: 0 first layer, 1 last; None when all weights are 0."""
    total = float(scores["mean_abs"].sum())
    if total == 0:
        return None
    return float((scores["mean_abs"] * scores["layer"]).sum()) / total / max(n_layers - 1, 1)


def _shares(scores: pl.DataFrame, by: str) -> dict[str, float]:
    total = float(scores["mean_abs"].sum())
    sums = scores.group_by(by).agg(pl.col("mean_abs").sum()).sort(by)
    return {str(k): float(v) / total if total > 0 else 0.0 for k, v in sums.iter_rows()}
