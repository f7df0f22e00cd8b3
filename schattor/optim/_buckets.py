"""Buckets: blocks of one wide shape that move in the same calls, and what is planned for them."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from schattor import planning
from schattor.adaptive.chooser import Chooser
from schattor.blocks import BlockSpec, block_views, fans
from schattor.optim._chosen import Chosen
from schattor.optim._entries import Entries, joined
from schattor.optim._graft import Graft
from schattor.optim._preconditioned import (
    Preconditioned,
    preconditioner_of,
    statistics_shapes,
    work_dtype,
)
from schattor.optim._settings import (
    Group,
    outer_exponent,
    pin_ratio,
    planning_settings,
    power_of,
    scale_of,
)
from schattor.optim._sizes import GRAFTS, shape_factors
from schattor.planning import Plan
from schattor.portable import scalar_dtype

__all__ = ["Bucket", "BucketKey", "Measured", "Place", "Source", "tell_apart"]

_MIB = 2**20
# What is alive at once: the wide batch, its direction, two iterates; and square matrices of the
# chain's two forms.
_WIDE_ALIVE = 4
_SQUARES_ALIVE = {False: 2, True: 6}
# On a processor a chunk's arrays are small enough for its caches and for malloc to give the same
# pages again at every step; fresh ones, which the system clears first, cost as much as a gather.
_CACHED_MIB = 8
_RECORDED = ("route", "dtype", "depth", "gram", "restarts", "size", "engine")


class BucketKey(NamedTuple):
    """What blocks of one bucket have in common."""

    group_index: int
    rows: int
    cols: int
    param_dtype: torch.dtype
    grad_dtype: torch.dtype
    momentum_dtype: torch.dtype | None
    device: torch.device


class Place(NamedTuple):
    """Where a block lies; a tall one enters transposed."""

    bucket: Bucket
    position: int
    tall: bool


class Measured(NamedTuple):
    """What the last step knew of the blocks of a chunk; vectors ``[batch]`` on the device."""

    dual: Tensor  # |M|_q
    square: Tensor  # |direction|_F^2
    scale: Tensor  # the factor that brought the direction into the weights


@dataclasses.dataclass(eq=False)
class Source:
    """A parameter with a gradient, and where its blocks lie."""

    param: Tensor
    spec: BlockSpec | None
    places: list[Place]

    def gradients(self) -> Sequence[Tensor]:
        """Views of the gradient, one a block; of a copy, if its strides have no such view."""
        grad = self.param.grad
        assert grad is not None
        if not self.spec and grad.ndim == 2:
            return (grad,)
        try:
            return block_views(grad, self.spec, like=self.param)
        except ValueError:
            return block_views(torch.empty_like(self.param).copy_(grad), self.spec)


def _dial(group: Group) -> tuple[Any, ...]:
    """What the power of a group, and the lengths that depend on it, follow."""
    return (group["p"], group["power"], pin_ratio(group) if scale_of(group) == "pin" else None)


def tell_apart(buckets: list[Bucket]) -> None:
    """Name blocks by their group as well, where an earlier one has the name: two models have it."""
    first: dict[str, int] = {}
    for bucket in buckets:
        index = bucket.key.group_index
        first.update({name: min(index, first.get(name, index)) for name in bucket.names})
    for bucket in buckets:
        index = bucket.key.group_index
        bucket.names = [n if first[n] == index else f"group {index}: {n}" for n in bucket.names]


class Bucket:
    """Blocks of one wide shape, one device, one set of dtypes and one group.

    ``params``, ``momenta`` and ``grads`` are lists of ``[rows, cols]`` views, ``rows <= cols``.
    Numbers on the device (``lr``, ``powers``, ...) are written again in place when the group's
    values change, never read.
    """

    def __init__(
        self, who: str, key: BucketKey, group: Group, chooser: Chooser | None = None
    ) -> None:
        """An empty bucket; ``add`` its blocks, then let it ``follow`` its group at every step."""
        self.key = key
        self.names: list[str] = []
        self.params: list[Tensor] = []
        self.momenta: list[Tensor] = []
        self.grads: list[Tensor] = []
        self.measured: list[Measured] = []
        self.chunks: list[slice] = []
        self.power = math.nan
        self.outer: float | None = None
        self.scale = ""
        numbers = torch.zeros(3, dtype=scalar_dtype(key.device), device=key.device)
        self.lr, self.decay, self.momentum = numbers.unbind()
        self.powers = self.block_weights = self.lengths = numbers[:0]
        self.chain_weights: Tensor | None = None
        spec = preconditioner_of(group)
        self.inside = None if spec is None else Preconditioned(spec, key.device)
        self.graft = Graft(scale_of(group)) if scale_of(group) in GRAFTS else None
        self.fused = False
        """Whether one operator takes whole steps of this bucket."""
        self.chosen = Chosen(chooser) if chooser is not None and group["p"] == "auto" else None
        self.taken = self.powers
        self._entries: Entries = []
        self._who = who
        self._plan: Plan | None = None
        self._fans: list[tuple[int, int]] = []
        self._weights: list[float] = []
        self._followed: tuple[Any, ...] = ()
        self._width = math.nan
        self._rates: tuple[float, ...] = ()

    @property
    def plan(self) -> Plan:
        """How directions of this bucket are computed; known once it followed its group."""
        assert self._plan is not None
        return self._plan

    def add(
        self,
        name: str,
        param: Tensor,
        momentum: Tensor | None,
        spec: BlockSpec | None,
        weight: float,
        entry: tuple[dict[str, Any], str],
    ) -> Place:
        """Take in one block: views of its parameter and of its momentum, as the layer has them.

        ``entry`` is its parameter's state, and what the block's own keys there end in.
        """
        tall = param.shape[0] > param.shape[1]
        self._entries.append(entry)
        self.names.append(name)
        self.params.append(param.t() if tall else param)
        self.grads.append(param)
        if momentum is not None:
            self.momenta.append(momentum.t() if tall else momentum)
        self._fans.append(fans((param.shape[0], param.shape[1]), spec))
        self._weights.append(weight)
        return Place(self, len(self.params) - 1, tall)

    def join(self, group: Group) -> None:
        """All blocks are in: count their steps, and lay their statistics side by side.

        Those of the group's settings alone: the state may have others, of earlier ones.
        """
        taken = [float(entry["step"]) for entry, _ in self._entries]
        self.taken = torch.tensor(taken, dtype=self.lr.dtype, device=self.key.device)
        if self.inside is not None:
            keys = statistics_shapes((self.key.rows, self.key.cols), {**group, "blocks": None})
            found = {key: joined(self._entries, key) for key in keys}
            self.inside.join(found, self.taken, [int(count) for count in taken])
        if self.chosen is not None:
            self.chosen.join(self._entries, self.lr.dtype, self.key.device)

    def corrections(self, group: Group) -> Tensor | None:
        """``[batch]``, what averages that began at zero are divided by; None: they are not."""
        ema = group["momentum_form"] == "ema"
        if not (group["bias_correction"] and ema and self.momenta):
            return None
        return 1 - torch.pow(self.momentum, self.taken + 1 + group["nesterov"])

    def advance(self) -> None:
        """One step was taken."""
        self.taken.add_(1)
        if self.inside is not None:
            self.inside.advance()

    def follow(self, group: Group) -> bool:
        """Take the group's values of this step; whether its power changed."""
        given = _dial(group)
        changed = given != self._followed
        if changed:
            self._set_power(group, power_of(self._who, group))
            self._followed = given
        if self.inside is not None:
            self.inside.follow(group, self.power)
        lr, momentum, weight_decay = self._rates_of(group)
        if isinstance(lr, Tensor):
            self.lr.copy_(lr.reshape(()))
            self.decay.copy_(1 - self.lr * weight_decay)
            self.momentum.fill_(momentum)
            self._rates = ()
        elif (lr, momentum, weight_decay) != self._rates:
            self.lr.fill_(lr)
            self.decay.fill_(1 - lr * weight_decay)
            self.momentum.fill_(momentum)
            self._rates = (lr, momentum, weight_decay)
        return changed

    def follows(self, group: Group) -> bool:
        """Whether the device holds the group's values already; a tensor's are never known."""
        return _dial(group) == self._followed and (
            isinstance(group["lr"], Tensor) or self._rates_of(group) == self._rates
        )

    def _rates_of(self, group: Group) -> tuple[Any, float, float]:
        """Learning rate, momentum, and decay, which is by the radius under the scale "width"."""
        decay = group["weight_decay"] * (self._width if self.scale == "width" else 1.0)
        return group["lr"], group["momentum"], decay

    def _set_power(self, group: Group, power: float) -> None:
        outer = outer_exponent(self._who, group, power)
        old, self._plan = self._plan, self._planned(group, power)
        self.power, self.outer, self.scale = power, outer, scale_of(group)
        self.fused = (
            self.plan.fused and outer is None and self.inside is None and self.graft is None
        )
        lengths = shape_factors(self.scale, power, self._fans, pin_ratio(group))
        self._width = lengths[0]
        self.powers = self._rewritten(self.powers, [power] * len(self.params))
        self.block_weights = self._rewritten(self.block_weights, self._weights)
        self.lengths = self._rewritten(self.lengths, lengths)
        if self.plan.route == "chain":
            row = planning.chain_weights(power, self.plan)
            self.chain_weights = self._rewritten(self.chain_weights, [row] * len(self.params))
        if self.inside is not None:
            exponents = [self.inside.spec.exponent_at(power)] * len(self.params)
            self.inside.exponents = self._rewritten(self.inside.exponents, exponents)
        if self.chosen is not None:
            self.chosen.follow(self.plan, self.powers, self.chain_weights, self.inside)
        if old is None or (old.dtype, old.gram) != (self.plan.dtype, self.plan.gram):
            self.chunks = self._chunks(group["workspace_mb"] * _MIB)

    def _rewritten(self, held: Tensor | None, values: Sequence[Any]) -> Tensor:
        """The values on the device, in the tensor that held them before if they fit it."""
        new = torch.tensor(values, dtype=self.lr.dtype, device=self.key.device)
        return new if held is None or held.shape != new.shape else held.copy_(new)

    def _planned(self, group: Group, power: float) -> Plan:
        """The plan; what an earlier one of the same settings took from the machine stays.

        The record is in the group, so that a checkpoint carries it; one string, so that every tool
        that flattens state dicts takes it for one value.
        """
        key = self.key
        dtype = key.grad_dtype
        if key.momentum_dtype is not None:
            dtype = torch.promote_types(dtype, key.momentum_dtype)
        if self.inside is not None:
            dtype = torch.promote_types(dtype, work_dtype(key.param_dtype))
        settings = planning_settings(group)
        facts = planning.device_facts(key.device)
        fresh = planning.plan(power, key.rows, key.cols, dtype, facts, **settings)
        place = f"{key.rows}x{key.cols} {dtype} {facts.kind} {[*settings.values()]}"
        routes: dict[str, dict[str, Any]] = json.loads(group["routes"] or "{}")
        kept = routes.get(place)
        if kept is not None and kept["route"] == fresh.route:
            return _with_record(fresh, kept)
        routes[place] = _record(fresh)
        group["routes"] = json.dumps(routes)
        return fresh

    def _chunks(self, workspace: float) -> list[slice]:
        rows, cols, itemsize = self.key.rows, self.key.cols, self.plan.dtype.itemsize
        alive = _WIDE_ALIVE * cols + _SQUARES_ALIVE[self.plan.gram] * rows
        size = max(1, int(workspace // (alive * rows * itemsize)))
        if self.key.device.type == "cpu":
            threads = torch.get_num_threads()
            cached = _CACHED_MIB * _MIB // (rows * cols * itemsize) // threads * threads
            size = min(size, max(threads, cached))
        count = len(self.params)
        return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _record(plan: Plan) -> dict[str, Any]:
    """What a plan took from the machine and the library's version, as plain values."""
    record = {field: getattr(plan, field) for field in _RECORDED}
    return {**record, "dtype": str(plan.dtype).removeprefix("torch.")}


def _with_record(fresh: Plan, record: dict[str, Any]) -> Plan:
    if record == json.loads(json.dumps(_record(fresh))):
        return fresh
    return dataclasses.replace(
        fresh,
        dtype=getattr(torch, record["dtype"]),
        depth=record["depth"],
        gram=record["gram"],
        restarts=tuple(record["restarts"]),
        size=record.get("size", 1.0),
        engine=record.get("engine", "kernels"),
        reason="kept as first planned",
    )
