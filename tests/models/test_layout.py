"""The layout of language models that no table names: post-norms, parallel blocks, experts; and what is refused."""

from typing import Any

import pytest
import torch
import transformers
from tiny_models import blind, unsettled

from twohop.errors import ModelError
from twohop.models import Prompt, Site
from twohop.models._hooks import hooked
from twohop.models._sites import Decoder

SIZE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
POST = ("post_attention_layernorm", "post_feedforward_layernorm")
FOUND = {
    "Olmo2": POST,  # the norms behind the blocks write
    "Gemma2": POST,
    "Glm4": ("post_self_attn_layernorm", "post_mlp_layernorm"),
    "Cohere": ("self_attn", "mlp"),  # both read the same input
    "GPTNeoX": ("attention", "mlp"),
    "Mixtral": ("self_attn", "mlp"),  # experts
    "Phi3": ("resid_attn_dropout", "resid_mlp_dropout"),
    "Starcoder2": ("self_attn", "mlp"),
    "Olmoe": ("self_attn", "mlp"),
}


def net(name: str, **more: Any) -> Any:
    torch.manual_seed(0)
    settings = {**SIZE, **more}
    if name == "Mixtral":
        settings |= {"num_local_experts": 2}
    if name == "Olmoe":
        settings |= {"num_experts": 2, "num_experts_per_tok": 1}
    config = getattr(transformers, f"{name}Config")(**settings)
    return unsettled(getattr(transformers, f"{name}ForCausalLM")(config)).float().eval()


@pytest.mark.parametrize("name", FOUND)
def test_writes_are_found_and_sum_to_what_the_residual_gains(name: str) -> None:
    model = net(name)
    decoder = Decoder(model)
    found = (decoder.layout.attention, decoder.layout.mlp)
    same = {"resid_attn_dropout": "self_attn", "resid_mlp_dropout": "mlp"}  # dropout passes everything on
    assert tuple(same.get(n, n) for n in found) == tuple(same.get(n, n) for n in FOUND[name])
    sites = [Site(kind, n) for kind in ("resid_post", "mlp_write", "attn_write") for n in range(3)]
    ids = torch.arange(1, 9)[None]
    with torch.no_grad(), hooked(decoder, (1, 8, 32), sites) as acts:
        model(input_ids=ids)
    for n in (1, 2):
        gained = acts[Site("resid_post", n)] - acts[Site("resid_post", n - 1)]
        written = acts[Site("mlp_write", n)] + acts[Site("attn_write", n)]
        torch.testing.assert_close(written, gained, atol=1e-4, rtol=1e-4)
        assert written.abs().max() > 1e-2


def test_scaled_residuals_are_refused_by_name() -> None:
    with pytest.raises(ModelError, match="no two modules of a layer sum") as error:
        Decoder(net("Granite", residual_multiplier=0.5))
    assert "GraniteForCausalLM (granite)" in error.value.where
    assert Decoder(net("Granite", residual_multiplier=1.0)).layout.mlp == "mlp"


# --- where padding would count ----------------------------------------------------------------------------------------


def llama4_prompts() -> list[Prompt]:
    return [Prompt("Consider the country ", "France", t) for t in (". The capital of this country is", ". The")]


def test_x02_llama4_in_a_padded_batch_gives_what_it_gives_alone() -> None:
    model = blind("llama4_text")
    asked = llama4_prompts()
    padded = model.run(model.batch(asked)).logits
    for i, prompt in enumerate(asked):
        torch.testing.assert_close(padded[i], model.run(model.batch([prompt])).logits[0], atol=1e-5, rtol=1e-4)


def test_x02_llama4_refuses_a_padded_batch_where_padding_counts() -> None:
    """From `floor_scale` on its queries are scaled by a place that counts padding: the refused batch would be wrong."""
    model = blind("llama4_text")
    asked = llama4_prompts()
    padded, alone = model.batch(asked), model.batch(asked[1:])
    model.decoder.config.floor_scale = 64 + len(padded.input_ids[0])
    model.batch(asked)
    model.decoder.config.floor_scale -= 1
    with pytest.raises(ModelError, match="set the steps' batch to 1"):
        model.batch(asked)
    for layer in model.decoder.layers:
        layer.self_attn.floor_scale = 8
    assert not torch.allclose(model.run(padded).logits[1], model.run(alone).logits[0], atol=1e-4)
    model.batch([asked[0], asked[0]])  # rows of one length
