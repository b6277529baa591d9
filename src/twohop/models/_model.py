"""A model as the study sees it: prompts in; logits, activations, patched answers and name log-probabilities out."""

import contextlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal

import torch
from jaxtyping import Float
from PIL.Image import Image
from torch import Tensor, nn

from twohop.errors import ModelError
from twohop.models import _generate, _lens, _plan, _share, _trunk
from twohop.models._attend import attend
from twohop.models._attention import Knockout, knocked_out
from twohop.models._batch import assemble, check_padding, rows_at_once
from twohop.models._card import ModelCard
from twohop.models._devices import compute_device
from twohop.models._eyes import Eyes, open_eyes
from twohop.models._hooks import hooked, unembedding_at_once
from twohop.models._layout import Layout
from twohop.models._prompts import Batch, Encoded, Picture, Prompt, Tokens, Trunk, pad
from twohop.models._sites import Decoder, Patch, Site


@dataclass(frozen=True)
class Run:
    """What one forward pass gave."""

    logits: Float[Tensor, "batch vocab"]
    """At `last`, at least float32."""
    activations: dict[Site, Float[Tensor, "batch seq d_model"]]


class Model:
    """An open model; its weights are frozen and never need a gradient."""

    def __init__(
        self, net: nn.Module, card: ModelCard, tokens: Tokens, processor: Any = None, layout: Layout | None = None
    ) -> None:
        self.card, self.tokens = card, tokens
        self.net: Any = net.eval().requires_grad_(False)
        self.decoder = Decoder(net, layout)
        self.device, self.dtype = compute_device(net), next(net.parameters()).dtype
        raw = tokens.raw
        self.stop_ids = _stop_ids(self.net, raw)
        self.pad_id = int(raw.pad_token_id if raw.pad_token_id is not None else min(self.stop_ids, default=0))
        self.eyes: Eyes | None = None
        if processor is not None and tokens.image_token_id is not None:
            self.eyes = open_eyes(net, processor, tokens.frame, tokens.image_token_id)

    @property
    def name(self) -> str:
        """Catalogue name."""
        return self.card.name

    @property
    def role(self) -> str:
        """backbone, vlm or control."""
        return self.card.role

    @property
    def n_layers(self) -> int:
        """Decoder layers."""
        return self.decoder.n_layers

    @property
    def text_layers(self) -> tuple[int, ...]:
        """Layers that a text-only run passes, in order: a cross-attention model's own layers are left out (X7)."""
        return self.decoder.text_layers

    def layers_of(self, run: str) -> tuple[int, ...]:
        """Layers that a run passes: `text` (and a backbone's), or one with a picture."""
        return self.text_layers if run == "text" else tuple(range(self.n_layers))

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.decoder.d_model

    @property
    def n_image_tokens(self) -> int:
        """Tokens per picture; 0 for a backbone."""
        return self.card.n_image_tokens

    def tokenize(self, text: str) -> list[int]:
        """Ids without special tokens."""
        return self.tokens.tokenize(text)

    def encode_pictures(self, pictures: Sequence[Image]) -> list[Picture]:
        """Processor, tower and projector, once per picture.

        Raises:
            ModelError: the model has no eyes, or gives another number of tokens than its card says.
        """
        if self.eyes is None:
            raise ModelError("this model takes no pictures", self.name, "use a vision-language model")
        found = self.eyes.encode(pictures)
        for picture in found:
            self._check(picture)
        return found

    def _check(self, picture: Picture) -> None:
        wanted = (self.n_image_tokens, self.d_model)
        if picture.features is not None and tuple(picture.features.shape) != wanted:
            raise ModelError(
                f"picture features are {tuple(picture.features.shape)}, not {wanted}",
                self.name,
                "pictures must have the size that the card was made for: make it again (prepare_model)",
            )
        if (picture.states is not None) != bool(self.decoder.cross_layers):
            raise ModelError("a picture of another model", self.name, "use what encode_pictures gives")

    def batch(self, prompts: Sequence[Prompt], side: Literal["left", "right"] = "left") -> Batch:
        """Pad prompts into a batch with its token groups.

        Raises:
            ModelError: no prompt, an empty one, or picture features of another shape.
        """
        if not prompts:
            raise ModelError("an empty batch", self.name, "give at least one prompt")
        return self.batch_of([self.tokens.encode(p) for p in prompts], [p.picture for p in prompts], side)

    def batch_of(
        self,
        encoded: Sequence[Encoded],
        pictures: Sequence[Picture | None],
        side: Literal["left", "right"] = "left",
        at_least: int = 0,
    ) -> Batch:
        """As `batch`, of prompts in token ids; padded to `at_least` so many tokens (plumbing of `share`)."""
        seen = [p for p in pictures if p is not None]
        for picture in seen:
            self._check(picture)
        is_picture = [p is not None for p in pictures]
        ids, mask, positions, spans, groups = pad(encoded, is_picture, self.pad_id, self.device, side, at_least)
        check_padding(self.decoder.config, mask)
        plain = Batch(ids, mask, positions, groups, spans)
        return assemble(self.net, self.eyes, plain, seen, self.dtype)

    def batches(self, prompts: Sequence[Prompt], size: int) -> Iterator[tuple[list[int], Batch]]:
        """Batches of at most `size` prompts of similar length, with the prompts' indices."""
        lengths = [len(self.tokens.encode(p).ids) for p in prompts]
        order = sorted(range(len(prompts)), key=lengths.__getitem__)
        for i in range(0, len(order), size):
            index = order[i : i + size]
            yield index, self.batch([prompts[j] for j in index])

    def share(
        self, prompts: Sequence[Prompt], size: int, capture: Collection[Site] = ()
    ) -> Iterator[tuple[list[int], Batch]]:
        """As `batches`, but what prompts have in common up to the end of their name or picture is run once for all.

        Nothing is shared where that saves little, or where a family's prompts see their ends from their beginnings.

        Args:
            prompts: any.
            size: prompts in a forward pass; of short ones that continue what was run before, more (`rows_at_once`).
            capture: sites that `run` will be asked for.
        """
        with torch.no_grad():
            yield from _share.batches(self, prompts, size, capture)

    def embed(self, batch: Batch) -> Float[Tensor, "batch seq d_model"]:
        """Token embeddings with the pictures' features in place."""
        if batch.pictures is None:
            return self.net.get_input_embeddings()(batch.input_ids)
        # Gemma-3's image id is no row of the table
        ids = batch.input_ids.masked_fill(batch.groups["image"], self.pad_id)
        embeds = self.net.get_input_embeddings()(ids).clone()
        embeds[batch.groups["image"]] = batch.pictures.to(embeds)
        return embeds

    def _given(self, batch: Batch) -> dict[str, Any]:
        """Tokens and pictures as the model's forward takes them."""
        if not batch.deep:
            return {"inputs_embeds": self.embed(batch)}
        # what enters after the first layers has no other way in
        pictures = SimpleNamespace(
            pooler_output=(batch.pictures,), deepstack_features=[(level,) for level in batch.deep]
        )
        return {"input_ids": batch.input_ids, "mm_encoder_outputs": {"image": pictures}}

    def forward(self, batch: Batch, cache: Any = None) -> Float[Tensor, "batch vocab"]:
        """Logits at `last` of every row (plumbing of `run` and `generate`)."""
        at_end = bool(batch.groups["last"][:, -1].all())
        with unembedding_at_once(self.net):
            out = self.net(
                **self._given(batch),
                attention_mask=batch.attention_mask,
                position_ids=batch.position_ids,
                past_key_values=cache,
                use_cache=cache is not None,
                logits_to_keep=1 if at_end else 0,
                **batch.extra,
            )
        logits = out.logits[:, -1] if at_end else out.logits[batch.groups["last"]]
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def run(
        self,
        batch: Batch,
        capture: Collection[Site] = (),
        patches: Sequence[Patch] = (),
        grad: bool = False,
        knockouts: Sequence[Knockout] = (),
    ) -> Run:
        """One forward pass.

        Args:
            batch: prompts.
            capture: sites to return.
            patches: sites to overwrite.
            grad: keep activations in the graph (`run.activations[site].grad` after a backward pass).
            knockouts: attention edges to cut.

        Of a batch that begins as an earlier run (`Trunk.fork`, `share`) only what differs from it is computed.

        Raises:
            ModelError: a site or a knockout does not fit the model (promise X1).
        """
        if batch.shared is not None and not grad:
            with torch.no_grad():
                _, logits, found = _trunk.resume(self, batch, patches, knockouts, capture, whole=False)
            return Run(logits, {site: a.to(self.device) for site, a in found.items()})
        with torch.enable_grad() if grad else torch.no_grad():
            shape = self.shape(batch)
            with (
                hooked(self.decoder, shape, capture, patches, grad) as found,
                knocked_out(self.decoder, knockouts, shape[:2]),
            ):
                logits = self.forward(batch)
        # of a model spread over devices; with a gradient they stay where the graph is
        return Run(logits, found if grad else {site: a.to(self.device) for site, a in found.items()})

    def trunk(self, batch: Batch, layers: Collection[int] = (), capture: Collection[Site] = ()) -> Trunk:
        """An unpatched run that patched ones can begin as: `model.generate(trunk.fork([0, 0, 1]), 8, patches)`.

        A patched run then passes only the layers and positions that its patches can change. Its results are those of
        the whole run.

        Args:
            batch: prompts.
            layers: first layers of the runs to come (`Site.first_changed`); a run that could begin at another layer
                begins at the next lower one of these, or at 0.
            capture: sites to return in `trunk.activations`.

        Raises:
            ModelError: a site does not fit the model.
        """
        with torch.no_grad():
            return _trunk.grow(self, batch, layers, capture)

    def passes(
        self, begins: Sequence[tuple[int, int]], batch: Batch, size: int, max_new_tokens: int = 0
    ) -> list[list[int]]:
        """Which rows to fork together: the cut into passes that leaves out the most, and fills passes.

        Args:
            begins: per row the first layer (`Site.first_changed`) and position that its patches change.
            batch: of the trunk.
            size: rows in a forward pass; more of short ones (`rows_at_once`).
            max_new_tokens: that will be written after every row.

        Returns:
            Indices of the rows, every one once.
        """
        seq = int(batch.input_ids.shape[1])
        most, device = rows_at_once(size, seq + max_new_tokens), self.device.type
        return _plan.passes(begins, self.n_layers, seq, most, max_new_tokens, device)

    def shape(self, batch: Batch) -> tuple[int, int, int]:
        """(batch, seq, d_model) of the residual stream."""
        return (int(batch.input_ids.shape[0]), int(batch.input_ids.shape[1]), self.d_model)

    def unembed(
        self, resid: Float[Tensor, "*rows d_model"], tokens: Sequence[int] | None = None
    ) -> Float[Tensor, "*rows token"]:
        """Logit lens: final norm and unembedding of residuals as `run` captures them (before the final norm).

        Args:
            resid: `resid_post` of any layer; gradients pass.
            tokens: only these token ids, in this order; None: the whole vocabulary.

        Raises:
            ModelError: residuals of another width, or an `lm_head` that is not linear.
        """
        return _lens.unembed(self.net, self.decoder, resid, tokens)

    def blocked_logits(self, batch: Batch, knockouts: Sequence[Knockout]) -> Float[Tensor, "run batch vocab"]:
        """Logits at `last`, first with nothing cut, then under each knockout alone, where all cut edges end at `last`.

        Equal to one `run` per knockout; but as nothing before `last` changes, the rest of the prompt is run only once.

        Raises:
            ModelError: a knockout that does not fit or cuts another position's view, or a right-padded batch.
        """
        with torch.no_grad():
            return _generate.blocked_logits(self, batch, knockouts)

    def heads(self, site: Site) -> int | None:
        """How many heads the site holds side by side; None where it is not made of heads."""
        return self.decoder.heads(site.kind)

    def attend(
        self,
        batch: Batch,
        layer: int,
        query: Float[Tensor, "batch seq query"],
        key: Float[Tensor, "batch seq key"],
        value: Float[Tensor, "batch seq key"],
    ) -> Float[Tensor, "batch seq query"]:
        """What `Site("head", layer)` would hold if these were the sites `query`, `key` and `value` of the layer.

        Raises:
            ModelError: the family's attention is more than a softmax between queries and keys.
        """
        self.decoder.check(Site("query", layer))
        with torch.no_grad():
            return attend(self.decoder, batch, layer, query, key, value)

    def generate(
        self,
        batch: Batch,
        max_new_tokens: int,
        patches: Sequence[Patch] = (),
        knockouts: Sequence[Knockout] = (),
    ) -> list[str]:
        """Greedy answers; patches and knockouts act in the prefill only.

        Returns:
            Per row the first line of text (surrounding blanks removed).
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            return _generate.greedy(self, batch, max_new_tokens, patches, knockouts)

    def answer_logprobs(
        self, batch: Batch, answers: Sequence[Sequence[str]], patches: Sequence[Patch] = ()
    ) -> list[list[float]]:
        """log P(" answer" | prompt) of each row's own answers, in nats, summed over an answer's tokens.

        Teacher-forced: an answer's tokens are given, none is written.
        Patches act at the prompt's positions only, as in `generate`.

        Raises:
            ModelError: not one list of answers per row, or an answer without visible characters.
        """
        with torch.no_grad():
            return _generate.answer_logprobs(self, batch, answers, patches)

    def reply(
        self,
        batch: Batch,
        max_new_tokens: int,
        answers: Sequence[Sequence[str]],
        patches: Sequence[Patch] = (),
    ) -> tuple[list[str], list[list[float]]]:
        """What `generate` and `answer_logprobs` give, from one and the same prefill."""
        with torch.no_grad():
            return _generate.reply(self, batch, max_new_tokens, answers, patches)

    def name_logprobs(self, batch: Batch, names: Sequence[str]) -> Float[Tensor, "batch name"]:
        """log P(" name" | prompt), summed over the name's tokens."""
        with torch.no_grad():
            return _generate.name_logprobs(self, batch, names)

    def name_answers(self, batch: Batch, max_new_tokens: int, names: Sequence[str]) -> tuple[list[str], list[int]]:
        """What `generate` and `best_names` give, from one and the same prefill."""
        with torch.no_grad():
            return _generate.name_answers(self, batch, max_new_tokens, names)

    def best_names(self, batch: Batch, names: Sequence[str]) -> list[int]:
        """Index of the most probable name per row; exact, the first one when two are equal."""
        with torch.no_grad():
            return _generate.best_names(self, batch, names)


def _stop_ids(net: Any, tokenizer: Any) -> frozenset[int]:
    """End tokens of the tokenizer, the config and the generation config."""
    found: set[int] = set()
    for holder in (tokenizer, net.config, net.config.get_text_config(), getattr(net, "generation_config", None)):
        ids = getattr(holder, "eos_token_id", None)
        if ids is not None:
            found.update([ids] if isinstance(ids, int) else ids)
    return frozenset(found)
