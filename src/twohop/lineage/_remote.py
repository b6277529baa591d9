"""Push artifacts to the DVC remote and pull them, with every byte compared and every fault named.

DVC does the transport. What it leaves out is done around it:

- push: DVC only asks whether an object exists. Here a clone reads its own objects first and never sends a spoilt one;
  objects of the remote that are cut off or altered are deleted there and sent again.
- pull: DVC says how many files failed. Here every artifact is named, with what is wrong and the command that mends it.
  A stage comes whole or not at all; its bytes are compared with dvc.lock and with its lineage record.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from twohop.errors import ArtifactError
from twohop.lineage._lock import LockedError, is_free
from twohop.lineage._objects import (
    Artifact,
    RemoteError,
    Session,
    is_whole,
    listed,
    restore,
    session,
    stages_of,
)
from twohop.lineage._records import RECORD, read_record, sha256

READ_ONLY = ("http", "webhdfs")
"""Protocols that a remote is only read by."""
_CUT_SHORT, _FOREIGN = "did not come through", "its sha256 is not the one in its lineage record"
Faults = Mapping[Artifact, str]
LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Moved:
    """What a push or a pull did."""

    artifacts: int
    """Asked for, and now where they should be."""
    sent: int
    """Of these, transferred."""
    healed: int
    """Of these, put in the place of a bad one."""
    bytes: int
    """Size of all."""
    where: str


def push(
    targets: Sequence[str] = (), remote: str | None = None, jobs: int | None = None, read_back: bool = False
) -> Moved:
    """Bring artifacts to the remote, and mend what is bad there.

    Raises:
        RemoteError: the remote cannot be used, or an artifact is not whole on it afterwards.
    """
    with session(targets, remote) as s:
        if s.protocol in READ_ONLY:
            todo = "push to the store behind it: dvc remote add NAME URL; twohop push --remote NAME"
            raise RemoteError("this remote can only be read", s.where, todo)
        spoilt = _drop_spoilt(s)
        own = [a for a in s.artifacts if s.cached(a).exists()]
        seen = s.look(s.artifacts, doubtful=True, read_back=read_back)
        wanted = [a for a in own if seen[a].fault]
        bad = [a for a in wanted if seen[a].present]
        for artifact in bad:
            LOG.info("%s (%s): %s; it is sent again", artifact.path, artifact.stage, seen[artifact].fault)
        _send(s, wanted, bad, jobs)
        after = s.look(wanted, doubtful=False)
        faults = {a: s.told(a) or after[a].fault for a in wanted if after[a].fault}
        lost = {a: _lost(a, spoilt, seen[a].fault) for a in s.artifacts if a not in own and seen[a].fault}
        if faults or lost:
            raise _not_pushed(s, faults, lost)
        return Moved(len(s.artifacts), len(wanted), len(bad), sum(a.bytes for a in s.artifacts), s.where)


def _drop_spoilt(s: Session) -> set[Artifact]:
    """Read the clone's own objects (DVC trusts them unread, A3); a spoilt one is made again or dropped."""
    spoilt = {a for a in s.artifacts if s.cached(a).exists() and not is_whole(s.cached(a), a)}
    for artifact in spoilt:
        s.cached(artifact).unlink(missing_ok=True)
    for artifact in s.artifacts:
        if not s.cached(artifact).exists() and is_whole(Path(artifact.path), artifact):
            restore(Path(artifact.path), s.cached(artifact))
    lost = {a for a in spoilt if not s.cached(a).exists()}
    for a in lost:
        LOG.warning("%s (%s): this clone's own object was spoilt and is dropped; it is not sent", a.path, a.stage)
    return lost


def _send(s: Session, wanted: Sequence[Artifact], bad: Sequence[Artifact], jobs: int | None) -> None:
    if wanted:
        with s.transfer(wanted):
            s.remove(bad)
            s.repo.push(stages_of(wanted), jobs=jobs, remote=s.name)


def _lost(artifact: Artifact, spoilt: set[Artifact], fault: str) -> str:
    here = "spoilt here (its cache object was altered)" if artifact in spoilt else "not in this clone"
    return f"{here}, and {fault}"


def _not_pushed(s: Session, faults: Faults, lost: Faults) -> RemoteError:
    what = _lines(s, "not pushed", {**faults, **lost})
    if faults:
        return RemoteError(what, s.where, f"mend what it says, then repeat: {_command('push', faults)}")
    elsewhere = f"in a clone that has it: {_command('push', lost)}, and then here: {_command('pull', lost)}"
    return RemoteError(what, s.where, f"make it: snakemake --cores all; or {elsewhere}")


def pull(targets: Sequence[str] = (), remote: str | None = None, jobs: int | None = None, force: bool = False) -> Moved:
    """Bring artifacts from the remote to the workspace.

    Raises:
        RemoteError: the remote cannot be used, or artifacts on it are missing or bad; these and the rest of their
            stages are not in the workspace, and bad bytes are not in the cache either.
        LockedError: a run works in this tree.
    """
    if not is_free(Path.cwd()):
        raise LockedError("a run works here", str(Path.cwd()), "wait until it has ended, then repeat the command")
    with session(targets, remote) as s:
        absent = [a for a in s.artifacts if not s.cached(a).exists()]
        faults, again = _bring(s, absent, jobs, force)
        if again:  # spoilt objects of this clone, which DVC trusted unread: now they are fetched
            faults, again = _bring(s, list(again), jobs, force)
            faults |= again
        if faults:
            raise _not_pulled(s, faults)
        return Moved(len(s.artifacts), len(absent), 0, sum(a.bytes for a in s.artifacts), s.where)


