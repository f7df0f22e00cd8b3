"""Tensors in shards on several ranks, brought together on one of them, and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["Exchange", "Ranks", "Spread"]


class Ranks(NamedTuple):
    """Ranks that each hold a shard."""

    group: ProcessGroup | None  # None: one rank, which holds all
    own: int  # this one's place among them
    size: int


class Spread(NamedTuple):
    """A tensor that ranks hold in shards which follow each other, and its owner whole."""

    shape: tuple[int, ...]
    dim: int | None  # along which they follow each other; None: each has all of it
    owner: int

    def sizes(self, count: int) -> list[int]:
        """Of each rank's shard along its dimension, as `torch.chunk` has them; 0 beyond its end."""
        assert self.dim is not None
        size = self.shape[self.dim]
        step = -(-size // count)
        return [max(0, min(step, size - rank * step)) for rank in range(count)]

    def shard(self, rank: int, count: int) -> tuple[int, ...]:
        """Shape of a rank's shard."""
        if self.dim is None:
            return self.shape
        shape = list(self.shape)
        shape[self.dim] = self.sizes(count)[rank]
        return tuple(shape)

    def cut(self, whole: Tensor, count: int) -> Sequence[Tensor]:
        """The shards of all ranks."""
        if self.dim is None:
            return [whole] * count
        return torch.split(whole, self.sizes(count), self.dim)


class Exchange:
    """Moves tensors of one dtype between their shards and their owners. All ranks must call it."""

    def __init__(self, ranks: Ranks, spreads: Sequence[Spread]) -> None:
        """``spreads`` are the same on all ranks, in the same order."""
        self._ranks, self._spreads = ranks, spreads
        self.owned = [i for i, each in enumerate(spreads) if each.owner == ranks.own]
        """Which of them this rank owns."""
        self._order = sorted(range(len(spreads)), key=lambda index: spreads[index].owner)
        self._own = [self._numel(index, ranks.own) for index in self._order]
        self._to_owners = [0] * ranks.size
        for index, size in zip(self._order, self._own, strict=True):
            self._to_owners[spreads[index].owner] += size
        self._pieces = [
            [self._numel(index, rank) for index in self.owned] for rank in range(ranks.size)
        ]
        self._from_shards = [sum(sizes) for sizes in self._pieces]

    def _numel(self, index: int, rank: int) -> int:
        return math.prod(self._spreads[index].shard(rank, self._ranks.size))

    def to_owners(self, shards: Sequence[Tensor]) -> list[Tensor]:
        """What this rank owns, whole, from the shards of all tensors on every rank."""
        count = self._ranks.size
        sent = torch.cat([shards[index].reshape(-1) for index in self._order])
        found = torch.split(
            self._all_to_all(sent, self._to_owners, self._from_shards), self._from_shards
        )
        of_ranks = [
            torch.split(part, sizes) for part, sizes in zip(found, self._pieces, strict=True)
        ]
        wholes = []
        for place, index in enumerate(self.owned):
            spread = self._spreads[index]
            pieces = [
                part[place].view(spread.shard(rank, count)) for rank, part in enumerate(of_ranks)
            ]
            own = pieces[self._ranks.own]
            wholes.append(own if spread.dim is None else torch.cat(pieces, spread.dim))
        return wholes

    def to_shards(self, wholes: Sequence[Tensor], like: Tensor) -> list[Tensor]:
        """This rank's shards of all tensors, from what each owner has whole.

        ``wholes`` are those that this rank owns, in the order of `owned`; ``like`` has the dtype
        and the device of all.
        """
        own, count = self._ranks.own, self._ranks.size
        cuts = [
            self._spreads[index].cut(whole, count)
            for index, whole in zip(self.owned, wholes, strict=True)
        ]
        flat = [cut[rank].reshape(-1) for rank in range(count) for cut in cuts]
        sent = torch.cat([like.new_empty(0), *flat])
        found = self._all_to_all(sent, self._from_shards, self._to_owners)
        parts = zip(self._order, torch.split(found, self._own), strict=True)
        return [
            part.view(self._spreads[index].shard(own, count))
            for index, part in sorted(parts, key=itemgetter(0))
        ]

    def _all_to_all(self, sent: Tensor, given: list[int], taken: list[int]) -> Tensor:
        if self._ranks.group is None:
            return sent
        found = sent.new_empty(sum(taken))
        dist.all_to_all_single(found, sent, taken, given, group=self._ranks.group)
        return found
