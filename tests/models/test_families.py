"""The contract of sites and hooks, on a tiny model of every family (promises X1 to X8)."""

import functools
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from tiny_models import NAMES, Case, case, pictures
from torch import nn

from twohop.errors import ModelError
from twohop.models import KINDS, Batch, Model, Patch, Prompt, Site
from twohop.models._hooks import _leaf
from twohop.models._sites import PROJECTIONS, Tap

PLAIN = ("llama", "llava", "llava_next", "idefics3", "smolvlm")
"""Families whose softmax can be redone from queries and keys."""


@pytest.fixture(scope="module", params=NAMES)
def tiny(request: pytest.FixtureRequest) -> Case:
    torch.set_num_threads(1)
    return case(request.param)


@pytest.fixture(scope="module")
def llama() -> Case:
    return case("llama")


def family_of(name: str) -> str:
    return name.partition(":")[0]


def kinds(name: str) -> list[Any]:
    return [k for k in KINDS if k not in PROJECTIONS or family_of(name) in PLAIN]


def sites(tiny: Case) -> list[Site]:
    """Every site that the run passes through."""
    found = [k for k in KINDS if k not in PROJECTIONS or tiny.model.decoder.layout.plain_softmax]
    return [Site("resid_post", -1), *(Site(kind, n) for kind in found for n in tiny.layers)]


def everywhere(batch: Batch) -> torch.Tensor:
    return torch.ones_like(batch.attention_mask, dtype=torch.bool)


def n_hooks(model: Model) -> int:
    modules: list[nn.Module] = list(model.net.modules())
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules)


# --- X1 ---------------------------------------------------------------------------------------------------------------


