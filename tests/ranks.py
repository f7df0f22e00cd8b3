"""Processes that train together, for the tests: how one joins the others, and how it leaves."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch


def join(rank: int, folder: str, count: int = 2) -> None:
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=count,
        timeout=timedelta(seconds=60),
    )


def leave(rank: int, folder: str, found: Any) -> None:
    """With what this rank found in a file ``rank<n>``."""
    torch.save(found, f"{folder}/rank{rank}")
    torch.distributed.barrier()
    os._exit(0)  # gloo's threads now and then abort a process that takes them down
