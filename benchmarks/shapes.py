"""Named sets of weight matrices: what real models hand to an optimizer."""

from __future__ import annotations

from collections.abc import Iterator

Shape = tuple[int, ...]


def _resnet50_convolutions() -> Iterator[Shape]:
    """(out, in, height, width) of every convolution but the stem, in the order of the model."""
    channels = 64
    for width, depth in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(depth):
            yield (width, channels, 1, 1)
            yield (width, width, 3, 3)
            yield (4 * width, width, 1, 1)
            if block == 0:
                yield (4 * width, channels, 1, 1)
            channels = 4 * width


# Fused projections are split, for our optimizer and for its rivals alike.
SETS: dict[str, list[Shape]] = {
    "gpt2-small squares": [(768, 768)] * 48,
    "gpt2-small rectangles": [(3072, 768)] * 12 + [(768, 3072)] * 12,
    "lora rank 16": [(4096, 16)] * 64,
    "256 of 64 x 64": [(64, 64)] * 256,
    "resnet-50": list(_resnet50_convolutions()),
    "vit-s/16": [(384, 384)] * 48 + [(1536, 384)] * 12 + [(384, 1536)] * 12,
}


def flattened(shape: Shape) -> tuple[int, int]:
    """(rows, cols) of a weight as a matrix: everything after the first dimension is columns."""
    cols = 1
    for size in shape[1:]:
        cols *= size
    return shape[0], cols
