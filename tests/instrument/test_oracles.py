"""Activations, gradients and patched logits equal nnsight 0.8's, on a tiny model of every family.

In float32 as the study runs on a CPU, to 1e-5 of the size of what is compared; and in double precision, to 1e-9, where
two computations of the same thing can be told from two things that are nearly the same. Both patch the same values.
"""

import functools
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))

from tiny_models import NAMES, Case, case

from twohop.models import Batch, Patch, Site
from twohop.models._hooks import _leaf
from twohop.models._sites import SiteKind

KINDS: tuple[SiteKind, ...] = ("resid_post", "mlp_write", "attn_write")
LAYERS = (0, 1, 2, 3)
CROSS = (1, 3)
"""Mllama's layers that read the picture."""
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-9}


def opened(name: str, dtype: torch.dtype) -> Case:
    tiny = case(name, fresh=True)
    for value in (*tiny.model.net.parameters(), *tiny.model.net.buffers()):
        if value.is_floating_point():  # Llama 4's eyes hold complex positions
            value.data = value.data.to(dtype)
    tiny.model.dtype = dtype
    return Case(tiny.model, _cast(tiny.clean, dtype), _cast(tiny.corrupted, dtype), tiny.run)


def _cast(batch: Batch, dtype: torch.dtype) -> Batch:
    extra = {k: v.to(dtype) if v.is_floating_point() else v for k, v in batch.extra.items()}
    pictures = None if batch.pictures is None else batch.pictures.to(dtype)
    return replace(batch, extra=extra, pictures=pictures, deep=tuple(level.to(dtype) for level in batch.deep))


@pytest.fixture(scope="module", params=[(n, d) for n in NAMES for d in TOLERANCE], ids=lambda p: f"{p[0]}-{p[1]}")
def tiny(request: pytest.FixtureRequest) -> Case:
    torch.set_num_threads(1)
    return opened(*request.param)


def close(mine: Tensor, theirs: Tensor) -> None:
    """Equal to the dtype's tolerance, relative to the largest number."""
    size = float(theirs.abs().max())
    assert size > 0
    torch.testing.assert_close(mine.to(theirs), theirs, rtol=0, atol=TOLERANCE[theirs.dtype] * size)


def module(tiny: Case, block: Any, site: Site) -> tuple[Any, bool]:
    """nnsight's module that makes what is written at a site, by the family's own names; whether it gives a tuple."""
    if tiny.model.card.family == "gemma3":
        norms = {"mlp_write": block.post_feedforward_layernorm, "attn_write": block.post_attention_layernorm}
        return norms.get(site.kind, block), False
    if site.kind == "resid_post":
        return block, False
    if site.kind == "mlp_write":
        return (block.feed_forward if tiny.model.card.family == "llama4" else block.mlp), mixed(tiny, site)
    return (block.cross_attn if crossed(tiny, site) else block.self_attn), True


def mixed(tiny: Case, site: Site) -> bool:
    """A mixture of experts: a tuple, whose first item has batch and position in one axis."""
    return tiny.model.card.family == "llama4" and site == Site("mlp_write", 1)


def crossed(tiny: Case, site: Site) -> bool:
    return tiny.model.card.family == "mllama" and site.layer in CROSS


def gate(tiny: Case, site: Site) -> Tensor:
    """Factor between the module's output and what the residual gains."""
    if not crossed(tiny, site) or site.kind == "resid_post":
        return torch.ones(1, dtype=tiny.model.dtype)
    layer: Any = tiny.model.decoder.layers[site.layer]
    name = "cross_attn_mlp_gate" if site.kind == "mlp_write" else "cross_attn_attn_gate"
    return torch.tanh(getattr(layer, name)).detach()


def rows(tiny: Case, batch: Batch, site: Site) -> Tensor:
    """Before its picture, Mllama's gated MLP adds nothing to the residual."""
    kept = torch.ones(*batch.input_ids.shape, 1, dtype=tiny.model.dtype)
    if crossed(tiny, site) and site.kind == "mlp_write":
        for row, (start, _) in enumerate(batch.spans):
            kept[row, :start] = 0
    return kept


