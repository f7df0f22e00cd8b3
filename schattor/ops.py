"""Typed wrappers of ``torch.ops.schattor``: the only place where Python meets the kernels.

A *wide batch* is contiguous ``[batch, rows, cols]`` with ``rows <= cols``. Lists hold 2-D views of
one shape and any strides. Numbers that differ by matrix are float64 ``[batch]``; ``finite`` is a
bool ``[batch]``. On a processor the operators are C++ (``csrc/cpu``); on a device without kernels
of ours they are :mod:`schattor.portable`, which says so once.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from schattor import portable

__all__ = [
    "Direction",
    "chain_direction",
    "gather_momentum",
    "inner_products",
    "native",
    "partial_svd",
    "scatter_update",
    "squarings_direction",
]

torch.ops.load_library(Path(__file__).with_name("_ops_cpu.so"))
_ops = torch.ops.schattor

# Dispatch keys without kernels of ours, which schattor.portable serves.
_PORTABLE_KEYS = ("CUDA", "MPS", "XPU", "PrivateUse1")

# direction, its inner product with the input, its squared Frobenius norm
Direction = tuple[Tensor, Tensor, Tensor]


def gather_momentum(
    grads: list[Tensor],
    momenta: list[Tensor],
    momentum: Tensor,
    ema: bool,
    nesterov: bool,
    wide: Tensor,
    norms: Tensor,
    finite: Tensor,
) -> None:
    """Write ``wide = M / |M|_F``, ``norms = |M|_F`` and ``finite``, reading moments, writing none.

    ``m' = momentum m + c g`` with ``c = 1 - momentum`` if ``ema`` else 1; ``M = momentum m' + c g``
    if ``nesterov`` else ``m'``; ``M = g`` where ``momenta`` is empty. A matrix with an entry that
    is not finite counts as zero.
    """
    _ops.gather_momentum(grads, momenta, momentum, ema, nesterov, wide, norms, finite)


def chain_direction(
    wide: Tensor,
    steps: list[float],
    weights: Tensor,
    powers: Tensor,
    gram: bool,
    restarts: list[int],
) -> Direction:
    """``U s^power V'`` of each ``wide = U s V'`` by a chain of quintic steps and a mixture.

    ``steps`` holds three coefficients a step, ``weights`` ``[batch, depth + 1]`` the mixture of the
    iterates. ``gram`` iterates rows x rows matrices, reading ``wide`` again after ``restarts``.
    """
    direction: Direction = _ops.chain_direction(wide, steps, weights, powers, gram, restarts)
    return direction


def squarings_direction(wide: Tensor, coefficients: list[float], powers: Tensor) -> Direction:
    """Combine the odd powers 1, 3, 5, 9, 17, 33 of the singular values, scaled by their bound."""
    direction: Direction = _ops.squarings_direction(wide, coefficients, powers)
    return direction


def partial_svd(
    wide: Tensor, rank: int, iterations: int, start: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """``rank`` leading singular triples by block subspace iteration from ``start``."""
    triples: tuple[Tensor, Tensor, Tensor] = _ops.partial_svd(wide, rank, iterations, start)
    return triples


def inner_products(x: Tensor, y: Tensor) -> Tensor:
    """``<x_i, y_i>`` of each pair of matrices, summed in float64."""
    inner: Tensor = _ops.inner_products(x, y)
    return inner


def scatter_update(
    params: list[Tensor],
    grads: list[Tensor],
    momenta: list[Tensor],
    direction: Tensor,
    scale: Tensor,
    decay: Tensor,
    momentum: Tensor,
    ema: bool,
    finite: Tensor,
) -> None:
    """``w <- decay w - scale direction`` and ``m <- momentum m + c g`` where ``finite``."""
    _ops.scatter_update(params, grads, momenta, direction, scale, decay, momentum, ema, finite)


def _fake_direction(wide: Tensor) -> Direction:
    numbers = wide.new_empty(wide.shape[0], dtype=torch.float64)
    return torch.empty_like(wide), numbers, torch.empty_like(numbers)


@torch.library.register_fake("schattor::chain_direction")
def _(
    wide: Tensor,
    steps: list[float],
    weights: Tensor,
    powers: Tensor,
    gram: bool,
    restarts: list[int],
) -> Direction:
    return _fake_direction(wide)


@torch.library.register_fake("schattor::squarings_direction")
def _(wide: Tensor, coefficients: list[float], powers: Tensor) -> Direction:
    return _fake_direction(wide)


@torch.library.register_fake("schattor::partial_svd")
def _(wide: Tensor, rank: int, iterations: int, start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    batch, rows, cols = wide.shape
    return (
        wide.new_empty(batch, rows, rank),
        wide.new_empty(batch, rank),
        wide.new_empty(batch, cols, rank),
    )


@torch.library.register_fake("schattor::inner_products")
def _(x: Tensor, y: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], dtype=torch.float64)


@torch.library.register_fake("schattor::gather_momentum")
def _(
    grads: list[Tensor],
    momenta: list[Tensor],
    momentum: Tensor,
    ema: bool,
    nesterov: bool,
    wide: Tensor,
    norms: Tensor,
    finite: Tensor,
) -> None:
    return None


@torch.library.register_fake("schattor::scatter_update")
def _(
    params: list[Tensor],
    grads: list[Tensor],
    momenta: list[Tensor],
    direction: Tensor,
    scale: Tensor,
    decay: Tensor,
    momentum: Tensor,
    ema: bool,
    finite: Tensor,
) -> None:
    return None


def native(device: torch.device) -> bool:
    """Whether operators on ``device`` are kernels of ours rather than plain torch."""
    return device.type == "cpu"


@functools.cache
def _say_once(key: str) -> None:
    message = (
        f"schattor: no kernels of ours for {key} tensors in this build; they take plain torch,"
        " which gives the same results slower. `python -m schattor.doctor` shows what is built."
    )
    if os.environ.get("SCHATTOR_STRICT") == "1":
        raise RuntimeError(f"{message} SCHATTOR_STRICT=1 makes this an error.")
    warnings.warn(message, stacklevel=4)


def _announced(function: Callable[..., Any], key: str) -> Callable[..., Any]:
    @functools.wraps(function)
    def announced(*args: Any) -> Any:
        _say_once(key)
        return function(*args)

    return announced


# Kept for the life of the process: a library takes its registrations with it when it goes.
_portable_library = torch.library.Library("schattor", "IMPL")
for _key in _PORTABLE_KEYS:
    for _name in sorted(set(__all__) - {"Direction", "native"}):
        _portable_library.impl(_name, _announced(getattr(portable, _name), _key), _key)
