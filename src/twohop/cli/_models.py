"""`twohop models`: the catalogue, and what a model is, before any weight is loaded."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twohop.cli._command import Adder, Arguments, command
from twohop.errors import ConfigError, ModelError, TwohopError

if TYPE_CHECKING:
    from twohop.config import Params

PARAMS = Path("params.yaml")
GPU_MB = 24_000
"""Memory of the GPU that the estimate speaks of, when none is named."""


def add(add: Adder) -> None:
    """Put the commands into the parser."""
    text = "The catalogue of models: list, show, check, add, fetch."
    parser = add("models", help=text, description=text)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for extend in (_add_list, _add_show, _add_check, _add_add, _add_fetch):
        extend(commands.add_parser)


def _sub(add: Adder, name: str, text: str, call: Any) -> argparse.ArgumentParser:
    sub = command(add, name, text, call)
    sub.set_defaults(command=f"models {name}", network=True)
    return sub


def _add_json(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--json", action="store_true", help="for programs")


def _params() -> "Params | None":
    from twohop.config import load_params

    return load_params(PARAMS) if PARAMS.exists() else None


# --- list, show -------------------------------------------------------------------------------------------------------


def _add_list(add: Adder) -> None:
    _add_json(_sub(add, "list", "Models of params.yaml, and of the catalogue that is shipped.", _list))


def _list(args: Arguments) -> None:
    from twohop.config import shipped_models

    params, shipped = _params(), shipped_models()
    if args.json:
        own = {n: e.model_dump(mode="json") for n, e in params.models.items()} if params else {}
        _print_json({"params.yaml": own, "catalogue": {n: m.model_dump(mode="json") for n, m in shipped.items()}})
        return
    if params is not None:
        print(f"{PARAMS}:")
        for name, entry in params.models.items():
            print(f"  {name:22} {entry.role:9} {_source_words(entry.source)}")
        print()
    print("catalogue (write `my-vlm: {catalog: NAME, ...}`; see docs/models.md):")
    for name, model in shipped.items():
        doubt = "" if model.verified else "  unverified"
        what = f"{model.status:9} {model.architecture:15} {model.parameters:>6}"
        print(f"  {name:22} {what}  {model.vlm or 'made here'}{doubt}")


def _source_words(source: Any) -> str:
    return " ".join(str(value) for value in source.model_dump().values())


def _add_show(add: Adder) -> None:
    sub = _sub(add, "show", "All that params.yaml or the catalogue says of a model.", _show)
    sub.add_argument("name")
    _add_json(sub)


def _show(args: Arguments) -> None:
    from twohop.config import shipped_models

    params, shipped = _params(), shipped_models()
    if params is not None and args.name in params.models:
        where, values = str(PARAMS), params.models[args.name].model_dump(mode="json")
    elif args.name in shipped:
        where, values = "catalogue", shipped[args.name].model_dump(mode="json")
    else:
        raise ModelError(f"no model {args.name}", "command line", "`twohop models list` shows the names")
    if args.json:
        _print_json({"name": args.name, "from": where, **values})
        return
    print(f"{args.name} ({where})")
    for key, value in values.items():
        print(f"  {key:18} {'-' if value in (None, '', [], {}) else value}")


def _print_json(tree: Any) -> None:
    print(json.dumps(tree, indent=1, ensure_ascii=False))


# --- check ------------------------------------------------------------------------------------------------------------


def _add_check(add: Adder) -> None:
    text = (
        "Say whether a model can be studied, why not, and what it needs. Reads configs, tokenizer and headers; of "
        "weights that are on this disk, beside their backbone's, also how far they lie apart."
    )
    sub = _sub(add, "check", text, _check)
    sub.add_argument("model", help="name of params.yaml or the catalogue, folder, card.json, or owner/name on the hub")
    sub.add_argument("--revision", help="commit or branch on the hub (default main)")
    sub.add_argument("--backbone", metavar="MODEL", help="the language model to compare with")
    sub.add_argument("--prompt", choices=("plain", "chat"), help="how the model is going to be asked")
    sub.add_argument("--gpu-mb", type=int, default=GPU_MB, metavar="MB", help=f"memory of one GPU (default {GPU_MB})")
    _add_json(sub)


def _check(args: Arguments) -> None:
    from twohop.cli._model_report import find, lines, report

    found = report(find(args.model, args.revision, args.backbone, args.prompt), args.gpu_mb)
    if args.json:
        _print_json(found.as_json())
    else:
        print("\n".join(lines(found, args.gpu_mb)))
    if found.faults:
        raise ModelError("\n".join(found.faults), args.model, "see docs/models.md, What is checked")
    if not args.json:
        print("good: nothing found that speaks against it")


# --- add --------------------------------------------------------------------------------------------------------------


def _add_add(add: Adder) -> None:
    sub = _sub(add, "add", "Append a model to params.yaml in the short form, after a check; comments stay.", _add)
    sub.add_argument("name", help="its name in the study: letters, digits and '-'")
    sub.add_argument("--vlm", help="owner/name on the hub, or a folder (./name)")
    sub.add_argument("--catalog", metavar="NAME", help="in place of --vlm: a name of the catalogue")
    sub.add_argument("--revision", help="commit of the model, 40 hex digits")
    sub.add_argument("--backbone", help="owner/name, folder, or a backbone of params.yaml (default: the same weights)")
    sub.add_argument("--backbone-revision", help="commit of the backbone")
    sub.add_argument("--role", choices=("vlm", "control"))
    sub.add_argument("--prompt", choices=("plain", "chat"))
    sub.add_argument("--backbone-prompt", choices=("plain", "chat"))
    sub.add_argument("--licence")
    sub.add_argument("--note")
    sub.add_argument("--unchecked", action="store_true", help="do not look at the model first, e.g. without a network")


_KEYS = (
    "vlm",
    "catalog",
    "revision",
    "backbone",
    "backbone_revision",
    "role",
    "prompt",
    "backbone_prompt",
    "licence",
    "note",
)


def _add(args: Arguments) -> None:
    from ruamel.yaml import YAML
    from ruamel.yaml.comments import CommentedMap
    from ruamel.yaml.scalarstring import DoubleQuotedScalarString

    from twohop.config import load_params, parse_params
    from twohop.store import write_bytes

    params = load_params(PARAMS)
    if args.name in params.models:
        raise ConfigError(f"models.{args.name}: is there already", str(PARAMS), "choose another name")
    given = {key: getattr(args, key) for key in _KEYS if getattr(args, key) is not None}
    entry: Any = CommentedMap(
        {k: DoubleQuotedScalarString(v) if k.endswith("revision") else v for k, v in given.items()}
    )
    entry.fa.set_flow_style()
    yaml: Any = YAML()
    yaml.preserve_quotes, yaml.width = True, 10**6
    text = PARAMS.read_text(encoding="utf-8")
    added = _insert(text, args.name, entry, yaml)
    tree: Any = YAML(typ="safe", pure=True).load(added)
    before: Any = YAML(typ="safe", pure=True).load(text)
    if tree != {**before, "models": {**before["models"], args.name: given}}:
        raise ConfigError(
            "its layout is too unusual to add a line to", str(PARAMS), f"add `{args.name}: {given}` by hand"
        )
    changed = parse_params(tree, str(PARAMS))
    if not args.unchecked:
        _check_added(changed, args.name)
    write_bytes(PARAMS, added.encode())
    print(f"{PARAMS}: {args.name} added; make dvc.yaml anew: twohop write_dvc")


def _insert(text: str, name: str, entry: Any, yaml: Any) -> str:
    """The text with one more line below `models`, everything else as it is."""
    from io import StringIO

    tree: Any = yaml.load(text)
    models, keys = tree["models"], list(tree)
    lines = text.splitlines()
    following = keys[keys.index("models") + 1 :]
    end = tree.lc.key(following[0])[0] if following else len(lines)
    while end > 0 and (not lines[end - 1].strip() or lines[end - 1].startswith("#")):
        end -= 1
    out = StringIO()
    yaml.dump({name: entry}, out)
    indent = " " * models.lc.key(next(iter(models)))[1]
    return "\n".join([*lines[:end], f"{indent}{out.getvalue().strip()}", *lines[end:]]) + "\n"


def _check_added(params: "Params", name: str) -> None:
    from twohop.cli._model_report import find_in, lines, report

    entry = params.models[name]
    if entry.source.kind not in ("hub", "local"):
        return  # made here, by recipes that are tested
    found = report(find_in(params, name), GPU_MB)
    print("\n".join(lines(found, GPU_MB)))
    if found.faults:
        todo = "nothing was added; --unchecked adds it all the same"
        raise ModelError("\n".join(found.faults), f"models.{name}", todo)


# --- fetch ------------------------------------------------------------------------------------------------------------


def _add_fetch(add: Adder) -> None:
    text = (
        "Download models of params.yaml that come from a hub to the cache, e.g. on a login node before jobs without a "
        "network; prepare_model does the same by itself."
    )
    sub = _sub(add, "fetch", text, _fetch)
    sub.add_argument("names", nargs="*", metavar="NAME", help="models of params.yaml (default: all)")
    for word in ("--id", "--revision", "--into"):
        sub.add_argument(word, help=argparse.SUPPRESS)


def _fetch(args: Arguments) -> None:
    from twohop.data._hub import download

    if args.id is not None:
        download(args.id, args.revision, Path(args.into))
        return
    from twohop.config import HubRepository
    from twohop.models import cache_root, snapshot_folder

    params = _params()
    if params is None:
        raise ConfigError("no such file", str(PARAMS), "run in the project's top folder")
    unknown = [n for n in args.names if n not in params.models]
    if unknown:
        raise TwohopError(f"no model {', '.join(unknown)}", str(PARAMS), f"name some of {', '.join(params.models)}")
    sources = {n: params.models[n].source for n in args.names or params.models}
    for name, source in sources.items():
        if isinstance(source, HubRepository):
            folder = snapshot_folder(cache_root(), source)
            download(source.id, source.revision, folder)
            print(f"{name}: {folder}")
        elif args.names:
            print(f"{name}: does not come from a hub", file=sys.stderr)
