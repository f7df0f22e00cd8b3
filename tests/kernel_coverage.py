"""Which lines of the CUDA kernels the emulated tests ran, by gcov.

python tests/kernel_coverage.py FOLDER
"""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path


def counts_by_file(folder: Path) -> dict[str, dict[int, int]]:
    """Runs of each line; a line of a template has those of all its instances."""
    counts: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    data = [path.resolve() for path in folder.rglob("csrc/kernels/*.gcda")]
    with tempfile.TemporaryDirectory() as place:
        for path in data:
            subprocess.run(["gcov", "--json-format", path], cwd=place, capture_output=True)
        for report in Path(place).glob("*.json.gz"):
            for file in json.loads(gzip.decompress(report.read_bytes()))["files"]:
                name = file["file"]
                if "csrc/kernels/" in name and not Path(name).name.startswith("device"):
                    for line in file["lines"]:
                        counts[Path(name).name][line["line_number"]] += line["count"]
    return counts


def ranges(numbers: list[int]) -> str:
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1][1:] = [number]
        else:
            parts.append([number])
    return ", ".join("-".join(map(str, part)) for part in parts)


def main(folder: Path) -> None:
    total = ran = 0
    for name, lines in sorted(counts_by_file(folder).items()):
        missed = sorted(number for number, count in lines.items() if count == 0)
        total += len(lines)
        ran += len(lines) - len(missed)
        share = 100 * (1 - len(missed) / len(lines))
        print(f"{name:28} {share:5.1f} %  {ranges(missed)}".rstrip())
    print(f"{'all':28} {100 * ran / max(total, 1):5.1f} %  of {total} lines")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
