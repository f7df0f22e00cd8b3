"""Blocks of a bucket whose p is chosen from data, each its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from schattor import planning
from schattor.adaptive.chain import DEPTH
from schattor.adaptive.chooser import Chooser, Inputs
from schattor.adaptive.moments import Moments, noise_moments, side_of
from schattor.adaptive.own import Widths
from schattor.adaptive.samples import Samples
from schattor.blocks import BlockSpec, block_shapes, block_views, fans
from schattor.optim._entries import Entries, joined, suffixes
from schattor.optim._preconditioned import Preconditioned
from schattor.planning import Plan

__all__ = ["Chosen", "Seen", "create_choice", "inputs_of", "widths_of"]

# Bytes of iterates; matrices of a step are far smaller or far larger than this.
_MOST_ALIVE = 64 * 2**20


def create_choice(entry: dict[str, Any], blocks: int, grid: int, device: torch.device) -> None:
    """What a parameter's state holds of its blocks' choice, where it is not there yet.

    ``auto_power`` is the power that steps take, NaN before the first choice; ``auto_curve`` the
    smoothed criterion over the grid, relative to its largest value.
    """
    for suffix in suffixes(blocks):
        if entry.get(f"auto_curve{suffix}", torch.empty(0)).numel() != grid:
            entry[f"auto_curve{suffix}"] = torch.full((grid,), torch.nan, device=device)
            entry.setdefault(f"auto_power{suffix}", torch.full((), torch.nan, device=device))


def inputs_of(param: Any, spec: BlockSpec | None, tall: list[bool]) -> list[Inputs]:
    """Which inputs each block of a parameter multiplies; ``tall`` blocks enter transposed."""
    spec = spec or {}
    out = spec.get("out", 0) == 1
    inputs, outputs = (_places(param, spec, rows, len(tall)) for rows in (out, not out))
    return [
        Inputs(param, index, inputs[index], is_tall if out else not is_tall, outputs[index])
        for index, is_tall in enumerate(tall)
    ]


def _places(param: Any, spec: BlockSpec, along_rows: bool, count: int) -> Sequence[Tensor | None]:
    """Which rows or columns of the parameter's matrix each block holds; None: all of them."""
    if "most" not in spec and ("rows" if along_rows else "cols") not in spec:
        return [None] * count
    inner = param.shape[spec.get("batch", 0) :]
    shape = (-1, *[1] * (len(inner) - 1)) if along_rows else (1, *inner[1:])
    numbers = torch.arange(_side(param, spec, along_rows), device=param.device)
    places = numbers.view(shape).expand(param.shape)
    return [view[:, 0] if along_rows else view[0] for view in block_views(places, spec)]


def widths_of(param: Any, name: str, spec: BlockSpec | None) -> Widths:
    """How many inputs a parameter multiplies, and each of its blocks, where there are several."""
    blocks = [fans(shape, spec)[1] for shape in block_shapes(param.shape, spec)]
    own = tuple(blocks) if len(blocks) > 1 else ()
    out = (spec or {}).get("out", 0) == 1
    return Widths(param, name, _side(param, spec or {}, along_rows=out), own, out, spec)


def _side(param: Any, spec: BlockSpec, along_rows: bool) -> int:
    """How many rows or columns the matrices of a parameter have before they split."""
    inner = param.shape[spec.get("batch", 0) :]
    return int(inner[0] if along_rows else inner[1:].numel())


class Seen(NamedTuple):
    """A chunk of a bucket on a step that chooses."""

    chunk: slice
    wide: Tensor  # what is applied, in the coordinates of the norm
    grads: list[Tensor]
    momenta: list[Tensor]  # before this step
    averages: Tensor  # [batch] factors that make averages of them
    inside: Preconditioned | None
    outside: Tensor | None  # the weights of a preconditioner

    def outward(self, local: int, x: Tensor) -> Tensor:
        """Matrices in the coordinates of a block's norm as its steps."""
        if self.inside is None:
            return x
        weights = None if self.outside is None else self.outside[local]
        return self.inside.outward(self.chunk.start + local, x, weights)

    def inward(self, local: int, mean: Tensor) -> Tensor:
        """A block's average gradient, where its momenta live, in the coordinates of its norm.

        Weights and roots are symmetric: going in is going out.
        """
        if self.inside is None or self.inside.bases is None:
            return self.outward(local, mean)
        return mean if self.outside is None else mean * self.outside[local]

    def noise(self, local: int, grad: Tensor, mean: Tensor) -> Tensor:
        """What a block's gradient has beside its average."""
        if self.inside is not None and self.inside.bases is not None:
            mean = self.inside.outward(self.chunk.start + local, mean, None)
        return grad - mean


