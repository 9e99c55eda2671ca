"""The model in training as a Lightning module: what one step does, what is scored, what is logged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, fx
from torch.optim import Optimizer

from compressor.training.augmentation import Augmenter
from compressor.training.batches import TrainingBatch
from compressor.training.loading import Loader
from compressor.training.options import Training
from compressor.training.scoring import Rows, Scorer, rows_of
from compressor.training.teacher import Teacher
from compressor.training.terms import Terms, total

Step = tuple[tuple[Tensor, ...], Tensor | None, Tensor]


class Student(pl.LightningModule):
    """Trains `network`; every hook of Lightning applies.

    Logged: `loss`, each of its terms and `rate`, at the last step of an epoch and, where there is a log, at every
    tenth; after every epoch `score`. `loss` and `score` as attributes are always those of the last step and the last
    epoch. `fault` says what went wrong when the loss is no number or has exploded; from then on nothing is trained or
    scored. `settled` is False while weights are still to be cut or to get their codes: such an epoch cannot be the
    best. `outcome` says at the end how it went: best, best_epoch, epochs, steps, fault.

    Args:
        network: the imported graph; among its outputs are the values to match.
        options: of the training.
        terms: the loss.
        loader: the batches, for their sizes.
        scorer: scores the held-out samples.
        teacher: the original; None when the loss does not ask it.
        augmenter: changes the batches.
        outputs: how many outputs are the model's own; they come first.
        values: name of a value to match -> its place among the outputs.
        seed: of what is random inside the network.
    """

    def __init__(
        self,
        network: fx.GraphModule,
        options: Training,
        terms: Terms,
        loader: Loader,
        scorer: Scorer,
        *,
        teacher: Teacher | None,
        augmenter: Augmenter,
        outputs: int,
        values: Mapping[str, int],
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.network = network
        self.options = options
        self.terms = terms
        self.loader = loader
        self.scorer = scorer
        self.teacher = teacher
        self.augmenter = augmenter
        self.outputs = outputs
        self.values = values
        self.seed = seed
        self.optimizer_made: tuple[Optimizer, Any] | None = None
        self.score = float("nan")
        self.loss = float("nan")
        self.pace = (0, 0.0)
        self.fault = ""
        self.unsettled: set[str] = set()
        self.resumed = 0
        self.outcome: dict[str, Any] = {}
        self._parts: list[Rows] = []
        self._shares: list[float] = []

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; text, numbers and None go past torch, which looks for parameters in every value.

        Lightning notes the running hook forty times a step, which would take a tenth of a small model's step.
        """
        if value is None or isinstance(value, str | float):
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    @property
    def settled(self) -> bool:
        """Whether the network has the form that it will have in the end."""
        return not self.unsettled

    def settle(self, what: str, done: bool) -> None:
        """Note that something which changes the form on the way is done, or is not yet."""
        (self.unsettled.discard if done else self.unsettled.add)(what)

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        """All outputs of the network, in order."""
        made = self.network(*inputs)
        return [made] if isinstance(made, Tensor) else list(made)

    def on_fit_start(self) -> None:
        """Put the network in training mode (Lightning leaves it in eval mode) and take this process's share."""
        self.network.train()
        self.loader.shard = (self.global_rank, self.trainer.world_size)

    def on_train_epoch_start(self) -> None:
        """Settle which batches this epoch has, what share of its optimizer step each has, and what is random in it.

        The order and the draws of an epoch depend on its number, so that a training that is taken up has the same.
        """
        _draw_from(self.seed + self.trainer.world_size * self.current_epoch + self.global_rank, self.device)
        if self.options.accumulate > 1:
            sizes = [len(rows) for rows in self.loader.rows(self.current_epoch)]
            self._shares = step_shares(sizes, self.options.accumulate)
        self.loader.start_at(self.current_epoch)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """The batch on the device; nothing is looked at where all is in main memory already."""
        if device.type == "cpu":
            return batch
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def training_step(self, batch: TrainingBatch, batch_idx: int) -> Tensor:
        """The loss of one batch, scaled so that accumulated batches weigh by their samples."""
        given = TrainingBatch(*batch)
        inputs, labels = self.augmenter(given.inputs, given.labels, self.current_epoch, batch_idx)
        terms = self.losses(inputs, labels, given.rows)
        loss = total(terms)
        self.loss = float(loss.detach())
        if self.is_logged():
            logged: dict[str, float | Tensor] = {"loss": self.loss}
            logged |= {name: term.detach() for name, term in terms.items()}
            self.log_dict(logged, batch_size=len(given.rows))
        return loss * self._shares[batch_idx] if self.options.accumulate > 1 else loss

    def is_logged(self) -> bool:
        """Whether the running step is logged, which costs more than a small model's step."""
        if self.trainer.is_last_batch:
            return True
        return bool(self.trainer.loggers) and (self.trainer.global_step + 1) % self.log_every == 0

    @property
    def log_every(self) -> int:
        """Steps between two entries of the log."""
        return min(10, len(self.loader))

    def losses(self, inputs: Sequence[Tensor], labels: Tensor | None, rows: Tensor) -> dict[str, Tensor]:
        """Every term of the loss of a batch."""
        made = self(*inputs)
        answers = None if self.teacher is None else self.teacher(inputs, rows)
        values = {name: made[place] for name, place in self.values.items()}
        found = self.terms.of_batch(made[: self.outputs], values, labels, answers)
        return found | self.terms.of_weights(self.network)

    def configure_gradient_clipping(self, optimizer: Optimizer, *_: Any, **__: Any) -> None:
        """Clip by value, then by the norm of all gradients together (Pascanu et al. 2013, arXiv:1211.5063)."""
        if self.options.clip_value:
            self.clip_gradients(optimizer, self.options.clip_value, "value")
        if self.options.clip_norm:
            self.clip_gradients(optimizer, self.options.clip_norm, "norm")

    def validation_step(self, batch: tuple[Sequence[Tensor], int], batch_idx: int) -> None:
        """Run the held-out samples."""
        inputs, count = batch
        self._parts.append(rows_of(self(*inputs)[: self.outputs], int(count), len(inputs[0])))

    def on_validation_epoch_end(self) -> None:
        """Score them, unless the training has gone astray."""
        if any(np.isnan(a).any() for rows in self._parts for a in rows if a.dtype.kind == "f"):
            self.fault = self.fault or f"the model gives NaN after epoch {self.current_epoch + 1}"
        if not self.fault:
            self.score = self.scorer.score(self._parts)
        self._parts = []
        self.log("score", self.score)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say that the training has gone astray, if it has."""
        checkpoint["fault"] = self.fault

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note after how many epochs the training is taken up."""
        self.fault, self.resumed = checkpoint["fault"], checkpoint["epoch"] + 1

    def configure_optimizers(self) -> Any:
        """The optimizer, and the schedule that is stepped with it."""
        if self.optimizer_made is None:
            raise RuntimeError("the optimizer is made by `fit`")
        optimizer, schedules = self.optimizer_made
        return [optimizer], schedules


def _draw_from(seed: int, device: torch.device) -> None:
    """Seed what is drawn on the CPU and on the device; torch.manual_seed asks for every kind of device there is."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed_all(seed)


def step_shares(sizes: Sequence[int], accumulate: int) -> list[float]:
    """The factor of each batch's loss, which Lightning then divides by `accumulate`.

    A group of batches makes one step; each counts by its samples, also in a last, incomplete group.

    >>> step_shares([4, 4, 4, 2], 3)
    [1.0, 1.0, 1.0, 3.0]
    """
    shares: list[float] = []
    for start in range(0, len(sizes), accumulate):
        group = sizes[start : start + accumulate]
        shares += [accumulate * size / sum(group) for size in group]
    return shares
