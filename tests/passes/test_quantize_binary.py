from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from compressor.errors import DataError, OptionError
from compressor.fusion import kernels
from compressor.low_bit.coded_weights import coded_weights
from compressor.low_bit.codes import Method
from compressor.pipeline import Change, Context, Pipeline
from passes.quantize_binary import QuantizeBinary
from tests.low_bit.networks import cnn, mlp, samples


def binary(model: ir.Model, calibrated: bool = False, **options: Any) -> tuple[ir.Model, Change]:
    """The model in the form that passes see, and what the pass says; weights of any size are coded."""
    work = model.clone()
    context = Context(calibration=samples(model) if calibrated else None, threads=1)
    this = QuantizeBinary(**{"activations": "float", "min_elements": 1, **options}).resolved(context)
    return work, this.apply(work, context)


def methods(model: ir.Model) -> dict[str, Method]:
    return {coded.name: coded.method for coded in coded_weights(model)}


def test_weights_are_minus_or_plus_the_mean_of_their_channel() -> None:
    model = cnn()
    work, change = binary(model)
    found = next(coded for coded in coded_weights(work) if coded.name == "w2")
    array = model.graph.initializers["w2"].const_value.numpy()  # type: ignore[union-attr]
    assert np.array_equal(found.codes.const_value.numpy(), np.where(array < 0, -1, 1))  # type: ignore[union-attr]
    np.testing.assert_allclose(found.rows().scale, np.abs(array).mean((1, 2, 3)), rtol=1e-6)
    assert methods(work) == dict.fromkeys(("w1", "wd", "w4"), Method("uniform", 8)) | dict.fromkeys(
        ("w2", "w3"), Method("xnor")
    )
    assert "w1 8 bits: the first layer" in str(change.figures["more bits"])


def test_more_bases_come_nearer_to_the_weights() -> None:
    errors = [
        float(binary(mlp(), method="residual", bases=bases)[1].figures["relative error of the weights"])
        for bases in (1, 2, 3)
    ]
    assert errors == sorted(errors, reverse=True)
    work, _ = binary(mlp(), method="residual", bases=3, keep_first_last=False)
    for coded in coded_weights(work):
        assert coded.method == Method("residual", 3)
        assert max(len(np.unique(row)) for row in coded.rows().codes) <= 8


@pytest.mark.parametrize("make", [cnn, mlp])
@pytest.mark.parametrize("options", [{}, {"method": "residual", "bases": 2}, {"reconstruct": "gptq"}])
def test_with_int8_activations_every_layer_is_an_integer_kernel(make: Any, options: dict[str, Any]) -> None:
    model = make()
    context = Context(calibration=samples(model), threads=1)
    done = Pipeline(QuantizeBinary(min_elements=1, **options)).run(model, context)
    assert kernels(done.model).floating == ()
    assert done.changes[1].figures["outputs matched"] == len(coded_weights(binary(model)[0]))


def test_samples_are_asked_for_before_anything_is_done() -> None:
    with pytest.raises(DataError, match="quantize-binary: activations='int8' needs calibration samples"):
        Pipeline(QuantizeBinary()).run(cnn(), Context())


def test_options_are_refused_by_name_and_survive_the_text_form() -> None:
    with pytest.raises(OptionError, match="bases=2 is for method='residual', got method='xnor'"):
        QuantizeBinary(bases=2)
    with pytest.raises(
        OptionError, match="block=16 gives an output channel several scales, which no int8 kernel"
    ):
        QuantizeBinary(block=16)
    held = Pipeline(QuantizeBinary(method="residual", bases=3, activations="float", include=("a*",)))
    assert Pipeline.parse(str(held)) == held
