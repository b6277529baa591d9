"""Multinomial logistic regression of many problems at once, solved to convergence in torch.

One problem is scikit-learn's `LogisticRegression(C=1/l2)`: minimise over weight and intercept the sum of the rows'
log-losses plus l2/2 times the squared weights, the intercept free. Problems share their number of rows and features,
and differ in features (one layer each), labels (real or shuffled) and l2.

1. **Row space** (`standardise`): the optimum's weights lie in the span of the rows (Kimeldorf & Wahba 1971), so
   standardised features X stand in coordinates B of that span, at most min(rows, d_model) of them: from XX' = BB'.
2. **Preconditioning** (`_pose`): the Hessian is near UU' = c B'B + l2, where c = CURVATURE/k stands for the mean
   curvature of a row's loss in one of the k logits. In v = U'weight and with R = B U'^-1 logits are R v, the penalty
   l2/2 |weight|^2 is (|v|^2 - c |R v|^2) / 2, and the gradient v + R'(probabilities - target - c R v). The intercept is
   a column of R: features have mean 0, so it does not mix with them.
3. **L-BFGS** (Nocedal & Wright 2006, algorithm 7.4) in v by inner products alone (Chen, Wang & Zhou 2014, "Large-scale
   L-BFGS using MapReduce"): the last steps and gradient changes meet a new gradient in one product, and make up the
   direction in another.
4. **Line search**: logits are linear along a direction, so a trial step costs a softmax and no matrix product; Newton's
   method within a bracket, as the loss is convex along a line.
"""

import math
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import one_hot

TOLERANCE = 5e-7
"""Largest gradient entry of the mean log-loss (nats), in weights and intercepts, at which a problem is solved.

Predictions on held-out pictures are then those of the exact optimum; 2e-6 changes two of 512, and the default of
scikit-learn, 1e-4, moves accuracies by a picture.
"""
LOOK_EVERY = 5
"""Steps from one look at the gradient to the next."""
MAX_ITERATIONS = 1000
"""Bounds the time of a problem that hardly anything bounds (l2 near zero); it then says that it did not converge."""
HISTORY = 5
"""Pairs of steps and gradient changes that L-BFGS remembers; 12 need 8 % fewer steps and as much time."""
CURVATURE = 0.3
"""Mean curvature of the loss, relative to equal probabilities; measured on four layers' residual stream, where 0.1 to
0.5 needed the fewest steps for an l2 of 10, and 0.2 to 1 for an l2 of 0.1.
"""
RANK_TOLERANCE = 1e-12
"""Squared singular values below this share of their sum are rounding."""
SLOPE = 0.5
"""A step is long enough when it has halved the slope along its direction."""
NEGLIGIBLE = -57.0
"""A probability below the likeliest one's by e to this counts as 0: far below what a gradient in float32 can show.

Left alone, such numbers become subnormal where a fit is sure of its rows, and a matrix product of them takes 70 times
as long.
"""
TRIALS = 12
"""Trial steps of one line search; one or two are usual."""
TINY = 1e-30


@dataclass(frozen=True)
class Standardised:
    """Features of one layer each, `x = (features - mean) / scale`."""

    mean: Float[Tensor, "layer 1 d_model"]
    scale: Float[Tensor, "layer 1 d_model"]
    x: Float[Tensor, "layer row d_model"]
    span: Float[Tensor, "layer row rank"]
    """B, in float64: x itself, or where that is `wide`, triangular."""

    @property
    def wide(self) -> bool:
        """More features than rows."""
        return self.x.shape[1] < self.x.shape[2]


@dataclass(frozen=True)
class Start:
    """Where a solution stands, for the same problems under another l2 to begin at."""

    weight: Float[Tensor, "problem rank entity"]
    """In the coordinates of `span`."""
    bias: Float[Tensor, "problem 1 entity"]
    logits: Float[Tensor, "problem row entity"]


@dataclass(frozen=True)
class Solution:
    """Read-outs on raw features, `features @ weight.T + bias`: standardisation is folded in."""

    weight: Float[Tensor, "problem entity d_model"]
    bias: Float[Tensor, "problem entity"]
    converged: Bool[Tensor, " problem"]
    end: Start


@dataclass(frozen=True)
class _Problems:
    """Problems that are not solved yet; the last coordinate is the intercept."""

    index: Int[Tensor, " problem"]
    rows: Float[Tensor, "problem row coordinate"]
    """R."""
    x: Float[Tensor, "problem row d_model"]
    back: Float[Tensor, "problem any rank"]
    """From a gradient in v to one in x's weights: U; of `wide` features B'^-1 U, x' times which it is."""
    intercept: float
    """The same for the last coordinate."""
    target: Float[Tensor, "problem row entity"]
    absent: Float[Tensor, "problem 1 entity"]
    """Minus infinity where no row shows the entity, else 0."""
    some_absent: bool
    curvature: float
    """c."""


