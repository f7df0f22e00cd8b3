"""Samples x whose second moment is wanted: as they are while they are few, then their sum."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from schattor.blocks import block_views

__all__ = [
    "ALONE",
    "Collection",
    "Samples",
    "joined",
    "reduce_all",
    "samples_between",
    "samples_of",
    "unfolded",
    "whole_of",
]

ALONE = threading.RLock()
"""Held while samples are added to a collection, which several threads may run forward for."""

# Rows of these are kept as they are: a float32 would say no more.
_HALVES = (torch.bfloat16, torch.float16)


class Samples(NamedTuple):
    """Some samples of n numbers each; never written again, so that several may share them.

    n of them and more are kept as a sum, which is then no larger than they are.
    """

    rows: tuple[Tensor, ...]  # [count, n] each, fewer than n in all; none beside a sum
    total: Tensor | None  # [n, n] the sum of x x'
    number: Tensor  # of samples, [], without rows that are zero since they were not finite

    @property
    def dtype(self) -> torch.dtype:
        """Of sums: float64, or float32."""
        return (_precise(self.rows[0][:0]) if self.total is None else self.total).dtype

    @property
    def size(self) -> int:
        """n."""
        return (self.rows[0] if self.total is None else self.total).shape[-1]

    @property
    def height(self) -> int:
        """How many rows there are, or n where they are a sum: as many as its root would have."""
        return sum(map(len, self.rows)) if self.total is None else self.size

    def to(self, device: torch.device) -> Samples:
        """On a device; the same where they are there."""
        if self.number.device == device:
            return self
        total = None if self.total is None else self.total.to(device)
        return Samples(tuple(part.to(device) for part in self.rows), total, self.number.to(device))

    def at(self, places: Tensor) -> Samples:
        """Of the numbers at some places alone."""
        total = None if self.total is None else self.total[places][:, places]
        return Samples(tuple(part[:, places] for part in self.rows), total, self.number)

    def moment(self) -> Tensor:
        """``[n, n]``, the mean of ``x x'``, exactly symmetric; zero if there is none."""
        mean = self.mean()
        return torch.add(mean, mean.mT).div_(2)

    def mean(self) -> Tensor:
        """:meth:`moment`, symmetric to rounding."""
        return _total(self) / self.number.clamp(min=1)

    def root(self) -> Tensor:
        """``[count, n]`` N with ``N'N`` the mean of ``x x'``; of samples that are no sum."""
        rows = _whole(self.rows)
        return rows / self.number.clamp(min=1).to(rows.dtype).sqrt()


class Collection:
    """The samples of one weight so far."""

    def __init__(self, param: Tensor, size: int) -> None:
        """``size`` numbers make one sample."""
        self.param, self.size = param, size
        self.samples: Samples | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Of sums: float64 for a float64 weight, else float32."""
        return torch.float64 if self.param.dtype == torch.float64 else torch.float32

    def clear(self) -> None:
        """Forget all samples."""
        self.samples = None

    def add(self, found: Samples) -> None:
        """Take in the samples of one call; they gather on the device of the first."""
        with ALONE:
            self.samples = found if self.samples is None else joined([self.samples, found])

    def at_home(self) -> Samples:
        """The samples, of which there are some, on the parameter's device."""
        assert self.samples is not None
        return self.samples.to(self.param.device)

    def in_order(self) -> Samples:
        """As :meth:`at_home`, features in the order of the parameter's matrix in `block_views`."""
        param, found = self.param, self.at_home()
        if param.ndim > 2 and not param.is_contiguous() and self.size == param[0].numel():
            found = found.at(_order(param))
        return found


def samples_of(x: Tensor, leading: int, like: Collection, tokens: int | None) -> Samples:
    """Samples ``[leading dimensions..., features...]``, at most ``tokens`` of them.

    To be added to a collection ``like`` that. Rows that are not finite, or whose squares are not,
    count as none. Copies, since x may be written again.
    """
    x, sizes = whole_of(x), x.shape[:leading]
    if tokens is not None and sizes.numel() > tokens:
        x = _some(x, leading, tokens)
    rows = x.reshape(-1, like.size)
    return _kept(rows, None, like)


