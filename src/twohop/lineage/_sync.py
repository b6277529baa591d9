"""Keep Snakemake's and DVC's idea of "up to date" the same.

`adopt` (DVC -> Snakemake, before a run): an output that dvc.lock knows but for which Snakemake has no good record is
judged by DVC, by content. Clean: Snakemake's record is written from the current rule, and outputs are made no older
than inputs. Changed: the record is poisoned, so that the job runs, and the reason is told. `commit` (Snakemake -> DVC,
after a run): outputs, deps and params of every finished stage are saved to dvc.lock and the cache; a stage that
Snakemake would run again is left out, so that nothing stale is ever called up to date. `sync` does both by hand, after
it has read every byte again, and shows what either engine thinks. A run asks a cheap check first, which reads file
times and neither engine.
"""
# pyright: reportMissingTypeStubs=false, reportPrivateUsage=false

import functools
import logging
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from twohop.errors import TwohopError
from twohop.lineage._code import CODE_FILE, Code, write_code_file
from twohop.lineage._files import read_state, write_state
from twohop.lineage._judge import Verdict, dvc_repo, judge, rehash, stage_of, stages_in_order
from twohop.lineage._lock import STATE, free_dvc, release
from twohop.lineage._records import digest_of, sha256
from twohop.lineage._snakemake import NO_HOOKS, Graph, RuleJob, graph, record_is_good

_LOCK, _PIPELINE, _PARAMS = Path("dvc.lock"), Path("dvc.yaml"), Path("params.yaml")
CODE_STAGE = "hash_code"
_STAMP, _JUDGED = STATE / "sync.json", STATE / "judged.json"
log = logging.getLogger(__name__)


