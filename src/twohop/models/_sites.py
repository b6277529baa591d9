"""Where an activation is read or written, by meaning: what is added to the residual, whatever module makes it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from twohop.errors import ModelError

SiteKind = Literal["resid_post", "mlp_write", "attn_write", "head", "query", "key", "value"]
KINDS: tuple[SiteKind, ...] = get_args(SiteKind)
KIND_MEANINGS: Mapping[str, str] = {
    "resid_post": "output of the decoder layer; layer -1 is the input of the first",
    "mlp_write": "what the layer's MLP adds to the residual stream",
    "attn_write": "what the layer's attention adds to the residual stream",
    "head": "the heads' outputs side by side, before the output projection mixes them",
    "query": "the heads' queries side by side, before position is rotated in",
    "key": "the key-value heads' keys side by side, before position is rotated in",
    "value": "the key-value heads' values side by side",
}
PROJECTIONS: Mapping[SiteKind, str] = {"query": "q_proj", "key": "k_proj", "value": "v_proj"}
"""Sites that are the output of a linear map of the attention block; only where the family's softmax is plain."""
EMBEDDINGS = -1
"""`Site("resid_post", EMBEDDINGS)` is the first decoder layer's input."""


@dataclass(frozen=True, order=True)
class Site:
    """One place in the decoder: layer 0 is the first decoder layer; `resid_post` -1 is its input."""

    kind: SiteKind
    layer: int


@dataclass(frozen=True)
class Patch:
    """Overwrite a site at some positions."""

    site: Site
    where: Bool[Tensor, "batch seq"]
    values: Float[Tensor, "n width"]
    """One row per True of `where`, in row-major order; as wide as the site, or as one head when `head` is given."""
    head: int | None = None
    """Overwrite this head's slice only (sites that hold heads side by side)."""


@dataclass(frozen=True)
class Tap:
    """How a site is reached: a module, which end of it, and the factor between its output and what is written."""

    module: nn.Module
    before: bool = False
    """The module's first argument instead of its output."""
    item: int | None = None
    """Index in a tuple output."""
    gate: nn.Parameter | None = None
    """Cross-attention layers add tanh(gate) * output to the residual."""

    def scale(self) -> Tensor | None:
        """Factor from the module's output to the write; None for 1."""
        return None if self.gate is None else torch.tanh(self.gate.detach())


@dataclass(frozen=True)
class Layout:
    """Names of a family's decoder modules (transformers 5.23), each with its reason in `docs/design/models.md`."""

    mlp: str = "mlp"
    attention: str = "self_attn"
    attention_item: int | None = 0
    plain_softmax: bool = False
    """Attention is softmax(q k / sqrt(d_head)) over the past with one RoPE: no norm, window or cap on the way."""


LAYOUTS: Mapping[str, Layout] = {
    "llama": Layout(plain_softmax=True),
    "llava": Layout(plain_softmax=True),
    "qwen2_5_vl": Layout(),
    # the residual gets the post-norms' output, not the blocks' own
    "gemma3": Layout("post_feedforward_layernorm", "post_attention_layernorm", None),
    "mllama": Layout(),
}


class Decoder:
    """The decoder stack of a model and the tap of each of its sites.

    Raises:
        ModelError: the family is unknown, or the stack does not have the layers that its config declares.
    """

    def __init__(self, net: nn.Module, family: str) -> None:
        if family not in LAYOUTS:
            raise ModelError(f"unknown family {family!r}", "models", f"use one of {', '.join(LAYOUTS)}")
        net_: Any = net
        self.layout = LAYOUTS[family]
        self.stack: Any = net_.get_decoder()
        self.layers: nn.ModuleList = self.stack.layers
        self.config: Any = net_.config.get_text_config()
        config = self.config
        self.n_layers, self.d_model = int(config.num_hidden_layers), int(config.hidden_size)
        self.n_heads = int(config.num_attention_heads)
        self.n_kv_heads = int(getattr(config, "num_key_value_heads", None) or self.n_heads)
        self.cross_layers = frozenset(int(i) for i in getattr(config, "cross_attention_layers", None) or ())
        if len(self.layers) != self.n_layers:
            raise ModelError(
                f"{len(self.layers)} decoder layers, the config says {self.n_layers}",
                type(net).__name__,
                "this family needs an entry of its own in LAYOUTS",
            )

    def check(self, site: Site) -> Site:
        """The same site when the model has it.

        Raises:
            ModelError: unknown kind, or a layer that the model does not have.
        """
        if site.kind in PROJECTIONS and not self.layout.plain_softmax:
            raise ModelError(
                f"no site {site.kind}: this family does more than a softmax between queries and keys",
                f"layer {site.layer}",
                "score_attribution.method: atp_star is for the families llama and llava; use plain or integrated",
            )
        lowest = EMBEDDINGS if site.kind == "resid_post" else 0
        if site.kind not in KINDS or not lowest <= site.layer < self.n_layers:
            raise ModelError(
                f"no site {site.kind} at layer {site.layer}",
                f"a model of {self.n_layers} layers",
                f"use {', '.join(KINDS)} at layers {lowest} to {self.n_layers - 1}",
            )
        return site

    def tap(self, site: Site) -> Tap:
        """How to reach a site; keyed by layer index, never by the position in a list of outputs (promise X7)."""
        self.check(site)
        if site.kind == "resid_post":
            return Tap(self.layers[0], before=True) if site.layer == EMBEDDINGS else Tap(self.layers[site.layer])
        layer: Any = self.layers[site.layer]
        if site.kind == "head":
            return Tap(self._attention(site.layer).o_proj, before=True)
        if site.kind in PROJECTIONS:
            return Tap(getattr(layer.self_attn, PROJECTIONS[site.kind]))
        if site.layer in self.cross_layers:
            if site.kind == "mlp_write":
                return Tap(layer.mlp, gate=layer.cross_attn_mlp_gate)
            return Tap(layer.cross_attn, item=0, gate=layer.cross_attn_attn_gate)
        if site.kind == "mlp_write":
            return Tap(getattr(layer, self.layout.mlp))
        return Tap(getattr(layer, self.layout.attention), item=self.layout.attention_item)

    def width(self, site: Site) -> int:
        """Size of the site's last axis: d_model, or what its heads take side by side."""
        self.check(site)
        if site.kind == "head":
            return int(self._attention(site.layer).o_proj.in_features)
        if site.kind in PROJECTIONS:
            return int(getattr(self._attention(site.layer), PROJECTIONS[site.kind]).out_features)
        return self.d_model

    def heads(self, kind: SiteKind) -> int | None:
        """How many heads a site of this kind holds side by side; None where it is not made of heads."""
        if kind in ("head", "query"):
            return self.n_heads
        return self.n_kv_heads if kind in ("key", "value") else None

    def _attention(self, layer: int) -> Any:
        block: Any = self.layers[layer]
        return block.cross_attn if layer in self.cross_layers else block.self_attn