def whole_of(x: Any) -> Tensor:
    """A tensor, or what ranks have of a DTensor together: all of them must ask for it."""
    found: Tensor = x.full_tensor() if hasattr(x, "full_tensor") else x
    return found


def samples_between(
    x: Tensor, start: Tensor, end: Tensor, like: Collection, tokens: int
) -> Samples:
    """The same of the rows from ``start`` to ``end`` of x ``[count, n]``.

    Both stay on the device, and nobody asks how many rows these are: where there are fewer than
    ``tokens``, rows of zeros stand for the others.
    """
    number = end - start
    places = start + _spread(number, number.clamp(1, tokens), tokens, x.device)
    there = torch.arange(tokens, device=x.device) < number
    rows = x[places.clamp(max=len(x) - 1)]
    return _kept(torch.where(there[:, None], rows, 0.0), there, like)


def _kept(rows: Tensor, there: Tensor | None, like: Collection) -> Samples:
    """Samples of rows ``[count, n]``; only those that are ``there`` are counted, None: all."""
    few = len(rows) < like.size
    if not (few and rows.dtype in _HALVES and like.dtype == torch.float32):
        rows = rows.to(like.dtype)
    if rows.is_cpu and not few:  # it may be asked: if all are finite two passes are saved
        total = _gram([rows])
        if math.isfinite(total.diagonal().sum().item()):
            number = torch.tensor(len(rows), device="cpu") if there is None else there.sum()
            return Samples((), total, number)
    finite = torch.linalg.vector_norm(rows, dim=1, dtype=like.dtype).isfinite()
    rows = torch.where(finite[:, None], rows, 0.0)
    number = (finite if there is None else finite & there).sum()
    return Samples((rows,) if few else (), None if few else _gram([rows]), number)


