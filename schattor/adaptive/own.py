"""Second moments of inputs by parameter and block: handed over by a user, or seen in products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from schattor.adaptive.recording import has_numbers
from schattor.adaptive.samples import ALONE, Collection, Samples, reduce_all, samples_of
from schattor.blocks import BlockSpec

__all__ = ["OwnMoments", "Widths"]


class Widths(NamedTuple):
    """How many inputs a parameter multiplies, whole and by blocks."""

    param: nn.Parameter
    name: str
    whole: int
    blocks: tuple[int, ...]  # of each, where it is split into several
    turned: bool  # whether inputs run along the rows
    spec: BlockSpec | None


class OwnMoments:
    """The samples of what parameters multiply, of all blocks of one together and of each."""

    def __init__(self, params: Sequence[Widths], tokens: int | None) -> None:
        """``params`` in an order that is the same on every rank."""
        self._widths = {id(each.param): each for each in params}
        self._samples: dict[tuple[int, int | None], Collection] = {}
        for each in params:
            self._samples[id(each.param), None] = Collection(each.param, each.whole)
            for index, width in enumerate(each.blocks or [each.whole]):
                self._samples[id(each.param), index] = Collection(each.param, width)
        self._tokens = tokens

    def knows(self, param: Tensor) -> bool:
        """Whether this is one of the parameters."""
        return id(param) in self._widths

    def check(self, who: str, param: Any, inputs: Any, block: Any) -> None:
        """Raise TypeError or ValueError for what `add` cannot take."""
        widths = self._widths.get(id(param))
        if widths is None:
            raise ValueError(f'{who}: param must be one with p="auto", got {_words(param)}')
        count = len(widths.blocks)
        if block is not None and (type(block) is not int or not 0 <= block < count):
            words = f"None or an int in [0, {count})" if count else "None for a single block"
            raise ValueError(f"{who}: block of {widths.name} must be {words}, got {block!r}")
        if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
            raise TypeError(
                f"{who}: inputs of {widths.name} must be a tensor of floats, got {_words(inputs)}"
            )
        if not has_numbers(inputs):
            raise ValueError(
                f"{who}: inputs of {widths.name} must be no meta or fake tensor, and of none of"
                f" torch.func's transformations, got {_words(inputs)}"
            )
        size = self._samples[id(param), block].size
        dense = inputs.layout is torch.strided and not inputs.is_nested
        if not dense or not inputs.ndim or inputs.shape[-1] != size:
            raise ValueError(
                f"{who}: inputs of {widths.name} must be dense [..., {size}], got {_words(inputs)}"
            )

    def add(self, param: Tensor, inputs: Tensor, block: int | None) -> None:
        """Add samples ``[..., n]`` that were checked."""
        if inputs.numel():
            found, x = self._samples[id(param), block], inputs.detach().unsqueeze(0)
            found.add(samples_of(x, inputs.ndim, found, self._tokens))

    def like(self, param: Tensor, block: int) -> Collection:
        """Where the samples for one block of a parameter are collected."""
        return self._samples[id(param), block]

    def share(self, param: Tensor, blocks: Sequence[int], found: Samples) -> None:
        """Add samples to each of some blocks; those that had the same have the same again."""
        new: dict[int, Samples | None] = {}
        with ALONE:
            for block in blocks:
                each = self._samples[id(param), block]
                before = id(each.samples)
                if before in new:
                    each.samples = new[before]
                else:
                    each.add(found)
                    new[before] = each.samples

    def whole(self, param: Tensor) -> Samples | None:
        """Those for all blocks of a parameter, features ordered as in ``block_views``."""
        found = self._samples[id(param), None]
        return None if found.samples is None else found.in_order()

    def of_block(self, param: Tensor, block: int) -> Samples | None:
        """Those for one block alone."""
        found = self._samples.get((id(param), block))
        return None if found is None or found.samples is None else found.at_home()

    def clear(self) -> None:
        """Forget all samples."""
        for each in self._samples.values():
            each.clear()

    def reduce(self) -> None:
        """Gather from all ranks; all must call it."""
        reduce_all([*self._samples.values()])


def _words(given: Any) -> str:
    if not isinstance(given, Tensor):
        return type(given).__name__
    layout = "nested" if given.is_nested else str(given.layout).removeprefix("torch.")
    shape = "" if given.is_nested else f" {tuple(given.shape)}"
    return f"a {layout} tensor{shape} of {given.dtype}"
