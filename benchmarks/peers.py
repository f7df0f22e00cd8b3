"""What others compute for a polar direction, on wide batches; each where it can be imported."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Polar direction of a wide batch.
Polar = Callable[[Tensor], Tensor]

_JORDAN = (3.4445, -4.7750, 2.0315)


def muon_loop(wide: Tensor) -> Tensor:
    """torch.optim.Muon's own function, matrix after matrix, five steps in bfloat16."""
    from torch.optim._muon import _zeropower_via_newtonschulz

    return torch.stack([_zeropower_via_newtonschulz(x, _JORDAN, 5, 1e-7) for x in wide])


def batched(wide: Tensor) -> Tensor:
    """The same five steps with torch's batched products in bfloat16."""
    a, b, c = _JORDAN
    x = wide.bfloat16()
    x = x / x.flatten(1).norm(dim=1).clamp_min(1e-7)[:, None, None]
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _gram_newton_schulz() -> Polar:
    from gram_newton_schulz import POLAR_EXPRESS_COEFFICIENTS, GramNewtonSchulz

    return GramNewtonSchulz(
        ns_coefficients=POLAR_EXPRESS_COEFFICIENTS, gram_newton_schulz_reset_iterations=[2]
    )


def _dion() -> Polar:
    from dion.newton_schulz_triton import newton_schulz_triton

    return newton_schulz_triton


def polar_peers(device: torch.device) -> tuple[dict[str, Polar], list[str]]:
    """Peers that run on the device, and why others do not."""
    found: dict[str, Polar] = {"torch.optim.Muon": muon_loop, "batched torch": batched}
    missing = []
    if device.type == "cuda":
        # Its products are cuBLAS's for every shape: a compilation for each would tell nothing more.
        found["compiled torch"] = torch.compile(batched, dynamic=True)
        for name, load in {"gram-newton-schulz": _gram_newton_schulz, "dion": _dion}.items():
            try:
                found[name] = load()
            except ImportError as error:
                missing.append(f"{name}: {error}")
    return found, missing
