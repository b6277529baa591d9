"""Greedy decoding, given answers and name ranking on a shared prefix.

Patches act in the prefill only: whatever is written or scored afterwards meets a patched prompt by its cache.

A dynamic cache in every generation: a static one would compile by itself on CUDA and ignore hooks.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from twohop.errors import ModelError
from twohop.models._attention import Knockout, knocked_out
from twohop.models._batch import FROM_LATER
from twohop.models._hooks import hooked
from twohop.models._prompts import Batch
from twohop.models._sites import Patch
from twohop.models._trunk import resume

if TYPE_CHECKING:
    from twohop.models._model import Model

ROWS_AT_ONCE = 128
"""Rows of one continuation; bounds the copies of the prefix's cache."""


def greedy(
    model: "Model",
    batch: Batch,
    max_new_tokens: int,
    patches: Sequence[Patch],
    knockouts: Sequence[Knockout] = (),
) -> list[str]:
    """See `Model.generate`."""
    _check_length(model, max_new_tokens)
    return _decode(model, batch, *_prefill(model, batch, patches, knockouts), max_new_tokens)


def answer_logprobs(
    model: "Model", batch: Batch, answers: Sequence[Sequence[str]], patches: Sequence[Patch]
) -> list[list[float]]:
    """See `Model.answer_logprobs`."""
    return _forced(model, batch, *_prefill(model, batch, patches), answers)


def reply(
    model: "Model", batch: Batch, max_new_tokens: int, answers: Sequence[Sequence[str]], patches: Sequence[Patch]
) -> tuple[list[str], list[list[float]]]:
    """See `Model.reply`."""
    _check_length(model, max_new_tokens)
    cache, logits = _prefill(model, batch, patches)
    # in this order: decoding makes the cache grow
    logprobs = _forced(model, batch, cache, logits, answers)
    return _decode(model, batch, cache, logits, max_new_tokens), logprobs


def _check_length(model: "Model", max_new_tokens: int) -> None:
    if max_new_tokens < 1:
        raise ModelError(f"max_new_tokens is {max_new_tokens}", model.name, "ask for at least one token")


def _decode(
    model: "Model", batch: Batch, cache: Any, logits: Float[Tensor, "batch vocab"], max_new_tokens: int
) -> list[str]:
    """Greedy first lines after a prefill, whose cache they use up."""
    lengths, later = _following(batch), _later(batch)
    mask = batch.attention_mask
    written: list[list[int]] = [[] for _ in range(len(batch))]
    alive = torch.arange(len(batch), device=model.device)
    for step in range(max_new_tokens):
        token = logits.argmax(-1)
        going: list[int] = []
        for i, (row, t) in enumerate(zip(alive.tolist(), token.tolist(), strict=True)):
            if t in model.stop_ids:
                continue
            written[row].append(t)
            if "\n" not in model.tokens.decode(written[row]).lstrip():
                going.append(i)
        if not going or step == max_new_tokens - 1:
            break
        keep = torch.tensor(going, device=model.device)
        if len(going) < len(alive):  # rows that are done leave the batch
            cache = _rows(cache, keep)
            alive, mask, lengths, token = alive[keep], mask[keep], lengths[keep], token[keep]
            later = {name: value[keep] for name, value in later.items()}
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        logits = _continue(model, cache, token[:, None], mask, lengths[:, None] + step, later)[:, -1]
    return [_first_line(model.tokens.decode(ids)) for ids in written]


def _forced(
    model: "Model", batch: Batch, cache: Any, logits: Float[Tensor, "batch vocab"], answers: Sequence[Sequence[str]]
) -> list[list[float]]:
    """log P of every row's own answers after a prefill, whose cache stays as it is."""
    if len(answers) != len(batch):
        raise ModelError(
            f"answers of {len(answers)} rows for a batch of {len(batch)}", model.name, "give one list a row"
        )
    flat = [(row, text) for row, texts in enumerate(answers) for text in texts]
    if not flat:
        return [[] for _ in answers]
    ids = _name_ids(model, [text for _, text in flat])
    rows = [(row, i) for i, (row, _) in enumerate(flat)]
    found: list[list[float]] = [[] for _ in answers]
    for (row, _), score in zip(flat, _scores(model, batch, cache, logits.log_softmax(-1), ids, rows), strict=True):
        found[row].append(score)
    return found


