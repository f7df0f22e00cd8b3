"""Second moments kept as means over rows and columns: ``v_ij = rows_i cols_j / mean(rows)``."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from schattor.directions import over
from schattor.portable import share_of

__all__ = ["Factored", "Means"]


class Means(NamedTuple):
    """Of the squares of matrices, ``[batch, rows]`` and ``[batch, cols]``."""

    rows: Tensor
    cols: Tensor


class Factored:
    """Averages of the means of a bucket's squared gradients (Adafactor, arXiv 1804.04235)."""

    def __init__(self, kept: Means) -> None:
        """``kept`` are views of the state."""
        self.kept = kept

    def met(self, grads: list[Tensor]) -> Means:
        """The means of a chunk's gradients."""
        square = torch.stack([grad.to(self.kept.rows.dtype) for grad in grads]).square()
        return Means(square.mean(2), square.mean(1))

    def weights(
        self,
        chunk: slice,
        met: Means,
        beta: Tensor,
        corrections: Tensor,
        eps: Tensor,
        root: float,
        exponent: Tensor,
    ) -> Tensor:
        """``w = ((v/c)^root + eps)^-exponent`` with these gradients in v; 0 where v is 0."""
        rows, cols = (
            _averaged(kept[chunk], new, beta) for kept, new in zip(self.kept, met, strict=True)
        )
        rows = over(rows, rows.mean(1, keepdim=True)) / corrections.to(rows.dtype)[:, None]
        v = rows[:, :, None] * cols[:, None, :]
        corrected = v**root + eps.to(v.dtype)[:, None, None]
        return torch.where(v > 0, corrected ** -exponent.to(v.dtype)[:, None, None], 0.0)

    def learn(self, chunk: slice, met: Means, beta: Tensor, finite: Tensor) -> None:
        """Take the means of gradients that are finite into the averages."""
        for each, new in zip(self.kept, met, strict=True):
            kept = each[chunk]
            kept.copy_(torch.where(finite[:, None], _averaged(kept, new, beta), kept))


def _averaged(kept: Tensor, met: Tensor, beta: Tensor) -> Tensor:
    """``beta kept + (1 - beta) met``, a sum where ``beta`` is 1."""
    return beta.to(kept.dtype) * kept + share_of(beta).to(kept.dtype) * met
