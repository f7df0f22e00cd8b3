from __future__ import annotations

import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from schattor.blocks import block_shapes, block_views, describe_blocks, fans


def numbered(*shape: int) -> Tensor:
    return torch.arange(1.0, 1.0 + torch.Size(shape).numel()).reshape(shape)


SPECS = [
    ((6, 4), None),
    ((6, 4), {}),
    ((6, 4), {"rows": 3}),
    ((6, 4), {"cols": 2, "out": 1}),
    ((6, 4), {"rows": [3, 2, 1]}),
    ((6, 4), {"rows": 3, "cols": (1, 3)}),
    ((6, 4), {"rows": 2, "interleaved": True}),
    ((7, 10), {"most": 3}),
    ((8, 5, 3), {"batch": 1, "rows": (4, 1), "most": 2}),
    ((7, 4, 3, 3), {"most": 10}),
    ((3, 4, 5), {"batch": 1}),
    ((3, 4, 5), {"batch": 1, "rows": 2}),
    ((3, 5, 4), {"batch": 1, "cols": 2, "out": 1, "interleaved": True}),
    ((3, 4, 5), {}),
    ((8, 3, 2, 2), {"rows": 4}),
    ((8, 1, 3, 3), {}),
    ((2, 4, 3, 2, 2), {"batch": 1, "rows": 2}),
    ((2, 3, 4, 5), {"batch": 2}),
    ((1, 7), {"rows": 1}),
    ((0, 4), {"rows": 2}),
]


@pytest.mark.parametrize(("shape", "spec"), SPECS)
def test_views_cover_the_tensor_once(shape: tuple[int, ...], spec: dict | None) -> None:
    tensor = numbered(*shape)

    views = block_views(tensor, spec)
    seen = sorted(value for view in views for value in view.flatten().tolist())
    for view in views:
        view.neg_()

    assert seen == sorted(numbered(*shape).flatten().tolist())
    assert torch.equal(tensor, -numbered(*shape))
    assert [tuple(view.shape) for view in views] == block_shapes(shape, spec)
    assert all(view.ndim == 2 for view in views)


def test_a_plain_matrix_is_itself() -> None:
    matrix = nn.Parameter(torch.zeros(3, 4))

    assert block_views(matrix)[0] is matrix
    assert block_views(matrix, {})[0] is matrix


def test_views_of_a_parameter_are_detached_and_count_as_writes() -> None:
    parameter = nn.Parameter(torch.zeros(4, 4))
    version = parameter._version

    block_views(parameter, {"rows": 2})[1].add_(1.0)

    assert parameter.requires_grad and parameter._version == version + 1
    assert parameter[2:].eq(1).all() and parameter[:2].eq(0).all()


def test_order_is_batch_then_rows_then_cols() -> None:
    tensor = numbered(2, 2, 2)

    views = block_views(tensor, {"batch": 1, "rows": 2, "cols": 2})

    assert [view.item() for view in views] == tensor.flatten().tolist()


def test_longer_sides_are_cut_at_every_mostth_row_and_column() -> None:
    assert block_shapes((5, 7), {"most": 4}) == [(4, 4), (4, 3), (1, 4), (1, 3)]
    assert block_shapes((4, 4), {"most": 4}) == [(4, 4)]


def test_interleaved_takes_every_nth() -> None:
    gate_up = numbered(4, 2)

    gate, up = block_views(gate_up, {"rows": 2, "interleaved": True})

    assert torch.equal(gate, gate_up[0::2])
    assert torch.equal(up, gate_up[1::2])


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_convolution_in_any_memory_format(memory_format: torch.memory_format) -> None:
    kernel = torch.randn(8, 3, 5, 4).to(memory_format=memory_format)

    (matrix,) = block_views(kernel)

    assert matrix.shape == (8, 60)
    assert matrix.data_ptr() == kernel.data_ptr()
    expected = torch.linalg.svdvals(kernel.contiguous().flatten(1))
    assert torch.allclose(torch.linalg.svdvals(matrix), expected, rtol=1e-5)


@given(st.permutations(range(4)), st.sampled_from([(4, 3, 2, 5), (4, 1, 3, 3), (4, 3, 1, 2)]))
def test_convolution_of_permuted_strides(order: list[int], shape: tuple[int, ...]) -> None:
    stored = torch.randn([shape[dim] for dim in order])
    kernel = stored.permute(*(order.index(dim) for dim in range(4)))
    like = kernel.contiguous()

    try:
        (matrix,) = block_views(kernel)
    except ValueError as error:
        # Only an output dimension between the others keeps them from being one.
        assert 0 < order.index(0) < 3 and "has no view" in str(error)
        return
    expected = torch.linalg.svdvals(like.flatten(1))

    assert torch.allclose(torch.linalg.svdvals(matrix), expected, rtol=1e-4)
    assert matrix.untyped_storage().data_ptr() == kernel.untyped_storage().data_ptr()


