"""Models from a hub: what a repository holds, its small files, and a checked download; the one module that asks a hub.

A commit fixes every file's name and hash: the hub lists git's SHA-1 of small files and the SHA-256 of those in LFS, and
each byte that arrives is compared with them. Only safetensors, JSON, Jinja and text are fetched, never code or pickles.
The hub is `$HF_ENDPOINT` (huggingface.co by default), the token is `$HF_TOKEN` or that of `hf auth login`.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

from filelock import FileLock, Timeout
from huggingface_hub import ModelInfo, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from twohop.errors import ModelError

KEPT_SUFFIXES = (".json", ".safetensors", ".jinja", ".model", ".txt")
"""Files that are fetched."""
RISKY_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".gguf", ".msgpack", ".h5")
"""Weights that are never fetched; named when there is nothing else."""
HEADER = ".header"
"""Suffix of a file that holds only the first bytes of a safetensors file: its tensors' names, types and shapes."""
SMALL_BYTES = 64 * 2**20
"""Largest file that counts as small; tokenizers of big vocabularies are about 35 MB."""
HEADER_BYTES = 100 * 2**20
"""Longest safetensors header, as the format has it."""
PATIENCE_S, LEAST_BYTES = 60.0, 256 * 1024
"""A connection that brings fewer bytes in that time has stalled."""
ATTEMPTS = 4
"""Connections in a row that may break off with fewer bytes than that; what has arrived is kept."""
WAIT_S = 24 * 3600.0
"""Longest wait for another process that downloads the same model."""
PROGRESS_S = 30.0
"""Seconds between two lines of progress."""
SPARE_BYTES = 2**30
"""Disk space that a download leaves free."""
_COMMIT = re.compile("^[0-9a-f]{40}$")
_NAME = re.compile(r"^[A-Za-z0-9_][\w.+-]*$")
_DATA = re.compile(r"^([A-Za-z0-9_][\w.+-]*/){0,4}[A-Za-z0-9_][\w.+-]*\.(csv|parquet|jsonl)$")
"""Files of a data set that are fetched."""
_DATASETS = "datasets/"
"""Before a data set's name in the hub's addresses; models have nothing there."""
_CHUNK = 2**20
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HubFile:
    """A file of a repository, as the hub lists it."""

    name: str
    bytes: int
    sha256: str | None
    """Of a file in LFS."""
    blob: str | None
    """Git's SHA-1, of any other file."""


@dataclass(frozen=True)
class HubModel:
    """A repository at a commit."""

    id: str
    commit: str
    gated: bool
    licence: str | None
    base_models: tuple[str, ...]
    """What its card says it was made from."""
    files: tuple[HubFile, ...]
    patterns: tuple[str, ...] = ()
    """Of a data set: the files that are asked for."""

    @property
    def wanted(self) -> tuple[HubFile, ...]:
        """The files that a download fetches.

        Raises:
            ModelError: there are no weights in safetensors, or nothing fits a pattern.
        """
        if self.patterns:
            return tuple(self._matching())
        kept = [f for f in self.files if f.name.endswith(KEPT_SUFFIXES) and _NAME.match(f.name)]
        weights = {f.name for f in kept if f.name.endswith(".safetensors")}
        if not weights:
            others = [f.name for f in self.files if f.name.endswith(RISKY_SUFFIXES)]
            found = f"; it has {', '.join(others[:3])}, which may run code when loaded" if others else ""
            raise ModelError(
                f"{self.id} holds no safetensors file at its top{found}",
                page(self.id, self.commit),
                "look for a copy in safetensors, or convert it and name the folder",
            )
        plain = {name for name in weights if name.startswith("model")} or weights  # not a second copy of other layout
        return tuple(f for f in kept if f.name in plain or f.name not in weights)

    def _matching(self) -> Iterator[HubFile]:
        """A data set's tables, in the order of their names."""
        data = sorted((f for f in self.files if _DATA.match(f.name)), key=lambda f: f.name)
        for pattern in self.patterns:
            if not any(fnmatch(f.name, pattern) for f in data):
                few = ", ".join(f.name for f in data[:5]) or "no table"
                raise ModelError(
                    f"{self.id} holds no file {pattern}; it has {few}",
                    page(self.id, self.commit),
                    "correct the pattern, or give the commit that has it",
                )
        yield from (f for f in data if any(fnmatch(f.name, pattern) for pattern in self.patterns))


def endpoint() -> str:
    """The hub's address."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def page(model: str, revision: str = "") -> str:
    """Address of a model's page, for people."""
    return f"{endpoint()}/{model}" + (f"/tree/{revision}" if revision else "")


