"""Lightning's Trainer with our callbacks and the user's: checkpoints, logs, and errors in our own words."""

from __future__ import annotations

import logging
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.profilers import PassThroughProfiler
from torch import Tensor
from torch.utils.data import IterableDataset

from compressor.errors import OptionError, root_cause
from compressor.pipeline import Context
from compressor.training.callbacks import Patience, Reporting, Watch
from compressor.training.checkpoints import Safeguard
from compressor.training.machine import Machine
from compressor.training.options import Training
from compressor.training.scoring import Scorer
from compressor.training.student import Student

_NOTHING = nullcontext()  # holds no state, so that one is enough


def run(
    student: Student,
    machine: Machine,
    options: Training,
    context: Context,
    callbacks: Sequence[Any],
    checkpoint: Path | None,
) -> None:
    """Fit the student, which then holds its best weights and the outcome.

    Args:
        student: with its optimizer.
        machine: where it runs.
        options: of the training.
        context: the user's callbacks, the log, and whether to go on from the checkpoint.
        callbacks: what the options ask for.
        checkpoint: the file for the state after every epoch; None keeps none.

    Raises:
        DataError: the loss is no number at the first step.
        OptionError: a callback of the user failed, or the log or the checkpoint cannot be written.
    """
    _require_callbacks(context.callbacks)
    label = options.name
    ours = [Watch(label), *callbacks, Reporting(context.progress, label, options.epochs)]
    if options.patience:
        mode = "max" if student.scorer.higher_is_better else "min"
        ours.append(Patience("score", patience=options.patience, mode=mode, verbose=False))
    if checkpoint is not None:
        ours.append(Safeguard(checkpoint))
    resumed = checkpoint if checkpoint is not None and context.resume and checkpoint.exists() else None
    with _quiet():
        trainer = _trainer(ours, student, context, machine)
        _fit(trainer, student, resumed, context)
    if trainer.global_rank:
        raise SystemExit(0)  # a helper process that Lightning started: the first one goes on


def _require_callbacks(callbacks: Sequence[Any]) -> None:
    """Refuse what Lightning would stumble over later."""
    for callback in callbacks:
        if not isinstance(callback, pl.Callback):
            kind = callback if isinstance(callback, type) else type(callback)
            hint = ", an instance and not the class" if isinstance(callback, type) else ""
            raise OptionError(
                f"The callback {kind.__module__}.{kind.__qualname__} is no pytorch_lightning.Callback. Give a subclass "
                f"of it{hint}."
            )


class Evaluation(IterableDataset[tuple[tuple[Tensor, ...], int]]):
    """The held-out samples in batches, in order."""

    def __init__(self, scorer: Scorer, size: int) -> None:
        self.scorer = scorer
        self.size = size

    def __iter__(self) -> Iterator[tuple[tuple[Tensor, ...], int]]:
        """(inputs, how many rows are real)."""
        return self.scorer.batches(self.size)


class Unprofiled(PassThroughProfiler):
    """Measures nothing, and makes no generator for each of the forty actions of a step, as its parent does."""

    def profile(self, action_name: str) -> AbstractContextManager[None]:  # type: ignore[override]
        """Do nothing around an action."""
        return _NOTHING


def _trainer(ours: Sequence[Any], student: Student, context: Context, machine: Machine) -> pl.Trainer:
    """The Trainer; what Lightning refuses becomes an OptionError."""
    options, callbacks = student.options, [*ours, *context.callbacks]
    try:
        return pl.Trainer(
            max_epochs=options.epochs,
            accumulate_grad_batches=options.accumulate,
            callbacks=callbacks,
            logger=_loggers(context) or False,
            log_every_n_steps=student.log_every,
            enable_checkpointing=any(isinstance(c, Checkpoint) for c in callbacks),
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            profiler=Unprofiled(),
            **machine.arguments,
        )
    except (MisconfigurationException, RuntimeError, ValueError) as error:
        raise OptionError(f"{options.name}: Lightning refuses this training: {root_cause(error)}") from error


def _fit(trainer: pl.Trainer, student: Student, resumed: Path | None, context: Context) -> None:
    """Run the trainer; its way of ending on Ctrl-C becomes Python's."""
    handler = signal.getsignal(signal.SIGINT)
    held_out = torch.utils.data.DataLoader(Evaluation(student.scorer, 64), batch_size=None)
    try:
        with _Blame(context, trainer.loggers):
            trainer.fit(student, student.loader, held_out, ckpt_path=resumed, weights_only=False)
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        if signal.getsignal(signal.SIGINT) is not handler and handler is not None:
            signal.signal(signal.SIGINT, handler)


@dataclass(frozen=True)
class _Blame:
    """Makes an OptionError of what a callback of the user raises, and of a log that cannot be written."""

    context: Context
    loggers: Sequence[Any]

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """A callback may raise anything, so that errors are told apart by where they came up."""
        if not isinstance(error, Exception):
            return
        if isinstance(error, OSError) and _culprit(trace, self.loggers):
            raise OptionError(
                f"The log {str(self.context.log)!r} cannot be written: {error.strerror or error}. Give another --log."
            ) from error
        if culprit := _culprit(trace, self.context.callbacks):
            raise OptionError(
                f"The callback {culprit} failed: {type(error).__name__}: {root_cause(error)}"
            ) from error


def _culprit(trace: TracebackType | None, suspects: Sequence[Any]) -> str | None:
    """The suspect, and its method, in whose frames an error came up."""
    while trace is not None:
        owner = trace.tb_frame.f_locals.get("self")
        if any(owner is suspect for suspect in suspects):
            return f"{type(owner).__name__}.{trace.tb_frame.f_code.co_name}"
        trace = trace.tb_next
    return None


def _loggers(context: Context) -> list[Any]:
    """A CSV log, and a TensorBoard log where it is installed."""
    if context.log is None:
        return []
    from pytorch_lightning.loggers import CSVLogger

    folder = _log_folder(context.log, context)
    found: list[Any] = [CSVLogger(context.log, name="", version=folder)]
    try:
        from pytorch_lightning.loggers import TensorBoardLogger

        found.append(TensorBoardLogger(context.log, name="", version=folder))
    except ModuleNotFoundError:
        pass
    return found


def _log_folder(log: Path, context: Context) -> str:
    """A folder per pass; one that is taken up has another, for Lightning would empty that of the run before."""
    name = f"pass-{context.step}"
    earlier = len(list(Path(log).glob(f"{name}*"))) if context.resume else 0
    return f"{name}-resumed-{earlier}" if earlier else name


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning's advice is for people who wrote the loop; it is held back here."""
    names = ("pytorch_lightning", "lightning.pytorch", "lightning_fabric")
    levels = [(logging.getLogger(name), logging.getLogger(name).level) for name in names]
    for logger, _ in levels:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            for logger, level in levels:
                logger.setLevel(level)
