"""How far the exported model is from torch, on onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from compressor.errors import ModelError
from compressor.exporting.graph import relax_outputs
from compressor.exporting.inputs import Array, sizes_text
from compressor.model_io import as_written
from compressor.runtime import Session


class Run(NamedTuple):
    """One run in torch: symbol -> size, inputs by name, outputs in order."""

    sizes: dict[str, int]
    feeds: dict[str, Array]
    outputs: list[Array]


@dataclass(frozen=True)
class Difference:
    """One output at one size of the dynamic axes.

    Args:
        output: its name.
        sizes: symbol -> size.
        absolute: max |a - b|; infinite where only one of them is NaN or infinite.
        relative: `absolute` / max |a|, so in units of the largest value of the reference.
    """

    output: str
    sizes: dict[str, int]
    absolute: float
    relative: float


def compared(
    made: ir.Model, runs: Sequence[Run], tolerance: float
) -> tuple[ir.Model, tuple[Difference, ...]]:
    """The model as it goes to disk, output sizes that change made dynamic, and its differences from torch.

    Raises:
        ModelError: onnxruntime cannot run it, or the relative difference of an output is above `tolerance`.
    """
    model = as_written(made, {})
    session = Session(model)
    got = [session.run({name: run.feeds[name] for name in session.inputs}) for run in runs]
    found = [
        each
        for run, outputs in zip(runs, got, strict=True)
        for each in differences(session.outputs, run, outputs)
    ]
    worst = max(found, key=lambda each: each.relative, default=None)
    if worst is not None and worst.relative > tolerance:
        at = f" at {sizes_text(worst.sizes)}" if worst.sizes else ""
        raise ModelError(
            f"Output {worst.output!r} differs from torch by {worst.relative:.2g} of its largest value{at}; "
            f"{tolerance:g} is allowed (--tolerance)."
        )
    relax_outputs(model, [(run.sizes, outputs) for run, outputs in zip(runs, got, strict=True)])
    return model, tuple(found)


def differences(names: Sequence[str], run: Run, got: Sequence[Array]) -> tuple[Difference, ...]:
    """The difference of each output; ModelError when their number or a shape is not the same."""
    if len(run.outputs) != len(got):
        raise ModelError(f"torch gives {len(run.outputs)} outputs and the ONNX model {len(got)}.")
    made = []
    for name, a, b in zip(names, run.outputs, got, strict=True):
        if a.shape != b.shape:
            raise ModelError(
                f"Output {name!r} has shape {list(a.shape)} in torch and {list(b.shape)} on onnxruntime."
            )
        made.append(Difference(name, run.sizes, *_apart(a.astype(np.float64), b.astype(np.float64))))
    return tuple(made)


def _apart(a: Array, b: Array) -> tuple[float, float]:
    """(absolute, relative), both 0 for empty arrays."""
    finite = np.isfinite(a)
    if not np.array_equal(finite, np.isfinite(b)) or not np.array_equal(
        a[~finite], b[~finite], equal_nan=True
    ):
        return np.inf, np.inf
    absolute = float(np.max(np.abs(a[finite] - b[finite]), initial=0.0))
    largest = float(np.max(np.abs(a[finite]), initial=0.0))
    return absolute, absolute / largest if largest else absolute
