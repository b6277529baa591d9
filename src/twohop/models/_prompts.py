"""Prompts as data, and the padded batches with token groups that a model runs on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from twohop.errors import ModelError

GROUP_MEANINGS: Mapping[str, str] = {
    "entity": "tokens of the entity's name, the first with the space before it (text runs)",
    "entity_last": "last token of the name",
    "image": "tokens of the picture (image runs)",
    "image_last": "last token of the picture",
    "question": "tokens after the name or the picture, without the last one",
    "last": "the position that predicts the answer",
}
GROUPS: tuple[str, ...] = tuple(GROUP_MEANINGS)


@dataclass(frozen=True)
class Prompt:
    """before + (name | picture) + after; with neither, plain text in `before`."""

    before: str
    entity: str | None = None
    after: str = ""
    picture: Float[Tensor, "image_token d_model"] | None = None


@dataclass(frozen=True)
class Encoded:
    """One prompt in token ids."""

    ids: list[int]
    start: int
    end: int
    """[start, end) of the name's or the picture's tokens; (0, 0) for plain text."""


@dataclass(frozen=True)
class Batch:
    """Padded prompts; positions count from each row's first real token."""

    input_ids: Int[Tensor, "batch seq"]
    attention_mask: Int[Tensor, "batch seq"]
    position_ids: Int[Tensor, "batch seq"]
    groups: dict[str, Bool[Tensor, "batch seq"]]
    spans: list[tuple[int, int]]
    pictures: Float[Tensor, "n d_model"] | None = None
    """Features of all picture tokens in row-major order."""
    extra: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    """Further inputs that the family's processor would make."""

    def __len__(self) -> int:
        return len(self.input_ids)


class Tokens:
    """A tokenizer with the study's conventions; enough for everything that needs no weights.

    The space before the entity belongs to the name's first token; a picture takes the place of both.
    """

    def __init__(self, tokenizer: Any, n_image_tokens: int = 0, image_token_id: int | None = None) -> None:
        self.raw = tokenizer
        self.n_image_tokens, self.image_token_id = n_image_tokens, image_token_id

    def tokenize(self, text: str) -> list[int]:
        """Ids without special tokens."""
        return list(self.raw(text, add_special_tokens=False)["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        """Text without special tokens."""
        return str(self.raw.decode(list(ids), skip_special_tokens=True))

    def name_span_length(self, before: str, name: str, after: str) -> int:
        """Number of tokens of a name in its prompt."""
        encoded = self.encode(Prompt(before, name, after))
        return encoded.end - encoded.start

    def encode(self, prompt: Prompt) -> Encoded:
        """Ids and entity span of a prompt.

        Raises:
            ModelError: both a name and a picture, or a name without tokens.
        """
        if prompt.picture is None:
            return self._encode_text(prompt)
        if prompt.entity is not None:
            raise ModelError("a prompt has a name and a picture", repr(prompt.entity), "give one of the two")
        return self._encode_picture(prompt)

    def _encode_text(self, prompt: Prompt) -> Encoded:
        name = prompt.entity or ""
        made = self.raw(prompt.before + name + prompt.after, return_offsets_mapping=True)
        ids = list(made["input_ids"])
        if prompt.entity is None:
            return _nonempty(Encoded(ids, 0, 0))
        low, high = len(prompt.before.removesuffix(" ")), len(prompt.before) + len(name)
        offsets: list[tuple[int, int]] = list(made["offset_mapping"])
        inside = [i for i, (a, b) in enumerate(offsets) if a < high and b > low]
        if not name.strip() or not inside:
            raise ModelError("the name has no tokens in its prompt", repr(name), "give a name of visible characters")
        start = inside[0]
        # some tokenizers trim a token that is a space alone to no width at all
        while start and offsets[start - 1][0] == offsets[start - 1][1] >= low > 0:
            start -= 1
        return Encoded(ids, start, inside[-1] + 1)

    def _encode_picture(self, prompt: Prompt) -> Encoded:
        if self.image_token_id is None:
            raise ModelError("this model takes no pictures", repr(prompt.before), "use a vision-language model")
        image = str(self.raw.convert_ids_to_tokens(self.image_token_id))
        text = prompt.before.removesuffix(" ") + image * self.n_image_tokens + prompt.after
        ids = list(self.raw(text)["input_ids"])
        start = ids.index(self.image_token_id)
        return Encoded(ids, start, start + self.n_image_tokens)


def _nonempty(encoded: Encoded) -> Encoded:
    if not encoded.ids:
        raise ModelError("the prompt is empty", "", "give it at least one token")
    return encoded


def pad(
    encoded: Sequence[Encoded],
    pictures: Sequence[bool],
    pad_id: int,
    device: torch.device,
    side: Literal["left", "right"] = "left",
) -> tuple[Tensor, Tensor, Tensor, list[tuple[int, int]], dict[str, Tensor]]:
    """Ids, mask, positions, spans and groups of a padded batch; `pictures[i]` says what the span of row i holds."""
    longest = max(len(e.ids) for e in encoded)
    shape = (len(encoded), longest)
    ids = torch.full(shape, pad_id, dtype=torch.long)
    mask = torch.zeros(shape, dtype=torch.long)
    groups = {name: torch.zeros(shape, dtype=torch.bool) for name in GROUPS}
    spans: list[tuple[int, int]] = []
    for row, (e, is_picture) in enumerate(zip(encoded, pictures, strict=True)):
        shift = longest - len(e.ids) if side == "left" else 0
        stop = shift + len(e.ids)
        ids[row, shift:stop] = torch.tensor(e.ids)
        mask[row, shift:stop] = 1
        spans.append((e.start + shift, e.end + shift) if e.end else (0, 0))
        _mark(groups, row, spans[-1], stop, is_picture)
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    moved = {name: group.to(device) for name, group in groups.items()}
    return ids.to(device), mask.to(device), positions.to(device), spans, moved


def _mark(groups: dict[str, Tensor], row: int, span: tuple[int, int], stop: int, is_picture: bool) -> None:
    groups["last"][row, stop - 1] = True
    start, end = span
    if end:
        kind = "image" if is_picture else "entity"
        groups[kind][row, start:end] = True
        groups[f"{kind}_last"][row, end - 1] = True
        groups["question"][row, end : stop - 1] = True
