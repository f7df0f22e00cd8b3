"""Build schattor's operator libraries and its pybind11 module.

Three shared objects: ``_ops_cpu.so`` (the processor's kernels and the operators), ``_ops_cuda.so``
(the GPU's kernels, where nvcc is found), both LibTorch stable ABI without Python's, and ``_C``
(pybind11). Metadata is in pyproject.toml. The environment decides:

CXX, MAX_JOBS         compiler, and how many compilations run side by side
SCHATTOR_CUDA         0: no CUDA kernels; 1: an error where they cannot be built
CUDA_HOME             where nvcc is; else nvcc on PATH
TORCH_CUDA_ARCH_LIST  as torch has it ("8.0;9.0a;12.0+PTX"), or "all" for those of a release;
                      else the GPUs of this machine, else all
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sysconfig
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
# The oldest torch whose stable ABI the operators are compiled for; all later ones run the binary.
TORCH_ABI = (2, 11)
OPS = "schattor._ops_cpu"
CUDA_OPS = "schattor._ops_cuda"
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
CUDA_FLAGS = ["-std=c++17", "-O3", "--expt-relaxed-constexpr", "-lineinfo", "-Xcompiler", "-fPIC"]
# What a release is built for; the last also as PTX, for GPUs that are not out yet. The kernels of
# 9.0a are for it alone.
RELEASE = ("80", "86", "89", "90a", "100", "120")
# cudaGetDriverEntryPointByVersion is of this release.
LEAST_CUDA = (12, 5)
LEAST_ARCHITECTURE = 80


class Toolkit(NamedTuple):
    """nvcc, its version, and what it compiles for: "80", "90a", "120+PTX"."""

    nvcc: Path
    version: tuple[int, int]
    architectures: tuple[str, ...]

    @property
    def home(self) -> Path:
        """The folder with bin, include and lib64."""
        return self.nvcc.parent.parent

    def __str__(self) -> str:
        """What `build_info` tells."""
        names = ", ".join(f"sm_{name}" for name in self.architectures)
        return f"{names} by nvcc {self.version[0]}.{self.version[1]}"


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


def find_nvcc(environment: Mapping[str, str]) -> Path | None:
    """nvcc of CUDA_HOME, else the one on PATH."""
    home = environment.get("CUDA_HOME")
    found = shutil.which("nvcc", path=f"{home}/bin" if home else environment.get("PATH"))
    return Path(found).resolve() if found else None


def nvcc_says(nvcc: Path, *arguments: str) -> str:
    """What nvcc prints."""
    return subprocess.run([nvcc, *arguments], capture_output=True, text=True, check=True).stdout


def architectures(
    listed: str | None, capabilities: Sequence[tuple[int, int]], known: Sequence[str]
) -> tuple[str, ...]:
    """What to compile for: the list, else the GPUs, else all of a release that nvcc knows."""
    if listed and listed.lower() != "all":
        words = re.split(r"[;,\s]+", listed)
        return tuple(dict.fromkeys(name for word in words for name in _architectures(word)))
    present = sorted({10 * major + minor for major, minor in capabilities})
    present = [number for number in present if number >= LEAST_ARCHITECTURE]
    if present and not listed:
        return tuple("90a" if number == 90 else str(number) for number in present)
    release = [name for name in RELEASE if name in known]
    return (*release[:-1], f"{release[-1]}+PTX")


def _architectures(word: str) -> tuple[str, ...]:
    match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", word)
    if match is None:
        raise SystemExit(
            "schattor: TORCH_CUDA_ARCH_LIST must hold capabilities like 8.0, 9.0a, 12.0+PTX, or be"
            f' "all", got {word!r}'
        )
    major, minor, kind, ptx = match.groups()
    if int(major + minor) < LEAST_ARCHITECTURE:
        raise SystemExit(f"schattor: TORCH_CUDA_ARCH_LIST must be at least 8.0, got {word!r}")
    number = major + minor
    if number == "90" and not kind:  # what Hopper has alone needs its "a", which no PTX carries on
        return ("90a", "90+PTX") if ptx else ("90a",)
    return (number + (kind or "") + (ptx or ""),)


def gencode(names: Sequence[str]) -> list[str]:
    """nvcc's flags: machine code for each name, with PTX for those that end in +PTX."""
    flags = []
    for name in names:
        number, _, ptx = name.partition("+")
        code = f"[sm_{number},compute_{number}]" if ptx else f"sm_{number}"
        if name == "90+PTX":  # beside 90a, whose machine code runs there
            code = "compute_90"
        flags += ["-gencode", f"arch=compute_{number},code={code}"]
    return flags


