"""``python -m schattor.doctor``: what is built, what each operator uses here, and why."""

from __future__ import annotations

import argparse
import platform
import re
from collections.abc import Sequence

import torch

from schattor import _C, __version__, measured, ops, planning
from schattor.planning import Plan

# A square, a wide and a long thin matrix: enough to show every kind of decision.
_SHAPES = ((768, 768), (768, 3072), (16, 4096))
_POWERS = ((0.0, "inf"), (0.5, "3"), (1.0, "2"))
_MIB = 2**20


def _devices() -> list[torch.device]:
    devices = [torch.device("cpu")]
    devices += [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append(torch.device("mps"))
    return devices


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return str(device)


def built_for(level: str, built: str) -> bool:
    """Whether kernels ``built`` for these architectures run on a GPU of this level.

    Machine code serves its own generation from its minor version on, PTX every later GPU, and what
    ends in "a" one architecture alone.

    >>> built_for("sm_86", "sm_80"), built_for("sm_90", "sm_80"), built_for("sm_90", "sm_80+PTX")
    (True, False, True)
    """
    here = int(level.removeprefix("sm_"))
    for number, exact, ptx in re.findall(r"sm_(\d+)([af]?)(\+PTX)?", built):
        least = int(number)
        same = here == least if exact else here // 10 == least // 10 and here >= least
        if same or (ptx and here >= least):
            return True
    return False


def _operators(device: torch.device) -> str:
    why = ops.missing(device)
    if why:
        return f"plain torch: {why}"
    if device.type == "cpu":
        forced = "" if _C.cpu_level() == _C.detected_cpu_level() else ", forced"
        return f"C++ kernels, instruction set {_C.cpu_level()}{forced}"
    level, built = planning.device_facts(device).level, _C.build_info()["cuda"]
    if not built_for(level, built):
        return f"CUDA kernels of {built}: none for {level}, operators will fail; install again here"
    timed = ", ".join(measured.devices(level))
    return f"CUDA kernels, {level}, {f'timed on {timed}' if timed else f'never timed on {level}'}"


def _kernel(plan: Plan, rows: int, cols: int, device: torch.device) -> str:
    """Which CUDA kernel takes a chain, for one matrix."""
    if plan.route != "chain" or device.type != "cuda" or ops.missing(device):
        return ""
    if plan.engine != "kernels":
        return " [torch.bmm]"
    dtype, restarts = str(plan.dtype).removeprefix("torch."), list(plan.restarts)
    with torch.cuda.device(device):
        kernel, workspace = _C.cuda_chain_kernel(
            1, rows, cols, dtype, plan.depth, plan.gram, restarts
        )
    return f" [kernel {kernel}, {workspace / _MIB:.1f} MiB of workspace a matrix]"


def report() -> str:
    """The doctor's findings as text, one fact a line.

    Example:
        >>> from schattor.doctor import report
        >>> "instruction set" in report()
        True
    """
    built = _C.build_info()
    lines = [
        f"schattor {__version__}, Python {platform.python_version()}, torch {torch.__version__}",
        f"built with torch {built['torch_built_with']} for the stable ABI of torch"
        f" {built['torch_abi']} and later, compiler {built['compiler']}",
        f"CUDA kernels: {built['cuda']}",
        f"CUDA tensors: {ops.missing(torch.device('cuda')) or 'CUDA kernels'}",
        f"processor: {platform.machine()}, instruction sets up to {_C.detected_cpu_level()},"
        f" {torch.get_num_threads()} threads",
    ]
    for device in _devices():
        lines += ["", f"{_name(device)}: {_operators(device)}"]
        facts = planning.device_facts(device)
        for rows, cols in _SHAPES:
            for power, p in _POWERS:
                plan = planning.plan(power, rows, cols, torch.float32, facts)
                kernel = _kernel(plan, rows, cols, device)
                lines.append(f"  {rows} x {cols}, p = {p}: {plan}{kernel}")
    if any(not ops.native(device) for device in _devices()):
        lines += ["", "SCHATTOR_STRICT=1 in the environment turns plain torch into an error."]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the report; ``--help`` says what it is, and other arguments are refused."""
    parser = argparse.ArgumentParser(
        prog="python -m schattor.doctor",
        description="Print what is built, what each operator uses on this machine, and why.",
    )
    parser.parse_args(arguments)
    print(report())


if __name__ == "__main__":
    main()
