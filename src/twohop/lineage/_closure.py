"""Which source files a module's behaviour depends on, read from the import statements (nothing is imported).

A room's `__init__.py` that only re-exports names is looked through: `from twohop.store import write_table` depends on
the module that defines `write_table`, not on its neighbours. So an edit re-runs the steps that use the edited module,
and no other.
"""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

from twohop.errors import TwohopError

PACKAGE = "twohop"
_DISTRIBUTIONS = {"PIL": "pillow"}
_DATA_SUFFIXES = {".html", ".css", ".js", ".mplstyle", ".json"}


@functools.cache
def source_root() -> Path:
    """The folder that holds the package's folder."""
    return Path(__file__).resolve().parents[2]


@functools.lru_cache(maxsize=1024)
def parse(source: bytes) -> ast.Module:
    """The syntax tree of a source file, to look at: imports and digests are read from the same one."""
    return ast.parse(source)


def closure(module: str, *, loaded: bool = False) -> tuple[Path, ...]:
    """Files of this package that `module` depends on, sorted, relative to the source folder.

    With `loaded`, every file that importing the module may execute: re-exporting `__init__.py` and what they load.
    """
    seen: set[str] = set()
    todo = [module]
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo += _imports(name, loaded)
    files = {_file(name) for name in seen}
    data = {d for f in files for d in f.parent.iterdir() if d.suffix in _DATA_SUFFIXES}
    return tuple(sorted(f.relative_to(source_root()) for f in files | data))


def project_closure(module: str, root: Path) -> tuple[str, ...]:
    """`closure` as paths relative to the project's folder.

    Raises:
        TwohopError: the package that is imported is not the one in this project.
    """
    base = source_root()
    if not base.is_relative_to(root.resolve()):
        raise TwohopError(
            f"the package {PACKAGE} is loaded from {base}, outside this project",
            str(root),
            "install this copy (pip install -e .), or run in the folder that is installed",
        )
    return tuple(str((base / f).relative_to(root.resolve())) for f in closure(module))


def steps_of(root: Path) -> list[str]:
    """Names of the steps' modules."""
    return sorted(p.stem for p in (root / "src/twohop/steps").glob("[a-z]*.py"))


def libraries(module: str) -> frozenset[str]:
    """Distributions from elsewhere that the closure of `module` imports, by the name that pip knows."""
    names: set[str] = set()
    for file in closure(module):
        if file.suffix == ".py":
            for node in ast.walk(parse((source_root() / file).read_bytes())):
                if isinstance(node, ast.Import):
                    names |= {a.name.split(".")[0] for a in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module:
                    names.add(node.module.split(".")[0])
    return frozenset(_DISTRIBUTIONS.get(name, name) for name in names)


def _file(module: str) -> Path:
    path = source_root().joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _is_module(name: str) -> bool:
    return name.split(".")[0] == PACKAGE and _file(name).exists()


@functools.cache
def _tree(module: str) -> ast.Module:
    return parse(_file(module).read_bytes())


@functools.cache
def _exports(module: str) -> dict[str, str] | None:
    """Name -> module that defines it, when `module` is a package that only re-exports; None for any other module."""
    if _file(module).name != "__init__.py":
        return None
    names: dict[str, str] = {}
    for node in _tree(module).body:
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names |= {a.asname or a.name: _owner(node.module, a.name) for a in node.names}
        elif not (_is_docstring(node) or _is_all(node)):
            return None
    return names


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _is_all(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and all(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets)


def _owner(package: str, name: str) -> str:
    return f"{package}.{name}" if _is_module(f"{package}.{name}") else package


@functools.cache
def _imports(module: str, loaded: bool) -> tuple[str, ...]:
    """Modules that one leads to; asked for once per step that reaches it, and the same for all."""
    return tuple(dict.fromkeys(_walk(module, loaded)))


def _walk(module: str, loaded: bool) -> Iterator[str]:
    parent = module.rpartition(".")[0]
    if parent and (loaded or _exports(parent) is None):
        yield parent
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if _is_module(a.name))
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0 and _is_module(node.module):
            for alias in node.names:
                yield from _resolve(node.module, alias.name, loaded)
        elif isinstance(node, ast.ImportFrom) and node.level:
            raise TwohopError("relative imports hide what a step depends on", module, "write the module's full name")


def _resolve(package: str, name: str, loaded: bool) -> Iterator[str]:
    exports = _exports(package)
    target = _owner(package, name)
    if loaded or exports is None or (target == package and name not in exports):
        yield package
    if target != package:
        yield target
    elif exports is not None and name in exports and _is_module(exports[name]):
        yield from _resolve(exports[name], name, loaded) if exports[name] != package else ()
