"""What an optimizer says of the module it was built from: parameters that no step would move."""

from __future__ import annotations

import copy
import gc
import pickle
import warnings
import weakref

import pytest
import torch
from torch import nn

import schattor
from schattor.optim import SOAP, Schattor


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.Linear(4, 3))


def backward(net: nn.Module) -> None:
    net(torch.ones(2, 6)).square().sum().backward()


@pytest.mark.parametrize("make", [Schattor, SOAP])
def test_layers_that_are_frozen_no_more_are_told_of_once(make: type[Schattor]) -> None:
    net = model()
    net[0].requires_grad_(False)
    optimizer = make(net, lr=0.1)
    backward(net)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
    net[0].requires_grad_(True)
    backward(net)
    told = rf"{make.__name__}: 0\.bias and 1 more had requires_grad=False .*add_param_group"
    with pytest.warns(UserWarning, match=told):
        optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()


def test_layers_that_are_added_are_not_told_of() -> None:
    net = model()
    net[0].requires_grad_(False)
    optimizer = Schattor(net, lr=0.1)
    net[0].requires_grad_(True)
    optimizer.add_param_group({"params": list(net[0].named_parameters())})
    before = net[0].weight.clone()
    backward(net)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
    assert not torch.equal(net[0].weight, before)
    net = model()
    net[0].requires_grad_(False)
    optimizer = schattor.SGD(net, lr=0.1)
    net[0].requires_grad_(True)  # SGD has them all in one group
    backward(net)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()


def test_parameters_that_others_replaced_are_refused() -> None:
    """As ``fully_shard`` does it."""
    net = model()
    optimizer = Schattor(net, lr=0.1)
    for layer in (net[0], net[2], net[3]):
        layer.weight = nn.Parameter(layer.weight.detach().clone())
        layer.bias = nn.Parameter(layer.bias.detach().clone())
    optimizer.step()  # nothing has a gradient yet
    backward(net)
    with pytest.raises(ValueError, match=r"0\.weight of the module is another tensor now.*after"):
        optimizer.step()
    now = dict(net.named_parameters())
    for group in optimizer.param_groups:
        group["params"] = [now[name] for name in group["param_names"]]
    before = net[0].weight.clone()
    optimizer.step()
    assert not torch.equal(net[0].weight, before)


def test_copies_and_pickles_go_without_the_module() -> None:
    net = model()
    optimizer = Schattor(net, lr=0.1)
    gone = weakref.ref(net)
    for copied in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        for group in copied.param_groups:
            for param in group["params"]:
                param.grad = torch.ones_like(param)
        copied.step()
    del net
    gc.collect()
    assert gone() is None
    optimizer.step()


@pytest.mark.parametrize("rule", ["adamw", "sgd", "sign"])
def test_state_of_another_dtype_or_device_is_refused_before_anything_moves(rule: str) -> None:
    net = model()
    optimizer = Schattor(
        [
            {"params": [net[0].weight], "param_names": ["weight"], "rule": "matrix"},
            {"params": [net[0].bias], "param_names": ["bias"], "rule": rule},
        ],
        lr=0.1,
    )
    key = "exp_avg" if rule == "adamw" else "momentum_buffer"

    def step() -> None:
        for param in net[0].parameters():
            param.grad = torch.ones_like(param)
        optimizer.step()

    step()
    net.to(torch.bfloat16)
    before = net[0].weight.clone()
    with pytest.raises(TypeError, match=rf"{key} of bias must be torch.bfloat16 .* got torch.flo"):
        step()
    assert torch.equal(net[0].weight, before)
    net.float()
    step()
    optimizer.state[net[0].weight]["momentum_buffer"] = before.to("meta")
    with pytest.raises(ValueError, match=r"momentum_buffer of .* must be on .*, got meta"):
        step()
