"""What the report says of a training."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compressor.pipeline import Context
from compressor.torch_graph.parameters import array_of, constants
from compressor.training.student import Student


def figures(student: Student, context: Context, before: float) -> dict[str, float | str]:
    """The scores and how they were reached; `before` is the score before the first step."""
    done = student.outcome
    return {
        "score": student.scorer.name,
        "score before": before,
        "score after": done["best"],
        "scored on": _scored_on(student, context),
        "best epoch": done["best_epoch"],
        "epochs": done["epochs"],
        **({"resumed after epoch": done["resumed"]} if context.resume else {}),
        "steps": done["steps"],
        "samples per second": done["samples per second"],
        "rate": student.options.lr,
        "batch": student.options.batch,
    }


def _scored_on(student: Student, context: Context) -> str:
    if context.data is not None:
        return "evaluation samples"
    return "training samples" if student.scorer.samples is context.train else "held-out training samples"


def declined(student: Student) -> dict[str, str]:
    """Why the weights are not those that were trained: it went astray, or no epoch beat what it began with."""
    done = student.outcome
    if done["fault"]:
        return {"training": f"{done['fault']}; the weights are those of the epochs before"}
    if done["best_epoch"] or not done["scores"]:
        return {}
    nearest = (max if student.scorer.higher_is_better else min)(done["scores"])
    return {
        "training": f"no epoch scored better than the weights it began with ({done['best']:.4f}; the best epoch "
        f"{nearest:.4f}), and these are kept; keep='last' takes the trained ones"
    }


def changed(before: ir.Model, after: ir.Model) -> tuple[str, ...]:
    """The initializers, and outputs of Constant nodes, whose values are not what they were."""
    old = {str(value.name): array_of(value) for value in constants(before)}
    new = {str(value.name): array_of(value) for value in constants(after)}
    return tuple(name for name in new if name in old and not np.array_equal(old[name], new[name]))
