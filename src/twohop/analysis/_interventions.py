"""An intervention as data: what is written where, from whom, on one question (study, section 4).

Frozen and complete: its record alone, a line of JSON, is enough to make the run again with the same models, questions
and activation files. Its digest names it in tables, logs and the files of unfinished work.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from twohop.errors import DataError

DonorKind = Literal["nothing", "backbone", "own", "mean", "zero"]
"""Whose activations are written: the backbone's, the VLM's own, the mean over the backbone's names, zeros."""
DonorRun = Literal["text", "image"]
SiteName = Literal["resid_post", "mlp_write", "attn_write"]
DIGEST_CHARACTERS = 16


@dataclass(frozen=True)
class Intervention:
    """One patched run of one question."""

    question_id: str
    name: str
    """Its part in the study: none, heuristic, random, wrong_entity, own_text, mean, zero, back_patch, sweep, self."""
    donor: DonorKind = "nothing"
    donor_run: DonorRun | None = None
    """text: the tokens of the donor's name. image: the receiving positions in this question's own unpatched run."""
    donor_id: str | None = None
    """Question whose run gives the activations; None for nothing, mean and zero."""
    site: SiteName = "mlp_write"
    donor_layers: tuple[int, ...] = ()
    """Read, in the order of `receiver_layers`."""
    receiver_layers: tuple[int, ...] = ()
    """Written."""
    span: str = "none"
    """How the span was chosen: heuristic, random, image_last, image, prompt, none."""
    span_start: int | None = None
    """First receiving position, counted from the first image token."""
    span_length: int = 0
    seed: int = 0
    """Of the random span; else of the study."""

    def __post_init__(self) -> None:
        """Refuse what no engine could run.

        Raises:
            DataError: parts that contradict each other.
        """
        for problem in _problems(self):
            raise DataError(problem, f"intervention {self.name} on {self.question_id}", "make it with a Planner")

    def record(self) -> str:
        """One line of JSON, keys sorted."""
        return json.dumps(asdict(self), sort_keys=True, ensure_ascii=False)

    @classmethod
    def from_record(cls, text: str) -> "Intervention":
        """The intervention that a record describes.

        Raises:
            DataError: the text is no record of an intervention.
        """
        try:
            raw: dict[str, Any] = json.loads(text)
            known = {f.name for f in fields(cls)}
            if set(raw) != known:
                raise ValueError(f"keys {sorted(set(raw) ^ known)}")
            if raw["donor"] not in get_args(DonorKind) or raw["site"] not in get_args(SiteName):
                raise ValueError(f"donor {raw['donor']!r} at site {raw['site']!r}")
            for key in ("donor_layers", "receiver_layers"):
                raw[key] = tuple(int(layer) for layer in raw[key])
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f"no record of an intervention: {error}", text[:80]) from error
        return cls(**raw)

    @property
    def digest(self) -> str:
        """Of the record (sha256, shortened); equal for equal interventions, on any machine."""
        return hashlib.sha256(self.record().encode()).hexdigest()[:DIGEST_CHARACTERS]


def digest_of(interventions: Iterable[Intervention]) -> str:
    """Of several, in their order."""
    joined = "\n".join(i.digest for i in interventions)
    return hashlib.sha256(joined.encode()).hexdigest()[:DIGEST_CHARACTERS]


def _problems(i: Intervention) -> Iterable[str]:
    if len(i.donor_layers) != len(i.receiver_layers):
        yield f"{len(i.donor_layers)} layers are read and {len(i.receiver_layers)} written"
    if (i.donor == "nothing") != (not i.receiver_layers) or (i.donor == "nothing") != (i.span_start is None):
        yield "a donor, layers and a span come together or not at all"
    if (i.donor in ("backbone", "own")) != (i.donor_id is not None):
        yield f"donor {i.donor} with donor question {i.donor_id}"
    if (i.donor_id is None) != (i.donor_run is None):
        yield f"donor question {i.donor_id} with donor run {i.donor_run}"
    if i.donor_run == "image" and (i.donor != "own" or i.donor_id != i.question_id):
        yield "an image run can only be the question's own"
    if i.span_start is not None and (i.span_start < 0 or i.span_length < 1):
        yield f"span of {i.span_length} positions from {i.span_start}"
