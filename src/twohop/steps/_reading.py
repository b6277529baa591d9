"""Four ways to read the entity out of a model, layer by layer: what measure_resolution asks of it (study, section 7).

Layers count as the probes': 0 is the embedding, l what decoder layer l - 1 writes. In an image run the readings are at
the picture's tokens, in a text run (a backbone's) at the name's.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from twohop.analysis import (
    LensFit,
    Readings,
    Translator,
    candidate_tokens,
    fit_translator,
    grade,
    layers_of_windows,
    name_hits,
)
from twohop.config import MeasureResolution
from twohop.models import Batch, Knockout, Model, Patch, Picture, Prompt, Site
from twohop.steps._asking import finished_part, split_prompt
from twohop.store import atomic_path, read_json, write_json

LOG = logging.getLogger(__name__)
PLACES = ("mean", "last", "best")
"""Where a lens reads: the mean of the tokens' residuals, the last token, or whichever token makes a name most probable
(each name's best over the tokens, so the right one has no advantage)."""
Scores = Float[np.ndarray, "item candidate"]


@dataclass(frozen=True)
class Item:
    """One entity of the study, as the model is shown it."""

    entity_id: str
    name: str
    spellings: tuple[str, ...]
    features: Picture | None
    """Of its picture; None: the model reads the name."""
    question: dict[str, Any] | None
    """A question about it that has a corrupted twin."""


@dataclass(frozen=True)
class Reader:
    """A model, what it is shown, and the names that compete."""

    model: Model
    params: MeasureResolution
    work: Path
    items: list[Item]
    names: list[str]
    """Of the whole entity table."""

    @cached_property
    def first_of_names(self) -> list[int]:
        """First token of every name, with the space before it."""
        return [self.model.tokens.answer_ids(name)[0] for name in self.names]

    @cached_property
    def first_of_items(self) -> list[int]:
        """First token of every item's name."""
        return [self.model.tokens.answer_ids(item.name)[0] for item in self.items]

    @cached_property
    def tokens(self) -> list[int]:
        """Distinct first tokens of all names, ascending."""
        return sorted(set(self.first_of_names))

    def prompts(self, after: str | None = None) -> list[Prompt]:
        """The naming prompt of every item (or with something else after the picture or the name)."""
        before, rest = split_prompt(self.params.prompt)
        rest = rest if after is None else after
        return [
            Prompt(before, item.name if item.features is None else None, rest, item.features) for item in self.items
        ]

    def hits(self, scores: Float[np.ndarray, "item token"]) -> Scores:
        """Hits of every item's reading against every item's name."""
        return name_hits(scores, self.tokens, self.first_of_names, self.first_of_items)

    def columns(self) -> list[int]:
        """Place of every item's first token among `tokens`."""
        return [self.tokens.index(t) for t in self.first_of_items]


@dataclass(frozen=True)
class Read:
    """One method at one place."""

    method: str
    readout: str
    entity_ids: list[str]
    readings: Readings
    logprob: Float[np.ndarray, "layer entity"] | None = None
    """Of the right name's first token among all names' first tokens (for a knockout: with the window blocked)."""


def read_layers(n_layers: int, stride: int) -> list[int]:
    """0 (the embedding), every `stride`-th layer's output from the first on, and the last layer's."""
    return sorted({0, *range(1, n_layers + 1, stride), n_layers})


def layers_met(model: Model, layers: Sequence[int]) -> list[int]:
    """Those of the layers whose output exists in text runs too, on which the tuned lens is trained: cross-attention
    layers are left out; what they add is read at the next layer.
    """
    return [n for n in layers if n == 0 or n - 1 in model.text_layers]


def site(layer: int) -> Site:
    """Where a layer's output is read, as the probes count."""
    return Site("resid_post", layer - 1)


def entity_tokens(batch: Batch) -> Tensor:
    """Tokens of the picture, or of the name."""
    return batch.groups["image"] | batch.groups["entity"]


# --- logit lens and tuned lens ----------------------------------------------------------------------------------------

Lens = Callable[[int, Tensor], Tensor]
"""(layer, residuals) -> residuals in the basis of the last layer."""


@dataclass(frozen=True)
class Seen:
    """What is kept of the entity's tokens, layer by layer: a picture may have hundreds, so not their residuals."""

    vectors: dict[tuple[str, int], Float[Tensor, "item d_model"]]
    """(place, layer) -> residuals of the last token, or their mean over the tokens."""
    best: dict[tuple[str, int], Float[Tensor, "item token"]]
    """(method, layer) -> every first token's largest log-probability over the entity's tokens."""


@torch.no_grad()
def look_at_items(reader: Reader, layers: Sequence[int], lenses: Mapping[str, Lens], lensed: Sequence[int]) -> Seen:
    """Residuals of every item. What follows the entity is left out, as nothing before it can see it.

    Args:
        reader: the model and its items.
        layers: all that are read.
        lenses: method -> lens.
        lensed: the layers that the lenses look at.
    """
    model = reader.model
    vectors: dict[tuple[str, int], dict[int, Tensor]] = {(p, n): {} for p in ("last", "mean") for n in layers}
    best: dict[tuple[str, int], dict[int, Tensor]] = {(m, n): {} for m in lenses for n in lensed}
    for index, batch in model.batches(reader.prompts(after=""), reader.params.batch):
        activations, where = model.run(batch, [site(n) for n in layers]).activations, entity_tokens(batch)
        for layer in layers:
            rows = {i: activations[site(layer)][row][where[row]] for row, i in enumerate(index)}
            vectors["last", layer] |= {i: states[-1].cpu() for i, states in rows.items()}
            vectors["mean", layer] |= {i: states.mean(0).cpu() for i, states in rows.items()}
            for method, lens in lenses.items() if layer in lensed else ():
                best[method, layer] |= {i: name_logprobs(reader, lens(layer, h)).max(0).values for i, h in rows.items()}
    items = range(len(reader.items))
    return Seen(
        {key: torch.stack([rows[i] for i in items]) for key, rows in vectors.items()},
        {key: torch.stack([rows[i] for i in items]) for key, rows in best.items()},
    )


@torch.no_grad()
def name_logprobs(reader: Reader, resid: Float[Tensor, "row d_model"]) -> Float[Tensor, "row token"]:
    """Log-probability of the names' first tokens among themselves, unembedded from residuals of the last basis."""
    return reader.model.unembed(resid.to(reader.model.device), reader.tokens).log_softmax(-1).cpu()


def read_lens(reader: Reader, seen: Seen, layers: Sequence[int], method: str, lens: Lens) -> list[Read]:
    """Is the right name's first token the most probable among all names' first tokens? One `Read` per place."""
    columns, ids = reader.columns(), [item.entity_id for item in reader.items]
    found: list[Read] = []
    for place in PLACES:
        scores = [
            (
                seen.best[method, n]
                if place == "best"
                else name_logprobs(reader, lens(n, seen.vectors[place, n].to(reader.model.device)))
            ).numpy()
            for n in layers
        ]
        hits = np.stack([reader.hits(rows) for rows in scores])
        logprob = np.stack([rows[np.arange(len(columns)), columns] for rows in scores])
        found.append(Read(method, place, ids, Readings(tuple(layers), hits), logprob))
    return found


@dataclass(frozen=True)
class LensText:
    """Residuals of text that the tuned lens is trained on."""

    states: dict[int, Float[Tensor, "token d_model"]]
    held_out: Tensor
    candidates: list[int]


def lens_text(reader: Reader, layers: Sequence[int], templates: Sequence[tuple[str, str]]) -> LensText:
    """Residuals at all tokens of named prompts: entities drawn from the whole table, each in one of the templates.

    Prompts of an entity share their beginning, so whole entities are held out; a context that occurs twice counts once.
    The first token is left out: it has no context, and a norm far beyond all others.
    """
    model, params = reader.model, reader.params
    draw = np.random.default_rng(params.seed)
    chosen = draw.permutation(len(reader.names))[: params.lens_prompts].tolist()
    prompts = [Prompt(b, reader.names[i], a) for n, i in enumerate(chosen) for b, a in [templates[n % len(templates)]]]
    n_held = max(1, round(params.lens_held_out * len(prompts)))
    seen: set[tuple[int, ...]] = set()
    kept: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    held: list[bool] = []
    total = torch.zeros(1)
    for index, batch in model.batches(prompts, params.batch):
        activations = model.run(batch, [site(n) for n in layers]).activations
        where, of = _new_tokens(batch, seen)
        held += [index[row] < n_held for row in of]
        for layer in layers:
            kept[layer].append(activations[site(layer)][where].float().cpu())
        with torch.no_grad():
            logits = model.unembed(activations[site(max(layers))][where])
            total = total + logits.softmax(-1).sum(0).cpu()
    states = {layer: torch.cat(parts) for layer, parts in kept.items()}
    return LensText(states, torch.tensor(held), candidate_tokens(total, reader.tokens, params.lens_tokens))


def _new_tokens(batch: Batch, seen: set[tuple[int, ...]]) -> tuple[Tensor, list[int]]:
    """Positions whose context was not met before, and the row of each, in row-major order."""
    where, of = torch.zeros_like(batch.attention_mask, dtype=torch.bool), list[int]()
    for row, (ids, mask) in enumerate(zip(batch.input_ids.tolist(), batch.attention_mask.tolist(), strict=True)):
        start = mask.index(1)
        for at in range(start + 1, start + sum(mask)):
            context = tuple(ids[start : at + 1])
            if context not in seen:
                seen.add(context)
                where[row, at] = True
                of.append(row)
    return where, of


def tune_lens(
    reader: Reader, text: Callable[[], LensText], layers: Sequence[int]
) -> tuple[dict[int, Translator], list[dict[str, Any]]]:
    """A translator per layer and its training log; finished layers are kept in the work folder. The last layer's is
    the identity.
    """
    translators: dict[int, Translator] = {}
    log: list[dict[str, Any]] = []
    held: list[LensText] = []
    start = time.monotonic()
    for layer in layers:
        path, note = reader.work / f"lens-{layer}.safetensors", reader.work / f"lens-{layer}.json"
        if not note.exists():
            held = held or [text()]
            _tune_layer(reader, held[0], layer, max(layers), path, note)
            LOG.info("tuned lens: layer %d of %d, %.0f s", layer, max(layers), time.monotonic() - start)
        tensors = load_file(path)
        translators[layer] = Translator(tensors["weight"], tensors["bias"])
        log.append(read_json(note))
    return translators, log


def _tune_layer(reader: Reader, text: LensText, layer: int, last: int, path: Path, note: Path) -> None:
    model = reader.model

    def decode(resid: Tensor) -> Tensor:
        return model.unembed(resid.to(model.device), text.candidates).cpu()

    steps = 0 if layer == last else reader.params.lens_steps
    fit = fit_translator(text.states[layer], text.states[last], text.held_out, decode, steps, reader.params.seed)
    with atomic_path(path) as tmp:
        save_file({"weight": fit.translator.weight.contiguous(), "bias": fit.translator.bias.contiguous()}, tmp)
    write_json(note, {"layer": layer, **_logged(fit, text)})


def _logged(fit: LensFit, text: LensText) -> dict[str, Any]:
    return {
        "start": fit.start,
        "steps": fit.steps,
        "kl_identity": fit.kl_identity,
        "kl_start": fit.kl_start,
        "kl": fit.kl,
        "n_tokens": len(text.held_out),
        "n_held_out": int(text.held_out.sum()),
        "n_candidates": len(text.candidates),
    }


# --- Patchscopes ------------------------------------------------------------------------------------------------------


def read_patchscope(reader: Reader, seen: Seen, layers: Sequence[int]) -> list[Read]:
    """Write each item's residual into an identity prompt and see which name comes out (Ghandeharioun et al. 2024,
    2401.06102, section 4): by the most probable of all names' first tokens, as the lenses, and by what is written.
    """
    params = reader.params
    found: list[Read] = []
    ids = [item.entity_id for item in reader.items]
    for place in params.patchscope_places:
        hits, written, logprobs = list[Scores](), list[Scores](), list[np.ndarray]()
        for layer in layers:
            part = f"patchscope-{place}-{layer}"
            rows = finished_part(reader.work, part, lambda n=layer, p=place: _patched(reader, seen.vectors[p, n], n))
            scores = np.array([row["logprobs"] for row in rows])
            hits.append(reader.hits(scores))
            logprobs.append(scores[np.arange(len(rows)), reader.columns()])
            written.append(_written(reader, [row["written"] for row in rows]))
            LOG.info("patchscope, %s token: layer %d of %d", place, layer, max(layers))
        found.append(Read("patchscope", place, ids, Readings(tuple(layers), np.stack(hits)), np.stack(logprobs)))
        found.append(Read("patchscope", f"{place}, written", ids, Readings(tuple(layers), np.stack(written))))
    return found


def _patched(reader: Reader, vectors: Float[Tensor, "item d_model"], layer: int) -> list[dict[str, Any]]:
    """Per item: log-probabilities of the names' first tokens (among them), and the text that is written."""
    model, params, tokens = reader.model, reader.params, reader.tokens
    before, after = split_prompt(params.patchscope_prompt)
    target = site(layer) if params.patchscope_target == "same" else site(0)
    trunk = model.trunk(model.batch([Prompt(before, "?", after)]), [target.first_changed])
    rows: list[dict[str, Any]] = []
    for at in range(0, len(vectors), params.batch):
        values = vectors[at : at + params.batch].to(model.device)
        batch = trunk.fork([0] * len(values))
        patch = Patch(target, batch.groups["entity_last"], values)
        logprobs = model.run(batch, patches=[patch]).logits[:, tokens].log_softmax(-1).cpu()
        texts = model.generate(batch, params.patchscope_tokens, [patch])
        rows += [{"logprobs": row.tolist(), "written": t} for row, t in zip(logprobs, texts, strict=True)]
    return rows


def _written(reader: Reader, texts: Sequence[str]) -> Scores:
    rows = [[grade(text, item.spellings) is not None for item in reader.items] for text in texts]
    return np.array(rows, dtype=float)


# --- attention knockout -----------------------------------------------------------------------------------------------


def read_knockout(reader: Reader) -> list[Read]:
    """What `last` loses when it cannot see the entity's tokens in a window of layers (Geva et al. 2023, section 5).

    - `name`: log-probability of the right name's first token among all names', under the naming prompt;
    - `name, ranked`: whether that token ranks first;
    - `answer`: logit of the right answer's first token minus its corrupted twin's, one question per entity.
    """
    windows = layers_of_windows(reader.model.n_layers, reader.params.knockout_window, reader.params.knockout_stride)
    found = _name_knockouts(reader, windows)
    asked = [item for item in reader.items if item.question is not None]
    if asked:
        found.append(_answer_knockouts(reader, asked, windows))
    return found


Window = tuple[int, range]


def _name_knockouts(reader: Reader, windows: Sequence[Window]) -> list[Read]:
    ids, columns = [item.entity_id for item in reader.items], reader.columns()
    logits = _blocked(reader, "knockout-name", reader.prompts(), windows, reader.tokens)
    logprobs = torch.tensor(logits).log_softmax(-1).numpy()  # first: nothing blocked
    loss = logprobs[:1, :, columns] - logprobs[1:, :, columns]
    hits = np.stack([reader.hits(scores) for scores in logprobs])
    own = logprobs[1:, np.arange(len(columns)), columns]
    layers = tuple(place for place, _ in windows)
    return [
        Read("knockout", "name", ids, Readings(layers, loss, "half_of_sum"), own),
        Read("knockout", "name, ranked", ids, Readings(layers, hits[:1] - hits[1:], "half_of_sum")),
    ]


def _answer_knockouts(reader: Reader, asked: Sequence[Item], windows: Sequence[Window]) -> Read:
    questions = [item.question for item in asked if item.question is not None]
    clean, corrupted = ([int(q[c]) for q in questions] for c in ("clean_token", "corrupted_token"))
    tokens = sorted({*clean, *corrupted})
    prompts = [
        Prompt(q["before"], q["name"] if i.features is None else None, q["after"], i.features)
        for i, q in zip(asked, questions, strict=True)
    ]
    logits = _blocked(reader, "knockout-answer", prompts, windows, tokens)
    margin = logits[:, :, [tokens.index(t) for t in clean]] - logits[:, :, [tokens.index(t) for t in corrupted]]
    readings = Readings(tuple(place for place, _ in windows), margin[:1] - margin[1:], "half_of_sum")
    return Read("knockout", "answer", [item.entity_id for item in asked], readings)


def _blocked(
    reader: Reader, name: str, prompts: Sequence[Prompt], windows: Sequence[Window], tokens: list[int]
) -> Float[np.ndarray, "window+1 item token"]:
    """Logits of some tokens at `last`: first with nothing blocked, then for every window."""
    rows: dict[int, np.ndarray] = {}
    for k, (index, batch) in enumerate(reader.model.batches(prompts, reader.params.batch)):
        part = finished_part(
            reader.work, f"{name}-{k}", lambda b=batch: list(_windows(reader.model, b, windows, tokens))
        )
        rows |= {i: np.array(row) for i, row in zip(index, part, strict=True)}
        LOG.info("%s: %d of %d prompts", name, len(rows), len(prompts))
    return np.stack([rows[i] for i in range(len(prompts))], axis=1)


def _windows(model: Model, batch: Batch, windows: Sequence[Window], tokens: list[int]) -> Iterator[list[list[float]]]:
    """Per row: logits of the tokens, (window + 1, token)."""
    last, seen = batch.groups["last"], entity_tokens(batch)
    cuts = [Knockout(window.start, window.stop, last, seen) for _, window in windows]
    for row in model.blocked_logits(batch, cuts)[:, :, tokens].transpose(0, 1).cpu():
        yield row.double().tolist()
