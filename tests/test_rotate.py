"""Matrices in other bases: C++ and plain torch against float64, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from schattor import ops, portable_factors

F64 = torch.float64
both = pytest.mark.parametrize("of", [ops, portable_factors], ids=["kernels", "portable"])


def product(x: Tensor, left: Tensor | None, right: Tensor | None, back: bool) -> Tensor:
    x = x.double()
    if left is not None:
        x = (left if back else left.mT).double() @ x
    return x if right is None else x @ (right.mT if back else right).double()


@both
@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize("sides", ["left", "right", "both", "neither"])
@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (2, 7), (17, 17), (31, 64), (65, 130)])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_rotate(
    of: Any, dtype: torch.dtype, rows: int, cols: int, sides: str, back: bool, cpu_level: str
) -> None:
    x = torch.randn(3, rows, cols, dtype=dtype)
    left = torch.randn(3, rows, rows, dtype=dtype) if sides in ("left", "both") else None
    right = torch.randn(3, cols, cols, dtype=dtype) if sides in ("right", "both") else None
    kept = x.clone()
    truth = product(x, left, right, back)

    rotated = of.rotate(x, left, right, back, None, None)
    assert rotated.dtype == dtype and rotated.is_contiguous()
    limit = 4 * torch.finfo(dtype).eps * float(truth.norm())
    torch.testing.assert_close(rotated.double(), truth, rtol=0, atol=limit)

    least, scale = truth.abs().mean((1, 2)), torch.tensor([2.0, -0.5, 0.0], dtype=F64)
    shrunk = of.rotate(x, left, right, back, least, scale)
    small = rotated.abs() <= least.to(dtype)[:, None, None]
    expected = torch.where(small, 0, rotated) * scale.to(dtype)[:, None, None]
    assert torch.equal(shrunk, expected) and (cols == 1 or small.any())
    assert torch.equal(x, kept)


@both
def test_what_is_small_is_zero_at_any_scale(of: Any) -> None:
    x = torch.tensor([[[1.0, 1e-9], [1.0, 1.0]]])
    least, scale = (torch.tensor([value], dtype=F64) for value in (1e-7, torch.inf))
    rotated = of.rotate(x, None, None, False, least, scale)
    assert rotated.tolist() == [[[torch.inf, 0.0], [torch.inf, torch.inf]]]


@both
def test_a_batch_may_be_empty(of: Any) -> None:
    for shape in ((0, 3, 4), (2, 0, 4)):
        x = torch.empty(shape)
        left, right = (x.new_empty(shape[0], n, n) for n in shape[1:])
        assert of.rotate(x, left, right, False, None, None).shape == shape


def test_opcheck() -> None:
    x, left, right = torch.randn(2, 3, 5), torch.randn(2, 3, 3), torch.randn(2, 5, 5)
    numbers = torch.rand(2, dtype=F64)
    function = torch.ops.schattor.rotate.default
    torch.library.opcheck(function, (x, left, right, True, numbers, numbers.clone()))
    torch.library.opcheck(function, (x, None, None, False, None, None))


@pytest.mark.parametrize(
    ("position", "replacement", "message"),
    [
        (0, torch.zeros(3, 5), r"x must have shape \(batch, rows, cols\)"),
        (0, torch.zeros(2, 6, 5), r"x must have rows <= cols, got \(2, 6, 5\)"),
        (0, torch.zeros(2, 3, 5).half(), "x must be float64 or float32, got Half"),
        (0, torch.zeros(2, 5, 3).mT, "x must be contiguous"),
        (1, torch.zeros(2, 5, 5), r"left must have shape \(2, 3, 3\), got \(2, 5, 5\)"),
        (1, torch.zeros(2, 3, 3).double(), "left must have the dtype of x, Float, got Double"),
        (2, torch.zeros(1, 5, 5), r"right must have shape \(2, 5, 5\), got \(1, 5, 5\)"),
        (2, torch.zeros(2, 5, 10)[..., ::2], "right must be contiguous"),
        (4, torch.zeros(2), "least must be float64, got Float"),
        (5, torch.zeros(3).double(), r"scale must have shape \(2,\), got \(3,\)"),
    ],
)
def test_wrong_arguments_are_refused(position: int, replacement: Tensor, message: str) -> None:
    arguments: list[Any] = [torch.zeros(2, 3, 5), None, None, False, None, None]
    arguments[position] = replacement
    with pytest.raises(RuntimeError, match=f"rotate: {message}"):
        ops.rotate(*arguments)
