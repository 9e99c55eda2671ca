from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from compressor.torch_graph.operators import blocks, padding, shaping
from tests.torch_graph.one_node import assert_same, by_kernel, by_onnxruntime

KERNELS = shaping.KERNELS | padding.KERNELS | blocks.KERNELS
LAST = np.iinfo(np.int64).max


def counted(*shape: int, kind: type = np.float32) -> np.ndarray:
    return np.arange(np.prod(shape)).reshape(shape).astype(kind)


def numbers(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


X = counted(2, 3, 4)
IMAGE = counted(1, 8, 4, 6)

# operator, inputs, attributes, opset, number of outputs
CASES: list[tuple[str, list[Any], dict[str, Any], int, int]] = [
    ("Reshape", [X, numbers(4, -1)], {}, 21, 1),
    ("Reshape", [X, numbers(0, 12)], {}, 13, 1),
    ("Reshape", [counted(2, 0, 3), numbers(3, 0)], {"allowzero": 1}, 14, 1),
    ("Flatten", [X], {}, 21, 1),
    ("Flatten", [X], {"axis": 0}, 9, 1),
    ("Flatten", [X], {"axis": -1}, 13, 1),
    ("Flatten", [counted(0, 3, 4)], {}, 13, 1),
    ("Squeeze", [counted(1, 3, 1)], {}, 21, 1),
    ("Squeeze", [counted(1, 3, 1), numbers(-1)], {}, 13, 1),
    ("Squeeze", [counted(1, 3, 1)], {"axes": [0]}, 11, 1),
    ("Unsqueeze", [X, numbers(0, -1)], {}, 21, 1),
    ("Unsqueeze", [X], {"axes": [0, 2]}, 11, 1),
    ("Transpose", [X], {}, 21, 1),
    ("Transpose", [X], {"perm": [2, 0, 1]}, 7, 1),
    ("Concat", [X, X[:, :1]], {"axis": -2}, 21, 1),
    ("Split", [counted(2, 7)], {"axis": 1, "num_outputs": 3}, 18, 3),
    ("Split", [counted(2, 7), numbers(3, 4)], {"axis": -1}, 18, 2),
    ("Split", [counted(4, 7)], {}, 13, 2),
    ("Split", [counted(2, 7)], {"axis": 1, "split": [3, 4]}, 11, 2),
    ("Split", [counted(2, 7)], {"num_outputs": 1}, 18, 1),
    ("Expand", [counted(3, 1), numbers(2, 1, 4)], {}, 21, 1),
    ("Expand", [counted(2, 3, 4), numbers(4)], {}, 8, 1),
    ("Tile", [X, numbers(1, 2, 3)], {}, 7, 1),
    ("Slice", [X, numbers(1), numbers(LAST)], {}, 21, 1),
    ("Slice", [X, numbers(-2, 0), numbers(-1, 100), numbers(-1, 1)], {}, 11, 1),
    ("Slice", [X], {"starts": [1, -100], "ends": [LAST, -1], "axes": [2, 1]}, 9, 1),
    ("Slice", [X], {"starts": [1], "ends": [2]}, 7, 1),
    ("Shape", [X], {}, 21, 1),
    ("Shape", [X], {"start": -2, "end": 2}, 15, 1),
    ("Size", [X], {}, 21, 1),
    ("ConstantOfShape", [numbers(2, 3)], {}, 21, 1),
    ("ConstantOfShape", [numbers()], {}, 9, 1),
    ("Trilu", [X], {}, 21, 1),
    ("Trilu", [X, np.array(-1)], {"upper": 0}, 14, 1),
    ("ReverseSequence", [counted(4, 3, 2), numbers(1, 4, 2)], {}, 21, 1),
    ("ReverseSequence", [counted(3, 4, 2), numbers(1, 4, 2)], {"batch_axis": 0, "time_axis": 1}, 10, 1),
    ("DepthToSpace", [IMAGE], {"blocksize": 2}, 21, 1),
    ("DepthToSpace", [IMAGE], {"blocksize": 2, "mode": "CRD"}, 11, 1),
    ("SpaceToDepth", [IMAGE], {"blocksize": 2}, 7, 1),
    ("Col2Im", [counted(1, 8, 9), numbers(4, 4), numbers(2, 2)], {}, 18, 1),
    (
        "Col2Im",
        [counted(2, 8, 6), numbers(4, 5), numbers(2, 2)],
        {"pads": [1, 0, 0, 1], "strides": [2, 2]},
        18,
        1,
    ),
    ("Col2Im", [counted(2, 6, 4), numbers(6), numbers(3)], {"dilations": [1]}, 18, 1),
    ("Pad", [X, numbers(0, 1, 2, 1, 0, 0)], {}, 21, 1),
    ("Pad", [X, numbers(1, -1), np.array(7, np.float32), numbers(-1)], {}, 18, 1),
    ("Pad", [X], {"pads": [0, 0, 1, 0, 0, 1], "value": 0.5}, 7, 1),
    ("Pad", [X], {"pads": [0, 0, 1, 0, 0, 1]}, 10, 1),
    ("Pad", [counted(2, 3, kind=np.int64), numbers(1, 0, 0, 1), np.array(2**53 + 1)], {}, 13, 1),
    ("Pad", [counted(2, 2, kind=np.bool_), numbers(1, 0, 0, 1), np.array(True)], {}, 13, 1),
    *(
        ("Pad", [IMAGE, numbers(0, 0, 2, 1, 0, 0, 0, 3)], {"mode": mode}, 19, 1)
        for mode in ("edge", "reflect", "wrap")
    ),
    *(("Pad", [X, numbers(1, 2, 0, 0, 0, 3)], {"mode": mode}, 19, 1) for mode in ("edge", "wrap")),
    ("Pad", [X, numbers(1, 2, 0, 0, 0, 3)], {"mode": "reflect"}, 19, 1),
    ("Pad", [X, numbers(0, -1, 0, 0, 0, 2)], {"mode": "edge"}, 13, 1),
]


@pytest.mark.parametrize(("operator", "inputs", "attributes", "opset", "outputs"), CASES)
def test_equals_onnxruntime(
    operator: str, inputs: list[Any], attributes: dict[str, Any], opset: int, outputs: int
) -> None:
    ours = by_kernel(KERNELS, operator, inputs, opset, outputs, **attributes)
    assert_same(ours, by_onnxruntime(operator, inputs, opset, outputs, **attributes))


# Without the largest integer as an end: there onnxruntime reads a backward slice as one to the beginning.
BOUNDS = (-LAST, -100, -5, -3, -1, 0, 1, 3, 4, 100)


@pytest.mark.parametrize("step", [-2, -1, 1, 3])
def test_slices_as_onnxruntime_for_every_kind_of_bound(step: int) -> None:
    x = counted(5)
    for start in BOUNDS:
        for end in BOUNDS:
            inputs = [x, numbers(start), numbers(end), numbers(0), numbers(step)]
            assert_same(by_kernel(KERNELS, "Slice", inputs), by_onnxruntime("Slice", inputs))


@pytest.mark.parametrize("shape", [(7, 4), (2, 8), (3, 2), (6, 5)])
def test_center_crop_pad_keeps_the_middle(shape: tuple[int, int]) -> None:
    x = torch.arange(1.0, 31.0).reshape(6, 5)
    result = padding.center_crop_pad(x, list(shape))
    assert result.shape == shape
    kept = [min(a, b) for a, b in zip(shape, x.shape, strict=True)]
    here = [(size - keep) // 2 for size, keep in zip(shape, kept, strict=True)]
    there = [(size - keep) // 2 for size, keep in zip(x.shape, kept, strict=True)]
    middle = result[here[0] : here[0] + kept[0], here[1] : here[1] + kept[1]]
    assert torch.equal(middle, x[there[0] : there[0] + kept[0], there[1] : there[1] + kept[1]])
    assert result.sum() == middle.sum()


def test_center_crop_pad_changes_the_given_axes_only() -> None:
    x = torch.ones(4, 6, 2)
    assert padding.center_crop_pad(x, [2], axes=[-2]).shape == (4, 2, 2)


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_space_to_depth_undoes_depth_to_space(mode: str) -> None:
    x = torch.arange(64.0).reshape(1, 8, 2, 4)
    assert torch.equal(
        blocks.space_to_depth(blocks.depth_to_space(x, blocksize=2, mode=mode), blocksize=2, mode=mode), x
    )


def test_reflects_as_often_as_the_pad_is_wide() -> None:
    x = torch.tensor([[[1.0, 2.0, 3.0]]])
    padded = padding.pad(x, [0, 0, 5, 0, 0, 4], mode="reflect")
    np.testing.assert_array_equal(padded, np.pad(x, [(0, 0), (0, 0), (5, 4)], mode="reflect"))


def test_col2im_of_three_axes_adds_what_im2col_took() -> None:
    image = torch.arange(24.0).reshape(1, 1, 2, 3, 4)
    parts = image.unfold(2, 2, 1).unfold(3, 2, 1).unfold(4, 2, 1).reshape(1, 1, -1, 8)
    columns = parts.movedim(-1, 2).reshape(1, 8, -1)
    times = torch.ones(1, 1, 2, 3, 4).unfold(2, 2, 1).unfold(3, 2, 1).unfold(4, 2, 1).reshape(1, 8, -1)
    cover = blocks.col2im(times, [2, 3, 4], [2, 2, 2])
    assert torch.equal(blocks.col2im(columns, [2, 3, 4], [2, 2, 2]), image * cover)


def test_refuses_to_squeeze_an_axis_that_holds_more_than_one() -> None:
    with pytest.raises(RuntimeError, match="invalid for input of size"):
        shaping.squeeze(torch.ones(2, 3), [0])


def test_a_constant_has_the_type_of_its_value() -> None:
    result = shaping.constant_of_shape([2, 0], value=torch.tensor([3], dtype=torch.int8))
    assert (result.shape, result.dtype) == ((2, 0), torch.int8)


GRADIENTS: dict[str, Any] = {
    "expand": lambda x: shaping.expand(x, [2, 1, 1, 1, 1]),
    "tile": lambda x: shaping.tile(x, [1, 1, 2, 1]),
    "slice backwards": lambda x: shaping.slice_(x, [-1, 0], [-100, 3], [2, 3], [-2, 2]),
    "reverse": lambda x: shaping.reverse_sequence(x, torch.tensor([2]), batch_axis=0, time_axis=2),
    "split": lambda x: shaping.split(x, [1, 2], axis=2, outputs=2)[1],
    "pad constant": lambda x: padding.pad(x, [0, 0, 1, -1, 0, 0, 0, 2]),
    "pad edge": lambda x: padding.pad(x, [0, 0, 1, 1, 0, 0, 0, 2], mode="edge"),
    "pad reflect": lambda x: padding.pad(x, [0, 1, 1, 1, 0, 0, 0, 2], mode="reflect"),
    "pad wrap": lambda x: padding.pad(x, [0, 0, 1, 1, 0, 0, 0, 5], mode="wrap"),
    "depth to space": lambda x: blocks.depth_to_space(x, blocksize=2),
    "col2im": lambda x: blocks.col2im(x.reshape(1, 4, 12), [4, 3], [2, 2], pads=[0, 1, 0, 1]),
    "col2im of one axis": lambda x: blocks.col2im(x.reshape(1, 4, 12), [13], [2]),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_has_the_gradient_of_its_differences(name: str) -> None:
    x = torch.randn(
        1, 4, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True
    )
    assert torch.autograd.gradcheck(GRADIENTS[name], (x,))


def test_compiles_for_every_batch_without_a_break() -> None:
    def body(x: torch.Tensor) -> torch.Tensor:
        x = shaping.flatten(padding.pad(x, [0, 0, 1, 0, 0, 1], mode="edge"))
        x = shaping.expand(shaping.reshape(x, [0, -1, 2]), [1, 1, 2])
        first, second = shaping.split(x, axis=1, outputs=2)
        return shaping.slice_(first + second, [-1], [-LAST], [0], [-1])

    compiled = torch.compile(body, backend="eager", fullgraph=True, dynamic=True)
    for batch in (2, 5):
        x = torch.randn(batch, 3, 6)
        assert torch.equal(compiled(x), body(x))
