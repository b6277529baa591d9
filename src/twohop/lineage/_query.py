"""Questions to the records: which run is meant by an id, what it rests on, what rests on it.

A run's id is a unique beginning of its `run_id` or of its `key`; an artifact's its path or `<run>/<file name>`; a
number's `<run>/<file name>#<JSON pointer>`.
"""

import contextlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

from twohop.errors import ArtifactError, TwohopError
from twohop.lineage._records import HISTORY, RECORD, InputFile, OutputFile, Record, read_record, record_of, sha256

FOLDERS = (Path("results"), Path("data/models"))
"""Where artifacts lie."""
SHORTEST_ID = 4
"""Characters of a run's id that a person must at least write."""
SHOWN = 8
"""Characters of a run's id that are printed."""
CANDIDATES = 8
"""Runs that an error about an ambiguous or unknown id lists."""
_UNITS = {"minute": 60, "hour": 3600, "day": 86400, "week": 7 * 86400}
Id = str


class Book:
    """Records by run id: those beside the artifacts, and older ones of the history when they are asked for."""

    def __init__(self, current: Iterable[Record] = (), older: Iterable[Record] = ()) -> None:
        """Current records win over older ones of the same run."""
        self.current = {r.run_id: r for r in current}
        self.all = {**{r.run_id: r for r in older}, **self.current}

    def get(self, run_id: str | None) -> Record | None:
        """The record of a run, if there is one."""
        return self.all.get(run_id or "")

    def add(self, records: Iterable[Record]) -> None:
        """Take in records from elsewhere, such as another git revision."""
        for record in records:
            self.all.setdefault(record.run_id, record)

    def sorted(self, history: bool = False) -> list[Record]:
        """Current records (or all), the oldest first."""
        chosen = self.all if history else self.current
        return sorted(chosen.values(), key=lambda r: (r.started, r.step, r.model or ""))


@dataclass(frozen=True)
class Target:
    """What an id means: a run, one file of it, or one number in that file."""

    record: Record
    output: OutputFile | None = None
    pointer: str | None = None

    @property
    def id(self) -> Id:
        """The id in its shortest usual form."""
        name = f"/{Path(self.output.path).name}" if self.output else ""
        return f"{self.record.run_id[:SHOWN]}{name}" + (f"#{self.pointer}" if self.pointer is not None else "")


@dataclass(frozen=True)
class Node:
    """One entry of a walk back: a run (or a file that no run made) and what the entry above it read from it."""

    depth: int
    record: Record | None
    files: tuple[InputFile, ...]
    notes: tuple[str, ...]
    """Where the files are no longer those that were read."""
    again: bool = False
    """The run stands further up, with all it rests on."""


def read_book(history: bool = True, folders: Sequence[Path] = FOLDERS, older: Path = HISTORY) -> Book:
    """All records below some folders, with every older one of this tree.

    Raises:
        ArtifactError: a record is broken.
    """
    current = [read_record(p) for folder in folders for p in sorted(folder.rglob(RECORD))]
    return Book(current, map(read_record, sorted(older.glob("*.json"))) if history else ())


def read_sound_records(folders: Iterable[Path]) -> list[Record]:
    """Records below some folders; broken ones are left out (`verify` names them)."""
    found: list[Record] = []
    for path in (p for folder in folders for p in sorted(folder.rglob(RECORD))):
        with contextlib.suppress(ArtifactError):
            found.append(read_record(path))
    return found


def resolve(text: str, book: Book) -> Target:
    """The run, artifact or number that an id means.

    Raises:
        ArtifactError: nothing has this id, or more than one run has.
    """
    head, mark, pointer = text.partition("#")
    target = _of_path(Path(head)) if Path(head).exists() else _of_id(head, book)
    if not mark:
        return target
    if target.output is None:
        raise ArtifactError(f"{head} is a run, not a file with numbers", text, "write <run>/<file name>#/<key>/<key>")
    return Target(target.record, target.output, pointer)


def _of_path(path: Path) -> Target:
    if path.is_dir() and (path / RECORD).exists():
        return Target(read_record(path / RECORD))
    if path.name == RECORD and path.is_file():
        return Target(read_record(path))
    record = record_of(path) if path.is_file() else None
    if record is None:
        raise ArtifactError(
            "no record beside it names this file",
            str(path),
            "give an artifact below results/, or a run's id: `twohop lineage list`",
        )
    return _file_of(record, path.name)


