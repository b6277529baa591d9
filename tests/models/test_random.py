"""Tiny random models: folders of every family that plain transformers opens, and what is peculiar to each family."""

import importlib.util
import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from twohop.config import RandomModel
from twohop.errors import ModelError
from twohop.models._processor import load_processor
from twohop.models._random import build_random
from twohop.models._random_families import VISIONS
from twohop.models._random_languages import LANGUAGES

LAYERS, D, PX = 4, 32, 32
TEXT = "Consider the country France. The capital of this country is"
OTHER = "Consider the country Japan. The capital of this country is"
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # PaliGemma's processor
NEED_TORCHVISION = ("llava-pixtral", "mistral3", "llama4")
HAS_TORCHVISION = importlib.util.find_spec("torchvision") is not None
QWEN_PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"


def ids_and(*names: str) -> set[str]:
    return {"input_ids", "attention_mask", *names}


@dataclass(frozen=True)
class Expected:
    """What a family's processor makes of a picture, and what its model needs beside the picture's features."""

    placeholder: str
    written: str
    keys: set[str]
    torchvision: bool = False
    """Its whole processor needs torchvision; most do without it for still pictures."""
    needed: tuple[str, ...] = ()


TILES = "".join(
    f"<fake_token_around_image><row_{row}_col_{column}><image>" + ("\n" if column == 2 else "")
    for row in (1, 2)
    for column in (1, 2)
)
IDEFICS = f"{TILES}\n<fake_token_around_image><global-img><image><fake_token_around_image>"
PIXTRAL = "[IMG][IMG][IMG_BREAK][IMG][IMG][IMG_END]"
EXPECTED = {
    "llava": Expected("<image>", "<image>" * 4, ids_and("pixel_values")),
    "llava-pixtral": Expected("[IMG]", PIXTRAL, ids_and("pixel_values", "image_sizes"), torchvision=True),
    "llava_next": Expected("<image>", "<image>" * 10, ids_and("pixel_values", "image_sizes")),
    "llava_onevision": Expected(
        "<image>", "<image>" * 10, ids_and("pixel_values", "image_sizes", "batch_num_images"), torchvision=True
    ),
    "mistral3": Expected("[IMG]", PIXTRAL, ids_and("pixel_values", "image_sizes"), torchvision=True),
    "idefics3": Expected("<image>", IDEFICS, ids_and("pixel_values", "pixel_attention_mask")),
    "smolvlm": Expected("<image>", IDEFICS, ids_and("pixel_values", "pixel_attention_mask"), torchvision=True),
    "internvl": Expected(
        "<IMG_CONTEXT>", f"<img>{'<IMG_CONTEXT>' * 4}</img>", ids_and("pixel_values"), torchvision=True
    ),
    "paligemma": Expected(
        "<image>",
        "<image>" * 4 + "<bos>",
        ids_and("pixel_values", "token_type_ids", "labels"),
        needed=("token_type_ids",),
    ),
    "gemma3": Expected(
        "<start_of_image>",
        f"\n\n<start_of_image>{'<image_soft_token>' * 4}<end_of_image>\n\n",
        ids_and("pixel_values", "token_type_ids"),
        needed=("token_type_ids",),
    ),
    **{
        family: Expected(
            QWEN_PICTURE,
            f"<|vision_start|>{'<|image_pad|>' * 4}<|vision_end|>",
            ids_and("pixel_values", "image_grid_thw", "mm_token_type_ids"),
            torchvision=True,
            needed=("image_grid_thw", "mm_token_type_ids"),
        )
        for family in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
    },
    "llama4": Expected(
        "<|image|>",
        f"<|image_start|><|image|>{'<|patch|>' * 4}<|image_end|>",
        ids_and("pixel_values"),
        torchvision=True,
    ),
    "mllama": Expected(
        "<|image|>",
        "<|image|><|begin_of_text|>",
        ids_and("pixel_values", "cross_attention_mask", "aspect_ratio_ids", "aspect_ratio_mask"),
    ),
}


def with_pictures(*, but: tuple[str, ...] = ()) -> list[Any]:
    """The families; those that have no processor at all without torchvision are skipped where it is absent."""
    absent = pytest.mark.skipif(not HAS_TORCHVISION, reason="the family's processor needs torchvision")
    marks = {name: [pytest.mark.torchvision, absent] if name in NEED_TORCHVISION else [] for name in EXPECTED}
    return [pytest.param(name, marks=marks[name]) for name in EXPECTED if name not in but]


