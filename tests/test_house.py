"""The house rules that a machine can check: arrows between rooms, no unpickling, docstrings."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
UNSAFE = {"torch.load", "pickle.load", "pickle.loads", "joblib.load", "dill.load", "dill.loads", "pickle.Unpickler"}
UNSAFE_MODULES = {"pickle", "joblib", "dill", "cloudpickle", "shelve", "marshal"}


def test_arrows_between_rooms_go_one_way():
    run = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr


def _unsafe_calls(tree: ast.AST) -> list[str]:
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.split(".")[0] in UNSAFE_MODULES]
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in UNSAFE_MODULES:
            found.append(node.module or "")
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            pickled = any(
                k.arg in ("allow_pickle", "trust_remote_code")
                and not (isinstance(k.value, ast.Constant) and k.value.value is False)
                for k in node.keywords
            )
            if name in UNSAFE or pickled:
                found.append(name)
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT / "src")))
def test_m03_nothing_is_unpickled(path: Path):
    assert _unsafe_calls(ast.parse(path.read_text())) == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(x)",
        "np.load(x, allow_pickle=True)",
        "f(trust_remote_code=flag)",
    ],
)
def test_m03_check_finds_what_it_forbids(code: str):
    assert _unsafe_calls(ast.parse(code))


def test_every_room_and_module_says_what_it_is():
    silent = [str(p.relative_to(ROOT)) for p in SOURCES if not ast.get_docstring(ast.parse(p.read_text()))]
    assert silent == []
