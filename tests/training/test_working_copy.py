"""The form that is trained computes what the model does, and its values come back."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from compressor.runtime import to_bytes
from compressor.training.working_copy import working_copy
from passes.finetune import Finetune
from tests.training.test_qat import quantized
from tests.training.trained import attention, cnn, folded, images, mlp, outputs, points, values

OPTIONS = [
    {},
    {"dropout": 0.5},
    {"batchnorm": "restore"},
    {"features": ("r",)},
    {"dropout": 0.3, "batchnorm": "restore", "features": ("*",), "attention": ("p",)},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("build", [cnn, folded])
def test_the_trained_form_gives_the_same_outputs_first(build: object, options: dict[str, object]) -> None:
    model = build()  # type: ignore[operator]
    copy = working_copy(model, Finetune(**options))
    made = outputs(copy.model, images()["x"])
    assert np.allclose(made[0], outputs(model, images()["x"])[0], atol=1e-5)
    assert copy.outputs == 1
    assert [copy.model.graph.outputs[place].name for place in copy.values.values()] == list(copy.values)


@pytest.mark.parametrize("options", OPTIONS)
def test_without_training_the_model_comes_back(options: dict[str, object]) -> None:
    model = folded()
    copy = working_copy(model, Finetune(**options))
    finished = copy.finished(copy.model)
    assert to_bytes(finished) == to_bytes(model)
    assert to_bytes(model) == to_bytes(folded())


def test_a_quantized_model_comes_back_too() -> None:
    model = quantized(mlp(), points())
    copy = working_copy(model, Finetune(dropout=0.2))
    assert "Dropout" in {node.op_type for node in copy.model.graph}
    assert to_bytes(copy.finished(copy.model)) == to_bytes(model)


def test_changed_values_come_back_under_their_names() -> None:
    model = attention()
    copy = working_copy(model, Finetune(features=("p",)))
    value = copy.model.graph.initializers["wk"]
    value.const_value = ir.tensor(value.const_value.numpy() + 1, name="wk")
    finished = copy.finished(copy.model)
    assert np.array_equal(values(finished)["wk"], values(model)["wk"] + 1)
    assert np.array_equal(values(finished)["wq"], values(model)["wq"])
    assert [v.name for v in finished.graph.outputs] == ["y"]
