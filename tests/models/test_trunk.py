"""Patched runs that begin as an earlier run equal whole ones, on every family; and they do leave out what they say."""

from collections import Counter
from typing import Any

import pytest
import torch
from tiny_models import NAMES, Case, case, pictures
from torch import Tensor

from twohop.errors import ModelError
from twohop.models import Batch, Knockout, Model, Patch, Prompt, Site, Trunk
from twohop.models._trunk import Start, begin

TOLERANCE = {"rtol": 0, "atol": 1e-9}


@pytest.fixture(scope="module", params=NAMES)
def tiny(request: pytest.FixtureRequest) -> Case:
    torch.set_num_threads(1)
    return case(request.param)


@pytest.fixture(scope="module")
def llama() -> Case:
    return case("llama")


def grown(tiny: Case, layers: Any = None) -> Trunk:
    return tiny.model.trunk(tiny.clean, range(tiny.model.n_layers + 1) if layers is None else layers)


def spans(batch: Batch) -> list[tuple[int, int]]:
    """One token at the end, the entity's tokens, and half of them with what follows."""
    start, end = batch.spans[0]
    return [(-1, 0), (start, end), ((start + end) // 2, end + 1)]


def where_of(batch: Batch, span: tuple[int, int], rows: Any = None) -> Tensor:
    where = torch.zeros_like(batch.attention_mask, dtype=torch.bool)
    stop = span[1] or batch.input_ids.shape[1]
    where[slice(None) if rows is None else rows, span[0] % batch.input_ids.shape[1] : stop] = True
    return where & batch.attention_mask.bool()


def patch(model: Model, site: Site, where: Tensor, seed: int = 0, head: int | None = None) -> Patch:
    draw = torch.Generator().manual_seed(seed)
    width = model.decoder.width(site) // (1 if head is None else model.heads(site) or 1)
    return Patch(site, where, torch.randn(int(where.sum()), width, generator=draw, dtype=torch.float64), head)


def patchable(tiny: Case, layer: int, where: Tensor) -> bool:
    """A cross-attention layer writes nothing before the picture."""
    crossing = layer in tiny.model.decoder.cross_layers
    return not crossing or bool((where & ~tiny.clean.groups["last"]).sum() == 0)


def test_every_site_layer_and_span_equals_the_whole_run(tiny: Case) -> None:
    model, trunk = tiny.model, grown(tiny)
    for kind in ("mlp_write", "attn_write", "resid_post", "head"):
        for layer in tiny.layers if kind != "resid_post" else (-1, *tiny.layers):
            for span in spans(tiny.clean):
                where = where_of(tiny.clean, span)
                if not patchable(tiny, layer, where):
                    continue
                made = patch(model, Site(kind, layer), where, head=0 if kind == "head" else None)
                whole = model.run(tiny.clean, patches=[made]).logits
                torch.testing.assert_close(model.run(trunk.fork([0, 1]), patches=[made]).logits, whole, **TOLERANCE)
                assert span != (-1, 0) or float((whole - trunk.logits).abs().max()) > 1e-6


def test_each_row_patched_in_its_own_way(tiny: Case) -> None:
    """Other layers, other positions, rows that come twice, one without a patch: as runs of their own."""
    model, layers = tiny.model, [n for n in tiny.layers if n not in tiny.model.decoder.cross_layers]
    trunk, rows = grown(tiny), [1, 0, 1, 0]
    fork = trunk.fork(rows)
    plans = [
        (0, Site("mlp_write", layers[1]), 0),
        (1, Site("resid_post", layers[0]), 1),
        (2, Site("head", layers[-1]), 2),
    ]
    made = [patch(model, site, where_of(fork, spans(fork)[s], row), row) for row, site, s in plans]
    found = model.run(fork, patches=made).logits
    for row, (r, one) in enumerate(zip(rows, [*made, None], strict=True)):
        alone = tiny.clean.take([r])
        own = [] if one is None else [Patch(one.site, one.where[row : row + 1], one.values, one.head)]
        torch.testing.assert_close(found[row], model.run(alone, patches=own).logits[0], **TOLERANCE)


def test_answers_and_their_probabilities_after_a_patch(tiny: Case) -> None:
    """What is written after a patched prompt meets every layer's cache, also of the layers that were left out."""
    model, trunk = tiny.model, grown(tiny)
    layer = [n for n in tiny.layers if n not in model.decoder.cross_layers][-1]
    for kind, span in (("resid_post", (-1, 0)), ("mlp_write", tiny.clean.spans[0])):
        made = patch(model, Site(kind, layer), where_of(tiny.clean, span))  # type: ignore[arg-type]
        answers = [["Paris", "the Nile"], ["Kenya"]]
        texts, logprobs = model.reply(tiny.clean, 6, answers, [made])
        found = model.reply(trunk.fork([0, 1]), 6, answers, [made])
        assert found[0] == texts
        assert [*found[1][0], *found[1][1]] == pytest.approx([*logprobs[0], *logprobs[1]], abs=1e-9)
        assert model.generate(trunk.fork([1, 0]), 6) == model.generate(tiny.clean, 6)[::-1]


def test_knockouts(tiny: Case) -> None:
    model, trunk = tiny.model, grown(tiny)
    last, entity = tiny.clean.groups["last"], tiny.clean.groups["image"] | tiny.clean.groups["entity"]
    after = last | tiny.clean.groups["question"]
    for cut in (Knockout(2, 4, last, entity), Knockout(1, 2, after, entity)):
        whole = model.run(tiny.clean, knockouts=[cut]).logits
        torch.testing.assert_close(model.run(trunk.fork([0, 1]), knockouts=[cut]).logits, whole, **TOLERANCE)


def test_a_trunk_that_kept_fewer_layers(tiny: Case) -> None:
    model, trunk = tiny.model, grown(tiny, [2])
    for layer in (n for n in tiny.layers if n not in model.decoder.cross_layers):
        made = patch(model, Site("mlp_write", layer), where_of(tiny.clean, tiny.clean.spans[0]))
        fork = trunk.fork([0, 1])
        assert begin(model, fork, [made], ()).layer in (0, 2)
        whole = model.run(tiny.clean, patches=[made]).logits
        torch.testing.assert_close(model.run(fork, patches=[made]).logits, whole, **TOLERANCE)


def test_nothing_of_it_is_left_behind(tiny: Case) -> None:
    model, trunk = tiny.model, grown(tiny)
    lengths = [layer.get_seq_length() for layer in trunk.cache.layers]
    own = [layer.__dict__.get("forward") for layer in model.decoder.layers]
    site = Site("mlp_write", 3 if 3 not in model.decoder.cross_layers else 2)
    wrong = Patch(site, where_of(tiny.clean, (-1, 0)), torch.zeros(5, 3))
    with pytest.raises(ModelError, match="give one row of"):
        model.run(trunk.fork([0, 1]), patches=[wrong])
    model.generate(trunk.fork([0, 1]), 3, [patch(model, site, where_of(tiny.clean, (-1, 0)))])
    assert [layer.__dict__.get("forward") for layer in model.decoder.layers] == own
    assert [layer.get_seq_length() for layer in trunk.cache.layers] == lengths
    assert torch.equal(model.run(trunk.fork([0, 1])).logits, trunk.logits)


# --- what is left out -------------------------------------------------------------------------------------------------


def test_layers_below_and_positions_before_are_not_computed(llama: Case) -> None:
    model, trunk, met = llama.model, grown(llama), Counter[int]()
    handles = [
        layer.mlp.register_forward_hook(lambda _m, _a, out, n=n: met.update({n: out.shape[0] * out.shape[1]}))
        for n, layer in enumerate(model.decoder.layers)
    ]
    try:
        model.run(
            trunk.fork([0, 1, 1]),
            patches=[patch(model, Site("mlp_write", 2), where_of(trunk.fork([0, 1, 1]), (-2, 0)))],
        )
    finally:
        for handle in handles:
            handle.remove()
    assert met == {2: 6, 3: 6}


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("llava:image", Start(2, 7)),
        ("gemma3:image", Start(2, 0)),  # image tokens see each other both ways
        ("paligemma:image", Start(2, 0)),  # and here the whole prompt
        ("qwen3_vl:image", Start(0, 0)),  # the picture enters after the first layers, too
        ("mllama:text", Start(2, 7)),
    ],
)
def test_where_a_run_begins(name: str, start: Start) -> None:
    tiny = case(name)
    at = 7 if name == "mllama:text" else tiny.clean.spans[0][0] + 2
    layer = 0 if name == "qwen3_vl:image" else 1
    made = patch(tiny.model, Site("resid_post", layer), where_of(tiny.clean, (at, at + 1)))
    found = begin(tiny.model, grown(tiny).fork([0, 1]), [made], ())
    assert found == Start(start.layer, at if start.position else 0)


def test_a_patch_behind_the_last_layer_needs_no_layer(llama: Case) -> None:
    model, trunk = llama.model, grown(llama)
    made = patch(model, Site("resid_post", model.n_layers - 1), where_of(llama.clean, (-1, 0)))
    assert begin(model, trunk.fork([0, 1]), [made], ()).layer == model.n_layers
    whole = model.run(llama.clean, patches=[made]).logits
    torch.testing.assert_close(model.run(trunk.fork([0, 1]), patches=[made]).logits, whole, **TOLERANCE)


def test_rows_of_a_batch_keep_their_pictures(llama: Case) -> None:
    model = case("llava:image").model
    seen = model.encode_pictures(pictures(3))
    prompts = [
        Prompt("The ", None, " is", seen[0]),
        Prompt("The ", "Nile", " is"),
        Prompt("The ", None, " of", seen[2]),
    ]
    batch, alone = model.batch(prompts), [model.batch([p]) for p in (prompts[2], prompts[0])]
    taken = batch.take([2, 0, 0])
    assert taken.pictures is not None
    for row, one in ((0, alone[0]), (1, alone[1]), (2, alone[1])):
        torch.testing.assert_close(model.run(taken).logits[row], model.run(one).logits[0], **TOLERANCE)
