"""Where blocks of parameters lie in memory, and which of them a matrix there is made of."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from schattor.adaptive.own import Widths
from schattor.blocks import block_views

__all__ = ["Block", "Memory", "Part", "Side", "blocks_in", "name_of_memory"]


class Side(NamedTuple):
    """One side of a matrix in memory."""

    size: int
    stride: int


class Block(NamedTuple):
    """One block of a parameter, where it lies in memory."""

    param: Tensor
    place: int  # among the parameter's
    offset: int
    inputs: Side
    outputs: Side


class Part(NamedTuple):
    """Blocks of a parameter that multiply the same of a matrix's inputs."""

    param: Tensor
    blocks: tuple[int, ...]
    inputs: slice


class Memory:
    """The blocks that lie in one memory."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        """``blocks`` in any order."""
        self._blocks = sorted(blocks, key=lambda block: block.offset)
        self._offsets = [block.offset for block in self._blocks]
        self._widest = max(_span(block.inputs, block.outputs) for block in blocks)
        self._known: dict[tuple[int, Side, Side], list[Part]] = {}

    def parts(self, offset: int, inputs: Side, outputs: Side) -> list[Part]:
        """The blocks that a matrix holds, or holds some outputs of."""
        key = offset, inputs, outputs
        if key not in self._known:
            self._known[key] = self._parts(*key)
        return self._known[key]

    def _parts(self, offset: int, inputs: Side, outputs: Side) -> list[Part]:
        found: dict[tuple[int, int, int], tuple[Tensor, list[int]]] = {}
        first = bisect_right(self._offsets, offset - self._widest)
        last = bisect_left(self._offsets, offset + _span(inputs, outputs))
        for block in self._blocks[first:last]:
            start = _input_at(block.offset - offset, inputs, outputs)
            if start is None and _input_at(offset - block.offset, block.inputs, block.outputs) == 0:
                start = 0  # the matrix begins inside the block
            if start is not None and _is_run(block.inputs, start, inputs):
                key = id(block.param), start, block.inputs.size
                found.setdefault(key, (block.param, []))[1].append(block.place)
        return [
            Part(param, tuple(blocks), slice(start, start + size))
            for (_, start, size), (param, blocks) in found.items()
        ]


def name_of_memory(x: Tensor) -> int:
    """A name of what a tensor is a view of, which no other has as long as that is there."""
    return int(x.untyped_storage()._cdata)


def blocks_in(x: Tensor, of: Widths) -> list[Block]:
    """The blocks of a parameter in a tensor that has its numbers."""
    found = []
    for place, view in enumerate(block_views(x.detach(), of.spec)):
        sides = [Side(*side) for side in zip(view.shape, view.stride(), strict=True)]
        outputs, inputs = reversed(sides) if of.turned else sides
        found.append(Block(of.param, place, int(view.storage_offset()), inputs, outputs))
    return found


def _span(inputs: Side, outputs: Side) -> int:
    """How far a matrix reaches in memory."""
    return 1 + sum((side.size - 1) * side.stride for side in (inputs, outputs))


def _input_at(offset: int, inputs: Side, outputs: Side) -> int | None:
    """Which input of a matrix the number at an offset belongs to; None: it is not inside."""
    found = 0
    for side in sorted((inputs, outputs), key=lambda side: side.stride, reverse=True):
        if side.size > 1:
            if side.stride == 0:
                return None
            place, offset = divmod(offset, side.stride)
            if not 0 <= place < side.size:
                return None
            found = place if side is inputs else found
    return found if offset == 0 else None


def _is_run(part: Side, start: int, whole: Side) -> bool:
    """Whether the inputs of a block are those of a matrix from one on."""
    return (part.size == 1 or part.stride == whole.stride) and start + part.size <= whole.size
