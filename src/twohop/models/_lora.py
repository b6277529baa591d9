"""Low-rank updates of a decoder's linear layers (LoRA, Hu et al. 2021, arXiv 2106.09685), trained beside it and merged.

`Adapters.attached` adds B A x to what every linear layer gives, by hooks that are gone afterwards; `merge` adds B A to
the weights for good, which is the same function.
"""

import contextlib
import math
from collections.abc import Generator, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from twohop.errors import ModelError

PREFIX = "lora."
"""Of the adapters' names in a file of recipe `native`: `lora.<linear layer>.a`, (rank, in), and `.b`, (out, rank)."""


class Adapters(nn.Module):
    """One pair of factors for every linear layer of a decoder; B starts at zero, so that nothing changes at first."""

    def __init__(self, decoder: nn.Module, rank: int, seed: int) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.names = tuple(linear_layers(decoder))
        self.a, self.b = nn.ParameterList(), nn.ParameterList()
        for layer in linear_layers(decoder).values():
            bound = 1 / math.sqrt(layer.in_features)
            self.a.append((torch.rand(rank, layer.in_features, generator=draw) * 2 - 1) * bound)
            self.b.append(torch.zeros(layer.out_features, rank))

    @contextlib.contextmanager
    def attached(self, decoder: nn.Module) -> Generator[None]:
        """The decoder with the update added, until the end of the block."""
        layers, handles = linear_layers(decoder), list[Any]()
        try:
            for name, a, b in zip(self.names, self.a, self.b, strict=True):
                handles.append(layers[name].register_forward_hook(_adding(a, b)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def tensors(self) -> dict[str, Tensor]:
        """The factors by their names in the file."""
        found: dict[str, Tensor] = {}
        for name, a, b in zip(self.names, self.a, self.b, strict=True):
            found |= {f"{PREFIX}{name}.a": a.detach().clone(), f"{PREFIX}{name}.b": b.detach().clone()}
        return found


def linear_layers(decoder: nn.Module) -> dict[str, nn.Linear]:
    """Linear layers by name."""
    return {name: module for name, module in decoder.named_modules() if isinstance(module, nn.Linear)}


def _adding(a: Float[Tensor, "rank in"], b: Float[Tensor, "out rank"]) -> Any:
    def hook(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + functional.linear(functional.linear(args[0], a), b)

    return hook


@torch.no_grad()
def merge(decoder: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Add every pair's product to the weight of its layer.

    Args:
        decoder: its linear layers' weights are changed in place.
        tensors: `lora.<layer>.a` and `.b` for every linear layer; other names are an error.

    Raises:
        ModelError: the pairs do not fit the decoder.
    """
    layers = linear_layers(decoder)
    expected = {f"{PREFIX}{name}.{side}" for name in layers for side in "ab"}
    if expected != set(tensors):
        odd = sorted(expected ^ set(tensors))[:4]
        todo = "train it again: recipe native of train_projector"
        raise ModelError(f"the low-rank updates do not fit the decoder, e.g. {odd}", "projector.safetensors", todo)
    for name, layer in layers.items():
        a, b = (tensors[f"{PREFIX}{name}.{side}"].float() for side in "ab")
        if (b.shape[0], a.shape[1]) != tuple(layer.weight.shape) or a.shape[0] != b.shape[1]:
            what = f"{name}: factors {tuple(b.shape)} x {tuple(a.shape)} for a weight {tuple(layer.weight.shape)}"
            raise ModelError(what, "projector.safetensors", "train it again: recipe native of train_projector")
        layer.weight.add_(b @ a)
