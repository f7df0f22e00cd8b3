"""Schedules of p, and the theory's schedule of step size and momentum."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from cases import paper_step, problem, run, weights_of
from torch import nn

from schattor.optim import ParameterFree, PowerRamp, PRamp, PScheduler, Schattor
from schattor.theory import oracles


def test_ramp_is_straight_in_the_power() -> None:
    ramp = PRamp(2.0, math.inf, 4)
    assert [ramp(step) for step in range(6)] == pytest.approx([2, 7 / 3, 3, 5, math.inf, math.inf])
    assert PRamp(math.inf, 2.0, 1)(1) == 2.0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((1.0, 2.0, 3), "start must be in"),
        ((2.0, 0.5, 3), "end must be in"),
        ((2.0, 3.0, 0), "steps must be at least 1, got 0"),
    ],
)
def test_ramp_refuses(values: tuple[float, float, int], message: str) -> None:
    with pytest.raises(ValueError, match=f"PRamp: {message}"):
        PRamp(*values)


def test_power_ramp_falls_beyond_infinity() -> None:
    ramp = PowerRamp(0.25, -0.25, 4)
    assert [ramp(step) for step in range(6)] == [0.25, 0.125, 0.0, -0.125, -0.25, -0.25]
    for values, message in (
        ((-0.4, 0.0, 3), "start must be in"),
        ((0.0, math.inf, 3), "end must be in"),
        ((0.0, 0.1, 0), "steps must be at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=f"PowerRamp: {message}"):
            PowerRamp(*values)


def test_power_follows_its_schedule_and_goes_on_after_a_resume() -> None:
    made = problem()
    ramp = PowerRamp(0.2, -0.1, 6)
    optimizer = Schattor(made.params, lr=0.05, power=ramp, momentum=0.0, scale="unit")
    truth = weights_of(made)
    for step in range(3):
        made.next_gradients(step)
        grads = [param.grad for param in made.params]
        truth, _ = paper_step(truth, grads, grads, lr=0.05, power=ramp(step))
        optimizer.step()
        assert optimizer.param_groups[0]["p"] is None
        assert optimizer.param_groups[0]["power"] == ramp(step)
    for param, expected in zip(made.params, truth, strict=True):
        torch.testing.assert_close(param.double(), expected, rtol=0, atol=2e-3)
    resumed = Schattor(made.params, power=ramp)
    resumed.load_state_dict(optimizer.state_dict())
    run(resumed, made, 1, first=3)
    assert resumed.param_groups[0]["power"] == ramp(3)


def test_a_schedule_takes_over_from_the_other_dial() -> None:
    made = problem()
    optimizer = Schattor(made.params, power=PowerRamp(0.2, -0.1, 6))
    optimizer.load_state_dict(Schattor(made.params, p=3.0).state_dict())
    run(optimizer, made, 1)
    assert (optimizer.param_groups[0]["p"], optimizer.param_groups[0]["power"]) == (None, 0.2)


def test_a_negative_schedule_warns_once() -> None:
    made = problem()
    optimizer = Schattor(made.params, power=PowerRamp(-0.2, -0.3, 4))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        run(optimizer, made, 4)
    assert len({str(each.message) for each in caught}) == 1


@pytest.mark.parametrize("dial", ["p", "power"])
def test_a_schedule_is_refused_in_a_captured_graph(dial: str) -> None:
    params = [nn.Parameter(torch.zeros(2, 2))]
    with pytest.raises(ValueError, match=f"{dial} must be a number with capturable=True"):
        Schattor(params, capturable=True, **{dial: PRamp(2.0, 3.0, 3)})  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["function", "scheduler", "by hand"])
def test_p_follows_its_schedule_across_all_routes(kind: str) -> None:
    made = problem()
    values = [math.inf, 3.0, 2.0, 1.5, 1.2, 1.0]

    def p_of(step: int) -> float:
        return values[min(step, 5)]

    optimizer = Schattor(
        made.params, lr=0.05, p=p_of if kind == "function" else math.inf, momentum=0.0,
        scale="unit", method="exact",
    )  # fmt: skip
    scheduler = PScheduler(optimizer, p_of) if kind == "scheduler" else None
    truth = weights_of(made)
    for step, p in enumerate(values):
        made.next_gradients(step)
        if kind == "by hand":
            optimizer.param_groups[0]["p"] = p
        power = math.inf if p == 1 else 1 / (p - 1)
        grads = [param.grad for param in made.params]
        truth, _ = paper_step(truth, grads, grads, lr=0.05, power=power)
        optimizer.step()
        if scheduler:
            scheduler.step()
    for param, expected in zip(made.params, truth, strict=True):
        torch.testing.assert_close(param.detach(), expected, rtol=1e-11, atol=1e-12)


def test_p_scheduler_resumes() -> None:
    optimizer = Schattor([nn.Parameter(torch.zeros(2, 2))], power=0.1)
    scheduler = PScheduler(optimizer, lambda step: 2.0 + step)
    assert optimizer.param_groups[0]["power"] is None
    scheduler.step()
    scheduler.step()
    other = PScheduler(optimizer, lambda step: 2.0 + step)
    other.load_state_dict(scheduler.state_dict())
    assert other.get_last_p() == [4.0]
    other.step()
    assert other.get_last_p() == [5.0]
    assert PScheduler(optimizer, lambda step: 2.0 + step, last_step=7).get_last_p() == [10.0]


def test_schedules_need_a_matrix_group() -> None:
    optimizer = Schattor([nn.Parameter(torch.zeros(2))])
    for schedule in (lambda: PScheduler(optimizer, float), lambda: ParameterFree(optimizer)):
        with pytest.raises(ValueError, match='a group of rule "matrix", got none'):
            schedule()


@pytest.mark.parametrize("oracle", ["ball", "regularized"])
def test_parameter_free_is_the_theorys_method(oracle: Any) -> None:
    made = problem()
    optimizer = Schattor(
        made.params, lr=0.3, p=3, oracle=oracle, scale="unit", nesterov=False, method="exact"
    )
    scheduler = ParameterFree(optimizer)
    truth, momenta = weights_of(made), [torch.zeros_like(w) for w in weights_of(made)]
    for step in range(4):
        made.next_gradients(step)
        gamma, eta = oracles.parameter_free(step, oracle)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.3 * eta, rel=1e-15)
        assert optimizer.param_groups[0]["momentum"] == 1 - gamma
        truth, momenta = paper_step(
            truth, [param.grad for param in made.params], momenta, lr=0.3 * eta, power=0.5,
            oracle=oracle, momentum=1 - gamma,
        )  # fmt: skip
        optimizer.step()
        scheduler.step()
    for param, expected in zip(made.params, truth, strict=True):
        torch.testing.assert_close(param.detach(), expected, rtol=1e-11, atol=1e-12)


def test_parameter_free_resumes_bit_for_bit() -> None:
    def made() -> tuple[Any, Schattor, ParameterFree]:
        setting = problem()
        optimizer = Schattor(setting.params, lr=0.3, p=3)
        return setting, optimizer, ParameterFree(optimizer, tail=1.5)

    def advance(parts: tuple[Any, Schattor, ParameterFree], steps: range) -> None:
        for step in steps:
            run(parts[1], parts[0], 1, step)
            parts[2].step()

    whole, first, second = made(), made(), made()
    advance(whole, range(5))
    advance(first, range(2))
    for param, value in zip(second[0].params, weights_of(first[0]), strict=True):
        param.data.copy_(value)
    second[1].load_state_dict(first[1].state_dict())
    second[2].load_state_dict(first[2].state_dict())
    advance(second, range(2, 5))
    for a, b in zip(whole[0].params, second[0].params, strict=True):
        assert torch.equal(a, b)


def test_parameter_free_scales_the_rate_of_every_group_and_momentum_of_matrices() -> None:
    optimizer = Schattor(nn.Linear(3, 3), lr=1.0, adamw_lr=0.1)
    scheduler = ParameterFree(optimizer)
    for _ in range(15):
        optimizer.step()
        scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.125, 0.0125])
    assert [group["momentum"] for group in optimizer.param_groups] == [0.75, 0.95]


def test_parameter_free_refuses() -> None:
    params = [nn.Parameter(torch.zeros(2, 2))]
    with pytest.raises(ValueError, match='momentum_form must be "ema"'):
        ParameterFree(Schattor(params, momentum_form="heavy_ball"))
    with pytest.raises(ValueError, match="tail must be"):
        ParameterFree(Schattor(params), tail=3.0)
    with pytest.raises(ValueError, match="tail must be 2"):
        ParameterFree(Schattor(params, oracle="regularized"), tail=1.5)


def test_one_schedule_of_p_is_enough() -> None:
    optimizer = Schattor([nn.Parameter(torch.ones(2, 2))], p=lambda step: 2.0 + step)
    with pytest.raises(ValueError, match="PScheduler: p of the optimizer must be numbers"):
        PScheduler(optimizer, float)
