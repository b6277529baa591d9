"""Records beside artifacts, import closures, and the bridge that lets Snakemake and DVC share one tree."""

from twohop.lineage._closure import closure, project_closure, source_root
from twohop.lineage._code import CODE_FILE, code_digest, code_digests, step_code, step_codes
from twohop.lineage._dvc import check_fingerprint, dvc_yaml, fingerprint
from twohop.lineage._lock import LockedError, acquire, free_dvc, is_free, occupy_dvc, release, step_of_run
from twohop.lineage._objects import RemoteError
from twohop.lineage._records import (
    FORMAT,
    HISTORY,
    RECORD,
    Ancestor,
    Fault,
    InputFile,
    ModelUse,
    OutputFile,
    Record,
    digest_of,
    read_record,
    record_of,
    trace,
    verify,
)
from twohop.lineage._remote import Moved, pull, push
from twohop.lineage._snakemake import CodeKey, Slice, arguments, find_own_programs, plans, slicer, works
from twohop.lineage._stage import run_stage
from twohop.lineage._sync import Outcome, adopt, after_run, before_run, commit, in_step, needs_adoption

__all__ = [
    "CODE_FILE",
    "FORMAT",
    "HISTORY",
    "RECORD",
    "Ancestor",
    "CodeKey",
    "Fault",
    "InputFile",
    "LockedError",
    "ModelUse",
    "Moved",
    "Outcome",
    "OutputFile",
    "Record",
    "RemoteError",
    "Slice",
    "acquire",
    "adopt",
    "after_run",
    "arguments",
    "before_run",
    "check_fingerprint",
    "closure",
    "code_digest",
    "code_digests",
    "commit",
    "digest_of",
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
    "pull",
    "push",
    "read_record",
    "record_of",
    "release",
    "run_stage",
    "slicer",
    "source_root",
    "step_code",
    "step_codes",
    "step_of_run",
    "trace",
    "verify",
    "works",
]
