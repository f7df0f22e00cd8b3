"""Weights that ranks hold in shards (DTensor, as FSDP2 makes them): what is known of one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from schattor.optim._settings import Group, outer_exponent, power_of, scale_of
from schattor.optim._sizes import GRAFTS

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = [
    "Shards",
    "exchanged_dtype",
    "is_sharded",
    "local_momentum",
    "matching",
    "refuse_sharded",
    "shards_of",
]


class Shards(NamedTuple):
    """How a weight lies over ranks."""

    ranks: ProcessGroup | None  # that each hold a shard; None: this one holds all of it
    rank: int  # this one's place among them
    dim: int  # along which they follow each other
    sizes: tuple[int, ...]  # of each rank along it, 0 where a rank has none


def is_sharded(param: Tensor) -> bool:
    """Whether it is a DTensor; torch.distributed is not imported to find out."""
    return hasattr(param, "placements") and hasattr(param, "device_mesh")


def shards_of(param: Any) -> Shards:
    """How a DTensor that was not refused lies over ranks; `torch.chunk` says how much each has."""
    mesh, placements = param.device_mesh, param.placements
    split = [axis for axis, placement in enumerate(placements) if _splits(param, axis)]
    if not split:
        return Shards(None, 0, 0, (param.shape[0],))
    axis = split[0]
    dim, count = placements[axis].dim, mesh.size(axis)
    size, step = param.shape[dim], -(-param.shape[dim] // count)
    sizes = [max(0, min(step, size - rank * step)) for rank in range(count)]
    return Shards(mesh.get_group(axis), mesh.get_local_rank(axis), dim, tuple(sizes))


def _splits(param: Any, axis: int) -> bool:
    return bool(param.placements[axis].is_shard()) and param.device_mesh.size(axis) > 1


# What needs more of a weight's neighbours, or of its past, than one rank gathers for a step.
_WITHOUT: dict[str, tuple[Any, str]] = {
    "p": ("auto", "which no rank has the statistics for"),
    "capturable": (True, "whose exchange between ranks is not captured"),
}


def refuse_sharded(who: str, name: str, param: Any, group: Group) -> None:
    """Raise ValueError where the matrix rule cannot move a DTensor as it would move a tensor."""
    who = f"{who}: {name} is a DTensor:"
    split = [axis for axis in range(len(param.placements)) if _splits(param, axis)]
    kinds = {type(param.placements[axis]).__name__ for axis in split}
    partial = any(placement.is_partial() for placement in param.placements)
    if len(split) > 1 or kinds - {"Shard"} or partial:
        raise ValueError(
            f"{who} it must be split along one mesh dimension, Shard(dim), and whole along the"
            f" others, got {tuple(param.placements)}"
        )
    local, shards = param.to_local(), shards_of(param)
    if local.shape[shards.dim] != shards.sizes[shards.rank] or not local.is_contiguous():
        raise ValueError(
            f"{who} its shard must be contiguous with {shards.sizes[shards.rank]} along dimension"
            f" {shards.dim}, got shape {tuple(local.shape)}, strides {local.stride()}"
        )
    if local.device.type != param.device_mesh.device_type:
        raise ValueError(
            f"{who} it must be on the {param.device_mesh.device_type} of its mesh, over which ranks"
            f" exchange, got a shard on {local.device}: leave offloading out"
        )
    for key, (value, why) in _WITHOUT.items():
        if group[key] == value:
            raise ValueError(f"{who} {key} must not be {value!r}, {why}")
    if group["preconditioner"] is not None:
        raise ValueError(
            f"{who} preconditioner must be None, got {group['preconditioner']!r}: its statistics"
            " are not kept in shards"
        )
    if scale_of(group) in (*GRAFTS, "width"):
        raise ValueError(
            f'{who} scale must be "unit", "spectral", "rms" or "pin", got {scale_of(group)!r}'
        )
    if outer_exponent(who, group, power_of(who, group)) is not None:
        raise ValueError(
            f"{who} coupling must leave blocks independent, got {group['coupling']!r}: no rank"
            " has the dual norms of all blocks"
        )


def matching(grad: Any, param: Any) -> Tensor:
    """This rank's shard of a gradient, laid out as the parameter is."""
    if grad.placements != param.placements:
        grad = grad.redistribute(param.device_mesh, param.placements)
    local: Tensor = grad.to_local()
    return local if local.is_contiguous() else local.contiguous()


def local_momentum(entry: dict[str, Any]) -> Tensor | None:
    """This rank's shard of a weight's momentum, if its state has one."""
    moment = entry.get("momentum_buffer")
    return None if moment is None else moment.to_local()


def exchanged_dtype(grad: Tensor, momentum: Tensor | None) -> torch.dtype:
    """In which a weight's momentum goes to its owner, and its step comes back."""
    return grad.dtype if momentum is None else torch.promote_types(grad.dtype, momentum.dtype)