def source(seed: int = 0, tower: str = "clip") -> RandomModel:
    return RandomModel.model_validate(
        {"kind": "random", "seed": seed, "n_layers": LAYERS, "d_model": D, "tower": tower}
    )


def build(folder: Path, name: str, role: str, seed: int = 0, px: int = PX) -> Path:
    folder.mkdir(parents=True)
    family, _, tower = name.partition("-")
    build_random(folder, source(seed, tower or "clip"), family, role, px)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("random")

    def get(name: str, role: str = "vlm") -> Path:
        path = root / f"{role}-{name}"
        return path if path.is_dir() else build(path, name, role)

    return get


def open_vlm(path: Path) -> Any:
    return AutoModelForImageTextToText.from_pretrained(path, local_files_only=True).eval()


def open_language(path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, local_files_only=True).eval()


def open_tokenizer(path: Path) -> Any:
    return AutoTokenizer.from_pretrained(path, local_files_only=True)


def open_processor(path: Path) -> Any:
    return load_processor(path)


def picture(seed: int, px: int = PX) -> Image.Image:
    draw = np.random.default_rng(seed)
    return Image.fromarray(draw.integers(0, 255, (px, px, 3), dtype=np.uint8))


def processed(processor: Any, name: str, text: str = TEXT, seed: int = 1, px: int = PX) -> dict[str, Any]:
    prompt = EXPECTED[name].placeholder + text
    inputs = processor(text=[prompt], images=[[picture(seed, px)]], return_tensors="pt")
    return dict(inputs.to(torch.float32))  # Llama 4's pixels come in bfloat16


def model_inputs(inputs: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in inputs.items() if k != "labels"}


@torch.no_grad()
def last_logits(net: Any, **inputs: Any) -> torch.Tensor:
    return net(**inputs).logits[0, -1]


def hashes(path: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in path.iterdir()}


# --- the table --------------------------------------------------------------------------------------------------------


def test_every_family_is_tried_here() -> None:
    assert set(EXPECTED) == set(VISIONS)
    assert {v.language for v in VISIONS.values()} <= set(LANGUAGES)


@pytest.mark.parametrize(
    ("family", "role", "tower", "why"),
    [
        ("bert", "backbone", "clip", "no tiny random model of family bert"),
        ("bert", "vlm", "clip", "no tiny random model of family bert"),
        ("llava", "backbone", "clip", "no tiny random model of family llava"),
        ("llama", "vlm", "clip", "no tiny random model of family llama"),
        ("llava-pixtral", "vlm", "clip", "no tiny random model of family llava-pixtral"),
        ("gemma3", "vlm", "pixtral", "a tiny gemma3 has no choice of tower"),
        ("llama", "backbone", "pixtral", "a tiny llama has no choice of tower"),
    ],
)
def test_what_cannot_be_built_is_refused(tmp_path: Path, family: str, role: str, tower: str, why: str) -> None:
    with pytest.raises(ModelError, match=why):
        build_random(tmp_path, source(tower=tower), family, role, PX)
    assert not list(tmp_path.iterdir())


def test_family_is_llama_or_llava_when_absent(tmp_path: Path) -> None:
    for role, kind in (("backbone", "llama"), ("vlm", "llava"), ("control", "llava")):
        path = tmp_path / role
        path.mkdir()
        build_random(path, source(), None, role, PX)
        assert json.loads((path / "config.json").read_text())["model_type"] == kind


# --- language models --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LANGUAGES)
def test_backbone_opens_and_answers_by_prompt(folder: Callable[..., Path], name: str) -> None:
    path = folder(name, "backbone")
    net, tokenizer = open_language(path), open_tokenizer(path)
    assert net.config.model_type == name
    assert (net.config.num_hidden_layers, net.config.hidden_size) == (LAYERS, D)
    assert net.config.vocab_size == len(tokenizer)
    one, two = (last_logits(net, **tokenizer(text, return_tensors="pt")) for text in (TEXT, OTHER))
    assert torch.isfinite(one).all()
    assert (one - two).abs().max() > 0.1
    turn = tokenizer.apply_chat_template(
        [{"role": "user", "content": TEXT}], tokenize=False, add_generation_prompt=True
    )
    parts = [{"role": "user", "content": [{"type": "text", "text": TEXT}]}]
    assert turn == tokenizer.apply_chat_template(parts, tokenize=False, add_generation_prompt=True)
    assert len(turn) > len(TEXT) + 5
    assert turn.startswith(tokenizer.bos_token or turn[0])