@dataclass(frozen=True)
class _State:
    """Where L-BFGS stands."""

    at: Float[Tensor, "problem coordinate entity"]
    logits: Float[Tensor, "problem row entity"]
    gradient: Float[Tensor, "problem coordinate entity"]


@dataclass(frozen=True)
class _History:
    """The last HISTORY steps, then as many changes of the gradient, and their inner products."""

    arrays: Float[Tensor, "problem pairs2 flat"]
    step_change: Float[np.ndarray, "problem pairs pairs"]
    change_change: Float[np.ndarray, "problem pairs pairs"]
    met: Float[np.ndarray, "problem pairs2"]
    """With the state's gradient."""


Parts = TypeVar("Parts", _Problems, _State, _History)


def standardise(features: Float[Tensor, "layer row d_model"]) -> Standardised:
    """Each layer's features with mean 0 and deviation 1 (a constant one stays 0), and coordinates of their span."""
    mean, spread = features.mean(1, keepdim=True), features.std(1, keepdim=True, correction=0)
    scale = torch.where(spread > 0, spread, torch.ones_like(spread))
    x = (features - mean) / scale
    plain = Standardised(mean, scale, x, x.double())
    if not plain.wide:
        return plain
    square = plain.span @ plain.span.mT
    total = square.diagonal(dim1=1, dim2=2).sum(1).clamp_min(1.0)
    return replace(plain, span=torch.linalg.cholesky(_shifted(square, RANK_TOLERANCE * total)))


def solve(
    features: Standardised,
    layers: Int[Tensor, " problem"],
    labels: Int[Tensor, "problem row"],
    l2: Float[Tensor, " problem"],
    n_entities: int,
    start: Start | None = None,
) -> Solution:
    """Solve every problem; the answer is the same whatever the order, and deterministic for equal calls.

    Args:
        features: of the training rows.
        layers: per problem, the layer of `features` that it reads.
        labels: per problem, the entity of each row.
        l2: per problem, the strength of the penalty.
        n_entities: rows of a weight; an entity without a training row gets a bias that never wins.
        start: the end of the same problems under another l2, which saves steps.
    """
    span, c = features.span[layers], CURVATURE / n_entities
    upper = torch.linalg.cholesky(_shifted(c * span.mT @ span, l2)).mT
    problems = _pose(features, layers, upper, labels, c, n_entities)
    logits = torch.zeros_like(problems.target)
    at = logits.new_zeros(len(layers), upper.shape[1] + 1, n_entities)
    if start is not None:
        weights = upper @ start.weight.to(upper)
        at, logits = torch.cat([weights.to(at), start.bias * problems.intercept], 1), start.logits
    at, logits, converged = _descend(problems, at, logits)
    weight = torch.linalg.solve_triangular(upper, at[:, :-1].double(), upper=True)
    bias = at[:, -1:] / problems.intercept
    end = Start(weight.to(at), bias, logits)
    if features.wide:  # x = span q' with orthonormal q = x' span'^-1
        weight = features.x[layers].mT.double() @ torch.linalg.solve_triangular(span.mT, weight, upper=True)
    raw = weight.to(at) / features.scale[layers].mT
    bias = (bias - features.mean[layers] @ raw)[:, 0]
    bias = bias.masked_fill(problems.absent[:, 0] < 0, torch.finfo(bias.dtype).min)
    return Solution(raw.mT.contiguous(), bias, converged, end)


def bytes_of_problem(n_rows: int, d_model: int, n_entities: int) -> int:
    """Bytes in float32 that `solve` holds for one problem, to choose how many to solve together."""
    rank = min(n_rows, d_model) + 1
    arrays = (2 * HISTORY + 8) * rank * n_entities + 8 * n_rows * n_entities
    return 4 * (arrays + rank * (2 * n_rows + 8 * rank + 4 * d_model))


def _shifted(square: Float[Tensor, "problem n n"], by: Float[Tensor, " problem"]) -> Float[Tensor, "problem n n"]:
    """With a number on the diagonal; in place."""
    square.diagonal(dim1=1, dim2=2).add_(by[:, None])
    return square


