"""Where an activation is read or written, by meaning: what is added to the residual, whatever module makes it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from twohop.errors import ModelError

SiteKind = Literal["resid_post", "mlp_write", "attn_write"]
KINDS: tuple[SiteKind, ...] = get_args(SiteKind)
KIND_MEANINGS: Mapping[str, str] = {
    "resid_post": "output of the decoder layer; layer -1 is the input of the first",
    "mlp_write": "what the layer's MLP adds to the residual stream",
    "attn_write": "what the layer's attention adds to the residual stream",
}
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
    values: Float[Tensor, "n d_model"]
    """One row per True of `where`, in row-major order."""


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


LAYOUTS: Mapping[str, Layout] = {
    "llama": Layout(),
    "llava": Layout(),
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
        if site.layer in self.cross_layers:
            if site.kind == "mlp_write":
                return Tap(layer.mlp, gate=layer.cross_attn_mlp_gate)
            return Tap(layer.cross_attn, item=0, gate=layer.cross_attn_attn_gate)
        if site.kind == "mlp_write":
            return Tap(getattr(layer, self.layout.mlp))
        return Tap(getattr(layer, self.layout.attention), item=self.layout.attention_item)
