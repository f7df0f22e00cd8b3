"""The CUDA operators, emulated on the processor, in place of the processor's own.

Only for a process of their own, which tests/test_emulated.py starts: SCHATTOR_EMULATED names the
library. Elsewhere nothing here is collected.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from schattor import _C, ops, planning

LIBRARY = os.environ.get("SCHATTOR_EMULATED", "")
sys.path.append(str(Path(__file__).parent.parent / "optim"))  # the battery's table of optimizers
collect_ignore_glob = [] if LIBRARY else ["test_*.py"]
GPU = planning.DeviceFacts("cuda", True, "sm_90")

if LIBRARY:
    assert ops.native(torch.device("cpu"))  # the processor's kernels are there to be replaced
    torch.ops.load_library(LIBRARY)
    _C.attach_cuda(LIBRARY)
    emulator = ctypes.CDLL(LIBRARY)
    planning._MOST_CACHED = 0  # no step takes the operator that a processor alone has


@pytest.fixture(autouse=True)
def no_reports() -> Iterator[None]:
    """The emulator found nothing: no race, no access out of bounds, no thread left waiting."""
    emulator.schattor_emulated_reports()
    yield
    assert emulator.schattor_emulated_reports() == 0


@pytest.fixture
def cpu_level() -> str:
    """The processor's instruction sets are of no account here: one run each."""
    return "emulated"


@pytest.fixture(params=["small", "thin", "tiles", "hopper"])
def chain_kernel(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every kernel of chains in turn, forced."""
    _C.force_cuda_chain_kernel(request.param)
    yield request.param
    _C.force_cuda_chain_kernel(None)


@pytest.fixture
def gpu_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans as on a GPU with kernels of ours."""
    monkeypatch.setattr(planning, "device_facts", lambda device: GPU)
