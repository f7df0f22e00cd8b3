"""What `params` may be, what is split from what, and parameters that are refused."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from schattor.optim import AdamW, Schattor


def model() -> nn.Sequential:
    return nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 10))


def rules(optimizer: Schattor) -> list[tuple[str, list[tuple[int, ...]]]]:
    return [
        (group["rule"], [tuple(param.shape) for param in group["params"]])
        for group in optimizer.param_groups
    ]


def test_a_module_is_routed_matrices_first_with_names() -> None:
    net = model()
    optimizer = Schattor(net)
    assert rules(optimizer)[0] == ("matrix", [(6, 4)])
    assert optimizer.param_groups[0]["param_names"] == ["1.weight"]
    others = [name for g in optimizer.param_groups[1:] for name in g["param_names"]]
    assert sorted(["1.weight", *others]) == sorted(name for name, _ in net.named_parameters())
    assert all(group["rule"] == "adamw" for group in optimizer.param_groups[1:])


def test_parameters_split_by_dimensions() -> None:
    optimizer = Schattor(model().parameters())
    assert rules(optimizer) == [
        ("matrix", [(10, 4), (6, 4), (10, 6)]),
        ("adamw", [(6,), (6,), (6,), (10,)]),
    ]
    assert "param_names" not in optimizer.param_groups[0]


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("model.embed_tokens.weight", "adamw"),
        ("transformer.wte.weight", "adamw"),
        ("bert.embeddings.word_embeddings.weight", "adamw"),
        ("lm_head.weight", "adamw"),
        ("model.layers.0.mlp.up_proj.weight", "matrix"),
        ("encoder.embedder.proj.weight", "matrix"),
        ("weight", "matrix"),
    ],
)
def test_named_parameters_split_by_dimensions_and_telling_names(name: str, rule: str) -> None:
    optimizer = Schattor([(name, nn.Parameter(torch.zeros(4, 4)))])
    assert optimizer.param_groups[0]["rule"] == rule
    assert optimizer.param_groups[0]["param_names"] == [name]


def test_the_two_groups_of_a_trainer_split_in_place() -> None:
    net = model()
    decayed = [param for param in net.parameters() if param.ndim == 2]
    others = [param for param in net.parameters() if param.ndim < 2]
    optimizer = Schattor(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], lr=0.1
    )
    assert [(g["rule"], g["weight_decay"]) for g in optimizer.param_groups] == [
        ("matrix", 0.1),
        ("adamw", 0.0),
    ]


def test_groups_set_every_key() -> None:
    first, second = (nn.Parameter(torch.zeros(2, 2)) for _ in range(2))
    keys: dict[str, Any] = {"p": 3.0, "oracle": "regularized", "momentum": 0.5, "lr": 0.2}
    optimizer = Schattor([{"params": first, **keys}, {"params": [second], "rule": "sign"}])
    assert {key: optimizer.param_groups[0][key] for key in keys} == keys
    assert optimizer.param_groups[1]["rule"] == "sign"


def test_adamw_lr_reaches_what_is_split_off_and_groups_without_their_own() -> None:
    weight, bias, other, own = (nn.Parameter(torch.zeros(s)) for s in ((2, 2), (2,), (3,), (4,)))
    optimizer = Schattor(
        [
            {"params": [weight, bias], "lr": 0.1},
            {"params": [other], "rule": "adamw"},
            {"params": [own], "rule": "adamw", "lr": 0.5},
        ],
        lr=0.2,
        adamw_lr=0.01,
    )
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.01, 0.01, 0.5]
    assert all("adamw_lr" not in group for group in optimizer.param_groups)
    assert [g["lr"] for g in Schattor([weight, bias], lr=0.2).param_groups] == [0.2, 0.2]


def test_groups_added_later_are_split_too() -> None:
    optimizer = Schattor([nn.Parameter(torch.zeros(2, 2))], lr=0.1)
    late = [nn.Parameter(torch.zeros(3, 3)), nn.Parameter(torch.zeros(3))]
    optimizer.add_param_group({"params": late})
    assert [group["rule"] for group in optimizer.param_groups] == ["matrix", "matrix", "adamw"]
    late[0].grad = torch.eye(3)
    optimizer.step()
    assert late[0].abs().sum() > 0


class _Flat(nn.Parameter):
    """A parameter with an attribute, as other libraries mark theirs."""


def marked(shape: tuple[int, ...], **marks: Any) -> Tensor:
    param = _Flat(torch.zeros(shape))
    for name, value in marks.items():
        setattr(param, name, value)
    return param


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ([], ValueError, "empty parameter list"),
        (torch.zeros(2, 2), TypeError, "Schattor: params must be a module or an iterable"),
        ({nn.Parameter(torch.zeros(2, 2))}, None, ""),
        ([{"params": {nn.Parameter(torch.zeros(2, 2))}}], TypeError, "must be ordered, got a set"),
        ([1.0], TypeError, "can only optimize Tensors"),
        (
            [nn.Parameter(torch.zeros(2, 2, dtype=torch.complex64))],
            TypeError,
            "param_groups[0][0] must be float64, float32, bfloat16 or float16, got torch.complex64",
        ),
        (
            [{"params": [nn.Parameter(torch.zeros(4))], "rule": "matrix"}],
            ValueError,
            'must have at least two dimensions under rule "matrix", got shape (4,)',
        ),
        (
            [{"params": nn.Parameter(torch.zeros(4, 2)), "rule": "matrix", "blocks": {"rows": 3}}],
            ValueError,
            "blocks of param_groups[0][0]: block_views: rows=3 must divide the 4 rows",
        ),
        (
            [{"params": [nn.Parameter(torch.zeros(4, 2))], "rule": "lion"}],
            ValueError,
            'rule must be "matrix", "adamw", "sgd" or "sign", got \'lion\'',
        ),
        ([marked((0,), ds_shape=(4, 4), ds_id=1)], ValueError, "a DeepSpeed ZeRO-3 partition of a"),
        ([marked((16,), _is_flat_param=True)], ValueError, "a flat FSDP1 shard of 16 elements"),
        ([marked((16,), _fsdp_flattened=True)], ValueError, "a flat FSDP1 shard of 16 elements"),
    ],
)
def test_what_cannot_be_optimized_is_refused(
    params: Any, error: type[Exception] | None, message: str
) -> None:
    if error is None:
        Schattor(params)
        return
    with pytest.raises(error, match=re.escape(message)):
        Schattor(params)


def test_a_group_whose_matrices_became_flat_shards_is_refused_at_the_step() -> None:
    optimizer = Schattor([nn.Parameter(torch.zeros(4, 4))])
    shard = nn.Parameter(torch.zeros(16))
    shard.grad = torch.ones(16)
    optimizer.param_groups[0]["params"][0] = shard
    with pytest.raises(ValueError, match="a flat shard of a weight holds no matrix"):
        optimizer.step()
    assert not shard.any() and not optimizer.state


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8])
def test_frozen_integers_are_left_alone_until_they_get_a_gradient(dtype: torch.dtype) -> None:
    frozen = nn.Parameter(torch.ones(2, 2, dtype=dtype), requires_grad=False)
    moving = nn.Parameter(torch.zeros(2, 2))
    moving.grad = torch.eye(2)
    optimizer = Schattor([frozen, moving])
    optimizer.step()
    assert frozen not in optimizer.state
    frozen.grad = torch.ones_like(frozen)
    with pytest.raises(TypeError, match=rf"must be float64.* got {dtype}"):
        optimizer.step()


@pytest.mark.parametrize("make", [Schattor, AdamW])
def test_sparse_gradients_are_refused_before_anything_moves(make: Any) -> None:
    first, sparse = (nn.Parameter(torch.zeros(3, 3)) for _ in range(2))
    first.grad = torch.eye(3)
    sparse.grad = torch.eye(3).to_sparse()
    optimizer = make([("first", first), ("table", sparse)])
    with pytest.raises(TypeError, match="gradient of table must be dense, got layout torch.sparse"):
        optimizer.step()
    assert not first.any() and not optimizer.state


def test_patterns_of_block_weights_must_match() -> None:
    named = [("a.weight", nn.Parameter(torch.zeros(2, 2)))]
    with pytest.raises(ValueError, match=re.escape("block_weights['b.*'] must match a parameter")):
        Schattor(named, block_weights={"a.*": 2.0, "b.*": 3.0})


def test_capturable_needs_a_gpu(on_processor: None) -> None:
    param = nn.Parameter(torch.zeros(2, 2))
    param.grad = torch.eye(2)
    with pytest.raises(ValueError, match="capturable must be False for parameters on the cpu"):
        Schattor([param], capturable=True).step()


def test_a_layout_whose_matrix_is_no_view_is_refused_by_name() -> None:
    weight = torch.randn(8, 3, 3, 3).permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)
    with pytest.raises(ValueError, match="Schattor: blocks of conv: .*view"):
        Schattor([("conv", nn.Parameter(weight))])
