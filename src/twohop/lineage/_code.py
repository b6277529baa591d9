"""What a source file does, as a digest: the syntax tree without comments, docstrings and layout.

A Python file is parsed; every statement that is only a text (docstrings of modules, classes, functions and fields) is
left out, and the rest is hashed node by node: type, then its fields by name. Empty fields do not count, so that a
Python whose grammar has more optional fields gives the same digest. Other files (templates, styles) count by bytes.

`workflow/code.json` holds one digest per step. Snakemake gets the same digests as params when it reads the Snakefile;
DVC reads the file, which its stage `hash_code` makes again after an edit.
"""

import ast
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import cast

from twohop.errors import TwohopError
from twohop.lineage._closure import libraries, parse, project_closure, steps_of
from twohop.lineage._files import write_text
from twohop.lineage._records import digest_of

CODE_FILE = Path("workflow/code.json")
"""Digest of every step's code, tracked by git; DVC's stages read it as a params file."""
Code = dict[str, str]
"""`code`: one digest over all source files of a step; then the version of each library that counts for it."""


def step_code(step: str, root: Path | None = None) -> dict[str, str]:
    """Digest of every source file that a step depends on, by path relative to the project's folder."""
    base = root or Path.cwd()
    return {f: code_digest(base / f) for f in project_closure(f"twohop.steps.{step}", base)}


def step_codes(rerun_on_versions: Sequence[str] = (), root: Path | None = None) -> dict[str, Code]:
    """What `workflow/code.json` holds: per step one digest, and the versions that are a reason to run again."""
    base = root or Path.cwd()
    return {step: _step(step, rerun_on_versions, base) for step in steps_of(base)}


def write_code_file(codes: Mapping[str, Code]) -> None:
    """Write `workflow/code.json`, unless it says the same already; the same digests give the same bytes."""
    text = json.dumps(codes, indent=1, sort_keys=True) + "\n"
    if not CODE_FILE.exists() or CODE_FILE.read_text(encoding="utf-8") != text:
        write_text(CODE_FILE, text)


def _step(step: str, rerun_on_versions: Sequence[str], base: Path) -> Code:
    used = libraries(f"twohop.steps.{step}") if rerun_on_versions else frozenset[str]()
    found = {name: _version(name) for name in rerun_on_versions if name in used}
    return {"code": digest_of(step_code(step, base)), **found}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def code_digest(file: Path) -> str:
    """Hex sha256 of what a source file does.

    Raises:
        TwohopError: a Python file does not parse.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise TwohopError(f"cannot read source code: {error.strerror}", str(file), "restore the file") from None
    return _python(data, str(file)) if file.suffix == ".py" else hashlib.sha256(data).hexdigest()


@functools.lru_cache(maxsize=1024)
def _python(data: bytes, name: str) -> str:
    try:
        tree = parse(data)
    except SyntaxError as error:
        raise TwohopError(f"does not parse: {error.msg}", f"{name}, line {error.lineno}", "correct the line") from None
    return hashlib.sha256(_canonical(tree).encode()).hexdigest()


def _canonical(value: object) -> str:
    """A text for a tree that two trees share exactly when they mean the same."""
    if isinstance(value, ast.AST):
        fields = ((name, _canonical(item)) for name, item in sorted(ast.iter_fields(value)) if item is not None)
        return f"{type(value).__name__}({','.join(f'{name}={text}' for name, text in fields if text)})"
    if isinstance(value, list):
        return ",".join(f"[{_canonical(item)}]" for item in cast("list[object]", value) if not _is_text(item))
    return f"{type(value).__name__}:{value!r}"


def _is_text(node: object) -> bool:
    """A statement that is only a text."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
