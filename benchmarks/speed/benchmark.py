"""Greedy answers from pictures: the step's way beside `generate`, the pictures encoded within each."""

import torch

from speed.measure import Bar, Case, Disagreement
from speed.world import Question, World, tokens_once
from twohop.models import Prompt
from twohop.steps._asking import ask

SIZE, LENGTH = 32, 8
"""Prompts in a batch, tokens of an answer."""
NEAR_TIE = 1e-3
"""Two tokens whose logits are nearer than this may come out either way round in float32."""


def case(world: World) -> Case:
    """All questions about pictures."""
    model, net = world.model, world.model.net
    questions = world.questions[:12] if world.quick else world.questions

    def ours() -> list[str]:
        shown = list(dict.fromkeys(q["picture_id"] for q in questions))
        features = dict(zip(shown, model.encode_pictures([world.images[i] for i in shown]), strict=True))
        prompts = [Prompt(q["before"], None, q["after"], features[q["picture_id"]]) for q in questions]
        return ask(model, prompts, SIZE, lambda batch: model.generate(batch, LENGTH), "benchmark")

    @torch.no_grad()
    def generated(part: list[Question]) -> list[str]:
        made = world.processed(part)
        out = net.generate(**made, max_new_tokens=LENGTH, do_sample=False, pad_token_id=model.pad_id)
        said = [model.tokens.decode(ids) for ids in out[:, made["input_ids"].shape[1] :].tolist()]
        return [text.strip().split("\n")[0].strip() for text in said]

    def one_by_one() -> list[str]:
        return [text for q in questions for text in generated([q])]

    def in_batches() -> list[str]:
        order = sorted(range(len(questions)), key=lambda i: len(model.tokenize(questions[i]["after"])))
        found = dict[int, str]()
        for at in range(0, len(order), SIZE):
            index = order[at : at + SIZE]
            found |= dict(zip(index, generated([questions[i] for i in index]), strict=True))
        return [found[i] for i in range(len(questions))]

    def same(a: list[str], b: list[str]) -> str:
        differ = [i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y]
        margins = [first_margin(world, questions[i], a[i], b[i]) for i in differ]
        if any(m > NEAR_TIE for m in margins):
            raise Disagreement(f"answers differ: {[(a[i], b[i], m) for i, m in zip(differ, margins, strict=True)]}")
        ties = f", near-ties of {max(margins):.1e} logits at most" if differ else ""
        return f"{len(differ)} of {len(a)} answers differ{ties}"

    ways = {"ours": ours, "one `generate` per question": one_by_one, "`generate` in sorted batches": in_batches}
    return Case(
        "benchmark",
        f"{len(questions)} questions about {len({q['picture_id'] for q in questions})} pictures, {LENGTH} tokens",
        ways,
        same,
        [Bar("one `generate` per question", 3), Bar("`generate` in sorted batches", 1.5)],
        world.flops(tokens_once(world, questions) + (LENGTH - 1) * len(questions), LENGTH * len(questions)),
        ["needed: common beginnings once, eight tokens for every answer, no tower"],
    )


def first_margin(world: World, question: Question, a: str, b: str) -> float:
    """Distance of the two logits where two answers part."""
    model = world.model
    x, y = (model.tokenize(" " + text) for text in (a, b))
    common = next((i for i, (p, q) in enumerate(zip(x, y, strict=False)) if p != q), min(len(x), len(y)))
    ends = [ids[common] if common < len(ids) else min(model.stop_ids) for ids in (x, y)]
    said = model.tokens.decode(x[:common])
    prompt = world.shown([{**question, "after": question["after"] + said}])[0]
    logits = model.run(model.batch([prompt])).logits[0]
    return float((logits[ends[0]] - logits[ends[1]]).abs())
