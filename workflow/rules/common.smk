# What all rules share: checked params, model names, the lock of the tree, the bridge to DVC.
#
# params.yaml is read once, here, and checked before anything else: a fault ends the program, exit code 2.
import atexit
import os
import re
import sys
from pathlib import Path

from twohop import lineage
from twohop.config import (
    load_params,
    needs,
    read_size,
    section_keys,
    source_pictures,
    source_tables,
)
from twohop.errors import TwohopError
from twohop.steps._names import declared

lineage.find_own_programs()


def or_exit(function, *args):
    """The function's value; a fault that the user can mend is told without a traceback."""
    try:
        return function(*args)
    except TwohopError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


PARAMS = or_exit(load_params)
BACKBONES, VLMS, CONTROLS = (
    PARAMS.names(role) for role in ("backbone", "vlm", "control")
)
MODELS = [*BACKBONES, *VLMS, *CONTROLS]
SOURCE_TABLES = or_exit(source_tables, PARAMS.curate_entities.source)
SOURCE_PICTURES = or_exit(source_pictures, PARAMS.curate_entities.source)
CODE = or_exit(lineage.step_codes, PARAMS.hash_code.rerun_on_versions)
UNDER_DVC = "DVC_STAGE" in os.environ
# A profile for a cluster says what one job gets: its threads, and the memory of one GPU in MB (0: models run on CPUs).
JOB_THREADS = int(config.get("job_threads", 0))
GPU_MB = int(config.get("gpu_mb", 0))
CORES = JOB_THREADS or workflow.cores or len(os.sched_getaffinity(0))
# Two models side by side, unless DVC asks for one stage, and so often for one job.
ALONE = JOB_THREADS or lineage.ALONE in os.environ
MODEL_THREADS = CORES if ALONE else max(1, CORES // 2)
CARD = "results/prepare_model/{model}/card.json"


ASSEMBLED = [m for m in MODELS if PARAMS.models[m].source.kind == "assembled"]
TRAINED = "results/train_projector/{model}/projector.safetensors"
IN_GIT = [
    m for m in ASSEMBLED if PARAMS.models[m].source.projector != TRAINED.format(model=m)
]


def one_of(*groups):
    """A wildcard constraint: the models of some groups (nothing, when there are none)."""
    return "|".join(re.escape(m) for group in groups for m in group) or "(?!)"


wildcard_constraints:
    model=one_of(MODELS),


def code_of(step):
    """Digest of the code that a step's result depends on, and of the libraries that params.yaml names."""
    return lineage.CodeKey(CODE[step])


def slice_of(step):
    """The values of params.yaml that a step's `STEP` says it reads."""
    return lineage.slicer(
        lambda keys: section_keys(PARAMS, keys), *or_exit(declared, step).params
    )


def needs_of(step, what):
    """A rule's `resources` function: `mem_mb`, `runtime` or `gpu`, from the model's card (see docs/scale.md)."""

    def value(wildcards, threads):
        size = read_size(Path(CARD.format(model=wildcards.model)))
        return getattr(needs(step, PARAMS, size, threads, GPU_MB), what)

    return value


def of_backbone(pattern):
    """The same file of the model's backbone (of the model itself, when it is one)."""

    def path(wildcards):
        return pattern.format(
            model=PARAMS.models[wildcards.model].backbone or wildcards.model
        )

    return path


def projector_of(wildcards):
    """The trained part of models that have one: git holds it, or, for those that say so, rule train_projector."""
    return getattr(PARAMS.models[wildcards.model].source, "projector", [])


def backbone_card_of(wildcards):
    """The card of the language model that a vision-language model came from."""
    backbone = PARAMS.models[wildcards.model].backbone
    return f"results/prepare_model/{backbone}/card.json" if backbone else []


def per_model(pattern, *groups):
    """One file for each model of some groups."""
    return expand(pattern, model=[m for group in groups for m in group])


if UNDER_DVC:
    or_exit(lineage.check_fingerprint, PARAMS)

if lineage.plans(workflow) and not UNDER_DVC and lineage.is_free(Path()):
    or_exit(lineage.before_run, CODE, True)

if lineage.works(workflow):
    or_exit(lineage.acquire, Path())
    if not UNDER_DVC:
        or_exit(lineage.before_run, CODE, False)
        or_exit(lineage.occupy_dvc, Path())
        # Snakemake calls neither handler when there is nothing to do, and DVC may still have something to learn
        atexit.register(lineage.at_exit, Path())

        onsuccess:
            or_exit(lineage.after_run, Path())

        onerror:
            or_exit(lineage.after_run, Path())