def tracer(tiny: Case) -> Any:
    from nnsight import NNsight

    return NNsight(tiny.model.net)


def decoder(tiny: Case, traced: Any) -> Any:
    path = next(n for n, m in tiny.model.net.named_modules() if m is tiny.model.decoder.stack)
    return functools.reduce(getattr, path.split("."), traced)


def inputs(tiny: Case, batch: Batch) -> dict[str, Any]:
    mask, positions = batch.attention_mask, batch.position_ids
    return {**tiny.model._given(batch), "attention_mask": mask, "position_ids": positions, **batch.extra}


def layers(tiny: Case) -> list[int]:
    return [n for n in LAYERS if n in tiny.layers]


def reference(tiny: Case, batch: Batch, site: Site) -> tuple[Tensor, Tensor]:
    """What is written at a site, and the gradient of the metric with respect to it, by nnsight."""
    traced = tracer(tiny)
    handle = tiny.model.decoder.layers[0].register_forward_pre_hook(_leaf, with_kwargs=True)
    with traced.trace(**inputs(tiny, batch)):
        part, is_tuple = module(tiny, decoder(tiny, traced).layers[site.layer], site)
        value = (part.output[0] if is_tuple else part.output).save()
        metric = (traced.output.logits[:, -1, 7] - traced.output.logits[:, -1, 9]).sum()
        with metric.backward():
            grad = value.grad.save()
    handle.remove()
    scale, kept = gate(tiny, site), rows(tiny, batch, site)
    shape = (*batch.input_ids.shape, -1)
    return value.detach().reshape(shape) * scale * kept, grad.reshape(shape) / scale * kept


def patched_reference(tiny: Case, batch: Batch, site: Site, where: Tensor, values: Tensor) -> Tensor:
    """Logits at the last position with `values` written at `where`, by nnsight."""
    traced, new = tracer(tiny), values / gate(tiny, site)
    with torch.no_grad(), traced.trace(**inputs(tiny, batch)):
        part, is_tuple = module(tiny, decoder(tiny, traced).layers[site.layer], site)
        if mixed(tiny, site):
            part.output[0][where.flatten()] = new
        elif is_tuple:
            part.output[0][where] = new
        else:
            part.output[where] = new
        logits = traced.output.logits[:, -1].save()
    return logits.detach()


@pytest.mark.parametrize("kind", KINDS)
def test_activations_and_gradients_equal_nnsight(tiny: Case, kind: SiteKind) -> None:
    wanted = [Site(kind, n) for n in layers(tiny)[1:3]]
    run = tiny.model.run(tiny.clean, wanted, grad=True)
    (run.logits[:, 7] - run.logits[:, 9]).sum().backward()
    for site in wanted:
        value, grad = reference(tiny, tiny.clean, site)
        close(run.activations[site].detach(), value)
        mine = run.activations[site].grad
        assert mine is not None
        close(mine, grad)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("group", ["entity or image", "question", "last"])
def test_patched_logits_equal_nnsight(tiny: Case, kind: SiteKind, group: str) -> None:
    """The corrupted run's activation, written at one token group of the clean run."""
    groups = tiny.clean.groups
    where = groups["entity"] | groups["image"] if group == "entity or image" else groups[group]
    plain = tiny.model.run(tiny.clean).logits
    for layer in layers(tiny)[:3]:
        site = Site(kind, layer)
        values = tiny.model.run(tiny.corrupted, [site]).activations[site][where]
        mine = tiny.model.run(tiny.clean, patches=[Patch(site, where, values)]).logits
        close(mine, patched_reference(tiny, tiny.clean, site, where, values))
        reads = min(tiny.model.decoder.cross_layers, default=0) if tiny.run == "image" else 0
        if layer == reads:  # after Mllama's last layer of self-attention nothing moves to `last` any more
            assert float((mine - plain).abs().max()) > 1e-6
