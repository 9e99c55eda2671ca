"""What happens around the steps, as Lightning callbacks: constraints, unfreezing, averages, the best weights."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping
from torch import Tensor

from compressor.errors import DataError
from compressor.pipeline import Progress
from compressor.training.averaging import Average
from compressor.training.divergence import LossWatch, first_bad
from compressor.training.freezing import released
from compressor.training.options import Training
from compressor.training.penalties import max_norm_
from compressor.training.recalibration import normalizations

State = dict[str, Tensor]


class MaxNorm(pl.Callback):
    """Keeps the norms of output channels below the limit, after every optimizer step."""

    def __init__(self, axes: Mapping[str, int], limit: float) -> None:
        self.axes = axes
        self.limit = limit

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        """Project the weights."""
        max_norm_(pl_module.network, self.axes, self.limit)


class FrozenStatistics(pl.Callback):
    """Keeps BatchNormalization in eval mode: its statistics stay as they are."""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """The student has put all modules in training mode before."""
        for module in normalizations(pl_module.network):
            module.eval()


class Unfreezing(pl.Callback):
    """Releases frozen layers one after the other, from the output on."""

    def __init__(
        self, options: Training, depths: Mapping[str, int], frozen: Mapping[str, torch.nn.Parameter]
    ) -> None:
        self.options = options
        self.depths = depths
        self.frozen = frozen

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        """Release what is due."""
        done = trainer.global_step / max(1, int(trainer.estimated_stepping_batches))
        for name in released(self.options, self.depths, list(self.frozen), done):
            self.frozen[name].requires_grad_(True)


class Plateau(pl.Callback):
    """Steps a ReduceLROnPlateau with the score of each epoch."""

    def __init__(self, schedule: Any) -> None:
        self.schedule = schedule

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Lower the rates when the score has stopped getting better; while weights are cut it need not."""
        if pl_module.settled:
            self.schedule.step(pl_module.score)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return dict(self.schedule.state_dict())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.schedule.load_state_dict(state_dict)


class Keeper(pl.Callback):
    """Averages weights, scores the average, and holds the best weights, which the model has in the end.

    What the student has before it is settled counts for neither.

    Args:
        options: average, ema_decay, swa_start and keep.
        higher_is_better: of the score.
        start: the score before the first step; its weights are the best until an epoch beats them.
        settle: what a network needs once the average is in it, before it is scored.
        trained_only: whether any epoch is better than the start.
    """

    def __init__(
        self,
        options: Training,
        higher_is_better: bool,
        start: float,
        settle: Callable[[Any], object] | None,
        trained_only: bool = False,
    ) -> None:
        self.options = options
        self.settle = settle
        self.trained_only = trained_only
        self.sign = 1.0 if higher_is_better else -1.0
        self.best = start
        self.best_epoch = -1
        self.scores: list[float] = []
        self.average = Average(options.ema_decay if options.average == "ema" else None)
        self._best_state: State | None = None
        self._own: State | None = None
        self._averaged: dict[str, Any] | None = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """The weights as they are now are the best so far; an average that a checkpoint held goes to their device."""
        if self._best_state is None:
            self._best_state = _state(pl_module.network)
        if self._averaged is not None:
            self.average.load_state_dict(self._averaged, pl_module.device)
            self._averaged = None

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        """Take the step's weights into the average."""
        if self.options.average == "none" or pl_module.fault or not pl_module.settled:
            return
        done = trainer.global_step / max(1, int(trainer.estimated_stepping_batches))
        if self.options.average == "ema" or done >= self.options.swa_start:
            self.average.update(pl_module.network)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Put the average in, so that it is what is scored."""
        if not self.average.updates:
            return
        self._own = _state(pl_module.network)
        self.average.apply_to(pl_module.network)
        if self.settle is not None:
            self.settle(pl_module.network)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Remember the weights if they are the best, and put the trained ones back."""
        if pl_module.settled and not pl_module.fault:
            self._judge(trainer, pl_module)
        if self._own is not None:
            pl_module.network.load_state_dict(self._own)
            self._own = None

    def _judge(self, trainer: pl.Trainer, pl_module: Any) -> None:
        score = pl_module.score
        self.scores.append(score)
        better = self.sign * score > self.sign * self.best or math.isnan(self.best)
        first = self.trained_only and self.best_epoch < 0
        if better or first or self.options.keep == "last":
            self.best, self.best_epoch = score, trainer.current_epoch
            self._best_state = _state(pl_module.network)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Give the model its best weights; a training that is resumed at its end runs no earlier hook."""
        if self._best_state is not None:
            pl_module.network.load_state_dict(self._best_state)
        samples, seconds = pl_module.pace
        pl_module.outcome = {
            "best": self.best,
            "best_epoch": self.best_epoch + 1,
            "scores": self.scores,
            "epochs": trainer.current_epoch,
            "steps": trainer.global_step,
            "fault": pl_module.fault,
            "resumed": pl_module.resumed,
            "samples per second": round(samples / seconds, 1) if seconds else 0.0,
        }

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {
            "best": self.best,
            "best_epoch": self.best_epoch,
            "scores": self.scores,
            "best_state": self._best_state,
            "average": self.average.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.best, self.best_epoch = state_dict["best"], state_dict["best_epoch"]
        self.scores, self._best_state = state_dict["scores"], state_dict["best_state"]
        self._averaged = state_dict["average"]


class Patience(EarlyStopping):
    """Stops when the score has stopped getting better; epochs before the student is settled do not count."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Look at the score of the epoch; it was validated before."""
        if pl_module.settled:
            super().on_train_epoch_end(trainer, pl_module)


