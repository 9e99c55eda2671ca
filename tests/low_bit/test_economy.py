"""The graph around packed weights takes little room, computes the same, and keeps the user's names."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from compressor import Context, Pipeline
from compressor.graph import constant
from compressor.low_bit.codes import Method
from compressor.low_bit.economy import economize
from compressor.low_bit.storage import store
from compressor.packing import names_of
from compressor.runtime import to_bytes
from tests.conftest import build, drawn
from tests.low_bit.test_storage import HEADER, coded, net, outputs, quantized


def decoder_of_bias(model: ir.Model) -> ir.Node:
    found = [
        n for n in model.graph if n.op_type == "DequantizeLinear" and n.inputs[0].dtype == ir.DataType.INT32
    ]
    return found[0]


def test_the_scale_of_a_bias_is_the_product_of_the_others_to_the_bit() -> None:
    model = quantized(step=0.0371)
    before = outputs(model)
    economize(model, set())
    assert decoder_of_bias(model).inputs[1].producer().op_type == "Mul"
    assert np.array_equal(outputs(model)[0], before[0])


def test_the_scale_of_a_bias_that_is_no_such_product_stays() -> None:
    model = quantized()
    scale = model.graph.initializers["bias_scale"]
    other = np.nextafter(constant(scale), np.float32(1))
    scale.const_value = ir.tensor(other, name=scale.name)
    economize(model, set())
    assert np.array_equal(constant(decoder_of_bias(model).inputs[1]), other)


def test_what_the_user_named_keeps_its_name_and_the_rest_gets_a_short_one() -> None:
    model = net(Method("twn"))
    given = names_of(model) - {"a", "r", "w3_scale", "w1_decoded"}
    before = outputs(model)
    economize(model, given)
    assert given <= names_of(model) | {"w2_decoded", "w3_decoded", "w4_decoded"}
    assert not {"w3_scale", "w1_decoded"} & names_of(model)
    assert all(len(name) <= 2 for name in names_of(model) - given)
    assert np.array_equal(outputs(model)[0], before[0])


def test_weights_inputs_and_outputs_keep_their_names_without_an_original() -> None:
    model = net(Method("twn"))
    store(model, Context())
    assert model.graph.inputs[0].name == "x"
    assert model.graph.outputs[0].name == "y"
    assert {"w1", "w2", "w3", "w4"} <= {value.name for node in model.graph for value in node.outputs}


def test_equal_zero_points_are_one_constant() -> None:
    text = (
        HEADER
        + """(float[N, 4] x) => (float[N, 4] y) {
      q = QuantizeLinear(x, s, z0) d = DequantizeLinear(q, s, z1) p = QuantizeLinear(d, t, z2)
      y = DequantizeLinear(p, t, z2) }"""
    )
    scales = {"s": np.float32(0.1).reshape(()), "t": np.float32(0.2).reshape(())}
    zeros = {f"z{i}": np.uint8(value).reshape(()) for i, value in enumerate((7, 7, 9))}
    model = ir.from_proto(build(text, **scales, **zeros))
    economize(model, {"s"})
    points = [value for value in model.graph.initializers.values() if value.dtype == ir.DataType.UINT8]
    assert sorted(int(constant(value)) for value in points) == [7, 9]


def test_the_tensors_of_other_models_keep_their_names() -> None:
    model = net(Method("twn"))
    before, other = to_bytes(model), model.clone()
    economize(other, set())
    assert to_bytes(model) == before


def test_notes_of_the_exporter_go_and_others_stay(tiny_mlp: ir.Model) -> None:
    tiny_mlp.graph.metadata_props.update(
        {"pkg.torch.export.ExportedProgram.graph_signature": "long", "mine": "kept"}
    )
    economize(tiny_mlp, set())
    assert dict(tiny_mlp.graph.metadata_props) == {"mine": "kept"}


@pytest.mark.parametrize("activations", ["float", "int8"])
def test_a_ternary_network_takes_few_bytes_besides_its_codes(activations: str) -> None:
    """Codes of 1.6 bits, a float32 scale per channel, and at most 1.6 KB for the graph of a convolution."""
    model = (
        quantized()
        if activations == "int8"
        else coded(
            ir.from_proto(
                build(HEADER + "(float[N, 8] x) => (float[N, 8] y) { y = MatMul(x, w) }", w=drawn(8, 8))
            ),
            Method("twn"),
        )
    )
    codes = 8 * 8 * (9 if activations == "int8" else 1)
    store(model, Context())
    assert len(to_bytes(model)) < codes * 1.6 / 8 + 8 * 4 + 1600


def test_a_pipeline_keeps_the_names_of_the_original() -> None:
    made = Pipeline().run(net(Method("twn")), Context())
    assert {"a", "r", "t", "p", "f", "g", "h"} <= names_of(made.model)
