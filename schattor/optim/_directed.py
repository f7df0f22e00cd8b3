"""Chunks between direction and scatter, and how far each of their blocks goes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from schattor.directions import Directions
from schattor.optim._buckets import Bucket
from schattor.optim._graft import Grafted
from schattor.optim._preconditioned import Entered
from schattor.optim._settings import Group
from schattor.optim._sizes import couple

__all__ = ["Directed", "coupled_factors", "independent"]


@dataclass
class Directed:
    """A chunk between direction and scatter."""

    bucket: Bucket
    chunk: slice
    entered: Entered
    found: Directions
    norms: Tensor  # [batch] |M|_F / plan.size, in the coordinates of a preconditioner
    finite: Tensor  # [batch]
    grafted: Grafted | None = None

    @property
    def dual_norms(self) -> Tensor:
        """``|M|_q`` of every block."""
        return self.norms * self.found.dual

    @property
    def weights(self) -> Tensor:
        """``w`` of every block."""
        return self.bucket.block_weights[self.chunk]


def independent(directed: Directed, group: Group) -> Tensor:
    """Factors of blocks that know nothing of each other: max of the ball, l2 of regularized."""
    weights = directed.weights
    return weights if group["oracle"] == "ball" else weights.square() * directed.dual_norms


def coupled_factors(
    together: list[Directed], oracle: str, outer: float
) -> Iterator[tuple[Directed, Tensor]]:
    """Each chunk with its factors ``c_i``, times the norm over all blocks if regularized."""
    home = together[0].norms.device
    norms = torch.cat([directed.dual_norms.to(home) for directed in together])
    weights = torch.cat([directed.weights.to(home) for directed in together])
    factors, norm = couple(norms, weights, outer)
    if oracle == "regularized":
        factors = factors * norm
    start = 0
    for directed in together:
        part = factors[start : start + len(directed.norms)]
        start += len(part)
        yield directed, part.to(directed.norms.device)
