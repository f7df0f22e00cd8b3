"""Steps of small blocks that know nothing of each other, on a processor: one operator a bucket."""

from __future__ import annotations

import torch
from torch import Tensor

from schattor import ops, planning
from schattor.optim._buckets import Bucket
from schattor.optim._settings import Group
from schattor.optim._sizes import by_frobenius

__all__ = ["fused_step"]


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
    corrections = bucket.corrections(group)
    if corrections is None:
        corrections = torch.ones_like(bucket.lengths)
    return ops.chain_update(
        bucket.params,
        bucket.grads,
        bucket.momenta,
        (bucket.momentum, ema, group["nesterov"], plan.size, scratch),
        (planning.chain_steps(plan), chain_weights, bucket.powers, plan.gram, list(plan.restarts)),
        (lr, factors, bucket.lengths, corrections, *sizes),
        bucket.decay,
    )
