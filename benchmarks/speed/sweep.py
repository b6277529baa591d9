"""Every layer x spans: the name's `mlp_write` of the text run, written at one layer and span of another run."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from speed.measure import Bar, Case, installed, near
from speed.world import BACKBONE, Question, World, flops, given
from twohop.models import Batch, Model, Patch, Prompt, Site, open_model

SIZE = 32
"""Patched rows in a pass."""
LOGITS = 1e-3
"""How far results may differ."""


@dataclass(frozen=True)
class Cell:
    """One patch of the sweep."""

    layer: int
    start: int
    values: Tensor

    def where(self) -> slice:
        """Its positions."""
        return slice(self.start, self.start + len(self.values))


@dataclass(frozen=True)
class Sweep:
    """The cells of one question and what is read off."""

    model: Model
    batch: Batch
    cells: list[Cell]
    pair: Tensor
    """The two tokens of the logit difference."""

    def margin(self, logits: Tensor) -> Tensor:
        """Logit difference, from (.., vocab)."""
        picked = logits[..., self.pair]
        return picked[..., 0] - picked[..., 1]

    def kept(self) -> Tensor:
        """Ours: patched rows begin as the unpatched run, which is made once."""
        trunk, found = self.model.trunk(self.batch, range(self.model.n_layers)), torch.empty(len(self.cells))
        for index in self.model.passes([(c.layer, c.start) for c in self.cells], self.batch, SIZE):
            fork, cells = trunk.fork([0] * len(index)), [self.cells[i] for i in index]
            found[index] = self.margin(self.model.run(fork, patches=_rows(cells, fork)).logits)
        return found

    def rows(self) -> Tensor:
        """Cells as rows of whole passes."""
        found = list[Tensor]()
        for at in range(0, len(self.cells), SIZE):
            cells = self.cells[at : at + SIZE]
            batch = self.batch.take([0] * len(cells))
            found.append(self.margin(self.model.run(batch, patches=_rows(cells, batch)).logits))
        return torch.cat(found)

    def one_by_one(self) -> Tensor:
        """A whole pass for each cell, with the project's own patches."""
        runs = (self.model.run(self.batch, patches=_rows([cell], self.batch)) for cell in self.cells)
        return torch.stack([self.margin(run.logits)[0] for run in runs])

    @torch.no_grad()
    def hooks(self, inputs: dict[str, Any]) -> Tensor:
        """A whole pass for each cell, in plain transformers with a forward hook."""
        found = list[Tensor]()
        for cell in self.cells:
            handle = self.model.decoder.layers[cell.layer].mlp.register_forward_hook(_writes(cell))
            found.append(self.margin(self.model.net(**inputs).logits[0, -1]))
            handle.remove()
        return torch.stack(found)

    @torch.no_grad()
    def nnsight(self, inputs: dict[str, Any]) -> Tensor:
        """A trace for each cell."""
        from nnsight import NNsight

        net, found = NNsight(self.model.net), list[Tensor]()
        layers = (
            net.model.language_model.layers if hasattr(self.model.net.model, "language_model") else net.model.layers
        )
        for cell in self.cells:
            with net.trace(**inputs):
                layers[cell.layer].mlp.output[:, cell.where()] = cell.values
                logits = net.output.logits.save()
            found.append(self.margin(logits[0, -1]))
        return torch.stack(found)

    def needed(self) -> float:
        """From its layer and position on, for each cell; the unpatched run once."""
        seq, depth = int(self.batch.input_ids.shape[1]), self.model.n_layers
        each = (flops(self.model, seq - c.start, 1, depth - c.layer) for c in self.cells)
        return flops(self.model, seq, 1) + sum(each)


def plan(model: Model, asked: Question, shown: Prompt, n_spans: int, stride: int = 1) -> Sweep:
    """The cells of a question: spans from the entity's first token to the end, evenly."""
    named = model.batch([Prompt(asked["before"], asked["name"], asked["after"])])
    sites = [Site("mlp_write", n) for n in range(0, model.n_layers, stride)]
    donor, (start, end) = model.run(named, sites).activations, named.spans[0]
    batch = model.batch([shown])
    first, last = batch.spans[0][0], int(batch.input_ids.shape[1]) - (end - start)
    starts = [first + round(k * (last - first) / max(1, n_spans - 1)) for k in range(n_spans)]
    cells = [Cell(s.layer, at, donor[s][0, start:end]) for s in sites for at in starts]
    return Sweep(model, batch, cells, torch.tensor([asked["clean_token"], asked["corrupted_token"]]))