@dataclass
class Outcome:
    """Stages that changed hands."""

    adopted: list[str] = field(default_factory=list[str])
    poisoned: dict[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    """With the reasons."""
    committed: list[str] = field(default_factory=list[str])


@dataclass(frozen=True)
class Row:
    """One stage in the table of `sync`."""

    stage: str
    snakemake: str
    dvc: str
    done: str
    """What was done about it."""


def uses_dvc() -> bool:
    """Whether the working directory is a DVC repository with a pipeline."""
    return Path(".dvc/config").exists() and _PIPELINE.exists()


def before_run(codes: Mapping[str, Code], dry: bool) -> None:
    """Adopt, when the cheap check asks for it; in a process of its own, as the caller is reading the Snakefile."""
    if not uses_dvc():
        return
    write_code_file(codes)
    if needs_adoption() or _is_linked() or not (dry or _code_is_saved()):
        call("adopt")


def _code_is_saved() -> bool:
    return not _LOCK.exists() or read_state(_JUDGED).get("source") == _source()


def _source() -> str:
    """Times and sizes of all source files."""
    files = (p for p in Path("src/twohop").rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    return digest_of([[str(p), _stat(p)] for p in sorted(files)])


def after_run(root: Path) -> None:
    """Commit in a process of its own, when something changed since the last commit."""
    free_dvc(root)
    if uses_dvc() and not in_step():
        call("commit")


def at_exit(root: Path) -> None:
    """`after_run` for a run that had nothing to do; a fault is told and gives exit code 2."""
    try:
        after_run(root)
    except TwohopError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.stderr.flush()
        release(root)
        os._exit(2)


def call(direction: str, busy: str | None = None) -> None:
    """`twohop sync adopt` or `commit` in a process of its own.

    Raises:
        TwohopError: it failed; what it said stands above.
    """
    done = subprocess.run(
        [sys.executable, "-m", "twohop", "sync", direction, *(["--busy", busy] if busy else [])],
        env={**os.environ, NO_HOOKS: "1"},
        check=False,
    )
    if done.returncode:
        raise TwohopError(
            f"`twohop sync {direction}` failed", str(Path.cwd()), "mend what it says above, then repeat it"
        )


def needs_adoption() -> bool:
    """Whether an output of dvc.lock has no good record at Snakemake, is older than what it was made from, or was made
    from something that is not here, under params or code that have not been judged yet.
    """
    for stage in _locked_stages():
        outs, deps = ([Path(e["path"]) for e in stage.get(kind, [])] for kind in ("outs", "deps"))
        if outs == [CODE_FILE]:
            continue
        if not all(map(record_is_good, outs)) or _older(outs, deps):
            return True
        if any(not d.exists() for d in deps) and any(o.exists() for o in outs) and not _is_judged():
            return True
    return False


def _is_judged() -> bool:
    return read_state(_JUDGED).get("digest") == _question()


def _question() -> str:
    """What a verdict on files that are not here depends on."""
    return digest_of([sha256(p) for p in (_LOCK, _PIPELINE, _PARAMS, CODE_FILE) if p.exists()])


def _is_linked() -> bool:
    """Whether an output is a read-only hard link into DVC's cache, which Snakemake would refuse to make again."""
    return any(_is_protected(Path(o["path"])) for stage in _locked_stages() for o in stage.get("outs", []))


def _is_protected(path: Path) -> bool:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return False
    return stat.S_ISREG(mode) and not mode & stat.S_IWUSR


def _locked_stages() -> Iterable[dict[str, Any]]:
    if not _LOCK.exists():
        return ()
    return _stages_in(_LOCK.read_bytes())


@functools.lru_cache(maxsize=1)
def _stages_in(lock: bytes) -> tuple[dict[str, Any], ...]:
    """Stages of a dvc.lock, which a run without work asks for three times."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return tuple(yaml.load(lock, Loader=loader).get("stages", {}).values())


def in_step() -> bool:
    """Whether the results and every file that dvc.lock names have the times and sizes that the last commit saw."""
    return read_state(_STAMP).get("digest") == _digest()


def _digest() -> str:
    names = {e["path"] for s in _locked_stages() for e in [*s.get("deps", []), *s.get("outs", [])]}
    # a run that was killed may have left dvc.lock with a few stages only: what it does not name counts as well
    names |= {str(p) for p in Path("results").rglob("*") if not p.is_dir()}
    return digest_of([[n, _stat(Path(n))] for n in sorted(names)] + [_question(), _source()])


def _stat(path: Path) -> str:
    try:
        found = path.stat()
    except FileNotFoundError:
        return "absent"
    return f"{found.st_mtime_ns} {found.st_size}"


def adopt() -> Outcome:
    """Write or poison Snakemake's records of doubtful stages, as DVC judges their content.

    Raises:
        TwohopError: dvc.yaml lacks a stage of the DAG: it was made from other parameters.
    """
    outcome = Outcome()
    with graph() as g:
        if any(_doubtful(g, job) for job in g.jobs) or not _is_judged():
            with dvc_repo() as repo:
                verdicts = judge(repo)
                for missing in (job.stage for job in g.jobs if job.stage not in verdicts):
                    stage_of(repo, missing)  # says that dvc.yaml has none, and what to do
                for job in g.jobs:  # one by one: raising an output's time can make the next stage doubtful
                    if _doubtful(g, job) or verdicts[job.stage].partial:
                        _settle(g, job, repo, verdicts[job.stage], outcome)
    _save_code_stage()
    write_state(_JUDGED, {"digest": _question(), "source": _source()})
    if _is_linked():
        _unprotect()
    return outcome


def _save_code_stage() -> None:
    """`workflow/code.json` was just made from the source files: DVC may know them."""
    if not _LOCK.exists() or _code_is_saved():
        return
    with dvc_repo() as repo:
        stage = stage_of(repo, CODE_STAGE)
        if stage.changed(allow_missing=True):
            _save([stage])


def _save(stages: list[Any]) -> None:
    for stage in stages:
        stage.save()
        stage.commit(relink=False)
    if stages:
        stages[0].dvcfile.dump_stages(stages, update_pipeline=False)


def _doubtful(g: Graph, job: RuleJob) -> bool:
    return not g.trusted(job) or _older(map(Path, job.outputs), map(Path, job.inputs))


def _settle(g: Graph, job: RuleJob, repo: Any, verdict: Verdict, outcome: Outcome) -> None:
    doubtful = _doubtful(g, job)
    if not verdict.reasons and doubtful:
        _raise_times(job, repo, stage_of(repo, job.stage))
        g.adopt(job)
        outcome.adopted.append(job.stage)
    elif verdict.reasons and (not g.trusted(job) or verdict.partial) and any(Path(f).exists() for f in job.outputs):
        g.poison(job)
        outcome.poisoned[job.stage] = verdict.reasons


def _unprotect() -> None:
    """Copies in place of hard links, for outputs that the next run makes again; times stay."""
    with graph() as g:
        for f in (Path(f) for job in g.jobs if g.needs_run(job) for f in job.outputs):
            if _is_protected(f):
                tmp = f.with_name(f".{f.name}.{os.getpid()}.tmp")
                shutil.copy2(f, tmp)
                tmp.chmod(0o644)
                tmp.replace(f)


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


def commit(busy: str | None = None) -> Outcome:
    """Save every finished stage to dvc.lock and the cache; workspace files and their times stay as they are.

    Args:
        busy: a stage that DVC itself is running and will save.
    """
    with dvc_repo() as repo:
        present = [o for s in repo.index.stages if s.outs and all(o.exists for o in s.outs) for o in s.outs]
        targets = [str(o) for o in present if str(o) != str(CODE_FILE)]
        finished: set[str] = set()
        if targets:  # only what is here: a partial checkout must not look stale because of what is absent
            with graph(targets) as g:
                finished = {j.stage for j in g.jobs if _finished(g, j)}
        verdicts = judge(repo)
        todo = [s for s in stages_in_order(repo) if _to_commit(s, verdicts[s.addressing], finished, busy)]
        _save(todo)
    write_state(_STAMP, {"digest": _digest()})
    return Outcome(committed=[s.addressing for s in todo])


def _to_commit(stage: Any, verdict: Verdict, finished: set[str], busy: str | None) -> bool:
    mine = stage.addressing in finished or stage.addressing == CODE_STAGE
    return mine and bool(verdict.reasons) and stage.addressing != busy and all(dep.exists for dep in stage.deps)


def _finished(g: Graph, job: RuleJob) -> bool:
    return all(Path(f).exists() for f in job.outputs) and g.trusted(job) and not g.needs_run(job)


def sync() -> list[Row]:
    """Read every output's bytes again, bring both engines to one mind, and say what either thought before."""
    with dvc_repo() as repo:
        wrong = set(rehash(repo.index.stages))
        before = judge(repo)
    with graph() as g:
        thought = {job.stage: _thought(g, job, wrong) for job in g.jobs}
    outcome = adopt()
    outcome.committed = commit().committed
    rows: list[Row] = []
    for address, verdict in before.items():
        dvc = "; ".join(verdict.reasons) or ("up to date" if verdict.present else "up to date, not here")
        rows.append(Row(address, thought.get(address, "no job"), dvc, _done(address, outcome)))
    return rows


def _thought(g: Graph, job: RuleJob, wrong: set[str]) -> str:
    altered = sorted(wrong & set(job.outputs))
    if altered:
        return f"altered: {', '.join(altered)}"
    if not all(Path(f).exists() for f in job.outputs):
        return "to run: not here" if g.needs_run(job) else "not here, not needed"
    if g.needs_run(job):
        return "to run"
    return "up to date" if g.trusted(job) else "no record"


def _done(address: str, outcome: Outcome) -> str:
    if address in outcome.poisoned:
        return "marked to run again"
    if address in outcome.committed:
        return "saved to DVC"
    return "taken over from DVC" if address in outcome.adopted else ""
