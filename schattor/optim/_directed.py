"""Chunks between direction and scatter, and how far each of their blocks goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from schattor.directions import Directions
from schattor.optim._buckets import Bucket
from schattor.optim._graft import Grafted
from schattor.optim._preconditioned import Entered, work_dtype
from schattor.optim._settings import Group
from schattor.optim._sizes import couple

__all__ = [
    "Beyond",
    "Coupling",
    "Directed",
    "Moving",
    "Waiting",
    "coupled",
    "grafted",
    "independent",
    "norms_of",
]


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


class Coupling(NamedTuple):
    """How blocks share one step."""

    oracle: str
    outer: float  # A of the norm over blocks


Waiting = dict[Coupling, list[Directed]]
"""Chunks whose steps depend on other blocks."""

Moving = list[tuple[Directed, Tensor]]
"""Chunks, and the factors ``[batch]`` of their steps."""


class Beyond(NamedTuple):
    """Dual norms and weights ``[2, blocks]`` of other ranks, those before this one and after it."""

    before: list[Tensor]
    after: list[Tensor]


def coupled(waiting: Sequence[Waiting], beyond: Mapping[Coupling, Beyond]) -> list[Moving]:
    """Factors ``c_i`` of what waits in each stepper, times the norm over all blocks if regularized.

    The first stepper's blocks are the same on all ranks. Those of the others stand between the
    blocks of ranks before and after, so that all ranks have one order.
    """
    moving: list[Moving] = [[] for _ in waiting]
    for key in dict.fromkeys(key for each in waiting for key in each):
        before, after = beyond.get(key, Beyond([], []))
        places = [(place, one) for place, each in enumerate(waiting) for one in each.get(key, [])]
        ours = [norms_of(one) for _, one in places]
        first = len(waiting[0].get(key, []))
        every = [*ours[:first], *before, *ours[first:], *after]
        norms, weights = torch.cat([each.to(ours[0].device) for each in every], 1)
        factors, norm = couple(norms, weights, key.outer)
        if key.oracle == "regularized":
            factors = factors * norm
        parts = list(torch.split(factors, [each.shape[1] for each in every]))
        del parts[first : first + len(before)], parts[len(places) :]
        for (place, one), part in zip(places, parts, strict=True):
            moving[place].append((one, part.to(one.norms.device)))
    return moving


def norms_of(directed: Directed) -> Tensor:
    """Dual norms and weights ``[2, batch]``."""
    return torch.stack([directed.dual_norms, directed.weights])


def grafted(directed: Directed, grads: list[Tensor], group: Group) -> Directed:
    """With the other method's step measured; it is the direction itself before roots are known."""
    bucket, chunk, found = directed.bucket, directed.chunk, directed.found
    assert bucket.graft is not None
    other = bucket.graft.measure(
        chunk,
        grads,
        directed.entered,
        bucket.momenta[chunk],
        bucket.momentum,
        bucket.inside,
        bucket.taken,
        work_dtype(bucket.key.param_dtype),
        group,
    )
    if bucket.inside is not None:
        started = bucket.inside.started(chunk, group)
        if not all(started):
            own = torch.tensor(started, device=found.square.device)
            direction = torch.where(own[:, None, None], found.direction, other.step)
            square = torch.where(own, found.square, other.norms.square())
            found = found._replace(direction=direction, square=square)
    return replace(directed, found=found, grafted=other)
