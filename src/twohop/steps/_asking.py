"""What the steps that ask a model share: pictures encoded once, answers in batches of like length, parts that survive
a kill.
"""

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar, cast

import polars as pl
from PIL.Image import Image

from twohop.errors import DataError
from twohop.models import Batch, Model, Picture, Prompt
from twohop.store import read_json, write_json

LOG = logging.getLogger(__name__)
KEPT_PICTURES = 256
"""Encoded pictures that are kept for the next batch: at most 1.2 GB for 576 tokens of 4096 numbers in 16 bits."""
PART_ROWS = 128
"""Prompts of one part; at most one part is asked again after a kill."""

T = TypeVar("T")


def finished_part(work: Path, name: str, make: Callable[[], list[T]]) -> list[T]:
    """A JSON-able list from `work/<name>.json`, or made now and kept there."""
    path = work / f"{name}.json"
    if path.exists():
        LOG.info("%s: taken from an earlier call", name)
        return cast("list[T]", read_json(path))
    made = make()
    write_json(path, made)
    return made


def ask(model: Model, prompts: Sequence[Prompt], size: int, answer: Callable[[Batch], list[T]], what: str) -> list[T]:
    """The answers of all prompts in their order, with progress in the log; common beginnings are run once."""
    found: dict[int, T] = {}
    start = time.monotonic()
    for index, batch in model.share(prompts, size):
        found.update(zip(index, answer(batch), strict=True))
        LOG.info("%s: %d of %d prompts, %.0f s", what, len(found), len(prompts), time.monotonic() - start)
    return [found[i] for i in range(len(prompts))]


def ask_in_parts(
    model: Model, work: Path, name: str, prompts: Sequence[Prompt], size: int, answer: Callable[[Batch], list[T]]
) -> list[T]:
    """As `ask`, every PART_ROWS answers kept in `work`; prompts about one picture or name stand beside each other."""
    answers: dict[int, T] = {}
    order = _by_entity(prompts)
    for k, i in enumerate(range(0, len(order), PART_ROWS)):
        index, part = order[i : i + PART_ROWS], f"{name}-{k}"
        chunk = [prompts[j] for j in index]
        made = finished_part(work, part, lambda c=chunk, p=part: ask(model, c, size, answer, p))
        answers |= dict(zip(index, made, strict=True))
    return [answers[i] for i in range(len(prompts))]


def _by_entity(prompts: Sequence[Prompt]) -> list[int]:
    """Indices of the prompts, those that share a name or picture beside each other."""
    groups: dict[tuple[str, str | None, int], list[int]] = {}
    for i, p in enumerate(prompts):
        groups.setdefault((p.before, p.entity, id(p.picture)), []).append(i)
    return [i for group in groups.values() for i in group]


class KeptPictures:
    """Pictures as image tokens, encoded when they are asked for; the last KEPT_PICTURES stay, so memory is bounded."""

    def __init__(self, model: Model, picture: Callable[[str], Image], manifest: pl.DataFrame) -> None:
        self._model, self._picture, self._manifest = model, picture, manifest
        self._kept: OrderedDict[str, Picture] = OrderedDict()

    def take(self, picture_ids: Sequence[str]) -> list[Picture]:
        """Features of each picture.

        Raises:
            DataError: a picture is not in the manifest, or could not be made.
        """
        new = encode_by_id(self._model, self._picture, self._manifest, set(picture_ids) - set(self._kept))
        self._kept |= new
        found = [self._kept[i] for i in picture_ids]
        for i in picture_ids:
            self._kept.move_to_end(i)
        while len(self._kept) > KEPT_PICTURES:
            self._kept.popitem(last=False)
        return found


def encode_by_id(
    model: Model, picture: Callable[[str], Image], manifest: pl.DataFrame, picture_ids: Iterable[str]
) -> dict[str, Picture]:
    """Each picture through the tower and the projector, once.

    Raises:
        DataError: a picture is not in the manifest, or could not be made.
    """
    wanted = sorted(set(picture_ids))
    files = dict(manifest.filter(pl.col("status") == "ok").select("picture_id", "file").iter_rows())
    missing = [p for p in wanted if p not in files]
    if missing:
        raise DataError(
            f"no picture for {', '.join(missing[:5])}", "manifest.parquet", "make pictures and questions again"
        )
    if not wanted:
        return {}
    rows = model.encode_pictures([picture(files[p]) for p in wanted])
    return dict(zip(wanted, rows, strict=True))


def split_prompt(template: str) -> tuple[str, str]:
    """What stands before and after `{entity}`."""
    before, after = template.split("{entity}")
    return before, after