def image_case(world: World) -> Case:
    """On a picture's run."""
    (question, _), model = world.twins("capital")[0], world.model
    n_spans = 2 if world.quick else 8
    sweep = plan(model, question, world.shown([question])[0], n_spans, 10 if world.quick else 1)
    embedded = given(model, sweep.batch)
    pixels = {**world.processed([question]), "use_cache": False, "logits_to_keep": 1}
    if not torch.equal(pixels["input_ids"], sweep.batch.input_ids):
        raise ValueError("the processor gives other tokens than the prompt has")
    ways: dict[str, Callable[[], Tensor]] = {
        "ours": sweep.kept,
        "own rows in whole passes": sweep.rows,
        "own naive loop": sweep.one_by_one,
        "plain transformers, hooks, embeddings given": lambda: sweep.hooks(embedded),
        "plain transformers, hooks, picture given": lambda: sweep.hooks(pixels),
        "nnsight, embeddings given": lambda: sweep.nnsight(embedded),
        "nnsight, picture given": lambda: sweep.nnsight(pixels),
    }
    what = f"{len(sweep.cells) // n_spans} layers x {n_spans} spans on a picture of {model.n_image_tokens} tokens"
    bars = [Bar("nnsight, picture given", 10), Bar("nnsight, embeddings given", 10), Bar("own naive loop", 5)]
    return Case("sweep", f"{what}; logit difference", ways, lambda a, b: near(a, b, LOGITS), bars, sweep.needed())


def text_case(world: World) -> Case:
    """On the backbone's text run, written into the corrupted twin's; with TransformerLens where it is installed."""
    model, (question, twin) = open_model(world.card(BACKBONE)), world.twins("capital")[0]
    n_spans, stride = (2, 10) if world.quick else (4, 1)
    sweep = plan(model, question, Prompt(twin["before"], twin["name"], twin["after"]), n_spans, stride)
    embedded = given(model, sweep.batch)
    ways: dict[str, Callable[[], Tensor]] = {
        "ours": sweep.kept,
        "own naive loop": sweep.one_by_one,
        "plain transformers, hooks": lambda: sweep.hooks(embedded),
        "nnsight": lambda: sweep.nnsight(embedded),
    }
    notes = ["TransformerLens: not installed here"]
    if installed("transformer_lens"):
        ways["TransformerLens"], notes = transformer_lens(sweep), list[str]()
    what = (
        f"{len(sweep.cells) // n_spans} layers x {n_spans} spans on a text of {sweep.batch.input_ids.shape[1]} tokens"
    )
    case = Case("sweep-text", f"{what}; logit difference", ways, lambda a, b: near(a, b, LOGITS), [], sweep.needed())
    case.notes += notes
    return case


def transformer_lens(sweep: Sweep) -> Callable[[], Tensor]:
    """`run_with_hooks` for each cell, on TransformerLens' bridge around a copy of the same weights.

    The bridge computes attention eagerly.
    """
    from transformer_lens.model_bridge import TransformerBridge

    net = copy.deepcopy(sweep.model.net)
    net.set_attn_implementation("eager")
    name, tokenizer = "HuggingFaceTB/SmolLM2-135M-Instruct", sweep.model.tokens.raw
    bridge = TransformerBridge.boot_transformers(name, device="cpu", tokenizer=tokenizer, hf_model=net)

    @torch.no_grad()
    def run() -> Tensor:
        found = list[Tensor]()
        for cell in sweep.cells:
            hooks = [(f"blocks.{cell.layer}.hook_mlp_out", _overwrites(cell))]
            logits = bridge.run_with_hooks(sweep.batch.input_ids, prepend_bos=False, fwd_hooks=hooks)
            found.append(sweep.margin(logits[0, -1]))
        return torch.stack(found)

    return run


def _rows(cells: Sequence[Cell], batch: Batch) -> list[Patch]:
    """Cell i patched in row i only; the cells of one layer become one patch."""
    patches = list[Patch]()
    for layer in sorted({c.layer for c in cells}):
        where = torch.zeros_like(batch.groups["last"])
        for row, cell in enumerate(cells):
            where[row, cell.where()] = cell.layer == layer
        patches.append(Patch(Site("mlp_write", layer), where, torch.cat([c.values for c in cells if c.layer == layer])))
    return patches


def _overwrites(cell: Cell) -> Callable[..., Tensor]:
    def hook(value: Tensor, hook: Any) -> Tensor:  # noqa: ARG001
        value[:, cell.where()] = cell.values
        return value

    return hook


def _writes(cell: Cell) -> Callable[[Any, Any, Tensor], Tensor]:
    def hook(_module: Any, _args: Any, output: Tensor) -> Tensor:
        output = output.clone()
        output[:, cell.where()] = cell.values
        return output

    return hook
