"""The only step loop: gather, direct, scatter, a bucket at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from schattor import ops
from schattor.blocks import block_views
from schattor.directions import Directions, wide_direction
from schattor.optim._buckets import Bucket, BucketKey, Measured, Source
from schattor.optim._groups import (
    block_weight,
    name_of,
    refuse_gradient,
    refuse_parameter,
    refuse_unmatched_weights,
)
from schattor.optim._settings import Group, State, check_group, check_together
from schattor.optim._sizes import couple, unit_factors
from schattor.planning import Plan

__all__ = ["Stepper"]

# Keys of a group that a plan is built from: p, lr, momentum and decay may change freely between
# steps, any of these means planning again.
_structure = itemgetter(
    "rule",
    "oracle",
    "coupling",
    "scale",
    "method",
    "steps",
    "chain_dtype",
    "coefficients",
    "capturable",
    "workspace_mb",
    "momentum_dtype",
)

# Bytes of a wide batch that a processor keeps from step to step.
_MOST_KEPT = 32 * 2**20


def keeps_momentum(group: Group) -> bool:
    """Whether parameters of a group have a buffer; also where a scheduler begins at momentum 0."""
    return group["momentum"] != 0 or "initial_momentum" in group


@dataclass
class _Directed:
    """A chunk between direction and scatter."""

    bucket: Bucket
    chunk: slice
    found: Directions
    norms: Tensor  # [batch] |M|_F / plan.size
    finite: Tensor  # [batch]

    @property
    def dual_norms(self) -> Tensor:
        """``|M|_q`` of every block."""
        return self.norms * self.found.dual

    @property
    def weights(self) -> Tensor:
        """``w`` of every block."""
        return self.bucket.block_weights[self.chunk]


class Stepper:
    """Moves the parameters of all groups of the rule ``"matrix"``.

    Buckets are planned at the first step, and again when the set of parameters with gradients,
    their storage, dtypes or the groups' structure changes.
    """

    def __init__(self, who: str) -> None:
        """``who`` is the optimizer's name in errors."""
        self.buckets: list[Bucket] = []
        self.nonfinite: dict[torch.device, Tensor] = {}
        self._who = who
        self._kept: dict[torch.dtype, Tensor] = {}
        self._moving: list[Tensor] = []
        # Parameters that are one block each, as (list, position, tall, parameter): the loop over
        # them is most of what Python does in a step.
        self._whole: list[tuple[list[Tensor], int, bool, Tensor]] = []
        self._split: list[Source] = []
        self._counters: list[Tensor] = []
        self._signature: list[Any] | None = None
        self._captured: list[Plan] | None = None

    def forget(self) -> None:
        """Drop the plan, and with it every view of parameters and state."""
        self.buckets, self._counters, self._signature = [], [], None
        self._moving, self._whole, self._split = [], [], []
        self._captured = None

    def prepare(self, groups: list[Group], state: State) -> None:
        """Plan again if needed. All checks of a step are here, before anything is written."""
        try:
            if self._signature is None or self._signature != _sign(groups, state):
                self._plan(groups, state)
            changed = [bucket.follow(groups[bucket.key.group_index]) for bucket in self.buckets]
            if any(changed):
                check_together(self._who, groups)
        except Exception:
            self.forget()  # a second attempt is checked as the first one was
            raise

    def prepare_capture(self, groups: list[Group], state: State) -> None:
        """As `prepare`, inside the capture of a graph: check that nothing is left to be written.

        A value written here would be written again by every replay.
        """
        planned = self._signature is not None and self._signature == _sign(groups, state)
        if not planned or not all(b.follows(groups[b.key.group_index]) for b in self.buckets):
            raise RuntimeError(
                f"{self._who}: a step must be prepared before it is captured: take one step, and"
                " call refresh() where lr, momentum, weight_decay or p changed since"
            )
        self._captured = [bucket.plan for bucket in self.buckets]

    def refresh(self, groups: list[Group], state: State) -> None:
        """Write the groups' values where a captured step reads them; without one, `prepare`."""
        if self._captured is None:
            self.prepare(groups, state)
            return
        for bucket, captured in zip(self.buckets, self._captured, strict=True):
            bucket.follow(groups[bucket.key.group_index])
            if replace(bucket.plan, reason=captured.reason) != captured:
                raise ValueError(
                    f"{self._who}: p must keep the route that was captured, {captured.route} in"
                    f" {captured.dtype}, got one that takes {bucket.plan.route}: capture again"
                )
        check_together(self._who, groups)

    def step(self, groups: list[Group]) -> None:
        """One step along what :meth:`prepare` planned."""
        self._collect_gradients()
        coupled: dict[tuple[str, float], list[_Directed]] = {}
        for bucket in self.buckets:
            group = groups[bucket.key.group_index]
            for chunk in bucket.chunks:
                directed = self._direct(bucket, chunk, group)
                if bucket.outer is None:
                    self._scatter(directed, _independent(directed, group), group)
                else:
                    coupled.setdefault((group["oracle"], bucket.outer), []).append(directed)
        for (oracle, outer), together in coupled.items():
            for directed, factors in _coupled(together, oracle, outer):
                self._scatter(directed, factors, groups[directed.bucket.key.group_index])
        for bucket in self.buckets:
            bucket.grads[:] = [_NO_GRADIENT] * len(bucket.grads)
        for counter in self._counters:
            counter.add_(1)
        # The operators write without telling autograd, which checks what backward has saved.
        torch.autograd.graph.increment_version(self._moving)

    def _plan(self, groups: list[Group], state: State) -> None:
        self.forget()
        self._refuse(groups)
        _create_state(groups, state)
        buckets: dict[BucketKey, Bucket] = {}
        for group_index, group in enumerate(groups):
            for index, param in enumerate(group["params"]):
                if group["rule"] == "matrix" and param.grad is not None:
                    self._moving.append(param)
                    if param.numel():
                        name = name_of(group_index, group, index)
                        self._add(buckets, group_index, group, name, param, state[param])
        self.buckets = list(buckets.values())
        self._counters = _joined_counters(self._moving, state)
        self._signature = _sign(groups, state)

    def _refuse(self, groups: list[Group]) -> None:
        for group_index, group in enumerate(groups):
            check_group(self._who, group)
            for index, param in enumerate(group["params"]):
                name = name_of(group_index, group, index)
                refuse_parameter(self._who, name, param, group)
                if param.grad is not None:
                    refuse_gradient(self._who, name, param.grad)
                if group["capturable"] and param.device.type == "cpu":
                    raise ValueError(
                        f"{self._who}: capturable must be False for parameters on the cpu, got"
                        f" True with {name} on {param.device}"
                    )
        check_together(self._who, groups)
        refuse_unmatched_weights(self._who, groups)

    def _add(
        self,
        buckets: dict[BucketKey, Bucket],
        group_index: int,
        group: Group,
        name: str,
        param: Tensor,
        entry: dict[str, Any],
    ) -> None:
        assert param.grad is not None
        spec = group.get("blocks")
        momentum = entry["momentum_buffer"] if keeps_momentum(group) else None
        views = block_views(param.detach(), spec)
        momenta: Sequence[Tensor | None] = [None] * len(views)
        if momentum is not None:
            momenta = block_views(momentum, spec, like=param)
        source = Source(param, spec, [])
        for index, (view, moment) in enumerate(zip(views, momenta, strict=True)):
            key = BucketKey(
                group_index,
                min(view.shape),
                max(view.shape),
                param.dtype,
                param.grad.dtype,
                None if momentum is None else momentum.dtype,
                param.device,
            )
            bucket = buckets.setdefault(key, Bucket(self._who, key))
            label = name if len(views) == 1 else f"{name}[{index}]"
            source.places.append(bucket.add(label, view, moment, spec, block_weight(group, name)))
        if spec or param.ndim != 2:
            self._split.append(source)
        else:
            bucket, position, tall = source.places[0]
            self._whole.append((bucket.grads, position, tall, param))

    def _collect_gradients(self) -> None:
        for bucket in self.buckets:
            bucket.measured = []
        for grads, position, tall, param in self._whole:
            grad = param.grad
            assert grad is not None  # the signature says so
            grads[position] = grad.t() if tall else grad
        for source in self._split:
            views = source.gradients()
            for (bucket, position, tall), view in zip(source.places, views, strict=True):
                bucket.grads[position] = view.t() if tall else view

    def _direct(self, bucket: Bucket, chunk: slice, group: Group) -> _Directed:
        count, device = chunk.stop - chunk.start, bucket.key.device
        shape = (count, bucket.key.rows, bucket.key.cols)
        wide = self._wide(bucket, shape)
        norms = torch.empty(count, dtype=bucket.lr.dtype, device=device)
        finite = torch.empty(count, dtype=torch.bool, device=device)
        ops.gather_momentum(
            bucket.grads[chunk],
            bucket.momenta[chunk],
            bucket.momentum,
            group["momentum_form"] == "ema",
            group["nesterov"],
            bucket.plan.size,
            wide,
            norms,
            finite,
        )
        weights = None if bucket.chain_weights is None else bucket.chain_weights[chunk]
        found = wide_direction(wide, bucket.powers[chunk], weights, bucket.plan)
        return _Directed(bucket, chunk, found, norms, finite)

    def _wide(self, bucket: Bucket, shape: tuple[int, int, int]) -> Tensor:
        """Where a chunk is gathered: on a processor in memory kept from the last one, if not large.

        Coupled blocks have all their directions alive at once, and one may be the chunk itself.
        """
        dtype, device = bucket.plan.dtype, bucket.key.device
        size = math.prod(shape)
        if device.type != "cpu" or bucket.outer is not None or size * dtype.itemsize > _MOST_KEPT:
            return torch.empty(shape, dtype=dtype, device=device)
        kept = self._kept.get(dtype)
        if kept is None or len(kept) < size:
            self._kept[dtype] = kept = torch.empty(size, dtype=dtype)
        return kept[:size].view(shape)

    def _scatter(self, directed: _Directed, factors: Tensor, group: Group) -> None:
        bucket, chunk, found = directed.bucket, directed.chunk, directed.found
        sign = -1.0 if group["maximize"] else 1.0
        size = factors * bucket.lengths[chunk] * unit_factors(bucket.scale, found)
        scale = sign * bucket.lr * size
        ops.scatter_update(
            bucket.params[chunk],
            bucket.grads[chunk],
            bucket.momenta[chunk],
            found.direction,
            scale,
            bucket.decay,
            bucket.momentum,
            group["momentum_form"] == "ema",
            directed.finite,
        )
        bucket.measured.append(Measured(directed.dual_norms, found.square, scale))
        count = self.nonfinite.get(bucket.key.device)
        if count is None:
            count = torch.zeros((), dtype=torch.int64, device=bucket.key.device)
            self.nonfinite[bucket.key.device] = count
        count.add_(directed.finite.logical_not().sum())


