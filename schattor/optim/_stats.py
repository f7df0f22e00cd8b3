"""Numbers about the last step and words about its routes; nothing here runs in a step."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from schattor import functional, ops
from schattor.directions import over, wide_direction
from schattor.optim._buckets import Bucket
from schattor.optim._sharded import ShardedSteps
from schattor.optim._stepper import Stepper
from schattor.theory import exponents

__all__ = ["describe", "statistics"]


def describe(stepper: Stepper, sharded: ShardedSteps) -> str:
    """One line a bucket: how many blocks of what shape, on what device, by which route and why."""
    lines = [_line(bucket) for bucket in stepper.buckets]
    lines += [_line(bucket) + "; for all ranks" for bucket in sharded.buckets]
    return "\n    ".join(["routes:", *lines]) if lines else "routes: planned at the first step"


def _line(bucket: Bucket) -> str:
    key = bucket.key
    dtype = str(key.param_dtype).removeprefix("torch.")
    return (
        f"group {key.group_index}: {len(bucket.names)} x {key.rows}x{key.cols} {dtype} on"
        f" {key.device}: {bucket.plan}"
    )


def statistics(stepper: Stepper, sharded: ShardedSteps, *, spectra: bool) -> dict[str, Any]:
    """See :meth:`schattor.Schattor.stats`."""
    buckets = [*stepper.buckets, *sharded.buckets]
    counts = [*stepper.nonfinite.values(), *sharded.nonfinite.values()]
    factors = [bucket.inside.factors for bucket in buckets if bucket.inside is not None]
    return {
        "nonfinite": sum(int(count) for count in counts),
        "failed_refreshes": sum(each.failed for each in factors if each is not None),
        "blocks": _of_blocks(buckets, spectra),
    }


def _of_blocks(buckets: list[Bucket], spectra: bool) -> dict[str, dict[str, float]]:
    blocks: dict[str, dict[str, float]] = {}
    for bucket in buckets:
        if bucket.measured:
            columns = {"power": bucket.powers, **_columns(bucket, spectra)}
            names, table = [*columns], torch.stack([*columns.values()]).cpu().tolist()
            for index, block in enumerate(bucket.names):
                values = {name: row[index] for name, row in zip(names, table, strict=True)}
                blocks[block] = {**_index(values.pop("power")), **values}
    return blocks


def _index(power: float) -> dict[str, float]:
    return {"power": power} if power < 0 else {"p": exponents.p_of(power)}


def _columns(bucket: Bucket, spectra: bool) -> dict[str, Tensor]:
    """A float64 vector for each statistic, one number a block."""
    dual, square, scale = (torch.cat(part) for part in zip(*bucket.measured, strict=True))
    size = math.sqrt(bucket.key.rows * bucket.key.cols)
    weights = [param.float().norm() for param in bucket.params]
    columns = {
        "dual_norm": dual,
        "update_rms": scale.abs() * square.sqrt() / size,
        "weight_rms": torch.stack(weights).to(dual.dtype) / size,
    }
    if spectra and bucket.momenta:
        parts = [_spectral(bucket, chunk) for chunk in bucket.chunks]
        columns |= {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return columns


def _spectral(bucket: Bucket, chunk: slice) -> dict[str, Tensor]:
    """What needs singular values of the momentum, of the blocks of a chunk."""
    count, plan = chunk.stop - chunk.start, bucket.plan
    shape = (count, bucket.key.rows, bucket.key.cols)
    wide = torch.empty(shape, dtype=plan.dtype, device=bucket.key.device)
    norms, still = bucket.powers[chunk].clone(), torch.zeros_like(bucket.momentum)
    finite = torch.empty(count, dtype=torch.bool, device=wide.device)
    momenta, size = bucket.momenta[chunk], plan.size
    ops.gather_momentum(momenta, [], still, False, False, size, wide, norms, finite)
    _, s, _ = functional.partial_svd(wide, 1)
    square = finite.to(norms.dtype) * size**2
    columns = {"stable_rank": over(square, s[:, 0].to(norms.dtype).square())}
    if bucket.power == 0:
        weights = None if bucket.chain_weights is None else bucket.chain_weights[chunk]
        found = wide_direction(wide, bucket.powers[chunk], weights, plan).direction.to(norms.dtype)
        residual = found @ found.mT - torch.eye(shape[1], dtype=norms.dtype, device=wide.device)
        columns["polar_error"] = residual.square().mean(2).sum(1).sqrt()
    return columns
