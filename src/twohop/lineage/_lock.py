"""One run at a time in a tree, whichever engine started it (promises K1-K3), and no lock that outlives its process.

`.cache/twohop/run.lock` names the processes of the run: its owner (`snakemake`, or the `dvc` that started it) and the
runner (the Snakemake that works). The lock holds while one of them lives; pid and start time together tell a process
from a later one with the same number. Every process of a run watches the one above it, so that nothing goes on working
after kill -9. While a run is Snakemake's own, DVC's table of busy paths names `results/`, so that a `dvc repro` stops
before it deletes anything.
"""

import atexit
import contextlib
import fcntl
import os
import socket
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import IO, Any

import psutil

from twohop.errors import TwohopError
from twohop.lineage._files import read_state, write_state

STATE = Path(".cache/twohop")
WATCH = "TWOHOP_WATCH"
_PATIENCE_S = 15.0
_POLL_S = 0.25


class LockedError(TwohopError):
    """Another run works in this tree."""


def acquire(root: Path) -> None:
    """Take the tree's lock for this process, and give it back when the process ends.

    Raises:
        LockedError: a live run holds it, or the DVC that asked for this is gone; nothing was changed.
    """
    above = _process_above()
    if above is not None:
        _watch(*above, root)  # first of all: it may have been killed before this process could look for it
    owner = dvc_above() or psutil.Process()
    if above is None and owner.pid == os.getpid() and _is_orphan(root):
        raise LockedError("the dvc that started this stage has ended", str(root), "repeat your command")
    (root / STATE).mkdir(parents=True, exist_ok=True)
    _take(root, owner)
    _wait_for_steps(root)
    _drop_snakemake_locks(root)
    os.environ[WATCH] = _watch_word(psutil.Process())
    if owner.pid != os.getpid():
        _watch(owner.pid, owner.create_time(), root)
    else:
        atexit.register(release, root)


def is_free(root: Path) -> bool:
    """Whether no live run works in the tree."""
    held = read_state(root / STATE / "run.lock")
    return not (_alive(held.get("owner", {})) or _alive(held.get("runner", {})))


def release(root: Path) -> None:
    """Let go of what this process holds."""
    free_dvc(root)
    with _guard(root):
        path = root / STATE / "run.lock"
        if read_state(path).get("runner", {}).get("pid") == os.getpid():
            path.unlink()


@contextlib.contextmanager
def step_of_run(root: Path) -> Generator[None]:
    """What a step's process does: it ends when its run is killed, and a new run waits until it has ended."""
    above = _process_above()
    if above is not None:
        _watch(*above)
    (root / STATE).mkdir(parents=True, exist_ok=True)
    with (root / STATE / "steps.lock").open("a") as f:
        fcntl.flock(f, fcntl.LOCK_SH)
        yield


def _take(root: Path, owner: psutil.Process) -> None:
    deadline, family = time.monotonic() + _PATIENCE_S, {owner.pid, *_ancestors()}
    while True:
        with _guard(root):
            held = read_state(root / STATE / "run.lock")
            head, runner = held.get("owner", {}), held.get("runner", {})
            mine = _alive(head) and head.get("pid") in family
            if (mine or not _alive(head)) and (runner.get("pid") in family or not _alive(runner)):
                write_state(root / STATE / "run.lock", {"owner": _entry(owner), "runner": _entry(psutil.Process())})
                return
        if _alive(head) or time.monotonic() > deadline:
            raise _locked(root, head if _alive(head) else runner)
        time.sleep(_POLL_S)  # the owner was killed: what it started ends by itself


def _wait_for_steps(root: Path) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    with (root / STATE / "steps.lock").open("a") as f:
        while True:
            try:
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise LockedError(
                        "a step of an earlier run is still working",
                        str(root),
                        "wait until it has ended, then repeat the command",
                    ) from None
                time.sleep(_POLL_S)
            else:
                return


def _drop_snakemake_locks(root: Path) -> None:
    """Snakemake's own locks of a killed run: we hold the tree, so no living Snakemake owns them."""
    for lock in (root / ".snakemake" / "locks").glob("*"):
        lock.unlink(missing_ok=True)


def _locked(root: Path, holder: dict[str, Any]) -> LockedError:
    host = holder.get("host", socket.gethostname())
    if host != socket.gethostname():  # its process cannot be looked at from here
        return LockedError(
            f"another run works here: process {holder.get('pid')} on host {host}: {holder.get('cmd')}",
            str(root / STATE / "run.lock"),
            f"wait until it has ended, or stop it; if {host} is gone, delete that file; nothing was changed",
        )
    return LockedError(
        f"another run works here: process {holder.get('pid')}: {holder.get('cmd')}",
        str(root),
        "wait until it has ended, or stop it, then repeat the command; nothing was changed",
    )


