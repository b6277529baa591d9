"""Which modules of a decoder layer write to the residual: found by one short forward pass, not by a table of families.

A layer adds two things to the stream, `resid_post = resid_pre + attn_write + mlp_write`. In most families these are the
outputs of `self_attn` and `mlp`; in Gemma-2, Gemma-3 and OLMo-2 they are the outputs of the norms behind them. So every
child of the layer is watched during a pass over a few tokens, and the pair of children whose outputs sum to what the
residual gains is the layout. A model of which no pair does (promise X6) is refused.

Cross-attention layers (Mllama) are the one exception: what they add is scaled by gates, see `Decoder.tap` in `_sites`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any, cast

import torch
from torch import Tensor, nn

from twohop.errors import ModelError
from twohop.models._devices import compute_device

TOKENS = 6
"""Length of the pass."""
TOLERANCE: Mapping[torch.dtype, float] = {torch.float64: 1e-6, torch.float32: 1e-3}
COARSE = 0.1
"""Largest norm of what the pair leaves unexplained, as a share of what the residual gains; `COARSE` in 16 bits."""
OUTPUT_PROJECTIONS = ("o_proj", "out_proj", "dense", "c_proj", "wo")
"""Names of the linear map that mixes the heads."""
PLAIN_SOFTMAX = ("LlamaAttention",)
"""Attention classes that do softmax(q k / sqrt(d_head)) over the past with one RoPE: no norm, window, cap or bias."""


@dataclass(frozen=True)
class Layout:
    """Names of a decoder layer's modules."""

    mlp: str = "mlp"
    """Child whose output is `mlp_write`."""
    attention: str = "self_attn"
    """Child whose output is `attn_write`."""
    block: str = "self_attn"
    """Child that holds the heads."""
    output: str | None = "o_proj"
    """The block's output projection; None: not found, so there are no sites that hold heads."""
    plain_softmax: bool = False
    """Queries, keys and values can be read, and their softmax redone (AtP*'s fix)."""
    tuples: frozenset[tuple[int, str]] = field(default_factory=frozenset[tuple[int, str]])
    """(layer, child) whose output is a tuple; the write is its first item."""


@dataclass
class _Seen:
    """What one layer's hooks met."""

    before: Tensor | None = None
    after: Tensor | None = None
    children: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    tuples: set[str] = field(default_factory=set[str])


def discover(net: Any, layers: nn.ModuleList, skipped: frozenset[int], d_model: int) -> Layout:
    """The layout that all layers of a text-only run share.

    Args:
        net: the model.
        layers: its decoder layers.
        skipped: layers that a text-only run does not pass.
        d_model: width of the residual stream.

    Raises:
        ModelError: a layer does not run, or no two of its modules write what its residual gains.
    """
    seen = _watch(net, layers, d_model)
    ran = [i for i in range(len(layers)) if i not in skipped]
    silent = [i for i in ran if seen[i].after is None]
    if silent:
        raise ModelError(
            f"decoder layers {silent[:5]} do not run, or do not give (batch, seq, d_model)", _name(net), REFUSED
        )
    names = [n for n in seen[ran[0]].children if all(n in seen[i].children for i in ran)]
    errors = {pair: _unexplained(pair, [seen[i] for i in ran]) for pair in permutations(names, 2)}
    pair = min(errors, key=errors.__getitem__, default=None)
    dtype = cast("Tensor", seen[ran[0]].after).dtype
    if pair is None or not errors[pair] <= TOLERANCE.get(dtype, COARSE):
        best = "" if pair is None else f" ({' and '.join(pair)} leave {errors[pair]:.1%} of it)"
        raise ModelError(f"no two modules of a layer sum to what its residual gains{best}", _name(net), REFUSED)
    first, second = sorted(pair, key=names.index)  # in the order in which they ran
    block = next((n for n in names[: names.index(first) + 1] if _projection(layers[ran[0]], n)), None)
    attention: Any = getattr(layers[ran[0]], block) if block else None
    return Layout(
        mlp=second,
        attention=first,
        block=block or first,
        output=_projection(layers[ran[0]], block) if block else None,
        plain_softmax=type(attention).__name__ in PLAIN_SOFTMAX,
        tuples=frozenset((i, n) for i in ran for n in seen[i].tuples),
    )


REFUSED = "this family is not supported; twohop models check says which it is"


def _name(net: Any) -> str:
    return f"{type(net).__name__} ({net.config.model_type})"


def _watch(net: Any, layers: nn.ModuleList, d_model: int) -> list[_Seen]:
    """One pass over a few tokens, without a picture."""
    seen = [_Seen() for _ in layers]
    handles: list[torch.utils.hooks.RemovableHandle] = []
    ids = torch.arange(1, TOKENS + 1, device=compute_device(net))[None]
    shape = (1, TOKENS, d_model)
    try:
        for layer, found in zip(layers, seen, strict=True):
            handles.append(layer.register_forward_pre_hook(_entry(found), with_kwargs=True))
            handles.append(layer.register_forward_hook(_exit(found, shape)))
            handles += [c.register_forward_hook(_child(found, n, shape)) for n, c in layer.named_children()]
        with torch.no_grad():
            net(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _entry(found: _Seen) -> Any:
    def hook(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.before = cast("Tensor", args[0] if args else kwargs["hidden_states"]).clone()

    return hook


def _exit(found: _Seen, shape: tuple[int, ...]) -> Any:
    def hook(_module: Any, _args: Any, output: Any) -> None:
        if isinstance(output, Tensor) and tuple(output.shape) == shape:
            found.after = output.clone()

    return hook


def _child(found: _Seen, name: str, shape: tuple[int, ...]) -> Any:
    def hook(_module: Any, _args: Any, output: Any) -> None:
        first: Any = cast("tuple[Any, ...]", output)[0] if isinstance(output, tuple) and output else output
        # a mixture of experts gives (batch * seq, d_model)
        if isinstance(first, Tensor) and first.shape[-1:] == shape[-1:] and first.numel() == shape[1] * shape[2]:
            found.children[name] = first.reshape(shape).clone()
            if isinstance(output, tuple):
                found.tuples.add(name)

    return hook


def _unexplained(pair: tuple[str, str], seen: list[_Seen]) -> float:
    """Largest share, over layers, of the residual's gain that the pair does not write."""
    worst = 0.0
    for found in seen:
        gained = (cast("Tensor", found.after) - cast("Tensor", found.before)).double()
        written = sum((found.children[n].double() for n in pair), torch.zeros((), dtype=torch.float64))
        worst = max(worst, float((gained - written).norm() / gained.norm().clamp_min(1e-30)))
    return worst


def _projection(layer: Any, child: str) -> str | None:
    block = getattr(layer, child)
    return next((n for n in OUTPUT_PROJECTIONS if isinstance(getattr(block, n, None), nn.Linear)), None)
