"""Runs tests/emulated in a process of its own: there the CPU key belongs to the CUDA operators."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEADERS = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "include" / "cuda_bf16.h"


@pytest.mark.skipif(not HEADERS.exists(), reason=f"no CUDA headers: {HEADERS}")
@pytest.mark.skipif(not shutil.which("make"), reason="no make")
def test_cuda_operators_on_the_processor() -> None:
    library = Path("build/emulation/plain/_ops_emulated.so")
    make = ["make", "-s", f"PY={sys.executable}", str(library)]
    subprocess.run(make, cwd=ROOT, check=True)

    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/emulated"]
    environment = {**os.environ, "SCHATTOR_EMULATED": str(ROOT / library)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)

    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
