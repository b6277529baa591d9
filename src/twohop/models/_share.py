"""Prompts that begin alike: a picture or a name is read once, whatever is asked of it afterwards.

A prompt's head ends with its name or picture; equal heads are one row of a pass, whose keys and values every prompt
with that head continues. All heads in turn continue the text that they all begin with (the root), a row of its own.
Where lengths differ, padding stands between these parts.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, TypeVar

from twohop.models import _trunk
from twohop.models._batch import LONGEST_ANSWER, rows_at_once
from twohop.models._prompts import Batch, Encoded, Picture, Prompt, Shared, Trunk
from twohop.models._sites import Site

if TYPE_CHECKING:
    from twohop.models._model import Model

T = TypeVar("T")
WORTH = 0.1
"""Share of all tokens that has to be saved: a first pass is a pass more."""


@dataclass(frozen=True)
class _Asked:
    """A prompt in token ids, cut in two."""

    number: int
    whole: Encoded
    picture: Picture | None
    length: int
    """Of its head."""

    @property
    def head(self) -> tuple[tuple[int, ...], int]:
        """Equal for prompts that begin alike."""
        return tuple(self.whole.ids[: self.length]), id(self.picture)

    @property
    def rest(self) -> int:
        """Tokens after the head."""
        return len(self.whole.ids) - self.length


def batches(
    model: "Model", prompts: Sequence[Prompt], size: int, capture: Collection[Site]
) -> Iterator[tuple[list[int], Batch]]:
    """See `Model.share`."""
    asked = [_cut(i, p, model.tokens.encode(p)) for i, p in enumerate(prompts)]
    heads: dict[tuple[tuple[int, ...], int], list[_Asked]] = {}
    for a in asked:
        heads.setdefault(a.head, []).append(a)
    alike = sorted(heads.values(), key=lambda group: group[0].length)
    root = _common([a.whole for a in asked]) if _may_have_root(model, asked) else 0
    saved = sum(a.length for a in asked) - sum(len(ids) for ids, _ in heads) + root * (len(heads) - 1)
    if not saved or saved < WORTH * sum(len(a.whole.ids) for a in asked) or _seen_to_the_end(model, alike[-1][0]):
        yield from model.batches(prompts, size)
        return
    trunk = _root(model, asked[0].whole, root, capture)
    length_of: Callable[[list[_Asked]], int] = lambda group: group[0].length  # noqa: E731
    rooms = groupby(alike, key=length_of) if _looks_back_only_so_far(model, asked) else [(0, alike)]
    for _, groups in rooms:
        chosen = list(groups)
        for at in range(0, len(chosen), size):
            yield from _continued(model, trunk, chosen[at : at + size], size, capture)


def _looks_back_only_so_far(model: "Model", asked: Sequence[_Asked]) -> bool:
    """Some layers see a window, counted in places with padding, that a prompt may leave: no padding inside, then."""
    config, longest = model.decoder.config, max(len(a.whole.ids) for a in asked)
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return any(w and w < 2 * longest + LONGEST_ANSWER for w in windows)


def _common(encoded: Sequence[Encoded]) -> int:
    """Tokens that all prompts begin with, before any name or picture."""
    most = min(e.start if e.end else 0 for e in encoded)
    columns = zip(*(e.ids[:most] for e in encoded), strict=True)
    return next((i for i, column in enumerate(columns) if len(set(column)) > 1), most)


def _may_have_root(model: "Model", asked: Sequence[_Asked]) -> bool:
    """Heads can be continued from their text on: not where a picture enters by further ways, or is seen both ways."""
    if not asked or model.decoder.cross_layers:
        return False
    batch = model.batch_of([asked[0].whole], [asked[0].picture])
    return not batch.deep and not _trunk.seen_ahead(batch)


def _root(model: "Model", whole: Encoded, length: int, capture: Collection[Site]) -> Trunk | None:
    if not length:
        return None
    return _trunk.grow(model, model.batch_of([Encoded(whole.ids[:length], 0, 0)], [None]), (), capture)


def _cut(number: int, prompt: Prompt, whole: Encoded) -> _Asked:
    """A head leaves at least the last token, which predicts the answer."""
    return _Asked(number, whole, prompt.picture, min(whole.end, len(whole.ids) - 1))


def _head(asked: _Asked) -> Encoded:
    whole = asked.whole
    return replace(whole, ids=whole.ids[: asked.length], end=min(whole.end, asked.length))


def _seen_to_the_end(model: "Model", asked: _Asked) -> bool:
    """The family's prompts are seen both ways as a whole (PaliGemma), or nothing stands before what is asked."""
    if not asked.length or asked.length < asked.whole.end:
        return True
    batch = model.batch_of([asked.whole], [asked.picture])
    return _trunk.seen_ahead(batch) > asked.length