def unfolded(
    x: Tensor, sizes: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> Tensor | None:
    """What a kernel sees at each place of x ``[batch, in, ...]``, ``[batch, places..., in, k...]``.

    A view. None where the kernel has no place.
    """
    depth = len(sizes)
    for dim, (size, stride, dilation) in enumerate(zip(sizes, strides, dilations, strict=True)):
        span = dilation * (size - 1) + 1
        if x.shape[2 + dim] < span:
            return None
        x = x.unfold(2 + dim, span, stride)[..., ::dilation]
    return x.movedim(1, 1 + depth)


def joined(parts: Sequence[Samples]) -> Samples:
    """All samples of some that have as many numbers each, on the device of the first."""
    device = parts[0].number.device
    if len(parts) == 1:
        return parts[0]
    moved = [part.to(device) for part in parts]
    number = torch.stack([part.number for part in moved]).sum()
    if sum(part.height for part in moved) < moved[0].size:
        return Samples(tuple(row for part in moved for row in part.rows), None, number)
    total = _total(moved[0])
    for part in moved[1:]:
        total = total + _total(part)
    return Samples((), total, number)


def reduce_all(collections: Sequence[Collection]) -> None:
    """Gather from the ranks of the default process group, if there is one; all must call it.

    The collections and their order are the same on every rank; those without samples take part.
    Raises ValueError on all ranks where they are not.
    """
    if not (collections and dist.is_available() and dist.is_initialized()):
        return
    device = collections[0].param.device
    _refuse_others(collections, device)
    found = [each.samples for each in collections]
    counts = torch.tensor([0 if each is None else each.height for each in found], device=device)
    of_ranks = _of_ranks(counts)
    zero = torch.zeros((), dtype=torch.int64, device=device)
    numbers = torch.stack([zero if each is None else each.number.to(device) for each in found])
    dist.all_reduce(numbers)
    whole = zip(collections, torch.stack(of_ranks, 1).tolist(), numbers.unbind(), strict=True)
    for each, from_ranks, number in whole:
        if sum(from_ranks) >= each.size:
            each.samples = Samples((), _summed(each), number)
        elif sum(from_ranks):
            each.samples = Samples(_gathered(each, from_ranks), None, number)


def _of_ranks(own: Tensor) -> list[Tensor]:
    """What every rank has, of one shape."""
    found = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(found, own)
    return found


def _refuse_others(collections: Sequence[Collection], device: torch.device) -> None:
    """What ranks would add up, or wait for, must belong together."""
    own = torch.tensor([len(collections), sum(each.size for each in collections)], device=device)
    found = [tuple(each.tolist()) for each in _of_ranks(own)]
    if len({*found}) > 1:
        raise ValueError(
            'p="auto" with statistics of inputs: every rank must choose p of the same parameters,'
            f" got {[count for count, _ in found]} statistics of {[size for _, size in found]}"
            ' numbers; use AutoP(statistics="gradients") where each rank has its own'
        )


def _summed(each: Collection) -> Tensor:
    """The sum over all ranks."""
    if each.samples is None:
        total = torch.zeros(each.size, each.size, dtype=each.dtype, device=each.param.device)
    else:  # a copy, since others may share it
        total = _total(each.at_home()).clone()
    dist.all_reduce(total)
    return total


def _gathered(each: Collection, counts: list[int]) -> tuple[Tensor, ...]:
    """The rows of all ranks, as many from each as ``counts`` says."""
    rows = torch.zeros(max(counts), each.size, dtype=each.dtype, device=each.param.device)
    if each.samples is not None:
        own = _whole(each.at_home().rows)
        rows[: len(own)] = own
    parts = zip(_of_ranks(rows), counts, strict=True)
    return tuple(part[:count] for part, count in parts if count)


def _total(samples: Samples) -> Tensor:
    """``[n, n]``, the sum of ``x x'``."""
    return _gram(samples.rows) if samples.total is None else samples.total


def _gram(parts: Sequence[Tensor]) -> Tensor:
    first = _precise(parts[0])
    size = first.shape[1]
    # In place, which autocast leaves alone.
    total = first.new_empty(size, size).addmm_(first.mT, first, beta=0)
    for part in map(_precise, parts[1:]):
        total.addmm_(part.mT, part)
    return total


def _whole(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([_precise(part) for part in parts])


def _precise(rows: Tensor) -> Tensor:
    return rows if rows.dtype == torch.float64 else rows.float()


def _some(x: Tensor, leading: int, tokens: int) -> Tensor:
    """``[tokens, features...]`` of the samples ``[leading dimensions..., features...]``."""
    sizes = x.shape[:leading]
    if x.is_contiguous():  # whole rows are faster than numbers at places
        return x.flatten(0, leading - 1).index_select(0, _flat_places(sizes, tokens, x.device))
    return x[_places(sizes, tokens, x.device)]


@lru_cache(maxsize=16)
def _flat_places(sizes: torch.Size, tokens: int, device: torch.device) -> Tensor:
    """Which so many of the samples ``[sizes...]``, one from each of as many equal stretches.

    At the same place of every stretch they would meet the same positions of every sequence whose
    length is a multiple of a stretch, the first among them, whose activations are unlike all
    others. Multiples of the golden ratio modulo one are spread evenly over any such sequence.
    """
    return _spread(sizes.numel(), tokens, tokens, device)


def _spread(total: int | Tensor, parts: int | Tensor, count: int, device: torch.device) -> Tensor:
    """Places ``[count]``, one in each of so many equal stretches of ``total``; more lie beyond."""
    which = torch.arange(count + 1, device=device)
    edges = which * total // parts
    golden = which[:-1] * 0x9E3779B9 & 0xFFFFFFFF
    return edges[:-1] + (golden * edges.diff() >> 32)


@lru_cache(maxsize=16)
def _places(sizes: torch.Size, tokens: int, device: torch.device) -> tuple[Tensor, ...]:
    """The same as an index of each of the leading dimensions."""
    flat = _flat_places(sizes, tokens, device)
    places: list[Tensor] = []
    for size in reversed(sizes):
        places.append(flat % size)
        flat = flat // size
    return tuple(reversed(places))


def _order(param: Tensor) -> Tensor:
    """Which column of ``weight.flatten(1)`` each column of its matrix in ``block_views`` is."""
    like = param.detach()[:1]
    numbers = torch.empty_like(like, dtype=torch.int64)
    numbers.copy_(torch.arange(like.numel(), device=like.device).view(like.shape))
    return block_views(numbers, like=like)[0][0]
