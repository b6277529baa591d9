"""The funnel: how many entities each filter leaves out, in an order in which every one is counted once."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

EXAMPLES = 5
"""Ids that a row of the funnel names."""


@dataclass(frozen=True)
class FunnelRow:
    """One filter (see `schemas.FUNNEL`)."""

    filter: str
    rows_in: int
    dropped: int
    rows_out: int
    examples: tuple[str, ...]


def pass_filters(
    ids: Sequence[str], filters: Sequence[tuple[str, Collection[str]]]
) -> tuple[list[str], list[FunnelRow]]:
    """The ids that no filter drops, in their order, and a row per filter; an id counts for the first that drops it.

    Args:
        ids: distinct ids.
        filters: name, and the ids that it drops, which may be ids that are not there any more.
    """
    left, rows = list(ids), list[FunnelRow]()
    for name, drops in filters:
        out = [i for i in left if i in drops]
        rows.append(FunnelRow(name, len(left), len(out), len(left) - len(out), tuple(out[:EXAMPLES])))
        left = [i for i in left if i not in drops]
    return left, rows
