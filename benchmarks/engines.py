"""What the engines take to find that there is nothing to do, by the number of models: seconds, and how they grow.

python benchmarks/engines.py [--models 1 4 14] [--rounds 5]

For each number a git clone of this project (with what is not committed yet) gets random tiny vision-language models and
their backbone. Artifacts are fabricated: `prepare_model` really runs for the backbone and one model, whose card is
copied for all others; every other output is a few kB of text. Snakemake's records are written for them, and DVC saves
them. What is measured looks at names, sizes and times of artifacts, and at no content but the cards'. Commands and
numbers of models take turns, a round at a time, after a round that does not count; each must say that nothing is to do.
CPU seconds are those of all processes of a command.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests/workflow"))

from conftest import Tree, commit  # noqa: E402

COMMANDS = {
    "snakemake --cores 1": "Nothing to be done",
    "snakemake -n": "Nothing to be done",
    "dvc status": "up to date",
    "twohop --help": "render_report",
}
"""With a word of what each must say."""
ROLES = {"backbone": "tiny-llm", "vlm": "tiny-vlm-0"}
"""Models whose cards are really made."""
FABRICATE = """
import json, sys
from pathlib import Path
from twohop.lineage._snakemake import graph
cards = {name: Path(file).read_bytes() for name, file in json.loads(sys.argv[1]).items()}
with graph() as g:
    for job in g.jobs:
        for file in map(Path, job.outputs):
            file.parent.mkdir(parents=True, exist_ok=True)
            role = "backbone" if job.model == "tiny-llm" else "vlm"
            file.write_bytes(cards[role] if file.name == "card.json" else f"{file}\\n".encode() * 100)
        g.adopt(job)
"""
Samples = dict[tuple[str, int], list["Spent"]]


@dataclass(frozen=True)
class Spent:
    """Seconds of one command."""

    wall: float
    cpu: float


def main() -> None:
    """Make the projects, measure, print a table."""
    parser = argparse.ArgumentParser(description="No-op runs of the engines by number of models.")
    parser.add_argument("--models", type=int, nargs="+", default=[1, 4, 14], help="vision-language models")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="commands that hold this text")
    args = parser.parse_args()
    wanted = {words: said for words, said in COMMANDS.items() if args.only in words}
    with tempfile.TemporaryDirectory(prefix="twohop-engines-") as folder:
        cards: dict[str, Path] = {}
        trees: dict[int, Tree] = {}
        for n in sorted(args.models):
            trees[n] = _project(Path(folder) / f"models-{n}", n, cards)
        found: Samples = defaultdict(list)
        for turn in range(args.rounds + 1):
            for n, tree in trees.items():
                for words, said in wanted.items():
                    spent = _spent(tree, words, said)
                    if turn:
                        found[words, n].append(spent)
            print(f"round {turn} of {args.rounds}", file=sys.stderr, flush=True)
    _print(found, list(wanted), list(trees))


def _project(root: Path, n: int, cards: dict[str, Path]) -> Tree:
    """A clone with n vision-language models in which both engines have nothing to do."""
    tree = Tree(_clone(root))
    params = yaml.safe_load((ROOT / "tests/tiny/params.yaml").read_text())
    models = params["models"]
    vlms = {f"tiny-vlm-{i}": _seeded(models["tiny-vlm"], i) for i in range(n)}
    params["models"] = {"tiny-llm": models["tiny-llm"], **vlms}
    (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    tree.run("twohop", "write_dvc", check=True)
    if not cards:
        made = {role: f"results/prepare_model/{m}/card.json" for role, m in ROLES.items()}
        tree.snakemake(*made.values())
        for role, file in made.items():
            cards[role] = Path(shutil.copy(root / file, root.with_name(f"{role}.json")))
        shutil.rmtree(root / ".snakemake")
    given = json.dumps({role: str(file) for role, file in cards.items()})
    tree.run(sys.executable, "-c", FABRICATE, given, check=True)
    tree.run("twohop", "sync", "commit", check=True)
    tree.snakemake()  # learns the code's digests, and that nothing is to do
    commit(tree)
    jobs = len(list((root / "results").rglob("lineage.json")))
    print(f"{n} models and a backbone: {jobs} jobs are up to date", file=sys.stderr, flush=True)
    return tree


def _seeded(entry: dict[str, Any], seed: int) -> dict[str, Any]:
    return entry | {"source": entry["source"] | {"seed": seed}}


def _clone(root: Path) -> Path:
    """The last commit, and on it what was changed since."""
    subprocess.run(["git", "clone", "--quiet", ROOT, root], check=True)
    listed = ["git", "ls-files", "-z", "--modified", "--others", "--exclude-standard"]
    changed = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, changed):
        (root / name).unlink(missing_ok=True)
        if (ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, root / name)
    return root


def _spent(tree: Tree, words: str, said: str) -> Spent:
    """Run a command that has nothing to do."""
    with tempfile.TemporaryFile("w+") as out:
        start = time.monotonic()
        process = subprocess.Popen(words.split(), cwd=tree.root, env=tree.env, stdout=out, stderr=out)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.monotonic() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        text = out.read()
    if process.returncode or said not in text:
        raise SystemExit(f"{words}: exit code {process.returncode}, {said!r} was expected:\n{text[-4000:]}")
    return Spent(wall, usage.ru_utime + usage.ru_stime)


def _print(found: Samples, commands: Iterable[str], numbers: list[int]) -> None:
    """A line for each command and number of models, then how each grows."""
    print("| command | models | wall s: min | median | max | CPU s: min | median | max |")
    print("|---|---|---|---|---|---|---|---|")
    for words in commands:
        for n in numbers:
            cells = [f(s) for s in _columns(found[words, n]) for f in (min, statistics.median, max)]
            print(f"| `{words}` | {n} + backbone | {' | '.join(f'{c:.2f}' for c in cells)} |")
    if len(numbers) < 2:
        return
    print("\nMedian seconds by number of models, the backbone among them: fitted power, and slope of the fitted line")
    print("\n| command | wall: exponent | s/model | CPU: exponent | s/model |\n|---|---|---|---|---|")
    models = np.array(numbers) + 1
    for words in commands:
        cells = []
        for i in range(2):
            medians = np.array([statistics.median(_columns(found[words, n])[i]) for n in numbers])
            cells += [np.polyfit(np.log(models), np.log(medians), 1)[0], np.polyfit(models, medians, 1)[0]]
        print(f"| `{words}` | {' | '.join(f'{c:.3f}' for c in cells)} |")


def _columns(samples: Iterable[Spent]) -> tuple[list[float], list[float]]:
    """Wall and CPU seconds."""
    return [s.wall for s in samples], [s.cpu for s in samples]


if __name__ == "__main__":
    main()
