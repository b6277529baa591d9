"""How fast each part is, beside the naive ways to the same numbers and beside the arithmetic that it needs.

python benchmarks/fast.py [--cases sweep extraction ...] [--rounds 5] [--quick] [--results DIR] [--out FILE]

Run it in the repository; models, questions and pictures of the default study are made where they are missing. Each case
checks first that all ways give the same result, then times them in turn on pinned threads. A ratio is of two times of
one round. Cases that are not asked for stay on the page as they were.

TransformerLens is compared where it can be imported; it is no dependency of the project, but a folder of its own does,
on PYTHONPATH: pip install --no-deps --target DIR transformer-lens einops fancy-einsum datasets wandb ...
"""

import argparse
import os
import shlex
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

THREADS = int(os.environ.get("OMP_NUM_THREADS") or 2)
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = str(THREADS)

import torch  # noqa: E402
from speed import attribution, benchmark, extraction, probes, scaling, sweep  # noqa: E402
from speed.measure import Case, machine, measured  # noqa: E402
from speed.world import World, open_world, set_up  # noqa: E402

CASES: dict[str, Callable[[World], Case]] = {
    "sweep": sweep.image_case,
    "sweep-text": sweep.text_case,
    "benchmark": benchmark.case,
    "extraction": extraction.case,
    "attribution": attribution.case,
    "probes": probes.case,
}


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", choices=[*CASES, "scaling"], default=[*CASES, "scaling"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="small sizes, to try the command")
    parser.add_argument("--model", default="flags-caption")
    parser.add_argument("--results", type=Path, default=Path("results"), help="of a run of the default study")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/RESULTS.md"))
    parser.add_argument("--measure", nargs=3, metavar=("STEP", "PROMPTS", "LAYERS"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(THREADS)
    if asked.measure:
        step, n, layers = asked.measure
        scaling.measure(asked.results, asked.model, step, int(n), int(layers))
        return
    set_up(asked.results, asked.model)
    world = open_world(asked.results, asked.model, asked.quick)
    kept = _sections(asked.out)
    for name in asked.cases:
        kept[name] = "".join(_parts(world, name, asked.rounds))
        pages = [kept[case] for case in (*CASES, "scaling") if case in kept]
        asked.out.write_text(_head(asked.rounds, asked.quick, asked.model) + "".join(pages), encoding="utf-8")
    print(asked.out.read_text(encoding="utf-8"))


def _sections(page: Path) -> dict[str, str]:
    """The cases of an earlier page, which stay where they are not measured again."""
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    parts = text.split("\n## ")[1:]
    return {part.split("\n")[0]: f"## {part.rstrip()}\n\n" for part in parts}


def _head(rounds: int, quick: bool, model: str) -> str:
    words = ["python", "benchmarks/fast.py", "--rounds", str(rounds), *(["--quick"] if quick else [])]
    return (
        "# How fast, beside the naive ways\n\n<!-- written by benchmarks/fast.py; do not edit -->\n\n"
        f"`{shlex.join(words)}` on {datetime.now(UTC):%Y-%m-%d}, model {model}.\n\n{machine()}.\n\n"
        "Ratios are of times of one round; bars are judged by the median of the rounds, rounded against us.\n\n"
    )


def _parts(world: World, name: str, rounds: int) -> Iterator[str]:
    if name == "scaling":
        yield from scaling.measured(world.results, world.model.name, rounds, world.quick)
    else:
        yield from measured(CASES[name](world), rounds)


if __name__ == "__main__":
    main()