@contextlib.contextmanager
def _guard(root: Path) -> Generator[IO[str]]:
    with (root / STATE / "run.guard").open("a") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield f


def _entry(process: psutil.Process) -> dict[str, Any]:
    return {
        "pid": process.pid,
        "started": process.create_time(),
        "cmd": _command(process),
        "host": socket.gethostname(),
    }


def _command(process: psutil.Process) -> str:
    words = process.cmdline()
    return " ".join(
        [Path(w).name if "/bin/" in w else w for w in words if Path(w).name not in ("python", "python3")][:6]
    )


def _alive(entry: dict[str, Any]) -> bool:
    if not entry:
        return False
    if entry["host"] != socket.gethostname():
        return True  # cannot be looked at from here; the message tells the user who it is
    return _lives(entry["pid"], entry["started"])


def _lives(pid: int, started: float) -> bool:
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - started) < 1
    except psutil.NoSuchProcess:
        return False


def _ancestors() -> set[int]:
    """Processes that this one works for, by number; not the one that holds all."""
    return {p.pid for p in psutil.Process().parents()} - {1}


def dvc_above() -> psutil.Process | None:
    """The `dvc` process that started this one as a stage, if any."""
    if "DVC_STAGE" not in os.environ:
        return None
    for parent in psutil.Process().parents():
        if any(Path(w).name == "dvc" for w in parent.cmdline()[:4]):
            return parent
    return None


def _is_orphan(root: Path) -> bool:
    """Whether this is a stage whose DVC was killed: DVC's table names whoever runs a stage, and none is above us."""
    path = root / ".dvc" / "tmp" / "rwlock"
    if "DVC_STAGE" not in os.environ or not path.exists():
        return False
    holders = {info["pid"] for info in read_state(path).get("write", {}).values()}
    return bool(holders) and holders.isdisjoint(_ancestors())


def _process_above() -> tuple[int, float] | None:
    """Number and start time of the process of this run that started this one; None at its top, or on another host."""
    word = os.environ.get(WATCH, "").split(":")
    return (int(word[1]), float(word[2])) if len(word) == 3 and word[0] == socket.gethostname() else None


def _watch_word(process: psutil.Process) -> str:
    return f"{socket.gethostname()}:{process.pid}:{process.create_time()}"


def _watch(pid: int, started: float, root: Path | None = None) -> None:
    """End this process soon after another one has ended; of clean-up only DVC's table of the tree at `root`.

    An orphan stays in the process table until process 1 takes note of it, in some containers for ever; DVC would hold
    it for alive.
    """
    where = root.resolve() if root else None

    def loop() -> None:
        while _lives(pid, started):
            time.sleep(_POLL_S)
        with contextlib.suppress(OSError, TwohopError):
            if where:
                free_dvc(where)
        os._exit(143)

    threading.Thread(target=loop, name="watch", daemon=True).start()


@contextlib.contextmanager
def _dvc_table(root: Path) -> Generator[dict[str, Any]]:
    """DVC's `{"write": {path: {pid, cmd}}}`, under the same file lock that DVC takes to change it."""
    folder = root / ".dvc" / "tmp"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "rwlock.lock").open("a") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        table = read_state(folder / "rwlock")
        yield table.setdefault("write", {})
        write_state(folder / "rwlock", table)


def occupy_dvc(root: Path) -> None:
    """Write this process into DVC's table of busy paths; DVC itself drops entries of dead processes.

    Raises:
        LockedError: a DVC command works on a path of this tree.
    """
    if not (root / ".dvc" / "config").exists():
        return
    with _dvc_table(root) as write:
        ours = {os.getpid(), *_ancestors()}
        for path, info in write.items():
            if path.startswith(str(root.resolve())) and info["pid"] not in ours and psutil.pid_exists(info["pid"]):
                raise _locked(root, info)
        write[str(root.resolve() / "results")] = {"pid": os.getpid(), "cmd": _command(psutil.Process())}


def free_dvc(root: Path) -> None:
    """Take this process out of DVC's table of busy paths."""
    if not (root / ".dvc" / "tmp" / "rwlock").exists():
        return
    with _dvc_table(root) as write:
        for path in [path for path, info in write.items() if info["pid"] == os.getpid()]:
            del write[path]
