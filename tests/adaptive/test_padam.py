"""p chosen from data with weights that depend on it: ``w = (v^ + eps)^(-1/2p)``, each block's p."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from schattor import AutoP, Schattor
from schattor.functional import ball_oracle
from schattor.theory import exponents

F64 = torch.float64
SOON = AutoP(warmup=1, interval=2, smoothing=0.0)


def model(seed: int = 0) -> nn.Sequential:
    """Two matrices of one shape, and a head."""
    torch.manual_seed(seed)
    layers = (nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 3))
    return nn.Sequential(*layers).to(F64)


def optimizer_of(net: nn.Module, **settings: Any) -> Schattor:
    return Schattor(net, **{"lr": 1e-2, "preconditioner": "padam", **settings})


def differentiate(net: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(64, 12, generator=generator, dtype=F64) * torch.arange(1.0, 13) ** -1.0
    y = torch.randn(64, 3, generator=generator, dtype=F64)
    net.zero_grad()
    nn.functional.mse_loss(net(x), y).backward()


def train(net: nn.Module, optimizer: Schattor, steps: int, first: int = 0) -> None:
    for step in range(first, first + steps):
        differentiate(net, step)
        optimizer.step()


def weights_of(net: nn.Module) -> list[Tensor]:
    return [param.detach().clone() for param in net.parameters()]


@pytest.mark.parametrize("p", [2.0, 3.0, math.inf])
@pytest.mark.parametrize("second_moment", ["full", "factored"])
def test_p_pinned_at_a_bound_has_the_weights_of_that_p(p: float, second_moment: str) -> None:
    """Adam, between, Muon: to the bit where both take the chain."""
    found = []
    for given in (AutoP(warmup=1, interval=2, bounds=(p, p)), p):
        net = model()
        method = "auto" if p == 2 else "chain"
        optimizer = optimizer_of(net, p=given, second_moment=second_moment, method=method)
        train(net, optimizer, 8)
        found.append(weights_of(net))
    for chosen, fixed in zip(*found, strict=True):
        if p == 2:  # fixed, the momentum itself is the direction
            torch.testing.assert_close(chosen, fixed, rtol=0, atol=1e-12)
        else:
            assert torch.equal(chosen, fixed)


def test_no_weight_is_left_beyond_muon() -> None:
    found = []
    beyond = {"p": AutoP(warmup=100, lowest_power=-0.1)}
    plain = {"power": -0.1, "method": "chain", "preconditioner": None, "bias_correction": True}
    for settings in (beyond, plain):
        net = model()
        train(net, optimizer_of(net, **settings), 3)
        found.append(weights_of(net))
    for weighed, unweighed in zip(*found, strict=True):
        torch.testing.assert_close(weighed, unweighed, rtol=0, atol=1e-12)


@pytest.mark.parametrize("taken", [7, 8])  # the eighth step records, the ninth does not
def test_every_block_steps_with_the_exponent_of_its_own_p(taken: int) -> None:
    """``W - lr w * O(w * G)``: O of the p that is chosen now, w of the one before."""
    net = model()
    settings: dict[str, Any] = {"momentum": 0.0, "betas": (0.9, 0.95), "eps": 1e-6}
    optimizer = optimizer_of(net, p=SOON, scale="unit", weight_decay=0.0, **settings)
    train(net, optimizer, taken)
    params = {name: dict(net.named_parameters())[name] for name in optimizer.p_history()}
    before = {name: param.detach().clone() for name, param in params.items()}
    squares = {name: optimizer.state[param]["exp_avg_sq"].clone() for name, param in params.items()}
    past = {name: history[-1][1] for name, history in optimizer.p_history().items()}
    train(net, optimizer, 1, first=taken)
    now = {name: history[-1][1] for name, history in optimizer.p_history().items()}

    assert len({*past.values()}) == 2 and (past == now) == (taken == 8)
    for name, param in params.items():
        grad = param.grad
        assert grad is not None
        v = (0.95 * squares[name] + 0.05 * grad.square()) / (1 - 0.95 ** (taken + 1))
        w = (v + 1e-6) ** (-1 / (2 * past[name]))
        step = w * ball_oracle(w * grad, now[name], 1e-2, method="chain")
        error = (param.detach() - before[name] - step).norm() / step.norm()
        assert error < 1e-10, name


def test_exponents_follow_the_powers_block_by_block() -> None:
    net = model()
    optimizer = optimizer_of(net, p=SOON)
    train(net, optimizer, 8)
    (bucket,) = optimizer._stepper.buckets
    assert bucket.inside is not None
    chosen = [exponents.power_of(optimizer.p_history()[name][-1][1]) for name in bucket.names]
    expected = [exponents.inverse_p(power) / 2 for power in chosen]
    assert len({*expected}) == 2
    assert bucket.inside.exponents.tolist() == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("second_moment", ["full", "factored"])
def test_chunks_take_the_exponents_that_are_theirs(second_moment: str) -> None:
    found = []
    for workspace in (1e-3, 64.0):
        net = model()
        settings: dict[str, Any] = {"second_moment": second_moment, "workspace_mb": workspace}
        optimizer = optimizer_of(net, p=SOON, **settings)
        train(net, optimizer, 8)
        found.append((weights_of(net), len(optimizer._stepper.buckets[0].chunks)))
    (several, pieces), (together, whole) = found
    assert (pieces, whole) == (2, 1)
    for a, b in zip(several, together, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("cut_at", [5, 6, 7])  # the sixth step records
@pytest.mark.parametrize("settings", [{}, {"second_moment": "factored"}, {"coupling": "l2"}])
def test_a_resumed_run_is_bit_exact(settings: dict[str, Any], cut_at: int) -> None:
    whole, cut, resumed = model(), model(), model(seed=5)
    auto = AutoP(warmup=2, interval=3)
    optimizers = [optimizer_of(net, p=auto, **settings) for net in (whole, cut)]
    train(whole, optimizers[0], 10)
    train(cut, optimizers[1], cut_at)
    resumed.load_state_dict(cut.state_dict())
    again = optimizer_of(resumed, p=auto, **settings)
    again.load_state_dict(copy.deepcopy(optimizers[1].state_dict()))
    train(resumed, again, 10 - cut_at, first=cut_at)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