@pytest.mark.parametrize("name", LANGUAGES)
def test_no_norm_is_degenerate(folder: Callable[..., Path], name: str) -> None:
    net = open_language(folder(name, "backbone"))
    constant = [k for k, p in net.named_parameters() if p.numel() > 1 and bool((p == p.flatten()[0]).all())]
    assert not constant or name == "llama"  # whose bytes are those of earlier versions


# --- folders of vision-language models --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXPECTED)
def test_folder_holds_safetensors_and_text_only_and_is_made_again_the_same(
    tmp_path: Path, folder: Callable[[str], Path], name: str
) -> None:
    first, again = folder(name), build(tmp_path / "again", name, "vlm")
    assert hashes(first) == hashes(again)
    assert {p.suffix for p in first.iterdir()} == {".json", ".jinja", ".safetensors"}
    assert {"config.json", "model.safetensors", "processor_config.json", "tokenizer.json"} <= set(hashes(first))
    other = build(tmp_path / "other", name, "vlm", seed=1)
    assert hashes(first)["model.safetensors"] != hashes(other)["model.safetensors"]
    config = json.loads((first / "config.json").read_text())
    assert config["model_type"] == name.split("-")[0]


@pytest.mark.parametrize("name", EXPECTED)
def test_text_only_run_equals_the_backbones(folder: Callable[..., Path], name: str) -> None:
    vlm, backbone = open_vlm(folder(name)), open_language(folder(VISIONS[name].language, "backbone"))
    tokenizer = open_tokenizer(folder(VISIONS[name].language, "backbone"))
    inputs = tokenizer(TEXT, return_tensors="pt")
    expected = last_logits(backbone, **inputs)
    if name == "paligemma":  # a prompt is its prefix, which looks both ways; what follows is causal
        assert (last_logits(vlm, **inputs)[: len(expected)] - expected).abs().max() > 0.1
        inputs["token_type_ids"] = torch.ones_like(inputs["input_ids"])
    logits = last_logits(vlm, **inputs)
    torch.testing.assert_close(logits[: len(expected)], expected, atol=1e-5, rtol=1e-5)
    assert logits[len(expected) :].abs().max() < expected.max() if len(logits) > len(expected) else True


@pytest.mark.parametrize("name", EXPECTED)
def test_text_round_trips_and_special_tokens_are_single(folder: Callable[..., Path], name: str) -> None:
    tokenizer = open_tokenizer(folder(name))
    backbone = open_tokenizer(folder(VISIONS[name].language, "backbone"))
    for text in (TEXT, " It's 2024, São Tomé 🇫🇷!\n\n x", "日本 12345"):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids) == text
        assert ids == backbone.encode(text, add_special_tokens=False)
    for token in VISIONS[name].added:
        ids = tokenizer.encode(token, add_special_tokens=False)
        assert ids == [tokenizer.convert_tokens_to_ids(token)]
        assert tokenizer.decode(ids, skip_special_tokens=True) == ""
    if name != "paligemma":  # whose processor writes the begin itself
        assert tokenizer(TEXT)["input_ids"] == backbone(TEXT)["input_ids"]


@pytest.mark.parametrize("name", EXPECTED)
def test_chat_template_writes_a_turn_with_a_picture(folder: Callable[[str], Path], name: str) -> None:
    tokenizer = open_tokenizer(folder(name))
    parts = [{"type": "image"}, {"type": "text", "text": TEXT}]
    turn = tokenizer.apply_chat_template(
        [{"role": "user", "content": parts}], tokenize=False, add_generation_prompt=True
    )
    assert turn.count(EXPECTED[name].placeholder) == 1
    assert turn.index(EXPECTED[name].placeholder) < turn.index(TEXT)
    plain = tokenizer.apply_chat_template([{"role": "user", "content": TEXT}], tokenize=False)
    assert EXPECTED[name].placeholder not in plain
    assert TEXT in plain


