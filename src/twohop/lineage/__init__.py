"""Records beside artifacts, import closures, and the bridge that lets Snakemake and DVC share one tree."""

from twohop.lineage._closure import closure, project_closure, source_root
from twohop.lineage._dvc import check_fingerprint, dvc_yaml, fingerprint
from twohop.lineage._lock import LockedError, acquire, free_dvc, is_free, occupy_dvc, release, step_of_run
from twohop.lineage._records import (
    RECORD,
    Ancestor,
    Fault,
    InputFile,
    OutputFile,
    Record,
    read_record,
    record_of,
    trace,
    verify,
)
from twohop.lineage._snakemake import Slice, arguments, find_own_programs, plans, slicer, works
from twohop.lineage._sync import Outcome, adopt, after_run, before_run, commit, in_step, needs_adoption

__all__ = [
    "RECORD",
    "Ancestor",
    "Fault",
    "InputFile",
    "LockedError",
    "Outcome",
    "OutputFile",
    "Record",
    "Slice",
    "acquire",
    "adopt",
    "after_run",
    "arguments",
    "before_run",
    "check_fingerprint",
    "closure",
    "commit",
    "dvc_yaml",
    "find_own_programs",
    "fingerprint",
    "free_dvc",
    "in_step",
    "is_free",
    "needs_adoption",
    "occupy_dvc",
    "plans",
    "project_closure",
    "read_record",
    "record_of",
    "release",
    "slicer",
    "source_root",
    "step_of_run",
    "trace",
    "verify",
    "works",
]
