"""The logit lens: the final norm once, on every family; nnsight as the oracle (promise X8)."""

import functools

import pytest
import torch
from tiny_models import NAMES, Case, case

from twohop.errors import ModelError
from twohop.models import Site


@pytest.fixture(scope="module", params=NAMES)
def tiny(request: pytest.FixtureRequest) -> Case:
    torch.set_num_threads(1)
    return case(request.param)


def test_x08_lens_at_the_last_layer_is_the_model_s_logits(tiny: Case) -> None:
    site = Site("resid_post", max(tiny.layers))
    run = tiny.model.run(tiny.clean, [site])
    at_last = run.activations[site][tiny.clean.groups["last"]]
    torch.testing.assert_close(tiny.model.unembed(at_last), run.logits)
    normed_twice = tiny.model.unembed(tiny.model.decoder.stack.norm(at_last))
    assert (normed_twice - run.logits).abs().max() > 1e-2


@pytest.mark.parametrize("name", [n for n in NAMES if not n.startswith("mllama")])
def test_x08_lens_of_a_middle_layer_equals_nnsight(name: str) -> None:
    from nnsight import NNsight

    tiny = case(name)
    model = tiny.model
    site = Site("resid_post", 1)
    mine = model.unembed(model.run(tiny.clean, [site]).activations[site])
    tracer = NNsight(model.net)
    inputs = {
        **model._given(tiny.clean),
        "attention_mask": tiny.clean.attention_mask,
        "position_ids": tiny.clean.position_ids,
        **tiny.clean.extra,
    }
    with torch.no_grad(), tracer.trace(**inputs):
        resid = decoder_of(model, tracer).layers[1].output.save()
    oracle = model.net.get_output_embeddings()(model.decoder.stack.norm(resid))
    torch.testing.assert_close(mine, oracle.to(mine))


def decoder_of(model, tracer):
    path = next(n for n, m in model.net.named_modules() if m is model.decoder.stack)
    return functools.reduce(getattr, path.split("."), tracer)


def test_some_tokens_are_columns_of_all(tiny: Case) -> None:
    resid = torch.randn(2, 3, tiny.model.d_model, dtype=tiny.model.dtype)
    some = tiny.model.unembed(resid, [7, 3, 7])
    torch.testing.assert_close(some, tiny.model.unembed(resid)[..., [7, 3, 7]])


def test_gradients_pass_and_weights_need_none() -> None:
    model = case("llama").model
    resid = torch.randn(2, model.d_model, dtype=model.dtype, requires_grad=True)
    model.unembed(resid, [1, 2]).sum().backward()
    assert resid.grad is not None
    assert resid.grad.abs().max() > 0
    assert all(p.grad is None for p in model.net.parameters())


def test_residuals_of_another_width_are_refused() -> None:
    with pytest.raises(ModelError, match="cannot unembed"):
        case("llama").model.unembed(torch.zeros(2, 31))
