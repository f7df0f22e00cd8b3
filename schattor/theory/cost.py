"""Operations and memory traffic that each route needs at least: the floor benchmarks print.

Shapes are those of one wide matrix, `rows <= cols`. A multiply-add counts as two operations; with
`symmetric` products only one triangle of a symmetric result is computed. Bytes are compulsory
traffic: every operand once, as if caches held the rest. Derived.
"""

from __future__ import annotations

__all__ = [
    "chain_flops",
    "chain_launches",
    "chain_traffic",
    "direction_bytes",
    "floor_seconds",
    "gather_bytes",
    "partial_svd_flops",
    "scatter_bytes",
    "squarings_flops",
]


def _shape(who: str, rows: int, cols: int) -> tuple[int, int]:
    if not 1 <= rows <= cols:
        raise ValueError(f"{who}: rows must be in [1, cols], got rows={rows}, cols={cols}")
    return rows, cols


def _at_least(who: str, low: float, **values: float) -> None:
    for name, value in values.items():
        if not value >= low:
            raise ValueError(f"{who}: {name} must be at least {low:g}, got {value}")


def chain_flops(
    rows: int, cols: int, depth: int, *, gram: bool = False, segments: int = 1, symmetric: bool
) -> int:
    """Operations of a chain of `depth` quintic steps on one matrix, any power.

    Direct, each step has a Gram matrix, its square, and a product with X. On the Gram side
    (`gram`), in `segments` = restarts + 1 parts, only each part's Gram matrix, its mixture's
    product with X, and the restarts touch X. With aspect a = cols/rows, in units of rows^3: direct
    K(4a+2), symmetric K(3a+1); Gram side 4a+8K-6, symmetric 3a+4K-3, each further segment 6a-6,
    symmetric 5a-3. Raises ValueError if rows > cols, or depth or segments is out of range.

    >>> chain_flops(1, 2, 7, symmetric=True), chain_flops(1, 2, 7, gram=True, symmetric=True)
    (49, 31)
    """
    m, n = _shape("chain_flops", rows, cols)
    _at_least("chain_flops", 1, depth=depth)
    if not 1 <= segments <= depth:
        raise ValueError(f"chain_flops: segments must be in [1, {depth}], got {segments}")
    triangle = 1 if symmetric else 2
    with_x, gram_matrix, square = 2 * m * m * n, triangle * m * m * n, triangle * m**3
    if not gram:
        return depth * (gram_matrix + square + with_x)
    # Of each step: the Gram matrix squared; unless it is a segment's first, also the product of
    # steps so far and the two products that carry the Gram matrix on.
    inner = depth * square + 3 * (depth - segments) * square
    return inner + segments * (gram_matrix + with_x) + (segments - 1) * with_x


def chain_launches(depth: int, *, gram: bool = False, restarts: tuple[int, ...] = ()) -> int:
    """Kernels that a GPU launches for a chain over products, of any batch and power.

    Direct: 3 for each step. Gram side: 1 for the first Gram matrix, 3 for each step (2 where a
    segment has no other), 2 for each restart, 1 at the end. Both: the squares of the first Gram
    matrix, the numbers that depend on it, and 2 for the inner products. A chain on chip is one.
    Raises ValueError if depth is not positive or restarts do not rise within 1 .. depth - 1.

    >>> chain_launches(8), chain_launches(8, gram=True, restarts=(2, 5))
    (28, 34)
    """
    _at_least("chain_launches", 1, depth=depth)
    ends = (0, *restarts, depth)
    if any(later <= earlier for earlier, later in zip(ends, ends[1:], strict=False)):
        raise ValueError(
            f"chain_launches: restarts must rise within [1, {depth - 1}], got {restarts}"
        )
    if not gram:
        return 3 * depth + 4
    single = sum(later - earlier == 1 for earlier, later in zip(ends, ends[1:], strict=False))
    return 1 + 3 * depth - single + 2 * len(restarts) + 1 + 4


