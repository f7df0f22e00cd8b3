"""Takes the timings of a GPU run into the table that planning reads.

    python benchmarks/record.py benchmarks/results/gpu/directions_cuda.json

Replaces what ``schattor/measurements.json`` holds of that device; commit it with the results.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

TABLE = Path(__file__).parent.parent / "schattor/measurements.json"


def main() -> None:
    """Read a result file, write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--table", type=Path, default=TABLE)
    options = parser.parse_args()
    results = json.loads(options.results.read_text())
    machine = results["machine"]
    if not machine["level"].startswith("sm_"):
        parser.error(f"results must be of a GPU, got {machine['device']} ({machine['level']})")
    entry = {
        "level": machine["level"],
        "name": machine["device"],
        "commit": machine["commit"],
        "chain": [batch["chain"] for batch in results["batches"].values()],
    }
    table = json.loads(options.table.read_text())
    others = [device for device in table["devices"] if device["name"] != entry["name"]]
    table["devices"] = [*others, entry]
    options.table.write_text(json.dumps(table, indent=2) + "\n")
    print(f"{options.table}: {len(entry['chain'])} sizes of {entry['name']}")


if __name__ == "__main__":
    main()
