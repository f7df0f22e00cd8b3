"""Which tensors take which operators: what is built, what torch has, and what loads."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

from schattor import _C, ops, planning

BUILT = "sm_90a by nvcc 13.0"


@pytest.mark.parametrize(
    ("torch_cuda", "built", "why"),
    [
        (None, BUILT, "this torch is built without CUDA"),
        ("13.0", "not built: no nvcc", "the CUDA kernels are not built: no nvcc"),
    ],
)
def test_nothing_to_load_is_no_fault(
    tmp_path: Path, torch_cuda: str | None, built: str, why: str
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ops._load_cuda(tmp_path / "_ops_cuda.so", torch_cuda, built) == why


def test_a_cpu_only_torch_does_not_touch_the_library(tmp_path: Path) -> None:
    (tmp_path / "_ops_cuda.so").write_text("no library")
    assert ops._load_cuda(tmp_path / "_ops_cuda.so", None, BUILT)


def test_a_library_that_does_not_load_is_said_with_the_reason(tmp_path: Path) -> None:
    library = tmp_path / "_ops_cuda.so"
    library.write_text("no library")
    with pytest.warns(UserWarning, match=r"schattor: the CUDA kernels are built \(sm_90a .*"):
        why = ops._load_cuda(library, "13.0", BUILT)
    assert why.startswith(f"the CUDA kernels are built ({BUILT}) but do not load: ")
    assert "_ops_cuda.so" in why


def test_a_library_of_something_else_is_refused() -> None:
    with pytest.raises(ValueError, match="path must be of a library that is loaded"):
        _C.attach_cuda("/nowhere/_ops_cuda.so")
    with pytest.raises(ValueError, match="path must be of the CUDA operators"):
        _C.attach_cuda(str(Path(ops.__file__).with_name("_ops_cpu.so")))


def test_every_device_has_operators_or_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ops.missing(torch.device("cpu")) == "" and ops.native(torch.device("cpu"))
    assert "for mps" in ops.missing(torch.device("mps")) and not ops.native(torch.device("mps"))
    cuda = torch.device("cuda")
    monkeypatch.setattr(ops, "_without_cuda", "")
    assert ops.native(cuda) and ops.missing(cuda) == ""
    monkeypatch.setattr(ops, "_without_cuda", "the CUDA kernels are not built: no nvcc")
    assert not ops.native(cuda) and "no nvcc" in ops.missing(cuda)
    assert planning.device_facts(torch.device("mps")).level == ""


def test_the_reason_is_in_the_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "_without_cuda", "the CUDA kernels are not built: no nvcc")
    ops._say_once.cache_clear()
    with pytest.warns(UserWarning, match="in this build: the CUDA kernels are not built: no nvcc"):
        ops._announced(lambda: None, "CUDA")()
    ops._say_once.cache_clear()
