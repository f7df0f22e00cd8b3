"""Weights that ranks hold in shards (DTensor, as FSDP2 makes them): what is known of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from schattor.adaptive.samples import whole_of
from schattor.optim._exchange import Ranks, Spread
from schattor.optim._settings import Group

__all__ = [
    "as_shards",
    "is_sharded",
    "laid_as",
    "placements_of",
    "put_shard",
    "ranks_of",
    "refuse_sharded",
    "shard_of",
    "spread_of",
]


def is_sharded(param: Tensor) -> bool:
    """Whether it is a DTensor; torch.distributed is not imported to find out."""
    return hasattr(param, "placements") and hasattr(param, "device_mesh")


def ranks_of(param: Any) -> Ranks:
    """The ranks that hold the shards of a DTensor which was not refused."""
    axis = _axis(param)
    if axis is None:
        return Ranks(None, 0, 1)
    mesh = param.device_mesh
    return Ranks(mesh.get_group(axis), mesh.get_local_rank(axis), mesh.size(axis))


def spread_of(param: Any, shape: Sequence[int], owner: int) -> Spread:
    """How something of a DTensor's state lies over its ranks: as it does, if of the same shape."""
    axis = _axis(param)
    if axis is None or not shape:
        return Spread(tuple(shape), None, owner)
    like = tuple(shape) == tuple(param.shape)
    return Spread(tuple(shape), param.placements[axis].dim if like else 0, owner)


def placements_of(param: Any, spread: Spread) -> tuple[Any, ...]:
    """The same, as torch says it."""
    from torch.distributed.tensor import Replicate, Shard

    placements: list[Any] = [Replicate()] * len(param.placements)
    axis = _axis(param)
    if axis is not None and spread.dim is not None:
        placements[axis] = Shard(spread.dim)
    return tuple(placements)


def _axis(param: Any) -> int | None:
    """The dimension of its mesh along which ranks share the work on a DTensor.

    The first that splits it. What others split is brought together, so that along them ranks do
    the same, as copies of a weight do.
    """
    return next((i for i in range(len(param.placements)) if _splits(param, i)), None)


def _splits(param: Any, axis: int) -> bool:
    whole = param.placements[axis].is_replicate()  # of the shards torch has more than one kind
    return not whole and param.device_mesh.size(axis) > 1


def refuse_sharded(who: str, name: str, param: Any, group: Group) -> None:
    """Raise ValueError where the matrix rule cannot move a DTensor as it would move a tensor."""
    who = f"{who}: {name} is a DTensor:"
    if any(placement.is_partial() for placement in param.placements):
        raise ValueError(
            f"{who} it must be split or whole along each mesh dimension, got"
            f" {tuple(param.placements)}"
        )
    local, ranks = param.to_local(), ranks_of(param)
    split = [axis for axis in range(len(param.placements)) if _splits(param, axis)]
    shape = spread_of(param, param.shape, 0).shard(ranks.own, ranks.size)
    if len(split) == 1 and tuple(local.shape) != shape:
        raise ValueError(
            f"{who} its shard must have shape {shape}, as torch.chunk gives it, got"
            f" {tuple(local.shape)}"
        )
    if local.device.type != param.device_mesh.device_type:
        raise ValueError(
            f"{who} it must be on the {param.device_mesh.device_type} of its mesh, over which ranks"
            f" exchange, got a shard on {local.device}: leave offloading out"
        )
    if group["capturable"]:
        raise ValueError(
            f"{who} capturable must be False, since no graph captures the exchange between ranks"
        )


def shard_of(value: Any, param: Any, placements: Sequence[Any]) -> Tensor:
    """This rank's shard of something of a DTensor, laid out as ``placements`` say."""
    if tuple(value.placements) != tuple(placements):
        value = value.redistribute(param.device_mesh, placements)
    local: Tensor = value.to_local()
    return local.contiguous()


def put_shard(param: Any, shard: Tensor, placements: Sequence[Any]) -> None:
    """Write a DTensor's numbers, of which this rank has those that ``placements`` say."""
    if tuple(param.placements) == tuple(placements):
        param.to_local().copy_(shard)
        return
    given = as_shards(param, shard, param.shape, placements)
    param.to_local().copy_(given.redistribute(param.device_mesh, param.placements).to_local())


def as_shards(param: Any, shard: Tensor, shape: Sequence[int], placements: Sequence[Any]) -> Any:
    """Something of a DTensor, of which this rank has a shard."""
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        shard,
        param.device_mesh,
        placements,
        shape=torch.Size(shape),
        stride=torch.empty(shape, device="meta").stride(),
    )


def laid_as(param: Tensor, value: Tensor) -> Tensor:
    """A tensor out of a checkpoint beside a parameter: in shards or whole, as that is.

    Every rank has the whole tensor, or its shard.
    """
    if is_sharded(param) == is_sharded(value):
        return value
    if is_sharded(value):
        return whole_of(value)
    from torch.distributed.tensor import distribute_tensor

    placements = placements_of(param, spread_of(param, value.shape, 0))
    whole: Any = value.to(param.device)
    return distribute_tensor(whole, param.device_mesh, placements, src_data_rank=None)  # type: ignore[attr-defined]