def toolkit(
    environment: Mapping[str, str],
    torch_cuda: str | None,
    capabilities: Sequence[tuple[int, int]],
) -> Toolkit | str:
    """What the CUDA kernels are built with, or why they are not.

    Raises SystemExit where SCHATTOR_CUDA=1 and they cannot be, and where nvcc and torch differ in
    CUDA's major version.
    """
    asked = environment.get("SCHATTOR_CUDA", "")
    if asked not in ("", "0", "1"):
        raise SystemExit(f"schattor: SCHATTOR_CUDA must be 0, 1 or empty, got {asked!r}")
    if asked == "0":
        return "SCHATTOR_CUDA=0"
    nvcc = find_nvcc(environment)
    why_not = None
    if nvcc is None:
        why_not = "no nvcc in CUDA_HOME or on PATH"
    elif torch_cuda is None:
        why_not = "nvcc was found, but the installed torch is built without CUDA"
    if why_not and asked == "1":
        raise SystemExit(f"schattor: SCHATTOR_CUDA=1 asks for CUDA kernels, but: {why_not}")
    if why_not or nvcc is None or torch_cuda is None:
        return why_not or ""
    match = re.search(r"release (\d+)\.(\d+)", nvcc_says(nvcc, "--version"))
    if match is None:
        raise SystemExit(f"schattor: {nvcc} --version tells no release")
    version = (int(match[1]), int(match[2]))
    if str(version[0]) != torch_cuda.split(".")[0]:
        raise SystemExit(
            f"schattor: nvcc and torch must be of one major version of CUDA, got {nvcc} of"
            f" {version[0]}.{version[1]} and torch of {torch_cuda}. Point CUDA_HOME to a CUDA"
            f" {torch_cuda.split('.')[0]}, or build without CUDA kernels: SCHATTOR_CUDA=0"
        )
    if version < LEAST_CUDA:
        raise SystemExit(
            f"schattor: nvcc must be at least {LEAST_CUDA[0]}.{LEAST_CUDA[1]}, got {nvcc} of"
            f" {version[0]}.{version[1]}; SCHATTOR_CUDA=0 builds without CUDA kernels"
        )
    known = re.findall(r"sm_(\w+)", nvcc_says(nvcc, "--list-gpu-code"))
    listed = environment.get("TORCH_CUDA_ARCH_LIST")
    # nvcc lists no "90a", which it compiles where it knows "90".
    known += [f"{name}a" for name in known]
    return Toolkit(nvcc, version, architectures(listed, capabilities, known))