def _first_line(text: str) -> str:
    return text.strip().split("\n")[0].strip()


def name_logprobs(model: "Model", batch: Batch, names: Sequence[str]) -> Float[Tensor, "batch name"]:
    """See `Model.name_logprobs`."""
    ids = _name_ids(model, names)
    cache, logits = _prefill(model, batch, ())
    rows = [(r, n) for r in range(len(batch)) for n in range(len(names))]
    scores = _scores(model, batch, cache, logits.log_softmax(-1), ids, rows)
    return torch.tensor(scores, dtype=torch.float32).reshape(len(batch), len(names))


def best_names(model: "Model", batch: Batch, names: Sequence[str]) -> list[int]:
    """Branch and bound: log P(name) <= log P(its first token), so names are scored in the order of that bound.

    A row is done when the next bound is below the best score that it has.
    """
    return _rank(model, batch, *_prefill(model, batch, ()), names)


def name_answers(
    model: "Model", batch: Batch, max_new_tokens: int, names: Sequence[str]
) -> tuple[list[str], list[int]]:
    """See `Model.name_answers`."""
    _check_length(model, max_new_tokens)
    cache, logits = _prefill(model, batch, ())
    best = _rank(model, batch, cache, logits, names)  # in this order: decoding makes the cache grow
    return _decode(model, batch, cache, logits, max_new_tokens), best


def _rank(
    model: "Model", batch: Batch, cache: Any, logits: Float[Tensor, "batch vocab"], names: Sequence[str]
) -> list[int]:
    """Best name per row after a prefill, whose cache stays as it is."""
    ids = _name_ids(model, names)
    logprobs = logits.log_softmax(-1)
    bounds = logprobs[:, torch.tensor([i[0] for i in ids], device=model.device)].cpu()
    order = bounds.argsort(dim=1, descending=True, stable=True).tolist()
    best: list[tuple[float, int]] = [(-float("inf"), 0) for _ in range(len(batch))]
    tried = [0] * len(batch)
    while True:
        rows: list[tuple[int, int]] = []
        for r in range(len(batch)):
            ahead = order[r][tried[r] : 2 * tried[r] + 1]  # one, two, four: the first one is often enough
            ahead = [n for n in ahead if float(bounds[r, n]) >= best[r][0]]
            tried[r] += len(ahead)
            rows += [(r, n) for n in ahead]
        if not rows:
            return [n for _, n in best]
        for (r, n), score in zip(rows, _scores(model, batch, cache, logprobs, ids, rows), strict=True):
            if (score, -n) > (best[r][0], -best[r][1]):
                best[r] = (score, n)


def _name_ids(model: "Model", names: Sequence[str]) -> list[list[int]]:
    ids = [model.tokens.answer_ids(name) for name in names]
    if not ids or not all(name.strip() for name in names):
        raise ModelError("no names or answers, or an empty one", model.name, "give texts of visible characters")
    return ids


def _scores(
    model: "Model",
    batch: Batch,
    cache: Any,
    first: Float[Tensor, "batch vocab"],
    ids: Sequence[list[int]],
    rows: Sequence[tuple[int, int]],
) -> list[float]:
    """log P of each (row, name); one-token names need no further pass."""
    scores = [float(first[r, ids[n][0]]) for r, n in rows]
    longer = sorted((i for i, (_, n) in enumerate(rows) if len(ids[n]) > 1), key=lambda i: len(ids[rows[i][1]]))
    for at in range(0, len(longer), ROWS_AT_ONCE):
        chunk = longer[at : at + ROWS_AT_ONCE]
        tails = _tails(model, batch, cache, [rows[i][0] for i in chunk], [ids[rows[i][1]] for i in chunk])
        for i, tail in zip(chunk, tails, strict=True):
            scores[i] += tail
    return scores


