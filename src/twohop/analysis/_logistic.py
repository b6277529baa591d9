"""Multinomial logistic regression of many problems at once, solved to convergence in torch.

One problem is scikit-learn's `LogisticRegression(C=1/l2)`: minimise over weight and intercept the sum of the rows'
log-losses plus l2/2 times the squared weights, the intercept free. Problems share their number of rows and features,
and differ in features (one layer each), labels (real or shuffled) and l2.

1. **Row space** (`factorise`): the optimum's weights lie in the span of the rows (Kimeldorf & Wahba 1971), so features
   are rotated onto the right singular vectors V of the standardised features, at most min(rows, d_model) of them; the
   penalty does not see a rotation. From the smaller Gram matrix, in float64.
2. **Preconditioning**: with equal probabilities of the k classes the Hessian is diagonal in that basis, s^2/k + l2 for
   the singular value s; near an optimum that separates the classes the first term is much smaller. L-BFGS (Nocedal &
   Wright 2006, algorithm 7.4) starts from the inverse of CURVATURE s^2/k + l2, rescaled at every step.
3. **Line search**: logits are linear along a direction, so a trial step costs a softmax and no matrix product; Newton's
   method within a bracket, as the loss is convex along a line.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import one_hot

TOLERANCE = 1e-5
"""Largest gradient entry of the mean log-loss (nats) at which a problem is solved.

scikit-learn's own default, 1e-4, lets held-out accuracies move by a picture.
"""
MAX_ITERATIONS = 1000
"""Bounds the time of a problem that hardly anything bounds (l2 near zero); it then says that it did not converge."""
HISTORY = 10
"""Pairs of steps and gradient changes that L-BFGS remembers."""
CURVATURE = 0.02
"""Curvature of the loss at an optimum, relative to equal probabilities; measured on five layers' residual stream,
where 0.1 to 0.01 needed the fewest steps for l2 of 10 and 0.01 to 0.001 for l2 of 0.1.
"""
RANK_TOLERANCE = 1e-12
"""Squared singular values below this share of the largest are rounding."""
SLOPE = 0.5
"""A step is long enough when it has halved the slope along its direction."""
NEGLIGIBLE = -57.0
"""A probability below the likeliest one's by e to this counts as 0: far below what a gradient in float32 can show.