@pytest.mark.parametrize("name", EXPECTED)
def test_only_weights_with_bytes_of_old_are_degenerate(folder: Callable[[str], Path], name: str) -> None:
    net = open_vlm(folder(name))
    shared = net.get_decoder()
    shared = {id(p) for p in getattr(shared, "model", shared).parameters()}
    constant = [
        k
        for k, p in net.named_parameters()
        if id(p) not in shared and p.numel() > 1 and bool((p == p.flatten()[0]).all())
    ]
    assert not constant or name == "llava"
    gates = [float(p.detach()) for k, p in net.named_parameters() if p.numel() == 1]
    assert all(abs(g) > 0.1 for g in gates)


# --- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", with_pictures())
def test_processor_writes_the_pictures_tokens(folder: Callable[[str], Path], name: str) -> None:
    processor, expected = open_processor(folder(name)), EXPECTED[name]
    inputs = processed(processor, name)
    assert set(inputs) == expected.keys
    written = processor.tokenizer.decode(inputs["input_ids"][0])
    assert f"{expected.written}{TEXT}" in written
    begin = {"llava-pixtral": "<s>", "mistral3": "<s>", "gemma3": "<bos>", "llama4": "<|begin_of_text|>"}.get(name, "")
    end = "\n" if name == "paligemma" else ""
    assert written == f"{begin}{expected.written}{TEXT}{end}"


@pytest.mark.parametrize("name", with_pictures())
def test_answers_depend_on_picture_and_prompt(folder: Callable[[str], Path], name: str) -> None:
    net, processor = open_vlm(folder(name)), open_processor(folder(name))
    cases = [(TEXT, 1), (TEXT, 2), (OTHER, 1)]
    all_inputs = [processed(processor, name, text, seed) for text, seed in cases]
    logits = [last_logits(net, **model_inputs(inputs)) for inputs in all_inputs]
    assert all(torch.isfinite(values).all() for values in logits)
    for one, two in combinations(logits, 2):
        assert (one - two).abs().max() > 0.1
    inputs = model_inputs(all_inputs[0])
    answer = net.generate(**inputs, max_new_tokens=4, do_sample=False)
    new = answer[0, inputs["input_ids"].shape[1] :]
    assert 1 <= len(new) <= 4
    assert int(new[0]) == int(logits[0].argmax())


def padded(inputs: dict[str, Any], pad: int) -> dict[str, Any]:
    """One token of padding on the left."""
    first = {"input_ids": pad, "attention_mask": 0, "token_type_ids": 0, "mm_token_type_ids": 0}
    return {
        k: torch.nn.functional.pad(v, (1, 0), value=first[k]) if k in first else v
        for k, v in model_inputs(inputs).items()
    }


@pytest.mark.parametrize("name", with_pictures(but=("mllama",)))
def test_features_can_be_given_instead_of_pixels(folder: Callable[[str], Path], name: str) -> None:
    net, processor, needed = open_vlm(folder(name)), open_processor(folder(name)), EXPECTED[name].needed
    inputs = padded(processed(processor, name), processor.tokenizer.pad_token_id)
    expected = last_logits(net, **inputs)
    parameters = inspect.signature(net.get_image_features).parameters
    with torch.no_grad():
        features = net.get_image_features(**{k: v for k, v in inputs.items() if k in parameters}, return_dict=True)
    core = {k: inputs[k] for k in ("input_ids", "attention_mask")}
    given = {**core, **{k: inputs[k] for k in needed}, "mm_encoder_outputs": {"image": features}}
    torch.testing.assert_close(last_logits(net, **given), expected, atol=1e-5, rtol=1e-5)
    for key in needed:
        lacking = {k: v for k, v in given.items() if k != key}
        if (name, key) in (("qwen2_vl", "mm_token_type_ids"), ("qwen3_vl", "mm_token_type_ids")):
            with pytest.raises(ValueError, match=key):
                last_logits(net, **lacking)
        else:  # nothing is said, the answer is another
            assert (last_logits(net, **lacking) - expected).abs().max() > 1e-3, key


@pytest.mark.torchvision
@pytest.mark.skipif(not HAS_TORCHVISION, reason="the family's processor needs torchvision")
@pytest.mark.parametrize("name", [n for n, e in EXPECTED.items() if e.torchvision])
def test_written_processor_is_what_its_class_writes(tmp_path: Path, folder: Callable[[str], Path], name: str) -> None:
    AutoProcessor.from_pretrained(folder(name), local_files_only=True).save_pretrained(tmp_path)
    for file in ("processor_config.json", "chat_template.jinja"):
        assert (tmp_path / file).read_text() == (folder(name) / file).read_text()


# --- what is peculiar to a family -------------------------------------------------------------------------------------


