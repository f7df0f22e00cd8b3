"""What surrounds a step changes nothing in it: autocast, compiled callers, schedulers, hooks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import OPTIMIZERS, problem
from torch import nn

import schattor
from schattor import functional
from schattor.optim import SGD, Muon, Schattor, SPlus

SHAPES = ((9, 6), (5, 12), (6, 9), (4,))


def gradients(seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, device="cpu") for shape in SHAPES]


def weights() -> list[nn.Parameter]:
    return [nn.Parameter(each) for each in gradients(0)]


def set_gradients(params: list[nn.Parameter], step: int) -> None:
    for param, grad in zip(params, gradients(step + 1), strict=True):
        param.grad = grad.to(param.device)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_leaves_steps_as_they_are(name: str, dtype: torch.dtype) -> None:
    plain, within = weights(), weights()
    first, second = OPTIMIZERS[name](plain), OPTIMIZERS[name](within)
    for step in range(4):
        set_gradients(plain, step)
        set_gradients(within, step)
        first.step()
        with torch.autocast(plain[0].device.type, dtype=dtype):
            second.step()
            assert torch.is_autocast_enabled(plain[0].device.type)
    for ours, theirs in zip(within, plain, strict=True):
        assert torch.equal(ours, theirs)


def test_autocast_reaches_a_closure() -> None:
    params = weights()
    seen: list[torch.dtype] = []

    def closure() -> float:
        seen.append((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)
        set_gradients(params, 0)
        return 0.0

    with torch.autocast(params[0].device.type, dtype=torch.bfloat16):
        Schattor(params).step(closure)
    assert seen == [torch.bfloat16]


@pytest.mark.parametrize("settings", [{"p": 1}, {"p": 3, "method": "exact"}, {"p": 1.02}])
def test_autocast_leaves_directions_as_they_are(settings: dict[str, Any]) -> None:
    x = torch.randn(2, 12, 20)
    expected = functional.schatten_direction(x, **settings)
    triples = functional.partial_svd(x, 3)
    with torch.autocast(x.device.type, dtype=torch.bfloat16):
        assert torch.equal(functional.schatten_direction(x, **settings), expected)
        for found, part in zip(functional.partial_svd(x, 3), triples, strict=True):
            assert torch.equal(found, part)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_compiled_function_may_step(name: str) -> None:
    torch._dynamo.reset()
    plain, within = weights(), weights()
    first, second = OPTIMIZERS[name](plain), OPTIMIZERS[name](within)
    # A scheduler wraps step, which a compiler looks into then.
    schedulers = [torch.optim.lr_scheduler.ExponentialLR(each, 0.9) for each in (first, second)]

    @torch.compile(backend="eager")
    def advance() -> None:
        second.step()

    for step in range(3):
        set_gradients(plain, step)
        set_gradients(within, step)
        first.step()
        advance()
        for scheduler in schedulers:
            scheduler.step()
    for ours, theirs in zip(within, plain, strict=True):
        assert torch.equal(ours, theirs)


def test_the_default_device_moves_no_memory_of_a_step() -> None:
    plain, within = problem(((6, 4),)), problem(((6, 4),))
    Schattor(plain.params, lr=0.1).step()
    optimizer = Schattor(within.params, lr=0.1)
    with torch.device("meta"):
        optimizer.step()
    assert torch.equal(within.params[0], plain.params[0])


def test_hooks_of_a_step_run_once() -> None:
    params = weights()
    optimizer, said = SPlus(params), []
    optimizer.register_step_pre_hook(lambda *_: said.append("pre"))
    optimizer.register_step_post_hook(
        lambda *_: said.append(float(optimizer.state[params[0]]["averaged"]))
    )
    Schattor(weights())
    for step in range(2):
        set_gradients(params, step)
        optimizer.step()
    assert said == ["pre", 1.0, "pre", 2.0]


def test_sgd_follows_a_cycle_of_momentum_as_torch_does() -> None:
    ours, theirs = weights(), weights()
    settings = {"lr": 0.1, "momentum": 0.9}
    made = [SGD(ours, **settings), torch.optim.SGD(theirs, **settings)]
    made[0].add_param_group({"params": [nn.Parameter(torch.ones(3, 3))]})
    schedulers = [
        torch.optim.lr_scheduler.OneCycleLR(each, max_lr=0.1, total_steps=12) for each in made
    ]
    for step in range(10):
        set_gradients(ours, step)
        set_gradients(theirs, step)
        for optimizer, scheduler in zip(made, schedulers, strict=True):
            optimizer.step()
            scheduler.step()
    assert made[0].param_groups[0]["momentum"] != 0.9
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_a_learning_rate_written_in_place_reaches_every_rule() -> None:
    params, rate = weights(), torch.tensor(0.1)
    optimizer = SPlus(params, lr=rate, weight_decay=0.0)
    set_gradients(params, 0)
    optimizer.step()
    rate.fill_(0.0)
    before = [param.detach().clone() for param in params]
    optimizer.step()
    for param, old in zip(params, before, strict=True):
        assert torch.equal(param, old)


def test_splus_leaves_weights_that_never_moved_as_they_are() -> None:
    moved, still = nn.Parameter(torch.ones(4, 3)), nn.Parameter(torch.ones(5, 3))
    optimizer = SPlus([moved, still], lr=0.1)
    moved.grad = torch.ones(4, 3)
    optimizer.step()
    optimizer.eval()
    assert torch.equal(still, torch.ones_like(still)) and moved.isfinite().all()
    optimizer.train()
    assert torch.equal(still, torch.ones_like(still))


def test_a_pinned_size_follows_its_group() -> None:
    params = weights()
    optimizer, sizes = Schattor(params, lr=0.1, p=3.0, scale="pin"), []
    for ratio in (0.5, 0.25):
        for group in optimizer.param_groups:
            group["pin_ratio"] = ratio
        before = params[0].detach().clone()
        set_gradients(params, 0)
        optimizer.step()
        sizes.append(float((params[0].detach() - before).norm()))
    assert sizes[0] == pytest.approx(2**0.5 * sizes[1], rel=1e-4)  # ratio^power


@pytest.mark.parametrize("options", [{}, {"momentum": 0.0, "preconditioner": "adam"}])
def test_a_cleared_state_begins_again(options: dict[str, Any]) -> None:
    params, fresh = weights(), weights()
    optimizer = Schattor(params, **options)
    set_gradients(params, 0)
    optimizer.step()
    optimizer.state.clear()
    for param, new in zip(params, fresh, strict=True):
        param.data.copy_(new)
    other = Schattor(fresh, **options)
    for step in range(2):
        set_gradients(params, step)
        set_gradients(fresh, step)
        optimizer.step()
        other.step()
    for param, new in zip(params, fresh, strict=True):
        assert torch.equal(param, new)
    assert optimizer.state_dict()["state"].keys() == other.state_dict()["state"].keys()


def test_blocks_of_two_models_are_told_apart() -> None:
    models = [nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3), nn.Linear(3, 2)) for _ in "ab"]
    groups = [{"params": [("weight", each[1].weight)], "rule": "matrix"} for each in models]
    groups[1]["params"].append(("other", models[1][0].weight))  # type: ignore[attr-defined]
    optimizer = Muon(groups[:1])
    for count in (1, 2):
        for model in models[:count]:
            model(torch.ones(1, 4)).sum().backward()
        optimizer.step()  # the first keeps its name when others come
        names = ["group 1: weight", "other", "weight"] if count == 2 else ["weight"]
        assert sorted(optimizer.stats()["blocks"]) == names
        if count == 1:
            optimizer.add_param_group(groups[1])


@pytest.mark.parametrize("name", schattor.available())
def test_weights_move_alone_as_beside_others(name: str, on_processor: None) -> None:
    """On one thread: with more, LAPACK gives a single matrix all of them."""
    given = torch.Generator().manual_seed(0)
    begin = [torch.randn(20, 50, generator=given) for _ in range(3)]
    steps = [[torch.randn(20, 50, generator=given) for _ in begin] for _ in range(4)]

    def moved(*optimized: list[int]) -> list[nn.Parameter]:
        params = [nn.Parameter(each.clone()) for each in begin]
        optimizers = [
            schattor.create(name, [params[i] for i in each], lr=1e-2) for each in optimized
        ]
        for grads in steps:
            for param, grad in zip(params, grads, strict=True):
                param.grad = grad.clone()
            for optimizer in optimizers:
                optimizer.step()
        return params

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        pairs = zip(moved([0, 1, 2]), moved([0], [1, 2]), strict=True)
        assert all(torch.equal(*pair) for pair in pairs)
    finally:
        torch.set_num_threads(threads)
