"""Small blocks move by one operator a bucket: as they do by three, and only where it applies."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from schattor import AutoP, Schattor, ops, planning

SHAPES = ((12, 12), (12, 12), (5, 20), (20, 5), (3, 40), (8, 12), (1, 9))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many blocks each call of the operator moved."""
    seen: list[int] = []
    chain_update = ops.chain_update

    def watched(params: list[Tensor], *rest: Any) -> Any:
        seen.append(len(params))
        return chain_update(params, *rest)

    monkeypatch.setattr(ops, "chain_update", watched)
    return seen


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No block is small."""
    planning.plan.cache_clear()
    monkeypatch.setattr(planning, "_MOST_CACHED", 0)
    yield
    planning.plan.cache_clear()


def weights(dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    generator = torch.Generator("cpu").manual_seed(0)
    drawn = [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in SHAPES]
    return [nn.Parameter(each.to(device="cpu", dtype=dtype)) for each in drawn]


def run(params: list[nn.Parameter], count: int = 4, **settings: Any) -> Schattor:
    """Some steps; the gradient of one block is not finite at one of them."""
    optimizer = Schattor([{"params": params, "rule": "matrix"}], lr=0.02, **settings)
    go_on(optimizer, params, range(count))
    return optimizer


def go_on(optimizer: Schattor, params: list[nn.Parameter], steps: range) -> None:
    for step in steps:
        generator = torch.Generator("cpu").manual_seed(step + 1)
        for index, param in enumerate(params):
            drawn = torch.randn(param.shape, generator=generator, dtype=torch.float64)
            param.grad = drawn.to(param)
            if index == step == 1:
                param.grad[0, 0] = math.nan
        optimizer.step()


SETTINGS: list[dict[str, Any]] = [
    {},
    {"p": 3.0},
    {"power": -0.1},
    {"oracle": "regularized", "scale": "unit"},
    {"scale": "unit"},
    {"scale": "spectral", "p": 4.0},
    {"scale": "pin", "p": 3.0},
    {"oracle": "regularized", "p": 3.0, "bias_correction": True},
    {"bias_correction": True, "nesterov": False},
    {"momentum_form": "heavy_ball", "nesterov": False, "weight_decay": 0.1},
    {"momentum": 0.0},
    {"maximize": True, "block_weights": 2.0},
    {"maximize": True, "block_weights": 2.0, "oracle": "regularized"},
    {"steps": 5, "chain_dtype": torch.float16},
    {"chain_dtype": torch.bfloat16},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_as_by_three_operators(
    settings: dict[str, Any], calls: list[int], request: pytest.FixtureRequest
) -> None:
    params = weights()
    optimizer = run(params, **settings)
    assert calls == [2, 2, 1, 1] * 4  # 12x12, 5x20, 3x40, 8x12; a single row needs no chain
    request.getfixturevalue("apart")
    others = weights()
    other = run(others, **settings)
    assert len(calls) == 16
    for ours, theirs in zip(params, others, strict=True):
        # The last bit of torch's square roots and powers, which are MKL's, is not the C library's.
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)
        moments = [each.state[w] for each, w in ((optimizer, ours), (other, theirs))]
        for key in moments[0]:
            assert torch.equal(torch.as_tensor(moments[0][key]), torch.as_tensor(moments[1][key]))
    found, expected = optimizer.stats(), other.stats()
    assert found["nonfinite"] == expected["nonfinite"] == 1
    assert found["blocks"].keys() == expected["blocks"].keys()
    for block, numbers in expected["blocks"].items():
        assert found["blocks"][block] == pytest.approx(numbers, rel=1e-9)


@pytest.mark.parametrize("steps", [5, 8])  # without a restart, and with one
@pytest.mark.parametrize("rows", [8, 16, 24, 32, 48])  # one strip at one level or another
def test_tall_weights_as_they_lie(
    rows: int, steps: int, cpu_level: str, calls: list[int], request: pytest.FixtureRequest
) -> None:
    def drawn() -> list[nn.Parameter]:
        made = torch.randn(3, 192, rows, generator=torch.Generator("cpu").manual_seed(0))
        return [nn.Parameter(each.clone()) for each in made.to("cpu")]

    params = drawn()
    run(params, steps=steps, p=4.0)
    assert calls == [3] * 4
    request.getfixturevalue("apart")
    others = drawn()
    run(others, steps=steps, p=4.0)
    for ours, theirs in zip(params, others, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_half_precision_weights(calls: list[int], request: pytest.FixtureRequest) -> None:
    params = weights(torch.bfloat16)
    run(params)
    assert calls
    request.getfixturevalue("apart")
    others = weights(torch.bfloat16)
    run(others)
    for ours, theirs in zip(params, others, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2**-7, atol=1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        {"coupling": "l2"},
        {"preconditioner": "adam"},
        {"method": "exact"},
        {"p": 2.0},
        {"p": 1.0},
        {"scale": "adam"},
    ],
    ids=str,
)
def test_where_it_does_not_apply(settings: dict[str, Any], calls: list[int]) -> None:
    run(weights(), count=1, **settings)
    assert not calls


def test_recording_steps_go_apart(calls: list[int]) -> None:
    net = nn.Sequential(nn.Linear(12, 12, bias=False), nn.Tanh(), nn.Linear(12, 12, bias=False))
    net = net.to(device="cpu", dtype=torch.float64)
    group = {"params": list(net.parameters()), "rule": "matrix"}
    optimizer = Schattor([group], lr=0.02, p=AutoP(warmup=1, interval=2))
    optimizer.watch(net)
    counts = []
    for _ in range(5):
        optimizer.zero_grad()
        x = torch.randn(30, 12, dtype=torch.float64, device="cpu")
        (net(x) * torch.arange(12.0, device="cpu")).square().mean().backward()
        optimizer.step()
        counts.append(len(calls))
    assert counts == [1, 1, 2, 2, 3]
    assert [step for step, _ in next(iter(optimizer.p_history().values()))] == [1, 3]


def test_large_blocks_go_apart() -> None:
    facts = planning.DeviceFacts("cpu", True, "avx2")
    small, wide, square = (
        planning.plan(0.0, *shape, torch.float32, facts)
        for shape in ((16, 4096), (64, 4096), (192, 192))
    )
    assert small.fused and not wide.fused and not square.fused
    other = planning.DeviceFacts("cuda", True, "sm_90")
    assert not planning.plan(0.0, 16, 4096, torch.float32, other).fused


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_change_no_bit(threads: int) -> None:
    before, one = torch.get_num_threads(), weights(torch.float32)
    some = copy.deepcopy(one)
    try:
        torch.set_num_threads(1)
        run(one)
        torch.set_num_threads(threads)
        run(some)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(one, some, strict=True))


def test_p_and_rates_may_change_between_steps(request: pytest.FixtureRequest) -> None:
    def changing() -> list[nn.Parameter]:
        params = weights()
        optimizer = run(params, count=1)
        for step, (p, lr) in enumerate(((3.0, 0.01), (2.0, 0.1), (math.inf, 0.001)), 1):
            optimizer.param_groups[0].update(p=p, lr=lr)
            go_on(optimizer, params, range(step, step + 1))
        return params

    params = changing()
    request.getfixturevalue("apart")
    for ours, theirs in zip(params, changing(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)
