"""Blocks of a bucket whose p is chosen from data, each its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from schattor import planning
from schattor.adaptive.chooser import Chooser, Inputs
from schattor.blocks import BlockSpec, block_views
from schattor.optim._preconditioned import Entries, Preconditioned
from schattor.planning import Plan

__all__ = ["Chosen", "create_choice", "inputs_of"]


def create_choice(entry: dict[str, Any], blocks: int, grid: int, device: torch.device) -> None:
    """What a parameter's state holds of its blocks' choice, where it is not there yet.

    ``auto_power`` is the power that steps take, NaN before the first choice; ``auto_curve`` the
    smoothed logarithm of the criterion over the grid.
    """
    for index in range(blocks):
        suffix = "" if blocks == 1 else f".{index}"
        if entry.get(f"auto_curve{suffix}", torch.empty(0)).numel() != grid:
            entry[f"auto_curve{suffix}"] = torch.full((grid,), torch.nan, device=device)
            entry.setdefault(f"auto_power{suffix}", torch.full((), torch.nan, device=device))


def inputs_of(param: Any, spec: BlockSpec | None, tall: list[bool]) -> list[Inputs]:
    """Which inputs each block of a parameter multiplies; ``tall`` blocks enter transposed."""
    out = bool(spec) and (spec or {}).get("out", 0) == 1
    split = any(key in (spec or {}) for key in ("rows" if out else "cols", "most"))
    chosen: list[Tensor | None] = [None] * len(tall)
    if split:
        size = param.shape[0] if out else param[0].numel()
        shape = (size, 1) if out else (1, size)
        places = torch.arange(size, device=param.device).view(shape)
        like = places.expand(param.shape) if param.ndim == 2 else places.view(1, *param.shape[1:])
        views = block_views(like.expand(param.shape), spec, like=None)
        chosen = [view[:, 0] if out else view[0] for view in views]
    return [
        Inputs(param, indices, right=is_tall if out else not is_tall)
        for indices, is_tall in zip(chosen, tall, strict=True)
    ]


class Chosen:
    """Powers ``[batch]`` of a bucket's blocks, and the weights of the chain that belong to them."""

    def __init__(self, chooser: Chooser) -> None:
        """Empty: fill ``inputs``, then ``join``."""
        self.inputs: list[Inputs] = []
        self._chooser = chooser
        self._curves = self._powers = self._grid = self._index = torch.empty(0)
        self._rows: Tensor | None = None

    def join(self, entries: Entries, dtype: torch.dtype, device: torch.device) -> None:
        """Lay the blocks' choices side by side, and make the state views of that."""
        self._grid = torch.tensor(self._chooser.powers, dtype=dtype, device=device)
        joined = []
        for key in ("auto_curve", "auto_power"):
            batch = torch.stack([entry[key + suffix] for entry, suffix in entries])
            for (entry, suffix), view in zip(entries, batch.unbind(), strict=True):
                entry[key + suffix] = view
            joined.append(batch)
        self._curves, self._powers = joined
        start = torch.where(self._powers.isnan(), self._grid[0].float(), self._powers)
        self._index = (self._grid - start.to(dtype)[:, None]).abs().argmin(1)

    def follow(self, plan: Plan, powers: Tensor, weights: Tensor | None) -> None:
        """Write the powers, and the chain's weights of a plan, where steps read them."""
        powers.copy_(self._grid[self._index])
        if weights is not None:
            rows = [planning.chain_weights(power, plan) for power in self._chooser.powers]
            self._rows = torch.tensor(rows, dtype=weights.dtype, device=weights.device)
            weights.copy_(self._rows[self._index])

    def choose(
        self,
        chunk: slice,
        wide: Tensor,
        grads: list[Tensor],
        inside: Preconditioned | None,
        outside: Tensor | None,
        powers: Tensor,
        weights: Tensor | None,
    ) -> None:
        """Choose the powers of a chunk from its momenta ``wide`` and its gradients.

        ``outside`` are the weights of a preconditioner; ``powers`` and ``weights`` are those of the
        whole bucket, written in place.
        """
        dtype = torch.float64 if wide.dtype == torch.float64 else torch.float32
        for local, block in enumerate(range(chunk.start, chunk.stop)):

            def outward(x: Tensor, local: int = local, block: int = block) -> Tensor:
                own = None if outside is None else outside[local]
                return x if inside is None else inside.outward(block, x, own)

            place = (self._curves[block], self._index[block])
            x, grad = wide[local].to(dtype), grads[local].to(dtype)
            self._chooser.choose(self.inputs[block], x, grad, outward, *place)
        self._powers[chunk] = self._grid[self._index[chunk]].to(self._powers.dtype)
        powers[chunk] = self._grid[self._index[chunk]]
        if weights is not None and self._rows is not None:
            weights[chunk] = self._rows[self._index[chunk]]
