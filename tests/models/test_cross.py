import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_parts import D_VISION, IMAGE_PX, NAMES, write_parts
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPVisionModel,
)

from twohop.errors import ModelError
from twohop.models import _cross, _embedded, _mllama, _training
from twohop.models._projector import TrainingSet

LAYERS = (1, 4)
TEMPLATE = "The country is {entity}. It is called"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def pictures():
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 255, (80, 80, 3), dtype=np.uint8)) for _ in range(4)]


@pytest.fixture(scope="module")
def data():
    draw = torch.Generator().manual_seed(1)
    entity = torch.randn(len(NAMES), 1, 17, D_VISION, generator=draw)
    noise = 0.1 * torch.randn(len(NAMES), 2, 17, D_VISION, generator=draw)
    return TrainingSet((2 * (entity + noise)).half(), NAMES)


def plan(steps=20, answers=1.0):
    return _cross.CrossPlan(
        LAYERS, steps=steps, batch=4, lr=5e-3, gate_speed=10.0, answers=answers, answer_tokens=4, seed=0
    )


def trained(folders, data, a_plan, **more):
    net, processor = _mllama.crossed(*folders, a_plan.layers)
    return net, _cross.train_cross(net, processor.tokenizer, data, a_plan, **more)


@pytest.fixture(scope="module")
def after(folders, data):
    return trained(folders, data, plan())


