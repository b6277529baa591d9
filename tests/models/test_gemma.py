"""Recipe `gemma`: CLIP's tower as SigLIP's class has it, Gemma's own class round it, its projector's training."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import folder_of
from tiny_parts import D_VISION, IMAGE_PX, NAMES, write_tower
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, CLIPVisionModel

from twohop.config import ModelEntry, PrepareModel
from twohop.errors import ModelError
from twohop.models import _gemma, _train, _training
from twohop.models._embedded import Payload, image_processor
from twohop.models._projector import TrainingPlan, TrainingSet, moments

N_TOKENS = (IMAGE_PX // 16) ** 2


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A Gemma with an unused token, and a tower."""
    top = tmp_path_factory.mktemp("parts")
    source = folder_of("gemma3_text", "backbone")
    backbone = top / "backbone"
    backbone.mkdir()
    for file in source.iterdir():
        text = file.read_bytes()
        if file.name.startswith("tokenizer"):
            text = text.replace(b"<start_of_turn>", b"<unused0>").replace(b"<end_of_turn>", b"<start_of_image>")
            text = text.replace(b"<pad>", b"<end_of_image>")
        (backbone / file.name).write_bytes(text)
    write_tower(top / "tower", IMAGE_PX)
    return backbone, top / "tower"


@pytest.fixture(scope="module")
def pictures():
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 255, (80, 80, 3), dtype=np.uint8)) for _ in range(4)]


@pytest.fixture(scope="module")
def data():
    draw = torch.Generator().manual_seed(1)
    entity = torch.randn(len(NAMES), 1, N_TOKENS, D_VISION, generator=draw)
    noise = 0.1 * torch.randn(len(NAMES), 2, N_TOKENS, D_VISION, generator=draw)
    return TrainingSet(normed(entity + noise).half(), NAMES)


def normed(features):
    """Mean 0 and variance 1 per token, as the tower's are."""
    return torch.nn.functional.layer_norm(features, features.shape[-1:], eps=0)


def plan(steps=80):
    return TrainingPlan("caption", steps=steps, batch=4, lr=5e-2, seed=0)


def trained(folders, data, a_plan, **more):
    net, processor = _gemma.gemma(*folders)
    return net, _gemma.train_gemma(net, processor, data, a_plan, **more)


@pytest.fixture(scope="module")
def after(folders, data):
    return trained(folders, data, plan())


