"""What a training tells: progress, logs, Lightning callbacks, and errors of theirs in one line."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl

from compressor.errors import OptionError
from tests.training.trained import mlp, points, train


def test_progress_says_loss_score_and_rate_step_by_step() -> None:
    said: list[tuple[str, int, int]] = []
    train(mlp(), points(), "epochs=2 lr=0.05", progress=lambda *given: said.append(given))
    steps = [given for given in said if "epoch" in given[0]]
    assert [(done, total) for _, done, total in steps] == [(n, 6) for n in range(1, 7)]
    assert re.fullmatch(r"finetune: epoch 1/2 loss [\d.]+ rate 0.05", steps[0][0])
    assert re.fullmatch(r"finetune: epoch 2/2 loss [\d.]+ score [\d.]+ rate 0.05", steps[3][0])


def test_the_rate_that_is_told_is_the_one_of_the_step() -> None:
    said: list[str] = []
    options = "epochs=2 lr=0.1 schedule=multistep milestones=(0.5,)"
    train(mlp(), points(), options, progress=lambda what, *_: said.append(what))
    rates = [what.rpartition(" ")[2] for what in said if "rate" in what]
    assert rates == ["0.1"] * 3 + ["0.01"] * 3


def test_a_log_has_the_curves_as_csv_and_for_tensorboard(tmp_path: Path) -> None:
    train(mlp(), points(), "epochs=2 l2=0.1", log=tmp_path)
    with (tmp_path / "pass-0" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {"epoch", "step", "loss", "labels", "l2", "rate", "score"} <= set(rows[0])
    assert len([row for row in rows if row["score"]]) == 2
    assert all(float(row["loss"]) > float(row["l2"]) > 0 for row in rows if row["loss"])
    assert list((tmp_path / "pass-0").glob("events.out.tfevents.*"))


def test_nothing_is_written_without_a_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    train(mlp(), points())
    assert list(tmp_path.iterdir()) == []


class Hooks(pl.Callback):
    """Notes which hooks are called."""

    def __init__(self) -> None:
        self.called: list[str] = []

    def on_fit_start(self, *_: Any) -> None:
        self.called.append("fit start")

    def on_train_epoch_start(self, *_: Any) -> None:
        self.called.append("epoch")

    def on_before_optimizer_step(self, *_: Any) -> None:
        self.called.append("step")

    def on_validation_end(self, *_: Any) -> None:
        self.called.append("validation")

    def on_train_end(self, *_: Any) -> None:
        self.called.append("end")


def test_callbacks_get_their_hooks() -> None:
    hooks = Hooks()
    train(mlp(), points(), "epochs=2", callbacks=[hooks])
    assert hooks.called == ["fit start", *["epoch", "step", "step", "step", "validation"] * 2, "end"]


def test_every_hook_of_a_step_is_called_once_per_batch() -> None:
    hooks = [
        *("on_train_batch_start", "on_before_zero_grad", "on_before_backward", "on_after_backward"),
        *("on_before_optimizer_step", "on_train_batch_end"),
    ]
    called: list[str] = []

    def note(hook: str) -> Callable[..., None]:
        return lambda *_: called.append(hook)

    noting = type("Noting", (pl.Callback,), {hook: staticmethod(note(hook)) for hook in hooks})
    train(mlp(), points(), "epochs=2", callbacks=[noting()])
    assert called == hooks * 6


class Ends(pl.Callback):
    """Notes what is there at the end of each epoch."""

    def __init__(self) -> None:
        self.found: list[dict[str, float]] = []
        self.losses: list[float] = []
        self.samples = 0

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.found.append({name: float(value) for name, value in trainer.callback_metrics.items()})
        self.losses.append(pl_module.loss)
        self.samples = pl_module.pace[0]


def test_callbacks_find_what_is_logged_at_the_end_of_an_epoch_without_a_log() -> None:
    ends = Ends()
    train(mlp(), points(), "epochs=2 l2=0.1", callbacks=[ends])
    assert [set(found) for found in ends.found] == [{"loss", "labels", "l2", "rate", "score"}] * 2
    assert [found["loss"] for found in ends.found] == pytest.approx(ends.losses)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_pace_counts_every_sample_of_every_epoch(accumulate: int) -> None:
    ends, given = Ends(), points()
    train(mlp(), given, f"epochs=3 accumulate={accumulate}", callbacks=[ends])
    assert ends.samples == 3 * len(given["labels"])


def test_a_callback_can_stop_the_training() -> None:
    class Stop(pl.Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            trainer.should_stop = True

    assert train(mlp(), points(), "epochs=5", callbacks=[Stop()]).changes[-1].figures["epochs"] == 1


@pytest.mark.parametrize(
    "error", [KeyError("gone"), ZeroDivisionError("by zero"), NotImplementedError("later")]
)
def test_a_callback_that_raises_is_named_in_one_line(error: Exception) -> None:
    class Faulty(pl.Callback):
        def on_train_epoch_end(self, *_: Any) -> None:
            raise error

    with pytest.raises(OptionError) as raised:
        train(mlp(), points(), callbacks=[Faulty()])
    assert str(raised.value).startswith(
        f"The callback Faulty.on_train_epoch_end failed: {type(error).__name__}: "
    )
    assert "\n" not in str(raised.value)


def test_what_is_no_callback_is_refused() -> None:
    with pytest.raises(
        OptionError, match=r"Hooks is no pytorch_lightning\.Callback.* an instance and not the class"
    ):
        train(mlp(), points(), callbacks=[Hooks])


def test_an_interrupt_is_an_interrupt() -> None:
    class Interrupt(pl.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(mlp(), points(), callbacks=[Interrupt()])
