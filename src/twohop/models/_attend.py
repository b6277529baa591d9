"""One layer's attention from its queries, keys and values: what AtP* needs to redo a softmax without a forward pass.

Only for families with `Layout.plain_softmax` (Llama and what is built on it): RoPE, grouped queries, causal softmax.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from twohop.models._prompts import Batch
from twohop.models._sites import Decoder


def attend(
    decoder: Decoder,
    batch: Batch,
    layer: int,
    query: Float[Tensor, "batch seq query"],
    key: Float[Tensor, "batch seq key"],
    value: Float[Tensor, "batch seq key"],
) -> Float[Tensor, "batch seq query"]:
    """The heads' outputs side by side; rows of padding hold nothing of use."""
    q, k, v = (_split(x, n) for x, n in zip((query, key, value), _counts(decoder), strict=True))
    cos, sin = decoder.stack.rotary_emb(query, position_ids=batch.position_ids)
    q, k = apply_rotary_pos_emb(q, k, cos, sin)
    block: Any = decoder.layers[layer]
    mask = _mask(batch).to(query.device)[:, None]
    out = functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, scale=float(block.self_attn.scaling), enable_gqa=True
    )
    return out.transpose(1, 2).flatten(2)


def _counts(decoder: Decoder) -> tuple[int, int, int]:
    return decoder.n_heads, decoder.n_kv_heads, decoder.n_kv_heads


def _split(x: Float[Tensor, "batch seq width"], heads: int) -> Float[Tensor, "batch head seq d_head"]:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _mask(batch: Batch) -> Bool[Tensor, "batch seq seq"]:
    """True where a query (row) sees a key: the past and itself, without padding."""
    seq = batch.attention_mask.shape[1]
    past = torch.ones(seq, seq, dtype=torch.bool, device=batch.attention_mask.device).tril()
    own = torch.eye(seq, dtype=torch.bool, device=past.device)  # else a row of padding would have nothing to see
    return (past & batch.attention_mask.bool()[:, None]) | own
