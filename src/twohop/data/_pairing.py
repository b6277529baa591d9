"""Corrupted twins and the dev/test split: seeded, deterministic, as even as possible (study, section 3)."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from twohop.data._names import fold


@dataclass(frozen=True)
class Twin:
    """What decides whether two questions can be each other's corrupted twin."""

    question_id: str
    entity_id: str
    relation: str
    n_name_tokens: int
    first_token: int
    """First token of the answer as a continuation of the prompt."""
    answers: frozenset[str]
    """Accepted answers, folded."""


def folded_answers(aliases: Sequence[str]) -> frozenset[str]:
    """Accepted answers in the spelling that `can_pair` compares."""
    return frozenset(fold(alias) for alias in aliases)


def can_pair(a: Twin, b: Twin) -> bool:
    """Same relation and number of name tokens; another entity, no accepted answer in common, another first token."""
    return (
        a.relation == b.relation
        and a.n_name_tokens == b.n_name_tokens
        and a.entity_id != b.entity_id
        and a.first_token != b.first_token
        and not (a.answers & b.answers)
    )


def pair_questions(twins: Sequence[Twin], seed: int) -> dict[str, str | None]:
    """A corrupted twin for every question that has a possible one.

    A matching in which each question may be used k times, for the smallest k that serves them all: no twin is
    used more often than the constraints force.

    Returns:
        question_id -> question_id of its corrupted twin; None where none exists.
    """
    in_order = sorted(twins, key=lambda t: t.question_id)
    shuffled = [in_order[i] for i in shuffled_order(len(twins), seed)]
    out: dict[str, str | None] = {t.question_id: None for t in twins}
    for members in _groups(shuffled, lambda t: (t.relation, t.n_name_tokens)):
        out.update(_pair_group(members))
    return out


def _groups(twins: Sequence[Twin], key: Callable[[Twin], tuple[str, int]]) -> list[list[Twin]]:
    found: dict[tuple[str, int], list[Twin]] = {}
    for twin in twins:
        found.setdefault(key(twin), []).append(twin)
    return [found[k] for k in sorted(found)]


def _pair_group(twins: list[Twin]) -> dict[str, str]:
    options = {i: [j for j, b in enumerate(twins) if can_pair(a, b)] for i, a in enumerate(twins)}
    options = {i: js for i, js in options.items() if js}
    for uses in range(1, len(twins) + 1):
        match = match_within(options, uses)
        if match is not None:
            return {twins[i].question_id: twins[j].question_id for i, j in match.items()}
    raise AssertionError("a question with a candidate is served when every candidate may serve all")


def match_within(options: Mapping[int, Sequence[int]], uses: int) -> dict[int, int] | None:
    """One option for every key, no option taken more than `uses` times; None when that is impossible.

    Augmenting paths, breadth first (Kuhn 1955, with capacities).
    """
    taken: dict[int, int] = {}
    users: dict[int, set[int]] = {j: set() for js in options.values() for j in js}
    for key in options:
        path = _augmenting_path(key, options, users, uses)
        if path is None:
            return None
        for mover, target in path:
            if mover in taken:
                users[taken[mover]].discard(mover)
            taken[mover] = target
            users[target].add(mover)
    return taken


def _augmenting_path(
    key: int, options: Mapping[int, Sequence[int]], users: Mapping[int, set[int]], uses: int
) -> list[tuple[int, int]] | None:
    """Moves (key, new option) that make room for `key`, the last move first; None when there is no way."""
    came_from: dict[int, int] = {}  # option -> the key that wants it
    wanted_by: dict[int, int] = {}  # key that would have to move -> the option it would leave
    queue = deque([key])
    while queue:
        mover = queue.popleft()
        for target in options[mover]:
            if target in came_from:
                continue
            came_from[target] = mover
            if len(users[target]) < uses:
                return _trace(target, came_from, wanted_by)
            for user in sorted(users[target]):
                wanted_by[user] = target
                queue.append(user)
    return None


def _trace(target: int, came_from: Mapping[int, int], wanted_by: Mapping[int, int]) -> list[tuple[int, int]]:
    moves: list[tuple[int, int]] = []
    while True:
        mover = came_from[target]
        moves.append((mover, target))
        if mover not in wanted_by:
            return moves
        target = wanted_by[mover]


def shuffled_order(n: int, seed: int) -> list[int]:
    """0 .. n-1 in a seeded order."""
    return [int(i) for i in np.random.default_rng(seed).permutation(n)]


def split_entities(entity_ids: Sequence[str], dev_share: float, seed: int) -> dict[str, str]:
    """`dev` or `test` for every entity; `round(dev_share * n)` of them are dev, whatever the order of the list."""
    ids = sorted(set(entity_ids))
    dev = {ids[i] for i in shuffled_order(len(ids), seed)[: round(dev_share * len(ids))]}
    return {name: "dev" if name in dev else "test" for name in ids}


def draw_entities(candidates: Sequence[str], n: int, seed: int) -> list[str]:
    """`n` of the candidates without replacement, sorted; a larger n keeps those of a smaller one."""
    ids = sorted(set(candidates))
    return sorted(ids[i] for i in shuffled_order(len(ids), seed)[:n])
