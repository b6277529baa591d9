"""Prompts that begin alike: a picture or a name is read once, whatever is asked of it afterwards.

A prompt's head ends with its name or picture; equal heads are one row of a first pass, whose keys and values every
prompt with that head continues. Prompts that go on for equally many tokens stand together, so that nothing is padded
between a head and what follows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from twohop.models import _trunk
from twohop.models._prompts import Batch, Encoded, Picture, Prompt, Shared, Trunk

if TYPE_CHECKING:
    from twohop.models._model import Model

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


def batches(model: "Model", prompts: Sequence[Prompt], size: int) -> Iterator[tuple[list[int], Batch]]:
    """See `Model.share`."""
    asked = [_cut(i, p, model.tokens.encode(p)) for i, p in enumerate(prompts)]
    heads: dict[tuple[tuple[int, ...], int], list[_Asked]] = {}
    for a in asked:
        heads.setdefault(a.head, []).append(a)
    saved = sum(a.length for a in asked) - sum(len(ids) for ids, _ in heads)
    alike = sorted(heads.values(), key=lambda group: group[0].length)
    if not saved or saved < WORTH * sum(len(a.whole.ids) for a in asked) or _seen_to_the_end(model, alike[-1][0]):
        yield from model.batches(prompts, size)
        return
    for at in range(0, len(alike), size):
        yield from _continued(model, alike[at : at + size], size)


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


def _continued(model: "Model", groups: Sequence[list[_Asked]], size: int) -> Iterator[tuple[list[int], Batch]]:
    """Batches of the prompts of some heads."""
    first = [group[0] for group in groups]
    trunk = _trunk.grow(model, model.batch_of([_head(a) for a in first], [a.picture for a in first]), (), ())
    by_rest: dict[int, list[tuple[int, _Asked]]] = {}
    for row, group in enumerate(groups):
        for a in group:
            by_rest.setdefault(a.rest, []).append((row, a))
    for _, rows in sorted(by_rest.items()):
        for at in range(0, len(rows), size):
            part = rows[at : at + size]
            yield [a.number for _, a in part], _batch(model, trunk, part)


def _batch(model: "Model", trunk: Trunk, part: Sequence[tuple[int, _Asked]]) -> Batch:
    length = int(trunk.batch.input_ids.shape[1])
    encoded, pictures = [a.whole for _, a in part], [a.picture for _, a in part]
    batch = model.batch_of(encoded, pictures, at_least=length + part[0][1].rest)
    return replace(batch, shared=Shared(trunk, tuple(row for row, _ in part), length))
