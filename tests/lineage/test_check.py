"""Artifacts are checked against their records, against now, and DVC's cache against its names."""

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from records import BLANK, read_by, write_run
from twohop.config import load_params
from twohop.errors import TwohopError
from twohop.lineage import InputFile, OutputFile, check_cache, find_stale, read_sound_records, step_code, verify
from twohop.lineage._check import locked_files
from twohop.store import sha256_file, write_json

ROOT = Path(__file__).parents[2]


def _artifact(folder: Path, run_id: str, *names: str) -> None:
    write_run(folder, run_id, {name: f"{name} of equal length" for name in names})


@pytest.fixture(autouse=True)
def _in_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _flip(folder: Path) -> None:
    data = bytearray((folder / "x.bin").read_bytes())
    data[3] ^= 1
    (folder / "x.bin").write_bytes(data)


def _truncate(folder: Path) -> None:
    (folder / "x.bin").write_bytes((folder / "x.bin").read_bytes()[:-1])


def _delete(folder: Path) -> None:
    (folder / "x.bin").unlink()


def _swap(folder: Path) -> None:
    x, y = folder / "x.bin", folder / "y.bin"
    one, other = x.read_bytes(), y.read_bytes()
    x.write_bytes(other)
    y.write_bytes(one)


@pytest.mark.parametrize(
    ("damage", "bad", "told"),
    [
        (_flip, {"x.bin"}, "differ"),
        (_truncate, {"x.bin"}, "bytes, recorded"),
        (_delete, {"x.bin"}, "missing"),
        (_swap, {"x.bin", "y.bin"}, "differ"),
    ],
)
def test_a01_damage_is_named(tmp_path: Path, damage: Callable[[Path], None], bad: set[str], told: str) -> None:
    folder = tmp_path / "results" / "step"
    _artifact(folder, "run", "x.bin", "y.bin")
    assert verify((tmp_path / "results",)) == (2, [])
    damage(folder)
    _, faults = verify((tmp_path / "results",))
    assert {Path(f.path).name for f in faults} == bad
    assert all(told in f.what for f in faults)


def test_a01_a_file_without_a_record_is_named(tmp_path: Path) -> None:
    _artifact(tmp_path / "results/step", "run", "x.bin")
    (tmp_path / "results/step/stray.bin").write_text("?")
    assert [Path(f.path).name for f in verify((tmp_path / "results",))[1]] == ["stray.bin"]
    (tmp_path / "results/step/lineage.json").write_text("{")
    assert {Path(f.path).name for f in verify((tmp_path / "results",))[1]} == {"lineage.json", "stray.bin", "x.bin"}


def test_a01_a_projector_of_the_repository_is_checked_against_its_training_log(tmp_path: Path) -> None:
    projector, log = tmp_path / "m/projector.safetensors", tmp_path / "m/log.json"
    projector.parent.mkdir()
    projector.write_bytes(b"weights")
    write_json(log, {"projector_sha256": sha256_file(projector)})
    assert verify((tmp_path,)) == (1, [])
    projector.write_bytes(b"weightz")
    assert [(f.path, f.what) for f in verify((tmp_path,))[1]] == [
        (str(projector), "its bytes differ from the sha256 in its training log")
    ]
    log.write_text("{}")
    assert [f.path for f in verify((tmp_path,))[1]] == [str(log)]
    projector.unlink()
    write_json(log, {"projector_sha256": "0"})
    assert [f.what for f in verify((tmp_path,))[1]] == ["missing"]


def _stale(params_file: Path | None = None) -> list[str]:
    params = load_params(params_file) if params_file else None
    return [f.what for f in find_stale(read_sound_records([Path("results")]), params)]


def test_a04_a_changed_param_is_named_with_both_values(tmp_path: Path) -> None:
    file = Path("params.yaml")
    shutil.copy(ROOT / "tests/tiny/params.yaml", file)
    seed = load_params(file).train_probes.seed
    params = {"train_probes": load_params(file).model_dump(mode="json")["train_probes"]}
    write_run(Path("results/train_probes/m"), "run-1", {"x.bin": "x"}, params=params)
    assert _stale(file) == []
    text = file.read_text()
    at = text.index("seed:", text.index("train_probes:"))
    file.write_text(text[:at] + text[at:].replace(f"seed: {seed}", f"seed: {seed + 7}", 1))
    assert _stale(file) == [f"out of date: params train_probes.seed: {seed} -> {seed + 7}"]


def test_a04_a_param_that_is_gone_is_named(tmp_path: Path) -> None:
    shutil.copy(ROOT / "tests/tiny/params.yaml", "params.yaml")
    write_run(Path("results/make"), "run-1", {"x.bin": "x"}, params={"models.gone": {"role": "vlm"}})
    assert _stale(Path("params.yaml")) == ["out of date: params models.gone is gone from params.yaml"]


@pytest.mark.parametrize(("projector", "stale"), [("results/train_projector/m/p", 1), ("data/models/m/p", 0)])
def test_a04_a_training_is_out_of_date_only_where_the_pipeline_does_it(projector: str, stale: int) -> None:
    made = OutputFile("projector", "results/train_projector/m/p", "0" * 64, 1)
    read = InputFile("other", "no/such/file", "0" * 64, None)
    params = {"models.m": {"source": {"projector": projector}}}
    record = replace(BLANK, step="train_projector", model="m", params=params, outputs=(made,), inputs=(read,))
    assert len(find_stale([record], None)) == stale


def test_a04_changed_code_is_named_by_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    code = step_code("train_probes")
    record = replace(BLANK, step="train_probes", code=code)
    assert find_stale([record], None) == []
    file = next(iter(code))
    (fault,) = find_stale([replace(record, code={**code, file: "0" * 64})], None)
    assert fault.what == f"out of date: code {file}"


def test_a04_a_changed_or_absent_input_is_named() -> None:
    made = write_run(Path("results/make"), "run-1", {"x.bin": "x"})
    write_run(Path("results/use"), "run-2", {"y.bin": "y"}, read_by(made))
    assert _stale() == []
    Path("results/make/x.bin").write_text("other")
    assert _stale() == ["out of date: input results/make/x.bin changed"]
    Path("results/make/x.bin").unlink()
    assert _stale() == ["out of date: input results/make/x.bin is absent"]


def _cached(data: bytes) -> Path:
    md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
    file = Path(".dvc/cache/files/md5") / md5[:2] / md5[2:]
    file.parent.mkdir(parents=True)
    file.write_bytes(data)
    lock = f"stages:\n  make@m:\n    cmd: x\n    outs:\n    - path: results/make/m/x.bin\n      md5: {md5}\n"
    Path("dvc.lock").write_text(lock)
    return file


def test_a03_a_bad_read_only_object_of_the_cache_is_named_with_its_artifact() -> None:
    file = _cached(b"some bytes")
    assert check_cache() == (1, [])
    file.write_bytes(b"some bytez")
    file.chmod(0o444)
    read, (fault,) = check_cache()
    assert (read, fault.path) == (1, str(file))
    assert fault.what.endswith("the cached copy of results/make/m/x.bin (stage make@m)")
    Path("dvc.lock").unlink()
    assert "no artifact of the current dvc.lock" in check_cache()[1][0].what


def test_a_broken_lock_is_refused() -> None:
    with pytest.raises(TwohopError, match=r"not a dvc\.lock"):
        list(locked_files("stages: [1"))
