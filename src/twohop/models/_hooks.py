"""Reading and writing sites during one forward pass.

Every hook checks the shape it meets and that it fired exactly once (promise X1), and is gone afterwards whatever
happens (X4). A read after a write sees what was written.
"""

import contextlib
from collections.abc import Collection, Generator, Iterator, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from twohop.errors import ModelError
from twohop.models._sites import Decoder, Patch, Site, Tap


class _Probe:
    """The hook of one site."""

    def __init__(
        self,
        site: Site,
        tap: Tap,
        shape: tuple[int, int, int],
        patches: Sequence[Patch],
        keep: bool,
        grad: bool,
        heads: int | None,
    ):
        self.site, self.tap, self.shape, self.keep, self.grad = site, tap, shape, keep, grad
        self.patches, self.heads = patches, heads
        self.fired = 0
        self.rows: Tensor | None = None
        self.activation: Tensor | None = None

    def _visit(self, output: Any) -> Tensor | None:
        """Read or overwrite the tensor; None leaves it as it is."""
        if not isinstance(output, Tensor) or not self._fits(output):
            got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ModelError(f"met {got} where (batch, seq, width) = {self.shape} was expected", str(self.site))
        self.fired += 1
        scale = self._scale(output)
        if scale is not None and not bool(scale.any()) and (self.patches or self.grad):
            raise ModelError("the gate of this layer is 0: it writes nothing", str(self.site), "leave the site out")
        flat = tuple(output.shape) != self.shape
        plain = output.reshape(self.shape) if flat else output
        write = plain if scale is None else plain * scale
        for patch in self.patches:
            write = _overwritten(write, patch, self.heads)
        if self.keep:
            if self.grad:
                write.retain_grad()
            self.activation = write if self.grad else write.detach()
        if not self.patches and not (self.grad and (flat or scale is not None)):
            return None
        new = write if scale is None else self._unscaled(plain, write, scale)
        return new.reshape(output.shape)

    def _fits(self, output: Tensor) -> bool:
        """(batch, seq, width), or what a mixture of experts gives: (batch * seq, width)."""
        batch, seq, width = self.shape
        return tuple(output.shape) in (self.shape, (batch * seq, width))

    def _scale(self, output: Tensor) -> Tensor | None:
        """Factor from the module's output to the write; None for 1."""
        if self.tap.gate is None:
            return None
        scale = torch.tanh(self.tap.gate.detach()).to(output)
        return scale if self.rows is None else scale * self.rows.to(output)

    def _unscaled(self, plain: Tensor, write: Tensor, scale: Tensor) -> Tensor:
        """The module's output that gives the write; where the factor is 0 nothing can be written."""
        dead = (scale == 0).expand_as(write)
        if bool((write.detach()[dead] != 0).any()):
            where = "a position before the picture gets nothing from this layer"
            raise ModelError(f"{where}, so nothing can be patched there", str(self.site), "patch later positions")
        return torch.where(dead, plain, write / torch.where(dead, torch.ones_like(write), scale))

    def layer(self, _module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of the layer: which rows its MLP's write is kept for."""
        found = kwargs.get("full_text_row_masked_out_mask")
        self.rows = None if found is None else found[:, 0]

    def after(self, _module: Any, _args: Any, output: Any) -> Any:
        """Forward hook."""
        self._once()
        if self.tap.item is None:
            return self._visit(output)
        if not isinstance(output, tuple):
            raise ModelError(f"met {type(output).__name__} where a tuple was expected", str(self.site))
        parts = cast("tuple[Any, ...]", output)
        new = self._visit(parts[self.tap.item])
        if new is None:
            return None
        return (*parts[: self.tap.item], new, *parts[self.tap.item + 1 :])

    def before(self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Forward pre-hook: the first decoder layer's input is the embedding, an output projection's the heads."""
        self._once()
        if args:
            new = self._visit(args[0])
            return None if new is None else ((new, *args[1:]), kwargs)
        new = self._visit(kwargs.get("hidden_states"))
        return None if new is None else (args, {**kwargs, "hidden_states": new})

    def _once(self) -> None:
        if self.fired:
            raise ModelError("the hook fired twice in one forward pass", str(self.site))


def _overwritten(write: Tensor, patch: Patch, heads: int | None) -> Tensor:
    """The write with the patch in it; `heads` is how many the site holds side by side."""
    if patch.head is not None and (heads is None or not 0 <= patch.head < heads):
        raise ModelError(f"no head {patch.head}", str(patch.site), f"a site of {heads or 'no'} heads")
    where = patch.where.to(write.device)
    n, width = int(where.sum()), write.shape[2] if patch.head is None else write.shape[2] // (heads or 1)
    if tuple(where.shape) != tuple(write.shape[:2]) or tuple(patch.values.shape) != (n, width):
        raise ModelError(
            f"patch of {tuple(patch.values.shape)} values at {n} positions of {tuple(where.shape)}",
            str(patch.site),
            f"give one row of {width} values per True of `where` {tuple(write.shape[:2])}",
        )
    out = write.clone()
    if patch.head is None:
        out[where] = patch.values.to(write)
    else:
        out.unflatten(-1, (heads or 1, width))[:, :, patch.head][where] = patch.values.to(write)
    return out


@contextlib.contextmanager
def hooked(
    decoder: Decoder,
    shape: tuple[int, int, int],
    capture: Collection[Site] = (),
    patches: Sequence[Patch] = (),
    grad: bool = False,
) -> Generator[dict[Site, Float[Tensor, "batch seq d_model"]]]:
    """Hooks for exactly one forward pass; the dict is filled when the block ends.

    Args:
        decoder: the stack.
        shape: (batch, seq, d_model) of the residual stream; a site that holds heads has a width of its own.
        capture: sites to read.
        patches: what to overwrite, in order.
        grad: keep activations in the graph and their gradients.

    Raises:
        ModelError: a site is unknown, has another shape, or did not fire exactly once.
    """
    wanted = {decoder.check(s) for s in capture}
    sites = sorted(wanted | {decoder.check(p.site) for p in patches})
    probes = [_probe(decoder, s, shape, [p for p in patches if p.site == s], s in wanted, grad) for s in sites]
    found: dict[Site, Tensor] = {}
    handles: list[torch.utils.hooks.RemovableHandle] = []
    try:
        if grad:
            handles.append(decoder.layers[0].register_forward_pre_hook(_leaf, with_kwargs=True))
        for probe in probes:
            handles.extend(_register(probe))
        yield found
        for probe in probes:
            if probe.fired != 1:
                raise ModelError("the hook did not fire", str(probe.site), "the layer was skipped in this run")
            if probe.activation is not None:
                found[probe.site] = probe.activation
    finally:
        for handle in handles:
            handle.remove()


def _probe(
    decoder: Decoder, site: Site, shape: tuple[int, int, int], patches: Sequence[Patch], keep: bool, grad: bool
) -> _Probe:
    own = (*shape[:2], decoder.width(site))
    return _Probe(site, decoder.tap(site), own, patches, keep, grad, decoder.heads(site.kind))


def _register(probe: _Probe) -> Iterator[torch.utils.hooks.RemovableHandle]:
    if probe.tap.masked is not None:
        yield probe.tap.masked.register_forward_pre_hook(probe.layer, with_kwargs=True)
    if probe.tap.before:
        yield probe.tap.module.register_forward_pre_hook(probe.before, with_kwargs=True)
    else:
        yield probe.tap.module.register_forward_hook(probe.after)


def _leaf(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The first layer's input starts the graph: all weights are frozen, so nothing before it needs a gradient."""
    if args:
        return (args[0].detach().requires_grad_(), *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": kwargs["hidden_states"].detach().requires_grad_()}


@contextlib.contextmanager
def unembedding_at_once(net: Any) -> Generator[None]:
    """One matrix product for all rows' logits at `last`.

    Their slice of the residual is not contiguous: as it is, each row would be a product of its own, several times
    slower on a CPU.
    """
    head = net.get_output_embeddings()
    if not isinstance(head, torch.nn.Linear):
        yield
        return
    handle = head.register_forward_pre_hook(lambda _module, args: (args[0].contiguous(), *args[1:]))
    try:
        yield
    finally:
        handle.remove()
