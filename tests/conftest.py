"""Fixtures that every test may use: seeds, and the instruction sets of this processor.

``pytest --device cuda`` runs the whole suite on a GPU: tensors are made there by default, from
numbers that are drawn on the processor, the same for every device.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from schattor import _C

DRAWS = (torch.randn, torch.rand, torch.randint, torch.randperm, torch.normal)


class DrawnOnProcessor(TorchFunctionMode):
    """Random numbers come from the processor's generators, wherever they are wanted.

    Unless a generator is given: from that, on its own device.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func not in DRAWS or kwargs.get("device") is not None:
            return func(*args, **kwargs)
        generator = kwargs.get("generator")
        kwargs["device"] = "cpu" if generator is None else generator.device
        return func(*args, **kwargs).to(torch.get_default_device())


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="where tensors of the tests are made")


def pytest_configure(config: pytest.Config) -> None:
    device = config.getoption("--device")
    if device != "cpu":
        torch.set_default_device(device)
        torch.backends.cudnn.allow_tf32 = False  # convolutions are compared in float32
        DrawnOnProcessor().__enter__()  # for good


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def on_processor() -> Iterator[None]:
    """For what is compared with processes that train together, which meet on a processor."""
    before = torch.get_default_device()
    if before.type != "cpu":
        torch.set_default_device("cpu")
    yield
    if before.type != "cpu":
        torch.set_default_device(before)


@pytest.fixture(params=_C.cpu_levels())
def cpu_level(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every instruction set that this processor has, in turn, forced."""
    before = _C.cpu_level()
    _C.force_cpu_level(request.param)
    yield request.param
    _C.force_cpu_level(before)
