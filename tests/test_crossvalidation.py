"""Cross-validation: who sees which samples, what the scores are of, and what is refused before anything is trained."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal, final

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner, Result

import compressor
from compressor import metrics, statistics
from compressor.cli import main
from compressor.crossvalidation import CrossValidation, crossval
from compressor.data import Samples
from compressor.errors import CompressorError, DataError, OptionError
from compressor.left_out import Answers, Scores, joined, mean
from compressor.pipeline import Change, Context, Pass, Pipeline, Run
from compressor.proof import Target
from compressor.statistics import Interval
from tests.conftest import build, drawn

Arrays = dict[str, np.ndarray]
SAMPLES = Path(__file__).parents[1] / "sample_models"
SHIFT = '<ir_version: 8, opset_import: ["" : 17]>\ng (float[N,1] x) => (float[N,1] y) { y = Add(x, b) }'
MLP = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N,4] x) => (float[N,3] y) { h = Gemm(x, w1, b1) r = Relu(h) y = Gemm(r, w2, b2) }"""


@final
class Shift(Pass):
    """Learns b of y = x + b by least squares: the mean of labels - x. Its contexts are kept for the tests."""

    name: ClassVar[str] = "shift"
    needs: ClassVar[tuple[Literal["calibration", "data", "train"], ...]] = ("calibration", "train")
    seen: ClassVar[list[Context]] = []

    def apply(self, model: ir.Model, context: Context) -> Change:
        self.seen.append(context)
        context.progress("shift: at work", 1, 1)
        x, labels = everything(context.train)
        found = np.zeros(1, np.float32) if labels is None else np.mean(labels - x, axis=0, dtype=np.float32)
        model.graph.initializers["b"].const_value = ir.tensor(found, name="b")
        return Change(touched=("b",))


@final
class Doubled(Pass):
    """Gives two columns instead of one."""

    name: ClassVar[str] = "doubled"
    needs: ClassVar[tuple[Literal["calibration", "data", "train"], ...]] = ("train",)
    reshapes: ClassVar[bool] = True

    def apply(self, model: ir.Model, context: Context) -> Change:
        model.graph.initializers["b"].const_value = ir.tensor(np.array([0, 1], np.float32), name="b")
        model.graph.outputs[0].shape = ir.Shape(["N", 2])
        return Change(touched=("b",))


@pytest.fixture(autouse=True)
def _forgotten() -> None:
    Shift.seen.clear()


def everything(samples: Samples | None) -> tuple[np.ndarray, np.ndarray | None]:
    """All values of x, and the labels."""
    assert samples is not None
    return np.concatenate([batch.feeds["x"] for batch in samples.batches()]), samples.labels


def line() -> ir.Model:
    """y = x + b."""
    return ir.from_proto(build(SHIFT, b=np.zeros(1, np.float32)))


def numbers(count: int = 12) -> Arrays:
    """Labels that are x + 1 with noise, so that the least squares differ from fold to fold."""
    x = np.arange(count, dtype=np.float32)[:, None]
    return {"x": x, "labels": x + 1 + 0.1 * drawn(count, 1)}


def without_labels() -> Arrays:
    return {"x": numbers()["x"]}


def mlp() -> ir.Model:
    weights = {"w1": drawn(4, 8) * 0.5, "b1": drawn(8), "w2": drawn(8, 3) * 0.5, "b2": drawn(3)}
    return ir.from_proto(build(MLP, **weights))


def points(count: int = 60) -> Arrays:
    x = drawn(count, 4)
    return {"x": x, "labels": np.argmax(x[:, :3], axis=1)}


def cross(data: Any = None, passes: Pass | None = None, **options: Any) -> CrossValidation:
    return crossval(line(), passes or Shift(), numbers() if data is None else data, **options)


def test_it_is_public() -> None:
    assert compressor.crossval is crossval
    assert compressor.CrossValidation is CrossValidation


def test_the_pipeline_sees_the_other_folds_and_nothing_else() -> None:
    cross(folds=4)
    whole = set(numbers()["x"].ravel())
    left_out = []
    for context in Shift.seen:
        assert context.data is None
        assert context.calibration is context.train
        left_out.append(whole - set(everything(context.train)[0].ravel()))
    assert [len(part) for part in left_out] == [3] * 4
    assert set.union(*left_out) == whole


