import pytest
import torch
from tiny_parts import D_VISION, NAMES, write_parts
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from twohop.errors import ModelError
from twohop.models import _lora, _native, _replay, _training
from twohop.models._projector import TrainingPlan, TrainingSet


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def data():
    draw = torch.Generator().manual_seed(1)
    entity = torch.randn(len(NAMES), 1, 16, D_VISION, generator=draw)
    noise = 0.1 * torch.randn(len(NAMES), 2, 16, D_VISION, generator=draw)
    return TrainingSet((2 * (entity + noise)).half(), NAMES)


def plan(steps=12, replay=1.0, lr=5e-3, warm_up=3):
    warm = TrainingPlan("early", steps=warm_up, batch=4, lr=5e-3, seed=0, align_every=warm_up + 1)
    return _native.NativePlan(warm, steps, batch=4, lr=lr, rank=4, replay_batch=8, replay=replay, seed=0)


def language(folders):
    net = AutoModelForCausalLM.from_pretrained(folders[0], dtype=torch.float32).eval()
    return net, AutoTokenizer.from_pretrained(folders[0])


def trained(folders, data, a_plan, **more):
    net, tokenizer = language(folders)
    return net, _native.train_native(net.model, net.lm_head, tokenizer, data, a_plan, **more)


@pytest.fixture(scope="module")
def after(folders, data):
    return trained(folders, data, plan())


def test_loss_falls_and_the_language_model_stays(folders, after):
    net, result = after
    assert sum(result.losses[-5:]) < 0.95 * sum(result.losses[:5])
    fresh, _ = language(folders)
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in fresh.state_dict().items())


def test_merged_weights_are_the_adapters_function(folders):
    net, _ = language(folders)
    adapters = _lora.Adapters(net.model, 4, 0)
    with torch.no_grad():
        for b in adapters.b:
            b.normal_(std=0.2)
        ids = torch.arange(4, 16)[None]
        plain = net(input_ids=ids).logits
        with adapters.attached(net.model):
            beside = net(input_ids=ids).logits
        assert torch.equal(plain, net(input_ids=ids).logits)  # the hooks are gone
        _lora.merge(net.model, adapters.tensors())
        merged = net(input_ids=ids).logits
    assert float((plain - beside).abs().max()) > 0.1
    assert torch.allclose(beside, merged, atol=1e-4)


def test_adapters_change_nothing_at_first_and_leave_after_an_exception(folders):
    net, _ = language(folders)
    adapters, ids = _lora.Adapters(net.model, 4, 0), torch.arange(4, 16)[None]
    with torch.no_grad(), adapters.attached(net.model):
        beside = net(input_ids=ids).logits
    assert torch.equal(beside, net(input_ids=ids).logits)
    with pytest.raises(KeyError), adapters.attached(net.model):
        raise KeyError
    assert not any(layer._forward_hooks for layer in _lora.linear_layers(net.model).values())


def test_every_linear_layer_of_the_decoder_learns(folders, after):
    net, result = after
    updates = _native.split(result.projector)[1]
    names = {name.removeprefix(_lora.PREFIX).removesuffix(".b") for name in updates if name.endswith(".b")}
    assert names == set(_lora.linear_layers(net.model))
    assert all(float(value.float().abs().max()) > 0 for name, value in updates.items() if name.endswith(".b"))
    assert all(value.dtype == torch.float16 for value in updates.values())


def test_replay_keeps_the_language_models_words(folders, data):
    """The same training with and without replay, on texts that neither saw."""
    with_replay, without = (
        _native.native_drift(folders[0], trained(folders, data, plan(30, replay=r))[1].projector, NAMES)
        for r in (3.0, 0.0)
    )
    assert 0 < with_replay["kl"] < 0.7 * without["kl"]
    assert with_replay["agreement"] > without["agreement"]


def test_drift_of_a_model_from_itself_is_nothing(folders):
    net, tokenizer = language(folders)
    texts = _replay.held_out_texts(NAMES)
    drift = _replay.text_drift(net.model, net.model, net.lm_head, tokenizer, texts)
    assert (drift["kl"], drift["agreement"]) == (0, 1)
    assert drift["tokens"] == sum(len(tokenizer(text)["input_ids"]) for text in texts)


