"""What a step is: a declaration of what it reads, and a function from a job to a summary."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from twohop.config import ModelEntry, Section
from twohop.errors import TwohopError

S = TypeVar("S", bound=Section)
Summary = Mapping[str, int | float | str]
"""What a step says at its end (done, failed, counts); logged and kept in the lineage record."""


@dataclass(frozen=True)
class Step:
    """The declaration at the top of every step module, `STEP = Step(...)`; the rule and the DVC stage must agree."""

    name: str
    params: tuple[str, ...]
    """Dotted keys of params.yaml that the step's code reads; `{model}` stands for the model wildcard."""
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    per_model: bool = True
    in_shards: bool = False
    """Whether the module also has `run_shard(job, part)`: a part of the rows, as a job of its own."""


@dataclass(frozen=True)
class Part:
    """One of several equal parts of the rows."""

    index: int
    """From 0."""
    of: int

    def takes(self, number: int) -> bool:
        """Whether a chunk belongs to the part; neighbours go to different parts."""
        return number % self.of == self.index


@dataclass(frozen=True)
class Job:
    """One call of a step: its slice of params.yaml, named input and output files, and a folder for resumable work."""

    step: str
    model: str | None
    params: Mapping[str, Any]
    inputs: Mapping[str, tuple[Path, ...]]
    outputs: Mapping[str, Path]
    work: Path = field(default=Path(".cache/twohop/work"))
    """Private to (step, model, params, code, inputs); survives a kill, removed after success."""
    identity: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What the result follows from (`step, model, params_sha256, code_sha256, inputs, key`), for files that say it."""
    shards: tuple[Path, ...] = ()
    """Markers of the jobs that made the parts; the step only puts these together."""

    def input(self, name: str) -> Path:
        """The one file of an input name."""
        (path,) = self.inputs[name]
        return path

    def output(self, name: str) -> Path:
        """The file to write for an output name."""
        return self.outputs[name]

    def section(self, kind: type[S]) -> S:
        """A typed section; the key is the snake_case of the class name (`TrainProbes` -> `train_probes`)."""
        key = re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower()
        return kind.model_validate(self.params[key])

    def entry(self) -> ModelEntry:
        """This model's entry of the catalogue."""
        return ModelEntry.model_validate(self.params[f"models.{self.model}"])

    def need_model(self) -> str:
        """The model's name; a step without one cannot be called so."""
        if self.model is None:
            raise TwohopError(f"{self.step} works on one model", "command line", "add --model NAME")
        return self.model
