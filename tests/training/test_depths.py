"""Which layer an initializer belongs to, counted from the output."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx import helper, numpy_helper, parser

from compressor.training.depths import layer_depths, layer_uses, layer_weights


def model(
    body: str, signature: str = "(float[N,4] x) => (float[N,4] y)", **shapes: tuple[int, ...]
) -> ir.Model:
    """A model from lines of ONNX text; the weights by name and shape, of ones."""
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> g {signature} {{ {body} }}')
    for name, shape in shapes.items():
        proto.graph.initializer.append(numpy_helper.from_array(np.ones(shape, np.float32), name))
    return ir.from_proto(proto)


SQUARE = (4, 4)


def test_counts_layers_from_the_output(tiny_mlp: ir.Model) -> None:
    assert layer_depths(tiny_mlp) == {"w1": 1, "b1": 1, "w2": 0, "b2": 0}


def test_a_convolution_and_the_head_are_layers(tiny_cnn: ir.Model) -> None:
    assert layer_depths(tiny_cnn) == {"wc": 1, "bc": 1, "wg": 0, "bg": 0}
    assert layer_weights(tiny_cnn) == {"wc", "wg"}


def test_a_bias_and_a_normalization_have_the_depth_of_the_layer_before_them() -> None:
    found = model(
        "a=MatMul(x,w) b=Add(a,bias) n=LayerNormalization(b,scale,shift) y=MatMul(n,v)",
        w=SQUARE,
        bias=(4,),
        scale=(4,),
        shift=(4,),
        v=SQUARE,
    )
    assert layer_depths(found) == {"w": 1, "bias": 1, "scale": 1, "shift": 1, "v": 0}


def test_a_way_around_a_block_does_not_make_what_is_before_it_shallow() -> None:
    found = model(
        "s=MatMul(x,stem) a=MatMul(s,one) b=MatMul(a,two) r=Add(s,b) y=MatMul(r,head)",
        stem=SQUARE,
        one=SQUARE,
        two=SQUARE,
        head=SQUARE,
    )
    assert layer_depths(found) == {"stem": 3, "one": 2, "two": 1, "head": 0}


def test_layers_side_by_side_are_equally_deep() -> None:
    found = model(
        "q=MatMul(x,wq) k=MatMul(x,wk) v=MatMul(x,wv) t=Transpose(k) s=MatMul(q,t) m=MatMul(s,v) y=MatMul(m,wo)",
        wq=SQUARE,
        wk=SQUARE,
        wv=SQUARE,
        wo=SQUARE,
    )
    assert layer_depths(found) == {"wq": 1, "wk": 1, "wv": 1, "wo": 0}


def test_of_several_outputs_the_layers_at_each_are_nearest() -> None:
    found = model(
        "h=MatMul(x,w) y=MatMul(h,v) z=Identity(h)",
        "(float[N,4] x) => (float[N,4] y, float[N,4] z)",
        w=SQUARE,
        v=SQUARE,
    )
    assert layer_depths(found) == {"w": 1, "v": 0}


def test_a_weight_used_twice_has_the_depth_of_the_farther_use() -> None:
    found = model("h=MatMul(x,w) r=Relu(h) t=Transpose(w) y=MatMul(r,t)", w=SQUARE)
    assert layer_depths(found) == {"w": 1}


def test_a_weight_behind_views_and_quantizers_belongs_to_the_layer_that_uses_it() -> None:
    found = model(
        "t=Transpose(w) q=QuantizeLinear(t,s) d=DequantizeLinear(q,s) h=MatMul(x,d) y=MatMul(h,v)",
        w=SQUARE,
        s=(),
        v=SQUARE,
    )
    assert layer_depths(found) == {"w": 1, "s": 1, "v": 0}
    assert [(use.weight.name, use.node.op_type, use.slot) for use in layer_uses(found)] == [
        ("w", "MatMul", 1),
        ("v", "MatMul", 1),
    ]


def test_a_weight_in_a_constant_node_has_the_name_of_its_output() -> None:
    proto = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N,4] x) => (float[N,4] y) { h=MatMul(x,k) y=MatMul(h,v) }'
    )
    weight = numpy_helper.from_array(np.ones(SQUARE, np.float32))
    proto.graph.node.insert(0, helper.make_node("Constant", [], ["k"], value=weight))
    proto.graph.initializer.append(numpy_helper.from_array(np.ones(SQUARE, np.float32), "v"))
    found = ir.from_proto(proto)
    assert layer_depths(found) == {"k": 1, "v": 0}
    assert layer_weights(found) == {"k", "v"}


def test_layers_in_a_branch_count_for_what_is_before_it() -> None:
    then = "then_branch=t () => (float[N,4] u) {u=MatMul(h,a)}"
    other = "else_branch=e () => (float[N,4] v) {w=MatMul(h,b) v=MatMul(w,c)}"
    found = model(
        f"h=MatMul(x,stem) s=ReduceSum<keepdims=0>(h) p=Cast<to=9>(s) z=If(p)<{then},{other}> y=MatMul(z,head)",
        stem=SQUARE,
        a=SQUARE,
        b=SQUARE,
        c=SQUARE,
        head=SQUARE,
    )
    assert layer_depths(found) == {"stem": 3, "a": 1, "b": 2, "c": 1, "head": 0}


def test_recurrent_and_embedding_weights_are_layers_and_their_biases_are_not() -> None:
    found = model(
        "e=Gather(table,i) o,h=GRU<hidden_size=2>(e,w,r,b) y=Identity(o)",
        "(int64[S,N] i) => (float[S,D,N,H] y)",
        table=(9, 4),
        w=(1, 6, 4),
        r=(1, 6, 2),
        b=(1, 12),
    )
    assert layer_depths(found) == {"table": 1, "w": 0, "r": 0, "b": 0}
    assert layer_weights(found) == {"table", "w", "r"}


def test_scales_and_shifts_of_any_shape_are_no_layers() -> None:
    found = model("a=Mul(x,s) b=Add(a,p) y=Relu(b)", s=(4, 1), p=(2, 4))
    assert layer_weights(found) == frozenset()
    assert layer_depths(found) == {"s": 0, "p": 0}
