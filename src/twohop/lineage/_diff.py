"""What differs between two runs: params, code, inputs (down to the run that first differed), versions, host, models.

A run of another git revision is found by `REV:path`: dvc.lock of that revision names the record, DVC's cache holds it.
"""

import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from twohop.errors import ArtifactError, TwohopError
from twohop.lineage._check import CACHE, differences, locked_files
from twohop.lineage._query import Book, Target, describe, resolve
from twohop.lineage._records import RECORD, InputFile, Record, read_record


@dataclass(frozen=True)
class Change:
    """One value in run A and in run B, as text."""

    key: str
    a: str
    b: str


@dataclass(frozen=True)
class Cause:
    """Two runs of one step, further up, that differ in more than their inputs."""

    a: str
    """Short id, step and model."""
    b: str
    changes: tuple[Change, ...]
    """In params and code; empty when the two had no reason to differ (or a file was altered by hand)."""


@dataclass(frozen=True)
class InputChange:
    """An input whose content differs, and where the difference began."""

    name: str
    path: str
    a: str | None
    """sha256; None when the run did not read it."""
    b: str | None
    causes: tuple[Cause, ...]


@dataclass(frozen=True)
class Difference:
    """What differs between run A and run B."""

    a: str
    b: str
    same_key: bool
    params: tuple[Change, ...]
    code: tuple[Change, ...]
    inputs: tuple[InputChange, ...]
    versions: tuple[Change, ...]
    host: tuple[Change, ...]
    models: tuple[Change, ...]
    outputs: tuple[Change, ...]
    """Files whose bytes differ."""
    seconds: tuple[float, float]

    @property
    def counts(self) -> bool:
        """Whether anything differs that a result follows from."""
        return not self.same_key

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def diff(a: Record, b: Record, book: Book) -> Difference:
    """What differs between two runs."""
    return Difference(
        a=describe(a),
        b=describe(b),
        same_key=a.key == b.key,
        params=_changes(a.params, b.params),
        code=_code(a, b),
        inputs=tuple(_inputs(a, b, book)),
        versions=_changes(a.versions, b.versions),
        host=_changes({**a.host, "threads": a.threads}, {**b.host, "threads": b.threads}),
        models=_changes(*({m.name: _without_name(asdict(m)) for m in r.models} for r in (a, b))),
        outputs=_outputs(a, b),
        seconds=(a.seconds, b.seconds),
    )


def _without_name(model: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in model.items() if k != "name"}


def _changes(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[Change, ...]:
    return tuple(Change(*found) for found in differences(dict(a), dict(b), ""))


def _code(a: Record, b: Record) -> tuple[Change, ...]:
    return _digests(a.code, b.code)


def _outputs(a: Record, b: Record) -> tuple[Change, ...]:
    return _digests(*({Path(o.path).name: o.sha256 for o in r.outputs} for r in (a, b)))


def _digests(a: Mapping[str, str], b: Mapping[str, str]) -> tuple[Change, ...]:
    """Files whose digests differ, by name; digests are cut short."""
    changed = [f for f in sorted({*a, *b}) if a.get(f) != b.get(f)]
    return tuple(Change(f, *(d[f][:12] if f in d else "(none)" for d in (a, b))) for f in changed)


def _inputs(a: Record, b: Record, book: Book) -> Iterator[InputChange]:
    for x, y in _pairs(a.inputs, b.inputs):
        if (x and x.sha256) != (y and y.sha256):
            causes = tuple(_causes(x, y, book, set())) if x and y else ()
            named = x or y
            paths = list(dict.fromkeys(i.path for i in (x, y) if i))
            name = named.name if named else ""
            yield InputChange(name, " -> ".join(paths), x.sha256 if x else None, y.sha256 if y else None, causes)


def _pairs(
    ours: Sequence[InputFile], theirs: Sequence[InputFile]
) -> Iterator[tuple[InputFile | None, InputFile | None]]:
    """Inputs of one name and path together; what is left of a name (another model's files) in its order."""
    by_path = {(i.name, i.path): i for i in theirs}
    both = [(i, by_path.pop((i.name, i.path))) for i in ours if (i.name, i.path) in by_path]
    yield from both
    matched = {(i.name, i.path) for i, _ in both}
    left, right = [i for i in ours if (i.name, i.path) not in matched], list(by_path.values())
    for name in sorted({i.name for i in (*left, *right)}):
        yield from zip_longest([i for i in left if i.name == name], [i for i in right if i.name == name])


def _causes(x: InputFile, y: InputFile, book: Book, seen: set[tuple[str, str]]) -> Iterator[Cause]:
    """Runs behind two files that differ in params or code; behind those that do not, their own inputs are followed."""
    a, b = book.get(x.run_id), book.get(y.run_id)
    if a is None or b is None or (a.run_id, b.run_id) in seen:
        return
    seen.add((a.run_id, b.run_id))
    own = (*_changes(a.params, b.params), *_code(a, b))
    further = [(i, j) for i, j in _pairs(a.inputs, b.inputs) if i and j and i.sha256 != j.sha256]
    if own or not further:
        yield Cause(describe(a), describe(b), own)
    for i, j in further:
        yield from _causes(i, j, book, seen)


def resolve_any(text: str, book: Book) -> Target:
    """`resolve`, and also `REV:path`: a run of another git revision.

    Raises:
        ArtifactError: nothing has this id.
        TwohopError: there is no such revision, or DVC's cache lacks its record.
    """
    revision, colon, path = text.partition(":")
    if not colon or Path(text).exists():
        return resolve(text, book)
    return _of_revision(revision, Path(path), book)


def _of_revision(revision: str, path: Path, book: Book) -> Target:
    locked = {p: (md5, stage) for p, md5, stage in locked_files(_show(revision, "dvc.lock"))}
    beside = path / RECORD if str(path / RECORD) in locked else path.parent / RECORD
    if str(beside) not in locked:
        there = ", ".join(sorted(p for p in locked if p.endswith(RECORD))[:4]) or "none"
        raise ArtifactError(f"dvc.lock at {revision} has no {beside}", f"{revision}:{path}", f"it has {there}, ...")
    md5, stage = locked[str(beside)]
    file = CACHE / md5[:2] / md5[2:]
    if not file.exists():
        raise ArtifactError(
            f"DVC's cache lacks the record {beside} of {revision}",
            str(file),
            f"fetch it from the remote: dvc fetch --all-commits {stage}",
        )
    record = read_record(file)
    objects = (CACHE / m[:2] / m[2:] for p, (m, _) in locked.items() if p.endswith(f"/{RECORD}"))
    book.add([record, *(read_record(o) for o in objects if o.exists())])
    output = next((o for o in record.outputs if o.path == str(path)), None)
    return Target(record, output)


def _show(revision: str, path: str) -> str:
    done = subprocess.run(
        ["git", "show", "--end-of-options", f"{revision}:{path}"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        what = done.stderr.strip().splitlines()[-1:] or ["git failed"]
        raise TwohopError(f"git cannot show it: {what[0]}", f"{revision}:{path}", "name a commit that holds dvc.lock")
    return done.stdout


def record_at(text: str, book: Book) -> Record:
    """The run that an id, a path or `REV:path` means."""
    return resolve_any(text, book).record
