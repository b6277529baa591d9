"""Runs one job: checks what it is given against the step's declaration, calls the step, and leaves the lineage record.

A job sees only its slice of params.yaml. Its outputs are kept only when the step wrote all of them, used no source file
beyond those that were declared, and none of these was edited meanwhile. Whatever goes wrong, no output stays.
"""

import importlib
import logging
import os
import platform
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from twohop.errors import TwohopError
from twohop.lineage import (
    FORMAT,
    HISTORY,
    InputFile,
    ModelUse,
    OutputFile,
    Record,
    closure,
    digest_of,
    libraries,
    record_of,
    source_root,
    step_code,
    step_of_run,
)
from twohop.steps._fetching import fetch
from twohop.steps._names import declared
from twohop.steps._step import Job, Part, Step, Summary
from twohop.store import read_json, sha256_file, write_json

WORK = Path(".cache/twohop/work")
SHARD, SHARDS = "shard", "shards"
"""Output of a job that makes a part of a step's rows (`<number>-of-<number>`); input of the job that gathers them."""
_RECORDED = (
    "torch",
    "transformers",
    "numpy",
    "polars",
    "h5py",
    "pillow",
    "matplotlib",
    "snakemake",
    "dvc",
)
_OPENED = "opened-"
"""Start of the name of the files in which shards' jobs leave what models they opened."""
_DECLARED = ("name", "params", "inputs", "outputs", "per_model", "in_shards")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Call:
    """A job as the command line gives it."""

    step: str
    model: str | None
    params: Mapping[str, Any]
    inputs: Mapping[str, tuple[Path, ...]]
    outputs: Mapping[str, Path]
    code: Mapping[str, str]
    """What the rule's params say of the code (see `lineage.step_codes`); empty when the step is called by hand."""
    threads: int

    @property
    def label(self) -> str:
        """`step` or `step model`, for people."""
        return self.step if self.model is None else f"{self.step} {self.model}"


def run(call: Call) -> Record | None:
    """Run a job; its record is also written to the output named `lineage` (a shard's job has none).

    Raises:
        TwohopError: the call does not fit the step's declaration, an input is missing, an output was not written, or
            the code that ran is not the code that was declared.
    """
    signal.signal(signal.SIGTERM, _terminate)
    _check_call(call)
    with step_of_run(Path()):
        for path in call.outputs.values():
            _clear(path)
        try:
            return _run(call)
        except BaseException:
            for path in call.outputs.values():
                path.unlink(missing_ok=True)
            raise


def _terminate(signum: int, _frame: object) -> None:
    raise SystemExit(128 + signum)


def _run(call: Call) -> Record | None:
    started, clock = datetime.now(UTC), time.monotonic()
    read = list(_read_inputs(call))
    inputs = tuple(item for item, _ in read)
    code = _code(call)
    identity = _identity(call, code, inputs)
    work = WORK / "-".join(filter(None, (call.step, call.model)))
    job = _job(call, work / identity["key"][:16], identity)
    _limit_threads(call.threads)
    module = importlib.import_module(f"twohop.steps.{call.step}")
    _check_declaration(call, module.STEP)
    _allow_downloads()
    _use_threads(call.threads)
    if SHARD in call.outputs:
        return _run_shard(call, module, job, code)
    summary: Summary = module.run(job)
    _check_after(call, code)
    record = Record(
        format=FORMAT,
        run_id=str(uuid.uuid4()),
        key=identity["key"],
        step=call.step,
        model=call.model,
        params=dict(call.params),
        params_sha256=identity["params_sha256"],
        batch=_batch(call),
        inputs=inputs,
        outputs=tuple(_output(n, p) for n, p in call.outputs.items() if n != "lineage"),
        code=code,
        code_sha256=identity["code_sha256"],
        models=_models((record for _, record in read), job.work),
        commit=_git("rev-parse", "HEAD"),
        dirty=None if (changes := _git("status", "--porcelain", "--untracked-files=no")) is None else bool(changes),
        versions=_versions(),
        host=_host(),
        threads=call.threads,
        command=shlex.join(["twohop", *sys.argv[1:]]),
        started=started.isoformat(timespec="seconds"),
        ended=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(time.monotonic() - clock, 2),
        peak_mib=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        summary=dict(summary),
    )
    write_json(HISTORY / f"{record.run_id}.json", record.as_json())
    write_json(call.outputs["lineage"], record.as_json())
    shutil.rmtree(work, ignore_errors=True)
    log.info("%s", _last_line(call, record))
    return record


