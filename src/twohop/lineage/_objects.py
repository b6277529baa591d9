"""Artifacts as objects of DVC's cache and remote: which there are, and what the bytes of each are like.

A session is one open repository with one remote. It knows the artifacts of the stages asked for, and hears the faults
that DVC otherwise only logs.
"""
# pyright: reportMissingTypeStubs=false

import contextlib
import difflib
import hashlib
import logging
import shutil
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from twohop.errors import TwohopError

_BLOCK = 4 << 20
_NOISY = ("dvc", "dvc_data", "dvc_objects", "s3fs", "fsspec", "botocore", "aiobotocore", "asyncssh", "asyncio")
_DENIED = {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "PermissionDenied", "KeyImportError"}
"""Exceptions of botocore and asyncssh that mean: not without (other) credentials."""
_ACCESS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE) in the environment, or: "
    "dvc remote modify --local {name} access_key_id KEY; dvc remote modify --local {name} secret_access_key SECRET",
    "ssh": "dvc remote modify --local {name} user NAME; dvc remote modify --local {name} keyfile FILE",
    "http": "dvc remote modify --local {name} auth basic; then user and password in the same way",
    "local": "let the owner of the folder give you the right to read and write it",
}
"""What to do without access, by protocol; --local keeps it out of git."""


class RemoteError(TwohopError):
    """A remote, or what it holds, cannot be used as it is."""


@dataclass(frozen=True)
class Artifact:
    """A file that DVC holds for a stage."""

    stage: str
    path: str
    md5: str
    """As dvc.lock has it; the name of the object."""
    bytes: int


@dataclass(frozen=True)
class Seen:
    """What an object of the remote turned out to be."""

    fault: str = ""
    """Empty: nothing wrong was seen."""
    present: bool = True


class _Ear(logging.Handler):
    """Keeps what DVC logs about transfers that failed: md5 -> exception."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.heard: dict[str, BaseException] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the exception under the object's name."""
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and isinstance(record.args, tuple):
            self.heard[str(record.args[0]) if record.args else ""] = error


@dataclass(frozen=True)
class Session:
    """An open DVC repository, one of its remotes, and the artifacts that a command is about."""

    repo: Any
    remote: Any
    artifacts: tuple[Artifact, ...]
    ear: _Ear = field(default_factory=_Ear)

    @property
    def name(self) -> str:
        """The remote's name."""
        return str(self.remote.name)

    @property
    def protocol(self) -> str:
        """`local`, `s3`, `ssh`, `http`, ..."""
        return str(self.remote.fs.protocol).replace("https", "http")

    @property
    def where(self) -> str:
        """The remote, for messages."""
        return f"remote {self.name} ({self.remote.fs.unstrip_protocol(self.remote.path)})"

    def cached(self, artifact: Artifact) -> Path:
        """Where the clone's own object lies, if it has one."""
        return Path(self.repo.cache.local.oid_to_path(artifact.md5))

    def at(self, artifact: Artifact) -> str:
        """The object's path on the remote."""
        return str(self.remote.odb.oid_to_path(artifact.md5))

    def reach(self, artifacts: Sequence[Artifact]) -> None:
        """Ask the remote for one object.

        Raises:
            RemoteError: it cannot be reached, or gives no access.
        """
        error = self.remote.fs.info(self.at(artifacts[0]), return_exceptions=True) if artifacts else None
        if isinstance(error, Exception) and not _absent(error):
            raise self._unusable(error, artifacts)

    def look(self, artifacts: Sequence[Artifact], doubtful: bool, read_back: bool = False) -> dict[Artifact, Seen]:
        """What the remote has of some artifacts.

        By size; `doubtful` also compares what the remote itself tells of the bytes (ETag of S3) and reads an object
        when that says nothing or something else, where reading is cheap; `read_back` reads every object.
        """
        self.reach(artifacts)
        self.remote.fs.fs.invalidate_cache()
        found = self.remote.fs.info([self.at(a) for a in artifacts], return_exceptions=True) if artifacts else []
        seen = {a: _by_size(a, info) for a, info in zip(artifacts, found, strict=True)}
        for artifact, info in zip(artifacts, found, strict=True):
            if seen[artifact] == Seen() and (read_back or (doubtful and self._says_nothing(artifact, info))):
                seen[artifact] = self._read(artifact)
        return seen

    @contextlib.contextmanager
    def transfer(self, artifacts: Sequence[Artifact]) -> Generator[None]:
        """Around a transfer: that single files failed is looked at afterwards, that nothing went is told at once.

        Raises:
            RemoteError: the remote as a whole failed.
        """
        from dvc.exceptions import DownloadError, DvcException, UploadError

        try:
            yield
        except (DownloadError, UploadError):
            return
        except DvcException:
            raise
        except Exception as error:  # every transport has exceptions of its own
            raise self._unusable(error, artifacts) from error

    def remove(self, artifacts: Iterable[Artifact]) -> None:
        """Delete objects of the remote."""
        for path in {self.at(a) for a in artifacts}:
            self.remote.fs.rm(path)

    def _says_nothing(self, artifact: Artifact, info: Any) -> bool:
        """Whether only reading can tell that an object of the right size is the right one."""
        if self.protocol == "s3":
            own = self.cached(artifact)
            told = str(info.get("ETag", "")).strip('"')
            return told not in (artifact.md5, _multipart_etag(own) if "-" in told and own.exists() else "")
        return self.protocol == "local"

    def _read(self, artifact: Artifact) -> Seen:
        with self.remote.fs.open(self.at(artifact), "rb") as f:
            return Seen() if md5_of(f) == artifact.md5 else Seen("altered on the remote: other bytes than recorded")

    def _unusable(self, error: BaseException, artifacts: Sequence[Artifact]) -> RemoteError:
        names = listed([f"{a.path} ({a.stage})" for a in artifacts])
        if any(map(_denied, _chain(error))):
            todo = _ACCESS.get(self.protocol, "check the credentials: dvc remote modify --local {name} ...")
            return RemoteError(f"no access, wrong or missing credentials: {_text(error)}\n{names}", self.where,
                               f"{todo.format(name=self.name)}; then repeat the command")  # fmt: skip
        mend = f"dvc remote modify --local {self.name} url ..."
        more = f"; dvc remote modify --local {self.name} endpointurl ..." if self.protocol == "s3" else ""
        return RemoteError(
            f"the remote cannot be reached: {_text(error)}\n{names}",
            self.where,
            f"check the network and the address (dvc remote list; {mend}{more}), then repeat the command",
        )

    def told(self, artifact: Artifact) -> str:
        """Why a transfer failed, in DVC's words; empty when DVC saw no fault."""
        error = self.ear.heard.get(artifact.md5) or self.ear.heard.get(str(self.cached(artifact)))
        return _text(error) if error else ""


