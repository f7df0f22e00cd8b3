"""The end of a GPU run: a table of its stages, and ``summary.json`` with device and commit.

    python benchmarks/gpu_summary.py FILE NAME=OUTCOME=SECONDS ...

Exits with 1 where a stage failed or ran out of time.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from timing import commit


def _device() -> dict[str, str]:
    if shutil.which("nvidia-smi") is None:
        return {}
    query = "name,driver_version,memory.total,compute_cap"
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    values = answer.splitlines()[0].split(", ") if answer else []
    return dict(zip(query.split(","), values, strict=False))


def main(file: Path, stages: list[str]) -> int:
    """Write the summary; the exit status of the run."""
    outcomes = []
    for stage in stages:
        name, outcome, seconds = stage.split("=")
        outcomes.append({"stage": name, "outcome": outcome, "seconds": int(seconds)})
        print(f"  {name:<28} {outcome:<14} {seconds:>4} s")
    document = {"device": _device(), "commit": commit(), "stages": outcomes}
    file.write_text(json.dumps(document, indent=1) + "\n")
    print(f"written to {file.parent}")
    return int(any(each["outcome"] in ("failed", "out of time") for each in outcomes))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
