from __future__ import annotations

import re

from torch import nn

from schattor.routing import route


def rows(text: str) -> list[list[str]]:
    return [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()]


def test_table_of_a_small_model() -> None:
    blocks = nn.Sequential(*(nn.ModuleDict({"qkv": nn.Linear(4, 12)}) for _ in range(3)))
    model = nn.ModuleDict({"embed": nn.Embedding(9, 4), "blocks": blocks})
    model["embed"].requires_grad_(False)

    text = str(route(model, rules={"*.bias": {"lr": 0.1}}))

    assert rows(text) == [
        ["parameter", "shape", "rule", "blocks", "reason"],
        ["3 x", "blocks.*.qkv.weight", "12x4", "matrix", "3 x 4x4",
         "hidden matrix (Linear): query, key, value"],
        ["3 x", "blocks.*.qkv.bias", "12", "adamw, lr=0.1", "vector; rules['*.bias']"],
        ["embed.weight", "9x4", "frozen", "requires no gradient"],
        [""],
        ["matrix", "3 tensors", "144 parameters", "66.67 %"],
        ["adamw", "3 tensors", "36 parameters", "16.67 %"],
        ["frozen", "1 tensors", "36 parameters", "16.67 %"],
    ]  # fmt: skip


def test_layers_that_differ_are_not_folded() -> None:
    text = str(route(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 8), nn.Linear(8, 4))))

    assert [row[0] for row in rows(text)][1:7] == [
        "0.weight", "2 x", "1.weight", "1.bias", "2.weight", "",
    ]  # fmt: skip


def test_a_scalar_has_a_shape() -> None:
    model = nn.PReLU()
    model.weight.data = model.weight.data[0]

    assert rows(str(route(model)))[1] == ["weight", "scalar", "adamw", "scalar"]