@contextlib.contextmanager
def session(targets: Sequence[str], remote: str | None) -> Generator[Session]:
    """Open the working directory's repository and its remote.

    Raises:
        RemoteError: there is no such remote or stage, the remote does not check what it gives, or DVC fails.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo, lock_repo

    ear = _Ear()
    with _listening(ear):
        try:
            with Repo() as repo, lock_repo(repo):
                if Path(repo.root_dir) != Path.cwd():
                    raise RemoteError("not the project's folder", str(Path.cwd()), f"cd {repo.root_dir}")
                yield Session(repo, _checked(repo, remote), _artifacts(repo, targets), ear)
        except DvcException as error:
            raise RemoteError(f"DVC: {error}", str(Path.cwd()), "mend it, then repeat the command") from error


@contextlib.contextmanager
def _listening(ear: _Ear) -> Generator[None]:
    """DVC's faults go to the ear; its own lines and tracebacks are not printed beside ours."""
    loggers = [logging.getLogger(name) for name in _NOISY]
    before = [(logger.propagate, logger.handlers) for logger in loggers]
    for logger in loggers:
        logger.propagate, logger.handlers = False, [ear]
    logging.getLogger("asyncssh").setLevel(logging.ERROR)  # it goes on talking while connections close at exit
    try:
        yield
    finally:
        for logger, (propagate, handlers) in zip(loggers, before, strict=True):
            logger.propagate, logger.handlers = propagate, handlers


def _checked(repo: Any, name: str | None) -> Any:
    """The remote, if it is one that checks."""
    from dvc.config import NoRemoteError
    from dvc_objects.fs.errors import RemoteMissingDepsError

    try:
        remote = repo.cloud.get_remote(name)
    except (ImportError, RemoteMissingDepsError) as error:
        extra = next((word for word in ("s3", "ssh") if word in str(error)), None)
        todo = f"pip install -e '.[{extra}]'" if extra else "pip install what it names"
        raise RemoteError(_text(error), ".dvc/config", todo) from None
    except NoRemoteError:
        todo = "dvc remote add --default store URL; dvc remote modify store verify true"
        raise RemoteError("no remote is set", ".dvc/config", todo) from None
    if remote.worktree or remote.fs.version_aware:
        todo = f"dvc remote modify --unset {remote.name} worktree; the same for version_aware"
        raise RemoteError("cloud-versioned remotes have no checksums to compare", f"remote {remote.name}", todo)
    if not remote.odb.verify:
        raise RemoteError(
            "verify is not true: a remote without it gives altered files without a word",
            f"remote {remote.name}",
            f"dvc remote modify {remote.name} verify true; then repeat the command",
        )
    return remote