def _allow_downloads() -> None:
    """A step that uses models may need one that is not on this disk, or not any more."""
    models = sys.modules.get("twohop.models")
    if models is not None:
        models.set_fetcher(fetch)


def _run_shard(call: Call, module: Any, job: Job, code: Mapping[str, str]) -> None:
    """A part of the rows: it stays in the job's folder, and a marker says that it is made."""
    started, marker = time.monotonic(), call.outputs[SHARD]
    summary: Summary = module.run_shard(job, _part(marker))
    write_json(job.work / f"{_OPENED}{marker.stem}.json", [asdict(m) for m in _models((), job.work)])
    write_json(marker, dict(summary))
    _check_after(call, code)
    counts = ", ".join(f"{k} {v}" for k, v in summary.items())
    log.info("%s: %s; %.1f s", call.label, counts, time.monotonic() - started)


def _part(marker: Path) -> Part:
    found = re.fullmatch(r"(\d+)-of-(\d+)", marker.stem)
    number, of = (int(x) for x in found.groups()) if found else (0, 0)
    if not 1 <= number <= of:
        raise TwohopError("no part of a whole", str(marker), "name it <number>-of-<number>, from 1-of-1")
    return Part(number - 1, of)


def _last_line(call: Call, record: Record) -> str:
    counts = ", ".join(f"{k} {v}" for k, v in record.summary.items())
    size = sum(o.bytes for o in record.outputs)
    return f"{call.label}: {counts}; {record.seconds:.1f} s, {size} bytes written, peak {record.peak_mib:.0f} MiB"


def _check_call(call: Call) -> None:
    """The command line against the declaration in the step's source."""
    want = declared(call.step)
    if want.per_model != (call.model is not None):
        raise TwohopError(
            f"{call.step} {'works on one model' if want.per_model else 'takes no --model'}", "command line"
        )
    keys = {k.format(model=call.model) for k in want.params}
    _same(call, "params", keys, call.params)
    extra = {SHARDS} & set(call.inputs) if want.in_shards else set[str]()
    part = want.in_shards and SHARD in call.outputs
    _same(call, "inputs", {*want.inputs, *extra}, call.inputs)
    _same(call, "outputs", {SHARD} if part else {*want.outputs, "lineage"}, call.outputs)
    for path in (p for files in call.inputs.values() for p in files):
        if not path.exists():
            raise TwohopError("an input is missing", str(path), "make it: snakemake --cores all " + str(path))


def _same(call: Call, what: str, want: Iterable[str], have: Iterable[str]) -> None:
    missing, odd = sorted(set(want) - set(have)), sorted(set(have) - set(want))
    if missing or odd:
        raise TwohopError(
            f"{what} do not fit the step: missing {missing or 'none'}, not declared {odd or 'none'}",
            call.label,
            "let its rule in workflow/rules and its STEP say the same",
        )


def _check_declaration(call: Call, step: Step) -> None:
    seen = declared(call.step)
    parts = [(getattr(step, f), getattr(seen, f)) for f in _DECLARED]
    if any(a != b for a, b in parts) or step.name != call.step:
        raise TwohopError(
            "STEP differs from its literal declaration", f"twohop.steps.{call.step}", "write it as literals"
        )


def _check_after(call: Call, code: Mapping[str, str]) -> None:
    gone = [str(p) for n, p in call.outputs.items() if n != "lineage" and not p.exists()]
    if gone:
        raise TwohopError(
            f"the step ended without writing {', '.join(gone)}", call.label, "this is a fault of the step: report it"
        )
    if call.code:
        _check_code(call, code)


def _check_code(call: Call, code: Mapping[str, str]) -> None:
    extra = _loaded() - _may_load(call.step)
    if extra:
        raise TwohopError(
            f"it imported source files that its import statements do not show: {', '.join(sorted(extra))}",
            call.label,
            "import them by an import statement; the outputs were removed",
        )
    edited = [p for p, digest in step_code(call.step).items() if digest != code.get(p)]
    if edited:
        raise TwohopError(
            f"its code was edited while it ran: {', '.join(edited)}",
            call.label,
            "run it again; the outputs were removed",
        )


def _loaded() -> set[str]:
    """Files of this package that the process has imported, relative to the source folder."""
    files = (getattr(m, "__file__", None) for n, m in list(sys.modules.items()) if n.split(".")[0] == "twohop")
    return {str(Path(f).resolve().relative_to(source_root())) for f in files if f}


