"""The one module that touches what Snakemake does not promise to keep: its DAG and its records of finished jobs."""
# pyright: reportMissingTypeStubs=false, reportPrivateUsage=false

import base64
import contextlib
import io
import json
import logging
import os
import sys
from collections.abc import Callable, Collection, Generator, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from twohop.errors import TwohopError
from twohop.lineage._files import read_state

SUPPORTED = "9.27."
NO_HOOKS = "TWOHOP_NO_HOOKS"
POISON = "<not verified: the stage changed since dvc.lock>"
_NAME_MAX = 254
_LOOKS = frozenset(
    [
        "--archive",
        "--cleanup-metadata",
        "--cm",
        "--containerize",
        "--d3dag",
        "--dag",
        "--detailed-summary",
        "-D",
        "--filegraph",
        "--generate-unit-tests",
        "--help",
        "-h",
        "--lint",
        "--list",
        "-l",
        "--list-changes",
        "--lc",
        "--list-rules",
        "--list-target-rules",
        "--lt",
        "--list-untracked",
        "--lu",
        "--print-compilation",
        "--report",
        "--rulegraph",
        "--summary",
        "-S",
        "--unlock",
        "--version",
        "-v",
    ]
)
"""Options with which Snakemake runs no job."""


class Slice(dict[str, Any]):
    """Values of params.yaml by dotted key: Snakemake records its repr, DVC lists its keys, a step gets its JSON."""

    def __str__(self) -> str:
        return json.dumps(self, sort_keys=True)

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)


class CodeKey(Slice):
    """What stands for a step's code among a rule's params (see `step_codes`)."""


def slicer(pick: Callable[[Iterable[str]], Mapping[str, Any]], *keys: str) -> Callable[[Any], Slice]:
    """A rule's `params` function: the values at dotted keys, `{model}` in a key being the wildcard."""

    def slice_of(wildcards: Any) -> Slice:
        return Slice(pick(sorted(k.format(**dict(wildcards.items())) for k in keys)))

    return slice_of


def arguments(wildcards: Any, input: Any, output: Any, threads: int) -> str:
    """The part of a step's command line that follows from its rule: model, threads, named files."""
    words = [f"--model {w}" for key, w in wildcards.items() if key == "model"]
    words.append(f"--threads {threads}")
    words += [f"--in {name} {_words(files)}".rstrip() for name, files in input.items()]
    words += [f"--out {name} {_words(files)}" for name, files in output.items()]
    return " ".join(words)


def _words(files: Any) -> str:
    return files if isinstance(files, str) else " ".join(map(str, files))


def find_own_programs() -> None:
    """Let jobs find `twohop` beside the interpreter that runs Snakemake, also when no environment was activated."""
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"


def works(workflow: Any) -> bool:
    """Whether the process that reads the Snakefile is about to run jobs: no dry run, no job's own process, not ours."""
    _guard()
    return _executes(workflow) and not workflow.output_settings.dryrun


def plans(workflow: Any) -> bool:
    """Whether the process is a user's dry run."""
    return _executes(workflow) and workflow.output_settings.dryrun


def _executes(workflow: Any) -> bool:
    """Not `--lint`, `--summary` and the like, which only look (the workflow does not say so yet when the Snakefile is
    read: the command line does); no job's own process.
    """
    looks = _LOOKS & {word.split("=", 1)[0] for word in sys.argv[1:]}
    return workflow.is_main_process and not looks and NO_HOOKS not in os.environ


def _guard() -> None:
    found = version("snakemake")
    if not found.startswith(SUPPORTED):
        raise TwohopError(
            f"Snakemake {found} is installed; its records are read as {SUPPORTED}x writes them",
            "src/twohop/lineage/_snakemake.py",
            f"install snakemake {SUPPORTED}*, or check that module against the new version and raise SUPPORTED",
        )


HELPERS = {"extract_activations": ("extract_shard",)}
"""Rules that make parts for another rule: they are jobs of Snakemake's, and nothing to DVC and the records."""


@dataclass(frozen=True)
class RuleJob:
    """One job of Snakemake's DAG."""

    rule: str
    model: str | None
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    params: tuple[str, ...]
    handle: Any

    @property
    def stage(self) -> str:
        """The DVC stage's address."""
        return self.rule if self.model is None else f"{self.rule}@{self.model}"


