"""How one parameter splits into the matrices that the matrix rule moves.

A *block spec* says it in plain values, so that it can live in a parameter group and in a state
dict. ``None`` and ``{}`` mean the tensor itself, flattened to (first dimension, all others) when it
has more than two. The keys, all optional:

========================  ==============================================================
``"batch": 1``            the first dimension counts matrices: experts ``[E, 2F, D]``
``"rows": 3``             three equal blocks of rows: fused QKV of ``nn.Linear``, gates, heads
``"rows": (64, 16, 16)``  unequal blocks of rows: grouped-query QKV
``"cols": 3``             the same along columns (with rows too: a grid of tiles)
``"interleaved": True``   equal blocks take every n-th row or column: gate and up by turns
``"most": 1024``          no longer side: what is longer is cut at every 1024th row or column
``"out": 1``              outputs run along the columns, as in HuggingFace's ``Conv1D``
========================  ==============================================================
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any, TypedDict

import torch
from torch import Tensor

__all__ = [
    "BlockSpec",
    "block_shapes",
    "block_views",
    "column_order",
    "describe_blocks",
    "fans",
    "flattened",
]


class BlockSpec(TypedDict, total=False):
    """The keys of a block spec; at run time a plain ``dict``."""

    batch: int
    rows: int | Sequence[int]
    cols: int | Sequence[int]
    interleaved: bool
    most: int
    out: int


def block_views(
    tensor: Tensor, spec: BlockSpec | None = None, *, like: Tensor | None = None
) -> list[Tensor]:
    """Two-dimensional views of a parameter-shaped tensor, one for each of its matrices.

    Views, never copies: what is written to them is written to the tensor. A tensor of two
    dimensions under an empty spec comes back as it is, all others detached from autograd.

    A convolution ``[out, in, k...]`` becomes ``[out, in*k...]``. Its columns run in the order of
    memory (so channels-last is a view too), which does no harm, since singular directions commute
    with permutations of columns, as long as a parameter, its gradient and its moments are all
    permuted alike: pass the parameter as ``like`` for the other tensors. Filters of a depthwise
    convolution ``[channels, 1, k...]`` become the rows of one matrix ``[channels, k...]``: the
    kernel's taps are whitened over all channels.

    Args:
        tensor: the parameter, or a gradient or moment of its shape; any dtype and strides.
        spec: how it splits, see this module. Order of the result: batch, then rows, then cols.
        like: tensor of the same shape whose memory format orders the columns; None: ``tensor``.

    Raises:
        TypeError: a spec that is no mapping.
        ValueError: an unknown key or value, a split that does not fit, fewer than two dimensions,
            a sparse tensor, or a memory format in which the matrix is no view.

    >>> qkv = torch.zeros(6, 4)
    >>> [tuple(view.shape) for view in block_views(qkv, {"rows": 3})]
    [(2, 4), (2, 4), (2, 4)]
    >>> block_views(qkv, {"rows": 3})[1].fill_(1.0)[0, 0].item(), qkv.sum().item()
    (1.0, 8.0)
    """
    if tensor.layout is not torch.strided:
        raise ValueError(f"block_views: tensor must be dense, got layout {tensor.layout}")
    if not spec and tensor.ndim == 2:
        return [tensor]
    spec = _checked(spec)
    batch = spec.get("batch", 0)
    if tensor.ndim - batch < 2:
        raise ValueError(
            f"block_views: a matrix needs two dimensions besides {batch} of the batch,"
            f" got shape {tuple(tensor.shape)}"
        )
    if like is not None and like.shape != tensor.shape:
        raise ValueError(
            f"block_views: like must have the shape {tuple(tensor.shape)} of tensor,"
            f" got {tuple(like.shape)}"
        )
    if "cols" in spec and tensor.ndim - batch > 2:
        raise ValueError(
            "block_views: cols can split a matrix only, not the flattened dimensions of a"
            f" convolution, got shape {tuple(tensor.shape)}"
        )
    order = column_order(tensor if like is None else like, spec)
    parts = [flattened(tensor.detach(), order)]
    for key in ("rows", "cols"):
        if key in spec:
            parts = [piece for part in parts for piece in _split(part, key, spec)]
    if "most" in spec:
        for dim in (-2, -1):
            parts = [piece for part in parts for piece in torch.split(part, spec["most"], dim)]
    # Split before the batch is taken apart: a few calls, however many experts there are.
    of_parts = [_unbound(part, batch) for part in parts]
    return [view for views in zip(*of_parts, strict=True) for view in views]


def column_order(tensor: Tensor, spec: BlockSpec | None = None) -> tuple[int, ...]:
    """The dimensions that make the columns of a tensor's matrices, in the order of memory.

    >>> column_order(torch.empty(8, 3, 5, 5).to(memory_format=torch.channels_last))
    (2, 3, 1)
    """
    inner = range((spec or {}).get("batch", 0) + 1, tensor.ndim)
    strides, sizes = tensor.stride(), tensor.shape
    # A dimension of size one may have any stride; it must not decide the order.
    order = sorted((d for d in inner if sizes[d] > 1), key=lambda d: -strides[d])
    return (*order, *(d for d in inner if sizes[d] == 1))


def flattened(tensor: Tensor, order: Sequence[int]) -> Tensor:
    """``[batch..., rows, cols]``, a view, columns in an order as :func:`column_order` gives it.

    Raises ValueError for strides in which that is no view.
    """
    leading = tensor.ndim - len(order)
    if len(order) == 1:
        return tensor
    sizes = tensor.shape
    cols = prod(sizes[d] for d in order)
    try:
        return tensor.permute(*range(leading), *order).view(*sizes[:leading], cols)
    except RuntimeError:
        raise ValueError(
            f"block_views: a tensor of shape {tuple(sizes)} with strides {tensor.stride()} has no"
            f" view as a matrix of {cols} columns in the order of dimensions {tuple(order)}; copy"
            " it into torch.empty_like(parameter) first"
        ) from None


def block_shapes(shape: Sequence[int], spec: BlockSpec | None = None) -> list[tuple[int, int]]:
    """``(rows, cols)`` of every block of a parameter of this shape; raises as ``block_views``.

    >>> block_shapes((8, 32, 16), {"batch": 1, "rows": 2})[:2]
    [(16, 16), (16, 16)]
    """
    views = block_views(torch.empty(tuple(shape), device="meta"), spec)
    return [(view.shape[0], view.shape[1]) for view in views]


def fans(shape: Sequence[int], spec: BlockSpec | None = None) -> tuple[int, int]:
    """``(outputs, inputs)`` of the layer that uses a block of this shape ``(rows, cols)``.

    What ``scale="spectral"`` needs: Muon's ``sqrt(max(1, m/n))`` means m outputs and n inputs, and
    a transposed weight (HuggingFace's ``Conv1D``) has them the other way round.

    >>> fans((768, 3072)), fans((768, 3072), {"out": 1})
    ((768, 3072), (3072, 768))
    """
    rows, cols = shape
    return (cols, rows) if spec and spec.get("out", 0) == 1 else (rows, cols)


def describe_blocks(shape: Sequence[int], spec: BlockSpec | None = None) -> str:
    """The blocks in words.

    >>> describe_blocks((1280, 768), {"rows": (768, 256, 256)})
    '768x768 + 2 x 256x768'
    """
    counts: dict[tuple[int, int], int] = {}
    for block in block_shapes(shape, spec):
        counts[block] = counts.get(block, 0) + 1
    return " + ".join(
        f"{count} x {rows}x{cols}" if count > 1 else f"{rows}x{cols}"
        for (rows, cols), count in counts.items()
    )


def _split(stack: Tensor, key: str, spec: BlockSpec) -> Sequence[Tensor]:
    """The pieces of all matrices of a stack ``[batch..., rows, cols]`` along rows or cols."""
    dim = -2 if key == "rows" else -1
    split = spec["rows"] if key == "rows" else spec["cols"]
    size = stack.shape[dim]
    if isinstance(split, int):
        if size % split:
            raise ValueError(f"block_views: {key}={split} must divide the {size} {key}")
        if spec.get("interleaved", False):
            return [
                stack[..., i::split, :] if dim == -2 else stack[..., i::split] for i in range(split)
            ]
        split = (size // split,) * split
    if sum(split) != size:
        raise ValueError(
            f"block_views: {key}={tuple(split)} must add up to the {size} {key}, got {sum(split)}"
        )
    return torch.split(stack, list(split), dim)


def _unbound(stack: Tensor, batch: int) -> list[Tensor]:
    """The matrices of a stack ``[batch..., rows, cols]`` with this many dimensions of batch."""
    matrices = [stack]
    for _ in range(batch):
        matrices = [part for matrix in matrices for part in matrix.unbind(0)]
    return matrices


def _is_int(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_split(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return len(value) > 0 and all(_is_int(size, 1) for size in value)
    return _is_int(value, 1)


_REQUIREMENTS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "batch": (lambda value: _is_int(value, 0), "an int >= 0"),
    "rows": (_is_split, "an int >= 1 or a tuple of sizes >= 1"),
    "cols": (_is_split, "an int >= 1 or a tuple of sizes >= 1"),
    "interleaved": (lambda value: isinstance(value, bool), "a bool"),
    "most": (lambda value: _is_int(value, 1), "an int >= 1"),
    "out": (lambda value: _is_int(value, 0) and value <= 1, "0 or 1"),
}


def _checked(spec: BlockSpec | None) -> BlockSpec:
    """The spec, if its keys and the types of its values are right."""
    if spec is None:
        return {}
    if not isinstance(spec, Mapping):
        raise TypeError(f"block_views: spec must be a dict or None, got {spec!r}")
    for key, value in spec.items():
        if key not in _REQUIREMENTS:
            near = difflib.get_close_matches(str(key), _REQUIREMENTS, n=1)
            known = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(_REQUIREMENTS)}"
            raise ValueError(f"block_views: unknown key {key!r} in a block spec; {known}")
        holds, words = _REQUIREMENTS[key]
        if not holds(value):
            raise ValueError(f"block_views: {key} must be {words}, got {value!r}")
    splits = [spec[key] for key in ("rows", "cols") if key in spec]
    if spec.get("interleaved", False) and not (
        splits and all(isinstance(split, int) for split in splits)
    ):
        raise ValueError(
            "block_views: interleaved needs rows or cols as a number of equal blocks, got"
            f" {dict(spec)!r}"
        )
    return spec
