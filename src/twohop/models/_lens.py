"""The unembedding of a residual: what the model would say if it stopped after a layer.

The logit lens (nostalgebraist 2020, "interpreting GPT: the logit lens"): final norm, then `lm_head`, applied to the
residual of any layer. Activations here are read by hooks before the final norm, so it is applied exactly once (promise
X8; `hidden_states[-1]` of transformers is already normed).
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from twohop.errors import ModelError
from twohop.models._sites import Decoder


def unembed(
    net: Any, decoder: Decoder, resid: Float[Tensor, "*rows d_model"], tokens: Sequence[int] | None = None
) -> Float[Tensor, "*rows token"]:
    """See `Model.unembed`."""
    head: Any = net.get_output_embeddings()
    if not isinstance(head, nn.Linear) or resid.shape[-1] != decoder.d_model:
        raise ModelError(
            f"cannot unembed {tuple(resid.shape)} with {type(head).__name__}",
            type(net).__name__,
            f"give residuals of width {decoder.d_model} of a model whose lm_head is linear",
        )
    weight: Tensor = head.weight
    bias: Tensor | None = getattr(head, "bias", None)
    normed: Tensor = decoder.stack.norm(resid.to(weight.dtype))
    index = None if tokens is None else torch.tensor(list(tokens))
    if weight.device.type == "meta":  # its rows are on the disk: the module reads them when it is called
        logits: Tensor = head(normed)
        logits = logits if index is None else logits[..., index.to(logits.device)]
    else:
        if index is not None:
            weight, bias = weight[index.to(weight.device)], None if bias is None else bias[index.to(weight.device)]
        logits = nn.functional.linear(normed.to(weight.device), weight, bias)
    cap = getattr(decoder.config, "final_logit_softcapping", None)
    if cap is not None:  # Gemma-2
        logits = torch.tanh(logits / cap) * cap
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
