"""The command line: one command per step (what every rule calls), and those that look after the pipeline.

Nothing heavy is imported before the command is known, so that `twohop --help` answers at once.
"""

import argparse
import errno
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from twohop.errors import TwohopError
from twohop.steps._names import STEPS, summary_of

_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
Arguments = argparse.Namespace
Adder = Callable[..., argparse.ArgumentParser]
"""`add_parser` of the parser's commands."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; a fault that the user can mend is told in a few lines and gives exit code 2."""
    for key, value in _OFFLINE.items():
        os.environ.setdefault(key, value)
    args = _parser().parse_args(argv)
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
    for step in STEPS:
        _add_step(commands.add_parser, step)
    for extend in (_add_check_params, _add_write_dvc, _add_sync, _add_verify, _add_lineage, _add_install):
        extend(commands.add_parser)
    return parser


def _command(
    add: Adder,
    name: str,
    text: str,
    call: Callable[[Arguments], None],
) -> argparse.ArgumentParser:
    sub = add(name, help=text.replace("%", "%%"), description=text.replace("%", "%%"))
    sub.set_defaults(call=call, command=name)
    return sub


def _add_step(add: Adder, step: str) -> None:
    sub = _command(add, step, summary_of(step), _run_step)
    sub.add_argument("--model", help="catalogue name of params.yaml")
    sub.add_argument(
        "--params", type=json.loads, required=True, metavar="JSON", help="values by dotted key of params.yaml"
    )
    sub.add_argument("--in", dest="inputs", action="append", nargs="+", default=[], metavar=("NAME", "FILE"))
    sub.add_argument("--out", dest="outputs", action="append", nargs=2, default=[], metavar=("NAME", "FILE"))
    sub.add_argument("--code", nargs="*", default=[], metavar="FILE", help="source files that the rule declares")
    sub.add_argument("--threads", type=int, default=1, help="threads of the numerical libraries (default 1)")


def _run_step(args: Arguments) -> None:
    from twohop.steps._run import Call, run

    run(
        Call(
            step=args.command,
            model=args.model,
            params=args.params,
            inputs={name: tuple(map(Path, files)) for name, *files in args.inputs},
            outputs={name: Path(file) for name, file in args.outputs},
            code=tuple(args.code),
            threads=args.threads,
        )
    )


def _add_check_params(add: Adder) -> None:
    sub = _command(add, "check_params", "Check params.yaml.", _check_params)
    sub.add_argument("file", nargs="?", type=Path, default=Path("params.yaml"))


def _check_params(args: Arguments) -> None:
    from twohop.config import load_params

    params = load_params(args.file)
    print(f"{args.file}: good; {len(params.models)} models: {', '.join(params.models)}")


def _add_write_dvc(add: Adder) -> None:
    sub = _command(add, "write_dvc", "Make dvc.yaml from the Snakefile and params.yaml.", _write_dvc)
    sub.add_argument("--check", action="store_true", help="only say whether it is up to date")


def _write_dvc(args: Arguments) -> None:
    from twohop.config import load_params
    from twohop.lineage import dvc_yaml
    from twohop.store import write_bytes

    path, text = Path("dvc.yaml"), dvc_yaml(load_params())
    if path.exists() and path.read_text(encoding="utf-8") == text:
        print("dvc.yaml: up to date")
    elif args.check:
        raise TwohopError("it does not fit the Snakefile and params.yaml", str(path), "run `twohop write_dvc`")
    else:
        write_bytes(path, text.encode())
        print("dvc.yaml: written")


def _add_sync(add: Adder) -> None:
    sub = _command(add, "sync", "Let Snakemake and DVC agree on what is up to date (runs do it by themselves).", _sync)
    sub.add_argument("direction", nargs="?", choices=("adopt", "commit", "both"), default="both")


def _sync(args: Arguments) -> None:
    from twohop.lineage import adopt, commit

    if args.direction in ("adopt", "both"):
        outcome = adopt()
        _say("taken over from DVC", outcome.adopted)
        _say("changed since dvc.lock, to be run again", outcome.poisoned)
    if args.direction in ("commit", "both"):
        _say("committed to DVC", commit().committed)


def _say(what: str, stages: list[str]) -> None:
    if stages:
        print(f"{what}: {' '.join(stages)}", file=sys.stderr)


def _add_verify(add: Adder) -> None:
    sub = _command(add, "verify", "Re-read every artifact and compare it with its lineage record.", _verify)
    sub.add_argument("folders", nargs="*", type=Path, default=[Path("results"), Path("data/models")])


def _verify(args: Arguments) -> None:
    from twohop.errors import ArtifactError
    from twohop.lineage import verify

    read, faults = verify(tuple(args.folders))
    if faults:
        lines = "\n".join(f"{f.path}: {f.what}" for f in faults)
        raise ArtifactError(
            lines,
            f"{len(faults)} of {read} artifacts",
            "restore what is named (`dvc checkout`, git), or delete it and run `snakemake --cores all`",
        )
    print(f"{read} artifacts are what their records say")


def _add_lineage(add: Adder) -> None:
    sub = _command(add, "lineage", "Walk back from an artifact to the repository's own files.", _lineage)
    sub.add_argument("file", type=Path)


def _lineage(args: Arguments) -> None:
    from twohop.lineage import trace

    for a in trace(args.file):
        maker = (
            f"<- {a.record.step} {a.record.model or ''} run {a.record.run_id[:8]}"
            if a.record
            else "(a file of the repository)"
        )
        source = f" commit {(a.record.commit or 'none')[:10]}{' + edits' if a.record.dirty else ''}" if a.record else ""
        print("  " * a.depth + f"{a.path} {maker}{source}" + (f"  ! {a.note}" if a.note else ""))


def _add_install(add: Adder) -> None:
    text = "Copy trained projectors with log and lineage to data/models (what `snakemake train_projectors` ends with)."
    _command(add, "install_projectors", text, _install).add_argument("projectors", nargs="+", type=Path)


def _install(args: Arguments) -> None:
    from twohop.store import write_bytes

    for projector in args.projectors:
        for file in (projector, projector.with_name("log.json"), projector.with_name("lineage.json")):
            write_bytes(Path("data/models") / projector.parent.name / file.name, file.read_bytes())
