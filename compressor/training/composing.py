"""Putting the loss of a training together: what the labels, the original and the old data ask for."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch

from compressor.errors import DataError, OptionError
from compressor.pipeline import Context
from compressor.training import continual
from compressor.training.batches import TrainingBatch
from compressor.training.bench import Bench
from compressor.training.divergence import first_bad
from compressor.training.likeness import distillation
from compressor.training.objective import Objective, objective
from compressor.training.options import Training
from compressor.training.reach import require_gradient
from compressor.training.teacher import Teacher
from compressor.training.terms import Terms


def compose(
    bench: Bench, options: Training, context: Context, original: ir.Model, first: TrainingBatch, count: int
) -> tuple[Terms, Teacher | None, int | None]:
    """The loss; the teacher when it is asked; and how many classes integer labels count.

    Args:
        bench: the model and its data.
        options: of the training.
        context: the labels, and the old samples of ewc.
        original: the teacher.
        first: any batch.
        count: the number of samples, old ones included.

    Raises:
        DataError: labels that do not fit, or a model that gives NaN.
        ModelError: no gradient reaches a weight.
        OptionError: options that do not fit the model or the labels.
    """
    labels = (
        None if context.train is None else context.train.labels
    )  # all, so that a bad row has its own number
    share = options.distill if options.distill != "auto" else float(labels is None and options.loss == "auto")
    _require_share(options, share)
    inputs = [tensor.to(bench.machine.device) for tensor in first.inputs]
    everything = _outputs(bench, options, inputs, first)
    outputs = everything[: bench.copy.outputs]
    labelled = objective(bench.copy.source, options, labels, outputs) if share < 1 else None
    teacher, distilled = None, None
    if share or options.lwf or bench.copy.values:
        teacher = Teacher(original, options, count, bench.machine.device)
        answers = teacher(inputs, first.rows).outputs
        _require_alike(options, outputs, answers)
        if share or options.lwf:
            distilled = distillation(bench.copy.source, options, answers, labelled.terms if labelled else ())
    seen = [term.index for term in labelled.terms] if labelled else range(len(everything))
    require_gradient(options.name, bench.network, inputs, seen)
    maps = continual.attention_values(bench.copy, options)
    memory = continual.memory(bench, options, context) if options.ewc else None
    classes = None if labelled is None or labels is None else _classes(labelled, labels, outputs)
    return Terms(options, labelled, distilled, share, maps, memory), teacher, classes


def _outputs(
    bench: Bench, options: Training, inputs: list[torch.Tensor], first: TrainingBatch
) -> list[torch.Tensor]:
    """What the network gives for the first batch; DataError when it is NaN before anything was trained."""
    with torch.no_grad():
        made = bench.network(*inputs)
    outputs = [made] if isinstance(made, torch.Tensor) else list(made)
    if any(bool(output.isnan().any()) for output in outputs):
        where = first_bad(bench.network, inputs, None, first.rows)
        raise DataError(
            f"{options.name}: the model gives NaN before it is trained: {where}. Look at this tensor."
        )
    return outputs


def _classes(labelled: Objective, labels: np.ndarray, outputs: list[torch.Tensor]) -> int | None:
    """How many classes integer labels count; None for labels that are values."""
    term = labelled.terms[0]
    output = outputs[term.index]
    return int(output.shape[term.form.axis]) if labels.dtype.kind in "iu" and output.ndim > 1 else None


def _require_share(options: Training, share: float) -> None:
    """Refuse options of the loss on labels where that has no share in the training."""
    standard = {"loss": "auto", "class_weights": "none", "label_smoothing": 0.0}
    idle = [name for name, value in standard.items() if getattr(options, name) != value]
    if share == 1 and idle:
        why = "distill=1 leaves it no share" if options.distill == 1 else "the training data has no labels"
        raise OptionError(
            f"{options.name}: {idle[0]}={getattr(options, idle[0])!r} is of the loss on labels, but {why}. Leave it "
            "out, or give labels and distill below 1."
        )


def _require_alike(options: Training, outputs: list[torch.Tensor], answers: tuple[torch.Tensor, ...]) -> None:
    for ours, theirs in zip(outputs, answers, strict=True):
        if ours.shape != theirs.shape:
            raise OptionError(
                f"{options.name}: the original's output is {list(theirs.shape)} and this model's {list(ours.shape)}, "
                "so the original cannot teach it. Train on labels: distill=0 lwf=0."
            )
