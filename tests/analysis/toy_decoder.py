"""A toy decoder with sites, patches and gradients, small enough to know its answers."""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class ToySite:
    kind: str
    layer: int


@dataclass(frozen=True)
class ToyPatch:
    site: ToySite
    where: Tensor
    values: Tensor
    head: int | None = None


@dataclass(frozen=True)
class ToyBatch:
    embeds: Tensor
    groups: dict[str, Tensor]


@dataclass(frozen=True)
class ToyRun:
    logits: Tensor
    activations: dict[ToySite, Tensor] = field(default_factory=dict)


EMBEDDING = ToySite("resid_post", -1)


class ToyDecoder:
    """x += f(causal mean of x) per layer; f is linear or a tanh layer; logits are read at the last position."""

    def __init__(self, n_layers: int = 3, d_model: int = 5, vocab: int = 7, linear: bool = True, seed: int = 0):
        draw = torch.Generator().manual_seed(seed)
        self.n_layers, self.linear = n_layers, linear
        self.weights = torch.randn(n_layers, d_model, d_model, generator=draw, dtype=torch.float64) / d_model**0.5
        self.head = torch.randn(d_model, vocab, generator=draw, dtype=torch.float64)
        self.forwards = 0

    def batch(self, embeds: Tensor, entity: slice = slice(1, 3)) -> ToyBatch:
        masks = {
            name: torch.zeros(embeds.shape[:2], dtype=torch.bool) for name in ("entity", "image", "question", "last")
        }
        masks["entity"][:, entity] = True
        masks["question"][:, entity.stop : -1] = True
        masks["last"][:, -1] = True
        return ToyBatch(embeds, masks)

    def sites(self) -> list[ToySite]:
        return [ToySite(kind, layer) for kind in ("mlp_write", "resid_post") for layer in range(self.n_layers)]

    def run(self, batch, capture=(), patches=(), grad=False) -> ToyRun:
        self.forwards += 1
        found: dict[ToySite, Tensor] = {}

        def visit(site: ToySite, x: Tensor) -> Tensor:
            for patch in patches:
                if patch.site == site:
                    x = x.clone()
                    x[patch.where] = patch.values
            if site in capture:
                found[site] = x
            return x

        x = visit(EMBEDDING, batch.embeds.clone().requires_grad_(grad))
        for layer, weight in enumerate(self.weights):
            seen = x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None]
            write = seen @ weight
            x = x + visit(ToySite("mlp_write", layer), write if self.linear else torch.tanh(write))
            x = visit(ToySite("resid_post", layer), x)
        return ToyRun(x[:, -1] @ self.head, found)
