"""`make engines-check`: every scenario between Snakemake and DVC on the tiny study, as a table; 1 on a failure.

python tests/workflow/engines_check.py [WORD ...]     only scenarios whose description holds a word
"""

import argparse
import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from scenarios import Said, Scenario, Trees, all_scenarios

from conftest import ROOT, Tree, commit, new_tree

REMOTE = "S3 faults: truncated, altered, missing object, killed push, wrong credentials, dead host"
SLURM = "Slurm: jobs submitted by `snakemake --profile profiles/slurm`, one killed on the node"


def main() -> int:
    """Run them, one after the other."""
    parser = argparse.ArgumentParser(description="Scenarios between Snakemake and DVC on the tiny study.")
    parser.add_argument("words", nargs="*", help="only scenarios whose description holds one of these")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments of the kills")
    args = parser.parse_args()
    # started by a shell in the background (`make engines-check &`), this program and all below it would ignore Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="twohop-engines-", ignore_cleanup_errors=True) as folder:
        trees = _trees(Path(folder), args.seed)
        wanted = [s for s in all_scenarios() if _chosen(s.__doc__ or "", args.words)]
        rows = [_row(s, trees, Path(folder)) for s in wanted]
    for title, marker, file in ((REMOTE, "workflow", "test_remote.py"), (SLURM, "slurm", "test_slurm.py")):
        if _chosen(title, args.words):
            rows.append(_by_pytest(title, marker, file))
    print("\n| scenario | Snakemake said | DVC said | seconds |\n|---|---|---|---|")
    print(*(f"| {a} | {b} | {c} | {s:.0f} |" for a, b, c, s in rows), sep="\n")
    return any(b.startswith("FAILED") for _, b, _, _ in rows)


def _chosen(text: str, words: list[str]) -> bool:
    return not words or any(w.lower() in text.lower() for w in words)


def _trees(folder: Path, seed: int) -> Trees:
    count = itertools.count()
    fresh = new_tree(_made(folder / "fresh"))
    finished: list[Tree] = []

    def copy(source: Tree) -> Tree:
        target = folder / f"run-{next(count)}"
        shutil.copytree(source.root, target / "tree", symlinks=True)
        return Tree(target / "tree")

    def after_a_run() -> Tree:
        if not finished:
            tree = copy(fresh)
            tree.snakemake()
            commit(tree)
            finished.append(tree)
        return copy(finished[0])

    return Trees(after_a_run, lambda: copy(fresh), seed)


def _made(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


def _row(scenario: Scenario, trees: Trees, folder: Path) -> tuple[str, str, str, float]:
    title = " ".join((scenario.__doc__ or "").split()).rstrip(".")
    started = time.monotonic()
    try:
        said: Said = scenario(trees)
    except Exception as error:  # noqa: BLE001 - a failed scenario is a row of the table
        said = (f"FAILED: {type(error).__name__}: {' '.join(str(error).split())[-300:]}", "")
    seconds = time.monotonic() - started
    print(f"{title}: {said[0]} | {said[1]} ({seconds:.0f} s)", file=sys.stderr, flush=True)
    return title, *said, seconds


def _by_pytest(title: str, marker: str, file: str) -> tuple[str, str, str, float]:
    """Scenarios that are tests of their own."""
    started = time.monotonic()
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", marker, f"tests/workflow/{file}"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env=os.environ, check=False)
    last = done.stdout.strip().splitlines()[-1].strip("= ") if done.stdout.strip() else "no output"
    said = ("" if done.returncode == 0 else "FAILED: ") + last
    return title, said, "", time.monotonic() - started


if __name__ == "__main__":
    sys.exit(main())
