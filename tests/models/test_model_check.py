"""A model before its weights are loaded: what a folder says of itself, and every reason against it in one line."""

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import D
from transformers import MllamaConfig

from twohop.config import RandomModel
from twohop.errors import ModelError
from twohop.models import check_folder, compare
from twohop.models._headers import read_headers
from twohop.models._random import build_random
from twohop.models._random_families import VISIONS

TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{% endfor %}"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made")
    for name, layers, role in (("vlm", 3, "vlm"), ("llm", 3, "backbone"), ("deep", 4, "backbone")):
        (root / name).mkdir()
        build_random(root / name, RandomModel(kind="random", seed=0, n_layers=layers, d_model=32), None, role, 32)
        (root / name / "chat_template.jinja").unlink(missing_ok=True)
    return root


@pytest.fixture
def vlm(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "vlm", tmp_path / "vlm"))


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    tree = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in tree.items() if v is not ...}))


def one_fault(folder: Path, kind: Any = "vlm", prompt: str = "plain") -> str:
    (fault,) = check_folder(folder, kind, prompt).faults
    assert "\n" not in fault
    return fault


def test_good_folder(made: Path) -> None:
    found = check_folder(made / "vlm", "vlm")
    assert found.faults == ()
    assert found.shape is not None
    assert (found.family, found.shape.n_layers, found.shape.d_model, found.shape.n_kv_heads) == ("llava", 3, 32, 2)
    assert (found.image_token, found.n_image_tokens, found.chat_template) == ("<image>", 4, False)
    stored = load_file(made / "vlm/model.safetensors")
    assert found.parameters == sum(t.numel() for t in stored.values())
    assert found.weight_bytes == 4 * found.parameters


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # PaliGemma's processor
@pytest.mark.parametrize("family", [name for name in VISIONS if "-" not in name])
def test_every_family_and_its_backbone(tmp_path: Path, family: str) -> None:
    """Tiny models of each: nothing is held against them, and every layer is found under its own spelling."""
    source = RandomModel(kind="random", seed=0, n_layers=4, d_model=32)
    folders = {"vlm": tmp_path / "vlm", "backbone": tmp_path / "llm"}
    for (role, folder), name in zip(folders.items(), (family, VISIONS[family].language), strict=True):
        folder.mkdir()
        build_random(folder, source, name, role, 32)
    vlm, llm = check_folder(folders["vlm"], "vlm", "chat"), check_folder(folders["backbone"], "backbone")
    if importlib.util.find_spec("torchvision") is None and any("torchvision" in f for f in vlm.faults):
        pytest.skip("this family's processor needs torchvision")
    assert vlm.faults == llm.faults == ()
    assert vlm.n_image_tokens
    fit = compare(folders["vlm"], folders["backbone"], vlm, llm)
    assert fit.faults == ()
    assert fit.distances is not None
    assert llm.shape is not None
    assert len(fit.distances) == llm.shape.n_layers
    assert max(fit.distances) < 1e-6


def test_headers_alone_say_the_same(vlm: Path) -> None:
    whole = check_folder(vlm, "vlm")
    path = vlm / "model.safetensors"
    data = path.read_bytes()
    path.unlink()
    (vlm / "model.safetensors.header").write_bytes(data[: 8 + int.from_bytes(data[:8], "little")])
    assert check_folder(vlm, "vlm") == whole


def test_backbone_that_fits(made: Path) -> None:
    folders = made / "vlm", made / "llm"
    fit = compare(*folders, check_folder(folders[0], "vlm"), check_folder(folders[1], "backbone"))
    assert fit.faults == ()
    assert fit.n_tensors == 27
    assert fit.distances == (0.0, 0.0, 0.0)


def test_distance_of_weights_is_of_the_layer_that_was_trained(made: Path, vlm: Path) -> None:
    stored = load_file(vlm / "model.safetensors")
    names = [n for n in stored if "layers.1." in n and "vision" not in n]
    norm = torch.stack([stored[n].double().square().sum() for n in names]).sum().sqrt()
    target = next(n for n in names if n.endswith("down_proj.weight"))
    delta = 0.01 * torch.ones_like(stored[target])
    save_file({**stored, target: stored[target] + delta}, vlm / "model.safetensors", metadata={"format": "pt"})
    fit = compare(vlm, made / "llm", check_folder(vlm, "vlm"), check_folder(made / "llm", "backbone"))
    assert fit.distances is not None
    assert fit.distances[0] == fit.distances[2] == 0
    assert fit.distances[1] == pytest.approx(float(delta.double().norm() / norm), rel=1e-4)


def test_backbone_whose_shapes_do_not_fit(made: Path) -> None:
    folders = made / "vlm", made / "deep"
    fit = compare(*folders, check_folder(folders[0], "vlm"), check_folder(folders[1], "backbone"))
    assert fit.faults == ("backbone does not fit: the VLM's language model has 3 layers on text, the backbone 4",)
    assert fit.distances is None