# Stands in a bucket's list between steps, so that gradients can be freed.
_NO_GRADIENT = torch.empty(0)


def _independent(directed: _Directed, group: Group) -> Tensor:
    """Factors of blocks that know nothing of each other: max of the ball, l2 of regularized."""
    weights = directed.weights
    return weights if group["oracle"] == "ball" else weights.square() * directed.dual_norms


def _coupled(
    together: list[_Directed], oracle: str, outer: float
) -> Iterator[tuple[_Directed, Tensor]]:
    """Each chunk with its factors ``c_i``, times the norm over all blocks if regularized."""
    home = together[0].norms.device
    norms = torch.cat([directed.dual_norms.to(home) for directed in together])
    weights = torch.cat([directed.weights.to(home) for directed in together])
    factors, norm = couple(norms, weights, outer)
    if oracle == "regularized":
        factors = factors * norm
    start = 0
    for directed in together:
        part = factors[start : start + len(directed.norms)]
        start += len(part)
        yield directed, part.to(directed.norms.device)


def _sign(groups: list[Group], state: State) -> list[Any]:
    """What a plan is built from. Compared at every step, so it asks each parameter for little."""
    signature: list[Any] = []
    for group in groups:
        signature.append((_structure(group), keeps_momentum(group), len(group["params"])))
        signature.append((repr(group.get("blocks")), repr(group["block_weights"])))
        for param in group["params"]:
            grad = param.grad
            if grad is not None:
                momentum = state.get(param, _EMPTY).get("momentum_buffer")
                signature.append(
                    (
                        id(param),
                        param.data_ptr(),
                        grad.dtype,
                        grad.layout,
                        0 if momentum is None else momentum.data_ptr(),
                    )
                )
    return signature