def test_like_gives_gradient_and_parameter_the_same_columns() -> None:
    kernel = torch.randn(6, 3, 2, 2).to(memory_format=torch.channels_last)
    gradient = kernel.clone(memory_format=torch.preserve_format)

    (columns,) = block_views(gradient, like=kernel)
    (own,) = block_views(kernel)

    assert torch.equal(columns, own)
    with pytest.raises(ValueError, match="empty_like"):
        block_views(gradient.contiguous(), like=kernel)
    copied = torch.empty_like(kernel).copy_(gradient.contiguous())
    assert torch.equal(block_views(copied, like=kernel)[0], own)


def test_depthwise_filters_are_the_rows_of_one_matrix() -> None:
    assert block_shapes(nn.Conv2d(16, 16, 3, groups=16).weight.shape) == [(16, 9)]


@pytest.mark.parametrize(
    ("shape", "spec", "expected"),
    [
        ((768, 3072), None, (768, 3072)),
        ((768, 3072), {"rows": 2}, (768, 3072)),
        ((768, 3072), {"out": 1}, (3072, 768)),
        ((768, 3072), {"out": 0}, (768, 3072)),
    ],
)
def test_fans_are_outputs_and_inputs(
    shape: tuple[int, int], spec: dict | None, expected: tuple[int, int]
) -> None:
    assert fans(shape, spec) == expected


def test_describe() -> None:
    assert describe_blocks((12, 4)) == "12x4"
    assert describe_blocks((12, 4), {"rows": 3}) == "3 x 4x4"
    assert describe_blocks((8, 6, 4), {"batch": 1}) == "8 x 6x4"
    assert describe_blocks((12, 4), {"rows": (8, 2, 2)}) == "8x4 + 2 x 2x4"


def test_specs_go_through_a_state_dict_of_plain_values() -> None:
    specs = [spec for _, spec in SPECS]
    file = io.BytesIO()
    torch.save(specs, file)
    file.seek(0)

    loaded = torch.load(file, weights_only=True)

    assert loaded == specs


@pytest.mark.parametrize(
    ("shape", "spec", "error", "message"),
    [
        ((6, 4), "rows", TypeError, "spec must be a dict or None, got 'rows'"),
        ((6, 4), {"row": 3}, ValueError, "unknown key 'row' in a block spec; did you mean 'rows'"),
        ((6, 4), {"heads": 3}, ValueError, "unknown key 'heads' .*known: batch, rows, cols"),
        ((6, 4), {"rows": 4}, ValueError, "rows=4 must divide the 6 rows"),
        ((6, 4), {"cols": 3}, ValueError, "cols=3 must divide the 4 cols"),
        ((6, 4), {"rows": (3, 2)}, ValueError, r"rows=\(3, 2\) must add up to the 6 rows, got 5"),
        ((6, 4), {"rows": 0}, ValueError, "rows must be an int >= 1 or a tuple .*, got 0"),
        ((6, 4), {"rows": ()}, ValueError, "rows must be an int >= 1 or a tuple"),
        ((6, 4), {"rows": True}, ValueError, "rows must be an int >= 1 or a tuple"),
        ((6, 4), {"rows": 1.5}, ValueError, "rows must be an int >= 1 or a tuple .*, got 1.5"),
        ((6, 4), {"out": 2}, ValueError, "out must be 0 or 1, got 2"),
        ((6, 4), {"interleaved": 1, "rows": 2}, ValueError, "interleaved must be a bool, got 1"),
        ((6, 4), {"interleaved": True}, ValueError, "interleaved needs rows or cols"),
        ((6, 4), {"most": 0}, ValueError, "most must be an int >= 1, got 0"),
        ((6, 4), {"interleaved": True, "rows": (3, 3)}, ValueError, "interleaved needs rows or"),
        ((6,), None, ValueError, r"needs two dimensions .*, got shape \(6,\)"),
        ((), None, ValueError, r"needs two dimensions .*, got shape \(\)"),
        ((6, 4), {"batch": 1}, ValueError, r"two dimensions besides 1 of the batch"),
        ((6, 4, 3), {"cols": 2}, ValueError, "cols can split a matrix only"),
    ],
)
def test_errors(shape: tuple[int, ...], spec: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        block_views(torch.zeros(shape), spec)  # type: ignore[arg-type]


def test_like_must_have_the_same_shape() -> None:
    with pytest.raises(ValueError, match=r"like must have the shape \(4, 3, 2\).*got \(4, 3\)"):
        block_views(torch.zeros(4, 3, 2), like=torch.zeros(4, 3))


def test_sparse_tensors_have_no_views() -> None:
    with pytest.raises(ValueError, match="must be dense, got layout torch.sparse_coo"):
        block_views(torch.eye(3).to_sparse())
