"""From scores of batches to the tables of score_attribution; what grows with the number of questions is small.

Of a batch's scores stay: running sums per node, the magnitudes of MLPs and attention per question (the bootstrap over
entities needs them), and every score of the few questions that are patched for real.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from twohop.analysis import Attribution
from twohop.models import Batch, Site, SiteKind
from twohop.store import schemas

Scores = Mapping[tuple[Site, str], Tensor]
WRITES: tuple[SiteKind, ...] = ("mlp_write", "attn_write")


def floats(values: Tensor) -> list[float]:
    """Plain numbers."""
    return values.detach().cpu().double().flatten().tolist()


@dataclass
class Tally:
    """What is kept of one run's scores."""

    run: str
    validated: int
    """The first so many questions keep every score."""
    sums: dict[tuple[Site, str], tuple[Tensor, Tensor, int]] = field(
        default_factory=dict[tuple[Site, str], tuple[Tensor, Tensor, int]]
    )
    """(sum of magnitudes, sum of signed scores, questions) of every node."""
    questions: list[pl.DataFrame] = field(default_factory=list[pl.DataFrame])
    kept: dict[int, dict[tuple[Site, str], tuple[Tensor, Tensor]]] = field(
        default_factory=dict[int, dict[tuple[Site, str], tuple[Tensor, Tensor]]]
    )
    """Question -> (site, group) -> (signed score, magnitude), each a number or one number per head."""

    def add(self, index: Sequence[int], ids: Sequence[tuple[str, str]], found: Attribution[Site]) -> None:
        """Take in a batch; `ids` are (question_id, entity_id)."""
        for key, signed in found.nodes.items():
            size = found.magnitudes[key]
            new = (size.sum(0).cpu(), signed.sum(0).cpu(), len(index))
            old = self.sums.get(key)
            self.sums[key] = new if old is None else (old[0] + new[0], old[1] + new[1], old[2] + new[2])
        self.questions.append(_question_rows(self.run, ids, found.magnitudes))
        for row, i in enumerate(index):
            if i < self.validated:
                self.kept[i] = {k: (s[row].cpu(), found.magnitudes[k][row].cpu()) for k, s in found.nodes.items()}

    def kept_row(self, question: int, site: Site, head: int | None, group: str, patched: float) -> dict[str, object]:
        """What VALIDATION says of one node of a kept question."""
        signed, size = (x if head is None else x[head] for x in self.kept[question][site, group])
        node = {"kind": site.kind, "layer": site.layer, "head": head, "group": group}
        return {**node, "attributed": float(signed), "magnitude": float(size), "patched": patched}

    def scores(self) -> pl.DataFrame:
        """SCORES: means over the questions."""
        rows = [row for (site, group), sums in self.sums.items() for row in _mean_rows(self.run, site, group, *sums)]
        return pl.DataFrame(rows, schema=schemas.SCORES).sort("kind", "layer", "head", "group", nulls_last=False)

    def question_scores(self) -> pl.DataFrame:
        """QUESTION_SCORES."""
        return pl.concat(self.questions)


def _mean_rows(
    run: str, site: Site, group: str, size: Tensor, signed: Tensor, n: int
) -> Iterator[dict[str, str | int | float | None]]:
    node = {"run": run, "kind": site.kind, "layer": site.layer, "group": group, "n_examples": n}
    heads = [None] if size.ndim == 0 else range(len(size))
    for head, a, s in zip(heads, floats(size), floats(signed), strict=True):
        yield {**node, "head": head, "mean_abs": a / n, "mean_signed": s / n}


def _question_rows(run: str, ids: Sequence[tuple[str, str]], magnitudes: Scores) -> pl.DataFrame:
    rows: list[dict[str, object]] = []
    parts: dict[tuple[SiteKind, str], None] = {(s.kind, g): None for s, g in magnitudes if s.kind in WRITES}
    for kind, group in parts:
        of_layer = {site.layer: x for (site, g), x in magnitudes.items() if site.kind == kind and g == group}
        # a layer that a text run of a cross-attention model skips has no part in the answer
        none = torch.zeros_like(next(iter(of_layer.values())))
        table = torch.stack([of_layer.get(n, none) for n in range(max(of_layer) + 1)], 1).cpu().double()
        for (question, entity), values in zip(ids, table, strict=True):
            of = {"run": run, "question_id": question, "entity_id": entity}
            rows.append({**of, "kind": kind, "group": group, "scores": floats(values)})
    return pl.DataFrame(rows, schema=schemas.QUESTION_SCORES)


def span_rows(
    ids: Sequence[str], batch: Batch, positions: Mapping[Site, Float[Tensor, "batch seq ..."]]
) -> pl.DataFrame:
    """SPANS: |score| from the first image token to `last`; what stands before the picture is the same in both twins."""
    rows = [
        {"question_id": i, "layer": site.layer, "position_scores": floats(scores[row, batch.spans[row][0] :].abs())}
        for site, scores in positions.items()
        if site.kind == "mlp_write"
        for row, i in enumerate(ids)
    ]
    return pl.DataFrame(rows, schema=schemas.SPANS)
