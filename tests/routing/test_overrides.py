from __future__ import annotations

import re
from typing import Any

import pytest
from torch import nn

from schattor.routing import route


def model() -> nn.Module:
    return nn.ModuleDict({
        "embed": nn.Embedding(50, 8),
        "layers": nn.ModuleList(
            nn.ModuleDict({"qkv": nn.Linear(8, 24), "mlp": nn.Linear(8, 8)}) for _ in range(12)
        ),
        "lm_head": nn.Linear(8, 50),
    })  # fmt: skip


def on(rule: str, **options: Any) -> list[str]:
    return [entry.name for entry in route(model(), **options) if entry.rule == rule]


@pytest.mark.parametrize(
    ("pattern", "count"),
    [
        ("lm_head.weight", 1),
        ("lm_head", 2),
        ("*.weight", 26),
        ("layers.1", 4),
        ("layers.1.*", 4),
        ("layers.1[01].qkv", 4),
        ("*.qkv.weight", 12),
        ("layers.?.qkv.weight", 10),
        ("*.qkv", 24),
        ("*", 51),
        (re.compile(r"qkv"), 24),
        (re.compile(r"^layers\.1\..*weight$"), 2),
    ],
)
def test_patterns(pattern: Any, count: int) -> None:
    assert len(on("sgd", rules={pattern: "sgd"})) == count


def test_the_first_match_wins() -> None:
    rules = {"layers.3.mlp.weight": "adamw", "*.mlp.weight": "sgd", "*.weight": "sign"}

    assert on("sgd", rules=rules) == [f"layers.{i}.mlp.weight" for i in range(12) if i != 3]
    assert "embed.weight" in on("sign", rules=rules)
    assert "layers.3.mlp.weight" in on("adamw", rules=rules)


def test_an_override_says_so_in_its_reason() -> None:
    entry = route(model(), rules={"lm_head.weight": "sgd"})["lm_head.weight"]

    assert entry.reason == "rules['lm_head.weight'] (was: output head)"


def test_options_without_a_rule_keep_the_rule() -> None:
    routing = route(model(), rules={"*.mlp.weight": {"lr": 0.5, "p": 3.0}})
    groups = routing.groups()

    assert routing["layers.0.mlp.weight"].rule == "matrix"
    assert [(group.get("lr"), group.get("p")) for group in groups] == [
        (None, None), (0.5, 3.0), (None, None),
    ]  # fmt: skip
    assert len(groups[1]["params"]) == 12


def test_a_matrix_by_override() -> None:
    routing = route(model(), rules={"lm_head.weight": "matrix", "embed.weight": "matrix"})

    assert routing["lm_head.weight"].rule == "matrix"
    assert routing["embed.weight"].blocks == {"out": 1}


def test_blocks_by_either_argument() -> None:
    by_rules = route(model(), rules={"*.mlp": {"blocks": {"rows": 4}}})
    by_blocks = route(model(), blocks={"*.mlp": {"rows": 2}, "*.qkv": None})

    assert by_rules["layers.0.mlp.weight"].blocks == {"rows": 4}
    assert by_blocks["layers.0.mlp.weight"].blocks == {"rows": 2}
    assert by_blocks["layers.0.qkv.weight"].blocks is None
    assert by_blocks["layers.0.mlp.bias"].rule == "adamw"


def test_equal_specs_share_a_group() -> None:
    specs = {"*.3.mlp": {"rows": 2, "out": 0}, "*.4.mlp": {"out": 0, "rows": 2}}

    groups = route(model(), blocks=specs).groups()

    assert [len(g["params"]) for g in groups if g["blocks"] == {"out": 0, "rows": 2}] == [2]


def test_a_tied_parameter_answers_to_all_its_names() -> None:
    tied = model()
    tied["lm_head"].weight = tied["embed"].weight

    assert route(tied, rules={"lm_head.weight": "sign"})["embed.weight"].rule == "sign"


def test_patterns_for_frozen_parameters_are_no_mistake() -> None:
    frozen = model()
    frozen["embed"].requires_grad_(False)

    assert route(frozen, rules={"embed": "sgd"})["embed.weight"].rule == "frozen"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rules": {"lm_heed": "sgd"}}, ValueError,
         r"rules\['lm_heed'\] matches no parameter or module; the closest names are lm_head,"),
        ({"rules": {"*.attn.qvk.weight": "sgd"}}, ValueError, "closest names are"),
        ({"rules": {re.compile("^qkv"): "sgd"}}, ValueError, r"rules\['\^qkv'\] matches no"),
        ({"blocks": {"*.mpl": {"rows": 2}}}, ValueError, r"blocks\['\*.mpl'\] matches no"),
        ({"rules": {"*": "sgd", "embed": "adamw"}}, ValueError,
         r"rules\['embed'\] matches only parameters that earlier patterns claim"),
        ({"blocks": {"embed": {"rows": 2}}}, ValueError,
         r"blocks\['embed'\] matches no parameter of the matrix rule"),
        ({"rules": {"embed": "muon"}}, ValueError,
         r"rules\['embed'\]: rule must be one of matrix, adamw, sgd, sign, got 'muon'"),
        ({"rules": {"embed": {"params": []}}}, ValueError, r"rules\['embed'\]: params is what"),
        ({"rules": {"embed": 3}}, TypeError, r"rules\['embed'\] must be the name of a rule or a"),
        ({"rules": {3: "sgd"}}, TypeError, "a pattern must be a str or a compiled regex, got 3"),
        ({"rules": {"lm_head": "matrix"}}, ValueError, "'lm_head.bias' of shape .* name the"),
        ({"rules": {"embed": {"blocks": {"rows": 2}}}}, ValueError,
         "blocks for 'embed.weight' need the rule \"matrix\", got 'adamw'"),
        ({"blocks": {"*.qkv": {"rows": 7}}}, ValueError,
         "parameter 'layers.0.qkv.weight': .*rows=7 must divide the 24 rows"),
        ({"blocks": {"*.qkv": "heads"}}, TypeError, "spec must be a dict or None, got 'heads'"),
    ],
)  # fmt: skip
def test_errors(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        route(model(), **options)
