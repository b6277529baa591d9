"""Attention knockout on every family, against eager attention with its own mask."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_models import NAMES, Case, case
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask

from twohop.errors import ModelError
from twohop.models import Batch, Knockout, Site


@pytest.fixture(scope="module", params=NAMES)
def tiny(request: pytest.FixtureRequest) -> Case:
    torch.set_num_threads(1)
    return case(request.param)


def entity(batch: Batch) -> torch.Tensor:
    return batch.groups["image"] | batch.groups["entity"]


def cut(batch: Batch, start: int, stop: int) -> Knockout:
    return Knockout(start, stop, batch.groups["last"], entity(batch))


def window(tiny: Case) -> tuple[int, int]:
    """Layers that are cut. Mllama's layers 1 and 3 read the picture; in PaliGemma's prompts all tokens see `last`."""
    return (2, 3) if tiny.model.decoder.cross_layers or tiny.model.card.family == "paligemma" else (1, 3)


def eager_attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **kwargs: Any
) -> tuple[torch.Tensor, Any]:
    """Written out in the model's dtype; transformers' own has its softmax in float32.

    Mllama's cross-attention, which nothing cuts, gets no mask here and is left to sdpa.
    """
    if mask is None:
        return sdpa_attention_forward(module, query, key, value, mask, **kwargs)
    groups = module.num_key_value_groups
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    weights = query @ key.transpose(2, 3) * kwargs["scaling"]
    weights = (weights + mask).softmax(-1)
    return (weights @ value).transpose(1, 2).contiguous(), weights


AttentionInterface.register("test_eager", eager_attention)
AttentionMaskInterface.register("test_eager", eager_mask)


def eager_logits(tiny: Case, batch: Batch, knockout: Knockout) -> torch.Tensor:
    """The same by eager attention, with -inf put into the additive mask that each cut layer is handed."""
    model = tiny.model
    config = model.decoder.config
    blocked = knockout.queries[:, :, None] & knockout.keys[:, None, :]

    def clear(_module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        mask = kwargs["attention_mask"].masked_fill(blocked[:, None], float("-inf"))
        return args, {**kwargs, "attention_mask": mask}

    layers: Any = model.decoder.layers
    handles = [layers[n].self_attn.register_forward_pre_hook(clear, with_kwargs=True) for n in knockout.layers]
    config._attn_implementation = "test_eager"
    try:
        return model.run(batch).logits
    finally:
        config._attn_implementation = "sdpa"
        for handle in handles:
            handle.remove()


def test_knockout_equals_eager_attention_with_minus_infinity(tiny: Case) -> None:
    knockout = cut(tiny.clean, *window(tiny))
    run = tiny.model.run(tiny.clean, knockouts=[knockout])
    torch.testing.assert_close(run.logits, eager_logits(tiny, tiny.clean, knockout), atol=1e-9, rtol=1e-9)
    assert (run.logits - tiny.model.run(tiny.clean).logits).abs().max() > 1e-4


def test_unpadded_batch_whose_mask_is_none(tiny: Case) -> None:
    half = len(tiny.clean.pictures) // 2 if tiny.clean.pictures is not None else 0
    alone = replace(
        tiny.clean,
        input_ids=tiny.clean.input_ids[:1],
        attention_mask=tiny.clean.attention_mask[:1],
        position_ids=tiny.clean.position_ids[..., :1, :],
        groups={g: m[:1] for g, m in tiny.clean.groups.items()},
        spans=tiny.clean.spans[:1],
        pictures=tiny.clean.pictures[:half] if half and tiny.clean.pictures is not None else None,
        extra={name: value[:1] for name, value in tiny.clean.extra.items()},
        deep=tuple(level[:half] for level in tiny.clean.deep),
        next_position=None,
    )
    assert bool(alone.attention_mask.all())
    knockout = cut(alone, *window(tiny))
    logits = tiny.model.run(alone, knockouts=[knockout]).logits
    torch.testing.assert_close(logits, eager_logits(tiny, alone, knockout), atol=1e-9, rtol=1e-9)


def test_layers_before_the_window_and_other_positions_are_untouched(tiny: Case) -> None:
    start, stop = window(tiny)
    sites = [Site("resid_post", n) for n in range(start) if n in tiny.layers]
    sites.append(Site("resid_post", stop - 1))
    plain = tiny.model.run(tiny.clean, sites).activations
    blocked = tiny.model.run(tiny.clean, sites, knockouts=[cut(tiny.clean, start, stop)]).activations
    for site in sites[:-1]:
        assert torch.equal(plain[site], blocked[site])
    last, real = tiny.clean.groups["last"], tiny.clean.attention_mask.bool()
    others = real & ~last
    # the cut layer is handed a mask where the others are told `is_causal`: another kernel, one rounding
    torch.testing.assert_close(plain[sites[-1]][others], blocked[sites[-1]][others], atol=1e-12, rtol=1e-12)
    assert (plain[sites[-1]][last] - blocked[sites[-1]][last]).abs().max() > 1e-4


def test_nothing_cut_changes_nothing(tiny: Case) -> None:
    nothing = torch.zeros_like(tiny.clean.groups["last"])
    knockout = Knockout(*window(tiny), tiny.clean.groups["last"], nothing)
    plain, blocked = tiny.model.run(tiny.clean), tiny.model.run(tiny.clean, knockouts=[knockout])
    torch.testing.assert_close(plain.logits, blocked.logits, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_shared_prefix_gives_what_whole_runs_give(name: str) -> None:
    tiny = case(name)
    cuts = [cut(tiny.clean, start, stop) for start, stop in ((0, 1), (1, 3), (0, 4))]
    plain, *together = tiny.model.blocked_logits(tiny.clean, cuts)
    torch.testing.assert_close(plain, tiny.model.run(tiny.clean).logits, atol=1e-9, rtol=1e-9)
    for knockout, logits in zip(cuts, together, strict=True):
        whole = tiny.model.run(tiny.clean, knockouts=[knockout]).logits
        torch.testing.assert_close(logits, whole, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_generation_is_cut_in_the_prefill(name: str) -> None:
    tiny = case(name)
    knockout = cut(tiny.clean, 0, 4)
    first = tiny.model.run(tiny.clean, knockouts=[knockout]).logits.argmax(-1).tolist()
    written = tiny.model.generate(tiny.clean, 1, knockouts=[knockout])
    wanted = [tiny.model.tokens.decode([t] * (t not in tiny.model.stop_ids)).strip() for t in first]
    assert written == [w.split("\n")[0].strip() for w in wanted]


def test_x04_attention_is_its_own_again_after_an_exception(tiny: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("in the middle")

    before = tiny.model.run(tiny.clean).logits
    with monkeypatch.context() as patch:
        patch.setattr(tiny.model.decoder.layers[2], "forward", broken)
        with pytest.raises(RuntimeError, match="in the middle"):
            tiny.model.run(tiny.clean, knockouts=[cut(tiny.clean, *window(tiny))])
    assert tiny.model.decoder.config._attn_implementation == "sdpa"
    assert torch.equal(tiny.model.run(tiny.clean).logits, before)


def test_what_does_not_fit_is_refused() -> None:
    tiny = case("llava:image")
    last, image = tiny.clean.groups["last"], tiny.clean.groups["image"]
    everything = torch.ones_like(last)
    for knockout, why in (
        (Knockout(3, 5, last, image), "no layers 3 to 4"),
        (Knockout(2, 2, last, image), "no layers"),
        (Knockout(0, 1, last[:, 1:], image[:, 1:]), "one True or False per position"),
        (Knockout(0, 1, last, everything), "see nothing at all"),
    ):
        with pytest.raises(ModelError, match=why):
            tiny.model.run(tiny.clean, knockouts=[knockout])
    with pytest.raises(ModelError, match="another position"):
        tiny.model.blocked_logits(tiny.clean, [Knockout(0, 1, image, image)])
    tiny = case("llava:image", fresh=True)
    tiny.model.decoder.config._attn_implementation = "eager"
    with pytest.raises(ModelError, match="attention is 'eager'"):
        tiny.model.run(tiny.clean, knockouts=[cut(tiny.clean, 0, 1)])


def test_cut_query_sees_nothing_of_the_picture_in_cross_attention() -> None:
    tiny = case("mllama:image")
    only_cross, last = cut(tiny.clean, 1, 2), tiny.clean.groups["last"]
    site = Site("attn_write", 1)
    plain, knocked = (tiny.model.run(tiny.clean, [site], knockouts=k) for k in ([], [only_cross]))
    found = knocked.activations[site]
    assert not found[last].any()
    assert plain.activations[site][last].abs().max() > 1e-3
    assert torch.equal(found[~last], plain.activations[site][~last])
    both = [only_cross, cut(tiny.clean, 0, 4)]
    one_by_one = torch.stack([tiny.model.run(tiny.clean, knockouts=[k]).logits for k in both])
    torch.testing.assert_close(tiny.model.blocked_logits(tiny.clean, both)[1:], one_by_one, rtol=0, atol=1e-10)
    assert (one_by_one - plain.logits).abs().max() > 1e-2


def test_text_run_skips_the_cross_attention_layers_of_a_window() -> None:
    tiny = case("mllama:text")
    whole, own = (tiny.model.run(tiny.clean, knockouts=[cut(tiny.clean, *w)]).logits for w in ((0, 2), (0, 1)))
    assert torch.equal(whole, own)
