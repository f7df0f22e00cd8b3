from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from schattor.routing.sites import class_name, storage_key, walk


def test_order_and_names_are_those_of_named_parameters() -> None:
    model = nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 16), 2)

    assert [(site.name, id(site.param)) for site in walk(model)] == [
        (name, id(param)) for name, param in model.named_parameters(remove_duplicate=False)
    ]


def test_a_shared_module_has_every_name() -> None:
    shared = nn.Linear(4, 4)

    names = [site.name for site in walk(nn.ModuleDict({"a": shared, "b": shared}))]

    assert names == ["a.weight", "a.bias", "b.weight", "b.bias"]


def test_paths() -> None:
    model = nn.ModuleDict({"block": nn.Sequential(nn.Linear(4, 4))})

    site = walk(model)[0]

    assert site.segments == ("block", "0")
    assert site.owner is model["block"][0] and site.parent is model["block"]
    assert site.layer_name == "block"


def test_root_parameters() -> None:
    site = walk(nn.Linear(4, 4))[0]

    assert (site.name, site.layer_name) == ("weight", "weight")
    assert (site.segments, site.parent) == ((), None)


def test_wrappers_give_their_place_to_what_they_wrap() -> None:
    inner = nn.ModuleDict({"attn": nn.ModuleDict({"base_layer": nn.Linear(4, 4)})})

    site = walk(nn.ModuleDict({"module": inner}))[0]

    assert site.name == "module.attn.base_layer.weight"
    assert site.segments == ("attn",) and site.layer_name == "attn"
    assert isinstance(site.owner, nn.Linear) and site.parent is inner


def test_parametrised_weights_keep_their_owner_and_name() -> None:
    model = nn.ModuleDict({
        "norm": parametrizations.weight_norm(nn.Conv1d(4, 6, 3)),
        "spectral": parametrizations.spectral_norm(nn.Linear(4, 6)),
        "hooked": nn.utils.spectral_norm(nn.Linear(4, 6)),
    })  # fmt: skip

    weights = [site for site in walk(model) if site.leaf == "weight"]

    assert [site.name for site in weights] == [
        "norm.parametrizations.weight.original1",
        "spectral.parametrizations.weight.original",
        "hooked.weight_orig",
    ]
    assert [site.owner for site in weights] == list(model.values())


def test_lists_of_parameters_are_named_by_the_list() -> None:
    model = nn.ModuleDict({"tables": nn.ParameterList([nn.Parameter(nn.Linear(2, 2).weight)])})

    assert walk(model)[0].layer_name == "tables"


def test_class_names_under_what_wraps_the_class() -> None:
    sharded = type("FSDPGPTNeoXAttention", (nn.Module,), {})()
    parametrised = parametrizations.weight_norm(nn.Conv1d(4, 6, 3))

    assert class_name(sharded) == "GPTNeoXAttention"
    assert class_name(parametrised) == "Conv1d"
    assert class_name(nn.Linear(2, 2)) == "Linear"


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_memory_is_told_apart_on_any_device(device: str) -> None:
    table, other = (torch.zeros(6, 4, device=device) for _ in range(2))

    assert storage_key(nn.Parameter(table)) == storage_key(nn.Parameter(table.t()))
    assert storage_key(nn.Parameter(table)) != storage_key(nn.Parameter(other))
    assert storage_key(nn.Parameter(table[:3])) != storage_key(nn.Parameter(table[3:]))
