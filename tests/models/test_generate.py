"""Greedy answers and name ranking against the slow, plain way to get them."""

import contextlib

import pytest
import torch
from tiny_models import Case, case, pictures

from twohop.errors import ModelError
from twohop.models import Model, Patch, Prompt, Site
from twohop.models import _generate as generation

NAMES = [
    "France",
    "Japan",
    "United States",
    "United Kingdom",
    "Ireland",
    "Iceland",
    "Saint Lucia",
    "South Africa",
    "Kenya",
]
ALL = ["llama", "llava:image", "gemma3:text", "gemma3:image", "qwen2_5_vl:text", "mllama:text"]


@pytest.fixture(scope="module", params=ALL)
def tiny(request: pytest.FixtureRequest) -> Case:
    torch.set_num_threads(1)
    return case(request.param)


def prompts(tiny: Case | Model) -> list[Prompt]:
    """Of a text run, or of an image run where the case is one."""
    model, run = (tiny.model, tiny.run) if isinstance(tiny, Case) else (tiny, "text")
    texts = (". The", ". The capital of this country is", "\nThe name of this country is")
    if run == "text":
        return [Prompt("Consider the country ", n, t) for n, t in zip(("France", "Kenya", "Japan"), texts, strict=True)]
    seen = model.encode_pictures(pictures(3, seed=1))
    return [Prompt("Consider the country ", None, t, p) for t, p in zip(texts, seen, strict=True)]


@contextlib.contextmanager
def written(model: Model, span: tuple[int, int], patch: tuple[Site, float] | None):
    """A hook of its own that overwrites a site on [start, end) of a batch of one row."""
    if patch is None:
        yield
        return
    site, value = patch

    def hook(_module: object, _args: object, out: torch.Tensor) -> torch.Tensor:
        out = out.clone()
        out[:, span[0] : span[1]] = value
        return out

    handle = model.decoder.tap(site).module.register_forward_hook(hook)
    yield
    handle.remove()


def written_slowly(model: Model, prompt: Prompt, n: int, patch: tuple[Site, float] | None = None) -> list[int]:
    """Greedy ids without a cache: the whole text anew for every token, the patch at the prompt's positions only."""
    ids: list[int] = []
    batch = model.batch([prompt])
    embeds, length = model.embed(batch), batch.input_ids.shape[1]
    for _ in range(n):
        more = model.net.get_input_embeddings()(torch.tensor([ids], dtype=torch.long))
        total = length + len(ids)
        extra = {k: torch.nn.functional.pad(v, (0, len(ids))) for k, v in batch.extra.items()}
        with torch.no_grad(), written(model, batch.spans[0], patch):
            logits = model.net(
                inputs_embeds=torch.cat([embeds, more.to(embeds)], 1),
                attention_mask=torch.ones(1, total, dtype=torch.long),
                position_ids=torch.arange(total)[None],
                use_cache=False,
                **extra,
            ).logits[0, -1]
        token = int(logits.argmax())
        if token in model.stop_ids:
            break
        ids.append(token)
        if "\n" in model.tokens.decode(ids).lstrip():
            break
    return ids


def text_of(model: Model, ids: list[int]) -> str:
    return model.tokens.decode(ids).strip().split("\n")[0].strip()


def test_generate_equals_the_slow_way(tiny: Case) -> None:
    asked = prompts(tiny)
    want = [text_of(tiny.model, written_slowly(tiny.model, p, 6)) for p in asked]
    assert tiny.model.generate(tiny.model.batch(asked), 6) == want


def test_patches_act_in_the_prefill_only(tiny: Case) -> None:
    site = Site("resid_post", 0)
    asked = prompts(tiny)
    batch = tiny.model.batch(asked)
    where = batch.groups["entity"] | batch.groups["image"]
    values = torch.full((int(where.sum()), tiny.model.d_model), 3.0, dtype=tiny.model.dtype)
    got = tiny.model.generate(batch, 6, [Patch(site, where, values)])
    want = [text_of(tiny.model, written_slowly(tiny.model, p, 6, (site, 3.0))) for p in asked]
    assert got == want
    assert got != tiny.model.generate(batch, 6)


def forced(model: Model, monkeypatch: pytest.MonkeyPatch, script: dict[int, list[str]]) -> None:
    """Let row r write the tokens of its script, whatever the model thinks."""
    raw = model.tokens.raw
    ids = {r: [raw.convert_tokens_to_ids(t) for t in words] for r, words in script.items()}
    state = {"step": 0, "alive": sorted(ids)}

    def logits(*_: object) -> torch.Tensor:
        out = torch.zeros(len(state["alive"]), 400)
        for i, r in enumerate(state["alive"]):
            out[i, ids[r][state["step"]]] = 1
        going = [r for r in state["alive"] if ids[r][state["step"]] not in model.stop_ids]
        written = {r: model.tokens.decode(ids[r][: state["step"] + 1]).lstrip() for r in going}
        state["alive"] = [r for r in going if "\n" not in written[r]]
        state["step"] += 1
        return out

    prefill = generation._prefill
    monkeypatch.setattr(generation, "_prefill", lambda *a: (prefill(*a)[0], logits()))
    monkeypatch.setattr(generation, "_continue", lambda *a: logits()[:, None])


