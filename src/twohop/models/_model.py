"""A model as the study sees it: prompts in; logits, activations, patched answers and name log-probabilities out."""

import contextlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from PIL.Image import Image
from torch import Tensor, nn

from twohop.errors import ModelError
from twohop.models import _generate, _lens
from twohop.models._attention import Knockout, knocked_out
from twohop.models._card import ModelCard
from twohop.models._hooks import hooked
from twohop.models._prompts import Batch, Prompt, Tokens, pad
from twohop.models._sites import Decoder, Patch, Site

PICTURE_BATCH = 16
"""Pictures that go through the tower at once; bounds memory."""


@dataclass(frozen=True)
class Run:
    """What one forward pass gave."""

    logits: Float[Tensor, "batch vocab"]
    """At `last`, at least float32."""
    activations: dict[Site, Float[Tensor, "batch seq d_model"]]


class Model:
    """An open model; its weights are frozen and never need a gradient."""

    def __init__(self, net: nn.Module, card: ModelCard, tokens: Tokens, image_processor: Any = None) -> None:
        self.card, self.tokens, self.image_processor = card, tokens, image_processor
        self.net: Any = net.eval().requires_grad_(False)
        self.decoder = Decoder(net, card.family)
        self.device: torch.device = next(net.parameters()).device
        self.dtype: torch.dtype = next(net.parameters()).dtype
        raw = tokens.raw
        self.stop_ids = _stop_ids(self.net, raw)
        self.pad_id = int(raw.pad_token_id if raw.pad_token_id is not None else min(self.stop_ids, default=0))

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

    @torch.no_grad()
    def encode_pictures(self, pictures: Sequence[Image]) -> Float[Tensor, "picture image_token d_model"]:
        """Tower and projector, once per picture.

        Raises:
            ModelError: the model has no eyes, or gives another number of tokens than its card says.
        """
        if self.image_processor is None:
            raise ModelError("this model takes no pictures", self.name, "use a vision-language model")
        parts: list[Tensor] = []
        for i in range(0, len(pictures), PICTURE_BATCH):
            chunk = [p.convert("RGB") for p in pictures[i : i + PICTURE_BATCH]]
            pixels = self.image_processor(images=chunk, return_tensors="pt")["pixel_values"]
            out = self.net.get_image_features(pixel_values=pixels.to(self.device, self.dtype), return_dict=True)
            parts.extend(out.pooler_output)
        shape = (len(pictures), self.n_image_tokens, self.d_model)
        features = torch.stack(list(parts)) if parts else torch.empty(shape, dtype=self.dtype, device=self.device)
        if tuple(features.shape) != shape:
            raise ModelError(f"picture features are {tuple(features.shape)}, not {shape}", self.name)
        return features

    def batch(self, prompts: Sequence[Prompt], side: Literal["left", "right"] = "left") -> Batch:
        """Pad prompts into a batch with its token groups.

        Raises:
            ModelError: no prompt, an empty one, or picture features of another shape.
        """
        if not prompts:
            raise ModelError("an empty batch", self.name, "give at least one prompt")
        encoded = [self.tokens.encode(p) for p in prompts]
        seen = [p.picture for p in prompts if p.picture is not None]
        for picture in seen:
            if tuple(picture.shape) != (self.n_image_tokens, self.d_model):
                raise ModelError(f"picture features {tuple(picture.shape)}", self.name, "use a row of encode_pictures")
        is_picture = [p.picture is not None for p in prompts]
        ids, mask, positions, spans, groups = pad(encoded, is_picture, self.pad_id, self.device, side)
        extra: dict[str, Tensor] = {}
        if self.card.family == "gemma3" and seen:
            extra["token_type_ids"] = groups["image"].long()  # else image tokens would see each other causally (X9)
        pictures = torch.cat([p.to(self.device, self.dtype) for p in seen]) if seen else None
        return Batch(ids, mask, positions, groups, spans, pictures, extra)

    def batches(self, prompts: Sequence[Prompt], size: int) -> Iterator[tuple[list[int], Batch]]:
        """Batches of at most `size` prompts of similar length, with the prompts' indices."""
        lengths = [len(self.tokens.encode(p).ids) for p in prompts]
        order = sorted(range(len(prompts)), key=lengths.__getitem__)
        for i in range(0, len(order), size):
            index = order[i : i + size]
            yield index, self.batch([prompts[j] for j in index])

    def embed(self, batch: Batch) -> Float[Tensor, "batch seq d_model"]:
        """Token embeddings with the pictures' features in place."""
        # Gemma-3's image id is no row of the table
        ids = batch.input_ids.masked_fill(batch.groups["image"], self.pad_id)
        embeds = self.net.get_input_embeddings()(ids)
        if batch.pictures is not None:
            embeds = embeds.clone()
            embeds[batch.groups["image"]] = batch.pictures.to(embeds)
        return embeds

    def forward(self, batch: Batch, embeds: Tensor, cache: Any = None) -> Float[Tensor, "batch vocab"]:
        """Logits at `last` of every row (plumbing of `run` and `generate`)."""
        at_end = bool(batch.groups["last"][:, -1].all())
        out = self.net(
            inputs_embeds=embeds,
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

        Raises:
            ModelError: a site or a knockout does not fit the model (promise X1).
        """
        with torch.enable_grad() if grad else torch.no_grad():
            embeds = self.embed(batch)
            if grad:
                embeds = embeds.detach().requires_grad_()
            shape = (int(embeds.shape[0]), int(embeds.shape[1]), self.d_model)
            with (
                hooked(self.decoder, shape, capture, patches, grad) as found,
                knocked_out(self.decoder, knockouts, shape[:2]),
            ):
                logits = self.forward(batch, embeds)
        return Run(logits, found)

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

    def blocked_logits(self, batch: Batch, knockouts: Sequence[Knockout]) -> Float[Tensor, "knockout batch vocab"]:
        """Logits at `last` under each knockout alone, where all cut edges end at `last`.

        Equal to one `run` per knockout; but as nothing before `last` changes, the rest of the prompt is run only once.

        Raises:
            ModelError: a knockout that does not fit or cuts another position's view, a right-padded batch, or a model
                that reads pictures by cross-attention.
        """
        with torch.no_grad():
            return _generate.blocked_logits(self, batch, knockouts)

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

    def name_logprobs(
        self, batch: Batch, names: Sequence[str], patches: Sequence[Patch] = ()
    ) -> Float[Tensor, "batch name"]:
        """log P(" name" | prompt), summed over the name's tokens; patches act on the prompt."""
        with torch.no_grad():
            return _generate.name_logprobs(self, batch, names, patches)

    def best_names(self, batch: Batch, names: Sequence[str], patches: Sequence[Patch] = ()) -> list[int]:
        """Index of the most probable name per row, exact, the first of equals. Patches act on the prompt."""
        with torch.no_grad():
            return _generate.best_names(self, batch, names, patches)


def _stop_ids(net: Any, tokenizer: Any) -> frozenset[int]:
    """End tokens of the tokenizer, the config and the generation config."""
    found: set[int] = set()
    for holder in (tokenizer, net.config, net.config.get_text_config(), getattr(net, "generation_config", None)):
        ids = getattr(holder, "eos_token_id", None)
        if ids is not None:
            found.update([ids] if isinstance(ids, int) else ids)
    return frozenset(found)
