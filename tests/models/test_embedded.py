import json

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from twohop.errors import ModelError
from twohop.models import _embedded
from twohop.models._embedded import Payload, assemble_llava, find_payload, new_folder, resized_positions, tower_config

D_MODEL, D_VISION = 32, 24
DOT, LETTER = 5, 27
"""Ids of "." and "t" in the tiny vocabulary."""


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A tiny backbone folder with SmolLM2's spare token, a tiny tower folder, a projector."""
    top = tmp_path_factory.mktemp("parts")
    torch.manual_seed(0)
    words = ["<|im_end|>", "<gh_stars>", "The", "country", "is", ".", "Ġ", "Chad", *(chr(i) for i in range(97, 123))]
    raw = Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, [], unk_token="<|im_end|>"))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in words[:2]])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|im_end|>")
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    tokenizer.save_pretrained(top / "backbone")
    llama = LlamaConfig(
        vocab_size=len(words),
        hidden_size=D_MODEL,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=0,
        bos_token_id=None,
    )
    LlamaForCausalLM(llama).save_pretrained(top / "backbone")
    clip = CLIPVisionConfig(
        hidden_size=D_VISION,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
        hidden_act="quick_gelu",
    )
    CLIPVisionModel(clip).save_pretrained(top / "tower")
    projector = {
        "linear_1.weight": torch.randn(D_MODEL, D_VISION),
        "linear_1.bias": torch.randn(D_MODEL),
        "linear_2.weight": torch.randn(D_MODEL, D_MODEL),
        "linear_2.bias": torch.randn(D_MODEL),
    }
    assemble_llava(top / "backbone", top / "tower", projector, top / "vlm")
    return top, projector


@pytest.fixture(scope="module")
def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8))


def test_assembled_folder_loads_with_plain_from_pretrained(parts):
    top, projector = parts
    vlm = AutoModelForImageTextToText.from_pretrained(top / "vlm")
    assert type(vlm).__name__ == "LlavaForConditionalGeneration"
    found = vlm.model.multi_modal_projector.state_dict()
    assert all(torch.equal(found[name], value) for name, value in projector.items())


def test_backbone_is_bit_identical(parts):
    top, _ = parts
    backbone = LlamaForCausalLM.from_pretrained(top / "backbone")
    vlm = AutoModelForImageTextToText.from_pretrained(top / "vlm")
    mine, theirs = vlm.model.language_model.state_dict(), backbone.model.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    ids = torch.tensor([[2, 3, 4, 5]])
    with torch.no_grad():
        assert torch.equal(vlm(input_ids=ids).logits, backbone(input_ids=ids).logits)


def test_processor_gives_one_token_per_patch_and_swallows_the_space(parts, picture):
    top, _ = parts
    processor = AutoProcessor.from_pretrained(top / "vlm", backend="pil")
    made = processor(images=picture, text="t <image>.", return_tensors="pt")
    image_id = processor.image_token_id
    assert image_id == 1
    assert made["input_ids"].tolist() == [[LETTER, *[image_id] * 4, DOT]]
    assert made["pixel_values"].shape == (1, 3, 32, 32)
    assert type(processor.image_processor).__name__ == "CLIPImageProcessorPil"


def test_whole_path_from_picture_to_logits(parts, picture):
    top, projector = parts
    vlm = AutoModelForImageTextToText.from_pretrained(top / "vlm").eval()
    tower = CLIPVisionModel.from_pretrained(top / "tower").eval()
    processor = AutoProcessor.from_pretrained(top / "vlm", backend="pil")
    made = processor(images=picture, text="t <image>.", return_tensors="pt")
    with torch.no_grad():
        patches = tower(made["pixel_values"]).last_hidden_state[:, 1:]
        hidden = torch.nn.functional.gelu(patches @ projector["linear_1.weight"].T + projector["linear_1.bias"])
        image = hidden @ projector["linear_2.weight"].T + projector["linear_2.bias"]
        embed = vlm.get_input_embeddings()
        embeds = torch.cat([embed(torch.tensor([[LETTER]])), image, embed(torch.tensor([[DOT]]))], 1)
        assert torch.allclose(vlm(**made).logits, vlm(inputs_embeds=embeds).logits, atol=1e-5)


