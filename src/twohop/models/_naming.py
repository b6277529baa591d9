"""Names that a cross-attention model gives to pictures, by transformers' own means: processor, forward pass, generate.

All prompts of one template have one length (a picture is one token), so that nothing is padded.
"""

import copy
from collections.abc import Sequence
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from PIL.Image import Image
from torch import Tensor

from twohop.models import _mllama
from twohop.models._projector import ids_of


class CrossNamer:
    """A `MllamaForConditionalGeneration` and its processor, asked for names."""

    def __init__(self, net: Any, processor: Any) -> None:
        self.net, self.processor, self.tokenizer = net.eval(), processor, processor.tokenizer

    def name(
        self, pictures: Sequence[Image], template: str, names: Sequence[str], n_tokens: int
    ) -> tuple[list[str], list[int]]:
        """What it writes freely, and the index of the most likely name, per picture."""
        return self.say(pictures, template, n_tokens), self.best(pictures, template, names)

    @torch.no_grad()
    def say(self, pictures: Sequence[Image], template: str, n_tokens: int) -> list[str]:
        """The first line of a greedy answer to the template, with a picture in the place of `{entity}`."""
        inputs = self._inputs(pictures, template)
        out = self.net.generate(**inputs, max_new_tokens=n_tokens, do_sample=False)
        written = self.tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return [text.strip().split("\n")[0].strip() for text in written]

    @torch.no_grad()
    def best(self, pictures: Sequence[Image], template: str, names: Sequence[str]) -> list[int]:
        """Index of the name with the largest log P(" name" | prompt), per picture.

        Branch and bound, as `Model.best_names`: a name is at most as likely as its first token.
        """
        ids = [ids_of(self.tokenizer, f" {name}") for name in names]
        out = self.net(**self._inputs(pictures, template), use_cache=True, logits_to_keep=1)
        first = out.logits[:, -1].log_softmax(-1)
        bounds = first[:, torch.tensor([i[0] for i in ids])]
        order = bounds.argsort(dim=1, descending=True, stable=True)
        best = torch.full((len(pictures),), -torch.inf)
        found = torch.zeros(len(pictures), dtype=torch.long)
        for turn in range(len(names)):
            rows = (bounds.gather(1, order[:, turn : turn + 1])[:, 0] > best).nonzero()[:, 0]
            if not len(rows):
                break
            chosen = order[rows, turn]
            score = bounds[rows, chosen] + self._rest(out.past_key_values, rows, [ids[int(n)] for n in chosen])
            better = score > best[rows]
            best[rows[better]], found[rows[better]] = score[better], chosen[better]
        return found.tolist()

    def _inputs(self, pictures: Sequence[Image], template: str) -> Any:
        text = template.replace("{entity}", _mllama.IMAGE_TOKEN)
        images = [[picture.convert("RGB")] for picture in pictures]
        return self.processor(images=images, text=[text] * len(images), return_tensors="pt")

    def _rest(self, cache: Any, rows: Int[Tensor, " row"], ids: Sequence[list[int]]) -> Float[Tensor, " row"]:
        """log P of the tokens after each name's first one."""
        longest = max(map(len, ids))
        if longest == 1:
            return torch.zeros(len(ids))
        own = copy.deepcopy(cache)
        own.batch_select_indices(rows)
        padded = torch.tensor([i + [0] * (longest - len(i)) for i in ids])
        mask = torch.ones(len(ids), longest - 1, 1, 1, dtype=torch.long)
        out = self.net(input_ids=padded[:, :-1], past_key_values=own, cross_attention_mask=mask, use_cache=True)
        found = out.logits.log_softmax(-1).gather(2, padded[:, 1:, None])[..., 0]
        kept = torch.tensor([[k < len(i) for k in range(1, longest)] for i in ids])
        return cast("Tensor", found.where(kept, 0).sum(1))
