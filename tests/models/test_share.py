"""Prompts that begin alike are answered as if each were run by itself, on every family."""

from collections import Counter

import pytest
import torch
from tiny_models import NAMES, Case, case, pictures

from twohop.models import Batch, Model, Prompt

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


def test_logits_answers_and_names_equal_those_of_prompts_run_alone(tiny: Case) -> None:
    model, asked = tiny.model, prompts(tiny.model, tiny.run)
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


def test_a_head_is_run_once(tiny: Case) -> None:
    """Positions that a layer is given: heads once, endings for each prompt; padding inside a batch of heads apart."""
    model, asked = tiny.model, prompts(tiny.model, tiny.run)
    if model.name == "paligemma":
        assert all(batch.shared is None for _, batch in model.share(asked, 9))
        return
    encoded = [model.tokens.encode(p) for p in asked]
    heads = Counter((*e.ids[: e.end], id(p.picture)) for e, p in zip(encoded, asked, strict=True))
    assert set(heads.values()) == {len(AFTER)}
    batches = [batch for _, batch in model.share(asked, 9)]
    assert all(len({b.input_ids.shape[1] - shared(b).length for b in batches}) == len(AFTER) for b in batches)
    assert len({id(shared(b).trunk) for b in batches}) == 1
    assert len(shared(batches[0]).trunk.batch) == len(COUNTRIES)


def shared(batch: Batch):  # type: ignore[no-untyped-def]
    assert batch.shared is not None
    return batch.shared


def test_prompts_without_anything_in_common_are_run_as_they_are() -> None:
    model = case("llama").model
    asked = [Prompt("The country is called ", name, "") for name in COUNTRIES]
    assert all(batch.shared is None for _, batch in model.share(asked, 2))
    plain = [Prompt("Consider the country"), Prompt("The capital of this country is")]
    assert [index for index, _ in model.share(plain, 8)] == [[0, 1]]
    assert list(model.share([], 8)) == []
