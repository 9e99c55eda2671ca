"""The curve of a recipe, drawn before anything is trained."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import ClassVar, final

import onnx_ir as ir
import pytest
from click.testing import CliRunner, Result

from compressor import discover
from compressor.cli import main
from compressor.errors import OptionError
from compressor.pipeline import Change, Context, Pass
from compressor.schedule_drawing import Curve, schedule
from compressor.training.options import Training

ROOT = Path(__file__).parents[1]
FIRST_DOT, LAST_DOT = 0x2801, 0x28FF


@final
class Train(Training):
    name: ClassVar[str] = "train"

    def apply(self, model: ir.Model, context: Context) -> Change:
        return Change()


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recipes know the pass `train`."""
    shipped = discover.find

    def find(name: str) -> type[Pass]:
        return Train if name == "train" else shipped(name)

    monkeypatch.setattr(discover, "find", find)


def dots(text: str) -> list[str]:
    """The lines of the curve without their margin."""
    return [line[12:] for line in text.splitlines()[1:-2]]


def filled(row: str) -> list[int]:
    return [place for place, c in enumerate(row) if FIRST_DOT <= ord(c) <= LAST_DOT]


def run(*words: str) -> Result:
    return CliRunner().invoke(main, ["schedule", *words])


def test_steps_come_from_samples_batch_epochs_and_accumulation() -> None:
    found = schedule("train{epochs=3 batch=10 accumulate=2}", samples=101)
    assert found.steps_per_epoch == 6  # 11 batches, two a step, the last step has one
    assert len(found.rates) == 18


def test_a_batch_that_is_given_replaces_that_of_the_recipe() -> None:
    assert len(schedule("train{epochs=1 batch='auto'}", samples=100, batch=50).rates) == 2


def test_a_pass_is_taken_as_well_as_its_text() -> None:
    assert schedule(Train(schedule="one-cycle", lr=0.3)) == schedule("train{schedule='one-cycle' lr=0.3}")


def test_a_recipe_may_hold_other_passes() -> None:
    assert schedule("quantize-int8,train{epochs=1}", samples=64) == schedule("train{epochs=1}", samples=64)


def test_a_constant_rate_is_one_line_at_the_top() -> None:
    rows = dots(Curve("constant", (0.1,) * 50, 10).text())
    assert filled(rows[0]) == list(range(68))
    assert not any(filled(row) for row in rows[1:])


def test_a_falling_line_goes_from_the_upper_left_to_the_lower_right() -> None:
    rows = dots(Curve("line", tuple(1 - n / 499 for n in range(500)), 100).text(72, 9))
    spans = [filled(row) for row in rows]
    assert spans[0][0] == 0
    assert spans[-1][-1] == 59
    assert all(upper[-1] <= lower[0] + 1 and lower for upper, lower in pairwise(spans))


def test_a_jump_is_connected_and_every_column_has_a_dot() -> None:
    rows = dots(Curve("step", (1.0,) * 30 + (0.0,) * 30, 10).text(60, 7))
    assert all(filled(row) for row in rows)
    assert sorted({place for row in rows for place in filled(row)}) == list(range(48))


def test_a_spike_of_one_step_in_a_long_training_is_seen() -> None:
    rates = [0.1] * 10_000
    rates[5_003] = 1.0
    assert filled(dots(Curve("spike", tuple(rates), 100).text())[0])


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_shortest_trainings_can_be_drawn(steps: int) -> None:
    text = Curve("constant", (0.5,) * steps, 1).text(40, 5)
    assert [line for line in text.splitlines() if len(line) > 40] == text.splitlines()[:1]
    assert len(filled(dots(text)[0])) == 28


def test_a_rate_of_zero_throughout_is_drawn_on_the_axis() -> None:
    assert filled(dots(Curve("none", (0.0, 0.0), 1).text())[-1])


def test_the_axes_say_the_rates_and_the_epochs() -> None:
    lines = schedule("train{epochs=4 lr=0.02 schedule='constant' warmup=0.0}").text(80, 11).splitlines()
    assert lines[1].startswith("      0.02 ┤")
    assert lines[6].startswith("      0.01 ┤")
    assert lines[11].startswith("         0 ┤")
    assert lines[-1].split() == ["0", "2", "4", "epochs"]
    assert len(lines) == 14
    assert max(len(line) for line in lines[1:]) == 80


def test_a_rate_that_is_yet_to_be_found_is_drawn_as_shares() -> None:
    found = schedule("train{lr='auto'}")
    assert not found.known
    assert "share of the peak rate" in found.facts()


def test_a_drawing_without_room_is_refused() -> None:
    with pytest.raises(OptionError, match="at least 40 columns and 5 lines, got 10 and 3"):
        Curve("cosine", (1.0,), 1).text(10, 3)


def test_an_unknown_batch_is_refused() -> None:
    with pytest.raises(OptionError, match="train: batch='auto' is found by the training itself"):
        schedule("train{batch='auto'}")


def test_no_samples_are_refused() -> None:
    with pytest.raises(OptionError, match="samples and batch must be at least 1, got 0 and 32"):
        schedule("train", samples=0)


@pytest.mark.parametrize(("recipe", "found"), [("optimize", 0), ("train,train", 2)])
def test_a_recipe_must_train_once(recipe: str, found: int) -> None:
    with pytest.raises(
        OptionError, match=f"one pass that trains is needed, the recipe '{recipe}' has {found}"
    ):
        schedule(recipe)


def test_the_command_draws_what_the_function_returns() -> None:
    done = run("train{epochs=2}", "--samples", "640", "--batch", "64")
    assert done.exit_code == 0, done.output
    assert done.output.strip() == schedule("train{epochs=2}", 640, 64).text(100).strip()


def test_the_command_prints_every_rate_as_json() -> None:
    done = run("train{epochs=2}", "--samples", "640", "--json")
    assert json.loads(done.output)["rates"] == pytest.approx(list(schedule("train{epochs=2}", 640).rates))


def test_the_command_reads_a_recipe_file(tmp_path: Path) -> None:
    (tmp_path / "recipe").write_text("# slow\ntrain{epochs=1}\n")
    assert "313 steps, 313 an epoch" in run(f"@{tmp_path / 'recipe'}").output


def test_the_command_refuses_in_one_line() -> None:
    done = run("train{schedule=cosin}")
    assert done.exit_code == 1
    assert done.output.startswith("Error: train: option 'schedule' must be one of")


def test_drawing_loads_neither_torch_nor_onnxruntime() -> None:
    code = (
        "import sys, compressor.schedule_drawing as s; s.Curve('x', (1.0, 0.5), 1).text(); "
        "print([m for m in ('torch', 'onnxruntime') if m in sys.modules])"
    )
    made = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert made.stdout.strip() == "[]"
