"""Weights in shards that are whole at once: each with the rank that owns it, which steps it."""

from __future__ import annotations

import glob
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from schattor.adaptive.chooser import Chooser
from schattor.blocks import block_shapes
from schattor.optim._directed import Moving, Waiting
from schattor.optim._exchange import Exchange, Ranks, Spread
from schattor.optim._groups import block_weight
from schattor.optim._settings import Group, State
from schattor.optim._shards import as_shards, placements_of, put_shard, shard_of, spread_of
from schattor.optim._state import create_state
from schattor.optim._stepper import Stepper

__all__ = ["Round", "Weight"]

# Keys of a group that the owners' own groups have otherwise.
_OWNERS = ("params", "param_names", "routes")


class Weight(NamedTuple):
    """A weight in shards."""

    group_index: int
    name: str
    param: Any  # a DTensor
    spread: Spread
    placements: tuple[Any, ...]  # the same, as torch says it


class Kept(NamedTuple):
    """What owners keep of one weight under one key of the state."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class Round:
    """Some weights of one process group and dtype, whose whole matrices are alive at once."""

    def __init__(
        self,
        who: str,
        ranks: Ranks,
        weights: Sequence[Weight],
        groups: Sequence[Group],
        nonfinite: dict[torch.device, Tensor],
    ) -> None:
        """``weights`` in the same order on all ranks; blocks not finite are counted where told."""
        self.stepper = Stepper(who)
        self.stepper.nonfinite = nonfinite
        self.device: torch.device = weights[0].param.device
        self.group_indices = {weight.group_index for weight in weights}
        self.ranks, self._weights = ranks, weights
        self._state: State = defaultdict(dict)
        self._kept: list[dict[str, Kept]] = []
        self._wholes: dict[int, Tensor] = {}
        self._groups: list[Group] = [{**group, "params": [], "param_names": []} for group in groups]
        self._exchange, self._moving = Exchange(ranks, []), list[int]()
        for index, weight in enumerate(weights):
            if weight.spread.owner == ranks.own:
                param = weight.param
                whole = torch.empty(param.shape, dtype=param.dtype, device=param.device)
                self._wholes[index] = whole.requires_grad_()
                self._groups[weight.group_index]["params"].append(whole)
                self._groups[weight.group_index]["param_names"].append(weight.name)
                self.stepper.watched[whole] = param

    def take(self, groups: Sequence[Group], state: State, chooser: Chooser | None) -> None:
        """Bring what the state has of these weights to their owners.

        The keys stay, without values: what loads flat state dicts asks the state for them.
        """
        for index, weight in enumerate(self._weights):
            begun = _begun(weight, groups[weight.group_index], chooser)
            entry, found = state[weight.param], {}
            for key, value in begun.items():
                if entry.get(key) is not None and entry[key].shape == value.shape:
                    found[key] = entry[key]
                entry[key] = None
            kept = {**begun, **found}
            self._kept.append({k: Kept(tuple(v.shape), v.dtype) for k, v in kept.items()})
            own = self._entry(index)
            own["step"] = entry["step"].clone()
            for keys, spreads in self._by_dtype(index, found):
                shards = [
                    shard_of(found[key], weight.param, placements_of(weight.param, spread))
                    for key, spread in zip(keys, spreads, strict=True)
                ]
                wholes = Exchange(self.ranks, spreads).to_owners(shards)
                own.update(zip(keys, wholes, strict=False))  # none on the other ranks

    def shards(self, chooser: Chooser | None) -> Iterator[tuple[Any, dict[str, Any]]]:
        """Each weight, and what its owner keeps, in shards. All ranks must go through all."""
        create_state(self._groups, self._state, chooser)  # as on the ranks that do not own it
        for index, (weight, kept) in enumerate(zip(self._weights, self._kept, strict=True)):
            own, entry = self._entry(index), {}
            for keys, spreads in self._by_dtype(index, kept):
                wholes = [own[key] for key in keys if key in own]
                like = torch.empty(0, dtype=kept[keys[0]].dtype, device=weight.param.device)
                found = Exchange(self.ranks, spreads).to_shards(wholes, like)
                for key, spread, local in zip(keys, spreads, found, strict=True):
                    placements = placements_of(weight.param, spread)
                    entry[key] = as_shards(weight.param, local, spread.shape, placements)
            yield weight.param, entry

    def _entry(self, index: int) -> dict[str, Any]:
        """The state of a weight that this rank owns, or an empty one."""
        return self._state[self._wholes[index]] if index in self._wholes else {}

    def _by_dtype(
        self, index: int, kept: dict[str, Any]
    ) -> Iterator[tuple[list[str], list[Spread]]]:
        """Keys of one weight that can travel together, and how they lie."""
        weight = self._weights[index]
        for dtype in dict.fromkeys(each.dtype for each in kept.values()):
            keys = [key for key, each in kept.items() if each.dtype == dtype]
            owner = weight.spread.owner
            yield keys, [spread_of(weight.param, kept[key].shape, owner) for key in keys]

    def begin(self, groups: Sequence[Group], chooser: Chooser | None) -> Waiting:
        """Bring together those that have gradients, and begin their step."""
        moving = [i for i, each in enumerate(self._weights) if each.param.grad is not None]
        if moving != self._moving:
            self._exchange = Exchange(self.ranks, [self._weights[i].spread for i in moving])
            self._moving = moving
        if not moving:
            return {}
        members = [self._weights[index] for index in moving]
        grads = [shard_of(each.param.grad, each.param, each.placements) for each in members]
        weights = [shard_of(each.param, each.param, each.placements) for each in members]
        for whole, weight in zip(self._owned(), self._exchange.to_owners(weights), strict=True):
            whole.copy_(weight)
        self._forget_gradients()
        for whole, grad in zip(self._owned(), self._exchange.to_owners(grads), strict=True):
            whole.grad = grad
        self._follow(groups)
        if self.stepper.chooser is not chooser:
            self.stepper.forget()
            self.stepper.chooser = chooser
        self.stepper.prepare(self._groups, self._state)
        return self.stepper.begin(self._groups)

    def finish(self, state: State, moving: Moving) -> None:
        """Move what waited, end the step, and move the shards."""
        if not self._moving:
            return
        self.stepper.finish(self._groups, moving)
        self._forget_gradients()
        members = [self._weights[index] for index in self._moving]
        new = self._exchange.to_shards(self._owned(), members[0].param.to_local())
        for each, shard in zip(members, new, strict=True):
            put_shard(each.param, shard, each.placements)
            state[each.param]["step"] += 1

    def counts(self, groups: set[int]) -> list[int]:
        """How many blocks of some groups each rank has in this step."""
        counts = [0] * self.ranks.size
        for index in self._moving:
            weight = self._weights[index]
            if weight.group_index in groups:
                spec = self._groups[weight.group_index].get("blocks")
                counts[weight.spread.owner] += len(block_shapes(weight.param.shape, spec))
        return counts

    def _owned(self) -> list[Tensor]:
        """What this rank owns of the weights of this step."""
        return [self._wholes[self._moving[place]] for place in self._exchange.owned]

    def _forget_gradients(self) -> None:
        for whole in self._wholes.values():
            whole.grad = None

    def _follow(self, groups: Sequence[Group]) -> None:
        """Take the groups' values of this step."""
        for own, group in zip(self._groups, groups, strict=True):
            own.update((key, value) for key, value in group.items() if key not in _OWNERS)
            if isinstance(group["block_weights"], dict):  # each pattern must match one that it owns
                names = own["param_names"]
                weights = {glob.escape(each): block_weight(group, each) for each in names}
                own["block_weights"] = weights


def _begun(weight: Weight, group: Group, chooser: Chooser | None) -> dict[str, Tensor]:
    """What a weight's state begins with beside its steps, without the numbers."""
    twin = torch.empty(weight.param.shape, dtype=weight.param.dtype, device="meta")
    state: State = defaultdict(dict)
    create_state([{**group, "params": [twin.requires_grad_()]}], state, chooser)
    return {key: value for key, value in state[twin].items() if key != "step"}
