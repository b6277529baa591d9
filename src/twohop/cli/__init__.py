"""The command line: one command per step (what every rule calls), and those that look after the pipeline.

`_steps`, `_pipeline`, `_models`, `_regrade`, `_lineage`, `_share`: one group of commands each, put into the parser by
`add`.

Nothing heavy is imported before the command is known, so that `twohop --help` answers at once.
"""

import argparse
import errno
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from twohop.cli import _lineage, _models, _pipeline, _regrade, _share, _steps
from twohop.errors import TwohopError

_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}

_ASKED_OFFLINE = "TWOHOP_HUB_OFFLINE"
"""Passed on to the processes of a run: what the user says of HF_HUB_OFFLINE, which holds for downloads alone."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; a fault that the user can mend is told in a few lines and gives exit code 2."""
    asked = os.environ.setdefault(_ASKED_OFFLINE, os.environ.get("HF_HUB_OFFLINE", "0"))
    for key, value in _OFFLINE.items():
        os.environ.setdefault(key, value)
    if argv is None:
        _use_own_source()
    args = _parser().parse_args(argv)
    if getattr(args, "network", False):
        os.environ["HF_HUB_OFFLINE"] = asked
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True
    )
    try:
        args.call(args)
    except TwohopError as error:
        return _fail(str(error))
    except BrokenPipeError:  # the reader, e.g. `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        if not _disk_is_full(error):
            raise
        return _fail(
            f"the disk is full\n  where: {error}\n"
            "  do:    free some space, then repeat the command; nothing half-written was kept"
        )
    return 0


def _use_own_source() -> None:
    """In a project's folder, be that project's code: DVC runs experiments in copies of the tree.

    The process is replaced by one that finds `src/` of the working directory first.
    """
    here, loaded = Path("src/twohop").resolve(), Path(__file__).resolve().parents[1]
    if here != loaded and (here / "cli/__init__.py").exists():
        path = os.pathsep.join([str(here.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        os.execve(sys.executable, [sys.executable, "-m", "twohop", *sys.argv[1:]], {**os.environ, "PYTHONPATH": path})


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


def _disk_is_full(error: BaseException | None) -> bool:
    """ENOSPC, also as the text of a library's own exception, also as a cause."""
    if error is None:
        return False
    here = isinstance(error, OSError) and error.errno == errno.ENOSPC
    return here or "No space left on device" in str(error) or _disk_is_full(error.__cause__ or error.__context__)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "twohop",
        description="Where does a vision-language model lose a fact that its language model knows? "
        "The whole study: `snakemake --cores all`. The steps below are what its rules call.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="steps, in their order, then helpers", metavar="COMMAND", required=True)
    for group in (_steps, _pipeline, _models, _regrade, _lineage, _share):
        group.add(commands.add_parser)
    return parser