def test_x01_every_site_fires_once_with_the_right_shape(tiny: Case) -> None:
    run = tiny.model.run(tiny.clean, sites(tiny))
    assert set(run.activations) == set(sites(tiny))
    config = tiny.model.decoder.config
    heads = config.num_attention_heads * (getattr(config, "head_dim", None) or 32 // config.num_attention_heads)
    keys = heads * config.num_key_value_heads // config.num_attention_heads
    widths = {"head": heads, "query": heads, "key": keys, "value": keys}
    for site, values in run.activations.items():
        assert values.shape == (*tiny.clean.input_ids.shape, widths.get(site.kind, tiny.model.d_model))


@pytest.mark.parametrize(
    ("tap", "why"),
    [
        (lambda m: Tap(m.decoder.layers[0].self_attn), "met tuple where"),
        (lambda m: Tap(m.decoder.layers[0].self_attn.k_proj), "was expected"),
        (lambda m: Tap(m.net.lm_head), "was expected"),
        (lambda m: Tap(m.decoder.layers[0].mlp, item=0), "where a tuple was expected"),
        (lambda m: Tap(nn.Linear(2, 2)), "did not fire"),
    ],
)
def test_x01_wrong_module_is_an_error(llama: Case, monkeypatch: pytest.MonkeyPatch, tap: Any, why: str) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(llama.model.decoder, "tap", lambda _site: tap(llama.model))
        with pytest.raises(ModelError, match=why):
            llama.model.run(llama.clean, [Site("mlp_write", 0)])
    assert n_hooks(llama.model) == 0


def test_x01_second_firing_is_an_error() -> None:
    tiny = case("llama", fresh=True)
    tiny.model.decoder.layers[1].mlp = tiny.model.decoder.layers[0].mlp
    with pytest.raises(ModelError, match="fired twice"):
        tiny.model.run(tiny.clean, [Site("mlp_write", 0)])


@pytest.mark.parametrize("site", [Site("resid_post", 4), Site("mlp_write", -1), Site("attn_write", 99)])
def test_b05_site_that_the_model_does_not_have_is_refused(llama: Case, site: Site) -> None:
    with pytest.raises(ModelError, match="no site"):
        llama.model.run(llama.clean, [site])
    with pytest.raises(ModelError, match="no site"):
        llama.model.run(llama.clean, patches=[Patch(site, everywhere(llama.clean), torch.zeros(1, 32))])


def test_x01_patch_of_another_size_is_refused(llama: Case) -> None:
    where = llama.clean.groups["entity"]
    for values, mask in (
        (torch.zeros(1, 32), where),
        (torch.zeros(int(where.sum()), 31), where),
        (torch.zeros(int(where.sum()), 32), where[:, 1:]),
    ):
        with pytest.raises(ModelError, match="patch of"):
            llama.model.run(llama.clean, patches=[Patch(Site("mlp_write", 1), mask, values)])


# --- X2 ---------------------------------------------------------------------------------------------------------------


def prompts(tiny: Case, name: str) -> list[Prompt]:
    texts = (". The", ". The capital of this country is", ". The official language")
    if name.endswith(":image"):
        seen = tiny.model.encode_pictures(pictures(3, seed=1))
        return [Prompt("Consider the country ", None, t, p) for t, p in zip(texts, seen, strict=True)]
    return [Prompt("Consider the country ", n, t) for n, t in zip(("France", "Kenya", "Japan"), texts, strict=True)]


@pytest.mark.parametrize("name", NAMES)
def test_x02_alone_and_padded_on_either_side_give_the_same(name: str) -> None:
    tiny = case(name)
    wanted = [s for s in sites(tiny) if s.layer in (-1, 0, 2)]
    asked = prompts(tiny, name)
    left, right = tiny.model.batch(asked), tiny.model.batch(asked, side="right")
    assert (left.attention_mask[:, 0] == 0).any()
    assert (right.attention_mask[:, -1] == 0).any()
    runs = {"left": (left, tiny.model.run(left, wanted)), "right": (right, tiny.model.run(right, wanted))}
    for i, prompt in enumerate(asked):
        alone = tiny.model.batch([prompt])
        one = tiny.model.run(alone, wanted)
        for batch, run in runs.values():
            torch.testing.assert_close(run.logits[i], one.logits[0], atol=1e-4, rtol=1e-4)
            real = batch.attention_mask[i].bool()
            for site in wanted:
                torch.testing.assert_close(
                    run.activations[site][i][real], one.activations[site][0], atol=1e-4, rtol=1e-4
                )
            for group, mask in batch.groups.items():
                assert torch.equal(mask[i][real], alone.groups[group][0])


# --- X3 ---------------------------------------------------------------------------------------------------------------


def test_x03_clean_into_clean_changes_nothing(tiny: Case) -> None:
    run = tiny.model.run(tiny.clean, sites(tiny))
    for site, values in run.activations.items():
        patch = Patch(site, everywhere(tiny.clean), values.flatten(0, 1))
        again = tiny.model.run(tiny.clean, [site], [patch])
        if tiny.model.decoder.tap(site).gate is None:
            assert torch.equal(again.logits, run.logits), site
            assert torch.equal(again.activations[site], values), site
        else:  # divided by the gate and multiplied again: one rounding
            torch.testing.assert_close(again.logits, run.logits, atol=1e-5, rtol=1e-5)


def test_x03_all_of_a_layer_reproduces_the_donor(tiny: Case) -> None:
    donor = tiny.model.run(tiny.corrupted, sites(tiny))
    # what later layers add is an input of its own: the donor's; what they attend to cannot be both runs'
    receiver = replace(tiny.clean, deep=tiny.corrupted.deep)
    crossed = max(tiny.model.decoder.cross_layers, default=-1) if tiny.run == "image" else -1
    plain = tiny.model.run(receiver)
    assert (plain.logits - donor.logits).abs().max() > 1e-2
    for site in sites(tiny):
        if site.kind == "resid_post" and site.layer >= crossed:
            patch = Patch(site, everywhere(receiver), donor.activations[site].flatten(0, 1))
            again = tiny.model.run(receiver, patches=[patch])
            assert torch.equal(again.logits, donor.logits), site


def test_x03_patch_reaches_its_positions_only(tiny: Case) -> None:
    site = Site("mlp_write", 2)
    where = tiny.clean.groups["question"]
    values = torch.randn(int(where.sum()), tiny.model.d_model, dtype=tiny.model.dtype)
    before = tiny.model.run(tiny.clean, [site]).activations[site]
    after = tiny.model.run(tiny.clean, [site], [Patch(site, where, values)]).activations[site]
    torch.testing.assert_close(after[where], values, atol=1e-9, rtol=1e-9)
    assert torch.equal(after[~where], before[~where])


def test_later_patch_of_a_site_sees_the_earlier_one(llama: Case) -> None:
    site, where = Site("resid_post", 1), llama.clean.groups["last"]
    first, second = (torch.full((2, 32), x, dtype=llama.model.dtype) for x in (1.0, 2.0))
    run = llama.model.run(llama.clean, [site], [Patch(site, where, first), Patch(site, where, second)])
    assert torch.equal(run.activations[site][where], second)


def test_x03_patch_of_a_head_reaches_its_slice_only(tiny: Case) -> None:
    site, head = Site("head", 2), 1
    where = tiny.clean.groups["question"]
    clean, other = (tiny.model.run(b, [site]).activations[site] for b in (tiny.clean, tiny.corrupted))
    d_head = clean.shape[-1] // 4
    part = slice(head * d_head, (head + 1) * d_head)
    patch = Patch(site, where, other[where][:, part], head)
    after = tiny.model.run(tiny.clean, [site], [patch]).activations[site]
    assert torch.equal(after[where][:, part], other[where][:, part])
    rest = torch.ones_like(after, dtype=torch.bool)
    rest[..., part] = ~where[..., None]
    assert torch.equal(after[rest], clean[rest])
    assert not torch.equal(after, clean)


def test_x03_all_heads_one_by_one_are_the_whole_site(tiny: Case) -> None:
    site, where = Site("head", 0), everywhere(tiny.clean)
    other = tiny.model.run(tiny.corrupted, [site]).activations[site].flatten(0, 1)
    slices = other.unflatten(-1, (4, -1))
    together = tiny.model.run(tiny.clean, patches=[Patch(site, where, other)]).logits
    one_by_one = tiny.model.run(tiny.clean, patches=[Patch(site, where, slices[:, h], h) for h in range(4)]).logits
    assert torch.equal(together, one_by_one)


@pytest.mark.parametrize(("kind", "head"), [("head", 4), ("head", -1), ("key", 2), ("mlp_write", 0)])
def test_b05_head_that_the_site_does_not_have_is_refused(llama: Case, kind: Any, head: int) -> None:
    patch = Patch(Site(kind, 1), llama.clean.groups["last"], torch.zeros(2, 8), head)
    with pytest.raises(ModelError, match=f"no head {head}"):
        llama.model.run(llama.clean, patches=[patch])


# --- X4 ---------------------------------------------------------------------------------------------------------------


def test_x04_hooks_are_gone_after_an_exception(tiny: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("in the middle")

    before = n_hooks(tiny.model)
    with monkeypatch.context() as patch:
        patch.setattr(tiny.model.decoder.layers[2], "forward", broken)
        with pytest.raises(RuntimeError, match="in the middle"):
            tiny.model.run(tiny.clean, sites(tiny))
        with pytest.raises(RuntimeError, match="in the middle"):
            tiny.model.generate(tiny.clean, 2)
    assert n_hooks(tiny.model) == before


# --- X5 ---------------------------------------------------------------------------------------------------------------


def nnsight_values(tiny: Case, reach: Any, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Value of a module's output and the gradient of logit 7's sum over rows with respect to it, by nnsight."""
    from nnsight import NNsight

    model = tiny.model
    tracer = NNsight(model.net)
    handle = model.decoder.layers[0].register_forward_pre_hook(_leaf, with_kwargs=True)
    kwargs = {
        **model._given(tiny.clean),
        "attention_mask": tiny.clean.attention_mask,
        "position_ids": tiny.clean.position_ids,
        **tiny.clean.extra,
    }
    with tracer.trace(**kwargs):
        value = reach(tracer, layer).save()
        total = tracer.output.logits[:, -1, 7].sum()
        with total.backward():
            grad = value.grad.save()
    handle.remove()
    return value.detach(), grad


def decoder_of(tiny: Case, tracer: Any) -> Any:
    path = next(n for n, m in tiny.model.net.named_modules() if m is tiny.model.decoder.stack)
    return functools.reduce(getattr, path.split("."), tracer)


@pytest.mark.parametrize(("name", "kind"), [(n, k) for n in NAMES if not n.startswith("mllama") for k in kinds(n)])
def test_x05_values_and_gradients_equal_nnsight(name: str, kind: Any) -> None:
    tiny = case(name)
    gemma, moe = name.startswith("gemma3"), name.startswith("llama4")

    def reach(tracer: Any, layer: int) -> Any:
        block = decoder_of(tiny, tracer).layers[layer]
        if kind == "resid_post":
            return block.output
        if kind == "mlp_write":
            if moe:
                return block.feed_forward.output[0]  # batch and position in one axis
            return block.post_feedforward_layernorm.output if gemma else block.mlp.output
        if kind == "head":
            return block.self_attn.o_proj.input
        if kind in PROJECTIONS:
            return getattr(block.self_attn, PROJECTIONS[kind]).output
        return block.post_attention_layernorm.output if gemma else block.self_attn.output[0]

    site = Site(kind, 1)
    run = tiny.model.run(tiny.clean, [site], grad=True)
    run.logits[:, 7].sum().backward()
    mine = run.activations[site]
    value, grad = nnsight_values(tiny, reach, 1)
    torch.testing.assert_close(mine.detach(), value.reshape(mine.shape))
    torch.testing.assert_close(mine.grad, grad.reshape(mine.shape))
    assert mine.grad is not None
    assert mine.grad.abs().max() > 0
    assert all(p.grad is None for p in tiny.model.net.parameters())


@pytest.mark.parametrize(
    ("kind", "module", "gate"), [("mlp_write", "mlp", "mlp"), ("attn_write", "cross_attn", "attn")]
)
def test_x05_gated_writes_equal_nnsight(kind: Any, module: str, gate: str) -> None:
    tiny = case("mllama:image")

    def reach(tracer: Any, layer: int) -> Any:
        out = getattr(tracer.model.language_model.layers[layer], module).output
        return out[0] if kind == "attn_write" else out

    value, grad = nnsight_values(tiny, reach, 3)
    scale = torch.tanh(getattr(tiny.model.decoder.layers[3], f"cross_attn_{gate}_gate")).detach()
    assert scale.abs() > 1e-3
    site = Site(kind, 3)
    run = tiny.model.run(tiny.clean, [site], grad=True)
    run.logits[:, 7].sum().backward()
    real = written_at(tiny, site)[..., None].bool() if kind == "mlp_write" else torch.ones(1, dtype=torch.bool)
    torch.testing.assert_close(run.activations[site].detach(), value * scale * real)
    mine = run.activations[site].grad
    assert mine is not None
    torch.testing.assert_close(mine * real, grad / scale * real, atol=1e-6, rtol=1e-4)
    padded = tiny.clean.attention_mask[..., None] == 0
    assert not (mine * (~real & ~padded)).any()


@pytest.mark.parametrize(
    ("name", "layer", "block"), [("mllama:image", 1, "cross_attn"), ("mllama:text", 2, "self_attn")]
)
def test_x05_heads_of_cross_layers_equal_nnsight(name: str, layer: int, block: str) -> None:
    tiny = case(name)

    def reach(tracer: Any, layer: int) -> Any:
        return getattr(tracer.model.language_model.layers[layer], block).o_proj.input

    value, grad = nnsight_values(tiny, reach, layer)
    site = Site("head", layer)
    run = tiny.model.run(tiny.clean, [site], grad=True)
    run.logits[:, 7].sum().backward()
    torch.testing.assert_close(run.activations[site].detach(), value)
    torch.testing.assert_close(run.activations[site].grad, grad)
    assert grad.abs().max() > 0


# --- X6 ---------------------------------------------------------------------------------------------------------------


STEP = 2e-4


def written_at(tiny: Case, site: Site) -> torch.Tensor:
    """Positions that a site can be written at: before its picture a gated MLP of Mllama adds nothing."""
    real = tiny.clean.attention_mask.clone()
    if site.kind == "mlp_write" and site.layer in tiny.model.decoder.cross_layers:
        for row, (start, _) in enumerate(tiny.clean.spans):
            real[row, :start] = 0
    return real


def test_x06_attribution_equals_finite_differences(tiny: Case) -> None:
    draw = torch.Generator().manual_seed(3)
    run = tiny.model.run(tiny.clean, sites(tiny), grad=True)
    (run.logits[:, 7] - run.logits[:, 9]).sum().backward()
    for site, values in run.activations.items():
        if site.layer not in (-1, 1, 2):
            continue
        clean = values.detach()
        delta = torch.randn(clean.shape, generator=draw, dtype=clean.dtype) * written_at(tiny, site)[..., None]
        assert values.grad is not None
        predicted = float((delta * values.grad).sum())
        metrics: list[float] = []
        for step in (STEP, -STEP):
            patch = Patch(site, everywhere(tiny.clean), (clean + step * delta).flatten(0, 1))
            logits = tiny.model.run(tiny.clean, patches=[patch]).logits
            metrics.append(float((logits[:, 7] - logits[:, 9]).sum()))
        measured = (metrics[0] - metrics[1]) / (2 * STEP)
        assert measured == pytest.approx(predicted, rel=2e-2, abs=2e-2), site


def test_x06_the_two_writes_are_what_the_residual_gains(tiny: Case) -> None:
    run = tiny.model.run(tiny.clean, sites(tiny))
    layers = [s.layer for s in sites(tiny) if s.kind == "resid_post"]
    for before, layer in pairwise(layers):
        start = run.activations[Site("resid_post", before)].clone()
        if 0 <= before < len(tiny.clean.deep):  # what DeepStack adds between two layers is no layer's write
            start[tiny.clean.groups["image"]] += tiny.clean.deep[before]
        gained = run.activations[Site("resid_post", layer)] - start
        written = run.activations[Site("mlp_write", layer)] + run.activations[Site("attn_write", layer)]
        torch.testing.assert_close(gained, written, atol=1e-5, rtol=1e-5)
        assert written.abs().max() > 1e-2


@pytest.mark.parametrize("name", [n for n in NAMES if family_of(n) in PLAIN])
def test_x06_attention_redone_from_its_parts_is_the_models_own(name: str) -> None:
    tiny = case(name)
    parts = [Site(kind, 2) for kind in ("query", "key", "value")]
    clean, other = (tiny.model.run(b, [Site("head", 2), *parts]).activations for b in (tiny.clean, tiny.corrupted))
    redone = tiny.model.attend(tiny.clean, 2, *(clean[p] for p in parts))
    real = tiny.clean.attention_mask.bool()
    torch.testing.assert_close(redone[real], clean[Site("head", 2)][real], atol=1e-9, rtol=1e-9)
    patch = Patch(parts[1], everywhere(tiny.clean), other[parts[1]].flatten(0, 1))
    patched = tiny.model.run(tiny.clean, [Site("head", 2)], [patch]).activations[Site("head", 2)]
    redone = tiny.model.attend(tiny.clean, 2, clean[parts[0]], other[parts[1]], clean[parts[2]])
    torch.testing.assert_close(redone[real], patched[real], atol=1e-9, rtol=1e-9)
    assert (patched - clean[Site("head", 2)])[real].abs().max() > 1e-2


@pytest.mark.parametrize("name", ["gemma3:text", "qwen2_5_vl:text", "mllama:text"])
def test_b06_families_whose_attention_is_not_plain_have_no_queries(name: str) -> None:
    tiny = case(name)
    with pytest.raises(ModelError, match="more than a softmax"):
        tiny.model.run(tiny.clean, [Site("query", 0)])
    with pytest.raises(ModelError, match="more than a softmax"):
        tiny.model.attend(tiny.clean, 0, *(torch.zeros(2, 10, 32) for _ in range(3)))


# --- X7, X8, X9 -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", kinds("mllama"))
def test_x07_text_runs_skip_cross_layers_and_say_so(kind: Any) -> None:
    text, crossed = case("mllama:text"), case("mllama:image")
    with pytest.raises(ModelError, match="did not fire"):
        text.model.run(text.clean, [Site(kind, 1)])
    assert Site(kind, 1) in crossed.model.run(crossed.clean, [Site(kind, 1)]).activations


def test_x07_activations_are_keyed_by_layer_index() -> None:
    tiny = case("mllama:text")
    wanted = [Site("resid_post", 0), Site("resid_post", 2)]
    run = tiny.model.run(tiny.clean, wanted)
    hidden = tiny.model.net.model.language_model(
        inputs_embeds=tiny.model.embed(tiny.clean),
        attention_mask=tiny.clean.attention_mask,
        position_ids=tiny.clean.position_ids,
        output_hidden_states=True,
    ).hidden_states
    assert len(hidden) < tiny.model.n_layers + 1  # so an index into that list would be another layer's
    assert torch.equal(run.activations[Site("resid_post", 0)], hidden[1])


def test_x07_closed_gate_cannot_be_patched() -> None:
    tiny = case("mllama:image", fresh=True)
    tiny.model.decoder.layers[1].cross_attn_mlp_gate.data.zero_()
    site = Site("mlp_write", 1)
    values = torch.zeros(tiny.clean.input_ids.numel(), 32)
    with pytest.raises(ModelError, match="gate"):
        tiny.model.run(tiny.clean, patches=[Patch(site, everywhere(tiny.clean), values)])


def test_x08_last_residual_is_before_the_final_norm(tiny: Case) -> None:
    site = Site("resid_post", max(s.layer for s in sites(tiny)))
    run = tiny.model.run(tiny.clean, [site])
    normed = tiny.model.decoder.stack.norm(run.activations[site])
    logits = tiny.model.net.get_output_embeddings()(normed[:, -1])
    torch.testing.assert_close(logits.to(run.logits), run.logits, atol=1e-5, rtol=1e-5)


def test_x09_picture_tokens_of_gemma_see_each_other() -> None:
    tiny = case("gemma3:image")
    assert set(tiny.clean.extra) == {"token_type_ids"}
    assert torch.equal(tiny.clean.extra["token_type_ids"].bool(), tiny.clean.groups["image"])
    causal = Batch(**{**tiny.clean.__dict__, "extra": {}})
    site = Site("attn_write", 0)
    two_ways, one_way = (tiny.model.run(b, [site]).activations[site] for b in (tiny.clean, causal))
    start, end = tiny.clean.spans[0]
    assert (two_ways - one_way)[0, start : end - 1].abs().max() > 1e-3
    assert (two_ways - one_way)[0, :start].abs().max() < 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_x01_layout_of_every_family_is_found(name: str) -> None:
    found = case(name).model.decoder.layout
    post_norms = ("post_attention_layernorm", "post_feedforward_layernorm")
    usual = ("self_attn", "feed_forward" if name.startswith("llama4") else "mlp")
    assert (found.attention, found.mlp) == (post_norms if name.startswith("gemma3") else usual)
    assert found.output == "o_proj"
    assert found.plain_softmax == (family_of(name) in PLAIN)


def test_x06_model_whose_writes_are_not_found_is_refused() -> None:
    from twohop.models._sites import Decoder

    net = case("llama", fresh=True).model.net

    def scaled(_module: Any, _args: Any, output: torch.Tensor) -> torch.Tensor:
        return output * 1.5

    handle = net.model.layers[1].register_forward_hook(scaled)
    with pytest.raises(ModelError, match="no two modules of a layer sum to what its residual gains"):
        Decoder(net)
    handle.remove()
    assert Decoder(net).layout.mlp == "mlp"


def test_stack_that_is_not_what_the_config_says_is_refused() -> None:
    from twohop.models._sites import Decoder

    tiny = case("llama", fresh=True)
    tiny.model.net.config.num_hidden_layers = 5
    with pytest.raises(ModelError, match="the config says 5"):
        Decoder(tiny.model.net)
