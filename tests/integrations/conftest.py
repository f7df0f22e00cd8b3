from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    # These models are too small for threads to help, and waiting for each other costs much.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def where_trainer_is(on_processor: None) -> None:
    """Trainer is told to use the processor, and runs are compared bit for bit."""
