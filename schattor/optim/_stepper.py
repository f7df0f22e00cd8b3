"""The only step loop: gather, direct, scatter, a bucket at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from schattor import ops
from schattor.adaptive.chooser import Chooser
from schattor.blocks import block_views
from schattor.directions import wide_direction
from schattor.optim._buckets import Bucket, BucketKey, Measured, Place, Source, tell_apart
from schattor.optim._changes import Changes
from schattor.optim._chosen import Chosen, Seen, inputs_of
from schattor.optim._directed import (
    Coupling,
    Directed,
    Moving,
    Waiting,
    grafted,
    independent,
)
from schattor.optim._entries import suffixes
from schattor.optim._formats import follow_formats
from schattor.optim._fused import fused_step
from schattor.optim._groups import (
    block_weight,
    name_of,
    refuse_parameter,
    refuse_step,
    refuse_unmatched_weights,
)
from schattor.optim._preconditioned import Entered, keeps_squares
from schattor.optim._settings import Group, State, check_group, check_together
from schattor.optim._shards import is_sharded
from schattor.optim._sizes import unit_factors
from schattor.optim._state import (
    create_state,
    joined_counters,
    keeps_momentum,
    may_move,
    signature,
)
from schattor.planning import Plan

__all__ = ["Stepper"]

# Bytes of a wide batch that a processor keeps from step to step.
_MOST_KEPT = 32 * 2**20


class Stepper:
    """Moves the parameters of all groups of the rule ``"matrix"``.

    Buckets are planned at the first step, and again when the set of parameters with gradients,
    their storage, dtypes or the groups' structure changes.
    """

    def __init__(self, who: str) -> None:
        """``who`` is the optimizer's name in errors."""
        self.buckets: list[Bucket] = []
        self.nonfinite: dict[torch.device, Tensor] = {}
        self.chooser: Chooser | None = None
        # Weights in shards that may move, with their groups and names: not stepped here.
        self.sharded: list[tuple[int, str, Tensor]] = []
        self.watched: dict[Tensor, Tensor] = {}
        """Whose inputs a chooser knows, where it is not the parameter itself."""
        self._who, self._changes = who, Changes(who)
        self._kept: dict[torch.dtype, Tensor] = {}
        self._moving: list[Tensor] = []
        # Parameters that are one block each, as (list, position, tall, parameter): the loop over
        # them is most of what Python does in a step.
        self._whole: list[tuple[list[Tensor], int, bool, Tensor]] = []
        self._split: list[Source] = []
        self._counters: list[Tensor] = []
        self._signature: list[Any] | None = None
        self._captured: list[Plan] | None = None

    @property
    def planned(self) -> bool:
        """Whether there is a plan; it may be outdated."""
        return self._signature is not None

    def forget(self) -> None:
        """Drop the plan, and with it every view of parameters and state."""
        self.buckets, self._counters, self._signature = [], [], None
        self._moving, self._whole, self._split, self.sharded = [], [], [], []
        self._captured = None

    def prepare(self, groups: list[Group], state: State) -> None:
        """Plan again if needed. All checks of a step are here, before anything is written."""
        try:
            self._changes.check(groups)
            if self._signature is None or self._signature != signature(groups, state):
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
        planned = self._signature is not None and self._signature == signature(groups, state)
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
        self._changes.check(groups)
        for bucket, captured in zip(self.buckets, self._captured, strict=True):
            bucket.follow(groups[bucket.key.group_index])
            if replace(bucket.plan, reason=captured.reason) != captured:
                raise ValueError(
                    f"{self._who}: p must keep the route that was captured, {captured.route} in"
                    f" {captured.dtype}, got one that takes {bucket.plan.route}: capture again"
                )
        check_together(self._who, groups)

    def begin(self, groups: list[Group]) -> Waiting:
        """Begin a step along what :meth:`prepare` planned: all of it for blocks on their own.

        Returns the directions of those whose steps depend on each other.
        """
        self._collect_gradients()
        waiting: Waiting = {}
        for bucket in self.buckets:
            group = groups[bucket.key.group_index]
            # A choice looks at what is gathered.
            if bucket.fused and self._choosing(bucket) is None:
                self._fused(bucket, group)
                continue
            for chunk in bucket.chunks:
                directed = self._direct(bucket, chunk, group)
                if bucket.outer is None:
                    self._scatter(directed, independent(directed, group), group)
                else:
                    coupling = Coupling(group["oracle"], bucket.outer)
                    waiting.setdefault(coupling, []).append(directed)
        return waiting

    def finish(self, groups: list[Group], moving: Moving) -> None:
        """Move what waited, and end the step."""
        for directed, factors in moving:
            self._scatter(directed, factors, groups[directed.bucket.key.group_index])
        for bucket in self.buckets:
            bucket.grads[:] = [_NO_GRADIENT] * len(bucket.grads)
            bucket.advance()
        for counter in self._counters:
            counter.add_(1)
        # The operators write without telling autograd, which checks what backward has saved.
        torch.autograd.graph.increment_version(self._moving)

    def _plan(self, groups: list[Group], state: State) -> None:
        self.forget()
        self._refuse(groups, state)
        follow_formats(self._who, groups, state)
        create_state(groups, state, self.chooser)
        buckets: dict[BucketKey, Bucket] = {}
        for group_index, group in enumerate(groups):
            for index, param in enumerate(group["params"]):
                if group["rule"] != "matrix":
                    continue
                name = name_of(group_index, group, index)
                if is_sharded(param):
                    if param.numel() and may_move(param):
                        self.sharded.append((group_index, name, param))
                elif param.grad is not None:
                    self._moving.append(param)
                    if param.numel():
                        self._add(buckets, group_index, group, name, param, state[param])
        self.buckets = list(buckets.values())
        for bucket in self.buckets:
            bucket.join(groups[bucket.key.group_index])
        tell_apart(self.buckets)
        self._counters = joined_counters(self._moving, state)
        self._signature = signature(groups, state)

    def _refuse(self, groups: list[Group], state: State) -> None:
        for group_index, group in enumerate(groups):
            check_group(self._who, group)
            for index, param in enumerate(group["params"]):
                name = name_of(group_index, group, index)
                refuse_parameter(self._who, name, param, group)
                refuse_step(self._who, name, param, state.get(param, {}), group)
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
        for view, moment, suffix in zip(views, momenta, suffixes(len(views)), strict=True):
            key = BucketKey(
                group_index,
                min(view.shape),
                max(view.shape),
                param.dtype,
                param.grad.dtype,
                None if momentum is None else momentum.dtype,
                param.device,
            )
            bucket = buckets.setdefault(key, Bucket(self._who, key, group, self.chooser))
            label = name + (f"[{suffix[1:]}]" if suffix else "")
            place = bucket.add(
                label, view, moment, spec, block_weight(group, name), (entry, suffix)
            )
            source.places.append(place)
        if bucket.chosen is not None:
            turned = [place.tall for place in source.places]
            watched = inputs_of(self.watched.get(param, param), spec, turned)
            for place, inputs in zip(source.places, watched, strict=True):
                assert place.bucket.chosen is not None
                place.bucket.chosen.inputs.append(inputs)
        if keeps_squares(group):
            squares = block_views(entry["exp_avg_sq"], spec, like=param)
            _add_squares(source.places, squares, "inside")
        if group["scale"] == "adam":
            _add_squares(source.places, block_views(entry["graft_sq"], spec, like=param), "graft")
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

    def _fused(self, bucket: Bucket, group: Group) -> None:
        """A step of small blocks that know nothing of each other."""
        count = 2 * min(torch.get_num_threads(), len(bucket.params))
        scratch = self._wide(bucket, (count, bucket.key.rows, bucket.key.cols))
        self._remember(bucket, *fused_step(bucket, group, scratch))

    def _gather(self, bucket: Bucket, chunk: slice, group: Group) -> tuple[Tensor, Tensor, Tensor]:
        """A chunk's wide batch, norms and flags, without a preconditioner."""
        wide, norms, finite = self._batch(bucket, chunk)
        momenta, rate = bucket.momenta[chunk], bucket.momentum
        ema, nesterov = group["momentum_form"] == "ema", group["nesterov"]
        rule = (rate, ema, nesterov, bucket.plan.size)
        ops.gather_momentum(bucket.grads[chunk], momenta, *rule, wide, norms, finite)
        corrections = bucket.corrections(group)
        if corrections is not None:
            norms /= corrections[chunk]
        return wide, norms, finite

    def _batch(self, bucket: Bucket, chunk: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Where a chunk is gathered."""
        count, device = chunk.stop - chunk.start, bucket.key.device
        wide = self._wide(bucket, (count, bucket.key.rows, bucket.key.cols))
        norms = torch.empty(count, dtype=bucket.lr.dtype, device=device)
        return wide, norms, torch.empty(count, dtype=torch.bool, device=device)

    def _direct(self, bucket: Bucket, chunk: slice, group: Group) -> Directed:
        grads, inside = bucket.grads[chunk], bucket.inside
        mixture = None if bucket.chain_weights is None else bucket.chain_weights[chunk]
        numbers = (bucket.powers[chunk], mixture, bucket.plan)
        if inside is None:
            entered = Entered(grads)
            wide, norms, finite = self._gather(bucket, chunk, group)
            self._choose(bucket, chunk, wide, grads, None)
            found = wide_direction(wide, *numbers)
        else:
            entered = inside.enter(chunk, grads, group)
            means = (bucket.momenta[chunk], bucket.momentum, group, bucket.plan.size)
            wide, norms, finite = self._batch(bucket, chunk)
            outside = inside.gather(chunk, entered, *means, wide, norms, finite)
            self._choose(bucket, chunk, wide, grads, outside)
            found = inside.leave(chunk, wide_direction(wide, *numbers), outside)
        directed = Directed(bucket, chunk, entered, found, norms, finite)
        return directed if bucket.graft is None else grafted(directed, grads, group)

    def _choosing(self, bucket: Bucket) -> Chosen | None:
        """The choice of a bucket's p, where it is made from data and this step records."""
        return bucket.chosen if self.chooser is not None and self.chooser.due else None

    def _choose(
        self,
        bucket: Bucket,
        chunk: slice,
        wide: Tensor,
        grads: list[Tensor],
        outside: Tensor | None,
    ) -> None:
        """Choose p of a chunk's blocks, if it is time."""
        chosen = self._choosing(bucket)
        if chosen is not None and self.chooser is not None:
            means = (bucket.key.group_index, bucket.momentum, bucket.taken[chunk])
            kept = (bucket.momenta[chunk], self.chooser.averages(*means))
            seen = Seen(chunk, wide, grads, *kept, bucket.inside, outside)
            known = chosen.choose(seen, bucket.powers, bucket.chain_weights)
            names, powers = bucket.names[chunk], bucket.powers[chunk]
            if len(known) < len(names):
                for i in sorted({*range(len(names))}.difference(known)):
                    self.chooser.miss(names[i], grads[i])
                names, powers = [names[i] for i in known], powers[known]
            self.chooser.remember(names, powers)

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
            self._kept[dtype] = kept = torch.empty(size, dtype=dtype, device=device)
        return kept[:size].view(shape)

    def _scatter(self, directed: Directed, factors: Tensor, group: Group) -> None:
        bucket, chunk, found = directed.bucket, directed.chunk, directed.found
        sign = -1.0 if group["maximize"] else 1.0
        size = factors * bucket.lengths[chunk] * unit_factors(bucket.scale, found)
        if directed.grafted is not None:
            size *= directed.grafted.norms
        scale = sign * bucket.lr * size
        params, momenta, grads = bucket.params[chunk], bucket.momenta[chunk], directed.entered.grads
        numbers = (found.direction, scale, bucket.decay, bucket.momentum)
        ema, inside = group["momentum_form"] == "ema", bucket.inside
        if inside is None:
            ops.scatter_update(params, grads, momenta, *numbers, ema, directed.finite)
            moving = directed.finite
        else:
            moving = inside.moving(chunk, directed.finite)
            squares = inside.squares[chunk]
            if inside.spec.decay_last:
                scale *= bucket.decay
            ops.scatter_moments(params, grads, momenta, squares, *numbers, inside.beta, ema, moving)
            inside.learn(chunk, directed.entered, momenta, moving, group)
        if bucket.graft is not None and directed.grafted is not None:
            bucket.graft.learn(chunk, directed.grafted, moving)
        self._remember(bucket, directed.finite, directed.dual_norms, found.square, scale)

    def _remember(
        self, bucket: Bucket, finite: Tensor, dual: Tensor, square: Tensor, scale: Tensor
    ) -> None:
        """What a step knew, and how many of its blocks did not move since they were not finite."""
        bucket.measured.append(Measured(dual, square, scale))
        count = self.nonfinite.get(bucket.key.device)
        if count is None:
            count = torch.zeros((), dtype=torch.int64, device=bucket.key.device)
            self.nonfinite[bucket.key.device] = count
        count.add_(finite.logical_not().sum())


# Stands in a bucket's list between steps, so that gradients can be freed.
_NO_GRADIENT = torch.empty(0)


def _add_squares(places: list[Place], squares: Sequence[Tensor], owner: str) -> None:
    """Second moments of a parameter's blocks to those of their buckets that keep such."""
    for place, square in zip(places, squares, strict=True):
        getattr(place.bucket, owner).squares.append(square.t() if place.tall else square)