def test_each_fold_is_scored_by_the_model_that_did_not_see_it() -> None:
    found = cross(folds=4)
    residuals = (numbers()["labels"] - numbers()["x"]).ravel()
    errors = []
    for context, fold in zip(Shift.seen, found.folds, strict=True):
        seen = np.isin(numbers()["x"].ravel(), everything(context.train)[0].ravel())
        squared = (residuals[~seen] - residuals[seen].mean()) ** 2
        # float32 rounds numbers up to 13 by 2^-21, which the errors of about 0.1 carry doubled
        assert fold.scores.after.value == pytest.approx(squared.mean(), abs=2**-21)
        assert (fold.trained_on, fold.scores.samples) == (9, 3)
        errors += list(squared)
    assert (found.metric, found.higher_is_better) == ("mse", False)
    assert found.pooled.after.value == pytest.approx(np.mean(errors), abs=2**-21)
    assert found.pooled.samples == found.mean.samples == 12


def test_the_drop_is_paired_and_negative_where_the_result_is_better() -> None:
    found = cross(folds=3)
    for scores in (found.mean, found.pooled, *(fold.scores for fold in found.folds)):
        assert scores.before is not None
        assert scores.drop is not None
        assert scores.drop.value == pytest.approx(scores.after.value - scores.before.value)
        assert scores.drop.value < 0


def test_the_mean_is_over_folds_and_the_pooled_scores_are_over_samples() -> None:
    found = cross(numbers(11), folds=4)
    values = np.array([fold.scores.after.value for fold in found.folds])
    assert found.mean.after == statistics.mean(values, (0.0, np.inf))
    shift = {fold: np.float32(0) for fold in range(4)}
    before, after, labels = [], [], []
    for index, context in enumerate(Shift.seen):
        x, known = everything(context.train)
        shift[index] = np.mean(known - x, dtype=np.float32)
        held = ~np.isin(numbers(11)["x"], x).ravel()
        before.append(numbers(11)["x"][held])
        after.append(numbers(11)["x"][held] + shift[index])
        labels.append(numbers(11)["labels"][held])
    told = metrics.compare(
        "mse", [np.concatenate(before)], [np.concatenate(after)], np.concatenate(labels), 0
    )
    assert (found.pooled.before, found.pooled.after, found.pooled.drop) == (
        told.before,
        told.after,
        told.drop,
    )


def test_a_seed_deals_the_folds() -> None:
    parts = []
    for seed in (0, 0, 1):
        Shift.seen.clear()
        cross(without_labels(), folds=3, target=Target(seed=seed))
        parts.append([everything(context.train)[0].ravel().tolist() for context in Shift.seen])
        assert [context.seed for context in Shift.seen] == [seed] * 3
    assert parts[0] == parts[1]
    assert parts[0] != parts[2]


def test_without_labels_agreement_with_the_original_is_scored() -> None:
    found = cross(without_labels(), folds=3)
    assert (found.metric, found.higher_is_better, found.pooled.agrees_in) == ("agreement", True, "cosine")
    assert found.pooled.before is found.mean.before is None
    assert found.mean.after.value == found.pooled.after.value == pytest.approx(1)
    assert found.mean.drop is not None
    assert found.mean.drop.low >= 0


@pytest.mark.parametrize(("agrees_in", "least"), [("top1", 0), ("cosine", -1)])
def test_a_mean_agreement_stays_within_what_is_possible(agrees_in: str, least: int) -> None:
    folds = [Scores(5, None, Interval(v, v, v), Interval(1 - v, 1 - v, 1 - v), agrees_in) for v in (0.1, 0.9)]
    found = mean("agreement", folds)
    assert found.after == Interval(0.5, least, 1)
    assert found.drop == Interval(0.5, 0, 1 - least)


def test_outputs_of_another_shape_are_scored_alone() -> None:
    data = {"x": numbers()["x"], "labels": np.ones(12, np.int64)}
    found = cross(data, Doubled(), folds=3)
    assert found.metric == "top1"
    assert found.pooled.after.value == found.mean.after.value == 1
    for scores in (found.pooled, found.mean, found.folds[0].scores):
        assert scores.before is scores.drop is None


def test_every_fold_has_callbacks_of_its_own_and_folders(tmp_path: Path) -> None:
    hook = ["a callback"]
    where = Run([hook], log=tmp_path / "log", checkpoint=tmp_path, resume=True)
    cross(folds=2, run=where)
    first, second = Shift.seen
    assert list(first.callbacks) == list(second.callbacks) == [hook]
    assert len({id(hook), id(first.callbacks[0]), id(second.callbacks[0])}) == 3
    assert [context.log for context in Shift.seen] == [tmp_path / "log" / f"fold-{n}" for n in (1, 2)]
    assert [context.workspace for context in Shift.seen] == [tmp_path / f"fold-{n}" for n in (1, 2)]
    assert first.resume


