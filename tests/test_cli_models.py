"""`twohop models` as a user meets it."""

import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import huggingface_hub.constants
import pytest

from twohop.cli import main
from twohop.config import RandomModel, load_params
from twohop.models._random import build_random

TOP = Path(__file__).parents[1]
COMMIT = "0a1b2c3d4e" * 4


@dataclass(frozen=True)
class Done:
    """What a command left."""

    returncode: int
    stdout: str
    stderr: str


Twohop = Callable[..., Done]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("project")
    for name, layers, role in (("vlm", 3, "vlm"), ("llm", 3, "backbone"), ("deep", 4, "backbone")):
        (root / name).mkdir()
        build_random(root / name, RandomModel(kind="random", seed=0, n_layers=layers, d_model=32), None, role, 32)
        (root / name / "chat_template.jinja").unlink(missing_ok=True)
    shutil.copy(TOP / "params.yaml", root)
    return root


@pytest.fixture
def twohop(project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Twohop]:
    """The command in this process (another one would import torch for seconds), in the project's folder."""
    before = (project / "params.yaml").read_text()
    monkeypatch.chdir(project)
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)

    def run(*words: str, offline: str = "1", hub: str = "") -> Done:
        for key, value in {"HF_HUB_OFFLINE": offline, "TWOHOP_HUB_OFFLINE": offline, "HF_ENDPOINT": hub}.items():
            monkeypatch.setenv(key, value)
        capsys.readouterr()
        code = main(["models", *words])
        return Done(code, *capsys.readouterr())

    yield run
    huggingface_hub.close_session()
    (project / "params.yaml").write_text(before)


def test_exit_code_2_without_a_traceback(project: Path) -> None:
    program = [sys.executable, "-m", "twohop", "models", "show", "nope"]
    done = subprocess.run(program, cwd=project, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.splitlines()[0]) == (2, "error: no model nope")
    assert "Traceback" not in done.stderr


def test_list_and_show(twohop: Twohop) -> None:
    text = twohop("list").stdout
    assert "flags-caption          vlm" in text
    assert "llava-1.5-7b           confirmed" in text
    tree = json.loads(twohop("list", "--json").stdout)
    assert tree["catalogue"]["gemma-3-12b"]["degradation"] == "low"
    assert json.loads(twohop("show", "gemma-3-12b", "--json").stdout)["revision"] is None
    assert "recipe" in twohop("show", "flags-early").stdout


def test_check_of_a_folder(twohop: Twohop) -> None:
    done = twohop("check", "vlm", "--backbone", "./llm")
    assert done.returncode == 0, done.stderr
    assert "3 layers, d_model 32, 4 heads (2 for keys and values)" in done.stdout
    assert "token <image> (384), 4 of them a picture" in done.stdout
    assert "relative distance of the weights, by layer: 0 0 0" in done.stdout
    assert "score_attribution" in done.stdout
    assert done.stdout.endswith("good: nothing found that speaks against it\n")


def test_check_for_programs(twohop: Twohop) -> None:
    done = twohop("check", "./vlm", "--backbone", "./deep", "--prompt", "chat", "--json")
    assert done.returncode == 2
    tree = json.loads(done.stdout)
    assert [f.split(":")[0] for f in tree["faults"]] == ["./vlm", "./deep", "backbone does not fit"]
    assert tree["memory"]["run_benchmark"]["cpu_mb"] > 0
    assert done.stderr.startswith("error: ./vlm: no chat template")


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("flags-erly", "no model flags-erly; did you mean flags-early?"),
        ("./nowhere", "no such folder"),
        ("flags-early", "flags-early is made here and is not yet made"),
        ("flags-cross", "flags-cross is made here"),
        ("some/vlm", "some/vlm is not on this disk, and HF_HUB_OFFLINE is set"),
        ("llava-1.5-7b", "llava-hf/llava-1.5-7b-hf is not on this disk, and HF_HUB_OFFLINE is set"),
    ],
)
def test_check_of_what_cannot_be_looked_at(twohop: Twohop, name: str, what: str) -> None:
    done = twohop("check", name)
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == f"error: {what}"


