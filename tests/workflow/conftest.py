"""A project in miniature: this tree's files, tiny parameters, git and DVC repositories of its own, run once."""

import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from filelock import FileLock

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
NOT_OURS = ("DVC_", "TWOHOP_", "PYTEST_", "SNAKEMAKE_", "AWS_")


@dataclass
class Tree:
    """A project folder and how to run commands in it."""

    root: Path
    extra: Mapping[str, str] = field(default_factory=dict)
    """Of the environment, e.g. credentials."""

    @property
    def env(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(NOT_OURS)}
        own = {"PATH": f"{BIN}:{kept['PATH']}", "PYTHONPATH": str(self.root / "src"), "HF_HUB_OFFLINE": "1"}
        return {**kept, **own, **self.extra}

    def run(self, *words: str, check: bool = False, timeout: float = 1200) -> "subprocess.CompletedProcess[str]":
        done = subprocess.run(
            words, cwd=self.root, env=self.env, capture_output=True, text=True, timeout=timeout, check=False
        )
        assert not check or done.returncode == 0, f"{words}\n{done.stdout[-4000:]}\n{done.stderr[-8000:]}"
        return done

    def start(self, *words: str) -> "subprocess.Popen[bytes]":
        quiet = subprocess.DEVNULL
        return subprocess.Popen(words, cwd=self.root, env=self.env, stdout=quiet, stderr=quiet, start_new_session=True)

    def snakemake(self, *words: str, check: bool = True) -> str:
        done = self.run("snakemake", "--cores", "all", *words, check=check)
        return done.stdout + done.stderr

    def planned(self) -> set[str]:
        """Rules that Snakemake would run now."""
        text = self.snakemake("-n")
        table = text.rsplit("Job stats:", 1)[1].split("\n\n", 1)[0] if "Job stats:" in text else ""
        return {line.split()[0] for line in table.splitlines()[3:]} - {"all", "total"}

    def changed_stages(self) -> set[str]:
        """DVC stages that are not up to date."""
        text = self.run("dvc", "status", check=True).stdout
        return {line.rstrip(":") for line in text.splitlines() if line.endswith(":") and not line[0].isspace()}

    def edit(self, path: str | Path, old: str, new: str, count: int = -1) -> None:
        file = self.root / path
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new, count))


def new_tree(root: Path) -> Tree:
    """A copy of this project's own files (never of its results) with tiny parameters."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, root / name)
    shutil.copy(ROOT / "tests/tiny/params.yaml", root / "params.yaml")
    (root / "dvc.lock").unlink(missing_ok=True)
    tree = Tree(root)
    tree.run("git", "init", "-q", check=True)
    tree.run("twohop", "write_dvc", check=True)
    commit(tree)
    return tree


def commit(tree: Tree) -> None:
    tree.run("git", "add", "-A", check=True)
    tree.run(
        "git",
        "-c",
        "user.name=t",
        "-c",
        "user.email=t@example.org",
        "commit",
        "--allow-empty",
        "-qm",
        "state",
        check=True,
    )


def _once(base: Path, name: str, words: Sequence[str]) -> Tree:
    with FileLock(base / f"{name}.lock"):
        root = base / name
        if not (base / f"{name}.done").exists():
            shutil.rmtree(root, ignore_errors=True)
            tree = new_tree(root)
            if words:
                tree.run(*words, check=True)
                commit(tree)
            (base / f"{name}.done").touch()
    return Tree(root)


def _base(factory: pytest.TempPathFactory) -> Path:
    """One folder for all workers of a parallel run."""
    own = factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


def _copy(source: Tree, target: Path) -> Tree:
    shutil.copytree(source.root, target / "tree", symlinks=True)  # keeps file times
    return Tree(target / "tree")


@pytest.fixture(scope="session")
def finished_once(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    return _once(_base(tmp_path_factory), "finished", ["snakemake", "--cores", "all"])


@pytest.fixture
def finished(finished_once: Tree, tmp_path: Path) -> Tree:
    """The tiny study after `snakemake --cores all`, to do with as one likes."""
    return _copy(finished_once, tmp_path)


def _counted(source: Tree, folder: Path) -> Callable[[], Tree]:
    numbers = itertools.count()
    return lambda: _copy(source, folder / f"copy-{next(numbers)}")


@pytest.fixture
def finished_tree(finished_once: Tree, tmp_path: Path) -> Callable[[], Tree]:
    """A function that makes copies of the finished study."""
    return _counted(finished_once, tmp_path / "finished")


@pytest.fixture
def fresh_tree(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Callable[[], Tree]:
    """A function that makes copies of the study before anything has run."""
    return _counted(_once(_base(tmp_path_factory), "fresh", []), tmp_path / "fresh")


@pytest.fixture
def fresh(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Tree:
    """The tiny study before anything has run."""
    return _copy(_once(_base(tmp_path_factory), "fresh", []), tmp_path)


@pytest.fixture(scope="module")
def slurm_tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """The tiny study before anything has run, for all tests of a module."""
    return _copy(_once(_base(tmp_path_factory), "fresh", []), tmp_path_factory.mktemp("study"))
