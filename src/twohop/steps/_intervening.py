"""The engine of every intervention: from `analysis.Intervention` to the model's patches, and to what it then says.

One way for all of them: donors from a name's run, means, zeros, and activations of the question's own unpatched run
(back-patching, the self-check). Patches act in the prefill only, in greedy answers and in log P of given answers alike.
"""

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from twohop.analysis import Intervention, span_mask
from twohop.errors import ModelError
from twohop.models import Batch, Model, Patch, Prompt, Site
from twohop.store import ActivationReader

LOG = logging.getLogger(__name__)
SELF_TOLERANCE = 1e-3
"""Logits. A run's own activations, patched into it, change nothing (0 in float32); more than this is a fault."""

Row = Intervention | None
"""What happens to a row of a batch; None: nothing."""


@dataclass(frozen=True)
class Reply:
    """What the model says under an intervention."""

    text: str | None
    """Greedy answer; None when none was asked for."""
    logprobs: tuple[float, ...]
    """log P of the given answers, in nats."""


@dataclass
class Donors:
    """The activations that interventions write, from the activation files; a name's rows are read once."""

    backbone: ActivationReader
    own: ActivationReader
    _rows: dict[tuple[str, Site, str], Tensor] = field(default_factory=dict[tuple[str, Site, str], Tensor])
    _means: dict[Site, Tensor] = field(default_factory=dict[Site, Tensor])

    def length(self, question_id: str) -> int:
        """Tokens of the donor's name."""
        return self._name("backbone", Site("mlp_write", 0), question_id).shape[0]

    def values(self, intervention: Intervention, site: Site) -> Float[Tensor, "token d_model"]:
        """The rows for the whole span; of a longer donor the last tokens.

        Raises:
            ArtifactError: the site was not extracted.
        """
        n = intervention.span_length
        if intervention.donor_id is not None:
            return self._name(intervention.donor, site, intervention.donor_id)[-n:]
        mean = self._mean(site).expand(n, -1)
        return torch.zeros_like(mean) if intervention.donor == "zero" else mean

    def _name(self, donor: str, site: Site, question_id: str) -> Tensor:
        key = (donor, site, question_id)
        if key not in self._rows:
            reader = self.own if donor == "own" else self.backbone
            read = reader.read_entity_tokens("text", site.kind, site.layer, question_id)
            self._rows[key] = torch.tensor(read)
        return self._rows[key]

    def _mean(self, site: Site) -> Tensor:
        """Mean over every question's name (each the mean of its tokens), so that it depends on no draw of questions."""
        if site not in self._means:
            read = self.backbone.read("text", site.kind, "entity", site.layer)
            self._means[site] = torch.tensor(read).mean(0, keepdim=True)
        return self._means[site]


