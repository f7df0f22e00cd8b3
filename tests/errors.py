"""The three tolerances of the tests: ratio, residual, band. Truth is float64."""

from __future__ import annotations

import torch
from torch import Tensor

from schattor.theory import chains


def relative(result: Tensor, truth: Tensor) -> float:
    """Largest relative Frobenius error of a batch ``[..., m, n]``; absolute where truth is zero."""
    difference = (result.double() - truth.double()).flatten(-2).norm(dim=-1)
    size = truth.double().flatten(-2).norm(dim=-1)
    return float((difference / torch.where(size > 0, size, 1.0)).max())


def cosine(result: Tensor, truth: Tensor) -> float:
    """Smallest cosine between matrices of a batch ``[..., m, n]``."""
    x, y = result.double().flatten(-2), truth.double().flatten(-2)
    return float(torch.nn.functional.cosine_similarity(x, y, dim=-1, eps=1e-300).min())


def within_ratio(result: Tensor, twin: Tensor, truth: Tensor, ratio: float = 2.0) -> bool:
    """Whether the error is at most ``ratio`` that of ``twin``: the same formula and precision.

    A quarter of the result's rounding is granted to both.
    """
    floor = torch.finfo(result.dtype).eps / 4
    return relative(result, truth) <= ratio * (relative(twin, truth) + floor)


def orthogonality(q: Tensor) -> float:
    """Residual ``|q'q - I|`` of columns ``[..., m, k]``, in units of rounding times m: below 50."""
    x = q.double()
    gram = x.mT @ x - torch.eye(x.shape[-1], dtype=torch.float64)
    return float(gram.flatten(-2).norm(dim=-1).max()) / (torch.finfo(q.dtype).eps * x.shape[-2])


def band(power: float, depth: int, dtype: torch.dtype) -> float:
    """Error that the chain's table promises for exact arithmetic, and rounding of its products.

    Holds where all singular values, over the Schatten-4 norm, are at least `chains.smallest(depth)`
    and well above the rounding of the input (numerics: 4e-3 in bfloat16).
    """
    rounding = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 4e-3, torch.bfloat16: 2e-2}
    return chains.band(power, depth) + rounding[dtype]
