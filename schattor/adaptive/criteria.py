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

__all__ = ["CRITERIA", "Criterion", "Forms", "curve", "iterates", "powers_of_grid"]

Criterion = Literal["tightness", "momentum_aligned", "hoelder"]
CRITERIA = get_args(Criterion)

DEPTH = 6
"""Steps of the chain that is looked at: what is below 0.3 % of the largest value has little say."""

_GRID = 65


class Forms(NamedTuple):
    """What a block's iterates ``X_k`` give, in float64; D_k is what a step would make of X_k."""

    falls: Tensor  # [K+1] <G, D_k>
    norms: Tensor  # [K+1] <X_0, X_k>: mixed, |X_0|_q^q
    curves: Tensor  # [K+1, K+1] <D_k Axx, D_l>
    inputs: Tensor | None  # eigenvalues of Axx, for the criteria that need them


def iterates(x: Tensor) -> Tensor:
    """``X_0 .. X_K`` ``[K+1, rows, cols]`` of one wide matrix by the shared chain."""
    scale = (x @ x.mT).norm().sqrt()
    found = [x / torch.where(scale > 0, scale, torch.ones_like(scale))]
    for a, b, c in chains.steps("schattor", DEPTH):
        gram = found[-1] @ found[-1].mT
        polynomial = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        found.append(torch.addmm(found[-1], polynomial, found[-1], beta=a))
    return torch.stack(found)


@lru_cache(maxsize=16)
def powers_of_grid(low: float, high: float) -> tuple[float, ...]:
    """Powers that are compared, evenly spaced from ``low`` to ``high``."""
    return tuple(low + (high - low) * i / (_GRID - 1) for i in range(_GRID))


@lru_cache(maxsize=32)
def _table(powers: tuple[float, ...], device: torch.device) -> Tensor:
    rows = [chains.weights(power, DEPTH) for power in powers]
    return torch.tensor(rows, dtype=torch.float64, device=device)


def curve(criterion: Criterion, forms: Forms, powers: tuple[float, ...]) -> Tensor:
    """The logarithm of the criterion at every power ``[len(powers)]``, without a read-back.

    -inf where the direction does not descend. Source: `schattor.theory.criteria`.
    """
    table = _table(powers, forms.falls.device)
    falls = (table @ (forms.norms if criterion == "hoelder" else forms.falls)).clamp_min(0)
    if criterion == "tightness":
        bound = ((table @ forms.curves) * table).sum(1)
    else:
        assert forms.inputs is not None
        bound = _hoelder_bound(table @ forms.norms, forms.inputs, powers)
    gains = 2 * falls.log() - bound.clamp_min(1e-300).log()
    return torch.where((falls > 0) & (bound > 0), gains, -torch.inf)


def _hoelder_bound(totals: Tensor, inputs: Tensor, powers: tuple[float, ...]) -> Tensor:
    """``|A|_k^2 |O|_p^2`` of every power; ``totals`` are ``|M|_q^q = |O|_p^p``."""
    power = torch.tensor(powers, dtype=torch.float64, device=totals.device)
    sizes = totals.clamp_min(1e-300) ** (2 * power / (1 + power))
    largest = inputs.max().clamp_min(1e-300)
    half = (1 + power) / (1 - power).clamp_min(1e-9)
    ratio = (inputs / largest).clamp_min(1e-300)
    sums = torch.exp(half[:, None] * ratio.log()[None]).sum(1)
    return sizes * largest * torch.exp(sums.log() / half)
