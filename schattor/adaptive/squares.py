"""Squares of directions as sums of what the chain forms on its way, found once for some powers.

The eigenvalues of ``O(power)' O(power)`` are ``f(s)^2``, ``f = sum_k w_k(power) s_k`` of what the
chain makes of a singular value s. They are nearly a weighted sum of the K + 1 values ``s_k^2`` of
its Gram matrices ``A_k`` and the K values ``b s_k^2 + c s_k^4`` of its steps ``b A_k + c A_k^2``,
so that ``<O'O, E>`` of any E is that sum of as many traces.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from schattor.adaptive.chain import DEPTH
from schattor.theory import chains

__all__ = ["squares", "values"]

_POINTS = 400
_ROUNDS = 4


@lru_cache(maxsize=32)
def squares(powers: tuple[float, ...]) -> Tensor:
    """Weights ``[len(powers), 2 K + 1]`` of the sums whose largest relative error is least.

    Where E has no negative eigenvalue, that of ``<O'O, E>`` is no larger. Least squares, weighted
    anew by what each round leaves (Lawson). Derived.
    """
    here: dict[str, Any] = {
        "dtype": torch.float64,
        "device": "cpu",
    }  # whatever the default device is
    iterated, parts = values(torch.logspace(-4, 0, _POINTS, **here))
    table = torch.tensor([chains.weights(each, DEPTH) for each in powers], **here)
    relative = parts.mT / (table @ iterated).square()[:, :, None]  # [powers, points, 2 K + 1]
    weights = torch.full((len(powers), _POINTS, 1), 1 / _POINTS, **here)
    for _ in range(_ROUNDS):
        roots = weights.sqrt()
        found: Tensor = torch.linalg.lstsq(relative * roots, roots).solution
        errors = (relative @ found - 1).abs().clamp_min(1e-15)
        weights = weights * errors / (weights * errors).sum(1, keepdim=True)
    return found[:, :, 0]


def values(s: Tensor) -> tuple[Tensor, Tensor]:
    """What the chain makes of singular values s ``[points]``, in two parts.

    Those of iterates ``[K+1, points]``, and of Gram matrices and steps ``[2 K + 1, points]``, in
    the order of `schattor.adaptive.chain.traces`.
    """
    iterated, steps = [s], []
    for a, b, c in chains.steps("schattor", DEPTH):
        steps.append(b * s**2 + c * s**4)
        s = s * (a + steps[-1])
        iterated.append(s)
    found = torch.stack(iterated)
    return found, torch.cat([found.square(), torch.stack(steps)])