def test_divergence_is_the_textbooks():
    teacher, student = torch.randn(2, 3, 7)
    p, q = teacher.softmax(-1), student.softmax(-1)
    assert torch.allclose(_replay.divergence(teacher, student), (p * (p / q).log()).sum(-1), atol=1e-6)


def test_replay_logits_do_not_depend_on_the_padding(folders):
    net, tokenizer = language(folders)
    replay = _replay.Replay.of(tokenizer, ["Peru is far", "a map of Mali and its"])
    with torch.no_grad():
        both = replay.logits(net.model, net.lm_head, torch.tensor([0, 1]))
        alone = replay.logits(net.model, net.lm_head, torch.tensor([0]))
    assert torch.allclose(both[: len(alone)], alone, atol=1e-5)


def test_held_out_texts_are_no_training_texts():
    assert not set(_replay.training_texts(NAMES)) & set(_replay.held_out_texts(NAMES))


@pytest.mark.parametrize("word", ["capital", "continent", "language", "currency", "located"])
def test_no_text_states_or_asks_for_a_fact(word):
    assert not [t for t in (*_replay.NAMED_TEXTS, *_replay.OPEN_TEXTS, *_replay.SENTENCES) if word in t.lower()]


def test_warm_up_is_folded_back_for_standardised_features(folders, data):
    """With one step of no length the projector is the warm-up's."""
    result = trained(folders, data, plan(1, lr=1e-12))[1]
    net, tokenizer = language(folders)
    warm = _native._projector.train(net.model, net.lm_head, tokenizer, data, plan().warm_up).projector
    found = _native.split(result.projector)[0]
    assert all(torch.allclose(found[name], value, atol=1e-5) for name, value in warm.items())


def test_same_seed_same_bytes_and_a_killed_training_goes_on_to_them(folders, data, tmp_path, monkeypatch):
    monkeypatch.setattr(_training, "CHECKPOINT_EVERY", 2)
    whole = trained(folders, data, plan(5))[1]

    def killed(step, loss):
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(folders, data, plan(5), checkpoint=tmp_path / "c", progress=killed)
    steps = []
    rest = trained(folders, data, plan(5), checkpoint=tmp_path / "c", progress=lambda step, _: steps.append(step))[1]
    assert steps == [2, 3, 4]
    assert rest.losses == whole.losses
    assert all(torch.equal(rest.projector[name], value) for name, value in whole.projector.items())


def test_folder_loads_plainly_with_other_language_weights(folders, after, tmp_path):
    _, result = after
    _native.assemble_native(*folders, result.projector, tmp_path / "vlm")
    vlm = AutoModelForImageTextToText.from_pretrained(tmp_path / "vlm").eval()
    assert type(vlm).__name__ == "LlavaForConditionalGeneration"
    assert type(AutoProcessor.from_pretrained(tmp_path / "vlm")).__name__ == "LlavaProcessor"
    net, _ = language(folders)
    assert torch.equal(vlm.lm_head.weight, net.lm_head.weight)
    _lora.merge(net.model, _native.split(result.projector)[1])
    ids = torch.arange(4, 16)[None]
    with torch.no_grad():
        assert torch.equal(vlm(input_ids=ids).logits, net(input_ids=ids).logits)
    fresh, _ = language(folders)
    layers, old = _lora.linear_layers(vlm.model.language_model), _lora.linear_layers(fresh.model)
    assert not [name for name in layers if torch.equal(layers[name].weight, old[name].weight)]


def test_updates_that_do_not_fit_are_refused(folders, after):
    net, _ = language(folders)
    updates = _native.split(after[1].projector)[1]
    name = next(iter(updates))
    with pytest.raises(ModelError, match="do not fit"):
        _lora.merge(net.model, {k: v for k, v in updates.items() if k != name})
    with pytest.raises(ModelError, match="factors"):
        _lora.merge(net.model, {**updates, name: torch.zeros(4, 5)})
