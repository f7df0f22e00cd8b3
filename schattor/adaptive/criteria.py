"""Criteria of p without singular values: from a chain's iterates, for all powers at once.

``O(power) = sum_k w_k(power) X_k`` up to a factor, so that ``<G, O>`` is linear and ``<O Axx, O>``
quadratic in the weights: K + 1 and (K + 1)^2 numbers a block say what every power would gain.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from schattor.theory import chains

__all__ = [
    "CRITERIA",
    "DEPTH",
    "Criterion",
    "Factors",
    "Forms",
    "curve",
    "factors",
    "iterates",
    "powers_of_grid",
]

Criterion = Literal["tightness", "momentum_aligned", "hoelder"]
CRITERIA = get_args(Criterion)

DEPTH = 6
"""Steps of the chain that is looked at: what is below 0.3 % of the largest value has little say."""

_GRID = 65


class Forms(NamedTuple):
    """What iterates ``X_k`` of some blocks give, in float64; D_k is what a step makes of X_k."""

    falls: Tensor  # [batch, K+1] <G, D_k>
    curves: Tensor  # [batch, K+1, K+1] <D_k Axx, D_l>
    norms: Tensor | None  # [batch, K+1] <X_0, X_k>: mixed, |X_0|_q^q
    inputs: Tensor | None  # [batch, n] eigenvalues of Axx; both for the criteria that need them


def iterates(x: Tensor) -> Tensor:
    """``X_0 .. X_K`` ``[batch, K+1, rows, cols]`` of wide matrices by the shared chain."""
    found = x.new_empty(x.shape[0], DEPTH + 1, *x.shape[1:])
    found[:, 0], gram = _scaled(x)
    for k, coefficients in enumerate(chains.steps("schattor", DEPTH), 1):
        torch.bmm(_step(gram, *coefficients), found[:, k - 1], out=found[:, k])
        if k < DEPTH:
            torch.bmm(found[:, k], found[:, k].mT, out=gram)
    return found


class Factors(NamedTuple):
    """The chain of some wide matrices: ``X_k = P_k X_0``, polynomials of ``A = X_0 X_0'``."""

    first: Tensor  # [batch, rows, cols] X_0
    gram: Tensor  # [batch, rows, rows] A
    found: Tensor  # [batch, K+1, rows, rows] P_k


def factors(x: Tensor) -> Factors:
    """What the iterates of `iterates` are made of, by matrices of the shorter side.

    The Gram matrix follows the chain by itself, ``A <- P A P``, by which its rounding grows tenfold
    a step: halfway it is formed anew.
    """
    first, start = _scaled(x)
    gram = start
    found = [torch.eye(x.shape[1], dtype=x.dtype, device=x.device).expand_as(gram)]
    for k, coefficients in enumerate(chains.steps("schattor", DEPTH), 1):
        step = _step(gram, *coefficients)
        found.append(step if k == 1 else torch.bmm(step, found[-1]))
        if k == DEPTH // 2:
            reached = torch.bmm(found[-1], first)
            gram = torch.bmm(reached, reached.mT)
        elif k < DEPTH:
            gram = torch.bmm(torch.bmm(step, gram), step)
    return Factors(first, start, torch.stack(found, 1))


def _step(gram: Tensor, a: float, b: float, c: float) -> Tensor:
    """``a I + b A + c A^2``."""
    step = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    step.diagonal(dim1=1, dim2=2).add_(a)
    return step


def _scaled(x: Tensor) -> tuple[Tensor, Tensor]:
    """Matrices over their Schatten-4 norm, and their Gram matrices; zeros stay."""
    gram = torch.bmm(x, x.mT)
    square = torch.linalg.vector_norm(gram, dim=(1, 2), keepdim=True)
    square = torch.where(square > 0, square, torch.ones_like(square))
    return x / square.sqrt(), gram / square


@lru_cache(maxsize=16)
def powers_of_grid(low: float, high: float) -> tuple[float, ...]:
    """Powers that are compared, evenly spaced from ``low`` to ``high``."""
    return tuple(low + (high - low) * i / (_GRID - 1) for i in range(_GRID))


@lru_cache(maxsize=32)
def _table(powers: tuple[float, ...], device: torch.device) -> Tensor:
    rows = [chains.weights(power, DEPTH) for power in powers]
    return torch.tensor(rows, dtype=torch.float64, device=device)


def curve(criterion: Criterion, forms: Forms, powers: tuple[float, ...]) -> Tensor:
    """The logarithm of the criterion at every power ``[batch, len(powers)]``, without a read-back.

    -inf where the direction does not descend. Source: `schattor.theory.criteria`.
    """
    table = _table(powers, forms.falls.device)
    falls = forms.norms if criterion == "hoelder" else forms.falls
    assert falls is not None
    falls = (falls @ table.mT).clamp_min(0)
    if criterion == "tightness":
        bound = ((table @ forms.curves) * table).sum(2)
    else:
        assert forms.inputs is not None and forms.norms is not None
        bound = _hoelder_bound(forms.norms @ table.mT, forms.inputs, powers)
    gains = 2 * falls.log() - bound.clamp_min(1e-300).log()
    return torch.where((falls > 0) & (bound > 0), gains, -torch.inf)


def _hoelder_bound(totals: Tensor, inputs: Tensor, powers: tuple[float, ...]) -> Tensor:
    """``|A|_k^2 |O|_p^2`` of every power; ``totals`` are ``|M|_q^q = |O|_p^p``."""
    power = torch.tensor(powers, dtype=torch.float64, device=totals.device)
    sizes = totals.clamp_min(1e-300) ** (2 * power / (1 + power))
    largest = inputs.amax(1, keepdim=True).clamp_min(1e-300)
    half = (1 + power) / (1 - power).clamp_min(1e-9)
    ratio = (inputs / largest).clamp_min(1e-300)
    sums = torch.exp(half[:, None] * ratio.log()[:, None]).sum(2)
    return sizes * largest * torch.exp(sums.log() / half)