def _of_id(text: str, book: Book) -> Target:
    run, slash, name = text.partition("/")
    if "/" in name or not re.fullmatch(r"[\w-]+", run) or Path(run).is_dir():
        raise ArtifactError("no such file, and no id of a run", text, "list what there is: `twohop lineage list`")
    record = find_run(run, book)
    return _file_of(record, name) if slash else Target(record)


def _file_of(record: Record, name: str) -> Target:
    for output in record.outputs:
        if Path(output.path).name == name:
            return Target(record, output)
    names = ", ".join(sorted(Path(o.path).name for o in record.outputs))
    raise ArtifactError(f"the run wrote no {name}", describe(record), f"it wrote: {names}")


def find_run(text: str, book: Book) -> Record:
    """The one run whose `run_id` or `key` begins so; of runs with one key, the one whose artifacts lie here.

    Raises:
        ArtifactError: it is too short, unknown or ambiguous.
    """
    if len(text) < SHORTEST_ID:
        raise ArtifactError(f"an id needs at least {SHORTEST_ID} characters", text, "`twohop lineage list` prints them")
    found = [r for r in book.sorted(history=True) if r.run_id.startswith(text) or r.key.startswith(text)]
    if not found:
        raise ArtifactError(
            "no run has this id, and no file this name",
            text,
            f"list the runs: `twohop lineage list --history`; known are {_listed(book.sorted()[-CANDIDATES:])}",
        )
    if len({r.key for r in found}) > 1:
        raise ArtifactError(f"{len(found)} runs have ids that begin so", text, f"write more of one: {_listed(found)}")
    return next((r for r in found if r.run_id in book.current), found[-1])


def _listed(records: Sequence[Record]) -> str:
    more = f" and {len(records) - CANDIDATES} more" if len(records) > CANDIDATES else ""
    return "; ".join(map(describe, records[:CANDIDATES])) + more if records else "none"


def describe(record: Record) -> str:
    """`1a2b3c4d run_benchmark flags-early`."""
    return " ".join(filter(None, (record.run_id[:SHOWN], record.step, record.model)))


def select(
    records: Iterable[Record],
    *,
    step: str | None = None,
    model: str | None = None,
    since: datetime | None = None,
    commit: str | None = None,
) -> list[Record]:
    """Records that fit every filter that is given; a commit may be cut short."""
    return [
        r
        for r in records
        if (step is None or r.step == step)
        and (model is None or r.model == model)
        and (since is None or datetime.fromisoformat(r.started) >= since)
        and (commit is None or (r.commit or "").startswith(commit))
    ]


def parse_since(text: str, now: datetime | None = None) -> datetime:
    """`2026-11-24`, `2026-11-24T10:00`, `2 days`, `90 minutes`; a time without a zone is UTC, as records are.

    Raises:
        TwohopError: it is none of these.
    """
    ago = re.fullmatch(r"(\d+)\s*(minute|hour|day|week)s?(\s+ago)?", text.strip())
    if ago:
        return (now or datetime.now(UTC)) - timedelta(seconds=int(ago[1]) * _UNITS[ago[2]])
    try:
        value = datetime.fromisoformat(text.strip())
    except ValueError:
        raise TwohopError(
            f"{text!r} is no time", "--since", 'write 2026-11-24, 2026-11-24T10:00, "2 days" or "3 hours"'
        ) from None
    return value if value.tzinfo else value.replace(tzinfo=UTC)


def walk(record: Record, book: Book) -> Iterator[Node]:
    """A run and all that it rests on, the nearest first; a run that comes again is named, not walked again."""
    yield from _walk(record, (), 0, book, set(), {})


def _walk(
    record: Record, files: tuple[InputFile, ...], depth: int, book: Book, seen: set[str], hashes: dict[str, str]
) -> Iterator[Node]:
    notes = _notes(files, record, hashes)
    again = record.run_id in seen
    yield Node(depth, record, files, notes, again)
    if again:
        return
    seen.add(record.run_id)
    for run_id, read in _by_run(record.inputs, book).items():
        maker = book.get(run_id) or _record_here(read[0])
        if maker is None:
            for item in read:
                yield Node(depth + 1, None, (item,), _notes((item,), None, hashes))
        else:
            yield from _walk(maker, read, depth + 1, book, seen, hashes)


def _by_run(inputs: Sequence[InputFile], book: Book) -> dict[str, tuple[InputFile, ...]]:
    """Inputs by the run that made them; a file of the repository stands alone."""
    groups: dict[str, tuple[InputFile, ...]] = {}
    for item in inputs:
        key = maker_of(item, book) or f"path:{item.path}"
        groups[key] = (*groups.get(key, ()), item)
    return groups


