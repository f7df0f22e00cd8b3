"""The cost model against what the emulation counts."""

from __future__ import annotations

import ctypes

import pytest
import torch
from conftest import emulator
from test_ops import chain_inputs, wide_batch

from schattor import _C, ops
from schattor.theory import cost

SEGMENTS = [(False, []), (True, []), (True, [3]), (True, [1, 2, 5])]


def counted(rows: int, cols: int, depth: int, gram: bool, restarts: list[int]) -> tuple[int, int]:
    """Launches and operations of one batch of two matrices."""
    steps, weights, powers = chain_inputs(2, depth, [0.0, 0.5])
    wide = wide_batch(2, rows, cols, torch.float16)
    emulator.schattor_emulated_reports()
    ops.chain_direction(wide, steps, weights, powers, gram, restarts)
    launches, flops = ctypes.c_int64(), ctypes.c_int64()
    emulator.schattor_emulated_counts(ctypes.byref(launches), ctypes.byref(flops))
    return launches.value, flops.value


@pytest.mark.parametrize(("gram", "restarts"), SEGMENTS)
@pytest.mark.parametrize("kernel", ["tiles", "hopper"])
def test_a_chain_over_products(kernel: str, gram: bool, restarts: list[int]) -> None:
    rows, cols, depth = 128, 256, 7
    _C.force_cuda_chain_kernel(kernel)
    try:
        launches, flops = counted(rows, cols, depth, gram, restarts)
    finally:
        _C.force_cuda_chain_kernel(None)

    assert launches == cost.chain_launches(depth, gram=gram, restarts=tuple(restarts))
    segments = len(restarts) + 1
    whole, triangle = (
        2 * cost.chain_flops(rows, cols, depth, gram=gram, segments=segments, symmetric=symmetric)
        for symmetric in (False, True)
    )
    # Of the four boxes of 64 x 64 of a symmetric result `tiles` computes three, the model two;
    # `hopper`, where there are tiles for few multiprocessors, its one tile of 128 x 128 whole.
    assert flops == {"tiles": (whole + triangle) // 2, "hopper": whole}[kernel]


def test_a_chain_on_chip_is_one_launch() -> None:
    assert counted(64, 64, 8, False, [])[0] == 1
    assert counted(16, 512, 8, True, [3])[0] == 1