def _artifacts(repo: Any, targets: Sequence[str]) -> tuple[Artifact, ...]:
    """What dvc.lock holds of the stages asked for (a stage, all models of a stage, or a file); of all when none is."""
    outs = [(stage.addressing, out) for stage in repo.index.stages for out in stage.outs if out.use_cache]
    names = {n for stage, out in outs for n in (stage, stage.split("@")[0], str(out))}
    for target in targets:
        if target not in names:
            near = difflib.get_close_matches(target, names, 1)
            todo = f"did you mean {near[0]}? " if near else ""
            raise RemoteError(f"no stage or artifact {target!r}", "dvc.yaml", f"{todo}see: dvc stage list")
    wanted = [(s, o) for s, o in outs if not targets or {s, s.split("@")[0], str(o)} & set(targets)]
    found = tuple(Artifact(s, str(o), o.hash_info.value, o.meta.size) for s, o in wanted if o.hash_info)
    if unmade := sorted({s for s, o in wanted if not o.hash_info}) if targets or not found else []:
        raise RemoteError(
            f"nothing was committed of: {' '.join(unmade)}",
            "dvc.lock",
            "make it: snakemake --cores all; or take the commit whose dvc.lock has it: git pull",
        )
    return found


def md5_of(file: BinaryIO) -> str:
    """Hex md5 of what is left of an open file, read block by block."""
    digest = hashlib.md5(usedforsecurity=False)
    while block := file.read(_BLOCK):
        digest.update(block)
    return digest.hexdigest()


def is_whole(path: Path, artifact: Artifact) -> bool:
    """Whether a file has the bytes that dvc.lock records."""
    if not path.is_file():
        return False
    with path.open("rb") as f:
        return md5_of(f) == artifact.md5


def restore(source: Path, cached: Path) -> None:
    """Put a file into the cache as DVC keeps it: whole or not at all, read-only."""
    cached.parent.mkdir(parents=True, exist_ok=True)
    tmp = cached.with_name(f".{cached.name}.tmp")
    shutil.copyfile(source, tmp)
    tmp.chmod(0o444)
    tmp.replace(cached)


def stages_of(artifacts: Iterable[Artifact]) -> list[str]:
    """Stages, each once, in order."""
    return list(dict.fromkeys(a.stage for a in artifacts))


def listed(lines: Sequence[str], most: int = 12) -> str:
    """Lines of a message, cut to a readable number."""
    more = [f"... and {len(lines) - most} more"] if len(lines) > most else []
    return "\n".join([*lines[:most], *more])


def _by_size(artifact: Artifact, info: Any) -> Seen:
    if isinstance(info, FileNotFoundError) and _absent(info):
        return Seen("missing on the remote", present=False)
    if isinstance(info, BaseException):
        return Seen(f"the remote does not give it: {_text(info)}", present=False)
    size = info.get("size")
    if size is not None and size != artifact.bytes:
        word = "cut off" if size < artifact.bytes else "altered"
        return Seen(f"{word} on the remote: {size} bytes instead of {artifact.bytes}")
    return Seen()


def _multipart_etag(path: Path) -> str:
    """ETag that S3 gives a file which was sent in parts of s3fs's size: md5 over the md5s of the parts."""
    from s3fs.core import calculate_chunksize

    size, parts = calculate_chunksize(path.stat().st_size), list[bytes]()
    with path.open("rb") as f:
        while part := f.read(size):
            parts.append(hashlib.md5(part, usedforsecurity=False).digest())
    return f"{hashlib.md5(b''.join(parts), usedforsecurity=False).hexdigest()}-{len(parts)}"


def _chain(error: BaseException | None) -> Generator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _absent(error: BaseException) -> bool:
    """Whether the remote answered, and has no such object (over HTTP, a dead host is a FileNotFoundError too)."""
    causes = [e for e in _chain(error) if isinstance(e, OSError) and not isinstance(e, FileNotFoundError)]
    return isinstance(error, FileNotFoundError) and not causes and not any(map(_denied, _chain(error)))


def _denied(error: BaseException) -> bool:
    status = getattr(error, "status", None)
    return isinstance(error, PermissionError) or status in (401, 403) or type(error).__name__ in _DENIED


def _text(error: BaseException) -> str:
    return " ".join((str(error) or type(error).__name__).split())
