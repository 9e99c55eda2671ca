"""The state of a training on disk: written after every epoch, and found again by what the training starts from."""

from __future__ import annotations

import hashlib
import os
import zipfile
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint

from compressor.errors import DataError, OptionError
from compressor.pipeline import Context
from compressor.training.options import Training

_COMPARED = 64
"""Samples that tell one set of data from another; all of them would be read twice."""


class Safeguard(Checkpoint):
    """Saves all that is needed to go on, after every epoch; a file is replaced only by a whole one.

    As one of Lightning's checkpoint callbacks it acts after all others, and saves what these hold at that time.

    Args:
        path: the file; its folder is made.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.over = False

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Make the folder; OptionError when that cannot be."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OptionError(
                f"The checkpoint folder {str(self.path.parent)!r} cannot be made: {error.strerror}. Give another "
                "--checkpoint."
            ) from error

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """A training that was over before its last epoch stays so."""
        trainer.should_stop = trainer.should_stop or self.over

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Write the checkpoint beside the old one, then take its place; OptionError when it cannot be written."""
        self.over = trainer.should_stop
        staged = self.path.with_suffix(".writing")
        try:
            trainer.save_checkpoint(staged)
            if trainer.is_global_zero:
                _flush(staged)
                staged.replace(self.path)
        except OSError as error:
            staged.unlink(missing_ok=True)
            raise OptionError(
                f"The checkpoint {str(self.path)!r} cannot be written: {error.strerror or error}. Free some space or "
                "give another --checkpoint folder; with --resume the training goes on from the last whole one."
            ) from error

    def state_dict(self) -> dict[str, Any]:
        """Whether no more epochs follow."""
        return {"over": self.over}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.over = state_dict["over"]


def checkpoint_file(model: ir.Model, options: Training, context: Context) -> Path | None:
    """Where the state of this very training is kept; None without a workspace.

    Its name holds the number of the pass and a digest of the model as it comes, of the pass, the metric, the seed,
    the prunings on the way and the data: their sizes and their first samples.

    Raises:
        OptionError: resuming without a workspace.
        DataError: resuming, and the folder has a checkpoint of this pass, but of another training; or a damaged one.
    """
    if context.workspace is None and context.resume:
        raise OptionError(f"{options.name}: resume needs the folder of a checkpoint. Give checkpoint=FOLDER.")
    if context.workspace is None:
        return None
    path = Path(context.workspace) / f"{context.step}-{_digest(model, options, context)}.ckpt"
    if context.resume:
        _require_own(path, context.step)
    return path


def _require_own(path: Path, step: int) -> None:
    """Refuse to begin anew where a checkpoint was expected to fit, and to go on from half a file."""
    others = sorted(path.parent.glob(f"{step}-*.ckpt"))
    if others and path not in others:
        raise DataError(
            f"The checkpoint {str(others[0])!r} is of another training: the model, the recipe, the data, the metric or "
            "the seed differ. Run without --resume, or give the same ones again."
        )
    if path in others and not _whole(path):
        raise DataError(
            f"The checkpoint {str(path)!r} is damaged. Remove it, or run without --resume, to train from the beginning."
        )


def _whole(path: Path) -> bool:
    """Whether every part of the archive that torch writes agrees with its checksum."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, EOFError, NotImplementedError):
        return False


def _digest(model: ir.Model, options: Training, context: Context) -> str:
    digest = hashlib.sha256(f"{options} {context.metric} {context.seed} {context.gradual}".encode())
    for node in model.graph:
        digest.update(ir.to_proto(node).SerializeToString(deterministic=True))
    for name, value in sorted(model.graph.initializers.items()):
        digest.update(name.encode())
        if value.const_value is not None:
            digest.update(value.const_value.tobytes())
    for samples in (context.train, context.data, context.old):
        if samples is not None:
            digest.update(f"{len(samples)} {samples.take(_COMPARED).fingerprint()}".encode())
    return digest.hexdigest()[:16]


def _flush(path: Path) -> None:
    """Let the disk have the file before its name means anything."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