def resolve(model: str, revision: str = "main") -> HubModel:
    """What the hub knows of a model at a branch or commit.

    Raises:
        ModelError: offline, no such model or commit, not allowed in, or the hub cannot be reached.
    """
    info: Any = ModelInfo(**_listing(model, revision))
    card = cast("dict[str, Any]", info.card_data.to_dict() if info.card_data else {})
    base: Any = card.get("base_model") or ()
    commit = str(info.sha)
    if not _COMMIT.match(commit) or (_COMMIT.match(revision) and commit != revision):
        raise ModelError(
            f"the hub answers with commit {commit}, asked for {revision}", page(model), "give a commit that it has"
        )
    return HubModel(
        id=model,
        commit=commit,
        gated=bool(info.gated),
        licence=_licence(card),
        base_models=(base,) if isinstance(base, str) else tuple(map(str, base)),
        files=tuple(_file(s) for s in info.siblings or ()),
    )


def _listing(model: str, revision: str) -> dict[str, Any]:
    kind = model if model.startswith(_DATASETS) else f"models/{model}"
    url = f"{endpoint()}/api/{kind}/revision/{quote(revision, safe='')}?blobs=true"
    with _told(model, revision), _stream(url) as response:
        data = b"".join(_in_time(response.iter_bytes(), model, "the list of files"))
    try:
        return json.loads(data)
    except ValueError:
        raise ModelError("the hub's answer is no JSON", url, "look at HF_ENDPOINT") from None


def _licence(card: Mapping[str, Any]) -> str | None:
    found = card.get("license_name") or card.get("license")
    return None if found is None else str(found)


def _file(sibling: Any) -> HubFile:
    lfs: Any = sibling.lfs
    size = lfs.size if lfs else sibling.size
    return HubFile(
        str(sibling.rfilename), int(size or 0), lfs.sha256 if lfs else None, None if lfs else sibling.blob_id
    )


def read_small_files(model: str, revision: str, into: Path) -> HubModel:
    """Fetch a model's configs, tokenizer and templates, and of every safetensors file the header; no weights.

    Headers are written as `<name>.header`: eight bytes of length and the JSON that follows, as in the file.

    Raises:
        ModelError: see `resolve`; or a file is not what the hub's list says.
    """
    found = resolve(model, revision)
    for file in found.wanted:
        if file.name.endswith(".safetensors"):
            (into / f"{file.name}{HEADER}").write_bytes(_read_header(found, file))
        elif file.bytes <= SMALL_BYTES:
            _fetch(found, file, into / file.name)
    return found


def _read_header(model: HubModel, file: HubFile) -> bytes:
    start = _read_range(model, file, 0, 8)
    length = int.from_bytes(start, "little")
    if length > min(HEADER_BYTES, max(0, file.bytes - 8)):
        raise ModelError(f"{file.name} is no safetensors file", page(model.id, model.commit), "take another model")
    return start + _read_range(model, file, 8, length)


def _read_range(model: HubModel, file: HubFile, start: int, length: int) -> bytes:
    out = bytearray()
    with _told(model.id, model.commit), _get(model, file, f"bytes={start}-{start + length - 1}") as response:
        skip = start if response.status_code != 206 else 0  # a server without ranges sends all from the start
        for chunk in _in_time(response.iter_bytes(), model.id, file.name):
            out += chunk
            if len(out) >= skip + length:
                break
    if len(out) < skip + length:
        raise ModelError(f"{file.name} ends too early", page(model.id, model.commit), "try again")
    return bytes(out[skip : skip + length])


def download_data(dataset: str, revision: str, patterns: Sequence[str], into: Path) -> None:
    """Fetch a data set's tables at a commit, as `download` does a model's files.

    Args:
        dataset: owner and name.
        revision: commit.
        patterns: names of the files, with `*`, which stands for `/` too; CSV, Parquet and JSON Lines only.
        into: the folder.

    Raises:
        ModelError: as `download`; or no file fits a pattern.
    """
    _download_once(_DATASETS + dataset, revision, into, tuple(patterns))


def download(model: str, revision: str, into: Path) -> None:
    """Fetch a model at a commit to the folder `into`, with its files' sha256 beside it (`<into>.files.json`).

    One process downloads, others wait. What a killed or failed download got stays beside `into` and is gone on with;
    the folder appears when all of it is there and compared. A finished folder is left as it is, without a network.

    Raises:
        ModelError: no commit, offline, not allowed in, no safetensors, no space, a file that is not what the commit
            says, or a hub that stalls.
    """
    _download_once(model, revision, into, ())


