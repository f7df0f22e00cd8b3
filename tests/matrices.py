"""Matrices with a known singular value decomposition, in float64."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

F64 = torch.float64


class Decomposed(NamedTuple):
    """``u diag(s) v'``, of shape [rows, cols], with s descending."""

    u: Tensor
    s: Tensor
    v: Tensor

    @property
    def value(self) -> Tensor:
        return (self.u * self.s) @ self.v.mT

    def direction(self, power: float) -> Tensor:
        """``u diag(s^power) v'``; zero singular values stay zero; the leading pair at inf."""
        if math.isinf(power):
            return self.u[:, :1] @ self.v[:, :1].mT
        positive = self.s > 0
        raised = torch.where(positive, torch.where(positive, self.s, 1.0) ** power, 0.0)
        return (self.u * raised) @ self.v.mT

    def norm(self, p: float) -> float:
        """The Schatten-p norm."""
        return float(torch.linalg.vector_norm(self.s, p))

    def scaled(self, factor: float) -> Decomposed:
        return Decomposed(self.u, self.s * factor, self.v)


def with_spectrum(s: Tensor, rows: int, cols: int, seed: int = 0) -> Decomposed:
    """Random singular vectors around given singular values."""
    generator = torch.Generator().manual_seed(seed)
    u = torch.linalg.qr(torch.randn(rows, len(s), generator=generator, dtype=F64))[0]
    v = torch.linalg.qr(torch.randn(cols, len(s), generator=generator, dtype=F64))[0]
    return Decomposed(u, s.to(F64).sort(descending=True)[0], v)


def log_uniform(rows: int, cols: int, smallest: float, seed: int = 0) -> Decomposed:
    """Singular values log-uniform down to ``smallest`` times the Schatten-4 norm."""
    count = min(rows, cols)
    decades = -math.log10(smallest)
    for _ in range(60):  # fixed point: the norm depends on the decades
        s = torch.logspace(0, -decades, count, dtype=F64)
        decades += math.log10(float(s[-1]) / float(s.pow(4).sum() ** 0.25) / smallest)
    return with_spectrum(s, rows, cols, seed)


def gaussian(rows: int, cols: int, seed: int = 0) -> Decomposed:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, cols, generator=generator, dtype=F64)
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    return Decomposed(u, s, vh.mT)


def harmonic(rows: int, cols: int, seed: int = 0) -> Decomposed:
    """Singular values 1/i."""
    return with_spectrum(1 / torch.arange(1, min(rows, cols) + 1, dtype=F64), rows, cols, seed)


def rank_one(rows: int, cols: int, seed: int = 0) -> Decomposed:
    return with_spectrum(torch.ones(1), rows, cols, seed)


def half_rank(rows: int, cols: int, seed: int = 0) -> Decomposed:
    """Half of the singular values zero, the others 1, 1/2, 1/3, ..."""
    count = max(1, min(rows, cols) // 2)
    return with_spectrum(1 / torch.arange(1, count + 1, dtype=F64), rows, cols, seed)


def repeated(rows: int, cols: int, seed: int = 0) -> Decomposed:
    """All singular values equal."""
    return with_spectrum(torch.full((min(rows, cols),), 3.0), rows, cols, seed)
