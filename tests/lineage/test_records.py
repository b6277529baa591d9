"""Records beside artifacts: the bytes are checked, the way back is found."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from twohop.errors import ArtifactError
from twohop.lineage import FORMAT, InputFile, OutputFile, Record, read_record, record_of, trace, verify
from twohop.store import sha256_file, write_json

BLANK = Record(
    run_id="run-1",
    step="make",
    model=None,
    params={},
    inputs=(),
    outputs=(),
    code={},
    commit=None,
    dirty=None,
    versions={},
    host={},
    format=FORMAT,
    key="key",
    params_sha256="",
    batch=None,
    code_sha256="",
    models=(),
    command="",
    ended="2026-01-01T00:00:00+00:00",
    threads=1,
    started="2026-01-01T00:00:00+00:00",
    seconds=0.0,
    peak_mib=1.0,
    summary={"done": 1},
)


def _artifact(folder: Path, run_id: str, *names: str, reads: tuple[InputFile, ...] = ()) -> Record:
    folder.mkdir(parents=True)
    outputs = []
    for name in names:
        path = folder / name
        path.write_text(f"{folder.name} {name} of equal length"[:20])
        outputs.append(OutputFile(name.split(".")[0], str(path), sha256_file(path), path.stat().st_size))
    record = replace(BLANK, run_id=run_id, inputs=reads, outputs=tuple(outputs))
    write_json(folder / "lineage.json", record.as_json())
    return record


def test_a_record_survives_the_file(tmp_path: Path) -> None:
    record = _artifact(tmp_path / "a", "run-a", "x.bin")
    assert read_record(tmp_path / "a/lineage.json") == record
    assert record_of(tmp_path / "a/x.bin") == record
    assert record_of(tmp_path / "a/other.bin") is None


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


def test_trace_walks_back_and_flags_another_run(tmp_path: Path) -> None:
    made = _artifact(tmp_path / "a", "run-a", "x.bin")
    read = InputFile("x", str(tmp_path / "a/x.bin"), made.outputs[0].sha256, "run-a")
    _artifact(tmp_path / "b", "run-b", "y.bin", reads=(read,))
    lines = list(trace(tmp_path / "b/y.bin"))
    assert [(a.depth, Path(a.path).name, a.note) for a in lines] == [(0, "y.bin", ""), (1, "x.bin", "")]
    write_json(tmp_path / "a/lineage.json", replace(made, run_id="run-c").as_json())
    assert "another run" in list(trace(tmp_path / "b/y.bin"))[1].note


def test_trace_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no such file"):
        list(trace(tmp_path / "x"))


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
