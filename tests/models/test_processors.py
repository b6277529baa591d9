"""Prompts with pictures are the real processor's, on every family; plain transformers is the oracle (promise X9)."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_models import SEEING, pictures, seeing
from transformers import AutoTokenizer

from twohop.errors import ModelError
from twohop.models import Model, Prompt
from twohop.models._frame import call, find_frame, render
from twohop.models._processor import load_processor

BEFORE = "Consider the country "
AFTERS = (". The", ". The capital of this country is", "\nThe name of this country is")
NAMES = ["France", "Saint Lucia", "United States", "Kenya"]
WRITTEN = 6


@pytest.fixture(scope="module", params=SEEING)
def model(request: pytest.FixtureRequest) -> Model:
    torch.set_num_threads(1)
    return seeing(request.param)


def processed(model: Model, after: str, picture: Image.Image) -> dict[str, Any]:
    """What the processor itself makes of the text and the picture."""
    assert model.eyes is not None
    text = BEFORE.removesuffix(" ") + model.tokens.frame.placeholder + after
    out = dict(call(model.eyes.processor, text, picture))
    out.pop("labels", None)
    return {k: v.double() if v.is_floating_point() else v for k, v in out.items()}


def longer(model: Model, inputs: Mapping[str, Any], ids: list[int]) -> dict[str, Any]:
    """The same inputs with an answer's tokens behind them."""
    more = torch.tensor([ids])
    out = {**inputs, "input_ids": torch.cat([inputs["input_ids"], more], 1)}
    out["attention_mask"] = torch.ones_like(out["input_ids"])
    for key in ("token_type_ids", "mm_token_type_ids"):
        if key in out:  # an answer is PaliGemma's suffix
            value = 1 if model.card.family == "paligemma" else 0
            out[key] = torch.cat([out[key], torch.full_like(more, value)], 1)
    if "cross_attention_mask" in out:
        mask = out["cross_attention_mask"]
        out["cross_attention_mask"] = torch.cat([mask, mask[:, -1:].expand(-1, len(ids), -1, -1)], 1)
    return out


def asked(model: Model, seen: list[Image.Image]) -> list[Prompt]:
    shown = model.encode_pictures(seen)
    return [Prompt(BEFORE, None, after, picture) for after, picture in zip(AFTERS, shown, strict=True)]


def test_x09_ids_and_logits_are_those_of_the_whole_processor_output(model: Model) -> None:
    seen = pictures(3)
    batch = model.batch(asked(model, seen))
    logits = model.run(batch).logits
    differ = 0.0
    for row, (after, picture) in enumerate(zip(AFTERS, seen, strict=True)):
        inputs = processed(model, after, picture)
        real = batch.attention_mask[row].bool()
        assert batch.input_ids[row][real].tolist() == inputs["input_ids"][0].tolist()
        token = model.tokens.image_token_id
        assert batch.groups["image"][row][real].tolist() == [i == token for i in inputs["input_ids"][0].tolist()]
        with torch.no_grad():
            own = model.net(**inputs).logits[0, -1]
            other = model.net(**processed(model, after, seen[row - 1])).logits[0, -1]
        torch.testing.assert_close(logits[row], own.to(logits), atol=1e-4, rtol=1e-4)
        differ = max(differ, float((own - other).abs().max()))
    assert differ > 1e-2  # or the picture would not matter


def test_x09_no_key_of_the_processor_is_left_out(model: Model) -> None:
    inputs = processed(model, AFTERS[0], pictures(1)[0])
    batch = model.batch(asked(model, pictures(3))[:1])
    consumed = {"input_ids", "attention_mask", "pixel_values", *batch.extra}
    assert model.eyes is not None
    if batch.position_ids.ndim == 3:
        consumed |= {"image_grid_thw", "mm_token_type_ids"}
    if model.eyes.crosses:
        consumed |= {"aspect_ratio_ids", "aspect_ratio_mask"}
    else:
        consumed |= set(model.eyes._tower_inputs([model.eyes._process(pictures(1)[0])]))
    assert set(inputs) <= consumed


def test_x09_unknown_key_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model = seeing("llava")
    assert model.eyes is not None
    made = model.eyes._process(pictures(1)[0])
    with pytest.raises(ModelError, match="nothing takes the processor's audio_values"):
        model.eyes._tower_inputs([type(made)(made.text, {**made.inputs, "audio_values": torch.zeros(1)})])


