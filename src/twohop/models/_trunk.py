"""Runs that begin as an earlier one: only what can differ from it is computed. Exact, not an approximation.

A patch at layer l and positions from p on leaves every layer below l as it was, and in a causal model every position
before p. So the earlier run (a `Trunk`) keeps its keys and values and the residual stream behind some layers, and a
patched run passes the layers from l on at the positions from p on; prompts that begin alike are continued in the same
way, from layer 0 on. What a family adds is looked after here:

- image tokens that see each other both ways (Gemma-3): a run that changes one of them begins at position 0;
- prompts that are seen both ways as a whole (PaliGemma): layers are left out, positions are not;
- pictures that enter after the first layers, too (DeepStack): a run that begins within them begins at position 0;
- cross-attention layers (Mllama): their keys and values are the picture's and are kept whole.
"""

import contextlib
import copy
from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from twohop.models._attention import Knockout, knocked_out
from twohop.models._batch import FROM_LATER
from twohop.models._hooks import hooked, unembedding_at_once
from twohop.models._prompts import Batch, Shared, Trunk
from twohop.models._sites import Decoder, Patch, Site

if TYPE_CHECKING:
    from twohop.models._model import Model


@dataclass(frozen=True)
class Start:
    """Where a run begins to differ from its trunk."""

    layer: int
    position: int


def grow(model: "Model", batch: Batch, layers: Collection[int], capture: Collection[Site]) -> Trunk:
    """See `Model.trunk`."""
    ran = passed(model.decoder, batch)
    kept = {Site("resid_post", ran[i - 1]) for i in (ran.index(n) for n in layers if n in ran) if i}
    if model.n_layers in layers:
        kept.add(Site("resid_post", ran[-1]))
    cache, logits, found = resume(model, batch, capture={*capture, *kept})
    resid = {site.layer: found[site] for site in kept}
    activations = {site: found[site].to(model.device) for site in capture}
    return Trunk(batch, logits, cache, resid, activations, frozenset(layers))


def passed(decoder: Decoder, batch: Batch) -> tuple[int, ...]:
    """Layers that the batch passes, in order."""
    crosses = not decoder.cross_layers or "cross_attention_states" in batch.extra
    return tuple(range(decoder.n_layers)) if crosses else decoder.text_layers


def resume(
    model: "Model",
    batch: Batch,
    patches: Sequence[Patch] = (),
    knockouts: Sequence[Knockout] = (),
    capture: Collection[Site] = (),
    whole: bool = True,
) -> tuple[Any, Float[Tensor, "batch vocab"], dict[Site, Float[Tensor, "batch seq d_model"]]]:
    """Cache, logits at `last` and activations of a batch, which may begin as a trunk.

    Args:
        model: the model.
        batch: with `shared`, or without: then all of it is run.
        patches: as `Model.run`.
        knockouts: as `Model.run`.
        capture: as `Model.run`.
        whole: the cache is needed for what is written afterwards.
    """
    shared, start = batch.shared, begin(model, batch, patches, knockouts)
    if shared is not None and not _known(shared, start, capture):
        start = Start(0, 0)
    if shared is None or start == Start(0, 0):
        cache = DynamicCache()  # without the config: layers with a window keep everything, so they can be cut anywhere
        with (
            hooked(model.decoder, model.shape(batch), capture, patches) as found,
            knocked_out(model.decoder, knockouts, model.shape(batch)[:2]),
        ):
            logits = model.forward(batch, cache)
        return cache, logits, found
    rows = torch.tensor(shared.rows, dtype=torch.long, device=model.device)
    cache = _cut(model, shared, rows, start)
    if start.position == batch.input_ids.shape[1]:
        return cache, shared.trunk.logits[rows], {s: _chosen(shared.trunk.activations[s], rows) for s in capture}
    logits, found = _pass(model, batch, shared, start, rows, cache, patches, knockouts, capture)
    if whole:
        cache.layers[: start.layer] = [_layer(old, rows, None) for old in shared.trunk.cache.layers[: start.layer]]
    return cache, logits, found


def _known(shared: Shared, start: Start, capture: Collection[Site]) -> bool:
    """The trunk holds what is captured and not run."""
    return not capture or (not start.layer and set(capture) <= set(shared.trunk.activations))


def begin(model: "Model", batch: Batch, patches: Sequence[Patch], knockouts: Sequence[Knockout]) -> Start:
    """The first layer and position that a run has to compute; (0, 0): everything."""
    shared, seq = batch.shared, int(batch.input_ids.shape[1])
    if shared is None:
        return Start(0, 0)
    masks = [p.where for p in patches] + [k.queries for k in knockouts]
    changed = [int(m.any(0).nonzero()[0]) for m in masks if bool(m.any())]
    position = min([shared.length, *changed])
    if position == seq:  # nothing differs
        return Start(0, seq)
    layer = min([p.site.first_changed for p in patches] + [k.start for k in knockouts], default=model.n_layers)
    known = _beginnings(model, batch, shared) if shared.length == seq else []  # no layer has met other tokens
    layer = max(n for n in (0, *known) if n <= layer)
    if position < seen_ahead(batch):
        position = 0
    if batch.deep and layer <= len(batch.deep) and position < _end_of_images(batch):
        return Start(0, 0)
    return Start(0, 0) if not position and not layer else Start(layer, position)


