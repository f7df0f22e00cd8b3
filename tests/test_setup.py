"""What setup.py decides before anything is compiled: CUDA or not, and for which GPUs."""

from __future__ import annotations

import importlib.util
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parent.parent / "setup.py"
KNOWN = ("75", "80", "86", "89", "90", "90a", "100", "120")
Nvcc = Callable[[str], Path]

pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="not in a source tree")


@pytest.fixture(scope="module")
def build() -> ModuleType:
    pytest.importorskip("setuptools")
    spec = importlib.util.spec_from_file_location("schattor_setup", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def nvcc(tmp_path: Path) -> Nvcc:
    """A CUDA home whose nvcc tells the given release and the architectures of KNOWN."""

    def make(release: str) -> Path:
        home = tmp_path / release
        (home / "bin").mkdir(parents=True)
        script = home / "bin" / "nvcc"
        codes = "\n".join(f"sm_{name}" for name in KNOWN if name != "90a")
        script.write_text(
            f"#!/bin/sh\ncase $1 in\n--version) echo 'tools, release {release}, V{release}.1';;\n"
            f"--list-gpu-code) echo '{codes}';;\nesac\n"
        )
        script.chmod(script.stat().st_mode | stat.S_IEXEC)
        return home

    return make


@pytest.mark.parametrize(
    ("listed", "gpus", "expected"),
    [
        (None, [], ("80", "86", "89", "90a", "100", "120+PTX")),
        ("all", [(8, 6)], ("80", "86", "89", "90a", "100", "120+PTX")),
        (None, [(9, 0)], ("90a",)),
        (None, [(8, 6), (8, 6), (12, 0)], ("86", "120")),
        (None, [(7, 5)], ("80", "86", "89", "90a", "100", "120+PTX")),
        (None, [(7, 5), (8, 0)], ("80",)),
        ("9.0", [(8, 6)], ("90a",)),
        ("8.0;9.0a;12.0+PTX", [], ("80", "90a", "120+PTX")),
        ("8.0, 8.6 9.0+PTX 8.0", [], ("80", "86", "90a", "90+PTX")),
        ("10.0f", [], ("100f",)),
    ],
)
def test_architectures(
    build: ModuleType,
    listed: str | None,
    gpus: list[tuple[int, int]],
    expected: tuple[str, ...],
) -> None:
    assert build.architectures(listed, gpus, KNOWN) == expected


def test_a_release_has_what_nvcc_knows(build: ModuleType) -> None:
    assert build.architectures(None, [], ("80", "90", "90a")) == ("80", "90a+PTX")


@pytest.mark.parametrize("word", ["Hopper", "90", "9.0b", "7.5"])
def test_unknown_architectures_are_refused(build: ModuleType, word: str) -> None:
    with pytest.raises(SystemExit, match=f"TORCH_CUDA_ARCH_LIST must .*'{word}'"):
        build.architectures(word, [], KNOWN)


def test_flags_of_nvcc(build: ModuleType) -> None:
    assert build.gencode(("90a", "120+PTX")) == [
        "-gencode",
        "arch=compute_90a,code=sm_90a",
        "-gencode",
        "arch=compute_120,code=[sm_120,compute_120]",
    ]


def test_an_old_nvcc_is_refused(build: ModuleType, nvcc: Nvcc) -> None:
    with pytest.raises(SystemExit, match=r"nvcc must be at least 12.5, got .* of 12.4"):
        build.toolkit({"CUDA_HOME": str(nvcc("12.4"))}, "12.4", [])


def test_ptx_of_hopper_is_beside_its_own_machine_code(build: ModuleType) -> None:
    flags = build.gencode(build.architectures("9.0+PTX", [], KNOWN))
    assert flags[1::2] == ["arch=compute_90a,code=sm_90a", "arch=compute_90,code=compute_90"]


def test_nvcc_decides(build: ModuleType, nvcc: Nvcc) -> None:
    home = nvcc("13.0")
    for environment in ({"CUDA_HOME": str(home)}, {"PATH": f"/nowhere:{home}/bin"}):
        tools = build.toolkit(environment, "13.0", [(8, 9)])
        assert tools.home == home and tools.version == (13, 0) and tools.architectures == ("89",)
        assert str(tools) == "sm_89 by nvcc 13.0"
    assert build.toolkit({"PATH": "/nowhere"}, "13.0", []) == "no nvcc in CUDA_HOME or on PATH"


def test_the_user_decides(build: ModuleType, nvcc: Nvcc) -> None:
    environment = {"CUDA_HOME": str(nvcc("13.1"))}
    assert build.toolkit({**environment, "SCHATTOR_CUDA": "0"}, "13.0", []) == "SCHATTOR_CUDA=0"
    assert build.toolkit({**environment, "SCHATTOR_CUDA": "1"}, "13.0", []).version == (13, 1)
    with pytest.raises(SystemExit, match="SCHATTOR_CUDA=1 asks for CUDA kernels, but: no nvcc"):
        build.toolkit({"PATH": "/nowhere", "SCHATTOR_CUDA": "1"}, "13.0", [])
    with pytest.raises(SystemExit, match="SCHATTOR_CUDA must be 0, 1 or empty, got 'yes'"):
        build.toolkit({**environment, "SCHATTOR_CUDA": "yes"}, "13.0", [])


def test_torch_without_cuda_has_no_use_for_nvcc(build: ModuleType, nvcc: Nvcc) -> None:
    environment = {"CUDA_HOME": str(nvcc("13.0"))}
    assert "the installed torch is built without CUDA" in build.toolkit(environment, None, [])
    with pytest.raises(SystemExit, match="but: nvcc was found, but the installed torch is built"):
        build.toolkit({**environment, "SCHATTOR_CUDA": "1"}, None, [])


def test_another_major_version_is_refused(build: ModuleType, nvcc: Nvcc) -> None:
    environment = {"CUDA_HOME": str(nvcc("12.8"))}
    with pytest.raises(SystemExit, match=r"of 12.8 and torch of 13.0. Point CUDA_HOME to a CUDA"):
        build.toolkit(environment, "13.0", [])
    assert build.toolkit({**environment, "SCHATTOR_CUDA": "0"}, "13.0", []) == "SCHATTOR_CUDA=0"


def test_the_cuda_library_goes_into_the_source_tree(
    build: ModuleType, nvcc: Nvcc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from setuptools import Distribution

    command = build.BuildNative(Distribution({"name": "schattor", "packages": ["schattor"]}))
    command.ensure_finalized()
    command.extensions, command.settings = [], {}
    command._add_cuda(build.toolkit({"CUDA_HOME": str(nvcc("13.0"))}, "13.0", [(9, 0)]), [])
    command.build_lib = str(tmp_path / "built")
    for folder in ("built/schattor", "schattor"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "built/schattor/_ops_cuda.so").write_text("a library")
    monkeypatch.chdir(tmp_path)

    command.copy_extensions_to_source()

    assert (tmp_path / "schattor/_ops_cuda.so").read_text() == "a library"
