"""The step loop: when it plans, what it is independent of, and what it leaves to autograd."""

from __future__ import annotations

import gc
import math
import weakref
from typing import Any

import pytest
import torch
from cases import problem, run, weights_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from schattor.optim import Schattor

SHAPES = ((6, 6), (4, 9), (9, 4), (6, 6), (4, 9), (6, 6), (2, 3, 5))


@pytest.mark.parametrize("p", [1.0, 1.2, 2.0, 3.0, math.inf])
@pytest.mark.parametrize("coupling", [None, "l2"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_results_do_not_depend_on_the_chunking(p: float, coupling: Any, dtype: torch.dtype) -> None:
    results = []
    for workspace in (256, 1e-3, 1e-9):
        made = problem(SHAPES, dtype)
        optimizer = Schattor(made.params, lr=0.1, p=p, coupling=coupling, workspace_mb=workspace)
        run(optimizer, made, 2)
        results.append(made.params)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@given(
    shapes=st.lists(
        st.lists(st.integers(0, 7), min_size=2, max_size=4).map(tuple), min_size=1, max_size=6
    ),
    missing=st.sets(st.integers(0, 5)),
    p=st.sampled_from([1.0, 2.0, 3.0, math.inf]),
)
@settings(max_examples=30, deadline=None)
def test_any_mixture_of_shapes_moves_as_each_alone(
    shapes: list[tuple[int, ...]], missing: set[int], p: float
) -> None:
    together, apart = problem(shapes), problem(shapes)
    for made in (together, apart):
        for index in missing & set(range(len(shapes))):
            made.params[index].grad = None
    Schattor(together.params, lr=0.1, p=p).step()
    for param in apart.params:
        Schattor([param], lr=0.1, p=p).step()
    for a, b in zip(together.params, apart.params, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_equal_wide_shapes_share_a_bucket() -> None:
    made = problem(SHAPES)
    optimizer = Schattor(made.params)
    run(optimizer, made, 1)
    found = [(len(b.names), b.key.rows, b.key.cols) for b in optimizer._stepper.buckets]
    assert found == [(3, 6, 6), (3, 4, 9), (1, 2, 15)]


def test_plans_once_while_nothing_changes() -> None:
    made = problem(SHAPES)
    optimizer = Schattor(made.params)
    run(optimizer, made, 1)
    buckets = optimizer._stepper.buckets
    for group in optimizer.param_groups:
        group["lr"], group["p"], group["momentum"] = 0.5, 4.0, 0.5
    run(optimizer, made, 1, first=1)
    assert optimizer._stepper.buckets is buckets
    made.params[0].grad = None
    optimizer.step()
    assert optimizer._stepper.buckets is not buckets


def twin_step(change: Any) -> None:
    """An optimizer whose plan was made before a change moves as one that never saw the old."""
    made, fresh = problem(), problem()
    optimizer = Schattor(made.params, lr=0.1, p=3, momentum=0.0)
    run(optimizer, made, 1)
    for param, value in zip(fresh.params, weights_of(made), strict=True):
        param.data.copy_(value)
    change(optimizer, made)
    other = Schattor(fresh.params, lr=0.1, p=3, momentum=0.0)
    change(other, fresh)
    run(optimizer, made, 1, first=1)
    run(other, fresh, 1, first=1)
    for a, b in zip(made.params, fresh.params, strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


def test_plans_again_when_parameters_are_replaced_in_their_groups() -> None:
    def replace(optimizer: Schattor, made: Any) -> None:
        for index, param in enumerate(made.params):
            made.params[index] = nn.Parameter(param.detach().clone())
        optimizer.param_groups[0]["params"][:] = made.params

    twin_step(replace)


def test_plans_again_when_storage_or_dtype_changes() -> None:
    def convert(_: Schattor, made: Any) -> None:
        for param in made.params:
            param.grad = None
            param.data = param.data.float()

    twin_step(convert)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("p", 1.0),
        ("p", math.inf),
        ("method", "exact"),
        ("steps", 5),
        ("chain_dtype", torch.bfloat16),
        ("scale", "spectral"),
        ("coupling", "l2"),
        ("oracle", "regularized"),
        ("block_weights", 3.0),
        ("workspace_mb", 1e-6),
        ("nesterov", False),
        ("maximize", True),
        ("weight_decay", 0.5),
        ("momentum", 0.7),
        ("momentum_form", "heavy_ball"),
        ("blocks", {"out": 1}),
    ],
)
def test_every_key_may_change_between_steps(key: str, value: Any) -> None:
    def change(optimizer: Schattor, _: Any) -> None:
        optimizer.param_groups[0][key] = value

    twin_step(change)


def test_steps_are_counted_for_each_parameter() -> None:
    made = problem()
    optimizer = Schattor(made.params)
    run(optimizer, made, 2)
    made.params[1].grad = None
    optimizer.step()
    run(optimizer, made, 1, first=3)
    assert [int(optimizer.state[param]["step"]) for param in made.params] == [4, 3, 4, 4, 4]


def test_autograd_learns_that_weights_were_written() -> None:
    param = nn.Parameter(torch.eye(3))
    loss = (param @ param).sum()
    param.grad = torch.eye(3)
    Schattor([param]).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_gradients_are_not_kept_alive() -> None:
    param = nn.Parameter(torch.zeros(3, 3))
    param.grad = torch.eye(3)
    optimizer = Schattor([param])
    optimizer.step()
    grad = weakref.ref(param.grad)
    optimizer.zero_grad()
    gc.collect()
    assert grad() is None


def test_momentum_zero_keeps_no_buffer() -> None:
    made = problem()
    optimizer = Schattor(made.params, momentum=0.0)
    run(optimizer, made, 2)
    assert all(set(entry) == {"step"} for entry in optimizer.state.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_momentum_dtype(dtype: torch.dtype) -> None:
    made = problem(dtype=torch.bfloat16)
    optimizer = Schattor(made.params, momentum_dtype=dtype)
    run(optimizer, made, 2)
    assert all(entry["momentum_buffer"].dtype == dtype for entry in optimizer.state.values())
    default = Schattor(made.params)
    run(default, made, 1)
    assert all(e["momentum_buffer"].dtype == torch.bfloat16 for e in default.state.values())


def test_nothing_of_a_step_is_read_back() -> None:
    """On the meta device there are no numbers: reading one raises."""
    params = [nn.Parameter(torch.empty(s, device="meta")) for s in ((4, 4), (6, 3), (3, 6))]
    for param in params:
        param.grad = torch.empty_like(param)
    for coupling, oracle in ((None, "ball"), ("greedy", "ball"), ("max", "regularized")):
        Schattor(params, p=3, coupling=coupling, oracle=oracle).step()