def _beginnings(model: "Model", batch: Batch, shared: Shared) -> list[int]:
    """Layers whose input the trunk has kept; the number of layers stands for what the final norm meets."""
    ran = (*passed(model.decoder, batch), model.n_layers)
    return [ran[ran.index(n) + 1] for n in shared.trunk.resid]


def _end_of_images(batch: Batch) -> int:
    columns = batch.groups["image"].any(0).nonzero()
    return int(columns[-1]) + 1 if len(columns) else 0


def seen_ahead(batch: Batch) -> int:
    """Positions before this one may see later ones."""
    marks = batch.extra.get("token_type_ids")
    if marks is None:
        return 0
    if bool((marks * batch.groups["image"]).any()):  # Gemma-3 marks image tokens 1
        return _end_of_images(batch)
    # PaliGemma marks a whole prompt 0
    return 0 if bool(marks[:, -1].any()) else int(marks.shape[1])


def _pass(
    model: "Model",
    batch: Batch,
    shared: Shared,
    start: Start,
    rows: Int[Tensor, " rows"],
    cache: Any,
    patches: Sequence[Patch],
    knockouts: Sequence[Knockout],
    capture: Collection[Site],
) -> tuple[Float[Tensor, "batch vocab"], dict[Site, Float[Tensor, "batch seq d_model"]]]:
    """One pass over the layers and positions from the start on; activations are those of all positions."""
    at, (n, seq, d_model) = start.position, model.shape(batch)
    cut = [Patch(p.site, p.where[:, at:], p.values, p.head) for p in patches]
    last = batch.groups["last"][:, at:]
    at_end = bool(last[:, -1].all())
    extra = {k: v[:, at:] for k, v in batch.extra.items() if k in FROM_LATER} if at else dict(batch.extra)
    with (
        _skipping(model, batch, shared, start, rows),
        hooked(model.decoder, (n, seq - at, d_model), capture, cut) as found,
        knocked_out(model.decoder, knockouts, (n, seq)),
        unembedding_at_once(model.net),
    ):
        out = model.net(
            inputs_embeds=model.embed(batch)[:, at:],
            attention_mask=batch.attention_mask,
            position_ids=batch.position_ids[..., at:],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1 if at_end else 0,
            **extra,
        )
    logits = out.logits[:, -1] if at_end else out.logits[last]
    before = {site: shared.trunk.activations[site][:, :at] for site in capture}
    whole = {s: torch.cat([_chosen(before[s], rows).to(a.device), a], 1) for s, a in found.items()}
    return logits.to(torch.promote_types(logits.dtype, torch.float32)), whole


@contextlib.contextmanager
def _skipping(
    model: "Model", batch: Batch, shared: Shared, start: Start, rows: Int[Tensor, " rows"]
) -> Generator[None]:
    """Layers before the start hand on what they get, the last of them what it gave in the trunk's run."""
    before = [n for n in passed(model.decoder, batch) if n < start.layer]
    layers: list[Any] = [model.decoder.layers[n] for n in before]
    own = [layer.__dict__.get("forward") for layer in layers]
    kept = shared.trunk.resid[before[-1]][:, start.position :] if before else None
    try:
        for layer in layers[:-1]:
            layer.forward = _hand_on
        if kept is not None:
            layers[-1].forward = _Kept(_chosen(kept, rows))
        yield
    finally:
        for layer, forward in zip(layers, own, strict=True):
            if forward is None:
                layer.__dict__.pop("forward", None)
            else:
                layer.forward = forward


def _hand_on(hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
    return hidden_states


@dataclass(frozen=True)
class _Kept:
    """A layer's output, whatever it is given."""

    resid: Tensor

    def __call__(self, *_args: Any, **_kwargs: Any) -> Tensor:
        return self.resid


def _cut(model: "Model", shared: Shared, rows: Int[Tensor, " rows"], start: Start) -> Any:
    """The trunk's cache before the start's position; layers that are not run only have to have its length."""
    if not start.position:
        return DynamicCache()
    new = copy.copy(shared.trunk.cache)
    crossing = model.decoder.cross_layers
    new.layers = [
        _layer(old, rows if i >= start.layer else None, None if i in crossing else start.position)
        for i, old in enumerate(shared.trunk.cache.layers)
    ]
    return new


def _layer(old: Any, rows: Int[Tensor, " rows"] | None, length: int | None) -> Any:
    """A layer of a cache: some rows and the first positions; the old one stays as it is."""
    new = copy.copy(old)
    if old.get_seq_length():
        for name in ("keys", "values"):
            part: Tensor = getattr(old, name)[:, :, :length]
            setattr(new, name, part if rows is None else _chosen(part, rows))
    return new


def _chosen(part: Tensor, rows: Int[Tensor, " rows"]) -> Tensor:
    """Rows of a tensor; the tensor itself where they are all of them in their order."""
    index = rows.to(part.device)
    same = len(index) == len(part) and torch.equal(index, torch.arange(len(part), device=part.device))
    return part if same else part[index]