def test_backbone_with_another_tensor_in_one_layer(made: Path, tmp_path: Path) -> None:
    """The configs agree, the files do not."""
    llm = Path(shutil.copytree(made / "llm", tmp_path / "llm"))
    stored = load_file(llm / "model.safetensors")
    stored["model.layers.2.mlp.up_proj.weight"] = torch.zeros(48, 32)
    save_file(stored, llm / "model.safetensors", metadata={"format": "pt"})
    (fault,) = compare(made / "vlm", llm, check_folder(made / "vlm", "vlm"), check_folder(llm, "backbone")).faults
    assert fault.startswith(
        "backbone does not fit: layer 2, model.layers.2.mlp.up_proj.weight: [64, 32] in the VLM, [48, 32]"
    )


def test_cross_attention_layers_do_not_count(tmp_path: Path) -> None:
    text = {"hidden_size": D, "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0}
    text |= {"num_hidden_layers": 6, "cross_attention_layers": [1, 4]}
    MllamaConfig(text_config=text, vision_config={}).save_pretrained(tmp_path)
    found = check_folder(tmp_path, "vlm")
    assert found.shape is not None
    assert (found.shape.n_layers, found.cross_layers) == (4, (1, 4))


@pytest.mark.parametrize(
    ("changes", "start"),
    [
        ({"model_type": "brand_new"}, "family brand_new: unknown to transformers 5.23.0"),
        ({"model_type": "molmo", "auto_map": {"AutoModel": "m.M"}}, "family molmo: wants code from its repository"),
        ({"model_type": "bert"}, "family bert: transformers 5.23.0 knows it, but not as a model of pictures and text"),
    ],
)
def test_family(vlm: Path, changes: dict[str, Any], start: str) -> None:
    edit(vlm, **changes)
    assert check_folder(vlm, "vlm").faults[0].startswith(start)


def test_language_model_given_as_vlm(made: Path) -> None:
    assert check_folder(made / "llm", "vlm").faults[0].startswith("family llama: transformers")


@pytest.mark.parametrize(("text", "what"), [(None, "no config.json"), ("{", "is not JSON"), ("{}", "no model_type")])
def test_folder_that_says_nothing(tmp_path: Path, text: str | None, what: str) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=what):
        check_folder(tmp_path, "vlm")


def test_only_pickled_weights(vlm: Path) -> None:
    (vlm / "model.safetensors").rename(vlm / "pytorch_model.bin")
    assert one_fault(vlm).startswith("no safetensors file; found pytorch_model.bin, which may run code")


def test_shard_that_is_cut_off(vlm: Path) -> None:
    path = vlm / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    assert "model.safetensors: has " in one_fault(vlm)
    path.write_bytes(b"\xff" * 100)
    assert one_fault(vlm) == "model.safetensors: is no safetensors file, or cut off"


def test_shard_that_is_missing(vlm: Path) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model.safetensors"}}
    (vlm / "model.safetensors.index.json").write_text(json.dumps(index))
    assert one_fault(vlm).startswith("model-00001-of-00002.safetensors: missing, though model.safetensors.index.json")


def test_tokenizer_without_the_image_token(vlm: Path) -> None:
    edit(vlm, image_token_index=999)
    assert one_fault(vlm).startswith("tokenizer: has no token 999, the image token of config.json (it has 385)")
    edit(vlm, image_token_index=5)
    assert "token 5, the image token of config.json, is the plain text" in one_fault(vlm)


def test_no_chat_template(vlm: Path) -> None:
    assert one_fault(vlm, prompt="chat").startswith("no chat template, and its prompt is chat; write `prompt: plain`")
    (vlm / "chat_template.jinja").write_text(TEMPLATE)
    assert check_folder(vlm, "vlm", "chat").chat_template


@pytest.mark.parametrize("prompt", ["plain", "chat"])
def test_pictures_are_counted_under_a_template_of_text_alone(vlm: Path, prompt: str) -> None:
    """As a language model's own template is, which joins strings."""
    (vlm / "chat_template.jinja").write_text("{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}{% endfor %}")
    found = check_folder(vlm, "vlm", prompt)
    assert (found.faults, found.n_image_tokens) == ((), 4)


def test_no_processor(vlm: Path) -> None:
    (vlm / "processor_config.json").unlink()
    assert one_fault(vlm).startswith("cannot load the processor: ")


def test_layers_are_found_under_every_spelling(tmp_path: Path) -> None:
    spellings = (
        "model.layers.0.a",
        "language_model.model.layers.1.a",
        "model.language_model.layers.2.a",
        "model.text_model.layers.3.a",
    )
    others = ("vision_tower.vision_model.encoder.layers.0.a", "visual.blocks.0.a", "model.vision_tower.layers.0.a")
    save_file({n: torch.ones(1) for n in (*spellings, *others)}, tmp_path / "model.safetensors")
    assert list(read_headers(tmp_path).layers()) == [0, 1, 2, 3]
