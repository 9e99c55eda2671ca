from __future__ import annotations

import onnx
import onnx_ir as ir

from compressor.low_bit.ends import first_layers, last_layers
from compressor.pruning.prunable import weights
from tests.conftest import build, drawn
from tests.low_bit.networks import cnn

HEAD = '<ir_version: 8, opset_import: ["" : 13]>\ng '


def ends(model: ir.Model) -> tuple[set[str], set[str]]:
    """The weights of the first and of the last layers."""
    found = weights(model)[0]
    layers = [use.node for weight in found.values() for use in weight.uses]
    first, last = first_layers(model, layers), last_layers(model, layers)
    named = [
        {name for name, weight in found.items() if any(use.node in nodes for use in weight.uses)}
        for nodes in (first, last)
    ]
    return named[0], named[1]


def model(signature: str, body: str, *names: str, **arrays: object) -> ir.Model:
    held = {name: drawn(8, 8, seed=place) for place, name in enumerate(names)}
    return ir.from_proto(build(f"{HEAD}{signature} {{ {body} }}", **held, **arrays))  # type: ignore[arg-type]


def test_a_chain_has_one_first_and_one_last_layer() -> None:
    assert ends(cnn()) == ({"w1"}, {"w4"})


def test_layers_that_read_the_input_side_by_side_are_all_first() -> None:
    body = "a = MatMul(x, u) b = MatMul(x, v) s = Add(a, b) y = MatMul(s, w)"
    assert ends(model("(float[2,8] x) => (float[2,8] y)", body, "u", "v", "w")) == ({"u", "v"}, {"w"})


def test_a_layer_that_sees_the_input_beside_another_layer_is_not_first() -> None:
    body = "a = MatMul(x, u) s = Add(a, x) b = MatMul(s, v) y = MatMul(b, w)"
    assert ends(model("(float[2,8] x) => (float[2,8] y)", body, "u", "v", "w"))[0] == {"u"}


def test_behind_an_embedding_no_layer_is_first() -> None:
    body = "e = Gather(table, i) a = MatMul(e, u) y = MatMul(a, v)"
    found = ends(model("(int64[2] i) => (float[2,8] y)", body, "u", "v", table=drawn(20, 8)))
    assert found == ({"table"}, {"v"})


def test_each_output_has_its_last_layers() -> None:
    body = "a = MatMul(x, u) y = Relu(a) b = MatMul(y, v) z = MatMul(b, w)"
    found = ends(model("(float[2,8] x) => (float[2,8] y, float[2,8] z)", body, "u", "v", "w"))
    assert found[1] == {"u", "w"}


def test_a_residual_sum_at_the_end_has_the_later_layer_as_its_last() -> None:
    body = "a = MatMul(x, u) b = MatMul(a, v) y = Add(a, b)"
    assert ends(model("(float[2,8] x) => (float[2,8] y)", body, "u", "v"))[1] == {"v"}


def test_a_body_that_holds_layers_counts_as_one() -> None:
    numbers = ",".join(["0.5"] * 64)
    text = f"""{HEAD}(float[2,8] x, bool c) => (float[2,8] y) {{
      a = If (c) <
        then_branch = g1 () => (float[2,8] t) <float[8,8] v = {{{numbers}}}> {{ t = MatMul(x, v) }},
        else_branch = g2 () => (float[2,8] e) {{ e = Identity(x) }}
      >
      y = MatMul(a, w)
    }}"""
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(drawn(8, 8), "w"))
    assert ends(ir.from_proto(proto)) == (set(), {"w"})
