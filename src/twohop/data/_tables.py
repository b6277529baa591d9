"""Is an entity table usable? The same checks for the embedded source and for a user's own table."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import polars as pl

from twohop.errors import DataError

MAX_FAULTS = 20
"""Faults listed in one message."""


def check_entities(table: pl.DataFrame, where: str) -> None:
    """Every id once and not empty; every name and alias visible; the name among the aliases; look-alikes known.

    Args:
        table: columns entity_id, name, aliases, look_alikes.
        where: file name for the message.

    Raises:
        DataError: one line per fault, with its row (1 = first row under the header).
    """
    rows = table.to_dicts()
    ids = [row["entity_id"] for row in rows]
    report_faults([*_id_faults(ids), *_each(rows, _entity_faults), *_look_alike_faults(rows, set(ids))], where)


def check_facts(table: pl.DataFrame, entity_ids: Iterable[str], where: str) -> None:
    """Every (entity, relation) once, of a known entity, with a visible answer that is among its aliases.

    Raises:
        DataError: as `check_entities`.
    """
    rows, known = table.to_dicts(), set(entity_ids)
    keys = [None if row["entity_id"] is None else f"{row['entity_id']}/{row['relation']}" for row in rows]
    strangers = [
        f"row {i}: entity {r['entity_id']!r} is not in the entity table"
        for i, r in _numbered(rows)
        if r["entity_id"] not in known
    ]
    report_faults([*_id_faults(keys), *strangers, *_each(rows, _fact_faults)], where)


def _numbered(rows: list[dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any]]]:
    return enumerate(rows, 1)


def _id_faults(ids: list[str | None]) -> Iterator[str]:
    first: dict[str, int] = {}
    for i, name in enumerate(ids, 1):
        if _blank(name) or name is None:
            yield f"row {i}: empty id"
        elif first.setdefault(name, i) != i:
            yield f"row {i}: duplicate id {name!r}, first in row {first[name]}"


def _each(rows: list[dict[str, Any]], faults: Callable[[dict[str, Any]], Iterator[str]]) -> Iterator[str]:
    for i, row in _numbered(rows):
        yield from (f"row {i} ({row['entity_id']}): {fault}" for fault in faults(row))


def _entity_faults(row: dict[str, Any]) -> Iterator[str]:
    aliases: list[str | None] = row["aliases"] or []
    if _blank(row["name"]):
        yield "empty name"
    elif row["name"] not in aliases:
        yield f"the name {row['name']!r} is not among the aliases"
    if any(_blank(alias) for alias in aliases):
        yield "empty alias"


def _fact_faults(row: dict[str, Any]) -> Iterator[str]:
    aliases: list[str | None] = row["answer_aliases"] or []
    if _blank(row["answer"]):
        yield f"empty answer to {row['relation']}"
    elif row["answer"] not in aliases:
        yield f"the answer {row['answer']!r} to {row['relation']} is not among its aliases"
    if any(_blank(alias) for alias in aliases):
        yield f"empty answer alias of {row['relation']}"


def _look_alike_faults(rows: list[dict[str, Any]], known: set[str]) -> Iterator[str]:
    for i, row in _numbered(rows):
        others: list[str] = row["look_alikes"] or []
        for other in others:
            if other not in known or other == row["entity_id"]:
                yield f"row {i} ({row['entity_id']}): look-alike {other!r} is no other row of the table"


def _blank(text: str | None) -> bool:
    """Nothing that a reader could match: no letter and no digit."""
    return text is None or not any(c.isalnum() for c in text)


def report_faults(faults: list[str], where: str, limit: int = MAX_FAULTS) -> None:
    """Nothing, when there are none.

    Raises:
        DataError: one line per fault, of the first `limit`, and how many more there are.
    """
    if faults:
        more = [f"... and {len(faults) - limit} more"] if len(faults) > limit else []
        raise DataError("\n".join([*faults[:limit], *more]), where, "correct the rows above")
