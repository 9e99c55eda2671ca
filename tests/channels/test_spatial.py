from __future__ import annotations

import numpy as np
import pytest

from tests.channels.law import assert_law, groups, plain, random_feeds, reasons
from tests.channels.middles import before_linear, between, ints
from tests.conftest import build, drawn

POOLED = {
    "MaxPool": "g = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (h)",
    "MaxPool with positions that nothing reads": "g, i = MaxPool <kernel_shape = [2, 2]> (h)",
    "AveragePool": "g = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1], count_include_pad = 1> (h)",
    "LpPool": "g = LpPool <kernel_shape = [2, 2], p = 2> (h)",
    "GlobalMaxPool": "g = GlobalMaxPool(h)",
    "GlobalAveragePool": "g = GlobalAveragePool(h)",
    "GlobalLpPool": "g = GlobalLpPool(h)",
    "Resize by scales": """g = Resize <mode = "nearest"> (h, , scales)""",
    "Resize, linear": """
        g = Resize <mode = "linear", coordinate_transformation_mode = "align_corners"> (h, , scales)""",
    "Resize to sizes": """g = Resize <mode = "linear"> (h, , , sizes)""",
    "Resize to sizes put together": """s = Shape(h) b = Slice(s, none, two) t = Concat <axis = 0> (b, space)
        g = Resize <mode = "nearest"> (h, , , t)""",
    "Resize to twice the size at run time": """s = Shape(h) b = Slice(s, none, two) e = Slice(s, two, four)
        d = Mul(e, two) t = Concat <axis = 0> (b, d) g = Resize <mode = "nearest"> (h, , , t)""",
    "GridSample": "g = GridSample(h, points)",
    "RoiAlign": "g = RoiAlign <output_height = 2, output_width = 2> (h, boxes, which)",
    "MaxRoiPool": "g = MaxRoiPool <pooled_shape = [2, 2]> (h, regions)",
    "SpaceToDepth and back": "d = SpaceToDepth <blocksize = 2> (h) g = DepthToSpace <blocksize = 2> (d)",
}
WEIGHTS = {
    **{
        "scales": np.array([1, 1, 2, 2], np.float32),
        "sizes": ints(2, 8, 9, 9),
        "none": ints(0),
        "two": ints(2),
    },
    **{"four": ints(4), "space": ints(9, 9), "points": np.tanh(drawn(2, 3, 3, 2)), "which": ints(0, 1)},
    **{"boxes": np.array([[0, 0, 3, 3], [1, 1, 4, 5]], np.float32)},
    **{"regions": np.array([[0, 0, 0, 3, 3], [1, 1, 1, 4, 5]], np.float32)},
}


@pytest.mark.parametrize("name", POOLED)
def test_what_samples_in_space_leaves_channels_alone(name: str) -> None:
    proto = between(POOLED[name], size="A, B", **WEIGHTS)
    assert groups(proto) == {"wa": 8}
    assert_law(proto, lambda _: random_feeds(plain(proto), 2), trials=1)


@pytest.mark.parametrize(
    ("body", "opset"),
    [
        ("""g = Upsample <mode = "nearest"> (h, scales)""", 9),
        ("""g = Upsample <mode = "nearest", scales = [1.0, 1.0, 2.0, 2.0]> (h)""", 8),
        ("""g = Resize <mode = "nearest"> (h, scales)""", 10),
        ("""g = Resize <mode = "nearest", axes = [2, 3]> (h, , factors)""", 18),
        ("""g = Resize <mode = "nearest", axes = [2, 3]> (h, , , space)""", 18),
        ("g = CenterCropPad <axes = [2, 3]> (h, space)", 18),
    ],
)
def test_older_and_newer_forms_of_a_resize_leave_channels_alone(body: str, opset: int) -> None:
    factors = {"factors": np.array([2, 2], np.float32)}
    proto = between(body, opset=opset, size="A, B", **WEIGHTS, **factors)
    assert groups(proto) == {"wa": 8}
    assert_law(proto, trials=1)


def test_channels_that_are_resized_are_declined_by_name() -> None:
    scales = np.array([1, 2, 1, 1], np.float32)
    proto = between("""g = Resize <mode = "nearest"> (h, , scales)""", 16, scales=scales)
    assert reasons(proto)["wa"] == "Resize 'Resize_1' samples along it"


def test_a_resize_that_crops_is_declined_by_name() -> None:
    body = """g = Resize <mode = "linear", coordinate_transformation_mode = "tf_crop_and_resize"> (h, roi, scales)"""
    proto = between(body, size="A, B", roi=np.array([0, 0, 0, 0, 1, 1, 1, 1], np.float32), **WEIGHTS)
    assert reasons(proto)["wa"] == "Resize 'Resize_1' crops"


def test_positions_that_are_numbered_across_channels_are_declined_by_name() -> None:
    body = """p, i = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (h)
        g = MaxUnpool <kernel_shape = [2, 2], strides = [2, 2]> (p, i)"""
    told = reasons(between(body, size="A, B"))["wa"]
    assert told == "MaxPool 'MaxPool_1' numbers positions across it"


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_channels_that_move_into_space_are_cut_by_the_pixel(mode: str) -> None:
    proto = between(f'g = DepthToSpace <blocksize = 2, mode = "{mode}"> (h)', 2, size="A, B")
    assert groups(proto) == {"wa": 2}
    assert_law(proto)


def test_pixels_that_move_into_channels_are_cut_together() -> None:
    proto = between("g = SpaceToDepth <blocksize = 2> (h)", 32)
    assert groups(proto) == {"wa": 8}
    assert_law(proto)


def test_columns_that_become_an_image_keep_their_channels() -> None:
    body = "f = Reshape(h, s) g = Col2Im(f, image, block)"
    proto = between(body, 2, 18, "A, B", s=ints(0, 8, 36), image=ints(7, 7), block=ints(2, 2))
    assert groups(proto) == {"wa": 2}
    assert_law(proto)


def test_a_block_from_outside_is_declined_by_name() -> None:
    text = """<ir_version: 8, opset_import: ["" : 18]>
    m (float[N, 3, 36] x, int64[2] b) => (float[N, A, B, C] y) { h = Conv(x, wa) y = Col2Im(h, image, b) }"""
    told = reasons(build(text, wa=drawn(8, 3, 1), image=ints(7, 7)))
    assert told == {"wa": "Col2Im 'Col2Im_1': its block is computed"}


def test_a_pool_of_one_dimension_leaves_channels_alone() -> None:
    body = "f = Reshape(h, s) p = MaxPool <kernel_shape = [3], strides = [3]> (f) g = Flatten(p)"
    assert_law(before_linear(body, 96, s=ints(0, 8, 36)))
