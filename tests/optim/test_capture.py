"""Steps captured in a CUDA graph: what a capture may write, and what a replay follows.

Without a GPU a replay is played by the calls that it would repeat: the step alone, without the
host's part before it.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from cases import problem, run
from torch import nn

from schattor.optim import Schattor, schattor

SHAPES = ((6, 6), (4, 9), (9, 4), (6, 6))


@pytest.fixture
def capturing(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Turns capturing on and off."""
    state = {"on": False}
    monkeypatch.setattr(schattor, "_is_capturing", lambda: state["on"])

    def turn(on: bool) -> None:
        state["on"] = on

    return turn


def captured(optimizer: Schattor, capturing: Any) -> None:
    capturing(True)
    optimizer.step()
    capturing(False)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"coupling": "l2"},
        {"preconditioner": "adam", "scale": "spectral"},
        {"preconditioner": "padam", "coupling": "l2"},
        {"scale": "adam"},
    ],
    ids=str,
)
def test_a_replay_follows_lr_decay_momentum_and_p_bit_for_bit(
    settings: dict[str, Any], capturing: Any
) -> None:
    eager, graph = problem(SHAPES), problem(SHAPES)
    optimizers = [Schattor(m.params, lr=0.1, p=3.0, **settings) for m in (eager, graph)]
    for optimizer, made in zip(optimizers, (eager, graph), strict=True):
        run(optimizer, made, 1)
    optimizers[0].step()
    captured(optimizers[1], capturing)
    for lr, decay, momentum, p in ((0.05, 0.1, 0.9, 4.0), (0.02, 0.0, 0.8, math.inf)):
        for optimizer in optimizers:
            group = optimizer.param_groups[0]
            group.update(lr=lr, weight_decay=decay, momentum=momentum, p=p)
        optimizers[0].step()
        optimizers[1].refresh()
        optimizers[1]._step_matrices()
    assert all(torch.equal(a, b) for a, b in zip(eager.params, graph.params, strict=True))


@pytest.mark.parametrize("key", ["lr", "momentum", "weight_decay", "p"])
def test_a_capture_refuses_values_that_it_would_freeze(key: str, capturing: Any) -> None:
    made = problem(SHAPES)
    optimizer = Schattor(made.params, lr=0.1, p=3.0)
    run(optimizer, made, 1)
    before = [param.clone() for param in made.params]
    optimizer.param_groups[0][key] = {"p": 4.0}.get(key, 0.01)
    with pytest.raises(RuntimeError, match=r"Schattor: a step must be prepared before"):
        captured(optimizer, capturing)
    capturing(False)
    assert all(torch.equal(a, b) for a, b in zip(before, made.params, strict=True))
    optimizer.refresh()
    captured(optimizer, capturing)


def test_a_capture_refuses_to_plan(capturing: Any) -> None:
    made = problem(SHAPES)
    run(Schattor(made.params), made, 1)  # leaves gradients
    with pytest.raises(RuntimeError, match="take one step"):
        captured(Schattor(made.params), capturing)


def test_refresh_refuses_a_p_of_another_route(capturing: Any) -> None:
    made = problem(SHAPES)
    optimizer = Schattor(made.params, p=3.0)
    run(optimizer, made, 1)
    captured(optimizer, capturing)
    optimizer.param_groups[0]["p"] = 1.1
    with pytest.raises(ValueError, match="p must keep the route that was captured, chain"):
        optimizer.refresh()


def test_refresh_without_a_capture_prepares_the_first() -> None:
    made = problem(SHAPES)
    run(Schattor(made.params), made, 1)
    optimizer = Schattor(made.params, lr=0.1)
    optimizer.refresh()
    assert optimizer._stepper.buckets and float(optimizer._stepper.buckets[0].lr) == 0.1


def test_other_rules_read_their_rate_from_the_device(capturing: Any) -> None:
    weights = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    for weight in weights:
        weight.grad = torch.full((3,), 0.5)
    eager, graph = (
        Schattor([{"params": [weight], "rule": "adamw", "capturable": on}], lr=0.1)
        for weight, on in zip(weights, (False, True), strict=True)
    )
    graph._write_rates()
    rate = graph._rates[0]
    assert float(rate) == pytest.approx(0.1) and not eager._rates
    graph.param_groups[0]["lr"] = 0.03
    graph._write_rates()
    assert graph._rates[0] is rate and float(rate) == pytest.approx(0.03)
    graph.param_groups[0]["lr"] = torch.tensor(0.2)
    graph._write_rates()
    assert not graph._rates


def test_sgd_cannot_be_captured() -> None:
    weight = nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match='capturable must be False with rule="sgd"'):
        Schattor([{"params": [weight], "rule": "sgd", "capturable": True}])