def test_generate_stops_at_end_and_newline_row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    model = case("llama", fresh=True).model
    model.stop_ids = frozenset([model.tokens.raw.convert_tokens_to_ids("<|im_end|>")])
    script = {
        0: ["ĠIreland", "<|im_end|>"],
        1: ["Ċ", "ĠThe", "Ċ"],  # a line break before the first word is no end
        2: ["Ġthe", "Ġcountry", "Ġcountry", "Ġcountry"],
    }
    forced(model, monkeypatch, script)
    asked = [Prompt("The"), Prompt("Consider the"), Prompt("The country")]
    assert model.generate(model.batch(asked), 4) == ["Ireland", "The", "the country country country"]


def brute(model: Model, prompt: Prompt, name: str, patch: tuple[Site, float] | None = None) -> float:
    """log P of " name" by one plain pass over prompt and name; the patch at the prompt's entity or picture only."""
    batch = model.batch([prompt])
    ids = model.tokenize(f" {name}")
    more = model.net.get_input_embeddings()(torch.tensor([ids]))
    total = batch.input_ids.shape[1] + len(ids)
    extra = {k: torch.nn.functional.pad(v, (0, len(ids))) for k, v in batch.extra.items()}
    with torch.no_grad(), written(model, batch.spans[0], patch):
        logits = model.net(
            inputs_embeds=torch.cat([model.embed(batch), more], 1),
            attention_mask=torch.ones(1, total, dtype=torch.long),
            position_ids=torch.arange(total)[None],
            use_cache=False,
            **extra,
        ).logits[0]
    logprobs = logits[-len(ids) - 1 : -1].log_softmax(-1)
    return float(logprobs[range(len(ids)), ids].sum())


def test_name_logprobs_equal_a_plain_pass(tiny: Case) -> None:
    asked = prompts(tiny)
    got = tiny.model.name_logprobs(tiny.model.batch(asked), NAMES)
    want = torch.tensor([[brute(tiny.model, p, n) for n in NAMES] for p in asked])
    torch.testing.assert_close(got, want, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("site", [Site("mlp_write", 0), Site("resid_post", 0)])
def test_patched_answer_logprobs_equal_a_plain_pass(tiny: Case, site: Site) -> None:
    """Three rows of other lengths, so that two are padded, and answers of one and of several tokens."""
    model, asked = tiny.model, prompts(tiny)
    answers = [NAMES[:2], [], [NAMES[6], NAMES[3], NAMES[0]]]
    batch = model.batch(asked)
    where = batch.groups["entity"] | batch.groups["image"]
    patch = Patch(site, where, torch.full((int(where.sum()), model.d_model), 3.0, dtype=model.dtype))
    got = model.answer_logprobs(batch, answers, [patch])
    want = [[brute(model, p, a, (site, 3.0)) for a in texts] for p, texts in zip(asked, answers, strict=True)]
    assert [len(row) for row in got] == [2, 0, 3]
    flat, plain = flatten(got), flatten(model.answer_logprobs(batch, answers))
    torch.testing.assert_close(flat, flatten(want), atol=1e-3, rtol=1e-4)
    assert (flat - plain).abs().min() > 1e-3


def flatten(rows: list[list[float]]) -> torch.Tensor:
    return torch.tensor([x for row in rows for x in row])


def test_reply_is_generation_and_given_answers_in_one(tiny: Case) -> None:
    model, asked = tiny.model, prompts(tiny)
    batch = model.batch(asked)
    answers = [["Kenya"], ["Saint Lucia"], ["France", "Japan"]]
    said, logprobs = model.reply(batch, 6, answers)
    assert said == model.generate(batch, 6)
    assert logprobs == model.answer_logprobs(batch, answers)


def test_name_logprobs_do_not_depend_on_how_rows_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    model = case("llama").model
    batch = model.batch(prompts(model))
    whole = model.name_logprobs(batch, NAMES)
    monkeypatch.setattr(generation, "ROWS_AT_ONCE", 4)
    torch.testing.assert_close(model.name_logprobs(batch, NAMES), whole, atol=1e-5, rtol=1e-5)


def test_best_names_are_the_exact_maxima(tiny: Case) -> None:
    batch = tiny.model.batch(prompts(tiny))
    assert tiny.model.best_names(batch, NAMES) == tiny.model.name_logprobs(batch, NAMES).argmax(1).tolist()


def test_best_names_leave_out_what_cannot_win(monkeypatch: pytest.MonkeyPatch) -> None:
    model = case("llama").model
    scored: list[int] = []
    original = generation._scores
    monkeypatch.setattr(generation, "_scores", lambda *a: scored.append(len(a[-1])) or original(*a))
    batch = model.batch(prompts(model))
    model.best_names(batch, NAMES)
    assert 0 < sum(scored) < len(NAMES) * len(batch)


def test_first_of_two_equal_names_wins() -> None:
    model = case("llama").model
    batch = model.batch(prompts(model))
    (best, *_) = model.best_names(batch, NAMES)
    doubled = [*NAMES, NAMES[best]]
    assert model.best_names(batch, doubled)[0] == best


def test_what_cannot_be_asked_is_refused() -> None:
    model = case("llama").model
    batch = model.batch(prompts(model))
    with pytest.raises(ModelError, match="at least one token"):
        model.generate(batch, 0)
    with pytest.raises(ModelError, match="answers of 1 rows"):
        model.answer_logprobs(batch, [["France"]])
    for names in ([], ["France", ""], [" "]):
        with pytest.raises(ModelError, match="names"):
            model.best_names(batch, names)
