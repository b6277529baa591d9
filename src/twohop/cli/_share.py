"""Commands that share artifacts: with the DVC remote, and as a folder for people without the repository."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from twohop.cli._command import Adder, Arguments, command
from twohop.errors import ArtifactError, TwohopError

if TYPE_CHECKING:
    from twohop.lineage import Moved


def add(add: Adder) -> None:
    """Put the commands into the parser."""
    for extend in (_add_push, _add_pull, _add_bundle):
        extend(add)


def _add_push(add: Adder) -> None:
    sub = _transfer(add, "push", "Bring artifacts to the DVC remote; what is bad there is sent again.", _push)
    sub.add_argument("--read-back", action="store_true", help="read every object of the remote, whatever it tells")


def _add_pull(add: Adder) -> None:
    sub = _transfer(add, "pull", "Bring artifacts from the DVC remote, every byte compared.", _pull)
    sub.add_argument("--force", action="store_true", help="overwrite files that were changed here")


def _transfer(add: Adder, name: str, text: str, call: Callable[[Arguments], None]) -> argparse.ArgumentParser:
    sub = command(add, name, text, call)
    sub.add_argument(
        "targets", nargs="*", metavar="STAGE", help="e.g. extract_activations@flags-caption; without: everything"
    )
    sub.add_argument("-r", "--remote", help="name of a remote (default: the default remote)")
    sub.add_argument("-j", "--jobs", type=int, help="transfers at once")
    return sub


def _push(args: Arguments) -> None:
    from twohop.lineage import push

    moved = push(args.targets, args.remote, args.jobs, args.read_back)
    _say(moved, f"{moved.sent} sent" + (f", {moved.healed} in the place of a bad one" if moved.healed else ""))


def _pull(args: Arguments) -> None:
    from twohop.lineage import pull

    moved = pull(args.targets, args.remote, args.jobs, args.force)
    _say(moved, f"{moved.sent} fetched, the bytes of all compared")


def _say(moved: "Moved", what: str) -> None:
    print(f"{moved.artifacts} artifacts, {moved.bytes / 1e6:.1f} MB: {what}; {moved.where}")


def _add_bundle(add: Adder) -> None:
    text = "One model's activations, card and lineage as a folder that checks itself and that h5py reads."
    sub = command(add, "bundle", text, _bundle)
    sub.add_argument("model", nargs="?", metavar="MODEL", help="catalogue name of params.yaml")
    sub.add_argument("-o", "--output", type=Path, metavar="DIR", help="folder to write (default bundles/MODEL)")
    sub.add_argument("--check", type=Path, metavar="DIR", help="verify a bundle instead of writing one")


def _bundle(args: Arguments) -> None:
    from twohop.report import bundle, check_bundle

    if (args.model is None) == (args.check is None):
        raise TwohopError(
            "a model or --check DIR", "command line", "twohop bundle MODEL; or: twohop bundle --check DIR"
        )
    if args.check is not None:
        if faults := check_bundle(args.check):
            raise ArtifactError("\n".join(faults), str(args.check), "do not use it; get the folder again")
        print(f"{args.check}: good, every byte is what its sums and records say")
        return
    made = bundle(args.model, args.output or Path("bundles") / args.model)
    print(f"{made.path}: {made.files} files, {made.bytes / 1e6:.1f} MB")