class Chosen:
    """Powers ``[batch]`` of a bucket's blocks, and the weights of the chain that belong to them."""

    def __init__(self, chooser: Chooser) -> None:
        """Empty: fill ``inputs``, then ``join``."""
        self.inputs: list[Inputs] = []
        self._chooser = chooser
        self._curves = self._powers = self._grid = self._index = self._exponents = torch.empty(0)
        self._rows: Tensor | None = None

    def join(self, entries: Entries, dtype: torch.dtype, device: torch.device) -> None:
        """Lay the blocks' choices side by side, and make the state views of that."""
        self._grid = torch.tensor(self._chooser.powers, dtype=dtype, device=device)
        self._curves, self._powers = (joined(entries, f"auto_{key}") for key in ("curve", "power"))
        start = torch.where(self._powers.isnan(), self._grid[0].float(), self._powers)
        self._index = (self._grid - start.to(dtype)[:, None]).abs().argmin(1)

    def follow(
        self,
        plan: Plan,
        powers: Tensor,
        weights: Tensor | None,
        inside: Preconditioned | None,
    ) -> None:
        """Write the powers, the chain's weights of a plan and exponents where steps read them."""
        powers.copy_(self._grid[self._index])
        if weights is not None:
            rows = [planning.chain_weights(power, plan) for power in self._chooser.powers]
            self._rows = torch.tensor(rows, dtype=weights.dtype, device=weights.device)
            weights.copy_(self._rows[self._index])
        if inside is not None:
            exponents = [inside.spec.exponent_at(power) for power in self._chooser.powers]
            self._exponents = torch.tensor(exponents, dtype=powers.dtype, device=powers.device)
            inside.exponents.copy_(self._exponents[self._index])

    def choose(self, seen: Seen, powers: Tensor, weights: Tensor | None) -> list[int]:
        """Choose the powers of a chunk; its places whose powers were chosen.

        ``powers`` and ``weights`` are those of the whole bucket, written in place. This step keeps
        the weights of a preconditioner that it was gathered with, and J is of the step with them;
        their exponents belong to the new powers from the next step on.
        """
        chunk = seen.chunk
        known: list[int] = []
        for right in (True, False):
            of_side = [
                local
                for local in range(chunk.stop - chunk.start)
                if self.inputs[chunk.start + local].right == right
            ]
            for start in range(0, len(of_side), most := _at_once(seen.wide)):
                known += self._choose(seen, of_side[start : start + most], right)
        self._powers[chunk] = self._grid[self._index[chunk]].to(self._powers.dtype)
        powers[chunk] = self._grid[self._index[chunk]]
        if weights is not None and self._rows is not None:
            weights[chunk] = self._rows[self._index[chunk]]
        if seen.inside is not None:
            seen.inside.exponents[chunk] = self._exponents[self._index[chunk]]
        return sorted(known)

    def _choose(self, seen: Seen, blocks: list[int], right: bool) -> list[int]:
        """Choose for those of some blocks, with inputs on the same side, that statistics know."""
        dtype = torch.float64 if seen.wide.dtype == torch.float64 else torch.float32
        if self._chooser.from_gradients:
            means = [seen.momenta[i].to(dtype) * seen.averages[i].to(dtype) for i in blocks]
            pairs = [*zip(blocks, means, strict=True)]
            noise = [seen.noise(i, seen.grads[i].to(dtype), mean) for i, mean in pairs]
            x = _unit(torch.stack([seen.inward(i, mean) for i, mean in pairs]))
            self._weigh(seen, blocks, x, noise_moments(_unit(torch.stack(noise)), right))
            return blocks
        known = self._known(seen, blocks)
        if known:
            blocks = [i for i, _, _ in known]
            inputs = side_of([samples for _, samples, _ in known])
            behind = [samples for _, _, samples in known if samples is not None]
            whole = len(blocks) == len(seen.wide)
            x = seen.wide if whole else torch.stack([seen.wide[i] for i in blocks])
            moments = Moments(inputs, right, side_of(behind) if behind else None)
            self._weigh(seen, blocks, x.to(dtype), moments)
        return [i for i, _, _ in known]

    def _weigh(self, seen: Seen, blocks: list[int], x: Tensor, moments: Moments) -> None:
        """Choose for some blocks, of which ``x`` is compared at all powers."""

        def outward(steps: Tensor) -> Tensor:
            parts = zip(blocks, steps.unbind(), strict=True)
            return torch.stack([seen.outward(i, part) for i, part in parts])

        grads = _stacked([seen.grads[i].to(x.dtype) for i in blocks])
        places = [seen.chunk.start + i for i in blocks]
        curves, index = [self._curves[i] for i in places], [self._index[i] for i in places]
        past = torch.stack(curves), torch.stack(index)
        new = self._chooser.choose(
            x, grads, moments, None if seen.inside is None else outward, *past
        )
        torch._foreach_copy_(curves, list(new[0].to(curves[0].dtype).unbind()))
        torch._foreach_copy_(index, list(new[1].unbind()))

    def _known(self, seen: Seen, blocks: list[int]) -> list[tuple[int, Samples, Samples | None]]:
        """Blocks whose inputs were seen, with those; and with outputs where they are asked for."""
        chooser, found = self._chooser, []
        for i in blocks:
            block = self.inputs[seen.chunk.start + i]
            inputs, behind = chooser.samples(block), chooser.samples_behind(block)
            if inputs is not None and (behind is not None or not chooser.from_both_sides):
                found.append((i, inputs, behind))
        return found


def _at_once(wide: Tensor) -> int:
    """How many blocks' iterates are alive at once."""
    return max(1, _MOST_ALIVE // (wide[0].numel() * wide.element_size() * (DEPTH + 1)))


def _stacked(matrices: list[Tensor]) -> Tensor:
    """``[batch, rows, cols]``; of transposed views a transposed view, whose copy is faster."""
    if all(each.mT.is_contiguous() for each in matrices):
        return torch.stack([each.mT for each in matrices]).mT
    return torch.stack(matrices)


def _unit(x: Tensor) -> Tensor:
    """Matrices of norm 1, or 0: what follows squares them."""
    norms = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
    return x / torch.where(norms > 0, norms, torch.ones_like(norms))
