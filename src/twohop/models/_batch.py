"""Inputs of a batch that only some families have: marked tokens, positions in space, cross-attention masks."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from twohop.errors import ModelError
from twohop.models._eyes import Eyes
from twohop.models._prompts import Batch, Picture

FROM_LATER = ("cross_attention_mask",)
"""Inputs that go on for every token that is written; the last row's entry is repeated."""


LONGEST_ANSWER = 64
"""Tokens that may still be written after a prompt, see `RunBenchmark.max_new_tokens`."""

PROMPT_TOKENS = 160
"""Of a prompt with its answer, for which `batch` is meant: of shorter ones as many more stand in a pass as fill it.

One token of each of 128 rows takes half the time a row of 32 rows does (135 million parameters, one thread).
"""


def rows_at_once(size: int, length: int) -> int:
    """Rows of a pass over further tokens of rows that were begun before.

    Args:
        size: prompts of PROMPT_TOKENS in a pass.
        length: tokens of a row, with those that were run before.
    """
    return max(size, size * PROMPT_TOKENS // (length + 1))


def assemble(net: Any, eyes: Eyes | None, plain: Batch, seen: Sequence[Picture], dtype: torch.dtype) -> Batch:
    """The batch with its pictures, and with every further input that the family's processor would make (X9).

    Args:
        net: the model.
        eyes: of a model that takes pictures.
        plain: padded tokens.
        seen: the rows' pictures, in order.
        dtype: of the model.

    Raises:
        ModelError: a cross-attention model's batch of rows with and without pictures.
    """
    device = plain.input_ids.device
    features = [p.features.to(device, dtype) for p in seen if p.features is not None]
    levels = zip(*(p.deep for p in seen), strict=True)
    batch = replace(
        plain,
        pictures=torch.cat(features) if features else None,
        deep=tuple(torch.cat([x.to(device, dtype) for x in level]) for level in levels),
    )
    extra = dict[str, Tensor]()
    if eyes is not None:
        marks = {key: _marked(batch.input_ids, ids) for key, ids in eyes.marked.items() if seen or not ids}
        extra |= {key: value for key, value in marks.items() if key != "mm_token_type_ids" or not _rotates(net)}
        batch = _placed(net, batch, marks, seen)
    if any(p.states is not None for p in seen):
        extra |= _crossed(batch, seen, dtype)
    return replace(batch, extra=extra)


def check_padding(text_config: Any, mask: Tensor) -> None:
    """Refuse a padded batch in which padding would change what is computed.

    Llama 4 scales the queries of its layers without positions by place in the batch, counted with padding, from its
    `floor_scale`-th place on; before that, and in rows of one length, padding changes nothing.

    Raises:
        ModelError: rows of different lengths, as long as that.
    """
    if not getattr(text_config, "attn_temperature_tuning", False) or bool(mask.all()):
        return
    longest = mask.shape[1] + LONGEST_ANSWER
    if longest > text_config.floor_scale:
        what = f"{longest} tokens with the answer in a padded batch; padding counts from {text_config.floor_scale} on"
        raise ModelError(what, text_config.model_type, "set the steps' batch to 1, or give shorter prompts")


def _rotates(net: Any) -> bool:
    """The family gives image tokens positions in time, height and width."""
    return hasattr(getattr(net, "model", None), "get_rope_index")


def _marked(ids: Tensor, marked: frozenset[int]) -> Tensor:
    return torch.isin(ids, torch.tensor(sorted(marked), dtype=ids.dtype, device=ids.device)).long()


def _placed(net: Any, batch: Batch, marks: Mapping[str, Tensor], seen: Sequence[Picture]) -> Batch:
    """Qwen-VL: positions by the model's own rule, and where the text goes on after the last of them."""
    if not _rotates(net) or not seen:
        return batch
    grids = torch.cat([p.inputs["image_grid_thw"] for p in seen]).to(batch.input_ids.device)
    positions, delta = net.model.get_rope_index(
        batch.input_ids,
        mm_token_type_ids=marks["mm_token_type_ids"],
        image_grid_thw=grids,
        attention_mask=batch.attention_mask,
    )
    following = batch.attention_mask.sum(1) + delta.reshape(-1).to(batch.input_ids.device)
    return replace(batch, position_ids=positions, next_position=following)


def _crossed(batch: Batch, seen: Sequence[Picture], dtype: torch.dtype) -> dict[str, Tensor]:
    """Mllama: what the cross-attention layers read, and from which token on (the picture's own)."""
    if len(seen) != len(batch):
        raise ModelError(
            "rows with and without a picture in one batch of a cross-attention model", "batch", "run them apart"
        )
    device = batch.input_ids.device
    states = torch.stack([p.states.to(device, dtype) for p in seen if p.states is not None])
    tiles = torch.stack([p.inputs["tiles"] for p in seen]).to(device)
    mask = torch.zeros(*batch.input_ids.shape, 1, tiles.shape[1], dtype=torch.long, device=device)
    for row, (start, _) in enumerate(batch.spans):
        mask[row, start:, 0] = tiles[row]
    return {"cross_attention_states": states, "cross_attention_mask": mask}