@dataclass(frozen=True)
class Engine:
    """Runs interventions."""

    model: Model
    donors: Donors
    prompts: Mapping[str, Prompt]
    """Image prompt of every question."""
    batch: int
    """Questions in a forward pass."""

    def replies(
        self, interventions: Sequence[Intervention], answers: Mapping[str, Sequence[str]], max_new_tokens: int
    ) -> list[Reply]:
        """What the model says under each intervention, in their order.

        Args:
            interventions: any, also several of one question.
            answers: by question, texts whose log P is wanted.
            max_new_tokens: length of the greedy answer; 0: none is written.

        Raises:
            ModelError: the model refuses a site; says which intervention.
            ArtifactError: a site was not extracted.
        """
        found: dict[Intervention, Reply] = {}
        for batch, rows in self._rounds(interventions):
            live = [i for i in rows if i is not None]
            given = [list(answers[i.question_id]) if i else [] for i in rows]
            try:
                patches = self.patches(batch.model_batch, rows, batch.own)
                texts, logprobs = self._say(batch.model_batch, max_new_tokens, given, patches)
            except ModelError as error:
                raise _refused(error, live[0]) from error
            said = zip(rows, texts, logprobs, strict=True)
            found |= {i: Reply(text, tuple(values)) for i, text, values in said if i is not None}
        return [found[i] for i in interventions]

    def _say(
        self, batch: Batch, max_new_tokens: int, answers: list[list[str]], patches: list[Patch]
    ) -> tuple[Sequence[str | None], list[list[float]]]:
        if max_new_tokens:
            return self.model.reply(batch, max_new_tokens, answers, patches)
        return [None] * len(batch), self.model.answer_logprobs(batch, answers, patches)

    def self_check(self, interventions: Sequence[Intervention]) -> float:
        """Largest change of a logit when runs' own activations are patched into them; 0 when the engine is right.

        Raises:
            ModelError: it is more than `SELF_TOLERANCE`.
        """
        worst = 0.0
        for batch, rows in self._rounds(interventions):
            plain = self.model.run(batch.model_batch).logits
            patches = self.patches(batch.model_batch, rows, batch.own)
            try:
                changed = (self.model.run(batch.model_batch, patches=patches).logits - plain).abs().max()
            except ModelError as error:
                raise _refused(error, next(i for i in rows if i)) from error
            worst = max(worst, float(changed))
        if worst > SELF_TOLERANCE:
            what = f"a run's own activations, patched into it, change its logits by {worst:.2g}"
            raise ModelError(what, self.model.name, "patching is not to be trusted on this model: report it")
        if worst:
            LOG.warning("a run's own activations, patched into it, change its logits by %.2g", worst)
        return worst

    def patches(self, batch: Batch, rows: Sequence[Row], own: Mapping[Site, Tensor] | None = None) -> list[Patch]:
        """One patch per site that any row writes; a row that does not write it is left alone.

        Args:
            batch: one row per intervention.
            rows: the interventions.
            own: the batch's own unpatched activations at the sites that are read from them.
        """
        targets = sorted({Site(i.site, layer) for i in rows if i for layer in i.receiver_layers})
        return [self._patch(batch, rows, site, own or {}) for site in targets]

    def _patch(self, batch: Batch, rows: Sequence[Row], target: Site, own: Mapping[Site, Tensor]) -> Patch:
        starts: list[int | None] = []
        values: list[Tensor] = []
        for row, (i, span) in enumerate(zip(rows, batch.spans, strict=True)):
            if i is None or i.span_start is None or i.site != target.kind or target.layer not in i.receiver_layers:
                starts.append(None)
                continue
            start = span[0] + i.span_start
            source = Site(i.site, i.donor_layers[i.receiver_layers.index(target.layer)])
            starts.append(start)
            if i.donor_run == "image":
                values.append(own[source][row, start : start + i.span_length])
            else:
                values.append(self.donors.values(i, source))
        lengths = [i.span_length if i else 0 for i in rows]
        where = span_mask(starts, lengths, int(batch.groups["last"].shape[1]))
        return Patch(target, where, torch.cat([v.to(batch.groups["last"].device) for v in values]))

    def _rounds(self, interventions: Sequence[Intervention]) -> Iterator[tuple["_Captured", list[Row]]]:
        """Batches of questions of like length; of each batch one round per intervention that a question has, so that
        the pictures are embedded and the own activations read once for all of them.
        """
        of: dict[str, list[Intervention]] = {}
        for i in dict.fromkeys(interventions):
            of.setdefault(i.question_id, []).append(i)
        ids = list(of)
        for index, batch in self.model.batches([self.prompts[q] for q in ids], self.batch):
            chosen = [of[ids[j]] for j in index]
            captured = _Captured(batch, self._own(batch, {i for row in chosen for i in row}))
            for k in range(max(map(len, chosen))):
                yield captured, [row[k] if k < len(row) else None for row in chosen]

    def _own(self, batch: Batch, interventions: Collection[Intervention]) -> dict[Site, Tensor]:
        """The batch's unpatched activations where interventions read them."""
        read = {Site(i.site, layer) for i in interventions if i.donor_run == "image" for layer in i.donor_layers}
        return self.model.run(batch, capture=read).activations if read else {}


@dataclass(frozen=True)
class _Captured:
    model_batch: Batch
    own: Mapping[Site, Tensor]


def _refused(error: ModelError, first: Intervention) -> ModelError:
    """The model's refusal, with the intervention that met it."""
    layers = f"layers {first.receiver_layers[0]}-{first.receiver_layers[-1]}" if first.receiver_layers else "no layer"
    what = f"intervention {first.name} ({first.site}, {layers}) cannot be made on this model: {error.what}"
    return ModelError(what, error.where, error.todo)
