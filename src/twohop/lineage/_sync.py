"""Keep Snakemake's and DVC's idea of "up to date" the same.

`adopt` (DVC -> Snakemake, before a run): an output that dvc.lock knows but for which Snakemake has no good record is
judged by DVC, by content. Clean: Snakemake's record is written from the current rule, and outputs are made no older
than inputs. Changed: the record is poisoned, so that the job runs. `commit` (Snakemake -> DVC, after a run): outputs,
deps and params of every finished stage are saved to dvc.lock and the cache; a stage that Snakemake would run again is
left out, so that nothing stale is ever called up to date. A run asks a cheap check first, which reads file times,
neither engine.
"""
# pyright: reportMissingTypeStubs=false, reportPrivateUsage=false

import contextlib
import hashlib
import logging
import os
import subprocess
import sys
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from twohop.errors import TwohopError
from twohop.lineage._files import read_state, write_state
from twohop.lineage._lock import STATE
from twohop.lineage._snakemake import NO_HOOKS, Graph, RuleJob, graph, record_is_good

_LOCK, _PIPELINE, _STAMP = Path("dvc.lock"), Path("dvc.yaml"), STATE / "sync.json"
log = logging.getLogger(__name__)


@dataclass
class Outcome:
    """Stages that changed hands."""

    adopted: list[str] = field(default_factory=list[str])
    poisoned: list[str] = field(default_factory=list[str])
    committed: list[str] = field(default_factory=list[str])


def uses_dvc() -> bool:
    """Whether the working directory is a DVC repository with a pipeline."""
    return Path(".dvc/config").exists() and _PIPELINE.exists()


def before_run() -> None:
    """Adopt, when the cheap check asks for it; in a process of its own, as the caller is reading the Snakefile."""
    if uses_dvc() and needs_adoption():
        _call("adopt")


def after_run() -> None:
    """Commit in a process of its own, when something changed since the last commit."""
    if uses_dvc() and not in_step():
        _call("commit")


def _call(direction: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "twohop", "sync", direction], env={**os.environ, NO_HOOKS: "1"}, check=False
    )
    if done.returncode:
        raise TwohopError(
            f"`twohop sync {direction}` failed", str(Path.cwd()), "mend what it says above, then repeat it"
        )


def needs_adoption() -> bool:
    """Whether an output of dvc.lock has no good record at Snakemake, or is older than what it was made from."""
    for stage in _locked_stages():
        outs = [Path(o["path"]) for o in stage.get("outs", [])]
        if not all(map(record_is_good, outs)) or _older(outs, [Path(d["path"]) for d in stage.get("deps", [])]):
            return True
    return False


def _locked_stages() -> Iterable[dict[str, Any]]:
    if not _LOCK.exists():
        return ()
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load(_LOCK.read_bytes(), Loader=loader).get("stages", {}).values()


def in_step() -> bool:
    """Whether every file that dvc.lock names has the time and size that the last commit saw."""
    return read_state(_STAMP).get("digest") == _digest()


def _digest() -> str:
    names = {e["path"] for s in _locked_stages() for e in [*s.get("deps", []), *s.get("outs", [])]}
    lines = [f"{n} {_stat(Path(n))}" for n in sorted(names)]
    lines += [
        f"{p} {hashlib.sha256(p.read_bytes()).hexdigest()}"
        for p in (_LOCK, _PIPELINE, Path("params.yaml"))
        if p.exists()
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _stat(path: Path) -> str:
    try:
        found = path.stat()
    except FileNotFoundError:
        return "absent"
    return f"{found.st_mtime_ns} {found.st_size}"


def adopt() -> Outcome:
    """Write or poison Snakemake's records of doubtful stages, as DVC judges their content."""
    outcome = Outcome()
    with graph() as g:
        if not any(_doubtful(g, job) for job in g.jobs):
            return outcome
        with _dvc() as repo:
            for address, job in g.stages().items():
                if _doubtful(
                    g, job
                ):  # asked one after the other: raising an output's time can make the next stage doubtful
                    _judge(g, job, repo, _stage(repo, address), outcome)
    return outcome


def _doubtful(g: Graph, job: RuleJob) -> bool:
    return not g.trusted(job) or _older(map(Path, job.outputs), map(Path, job.inputs))


def _judge(g: Graph, job: RuleJob, repo: Any, stage: Any, outcome: Outcome) -> None:
    locked = bool(stage.outs) and all(o.hash_info for o in stage.outs)
    upstream = list(repo.index.graph.successors(stage))
    if locked and not stage.changed(allow_missing=True, upstream=upstream):
        _raise_times(job, repo, stage)
        g.adopt(job)
        outcome.adopted.append(job.stage)
    elif not g.trusted(job) and (locked or any(Path(f).exists() for f in job.outputs)):
        g.poison(job)
        outcome.poisoned.append(job.stage)


def _raise_times(job: RuleJob, repo: Any, stage: Any) -> None:
    """Outputs become no older than inputs; DVC is told the new times, so that it need not hash again."""
    newest = max((_input_time(Path(f)) for f in job.inputs if Path(f).exists()), default=0)
    by_path = {o.fs_path: o for o in stage.outs}
    for f in map(Path, job.outputs):
        if f.exists() and f.lstat().st_mtime_ns < newest:
            os.utime(f, ns=(newest, newest), follow_symlinks=False)
            out = by_path[str(Path.cwd() / f)]
            repo.cache.local.state.save(out.fs_path, out.fs, out.hash_info)


def _input_time(path: Path) -> int:
    """As Snakemake sees an input: the newer of a link and its target."""
    return max(path.lstat().st_mtime_ns, path.stat().st_mtime_ns)


def _older(outputs: Iterable[Path], inputs: Iterable[Path]) -> bool:
    made = [p.lstat().st_mtime_ns for p in outputs if p.exists()]
    return bool(made) and max((_input_time(p) for p in inputs if p.exists()), default=0) > min(made)


def commit() -> Outcome:
    """Save every finished stage to dvc.lock and the cache; workspace files and their times stay as they are."""
    with _dvc() as repo:
        present = [str(o) for s in repo.index.stages if s.outs and all(o.exists for o in s.outs) for o in s.outs]
        if not present:
            return Outcome()
        with graph(present) as g:  # only what is here: a partial checkout must not look stale because of what is absent
            good = [j.stage for j in g.jobs if _finished(g, j)]
        stages = [_stage(repo, address) for address in good]
        todo = [s for s in stages if s.changed_stage() or s.changed_deps(allow_missing=True) or s.changed_outs()]
        for stage in todo:
            stage.save()
            stage.commit(relink=False)
        if todo:
            todo[0].dvcfile.dump_stages(todo, update_pipeline=False)
    write_state(_STAMP, {"digest": _digest()})
    return Outcome(committed=[s.addressing for s in todo])


def _finished(g: Graph, job: RuleJob) -> bool:
    return all(Path(f).exists() for f in job.outputs) and g.trusted(job) and not g.needs_run(job)


@contextlib.contextmanager
def _dvc() -> Generator[Any]:
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    logging.getLogger("dvc").setLevel(logging.ERROR)
    try:
        with Repo(_wait_for_lock=True) as repo, repo.lock:
            yield repo
    except DvcException as error:
        raise TwohopError(f"DVC: {error}", str(Path.cwd()), "mend it, then run `twohop sync`") from error


def _stage(repo: Any, address: str) -> Any:
    for stage in repo.index.stages:
        if stage.addressing == address:
            return stage
    raise TwohopError(f"it has no stage {address}", str(_PIPELINE), "run `twohop write_dvc`, then `twohop sync`")
