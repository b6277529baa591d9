"""Folders and cards: the same bytes from the same recipe, refused when altered, made again when absent."""

import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import PREPARE, entry, write_card

from twohop.config import ModelEntry
from twohop.errors import ModelError
from twohop.models import ModelCard, Prompt, materialise, open_model, open_tokenizer, read_card
from twohop.models import _open as opening
from twohop.models import _prepare as preparing


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TWOHOP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(opening, "_checked", set())
    torch.set_num_threads(1)
    return tmp_path / "cache" / "models"


def prepared(folder: Path, role: str = "vlm", **source: Any) -> tuple[Path, ModelCard]:
    card = materialise(f"tiny-{role}", entry(role, **source), PREPARE)
    return write_card(folder, card), card


def test_card_says_what_the_model_is(tmp_path: Path, cache: Path) -> None:
    path, card = prepared(tmp_path)
    assert read_card(path) == card
    assert (card.role, card.family, card.backbone, card.licence) == ("vlm", "llava", "tiny", "none")
    assert (card.n_layers, card.d_model, card.n_heads, card.n_image_tokens, card.image_size) == (3, 32, 4, 4, 32)
    assert card.image_processor == "CLIPImageProcessorPil"
    model = open_model(path)
    assert card.parameters == sum(p.numel() for p in set(model.net.parameters()))
    assert card.vocab == model.net.config.text_config.vocab_size
    assert set(card.files) == {p.name for p in (cache / card.folder).iterdir()}
    assert card.files["model.safetensors"].bytes == (cache / card.folder / "model.safetensors").stat().st_size


def test_backbone_and_vlm_of_a_seed_share_the_language_model(tmp_path: Path) -> None:
    backbone, vlm = (open_model(prepared(tmp_path, role)[0]) for role in ("backbone", "vlm"))
    ours, theirs = backbone.net.model.state_dict(), vlm.net.model.language_model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    prompt = Prompt("Consider the country ", "Ireland", ". The capital of this country is")
    torch.testing.assert_close(*(m.run(m.batch([prompt])).logits for m in (backbone, vlm)))
    assert backbone.n_image_tokens == 0


def test_m05_same_recipe_gives_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    _, card = prepared(tmp_path)
    code = (
        "import sys, json; sys.path.insert(0, sys.argv[1])\n"
        "from tiny_models import PREPARE, entry\n"
        "from twohop.models import materialise\n"
        "print(materialise('tiny-vlm', entry(), PREPARE).model_dump_json())"
    )
    env = {**__import__("os").environ, "TWOHOP_CACHE": str(tmp_path / "other"), "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-c", code, str(Path(__file__).parent)]
    out = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
    assert ModelCard.model_validate_json(out) == card


def test_other_seed_or_parameters_give_another_folder(tmp_path: Path) -> None:
    first = prepared(tmp_path)[1]
    other_seed = materialise("tiny-vlm", entry(seed=1), PREPARE)
    other_size = materialise("tiny-vlm", entry(), PREPARE.model_copy(update={"image_size": 48}))
    assert len({first.folder, other_seed.folder, other_size.folder}) == 3
    assert other_size.n_image_tokens == 9


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_m05_altered_file_is_named(tmp_path: Path, cache: Path, name: str) -> None:
    path, card = prepared(tmp_path)
    file = cache / card.folder / name
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    for call in (open_model, open_tokenizer):
        with pytest.raises(ModelError, match="altered") as caught:
            call(path)
        assert name in caught.value.where
    with pytest.raises(ModelError, match="altered"):
        materialise("tiny-vlm", entry(), PREPARE)


def test_m05_missing_and_additional_files_are_named(tmp_path: Path, cache: Path) -> None:
    path, card = prepared(tmp_path)
    extra = cache / card.folder / "modeling_evil.py"
    extra.write_text("raise SystemExit")
    with pytest.raises(ModelError, match="not on the model's record"):
        open_model(path)
    extra.unlink()
    (cache / card.folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="missing") as caught:
        open_model(path)
    assert "tokenizer.json" in caught.value.where


def test_absent_folder_is_made_again_from_the_card_alone(tmp_path: Path, cache: Path) -> None:
    path, card = prepared(tmp_path)
    before = open_model(path)
    shutil.rmtree(cache)
    after = open_model(path)
    prompt = Prompt("Consider the country ", "Ireland", ".")
    torch.testing.assert_close(*(m.run(m.batch([prompt])).logits for m in (before, after)))
    assert (cache / card.folder).is_dir()


def test_m05_folder_made_again_must_match_the_card(tmp_path: Path, cache: Path) -> None:
    path, card = prepared(tmp_path)
    tree = json.loads(path.read_text())
    tree["files"]["model.safetensors"]["sha256"] = "0" * 64
    path.write_text(json.dumps(tree))
    shutil.rmtree(cache)
    with pytest.raises(ModelError, match="altered"):
        open_model(path)
    assert card.files["model.safetensors"].sha256 != "0" * 64


def test_files_are_compared_once_per_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = prepared(tmp_path)
    calls: list[Path] = []
    original = opening.check_files
    monkeypatch.setattr(opening, "check_files", lambda p, r: calls.append(p) or original(p, r))
    for _ in range(3):
        open_tokenizer(path)
    assert len(calls) == 1


