"""The runner: what it refuses, what it keeps, what it writes down."""

import json
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from twohop import cli
from twohop.cli import _steps
from twohop.errors import TwohopError
from twohop.lineage import digest_of
from twohop.steps import _run
from twohop.steps._names import Declared
from twohop.steps._step import Job, Part, Step
from twohop.store import sha256_file

FACTS: dict[str, Any] = {
    "name": "fake_step",
    "params": ("fake_step", "models.{model}"),
    "inputs": ("source",),
    "outputs": ("result",),
}
Body = Callable[[Job], dict[str, int]]


@pytest.fixture
def job_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Body], _run.Call]]:
    """A call of a step whose body the test writes, in an empty project."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_run, "declared", lambda step: Declared(**FACTS))
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS"):
        monkeypatch.setenv(name, "1")
    Path("in.txt").write_text("read me")

    def make(body: Body) -> _run.Call:
        module: Any = types.ModuleType("twohop.steps.fake_step")
        module.STEP, module.run = Step(**FACTS), body
        monkeypatch.setitem(sys.modules, "twohop.steps.fake_step", module)
        return _run.Call(
            step="fake_step",
            model="m",
            params={"fake_step": {"a": 1}, "models.m": {}},
            inputs={"source": (Path("in.txt"),)},
            outputs={"result": Path("out/result.txt"), "lineage": Path("out/lineage.json")},
            code={},
            threads=1,
        )

    return make


def _write(job: Job) -> dict[str, int]:
    (job.work / "part").write_text("kept for a resumed run")
    job.output("result").write_text(job.input("source").read_text().upper())
    return {"done": 1}


def test_record_says_who_made_what_from_what(job_of: Callable[[Body], _run.Call]) -> None:
    record = _run.run(job_of(_write))
    assert json.loads(Path("out/lineage.json").read_text()) == json.loads(json.dumps(record.as_json()))
    assert [(i.path, i.sha256, i.run_id) for i in record.inputs] == [("in.txt", sha256_file(Path("in.txt")), None)]
    assert [(o.path, o.bytes) for o in record.outputs] == [("out/result.txt", 7)]
    assert record.params == {"fake_step": {"a": 1}, "models.m": {}}
    assert record.peak_mib > 1
    assert not Path(".cache/twohop/work/fake_step-m").exists()


def test_c01_work_survives_a_failure_and_is_found_again(job_of: Callable[[Body], _run.Call]) -> None:
    def die(job: Job) -> dict[str, int]:
        (job.work / "part").write_text("1")
        job.output("result").write_text("half")
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        _run.run(job_of(die))
    assert not list(Path("out").iterdir())  # promise C3

    def resume(job: Job) -> dict[str, int]:
        job.output("result").write_text((job.work / "part").read_text())
        return {}

    _run.run(job_of(resume))
    assert Path("out/result.txt").read_text() == "1"


def test_c05_leftovers_of_a_dead_run_are_removed(job_of: Callable[[Body], _run.Call]) -> None:
    Path("out").mkdir()
    Path("out/.result.txt.123.tmp").write_text("half")
    Path(".cache/twohop/work/fake_step-m/0123").mkdir(parents=True)
    _run.run(job_of(_write))
    assert {p.name for p in Path("out").iterdir()} == {"result.txt", "lineage.json"}


def test_c03_a_step_that_forgets_an_output_leaves_none(job_of: Callable[[Body], _run.Call]) -> None:
    with pytest.raises(TwohopError, match=r"without writing out/result\.txt"):
        _run.run(job_of(lambda job: {}))
    assert not Path("out/lineage.json").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"params": {"fake_step": {}}}, "missing ['models.m']"),
        ({"inputs": {}}, "missing ['source']"),
        ({"outputs": {"lineage": Path("l"), "result": Path("r"), "more": Path("m")}}, "not declared ['more']"),
        ({"model": None}, "works on one model"),
        ({"inputs": {"source": (Path("absent"),)}}, "an input is missing"),
    ],
)
def test_b04_a_call_that_does_not_fit_is_refused(
    job_of: Callable[[Body], _run.Call], change: dict[str, Any], told: str
) -> None:
    call = job_of(_write)
    with pytest.raises(TwohopError) as caught:
        _run.run(_run.Call(**{**vars(call), **change}))
    assert told in str(caught.value)
    assert not Path("out").exists()


def test_undeclared_imports_are_refused(job_of: Callable[[Body], _run.Call], monkeypatch: pytest.MonkeyPatch) -> None:
    call = job_of(_write)
    monkeypatch.setattr(_run, "libraries", lambda module: frozenset[str]())
    monkeypatch.setattr(_run, "step_code", lambda step: {"in.txt": "1"})
    monkeypatch.setattr(_run, "_may_load", lambda step: {"twohop/errors.py"})
    with pytest.raises(TwohopError, match="import statements do not show"):
        _run.run(_run.Call(**{**vars(call), "code": {"code": digest_of({"in.txt": "1"})}}))
    assert not Path("out/result.txt").exists()


def test_code_edited_meanwhile_is_refused(job_of: Callable[[Body], _run.Call], monkeypatch: pytest.MonkeyPatch) -> None:
    def edit(job: Job) -> dict[str, int]:
        Path("code.py").write_text("new")
        return _write(job)

    Path("code.py").write_text("old")
    call = job_of(edit)
    monkeypatch.setattr(_run, "libraries", lambda module: frozenset[str]())
    monkeypatch.setattr(_run, "step_code", lambda step: {"code.py": Path("code.py").read_text()})
    monkeypatch.setattr(_run, "_loaded", set)
    monkeypatch.setattr(_run, "_may_load", lambda step: set())
    with pytest.raises(TwohopError, match=r"edited while it ran: code\.py"):
        _run.run(_run.Call(**{**vars(call), "code": {"code": digest_of({"code.py": "old"})}}))
    assert not Path("out/result.txt").exists()


@pytest.mark.parametrize(
    "fault", [OSError(28, "No space left on device"), ValueError("No space left on device (os error 28)")]
)
def test_c07_full_disk_is_told_without_a_traceback(
    job_of: Callable[[Body], _run.Call],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    fault: Exception,
) -> None:
    def full(job: Job) -> dict[str, int]:
        raise fault

    job_of(full)
    monkeypatch.setattr(_steps, "STEPS", ("fake_step",))
    monkeypatch.setattr(_steps, "summary_of", lambda step: "")
    words = "fake_step --model m --in source in.txt --out result out/r --out lineage out/l --params"
    assert cli.main([*words.split(), '{"fake_step": {}, "models.m": {}}']) == 2
    assert capsys.readouterr().err.startswith("error: the disk is full")


def _sharded(call: _run.Call, monkeypatch: pytest.MonkeyPatch) -> _run.Call:
    facts = {**FACTS, "in_shards": True}
    monkeypatch.setattr(_run, "declared", lambda step: Declared(**facts))
    module: Any = sys.modules["twohop.steps.fake_step"]
    module.STEP = Step(**facts)

    def run_shard(job: Job, part: Part) -> dict[str, int]:
        (job.work / f"part{part.index}").write_text(f"{part.index + 1} of {part.of}, ")
        return {"done": 1}

    module.run_shard = run_shard
    return call


def _gather(job: Job) -> dict[str, int]:
    job.output("result").write_text("".join(p.read_text() for p in sorted(job.work.glob("part*"))))
    assert [p.name for p in job.shards] == ["1-of-2.json", "2-of-2.json"]
    assert set(job.inputs) == {"source"}
    return {"done": 2}


def test_shards_leave_markers_and_one_record(
    job_of: Callable[[Body], _run.Call], monkeypatch: pytest.MonkeyPatch
) -> None:
    call = _sharded(job_of(_gather), monkeypatch)
    markers = tuple(Path(f"shards/{i}-of-2.json") for i in (1, 2))
    for marker in markers:
        assert _run.run(replace(call, outputs={"shard": marker})) is None
        assert json.loads(marker.read_text()) == {"done": 1}
    assert not Path("out/lineage.json").exists()
    record = _run.run(replace(call, inputs={**call.inputs, "shards": markers}))
    assert Path("out/result.txt").read_text() == "1 of 2, 2 of 2, "
    assert [i.name for i in record.inputs] == ["source"]
    assert not Path(".cache/twohop/work/fake_step-m").exists()


@dataclass(frozen=True)
class Opened:
    name: str

    def as_json(self) -> dict[str, str]:
        return {"name": self.name, "source": "here", "revision": "0"}


def test_record_of_shards_is_that_of_one_job(
    job_of: Callable[[Body], _run.Call], monkeypatch: pytest.MonkeyPatch
) -> None:
    call = _sharded(job_of(lambda job: job.output("result").write_text("x") and {}), monkeypatch)
    models: Any = types.ModuleType("twohop.models")
    models.set_fetcher = lambda _: None
    models.opened = lambda: [Opened("m")]
    monkeypatch.setitem(sys.modules, "twohop.models", models)
    alone = _run.run(call)
    assert len(alone.models) == 1
    _run.run(replace(call, outputs={"shard": Path("1-of-1.json")}))
    models.opened = list
    gathered = _run.run(replace(call, inputs={**call.inputs, "shards": (Path("1-of-1.json"),)}))
    assert gathered.key == alone.key
    assert gathered.models == alone.models


@pytest.mark.parametrize("name", ["0-of-2", "3-of-2", "x", "1-of-"])
def test_a_marker_that_names_no_part_is_refused(
    job_of: Callable[[Body], _run.Call], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    call = _sharded(job_of(_gather), monkeypatch)
    with pytest.raises(TwohopError, match="no part of a whole"):
        _run.run(replace(call, outputs={"shard": Path(f"{name}.json")}))


def test_a_step_that_cannot_be_shared_refuses_shards(job_of: Callable[[Body], _run.Call]) -> None:
    with pytest.raises(TwohopError, match="not declared"):
        _run.run(replace(job_of(_write), outputs={"shard": Path("1-of-2.json")}))
