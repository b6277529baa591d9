"""`twohop lineage`: what there is, where it comes from, what rests on it, what differs, what is wrong."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from twohop.cli._command import Adder, Arguments, command

_ALTERED = (
    "restore what is altered or missing (`dvc checkout`, git), or delete it and run `snakemake --cores all`; "
    "delete what no record names"
)
_STALE = "make what is out of date again: `snakemake --cores all`"
_CACHED = "delete the bad cached copy, then `dvc commit -f STAGE` if the artifact itself is good, else `dvc fetch`"
_IDS = "run id or its beginning, path, or <run>/<file name>"


def add(add: Adder) -> None:
    """Put the group of commands into the parser."""
    text = "Where results come from: list, view, find, diff, check, render, export."
    group = add("lineage", help=text, description=text).add_subparsers(metavar="COMMAND", required=True)
    for extend in (_add_list, _add_view, _add_find, _add_diff, _add_check, _add_render, _add_export):
        extend(group.add_parser)


def _say(args: Arguments, value: Any, lines: Iterable[str]) -> None:
    """The answer as lines for people, or as JSON."""
    if args.json:
        print(json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True))
    else:
        print("\n".join(lines))


def _add_filters(sub: Any) -> None:
    sub.add_argument("--step", help="only runs of this step")
    sub.add_argument("--model", help="only runs of this model")
    sub.add_argument("--since", metavar="TIME", help='only runs started since: 2026-11-24, or "2 days"')
    sub.add_argument("--commit", help="only runs of this commit (may be cut short)")
    sub.add_argument("--history", action="store_true", help="also runs whose artifacts were overwritten")
    sub.add_argument("--json", action="store_true", help="the same as JSON")


def _selected(args: Arguments, records: Iterable[Any]) -> list[Any]:
    from twohop.lineage import parse_since, select

    since = parse_since(args.since) if args.since else None
    return select(records, step=args.step, model=args.model, since=since, commit=args.commit)


def _add_list(add: Adder) -> None:
    sub = command(add, "list", "List the runs that made what lies in results/.", _list)
    _add_filters(sub)


def _list(args: Arguments) -> None:
    from twohop.lineage import read_book
    from twohop.provenance import run_lines

    records = _selected(args, read_book(args.history).sorted(args.history))
    _say(args, [r.as_json() for r in records], [*run_lines(records), f"{len(records)} runs"])


def _add_view(add: Adder) -> None:
    text = "Walk back from a run, an artifact or a number to pictures, facts, models and the commit."
    sub = command(add, "view", text, _view)
    sub.add_argument("id", help=f"{_IDS}; a number: <run>/summary.json#/key/key")
    sub.add_argument("--picture", metavar="ID", help="tell only of this picture")
    sub.add_argument("--all", action="store_true", help="tell of every picture, not of a few")
    sub.add_argument("--json", action="store_true", help="the same as JSON")


def _view(args: Arguments) -> None:
    from twohop.lineage import read_book, resolve
    from twohop.provenance import trace, view_lines

    book = read_book()
    found = trace(resolve(args.id, book), book, args.picture)
    _say(args, found.as_json(), view_lines(found, args.all))


def _add_find(add: Adder) -> None:
    sub = command(add, "find", "Find runs, or all that rests on an input (what a picture would take with it).", _find)
    sub.add_argument("--input", metavar="X", help="path, sha256, picture id or file name: what rests on it")
    _add_filters(sub)


def _find(args: Arguments) -> None:
    from dataclasses import replace

    from twohop.errors import TwohopError
    from twohop.lineage import read_book
    from twohop.provenance import find_input, found_lines

    if args.input is not None:
        found = find_input(args.input, read_book(args.history), args.history)
        found = replace(found, runs=tuple(_selected(args, found.runs)))
        _say(args, found.as_json(), found_lines(found))
    elif any((args.step, args.model, args.since, args.commit)):
        _list(args)
    else:
        raise TwohopError("nothing to look for", "command line", "add --input, --step, --model, --since or --commit")


def _add_diff(add: Adder) -> None:
    sub = command(add, "diff", "Say what differs between two runs in params, code, inputs and versions.", _diff)
    for name in ("a", "b"):
        sub.add_argument(name, metavar=name.upper(), help=f"{_IDS}, or REV:path for a git revision")
    sub.add_argument("--json", action="store_true", help="the same as JSON")


def _diff(args: Arguments) -> None:
    from twohop.lineage import diff, read_book, record_at
    from twohop.provenance import difference_lines

    book = read_book()
    a, b = (record_at(text, book) for text in (args.a, args.b))
    found = diff(a, b, book)
    _say(args, found.as_json(), difference_lines(found))


def _add_check(add: Adder) -> None:
    text = "Re-read every artifact; compare it with its record, and its params, code and inputs with now."
    sub = command(add, "check", text, _check)
    sub.add_argument("folders", nargs="*", type=Path, default=[Path("results"), Path("data/models")])
    sub.add_argument("--cache", action="store_true", help="also re-read DVC's cache, whose bytes DVC itself trusts")


def _check(args: Arguments) -> None:
    from twohop.errors import ArtifactError
    from twohop.lineage import check_cache, find_stale, read_sound_records, verify

    read, altered = verify(tuple(args.folders))
    records = read_sound_records(args.folders)
    stale = find_stale(records, _params_now() if records else None)
    objects, cached = check_cache() if args.cache else (0, [])
    found = ((altered, _ALTERED), (stale, _STALE), (cached, _CACHED))
    faults = [fault for kind, _ in found for fault in kind]
    copies = f" and {objects} cached copies" if args.cache else ""
    if faults:
        raise ArtifactError(
            "\n".join(f"{f.path}: {f.what}" for f in faults),
            f"{len(faults)} fault{'s' if len(faults) > 1 else ''} in {read} artifacts{copies}",
            "; ".join(todo for kind, todo in found if kind),
        )
    print(f"{read} artifacts{copies} are what their records say")


def _params_now() -> Any:
    from twohop.config import load_params

    return load_params() if Path("params.yaml").exists() else None


def _add_render(add: Adder) -> None:
    sub = command(add, "render", "Write the graph of all runs as one interactive HTML page.", _render)
    sub.add_argument("-o", "--output", type=Path, default=Path("lineage.html"))


def _render(args: Arguments) -> None:
    from twohop.lineage import read_book
    from twohop.provenance import graph_page
    from twohop.store import write_bytes

    records = read_book(history=False).sorted()
    write_bytes(args.output, graph_page(records).encode())
    print(f"{args.output}: {len(records)} runs; open it in a browser")


def _add_export(add: Adder) -> None:
    sub = command(add, "export", "Write a Workflow Run RO-Crate: runs, files and licences, for archives.", _export)
    sub.add_argument("folder", type=Path)
    sub.add_argument("--with-data", action="store_true", help="also copy pictures, activations and probes")


def _export(args: Arguments) -> None:
    from twohop.lineage import read_book
    from twohop.provenance import export

    counts = export(args.folder, read_book(history=False).sorted(), args.with_data)
    print(f"{args.folder}: {', '.join(f'{n} {what}' for what, n in counts.items())}; open ro-crate-preview.html")