def test_progress_says_which_fold() -> None:
    said: list[str] = []
    cross(folds=2, progress=lambda what, *_: said.append(what))
    assert said[0] == "evaluating the original"
    assert "fold 1 of 2, shift: at work" in said
    assert said[-1] == "fold 2 of 2, evaluating the result"


def test_what_earlier_passes_need_comes_from_the_other_folds_and_training_helps() -> None:
    found = crossval(mlp(), "quantize-int8,finetune{epochs=8 batch=8 lr=0.05 warmup=0}", points(), folds=2)
    assert found.pipeline.startswith("quantize-int8{")
    assert found.pooled.drop is not None
    assert found.pooled.drop.value < 0
    assert [change.recipe.partition("{")[0] for change in found.folds[0].changes][-2:] == [
        "quantize-int8",
        "finetune",
    ]


def test_a_pipeline_that_only_calibrates_is_validated_too() -> None:
    found = crossval(mlp(), "quantize-int8", points(), folds=2)
    assert found.metric == "top1"
    assert [fold.trained_on for fold in found.folds] == [30, 30]
    assert all("quantize-int8" in change.recipe for change in [fold.changes[-1] for fold in found.folds])
    assert found.pooled.drop is not None


def test_json_holds_every_field_and_null_for_what_is_infinite() -> None:
    found = cross(numbers(4), folds=4)
    assert found.folds[0].scores.after.high == np.inf  # one sample
    told = json.loads(found.to_json())
    assert told["folds"][0]["scores"]["after"]["high"] is None
    assert told["pooled"]["after"]["value"] == found.pooled.after.value
    assert list(told) == ["metric", "higher_is_better", "pipeline", "folds", "mean", "pooled"]


def one_positive() -> Arrays:
    return {"x": numbers()["x"], "labels": (np.arange(12) == 5).astype(np.int64)}


REFUSED: dict[str, tuple[Callable[[], object], type[CompressorError], str]] = {
    "no pass that learns from data": (
        lambda: crossval(line(), "optimize,quantize-weights", numbers()),
        OptionError,
        "no pass of optimize, quantize-weights trains or calibrates, so there is nothing to validate by folds. Add one",
    ),
    "fewer samples than folds": (
        lambda: cross(numbers(3), folds=4),
        DataError,
        "3 samples cannot make 4 folds. Give more samples, or fewer folds.",
    ),
    "one fold": (lambda: cross(folds=1), OptionError, "folds must be at least 2, got 1."),
    "no samples": (
        lambda: crossval(line(), Shift(), None),  # type: ignore[arg-type]
        DataError,
        "crossval needs samples. Give --train FILE.npz, or train=... in Python.",
    ),
    "an unknown metric": (
        lambda: cross(target=Target(metric="tpo1")),
        OptionError,
        "No metric named 'tpo1'. Did you mean 'top1'?",
    ),
    "an unknown metric for another shape": (
        lambda: cross(passes=Doubled(), target=Target(metric="tpo1")),
        OptionError,
        "No metric named 'tpo1'. Did you mean 'top1'?",
    ),
    "a class that a fold lacks": (
        lambda: cross(one_positive(), folds=3, target=Target(metric="auc")),
        DataError,
        "of 3: Metric 'auc' needs samples of both classes; every label is 0.",
    ),
    "another shape without labels": (
        lambda: cross(without_labels(), Doubled()),
        DataError,
        "crossval: doubled gives the outputs another shape, so that only labels can tell how good they are.",
    ),
    "agreement in another shape": (
        lambda: cross(passes=Doubled(), target=Target(metric="agreement")),
        DataError,
        "only labels can tell how good they are. Give labels, and a metric that uses them.",
    ),
    "a callback that cannot be copied": (
        lambda: cross(run=Run([threading.Lock()])),
        OptionError,
        "Fold 1 of 5: A callback cannot be copied, and each fold needs its own: cannot pickle",
    ),
}


