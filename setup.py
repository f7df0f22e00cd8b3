"""Build schattor's operator library and its pybind11 module.

Two shared objects: ``_ops_cpu.so`` (the processor's kernels and the operators, LibTorch stable ABI,
no Python ABI) and ``_C`` (pybind11, linked with it). Metadata is in pyproject.toml.
"""

from __future__ import annotations

import os
import shlex
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
# The oldest torch whose stable ABI the operators are compiled for; all later ones run the binary.
TORCH_ABI = (2, 11)
OPS = "schattor._ops_cpu"
MODULE = "schattor._C"
# Contraction gives fused multiply-adds; NaN and inf keep their meaning, so no -ffast-math.
FLAGS = [
    "-std=c++17",
    "-O3",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wall",
]


def sources(*patterns: str) -> list[str]:
    """Source files under csrc by glob patterns, relative to the project."""
    found = [path for pattern in patterns for path in sorted((ROOT / "csrc").glob(pattern))]
    return [str(path.relative_to(ROOT)) for path in found]


def pybind11_headers() -> list[str]:
    """The installed pybind11, else nothing: torch carries its headers too."""
    try:
        import pybind11
    except ModuleNotFoundError:
        return []
    return ["-isystem", pybind11.get_include()]


class BuildNative(build_ext):
    """Compiles what is older than its sources, in parallel, against the installed torch."""

    def get_ext_filename(self, fullname: str) -> str:
        """``_ops_cpu.so`` carries no Python tag, for it knows nothing of Python."""
        if fullname in (OPS, OPS.rpartition(".")[2]):
            return str(Path(*fullname.split("."))) + ".so"
        return super().get_ext_filename(fullname)

    def build_extensions(self) -> None:
        """Find torch here, not at import: pip reads the metadata before torch is there."""
        try:
            import torch
            from torch.utils.cpp_extension import include_paths, library_paths
        except ModuleNotFoundError as error:
            raise SystemExit(
                "schattor: building needs torch >= 2.11. Run `pip install .` (which fetches it), or"
                " `pip install torch` first and then `pip install --no-build-isolation .`"
            ) from error
        version = tuple(int(part) for part in torch.__version__.split(".")[:2])
        if version < TORCH_ABI:
            raise SystemExit(f"schattor: building needs torch >= 2.11, found {torch.__version__}")
        print(f"schattor: building for torch {torch.__version__}, processor kernels")
        # As system headers: their warnings are not ours.
        torch_headers = [flag for path in include_paths() for flag in ("-isystem", path)]
        python_headers = ["-isystem", sysconfig.get_path("include")]
        abi = f"0x{TORCH_ABI[0]:02x}{TORCH_ABI[1]:02x}000000000000"
        self.torch_libraries = library_paths()
        self.settings = {
            OPS: [f"-DTORCH_TARGET_VERSION={abi}", *torch_headers],
            MODULE: [
                f'-DSCHATTOR_TORCH_ABI="{TORCH_ABI[0]}.{TORCH_ABI[1]}"',
                f'-DSCHATTOR_TORCH_VERSION="{torch.__version__}"',
                *python_headers,
                *pybind11_headers(),
                *torch_headers,
            ],
        }
        super().build_extensions()

    def build_extension(self, ext: Extension) -> None:
        """Compile the changed sources side by side, then link."""
        compiler = [*shlex.split(os.environ.get("CXX", "g++")), "-fPIC"]
        shared = [*(ROOT / "csrc").rglob("*.h"), *(ROOT / "csrc").rglob("*.inc"), Path(__file__)]
        newest = max(path.stat().st_mtime for path in shared)
        folder = Path(self.build_temp) / ext.name
        folder.mkdir(parents=True, exist_ok=True)

        def compiled(source: str) -> str:
            target = folder / source.replace(os.sep, "_").replace(".cpp", ".o")
            changed = max(newest, Path(source).stat().st_mtime)
            if self.force or not target.exists() or target.stat().st_mtime < changed:
                settings = self.settings[ext.name]
                self.spawn([*compiler, *FLAGS, *settings, "-c", source, "-o", str(target)])
            return str(target)

        jobs = int(os.environ.get("MAX_JOBS", "0")) or os.cpu_count() or 1
        with ThreadPoolExecutor(jobs) as pool:
            objects = list(pool.map(compiled, ext.sources))
        output = Path(self.get_ext_fullpath(ext.name))
        output.parent.mkdir(parents=True, exist_ok=True)
        if ext.name == OPS:
            needs = [f"-L{path}" for path in self.torch_libraries] + ["-ltorch_cpu", "-lc10"]
        else:
            needs = [self.get_ext_fullpath(OPS), "-Wl,-rpath,$ORIGIN"]
        link = ["-shared", f"-Wl,-soname,{output.name}", *objects, *needs, "-o", str(output)]
        self.spawn([*compiler, *link])


setup(
    ext_modules=[
        Extension(OPS, sources("cpu/*.cpp", "ops/*.cpp"), language="c++"),
        Extension(MODULE, sources("bindings/*.cpp"), language="c++"),
    ],
    cmdclass={"build_ext": BuildNative},
)
