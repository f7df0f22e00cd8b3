"""Facts of the build, the processor, and launches on a GPU; no tensors pass here."""

from typing import Literal

CpuLevel = Literal["baseline", "avx2", "avx512", "avx512_bf16", "avx512_fp16", "amx"]
ChainKernel = Literal["small", "thin", "tiles", "hopper"]

def build_info() -> dict[str, str]: ...
def cpu_level() -> CpuLevel: ...
def detected_cpu_level() -> CpuLevel: ...

# Those that can be forced, in rising order.
def cpu_levels() -> list[CpuLevel]: ...
def force_cpu_level(level: CpuLevel) -> None: ...
def chain_workspace_bytes(
    batch: int, rows: int, cols: int, dtype: str, depth: int, gram: bool, threads: int
) -> int: ...

# Below: of the library of the CUDA operators, which must be loaded and attached.
def attach_cuda(path: str) -> None: ...

# device: (architecture, multiprocessors, bytes of shared memory a block), e.g. (90, 132, 232448);
# (0, 0, 0) is the current device. Returns the kernel, and the bytes of workspace that it asks for.
def cuda_chain_kernel(
    batch: int,
    rows: int,
    cols: int,
    dtype: str,
    depth: int,
    gram: bool,
    restarts: list[int] = ...,
    device: tuple[int, int, int] = ...,
) -> tuple[ChainKernel, int]: ...

# Every chain takes this kernel, or fails where it serves none; None: as planned.
def force_cuda_chain_kernel(kernel: ChainKernel | None) -> None: ...