def _continued(
    model: "Model", root: Trunk | None, groups: Sequence[list[_Asked]], size: int, capture: Collection[Site]
) -> Iterator[tuple[list[int], Batch]]:
    """Batches of the prompts of some heads."""
    first, begun = [group[0] for group in groups], _length(root)
    room = max(a.length for a in first)
    gaps = [[(begun, room - a.length)] if root else [] for a in first]
    if len(first) == sum(map(len, groups)):  # every head has one prompt: the root is all they share
        trunk, of = root, [0] * len(first)
    else:
        encoded = [_spread(model, _head(a), gap) for a, gap in zip(first, gaps, strict=True)]
        heads = _begun(model.batch_of(encoded, [a.picture for a in first]), root, [0] * len(first))
        trunk, of = _trunk.grow(model, heads, (), capture), list(range(len(first)))
    rows = [(row, gap, a) for row, gap, group in zip(of, gaps, groups, strict=True) for a in group]
    exact = _looks_back_only_so_far(model, [a for _, _, a in rows])
    rows.sort(key=lambda r: r[2].rest)
    for rest, same in groupby(rows, key=lambda r: r[2].rest if exact else 0):
        chosen = list(same)
        most = rows_at_once(size, room + max(a.rest for _, _, a in chosen))
        for part in _evenly(chosen, most):
            longest = rest or max(a.rest for _, _, a in part)
            whole = [_spread(model, a.whole, [*gap, (a.length, longest - a.rest)]) for _, gap, a in part]
            batch = model.batch_of(whole, [a.picture for _, _, a in part], at_least=room + longest)
            yield [a.number for _, _, a in part], _begun(batch, trunk, [row for row, _, _ in part])


def _evenly(rows: Sequence[T], most: int) -> Iterator[Sequence[T]]:
    """Consecutive parts of at most so many rows, of nearly one size."""
    n = -(-len(rows) // most)
    edges = [len(rows) * k // n for k in range(n + 1)] if n else []
    yield from (rows[a:b] for a, b in pairwise(edges))


def _length(trunk: Trunk | None) -> int:
    return 0 if trunk is None else int(trunk.batch.input_ids.shape[1])


def _begun(batch: Batch, trunk: Trunk | None, rows: Sequence[int]) -> Batch:
    return batch if trunk is None else replace(batch, shared=Shared(trunk, tuple(rows), _length(trunk)))


def _spread(model: "Model", encoded: Encoded, gaps: Sequence[tuple[int, int]]) -> Encoded:
    """The prompt with padding before some of its tokens: (index of the token, how much)."""
    ids, start, end, found = list(encoded.ids), encoded.start, encoded.end, list[tuple[int, int]]()
    for at, n in sorted(gaps, reverse=True):
        ids[at:at] = [model.pad_id] * n
        start, end = (start + n * (at <= start), end + n * (at < end)) if end else (0, 0)
        found = [(at, at + n), *((low + n, high + n) for low, high in found)]
    return Encoded(ids, start, end, encoded.image, tuple(gap for gap in found if gap[0] < gap[1]))