def _download_once(model: str, revision: str, into: Path, patterns: tuple[str, ...]) -> None:
    if not _COMMIT.match(revision):
        raise ModelError(
            f"revision {revision!r} of {model} is no commit",
            page(model),
            f"give a commit, 40 hex digits (a branch moves); `twohop models check {model}` prints today's",
        )
    into.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(into.with_name(f"{into.name}.lock"), timeout=WAIT_S):
            if not (into.is_dir() and records_file(into).is_file()):
                _download(replace(resolve(model, revision), patterns=patterns), into)
    except Timeout:
        raise ModelError(
            f"another process has been downloading {model} for {WAIT_S / 3600:.0f} h", str(into), "stop it, try again"
        ) from None


def records_file(folder: Path) -> Path:
    """Where the files' sha256 stand."""
    return folder.with_name(f"{folder.name}.files.json")


def _download(model: HubModel, into: Path) -> None:
    part = into.with_name(f".{into.name}.part")
    part.mkdir(exist_ok=True)
    _check_space(model, part)
    records: dict[str, dict[str, Any]] = {}
    progress = _Progress(model)
    for file in model.wanted:
        (part / file.name).parent.mkdir(parents=True, exist_ok=True)
        _fetch(model, file, part / file.name, progress)
        records[file.name] = {"sha256": _digest(part / file.name, "sha256"), "bytes": file.bytes}
    for path in [p for p in part.rglob("*") if p.is_file()]:
        if path.relative_to(part).as_posix() not in records:
            path.unlink()
    written = records_file(into).with_suffix(".tmp")
    written.write_text(json.dumps(records, indent=1, sort_keys=True), encoding="utf-8")
    shutil.rmtree(into, ignore_errors=True)
    written.rename(records_file(into))
    part.rename(into)
    log.info("%s at %s: %d files, %.2f GB", model.id, model.commit, len(records), progress.total / 1e9)


def _check_space(model: HubModel, part: Path) -> None:
    have = sum(p.stat().st_size for p in part.rglob("*") if p.is_file())
    need = sum(f.bytes for f in model.wanted) - have + SPARE_BYTES
    free = shutil.disk_usage(part).free
    if need > free:
        raise ModelError(
            f"{model.id} needs {need / 1e9:.1f} GB of disk, {free / 1e9:.1f} GB are free",
            str(part.parent),
            "free some space, or set TWOHOP_CACHE to a folder on another disk",
        )


class _Progress:
    """A line of log now and then."""

    def __init__(self, model: HubModel) -> None:
        self._model, self._next = model, time.monotonic() + PROGRESS_S
        self.total, self.done = sum(f.bytes for f in model.wanted), 0

    def add(self, count: int) -> None:
        self.done += count
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + PROGRESS_S
            log.info("%s: %.2f of %.2f GB", self._model.id, self.done / 1e9, self.total / 1e9)


def _fetch(model: HubModel, file: HubFile, path: Path, progress: _Progress | None = None) -> None:
    """A file, gone on with where it ended, and compared with the hub's hash; a file that differs is removed."""
    partial = path.with_name(f"{path.name}.incomplete")
    if not path.is_file():
        _receive(model, file, partial, progress)
        _compare(model, file, partial)
        partial.rename(path)
    elif progress is not None:
        progress.add(file.bytes)


def _receive(model: HubModel, file: HubFile, partial: Path, progress: _Progress | None) -> None:
    failed = 0
    partial.touch()
    while (have := partial.stat().st_size) < file.bytes:
        try:
            with _told(model.id, model.commit):
                _receive_once(model, file, partial, have, progress)
        except _BrokenError:
            failed = failed + 1 if partial.stat().st_size - have < LEAST_BYTES else 0
            if failed == ATTEMPTS:
                raise
            time.sleep(failed)


def _receive_once(model: HubModel, file: HubFile, partial: Path, have: int, progress: _Progress | None) -> None:
    with _get(model, file, f"bytes={have}-" if have else None) as response:
        _check_commit(model, response)
        resumed = have > 0 and response.status_code == 206
        with partial.open("ab" if resumed else "wb") as out:
            for chunk in _in_time(response.iter_bytes(), model.id, file.name):
                out.write(chunk)
                if progress is not None:
                    progress.add(len(chunk))
                if out.tell() > file.bytes:
                    break


def _check_commit(model: HubModel, response: Any) -> None:
    for answer in (*response.history, response):
        commit = answer.headers.get("X-Repo-Commit")
        if commit is not None and commit != model.commit:
            raise ModelError(
                f"the hub sends files of commit {commit}, asked for {model.commit}", page(model.id), "try again later"
            )