def _bring(
    s: Session, absent: Sequence[Artifact], jobs: int | None, force: bool
) -> tuple[dict[Artifact, str], dict[Artifact, str]]:
    """Fetch, check out whole stages, compare: faults of the remote, and artifacts that the cache had spoilt."""
    _fetch(s, absent, jobs)
    failed = [a for a in s.artifacts if not s.cached(a).exists()]
    seen = s.look(failed, doubtful=False)
    faults = {a: seen[a].fault or _on_the_way(s, a) for a in failed}
    broken = set(stages_of(failed))
    whole = [a for a in s.artifacts if a.stage not in broken]
    _check_out(s, whole, force)
    spoilt = {a: "its bytes are not those of dvc.lock" for a in whole if not is_whole(Path(a.path), a)}
    for artifact in spoilt:
        Path(artifact.path).unlink(missing_ok=True)
        if not is_whole(s.cached(artifact), artifact):
            s.cached(artifact).unlink(missing_ok=True)
    foreign = _compare_with_records([a for a in whole if a not in spoilt])
    _undo(s, absent, foreign)
    return faults | foreign, spoilt


def _undo(s: Session, absent: Sequence[Artifact], foreign: Faults) -> None:
    """Take back stages that hold something wrong, as far as this pull brought them."""
    broken = set(stages_of(foreign))
    for artifact in (a for a in absent if a.stage in broken):
        Path(artifact.path).unlink(missing_ok=True)
        if artifact in foreign:
            s.cached(artifact).unlink(missing_ok=True)


def _on_the_way(s: Session, artifact: Artifact) -> str:
    """Why an object that the remote has, in the right size, did not come."""
    told = s.told(artifact)
    return f"{_CUT_SHORT}: {told}" if told else "altered on the remote: other bytes than recorded"


def _fetch(s: Session, absent: Sequence[Artifact], jobs: int | None) -> None:
    if absent:
        s.reach(absent)
        with s.transfer(absent):
            s.repo.fetch(stages_of(absent), jobs=jobs, remote=s.name)


def _check_out(s: Session, artifacts: Sequence[Artifact], force: bool) -> None:
    from dvc.exceptions import CheckoutError, DvcException

    if not artifacts:
        return
    try:
        s.repo.checkout(stages_of(artifacts), force=force)
    except CheckoutError as error:
        names = listed([str(t) for t in error.target_infos])
        raise RemoteError(f"could not be written:\n{names}", str(Path.cwd()), "free the disk, repeat") from None
    except DvcException as error:
        if "--force" not in str(error):
            raise
        names = listed(str(error).splitlines()[1:])
        todo = "move them away, or overwrite them: twohop pull --force ..."
        raise RemoteError(f"files of your own are in the way:\n{names}", str(Path.cwd()), todo) from None


def _compare_with_records(artifacts: Sequence[Artifact]) -> dict[Artifact, str]:
    """Artifacts whose bytes are not the ones that their lineage record names (A1)."""
    faults: dict[Artifact, str] = {}
    for folder, group in groupby(artifacts, lambda a: Path(a.path).parent):
        try:
            recorded = _recorded(folder / RECORD)
        except ArtifactError as error:
            faults |= dict.fromkeys(group, error.what)
            continue
        for artifact in group:
            path = Path(artifact.path)
            if path.name in recorded and recorded[path.name] != sha256(path):
                faults[artifact] = _FOREIGN
    return faults


def _recorded(record: Path) -> dict[str, str]:
    """File name -> sha256."""
    return {Path(o.path).name: o.sha256 for o in read_record(record).outputs} if record.exists() else {}


def _not_pulled(s: Session, faults: Faults) -> RemoteError:
    what = _lines(s, "not pulled; nothing of their stages was changed here", faults)
    root = Path(str(s.remote.path))
    if s.protocol == "local" and not root.exists():
        todo = f"give the folder's right address: dvc remote modify --local {s.name} url FOLDER; then repeat"
        return RemoteError(f"there is no folder {root}\n{what}", s.where, todo)
    push, pull_again = _command("push", faults), _command("pull", faults)
    if all(fault.startswith(_CUT_SHORT) for fault in faults.values()):
        return RemoteError(what, s.where, f"mend what it says, then repeat: {pull_again}")
    if all(fault == _FOREIGN for fault in faults.values()):
        todo = f"no run wrote them: in the clone that committed dvc.lock: snakemake --cores all; {push}; git push"
        return RemoteError(what, s.where, f"{todo}; then here: git pull; {pull_again}")
    hidden = s.protocol not in ("s3", "local") and any(fault.startswith("altered") for fault in faults.values())
    if hidden:  # of the right size, and this remote tells nothing of the bytes
        push = push.replace("push", "push --read-back")
    return RemoteError(what, s.where, f"in a clone that has them whole: {push}; then here: {pull_again}")


def _lines(s: Session, verb: str, faults: Faults) -> str:
    lines = [f"{a.path} ({a.stage}): {what}" for a, what in faults.items()]
    return f"{len(faults)} of {len(s.artifacts)} artifacts {verb}\n{listed(lines)}"


def _command(word: str, faults: Faults, most: int = 6) -> str:
    """The command for the stages of some artifacts; without stages (which means all) when there are many."""
    stages = stages_of(faults)
    return " ".join(["twohop", word, *(stages if len(stages) <= most else [])])