def maker_of(item: InputFile, book: Book) -> str | None:
    """Id of the run that made an input; a record counts as made by the run that it tells of."""
    path = Path(item.path)
    if item.run_id is None and path.name == RECORD and path.exists():
        record = read_record(path)
        return record.run_id if record.run_id in book.all else None
    return item.run_id


def _record_here(item: InputFile) -> Record | None:
    """Of the file that lies there now; `_notes` says that another run was read."""
    return record_of(Path(item.path)) if item.run_id is not None else None


def _notes(files: Sequence[InputFile], record: Record | None, hashes: dict[str, str]) -> tuple[str, ...]:
    return tuple(note for item in files for note in [_note(item, record, hashes)] if note)


def _note(item: InputFile, record: Record | None, hashes: dict[str, str]) -> str:
    path = Path(item.path)
    if record is not None and item.run_id is not None and record.run_id != item.run_id:
        return f"{path}: its run {item.run_id[:SHOWN]} has left no record; this is another run of the step"
    if not path.exists():
        return f"{path}: absent now"
    now = record_of(path)
    if now is not None and item.run_id is not None and now.run_id != item.run_id:
        same = _sha256(path, hashes) == item.sha256
        return f"{path}: now of run {now.run_id[:SHOWN]}, {'the same bytes' if same else 'not what was read'}"
    return "" if _sha256(path, hashes) == item.sha256 else f"{path}: changed since it was read"


def _sha256(path: Path, hashes: dict[str, str]) -> str:
    key = str(path)
    if key not in hashes:
        hashes[key] = sha256(path)
    return hashes[key]


def downstream(records: Iterable[Record], hashes: Iterable[str], run_ids: Iterable[str] = ()) -> list[Record]:
    """Runs that read a file of these contents, or anything that such a run wrote, in the order of their start."""
    bad, runs = set(hashes), set(run_ids)
    left, found = list(records), dict[str, Record]()
    while True:
        new = [r for r in left if any(i.sha256 in bad or i.run_id in runs for i in r.inputs)]
        if not new:
            return sorted(found.values(), key=lambda r: (r.started, r.step, r.model or ""))
        for record in new:
            found[record.run_id] = record
            runs.add(record.run_id)
            bad |= {o.sha256 for o in record.outputs}
        left = [r for r in left if r.run_id not in found]


def read_value(target: Target) -> Any:
    """What a JSON pointer points at (RFC 6901), in the file as it was written by the target's run.

    Raises:
        ArtifactError: the file is absent, of another run, altered, no JSON, or has nothing there.
    """
    path = check_unaltered(target)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise ArtifactError(
            "numbers can only be looked up in JSON files", str(path), "give the file without #"
        ) from None
    return follow(value, target.pointer or "", str(path))


def check_unaltered(target: Target) -> Path:
    """The file of a target, when it still is what its run wrote.

    Raises:
        ArtifactError: it is absent, of another run, or altered.
    """
    if target.output is None:
        raise ArtifactError("this is a run, not a file", target.id, "add /<file name>")
    path = Path(target.output.path)
    if not path.exists():
        raise ArtifactError("the file is absent", str(path), "make it (snakemake --cores all) or fetch it (dvc pull)")
    if sha256(path) == target.output.sha256:
        return path
    now = record_of(path)
    if now is not None and now.run_id != target.record.run_id:
        what = f"overwritten by run {now.run_id[:SHOWN]}"
        todo = f"look at {now.run_id[:SHOWN]}/{path.name}, or compare: `twohop lineage diff`"
        raise ArtifactError(f"the file of run {target.record.run_id[:SHOWN]} was {what}", str(path), todo)
    raise ArtifactError("the file was altered after its run", str(path), "`twohop lineage check`")


def follow(value: Any, pointer: str, where: str) -> Any:
    """Follow a JSON pointer.

    Raises:
        ArtifactError: it leads nowhere; the message names the keys there are.
    """
    if pointer and not pointer.startswith("/"):
        raise ArtifactError("a JSON pointer begins with /", f"{where}#{pointer}", "e.g. #/n_entities")
    done = ""
    for part in pointer.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        keys = _keys(value)
        if key not in keys:
            there = ", ".join(list(keys)[:20]) or "nothing below it"
            raise ArtifactError(f"nothing at {done}/{part}", where, f"there is: {there}")
        value = keys[key]
        done += f"/{part}"
    return value


def _keys(value: Any) -> Mapping[str, Any]:
    if isinstance(value, dict):
        return cast("dict[str, Any]", value)
    if isinstance(value, list):
        return {str(i): item for i, item in enumerate(cast("list[Any]", value))}
    return {}