def chain_traffic(
    rows: int, cols: int, depth: int, itemsize: int, *, gram: bool = False, segments: int = 1
) -> int:
    """Bytes that a chain over products moves when nothing stays on chip between its launches.

    Every launch reads its operands once and writes its results once; iterates, mixture and Gram
    matrices have `itemsize` bytes an entry. On chip it is `direction_bytes` instead. Raises
    ValueError if rows > cols, or depth or segments is out of range.

    >>> chain_traffic(1, 1, 1, 2), chain_traffic(1, 4, 8, 2, gram=True)
    (20, 244)
    """
    m, n = _shape("chain_traffic", rows, cols)
    _at_least("chain_traffic", 1, depth=depth, itemsize=itemsize)
    if not 1 <= segments <= depth:
        raise ValueError(f"chain_traffic: segments must be in [1, {depth}], got {segments}")
    wide, square = m * n, m * m
    # The last pass reads input and mixture, and writes the direction.
    last = 3 * wide
    gram_matrix = wide + square
    polynomial = 2 * square
    if not gram:
        # P, X and the mixture are read, X and the mixture written; the first step has no mixture to
        # read, the last no iterate to write.
        updates = depth * (square + 4 * wide) - 2 * wide
        return itemsize * (depth * (gram_matrix + polynomial) + updates + last)
    # A segment: its Gram matrix, Q and S of its first step from B, S X onto the direction.
    begins = segments * (gram_matrix + 3 * square + square + 2 * wide) + (segments - 1) * wide
    # Its other steps: Q and S from Q, B, S. Every step but its last: T from R, B, and R from T, B.
    others = (depth - segments) * (5 * square + 6 * square)
    restarts = (segments - 1) * (square + 2 * wide)
    return itemsize * (depth * polynomial + begins + others + restarts + last)


def squarings_flops(rows: int, cols: int, terms: int, *, symmetric: bool) -> int:
    """Operations of a polynomial of `terms` >= 2 coefficients by squarings of the Gram matrix.

    The Gram matrix, terms - 2 squarings, one product with X. Raises ValueError if rows > cols or
    terms < 2.

    >>> squarings_flops(1, 2, 5, symmetric=True)
    9
    """
    m, n = _shape("squarings_flops", rows, cols)
    _at_least("squarings_flops", 2, terms=terms)
    triangle = 1 if symmetric else 2
    return triangle * m * m * n + (terms - 2) * triangle * m**3 + 2 * m * m * n


def partial_svd_flops(rows: int, cols: int, rank: int, iterations: int) -> int:
    """Operations of `iterations` block power iterations and the product U diag(s^power) V'.

    Products with X alone; orthonormalisation of rank columns is of lower order. Raises ValueError
    if rows > cols, rank is outside [1, rows] or iterations < 1.

    >>> partial_svd_flops(2, 4, 1, 3)
    112
    """
    m, n = _shape("partial_svd_flops", rows, cols)
    _at_least("partial_svd_flops", 1, iterations=iterations)
    if not 1 <= rank <= rows:
        raise ValueError(f"partial_svd_flops: rank must be in [1, {rows}], got {rank}")
    return (4 * iterations + 2) * m * n * rank


def gather_bytes(elements: int, *, grad: int, momentum: int, wide: int) -> int:
    """Traffic of `gather_momentum`: gradients and moments are read, the wide batch is written.

    `grad`, `momentum`, `wide`: bytes of one element; momentum 0 where there are no moments.
    Raises ValueError for a negative number.

    >>> gather_bytes(10, grad=4, momentum=4, wide=2)
    100
    """
    _at_least("gather_bytes", 0, elements=elements, grad=grad, momentum=momentum, wide=wide)
    return elements * (grad + momentum + wide)


def scatter_bytes(elements: int, *, param: int, grad: int, momentum: int, wide: int) -> int:
    """Traffic of `scatter_update`: weights and moments read and written, the rest read.

    Bytes of one element as for `gather_bytes`; without moments (0) the gradient is not read.
    Raises ValueError for a negative number.

    >>> scatter_bytes(10, param=4, grad=4, momentum=4, wide=2)
    220
    """
    sizes = {"param": param, "grad": grad, "momentum": momentum, "wide": wide}
    _at_least("scatter_bytes", 0, elements=elements, **sizes)
    moments = grad + 2 * momentum if momentum else 0
    return elements * (2 * param + wide + moments)


def direction_bytes(elements: int, wide: int) -> int:
    """Traffic of any direction route: the wide batch is read, the direction written.

    `wide`: bytes of one element. Raises ValueError for a negative number.

    >>> direction_bytes(10, 4)
    80
    """
    _at_least("direction_bytes", 0, elements=elements, wide=wide)
    return 2 * elements * wide


def floor_seconds(
    flops: float, traffic: float, *, flops_per_second: float, bytes_per_second: float
) -> float:
    """Least time for `flops` operations and `traffic` bytes that overlap perfectly.

    Raises ValueError if a rate is not positive.

    >>> floor_seconds(1e9, 1e6, flops_per_second=1e12, bytes_per_second=1e11)
    0.001
    """
    rates = {"flops_per_second": flops_per_second, "bytes_per_second": bytes_per_second}
    for name, rate in rates.items():
        if not rate > 0:
            raise ValueError(f"floor_seconds: {name} must be positive, got {rate}")
    return max(flops / flops_per_second, traffic / bytes_per_second)
