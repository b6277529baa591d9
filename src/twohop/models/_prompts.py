"""Prompts as data, and the padded batches with token groups that a model runs on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from twohop.errors import ModelError
from twohop.models._frame import Frame

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
class Picture:
    """A picture as a language model gets it, made once by `Model.encode_pictures`."""

    features: Float[Tensor, "image_token d_model"] | None
    """What stands at the image tokens; None where cross-attention layers read `states` instead."""
    text: str | None = None
    """What the processor writes for it in a prompt; None: as many image tokens as there are features."""
    deep: tuple[Float[Tensor, "image_token d_model"], ...] = ()
    """What is added at the image tokens after the first layers (Qwen3-VL's DeepStack), layer by layer."""
    states: Float[Tensor, "vision_token d_model"] | None = None
    """What cross-attention layers read."""
    inputs: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    """Further inputs that the processor makes of it."""


@dataclass(frozen=True)
class Prompt:
    """before + (name | picture) + after; with neither, plain text in `before`."""

    before: str
    entity: str | None = None
    after: str = ""
    picture: Picture | None = None


@dataclass(frozen=True)
class Encoded:
    """One prompt in token ids."""

    ids: list[int]
    start: int
    end: int
    """[start, end) of the name's tokens, or from the picture's first image token to its last; (0, 0) for plain text."""
    image: tuple[bool, ...] = ()
    """Which of [start, end) are image tokens: families write row ends and the like between them."""
    gaps: tuple[tuple[int, int], ...] = ()
    """[start, end) of tokens that are padding, ascending."""


@dataclass(frozen=True)
class Batch:
    """Padded prompts; positions count from each row's first real token."""

    input_ids: Int[Tensor, "batch seq"]
    attention_mask: Int[Tensor, "batch seq"]
    position_ids: Int[Tensor, "*axes batch seq"]
    """Three axes (time, height, width) for a family that rotates each by itself (Qwen-VL)."""
    groups: dict[str, Bool[Tensor, "batch seq"]]
    spans: list[tuple[int, int]]
    pictures: Float[Tensor, "n d_model"] | None = None
    """Features of all picture tokens in row-major order."""
    extra: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    """Further inputs that the family's processor would make."""
    deep: tuple[Float[Tensor, "n d_model"], ...] = ()
    """As `Picture.deep`, for all picture tokens in row-major order."""
    next_position: Int[Tensor, " batch"] | None = None
    """Position of the first token written after each row; None: the row's length."""
    shared: "Shared | None" = None
    """An earlier run that these rows begin as; what it left behind is not computed again."""

    def __len__(self) -> int:
        return len(self.input_ids)

    def take(self, rows: Sequence[int]) -> "Batch":
        """Some rows, in this order; a row may come several times."""
        index = torch.tensor(list(rows), dtype=torch.long, device=self.input_ids.device)
        image = self.groups["image"]
        pick = _picker(image, index)
        return Batch(
            self.input_ids[index],
            self.attention_mask[index],
            self.position_ids.index_select(-2, index),
            {name: group[index] for name, group in self.groups.items()},
            [self.spans[r] for r in rows],
            None if self.pictures is None else self.pictures[pick],
            {name: value[index] for name, value in self.extra.items()},
            tuple(level[pick] for level in self.deep),
            None if self.next_position is None else self.next_position[index],
        )


def _picker(image: Bool[Tensor, "batch seq"], index: Int[Tensor, " rows"]) -> Int[Tensor, " n"]:
    """Which of all picture tokens (row-major) belong to the chosen rows, in their order."""
    number = torch.full(image.shape, -1, dtype=torch.long, device=image.device)
    number[image] = torch.arange(int(image.sum()), device=image.device)
    chosen = number[index]
    return chosen[chosen >= 0]


@dataclass(frozen=True)
class Trunk:
    """An unpatched run, kept: what every run that begins as it does need not compute again (see `_trunk`)."""

    batch: Batch
    logits: Float[Tensor, "batch vocab"]
    """At `last`."""
    cache: Any
    """Keys and values of every layer."""
    resid: Mapping[int, Float[Tensor, "batch seq d_model"]]
    """Layer -> its `resid_post`, of the layers behind which a patched run may begin."""
    activations: Mapping[Any, Float[Tensor, "batch seq d_model"]]
    """Of the sites that were asked for."""
    begins: frozenset[int] = frozenset()
    """Layers that it was made to begin at."""

    def fork(self, rows: Sequence[int]) -> Batch:
        """A batch of these rows, each to be patched in its own way; a row may come several times."""
        shared = Shared(self, tuple(rows), int(self.batch.input_ids.shape[1]))
        return replace(self.batch.take(rows), shared=shared)


@dataclass(frozen=True)
class Shared:
    """How a batch begins as an earlier run."""

    trunk: Trunk
    rows: tuple[int, ...]
    """Row of the trunk for every row of the batch."""
    length: int
    """So many first positions are the trunk's, padding included."""


class Tokens:
    """A tokenizer with the study's conventions; enough for everything that needs no weights.

    The space before the entity belongs to the name's first token; a picture takes the place of both.
    """

    def __init__(
        self, tokenizer: Any, n_image_tokens: int = 0, image_token_id: int | None = None, frame: Frame | None = None
    ) -> None:
        self.raw, self.frame = tokenizer, frame or Frame()
        self.n_image_tokens, self.image_token_id = n_image_tokens, image_token_id

    def tokenize(self, text: str) -> list[int]:
        """Ids without special tokens."""
        return list(self.raw(text, add_special_tokens=False)["input_ids"])

    def answer_ids(self, text: str) -> list[int]:
        """Ids of an answer or a name right after a prompt, with the space that separates them where there is one.

        Tokenized behind a text: some tokenizers (Llama-2's) write a space of their own before everything.
        """
        anchor, answer = self.frame.tail or "is", f"{self.frame.lead}{text}"
        alone, together = self.tokenize(anchor), self.tokenize(anchor + answer)
        return together[len(alone) :] if together[: len(alone)] == alone else self.tokenize(answer)

    def first_answer_token(self, before: str, name: str, after: str, answer: str) -> int | None:
        """Id of the first token that an answer adds to a named prompt, tokenized together; None: it adds none."""
        prompt = f"{self.frame.head}{before}{name}{after}{self.frame.tail}"
        alone, together = self.tokenize(prompt), self.tokenize(f"{prompt}{self.frame.lead}{answer}")
        same = next((i for i, (a, b) in enumerate(zip(alone, together, strict=False)) if a != b), len(alone))
        return together[same] if same < len(together) else None

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
        return self._encode_picture(prompt, prompt.picture)

    def _ids(self, text: str, **more: Any) -> Any:
        return self.raw(text, add_special_tokens=self.frame.special, **more)

    def _encode_text(self, prompt: Prompt) -> Encoded:
        name, head = prompt.entity or "", self.frame.head
        made = self._ids(f"{head}{prompt.before}{name}{prompt.after}{self.frame.tail}", return_offsets_mapping=True)
        ids = list(made["input_ids"])
        if prompt.entity is None:
            return _nonempty(Encoded(ids, 0, 0))
        low = len(head) + len(prompt.before.removesuffix(" "))
        high = len(head) + len(prompt.before) + len(name)
        offsets: list[tuple[int, int]] = list(made["offset_mapping"])
        inside = [i for i, (a, b) in enumerate(offsets) if a < high and b > low]
        if not name.strip() or not inside:
            raise ModelError("the name has no tokens in its prompt", repr(name), "give a name of visible characters")
        start = inside[0]
        # some tokenizers trim a token that is a space alone to no width at all
        while start and offsets[start - 1][0] == offsets[start - 1][1] >= low > 0:
            start -= 1
        return Encoded(ids, start, inside[-1] + 1)

    def _encode_picture(self, prompt: Prompt, picture: Picture) -> Encoded:
        if self.image_token_id is None:
            raise ModelError("this model takes no pictures", repr(prompt.before), "use a vision-language model")
        shown = picture.text
        if shown is None:
            shown = str(self.raw.convert_ids_to_tokens(self.image_token_id)) * self.n_image_tokens
        frame = self.frame
        text = f"{frame.picture_head}{prompt.before.removesuffix(' ')}{shown}{prompt.after}{frame.picture_tail}"
        ids = list(self._ids(text)["input_ids"])
        found = [i for i, token in enumerate(ids) if token == self.image_token_id]
        if len(found) != self.n_image_tokens:
            raise ModelError(
                f"{len(found)} image tokens in a prompt, {self.n_image_tokens} on the model's card",
                repr(prompt.before),
                "pictures must have the size that the card was made for: make it again (prepare_model)",
            )
        start, end = found[0], found[-1] + 1
        return Encoded(ids, start, end, tuple(token == self.image_token_id for token in ids[start:end]))


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
    at_least: int = 0,
) -> tuple[Tensor, Tensor, Tensor, list[tuple[int, int]], dict[str, Tensor]]:
    """Ids, mask, positions, spans and groups of a batch padded to its longest prompt (or to `at_least` tokens);
    `pictures[i]` says what the span of row i holds.
    """
    longest = max(at_least, *(len(e.ids) for e in encoded))
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
        for low, high in e.gaps:
            mask[row, shift + low : shift + high] = 0
        spans.append((e.start + shift, e.end + shift) if e.end else (0, 0))
        _mark(groups, row, spans[-1], stop, e.image if is_picture else None)
    groups["question"] &= mask.bool()
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    moved = {name: group.to(device) for name, group in groups.items()}
    return ids.to(device), mask.to(device), positions.to(device), spans, moved


def _mark(
    groups: dict[str, Tensor], row: int, span: tuple[int, int], stop: int, image: tuple[bool, ...] | None
) -> None:
    """`image`: which tokens of the span are a picture's; None: they are a name's."""
    groups["last"][row, stop - 1] = True
    start, end = span
    if end:
        kind = "entity" if image is None else "image"
        groups[kind][row, start:end] = True if image is None else torch.tensor(image)
        groups[f"{kind}_last"][row, end - 1] = True
        groups["question"][row, end : stop - 1] = True