def _tails(model: "Model", batch: Batch, cache: Any, rows: list[int], names: list[list[int]]) -> list[float]:
    """Summed log P of every name's tokens after its first."""
    longest = max(map(len, names)) - 1
    tokens = torch.zeros(len(names), longest, dtype=torch.long, device=model.device)
    known = torch.zeros_like(tokens)
    wanted = torch.zeros_like(tokens)
    for i, name in enumerate(names):
        n = len(name) - 1
        tokens[i, :n], wanted[i, :n], known[i, :n] = torch.tensor(name[:-1]), torch.tensor(name[1:]), 1
    index = torch.tensor(rows, device=model.device)
    prefix = batch.attention_mask[index]
    positions = _following(batch)[index][:, None] + torch.arange(longest, device=model.device)
    later = {name: value[index] for name, value in _later(batch).items()}
    logits = _continue(model, _rows(cache, index), tokens, torch.cat([prefix, known], 1), positions, later)
    picked = logits.log_softmax(-1).gather(2, wanted[..., None])[..., 0]
    return (picked * known).sum(1).tolist()


def blocked_logits(model: "Model", batch: Batch, knockouts: Sequence[Knockout]) -> Float[Tensor, "run batch vocab"]:
    """See `Model.blocked_logits`."""
    last = batch.groups["last"]
    if any(bool((cut.queries & ~last).any()) for cut in knockouts):
        raise ModelError("a knockout at another position than `last`", model.name, "use `run`")
    if not bool(last[:, -1].all()) or last.shape[1] < 2:
        todo = "use left-padded prompts of two tokens or more"
        raise ModelError("the rest of the prompt cannot be shared", model.name, todo)
    trunk = model.trunk(batch, {cut.start for cut in knockouts})
    rows = trunk.fork(range(len(batch)))
    return torch.stack([trunk.logits, *(resume(model, rows, (), [cut], whole=False)[1] for cut in knockouts)])


def _prefill(
    model: "Model", batch: Batch, patches: Sequence[Patch], knockouts: Sequence[Knockout] = ()
) -> tuple[Any, Float[Tensor, "batch vocab"]]:
    if batch.shared is not None:
        return resume(model, batch, patches, knockouts)[:2]
    cache, shape = DynamicCache(config=model.net.config.get_text_config()), model.shape(batch)
    with hooked(model.decoder, shape, (), patches), knocked_out(model.decoder, knockouts, shape[:2]):
        return cache, model.forward(batch, cache)


def _following(batch: Batch) -> Int[Tensor, " batch"]:
    """Position of the first token after each row."""
    return batch.attention_mask.sum(1) if batch.next_position is None else batch.next_position


def _later(batch: Batch) -> dict[str, Tensor]:
    """What written tokens are given besides themselves: the entry of the row's last token."""
    return {name: value[:, -1:] for name, value in batch.extra.items() if name in FROM_LATER}


def _continue(
    model: "Model",
    cache: Any,
    tokens: Int[Tensor, "batch new"],
    mask: Int[Tensor, "batch total"],
    positions: Int[Tensor, "*axes batch new"],
    later: Mapping[str, Tensor] | None = None,
) -> Float[Tensor, "batch new vocab"]:
    """Logits of further tokens; the cache grows."""
    more = {name: value.expand(-1, tokens.shape[1], *value.shape[2:]) for name, value in (later or {}).items()}
    out = model.net(
        input_ids=tokens, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True, **more
    )
    return out.logits.to(torch.promote_types(out.logits.dtype, torch.float32))


def _rows(cache: Any, index: Int[Tensor, " rows"]) -> Any:
    """A cache of the chosen rows; the old one stays as it is."""
    new = copy.copy(cache)
    new.layers = [copy.copy(layer) for layer in cache.layers]
    new.batch_select_indices(index)
    return new
