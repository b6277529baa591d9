"""The engine of every intervention: from `analysis.Intervention` to the model's patches, and to what it then says.

One way for all of them: donors from a name's run, means, zeros, and activations of the question's own unpatched run
(back-patching, the self-check). Patches act in the prefill only, in greedy answers and in log P of given answers alike.

Many interventions are rows of one pass. They all begin as the unpatched run of their questions, which is made once and
kept; rows that begin at like layers and positions stand together, so that a pass leaves out what none of them changes.
"""

import logging
import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from twohop.analysis import Intervention, span_mask
from twohop.errors import ModelError
from twohop.models import Batch, Model, Patch, Prompt, Site, Trunk
from twohop.store import ActivationReader

LOG = logging.getLogger(__name__)
SELF_TOLERANCE = 1e-3
"""Logits. A run's own activations, patched into it, change nothing (0 in float32); more than this is a fault."""
EXACT_BYTES = 4
"""Bytes of a number from which on `SELF_TOLERANCE` is more than rounding."""
KEPT_TRUNKS = 2
"""Unpatched runs that are kept for the next interventions on the same questions."""


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
    """Questions in a forward pass; of interventions on short ones, more."""
    _trunks: OrderedDict[tuple[str, ...], Trunk] = field(default_factory=OrderedDict[tuple[str, ...], Trunk])

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
        for batch, rows in self._forks(interventions, max_new_tokens):
            given = [list(answers[i.question_id]) for i in rows]
            try:
                texts, logprobs = self._say(batch, max_new_tokens, given, self.patches(batch, rows))
            except ModelError as error:
                raise _refused(error, next((i for i in rows if i.receiver_layers), rows[0])) from error
            found |= {i: Reply(t, tuple(p)) for i, t, p in zip(rows, texts, logprobs, strict=True)}
        return [found[i] for i in interventions]

    def _say(
        self, batch: Batch, max_new_tokens: int, answers: list[list[str]], patches: list[Patch]
    ) -> tuple[Sequence[str | None], list[list[float]]]:
        if max_new_tokens:
            return self.model.reply(batch, max_new_tokens, answers, patches)
        return [None] * len(batch), self.model.answer_logprobs(batch, answers, patches)

    def self_check(self, interventions: Sequence[Intervention]) -> float:
        """Largest change of a logit when runs' own activations are patched into them, in whole passes; 0 when the
        engine is right.

        Raises:
            ModelError: it is more than `SELF_TOLERANCE`.
        """
        worst = 0.0
        for batch, rows in self._forks(interventions):
            patches, whole = self.patches(batch, rows), replace(batch, shared=None)
            plain = self.model.run(whole).logits
            try:
                changed = (self.model.run(whole, patches=patches).logits - plain).abs().max()
            except ModelError as error:
                raise _refused(error, rows[0]) from error
            worst = max(worst, float(changed))
        if worst > SELF_TOLERANCE:
            what = f"a run's own activations, patched into it, change its logits by {worst:.2g}"
            raise ModelError(what, self.model.name, "patching is not to be trusted on this model: report it")
        if worst:
            LOG.warning("a run's own activations, patched into it, change its logits by %.2g", worst)
        return worst

    def share_check(self, interventions: Sequence[Intervention]) -> float:
        """Largest difference of a logit between patched runs that begin as the unpatched one and whole ones.

        Raises:
            ModelError: it is more than `SELF_TOLERANCE` on a model of 32 bits or more; 16 bits round, of which
                there is only a warning.
        """
        worst = 0.0
        for batch, rows in self._forks(interventions):
            patches = self.patches(batch, rows)
            part, whole = (self.model.run(b, patches=patches).logits for b in (batch, replace(batch, shared=None)))
            worst = max(worst, float((part - whole).abs().max()))
        if worst > SELF_TOLERANCE and self.model.dtype.itemsize >= EXACT_BYTES:
            what = f"leaving out what a patch does not change changes logits by {worst:.2g}"
            raise ModelError(what, self.model.name, "patching is not to be trusted on this model: report it")
        if worst > SELF_TOLERANCE:
            LOG.warning("leaving out what a patch does not change changes logits by %.2g (rounding)", worst)
        return worst

    def patches(self, batch: Batch, rows: Sequence[Intervention]) -> list[Patch]:
        """One patch per site that any row writes; a row that does not write it is left alone.

        Args:
            batch: a fork, one row per intervention.
            rows: the interventions.
        """
        targets = sorted({Site(i.site, layer) for i in rows for layer in i.receiver_layers})
        return [self._patch(batch, rows, site) for site in targets]

    def _patch(self, batch: Batch, rows: Sequence[Intervention], target: Site) -> Patch:
        starts: list[int | None] = []
        values: list[Tensor] = []
        for row, (i, span) in enumerate(zip(rows, batch.spans, strict=True)):
            if i.span_start is None or i.site != target.kind or target.layer not in i.receiver_layers:
                starts.append(None)
                continue
            start = span[0] + i.span_start
            source = Site(i.site, i.donor_layers[i.receiver_layers.index(target.layer)])
            starts.append(start)
            if i.donor_run == "image":
                values.append(self._own(batch, row, source)[start : start + i.span_length])
            else:
                values.append(self.donors.values(i, source))
        where = span_mask(starts, [i.span_length for i in rows], int(batch.groups["last"].shape[1]))
        return Patch(target, where, torch.cat([v.to(batch.groups["last"].device) for v in values]))

    def _own(self, batch: Batch, row: int, source: Site) -> Float[Tensor, "seq d_model"]:
        """What the row's unpatched run holds at a site."""
        if batch.shared is None:
            raise ModelError("a batch without its unpatched run", self.model.name, "give a fork of a trunk")
        return batch.shared.trunk.activations[source][batch.shared.rows[row]]

    def _forks(
        self, interventions: Sequence[Intervention], max_new_tokens: int = 0
    ) -> Iterator[tuple[Batch, list[Intervention]]]:
        """Interventions as rows: questions of like length share an unpatched run, and its forks hold rows that begin at
        like layers and positions.
        """
        of: dict[str, list[Intervention]] = {}
        for i in dict.fromkeys(interventions):
            of.setdefault(i.question_id, []).append(i)
        ids = list(of)
        for index, batch in self.model.batches([self.prompts[q] for q in ids], self.batch):
            asked = [ids[j] for j in index]
            trunk = self._trunk(asked, batch, [i for q in asked for i in of[q]])
            rows = [(row, i) for row, q in enumerate(asked) for i in of[q]]
            begins = [_beginning(i, batch.spans[row][0]) for row, i in rows]
            for part in self.model.passes(begins, batch, self.batch, max_new_tokens):
                yield trunk.fork([rows[k][0] for k in part]), [rows[k][1] for k in part]

    def _trunk(self, asked: Sequence[str], batch: Batch, interventions: Sequence[Intervention]) -> Trunk:
        """The unpatched run of some questions, from before where it holds what these interventions need."""
        key = tuple(asked)
        layers = {_beginning(i, 0)[0] for i in interventions if i.receiver_layers}
        own = {Site(i.site, n) for i in interventions if i.donor_run == "image" for n in i.donor_layers}
        old = self._trunks.pop(key, None)
        if old is None or not own <= set(old.activations) or not layers <= old.begins:
            layers |= old.begins if old else set()
            old = self.model.trunk(batch, layers, own)
        self._trunks[key] = old
        while len(self._trunks) > KEPT_TRUNKS:
            self._trunks.popitem(last=False)
        return old


def _beginning(i: Intervention, first_image: int) -> tuple[int, int]:
    """First layer and position that an intervention changes; one that changes nothing comes last."""
    if i.span_start is None:
        return (sys.maxsize, sys.maxsize)
    return (Site(i.site, min(i.receiver_layers)).first_changed, first_image + i.span_start)


def _refused(error: ModelError, first: Intervention) -> ModelError:
    """The model's refusal, with the intervention that met it."""
    layers = f"layers {first.receiver_layers[0]}-{first.receiver_layers[-1]}" if first.receiver_layers else "no layer"
    what = f"intervention {first.name} ({first.site}, {layers}) cannot be made on this model: {error.what}"
    return ModelError(what, error.where, error.todo)
