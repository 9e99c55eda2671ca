"""Which form a coded weight gets, and that a measurement decides where there is a choice."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from compressor import Context, open_samples
from compressor.errors import ModelError
from compressor.latency import Latency
from compressor.low_bit import forms
from compressor.low_bit.coded_weights import coded_weights
from compressor.low_bit.codes import Method
from compressor.low_bit.forms import choose, reads_integers
from compressor.low_bit.kernel_form import matrix
from compressor.low_bit.storage import store
from compressor.prepare import infer_shapes
from compressor.timing import Protocol, Ratio
from tests.conftest import build, drawn
from tests.low_bit.test_storage import HEADER, coded, net, outputs, quantized


def product(rows: int | str, inputs: int = 256, count: int = 1, method: str = "uniform 4") -> ir.Model:
    """`count` matrix products of the same shape behind one another, with coded weights."""
    text = f"(float[{rows}, {inputs}] x) => (float[{rows}, {inputs}] y) {{ h0 = Identity(x) "
    text += " ".join(f"h{i + 1} = MatMul(h{i}, w{i})" for i in range(count)) + f" y = Identity(h{count}) }}"
    model = ir.from_proto(
        build(HEADER + text, **{f"w{i}": drawn(inputs, inputs, seed=i) for i in range(count)})
    )
    infer_shapes(model)
    return coded(model, Method.parse(method))


def answering(monkeypatch: pytest.MonkeyPatch, low: float) -> list[tuple[int, ...]]:
    """Let every measurement say that MatMulNBits is surely `low` times as fast; the shapes of what was measured."""
    seen: list[tuple[int, ...]] = []

    def measured(models: list[ir.Model], feeds: dict[str, np.ndarray], *rest: object) -> Latency:
        seen.append((*feeds["x"].shape, int(models[1].graph.outputs[0].shape[1])))
        return Latency("cpu", 1, 1, 9, (), (Ratio(low * 1.1, low, low * 1.2, 0.01, "cpu"),))

    monkeypatch.setattr("compressor.latency.measure", measured)
    return seen


def test_what_meets_quantized_values_stays_in_front_of_its_integer_kernel() -> None:
    model = quantized()
    assert choose(model, coded_weights(model), Context()).forms == {"w": "integer"}
    assert not any(reads_integers(weight) for weight in coded_weights(net(Method("twn"))))


@pytest.mark.parametrize(("low", "form"), [(1.5, "kernel"), (1.05, "float"), (0.5, "float")])
def test_a_matrix_gets_the_kernel_only_where_it_was_measured_to_be_faster(
    low: float, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(monkeypatch, low)
    model = product(1)
    choice = choose(model, coded_weights(model), Context())
    assert choice.forms == {"w0": form}
    assert choice.speeds == {"1 x 256 x 256, 4 bits": low * 1.1}
    change = store(model, Context())
    assert [node.op_type for node in model.graph].count("MatMulNBits") == (form == "kernel")
    assert change.figures["MatMulNBits against floats, 1 x 256 x 256, 4 bits"] == round(low * 1.1, 2)


def test_layers_of_one_shape_are_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = answering(monkeypatch, 2.0)
    model = product(3, count=4)
    assert set(choose(model, coded_weights(model), Context()).forms.values()) == {"kernel"}
    assert seen == [(3, 256, 256)]


def test_rows_that_the_shapes_do_not_tell_are_seen_in_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = answering(monkeypatch, 2.0)
    model = product("N")
    assert choose(model, coded_weights(model), Context()).forms == {"w0": "float"}
    samples = open_samples({"x": drawn(8, 256)}, model, "calibration")
    assert choose(model, coded_weights(model), Context(calibration=samples)).forms == {"w0": "kernel"}
    assert seen == [(1, 256, 256)]


def test_small_matrices_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = answering(monkeypatch, 2.0)
    model = product(1, inputs=32)
    assert choose(model, coded_weights(model), Context()).forms == {"w0": "float"}
    assert not seen


def test_a_runtime_without_the_kernel_gets_floats_and_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*given: object) -> Latency:
        raise ModelError("Latency: model 2: no such operator")

    monkeypatch.setattr("compressor.latency.measure", refuses)
    model = product(1)
    change = store(model, Context())
    assert change.declined == {
        "w0": "stored to run as floats: MatMulNBits does not run on 'cpu': Latency: model 2: no such operator"
    }
    assert "MatMulNBits" not in {node.op_type for node in model.graph}


def test_both_forms_are_really_measured_and_multiply_by_the_same_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(forms, "_QUICK", Protocol(visits=5, visit_ms=0.1, sessions=1, time_limit_s=0.2))
    model = product(1, method="uniform 8")
    assert choose(model, coded_weights(model), Context()).speeds.keys() == {"1 x 256 x 256, 8 bits"}
    stored = matrix(coded_weights(model)[0])
    assert not isinstance(stored, str)
    exact, rounded = (outputs(forms._layer(stored, 1, form))[0] for form in ("float", "kernel"))
    step = np.abs(drawn(1, 256)).max() / 127 * np.abs(coded_weights(model)[0].decoded()).max()
    assert (
        0 < np.abs(exact - rounded).max() < step / 2 * np.sqrt(256)
    )  # 256 roundings, each of half a step at most
