"""Steps of small blocks that know nothing of each other, on a processor: one operator a bucket."""

from __future__ import annotations

import torch
from torch import Tensor

from schattor import ops, planning
from schattor.optim._buckets import Bucket
from schattor.optim._settings import Group
from schattor.optim._sizes import by_frobenius

__all__ = ["correction", "fused_step"]


def correction(bucket: Bucket, group: Group) -> Tensor:
    """``[batch]``, what averages that began at zero are divided by; 1 where they are not."""
    ema = group["momentum_form"] == "ema"
    if not (group["bias_correction"] and ema and bucket.momenta):
        return torch.ones_like(bucket.taken)
    taken = bucket.taken + 1 + group["nesterov"]
    return 1 - torch.pow(bucket.momentum, taken)


def fused_step(
    bucket: Bucket, group: Group, scratch: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Move the weights and moments of all blocks.

    ``scratch`` ``[2 workers, rows, cols]`` is in the plan's dtype. Returns which blocks were
    finite, and `Measured`'s three.
    """
    assert bucket.chain_weights is not None  # the plan's route is a chain
    weights, regularized = bucket.block_weights, group["oracle"] == "regularized"
    plan, ema = bucket.plan, group["momentum_form"] == "ema"
    chain_weights = bucket.chain_weights
    lr = -bucket.lr if group["maximize"] else bucket.lr
    factors = weights.square() if regularized else weights
    sizes = (by_frobenius(bucket.scale), regularized)
    return ops.chain_update(
        bucket.params,
        bucket.grads,
        bucket.momenta,
        (bucket.momentum, ema, group["nesterov"], plan.size, scratch),
        (planning.chain_steps(plan), chain_weights, bucket.powers, plan.gram, list(plan.restarts)),
        (lr, factors, bucket.lengths, correction(bucket, group), *sizes),
        bucket.decay,
    )