_EMPTY: dict[str, Any] = {}


def _create_state(groups: list[Group], state: State) -> None:
    """State for every parameter that may move, with a gradient or not.

    Checkpoints of all ranks and all runs then hold the same keys.
    """
    for group in groups:
        for param in group["params"]:
            if group["rule"] != "matrix" or not (param.requires_grad or param.grad is not None):
                continue
            entry = state[param]
            if "step" not in entry:
                device = param.device if group["capturable"] else torch.device("cpu")
                entry["step"] = torch.zeros((), dtype=torch.float32, device=device)
            if keeps_momentum(group) and "momentum_buffer" not in entry:
                entry["momentum_buffer"] = torch.zeros_like(
                    param, dtype=group["momentum_dtype"], memory_format=torch.preserve_format
                )


def _joined_counters(moving: list[Tensor], state: State) -> list[Tensor]:
    """Step counters as views of one vector a device: one call advances them all."""
    by_device: dict[torch.device, list[Tensor]] = {}
    for param in moving:
        by_device.setdefault(state[param]["step"].device, []).append(param)
    vectors = []
    for params in by_device.values():
        vector = torch.stack([state[param]["step"].float() for param in params])
        for param, counter in zip(params, vector.unbind(), strict=True):
            state[param]["step"] = counter
        vectors.append(vector)
    return vectors