LARGE = {
    "llava_next": "<image>" * 24,
    "llava_onevision": "<image>" * 24,
    "internvl": f"<img>{'<IMG_CONTEXT>' * 20}</img>",
    "llama4": "<|image_start|>"
    + ("<|patch|>" * 4 + "<|tile_x_separator|>" + "<|patch|>" * 4 + "<|tile_y_separator|>") * 2
    + f"<|image|>{'<|patch|>' * 4}<|image_end|>",
}
"""What is written for a picture of twice the side: two by two tiles, and the whole."""


@pytest.mark.parametrize("name", with_pictures(but=tuple(n for n in EXPECTED if n not in LARGE)))
def test_larger_picture_has_two_by_two_tiles_and_the_whole(folder: Callable[[str], Path], name: str) -> None:
    net, processor = open_vlm(folder(name)), open_processor(folder(name))
    inputs = processed(processor, name, px=2 * PX)
    assert LARGE[name] in processor.tokenizer.decode(inputs["input_ids"][0])
    assert torch.isfinite(last_logits(net, **model_inputs(inputs))).all()


def test_anyres_newline_is_written_after_each_row(folder: Callable[[str], Path]) -> None:
    net, processor = open_vlm(folder("llava_next")), open_processor(folder("llava_next"))
    inputs = processed(processor, "llava_next")
    with torch.no_grad():
        features = net.get_image_features(inputs["pixel_values"], inputs["image_sizes"], return_dict=True)
    rows = [n for n, f in enumerate(features.pooler_output[0]) if torch.equal(f, net.model.image_newline)]
    assert rows == [6, 9]  # four tokens of the whole picture, then two rows of two tokens and a newline


def test_mllama_has_crossed_layers_beside_the_backbones(folder: Callable[[str], Path]) -> None:
    net = open_vlm(folder("mllama"))
    crossed = net.config.text_config.cross_attention_layers
    assert crossed == [1, 3]
    assert len(net.get_decoder().layers) == LAYERS + len(crossed)
    assert net.get_input_embeddings().weight.shape[0] > net.lm_head.weight.shape[0]
    assert net.config.image_token_id == net.config.text_config.vocab_size


def test_gemma3_names_two_tokens_that_end_an_answer(folder: Callable[..., Path]) -> None:
    for path in (folder("gemma3"), folder("gemma3_text", "backbone")):
        ends = json.loads((path / "generation_config.json").read_text())["eos_token_id"]
        assert open_tokenizer(path).convert_ids_to_tokens(ends) == ["<eos>", "<end_of_turn>"]


def test_layers_of_gemma3_and_llama4_see_windows_and_everything(folder: Callable[[str], Path]) -> None:
    gemma = open_vlm(folder("gemma3")).config.text_config
    assert set(gemma.layer_types) == {"sliding_attention", "full_attention"}
    llama = open_vlm(folder("llama4"))
    config = llama.config.text_config
    assert set(config.layer_types) == {"chunked_attention", "full_attention"}
    assert config.no_rope_layers == [1, 0, 1, 0]
    assert [n for n, layer in enumerate(llama.language_model.model.layers) if layer.is_moe_layer] == [1]


def test_qwen3_adds_deep_features_to_the_first_layer(folder: Callable[[str], Path]) -> None:
    net, processor = open_vlm(folder("qwen3_vl")), open_processor(folder("qwen3_vl"))
    inputs = processed(processor, "qwen3_vl")
    with torch.no_grad():
        features = net.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"], return_dict=True)
    assert [[tuple(f.shape) for f in layer] for layer in features.deepstack_features] == [[(4, D)]]
    rest = {k: v for k, v in inputs.items() if k != "pixel_values"}
    whole = last_logits(net, **rest, mm_encoder_outputs={"image": features})
    features.deepstack_features = [[torch.zeros_like(f) for f in layer] for layer in features.deepstack_features]
    assert (last_logits(net, **rest, mm_encoder_outputs={"image": features}) - whole).abs().max() > 1e-2


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
def test_qwen_shares_frequencies_between_time_height_and_width(folder: Callable[[str], Path], name: str) -> None:
    text = open_vlm(folder(name)).config.text_config
    sections = text.rope_parameters["mrope_section"]
    head = getattr(text, "head_dim", None) or D // text.num_attention_heads
    assert len(sections) == 3
    assert min(sections) > 0
    assert sum(sections) == head // 2
