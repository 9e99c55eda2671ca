"""LSTM, GRU and RNN: values of onnxruntime, the fused form against the loop, gradients, bad states."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from compressor.errors import ModelError
from compressor.torch_graph.operators.recurrent import KERNELS, gru, lstm, rnn
from compressor.torch_graph.operators.recurrent_cells import lstm_step
from compressor.torch_graph.operators.recurrent_layers import Layer, by_direction, looped
from tests.torch_graph.one_node import both

DRAW = np.random.default_rng(0)
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
T, B, H, WIDTH = 5, 3, 6, 4


def floats(*shape: int) -> np.ndarray:
    return DRAW.standard_normal(shape).astype(np.float32)


def layer(
    operator: str, directions: int = 1, lengths: list[int] | None = None, peepholes: bool = False
) -> list[Any]:
    """X, W, R, B, the lengths, the initial states and the peepholes."""
    rows = GATES[operator] * H
    weights = [floats(directions, rows, WIDTH), floats(directions, rows, H), floats(directions, 2 * rows)]
    states = [floats(directions, B, H) for _ in range(2 if operator == "LSTM" else 1)]
    after = [floats(directions, 3 * H)] if peepholes else []
    return [
        floats(T, B, WIDTH),
        *weights,
        None if lengths is None else np.array(lengths, np.int32),
        *states,
        *after,
    ]


def agree(operator: str, inputs: list[Any], **given: Any) -> None:
    outputs = 3 if operator == "LSTM" else 2
    ours, theirs = both(KERNELS, operator, inputs, outputs=outputs, hidden_size=H, **given)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.shape == other.shape
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-5)  # five float32 steps


VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *[(operator, {}) for operator in GATES],
    *[(operator, {"clip": 0.7}) for operator in GATES],
    ("LSTM", {"input_forget": 1}),
    ("GRU", {"linear_before_reset": 1}),
    ("GRU", {"linear_before_reset": 1, "clip": 0.7}),
]


@pytest.mark.parametrize(("operator", "given"), VARIANTS)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("lengths", [None, [5, 2, 4], [5, 0, 4]], ids=str)
def test_every_direction_and_length_equals_onnxruntime(
    operator: str, given: dict[str, Any], direction: str, lengths: list[int] | None
) -> None:
    inputs = layer(operator, 2 if direction == "bidirectional" else 1, lengths)
    agree(operator, inputs, direction=direction, **given)


@pytest.mark.parametrize("given", [{}, {"clip": 0.5}, {"direction": "reverse"}])
def test_peepholes_equal_onnxruntime(given: dict[str, Any]) -> None:
    agree("LSTM", layer("LSTM", peepholes=True), **given)


@pytest.mark.parametrize("operator", GATES)
def test_a_layer_of_the_oldest_opset_without_options_equals_onnxruntime(operator: str) -> None:
    agree(operator, layer(operator)[:3], at_opset=7)


@pytest.mark.parametrize("length", [T, None])
@pytest.mark.parametrize("operator", GATES)
def test_the_batch_may_come_first(operator: str, length: int | None) -> None:
    inputs = [None if x is None else torch.from_numpy(x) for x in layer(operator)]
    expected = KERNELS[operator](*inputs)
    x, *weights, _ = inputs[:5]
    states = [state.transpose(0, 1) for state in inputs[5:]]
    lengths = None if length is None else [length] * B
    found = KERNELS[operator](x.transpose(0, 1), *weights, lengths, *states, layout=1)
    torch.testing.assert_close(found[0], expected[0].permute(2, 0, 1, 3))
    for ours, theirs in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(ours, theirs.transpose(0, 1))


@pytest.mark.parametrize(
    ("operator", "given"),
    [
        ("RNN", {"activations": ["Relu"]}),
        ("RNN", {"activations": ["Sigmoid"]}),
        ("RNN", {"activations": ["LeakyRelu"]}),
        ("RNN", {"activations": ["Elu"]}),
        ("RNN", {"activations": ["HardSigmoid"]}),
        ("RNN", {"activations": ["Softsign"]}),
        ("RNN", {"activations": ["Softplus"]}),
        ("RNN", {"activations": ["Affine"], "activation_alpha": [0.3], "activation_beta": [0.4]}),
        ("RNN", {"activations": ["ScaledTanh"], "activation_alpha": [0.3], "activation_beta": [0.4]}),
        ("RNN", {"activations": ["ThresholdedRelu"], "activation_alpha": [0.3], "activation_beta": [0.0]}),
        (
            "LSTM",
            {
                "activations": ["HardSigmoid", "TANH", "LeakyRelu"],
                "activation_alpha": [0.3, 0.2],
                "activation_beta": [0.4],
            },
        ),
        (
            "GRU",
            {
                "activations": ["Sigmoid", "Tanh", "HardSigmoid", "ScaledTanh"],
                "activation_alpha": [0.3, 0.2],
                "activation_beta": [0.4, 0.9],
                "direction": "bidirectional",
            },
        ),
    ],
)
def test_other_activations_equal_onnxruntime(operator: str, given: dict[str, Any]) -> None:
    inputs = layer(operator, 2 if given.get("direction") == "bidirectional" else 1)
    inputs = [None if x is None else x * np.float32(0.5) for x in inputs]  # some grow with every step
    agree(operator, inputs, **given)


def double(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.double).requires_grad_()


@pytest.mark.parametrize(
    ("kernel", "gates", "given"),
    [
        (lstm, 4, {}),
        (lstm, 4, {"sequence_lens": [3, 1], "direction": "reverse"}),
        (lstm, 4, {"clip": 0.8, "input_forget": 1}),
        (gru, 3, {}),
        (gru, 3, {"linear_before_reset": 1, "sequence_lens": [3, 0]}),
        (rnn, 1, {"activations": ["Softsign"]}),
    ],
)
def test_gradients_are_those_of_the_values(kernel: Any, gates: int, given: dict[str, Any]) -> None:
    inputs = double(3, 2, 2), double(1, gates * 2, 2), double(1, gates * 2, 2), double(1, gates * 4)
    assert torch.autograd.gradcheck(lambda *x: kernel(*x, **given), inputs)


@pytest.mark.parametrize("directions", [1, 2])
def test_the_fused_kernel_gives_the_gradients_of_the_native_module(directions: int) -> None:
    native = torch.nn.LSTM(WIDTH, H, bidirectional=directions == 2, dtype=torch.double)
    w_ih, w_hh, b_ih, b_hh = (
        [parameter for name, parameter in native.named_parameters() if name.startswith(kind)]
        for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )

    def onnx_order(rows: torch.Tensor) -> torch.Tensor:
        i, f, c, o = rows.detach().chunk(4)
        return torch.cat((i, o, f, c))

    w, r = (torch.stack([onnx_order(p) for p in kind]).requires_grad_() for kind in (w_ih, w_hh))
    pairs = zip(b_ih, b_hh, strict=True)
    b = torch.stack([torch.cat([onnx_order(p) for p in pair]) for pair in pairs]).requires_grad_()
    x = double(T, B, WIDTH)
    y = lstm(x, w, r, b, direction="bidirectional" if directions == 2 else "forward")[0]
    expected, _ = native(x)
    torch.testing.assert_close(y.transpose(1, 2).flatten(2), expected)
    y.square().sum().backward()
    expected.square().sum().backward()
    for ours, kind in ((w, w_ih), (r, w_hh)):
        assert ours.grad is not None
        torch.testing.assert_close(ours.grad, torch.stack([onnx_order(p.grad) for p in kind]))


def test_the_loop_equals_the_fused_kernel() -> None:
    x, w, r, b = double(T, B, WIDTH), double(2, 4 * H, WIDTH), double(2, 4 * H, H), double(2, 8 * H)
    whole = Layer("LSTM", x, by_direction(w, r, b), (None, None), [5, 1, 3], "bidirectional", 0)
    fused = lstm(x, w, r, b, [5, 1, 3], direction="bidirectional")
    steps = looped(whole, lstm_step, [torch.sigmoid, torch.tanh, torch.tanh] * 2)
    torch.testing.assert_close(steps, fused)


# At the break torch itself looks at the .grad of what is not a leaf.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("lengths", [None, [5, 1, 3]])
def test_a_compiled_graph_may_hold_a_fused_layer(lengths: list[int] | None) -> None:
    x, w, r = (torch.from_numpy(array).requires_grad_() for array in layer("LSTM")[:3])
    compiled = torch.compile(lambda *inputs: 2 * lstm(*inputs, None, lengths)[0], backend="aot_eager")
    torch.testing.assert_close(compiled(x, w, r), 2 * lstm(x, w, r, None, lengths)[0])


def test_what_torch_would_crash_on_is_refused() -> None:
    x, w, r = (torch.from_numpy(array) for array in layer("LSTM")[:3])
    with pytest.raises(
        ModelError, match=r"state has the shape \(1, 2, 6\) where this input needs \(1, 3, 6\)"
    ):
        lstm(x, w, r, None, None, torch.zeros(1, 2, H))


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"direction": "sideways"}, "LSTM: no direction 'sideways'. Known: forward, reverse, bidirectional."),
        ({"direction": "bidirectional"}, r"bidirectional needs weights of 2 direction\(s\), got 1"),
        (
            {"sequence_lens": [5, 6, 1]},
            r"sequence_lens must lie in 0..5, the steps of the input, got \[5, 6, 1\]",
        ),
        ({"activations": ["Gelu", "Tanh", "Tanh"]}, "No activation named 'gelu'"),
    ],
)
def test_bad_layers_are_refused(given: dict[str, Any], text: str) -> None:
    x, w, r = (torch.from_numpy(array) for array in layer("LSTM")[:3])
    with pytest.raises(ModelError, match=text):
        lstm(x, w, r, **given)
