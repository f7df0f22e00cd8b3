"""Steps of weights that ranks hold in shards: each is computed whole, by the rank that owns it.

Weights and momentum stay in shards. For a step every rank sends its shards of M, what would be
applied, to the owners. These take the one step loop over whole matrices that begin at zero and end
as the step ``-lr c D``; its shards come back, and each rank moves its own. An owner keeps nothing
that a checkpoint would need.
"""

from __future__ import annotations

import glob
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import accumulate
from operator import itemgetter
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from schattor import ops
from schattor.optim._groups import block_weight
from schattor.optim._settings import Group, State, plain
from schattor.optim._shards import (
    Shards,
    exchanged_dtype,
    local_momentum,
    matching,
    shards_of,
)
from schattor.optim._stepper import Stepper
from schattor.portable import applied_momentum, scalar_dtype

__all__ = ["Exchange", "ShardedSteps", "Weight"]

Rule = tuple[Tensor, Tensor, Tensor, bool]
"""Scale, decay, momentum, and whether it is an average, as `ops.scatter_update` takes them."""


class Weight(NamedTuple):
    """A weight in shards that has a gradient."""

    group_index: int
    name: str
    param: Any  # a DTensor
    shards: Shards

    def shape(self, rank: int) -> torch.Size:
        """Of a rank's shard."""
        shape = list(self.param.shape)
        shape[self.shards.dim] = self.shards.sizes[rank]
        return torch.Size(shape)

    def count(self, rank: int) -> int:
        """Entries of a rank's shard."""
        return self.shape(rank).numel()


class Exchange:
    """Moves some weights of one process group between their shards and their owners.

    Lists are in the order of `weights`, or of `owned`: those that this rank owns.
    """

    def __init__(self, weights: Sequence[Weight]) -> None:
        """``weights`` in the same order on all ranks; each goes to the rank with least so far."""
        self.weights = weights
        self._ranks, self._rank = weights[0].shards.ranks, weights[0].shards.rank
        of_ranks: list[list[int]] = [[] for _ in weights[0].shards.sizes]
        loads = [0] * len(of_ranks)
        for index, weight in enumerate(weights):
            owner = loads.index(min(loads))
            loads[owner] += weight.param.numel()
            of_ranks[owner].append(index)
        self._order = [index for indices in of_ranks for index in indices]
        self.owned = [weights[index] for index in of_ranks[self._rank]]
        own = [[weights[index].count(self._rank) for index in each] for each in of_ranks]
        self._own = [count for counts in own for count in counts]
        self._pieces = [[each.count(rank) for each in self.owned] for rank in range(len(loads))]
        self._to_owners = [sum(counts) for counts in own]
        self._from_shards = [sum(counts) for counts in self._pieces]

    def to_owners(self, shards: Sequence[Tensor]) -> list[Tensor]:
        """What this rank owns, whole, from the shards of all weights on every rank."""
        sent = torch.cat([shards[index].reshape(-1) for index in self._order])
        found = self._all_to_all(sent, self._to_owners, self._from_shards)
        pieces = [
            torch.split(part, counts)
            for part, counts in zip(
                torch.split(found, self._from_shards), self._pieces, strict=True
            )
        ]
        return [
            torch.cat(
                [piece[at].view(each.shape(rank)) for rank, piece in enumerate(pieces)],
                each.shards.dim,
            )
            for at, each in enumerate(self.owned)
        ]

    def to_shards(self, wholes: Sequence[Tensor], like: Tensor) -> list[Tensor]:
        """This rank's shards of all weights, flat, from what each owner has whole."""
        cut = [
            torch.split(whole, list(each.shards.sizes), each.shards.dim)
            for whole, each in zip(wholes, self.owned, strict=True)
        ]
        flat = [shards[rank].reshape(-1) for rank in range(len(self._pieces)) for shards in cut]
        sent = torch.cat([like.new_empty(0), *flat])
        found = self._all_to_all(sent, self._from_shards, self._to_owners)
        parts = zip(self._order, torch.split(found, self._own), strict=True)
        return [part for _, part in sorted(parts, key=itemgetter(0))]

    def _all_to_all(self, sent: Tensor, given: list[int], taken: list[int]) -> Tensor:
        if self._ranks is None:
            return sent
        found = sent.new_empty(sum(taken))
        dist.all_to_all_single(found, sent, taken, given, group=self._ranks)
        return found