@pytest.mark.parametrize(("act", "kind", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_work_is_refused_before_anything_is_trained(
    act: Callable[[], object], kind: type[CompressorError], said: str
) -> None:
    with pytest.raises(CompressorError) as raised:
        act()
    assert type(raised.value) is kind
    assert said in str(raised.value)
    assert not Shift.seen


def test_samples_of_a_function_cannot_be_divided(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("import numpy as np\n\ndef give():\n    return (np.float32([i]) for i in range(9))\n")
    with pytest.raises(DataError, match="come from a function, in its own order, and cannot be divided"):
        cross(f"{file}:give")


def test_an_error_says_in_which_fold_it_came_up() -> None:
    labels = np.arange(12) % 3
    with pytest.raises(DataError, match=r"^Fold 1 of 3: loss 'mse': labels \[\] per sample"):
        crossval(mlp(), "finetune{loss=mse}", {"x": drawn(12, 4), "labels": labels}, folds=3)


def test_outputs_of_different_shapes_cannot_be_pooled() -> None:
    answers = [Answers(None, [np.zeros((2, size))], None) for size in (3, 5)]
    with pytest.raises(DataError, match=r"different shapes, \[3\] and \[5\] per sample, so that they cannot"):
        joined(answers)


def run(*words: object) -> Result:
    model, train = SAMPLES / "breast_cancer_mlp.onnx", SAMPLES / "breast_cancer_train.npz"
    return CliRunner().invoke(main, ["crossval", str(model), "--train", str(train), *map(str, words)])


def test_the_command_prints_a_row_per_fold_the_mean_and_the_whole() -> None:
    done = run("-p", "finetune{epochs=1}", "--folds", 2)
    assert done.exit_code == 0, done.output
    assert done.output.startswith("top1 on 284 samples, each left out of one training\n")
    rows = [
        [cell.strip() for cell in line.split("│")[1:-1]] for line in done.output.splitlines() if "│" in line
    ]
    assert [row[:2] for row in rows] == [
        ["1", "142"],
        ["2", "142"],
        ["mean of folds", "284"],
        ["all together", "284"],
    ]
    before, after, drop, band = rows[-1][2:]
    # each is rounded to four digits
    assert float(before) - float(after) == pytest.approx(float(drop), abs=1.5e-4)
    low, high = json.loads(band.replace("+", ""))
    assert low <= float(drop) <= high


def test_the_command_shows_the_interval_of_the_score_where_there_is_no_drop() -> None:
    done = run("-p", "replace-head{classes=2},finetune{epochs=1}", "--folds", 2)
    assert done.exit_code == 0, done.output
    *_, row = [
        [cell.strip() for cell in line.split("│")[1:-1]] for line in done.output.splitlines() if "│" in line
    ]
    low, high = json.loads(row[-1])
    assert low < float(row[3]) < high
    assert row[2] == row[4] == ""


def test_the_command_gives_json() -> None:
    done = run("-p", "finetune{epochs=1}", "--folds", 2, "--metric", "f1", "--seed", 3, "--json")
    found = json.loads(done.output)
    assert found["metric"] == "f1"
    assert found["pipeline"].startswith("finetune{epochs=1 ")
    assert [fold["scores"]["samples"] for fold in found["folds"]] == [142, 142]
    assert set(found["pooled"]["drop"]) == {"value", "low", "high"}


def test_the_command_refuses_in_one_line() -> None:
    done = run("-p", "optimize")
    assert done.exit_code == 1
    assert done.output.startswith("Error: crossval: no pass of optimize trains")
    assert len(done.output.splitlines()) == 1


def test_ctrl_c_is_taken_up_again_from_the_checkpoints(tmp_path: Path) -> None:
    hooks = tmp_path / "hooks.py"
    hooks.write_text(
        "import os, signal\nimport pytorch_lightning as pl\n\nclass Stop(pl.Callback):\n"
        "    def on_train_epoch_start(self, trainer, module):\n"
        "        if trainer.current_epoch == 1:\n            os.kill(os.getpid(), signal.SIGINT)\n"
    )
    words = ("-p", "finetune{epochs=2}", "--folds", 2, "--json")
    state = tmp_path / "state"
    done = run(*words, "--callback", f"{hooks}:Stop", "--checkpoint", state)
    assert done.exit_code == 1
    assert f"The same command with --resume goes on from the checkpoint in {str(state)!r}." in done.output
    assert [folder.name for folder in state.iterdir()] == ["fold-1"]
    again, whole = (
        json.loads(run(*words, *more).output) for more in (("--checkpoint", state, "--resume"), ())
    )
    assert again["folds"][0]["changes"][-1]["figures"]["resumed after epoch"] == 1
    assert [again[key] for key in ("mean", "pooled")] == [whole[key] for key in ("mean", "pooled")]


def test_ctrl_c_without_checkpoints_does_not_speak_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Pipeline, "run", interrupted)
    done = run("-p", "finetune")
    assert done.output == "Interrupted: the input is untouched and no half-written file is left.\n"