def _pose(
    features: Standardised,
    layers: Int[Tensor, " problem"],
    upper: Float[Tensor, "problem rank rank"],
    labels: Int[Tensor, "problem row"],
    curvature: float,
    n_entities: int,
) -> _Problems:
    """The problems in the coordinates in which their Hessians are near 1; `upper` is U'."""
    x, span = features.x[layers], features.span[layers]
    n, n_rows = labels.shape
    target = one_hot(labels, n_entities).to(x.dtype)
    shown = target.sum(1, keepdim=True)
    absent = torch.zeros_like(shown).masked_fill(shown == 0, -torch.inf)
    rows = torch.linalg.solve_triangular(upper, span, upper=True, left=False)
    intercept = math.sqrt(curvature * n_rows)
    rows = torch.cat([rows, rows.new_full((n, n_rows, 1), 1 / intercept)], 2).to(x.dtype)
    back = torch.linalg.solve_triangular(span.mT, upper.mT, upper=True) if features.wide else upper.mT
    index = torch.arange(n, device=labels.device)
    return _Problems(index, rows, x, back.to(x.dtype), intercept, target, absent, bool((shown == 0).any()), curvature)


def _descend(problems: _Problems, at: Tensor, logits: Tensor) -> tuple[Tensor, Tensor, Bool[Tensor, " problem"]]:
    """L-BFGS; solved problems are put aside, and left out of the computation once they are half of the rest.

    Returns:
        Where each problem ended, its logits, and whether it converged.
    """
    state = _state(problems, at, logits, _softmax(problems, logits))
    history = _no_history(at)
    ends, logits_of = torch.zeros_like(at), torch.zeros_like(logits)
    converged = torch.zeros(len(at), dtype=torch.bool, device=at.device)
    for number in range(MAX_ITERATIONS):
        if number % LOOK_EVERY == 0:
            open_ = ~converged[problems.index]
            fresh = open_ & (_largest(problems, state) < TOLERANCE * logits.shape[1])
            done, open_ = problems.index[fresh], open_ & ~fresh
            ends[done], logits_of[done], converged[done] = state.at[fresh], state.logits[fresh], True
            if not open_.any():
                return ends, logits_of, converged
            if int(open_.sum()) * 2 <= len(open_):
                problems, state, history = _take(problems, open_), _take(state, open_), _take(history, open_)
        direction = _direction(state.gradient, history, number)
        direction[converged[problems.index]] = 0  # what is solved stays where it is
        along = problems.rows @ direction
        length, probabilities = _line_search(problems, state, direction, along)
        step = length * direction
        after = _state(problems, state.at + step, torch.addcmul(state.logits, length, along), probabilities)
        history, state = _remember(history, number, step, state.gradient, after.gradient), after
    left = ~converged[problems.index]
    ends[problems.index[left]], logits_of[problems.index[left]] = state.at[left], state.logits[left]
    return ends, logits_of, converged


def _take(parts: Parts, keep: Tensor) -> Parts:
    kept = {f.name: getattr(parts, f.name) for f in fields(parts)}
    tensors = {k: v[keep] for k, v in kept.items() if isinstance(v, Tensor)}
    arrays = {k: v[keep.cpu().numpy()] for k, v in kept.items() if isinstance(v, np.ndarray)}
    return replace(parts, **tensors, **arrays)


def _state(problems: _Problems, at: Tensor, logits: Tensor, probabilities: Tensor) -> _State:
    error = probabilities.sub_(problems.target).sub_(logits, alpha=problems.curvature)
    return _State(at, logits, torch.baddbmm(at, problems.rows.mT, error))


def _largest(problems: _Problems, state: _State) -> Float[Tensor, " problem"]:
    """The gradient's largest entry."""
    weights = problems.back @ state.gradient[:, :-1]
    if weights.shape[1] != problems.x.shape[2]:
        weights = problems.x.mT @ weights
    intercept = state.gradient[:, -1].abs().amax(1) * problems.intercept
    return torch.maximum(weights.abs().amax((1, 2)), intercept)


def _softmax(problems: _Problems, logits: Tensor) -> Tensor:
    """Probabilities; the negligible ones are 0."""
    if problems.some_absent:
        logits = logits + problems.absent
    shifted = torch.sub(logits, logits.amax(-1, keepdim=True)).clamp_min_(NEGLIGIBLE)
    return torch.threshold_(torch.softmax(shifted, -1), math.exp(NEGLIGIBLE) * 1.01, 0.0)


def _dot(a: Tensor, b: Tensor) -> Float[Tensor, "problem 1 1"]:
    pairs = zip(a.flatten(1), b.flatten(1), strict=True)
    return torch.stack([torch.dot(x, y) for x, y in pairs])[:, None, None]  # a batched one writes the products down


def _no_history(at: Tensor) -> _History:
    n, flat = len(at), at[0].numel()
    square = np.zeros((n, HISTORY, HISTORY))
    return _History(at.new_zeros(n, 2 * HISTORY, flat), square, square.copy(), np.zeros((n, 2 * HISTORY)))


