"""New weights: their variance, their structure, their place in the file's layout."""

from __future__ import annotations

import math
from typing import Any, ClassVar, final

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx import numpy_helper, parser

from compressor.errors import OptionError
from compressor.pipeline import Change, Context
from compressor.training.depths import layer_uses
from compressor.training.initialization import Layout, initialized, layout
from compressor.training.options import Training


@final
class Train(Training):
    name: ClassVar[str] = "train"

    def apply(self, model: ir.Model, context: Context) -> Change:
        return Change()


def model(body: str, signature: str = "(float[N,K] x) => (float[N,M] y)", **weights: Any) -> ir.Model:
    """A model from lines of ONNX text; weights by name, as arrays or as shapes of zeros."""
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> g {signature} {{ {body} }}')
    for name, given in weights.items():
        array = np.zeros(given, np.float32) if isinstance(given, tuple) else given
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    return ir.from_proto(proto)


def drawn(made: ir.Model, kind: str, seed: int = 0, name: str = "w") -> np.ndarray:
    return initialized(made, Train(initialize={name: kind}), seed)[name]


IMAGE = "(float[N,C,H,W] x) => (float[N,M,P,Q] y)"
SEQUENCE = "(float[S,N,C] x) => (float[S,D,N,H] y)"
LAYOUTS: dict[str, tuple[ir.Model, Layout]] = {
    "Conv": (model("y=Conv(x,w)", IMAGE, w=(8, 3, 5, 5)), Layout(1, 8, 3, 25)),
    "grouped Conv": (model("y=Conv<group=4>(x,w)", IMAGE, w=(8, 3, 5, 5)), Layout(4, 2, 3, 25)),
    "ConvTranspose": (model("y=ConvTranspose(x,w)", IMAGE, w=(8, 3, 5, 5)), Layout(1, 3, 8, 25, True)),
    "grouped ConvTranspose": (
        model("y=ConvTranspose<group=4>(x,w)", IMAGE, w=(8, 3, 5, 5)),
        Layout(4, 3, 2, 25, True),
    ),
    "Gemm": (model("y=Gemm(x,w)", w=(4, 6)), Layout(1, 6, 4, 1, True)),
    "Gemm transB": (model("y=Gemm<transB=1>(x,w)", w=(4, 6)), Layout(1, 4, 6)),
    "Gemm left": (model("y=Gemm(w,x)", w=(4, 6)), Layout(1, 4, 6)),
    "Gemm left transA": (model("y=Gemm<transA=1>(w,x)", w=(4, 6)), Layout(1, 6, 4, 1, True)),
    "MatMul": (model("y=MatMul(x,w)", w=(4, 6)), Layout(1, 6, 4, 1, True)),
    "MatMul left": (model("y=MatMul(w,x)", w=(4, 6)), Layout(1, 4, 6)),
    "MatMul of many": (model("y=MatMul(x,w)", w=(2, 3, 4, 6)), Layout(6, 6, 4, 1, True)),
    "MatMul behind Transpose": (model("t=Transpose(w) y=MatMul(x,t)", w=(4, 6)), Layout(1, 4, 6)),
    "LSTM W": (model("y=LSTM<hidden_size=6>(x,w,r)", SEQUENCE, w=(1, 24, 5), r=(1, 24, 6)), Layout(4, 6, 5)),
    "GRU W, both directions": (
        model('y=GRU<hidden_size=6,direction="bidirectional">(x,w,r)', SEQUENCE, w=(2, 18, 5), r=(2, 18, 6)),
        Layout(6, 6, 5),
    ),
    "RNN W": (model("y=RNN<hidden_size=6>(x,w,r)", SEQUENCE, w=(1, 6, 5), r=(1, 6, 6)), Layout(1, 6, 5)),
    "Gather": (model("y=Gather(w,i)", "(int64[N] i) => (float[N,M] y)", w=(9, 6)), Layout(1, 6, 9, 1, True)),
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_knows_what_is_an_output_and_what_an_input(case: str) -> None:
    made, expected = LAYOUTS[case]
    use = next(use for use in layer_uses(made) if use.weight.name == "w")
    assert layout(use) == expected


@pytest.mark.parametrize("case", LAYOUTS)
@pytest.mark.parametrize("kind", ["he", "xavier", "orthogonal", "uniform", "normal"])
def test_keeps_shape_and_type_and_draws_every_element(case: str, kind: str) -> None:
    made, _ = LAYOUTS[case]
    new = drawn(made, kind)
    assert new.shape == tuple(made.graph.initializers["w"].shape.numpy())  # type: ignore[union-attr]
    assert new.dtype == np.float32
    assert np.isfinite(new).all()
    assert len(np.unique(new)) > 0.9 * new.size


WIDE = model("h=MatMul(x,w) y=Conv(h,c)", IMAGE, w=(300, 200), c=(64, 32, 3, 3))
STD = {
    "he": (math.sqrt(2 / 300), math.sqrt(2 / 288)),
    "xavier": (math.sqrt(2 / 500), math.sqrt(2 / (288 + 576))),
    "uniform": (1 / math.sqrt(3 * 300), 1 / math.sqrt(3 * 288)),
    "normal": (0.02, 0.02),
}


@pytest.mark.parametrize("kind", STD)
def test_the_deviation_is_that_of_the_formula(kind: str) -> None:
    for name, expected in zip("wc", STD[kind], strict=True):
        new = drawn(WIDE, kind, name=name)
        # The relative error of a deviation over n normal draws is 1 / sqrt(2 n); five of them are safe.
        assert new.std() == pytest.approx(expected, rel=5 / math.sqrt(2 * new.size))
        assert abs(new.mean()) < 5 * expected / math.sqrt(new.size)


def test_uniform_kinds_stay_within_their_bounds() -> None:
    for kind, bound in (("xavier", math.sqrt(6 / 500)), ("uniform", 1 / math.sqrt(300))):
        new = np.abs(drawn(WIDE, kind))
        assert 0.99 * bound < new.max() <= bound * (1 + 1e-6)


def test_he_and_xavier_spread_as_torchs_own_do() -> None:
    theirs = torch.empty(64, 32, 3, 3)
    for kind, draw in (("he", torch.nn.init.kaiming_normal_), ("xavier", torch.nn.init.xavier_uniform_)):
        draw(theirs, generator=torch.Generator().manual_seed(0))
        assert drawn(WIDE, kind, name="c").std() == pytest.approx(theirs.std().item(), rel=0.05)


def rows(made: ir.Model, new: np.ndarray) -> np.ndarray:
    """[matrices, outputs, inputs * taps] of a weight as the file stores it."""
    form = layout(next(use for use in layer_uses(made) if use.weight.name == "w"))
    first, second = (form.inputs, form.outputs) if form.inputs_first else (form.outputs, form.inputs)
    split = new.reshape(form.matrices, first, second, form.taps)
    split = split.swapaxes(1, 2) if form.inputs_first else split
    return split.reshape(form.matrices, form.outputs, -1).astype(np.float64)


@pytest.mark.parametrize("case", LAYOUTS)
def test_orthogonal_matrices_are_so_each_for_itself(case: str) -> None:
    made, _ = LAYOUTS[case]
    for matrix in rows(made, drawn(made, "orthogonal")):
        small = matrix @ matrix.T if len(matrix) <= matrix.shape[1] else matrix.T @ matrix
        np.testing.assert_allclose(small, np.eye(len(small)), atol=1e-6)  # float32 rounds at 6e-8


def test_every_gate_of_a_recurrent_layer_keeps_the_norm_of_the_state() -> None:
    made = model("y=LSTM<hidden_size=6>(x,w,r)", SEQUENCE, w=(1, 24, 5), r=(1, 24, 6))
    state = np.arange(1.0, 7.0)
    for gate in drawn(made, "orthogonal", name="r")[0].reshape(4, 6, 6):
        assert np.linalg.norm(gate @ state) == pytest.approx(np.linalg.norm(state), rel=1e-5)


def test_he_keeps_the_second_moment_through_relu_layers() -> None:
    made = model("y=MatMul(x,w)", w=(256, 256))
    x = np.random.default_rng(1).standard_normal((512, 256)).astype(np.float32)
    for seed in range(5):
        x = np.maximum(x @ drawn(made, "he", seed), 0)
    assert 0.7 < np.mean(x**2) < 1.4  # 1 at first: Var z = 2 E[x^2] and E[relu(z)^2] = Var z / 2


def test_the_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    assert np.array_equal(drawn(WIDE, "he", 3), drawn(WIDE, "he", 3))
    assert not np.array_equal(drawn(WIDE, "he", 3), drawn(WIDE, "he", 4))


def test_what_is_drawn_for_a_name_does_not_depend_on_the_others() -> None:
    both = initialized(WIDE, Train(initialize={"*": "he"}), 3)
    assert set(both) == {"w", "c"}
    assert np.array_equal(both["w"], drawn(WIDE, "he", 3))


def test_two_weights_of_one_shape_differ() -> None:
    made = model("h=MatMul(x,a) y=MatMul(h,b)", a=(4, 4), b=(4, 4))
    new = initialized(made, Train(initialize={"*": "normal"}), 0)
    assert not np.array_equal(new["a"], new["b"])


def test_the_last_glob_that_matches_decides() -> None:
    made = initialized(WIDE, Train(initialize={"*": "orthogonal", "w": "normal"}), 0)
    assert np.array_equal(made["w"], drawn(WIDE, "normal"))
    assert np.array_equal(made["c"], drawn(WIDE, "orthogonal", name="c"))


def test_the_model_stays_as_it_was_and_biases_are_not_drawn(tiny_mlp: ir.Model) -> None:
    before = {name: value.const_value.numpy().copy() for name, value in tiny_mlp.graph.initializers.items()}  # type: ignore[union-attr]
    assert set(initialized(tiny_mlp, Train(initialize={"*": "he"}), 0)) == {"w1", "w2"}
    assert all(
        np.array_equal(before[n], v.const_value.numpy()) for n, v in tiny_mlp.graph.initializers.items()
    )  # type: ignore[union-attr]


def test_half_precision_stays_half_precision() -> None:
    made = model("y=MatMul(x,w)", "(float16[N,K] x) => (float16[N,M] y)", w=np.zeros((4, 6), np.float16))
    assert drawn(made, "xavier").dtype == np.float16


def test_a_glob_without_a_match_is_refused_with_what_there_is(tiny_mlp: ir.Model) -> None:
    with pytest.raises(OptionError, match=r"train: initialize='w3' matches no initializer. Known: w1, w2"):
        initialized(tiny_mlp, Train(initialize={"w3": "he"}), 0)


def test_a_bias_alone_is_refused(tiny_mlp: ir.Model) -> None:
    with pytest.raises(
        OptionError, match="initialize='b1' matches b1, of which none is a floating-point weight"
    ):
        initialized(tiny_mlp, Train(initialize={"b1": "he"}), 0)


def test_integer_weights_and_unknown_layouts_are_refused() -> None:
    coded = model("d=DequantizeLinear(w,s) y=MatMul(x,d)", w=np.zeros((4, 6), np.int8), s=np.float32(1))
    folded = model("r=Reshape(w,t) y=MatMul(x,r)", w=(24,), t=np.int64([4, 6]))
    for made in (coded, folded):
        with pytest.raises(
            OptionError, match="matches w, of which none is a floating-point weight of a layer"
        ):
            drawn(made, "he")
