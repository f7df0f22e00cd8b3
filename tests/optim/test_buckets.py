"""A bucket's plan: kept by the group, replaced when what it was made from changes."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from cases import problem, run

from schattor import _C
from schattor.optim import Schattor
from schattor.optim._buckets import Bucket, BucketKey


def depths(optimizer: Schattor) -> set[int]:
    return {bucket.plan.depth for bucket in optimizer._stepper.buckets}


def test_a_resumed_run_takes_the_route_that_was_saved() -> None:
    made = problem(((6, 6), (6, 6)), torch.float32)
    optimizer = Schattor(made.params, p=3)
    run(optimizer, made, 1)
    assert depths(optimizer) == {8}
    packed = copy.deepcopy(optimizer.state_dict())
    routes = json.loads(packed["param_groups"][0]["routes"])
    for record in routes.values():  # as if an earlier version had planned six steps in bfloat16
        record |= {"depth": 6, "dtype": "bfloat16"}
    packed["param_groups"][0]["routes"] = json.dumps(routes)
    other = Schattor(made.params, p=3)
    other.load_state_dict(packed)
    run(other, made, 1, first=1)
    assert depths(other) == {6}
    assert {b.plan.dtype for b in other._stepper.buckets} == {torch.bfloat16}
    assert "kept as first planned" in other.explain()


def test_the_kept_route_gives_way_to_other_settings() -> None:
    made = problem(((6, 6),), torch.float32)
    optimizer = Schattor(made.params, p=3)
    run(optimizer, made, 1)
    optimizer.param_groups[0]["steps"] = 5
    run(optimizer, made, 1, first=1)
    assert depths(optimizer) == {5}
    optimizer.param_groups[0]["steps"] = None
    optimizer.param_groups[0]["p"] = 2.0
    run(optimizer, made, 1, first=2)
    assert {b.plan.route for b in optimizer._stepper.buckets} == {"identity"}


def test_a_route_stays_when_the_processor_is_another() -> None:
    made = problem(((8, 8),), torch.float32)
    optimizer = Schattor(made.params, p=3)
    run(optimizer, made, 1)
    plan = optimizer._stepper.buckets[0].plan
    level = _C.cpu_level()
    _C.force_cpu_level("baseline")
    try:
        optimizer.load_state_dict(optimizer.state_dict())
        run(optimizer, made, 1, first=1)
        again = optimizer._stepper.buckets[0].plan
        assert (again.route, again.dtype, again.depth) == (plan.route, plan.dtype, plan.depth)
    finally:
        _C.force_cpu_level(level)


def test_chunks_cover_the_bucket_within_the_workspace() -> None:
    key = BucketKey(0, 8, 8, torch.float32, torch.float32, None, torch.device("cpu"))
    optimizer = Schattor([torch.nn.Parameter(torch.zeros(8, 8))], p=3)
    bucket = Bucket("test", key, optimizer.param_groups[0])
    for index in range(10):
        bucket.add(str(index), torch.zeros(8, 8), None, None, 1.0, ({}, ""))
    block = (4 + 2) * 8 * 8 * 4 / 2**20  # of a direct chain
    group = {**optimizer.param_groups[0], "workspace_mb": 3.5 * block}
    assert bucket.follow(group)
    assert bucket.chunks == [slice(0, 3), slice(3, 6), slice(6, 9), slice(9, 10)]


@pytest.mark.parametrize("threads", [1, 3])
def test_chunks_on_a_processor_fit_its_caches(threads: int) -> None:
    key = BucketKey(0, 512, 512, torch.float32, torch.float32, None, torch.device("cpu"))
    optimizer = Schattor([torch.nn.Parameter(torch.zeros(8, 8))], p=3, chain_dtype=torch.float32)
    bucket = Bucket("test", key, optimizer.param_groups[0])
    for index in range(20):
        bucket.add(str(index), torch.empty(512, 512), None, None, 1.0, ({}, ""))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        bucket.follow(optimizer.param_groups[0])
    finally:
        torch.set_num_threads(before)
    # 8 MiB hold 8 of these; every chunk but the last gives all threads as many.
    expected = 8 // threads * threads
    assert [chunk.stop - chunk.start for chunk in bucket.chunks[:-1]] == [expected] * (
        len(bucket.chunks) - 1
    )
    assert bucket.chunks[-1].stop == 20


def test_the_wide_batch_is_kept_from_step_to_step_unless_it_is_large(on_processor: None) -> None:
    made = problem(((6, 6), (6, 6), (4, 9)))
    optimizer = Schattor(made.params, lr=0.1)
    run(optimizer, made, 1)
    kept = dict(optimizer._stepper._kept)
    run(optimizer, made, 1, first=1)
    assert kept and optimizer._stepper._kept == kept
    bucket = optimizer._stepper.buckets[0]
    large = (2**20, 6, 6)
    assert optimizer._stepper._wide(bucket, large).shape == large
    assert optimizer._stepper._kept == kept


def test_numbers_are_rewritten_in_place() -> None:
    made = problem(((6, 6), (6, 6)))
    optimizer = Schattor(made.params, p=3)
    run(optimizer, made, 1)
    bucket = optimizer._stepper.buckets[0]
    held = [bucket.lr, bucket.decay, bucket.powers, bucket.chain_weights, bucket.lengths]
    optimizer.param_groups[0].update(p=4.0, lr=0.5, weight_decay=0.1)
    run(optimizer, made, 1, first=1)
    now = [bucket.lr, bucket.decay, bucket.powers, bucket.chain_weights, bucket.lengths]
    assert [id(t) for t in held] == [id(t) for t in now]
    assert bucket.powers.tolist() == [1 / 3] * 2 and float(bucket.decay) == 0.95
