"""Weights whose memory format changes: by a resumed run in another, and between two steps."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from schattor import create
from schattor.blocks import column_order
from schattor.optim import Schattor

F64 = torch.float64
LAST = torch.channels_last
FORMATS = {"to_last": (torch.contiguous_format, LAST), "from_last": (LAST, torch.contiguous_format)}
formats = pytest.mark.parametrize("formats", FORMATS.values(), ids=FORMATS.keys())

MEMBERS: dict[str, tuple[str, dict[str, Any]]] = {
    "schattor": ("schattor", {}),
    "grafted": ("schattor", {"scale": "adam"}),
    "muadam": ("muadam", {}),
    "adamw": ("adamw", {}),
    "sgd": ("sgd", {"momentum": 0.9}),
    "factored": ("schattor", {"preconditioner": "adam", "second_moment": "factored"}),
    "shampoo": ("shampoo", {"precondition_frequency": 2, "start_preconditioning_step": 1}),
    "soap": ("soap", {"precondition_frequency": 2}),
    "soap_factored": (
        "schattor",
        {"preconditioner": "soap", "precondition_frequency": 2, "second_moment": "factored"},
    ),
    "soap_of_one_side": ("soap", {"precondition_frequency": 2, "max_precond_dim": 9}),
    "kl_shampoo": ("kl_shampoo", {"precondition_frequency": 2}),
    "kl_soap": ("kl_soap", {"precondition_frequency": 2}),
    "splus": ("splus", {"inverse_every": 2}),
}
members = pytest.mark.parametrize("member", MEMBERS.values(), ids=MEMBERS.keys())


def model_of(memory_format: torch.memory_format) -> nn.Module:
    """A wide weight, a tall one, and one that is split into a wide block and a tall one.

    Few columns: three gradients span them, so that no basis hangs on the rounding of zeros.
    """
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 5, 2), nn.Conv2d(5, 24, (2, 1)), nn.Conv2d(4, 12, (1, 2))
    return nn.ModuleList(layers).to(F64).to(memory_format=memory_format)


def optimizer_of(model: nn.Module, member: tuple[str, dict[str, Any]]) -> Schattor:
    name, settings = member
    weights = [param for param in model.parameters() if param.ndim > 1]
    groups: list[dict[str, Any]] = [{"params": weights[:2]}, {"params": weights[2:]}]
    groups[1]["blocks"] = {"rows": (3, 9)}
    if name in ("adamw", "sgd"):
        groups[1].pop("blocks")
    optimizer = create(name, groups, lr=1e-2, **settings)
    assert isinstance(optimizer, Schattor)
    return optimizer


def run(model: nn.Module, optimizer: Schattor, first: int, after: int) -> None:
    for step in range(first, after):
        for index, param in enumerate(model.parameters()):
            generator = torch.Generator().manual_seed(100 * step + index)
            grad = torch.randn(param.shape, generator=generator, dtype=F64)
            param.grad = torch.empty_like(param).copy_(grad)
        optimizer.step()


def assert_same(a: nn.Module, b: nn.Module) -> None:
    for x, y in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-11)


def moved(model: nn.Module, memory_format: torch.memory_format) -> nn.Module:
    return copy.deepcopy(model).to(memory_format=memory_format)


Change = Callable[[dict[str, Any]], None]


def _nothing(entry: dict[str, Any]) -> None:
    pass


def _without_strides(entry: dict[str, Any]) -> None:
    """As files of contiguous tensors give it back."""
    for key, value in entry.items():
        entry[key] = value.clone(memory_format=torch.contiguous_format)


def _without_columns(entry: dict[str, Any]) -> None:
    """As it was saved before state said the order."""
    entry.pop("columns", None)


@members
@formats
@pytest.mark.parametrize("change", [_nothing, _without_strides, _without_columns])
def test_a_run_resumes_in_another_memory_format(
    member: tuple[str, dict[str, Any]], formats: tuple[torch.memory_format, ...], change: Change
) -> None:
    model = model_of(formats[0])
    optimizer = optimizer_of(model, member)
    run(model, optimizer, 0, 3)
    saved = optimizer.state_dict()
    for entry in saved["state"].values():
        change(entry)
    other = moved(model, formats[1])
    resumed = optimizer_of(other, member)
    resumed.load_state_dict(saved)
    run(model, optimizer, 3, 7)
    run(other, resumed, 3, 7)
    assert_same(model, other)


@members
@formats
@pytest.mark.parametrize("loads", [False, True])
def test_a_model_changes_its_memory_format_between_steps(
    member: tuple[str, dict[str, Any]], formats: tuple[torch.memory_format, ...], loads: bool
) -> None:
    model = model_of(formats[0])
    optimizer = optimizer_of(model, member)
    run(model, optimizer, 0, 3)
    other = moved(model, formats[0])
    changed = optimizer_of(other, member)
    changed.load_state_dict(optimizer.state_dict())
    if not loads:
        run(other, changed, 3, 4)
    other.to(memory_format=formats[1])
    run(other, changed, 3 if loads else 4, 6)
    other.to(memory_format=formats[0])
    run(other, changed, 6, 8)
    run(model, optimizer, 3, 8)
    assert_same(model, other)


@formats
def test_without_momentum_the_state_says_the_order(
    formats: tuple[torch.memory_format, ...],
) -> None:
    member = ("schattor", {"preconditioner": "shampoo", "momentum": 0.0})
    model = model_of(formats[0])
    optimizer = optimizer_of(model, member)
    run(model, optimizer, 0, 3)
    other = moved(model, formats[1])
    resumed = optimizer_of(other, member)
    resumed.load_state_dict(optimizer.state_dict())
    run(model, optimizer, 3, 5)
    run(other, resumed, 3, 5)
    assert_same(model, other)


def test_any_order_of_dimensions_is_followed() -> None:
    def laid(value: Tensor, order: tuple[int, ...]) -> Tensor:
        back = sorted(range(5), key=lambda dim: order[dim])
        return value.permute(order).contiguous().permute(back)

    torch.manual_seed(0)
    shape = 12, 2, 2, 3, 2
    given, grads = torch.randn(shape, dtype=F64), torch.randn(6, *shape, dtype=F64)
    results = []
    for orders in ([(0, 1, 2, 3, 4)] * 6, [(0, 3, 1, 4, 2), (0, 4, 2, 3, 1), (0, 2, 3, 4, 1)] * 2):
        weight = nn.Parameter(given.clone())
        optimizer = create("soap", [weight], lr=0.1, precondition_frequency=2)
        for step, order in enumerate(orders):
            weight.data = laid(weight.data, order) if step >= 1 else weight.data
            weight.grad = grads[step]
            optimizer.step()
        results.append(weight.detach())
        assert tuple(optimizer.state[weight]["columns"].tolist()) == column_order(weight)
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-11)


def test_blocks_that_are_cut_along_columns_keep_their_format() -> None:
    settings = {"max_preconditioner_dim": 6, "start_preconditioning_step": 1}
    model = nn.Conv2d(3, 5, 2, bias=False).to(F64)
    optimizer = create("shampoo", model, lr=0.1, **settings)
    assert isinstance(optimizer, Schattor)
    run(model, optimizer, 0, 2)
    before = copy.deepcopy((optimizer.state_dict()["state"], model.weight.data))
    other = copy.deepcopy(model).to(memory_format=LAST)
    resumed = create("shampoo", other, lr=0.1, **settings)
    with pytest.raises(
        ValueError, match=r"Shampoo\.load_state_dict: .* must keep the memory format"
    ):
        resumed.load_state_dict(optimizer.state_dict())
    assert not resumed.state
    model.to(memory_format=LAST)
    with pytest.raises(ValueError, match="Shampoo: weight must keep the memory format"):
        run(model, optimizer, 2, 3)
    torch.testing.assert_close(
        (optimizer.state_dict()["state"], model.weight.data), before, rtol=0, atol=0
    )
    model.to(memory_format=torch.contiguous_format)
    run(model, optimizer, 2, 3)


def test_a_cut_without_statistics_is_followed() -> None:
    model = nn.Conv2d(3, 5, 2, bias=False).to(F64)
    groups = [{"params": [model.weight], "blocks": {"most": 6}}]
    optimizer = Schattor(groups, lr=0.1)
    run(model, optimizer, 0, 2)
    model.to(memory_format=LAST)
    run(model, optimizer, 2, 3)


def test_columns_that_are_no_order_are_refused() -> None:
    model = model_of(torch.contiguous_format)
    optimizer = optimizer_of(model, MEMBERS["soap"])
    run(model, optimizer, 0, 1)
    saved = optimizer.state_dict()
    saved["state"][0]["columns"] = torch.tensor([1, 1, 2])
    with pytest.raises(ValueError, match=r"columns of parameter 0 must be the dimensions"):
        optimizer.load_state_dict(saved)
