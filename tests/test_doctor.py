"""The doctor's report, with and without a GPU."""

from __future__ import annotations

import contextlib

import pytest
import torch

from schattor import _C, devices, doctor, measured, ops, planning

CUDA = torch.device("cuda", 0)


def with_gpu(monkeypatch: pytest.MonkeyPatch, level: str, why_not: str = "") -> None:
    """A GPU that this machine need not have."""
    monkeypatch.setattr(doctor, "_devices", lambda: [torch.device("cpu"), CUDA])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA Test")
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(ops, "_without_cuda", why_not)
    monkeypatch.setattr(devices, "_level", lambda device: level if device == CUDA else "avx2")
    info = {**_C.build_info(), "cuda": "sm_80, sm_90a by nvcc 13.0"}
    monkeypatch.setattr(_C, "build_info", lambda: info)
    monkeypatch.setattr(_C, "cuda_chain_kernel", lambda *chain: ("tiles", 3 * 2**20))


def test_kernels_and_what_was_never_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpu(monkeypatch, "sm_90")

    text = doctor.report()

    assert "CUDA kernels: sm_80, sm_90a by nvcc 13.0" in text
    assert "cuda:0 (NVIDIA Test): CUDA kernels, sm_90, never timed on sm_90" in text
    assert "our kernels, never timed on sm_90 [kernel tiles, 3.0 MiB of workspace a matrix]" in text
    assert "plain torch" not in text


def test_what_was_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpu(monkeypatch, "sm_90")
    monkeypatch.setattr(measured, "devices", lambda level: ["NVIDIA H100"])
    monkeypatch.setattr(measured, "chain_engine", lambda *size: ("torch", "the fastest timed"))
    planning.plan.cache_clear()

    text = doctor.report()

    planning.plan.cache_clear()
    assert "CUDA kernels, sm_90, timed on NVIDIA H100" in text
    assert "the fastest timed [torch.bmm]" in text


def test_a_gpu_that_the_kernels_were_not_built_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpu(monkeypatch, "sm_120")
    assert "none for sm_120, operators will fail; install again here" in doctor.report()


def test_why_a_gpu_takes_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpu(monkeypatch, "sm_90", "the CUDA kernels are built (...) but do not load: no symbol")

    text = doctor.report()

    assert "CUDA tensors: the CUDA kernels are built (...) but do not load: no symbol" in text
    assert "cuda:0 (NVIDIA Test): plain torch: the CUDA kernels are built" in text
    assert "SCHATTOR_STRICT=1" in text


@pytest.mark.parametrize(
    ("level", "built", "serves"),
    [
        ("sm_80", "sm_80, sm_86 by nvcc 13.0", True),
        ("sm_87", "sm_86 by nvcc 13.0", True),
        ("sm_80", "sm_86 by nvcc 13.0", False),
        ("sm_90", "sm_90a by nvcc 13.0", True),
        ("sm_90", "sm_80, sm_89 by nvcc 13.0", False),
        ("sm_100", "sm_90a, sm_90 by nvcc 13.0", False),
        ("sm_103", "sm_100 by nvcc 13.0", True),
        ("sm_121", "sm_80+PTX by nvcc 13.0", True),
        ("sm_75", "sm_80, sm_120+PTX by nvcc 13.0", False),
    ],
)
def test_which_gpus_machine_code_serves(level: str, built: str, serves: bool) -> None:
    assert doctor.built_for(level, built) == serves


def test_the_command_prints_the_report_or_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    doctor.main([])
    assert capsys.readouterr().out == doctor.report() + "\n"
    for arguments, code in ((["--help"], 0), (["--fast"], 2)):
        with pytest.raises(SystemExit) as stopped:
            doctor.main(arguments)
        assert stopped.value.code == code
    found = capsys.readouterr()
    assert "usage: python -m schattor.doctor" in found.out and "operator" in found.out
    assert "unrecognized arguments: --fast" in found.err
