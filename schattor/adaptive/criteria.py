"""Criteria of p without singular values: from a chain's iterates, for all powers at once.

``O(power) = sum_k w_k(power) X_k`` up to a factor, so that ``<G, O>`` is linear and ``<O Axx, O>``
quadratic in the weights: K + 1 and (K + 1)^2 numbers a block say what every power would gain.
Where ``Axx`` stands beside a Gram matrix, ``<O'O, Axx>``, fewer do: traces of what the chain forms
anyway (`schattor.adaptive.squares`).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from schattor.adaptive.chain import DEPTH
from schattor.adaptive.squares import squares
from schattor.theory import chains

__all__ = ["CRITERIA", "Criterion", "Forms", "curve", "powers_of_grid"]

Criterion = Literal["tightness", "momentum_aligned", "hoelder"]
CRITERIA = get_args(Criterion)

_GRID = 65


class Forms(NamedTuple):
    """What iterates ``X_k`` of some blocks give, in float64; D_k is what a step makes of X_k."""

    falls: Tensor  # [batch, K+1] <G, D_k>
    curves: Tensor  # [batch, (K+1)^2] <D_k Axx, D_l>, or [batch, 2 K + 1] of `chain.traces`
    norms: Tensor | None  # [batch, K+1] <X_0, X_k>: mixed, |X_0|_q^q
    inputs: Tensor | None  # [batch, n] eigenvalues of Axx; both for the criteria that need them


@lru_cache(maxsize=16)
def powers_of_grid(low: float, high: float) -> tuple[float, ...]:
    """Powers that are compared, evenly spaced from ``low`` to ``high``."""
    return tuple(low + (high - low) * i / (_GRID - 1) for i in range(_GRID))


@lru_cache(maxsize=32)
def _table(powers: tuple[float, ...], device: torch.device) -> Tensor:
    rows = [chains.weights(power, DEPTH) for power in powers]
    return torch.tensor(rows, dtype=torch.float64, device=device)


@lru_cache(maxsize=32)
def _curve_table(powers: tuple[float, ...], count: int, device: torch.device) -> Tensor:
    """Weights ``[len(powers), count]`` with which so many `Forms.curves` make ``<O Axx, O>``."""
    if count < (DEPTH + 1) ** 2:
        return squares(powers).to(device)
    table = _table(powers, device)
    return (table[:, :, None] * table[:, None]).flatten(1)


def curve(criterion: Criterion, forms: Forms, powers: tuple[float, ...]) -> Tensor:
    """The logarithm of the criterion at every power ``[batch, len(powers)]``, without a read-back.

    -inf where the direction does not descend. Source: `schattor.theory.criteria`.
    """
    table = _table(powers, forms.falls.device)
    falls = forms.norms if criterion == "hoelder" else forms.falls
    assert falls is not None
    falls = (falls @ table.mT).clamp_min(0)
    if criterion == "tightness":
        bound = forms.curves @ _curve_table(powers, forms.curves.shape[1], table.device).mT
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
