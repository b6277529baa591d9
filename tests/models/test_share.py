"""Prompts that begin alike are answered as if each were run by itself, on every family."""

from collections import Counter

import pytest
import torch
from tiny_models import NAMES, Case, case, pictures

from twohop.models import Batch, Model, Prompt, Site

AFTER = (". The capital of this country is", ". The", " is called")
COUNTRIES = ("France", "Saint Lucia", "Kenya")


@pytest.fixture(scope="module", params=NAMES)
def tiny(request: pytest.FixtureRequest) -> Case:
    torch.set_num_threads(1)
    return case(request.param)


def prompts(model: Model, run: str) -> list[Prompt]:
    """Every entity under every ending, the endings of an entity apart from each other."""
    shown = model.encode_pictures(pictures(len(COUNTRIES))) if run == "image" else [None] * len(COUNTRIES)
    return [
        Prompt("Consider the country ", name if seen is None else None, after, seen)
        for after in AFTER
        for name, seen in zip(COUNTRIES, shown, strict=True)
    ]


@pytest.mark.parametrize("endings", [AFTER, AFTER[:1]], ids=["three of each", "one of each"])
def test_logits_answers_and_names_equal_those_of_prompts_run_alone(tiny: Case, endings: tuple[str, ...]) -> None:
    model = tiny.model
    asked = [p for p in prompts(model, tiny.run) if p.after in endings]
    names = ["Kenya", "Saint Lucia", "Japan", "France"]
    met: list[int] = []
    for index, batch in model.share(asked, 2):
        alone = [model.batch([asked[i]]) for i in index]
        met += index
        wanted = torch.cat([model.run(one).logits for one in alone])
        torch.testing.assert_close(model.run(batch).logits, wanted, rtol=0, atol=1e-9)
        written, best = model.name_answers(batch, 5, names)
        assert written == [model.generate(one, 5)[0] for one in alone] == model.generate(batch, 5)
        assert best == [model.best_names(one, names)[0] for one in alone]
    assert sorted(met) == list(range(len(asked)))


def test_activations_are_those_of_prompts_run_alone(tiny: Case) -> None:
    model, asked = tiny.model, prompts(tiny.model, tiny.run)
    sites = [Site(kind, n) for kind in ("resid_post", "mlp_write", "attn_write") for n in tiny.layers]
    for index, batch in model.share(asked, 9, sites):
        found = model.run(batch, sites).activations
        for row, i in enumerate(index):
            one = model.batch([asked[i]])
            real = batch.attention_mask[row].bool()
            assert {g: m[row][real].tolist() for g, m in batch.groups.items()} == {
                g: m[0].tolist() for g, m in one.groups.items()
            }
            alone = model.run(one, sites).activations
            for site in sites:
                torch.testing.assert_close(found[site][row][real], alone[site][0], rtol=0, atol=1e-9)


def test_a_head_is_run_once(tiny: Case) -> None:
    """One row per head in the first pass; what they all begin with is a row of its own before that."""
    model, asked = tiny.model, prompts(tiny.model, tiny.run)
    if model.name == "paligemma":
        assert all(batch.shared is None for _, batch in model.share(asked, 9))
        return
    encoded = [model.tokens.encode(p) for p in asked]
    heads = Counter((*e.ids[: e.end], id(p.picture)) for e, p in zip(encoded, asked, strict=True))
    assert set(heads.values()) == {len(AFTER)}
    batches = [batch for _, batch in model.share(asked, 9)]
    if model.name == "gemma3":  # has layers that see 16 tokens
        return
    assert [len(b) for b in batches] == [len(asked)]
    trunk = shared(batches[0]).trunk
    assert len(trunk.batch) == len(COUNTRIES)
    rooted = model.name not in ("gemma3", "qwen3_vl", "mllama") or (tiny.run == "text" and model.name != "mllama")
    assert (trunk.batch.shared is not None) == rooted
    if trunk.batch.shared is not None:
        assert len(trunk.batch.shared.trunk.batch) == 1


def test_nothing_is_padded_inside_a_prompt_that_may_leave_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    model = case("llama").model
    asked = prompts(model, "text")
    inside = [b for _, b in model.share(asked, 9) if bool((b.attention_mask.diff(dim=1) < 0).any())]
    assert inside
    monkeypatch.setattr(model.decoder.config, "sliding_window", 16, raising=False)
    for _, batch in model.share(asked, 9):
        assert not bool((batch.attention_mask.diff(dim=1) < 0).any())


def shared(batch: Batch):  # type: ignore[no-untyped-def]
    assert batch.shared is not None
    return batch.shared


def test_prompts_without_anything_in_common_are_run_as_they_are() -> None:
    model = case("llama").model
    asked = [Prompt("", name, " is") for name in COUNTRIES]
    assert all(batch.shared is None for _, batch in model.share(asked, 2))
    plain = [Prompt("Consider the country"), Prompt("The capital of this country is")]
    assert [index for index, _ in model.share(plain, 8)] == [[0, 1]]
    assert list(model.share([], 8)) == []