Left alone, such numbers become subnormal where a fit is sure of its rows, and a matrix product of them takes 70 times
as long.
"""
TRIALS = 12
"""Trial steps of one line search; one or two are usual."""


@dataclass(frozen=True)
class Factors:
    """Standardised features of one layer each, rotated: `(features - mean) / scale = rotated @ basis.T`."""

    mean: Float[Tensor, "layer 1 d_model"]
    scale: Float[Tensor, "layer 1 d_model"]
    rotated: Float[Tensor, "layer row rank"]
    basis: Float[Tensor, "layer d_model rank"]
    squares: Float[Tensor, "layer rank"]
    """Squared singular values."""


@dataclass(frozen=True)
class Solution:
    """Read-outs on raw features, `features @ weight.T + bias`: standardisation and rotation are folded in."""

    weight: Float[Tensor, "problem entity d_model"]
    bias: Float[Tensor, "problem entity"]
    converged: Bool[Tensor, " problem"]


@dataclass(frozen=True)
class _Problems:
    """Problems that are not solved yet; the last coordinate is the intercept."""

    index: Int[Tensor, " problem"]
    rotated: Float[Tensor, "problem row coordinate"]
    target: Float[Tensor, "problem row entity"]
    absent: Float[Tensor, "problem 1 entity"]
    """Minus infinity where no row shows the entity, else 0."""
    l2: Float[Tensor, "problem coordinate 1"]
    inverse: Float[Tensor, "problem coordinate 1"]


@dataclass(frozen=True)
class _State:
    """Where L-BFGS stands."""

    weight: Float[Tensor, "problem coordinate entity"]
    logits: Float[Tensor, "problem row entity"]
    gradient: Float[Tensor, "problem coordinate entity"]


@dataclass(frozen=True)
class _Pair:
    """A step, the change of the gradient over it, and their inner product."""

    step: Float[Tensor, "problem coordinate entity"]
    change: Float[Tensor, "problem coordinate entity"]
    product: Float[Tensor, "problem 1 1"]


Parts = TypeVar("Parts", _Problems, _State, _Pair)


def factorise(features: Float[Tensor, "layer row d_model"]) -> Factors:
    """Standardise each layer's features (a constant one stays 0) and rotate them onto their right singular vectors."""
    mean, spread = features.mean(1, keepdim=True), features.std(1, keepdim=True, correction=0)
    scale = torch.where(spread > 0, spread, torch.ones_like(spread))
    x = ((features - mean) / scale).double()
    wide = x.shape[1] < x.shape[2]
    squares, vectors = torch.linalg.eigh(x @ x.mT if wide else x.mT @ x)
    real = squares > RANK_TOLERANCE * squares.amax(1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    squares = torch.where(real, squares, torch.zeros_like(squares))
    inverse = torch.where(real, squares.clamp_min(torch.finfo(torch.float64).tiny).rsqrt(), 0.0)[:, None]
    basis = x.mT @ (vectors * inverse) if wide else vectors * real[:, None]
    kind = features.dtype
    return Factors(mean, scale, (x @ basis).to(kind), basis.to(kind), squares.to(kind))


def solve(
    factors: Factors,
    layers: Int[Tensor, " problem"],
    labels: Int[Tensor, "problem row"],
    l2: Float[Tensor, " problem"],
    n_entities: int,
) -> Solution:
    """Solve every problem; the answer is the same whatever the order, and deterministic for equal calls.

    Args:
        factors: features of the training rows.
        layers: per problem, the layer of `factors` that it reads.
        labels: per problem, the entity of each row.
        l2: per problem, the strength of the penalty.
        n_entities: rows of a weight; an entity without a training row gets a bias that never wins.
    """
    problems = _pose(factors, layers, labels, l2, n_entities)
    weight, converged = _descend(problems)
    raw = (factors.basis[layers] @ weight[:, :-1]).mT.contiguous() / factors.scale[layers]
    bias = weight[:, -1] - (raw @ factors.mean[layers].mT)[..., 0]
    bias = bias.masked_fill(problems.absent[:, 0] < 0, torch.finfo(bias.dtype).min)
    return Solution(raw, bias, converged)


def bytes_of_problem(n_rows: int, d_model: int, n_entities: int) -> int:
    """Bytes in float32 that `factorise` and `solve` hold for one problem, to choose how many to solve together."""
    rank = min(n_rows, d_model) + 1
    return 4 * (
        (2 * HISTORY + 8) * rank * n_entities + 8 * n_rows * n_entities + 3 * n_rows * rank + 4 * rank * d_model
    )


def _pose(factors: Factors, layers: Tensor, labels: Tensor, l2: Tensor, n_entities: int) -> _Problems:
    kind, n_rows = factors.rotated.dtype, labels.shape[1]
    ones = torch.ones(len(layers), n_rows, 1, dtype=kind, device=labels.device)
    target = one_hot(labels, n_entities).to(kind)
    shown = target.sum(1, keepdim=True)
    absent = torch.zeros_like(shown).masked_fill(shown == 0, -torch.inf)
    penalty = l2.to(kind)[:, None].expand(-1, factors.squares.shape[1])
    curvature = factors.squares[layers] * CURVATURE / n_entities + penalty
    intercept = torch.full_like(curvature[:, :1], n_rows * CURVATURE / n_entities)
    return _Problems(
        torch.arange(len(layers), device=labels.device),
        torch.cat([factors.rotated[layers], ones], 2),
        target,
        absent,
        torch.cat([penalty, torch.zeros_like(intercept)], 1)[..., None],
        torch.cat([curvature, intercept], 1)[..., None].reciprocal(),
    )


def _descend(problems: _Problems) -> tuple[Float[Tensor, "problem coordinate entity"], Bool[Tensor, " problem"]]:
    """L-BFGS; solved problems are put aside, and left out of the computation once they are half of the rest."""
    n, n_rows, rank = problems.rotated.shape
    zero = problems.rotated.new_zeros(n, rank, problems.target.shape[2])
    state = _at(problems, zero, problems.rotated @ zero)
    pairs: list[_Pair] = []
    found, converged = zero.clone(), torch.zeros(n, dtype=torch.bool, device=zero.device)
    for _ in range(MAX_ITERATIONS):
        solved = state.gradient.abs().amax((1, 2)) < TOLERANCE * n_rows
        fresh = problems.index[solved & ~converged[problems.index]]
        found[fresh], converged[fresh] = state.weight[solved & ~converged[problems.index]], True
        open_ = ~converged[problems.index]
        if not open_.any():
            return found, converged
        if int(open_.sum()) * 2 <= len(open_):
            problems, state, pairs = _take(problems, open_), _take(state, open_), [_take(p, open_) for p in pairs]
        direction = -_approximate(problems, state.gradient, pairs)
        along = problems.rotated @ direction
        length = _line_search(problems, state, direction, along)
        step = length * direction
        after = _at(problems, state.weight + step, state.logits + length * along)
        change = after.gradient - state.gradient
        pairs = [*pairs[-HISTORY + 1 :], _Pair(step, change, _dot(step, change).clamp_min(1e-30))]
        state = after
    unsolved = ~converged[problems.index]
    found[problems.index[unsolved]] = state.weight[unsolved]
    return found, converged


def _take(parts: Parts, keep: Tensor) -> Parts:
    return replace(parts, **{f.name: getattr(parts, f.name)[keep] for f in fields(parts)})


def _at(problems: _Problems, weight: Tensor, logits: Tensor) -> _State:
    error = _softmax(problems, logits) - problems.target
    return _State(weight, logits, problems.rotated.mT @ error + problems.l2 * weight)


def _softmax(problems: _Problems, logits: Tensor) -> Tensor:
    """Probabilities; the negligible ones are 0."""
    logits = logits + problems.absent
    logits = (logits - logits.amax(-1, keepdim=True)).clamp_min_(NEGLIGIBLE)
    return torch.threshold(torch.softmax(logits, -1), math.exp(NEGLIGIBLE) * 1.01, 0.0)


def _dot(a: Tensor, b: Tensor) -> Float[Tensor, "problem 1 1"]:
    pairs = zip(a.flatten(1), b.flatten(1), strict=True)
    return torch.stack([torch.dot(x, y) for x, y in pairs])[:, None, None]  # a batched one writes the products down


def _approximate(problems: _Problems, gradient: Tensor, pairs: Sequence[_Pair]) -> Tensor:
    """The inverse Hessian's approximation times the gradient: L-BFGS's two loops."""
    result, weights = gradient.clone(), list[Tensor]()
    for pair in reversed(pairs):
        weights.append(_dot(pair.step, result) / pair.product)
        result.addcmul_(weights[-1], pair.change, value=-1)
    result *= problems.inverse
    if pairs:
        last = pairs[-1]
        result *= last.product / _dot(last.change, problems.inverse * last.change).clamp_min(1e-30)
    for pair, weight in zip(pairs, reversed(weights), strict=True):
        result.addcmul_(weight - _dot(pair.change, result) / pair.product, pair.step)
    return result


def _line_search(problems: _Problems, state: _State, direction: Tensor, along: Tensor) -> Float[Tensor, "problem 1 1"]:
    """Length of the step: Newton's method on the loss along the direction, kept between a length where the loss still
    falls and one where it rises.
    """
    fixed = _dot(problems.l2 * state.weight, direction) - _dot(problems.target, along)
    bend = _dot(problems.l2 * direction, direction)
    start = _dot(state.gradient, direction).abs()
    length = torch.ones_like(start)
    low, high = torch.zeros_like(start), torch.full_like(start, torch.inf)
    for _ in range(TRIALS):
        p = _softmax(problems, state.logits + length * along)
        mean = (p * along).sum(-1, keepdim=True)
        slope = mean.sum((1, 2), keepdim=True) + fixed + length * bend
        done = slope.abs() <= SLOPE * start
        if done.all():
            return length
        low, high = torch.where(slope < 0, length, low), torch.where(slope > 0, length, high)
        newton = length - slope / (_dot(p, (along - mean).square()) + bend).clamp_min(1e-30)
        newton = torch.minimum(newton, 10 * length)
        inside = (newton > low) & (newton < high)
        middle = torch.where(high.isinf(), 2 * length, (low + high) / 2)
        length = torch.where(done, length, torch.where(inside, newton, middle))
    return length
