"""``python -m schattor.doctor``: what is built, what each operator uses here, and why."""

from __future__ import annotations

import platform

import torch

from schattor import _C, __version__, ops, planning

# A square, a wide and a long thin matrix: enough to show every kind of decision.
_SHAPES = ((768, 768), (768, 3072), (16, 4096))
_POWERS = ((0.0, "inf"), (0.5, "3"), (1.0, "2"))


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


def _operators(device: torch.device) -> str:
    if device.type == "cpu":
        forced = "" if _C.cpu_level() == _C.detected_cpu_level() else ", forced"
        return f"C++ kernels, instruction set {_C.cpu_level()}{forced}"
    return "plain torch: this build has no kernels of ours for this device"


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
        f"processor: {platform.machine()}, instruction sets up to {_C.detected_cpu_level()},"
        f" {torch.get_num_threads()} threads",
    ]
    for device in _devices():
        lines += ["", f"{_name(device)}: {_operators(device)}"]
        facts = planning.device_facts(device)
        for rows, cols in _SHAPES:
            for power, p in _POWERS:
                plan = planning.plan(power, rows, cols, torch.float32, facts)
                lines.append(f"  {rows} x {cols}, p = {p}: {plan}")
    if any(not ops.native(device) for device in _devices()):
        lines += ["", "SCHATTOR_STRICT=1 in the environment turns plain torch into an error."]
    return "\n".join(lines)


if __name__ == "__main__":
    print(report())