@pytest.fixture(scope="module")
def folder(folders, after, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "vlm"
    _mllama.assemble_cross(*folders, after[1].projector, out)
    return out


# --- the tower ------------------------------------------------------------------------------------------------------


def features_of(tower, pictures):
    """Features of CLIP's class and of the converted tower, from their own image processors."""
    size = tower.config.image_size
    pixels = _embedded.image_processor(size)(images=pictures, return_tensors="pt")["pixel_values"]
    inputs = _mllama.image_processor(size)(images=[[p] for p in pictures], return_tensors="pt")
    assert torch.equal(pixels, inputs["pixel_values"][:, 0, 0])
    inputs.pop("num_tiles")
    with torch.no_grad():
        clip = tower(pixels).last_hidden_state
        new = _mllama.converted_tower(tower)(**inputs).last_hidden_state
    return clip - clip.mean(-1, keepdim=True), _mllama.clip_features(new, tower.config)[:, 0, 0], new


def test_converted_tower_gives_clips_features(folders, pictures):
    tower = CLIPVisionModel.from_pretrained(folders[1]).eval()
    clip, new, _ = features_of(tower, pictures)
    assert float((clip - new).norm() / clip.norm()) < 2e-3
    assert float(clip.std()) > 0.5


def test_spare_dimensions_of_real_patches_stay_empty(folders, pictures):
    tower = CLIPVisionModel.from_pretrained(folders[1]).eval()
    *_, output = features_of(tower, pictures)
    width = output.shape[-1] // 2
    assert float(output[..., width + D_VISION :].abs().max()) == 0
    assert float(output[..., D_VISION:width].abs().max()) < 1e-5


def test_padding_would_be_attended_to_without_the_marker(folders, pictures):
    """What the marker layer is for: without its mark the features are others."""
    tower = CLIPVisionModel.from_pretrained(folders[1]).eval()
    clip, *_ = features_of(tower, pictures)
    model = _mllama.converted_tower(tower)
    with torch.no_grad():
        model.transformer.layers[0].mlp.fc1.weight[0] = 0
        model.transformer.layers[0].mlp.fc1.bias[0] = 0
    inputs = _mllama.image_processor(IMAGE_PX)(images=[[p] for p in pictures], return_tensors="pt")
    inputs.pop("num_tiles")
    with torch.no_grad():
        new = _mllama.clip_features(model(**inputs).last_hidden_state, tower.config)[:, 0, 0]
    assert float((clip - new).norm() / clip.norm()) > 0.05


# --- the language model ---------------------------------------------------------------------------------------------


def test_text_only_logits_are_the_backbones_bit_by_bit(folders, folder):
    backbone = AutoModelForCausalLM.from_pretrained(folders[0]).eval()
    vlm = AutoModelForImageTextToText.from_pretrained(folder).eval()
    ids = torch.arange(4, 24)[None]
    with torch.no_grad():
        assert torch.equal(vlm(input_ids=ids).logits, backbone(input_ids=ids).logits)


def test_gates_open_in_training_and_nothing_else_changes(folders, after):
    net, result = after
    fresh, _ = _mllama.crossed(*folders, LAYERS)
    gates = _cross.gates(result.projector)
    assert len(gates) == 2 * len(LAYERS)
    assert all(abs(gate) > 0.005 for gate in gates.values())
    new = {f"model.language_model.layers.{i}." for i in LAYERS} | {"model.multi_modal_projector."}
    for name, value in fresh.state_dict().items():
        if not any(name.startswith(prefix) for prefix in new):
            assert torch.equal(value, net.state_dict()[name]), name


def test_closed_gates_are_the_backbone_whatever_is_shown(folders, pictures):
    net, processor = _mllama.crossed(*folders, LAYERS)
    _cross._initialise(_mllama.trained_modules(net), 0)
    text = TEMPLATE.replace("{entity}", _mllama.IMAGE_TOKEN)
    inputs = processor(images=[[pictures[0]]], text=[text], return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(net(**inputs).logits, net(input_ids=inputs["input_ids"]).logits)


def test_loss_falls_and_depends_on_the_picture(folders, data, after):
    net, result = after
    turns = 2 * len(_cross.CAPTION_PROMPTS)
    assert sum(result.losses[-turns:]) < 0.9 * sum(result.losses[:turns])
    ids = torch.tensor([[5, net.config.image_token_id, 6, 7]])
    states = torch.randn(2, 1, 17, net.config.text_config.hidden_size)
    one, two = (_cross.seen(net, ids, s) for s in states)
    assert not torch.allclose(one[:, 1:], two[:, 1:])
    # the class closes only the feed-forward part to tokens before the picture: should it change, training must follow
    assert not torch.allclose(one[:, :1], two[:, :1])


def test_trained_projector_takes_the_towers_raw_output(folders, data, after):
    """The standardisation is folded: raw, centred features through the saved projector are what training saw."""
    net, result = after
    d_wide = net.config.vision_config.hidden_size
    raw = _cross._centred(data.features)[:, 0].float()
    mean, std = _cross.moments(_cross._centred(data.features))
    weight = result.projector["projector.weight"]
    unfolded = weight[:, d_wide : d_wide + D_VISION] * std
    wanted = (
        (raw - mean) / std @ unfolded.T
        + result.projector["projector.bias"]
        + weight[:, d_wide : d_wide + D_VISION] @ mean
    )
    found = net.model.multi_modal_projector(_cross._placed(raw, d_wide))
    assert torch.allclose(wanted, found, atol=1e-4)
    assert float(weight[:, :d_wide].abs().max()) == 0


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


# --- the folder -----------------------------------------------------------------------------------------------------


def test_folder_loads_plainly_and_answers_as_in_training(folder, after, pictures):
    net, _ = after
    vlm, processor = AutoModelForImageTextToText.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    assert type(vlm).__name__ == "MllamaForConditionalGeneration"
    assert type(processor).__name__ == "MllamaProcessor"
    text = TEMPLATE.replace("{entity}", _mllama.IMAGE_TOKEN)
    inputs = processor(images=[[p] for p in pictures], text=[text] * 4, return_tensors="pt")
    assert set(inputs) >= {"pixel_values", "aspect_ratio_ids", "aspect_ratio_mask", "cross_attention_mask"}
    with torch.no_grad():
        assert torch.equal(vlm(**inputs).logits, net.eval()(**inputs).logits)
        assert vlm.generate(**inputs, max_new_tokens=3).shape[1] > inputs["input_ids"].shape[1]


def test_processor_writes_the_prompt_that_training_saw(folder, after):
    net, _ = after
    processor = AutoProcessor.from_pretrained(folder)
    text = TEMPLATE.replace("{entity}", _mllama.IMAGE_TOKEN)
    ids = processor(images=[[Image.new("RGB", (8, 8))]], text=[text], return_tensors="pt")
    assert ids["input_ids"][0].tolist() == _cross.prompt_ids(processor.tokenizer, net.config, TEMPLATE, True)
    at = ids["input_ids"][0].tolist().index(net.config.image_token_id)
    assert ids["cross_attention_mask"][0, :, 0, 0].tolist() == [int(i >= at) for i in range(len(ids["input_ids"][0]))]


def test_tokens_are_renamed_and_keep_their_ids(folders, folder):
    before = json.loads((folders[0] / "tokenizer.json").read_text())["model"]["vocab"]
    after = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    assert {old: before[old] for old in _mllama.RENAMED} == {o: after[n] for o, n in _mllama.RENAMED.items()}
    assert {w: i for w, i in before.items() if w not in _mllama.RENAMED} == {
        w: i for w, i in after.items() if w not in _mllama.RENAMED.values()
    }


@pytest.mark.parametrize("layers", [(), (4, 1), (1, 1), (1, 9)])
def test_layers_that_do_not_fit_are_refused(folders, layers):
    with pytest.raises(ModelError, match="cross-attention layers"):
        _mllama.crossed(*folders, layers)


def test_file_that_does_not_fit_is_refused(folders, after, tmp_path):
    parts = dict(after[1].projector)
    parts.pop("projector.bias")
    with pytest.raises(ModelError, match=r"projector\.bias"):
        _mllama.assemble_cross(*folders, parts, tmp_path / "vlm")
    with pytest.raises(ModelError, match="no cross-attention layers"):
        _mllama.assemble_cross(*folders, {"linear_1.weight": torch.zeros(1)}, tmp_path / "vlm")
    assert not (tmp_path / "vlm").exists()


# --- answers --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def answering(folders):
    net, processor = _mllama.crossed(*folders, LAYERS)
    return _cross._Answers(net, processor.tokenizer, NAMES, 4), AutoModelForCausalLM.from_pretrained(folders[0]).eval()


@pytest.mark.parametrize("first", [0, 1])
def test_answers_are_what_the_backbone_says_with_the_name_in_place(answering, first):
    answers, backbone = answering
    text = _cross.OPEN_TEXTS[0]
    said, logits = answers.said(text, first, NAMES)
    bos = [answers.net.config.text_config.bos_token_id] * first
    for i, name in enumerate(NAMES):
        ids = torch.tensor([bos + _cross.ids_of(answers.tokenizer, text.format(entity=name))])
        out = backbone.generate(
            ids, max_new_tokens=4, min_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
        assert torch.allclose(torch.stack(out.logits, 1)[0], logits[i], atol=1e-4)
        assert torch.equal(logits[i].argmax(-1), said[i])


def test_a_model_that_already_says_so_loses_nothing(answering):
    """With closed gates and the name's own text there is no divergence: the last positions are the answer's."""
    answers, backbone = answering
    said, logits = answers.said("{entity}\nIt is", 0, NAMES[:1])
    prompt = torch.tensor([_cross.ids_of(answers.tokenizer, f"{NAMES[0]}\nIt is")])
    with torch.no_grad():
        own = backbone(torch.cat([prompt, said[:, :-1]], 1)).logits[:, -4:]
    assert float(_cross.divergence(logits.flatten(0, 1), own.flatten(0, 1)).max()) < 1e-5


def test_answers_are_learnt_from_the_picture(folders, data, after):
    """Training with answers leaves less divergence than training on captions alone."""

    def left(net):
        answers = _cross._Answers(net, _mllama.crossed(*folders, LAYERS)[1].tokenizer, NAMES, 4)
        d_wide = net.config.vision_config.hidden_size
        raw = _cross._centred(data.features)[:, 0].float()
        states = net.model.multi_modal_projector(_cross._placed(raw, d_wide))
        with torch.no_grad():
            return sum(float(answers(states, torch.arange(len(NAMES)), step)) for step in range(6))

    without, _ = trained(folders, data, plan(answers=0.0))
    assert left(after[0]) < left(without)