class Round:
    """Some weights whose whole matrices are alive at once."""

    def __init__(
        self,
        who: str,
        weights: Sequence[Weight],
        dtype: torch.dtype,
        nonfinite: dict[torch.device, Tensor],
    ) -> None:
        """``dtype`` is that of the exchange; blocks that are not finite are counted where told."""
        self.stepper = Stepper(who)
        self.stepper.nonfinite = nonfinite
        self._exchange, self._dtype = Exchange(weights), dtype
        self._state: State = defaultdict(dict)
        device = weights[0].param.device
        self._steps = [
            torch.zeros(each.param.shape, dtype=dtype, device=device)
            for each in self._exchange.owned
        ]
        self._scalars = torch.zeros((), dtype=scalar_dtype(device), device=device)

    def step(self, groups: list[Group], state: State) -> None:
        """Move the shards of these weights, and their momentum."""
        weights = self._exchange.weights
        rules = {
            index: self._rule(groups[index]) for index in {each.group_index for each in weights}
        }
        grads = [matching(each.param.grad, each.param) for each in weights]
        applied = [
            self._applied(
                grad, groups[each.group_index], rules[each.group_index], state[each.param]
            )
            for each, grad in zip(weights, grads, strict=True)
        ]
        self._direct(self._exchange.to_owners(applied), groups)
        steps = self._exchange.to_shards(self._steps, applied[0])
        for each, grad, step in zip(weights, grads, steps, strict=True):
            _move(each, grad, step, rules[each.group_index], state[each.param])

    def _applied(self, grad: Tensor, group: Group, rule: Rule, entry: dict[str, Any]) -> Tensor:
        """This rank's shard of M, what would be applied: moments are read, not written."""
        moment, (_, _, momentum, ema) = local_momentum(entry), rule
        if moment is None:
            return grad
        work = torch.promote_types(self._dtype, torch.float32)
        given = (grad.to(work), moment.to(work), momentum, ema, group["nesterov"])
        found, _ = applied_momentum(*given)
        if group["bias_correction"] and ema:
            found /= 1 - group["momentum"] ** (float(entry["step"]) + 1 + group["nesterov"])
        return found.to(self._dtype)

    def _direct(self, wholes: list[Tensor], groups: list[Group]) -> None:
        """The steps of what this rank owns; NaN for a weight whose M is not finite."""
        owned = [*zip(self._exchange.owned, self._steps, wholes, strict=True)]
        inner = [_whole_group(group) for group in groups]
        for weight, step, whole in owned:
            step.zero_().grad = whole
            group = inner[weight.group_index]
            group["params"].append(step)
            group["param_names"].append(weight.name)
            factor = block_weight(groups[weight.group_index], weight.name)
            group["block_weights"][glob.escape(weight.name)] = factor
        self.stepper.prepare(inner, self._state)
        self.stepper.step(inner)
        for _, step, whole in owned:
            step.masked_fill_(whole.isfinite().all().logical_not(), torch.nan)
            step.grad = None

    def _rule(self, group: Group) -> Rule:
        """Of the shards of a group: the step goes in as it is, at scale -1."""
        lr = torch.as_tensor(plain(group["lr"]), dtype=self._scalars.dtype).reshape(())
        momentum = torch.full_like(self._scalars, group["momentum"])
        ema = group["momentum_form"] == "ema"
        decay = (1 - lr * group["weight_decay"]).to(momentum.device)
        return self._scalars.new_full((1,), -1.0), decay, momentum, ema


def _move(weight: Weight, grad: Tensor, step: Tensor, rule: Rule, entry: dict[str, Any]) -> None:
    """One shard; a step that is NaN leaves its weights and moments as they are."""
    entry["step"] += 1
    if step.numel() == 0:
        return
    moment, param = local_momentum(entry), weight.param.to_local()
    momenta = [] if moment is None else [moment.view(1, -1)]
    params, grads = [param.view(1, -1)], [grad.view(1, -1)]
    ops.scatter_update(params, grads, momenta, step.view(1, 1, -1), *rule, step[:1].isfinite())
    torch.autograd.graph.increment_version(param)


def _whole_group(group: Group) -> Group:
    """A group for steps from zero along what is applied, which has met momentum already."""
    kept = {key: value for key, value in group.items() if key != "initial_momentum"}
    empty: Group = {"params": [], "param_names": [], "block_weights": {}}
    return {**kept, "momentum": 0.0, "bias_correction": None, **empty}


class ShardedSteps:
    """Moves all weights that are in shards."""

    def __init__(self, who: str) -> None:
        """``who`` is the optimizer's name in errors."""
        self.rounds: list[Round] = []
        self.nonfinite: dict[torch.device, Tensor] = {}
        self._who = who
        self._planned: list[Any] = []

    def step(
        self, groups: list[Group], state: State, sharded: list[tuple[int, str, Tensor]]
    ) -> None:
        """One step of ``sharded``: the same on all ranks, in the same order. All must call it."""
        wanted: list[Any] = [
            (index, id(param), param.grad.dtype, groups[index]["workspace_mb"])
            for index, _, param in sharded
            if param.grad is not None
        ]
        if wanted != self._planned:
            self.rounds, self._planned = [*self._plan(groups, state, sharded)], wanted
        for each in self.rounds:
            each.step(groups, state)

    def _plan(
        self, groups: list[Group], state: State, sharded: list[tuple[int, str, Tensor]]
    ) -> Iterator[Round]:
        """Weights of one process group and dtype together, the largest first."""
        kinds: dict[Any, list[Weight]] = {}
        for index, name, param in sharded:
            assert param.grad is not None
            dtype = exchanged_dtype(param.grad, local_momentum(state[param]))
            weight = Weight(index, name, param, shards_of(param))
            kinds.setdefault((weight.shards.ranks, dtype, param.device), []).append(weight)
        for (_, dtype, _), weights in kinds.items():
            weights.sort(key=lambda each: -each.param.numel())
            count = len(weights[0].shards.sizes)
            most = min(groups[each.group_index]["workspace_mb"] for each in weights) * 2**20 * count
            ends = accumulate(each.param.numel() * dtype.itemsize for each in weights)
            rounds: dict[int, list[Weight]] = {}
            for each, end in zip(weights, ends, strict=True):
                rounds.setdefault(int((end - 1) // most), []).append(each)
            for members in rounds.values():
                yield Round(self._who, members, dtype, self.nonfinite)
