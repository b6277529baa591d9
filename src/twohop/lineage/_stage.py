"""What a stage of dvc.yaml runs: Snakemake, for that stage and, in parallel, for those that DVC will ask for next.

DVC runs one stage after the other. But it looks into its run cache before it runs one, so that results may come early:
the first stage of a `dvc repro` that has to run lets Snakemake make everything that this `dvc repro` is going to need,
over rules and models at once, and saves what is finished to DVC's cache; DVC then finds each later stage "cached".
Nothing is made that DVC was not asked for. With `--single-item`, `--force`, `--interactive` and the like, or where DVC
was not called as `dvc repro` or `dvc exp run`, a stage makes its own outputs and no more.
"""
# pyright: reportMissingTypeStubs=false, reportPrivateUsage=false

import contextlib
import logging
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from twohop.errors import TwohopError
from twohop.lineage._judge import Verdict, dvc_repo, judge
from twohop.lineage._lock import acquire, dvc_above, free_dvc, occupy_dvc
from twohop.lineage._snakemake import HELPERS
from twohop.lineage._sync import CODE_STAGE, call

ALONE = "TWOHOP_ALONE"
"""Set for a Snakemake that runs one job at a time: it may use all cores."""
_ONE_BY_ONE = ("single_item", "force", "interactive", "no_run_cache", "no_commit", "force_downstream", "pull")
log = logging.getLogger(__name__)


def run_stage(rule: str, model: str | None) -> None:
    """Let Snakemake make a stage's outputs, and early those that DVC is about to ask for.

    Raises:
        TwohopError: Snakemake failed; what it said stands above.
        LockedError: another run works in this tree.
    """
    address = rule if model is None else f"{rule}@{model}"
    own = outputs_of(rule, model)
    root = Path()
    acquire(root)
    ahead = _ahead(address)
    if not ahead:
        code = _snakemake(["--allowed-rules", rule, *HELPERS.get(rule, ()), "--", *own], alone=True)
    else:
        log.info("%s: running ahead for %d more stages of this dvc repro", address, len(ahead))
        occupy_dvc(root)
        call("adopt")
        code = _snakemake(["--keep-going", "--", *own, *(f for files in ahead.values() for f in files)], alone=False)
        free_dvc(root)
        call("commit", address)
    if not all(Path(f).exists() for f in own) or (code and not ahead):
        raise TwohopError(
            f"snakemake failed, exit code {code}", address, "mend what it says above, then repeat the command"
        )


def outputs_of(rule: str, model: str | None, pipeline: Path = Path("dvc.yaml")) -> list[str]:
    """Outputs of a stage, as dvc.yaml lists them.

    Raises:
        TwohopError: there is no such stage.
    """
    stages: dict[str, Any] = yaml.safe_load(pipeline.read_text(encoding="utf-8"))["stages"]
    stage = stages.get(rule, {})
    body, models = stage.get("do", stage), [*stage.get("foreach", {}), *stage.get("matrix", {}).get("model", ())]
    if not stage or (model is None) != (not models) or (model is not None and model not in models):
        name = rule if model is None else f"{rule} {model}"
        raise TwohopError(f"no stage {name}", str(pipeline), "see `dvc stage list`, or make it again: twohop write_dvc")
    outs = [*body.get("outs", ()), *body.get("metrics", ()), *body.get("plots", ())]
    names = [out if isinstance(out, str) else next(iter(out)) for out in outs]
    return [re.sub(r"\$\{(key|item\.model)\}", model or "", name) for name in names]


def _snakemake(words: Sequence[str], alone: bool) -> int:
    env = {**os.environ, "PYTHONPATH": _own_source()} | ({ALONE: "1"} if alone else {})
    return subprocess.run(
        [sys.executable, "-m", "snakemake", "--cores", "all", *words], env=env, check=False
    ).returncode


def _own_source() -> str:
    """The working tree's own package first: DVC runs experiments in copies of the tree."""
    return os.pathsep.join([str(Path("src").resolve()), *filter(None, [os.environ.get("PYTHONPATH")])])


def _ahead(address: str) -> dict[str, list[str]]:
    """Outputs of the other stages that the `dvc` above this process is going to run, by address."""
    asked = _asked()
    if asked is None:
        return {}
    with dvc_repo() as repo:
        plan = _plan(repo, asked)
        verdicts = judge(repo)
        todo = _to_run(repo, address, plan, verdicts)
        return {s.addressing: [str(o) for o in s.outs] for s in plan if s.addressing in todo - {address, CODE_STAGE}}


def _asked() -> Any:
    """Parsed words of the `dvc repro` or `dvc exp run` above this process; None where stages run one by one."""
    process = dvc_above()
    if process is None:
        return None
    words = process.cmdline()
    start = next((i for i, w in enumerate(words[:4]) if Path(w).name == "dvc"), None)
    if start is None or not {"repro", "exp", "experiments"} & set(words[start + 1 : start + 2]):
        return None
    from dvc.cli import DvcParserError, parse_args

    with contextlib.suppress(DvcParserError, SystemExit):
        args = parse_args(words[start + 1 :])
        if hasattr(args, "targets") and not any(getattr(args, name, False) for name in _ONE_BY_ONE):
            return args
    return None


def _plan(repo: Any, asked: Any) -> list[Any]:
    """Stages that DVC visits, in its order."""
    from dvc.repo.reproduce import collect_stages, get_active_graph, plan_repro

    every = asked.all_pipelines
    stages = [] if every else collect_stages(repo, asked.targets or ["dvc.yaml"], recursive=asked.recursive)
    graph = get_active_graph(repo.index.graph)
    return list(plan_repro(graph, stages or None, pipeline=asked.pipeline, downstream=asked.downstream))


def _to_run(repo: Any, address: str, plan: Sequence[Any], verdicts: Mapping[str, Verdict]) -> set[str]:
    """Of the plan: this stage, what DVC holds out of date, and what follows from either."""
    todo = {address}
    for stage in plan:
        name = stage.addressing
        follows = any(up.addressing in todo for up in repo.index.graph.successors(stage))
        if name in verdicts and (follows or verdicts[name].reasons):
            todo.add(name)
    return todo
