"""What ptxas says of every kernel: a table, and an error for spills, C75xx notes and warnings.

    python tests/registers.py TABLE LOG...

Each log is what `nvcc -Xptxas -v` printed for one file and all architectures.
"""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Entry:
    """A kernel of one file: by architecture, registers a thread and bytes spilt."""

    registers: dict[str, int] = field(default_factory=dict)
    spilt: dict[str, int] = field(default_factory=dict)


def plain_names(mangled: list[str]) -> dict[str, str]:
    text = subprocess.run(
        ["c++filt"], input="\n".join(mangled), capture_output=True, text=True, check=True
    ).stdout
    plain = [re.sub(r"\((?!anonymous).*\)$", "", line) for line in text.splitlines()]
    shorter = [
        re.sub(r"\(anonymous namespace\)::|schattor::cuda::|^void ", "", name) for name in plain
    ]
    return dict(zip(mangled, shorter, strict=True))


def read_log(text: str) -> tuple[dict[str, Entry], list[str]]:
    """Kernels by mangled name, and what else the compiler had to say."""
    entries: dict[str, Entry] = {}
    complaints = []
    entry, arch = Entry(), ""
    for line in text.splitlines():
        if found := re.search(r"Compiling entry function '(\w+)' for '(\w+)'", line):
            entry, arch = entries.setdefault(found[1], Entry()), found[2]
        elif found := re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line):
            if "Function properties" not in line:
                entry.spilt.setdefault(arch, 0)
                entry.spilt[arch] += int(found[1]) + int(found[2])
        elif found := re.search(r"Used (\d+) registers", line):
            entry.registers[arch] = int(found[1])
        elif re.search(r"C75\d\d|warning|error", line):
            complaints.append(line.strip())
    return entries, complaints


def main(table: Path, logs: list[Path]) -> int:
    failures: list[str] = []
    rows: dict[str, dict[str, Entry]] = {}
    for log in logs:
        entries, complaints = read_log(log.read_text())
        names = plain_names(list(entries))
        rows[log.stem + ".cu"] = {names[mangled]: entry for mangled, entry in entries.items()}
        failures += [f"{log.stem}.cu: {complaint}" for complaint in dict.fromkeys(complaints)]
        for mangled, entry in entries.items():
            for arch, spilt in entry.spilt.items():
                if spilt:
                    failures.append(f"{log.stem}.cu: {names[mangled]}, {arch}: {spilt} bytes spilt")
    archs = sorted(
        {arch for file in rows.values() for entry in file.values() for arch in entry.registers},
        key=lambda arch: int(re.sub(r"\D", "", arch)),
    )
    lines = ["# Registers of the CUDA kernels", "", "A thread's, by `make cuda-compile`."]
    lines += [] if failures else ["None spills."]
    lines.append("")
    lines += ["| file | kernel | " + " | ".join(archs) + " |"]
    lines += ["|---" * (2 + len(archs)) + "|"]
    for file, entries in rows.items():
        for name, entry in sorted(entries.items()):
            counts = [str(entry.registers.get(arch, "")) for arch in archs]
            lines.append(f"| {file} | `{name}` | " + " | ".join(counts) + " |")
    table.write_text("\n".join(lines) + "\n")
    kernels = sum(len(entries) for entries in rows.values())
    print(f"{kernels} kernels in {len(rows)} files, {len(archs)} architectures: {table}")
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]]))
