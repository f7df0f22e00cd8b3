"""Of which weights tensors are parts, or copies of parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from schattor.adaptive.own import Widths
from schattor.adaptive.places import Block, Memory, Part, Side, blocks_in, name_of_memory

__all__ = ["Origins", "is_plain", "sides"]


class Place(NamedTuple):
    """Where a part of a weight begins."""

    memory: int
    offset: int


class Picked(NamedTuple):
    """What a copy of some of a batch of matrices was made of."""

    of_matrices: list[list[Part]]  # the blocks in each matrix of the batch
    which: Tensor  # of them was copied, [tokens]


class Origins:
    """Knows tensors by the memory that they lie in."""

    def __init__(self, params: Sequence[Widths]) -> None:
        """``params`` are the weights, where they lie now; those in shards lie nowhere yet."""
        self._blocks: dict[int, dict[int, list[Block]]] = {}  # by memory and parameter
        self._memories: dict[int, Memory] = {}
        self._casts: dict[int, Place] = {}  # where their memories' first numbers come from
        self._picks: dict[int, tuple[Place, list[Side], Tensor]] = {}
        # What lay there may be gone; no other memory has its name while this is held.
        self._held: list[StorageWeakRef] = []
        for each in params:
            if is_plain(each.param):
                self.add(each.param, each)

    def add(self, x: Tensor, of: Widths) -> None:
        """A tensor has a weight's numbers now: that itself, or what its shards make together."""
        of_params = self._blocks.setdefault(name_of_memory(x), {})
        if id(of.param) not in of_params:
            of_params[id(of.param)] = blocks_in(x, of)
            every = [block for blocks in of_params.values() for block in blocks]
            name = name_of_memory(x) if x is of.param else self._name(x)
            self._memories[name] = Memory(every)

    def parts(self, x: Tensor, batch: Side, inputs: Side, outputs: Side) -> list[list[Part]]:
        """The blocks in each of some matrices that a tensor is; []: it is no weight."""
        place = self._place(x)
        return [] if place is None else self._parts(place, batch, inputs, outputs)

    def picked(self, x: Tensor) -> Picked | None:
        """What ``[tokens, inputs, outputs]`` were picked from, if they were."""
        found = self._picks.get(name_of_memory(x))
        if found is None or len(found[2]) != len(x):
            return None
        place, (batch, rows, cols), which = found
        inputs, outputs = (cols, rows) if x.stride(1) < x.stride(2) else (rows, cols)
        return Picked(self._parts(place, batch, inputs, outputs), which)

    def cast(self, x: Tensor, copy: Tensor) -> None:
        """A copy was made, perhaps in another dtype."""
        if is_plain(x) and is_plain(copy) and copy.stride() == x.stride():
            place, pick = self._place(x), self._picks.get(name_of_memory(x))
            if place is not None:
                begin = place.offset - int(copy.storage_offset())
                self._casts[self._name(copy)] = place._replace(offset=begin)
            elif pick is not None:
                self._picks[self._name(copy)] = pick

    def pick(self, x: Tensor, indices: Sequence[Tensor | None], copy: Tensor) -> None:
        """A copy was made by indices."""
        if len(indices) == 1 and is_plain(x) and is_plain(copy) and x.ndim == 3:
            (which,), place = indices, self._place(x)
            if place is None or which is None or which.ndim != 1:
                return
            if which.dtype in (torch.int32, torch.int64):
                self._picks[self._name(copy)] = place, sides(x), which.remainder(len(x))

    def _parts(self, place: Place, batch: Side, inputs: Side, outputs: Side) -> list[list[Part]]:
        memory = self._memories[place.memory]
        starts = [place.offset + index * batch.stride for index in range(batch.size)]
        return [memory.parts(start, inputs, outputs) for start in starts]

    def _place(self, x: Tensor) -> Place | None:
        """Where a part of a weight, or what is a copy of one, begins."""
        name, offset = name_of_memory(x), int(x.storage_offset())
        if (cast := self._casts.get(name)) is not None:
            return cast._replace(offset=cast.offset + offset)
        return Place(name, offset) if name in self._memories else None

    def _name(self, x: Tensor) -> int:
        self._held.append(StorageWeakRef(x.untyped_storage()))
        return name_of_memory(x)


def is_plain(x: Tensor) -> bool:
    """Whether a tensor has memory to look into."""
    plain = type(x).__torch_dispatch__ is Tensor.__torch_dispatch__
    return plain and x.layout is torch.strided and not x.is_meta


def sides(x: Tensor) -> list[Side]:
    """Of a tensor in memory."""
    return [Side(*side) for side in zip(x.shape, x.stride(), strict=True)]