def test_projector_of_another_shape_is_refused(parts, tmp_path):
    top, projector = parts
    wrong = {**projector, "linear_2.bias": torch.zeros(3)}
    with pytest.raises(ModelError, match="the model needs"):
        assemble_llava(top / "backbone", top / "tower", wrong, tmp_path / "vlm")
    assert list(tmp_path.iterdir()) == []


def test_tokenizer_without_a_spare_token_is_refused():
    with pytest.raises(ModelError, match="no spare token"):
        _embedded.renamed_token({"added_tokens": [], "model": {"vocab": {}}})


def test_half_written_folder_never_appears(tmp_path):
    def fill():
        with new_folder(tmp_path / "model") as folder:
            (folder / "config.json").write_text("{}")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill()
    assert list(tmp_path.iterdir()) == []


def test_new_folder_replaces_the_old_one(tmp_path):
    for text in ("old", "new"):
        with new_folder(tmp_path / "model") as folder:
            (folder / f"{text}.json").write_text(json.dumps(text))
    assert [p.name for p in (tmp_path / "model").iterdir()] == ["new.json"]


def test_payload_of_an_absent_package():
    with pytest.raises(ModelError, match="not installed"):
        find_payload(Payload("no_such_package_here", "weights.bin", "0" * 64))


def test_altered_payload_is_refused():
    with pytest.raises(ModelError, match="altered file"):
        find_payload(Payload("twohop", "errors.py", "0" * 64))


def test_missing_payload_is_refused():
    with pytest.raises(ModelError, match="cannot read"):
        find_payload(Payload("twohop", "no_such_file", "0" * 64))


@pytest.mark.parametrize(("size", "layers", "match"), [(70, 9, "multiple of 16"), (64, 0, "0 tower"), (64, 13, "13")])
def test_sizes_that_do_not_fit(size, layers, match):
    with pytest.raises(ModelError, match=match):
        tower_config(size, layers)


def test_positions_keep_class_token_and_are_unchanged_at_their_own_size():
    table = torch.randn(17, 8)
    assert torch.allclose(resized_positions(table, 4), table, atol=1e-6)
    assert torch.equal(resized_positions(table, 2)[0], table[0])
    assert resized_positions(table, 2).shape == (5, 8)


def test_positions_as_transformers_interpolates_them_at_run_time():
    config = CLIPVisionConfig(hidden_size=8, num_attention_heads=2, image_size=224, patch_size=16)
    embeddings = CLIPVisionModel(config).embeddings
    table = embeddings.position_embedding.weight.detach()
    expected = embeddings.interpolate_pos_encoding(torch.zeros(1, 17, 8), 64, 64)[0].detach()
    assert torch.allclose(resized_positions(table, 4), expected, atol=1e-6)


def test_random_tower_repeats_for_a_seed():
    like = CLIPVisionModel(CLIPVisionConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1)).state_dict()
    one, two, other = (_embedded.random_like(like, seed) for seed in (0, 0, 1))
    key = "encoder.layers.0.mlp.fc1.weight"
    assert torch.equal(one[key], two[key])
    assert not torch.equal(one[key], other[key])
    assert torch.equal(one["pre_layrnorm.weight"], torch.ones(8))


def test_absent_projector_says_what_to_do(tmp_path):
    with pytest.raises(ModelError, match="train_projectors"):
        _embedded.read_projector(tmp_path / "projector.safetensors")


def test_broken_projector_says_what_to_do(tmp_path):
    (tmp_path / "p.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(ModelError, match="train_projectors"):
        _embedded.read_projector(tmp_path / "p.safetensors")


@pytest.mark.slow
def test_real_tower_fills_every_weight_of_the_whole_clip():
    weights = _embedded.dequantised_tower(find_payload(_embedded.TOWER))
    model = CLIPVisionModel(CLIPVisionConfig(patch_size=16, hidden_act="quick_gelu"))
    result = model.load_state_dict(weights, strict=True)
    assert (result.missing_keys, result.unexpected_keys) == ([], [])


@pytest.mark.slow
def test_real_backbone_has_the_chat_template_and_knows_a_capital(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _embedded.convert_backbone(tmp_path / "lm")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "lm")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "lm")
    ids = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        best = int(model(ids).logits[0, -1].argmax())
    assert tokenizer.decode([best]).strip() == "Paris"
    assert "<|im_start|>" in tokenizer.chat_template
