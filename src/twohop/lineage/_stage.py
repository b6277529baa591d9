"""What a stage of dvc.yaml runs: Snakemake, for the outputs of one rule and model."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from twohop.errors import TwohopError
from twohop.lineage._snakemake import HELPERS


def run_stage(rule: str, model: str | None) -> None:
    """Let Snakemake make a stage's outputs, and nothing that DVC holds up to date.

    Raises:
        TwohopError: Snakemake failed; what it said stands above.
    """
    allowed = ["--allowed-rules", rule, *HELPERS.get(rule, ())]
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--cores", "all", *allowed, "--", *outputs_of(rule, model)],
        env={**os.environ, "PYTHONPATH": _own_source()},
        check=False,
    )
    if done.returncode:
        raise TwohopError(
            f"snakemake failed, exit code {done.returncode}",
            rule if model is None else f"{rule}@{model}",
            "mend what it says above, then repeat the command",
        )


def outputs_of(rule: str, model: str | None, pipeline: Path = Path("dvc.yaml")) -> list[str]:
    """Outputs of a stage, as dvc.yaml lists them.

    Raises:
        TwohopError: there is no such stage.
    """
    stages: dict[str, Any] = yaml.safe_load(pipeline.read_text(encoding="utf-8"))["stages"]
    stage = stages.get(rule, {})
    body, models = stage.get("do", stage), [*stage.get("foreach", {}), *stage.get("matrix", {}).get("model", ())]
    if not stage or (model is None) != (not models) or (model is not None and model not in models):
        name = rule if model is None else f"{rule} {model}"
        raise TwohopError(f"no stage {name}", str(pipeline), "see `dvc stage list`, or make it again: twohop write_dvc")
    outs = [*body.get("outs", ()), *body.get("metrics", ()), *body.get("plots", ())]
    names = [out if isinstance(out, str) else next(iter(out)) for out in outs]
    return [re.sub(r"\$\{(key|item\.model)\}", model or "", name) for name in names]


def _own_source() -> str:
    """The working tree's own package first: DVC runs experiments in copies of the tree."""
    return os.pathsep.join([str(Path("src").resolve()), *filter(None, [os.environ.get("PYTHONPATH")])])
