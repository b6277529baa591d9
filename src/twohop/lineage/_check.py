"""Whether artifacts are what their records say, and still what the project would make.

`verify` re-reads bytes (promise A1); `find_stale` compares params, code and inputs with now (promise A4); `check_cache`
reads DVC's objects, whose bytes DVC itself trusts unread once they are read-only (promise A3).
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml

from twohop.config import Params, section_keys
from twohop.errors import ArtifactError, TwohopError
from twohop.lineage._code import step_code
from twohop.lineage._records import RECORD, Hashes, OutputFile, Record, read_record, sha256

TRAINING_LOG, PROJECTOR = "log.json", "projector.safetensors"
"""What `train_projector` leaves; under data/models the log stands for a record that git does not hold."""
CACHE = Path(".dvc/cache/files/md5")
_TRAINING = "train_projector"


@dataclass(frozen=True)
class Fault:
    """One artifact that is not what its record says."""

    path: str
    what: str


def verify(folders: tuple[Path, ...], hashes: Hashes | None = None) -> tuple[int, list[Fault]]:
    """Re-read every recorded artifact under some folders (promise A1); returns how many were read, and the faults."""
    hashes = hashes or Hashes()
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
                faults += _check(file, output, hashes)
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


def _check(file: Path, output: OutputFile, hashes: Hashes) -> Iterator[Fault]:
    if not file.exists():
        yield Fault(str(file), "missing")
    elif (size := file.stat().st_size) != output.bytes:
        yield Fault(str(file), f"has {size} bytes, recorded are {output.bytes}")
    elif hashes.of(file) != output.sha256:
        yield Fault(str(file), "its bytes differ from the recorded sha256")


def _strays(folder: Path, known: set[Path]) -> list[Path]:
    files = (p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    return sorted(p for p in files if p not in known)


def find_stale(records: Iterable[Record], params: Params | None, hashes: Hashes | None = None) -> list[Fault]:
    """Runs whose params, code or inputs are no longer what their record says; one fault each, with what differs.

    Trained projectors that git holds are left out: no run makes them again by itself.
    """
    codes: dict[str, Mapping[str, str]] = {}
    hashes = hashes or Hashes()
    faults: list[Fault] = []
    for record in (r for r in records if not _on_request(r)):
        if record.code and record.step not in codes:
            codes[record.step] = _code_now(record.step)
        changes = [
            *(_param_changes(record, params) if params else ()),
            *(_code_changes(record, codes[record.step]) if record.code else ()),
            *_input_changes(record, hashes),
        ]
        if changes:
            where = str(Path(record.outputs[0].path).parent) if record.outputs else record.step
            faults.append(Fault(where, f"out of date: {'; '.join(changes)}"))
    return faults


def _on_request(record: Record) -> bool:
    """Whether it is a training whose file the model's entry does not name: a copy of it in data/models is used."""
    if record.step != _TRAINING:
        return False
    source = record.params.get(f"models.{record.model}", {}).get("source", {})
    return source.get("projector") not in {output.path for output in record.outputs}


def _code_now(step: str) -> Mapping[str, str]:
    """Empty for a step that the project no longer has."""
    if not Path(f"src/twohop/steps/{step}.py").exists():
        return {}
    return step_code(step)


def _param_changes(record: Record, params: Params) -> Iterator[str]:
    for key, old in record.params.items():
        try:
            new = section_keys(params, [key])[key]
        except KeyError:
            yield f"params {key} is gone from params.yaml"
            continue
        yield from (f"params {at}: {a} -> {b}" for at, a, b in differences(old, new, key))


def _code_changes(record: Record, now: Mapping[str, str]) -> Iterator[str]:
    changed = [f for f in sorted({*record.code, *now}) if record.code.get(f) != now.get(f)]
    if changed:
        yield f"code {', '.join(changed)}"


def _input_changes(record: Record, hashes: Hashes) -> Iterator[str]:
    for item in record.inputs:
        path = Path(item.path)
        if not path.exists():
            yield f"input {path} is absent"
        elif hashes.of(path) != item.sha256:
            yield f"input {path} changed"


def differences(old: Any, new: Any, at: str) -> Iterator[tuple[str, str, str]]:
    """Dotted key, value before and value after, as JSON, for each leaf that differs; lists are leaves."""
    if isinstance(old, dict) and isinstance(new, dict):
        olds, news = cast("dict[str, Any]", old), cast("dict[str, Any]", new)
        for key in sorted({*olds, *news}):
            a, b = (tree.get(key, _ABSENT) for tree in (olds, news))
            yield from differences(a, b, f"{at}.{key}" if at else key)
    elif old != new:
        yield at, _shown(old), _shown(new)


_ABSENT = object()


def _shown(value: Any) -> str:
    return "(none)" if value is _ABSENT else json.dumps(value, ensure_ascii=False, sort_keys=True)


def check_cache(cache: Path = CACHE, lock: Path = Path("dvc.lock")) -> tuple[int, list[Fault]]:
    """Re-read every object of DVC's cache and compare it with its name; returns how many were read, and the faults."""
    text = lock.read_text(encoding="utf-8") if lock.exists() else ""
    used = {md5: (path, stage) for path, md5, stage in locked_files(text)}
    faults: list[Fault] = []
    objects = sorted(p for p in cache.glob("??/*") if p.is_file() and not p.name.endswith(".tmp"))
    for file in objects:
        name = file.parent.name + file.name.removesuffix(".dir")
        if _md5(file) != name:
            path, stage = used.get(name, ("no artifact of the current dvc.lock", ""))
            of = f"{path} (stage {stage})" if stage else path
            what = f"its bytes differ from its name; it is the cached copy of {of}"
            faults.append(Fault(str(file), what))
    return len(objects), faults


def locked_files(text: str) -> Iterator[tuple[str, str, str]]:
    """Path, md5 and stage of every output that a dvc.lock names.

    Raises:
        TwohopError: it is not the YAML that DVC writes.
    """
    try:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        stages: dict[str, Any] = (yaml.load(text, Loader=loader) or {}).get("stages", {})
        yield from ((o["path"], o["md5"], name) for name, s in stages.items() for o in s.get("outs", []) if "md5" in o)
    except (yaml.YAMLError, AttributeError, TypeError, KeyError) as error:
        raise TwohopError(f"not a dvc.lock: {error}", "dvc.lock", "restore it: git checkout dvc.lock") from None


def _md5(file: Path) -> str:
    with file.open("rb") as f:
        return hashlib.file_digest(f, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
