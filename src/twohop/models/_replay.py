"""Plain texts that a language model keeps its own words on while it learns to see, and the measure of that.

None of them states or asks for a fact that the study measures.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from twohop.models._projector import Tokenizer, ids_of

NAMED_TEXTS: tuple[str, ...] = (
    "Consider the country {entity}. The name of this country is {entity}. It",
    "The country is {entity}. People who live there",
    "I have been to {entity}. The weather was",
    "A map of {entity}, and its",
    "We spent three weeks in {entity} last year, and",
    "She was born in {entity}, but moved away when",
    "Consider the following country: {entity}. This country",
    "In {entity}, people often",
)
"""Texts with an entity's name in place."""
OPEN_TEXTS: tuple[str, ...] = (
    "Consider the country {entity}. The highest mountain in this country is",
    "Consider the country {entity}. The head of state of this country is",
    "Consider the following country: {entity}. The population of this country is about",
    "The country is {entity}. Its national dish is",
    "The country is {entity}. The longest river that flows through it is the",
    "Country: {entity}\nNational anthem:",
    "Country: {entity}\nMost popular sport:",
    "{entity}\nThis country is best known for its",
    "{entity}\nThe climate of this country is",
    "The flag of a country: {entity}\nThe colours of this flag are",
    "I have been to {entity}. The best month to visit it is",
    "A map of {entity}. To the north of it lies",
)
"""Texts that ask something else about an entity; they teach to answer, and none of the answers is measured."""
SENTENCES: tuple[str, ...] = (
    "The train was late again, so we walked along the river and talked about the book.",
    "To make the soup, first chop the onions and fry them slowly in a little oil.",
    "She opened the window and listened to the rain falling on the roof of the barn.",
    "A function that calls itself must have a case in which it stops.",
    "The meeting was moved to Thursday because two of the engineers were ill.",
    "He learned to play the violin when he was six, and never stopped practising.",
    "Plants need light and water, and most of them need soil as well.",
    "If you want to save money, write down everything that you spend in a month.",
    "The old bridge was closed for repairs, and traffic went through the village.",
    "Dear Sir or Madam, I am writing to ask about the room that you advertised.",
    "The cat slept on the chair by the stove while the children did their homework.",
    "In the second half the team played better, but it was too late to win the match.",
    "Water boils at a lower temperature on a high mountain than at the sea.",
    "The doctor told him to rest for a week and to drink a lot of water.",
    "There are many ways to solve this equation, and the simplest is to draw it.",
    "When the lights came back on, everybody in the theatre began to laugh.",
    "The museum has a large collection of clocks, some of which still work.",
    "My grandmother kept her letters in a blue box under the bed.",
    "The company said that it would hire forty people before the end of the year.",
    "It is easier to learn a new word when you hear it in a sentence.",
    "Two friends found a map in the attic and decided to follow it.",
    "The wind turned to the north, and by the evening it had begun to snow.",
    "Please remember to lock the door and to turn off the heating when you leave.",
    "An atom has a small heavy nucleus, and light electrons around it.",
)
"""Texts about other things."""
HELD_OUT: tuple[str, ...] = (
    "The bakery on the corner sells bread that is still warm at seven in the morning.",
    "Once upon a time there was a fox who was afraid of the dark.",
    "The results of the experiment were not what we had expected, so we repeated it.",
    "He put the key on the table and said that he would not come back.",
    "A good tent is light, keeps out the rain and can be put up by one person.",
    "The list is sorted first, and then every element is compared with the next one.",
    "Most of the students walk to school, and a few of them take the bus.",
    "Thank you for your order, which will be sent to you within three days.",
)
"""Texts that no training sees."""
HELD_OUT_OPEN = "The country is {entity}. The number of people who live in it is"
"""A text that asks, of the same kind."""
HELD_OUT_NAMED = "My neighbour once lived in {entity} for a while, and she"
"""A text with an entity's name that no training sees."""
MEASURE_BATCH = 16


@dataclass(frozen=True)
class Replay:
    """Texts in ids, right-padded, where no earlier token looks."""

    ids: Int[Tensor, "text seq"]
    kept: Bool[Tensor, "text seq"]
    """True where the ids are a text's own."""

    @classmethod
    def of(cls, tokenizer: Tokenizer, texts: Sequence[str]) -> "Replay":
        """The texts in ids."""
        rows = [ids_of(tokenizer, text) for text in texts]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        return cls(ids, torch.tensor([[i < len(row) for i in range(longest)] for row in rows]))

    def logits(
        self, decoder: nn.Module, lm_head: nn.Module, rows: Int[Tensor, " batch"]
    ) -> Float[Tensor, "position token"]:
        """Next-token logits at every position of some texts, one text after the other."""
        width = int(self.kept[rows].sum(1).max())
        resid = cast("Any", decoder)(input_ids=self.ids[rows, :width], use_cache=False).last_hidden_state
        return lm_head(resid[self.kept[rows, :width]])


def divergence(teacher: Float[Tensor, "row token"], student: Float[Tensor, "row token"]) -> Float[Tensor, " row"]:
    """KL(teacher || student) of two rows of logits, nats."""
    wanted = teacher.log_softmax(-1)
    return functional.kl_div(student.log_softmax(-1), wanted, log_target=True, reduction="none").sum(-1)


def training_texts(names: Sequence[str]) -> list[str]:
    """Every text of a name, and the sentences, each as often as there are texts of one name."""
    texts = (*NAMED_TEXTS, *OPEN_TEXTS)
    return [t.format(entity=name) for name in dict.fromkeys(names) for t in texts] + list(SENTENCES) * len(texts)


def held_out_texts(names: Sequence[str]) -> list[str]:
    """Texts for the measure, of every fifth name."""
    some = list(dict.fromkeys(names))[::5]
    return [*HELD_OUT, *(text.format(entity=name) for text in (HELD_OUT_NAMED, HELD_OUT_OPEN) for name in some)]


@torch.no_grad()
def text_drift(
    backbone: nn.Module, decoder: nn.Module, lm_head: nn.Module, tokenizer: Tokenizer, texts: Sequence[str]
) -> dict[str, float]:
    """How far a decoder's next-token distributions are from the backbone's.

    Returns:
        `kl`: mean divergence in nats per token; `agreement`: share of tokens with the same most likely successor;
        `tokens`: over how many.
    """
    kl, same, count = 0.0, 0, 0
    replay = Replay.of(tokenizer, texts)
    for rows in torch.arange(len(texts)).split(MEASURE_BATCH):
        own, new = (replay.logits(net, lm_head, rows) for net in (backbone, decoder))
        kl += float(divergence(own, new).sum())
        same += int((own.argmax(-1) == new.argmax(-1)).sum())
        count += len(own)
    return {"kl": round(kl / count, 5), "agreement": round(same / count, 4), "tokens": count}
