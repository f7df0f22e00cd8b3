import math

import pytest

from schattor.theory import cost


def counted(depth, rows, cols, restarts, triangle):
    """Operations of the Gram-side algorithm, counted product by product."""
    square, flops, first = triangle * rows**3, 0, True
    for step in range(depth):
        if first:
            flops += triangle * rows * rows * cols  # R = X X'
        flops += square  # R^2
        if not first:
            flops += square  # Q Z
        first = False
        last = step == depth - 1
        if step + 1 in restarts or last:
            flops += 2 * rows * rows * cols  # the mixture S X
            if not last:
                flops += 2 * rows * rows * cols  # X = Q X
            first = True
        else:
            flops += 2 * square  # Z R Z
    return flops


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("restarts", [(), (3,), (2, 4)])
def test_gram_side_is_what_the_algorithm_does(restarts, symmetric):
    triangle = 1 if symmetric else 2
    for depth, rows, cols in ((7, 128, 512), (8, 96, 96)):
        flops = cost.chain_flops(
            rows, cols, depth, gram=True, segments=len(restarts) + 1, symmetric=symmetric
        )
        assert flops == counted(depth, rows, cols, restarts, triangle)


def test_units_of_rows_cubed():
    """K(4a+2), K(3a+1) direct; 4a+8K-6, 3a+4K-3 on the Gram side."""
    for depth in (5, 7):
        for aspect in (1, 2, 8):
            for symmetric, direct, gram in (
                (False, depth * (4 * aspect + 2), 4 * aspect + 8 * depth - 6),
                (True, depth * (3 * aspect + 1), 3 * aspect + 4 * depth - 3),
            ):
                shape = (10, 10 * aspect, depth)
                assert cost.chain_flops(*shape, symmetric=symmetric) == direct * 10**3
                assert cost.chain_flops(*shape, gram=True, symmetric=symmetric) == gram * 10**3


def test_squarings_and_partial_svd():
    gram, squarings, apply = 64 * 64 * 128, 3 * 64**3, 2 * 64 * 64 * 128
    assert cost.squarings_flops(64, 128, 5, symmetric=True) == gram + squarings + apply
    assert cost.squarings_flops(64, 128, 5, symmetric=False) == 2 * (gram + squarings) + apply
    assert cost.partial_svd_flops(64, 128, 4, 3) == 3 * 2 * (2 * 64 * 128 * 4) + 2 * 64 * 128 * 4


def test_bytes():
    assert cost.gather_bytes(1000, grad=2, momentum=4, wide=2) == 8000
    assert cost.gather_bytes(1000, grad=2, momentum=0, wide=4) == 6000
    assert cost.scatter_bytes(1000, param=4, grad=2, momentum=4, wide=2) == 20000
    assert cost.scatter_bytes(1000, param=4, grad=2, momentum=0, wide=2) == 10000
    assert cost.direction_bytes(1000, 2) == 4000


def test_floor_is_the_slower_of_the_two():
    rates = {"flops_per_second": 1e12, "bytes_per_second": 1e10}
    assert cost.floor_seconds(2e12, 1e10, **rates) == 2.0
    assert cost.floor_seconds(1e12, 3e10, **rates) == 3.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cost.chain_flops(3, 2, 5, symmetric=True), r"chain_flops: rows must be in \[1, c"),
        (lambda: cost.chain_flops(0, 2, 5, symmetric=True), "rows must be in"),
        (lambda: cost.chain_flops(2, 2, 0, symmetric=True), "depth must be at least 1, got 0"),
        (
            lambda: cost.chain_flops(2, 2, 5, gram=True, segments=6, symmetric=True),
            r"segments must be in \[1, 5\], got 6",
        ),
        (lambda: cost.squarings_flops(2, 2, 1, symmetric=True), "terms must be at least 2, got 1"),
        (lambda: cost.partial_svd_flops(2, 2, 3, 1), r"rank must be in \[1, 2\], got 3"),
        (lambda: cost.partial_svd_flops(2, 2, 1, 0), "iterations must be at least 1, got 0"),
        (lambda: cost.gather_bytes(-1, grad=4, momentum=4, wide=4), "elements must be at least 0"),
        (
            lambda: cost.floor_seconds(1, 1, flops_per_second=0, bytes_per_second=math.nan),
            "floor_seconds: flops_per_second must be positive, got 0",
        ),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def launched(depth, restarts):
    """Launches of the Gram side as operands read and written, in units of (square, wide)."""
    passes = [(1, 1), (0, 0), (0, 0), (0, 3), (0, 0)]  # Gram, squares, numbers, inner products
    begins, segment = 0, 0
    for step in range(depth):
        ends = step + 1 in restarts or step + 1 == depth
        passes.append((2, 0))  # B from R
        if step == begins:
            passes.append((3, 0))  # Q and S from B
            passes += [] if ends else [(3, 0)]  # T from R and B
        else:
            passes.append((5 + (0 if ends else 3), 0))  # Q and S, and T, in one launch
        if not ends:
            passes.append((3, 0))  # R from T and B
        elif step + 1 < depth:
            passes.append((2, 4 + (segment > 0)))  # S X and Q X
            passes.append((1, 1))  # the next Gram matrix
            begins, segment = step + 1, segment + 1
    passes.append((1, 2 + (segment > 0)))
    return passes


@pytest.mark.parametrize("restarts", [(), (3,), (2, 4), (1, 2, 7)])
def test_launches_and_traffic_of_the_gram_side(restarts):
    rows, cols, depth = 48, 200, 8
    passes = launched(depth, restarts)
    assert cost.chain_launches(depth, gram=True, restarts=restarts) == len(passes)
    traffic = 2 * sum(square * rows * rows + wide * rows * cols for square, wide in passes)
    segments = len(restarts) + 1
    assert cost.chain_traffic(rows, cols, depth, 2, gram=True, segments=segments) == traffic


def test_launches_and_traffic_of_the_direct_form():
    rows, cols, depth = 48, 200, 8
    wide, square = rows * cols, rows * rows
    steps = depth * (wide + square + 2 * square + square + 4 * wide)
    traffic = 4 * (steps - wide - wide + 3 * wide)
    assert cost.chain_traffic(rows, cols, depth, 4) == traffic
    assert cost.chain_launches(depth) == 3 * depth + 4


@pytest.mark.parametrize("restarts", [(0,), (3, 3), (8,), (4, 2)])
def test_restarts_must_rise(restarts):
    with pytest.raises(ValueError, match=r"chain_launches: restarts must rise within \[1, 7\]"):
        cost.chain_launches(8, gram=True, restarts=restarts)