class Watch(pl.Callback):
    """Stops a training whose loss is no number or has exploded.

    At the first step that is an error, which names the tensor; later the weights of the epochs before are kept.
    """

    def __init__(self, label: str) -> None:
        self.label = label
        self.watch = LossWatch()

    def on_before_backward(self, trainer: pl.Trainer, pl_module: Any, loss: Tensor) -> None:
        """Look at the loss before it can spoil a weight."""
        fault = self.watch.check_loss(pl_module.loss, trainer.global_step + 1)
        if fault and trainer.global_step == 0:
            where = first_bad(pl_module.network, *self._batch)
            raise DataError(f"{self.label}: {fault}: {where}. Look at this tensor, or lower lr.")
        if trainer.world_size > 1 and trainer.strategy.reduce_boolean_decision(bool(fault), all=False):
            fault = fault or "the loss has gone astray in another process"
        if fault and not pl_module.fault:
            pl_module.fault = fault
            trainer.should_stop = True

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        """Let a bad loss move nothing."""
        if pl_module.fault:
            optimizer.zero_grad()

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Hold the batch, to say what was wrong with it."""
        self._batch = (batch[0], batch[1], batch[2])

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """End what the student found astray when it was scored."""
        trainer.should_stop = trainer.should_stop or bool(pl_module.fault)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return asdict(self.watch)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.watch = LossWatch(**state_dict)


class Reporting(pl.Callback):
    """Tells the progress callback loss, score and rate."""

    def __init__(self, progress: Progress, label: str, epochs: int) -> None:
        self.progress = progress
        self.label = label
        self.epochs = epochs

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Start the clock of the epoch's steps."""
        self._begun, self._samples = time.perf_counter(), 0

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Log the rate that the batch is trained with; behind the step it is the next one's."""
        self._samples += len(batch[2])
        self._rate = max(group["lr"] for group in trainer.optimizers[0].param_groups)
        if pl_module.is_logged():
            pl_module.log("rate", self._rate, batch_size=1)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        """Report a step."""
        parts = [
            f"{self.label}: epoch {trainer.current_epoch + 1}/{self.epochs}",
            f"loss {pl_module.loss:.4g}",
        ]
        if not math.isnan(pl_module.score):
            parts.append(f"score {pl_module.score:.4g}")
        done, batches = trainer.fit_loop.total_batch_idx + 1, int(trainer.num_training_batches)
        self.progress(" ".join([*parts, f"rate {self._rate:.2g}"]), done, batches * self.epochs)
        if trainer.is_last_batch:
            samples, seconds = pl_module.pace
            epoch = self._samples * trainer.world_size
            pl_module.pace = samples + epoch, seconds + time.perf_counter() - self._begun


def _state(network: torch.nn.Module) -> State:
    """A copy of the weights, in main memory."""
    return {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}
