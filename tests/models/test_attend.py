"""AtP* on the attention of a tiny Llama: the query/key fix against true patching, GradDrop against detached layers."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from tiny_models import Case, case

from twohop.analysis import (
    AttentionLayer,
    Attribution,
    Contrast,
    Drop,
    Node,
    Runner,
    attribute,
    attribute_star,
    patch_nodes,
)
from twohop.errors import ModelError
from twohop.models import Batch, Patch, Site

KINDS = ("mlp_write", "attn_write", "resid_post", "head")
LAYERS = 4


@dataclass(frozen=True)
class Setting:
    tiny: Case
    runner: Runner
    contrast: Contrast

    def star(self, drops: list[Drop[Site]] | None = None) -> Attribution[Site]:
        return attribute_star(
            self.runner,
            self.tiny.clean,
            self.tiny.corrupted,
            self.contrast,
            sites(KINDS),
            layers(self.tiny),
            drops or [],
        )

    def plain(self, kinds: tuple[str, ...]) -> Attribution[Site]:
        twins = self.tiny.clean, self.tiny.corrupted
        return attribute(self.runner, *twins, self.contrast, sites(kinds), Site("resid_post", -1))

    def patched(self, row: int, keys: list[tuple[Site, str, int]]) -> np.ndarray:
        clean, other = (rows_of(b, [row]) for b in (self.tiny.clean, self.tiny.corrupted))
        activations = self.tiny.model.run(other, capture={s for s, _, _ in keys}).activations
        nodes = [Node(site, clean.groups[group][0], head) for site, group, head in keys]
        repeat = lambda n: rows_of(clean, [0] * n)  # noqa: E731
        return patch_nodes(self.runner, repeat, activations, nodes, self.contrast.rows([row]), 16).numpy()


def rows_of(batch: Batch, rows: list[int]) -> Batch:
    groups = {g: m[rows] for g, m in batch.groups.items()}
    spans = [batch.spans[r] for r in rows]
    return Batch(batch.input_ids[rows], batch.attention_mask[rows], batch.position_ids[rows], groups, spans)


def sites(kinds: tuple[str, ...]) -> list[Site]:
    return [Site(kind, n) for kind in kinds for n in range(LAYERS)]  # type: ignore[arg-type]


def layers(tiny: Case) -> list[AttentionLayer[Batch, Site]]:
    def layer(n: int) -> AttentionLayer[Batch, Site]:
        return AttentionLayer(
            *(Site(kind, n) for kind in ("head", "query", "key", "value")),
            attend=lambda batch, q, k, v: tiny.model.attend(batch, n, q, k, v),
        )

    return [layer(n) for n in range(LAYERS)]


def setting(scale: float = 1.0, near: float | None = None, write: float = 1.0) -> Setting:
    """A tiny Llama with queries `scale` times as large, whose attention writes `write` times as much.

    `near` moves the corrupted name to that share of the way from the clean one.
    """
    torch.set_num_threads(1)
    tiny = case("llama", fresh=True)
    with torch.no_grad():
        for layer in tiny.model.decoder.layers:
            layer.self_attn.q_proj.weight.mul_(scale)
            layer.self_attn.o_proj.weight.mul_(write)
        if near is not None:
            table = tiny.model.net.get_input_embeddings().weight
            for old, new in zip(*(b.input_ids[b.groups["entity"]] for b in (tiny.clean, tiny.corrupted)), strict=True):
                table[new] = torch.lerp(table[old], table[new], near)
    runner = Runner(tiny.model.run, Patch, tiny.model.heads)
    return Setting(tiny, runner, Contrast(torch.tensor([7, 11]), torch.tensor([9, 13])))


def attention_nodes(found: Attribution[Site], kind: str, row: int) -> tuple[list[tuple[Site, str, int]], np.ndarray]:
    """Every node of a kind, with its score."""
    keys = [(s, g, h) for (s, g), x in found.nodes.items() if s.kind == kind for h in range(x.shape[1])]
    return keys, np.array([float(found.nodes[s, g][row, h]) for s, g, h in keys])


@pytest.mark.parametrize("kind", ["query", "key"])
def test_fix_agrees_with_true_patching_where_softmax_saturates(kind: str) -> None:
    hot = setting(scale=8.0, write=0.05)  # hardly a write, so that the softmax is all that is not linear
    fixed, plain = hot.star(), hot.plain(("query", "key"))
    r: dict[str, float] = {}
    for name, found in (("fixed", fixed), ("plain", plain)):
        pairs = [attention_nodes(found, kind, row) for row in range(2)]
        truth = np.concatenate([hot.patched(row, keys) for row, (keys, _) in enumerate(pairs)])
        r[name] = float(np.corrcoef(np.concatenate([x for _, x in pairs]), truth)[0, 1])
    assert r["fixed"] > 0.9
    assert r["fixed"] > r["plain"] + 0.2


@pytest.mark.parametrize("kind", ["query", "key"])
def test_fix_is_the_plain_estimate_for_small_changes(kind: str) -> None:
    near = setting(near=1e-4)
    fixed, plain = near.star(), near.plain(("query", "key"))
    keys, values = attention_nodes(fixed, kind, 0)
    expected = np.array([float(plain.nodes[s, g][0, h]) for s, g, h in keys])
    assert np.abs(expected).max() > 0
    assert values == pytest.approx(expected, rel=1e-2, abs=1e-2 * float(np.abs(expected).max()))


def test_fix_is_exact_where_the_rest_of_the_network_is_linear() -> None:
    """In the last layer nothing but the output projection, an MLP that we silence and the final norm follow."""
    hot = setting(scale=4.0)
    last = hot.tiny.model.decoder.layers[-1]
    with torch.no_grad():
        last.mlp.down_proj.weight.zero_()
        last.self_attn.o_proj.weight.mul_(1e-3)  # so small a write that the norm is linear in it
    found = hot.star()
    for kind in ("query", "key"):
        keys, values = attention_nodes(found, kind, 0)
        of_last = [i for i, (site, _, _) in enumerate(keys) if site.layer == LAYERS - 1]
        truth = hot.patched(0, [keys[i] for i in of_last])
        assert np.abs(truth).max() > 1e-6
        assert values[of_last] == pytest.approx(truth, rel=1e-2, abs=1e-2 * float(np.abs(truth).max()))


def test_other_nodes_are_scored_as_without_the_fix() -> None:
    tame = setting()
    fixed, plain = tame.star(), tame.plain(KINDS)
    for key, score in plain.nodes.items():
        torch.testing.assert_close(fixed.nodes[key], score)
        torch.testing.assert_close(fixed.magnitudes[key], score.abs())  # without drops


def test_heads_add_up_to_the_attention_write() -> None:
    found = setting().plain(("head", "attn_write"))
    for (site, group), score in found.nodes.items():
        if site.kind == "head":
            torch.testing.assert_close(score.sum(1), found.nodes[Site("attn_write", site.layer), group])


def test_drop_of_a_layer_equals_detaching_what_it_writes() -> None:
    tame = setting()
    cut = (Site("mlp_write", 2), Site("attn_write", 2))
    found = tame.star([Drop(cut, frozenset())])
    handles = [
        module.register_forward_hook(hook)
        for module, hook in (
            (tame.tiny.model.decoder.layers[2].mlp, lambda _m, _a, out: out.detach() + 0 * out),
            (tame.tiny.model.decoder.layers[2].self_attn, lambda _m, _a, out: (out[0].detach() + 0 * out[0], *out[1:])),
        )
    ]
    detached = tame.plain(("mlp_write", "resid_post"))
    for handle in handles:
        handle.remove()
    plain = tame.plain(("mlp_write", "resid_post"))
    for key, score in detached.nodes.items():
        if key[0] != Site("mlp_write", 2):
            torch.testing.assert_close(found.magnitudes[key], score.abs())
    early = Site("mlp_write", 0), "entity"
    assert (detached.nodes[early] - plain.nodes[early]).abs().max() > 1e-3


def test_attention_that_is_not_the_models_own_is_refused() -> None:
    tame = setting()
    wrong = [
        AttentionLayer(n.head, n.query, n.key, n.value, lambda b, q, k, v, n=n: 1.1 * n.attend(b, q, k, v))
        for n in layers(tame.tiny)
    ]
    with pytest.raises(ModelError, match="differs from the model's own"):
        attribute_star(tame.runner, tame.tiny.clean, tame.tiny.corrupted, tame.contrast, sites(KINDS), wrong, [])
