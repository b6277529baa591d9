"""Prompts to ids, groups and features: the same as the real processor and the model's own forward."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import PREPARE, entry, llama, llava, tokens, write_card
from transformers import AutoProcessor

from twohop.errors import ModelError
from twohop.models import GROUPS, Model, Picture, Prompt, Tokens, materialise, open_model
from twohop.models._prepare import cache_root


@pytest.fixture(scope="module")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Path]:
    folder = tmp_path_factory.mktemp("vlm")
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TWOHOP_CACHE", str(folder))
        card = materialise("vlm", entry(), PREPARE)
        return open_model(write_card(folder, card)), cache_root() / card.folder


def pictures(n: int) -> list[Image.Image]:
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 255, (40, 56, 3), dtype=np.uint8)) for _ in range(n)]


def marked(model: Model, prompt: Prompt) -> dict[str, list[str]]:
    batch = model.batch([prompt])
    words = model.tokens.raw.convert_ids_to_tokens(batch.input_ids[0])
    return {g: [w for w, m in zip(words, batch.groups[g][0], strict=True) if m] for g in GROUPS}


def test_groups_of_a_named_prompt() -> None:
    model = llama()
    found = marked(model, Prompt("Consider the country ", "Ireland", ". The capital"))
    assert found["entity"] == ["ĠIreland"]
    assert found["entity_last"] == ["ĠIreland"]
    assert found["question"] == [".", "ĠThe", "Ġcap"]
    assert found["last"] == ["ital"]
    assert found["image"] == found["image_last"] == []


@pytest.mark.parametrize("name", ["Sao Tome and Principe", "Côte d'Ivoire", "Türkiye", "日本", "St. Lucia"])
@pytest.mark.parametrize(("before", "after"), [("Consider the country ", ". The"), ("", "\nThe"), ("Country: ", "")])
def test_entity_tokens_spell_the_name(name: str, before: str, after: str) -> None:
    model = llama()
    batch = model.batch([Prompt(before, name, after)])
    ids = batch.input_ids[0][batch.groups["entity"][0]].tolist()
    assert model.tokens.decode(ids).strip() == name
    assert model.tokens.name_span_length(before, name, after) == len(ids)
    rest = batch.input_ids[0][~batch.groups["entity"][0]].tolist()
    assert model.tokens.decode(rest) == before.rstrip(" ") + after
    start, end = batch.spans[0]
    assert batch.groups["entity"][0].nonzero()[:, 0].tolist() == list(range(start, end))


def test_text_is_tokenised_as_one_string() -> None:
    model = llama()
    batch = model.batch([Prompt("Consider the country ", "France", ". The capital")])
    assert batch.input_ids[0].tolist() == model.tokenize("Consider the country France. The capital")


def test_plain_text_has_a_last_position_only() -> None:
    found = marked(llama(), Prompt("The capital of Japan is"))
    assert {g for g, words in found.items() if words} == {"last"}


def test_prompt_that_ends_with_the_name() -> None:
    found = marked(llama(), Prompt("This is ", "Ireland", ""))
    assert found["entity_last"] == found["last"] == ["ĠIreland"]
    assert found["question"] == []


@pytest.mark.parametrize("before", ["Consider the country ", "", "Country:\n", "A flag: "])
def test_picture_prompt_is_what_the_real_processor_makes(vlm: tuple[Model, Path], before: str) -> None:
    model, folder = vlm
    (picture,) = pictures(1)
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    text = before.removesuffix(" ") + "<image>" + ". The capital of this country is"
    made = processor(text=text, images=picture, return_tensors="pt")
    features = model.encode_pictures([picture])
    batch = model.batch([Prompt(before, None, ". The capital of this country is", features[0])])
    assert torch.equal(batch.input_ids, made["input_ids"])
    assert batch.groups["image"].sum() == model.n_image_tokens == 4
    own = model.net(**made).logits[:, -1]
    torch.testing.assert_close(model.run(batch).logits, own, atol=1e-5, rtol=1e-5)


def test_features_are_those_of_the_own_forward_for_many_pictures(vlm: tuple[Model, Path]) -> None:
    model, folder = vlm
    seen = pictures(20)  # more than one round of the tower
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    pixels = processor.image_processor(images=seen, return_tensors="pt")["pixel_values"]
    own = torch.stack(list(model.net.get_image_features(pixel_values=pixels, return_dict=True).pooler_output))
    found = [p.features for p in model.encode_pictures(seen)]
    torch.testing.assert_close(torch.stack([f for f in found if f is not None]), own, atol=1e-5, rtol=1e-5)
    assert model.encode_pictures([]) == []


def test_picture_of_another_mode_is_read_as_rgb(vlm: tuple[Model, Path]) -> None:
    (picture,) = pictures(1)
    grey = picture.convert("L")
    one, other = vlm[0].encode_pictures([grey, grey.convert("RGB")])
    assert one.features is not None
    torch.testing.assert_close(one.features, other.features)


def test_named_and_shown_prompts_in_one_batch(vlm: tuple[Model, Path]) -> None:
    model = vlm[0]
    features = model.encode_pictures(pictures(1))
    prompts = [Prompt("The ", "Ireland", " is"), Prompt("The ", None, " is", features[0]), Prompt("The")]
    batch = model.batch(prompts)
    logits = model.run(batch).logits
    for i, prompt in enumerate(prompts):
        torch.testing.assert_close(logits[i], model.run(model.batch([prompt])).logits[0], atol=1e-4, rtol=1e-4)
    assert batch.groups["entity"].any(1).tolist() == [True, False, False]
    assert batch.groups["image"].any(1).tolist() == [False, True, False]


def test_batches_are_sorted_by_length_and_complete() -> None:
    model = llama()
    prompts = [Prompt("The " + "country " * n) for n in (5, 1, 9, 3, 7)]
    found = list(model.batches(prompts, 2))
    assert [index for index, _ in found] == [[1, 3], [0, 4], [2]]
    assert all(len(index) == len(batch) for index, batch in found)


def test_positions_count_from_the_first_real_token() -> None:
    batch = llama().batch([Prompt("The"), Prompt("The capital of Japan is")])
    padded = int((batch.attention_mask[0] == 0).sum())
    assert padded > 0
    assert batch.position_ids[0, padded:].tolist() == [0]


def test_what_does_not_fit_is_refused() -> None:
    blind, seeing = llama(), llava()
    bad = Picture(torch.zeros(3, 32))
    with pytest.raises(ModelError, match="empty batch"):
        blind.batch([])
    with pytest.raises(ModelError, match="prompt is empty"):
        blind.batch([Prompt("")])
    with pytest.raises(ModelError, match="no tokens"):
        blind.batch([Prompt("The ", "", " is")])
    with pytest.raises(ModelError, match="takes no pictures"):
        blind.batch([Prompt("The ", None, " is", bad)])
    with pytest.raises(ModelError, match="takes no pictures"):
        blind.encode_pictures(pictures(1))
    with pytest.raises(ModelError, match="picture features"):
        seeing.batch([Prompt("The ", None, " is", bad)])
    with pytest.raises(ModelError, match="a name and a picture"):
        seeing.batch([Prompt("The ", "Ireland", " is", Picture(torch.zeros(4, 32)))])


def test_tokens_alone_need_no_model() -> None:
    alone: Tokens = tokens()
    assert alone.name_span_length("Consider the country ", "Ireland", ". The") == 1
    assert alone.tokenize(" Ireland") == alone.encode(Prompt("x ", "Ireland", "")).ids[-1:]