def _remember(history: _History, number: int, step: Tensor, before: Tensor, after: Tensor) -> _History:
    """With one more step, in the place of the oldest; the old history is written over."""
    slot, change = number % HISTORY, HISTORY + number % HISTORY
    history.arrays[:, slot] = step.flatten(1)
    torch.sub(after.flatten(1), before.flatten(1), out=history.arrays[:, change])
    met = _meet(history.arrays, after)
    moved = met - history.met
    for k in (slot, change):
        moved[:, k] = met[:, k] - _dot(history.arrays[:, k], before)[:, 0, 0].double().cpu().numpy()
    history.step_change[:, :, slot] = moved[:, :HISTORY]
    history.change_change[:, :, slot] = history.change_change[:, slot] = moved[:, HISTORY:]
    return replace(history, met=met)


def _meet(arrays: Tensor, one: Tensor) -> Float[np.ndarray, "problem pairs2"]:
    """Inner products."""
    found = torch.stack([torch.mv(rows, x) for rows, x in zip(arrays, one.flatten(1), strict=True)])
    return found.double().cpu().numpy()


def _direction(gradient: Tensor, history: _History, number: int) -> Float[Tensor, "problem coordinate entity"]:
    """Minus the inverse Hessian's approximation times the gradient: L-BFGS's two loops, in the inner products.

    Of `step_change` the first loop reads steps older than the change, the second one newer: both were met when the
    change was made; other entries may be of steps that are no longer kept.
    """
    n = len(gradient)
    newest = [k % HISTORY for k in range(number - 1, max(number - 1 - HISTORY, -1), -1)]
    if not newest:
        return -gradient
    of, changes_of = history.step_change, history.change_change
    by_step, by_change = history.met[:, :HISTORY], history.met[:, HISTORY:]
    weight, steps = np.zeros((n, HISTORY)), np.zeros((n, HISTORY))
    for i in newest:
        weight[:, i] = _over(by_step[:, i] - (weight * of[:, i]).sum(1), of[:, i, i], 0.0)
    last = newest[0]
    scale = _over(of[:, last, last].clip(0), changes_of[:, last, last], 1.0)
    scale[scale == 0] = 1
    changes = -scale[:, None] * weight
    for i in reversed(newest):
        met = scale * by_change[:, i] + (changes * changes_of[:, i]).sum(1) + (steps * of[:, :, i]).sum(1)
        steps[:, i] = weight[:, i] - _over(met, of[:, i, i], 0.0)
    mix, found = torch.from_numpy(np.concatenate([steps, changes], 1)).to(gradient), torch.empty_like(gradient)
    for p, (row, factor) in enumerate(zip(gradient.flatten(1), scale.tolist(), strict=True)):
        torch.addmv(row, history.arrays[p].T, mix[p], beta=-factor, alpha=-1, out=found[p].view(-1))
    return found


def _over(a: np.ndarray, b: np.ndarray, otherwise: float) -> Float[np.ndarray, " problem"]:
    """a / b; where b is not positive, a step that was none, something else."""
    return np.divide(a, b, out=np.full(len(a), otherwise), where=b > TINY)


def _line_search(
    problems: _Problems, state: _State, direction: Tensor, along: Tensor
) -> tuple[Float[Tensor, "problem 1 1"], Float[Tensor, "problem row entity"]]:
    """Length of the step, and the probabilities there: Newton's method on the loss along the direction, kept between a
    length where the loss still falls and one where it rises.
    """
    c = problems.curvature
    fixed = _dot(state.at, direction) - _dot(torch.add(problems.target, state.logits, alpha=c), along)
    bend = _dot(direction, direction) - c * _dot(along, along)
    start = _dot(state.gradient, direction).abs()
    length = torch.ones_like(start)
    low, high = torch.zeros_like(start), torch.full_like(start, torch.inf)
    for _ in range(TRIALS):
        p = _softmax(problems, torch.addcmul(state.logits, length, along))
        weighted = p * along
        mean = weighted.sum(-1, keepdim=True)
        slope = mean.sum((1, 2), keepdim=True) + fixed + length * bend
        done = slope.abs() <= SLOPE * start
        if done.all():
            return length, p
        low, high = torch.where(slope < 0, length, low), torch.where(slope > 0, length, high)
        spread = _dot(weighted, along) - mean.square().sum((1, 2), keepdim=True)
        newton = length - slope / (spread + bend).clamp_min(TINY)
        newton = torch.minimum(newton, 10 * length)
        inside = (newton > low) & (newton < high)
        middle = torch.where(high.isinf(), 2 * length, (low + high) / 2)
        length = torch.where(done, length, torch.where(inside, newton, middle))
    return length, _softmax(problems, torch.addcmul(state.logits, length, along))
