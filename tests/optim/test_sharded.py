"""Weights in shards (FSDP2, DTensor): two ranks step as one process does, and share the work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from sharded_runs import (
    CHECKPOINTS,
    MEMBERS,
    RESUMED,
    SETTINGS,
    SPOILED,
    averaged,
    changed,
    go_on,
    mixed,
    model_of,
    optimizer_of,
    rank,
    rounded,
    spoiled,
    states_of,
    together,
    trained,
    weights,
)
from torch import Tensor
from torch.distributed import checkpoint

pytestmark = pytest.mark.usefixtures("on_processor")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[dict[str, Any]]]:
    folder: Path = tmp_path_factory.mktemp("ranks")
    start: Callable[..., Any] = torch.multiprocessing.start_processes  # type: ignore[attr-defined]
    start(rank, args=(str(folder),), nprocs=2, start_method="spawn")
    found = [torch.load(folder / f"rank{index}", weights_only=False) for index in range(2)]
    yield [{**each, "folder": folder} for each in found]


@pytest.fixture(scope="module")
def alone() -> list[dict[str, Tensor]]:
    with torch.device("cpu"):  # it is made before `on_processor` is
        return trained(sharded=False)


@pytest.mark.parametrize("index", range(len(SETTINGS) + len(MEMBERS)))
def test_ranks_step_as_one_process(
    ranks: list[dict[str, Any]], alone: list[dict[str, Tensor]], index: int
) -> None:
    for found in ranks:
        torch.testing.assert_close(found["trained"][index], alone[index], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", SPOILED)
def test_a_block_whose_gradient_is_not_finite_stays(ranks: list[dict[str, Any]], name: str) -> None:
    alone = spoiled(sharded=False, name=name)
    for found in ranks:
        torch.testing.assert_close(found["spoiled"][name], alone, rtol=1e-9, atol=1e-11)
    assert alone["nonfinite"] == 1


def test_bfloat16_weights_are_those_of_one_process(ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        torch.testing.assert_close(found["rounded"], rounded(sharded=False), rtol=0, atol=0)


def test_weights_may_become_shards_before_the_first_step(
    ranks: list[dict[str, Any]], alone: list[dict[str, Tensor]]
) -> None:
    for found in ranks:
        torch.testing.assert_close(found["swapped"], alone[0], rtol=1e-9, atol=1e-11)


def test_weights_and_settings_may_come_and_go(ranks: list[dict[str, Any]]) -> None:
    alone = changed(sharded=False)
    for found in ranks:
        torch.testing.assert_close(found["changed"], alone, rtol=1e-9, atol=1e-11)


def test_averages_of_weights_are_in_shards(ranks: list[dict[str, Any]]) -> None:
    alone = averaged(sharded=False)
    for found in ranks:
        torch.testing.assert_close(found["averaged"], alone, rtol=1e-9, atol=1e-11)


def test_p_is_chosen_by_what_all_ranks_see(ranks: list[dict[str, Any]]) -> None:
    alone, history = mixed(sharded=False)
    assert all(len({p for _, p in each}) > 1 for each in history.values())
    for found, chosen in (each["mixed"] for each in ranks):
        torch.testing.assert_close(found, alone, rtol=1e-9, atol=1e-11)
        assert chosen.items() <= history.items()
    assert {name for each in ranks for name in each["mixed"][1]} == {*history}


@pytest.mark.parametrize("coupling", ["l2", "greedy"])
def test_blocks_of_all_ranks_share_a_step(ranks: list[dict[str, Any]], coupling: str) -> None:
    alone = together(sharded=False, coupling=coupling)
    for found in ranks:
        torch.testing.assert_close(found["together"][coupling], alone, rtol=1e-9, atol=1e-11)


def test_blocks_of_other_ranks_sets_do_not(ranks: list[dict[str, Any]]) -> None:
    assert all(
        "coupling needs the same ranks for all DTensors" in each["refusal"] for each in ranks
    )


def test_ranks_keep_shards_and_share_the_work(ranks: list[dict[str, Any]]) -> None:
    owned = [set(found["shares"]["blocks"]) for found in ranks]
    assert all(owned) and not owned[0] & owned[1]
    names = {f"{i}.0.weight" for i in (0, 1, 3, 4)} | {f"2.0.weight[{i}]" for i in range(3)}
    assert owned[0] | owned[1] == names
    for found in (each["shares"] for each in ranks):
        assert found["kept"] == [{"step"}] * 4 and len(found["moments"]) == 5
        for name, shape in found["moments"].items():
            assert shape == found["shards"][name]
        assert found["rounds"][0] == 1 < found["rounds"][1]
        columns = {"p", "dual_norm", "update_rms", "weight_rms", "stable_rank", "polar_error"}
        assert all(columns == {*row} for row in found["blocks"].values())
        assert found["explained"].count("for all ranks") >= 1 and found["failed"] == 0


@pytest.mark.parametrize("index", range(len(RESUMED)))
def test_a_run_is_resumed_bit_for_bit(ranks: list[dict[str, Any]], index: int) -> None:
    for found in (each["resumed"][index] for each in ranks):
        assert len(found) == 6
        for kind in found:
            torch.testing.assert_close(found[kind], found["whole"], rtol=0, atol=0)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoints_fit_one_process_and_several(ranks: list[dict[str, Any]], name: str) -> None:
    from torch.distributed.checkpoint.state_dict import set_state_dict

    settings = CHECKPOINTS[name]
    whole = model_of()
    go_on(whole, optimizer_of(whole, **settings), range(5))
    model = model_of()
    for param in model.parameters():
        param.data.zero_()
    optimizer = optimizer_of(model, **settings)
    states = states_of(model, optimizer)
    checkpoint.load(states, checkpoint_id=ranks[0]["folder"] / name)
    given = {"model_state_dict": states["model"], "optim_state_dict": states["optimizer"]}
    set_state_dict(model, optimizer, **given)
    go_on(model, optimizer, range(2, 5))
    torch.testing.assert_close(weights(model), weights(whole), rtol=1e-9, atol=1e-11)
    for found in ranks:
        for reached in found["handed over"]:
            ended = reached[[*CHECKPOINTS].index(name)]
            torch.testing.assert_close(ended, weights(whole), rtol=1e-9, atol=1e-11)


def test_any_single_split_moves_as_the_whole(ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        for sharded, alone in found["placed"].values():
            torch.testing.assert_close(sharded, alone, rtol=1e-9, atol=1e-11)