def test_hub_that_is_not_there(twohop: Twohop) -> None:
    done = twohop("check", "some/vlm", offline="0", hub="http://127.0.0.1:9")
    assert done.returncode == 2
    assert done.stderr.startswith("error: no connection to the hub")


def test_check_of_a_model_on_the_hub(twohop: Twohop, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Configs and headers only: the weights are not asked for."""
    monkeypatch.syspath_prepend(str(TOP / "tests/data"))
    import fake_hub

    def repository(name: str, **more: Any) -> fake_hub.Repo:
        files = {p.name: p.read_bytes() for p in (project / name).iterdir()}
        return fake_hub.Repo(COMMIT, files, branches={"main": COMMIT}, **more)

    repos = {
        "some/vlm": repository("vlm", card={"license": "mit", "base_model": "some/llm"}),
        "some/llm": repository("llm"),
    }
    with fake_hub.serve(repos) as url:
        done = twohop("check", "some/vlm", "--backbone", "some/llm", offline="0", hub=url)
    assert done.returncode == 0, done.stderr
    assert f"commit      {COMMIT}" in done.stdout
    assert "access      open; licence: mit" in done.stdout
    assert "made from   some/llm" in done.stdout
    assert "the same shapes, layer by layer (27 tensors)" in done.stdout
    assert "weights: not known" in done.stdout
    assert all(span is not None for name, span in repos["some/vlm"].asked if name.endswith(".safetensors"))


def test_add_keeps_the_file_as_it_is(twohop: Twohop, project: Path) -> None:
    before = (project / "params.yaml").read_text().splitlines()
    done = twohop("add", "my-vlm", "--vlm", "./vlm", "--backbone", "./llm", "--prompt", "plain", "--note", "a: b")
    assert done.returncode == 0, done.stderr
    after = (project / "params.yaml").read_text().splitlines()
    new = [line for line in after if line not in before]
    assert new == ["  my-vlm: {vlm: ./vlm, backbone: ./llm, prompt: plain, note: 'a: b'}"]
    assert [line for line in after if line not in new] == before
    params = load_params(project / "params.yaml")
    assert params.models["my-vlm"].backbone == "my-vlm-backbone"
    done = twohop("check", "my-vlm")
    assert done.returncode == 0, done.stderr
    assert "my-vlm" in twohop("list").stdout


def test_add_of_a_commit_that_looks_like_a_number(twohop: Twohop, project: Path) -> None:
    commit = "1" * 40
    done = twohop("add", "my-vlm", "--vlm", "some/vlm", "--revision", commit, "--unchecked")
    assert done.returncode == 0, done.stderr
    source: Any = load_params(project / "params.yaml").models["my-vlm"].source
    assert source.revision == commit


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["my-vlm", "--vlm", "some/vlm", "--revision", "main"], "models.my-vlm.revision: is 'main'; allowed: a commit"),
        (["my-vlm", "--vlm", "./vlm", "--backbone", "./deep", "--prompt", "plain"], "backbone does not fit: the VLM's"),
        (["my-vlm", "--vlm", "./vlm", "--backbone", "./llm"], "my-vlm: no chat template, and its prompt is chat"),
        (["flags-early", "--vlm", "./vlm"], "models.flags-early: is there already"),
        (["my.vlm", "--vlm", "./vlm"], "models.my.vlm: is no usable name"),
    ],
)
def test_add_of_what_does_not_fit_changes_nothing(twohop: Twohop, project: Path, words: list[str], what: str) -> None:
    before = (project / "params.yaml").read_text()
    done = twohop("add", *words)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {what}")
    assert (project / "params.yaml").read_text() == before


def test_fetch_without_a_network_says_what_to_do(twohop: Twohop) -> None:
    assert twohop("fetch").returncode == 0, "nothing here comes from a hub"
    assert twohop("add", "far", "--vlm", "some/vlm", "--revision", COMMIT, "--unchecked").returncode == 0
    done = twohop("fetch", "far")
    assert done.returncode == 2
    assert "ahead of runs without one: twohop models fetch" in done.stderr
    assert "no model typo" in twohop("fetch", "typo").stderr
