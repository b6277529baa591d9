"""One command per step: what every rule calls."""

import json
from pathlib import Path

from twohop.cli._command import Adder, Arguments, command
from twohop.steps._names import STEPS, summary_of


def add(add: Adder) -> None:
    """Put the commands into the parser."""
    for step in STEPS:
        _add_step(add, step)


def _add_step(add: Adder, step: str) -> None:
    sub = command(add, step, summary_of(step), _run_step)
    sub.add_argument("--model", help="catalogue name of params.yaml")
    sub.add_argument(
        "--params", type=json.loads, required=True, metavar="JSON", help="values by dotted key of params.yaml"
    )
    sub.add_argument("--in", dest="inputs", action="append", nargs="+", default=[], metavar=("NAME", "FILE"))
    sub.add_argument("--out", dest="outputs", action="append", nargs=2, default=[], metavar=("NAME", "FILE"))
    sub.add_argument(
        "--code", type=json.loads, default={}, metavar="JSON", help="what workflow/code.json says of the step"
    )
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
            code=args.code,
            threads=args.threads,
        )
    )