class Graph:
    """The DAG with the reasons to run, and the records of finished jobs."""

    def __init__(self, workflow: Any) -> None:
        self._workflow = workflow
        helpers = {name for names in HELPERS.values() for name in names}
        found = [[j for j in level if j.output] for level in workflow.dag.toposorted()]
        parts = {str(f) for level in found for j in level if j.rule.name in helpers for f in j.output}
        self.jobs = _in_order([_job(j, parts) for level in found for j in level if j.rule.name not in helpers])

    def needs_run(self, job: RuleJob) -> bool:
        """Whether Snakemake would run the job now."""
        return self._workflow.dag.needrun(job.handle)

    def trusted(self, job: RuleJob) -> bool:
        """Whether every output has a record and is the very file that the record was written for."""
        return all(record_is_good(Path(f)) for f in job.outputs)

    def adopt(self, job: RuleJob) -> None:
        """Write the record of a finished job from the rule as it is now."""
        self._workflow.async_run(self._workflow.persistence.finished(job.handle))

    def poison(self, job: RuleJob) -> None:
        """Make Snakemake run a job again: what lies there is not what any record vouches for."""
        from snakemake.persistence import MetadataRecord

        store = self._workflow.persistence
        for f in job.handle.output:
            record = store.metadata(f)
            if record is None:
                record = MetadataRecord(rule=job.rule, record_format_version=6, params=[], input=[], endtime=0.0)
            record.code = POISON
            store._write_record(str(f), record)
        store._clear_cache()


def _job(job: Any, parts: Collection[str]) -> RuleJob:
    keys = sorted(k for v in job.params if isinstance(v, Slice) and not isinstance(v, CodeKey) for k in v)
    return RuleJob(
        rule=job.rule.name,
        model=dict(job.wildcards_dict).get("model"),
        inputs=tuple(sorted({*map(str, job.input)}.difference(parts))),
        outputs=tuple(sorted(map(str, job.output))),
        params=tuple(keys),
        handle=job,
    )


def _in_order(jobs: Iterable[RuleJob]) -> list[RuleJob]:
    """By the number of jobs before each, then by stage; helpers do not count."""
    depth: dict[str, int] = {}
    for job in jobs:
        before = [depth[f] for f in job.inputs if f in depth]
        depth |= dict.fromkeys(job.outputs, 1 + max(before, default=-1))
    return sorted(jobs, key=lambda j: (depth[j.outputs[0]], j.stage))


@contextlib.contextmanager
def graph(targets: Iterable[str] = ()) -> Generator[Graph]:
    """Load the Snakefile of the working directory and build its DAG; nothing is run."""
    from snakemake.api import SnakemakeApi
    from snakemake.exceptions import RuleException, WorkflowError
    from snakemake.settings.types import DAGSettings, ExecutionSettings, OutputSettings, Quietness, ResourceSettings

    _guard()
    os.environ[NO_HOOKS] = "1"
    quiet = OutputSettings(quiet={Quietness.ALL}, log_handler_settings={}, dryrun=True)
    with SnakemakeApi(quiet) as api:
        loaded = api.workflow(resource_settings=ResourceSettings(cores=1), snakefile=Path("Snakefile"))
        try:
            with contextlib.redirect_stdout(io.StringIO()), _silence():
                loaded.dag(DAGSettings(targets=frozenset(targets))).summary()
        except (RuleException, WorkflowError) as error:
            raise TwohopError(f"Snakemake cannot plan: {error}", "Snakefile", "see what `snakemake -n` says") from error
        workflow: Any = loaded._workflow
        workflow.execution_settings = ExecutionSettings()
        workflow.iocache.deactivate()
        yield Graph(workflow)


@contextlib.contextmanager
def _silence() -> Generator[None]:
    """Snakemake tells every planning; ours is not the user's business."""
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(before)


def record_is_good(file: Path) -> bool:
    """Whether Snakemake's record exists, is not poisoned, and was written when the file had the time it has now."""
    record = read_state(_record_path(file))
    if not record or record.get("code") == POISON:
        return False
    try:
        times = (file.lstat().st_mtime, file.stat().st_mtime)
    except FileNotFoundError:
        return True  # an absent file is the business of the DAG, not of its record
    return any(abs(t - record["endtime"]) < 1e-4 for t in times)


def _record_path(file: Path) -> Path:
    text = base64.urlsafe_b64encode(str(file).encode()).decode()
    parts = [text[i : i + _NAME_MAX] for i in range(0, len(text), _NAME_MAX)]
    return Path(".snakemake/metadata", *[f"@{p}" for p in parts[:-1]], parts[-1])
