"""Commands that look at records: what an artifact is, and where it comes from."""

from pathlib import Path

from twohop.cli._command import Adder, Arguments, command


def add(add: Adder) -> None:
    """Put the commands into the parser."""
    for extend in (_add_verify, _add_lineage):
        extend(add)


def _add_verify(add: Adder) -> None:
    sub = command(add, "verify", "Re-read every artifact and compare it with its lineage record.", _verify)
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
    sub = command(add, "lineage", "Walk back from an artifact to the repository's own files.", _lineage)
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
