"""Training from the command line: what it prints, what it writes, how it is interrupted and taken up again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner, Result

from compressor import measurement
from compressor.cli import main
from compressor.latency import Protocol

ROOT = Path(__file__).parents[1]
SAMPLES = ROOT / "sample_models"
MLP = SAMPLES / "breast_cancer_mlp.onnx"
DATA = ("--train", SAMPLES / "breast_cancer_train.npz", "--data", SAMPLES / "breast_cancer_test.npz")
RECIPE = "finetune{epochs=3 dropout=0.2 average=ema schedule=plateau keep=last}"
HOOKS = """
import os, signal
import pytorch_lightning as pl

class Stop(pl.Callback):
    epoch = 1

    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == self.epoch:
            os.kill(os.getpid(), signal.SIGINT)

class StopAtOnce(Stop):
    epoch = 0

class Breaks(pl.Callback):
    def on_train_epoch_end(self, trainer, module):
        raise KeyError("lr")

class Wants(pl.Callback):
    def __init__(self, path):
        self.path = path

class Other:
    pass
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short timing: these tests read words and files, not speeds."""
    monkeypatch.setattr(measurement, "PROTOCOL", Protocol(visits=5, visit_ms=0.2, sessions=1, warmup=1))


@pytest.fixture
def hooks(tmp_path: Path) -> str:
    """The address of a file of callbacks, outside the folder that is written to."""
    file = tmp_path / "hooks.py"
    file.write_text(HOOKS)
    return str(file)


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def train(folder: Path, *words: object, recipe: str = RECIPE) -> Result:
    folder.mkdir(exist_ok=True)
    return run(MLP, "-o", folder / "o.onnx", "-p", recipe, *DATA, *words)


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_trains_writes_the_model_and_tells_the_scores(tmp_path: Path) -> None:
    done = train(tmp_path, "--log", tmp_path / "log")
    assert done.exit_code == 0, done.output
    (step,) = (line for line in done.output.splitlines() if line.startswith("finetune{"))
    options, _, facts = step.partition(": ")
    assert options == "finetune{epochs=3 schedule='plateau' dropout=0.2 keep='last' average='ema'}"
    assert "score before 0.9532, score after " in facts
    assert "samples per second" in facts
    assert names(tmp_path) == ["log", "o.onnx"]
    assert (tmp_path / "log" / "pass-0" / "metrics.csv").read_text().startswith("epoch,")
    onnx.checker.check_model(tmp_path / "o.onnx")


def test_without_evaluation_data_both_models_are_scored_on_what_is_held_out(tmp_path: Path) -> None:
    samples = [word for word in DATA if word != "--data" and "test" not in str(word)]
    done = run(MLP, "-o", tmp_path / "o.onnx", "-p", RECIPE, *samples, "--max-drop", "0.5")
    assert done.exit_code == 0, done.output
    said = " ".join(done.output.split())
    assert "Evaluated on 0.1 of the training samples, held out" in said
    assert " labelled samples of " in said


def test_ctrl_c_ends_in_one_line_that_names_resume_which_gives_the_same_model(
    tmp_path: Path, hooks: str
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert train(whole).exit_code == 0
    done = train(cut, "--callback", f"{hooks}:Stop")
    assert done.exit_code == 1
    assert done.output.splitlines() == [
        "Interrupted: the input is untouched and no half-written file is left. The same command with --resume goes on "
        f"from the checkpoint in {str(cut / 'o.onnx.checkpoint')!r}."
    ]
    assert names(cut) == ["o.onnx.checkpoint"]
    again = train(cut, "--resume")
    assert again.exit_code == 0, again.output
    assert "resumed after epoch 1" in again.output
    assert names(cut) == ["o.onnx"]
    assert (cut / "o.onnx").read_bytes() == (whole / "o.onnx").read_bytes()


def test_ctrl_c_before_the_first_checkpoint_leaves_nothing(tmp_path: Path, hooks: str) -> None:
    done = train(tmp_path / "out", "--callback", f"{hooks}:StopAtOnce")
    assert (done.exit_code, names(tmp_path / "out")) == (1, [])
    assert done.output == "Interrupted: the input is untouched and no half-written file is left.\n"


def test_a_checkpoint_that_was_asked_for_stays(tmp_path: Path) -> None:
    assert train(tmp_path, "--checkpoint", tmp_path / "state").exit_code == 0
    assert names(tmp_path) == ["o.onnx", "state"]
    assert len(names(tmp_path / "state")) == 1


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path, hooks: str) -> None:
    train(tmp_path / "out", "--callback", f"{hooks}:Stop")
    done = train(tmp_path / "out", "--resume", recipe="finetune{epochs=2}")
    assert (done.exit_code, names(tmp_path / "out")) == (1, ["o.onnx.checkpoint"])
    assert (
        "is of another training: the model, the recipe, the data, the metric or the seed differ"
        in done.output
    )
    assert len(done.output.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--callback", "{hooks}:Breaks"), "The callback Breaks.on_train_epoch_end failed: KeyError: 'lr'"),
        (("--callback", "{hooks}:Wants"), "hooks.py:Wants' cannot be made without arguments: Wants.__init__() missing"),
        (("--callback", "{hooks}:Other"), "no Lightning callback 'Other' in "),
        (("--callback", "{hooks}:Brakes"), "Did you mean 'Breaks'?"),
        (("--callback", "no_such_module:Hook"), "'no_such_module' cannot be imported: No module named"),
        (("--callback", "nowhere.py:Hook"), "there is no file 'nowhere.py'."),
        (("--log", "{hooks}/log"), "hooks.py/log' cannot be written: Not a directory. Give another --log."),
        (("--checkpoint", "{hooks}/state"), "hooks.py/state' cannot be made: Not a directory. Give another"),
    ],
)  # fmt: skip
def test_run_options_that_do_not_work_get_one_line(
    tmp_path: Path, hooks: str, words: tuple[str, ...], said: str
) -> None:
    done = train(tmp_path / "out", *(word.format(hooks=hooks) for word in words))
    assert done.exit_code == 1
    assert said in done.output
    assert done.output.startswith("Error: ")
    assert len(done.output.splitlines()) == 1
    assert names(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("finetune{epochs=0}", "Error: finetune: option 'epochs' must be greater than or equal to 1, got 0."),
        ("finetune{freeze=w9}", "Error: finetune: freeze='w9' matches no parameter."),
        ("finetune{loss=cross_entropy}", "Did you mean 'cross-entropy'?"),
    ],
)
def test_a_recipe_that_does_not_fit_gets_one_line_and_nothing_is_written(
    tmp_path: Path, recipe: str, said: str
) -> None:
    done = train(tmp_path, recipe=recipe)
    assert (done.exit_code, names(tmp_path)) == (1, [])
    assert said in done.output
    assert len(done.output.splitlines()) == 1


def test_training_without_data_is_refused(tmp_path: Path) -> None:
    done = run(MLP, "-o", tmp_path / "o.onnx", "-p", "finetune")
    assert (done.exit_code, names(tmp_path)) == (1, [])
    assert (
        done.output == "Error: finetune needs train samples. Give --train FILE.npz, or train=... in Python.\n"
    )


WITHOUT_TORCH = """
import sys

sys.modules["torch"] = None
import compressor.training.options
from click.testing import CliRunner
from compressor import measurement
from compressor.cli import main
from compressor.latency import Protocol

measurement.PROTOCOL = Protocol(visits=5, visit_ms=0.2, sessions=1, warmup=1)
model, calibration, out = sys.argv[1:]
for words in (
    ("--help",),
    ("passes",),
    ("passes", "finetune"),
    (model, "-o", out, "-p", "quantize-int8", "--calibration", calibration, "--quiet"),
    (model, "-o", out, "-p", "quantize-int8,finetune", "--calibration", calibration, "--train", calibration, "--force"),
):
    done = CliRunner().invoke(main, words)
    print(done.exit_code, done.output.splitlines()[-1])
"""


def test_without_torch_only_what_trains_is_refused(tmp_path: Path) -> None:
    words = [str(MLP), str(SAMPLES / "breast_cancer_calibration.npz"), str(tmp_path / "o.onnx")]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *words], cwd=ROOT, capture_output=True, text=True, check=True
    )
    *others, last = done.stdout.splitlines()
    assert [line[:2] for line in others] == ["0 "] * 4, done.stdout
    assert last == "1 Error: finetune needs torch, which is not installed: pip install onnx-compressor[train]"
