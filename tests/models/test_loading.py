"""Number formats, devices and offload give the same numbers; what cannot fit is refused with the numbers."""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from tiny_models import folder_of, llava, pictures
from transformers import AutoModelForImageTextToText

from twohop.config import Loading, ModelEntry
from twohop.errors import ModelError
from twohop.models import Model, ModelCard, Patch, Prompt, Site
from twohop.models import _loading as loading
from twohop.models._open import _tokens

SITE = Site("mlp_write", 1)
OFFLOADED = {"device_map": "auto", "max_memory": {"cpu": "20KiB"}, "offload": True}


def card(folder: Path, parameters: int = 40_000, **more: Any) -> ModelCard:
    source = {"kind": "local", "path": str(folder)}
    entry = {"role": "vlm", "backbone": "b", "licence": "none", "source": source, "loading": more}
    return ModelCard.model_construct(
        name="m",
        role="vlm",
        family="llava",
        entry=ModelEntry.model_validate(entry),
        parameters=parameters,
        n_image_tokens=4,
        image_token_id=llava().tokens.image_token_id,
    )


def opened(folder: Path, tmp_path: Path, **more: Any) -> Model:
    record = card(folder, **more)
    tokens, processor = _tokens(record, folder)
    return Model(loading.load_net(folder, record, tmp_path / "offload"), record, tokens, processor)


def numbers(model: Model) -> list[torch.Tensor]:
    """Logits, an activation, its gradient, a lens and patched logits of an image run."""
    batch = model.batch([Prompt("The country ", None, ". It is", p) for p in model.encode_pictures(pictures(2))])
    run = model.run(batch, [SITE, Site("resid_post", 3)])
    again = model.run(batch, [SITE], grad=True)
    again.logits[:, 7].sum().backward()
    grad = again.activations[SITE].grad
    assert grad is not None
    patch = Patch(SITE, batch.groups["image"], torch.ones(int(batch.groups["image"].sum()), model.d_model))
    lens = model.unembed(run.activations[Site("resid_post", 3)], [3, 4])
    return [run.logits, run.activations[SITE], grad, lens, model.run(batch, patches=[patch]).logits]


@pytest.fixture(scope="module")
def sharded() -> Path:
    folder = Path(tempfile.mkdtemp()) / "sharded"
    net: Any = AutoModelForImageTextToText.from_pretrained(folder_of("llava"), dtype=torch.float32)
    net.save_pretrained(folder, max_shard_size="40KB")
    for file in folder_of("llava").iterdir():
        if file.suffix != ".safetensors" and not (folder / file.name).exists():
            (folder / file.name).write_bytes(file.read_bytes())
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


@pytest.mark.parametrize("more", [{}, {"device_map": {"": "cpu"}}, {"device_map": "auto"}, OFFLOADED])
@pytest.mark.parametrize("shards", [False, True])
def test_same_numbers_wherever_the_weights_are(
    tmp_path: Path, sharded: Path, more: dict[str, Any], shards: bool
) -> None:
    plain = opened(folder_of("llava"), tmp_path)
    model = opened(sharded if shards else folder_of("llava"), tmp_path, **more)
    parked = [n for n, p in model.net.named_parameters() if p.device.type == "meta"]
    assert bool(parked) == ("max_memory" in more)
    for mine, wanted in zip(numbers(model), numbers(plain), strict=True):
        torch.testing.assert_close(mine, wanted, atol=1e-5, rtol=1e-5)
    prompts = [Prompt("The country ", "Japan", ". The capital is"), Prompt("The country ", "Kenya", ". It")]
    assert model.generate(model.batch(prompts), 4) == plain.generate(plain.batch(prompts), 4)


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_number_format_of_the_entry(tmp_path: Path, name: str) -> None:
    model = opened(folder_of("llava"), tmp_path, dtype=name)
    assert model.dtype == getattr(torch, name)
    assert all(p.dtype == model.dtype for p in model.net.parameters())
    plain = opened(folder_of("llava"), tmp_path)
    for mine, wanted in zip(numbers(model), numbers(plain), strict=True):
        torch.testing.assert_close(mine.float(), wanted, atol=0.05, rtol=0.1)


def test_model_that_cannot_fit_is_refused_with_the_numbers() -> None:
    record = card(folder_of("llava"), parameters=70_000_000_000)
    with pytest.raises(ModelError, match=r"take 294\.00 GB in float32, [\d.]+ GB are free in this machine") as error:
        loading.check_memory(record, torch.float32)
    assert "loading.dtype: bfloat16 (147.0 GB)" in error.value.todo
    assert "offload: true" in error.value.todo
    allowed = card(folder_of("llava"), parameters=70_000_000_000, device_map="auto", offload=True)
    loading.check_memory(allowed, torch.float32)
    with pytest.raises(ModelError, match=r"take 0\.17 GB in float32, 0\.10 GB are free by loading.max_memory"):
        loading.check_memory(
            card(folder_of("llava"), 40_000_000, device_map="auto", max_memory={"cpu": "100MB"}), torch.float32
        )


def test_memory_of_a_container_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    limit = tmp_path / "memory.max"
    limit.write_text("max\n")
    monkeypatch.setattr(loading, "_CGROUP", limit)
    assert loading.free_bytes(Loading())[0] == pytest.approx(psutil.virtual_memory().available, rel=0.1)
    limit.write_text(str(psutil.Process().memory_info().rss + 1000))
    assert loading.free_bytes(Loading())[0] < 10_000_000


@pytest.mark.parametrize("text", ["20", "GiB", "1.5 XB"])
def test_amount_without_a_unit_is_refused(text: str) -> None:
    with pytest.raises(ModelError, match="no amount of memory"):
        loading.free_bytes(Loading(device_map="auto", max_memory={"cpu": text}))


def test_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ModelError, match="cannot spread the model over devices"):
        opened(folder_of("llava"), tmp_path, device_map={"": "cuda:0"})


PEAK = """
import sys, torch
from pathlib import Path
from twohop.models import ModelCard
from twohop.models import _loading as loading
from twohop.config import ModelEntry
folder = Path(sys.argv[1])
entry = {"role": "backbone", "licence": "none", "source": {"kind": "local", "path": sys.argv[1]}}
record = ModelCard.model_construct(name="m", entry=ModelEntry.model_validate(entry), parameters=int(sys.argv[2]))
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
loading.load_net(folder.parent / "small", record.model_copy(update={"parameters": 1000}), folder)  # libraries, once
before = peak()
net = loading.load_net(folder, record, folder)
float(sum(p.sum() for p in net.parameters()))  # weights are read from the file when they are used
print(peak() - before, loading.weight_bytes(record, torch.float32))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_estimate_is_near_the_measured_peak(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    size = {"vocab_size": 400, "num_attention_heads": 8, "num_key_value_heads": 8}
    for name, width, layers in (("small", 64, 1), ("large", 768, 8)):
        config = LlamaConfig(hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, **size)
        net: Any = LlamaForCausalLM(config)
        net.save_pretrained(tmp_path / name)
        n = sum(p.numel() for p in net.parameters())
    del net
    words = [sys.executable, "-c", PEAK, str(tmp_path / "large"), str(n)]
    out = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
    measured, estimated = (float(x) for x in out[-2:])
    assert n > 70_000_000
    assert measured <= estimated * 1.1
    assert measured >= estimated * 0.5
