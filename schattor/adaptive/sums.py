"""Sums of ``x x'`` over samples x: what a second moment is made of."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from schattor.blocks import block_views

__all__ = ["Gram", "Sum", "at_home", "gram_of", "in_order", "mean_of", "reduce_all"]


class Gram(NamedTuple):
    """The sum of ``x x'`` over some samples; never written again, so that several may share it."""

    total: Tensor  # [n, n]
    number: Tensor  # of samples, []


class Sum:
    """A growing `Gram` of one weight."""

    def __init__(self, param: Tensor, size: int) -> None:
        """``size`` numbers make one sample."""
        self.param, self.size = param, size
        self.clear()

    @property
    def dtype(self) -> torch.dtype:
        """float64 for a float64 weight, else float32."""
        return torch.float64 if self.param.dtype == torch.float64 else torch.float32

    def clear(self) -> None:
        """Forget all samples."""
        self.calls = 0
        self.gram: Gram | None = None

    def add(self, found: Gram) -> None:
        """Take in the samples of one call; the sum stays on the device of the first."""
        self.calls += 1
        if self.gram is None:
            self.gram = found
        else:
            other = (part.to(self.gram.total.device) for part in found)
            self.gram = Gram(*map(torch.add, self.gram, other))


def gram_of(samples: Tensor, leading: int, like: Sum, tokens: int | None) -> Gram:
    """The sum over samples ``[leading dimensions..., features...]``, at most ``tokens`` of them.

    To be added to a sum ``like`` that. Rows that are not finite, or whose squares are not, are left
    out.
    """
    sizes = samples.shape[:leading]
    if tokens is not None and sizes.numel() > tokens:
        samples = samples[_places(sizes, tokens, samples.device)]
    rows = samples.reshape(-1, like.size).to(like.dtype)
    if rows.is_cpu:  # a processor may be asked: where all are finite two passes over them are saved
        total = _gram(rows)
        if total.diagonal().sum().isfinite():
            return Gram(total, torch.tensor(len(rows)))
    finite = torch.linalg.vector_norm(rows, dim=1).isfinite()
    return Gram(_gram(torch.where(finite[:, None], rows, 0.0)), finite.sum())


def _gram(rows: Tensor) -> Tensor:
    size = rows.shape[1]
    # In place, which autocast leaves alone.
    return rows.new_empty(size, size).addmm_(rows.mT, rows, beta=0)


def mean_of(grams: Sequence[Gram]) -> Tensor:
    """The mean of ``x x'`` over the samples of all, exactly symmetric; zero if there is none."""
    total, number = grams[0]
    for other in grams[1:]:
        total, number = total + other.total, number + other.number
    return torch.add(total, total.mT).div_(2 * number.clamp(min=1))


def at_home(found: Sum) -> Gram:
    """On the parameter's device."""
    assert found.gram is not None
    return Gram(*(part.to(found.param.device) for part in found.gram))


def in_order(found: Sum) -> Gram:
    """On the parameter's device, features in the order of its matrix in ``block_views``."""
    param = found.param
    total, number = at_home(found)
    if param.ndim > 2 and not param.is_contiguous():
        order = _order(param)
        total = total[order][:, order]
    return Gram(total, number)


def reduce_all(sums: Sequence[Sum]) -> None:
    """Sum over the ranks of the default process group, if there is one; all must call it.

    The sums and their order are the same on every rank; those without samples take part.
    """
    if not (sums and dist.is_available() and dist.is_initialized()):
        return
    device = sums[0].param.device
    calls = torch.tensor([each.calls for each in sums], device=device)
    dist.all_reduce(calls)
    for each, total in zip(sums, calls.tolist(), strict=True):
        if total:
            each.gram = _reduced(each)


def _reduced(each: Sum) -> Gram:
    device = each.param.device
    if each.gram is None:
        total = torch.zeros(each.size, each.size, dtype=each.dtype, device=device)
        number = torch.zeros((), dtype=torch.int64, device=device)
    else:  # copies, since others may share it
        total, number = (part.to(device, copy=True) for part in each.gram)
    dist.all_reduce(total)
    dist.all_reduce(number)
    return Gram(total, number)


@lru_cache(maxsize=16)
def _places(sizes: torch.Size, tokens: int, device: torch.device) -> tuple[Tensor, ...]:
    """Indices of so many of the samples ``[sizes...]``, one from each of as many equal stretches.

    At the same place of every stretch they would meet the same positions of every sequence whose
    length is a multiple of a stretch, the first among them, whose activations are unlike all
    others. Multiples of the golden ratio modulo one are spread evenly over any such sequence.
    """
    total = sizes.numel()
    which = torch.arange(tokens + 1, device=device)
    edges = which * total // tokens
    golden = which[:-1] * 0x9E3779B9 & 0xFFFFFFFF
    flat = edges[:-1] + (golden * edges.diff() >> 32)
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
