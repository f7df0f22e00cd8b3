"""The optimizer against the paper's step and torch's SGD; strides, layouts and blocks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import F64, SHAPES, paper_step, problem, run, unit_ball, weights_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from schattor.optim import Schattor
from schattor.theory import chains, exponents, oracles


def largest_error(params: list[nn.Parameter], truth: list[Tensor]) -> float:
    return max(
        float((p.detach().double() - t).norm() / t.norm())
        for p, t in zip(params, truth, strict=True)
    )


# The paper's step, in float64 with exact directions: rounding is all that may differ.

COMBINATIONS = [
    (oracle, scale, form, nesterov)
    for oracle, scale in (
        ("ball", "unit"),
        ("ball", "spectral"),
        ("ball", "rms"),
        ("regularized", "unit"),
    )
    for form, nesterov in itertools.product(("ema", "heavy_ball"), (True, False))
]
COUPLINGS: dict[str, tuple[Any, Callable[[float], float | None]]] = {
    "none": (None, lambda p: None),
    "max": ("max", lambda p: math.inf),
    "l2": ("l2", lambda p: 2.0),
    "greedy": ("greedy", lambda p: 1.0),
    "A=1.5": (1.5, lambda p: 1.5),
    "A=4": (4, lambda p: 4.0),
    "block_diagonal": ("block_diagonal", lambda p: p),
}


@pytest.mark.parametrize(("oracle", "scale", "form", "nesterov"), COMBINATIONS)
@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 3.0, math.inf])
def test_step_is_the_papers(
    oracle: Any, scale: Any, form: Any, nesterov: bool, coupling: str, p: float
) -> None:
    made = problem()
    choice, outer = COUPLINGS[coupling]
    optimizer = Schattor(
        made.params, lr=0.05, p=p, oracle=oracle, scale=scale, coupling=choice, momentum=0.9,
        momentum_form=form, nesterov=nesterov, weight_decay=0.1, method="exact",
    )  # fmt: skip
    truth, momenta = weights_of(made), [torch.zeros_like(w) for w in weights_of(made)]
    for step in range(2):
        made.next_gradients(step)
        grads = [param.grad for param in made.params]
        truth, momenta = paper_step(
            truth, grads, momenta, lr=0.05, power=exponents.power_of(p), oracle=oracle,
            outer=outer(p), scale=scale, momentum=0.9, form=form, nesterov=nesterov, decay=0.1,
        )  # fmt: skip
        optimizer.step()
    assert largest_error(made.params, truth) < 1e-13


@given(
    shapes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4),
    p=st.sampled_from([1.0, 1.2, 2.0, 3.0, 10.0, math.inf]),
    oracle=st.sampled_from(["ball", "regularized"]),
    coupling=st.sampled_from([None, "l2", "max", "greedy"]),
    weights=st.floats(0.1, 10),
)
@settings(max_examples=30, deadline=None)
def test_step_is_the_papers_for_any_shapes(
    shapes: list[tuple[int, int]], p: float, oracle: Any, coupling: Any, weights: float
) -> None:
    made = problem(shapes)
    truth, _ = paper_step(
        weights_of(made), [param.grad for param in made.params], [torch.zeros(s) for s in shapes],
        lr=0.1, power=exponents.power_of(p), oracle=oracle,
        outer=COUPLINGS[coupling or "none"][1](p), block_weights=[weights] * len(shapes),
    )  # fmt: skip
    optimizer = Schattor(
        made.params, lr=0.1, p=p, oracle=oracle, coupling=coupling, block_weights=weights,
        momentum=0.0, scale="unit", method="exact",
    )  # fmt: skip
    optimizer.step()
    assert largest_error(made.params, truth) < 1e-12


def test_block_weights_by_name_are_the_radii() -> None:
    made = problem()
    names = ["a.first", "a.second", "b.third", "b.fourth", "c.last"]
    optimizer = Schattor(
        zip(names, made.params, strict=True), lr=0.1, p=3, coupling="l2", scale="unit",
        momentum=0.0, method="exact", block_weights={"a.second": 3.0, "a": 2.0, "c*": 0.5},
    )  # fmt: skip
    truth, _ = paper_step(
        weights_of(made), [param.grad for param in made.params],
        [torch.zeros(s) for s in SHAPES], lr=0.1, power=0.5, outer=2.0,
        block_weights=[2.0, 3.0, 1.0, 1.0, 0.5],
    )  # fmt: skip
    optimizer.step()
    assert largest_error(made.params, truth) < 1e-13


@pytest.mark.parametrize("oracle", ["ball", "regularized"])
@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 3.0, math.inf])
def test_block_diagonal_is_one_matrix_with_the_blocks_on_its_diagonal(
    oracle: Any, p: float
) -> None:
    made = problem(((3, 5), (4, 2), (3, 3)))
    whole = torch.block_diag(*(param.grad for param in made.params))
    unit, norm = unit_ball(whole, exponents.power_of(p))
    step = 0.1 * unit * (norm if oracle == "regularized" else 1.0)
    before = weights_of(made)
    Schattor(
        made.params, lr=0.1, p=p, oracle=oracle, coupling="block_diagonal", scale="unit",
        momentum=0.0, method="exact",
    ).step()  # fmt: skip
    moved = torch.block_diag(
        *(old - param.detach() for old, param in zip(before, made.params, strict=True))
    )
    torch.testing.assert_close(moved, step, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("p", [1.5, 2.0, 3.0, math.inf])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_planned_route_keeps_the_promise_of_the_chain(p: float, dtype: torch.dtype) -> None:
    made = problem(((16, 24), (24, 16), (16, 24)), dtype)
    before = weights_of(made)
    truth, _ = paper_step(
        before, [param.grad for param in made.params], [torch.zeros(1)] * 3, lr=1.0,
        power=exponents.power_of(p), scale="unit",
    )  # fmt: skip
    Schattor(made.params, lr=1.0, p=p, scale="unit", momentum=0.0).step()
    power = exponents.power_of(p)
    sharp = math.sqrt(2 - 2 * chains.SHARP_COSINE)
    promise = chains.band(power, 8) + 1e-3 if power <= 1 else sharp
    for param, old, new in zip(made.params, before, truth, strict=True):
        step = new - old.double()
        assert (param.detach().double() - old.double() - step).norm() <= 2 * promise * step.norm()


@pytest.mark.parametrize("p", [1.2, 2.0, 3.0, math.inf])
def test_rms_scale_gives_every_p_the_size_of_adamw(p: float) -> None:
    made = problem(((12, 30), (30, 12)), torch.float32)
    before = weights_of(made)
    Schattor(made.params, lr=0.1, p=p).step()
    for param, old in zip(made.params, before, strict=True):
        assert float((param.detach() - old).square().mean().sqrt()) == pytest.approx(0.02, rel=1e-4)


# Parity with torch.


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("maximize", [False, True])
def test_p2_regularized_heavy_ball_is_torch_sgd(
    dtype: torch.dtype, nesterov: bool, maximize: bool
) -> None:
    ours, theirs = problem(dtype=dtype), problem(dtype=dtype)
    run(
        Schattor(
            ours.params, lr=0.1, p=2, oracle="regularized", momentum_form="heavy_ball",
            momentum=0.9, nesterov=nesterov, maximize=maximize,
        ),
        ours, 6,
    )  # fmt: skip
    run(
        torch.optim.SGD(
            theirs.params, lr=0.1, momentum=0.9, nesterov=nesterov, maximize=maximize
        ),
        theirs, 6,
    )  # fmt: skip
    rounding = 8 * torch.finfo(dtype).eps
    for a, b in zip(ours.params, theirs.params, strict=True):
        torch.testing.assert_close(a, b, rtol=rounding, atol=rounding)


@pytest.mark.parametrize("oracle", ["ball", "regularized"])
@pytest.mark.parametrize("p", [2.0, 3.0, math.inf])
def test_uncoupled_blocks_know_nothing_of_each_other(oracle: Any, p: float) -> None:
    alone, beside = problem(dtype=torch.float32), problem(dtype=torch.float32)
    for param in beside.params[1:]:
        param.grad.mul_(100.0)
    beside.params[2].grad[0, 0] = math.nan
    for made in (alone, beside):
        Schattor(made.params, lr=0.1, p=p, oracle=oracle).step()
    assert torch.equal(alone.params[0], beside.params[0])
    assert not torch.equal(alone.params[1], beside.params[1]) or oracle == "ball"


def test_non_finite_block_counts_as_zero_in_the_coupling() -> None:
    made = problem()
    grads = [param.grad.clone() for param in made.params]
    grads[0].zero_()
    truth, _ = paper_step(
        weights_of(made), grads, [torch.zeros(s) for s in SHAPES], lr=0.1, power=0.5, outer=2.0
    )
    made.params[0].grad[0, 0] = math.nan
    Schattor(
        made.params, lr=0.1, p=3, coupling="l2", scale="unit", momentum=0.0, method="exact"
    ).step()
    assert largest_error(made.params, truth) < 1e-13


# Strides, layouts, blocks.


@pytest.mark.parametrize("layout", ["t", "slice", "expanded", "channels_last"])
def test_gradients_of_any_strides(layout: str) -> None:
    shape = (4, 3, 2, 2) if layout == "channels_last" else (4, 6)
    plain, strided = nn.Parameter(torch.zeros(shape)), nn.Parameter(torch.zeros(shape))
    grad = torch.randn(shape)
    if layout == "t":
        strided.grad = grad.t().contiguous().t()
    elif layout == "slice":
        strided.grad = torch.stack((grad, grad), 2)[:, :, 1]
    elif layout == "expanded":
        grad = grad[:, :1].expand(shape)
        strided.grad = grad
    else:
        strided.grad = grad.contiguous(memory_format=torch.channels_last)
    plain.grad = grad.contiguous()
    for param in (plain, strided):
        Schattor([param], lr=1.0, p=3, momentum=0.5).step()
    torch.testing.assert_close(plain, strided, rtol=1e-4, atol=1e-5)


def test_channels_last_weights_step_like_contiguous_ones() -> None:
    weight, grads = torch.randn(6, 3, 2, 2), torch.randn(3, 6, 3, 2, 2)
    plain = nn.Parameter(weight.clone())
    last = nn.Parameter(weight.clone().contiguous(memory_format=torch.channels_last))
    for param in (plain, last):
        optimizer = Schattor([param], lr=0.1, p=3)
        for grad in grads:
            param.grad = grad.clone()
            optimizer.step()
        assert optimizer.state[param]["momentum_buffer"].stride() == param.stride()
    torch.testing.assert_close(plain, last.contiguous(), rtol=1e-4, atol=1e-5)


def test_convolutions_move_as_flattened_matrices() -> None:
    param = nn.Parameter(torch.zeros(6, 3, 2, 2, dtype=F64))
    param.grad = torch.randn(param.shape, dtype=F64)
    Schattor([param], lr=0.1, p=3, scale="spectral", method="exact", momentum=0.0).step()
    unit, _ = unit_ball(param.grad.flatten(1), 0.5)
    torch.testing.assert_close(param.detach().flatten(1), -0.1 * 6 ** (1 / 3) * unit)


def test_blocks_of_a_fused_weight_move_on_their_own() -> None:
    fused = nn.Parameter(torch.zeros(9, 4, dtype=F64))
    fused.grad = torch.randn(9, 4, dtype=F64)
    group = {"params": [fused], "rule": "matrix", "blocks": {"rows": (5, 2, 2)}}
    Schattor([group], lr=0.1, p=3, scale="spectral", method="exact", momentum=0.0).step()
    sizes = (5, 2, 2)
    for moved, grad in zip(fused.detach().split(sizes), fused.grad.split(sizes), strict=True):
        unit, _ = unit_ball(grad, 0.5)
        rows, cols = grad.shape
        size = 0.1 * min(rows, cols) ** (1 / 3) * math.sqrt(max(1, rows / cols))
        torch.testing.assert_close(moved, -size * unit)


def test_a_transposed_weight_has_the_scale_of_the_layer() -> None:
    linear, conv1d = (nn.Parameter(torch.zeros(s, dtype=F64)) for s in ((8, 2), (2, 8)))
    linear.grad = torch.randn(8, 2, dtype=F64)
    conv1d.grad = linear.grad.t().clone()
    Schattor([linear], lr=0.1, scale="spectral").step()
    group = {"params": [conv1d], "rule": "matrix", "blocks": {"out": 1}}
    Schattor([group], lr=0.1, scale="spectral").step()
    torch.testing.assert_close(linear.detach(), conv1d.detach().t(), rtol=1e-9, atol=1e-12)
    assert float(linear.detach().norm()) == pytest.approx(0.1 * math.sqrt(2) * 2, rel=0.02)


def test_couplings_hold_over_groups() -> None:
    made = problem()
    truth, _ = paper_step(
        weights_of(made), [param.grad for param in made.params],
        [torch.zeros(s) for s in SHAPES], lr=0.1, power=0.5, outer=2.0,
    )  # fmt: skip
    groups = [{"params": made.params[:2]}, {"params": made.params[2:]}]
    Schattor(groups, lr=0.1, p=3, coupling="l2", scale="unit", momentum=0.0, method="exact").step()
    assert largest_error(made.params, truth) < 1e-13


def test_greedy_moves_the_first_of_the_largest() -> None:
    params = [nn.Parameter(torch.zeros(3, 3)) for _ in range(3)]
    for param, size in zip(params, (1.0, 2.0, 2.0), strict=True):
        param.grad = size * torch.eye(3)
    Schattor(params, lr=0.1, coupling="greedy", momentum=0.0).step()
    assert [bool(param.detach().any()) for param in params] == [False, True, False]
    assert oracles.couple([1.0, 2.0, 2.0], [1.0] * 3, 1.0) == [0.0, 1.0, 0.0]
