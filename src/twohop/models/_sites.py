"""Where an activation is read or written, by meaning: what is added to the residual, whatever module makes it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from jaxtyping import Bool, Float
from torch import Tensor, nn

from twohop.errors import ModelError
from twohop.models._layout import OUTPUT_PROJECTIONS, Layout, discover
from twohop.models._processor import cross_layers

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

    @property
    def first_changed(self) -> int:
        """The first layer that meets a patch of it."""
        return self.layer + 1 if self.kind == "resid_post" else self.layer


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
    masked: nn.Module | None = None
    """Layer whose argument `full_text_row_masked_out_mask` sets this write to 0 where nothing of a picture is seen."""


class Decoder:
    """The decoder stack of a model and the tap of each of its sites.

    Args:
        net: the model; a pass over a few tokens finds its layout.
        layout: a layout that is known already.

    Raises:
        ModelError: the stack does not have the layers that its config declares, or its layout is not found.
    """

    def __init__(self, net: nn.Module, layout: Layout | None = None) -> None:
        net_: Any = net
        self.stack: Any = _stack(net_)
        self.layers: nn.ModuleList = self.stack.layers
        self.config: Any = net_.config.get_text_config()
        config = self.config
        self.n_layers, self.d_model = int(config.num_hidden_layers), int(config.hidden_size)
        self.n_heads = int(config.num_attention_heads)
        self.n_kv_heads = int(getattr(config, "num_key_value_heads", None) or self.n_heads)
        self.cross_layers = frozenset(cross_layers(config))
        if len(self.layers) != self.n_layers:
            raise ModelError(
                f"{len(self.layers)} decoder layers, the config says {self.n_layers}",
                type(net).__name__,
                "the folder's config.json is not this model's: download it again",
            )
        self.layout = layout or discover(net_, self.layers, self.cross_layers, self.d_model)

    @property
    def text_layers(self) -> tuple[int, ...]:
        """Layers that a text-only run passes: all but those that read a picture by cross-attention."""
        return tuple(i for i in range(self.n_layers) if i not in self.cross_layers)

    def check(self, site: Site) -> Site:
        """The same site when the model has it.

        Raises:
            ModelError: unknown kind, or a layer that the model does not have.
        """
        if site.kind in PROJECTIONS and not self.layout.plain_softmax:
            raise ModelError(
                f"no site {site.kind}: this family does more than a softmax between queries and keys",
                f"layer {site.layer}",
                "score_attribution.method: atp_star is for decoders of Llama's kind; use plain or integrated",
            )
        if site.kind == "head" and self.layout.output is None:
            raise ModelError(
                "no site head: the module that mixes the heads was not found",
                type(self.stack).__name__,
                f"its attention has none of {', '.join(OUTPUT_PROJECTIONS)}",
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
            return Tap(self._output(site.layer), before=True)
        if site.kind in PROJECTIONS:
            return Tap(getattr(layer.self_attn, PROJECTIONS[site.kind]))
        if site.layer in self.cross_layers:
            if site.kind == "mlp_write":
                return Tap(layer.mlp, gate=layer.cross_attn_mlp_gate, masked=layer)
            return Tap(layer.cross_attn, item=0, gate=layer.cross_attn_attn_gate)
        child = self.layout.mlp if site.kind == "mlp_write" else self.layout.attention
        return Tap(getattr(layer, child), item=0 if (site.layer, child) in self.layout.tuples else None)

    def width(self, site: Site) -> int:
        """Size of the site's last axis: d_model, or what its heads take side by side."""
        self.check(site)
        if site.kind == "head":
            return int(self._output(site.layer).in_features)
        if site.kind in PROJECTIONS:
            layer: Any = self.layers[site.layer]
            return int(getattr(layer.self_attn, PROJECTIONS[site.kind]).out_features)
        return self.d_model

    def heads(self, kind: SiteKind) -> int | None:
        """How many heads a site of this kind holds side by side; None where it is not made of heads."""
        if kind in ("head", "query"):
            return self.n_heads
        return self.n_kv_heads if kind in ("key", "value") else None

    def _output(self, layer: int) -> Any:
        """The linear map that mixes the heads of a layer."""
        block: Any = self.layers[layer]
        if layer in self.cross_layers:
            return block.cross_attn.o_proj
        return getattr(getattr(block, self.layout.block), str(self.layout.output))


def _stack(net: Any) -> Any:
    """The module that holds the decoder layers, the final norm and the positions."""
    found: Any = net.get_decoder()
    while not hasattr(found, "layers") and hasattr(found, "model"):
        found = found.model
    if not hasattr(found, "layers"):
        raise ModelError("no decoder layers", type(net).__name__, "this class of models is not supported")
    return found
