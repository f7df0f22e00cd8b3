"""What the kernels of convolutions multiply, where their modules are watched from inside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from seen import ALWAYS, Own, Seen, assert_same, curves_of, normal, truth
from torch import Tensor, nn
from torch.nn import functional as F

from schattor import Schattor
from schattor.blocks import BlockSpec


def _patches(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """What the kernels of a convolution see, ``[places, in, height, width]``."""
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    height, width = conv.padding
    x = F.pad(x, (width, width, height, height), mode=mode)
    found = F.unfold(x, conv.kernel_size, conv.dilation, 0, conv.stride).mT
    return found.reshape(-1, conv.in_channels, *conv.kernel_size)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"stride": 2, "padding": (1, 2)},
        {"dilation": (2, 1), "padding": 1},
        {"padding": 1, "padding_mode": "circular"},
        {"bias": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_groups_of_a_convolution(
    settings: dict[str, Any], memory_format: torch.memory_format
) -> None:
    conv = nn.Conv2d(4, 6, (3, 2), groups=2, **settings).to(memory_format=memory_format)
    x = normal(3, 4, 7, 6, seed=1).to(memory_format=memory_format)
    with Seen(conv, {"weight": {"rows": 2}}) as seen:
        conv(x)
        conv(x[0] + 1)
    order = (0, 2, 3, 1) if memory_format is torch.channels_last else (0, 1, 2, 3)
    both = torch.cat([_patches(x, conv), _patches(x[:1] + 1, conv)]).chunk(2, 1)
    assert_same(seen.moments(), [truth(each.permute(order).flatten(1)) for each in both])


@pytest.mark.parametrize(("conv", "shape"), [(F.conv1d, (7,)), (F.conv3d, (5, 4, 3))], ids=[1, 3])
def test_convolutions_of_other_dimensions(
    conv: Callable[..., Tensor], shape: tuple[int, ...]
) -> None:
    kernels = normal(6, 2, *(2 for _ in shape))
    model = Own(kernels, lambda w, x: conv(x, w, groups=2))
    x = normal(3, 4, *shape, seed=1).requires_grad_()
    with Seen(model, {"weight": {"rows": 2}}) as seen:
        model(x)
    moments = seen.moments()
    # A kernel that is 1 at one place gives what it sees there.
    for group, found in enumerate(moments):
        part = x[:, 2 * group : 2 * group + 2].double()
        single = torch.eye(kernels[0].numel()).double().view(-1, *kernels.shape[1:])
        rows = conv(part, single).flatten(2).mT
        assert found is not None
        assert_same([found], [truth(rows)])


def test_convolutions_of_a_users_own() -> None:
    conv = nn.Conv2d(4, 6, 3, padding="same", padding_mode="zeros")
    model = Own(normal(6, 4, 3, 3), lambda w, x: F.conv2d(x, w, padding="same"))
    x = normal(2, 4, 5, 5, seed=1)
    conv.padding = (1, 1)
    for spec, parts in (({}, [slice(None)]), ({"most": 20}, [slice(20), slice(20, None)])):
        with Seen(model, {"weight": spec}) as seen:
            model(x)
        patches = _patches(x, conv).flatten(1)
        assert_same(seen.moments(), [truth(patches[:, part]) for part in parts])


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_convolutions(groups: int, memory_format: torch.memory_format) -> None:
    settings: dict[str, Any] = {"stride": 2, "padding": 1, "output_padding": 1, "dilation": 2}
    conv = nn.ConvTranspose2d(4, 6, 3, groups=groups, **settings).to(memory_format=memory_format)
    x = normal(3, 4, 5, 6, seed=1).to(memory_format=memory_format)
    spec: BlockSpec = {"rows": 2, "out": 1} if groups == 2 else {"out": 1}
    with Seen(conv, {"weight": spec}) as seen:
        conv(x)
        conv(x[0] + 1)
    rows = torch.cat([x.movedim(1, -1).flatten(0, -2), (x[0] + 1).movedim(0, -1).flatten(0, -2)])
    assert_same(seen.moments(), [truth(each) for each in rows.chunk(groups, 1)])


@pytest.mark.parametrize(
    ("layer", "shape"), [(nn.ConvTranspose1d, (7,)), (nn.ConvTranspose3d, (3, 4, 2))], ids=[1, 3]
)
def test_transposed_convolutions_of_other_dimensions(
    layer: type[nn.Module], shape: tuple[int, ...]
) -> None:
    model, x = layer(4, 3, 2), normal(2, 4, *shape, seed=1)  # type: ignore[call-arg]
    with Seen(model, {"weight": {"out": 1}}) as seen:
        model(x)
    assert_same(seen.moments(), [truth(x.movedim(1, -1).flatten(0, -2))])


def test_a_network_that_transposes() -> None:
    """The router's blocks are what is seen."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv1d(2, 6, 3), nn.Tanh(), nn.ConvTranspose1d(6, 4, 3, groups=2), nn.Tanh(),
        nn.Conv1d(4, 3, 2),
    )  # fmt: skip
    optimizer = Schattor(model, lr=1e-2, p=ALWAYS)
    model(normal(5, 2, 9)).square().sum().backward()
    optimizer.step()
    assert {*optimizer.p_history()} == {"0.weight", "2.weight[0]", "2.weight[1]"}
    assert all(bool(curve.isfinite().all()) for curve in curves_of(optimizer))


def test_patches_that_are_looked_at() -> None:
    conv = nn.Conv2d(4, 6, 3, groups=2)
    x = normal(2, 4, 9, 9, seed=1)
    x[:, :, 0] = torch.nan
    with Seen(conv, {"weight": {"rows": 2}}, tokens=14) as seen:
        conv(x)
    samples = seen.own.like(conv.weight, 1).samples
    assert samples is not None and len(samples.rows[0]) == 14
    known = {tuple(row) for row in _patches(x, conv).chunk(2, 1)[1].flatten(1).tolist()}
    found = [tuple(row) for row in samples.rows[0].tolist()]
    assert sum(row in known for row in found) == seen.numbers()[1] == 12


def test_convolutions_without_samples() -> None:
    x = normal(2, 4, 5, 5).requires_grad_()
    for conv, spec in (
        (nn.Conv2d(4, 4, 3, groups=4), None),
        (nn.ConvTranspose2d(4, 6, 3, groups=2), {"rows": 2}),
        (Own(normal(6, 4, 1, 1), lambda w, x: F.conv2d(x, w.expand(-1, -1, 3, 3))), None),
    ):
        with Seen(conv, {"weight": spec}) as seen:
            conv(x)
            conv(x[:0])
        assert_same(seen.moments(), [None] * len(seen.moments()))
    conv = nn.Conv2d(4, 6, 3, groups=2)
    with Seen(conv, {"weight": {"rows": 2}}) as seen:
        conv(x[:0])
        with torch.no_grad():
            conv(x)
    assert_same(seen.moments(), [None, None])


def test_a_network_of_grouped_convolutions() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(128, 2))
    optimizer = Schattor(model, p=ALWAYS)
    for step in range(2):
        optimizer.zero_grad()
        model(normal(5, 3, 8, 8, seed=step)).square().mean().backward()
        optimizer.step()
    assert {len(found) for found in optimizer.p_history().values()} == {2}
    assert "2.weight[1]" in optimizer.p_history()
    assert all(bool(curve.isfinite().all()) for curve in curves_of(optimizer))
