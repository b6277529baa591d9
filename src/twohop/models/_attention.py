"""Attention knockout: some positions do not see some others in a window of layers (Geva et al. 2023, 2304.14767,
section 5: attention edges are blocked in a window of layers to see when information moves).

An attention function of our own is registered together with its mask function; without the latter transformers would
drop the padding mask silently. Layers outside the window get the very arguments that they would have got, and all
call the plain sdpa function. A cut layer's mask, which for an unpadded batch arrives as None, is built as a boolean
one and cleared at (query, key).
"""

import contextlib
from collections.abc import Generator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from twohop.errors import ModelError
from twohop.models._sites import Decoder

NAME = "twohop_knockout"
PLAIN = "sdpa"


@dataclass(frozen=True)
class Knockout:
    """Positions of `queries` do not see those of `keys` in layers `start` to `stop - 1`.

    In a layer that reads the picture by cross-attention the queries see nothing of the picture.
    """

    start: int
    stop: int
    queries: Bool[Tensor, "batch seq"]
    keys: Bool[Tensor, "batch seq"]

    @property
    def layers(self) -> range:
        """The window."""
        return range(self.start, self.stop)


@dataclass
class _Active:
    """The knockouts of the pass that runs now, and the layers that they have met."""

    cuts: Sequence[Knockout]
    met: set[int]
    crossing: frozenset[int] = frozenset()
    """Layers whose keys are not positions but a picture: a cut query sees nothing of it there."""


_NOW: ContextVar[_Active | None] = ContextVar("knockouts", default=None)


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *args: Any, **kwargs: Any
) -> tuple[Tensor, None]:
    """The attention function: sdpa with the mask of a cut layer edited."""
    active = _NOW.get() or _Active((), set())
    layer = int(module.layer_idx)
    cuts = [cut for cut in active.cuts if layer in cut.layers]
    active.met.update([layer] if cuts else [])
    if layer in active.crossing:
        out, _ = sdpa_attention_forward(module, query, key, value, attention_mask, *args, **kwargs)
        for cut in cuts:
            out = out.masked_fill(cut.queries[:, -query.shape[2] :, None, None], 0)
        return out, None
    for cut in cuts:
        attention_mask = _cleared(attention_mask, cut, query.shape[2], key.shape[2])
    return sdpa_attention_forward(module, query, key, value, attention_mask, *args, **kwargs)


def _cleared(mask: Tensor | None, cut: Knockout, n_queries: int, n_keys: int) -> Bool[Tensor, "batch 1 query key"]:
    """The mask without the cut edges; queries and keys of a pass are the last ones of the row."""
    device, batch = cut.keys.device, len(cut.keys)
    if mask is None:  # sdpa would have been told `is_causal`
        at = torch.arange(n_queries, device=device)[:, None] + n_keys - n_queries
        mask = (torch.arange(n_keys, device=device)[None, :] <= at)[None, None]
    if mask.dtype != torch.bool:
        raise ModelError(f"met an attention mask of {mask.dtype}", "knockout", "use a model whose attention is sdpa")
    queries, keys = cut.queries[:, -n_queries:], cut.keys[:, -n_keys:]
    kept = mask.expand(batch, -1, -1, -1) & ~(queries[:, :, None] & keys[:, None, :])[:, None]
    if not bool(kept.any(-1)[:, 0][queries].all()):
        raise ModelError("a position would see nothing at all", "knockout", "leave it at least itself among the keys")
    return kept


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, sdpa_mask)


def check(decoder: Decoder, cut: Knockout, shape: tuple[int, int]) -> None:
    """Raises `ModelError` where a knockout does not fit the model or the batch."""
    if not 0 <= cut.start < cut.stop <= decoder.n_layers:
        raise ModelError(
            f"no layers {cut.start} to {cut.stop - 1}",
            f"a model of {decoder.n_layers} layers",
            f"give a window inside 0 to {decoder.n_layers - 1}",
        )
    if tuple(cut.queries.shape) != shape or tuple(cut.keys.shape) != shape:
        raise ModelError(
            f"knockout of {tuple(cut.queries.shape)} by {tuple(cut.keys.shape)} positions",
            f"a batch of {shape}",
            "give one True or False per position of the padded batch",
        )


@contextlib.contextmanager
def knocked_out(decoder: Decoder, cuts: Sequence[Knockout], shape: tuple[int, int]) -> Generator[None]:
    """Knockouts for exactly one forward pass; the model's attention is its own again afterwards, whatever happens.

    Args:
        decoder: the stack.
        cuts: what is cut; none: nothing is touched.
        shape: (batch, seq) of the whole rows.

    Raises:
        ModelError: a knockout does not fit, the model's attention is not sdpa, or a layer of a window did not run.
    """
    if not cuts:
        yield
        return
    for cut in cuts:
        check(decoder, cut, shape)
    config = decoder.config
    before = config._attn_implementation
    if before != PLAIN:
        raise ModelError(f"the model's attention is {before!r}", "knockout", f"load it with {PLAIN!r}")
    active = _Active(cuts, set(), decoder.cross_layers)
    token = _NOW.set(active)
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before
        _NOW.reset(token)
    # a text-only run skips the cross-attention layers
    missed = sorted({layer for cut in cuts for layer in cut.layers} - active.met - decoder.cross_layers)
    if missed:
        raise ModelError(f"layers {missed} were not cut", "knockout", "they were skipped in this run")
