"""Lineage records of made-up runs, on disk as the runner leaves them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from twohop.lineage import FORMAT, HISTORY, InputFile, OutputFile, Record, digest_of
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
    params_sha256="0" * 64,
    batch=None,
    code_sha256="",
    models=(),
    command="",
    ended="2026-01-01T00:00:01+00:00",
    threads=1,
    started="2026-01-01T00:00:00+00:00",
    seconds=1.0,
    peak_mib=1.0,
    summary={"done": 1},
)


def read_by(record: Record) -> tuple[InputFile, ...]:
    """A run's outputs, as another run's inputs."""
    return tuple(InputFile(o.name, o.path, o.sha256, record.run_id) for o in record.outputs)


def write_run(
    folder: Path,
    run_id: str,
    files: Mapping[str, str] | None = None,
    reads: Sequence[InputFile] = (),
    **fields: Any,
) -> Record:
    """Files of a run with their record beside them and in the history; files that exist already are kept.

    Args:
        folder: where the files lie; the step is the first folder below results, the model the second.
        run_id: the run.
        files: file name to its text; None keeps the text that a file has.
        reads: inputs.
        fields: other fields of the record.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (files or {}).items():
        if text is not None:
            (folder / name).write_text(text)
    outputs = tuple(_output(folder / name) for name in files or {})
    parts = folder.parts
    step, *model = parts[parts.index("results") + 1 :] if "results" in parts else (folder.name,)
    given = {"step": step, "model": model[0] if model else None, "params": {}, "code": {}, **fields}
    key = digest_of([given["step"], given["model"], given["params"], given["code"], [i.sha256 for i in reads]])
    record = replace(BLANK, run_id=run_id, inputs=tuple(reads), outputs=outputs, **{"key": key, **given})
    write_json(folder / "lineage.json", record.as_json())
    write_json(HISTORY / f"{run_id}.json", record.as_json())
    return record


def _output(path: Path) -> OutputFile:
    return OutputFile(path.stem, str(path), sha256_file(path), path.stat().st_size)
