"""Named sets of weight matrices: what real models hand to an optimizer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

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


_GPT2_SQUARES: list[Shape] = [(768, 768)] * 48
_GPT2_RECTANGLES: list[Shape] = [(3072, 768)] * 12 + [(768, 3072)] * 12
# Of 32 layers: what fits a GPU of 80 GB a dozen times over, for as many optimizers and graphs,
# which are timed in turn.
_LLAMA_LAYERS = 2

# Fused projections are split, for our optimizer and for its rivals alike.
SETS: dict[str, list[Shape]] = {
    "gpt2-small squares": _GPT2_SQUARES,
    "gpt2-small rectangles": _GPT2_RECTANGLES,
    "lora rank 16": [(4096, 16)] * 64,
    "256 of 64 x 64": [(64, 64)] * 256,
    "resnet-50": list(_resnet50_convolutions()),
    "vit-s/16": [(384, 384)] * 48 + [(1536, 384)] * 12 + [(384, 1536)] * 12,
}
GPU_SETS: dict[str, list[Shape]] = {
    "gpt2-small": _GPT2_SQUARES + _GPT2_RECTANGLES,
    f"llama-7b, {_LLAMA_LAYERS} of 32 layers": [(4096, 4096)] * (4 * _LLAMA_LAYERS)
    + [(11008, 4096)] * (2 * _LLAMA_LAYERS)
    + [(4096, 11008)] * _LLAMA_LAYERS,
    "moe, 64 experts": [(2048, 1408)] * 64,
    "lora rank 16, 448 of them": [(4096, 16)] * 448,
    "256 of 64 x 64": [(64, 64)] * 256,
    "8 convolutions": [(512, 512, 3, 3)] * 8,
    "resnet-50": SETS["resnet-50"],
    "vit-s/16": SETS["vit-s/16"],
}

# Wide batches (batch, rows, cols) for directions alone: the floors of each are of another kind.
BATCHES: dict[str, tuple[int, int, int]] = {
    "256 of 64 x 64": (256, 64, 64),
    "64 of 128 x 128": (64, 128, 128),
    "32 of 256 x 256": (32, 256, 256),
    "lora rank 16": (64, 16, 4096),
    "12 of 768 x 768": (12, 768, 768),
    "4 of 768 x 3072": (4, 768, 3072),
}
# Those with an aim first.
GPU_BATCHES: dict[str, tuple[int, int, int]] = {
    "256 of 64 x 64": BATCHES["256 of 64 x 64"],
    "448 lora rank 16": (448, 16, 4096),
    "48 of 768 x 768": (48, 768, 768),
    "24 of 768 x 3072": (24, 768, 3072),
    "4 of 4096 x 11008": (4, 4096, 11008),
    "64 of 1408 x 2048": (64, 1408, 2048),
    "64 of 128 x 128": BATCHES["64 of 128 x 128"],
    "32 of 256 x 256": BATCHES["32 of 256 x 256"],
    "1 of 768 x 768": (1, 768, 768),
    "8 of 512 x 4608": (8, 512, 4608),
    "1 of 4096 x 4096": (1, 4096, 4096),
}


def flattened(shape: Shape) -> tuple[int, int]:
    """(rows, cols) of a weight as a matrix: everything after the first dimension is columns."""
    cols = 1
    for size in shape[1:]:
        cols *= size
    return shape[0], cols


def weights_of(
    shapes: Iterable[Shape], device: torch.device, dtype: torch.dtype = torch.float32
) -> list[torch.nn.Parameter]:
    """Gaussian weights with gaussian gradients, the same at every call."""
    generator = torch.Generator(device).manual_seed(0)
    weights = []
    for shape in shapes:
        weight, grad = (
            torch.randn(shape, generator=generator, device=device, dtype=dtype) for _ in "wg"
        )
        weights.append(torch.nn.Parameter(0.02 * weight))
        weights[-1].grad = grad
    return weights
