"""Steps of weights that ranks hold in shards: each is computed whole, by the rank that owns it.

For a step every rank sends its shards of gradients and weights to the owners. These take the one
step loop, as one process would, and send the shards of the new weights back. What a weight's steps
leave behind (momentum, factors, bases) stays with its owner whole. Where a checkpoint is written it
is shards of DTensors, as the weight is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from schattor.adaptive.chooser import Chooser
from schattor.optim._buckets import Bucket
from schattor.optim._directed import Beyond, Coupling, Waiting, coupled, norms_of
from schattor.optim._rounds import Round, Weight
from schattor.optim._settings import Group, State, outer_exponent, power_of
from schattor.optim._shards import placements_of, ranks_of, spread_of
from schattor.optim._state import structure_of
from schattor.optim._stepper import Stepper
from schattor.portable import scalar_dtype

__all__ = ["ShardedSteps"]


class ShardedSteps:
    """Moves all weights that are in shards."""

    def __init__(self, who: str) -> None:
        """``who`` is the optimizer's name in errors."""
        self.rounds: list[Round] = []
        self.nonfinite: dict[torch.device, Tensor] = {}
        self._who = who
        self._seen: Sequence[Any] = ()
        self._planned: list[Any] = []
        self._chooser: Chooser | None = None
        self._couplings: dict[Coupling, set[int]] = {}

    @property
    def buckets(self) -> list[Bucket]:
        """Of the blocks that this rank computes."""
        return [bucket for each in self.rounds for bucket in each.stepper.buckets]

    def shards(self) -> Iterable[tuple[Any, dict[str, Any]]]:
        """Each weight, and what its owner keeps of it, in shards. All ranks must go through all."""
        for each in self.rounds:
            yield from each.shards(self._chooser)

    def prepare(
        self,
        groups: Sequence[Group],
        state: State,
        sharded: Sequence[tuple[int, str, Tensor]],
        chooser: Chooser | None,
    ) -> None:
        """Plan again if needed: ``sharded`` are the same on all ranks, which must all call it."""
        if sharded is not self._seen:
            self._follow(groups, state, sharded, chooser)
        self._chooser = chooser
        self._couple(groups)

    def _follow(
        self,
        groups: Sequence[Group],
        state: State,
        sharded: Sequence[tuple[int, str, Tensor]],
        chooser: Chooser | None,
    ) -> None:
        """Take other weights, or settings, than those of the last plan."""
        wanted: list[Any] = [
            (index, id(param), groups[index]["workspace_mb"], structure_of(groups[index]))
            for index, _, param in sharded
        ]
        if wanted != self._planned:
            planned = [*self._plan(groups, sharded)]
            for param, entry in self.shards():
                state[param].update(entry)
            self.rounds, self._planned = planned, wanted
            for each in self.rounds:
                each.take(groups, state, chooser)
        self._seen = sharded

    def step(self, groups: list[Group], state: State, whole: Stepper, waiting: Waiting) -> None:
        """One step, and the rest of that of ``whole``, which has begun and has ``waiting``."""
        held: list[tuple[Round, Waiting]] = []
        coupled_rounds = self._coupled_rounds()
        for each in self.rounds:
            begun = each.begin(groups, self._chooser)
            if each in coupled_rounds:
                held.append((each, begun))
            else:
                each.finish(state, [])
        pairs = self._couplings.items()
        beyond = {key: _beyond(key, indices, held) for key, indices in pairs}
        first, *rest = coupled([waiting, *(begun for _, begun in held)], beyond)
        whole.finish(groups, first)
        for (each, _), moving in zip(held, rest, strict=True):
            each.finish(state, moving)

    def _couple(self, groups: Sequence[Group]) -> None:
        """Find which groups' blocks share one step; refuse what no exchange brings together."""
        self._couplings = {}
        for index in sorted({index for each in self.rounds for index in each.group_indices}):
            group = groups[index]
            outer = outer_exponent(self._who, group, power_of(self._who, group))
            if outer is not None:
                self._couplings.setdefault(Coupling(group["oracle"], outer), set()).add(index)
        kinds = {(each.ranks, each.device) for each in self._coupled_rounds()}
        if len(kinds) > 1:
            raise ValueError(
                f"{self._who}: coupling needs the same ranks for all DTensors of its groups,"
                f" got {len(kinds)} sets of ranks: leave it None"
            )

    def _coupled_rounds(self) -> list[Round]:
        indices = {index for each in self._couplings.values() for index in each}
        return [each for each in self.rounds if each.group_indices & indices]

    def _plan(
        self, groups: Sequence[Group], sharded: Sequence[tuple[int, str, Tensor]]
    ) -> Iterator[Round]:
        """Weights of one process group and dtype together, the largest first.

        Each goes to the rank that has least of its round so far.
        """
        kinds: dict[Any, list[tuple[int, str, Any]]] = {}
        for each in sharded:
            param = each[2]
            kind = ranks_of(param), param.dtype, param.device
            kinds.setdefault(kind, []).append(each)
        for (ranks, dtype, _), members in kinds.items():
            members.sort(key=lambda each: -each[2].numel())
            workspace = min(groups[index]["workspace_mb"] for index, _, _ in members)
            most = workspace * 2**20 * ranks.size
            ends = accumulate(param.numel() * dtype.itemsize for _, _, param in members)
            rounds: dict[int, list[tuple[int, str, Any]]] = {}
            for member, end in zip(members, ends, strict=True):
                rounds.setdefault(int((end - 1) // most), []).append(member)
            for chosen in rounds.values():
                loads = [0] * ranks.size
                weights = []
                for index, name, param in chosen:
                    owner = loads.index(min(loads))
                    loads[owner] += param.numel()
                    spread = spread_of(param, param.shape, owner)
                    placements = placements_of(param, spread)
                    weights.append(Weight(index, name, param, spread, placements))
                yield Round(self._who, ranks, weights, groups, self.nonfinite)


def _beyond(key: Coupling, indices: set[int], held: Sequence[tuple[Round, Waiting]]) -> Beyond:
    """What other ranks have of one coupling."""
    ranks, device = held[0][0].ranks, held[0][0].device
    if ranks.group is None:
        return Beyond([], [])
    counts = [sum(each) for each in zip(*(one.counts(indices) for one, _ in held), strict=True)]
    own = [norms_of(directed) for _, begun in held for directed in begun.get(key, [])]
    sent = torch.zeros(2, max(counts), dtype=scalar_dtype(device), device=device)
    if own:
        sent[:, : counts[ranks.own]] = torch.cat(own, 1)
    found = [torch.empty_like(sent) for _ in counts]
    dist.all_gather(found, sent, group=ranks.group)
    parts = [each[:, :count] for each, count in zip(found, counts, strict=True)]
    return Beyond(parts[: ranks.own], parts[ranks.own + 1 :])
