"""Commands that look after the pipeline: params, the two engines, projectors."""

import argparse
import logging
import sys
from pathlib import Path

from twohop.cli._command import Adder, Arguments, command
from twohop.errors import TwohopError


def add(add: Adder) -> None:
    """Put the commands into the parser."""
    for extend in (
        _add_check_params,
        _add_fetch_entities,
        _add_write_dvc,
        _add_hash_code,
        _add_run_stage,
        _add_sync,
        _add_install,
    ):
        extend(add)


def _add_check_params(add: Adder) -> None:
    sub = command(add, "check_params", "Check params.yaml.", _check_params)
    sub.add_argument("file", nargs="?", type=Path, default=Path("params.yaml"))


def _check_params(args: Arguments) -> None:
    from twohop.config import load_params

    params = load_params(args.file)
    print(f"{args.file}: good; {len(params.models)} models: {', '.join(params.models)}")


def _add_fetch_entities(add: Adder) -> None:
    text = "Fetch what curate_entities.source (wikidata, popvqa, wit, links) names; what is there is kept."
    sub = command(add, "fetch_entities", text, _fetch_entities)
    sub.add_argument("--again", action="store_true", help="ask the services again, for a snapshot of today")


def _fetch_entities(args: Arguments) -> None:
    from twohop.config import TableSource, load_params
    from twohop.data.fetched import fetch_entities

    source = load_params().curate_entities.source
    if isinstance(source, str | TableSource):
        where, todo = "params.yaml, curate_entities.source", "use it for one of kind wikidata, popvqa, wit or links"
        raise TwohopError("this source fetches nothing", where, todo)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    counts = fetch_entities(source, again=args.again)
    print(f"{source.folder}: " + ", ".join(f"{n} {what.replace('_', ' ')}" for what, n in counts.items()))
    if (Path(source.folder) / "templates.yaml").exists():
        print(f"review {source.folder}/templates.yaml, and take its relations and prompts over into params.yaml")
    print("next: twohop write_dvc, then snakemake --cores all or dvc repro")


def _add_write_dvc(add: Adder) -> None:
    sub = command(add, "write_dvc", "Make dvc.yaml from the Snakefile and params.yaml.", _write_dvc)
    sub.add_argument("--check", action="store_true", help="only say whether it is up to date")


def _write_dvc(args: Arguments) -> None:
    from twohop.config import load_params
    from twohop.lineage import dvc_yaml
    from twohop.store import write_bytes

    if not args.check:
        _hash_code(args)
    path, text = Path("dvc.yaml"), dvc_yaml(load_params())
    if path.exists() and path.read_text(encoding="utf-8") == text:
        print("dvc.yaml: up to date")
    elif args.check:
        raise TwohopError("it does not fit the Snakefile and params.yaml", str(path), "run `twohop write_dvc`")
    else:
        write_bytes(path, text.encode())
        print("dvc.yaml: written")


def _add_hash_code(add: Adder) -> None:
    text = "Write workflow/code.json: one digest per step of what its code does (DVC's stage hash_code)."
    command(add, "hash_code", text, _hash_code)


def _hash_code(_: Arguments) -> None:
    from twohop.config import load_params
    from twohop.lineage import step_codes, write_code_file

    write_code_file(step_codes(load_params().hash_code.rerun_on_versions))


def _add_run_stage(add: Adder) -> None:
    sub = command(add, "run_stage", "Run one stage of dvc.yaml with Snakemake (what `dvc repro` calls).", _run_stage)
    sub.add_argument("rule")
    sub.add_argument("model", nargs="?")


def _run_stage(args: Arguments) -> None:
    from twohop.lineage import run_stage

    run_stage(args.rule, args.model)


def _add_sync(add: Adder) -> None:
    text = (
        "Show what Snakemake and DVC think of every stage, and bring them to one mind: every output's bytes are read "
        "again, nothing is guessed. (Runs do `adopt` before and `commit` after by themselves.)"
    )
    sub = command(add, "sync", text, _sync)
    sub.add_argument("direction", nargs="?", choices=("adopt", "commit", "both"), default="both")
    sub.add_argument("--busy", help=argparse.SUPPRESS)


def _sync(args: Arguments) -> None:
    from twohop.lineage import adopt, commit

    if args.direction == "both":
        _hash_code(args)
        _show_sync()
    elif args.direction == "adopt":
        outcome = adopt()
        _say("taken over from DVC", outcome.adopted)
        for stage, reasons in outcome.poisoned.items():
            print(f"{stage}: not up to date, will be made again: {'; '.join(reasons)}", file=sys.stderr)
    else:
        _say("committed to DVC", commit(args.busy).committed)


def _show_sync() -> None:
    from twohop.lineage import sync

    rows = sync()
    width = max(len(row.stage) for row in rows)
    for row in rows:
        done = f"  => {row.done}" if row.done else ""
        print(f"{row.stage:{width}}  snakemake: {row.snakemake}; dvc: {row.dvc}{done}")
    settled = sum(bool(row.done) for row in rows)
    print(f"{len(rows)} stages, {settled} settled")


def _say(what: str, stages: list[str]) -> None:
    if stages:
        print(f"{what}: {' '.join(stages)}", file=sys.stderr)


def _add_install(add: Adder) -> None:
    text = "Copy trained projectors with log and lineage to data/models (what `snakemake train_projectors` ends with)."
    command(add, "install_projectors", text, _install).add_argument("projectors", nargs="+", type=Path)


def _install(args: Arguments) -> None:
    from twohop.store import write_bytes

    for projector in args.projectors:
        for file in (projector, projector.with_name("log.json"), projector.with_name("lineage.json")):
            write_bytes(Path("data/models") / projector.parent.name / file.name, file.read_bytes())