def test_x02_greedy_answers_equal_transformers_own_generation(model: Model) -> None:
    seen = pictures(3)
    said = model.generate(model.batch(asked(model, seen)), WRITTEN)
    stop = sorted(model.stop_ids)
    for text, after, picture in zip(said, AFTERS, seen, strict=True):
        inputs = processed(model, after, picture)
        with torch.no_grad():
            out = model.net.generate(
                **inputs, max_new_tokens=WRITTEN, do_sample=False, eos_token_id=stop, pad_token_id=model.pad_id
            )
        ids = out[0, inputs["input_ids"].shape[1] :].tolist()
        assert text == model.tokens.decode(ids).strip().split("\n")[0].strip()


def test_x02_name_logprobs_equal_plain_passes(model: Model) -> None:
    seen = pictures(3)
    found = model.name_logprobs(model.batch(asked(model, seen)), NAMES)
    for row, (after, picture) in enumerate(zip(AFTERS, seen, strict=True)):
        inputs = processed(model, after, picture)
        for column, name in enumerate(NAMES):
            ids = model.tokens.answer_ids(name)
            with torch.no_grad():
                logits = model.net(**longer(model, inputs, ids)).logits[0]
            logprobs = logits[-len(ids) - 1 : -1].log_softmax(-1)[range(len(ids)), ids].sum()
            assert float(found[row, column]) == pytest.approx(float(logprobs), abs=1e-3, rel=1e-4)


def test_text_run_is_the_tokenizers_own(model: Model) -> None:
    batch = model.batch([Prompt(BEFORE, "France", ". The capital is")])
    text = f"{BEFORE}France. The capital is"
    wanted = f"{model.tokens.raw.bos_token}{text}\n" if model.card.family == "paligemma" else text
    if model.card.family == "mllama":
        wanted = f"{model.tokens.raw.bos_token}{text}"
    special = model.card.family not in ("paligemma", "mllama")
    assert batch.input_ids[0].tolist() == model.tokens.raw(wanted, add_special_tokens=special)["input_ids"]


# --- chat -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [f for f in SEEING if f != "paligemma"])
def test_chat_prompt_is_what_the_template_makes(family: str) -> None:
    model = seeing(family, chat=True)
    assert model.eyes is not None
    raw, frame = model.tokens.raw, model.tokens.frame
    words = {"type": "text", "text": "Where is it?"}
    shown = render(raw, model.eyes.processor, [words])
    assert shown == f"{frame.picture_head}Where is it?{frame.picture_tail}"
    picture = pictures(1)[0]
    batch = model.batch([Prompt("Where is ", None, "?", model.encode_pictures([picture])[0])])
    text = f"{frame.picture_head}Where is{frame.placeholder}?{frame.picture_tail}"
    inputs = call(model.eyes.processor, text, picture)
    ids = inputs["input_ids"][0].tolist()
    if raw.bos_token and text.startswith(raw.bos_token) and ids[:2] == [raw.bos_token_id] * 2:
        ids = ids[1:]  # the tokenizer's own beside the template's
    assert batch.input_ids[0].tolist() == ids
    assert batch.groups["last"][0, -1]
    assert model.tokens.frame.lead == ("" if frame.tail[-1].isspace() else " ")
    with torch.no_grad():
        own = model.net(**{k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}).logits[0, -1]
    if ids == inputs["input_ids"][0].tolist():
        torch.testing.assert_close(model.run(batch).logits[0], own, atol=1e-4, rtol=1e-4)


def test_missing_chat_template_is_an_error() -> None:
    raw = seeing("llava").tokens.raw
    raw.chat_template = None
    with pytest.raises(ModelError, match="no chat template") as error:
        find_frame(raw, None, chat=True)
    assert "prompt: plain" in error.value.todo


def test_tokenizer_without_the_image_token_is_an_error(tmp_path: Any) -> None:
    processor = load_processor(__import__("tiny_models").folder_of("llava"))
    processor.tokenizer = AutoTokenizer.from_pretrained(__import__("tiny_models").folder_of("llama", "backbone"))
    processor.image_token = "<picture>"
    with pytest.raises(ModelError, match="no image token '<picture>'"):
        find_frame(processor.tokenizer, processor)


def test_another_number_of_image_tokens_is_an_error() -> None:
    model = seeing("llava_next")
    assert model.n_image_tokens == 10
    with pytest.raises(ModelError, match=r"not \(10, 32\)"):
        model.encode_pictures([Image.new("RGB", (64, 64))])


def test_answer_ids_follow_a_text() -> None:
    """Tokenizers that write a space of their own before everything must not write it between prompt and answer."""

    class Spaced:
        bos_token = None

        def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
            return {"input_ids": [ord(c) for c in "_" + text.replace(" ", "_")]}

    from twohop.models import Tokens

    tokens = Tokens(Spaced())
    assert tokens.answer_ids("Rome") == [ord(c) for c in "_Rome"]
    assert tokens.tokenize(" Rome") == [ord(c) for c in "__Rome"]
