"""How sure the depth summary and the likeness of two profiles are: bootstrap over entities (study, section 3).

A profile is the mean |score| per node over questions, and every number of the summary is a function of a profile, so a
draw of entities is one weighted sum of their questions' scores. Two models are compared on the questions that both
answered, and a draw takes the same entities for both (paired).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float

from twohop.analysis._profiles import PARTS, THIRDS, correlate, cosine, select_run
from twohop.analysis._statistics import Interval, Statistic, bootstrap, entity_sums, ratio
from twohop.errors import DataError

Profile = Float[np.ndarray, "draw node"]
Record = Mapping[str, Any]
Weight = Callable[["Node"], float]


@dataclass(frozen=True, order=True)
class Node:
    """What a column of a profile is the score of."""

    kind: str
    group: str
    layer: int


def depth_intervals(question_scores: pl.DataFrame, run: str, n_layers: int, n_boot: int, seed: int) -> Record:
    """The numbers of `summarise_run`, each with its interval: value, low, high, n_entities.

    Raises:
        DataError: the run was not scored.
    """
    nodes, _, entities, values = _matrix(question_scores, run)
    sums = entity_sums(entities, list(values.T))

    def interval(top: Weight, bottom: Weight = lambda _: 1.0) -> Record:
        return bootstrap(sums, _weighted(nodes, top, bottom), n_boot, seed).record()

    def shares(of: Callable[[Node], str]) -> Record:
        names = sorted({of(n) for n in nodes if n.group in PARTS})
        return {name: interval(lambda n, name=name: of(n) == name) for name in names}

    def centre(within: Weight) -> Record:
        return interval(lambda n: within(n) * n.layer / max(n_layers - 1, 1), within)

    return {
        "share_by_third": shares(lambda n: THIRDS[n.layer * 3 // n_layers]),
        "share_by_component": shares(lambda n: n.kind),
        "share_by_group": shares(lambda n: n.group),
        "mlp_centre": centre(lambda n: n.kind == "mlp_write"),
        "mlp_centre_entity": centre(lambda n: n.kind == "mlp_write" and n.group == "entity"),
    }


def likeness_intervals(
    question_scores: pl.DataFrame, run: str, other: pl.DataFrame, other_run: str, n_boot: int, seed: int
) -> Record:
    """Cosine and Spearman correlation of two runs' profiles with intervals, over the questions that both have.

    Raises:
        DataError: a run was not scored, or the models have not the same layers.
    """
    nodes, ids, entities, values = _matrix(question_scores, run)
    other_nodes, other_ids, _, other_values = _matrix(other, other_run)
    if {n.layer for n in nodes} != {n.layer for n in other_nodes}:
        raise DataError("profiles of models with different layers cannot be compared", f"{run} against {other_run}")
    columns = sorted(set(nodes) & set(other_nodes))
    shared = sorted(set(ids) & set(other_ids))
    rows, other_rows = [ids.index(q) for q in shared], [other_ids.index(q) for q in shared]
    a = values[np.ix_(rows, [nodes.index(n) for n in columns])]
    b = other_values[np.ix_(other_rows, [other_nodes.index(n) for n in columns])]
    sums = entity_sums([entities[i] for i in rows], list(np.hstack([a, b]).T))
    found = {"cosine": _pairwise(_cosine, len(columns)), "spearman": _pairwise(_spearman, len(columns))}
    intervals = {name: bootstrap(sums, statistic, n_boot, seed).record() for name, statistic in found.items()}
    return {**intervals, "n_nodes": len(columns), "n_questions": len(shared)}


def centre_difference(
    first: pl.DataFrame, second: pl.DataFrame, run: str, n_layers: tuple[int, int], n_boot: int, seed: int
) -> Interval:
    """How much deeper the first model's MLPs act at the entity's tokens, over the questions that both have.

    Centre of mass of |score| of `mlp_write` at the group `entity`, as `summarise_run`.

    Raises:
        DataError: the run was not scored.
    """
    nodes, ids, entities, values = _matrix(first, run)
    other_nodes, other_ids, _, other_values = _matrix(second, run)
    shared = sorted(set(ids) & set(other_ids))
    a = values[[ids.index(q) for q in shared]]
    b = other_values[[other_ids.index(q) for q in shared]]
    centres = (_centre(nodes, n_layers[0]), _centre(other_nodes, n_layers[1]))

    def difference(profiles: Profile) -> Float[np.ndarray, " draw"]:
        return centres[0](profiles[:, : len(nodes)]) - centres[1](profiles[:, len(nodes) :])

    sums = entity_sums([entities[ids.index(q)] for q in shared], list(np.hstack([a, b]).T))
    return bootstrap(sums, difference, n_boot, seed)


def _centre(nodes: Sequence[Node], n_layers: int) -> Statistic:
    def within(n: Node) -> float:
        return float(n.kind == "mlp_write" and n.group == "entity")

    return _weighted(nodes, lambda n: within(n) * n.layer / max(n_layers - 1, 1), within)


def _matrix(
    question_scores: pl.DataFrame, run: str
) -> tuple[list[Node], list[str], list[str], Float[np.ndarray, "question node"]]:
    """Nodes, question ids, their entities, and the magnitudes; a node that a question lacks counts 0."""
    rows = select_run(question_scores, run).sort("question_id", "kind", "group")
    asked = rows.select("question_id", "entity_id").unique(maintain_order=True)
    order = {q: i for i, q in enumerate(asked["question_id"])}
    places: dict[tuple[str, str], int] = {}
    n_layers = int(rows["scores"].list.len().max() or 0)  # type: ignore[arg-type]
    kinds = rows.select("kind", "group").unique(maintain_order=True).rows()
    for i, (kind, group) in enumerate(kinds):
        places[kind, group] = i * n_layers
    values = np.zeros((len(order), len(places) * n_layers))
    for row in rows.iter_rows(named=True):
        start = places[row["kind"], row["group"]]
        values[order[row["question_id"]], start : start + len(row["scores"])] = row["scores"]
    nodes = [Node(kind, group, layer) for kind, group in kinds for layer in range(n_layers)]
    return nodes, list(order), asked["entity_id"].to_list(), values


def _weighted(nodes: Sequence[Node], top: Weight, bottom: Weight) -> Statistic:
    """Sum of scores with weight `top` over that with weight `bottom`, over groups that hold no token twice."""
    above, below = (np.array([w(n) * (n.group in PARTS) for n in nodes], dtype=float) for w in (top, bottom))
    return lambda profiles: ratio(profiles @ above, profiles @ below)


def _pairwise(of: Callable[[np.ndarray, np.ndarray], float | None], n: int) -> Statistic:
    def statistic(profiles: Profile) -> Float[np.ndarray, " draw"]:
        values = [of(row[:n], row[n:]) for row in profiles]
        return np.array([np.nan if v is None else v for v in values])

    return statistic


def _cosine(a: np.ndarray, b: np.ndarray) -> float | None:
    return cosine(a, b)


def _spearman(a: np.ndarray, b: np.ndarray) -> float | None:
    return correlate(a, b)["spearman"]
