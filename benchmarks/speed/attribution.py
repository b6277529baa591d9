"""Every layer's writes, residual and heads at every position, of one batch of twins; beside one forward pass of it."""

from typing import Any

import torch
from torch import Tensor

from speed.measure import Bar, Case, near
from speed.world import World, given
from twohop.analysis import Contrast, Runner, attribute
from twohop.models import Batch, Model, Patch, Site
from twohop.steps.score_attribution import EMBEDDING, KINDS

SCORES = 1e-3
"""How far scores may differ, in logits."""


def score(model: Model, clean: Batch, corrupted: Batch, contrast: Contrast) -> dict[Site, Tensor]:
    """The step's own way; scores of positions."""
    sites = [Site(kind, layer) for kind in KINDS for layer in range(model.n_layers)]
    runner = Runner(model.run, Patch, model.heads)
    return dict(attribute(runner, clean, corrupted, contrast, sites, EMBEDDING).positions)


def case(world: World) -> Case:
    """Questions about capitals."""
    model = world.model
    twins = world.twins("capital")[: 4 if world.quick else 16]
    clean, corrupted = (model.batch(world.shown([pair[k] for pair in twins])) for k in (0, 1))
    ends = ([q[token] for q, _ in twins] for token in ("clean_token", "corrupted_token"))
    contrast = Contrast(*map(torch.tensor, ends))
    inputs = given(model, clean)

    @torch.no_grad()
    def forward() -> None:
        model.net(**inputs)

    def nnsight() -> dict[Site, Tensor]:
        with torch.no_grad():
            _, other = _saved(model, corrupted)
        logits, own = _saved(model, clean)
        grads = torch.autograd.grad(contrast.metric(logits[:, -1]).sum(), list(own.values()))
        products = {
            s: (other[s] - a.detach()).double() * g.double() for (s, a), g in zip(own.items(), grads, strict=True)
        }
        return {
            s: p.sum(-1) if s.kind != "head" else p.unflatten(-1, (model.heads(s), -1)).sum(-1)
            for s, p in products.items()
        }

    def same(a: dict[Site, Tensor], b: dict[Site, Tensor] | None) -> str:
        if b is None:
            return "(a pass alone)"
        return near(*(torch.cat([found[s].flatten() for s in a]) for found in (a, b)), SCORES)

    return Case(
        "attribution",
        f"{len(twins)} twins of {clean.input_ids.shape[1]} tokens, {len(KINDS) * model.n_layers} sites, some by head",
        {"ours": lambda: score(model, clean, corrupted, contrast), "one forward": forward, "nnsight": nnsight},
        same,
        [Bar("one forward", 4, at_most=True)],
        3 * world.flops(int(clean.attention_mask.sum()), len(twins)),
        ["needed: two forward passes, and a backward one to activations alone"],
    )


def _saved(model: Model, batch: Batch) -> tuple[Tensor, dict[Site, Tensor]]:
    """Logits and every site of one trace, in the graph unless gradients are off."""
    from nnsight import NNsight

    net, inputs = NNsight(model.net), given(model, batch)
    inputs["inputs_embeds"] = inputs["inputs_embeds"].requires_grad_(torch.is_grad_enabled())
    with net.trace(**inputs):
        kept = {}.save()
        for n, layer in enumerate(net.model.language_model.layers):
            kept["head", n] = layer.self_attn.o_proj.input
            kept["attn_write", n] = layer.self_attn.output[0]
            kept["mlp_write", n] = layer.mlp.output
            kept["resid_post", n] = layer.output
        logits = net.output.logits.save()
    found: dict[Any, Tensor] = dict(kept)
    return logits, {Site(kind, n): value for (kind, n), value in found.items()}
