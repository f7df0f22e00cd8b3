"""Fixtures that every test may use: seeds, and the instruction sets of this processor.

``pytest --device cuda`` runs the whole suite on a GPU: tensors are made there by default.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from schattor import _C

LEVELS = ("baseline", "avx2", "avx512", "amx")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="where tensors of the tests are made")


def pytest_configure(config: pytest.Config) -> None:
    device = config.getoption("--device")
    if device != "cpu":
        torch.set_default_device(device)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=LEVELS[: LEVELS.index(_C.detected_cpu_level()) + 1])
def cpu_level(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every instruction set that this processor has, in turn, forced."""
    before = _C.cpu_level()
    _C.force_cpu_level(request.param)
    yield request.param
    _C.force_cpu_level(before)
