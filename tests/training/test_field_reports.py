"""What people who tried the training found, and what they are told now."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner

from compressor import metrics
from compressor.cli import main
from compressor.data import open_samples
from compressor.errors import OptionError
from compressor.pipeline import Compressed, Context, Pipeline
from compressor.training.exposing import shared
from compressor.training.scoring import Scorer
from tests.conftest import drawn
from tests.training.trained import change, cnn, images, made, mlp, points, train

SAMPLES = Path(__file__).parents[2] / "sample_models"
EMBEDDING = (
    "g (float[N,4] x) => (float[N,3] y) { h = Gemm(x, w1, b1) y = LpNormalization<axis = -1, p = 2>(h) }"
)


def quantized(model: ir.Model, x: np.ndarray, options: str) -> Compressed:
    samples = open_samples({"x": x}, model, "train")
    recipe = f"quantize-int8,finetune{{epochs=1 batch=8 {options}}}"
    return Pipeline.parse(recipe).run(
        model, Context(train=samples, data=samples, calibration=samples, threads=1)
    )


@pytest.mark.parametrize("batch", [8, 32, 96])
def test_the_rate_is_found_although_batches_differ_more_than_a_rate_changes_them(batch: int) -> None:
    """Some labels are wrong, so that the loss of a trained model jumps from batch to batch."""
    data = points(192)
    data["labels"] = np.where(np.arange(192) % 7 == 0, 0, data["labels"])
    model = train(mlp(), data, "epochs=10 optimizer=adamw lr=0.01").model
    found = change(train(model, data, f"epochs=1 optimizer=adamw lr=auto batch={batch}"))
    assert 1e-5 < float(found.figures["rate"]) < 0.3


def test_says_that_no_epoch_was_better_and_how_near_the_best_came() -> None:
    data = points(48)
    model = train(mlp(), data, "epochs=20").model
    result = change(train(model, data, "lr=1e-9 keep=best"))
    assert result.touched == ()
    score = float(result.figures["score before"])
    assert result.declined["training"] == (
        f"no epoch scored better than the weights it began with ({score:.4f}; the best epoch {score:.4f}), and these "
        "are kept; keep='last' takes the trained ones"
    )
    assert change(train(model, data, "lr=1e-9 keep=last")).declined == {}


def test_globs_that_match_what_quantization_added_match_the_original_where_it_has_the_value() -> None:
    result = quantized(cnn(), images(32)["x"], "features=('r*',) lr=1e-4")
    assert any(str(name).startswith("r_") for name in (v.name for n in result.model.graph for v in n.outputs))
    assert float(result.changes[-1].figures["steps"]) == 4


def test_a_glob_that_matches_other_values_in_either_model_is_refused() -> None:
    assert shared({"r": 1, "r_codes": 2}, ("r",), ("r*",)) == {"r": 1}
    with pytest.raises(OptionError) as refused:
        shared({"r_codes": 2}, ("r",), ("r*",))
    assert str(refused.value) == (
        "Of what 'r*' matches, as 'r_codes', nothing is in the original too, with which it is compared. Give names "
        "that the earlier passes leave as they are."
    )


def test_agreement_has_one_name_in_the_training_and_in_the_report() -> None:
    model = made(EMBEDDING, w1=drawn(4, 3), b1=drawn(3))
    samples = open_samples({"x": drawn(40, 4)}, model)
    scorer = Scorer(samples, model, model, None)
    compared = metrics.compare("agreement", scorer.reference, scorer.reference, None)
    assert scorer.name == f"{compared.agrees_in} agreement" == "cosine agreement"


def test_figures_have_four_digits_and_large_ones_no_exponent(tmp_path: Path) -> None:
    words = [SAMPLES / "breast_cancer_mlp.onnx", "-o", tmp_path / "o.onnx", "-p"]
    data = ["--train", SAMPLES / "breast_cancer_train.npz", "--data", SAMPLES / "breast_cancer_test.npz"]
    recipe = "quantize-weights,finetune{epochs=1}"
    done = CliRunner().invoke(main, [str(w) for w in (*words, recipe, *data, "--min-speedup", "0")])
    assert done.exit_code == 0, done.output
    assert "score before 0.9532," in done.output
    assert "weight bytes before 80896," in done.output
    assert "e+0" not in done.output
