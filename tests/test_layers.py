"""The layers of the project: every arrow points down, and each file keeps to its layer."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PYTHON = sorted((ROOT / "schattor").rglob("*.py"))
NATIVE = [
    p for end in ("*.h", "*.inc", "*.cpp", "*.cu", "*.cuh") for p in (ROOT / "csrc").rglob(end)
]

# A module may import its own layer and those above it in this list, which is lower layers.
LAYERS = [
    ["schattor._constant", "schattor.theory"],
    [
        "schattor._C",
        "schattor.fakes",
        "schattor.portable",
        "schattor.portable_factors",
        "schattor.portable_weighted",
        "schattor.ops",
    ],
    ["schattor.devices", "schattor.measured", "schattor.planning", "schattor.blocks"],
    ["schattor.directions", "schattor.functional", "schattor.routing", "schattor.adaptive"],
    ["schattor.optim"],
    ["schattor.integrations", "schattor.doctor"],
]


def layer_of(module: str) -> int | None:
    for index, names in enumerate(LAYERS):
        if any(module == name or module.startswith(name + ".") for name in names):
            return index
    return None


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


@pytest.mark.parametrize("path", PYTHON, ids=module_of)
def test_python_imports_point_down(path: Path) -> None:
    module = module_of(path)
    if module == "schattor":
        return
    layer = layer_of(module)
    assert layer is not None, f"{module} belongs to no layer"
    for name in imports_of(path):
        other = layer_of(name)
        assert other is None or other <= layer, f"{module} imports {name}, which lies above it"


@pytest.mark.parametrize("path", PYTHON, ids=module_of)
def test_theory_is_numbers_only(path: Path) -> None:
    imported = {name.partition(".")[0] for name in imports_of(path)}
    if module_of(path).startswith("schattor.theory"):
        assert "torch" not in imported
    if not module_of(path).startswith("schattor.integrations"):
        assert "transformers" not in imported


@pytest.mark.parametrize("path", NATIVE, ids=lambda path: path.name)
def test_native_includes_point_down(path: Path) -> None:
    folder = path.relative_to(ROOT / "csrc").parts[0]
    for include in re.findall(r'#include\s+[<"]([^>"]+)[>"]', path.read_text()):
        if folder in ("cpu", "kernels"):
            assert not include.startswith(("torch", "ATen", "c10", "pybind11", "..")), include
        if folder == "bindings":
            assert not include.startswith(("torch", "ATen", "c10")), include


KERNELS = [path for path in NATIVE if path.parent.name == "kernels"]
WRAPPERS = ("device.h", "device_hopper.h")


def code_of(path: Path) -> str:
    return re.sub(r"//.*", "", path.read_text())


@pytest.mark.parametrize("path", KERNELS, ids=lambda path: path.name)
def test_kernels_include_their_own_and_the_toolkit(path: Path) -> None:
    for include in re.findall(r'#include\s+"([^"]+)"', path.read_text()):
        emulated = path.name == "device.h" and include == "cuemu.h"
        assert emulated or (path.parent / include).exists(), f"{path.name} includes {include}"


@pytest.mark.parametrize("path", KERNELS, ids=lambda path: path.name)
def test_device_wrappers_alone_hold_what_only_nvcc_reads(path: Path) -> None:
    if path.name in WRAPPERS:
        return
    code = code_of(path)
    assert not re.search(r"\basm\b", code), f"{path.name}: PTX belongs into {WRAPPERS}"
    assert "<<<" not in code, f"{path.name}: kernels are launched by dev::launch"
    assert "__shared__" not in code, f"{path.name}: shared memory comes from dev::Carve"
    assert "__CUDACC__" not in code, f"{path.name}: one body for the device and the emulation"
    assert not re.search(r"\b(BUG|FAULT|emu::)", code), f"{path.name}: knows of the tests"


def test_only_ops_speak_to_the_dispatcher() -> None:
    for path in PYTHON:
        if module_of(path) != "schattor.ops":
            code = re.sub(r'"""(.|\n)*?"""', "", path.read_text())
            assert not re.search(r"torch\.ops(?!\.aten)", code), path


def test_coefficients_live_in_theory_alone() -> None:
    stray = re.compile(r"\b(3\.4445|4\.7750|2\.0315|3\.0979\d*|8\.156|8\.287\d*)\b")
    for path in [*PYTHON, *NATIVE]:
        if not module_of(path).startswith("schattor.theory") if path in PYTHON else True:
            assert not stray.search(path.read_text()), f"{path} holds a number of a chain"


def test_files_stay_readable() -> None:
    tests = [p for end in ("*.h", "*.cpp", "*.cu") for p in (ROOT / "tests").rglob(end)]
    for path in [*PYTHON, *NATIVE, *tests]:
        assert len(path.read_text().splitlines()) <= 400, f"{path} has more than 400 lines"


def test_equations_name_what_exists() -> None:
    page = (ROOT / "docs" / "equations.md").read_text()
    places = re.findall(r"`((?:schattor|csrc)/[\w/.]+)(?::(\w+))?`", page)
    assert places
    for name, symbol in places:
        path = ROOT / name
        assert path.exists(), f"docs/equations.md names {name}"
        assert not symbol or re.search(rf"\b{symbol}\b", path.read_text()), f"{name}: {symbol}"