class BuildNative(build_ext):
    """Compiles what is older than its sources, in parallel, against the installed torch."""

    def get_ext_filename(self, fullname: str) -> str:
        """The operators' libraries carry no Python tag, for they know nothing of Python."""
        if fullname.rpartition(".")[2] in ("_ops_cpu", "_ops_cuda"):
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
        gpus = range(torch.cuda.device_count() if torch.version.cuda else 0)
        capabilities = [torch.cuda.get_device_capability(gpu) for gpu in gpus]
        tools = toolkit(os.environ, torch.version.cuda, capabilities)
        cuda = f"not built: {tools}" if isinstance(tools, str) else str(tools)
        print(f"schattor: building for torch {torch.__version__}; CUDA kernels: {cuda}")
        # As system headers: their warnings are not ours.
        torch_headers = [flag for path in include_paths() for flag in ("-isystem", path)]
        python_headers = ["-isystem", sysconfig.get_path("include")]
        abi = f"0x{TORCH_ABI[0]:02x}{TORCH_ABI[1]:02x}000000000000"
        ops_settings = [f"-DTORCH_TARGET_VERSION={abi}", *torch_headers]
        torch_libraries = [f"-L{path}" for path in library_paths()]
        self.settings = {
            OPS: ops_settings,
            MODULE: [
                f'-DSCHATTOR_TORCH_ABI="{TORCH_ABI[0]}.{TORCH_ABI[1]}"',
                f'-DSCHATTOR_TORCH_VERSION="{torch.__version__}"',
                f'-DSCHATTOR_CUDA="{cuda}"',
                *python_headers,
                *pybind11_headers(),
                *torch_headers,
            ],
        }
        self.needs = {
            OPS: [*torch_libraries, "-ltorch_cpu", "-lc10"],
            MODULE: [self.get_ext_fullpath(OPS), "-Wl,-rpath,$ORIGIN", "-ldl"],
        }
        if isinstance(tools, str):
            self._remove_cuda(Path(self.build_lib))
        else:
            self._add_cuda(tools, [*ops_settings, "-isystem", f"{tools.home}/include"])
            # torch has loaded libtorch_cuda: its current stream.
            self.needs[CUDA_OPS] = [*torch_libraries, "-ltorch_cpu", "-ltorch_cuda", "-lc10"]
            self.needs[CUDA_OPS] += self._runtime(tools)
        super().build_extensions()

    def copy_extensions_to_source(self) -> None:
        """Build in place: what is in build goes to the source tree, and nothing else stays."""
        super().copy_extensions_to_source()
        if CUDA_OPS not in self.settings:
            self._remove_cuda(ROOT)

    def _remove_cuda(self, folder: Path) -> None:
        """The library of an earlier build with CUDA, which would be loaded."""
        (folder / self.get_ext_filename(CUDA_OPS)).unlink(missing_ok=True)

    def _add_cuda(self, tools: Toolkit, settings: list[str]) -> None:
        files = [*sources("kernels/*.cu"), "csrc/ops/cuda.cpp"]
        extension = Extension(CUDA_OPS, files, language="c++")
        extension._needs_stub = False  # which setuptools has asked of the others by now
        self.extensions.append(extension)
        self.settings[CUDA_OPS] = settings
        host = ["-ccbin", os.environ["CXX"]] if "CXX" in os.environ else []
        flags = [*CUDA_FLAGS, *gencode(tools.architectures), "-Icsrc/kernels"]
        self.nvcc = [str(tools.nvcc), *host, *flags]

    @staticmethod
    def _runtime(tools: Toolkit) -> list[str]:
        """CUDA's runtime, statically: a program may hold several versions of it."""
        for folder in ("lib64", "lib", "targets/x86_64-linux/lib"):
            if (tools.home / folder / "libcudart_static.a").exists():
                system = ["-ldl", "-lrt", "-lpthread"]
                return [f"-L{tools.home / folder}", "-lcudart_static", *system]
        raise SystemExit(f"schattor: no libcudart_static.a under {tools.home}")

    def build_extension(self, ext: Extension) -> None:
        """Compile the changed sources side by side, then link."""
        compiler = [*shlex.split(os.environ.get("CXX", "g++")), "-fPIC"]
        # Headers of the folders that the sources are in, and of those that they include.
        folders = {Path(source).parent for source in ext.sources}
        folders |= {ROOT / "csrc/cpu", ROOT / "csrc/ops"} if ext.name == MODULE else set()
        headers = [
            p for folder in folders for end in ("*.h", "*.inc", "*.cuh") for p in folder.glob(end)
        ]
        newest = max(path.stat().st_mtime for path in headers)
        folder = Path(self.build_temp) / ext.name
        folder.mkdir(parents=True, exist_ok=True)

        def compiled(source: str) -> str:
            target = folder / (source.replace(os.sep, "_") + ".o")
            if source.endswith(".cu"):
                command = [*self.nvcc, "-c", source, "-o", str(target)]
            else:
                settings = self.settings[ext.name]
                command = [*compiler, *FLAGS, *settings, "-c", source, "-o", str(target)]
            # The command is kept beside the object: other flags mean compiling again.
            record = target.with_suffix(".command")
            same = record.exists() and record.read_text() == shlex.join(command)
            changed = max(newest, Path(source).stat().st_mtime)
            if self.force or not same or not target.exists() or target.stat().st_mtime < changed:
                record.unlink(missing_ok=True)
                self.spawn(command)
                record.write_text(shlex.join(command))
            return str(target)

        jobs = int(os.environ.get("MAX_JOBS", "0")) or os.cpu_count() or 1
        with ThreadPoolExecutor(jobs) as pool:
            objects = list(pool.map(compiled, ext.sources))
        output = Path(self.get_ext_fullpath(ext.name))
        output.parent.mkdir(parents=True, exist_ok=True)
        needs = self.needs[ext.name]
        link = ["-shared", f"-Wl,-soname,{output.name}", *objects, *needs, "-o", str(output)]
        self.spawn([*compiler, *link])


if __name__ == "__main__":  # pip and setuptools run it so; tests import what is above
    setup(
        ext_modules=[
            Extension(
                OPS,
                sources(
                    "cpu/*.cpp",
                    "ops/schemas.cpp",
                    "ops/cpu.cpp",
                    "ops/chain_update.cpp",
                    "ops/factorisations.cpp",
                    "ops/rotate.cpp",
                ),
                language="c++",
            ),
            Extension(MODULE, sources("bindings/*.cpp"), language="c++"),
        ],
        cmdclass={"build_ext": BuildNative},
    )
