"""Finished runs on disk, one JSON file each, so that an interrupted demo goes on where it was."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from members import is_rival
from settings import Training
from training import Outcome, Run

ROOM = 32 << 20  # bytes that must be free: all results, the plot and Trainer's scratch directory


class Unwritable(Exception):
    """The output directory cannot hold the results; the message says why."""


def write_text(path: Path, text: str) -> None:
    """Write a whole file or leave the old one: a full disk or an interruption loses nothing."""
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def environment() -> dict[str, Any]:
    """What besides the settings decides a result: part of the key, and of the report."""
    names = ("torch", "transformers", "accelerate")
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else _processor(),
        "threads": torch.get_num_threads(),
        **{name: importlib.metadata.version(name) for name in names},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def package_digest() -> str:
    """A digest of schattor's version, Python files, tables and binaries: any change runs anew."""
    import schattor

    folder = Path(schattor.__file__).parent
    digest = hashlib.sha256(schattor.__version__.encode())
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".py", ".so", ".json"):
            digest.update(str(path.relative_to(folder)).encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


class Store:
    """The directory of finished runs."""

    def __init__(
        self,
        folder: Path,
        settings: Training,
        text: str,
        environment: dict[str, Any],
        kind: type[Outcome] = Outcome,
    ) -> None:
        """All runs of a store share settings, text (its digest), environment, kind of outcome."""
        self._kind = kind
        self.folder = folder / "runs"
        self._common = {"settings": asdict(settings), "text": text, "environment": environment}
        self._package = package_digest()

    def check_writable(self) -> None:
        """Write as much as the results may take, before any training; raises Unwritable."""
        probe = self.folder / f"room{os.getpid()}.partial"  # another run may ask here too
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(probe, "wb") as file:
                for _ in range(ROOM >> 20):
                    file.write(bytes(1 << 20))
                file.flush()
                os.fsync(file.fileno())
            probe.unlink()
        except OSError as error:
            if probe.exists():
                probe.unlink()
            raise Unwritable(
                f"demo: --out: a directory with {ROOM >> 20} MiB to write is required, "
                f"got {self.folder}: {error.strerror}"
            ) from error

    def path(self, run: Run) -> Path:
        """The file of a run: named by a digest of all that its result depends on."""
        key = {"run": asdict(run), **self._common}
        if not is_rival(run.optimizer):
            key["package"] = self._package
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        return self.folder / f"{digest[:20]}.json"

    def load(self, run: Run) -> Outcome | None:
        """The outcome of a finished run, None when it is not there or not readable."""
        try:
            return self._kind(**json.loads(self.path(run).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def save(self, run: Run, outcome: Outcome) -> None:
        """Keep a finished run; raises OSError and leaves the others as they were."""
        write_text(self.path(run), json.dumps(outcome.as_json()) + "\n")
