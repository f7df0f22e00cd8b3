"""State of parameters that changed their memory format since it was written.

The columns of a convolution run in the order of its memory, and with them the rows and columns of
all that is kept by column: factors, roots, bases and means. The state says which order that is
(``columns``, dimensions of the parameter), so that any other can be followed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from schattor.blocks import block_shapes, column_order, flattened
from schattor.optim._entries import suffixes, zeros_as
from schattor.optim._groups import name_of
from schattor.optim._preconditioned import statistics_shapes
from schattor.optim._settings import Group, State
from schattor.optim._shards import is_sharded

__all__ = ["check_format", "follow_formats", "with_columns"]

# State that has the parameter's shape, and of which a step has views; the first two live in the
# bases of a preconditioner that has such.
_MOMENTS = ("momentum_buffer", "exp_avg_sq")
_VIEWED = (*_MOMENTS, "graft_sq")


def follow_formats(who: str, groups: list[Group], state: State) -> None:
    """Bring all state of the matrix rule into the memory formats of its parameters.

    Raises ValueError, before anything is changed, where :func:`check_format` does.
    """
    found = [
        (name_of(group_index, group, index), param, state[param], group)
        for group_index, group in enumerate(groups)
        for index, param in enumerate(group["params"])
        if group["rule"] == "matrix" and param in state and param.ndim > 2 and param.numel()
        # What is in shards lies with its owner, whole and contiguous.
        if not is_sharded(param)
    ]
    for name, param, entry, group in found:
        check_format(who, name, param, entry, group)
    for _, param, entry, group in found:
        _follow(param, entry, group)


def check_format(
    who: str, name: str, param: Tensor, entry: Mapping[str, Any], group: Group
) -> None:
    """Raise ValueError for statistics that no permutation brings into a parameter's format.

    Args:
        who: the optimizer's name.
        name: the parameter's.
        param: the parameter; state of one in shards counts as that of a contiguous one.
        entry: its state, or what is to be loaded as that.
        group: its group.
    """
    old = entry.get("columns")
    shapes = statistics_shapes(param.shape, group)
    # Out of a checkpoint in shards its owner reads it.
    if not isinstance(old, Tensor) or is_sharded(old) or not shapes:
        return
    spec = group.get("blocks")
    like = torch.empty(param.shape, device="meta") if is_sharded(param) else param
    new, given = column_order(like, spec), tuple(old.tolist())
    if sorted(given) != sorted(new):
        raise ValueError(
            f"{who}: columns of {name} must be the dimensions {sorted(new)} in some order, got"
            f" {given}"
        )
    most, cols = (spec or {}).get("most"), prod(param.shape[d] for d in new)
    if given != new and most is not None and most < cols:
        raise ValueError(
            f"{who}: {name} must keep the memory format in which its statistics were gathered,"
            f" since blocks of at most {most} columns hold other columns in another, got columns"
            f" in the order of dimensions {new} for statistics of {given}: convert the weight back"
            " (Tensor.to(memory_format=...)), or begin with an empty state"
        )


def with_columns(param: Tensor, entry: Mapping[str, Any], group: Group) -> dict[str, Any]:
    """A saved state, with the order of its columns where its writer did not say it.

    Its moments had the strides of the parameter of then.
    """
    full = dict(entry)
    moments = (entry.get(key) for key in _VIEWED)
    like = next((each for each in moments if isinstance(each, Tensor)), None)
    if param.ndim > 2 and like is not None and entry.get("columns") is None:
        if statistics_shapes(param.shape, group):
            full["columns"] = torch.tensor(column_order(like, group.get("blocks")))
    return full


def _follow(param: Tensor, entry: dict[str, Any], group: Group) -> None:
    """Bring a parameter's state into its memory format."""
    spec = group.get("blocks")
    new = column_order(param, spec)
    old = tuple(entry["columns"].tolist()) if "columns" in entry else new
    sides = dict(_column_sides(param, group))
    based = any(key.startswith("basis") for key in sides)
    for key in _VIEWED:
        if entry.get(key) is not None:
            given = old if based and key in _MOMENTS else new
            entry[key] = _laid_out(entry[key], param, given, new)
    if old == new or not statistics_shapes(param.shape, group):
        return
    places = _places(param, old, new)
    for key, dims in sides.items():
        # Of means in a basis none has a column of the parameter.
        if entry.get(key) is not None and not (based and key.startswith("square")):
            for dim in dims:
                entry[key] = entry[key].index_select(dim, places)
    entry["columns"] = torch.tensor(new, device=param.device)


def _column_sides(param: Tensor, group: Group) -> Iterator[tuple[str, Sequence[int]]]:
    """Statistics of the side that a parameter's columns are, and along which dimensions.

    Rows are the shorter side of a block; a basis has its eigenvectors along its second dimension.
    """
    dims = {"factor": (0, 1), "root": (0, 1), "basis": (0,), "square": (0,)}
    shapes = statistics_shapes(param.shape, group)
    blocks = block_shapes(param.shape, group.get("blocks"))
    for (rows, cols), suffix in zip(blocks, suffixes(len(blocks)), strict=True):
        side = "rows" if rows > cols else "cols"
        for kind, along in dims.items():
            key = f"{kind}_{side}{suffix}"
            if key in shapes:
                yield key, along


def _places(param: Tensor, old: Sequence[int], new: Sequence[int]) -> Tensor:
    """Where each column, in the new order, was in the old one."""
    sizes = [param.shape[d] for d in old]
    numbers = torch.arange(prod(sizes), device=param.device).view(sizes)
    return numbers.permute(*(old.index(d) for d in new)).reshape(-1)


def _laid_out(value: Tensor, param: Tensor, old: Sequence[int], new: Sequence[int]) -> Tensor:
    """A moment in the parameter's memory format: itself, where it has that.

    Its matrices stay as they are: where ``old`` is not ``new`` their columns are no longer those of
    the same entries.
    """
    if old == new:
        try:
            flattened(value, new)
        except ValueError:
            return zeros_as(param, value.dtype).copy_(value)
        return value
    leading = param.ndim - len(old)
    matrices = value.permute(*range(leading), *old).reshape(*param.shape[:leading], -1)
    laid = zeros_as(param, value.dtype)
    flattened(laid, new).copy_(matrices)
    return laid