def test_k04_two_at_once_build_once(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builds: list[str] = []
    original = preparing._build
    monkeypatch.setattr(preparing, "_build", lambda *a: builds.append("x") or original(*a))
    threads = [threading.Thread(target=prepared, args=(tmp_path,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert builds == ["x"]
    assert [p.name for p in cache.iterdir() if p.name.endswith(".tmp")] == []


def test_c03_failed_build_leaves_nothing(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = preparing._build

    def broken(tmp: Path, *rest: Any) -> None:
        original(tmp, *rest)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(preparing, "_build", broken)
        with pytest.raises(OSError, match="No space left"):
            prepared(tmp_path)
    assert [p for p in cache.iterdir() if p.is_dir()] == []
    prepared(tmp_path)


def test_c01_what_a_killed_build_left_is_not_used(tmp_path: Path, cache: Path) -> None:
    _, card = prepared(tmp_path)
    shutil.rmtree(cache)
    half = cache / f".{card.folder}.tmp"
    half.mkdir(parents=True)
    (half / "config.json").write_text("{")
    unrecorded = cache / card.folder
    unrecorded.mkdir()
    (unrecorded / "model.safetensors").write_bytes(b"half")
    assert prepared(tmp_path)[1] == card
    assert not half.exists()


# --- local folders ----------------------------------------------------------------------------------------------------


def local(tmp_path: Path, cache: Path, role: str = "vlm") -> Path:
    _, card = prepared(tmp_path, role)
    folder = tmp_path / f"local-{role}"
    shutil.copytree(cache / card.folder, folder)
    return folder


@pytest.mark.parametrize("role", ["backbone", "vlm"])
def test_local_folder_is_the_same_model(tmp_path: Path, cache: Path, role: str) -> None:
    folder = local(tmp_path, cache, role)
    (folder / "pytorch_model.bin").write_bytes(b"never read")
    (folder / "modeling_custom.py").write_text("raise SystemExit")
    path, card = prepared(tmp_path, role, kind="local", path=str(folder))
    assert {"pytorch_model.bin", "modeling_custom.py"}.isdisjoint(card.files)
    model = open_model(path)
    assert model.generate(model.batch([Prompt("Consider the country ", "Ireland", ".")]), 2) is not None
    assert card.sources["model.safetensors"] == card.files["model.safetensors"].sha256


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pkl"])
def test_m02_folder_without_safetensors_is_refused(tmp_path: Path, cache: Path, name: str) -> None:
    folder = local(tmp_path, cache)
    (folder / "model.safetensors").rename(folder / name)
    with pytest.raises(ModelError, match=f"no safetensors file; found {name}"):
        prepared(tmp_path, kind="local", path=str(folder))


def test_m02_missing_shard_is_named(tmp_path: Path, cache: Path) -> None:
    folder = local(tmp_path, cache)
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="model-00002-of-00002"):
        prepared(tmp_path, kind="local", path=str(folder))


def test_local_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ModelError, match=r"no config\.json"):
            prepared(tmp_path, kind="local", path=str(folder))


def test_local_folder_that_changed_since_the_card_is_refused(tmp_path: Path, cache: Path) -> None:
    folder = local(tmp_path, cache)
    path, _ = prepared(tmp_path, kind="local", path=str(folder))
    config = (folder / "config.json").read_text()
    (folder / "config.json").unlink()  # a new file: the old one is linked into the cache
    (folder / "config.json").write_text(config + " ")
    open_model(path)
    shutil.rmtree(cache)
    opening._checked.clear()
    with pytest.raises(ModelError, match="altered") as caught:
        open_model(path)
    assert "config.json" in caught.value.where


def test_model_of_another_family_is_refused(tmp_path: Path, cache: Path) -> None:
    folder = local(tmp_path, cache, "backbone")
    with pytest.raises(ModelError, match="holds a llama model, the catalogue says llava"):
        prepared(tmp_path, "vlm", kind="local", path=str(folder))


def test_m01_remote_code_is_never_run(tmp_path: Path, cache: Path) -> None:
    folder = local(tmp_path, cache, "backbone")
    config = json.loads((folder / "config.json").read_text())
    ran = tmp_path / "ran"
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(ran)!r}, 'w').close()")
    path, _ = prepared(tmp_path, "backbone", kind="local", path=str(folder))
    open_model(path)
    assert not ran.exists()


def test_projector_that_is_missing_is_named(tmp_path: Path) -> None:
    made_from = {"kind": "assembled", "tower": "clip-b16", "projector": str(tmp_path / "p.safetensors")}
    with pytest.raises(ModelError, match="no projector"):
        prepared(tmp_path, **made_from, recipe="caption")


# --- cards ------------------------------------------------------------------------------------------------------------


def test_what_is_no_card_is_refused(tmp_path: Path) -> None:
    path, _ = prepared(tmp_path)
    text = path.read_text()
    for bad in ("", "{}", text[: len(text) // 2], text.replace('"n_layers":3', '"n_layers":"3"')):
        path.write_text(bad)
        with pytest.raises(ModelError, match="not a model card"):
            open_model(path)
    with pytest.raises(ModelError, match="cannot read"):
        open_model(tmp_path / "absent.json")


def test_card_that_lies_about_the_size_is_refused(tmp_path: Path) -> None:
    path, card = prepared(tmp_path)
    write_card(tmp_path, card.model_copy(update={"n_layers": 4}))
    with pytest.raises(ModelError, match="size is not the card's"):
        open_model(path)


def test_entry_of_the_card_is_the_catalogue_s(tmp_path: Path) -> None:
    path, _ = prepared(tmp_path)
    assert read_card(path).entry == entry()
    assert isinstance(read_card(path).entry, ModelEntry)
