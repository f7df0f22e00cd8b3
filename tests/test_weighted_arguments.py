"""Arguments of the operators with weights and second moments: torch's checks, and refusals."""

from __future__ import annotations

import pytest
import test_ops
import torch
from weighted_calls import F64, number, random_lists

from schattor import ops


def cases() -> dict[str, tuple[object, tuple[object, ...]]]:
    lists = random_lists(2, 4, 6, torch.float32, torch.float32)
    numbers, finite = torch.full((2,), 0.5, dtype=F64), torch.ones(2, dtype=torch.bool)
    weights, wide = torch.randn(2, 4, 6), torch.randn(2, 4, 6)
    params = [torch.randn(4, 6) for _ in range(2)]
    beta, momentum = number(0.98), number(0.9)
    each = (numbers, numbers.clone(), 0.5, torch.tensor([0.25, 0.5], dtype=F64))
    means = (momentum, True, True, beta, *each, 1.0)
    library = torch.ops.schattor
    return {
        "gather_weighted": (
            library.gather_weighted.default,
            (*lists[:3], *means, weights, wide, numbers.clone(), finite),
        ),
        "weigh": (library.weigh.default, (weights, wide.bfloat16())),
        "scatter_moments": (
            library.scatter_moments.default,
            (params, *lists[:3], wide, numbers, number(0.9), momentum, beta, True, finite),
        ),
        "average_grams": (
            library.average_grams.default,
            (torch.eye(6).repeat(2, 1, 1), wide, True, numbers, numbers.clone()),
        ),
    }


@pytest.mark.parametrize("name", cases())
def test_opcheck(name: str) -> None:
    function, arguments = cases()[name]
    torch.library.opcheck(function, arguments)


def test_every_operator_is_checked() -> None:
    names = [function.__name__ for function in ops._OPERATORS] + ["chain_update"]
    assert sorted(names) == sorted([*test_ops.cases(), *cases()])


@pytest.mark.parametrize(
    ("name", "position", "replacement", "message"),
    [
        ("gather_weighted", 0, [torch.zeros(4, 6)], "grads must hold 2 tensors"),
        ("gather_weighted", 2, [torch.zeros(4, 6)], "squares must hold 2 tensors"),
        (
            "gather_weighted",
            2,
            [torch.zeros(4, 6), torch.zeros(4, 6, dtype=F64)],
            r"squares\[1\] must be Float like squares\[0\], got Double",
        ),
        ("gather_weighted", 6, torch.zeros(2, dtype=F64), r"beta must have shape \(\), got \(2,\)"),
        ("gather_weighted", 7, torch.zeros(2), "corrections must be float64, got Float"),
        ("gather_weighted", 8, torch.zeros(3, dtype=F64), r"eps must have shape \(2,\)"),
        ("gather_weighted", 9, 0.25, "root must be 1 or 0.5, got 0.25"),
        ("gather_weighted", 10, torch.zeros(2), "exponent must be float64"),
        ("gather_weighted", 10, number(0.5), r"exponent must have shape \(2,\), got \(\)"),
        ("gather_weighted", 11, 3.0, "size must be a power of two, got 3"),
        ("gather_weighted", 12, torch.zeros(2, 6, 4), r"weights must have shape \(2, 4, 6\)"),
        ("gather_weighted", 12, torch.zeros(2, 6, 4).mT, "weights must be contiguous"),
        (
            "gather_weighted",
            12,
            torch.zeros(2, 4, 6).half(),
            "weights must be float64 where .* got Half",
        ),
        (
            "gather_weighted",
            12,
            torch.zeros(2, 4, 6, dtype=F64),
            ".* got Double .* must be float32",
        ),
        ("gather_weighted", 13, torch.zeros(2, 4, 6, dtype=F64), ".* got Float .* must be float64"),
        ("gather_weighted", 15, torch.zeros(2), "finite must be bool"),
        ("weigh", 0, torch.zeros(2, 4, 6).half(), "weights must be float64 or float32, got Half"),
        ("weigh", 0, torch.zeros(4, 6), "weights must have shape"),
        ("weigh", 0, torch.zeros(2, 6, 4).mT, "weights must be contiguous"),
        ("weigh", 1, torch.zeros(2, 4, 5), r"direction must have shape \(2, 4, 6\)"),
        ("weigh", 1, torch.zeros(2, 4, 6, dtype=torch.int32), "direction must be float64"),
        ("scatter_moments", 3, [torch.zeros(4, 6)], "squares must hold 2 tensors"),
        ("scatter_moments", 3, [torch.zeros(6, 4)] * 2, r"squares\[0\] must have shape \(4, 6\)"),
        ("scatter_moments", 8, torch.zeros(()), "beta must be float64"),
        ("average_grams", 0, torch.zeros(2, 4, 4), r"factors must have shape \(2, 6, 6\)"),
        (
            "average_grams",
            0,
            torch.zeros(2, 6, 6, dtype=F64),
            "factors must have the dtype of wide",
        ),
        ("average_grams", 0, torch.zeros(2, 6, 12)[..., ::2], "factors must be contiguous"),
        (
            "average_grams",
            1,
            torch.zeros(2, 4, 6).half(),
            "wide must be float64 or float32, got Half",
        ),
        ("average_grams", 1, torch.zeros(2, 7, 6), "wide must have rows <= cols"),
        ("average_grams", 3, torch.zeros(1, dtype=F64), r"decay must have shape \(2,\)"),
        ("average_grams", 4, torch.zeros(2), "share must be float64"),
    ],
)
def test_bad_arguments_are_named(
    name: str, position: int, replacement: object, message: str
) -> None:
    function, arguments = cases()[name]
    changed = list(arguments)
    changed[position] = replacement

    with pytest.raises(RuntimeError, match=f"{name}: {message}"):
        function(*changed)
