"""What planning knows of a device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch

from schattor import _C, ops

__all__ = ["DeviceFacts", "device_facts", "without_autocast"]


class DeviceFacts(NamedTuple):
    """What planning knows of a device.

    kind: torch's device type; native: whether our kernels serve it; level: the instruction set in
    force on a processor ("baseline", "avx2", "avx512", "avx512_bf16", "avx512_fp16", "amx"), the
    compute capability of a GPU of CUDA ("sm_90"), empty elsewhere.
    """

    kind: str
    native: bool
    level: str

    @property
    def half_vectors(self) -> tuple[torch.dtype, ...]:
        """Half precision in whose vectors our kernels multiply two numbers for one of float32."""
        found = {"avx512_bf16": torch.bfloat16, "avx512_fp16": torch.float16, "amx": torch.float16}
        return (found[self.level],) if self.native and self.level in found else ()


def device_facts(device: torch.device) -> DeviceFacts:
    """What planning knows of `device`.

    >>> device_facts(torch.device("cpu")).native
    True
    """
    return DeviceFacts(device.type, ops.native(device), _level(device))


def _level(device: torch.device) -> str:
    if device.type == "cpu":
        return _C.cpu_level()
    if device.type == "cuda" and torch.version.cuda and torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability(device)
        return f"sm_{major}{minor}"
    return ""


@contextmanager
def without_autocast() -> Iterator[None]:
    """Products keep their dtypes within it: autocast rounds float32 ones to half precision.

    >>> with torch.autocast("cpu"), without_autocast():
    ...     (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
    torch.float32
    """
    accelerator = torch.accelerator.current_accelerator()
    with ExitStack() as stack:
        for kind in ("cpu",) if accelerator is None else ("cpu", accelerator.type):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield
