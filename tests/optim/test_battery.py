"""The battery: what every optimizer of the table keeps, and inputs that others break on."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import F64, OPTIMIZERS, calls_to_move, problem, run, weights_of
from torch import Tensor, nn

from schattor.optim import Schattor

Make = Callable[[Any], Schattor]
battery = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
MATRIX = {name: make for name, make in OPTIMIZERS.items() if name not in ("sgd", "adamw", "sign")}
matrix_battery = pytest.mark.parametrize("make", MATRIX.values(), ids=MATRIX.keys())


@battery
def test_closure_runs_first_with_grad_and_its_value_comes_back(make: Make) -> None:
    made = problem()
    for param in made.params:
        param.grad = None
    optimizer = make(made.params)

    def closure() -> Tensor:
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        loss = sum((param**2).sum() for param in made.params)
        loss.backward()
        return loss

    for _ in range(calls_to_move(optimizer) - 1):
        optimizer.step(closure)
    before = weights_of(made)
    assert torch.equal(optimizer.step(closure), sum((w**2).sum() for w in before))
    assert any(not torch.equal(p, w) for p, w in zip(made.params, before, strict=True))
    assert optimizer.step(closure=closure) is not None
    assert optimizer.step() is None


@battery
def test_gradients_are_not_written(make: Make) -> None:
    made = problem()
    optimizer = make(made.params)
    for step in range(3):
        made.next_gradients(step)
        grads = [param.grad.clone() for param in made.params]
        optimizer.step()
        assert all(torch.equal(p.grad, g) for p, g in zip(made.params, grads, strict=True))


@battery
def test_same_bits_twice(make: Make) -> None:
    first, second = problem(), problem()
    run(make(first.params), first, 4)
    run(make(second.params), second, 4)
    assert all(torch.equal(a, b) for a, b in zip(first.params, second.params, strict=True))


@battery
def test_parameters_without_gradient_are_left_alone(make: Make) -> None:
    made = problem()
    optimizer = make(made.params)
    made.params[1].grad = None
    before = weights_of(made)
    optimizer.step()
    assert torch.equal(made.params[1], before[1])
    run(optimizer, made, calls_to_move(optimizer))
    greedy = optimizer.param_groups[0]["coupling"] == "greedy"  # moves another one
    assert greedy or not torch.equal(made.params[1], before[1])
    for param in made.params:
        param.grad = None
    before = weights_of(made)
    optimizer.step()
    assert all(torch.equal(p, w) for p, w in zip(made.params, before, strict=True))


@battery
def test_zero_gradient_at_rest_gives_a_zero_step(make: Make) -> None:
    made = problem()
    optimizer = make(made.params)
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0
    before = weights_of(made)
    for param in made.params:
        param.grad = torch.zeros_like(param)
    for _ in range(2):
        optimizer.step()
    assert all(torch.equal(p, w) for p, w in zip(made.params, before, strict=True))


@battery
def test_accumulated_gradients_are_one_large_batch(make: Make) -> None:
    whole, parts = problem(), problem()
    for a, b in zip(whole.params, parts.params, strict=True):
        half = torch.randn(a.shape, dtype=F64)
        a.grad = half + 2 * half.flip(0)
        b.grad = half.clone()
        b.grad += 2 * half.flip(0)
    make(whole.params).step()
    make(parts.params).step()
    assert all(torch.equal(a, b) for a, b in zip(whole.params, parts.params, strict=True))


@battery
def test_learning_rate_schedulers_of_torch(make: Make) -> None:
    made = problem()
    optimizer = make(made.params)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0 if step else 1.0)
    run(optimizer, made, 1)
    scheduler.step()
    before = weights_of(made)
    run(optimizer, made, 1, first=1)
    assert all(torch.equal(p, w) for p, w in zip(made.params, before, strict=True))


@battery
def test_tensor_learning_rate_is_read_at_every_step(make: Make) -> None:
    numbers, tensors = problem(), problem()
    first, second = make(numbers.params), make(tensors.params)
    for group in second.param_groups:
        group["lr"] = torch.tensor(group["lr"], dtype=F64)
    for step in range(3):
        for optimizer in (first, second):
            for group in optimizer.param_groups:
                rate = 0.01 / (1 + step)
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(rate)
                else:
                    group["lr"] = rate
        run(first, numbers, 1, step)
        run(second, tensors, 1, step)
    for a, b in zip(numbers.params, tensors.params, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


@battery
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_dtype_descends(make: Make, dtype: torch.dtype) -> None:
    made = problem(((8, 8), (4, 12)), dtype)
    optimizer = make(made.params)
    for _ in range(5):
        for param in made.params:
            param.grad = param.detach().clone()
        optimizer.step()
    start = problem(((8, 8), (4, 12)), dtype)
    norms = [sum(float(p.detach().double().norm()) for p in m.params) for m in (made, start)]
    assert norms[0] < norms[1]


# Bad inputs.


@matrix_battery
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_gradient_leaves_its_block_bit_for_bit_and_is_counted(
    make: Make, bad: float
) -> None:
    made = problem()
    optimizer = make(made.params)
    if "most" in (optimizer.param_groups[0]["blocks"] or {}):
        optimizer.param_groups[0]["blocks"] = None  # else the parameter's other blocks move
    run(optimizer, made, 2)
    before = weights_of(made)
    moments = {
        index: optimizer.state[made.params[index]]["momentum_buffer"].clone()
        for index in (0, 2)
        if "momentum_buffer" in optimizer.state[made.params[0]]
    }
    made.next_gradients(2)
    for index in (0, 2):
        made.params[index].grad[-1, -1] = bad
    optimizer.step()
    for index in (0, 2):
        assert torch.equal(made.params[index], before[index])
    for index, moment in moments.items():
        assert torch.equal(optimizer.state[made.params[index]]["momentum_buffer"], moment)
    assert optimizer.stats()["nonfinite"] == 2
    assert all(param.isfinite().all() for param in made.params)
    assert any(not torch.equal(p, w) for p, w in zip(made.params, before, strict=True))


def one_entry(value: float) -> Tensor:
    return torch.tensor([[value, 0.0, 0.0], [0.0, 0.0, 0.0]])


GRADIENTS: dict[str, Tensor] = {
    "rank one": torch.outer(torch.arange(1.0, 7), torch.arange(1.0, 9)),
    "repeated": 3.0 * torch.eye(6, 8),
    "half zero": torch.diag(torch.tensor([5.0, 2.0, 1.0, 0.0, 0.0, 0.0])),
    "tiny": 1e-30 * torch.eye(5) + 1e-31,
    "huge": 1e30 * torch.eye(5) + 1e29,
    "both": torch.diag(torch.tensor([1e30, 1.0, 1e-30])),
    "one entry": one_entry(1e-38),
    "one row": torch.arange(1.0, 6)[None],
    "one column": torch.arange(1.0, 6)[:, None],
    "one number": torch.full((1, 1), -2.0),
}


@matrix_battery
@pytest.mark.parametrize("grad", GRADIENTS.values(), ids=GRADIENTS.keys())
def test_hard_gradients_have_a_defined_downhill_step(make: Make, grad: Tensor) -> None:
    param = nn.Parameter(torch.zeros_like(grad))
    param.grad = grad.clone()
    optimizer = make([param])
    for group in optimizer.param_groups:
        group["lr"] = 1.0
    for _ in range(calls_to_move(optimizer)):
        optimizer.step()
    assert param.isfinite().all()
    if float(param.detach().abs().max()) > 0:
        cosine = torch.nn.functional.cosine_similarity(
            -param.detach().double().flatten(), grad.double().flatten(), dim=0, eps=1e-300
        )
        assert cosine > 0.2
    else:
        # A regularized step of a tiny gradient may be below the smallest number, and squares of
        # gradients beyond 1e-19 .. 1e19 are no float32 numbers.
        group = optimizer.param_groups[0]
        squares = group["preconditioner"] is not None or group["scale"] == "adam"
        beyond = not 1e-19 < float(grad.abs().max()) < 1e19
        assert group["oracle"] == "regularized" or (squares and beyond)


@battery
def test_empty_parameters_are_allowed(make: Make) -> None:
    params = [nn.Parameter(torch.zeros(shape)) for shape in ((0, 4), (4, 0), (3, 3))]
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer = make(params)
    for _ in range(calls_to_move(optimizer)):
        optimizer.step()
    assert params[2].abs().sum() > 0
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    optimizer.step()