def _may_load(step: str) -> set[str]:
    modules = (f"twohop.steps.{step}", "twohop.steps._run", "twohop.cli", "twohop.__main__")
    return {str(f) for m in modules for f in closure(m, loaded=True)}


def _clear(output: Path) -> None:
    """Leftovers of a killed run beside an output."""
    output.parent.mkdir(parents=True, exist_ok=True)
    for stale in output.parent.glob(f".{output.name}.*.tmp"):
        stale.unlink(missing_ok=True)


def _read_inputs(call: Call) -> Iterable[tuple[InputFile, Record | None]]:
    for name, files in call.inputs.items():
        for path in files if name != SHARDS else ():  # no artifacts: what they mark lies in the job's folder
            record = record_of(path)
            yield InputFile(name, str(path), sha256_file(path), record.run_id if record else None), record


def _output(name: str, path: Path) -> OutputFile:
    return OutputFile(name, str(path), sha256_file(path), path.stat().st_size)


def _code(call: Call) -> dict[str, str]:
    """Digests of the step's source files; none for a step that was called by hand, outside of a project.

    Raises:
        TwohopError: they are not what the rule declared.
    """
    if not call.code:
        return {}
    digests = step_code(call.step)
    now = {name: found for name in call.code if (found := _installed(name)) is not None}
    if {"code": digest_of(digests), **now} != call.code:
        raise TwohopError(
            "its code or a library is not what it was when the run was planned",
            call.label,
            "start snakemake (or dvc repro) again",
        )
    return digests


def _identity(call: Call, code: Mapping[str, str], inputs: Iterable[InputFile]) -> dict[str, Any]:
    """What the result follows from, and one key over all of it."""
    facts: dict[str, Any] = {
        "step": call.step,
        "model": call.model,
        "params_sha256": digest_of(dict(call.params)),
        "code_sha256": digest_of(dict(code)),
        "inputs": [[i.name, i.path, i.sha256] for i in inputs],
        "versions": _used_versions(call),
    }
    return {**facts, "key": digest_of(facts)}


def _used_versions(call: Call) -> dict[str, str]:
    """Of the recorded libraries, those that the step imports: half-done work of another version is not resumed (A7)."""
    if not call.code:
        return {}
    used = libraries(f"twohop.steps.{call.step}")
    return {name: number for name, number in _versions().items() if name in used}


def _batch(call: Call) -> int | None:
    section: Any = call.params.get(call.step)
    return section.get("batch") if isinstance(section, dict) else None


def _models(read: Iterable[Record | None], work: Path) -> tuple[ModelUse, ...]:
    """Models that this process or a shard's opened; those behind its inputs otherwise known by their records."""
    module = sys.modules.get("twohop.models")
    used = {m["name"]: ModelUse(**m) for file in sorted(work.glob(f"{_OPENED}*")) for m in read_json(file)}
    used |= {m.name: ModelUse(**m.as_json(), opened=True) for m in module.opened()} if module else {}
    for model in (m for record in read if record for m in record.models):
        used.setdefault(model.name, replace(model, opened=False))
    return tuple(used[name] for name in sorted(used))


def _host() -> dict[str, Any]:
    torch = sys.modules.get("torch")
    cuda = torch is not None and torch.cuda.is_available()
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "accelerator": torch.cuda.get_device_name() if torch is not None and cuda else None,
    }


def _job(call: Call, work: Path, identity: Mapping[str, Any]) -> Job:
    work.mkdir(parents=True, exist_ok=True)
    for other in work.parent.iterdir():
        if other != work:
            shutil.rmtree(other, ignore_errors=True)  # of other params, code or inputs: it can never be resumed
    inputs = {n: files for n, files in call.inputs.items() if n != SHARDS}
    outputs = {n: p for n, p in call.outputs.items() if n not in ("lineage", SHARD)}
    return Job(call.step, call.model, call.params, inputs, outputs, work, identity, call.inputs.get(SHARDS, ()))


def _limit_threads(threads: int) -> None:
    """Before libraries start their thread pools."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS"):
        os.environ[name] = str(threads)


def _use_threads(threads: int) -> None:
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(threads)


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(["git", *words], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _versions() -> dict[str, str]:
    found = {name: number for name in _RECORDED if (number := _installed(name)) is not None}
    return {"python": platform.python_version(), **found}


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
