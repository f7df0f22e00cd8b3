"""What the state holds of a parameter and, by suffix, of each of its blocks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["Entries", "joined", "suffixes", "zeros_as"]

Entries = list[tuple[dict[str, Any], str]]
"""Of each block of a bucket, its parameter's state and the suffix of its keys."""


def suffixes(count: int) -> list[str]:
    """What keys of each of so many blocks end in; a parameter that is one block needs nothing."""
    return [""] if count == 1 else [f".{index}" for index in range(count)]


def joined(entries: Entries, key: str) -> Tensor:
    """All blocks' tensors of a key side by side ``[batch, ...]``; the state has views of that."""
    batch = torch.stack([entry[key + suffix] for entry, suffix in entries])
    for (entry, suffix), view in zip(entries, batch.unbind(), strict=True):
        entry[key + suffix] = view
    return batch


def zeros_as(param: Tensor, dtype: torch.dtype) -> Tensor:
    """Zeros that lie in memory as the parameter does."""
    return torch.zeros_like(param, dtype=dtype, memory_format=torch.preserve_format)
