"""The table of timings: what planning takes from it, and that the committed one can be read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from matrices import gaussian
from torch import Tensor

from schattor import measured, ops, planning, portable
from schattor.directions import scalars, wide_direction
from schattor.planning import DeviceFacts, Plan, plan


def entry(rows: int, cols: int, gram: bool, **milliseconds: float) -> dict[str, Any]:
    timed = {"dtype": "float16", "rows": rows, "cols": cols, "gram": gram}
    return {**timed, "milliseconds": milliseconds}


TABLE = {
    "devices": [
        {
            "level": "sm_90",
            "name": "NVIDIA H100",
            "commit": "0" * 40,
            "chain": [
                entry(256, 256, False, kernels=1.0, torch=2.0),
                entry(4096, 4096, False, kernels=3.0, torch=2.0),
                entry(256, 1024, True, torch=5.0),
            ],
        },
        {"level": "sm_80", "name": "NVIDIA A100", "commit": "0" * 40, "chain": []},
    ]
}


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(measured, "table", lambda: TABLE)
    planning.plan.cache_clear()
    yield
    planning.plan.cache_clear()


def planned(rows: int, cols: int, level: str = "sm_90", native: bool = True) -> Plan:
    return plan(0.5, rows, cols, torch.float32, DeviceFacts("cuda", native, level))


def test_the_committed_table_is_readable() -> None:
    for device in measured.table()["devices"]:
        assert {"level", "name", "commit", "chain"} <= device.keys()
        assert measured.devices(device["level"])
        for timed in device["chain"]:
            assert timed["rows"] >= 1 and timed["cols"] >= 1
            assert set(timed["milliseconds"]) <= {"kernels", "torch"}
            assert measured.chain_engine(
                device["level"], timed["dtype"], timed["rows"], timed["cols"], timed["gram"]
            )


@pytest.mark.usefixtures("table")
def test_the_fastest_at_the_nearest_size_is_taken() -> None:
    assert planned(300, 300).engine == "kernels"
    assert planned(2048, 2048).engine == "torch"
    assert (
        "torch's products, the fastest timed on sm_90 at 4096 x 4096" in planned(2048, 2048).reason
    )
    assert "our kernels, the fastest timed on sm_90 at 256 x 256" in planned(64, 64).reason


@pytest.mark.usefixtures("table")
def test_what_was_not_timed_is_not_taken_where_something_was() -> None:
    assert planned(256, 1024).engine == "torch"
    assert planned(256, 1024, "sm_80").engine == "kernels"
    assert "never timed on sm_80" in planned(256, 1024, "sm_80").reason
    assert "never timed on sm_120" in planned(256, 1024, "sm_120").reason
    assert "timed" not in planned(256, 1024, native=False).reason
    assert measured.devices("sm_90") == ["NVIDIA H100"] and measured.devices("sm_120") == []


@pytest.mark.usefixtures("table")
def test_the_engine_runs_the_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def told(name: str, function: Any) -> Any:
        def run(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
            calls.append(name)
            found: tuple[Tensor, Tensor, Tensor] = function(*args)
            return found

        return run

    monkeypatch.setattr(ops, "chain_direction", told("kernels", ops.chain_direction))
    monkeypatch.setattr(portable, "chain_direction", told("torch", portable.chain_direction))
    matrix = gaussian(8, 32)
    wide = matrix.scaled(1 / matrix.norm(2)).value[None].half()
    for level in ("sm_90", "sm_80"):
        found = planned(8, 32, level)
        weights = torch.tensor([planning.chain_weights(0.5, found)], dtype=torch.float64)
        wide_direction(wide, scalars(wide, 0.5), weights, found)

    assert calls == ["torch", "kernels"]
