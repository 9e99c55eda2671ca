"""Shortcuts as convolutions: the same numbers, only where the pattern is whole, and never at a price."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.graph import constant, new_initializer
from compressor.model_io import invalid_reason
from compressor.prepare import infer_shapes
from compressor.runtime import Session, to_bytes
from compressor.shortcuts import shortcuts_to_convolutions
from compressor.summary import constant_bytes, macs
from tests.conftest import build, drawn

END = 2**63 - 1
SLICE = "s = Slice (r, starts, ends, axes, steps)"
PAD = "p = Pad (s, pads)"


def integers(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


CONSTANTS = {
    "starts": integers(0, 0),
    "ends": integers(END, END),
    "axes": integers(2, 3),
    "steps": integers(2, 2),
    "pads": integers(0, 2, 0, 0, 0, 4, 0, 0),
    "zero": np.array(0, np.float32),
}


def network(
    shortcut: str = f"{SLICE} {PAD}", image: str = "N, 3, 9, 8", opset: int = 18, **constants: np.ndarray
) -> ir.Model:
    """x -> Conv 16 and Relu r -> [shortcut from r to p] + Conv 22 with steps of 2 -> Conv 8."""
    text = f"""<ir_version: 8, opset_import: ["" : {opset}]>
    m (float[{image}] x) => (float[N, 8, A, B] y) {{
      a = Conv <pads = [1, 1, 1, 1]> (x, first) r = Relu (a)
      c = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (r, second)
      {shortcut}
      b = Add (c, p) y = Conv <pads = [1, 1, 1, 1]> (b, third)
    }}"""
    weights = {"first": drawn(16, 3, 3, 3), "second": drawn(22, 16, 3, 3), "third": drawn(8, 22, 3, 3)}
    held = {name: array for name, array in (CONSTANTS | constants).items() if name in shortcut}
    model = ir.from_proto(build(text, **weights, **held))
    for node in model.graph:
        node.name = f"{node.op_type}_{node.outputs[0].name}"
    infer_shapes(model)
    return model


def rewritten(model: ir.Model, share: float = 0.2) -> ir.Model:
    """A copy in which the shortcut is a convolution."""
    copy = model.clone()
    assert len(shortcuts_to_convolutions(copy, share)) == 1
    assert invalid_reason(copy) is None
    return copy


def at_the_sum(model: ir.Model, x: np.ndarray) -> np.ndarray:
    """What the shortcut adds."""
    copy = model.clone()
    copy.graph.outputs.append(next(v for node in copy.graph for v in node.outputs if v.name == "p"))
    return Session(copy).run({"x": x})[-1]


FORMS = {
    "as exported": (
        "t = Slice (r, zero1, ends1, row, two) s = Slice (t, zero1, ends1, column, two) p = Pad (s, pads)",
        {"zero1": integers(0), "ends1": integers(END), "row": integers(2), "column": integers(3)}
        | {"two": integers(2)},
    ),
    "Pad first": ("s = Pad (r, pads) p = Slice (s, starts, ends, axes, steps)", {}),
    "Pad between": (
        "t = Slice (r, starts, ends, axes, tall) s = Pad (t, pads) p = Slice (s, starts, ends, axes, wide)",
        {"tall": integers(2, 1), "wide": integers(1, 2)},
    ),
    "steps times steps": (
        "t = Slice (r, starts, ends, axes, tall) s = Slice (t, starts, ends, axes, tall) "
        "q = Pad (s, pads) p = Slice (q, starts, ends, axes, wide)",
        {"tall": integers(1, 1), "wide": integers(2, 2)},
    ),
    "axes from behind": (f"s = Slice (r, starts, ends, behind, steps) {PAD}", {"behind": integers(-2, -1)}),
    "all axes, to their ends": (
        """s = Slice (r, starts4, ends4, "", steps4) p = Pad <mode = "constant"> (s, pads, zero)""",
        {"starts4": integers(0, 0, 0, 0), "ends4": integers(END, 16, 9, 8), "steps4": integers(1, 1, 2, 2)},
    ),
    "Pad with axes": (
        f'{SLICE} p = Pad (s, pads2, "", channels)',
        {"pads2": integers(2, 4), "channels": integers(-3)},
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_shortcut_becomes_a_convolution_with_equal_results(form: str) -> None:
    shortcut, constants = FORMS[form]
    model = network(shortcut, **constants)
    after = rewritten(model)
    assert [node.op_type for node in after.graph] == ["Conv", "Relu", "Conv", "Conv", "Add", "Conv"]
    assert np.array_equal(at_the_sum(model, x := drawn(3, 3, 9, 8)), at_the_sum(after, x))
    assert len(after.graph.initializers) == 4


def test_the_attributes_of_an_older_pad_are_read() -> None:
    model = network(f"{SLICE} p = Pad <pads = [0, 2, 0, 0, 0, 4, 0, 0], value = 0.0> (s)", opset=10)
    assert np.array_equal(at_the_sum(model, x := drawn(2, 3, 9, 8)), at_the_sum(rewritten(model), x))


@settings(max_examples=25, deadline=None)
@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    steps=st.tuples(st.integers(1, 3), st.integers(2, 4)),
    pads=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    dynamic=st.booleans(),
)
def test_every_step_and_width_gives_equal_results(
    size: tuple[int, int], steps: tuple[int, int], pads: tuple[int, int], dynamic: bool
) -> None:
    text = """<ir_version: 8, opset_import: ["" : 18]>
    m (float[IMAGE] x, float[N, C, A, B] z) => (float[N, C, A, B] y) {
      h = Conv <pads = [1, 1, 1, 1]> (x, w)
      s = Slice (h, starts, ends, axes, steps) p = Pad (s, pads) y = Add (p, z) }"""
    text = text.replace("IMAGE", "N, 3, H, W" if dynamic else f"N, 3, {size[0]}, {size[1]}")
    constants = CONSTANTS | {"steps": integers(*steps), "pads": integers(0, pads[0], 0, 0, 0, pads[1], 0, 0)}
    del constants["zero"]
    model = ir.from_proto(build(text, w=drawn(4, 3, 3, 3), **constants))
    infer_shapes(model)
    after = model.clone()
    assert len(shortcuts_to_convolutions(after, 9.0)) == 1
    feeds = {"x": drawn(2, 3, *size), "z": np.zeros((1, 1, 1, 1), np.float32)}
    (expected,), (got,) = Session(model).run(feeds), Session(after).run(feeds)
    assert np.array_equal(expected, got)


REFUSED = {
    "starts later": (f"{SLICE} {PAD}", {"starts": integers(1, 0)}),
    "ends before the end": (f"{SLICE} {PAD}", {"ends": integers(END, 7)}),
    "ends counted from the end": (f"{SLICE} {PAD}", {"ends": integers(-1, END)}),
    "backwards": (
        f"{SLICE} {PAD}",
        {"starts": integers(-1, 0), "ends": integers(-END, END), "steps": integers(-2, 2)},
    ),
    "takes every second channel": (
        f"{SLICE} {PAD}",
        {"axes": integers(1, 3), "pads": integers(0, 7, 0, 0, 0, 7, 4, 0)},
    ),
    "takes all rows and columns": (
        "q = MaxPool <kernel_shape = [1, 1], strides = [2, 2]> (r) s = Slice (q, starts, ends, axes, steps) "
        + PAD,
        {"steps": integers(1, 1)},
    ),
    "does not pad": ("p = Slice (c, starts, ends, axes, steps)", {"steps": integers(1, 1)}),
    "pads rows": (f"{SLICE} {PAD}", {"steps": integers(3, 2), "pads": integers(0, 2, 1, 0, 0, 4, 1, 0)}),
    "crops channels": (f"{SLICE} {PAD}", {"pads": integers(0, 7, 0, 0, 0, -1, 0, 0)}),
    "pads with ones": (f"{SLICE} p = Pad (s, pads, one)", {"one": np.array(1, np.float32)}),
    "pads with NaN": (f"{SLICE} p = Pad (s, pads, nan)", {"nan": np.array(np.nan, np.float32)}),
    "wraps around": (f'{SLICE} p = Pad <mode = "wrap"> (s, pads)', {}),
    "no sum behind it": (f"{SLICE} q = Pad (s, pads) p = Relu (q)", {}),
    "the Slice is read elsewhere": (
        f"{SLICE} q = Pad (s, pads) t = ReduceMean <keepdims = 1> (s) p = Add (q, t)",
        {},
    ),
    "starts are computed": (
        f"o = Size (axes) t = Sub (o, o) u = Mul (t, starts) {SLICE.replace('starts', 'u')} {PAD}",
        {},
    ),
    "pads are computed": (f"{SLICE} q = Abs (pads) p = Pad (s, q)", {}),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_anything_else_stays_as_it_is(reason: str) -> None:
    shortcut, constants = REFUSED[reason]
    model = network(shortcut, **constants)
    assert invalid_reason(model) is None
    before = to_bytes(model)
    assert shortcuts_to_convolutions(model, 9.0) == []
    assert to_bytes(model) == before


def test_other_float_types_and_unknown_channels_stay_as_they_are() -> None:
    text = """<ir_version: 8, opset_import: ["" : 18]> m (TYPE x) => (TYPE y) {
      c = Conv (x, w) s = Slice (x, starts, ends, axes, steps) p = Pad (s, pads) y = Add (p, c) }"""
    kernel = drawn(10, 4, 1, 1)
    for kind, array, count in (
        ("float[1, 4, 1, 1]", kernel, 1),
        ("double[1, 4, 1, 1]", kernel.astype(np.float64), 0),
        ("float16[1, 4, 1, 1]", kernel.astype(np.float16), 0),
        ("float[1, C, 1, 1]", kernel, 0),
    ):
        constants = {name: value for name, value in CONSTANTS.items() if name != "zero"}
        model = ir.from_proto(build(text.replace("TYPE", kind), w=array, **constants))
        infer_shapes(model)
        assert len(shortcuts_to_convolutions(model, 9.0)) == count, kind


def test_weights_that_are_too_large_a_share_of_the_file_are_not_added() -> None:
    model = network()
    share = 22 * 16 * 4 / constant_bytes(model)
    assert shortcuts_to_convolutions(model, share * 0.99) == []
    assert shortcuts_to_convolutions(model, share * 1.01) == ["Pad_p"]


def test_too_large_a_share_of_multiply_accumulates_is_not_added() -> None:
    model = network()
    new_initializer(model.graph, "bytes", drawn(100_000))
    share = 22 * 16 * 5 * 4 / (macs(model) or 0)
    assert shortcuts_to_convolutions(model, share * 0.99) == []
    assert shortcuts_to_convolutions(model, share * 1.01) == ["Pad_p"]


def test_the_share_is_that_of_all_shortcuts_together() -> None:
    two = (
        f"{SLICE} q = Pad (s, pads) d = Add (c, q) t = Slice (r, starts, ends, axes, steps) p = Pad (t, pads)"
    )
    assert shortcuts_to_convolutions(network(two), 0.1) == ["Pad_q"]
    assert shortcuts_to_convolutions(network(two), 0.2) == ["Pad_q", "Pad_p"]


def test_multiply_accumulates_that_cannot_be_counted_leave_the_model_alone() -> None:
    model = network()
    model.graph[0].outputs[0].shape = None
    assert macs(model) is None
    assert shortcuts_to_convolutions(model, 9.0) == []


def test_a_second_run_changes_nothing() -> None:
    once = rewritten(network())
    before = to_bytes(once)
    assert shortcuts_to_convolutions(once, 9.0) == []
    assert to_bytes(once) == before


def test_the_weights_are_zeros_and_one_in_the_row_of_each_channel() -> None:
    kernel = constant(rewritten(network()).graph.initializers["Pad_p_weight"])
    assert kernel is not None
    assert kernel.shape == (22, 16, 1, 1)
    assert np.array_equal(np.argwhere(kernel), [[i + 2, i, 0, 0] for i in range(16)])
    assert kernel.sum() == 16


def test_an_infinite_value_reaches_all_channels_of_its_place_and_no_other() -> None:
    model = network("s = Slice (a, starts, ends, axes, steps) p = Pad (s, pads)")
    x = drawn(1, 3, 9, 8)
    x[0, 0, 0, 0] = np.inf
    before, after = at_the_sum(model, x), at_the_sum(rewritten(model), x)
    reached = np.isfinite(before).all(axis=1, keepdims=True)
    assert not reached.all()
    assert np.array_equal(np.where(reached, after, 0), np.where(reached, before, 0))
    assert np.isnan(after[~np.broadcast_to(reached, after.shape)]).all()
