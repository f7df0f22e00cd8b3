"""What errors are measured against: directions in float64."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def exact_directions(matrix: Tensor, powers: Iterable[float]) -> dict[float, Tensor]:
    """``U s^power V'`` of a matrix ``U s V'`` by power, in float64, through its shorter side.

    An SVD of thousands of rows takes a GPU minutes, the eigenvectors of ``X X'`` seconds. Squares
    hold singular values ``s`` to ``eps (s_max / s)^2`` of themselves, so below 1e-8 ``s_max`` not
    at all. Of the gaussian matrices here one in thousands may fall below 1e-6, which is far from
    being seen in errors that are printed to 1e-4.
    """
    x = matrix.double()
    if x.shape[-2] > x.shape[-1]:
        return {power: each.mT for power, each in exact_directions(x.mT, powers).items()}
    squares, vectors = torch.linalg.eigh(x @ x.mT)
    squares = squares.clamp_min(float(squares[-1]) * torch.finfo(torch.float64).eps)
    rows = vectors.mT @ x
    return {power: (vectors * squares.pow((power - 1) / 2)) @ rows for power in powers}


def distance(found: Tensor, exact: Tensor) -> float:
    """Relative Frobenius distance of two directions, sizes matched."""
    found = found.double()
    return float((found / found.norm() - exact / exact.norm()).norm())
