"""Kronecker factors of a bucket's matrices, one a side: what they average, when they are refreshed.

The sides of a wide batch are its rows, the shorter, and its columns. A side longer than
``max_precond_dim`` has no factor: it stays as it is, as if its factor were the identity.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from schattor import ops
from schattor.optim._settings import Group
from schattor.portable import share_of
from schattor.theory.preconditioners import Preconditioner

__all__ = ["Factors", "Index", "Raw", "Side", "eigenpairs", "factor_beta", "index_of"]

Index = slice | Tensor


class Raw(NamedTuple):
    """Gradients of a chunk as they came: ``norms * wide``, each matrix of ``wide`` of norm 1."""

    wide: Tensor  # [batch, rows, cols]
    norms: Tensor  # [batch], zero where not finite
    finite: Tensor  # [batch]


class Side(NamedTuple):
    """One side of all matrices of a bucket."""

    right: bool  # the columns
    factor: Tensor  # [batch, d, d]
    frame: Tensor  # [batch, d, d]: eigenvectors, or an inverse root, of the factor
    scale: Tensor | None = None  # [batch, d]: inverse roots of tracked eigenvalues


class Factors:
    """Both sides of a bucket, at least one of them present."""

    def __init__(
        self, spec: Preconditioner, rows: Side | None, cols: Side | None, ages: list[int]
    ) -> None:
        """``ages`` are the steps that each block has taken."""
        self.spec, self.rows, self.cols = spec, rows, cols
        self.present = [side for side in (rows, cols) if side is not None]
        self.failed = 0
        self._ages = ages

    @property
    def dtype(self) -> torch.dtype:
        """Of the factors."""
        return self.present[0].factor.dtype

    def outward(self, block: int, x: Tensor) -> Tensor:
        """Matrices ``[..., rows, cols]`` of one block: ``Q_L X Q_R'``, or ``S_L X S_R``."""
        if self.rows is not None:
            x = self.rows.frame[block] @ x
        return x if self.cols is None else x @ self.cols.frame[block].mT

    def advance(self) -> None:
        """One step was taken."""
        self._ages = [age + 1 for age in self._ages]

    def rates(self, raw: Raw, group: Group) -> tuple[Tensor, Tensor]:
        """decay and share of ``F <- decay F + share X X'`` with matrices X of norm 1."""
        beta = factor_beta(group)
        decay = torch.where(raw.finite, torch.full_like(raw.norms, beta), 1.0)
        return decay, raw.norms.square() * share_of(beta)

    def average(self, chunk: slice, raw: Raw, group: Group) -> None:
        """Take gradients into the factors: ``G G'`` of rows, ``G' G`` of columns."""
        rates = self.rates(raw, group)
        for side in self.present:
            ops.average_grams(side.factor[chunk], raw.wide, side.right, *rates)

    def due(self, chunk: slice, group: Group) -> list[int]:
        """Blocks of a chunk that are refreshed in this call."""
        frequency = group["precondition_frequency"] or self.spec.frequency
        start, count = group["start_preconditioning_step"], len(self._ages)
        found = []
        for i in range(chunk.start, chunk.stop):
            offset = i * frequency // count if group["stagger"] else 0
            if self.spec.is_due(self._ages[i], frequency, start, offset):
                found.append(i)
        return found

    def is_first(self, block: int) -> bool:
        """Whether the block has taken no step yet."""
        return self._ages[block] == 0

    def started(self, chunk: slice, group: Group) -> list[bool]:
        """Which blocks have had their first refresh, where factors learn first."""
        first = group["start_preconditioning_step"]
        first = first or group["precondition_frequency"] or self.spec.frequency
        return [age + 1 >= first for age in self._ages[chunk]]


def factor_beta(group: Group) -> float:
    """What factors decay by: ``shampoo_beta``, or the second of ``betas``."""
    given = group["shampoo_beta"]
    return float(group["betas"][1] if given is None else given)


def index_of(blocks: list[int], device: torch.device) -> Index:
    """Rising numbers of blocks as an index: a slice, which copies nothing, where none is left out.

    Blocks that are staggered are due in runs.
    """
    first, after = blocks[0], blocks[-1] + 1
    return slice(first, after) if len(blocks) == after - first else torch.tensor(blocks).to(device)


def eigenpairs(factors: Tensor) -> tuple[Tensor, Tensor, list[int]]:
    """Eigenvalues, ascending, eigenvectors, and which matrices of the batch failed.

    A matrix that does not converge is tried once more, in float64; where that fails too its
    results are unspecified.
    """
    values, vectors, sound = ops.eigenpairs(factors)
    failed = []
    for i in sound.logical_not().nonzero().flatten().tolist():
        again = ops.eigenpairs(factors[i : i + 1].double())
        if again[2].item():
            values[i], vectors[i] = again[0][0], again[1][0]
        else:
            failed.append(i)
    return values, vectors, failed