def _compare(model: HubModel, file: HubFile, path: Path) -> None:
    if file.sha256 is not None:
        same = _digest(path, "sha256") == file.sha256
    elif file.blob is not None:
        same = _digest(path, "sha1", b"blob %d\0" % path.stat().st_size) == file.blob
    else:
        same = False
    if not same or path.stat().st_size != file.bytes:
        path.unlink()
        raise ModelError(
            f"{file.name} of {model.id} is not what the commit says (hash); it was removed",
            page(model.id, model.commit),
            "try again; if it stays so, what lies between the hub and this machine alters files",
        )


def _digest(path: Path, kind: str, start: bytes = b"") -> str:
    digest = hashlib.new(kind, start)
    with path.open("rb") as f:
        while chunk := f.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


# --- connections ------------------------------------------------------------------------------------------------------


class _BrokenError(ModelError):
    """A connection that broke off or stalled; it may be opened anew."""


@contextlib.contextmanager
def _get(model: HubModel, file: HubFile, span: str | None) -> Generator[Any]:
    kind = "dataset" if model.id.startswith(_DATASETS) else None
    name = model.id.removeprefix(_DATASETS)
    url = hf_hub_url(name, file.name, repo_type=kind, revision=model.commit, endpoint=endpoint())
    with _stream(url, span) as response:
        yield response


@contextlib.contextmanager
def _stream(url: str, span: str | None = None) -> Generator[Any]:
    headers = {**build_hf_headers(), "Accept-Encoding": "identity", **({"Range": span} if span else {})}
    with get_session().stream("GET", url, headers=headers, timeout=PATIENCE_S) as response:
        if response.status_code >= 400:
            response.read()
        hf_raise_for_status(response)
        yield response


def _in_time(chunks: Iterator[bytes], model: str, file: str) -> Iterator[bytes]:
    """The chunks, as long as enough of them come."""
    since, got = time.monotonic(), 0
    for chunk in chunks:
        yield chunk
        got += len(chunk)
        if (now := time.monotonic()) - since > PATIENCE_S:
            if got < LEAST_BYTES:
                raise _BrokenError(
                    f"the hub stalls: {got} bytes of {file} in {now - since:.0f} s",
                    page(model),
                    "repeat the command later: what has arrived is kept and gone on with",
                )
            since, got = now, 0


@contextlib.contextmanager
def _told(model: str, revision: str) -> Generator[None]:
    """The library's exceptions as errors for people; a connection that broke off as `_BrokenError`."""
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE"):
        raise _offline(model, revision)
    try:
        yield
    except OfflineModeIsEnabled:
        raise _offline(model, revision) from None
    except HfHubHTTPError as error:
        raise _refused(error, model, revision) from None
    except _TRANSPORT as error:
        what = f"no connection to the hub: {str(error) or type(error).__name__}"
        raise _BrokenError(what, page(model), "look at the network and at HF_ENDPOINT, then repeat") from None


def _transport_errors() -> Iterator[type[Exception]]:
    """What the library's HTTP client raises when a connection fails; its name differs between versions."""
    yield from (ConnectionError, TimeoutError)
    yield from (c for c in HfHubHTTPError.__mro__ if c.__name__ == "HTTPError" and issubclass(c, Exception))


_TRANSPORT = tuple(_transport_errors())


def _offline(model: str, revision: str) -> ModelError:
    return ModelError(
        f"{model} is not on this disk, and HF_HUB_OFFLINE is set",
        page(model, revision),
        "repeat this with HF_HUB_OFFLINE=0 where there is a network; ahead of runs without one: twohop models fetch",
    )


def _refused(error: HfHubHTTPError, model: str, revision: str) -> ModelError:
    status: int = error.response.status_code
    if isinstance(error, RevisionNotFoundError):
        return ModelError(
            f"{model} has no commit or branch {revision}", page(model), f"`twohop models check {model}` prints today's"
        )
    if isinstance(error, RemoteEntryNotFoundError):
        return ModelError(
            "a file of the list is missing on the hub: " + str(error.response.url), page(model, revision), "try again"
        )
    if isinstance(error, GatedRepoError) or status == 403:
        return ModelError(
            f"{model} is gated: its owner wants to know who downloads it",
            page(model),
            "ask for access on that page, then set HF_TOKEN to a token of yours",
        )
    if isinstance(error, RepositoryNotFoundError) or status in (401, 404):
        return ModelError(
            f"no model {model}, or a private or gated one",
            page(model),
            "check the name; if that page shows it to you, ask for access there and set HF_TOKEN to a token of yours",
        )
    kind = _BrokenError if status == 429 or status >= 500 else ModelError
    return kind(f"the hub refuses: {str(error).strip().splitlines()[0]}", page(model), "try again later")
