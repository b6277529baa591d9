import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from twohop.errors import DataError
from twohop.models import _projector, _training
from twohop.models._projector import Projector, TrainingPlan, TrainingSet, first_layers, project, train

NAMES = ("Chad", "Peru", "Mali", "North Chad")
N_IMAGE, D_VISION, D_MODEL = 4, 12, 32


class Letters:
    """A tokenizer: one id per character."""

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
        assert not add_special_tokens
        return {"input_ids": [ord(c) % 128 for c in text]}


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128,
        initializer_range=0.2,
        hidden_size=D_MODEL,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def data() -> TrainingSet:
    draw = torch.Generator().manual_seed(1)
    entity = torch.randn(len(NAMES), 1, N_IMAGE, D_VISION, generator=draw)
    noise = 0.1 * torch.randn(len(NAMES), 2, N_IMAGE, D_VISION, generator=draw)
    return TrainingSet(3 + 2 * (entity + noise), NAMES)


def plan(recipe, steps=30, **changes):
    return TrainingPlan(recipe, steps=steps, batch=4, lr=5e-3, seed=0, align_layer=1, **changes)


def run(llama, data, a_plan, **more):
    return train(llama.model, llama.lm_head, Letters(), data, a_plan, **more)


@pytest.mark.parametrize(("recipe", "share"), [("caption", 0.95), ("early", 0.8)])
def test_loss_falls_and_language_model_stays(llama, data, recipe, share):
    before = {name: value.clone() for name, value in llama.state_dict().items()}
    seen = []
    trained = run(llama, data, plan(recipe), progress=lambda step, loss: seen.append((step, loss)))
    n_texts = len(_projector.CAPTION_PROMPTS)
    assert sum(trained.losses[-n_texts:]) < share * sum(trained.losses[:n_texts])
    assert seen == list(enumerate(trained.losses))
    assert all(torch.equal(before[name], value) for name, value in llama.state_dict().items())


def test_projector_has_the_checkpoint_names_and_takes_raw_features(llama, data):
    trained = run(llama, data, plan("early", steps=3))
    module = Projector(D_VISION, D_MODEL)
    module.load_state_dict(trained.projector)
    features = data.features[:, 0]
    assert torch.allclose(module(features), project(trained.projector, features), atol=1e-6)


def test_standardisation_is_folded_into_the_first_layer():
    torch.manual_seed(0)
    projector, features = Projector(D_VISION, D_MODEL), 5 + 3 * torch.randn(7, D_VISION)
    mean, std = features.mean(0), features.std(0)
    folded = _projector.folded(projector, mean, std)
    assert torch.allclose(projector((features - mean) / std), project(folded, features), atol=1e-4)


def test_same_seed_same_bytes_other_seed_other_bytes(llama, data):
    one, two = (run(llama, data, plan("caption", steps=4)) for _ in range(2))
    other = run(llama, data, TrainingPlan("caption", 4, 4, 5e-3, seed=1))
    assert all(torch.equal(one.projector[name], two.projector[name]) for name in one.projector)
    assert one.losses == two.losses != other.losses


@pytest.mark.parametrize("recipe", ["caption", "early"])
def test_killed_training_goes_on_to_the_same_result(llama, data, recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(_training, "CHECKPOINT_EVERY", 2)
    whole = run(llama, data, plan(recipe, steps=7))

    def killed(step, loss):
        if step == 5:
            raise KeyboardInterrupt

    checkpoint = tmp_path / "checkpoint.pt"
    with pytest.raises(KeyboardInterrupt):
        run(llama, data, plan(recipe, steps=7), checkpoint=checkpoint, progress=killed)
    steps = []
    rest = run(
        llama, data, plan(recipe, steps=7), checkpoint=checkpoint, progress=lambda step, loss: steps.append(step)
    )
    assert steps == [4, 5, 6]
    assert rest.losses == whole.losses
    assert all(torch.equal(rest.projector[name], whole.projector[name]) for name in whole.projector)


def test_checkpoint_of_another_plan_is_not_used(llama, data, tmp_path, monkeypatch):
    monkeypatch.setattr(_training, "CHECKPOINT_EVERY", 1)
    run(llama, data, plan("early", steps=2), checkpoint=tmp_path / "c.pt")
    fresh = run(llama, data, plan("early", steps=3), checkpoint=tmp_path / "c.pt")
    assert fresh.losses == run(llama, data, plan("early", steps=3)).losses


def test_first_layers_end_with_the_residual_after_them(llama):
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        whole = llama.model(ids, output_hidden_states=True).hidden_states
        part = first_layers(llama.model, 2)(ids).last_hidden_state
    assert torch.allclose(part, whole[2], atol=1e-6)
    assert len(llama.model.layers) == 3
    assert not isinstance(llama.model.norm, nn.Identity)


def test_early_loss_is_zero_for_the_names_own_embeddings(llama):
    """With contrast off, image tokens that are the name's own embeddings have nothing left to align."""
    names = ("Chad", "Peru")
    early = _projector._Early(llama.model, Letters(), names, len(" Chad"), plan("early", contrast=0.0, align_every=2))
    tokens = torch.tensor([Letters()(f" {name}", add_special_tokens=False)["input_ids"] for name in names])
    image = llama.model.embed_tokens(tokens)
    for step in (0, 1):  # at the input, after the early layers
        assert float(early(image, torch.tensor([0, 1]), step)) == pytest.approx(0, abs=1e-9)
        assert float(early(image, torch.tensor([1, 0]), step)) > 0.1


@pytest.mark.parametrize(
    ("ids", "row"), [([7], [7, 7, 7, 7]), ([1, 2, 3], [3, 1, 2, 3]), ([1, 2, 3, 4, 5], [2, 3, 4, 5])]
)
def test_name_is_repeated_up_to_the_last_image_token(ids, row):
    assert _projector._repeated(ids, 4) == row


def test_contrast_is_small_only_for_the_right_entity():
    inputs = torch.randn(3, N_IMAGE, D_MODEL, generator=torch.Generator().manual_seed(0))
    right, wrong = (
        float(_projector._contrast(inputs, inputs, torch.tensor(e), torch.tensor(1.0))) for e in ([0, 1, 2], [1, 2, 0])
    )
    assert right < 0.1 < 1 < wrong


def test_caption_loss_is_the_language_models_own(llama):
    """Against the plain forward pass of "before image after name."."""
    caption = _projector.Caption(llama.model, llama.lm_head, Letters(), ("Chad", "North Chad"))
    image, text = torch.randn(2, N_IMAGE, D_MODEL), caption.texts[0]
    expected, count = 0.0, 0
    for row, name in zip(image, ("Chad", "North Chad"), strict=True):
        target = caption.targets.ids[name]
        after = torch.tensor([[*text.after, *target]])
        embeds = _projector.with_text(llama.model.embed_tokens, text.before, row[None], after)
        logits = llama(inputs_embeds=embeds).logits[0].log_softmax(-1)
        expected -= float(sum(logits[-len(target) - 1 + i, token] for i, token in enumerate(target)))
        count += len(target)
    assert float(caption(image, torch.tensor([0, 1]), 0)) == pytest.approx(expected / count, rel=1e-4)


def test_names_and_features_must_fit():
    with pytest.raises(DataError, match="3 names"):
        TrainingSet(torch.zeros(2, 1, 4, 8), ("a", "b", "c"))


def test_diverged_loss_is_an_error(llama):
    bad = TrainingSet(torch.full((2, 1, N_IMAGE, D_VISION), float("nan")), ("Chad", "Peru"))
    with pytest.raises(DataError, match="loss is nan"):
        run(llama, bad, plan("early", steps=1))