@pytest.fixture(scope="module")
def folder(folders, after, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "vlm"
    _gemma.assemble_gemma(*folders, after[1].projector, out)
    return out


# --- the tower ------------------------------------------------------------------------------------------------------


def without_class_token(tower, pixels):
    """CLIP's own layers on the patches alone, each token to mean 0 and variance 1."""
    states = tower.pre_layrnorm(tower.embeddings(pixels)[:, 1:])
    return normed(tower.encoder(inputs_embeds=states).last_hidden_state)


def test_converted_tower_gives_clips_features_without_the_class_token(folders, pictures):
    tower = CLIPVisionModel.from_pretrained(folders[1]).eval()
    pixels = image_processor(IMAGE_PX)(images=pictures, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        wanted = without_class_token(tower, pixels)
        found = _gemma.converted_tower(tower)(pixels).last_hidden_state
    assert torch.equal(found[..., :D_VISION], torch.ones_like(wanted))
    assert float((found[..., D_VISION:] - wanted).norm() / wanted.norm()) < 1e-3
    assert float((wanted[0] - wanted[1]).norm() / wanted[0].norm()) > 0.1


# --- the model ------------------------------------------------------------------------------------------------------


def test_text_only_logits_are_the_backbones_bit_by_bit(folders, folder):
    backbone = AutoModelForCausalLM.from_pretrained(folders[0]).eval()
    vlm = AutoModelForImageTextToText.from_pretrained(folder).eval()
    ids = torch.arange(4, 24)[None]
    with torch.no_grad():
        assert torch.equal(vlm(input_ids=ids).logits, backbone(input_ids=ids).logits)


def test_folder_loads_plainly_and_answers_as_in_training(folder, after, pictures):
    net, _ = after
    vlm, processor = AutoModelForImageTextToText.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    assert type(vlm).__name__ == "Gemma3ForConditionalGeneration"
    assert type(processor).__name__ == "Gemma3Processor"
    text = "The country is <start_of_image>. It is called"
    inputs = processor(images=[[p] for p in pictures], text=[text] * 4, return_tensors="pt")
    assert int((inputs["input_ids"] == processor.tokenizer.image_token_id).sum()) == 4 * N_TOKENS
    assert torch.equal(inputs["token_type_ids"] == 1, inputs["input_ids"] == processor.tokenizer.image_token_id)
    with torch.no_grad():
        logits = vlm(**inputs).logits
        assert torch.equal(logits, net(**inputs).logits)
        image = vlm.model.get_image_features(inputs["pixel_values"]).pooler_output
        hidden = _gemma.seen(net, inputs["input_ids"], inputs["token_type_ids"], image)
    assert torch.allclose(vlm.lm_head(hidden), logits, atol=1e-4)
    assert not torch.allclose(logits[0, -1], logits[1, -1], atol=1e-3)


def test_model_in_memory_is_measured_with_as_many_image_tokens_as_its_picture_has(folders, after, monkeypatch):
    monkeypatch.setattr(_train, "language_folder", lambda *_: folders[0])
    monkeypatch.setattr(_train, "tower_folder", lambda *_: folders[1])
    source = {"kind": "assembled", "tower": "clip-b16", "projector": "p.safetensors", "recipe": "gemma"}
    entry = ModelEntry.model_validate(
        {"role": "vlm", "family": "gemma3", "backbone": "b", "source": source, "licence": "none"}
    )
    prepare = PrepareModel(image_size=IMAGE_PX, tower_layers=9)
    model = _train.assembled_model("g", entry, prepare, after[1].projector)
    assert len(model.encode_pictures([Image.new("RGB", (80, 80))])[0].features) == N_TOKENS


def test_image_tokens_see_each_other(folder, pictures):
    """What the class is for: without the token types the same picture gives other numbers."""
    vlm, processor = AutoModelForImageTextToText.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    inputs = processor(images=[[pictures[0]]], text=["<start_of_image> It is"], return_tensors="pt")
    image = vlm.model.get_image_features(inputs["pixel_values"]).pooler_output
    with torch.no_grad():
        one = _gemma.seen(vlm, inputs["input_ids"], inputs["token_type_ids"], image)
        embeds = vlm.get_input_embeddings()(inputs["input_ids"]).masked_scatter(
            inputs["token_type_ids"][..., None].bool(), image
        )
        causal = vlm.model.language_model(inputs_embeds=embeds).last_hidden_state
    assert not torch.allclose(one, causal, atol=1e-3)


# --- the training ---------------------------------------------------------------------------------------------------


def test_loss_falls_and_only_the_projector_changes(folders, after):
    net, result = after
    turns = len(_gemma.CAPTION_PROMPTS)
    assert sum(result.losses[-turns:]) < 0.9 * sum(result.losses[:turns])
    fresh, _ = _gemma.gemma(*folders)
    for name, value in fresh.state_dict().items():
        if "multi_modal_projector" not in name:
            assert torch.equal(value, net.state_dict()[name]), name


def test_trained_projector_takes_the_towers_raw_output(data, after):
    """Standardisation and bias are folded into the one matrix of the class."""
    linear = torch.nn.Linear(D_VISION, 32)
    mean, std = moments(data.features)
    raw = data.features[:, 0].float()
    tensors = _gemma.folded(linear, mean, std)
    module = after[0].model.multi_modal_projector
    before = {name: value.clone() for name, value in module.state_dict().items()}
    module.load_state_dict(tensors)
    found = module(torch.cat([torch.ones_like(raw), raw], -1))
    module.load_state_dict(before)
    assert torch.allclose(found, linear((raw - mean) / std), atol=1e-3)


def test_same_seed_same_bytes_and_a_killed_training_goes_on_to_them(folders, data, tmp_path, monkeypatch):
    monkeypatch.setattr(_training, "CHECKPOINT_EVERY", 2)
    _, whole = trained(folders, data, plan(5))

    def killed(step, loss):
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(folders, data, plan(5), checkpoint=tmp_path / "c", progress=killed)
    steps = []
    _, rest = trained(folders, data, plan(5), checkpoint=tmp_path / "c", progress=lambda step, _: steps.append(step))
    assert steps == [2, 3, 4]
    assert rest.losses == whole.losses
    assert all(torch.equal(rest.projector[name], value) for name, value in whole.projector.items())


def test_projector_of_another_recipe_is_refused(folders, tmp_path):
    with pytest.raises(ModelError, match="the model needs"):
        _gemma.assemble_gemma(*folders, {"linear_1.weight": torch.zeros(1)}, tmp_path / "vlm")
    assert not (tmp_path / "vlm").exists()


# --- the packages ---------------------------------------------------------------------------------------------------


def test_without_its_packages_it_says_how_to_install_and_under_which_licence(monkeypatch, tmp_path):
    monkeypatch.setattr(_gemma, "PARTS", (Payload("no_such_package_of_gemma", "data/x", "0"),))
    with pytest.raises(ModelError, match=r"requirements/gemma\.txt \(its licence: Gemma Terms of Use\)"):
        _gemma.convert_gemma(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_m05_altered_piece_is_refused(monkeypatch, tmp_path):
    (tmp_path / "piece_of_gemma.py").write_text("")
    (tmp_path / "part").write_bytes(b"other bytes")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(_gemma, "PARTS", (Payload("piece_of_gemma", "part", "0" * 64),))
    with pytest.raises(ModelError, match="altered file"):
        _gemma.convert_gemma(tmp_path / "out")
