"""From a torch model to an ONNX file that can be trained on and compressed, checked against torch.

torch's exporter (torch.onnx.export with dynamo) does the translation. What is added: names and BatchNormalization
that stay, parity with torch on onnxruntime at two sizes, one line instead of a screen of traceback, and no
half-written file.
"""

from __future__ import annotations

import io
import os
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import onnx_ir as ir

from compressor.errors import CompressorError, ModelError, OptionError, root_cause
from compressor.exporting.failure import explain
from compressor.exporting.graph import forget_notes, tidied
from compressor.exporting.inputs import Array, Axes, sizes_text, type_text
from compressor.exporting.parity import Difference, Run, compared
from compressor.exporting.silence import caught
from compressor.exporting.source import file_of
from compressor.graph import opset as opset_of
from compressor.model_io import VERSION_KEY, check_target, save, tool_version, write_text
from compressor.user_code import FOREIGN

if TYPE_CHECKING:
    import torch

    from compressor.exporting.binding import Job, Traceable

    Source = str | os.PathLike[str] | Traceable
    Example = str | torch.Tensor | Array

OLDEST_OPSET = 18
"""The operator set that torch's exporter is written in; it cannot go below."""


@dataclass(frozen=True)
class Exported:
    """What was written, and how far it is from torch.

    Args:
        files: the model, then its data file when it has one.
        opset: of the file.
        inputs: name -> element type and shape, as in 'float[batch,3,224,224]'.
        outputs: likewise.
        parity: every output at the size of the export and, with dynamic axes, at a second one.
        parameters: how many parameters the torch model has.
        missing: those of them that are no initializers of the file under their own names: unused ones, and with
            `trainable=False` what was folded.
        notes: what could not be checked or done.
    """

    files: tuple[Path, ...]
    opset: int
    inputs: dict[str, str]
    outputs: dict[str, str]
    parity: tuple[Difference, ...]
    parameters: int
    missing: tuple[str, ...]
    notes: tuple[str, ...]


def export(
    source: Source,
    output: str | os.PathLike[str],
    inputs: Example | Sequence[Example] | Mapping[str, torch.Tensor | Array] = (),
    *,
    dynamic: str | Sequence[str] = (),
    opset: int | None = None,
    trainable: bool = True,
    tolerance: float = 1e-3,
    force: bool = False,
) -> Exported:
    """Export a torch model to ONNX in eval mode, compare both on onnxruntime, then write the file.

    Args:
        source: 'module_or_file.py:factory', the path of a torch.export `.pt2` file, a Module or an ExportedProgram.
        output: the .onnx file; weights go to a file beside it from 1.9 GB on.
        inputs: example inputs, as texts like 'x=1x3x224x224:float32' or tensors. They are bound by name when all
            names are parameters of `forward`, else in order. A `.pt2` file brings its own.
        dynamic: 'batch' makes axis 0 of all inputs dynamic, 'NAME:AXIS=SYMBOL' another one.
        opset: from 18 on; None is torch's choice.
        trainable: keep BatchNormalization and the parameters' names. False folds and fuses for deployment.
        tolerance: largest difference from torch, in units of an output's largest value.
        force: replace an existing output.

    Raises:
        ModelError: the source cannot be loaded, run or exported, or the result differs from torch. When the
            exporter fails, everything that it said is in OUTPUT.export.log.
        OptionError: inputs, axes, opset or output are not possible; torch is not installed.
    """
    _require_torch()
    from compressor.exporting import binding, capture

    target = Path(output)
    _check(source, target, opset, tolerance, force)
    with caught() as said:
        axes = (dynamic,) if isinstance(dynamic, str) else dynamic
        job = binding.bound(capture.loaded(source), inputs, axes)
        with capture.evaluating(job.model):
            runs = capture.torch_runs(job)
            with _explained(_log_of(target), job, said):
                raw = capture.translated(job, runs[0], opset, trainable)
        _check_made(raw, job.axes, opset)
        model, parity, notes = _nearest(raw, runs, trainable, tolerance)
    if job.axes and len(runs) == 1:
        only = sizes_text(runs[0].sizes)
        notes += (f"Checked at {only} only: torch itself raises at the other sizes tried.",)
    files = save(model, target, metadata={VERSION_KEY: tool_version()})
    _log_of(target).unlink(missing_ok=True)  # of an attempt before this one
    names = capture.parameter_names(job.model)
    return Exported(
        files=files,
        opset=opset_of(model),
        inputs={str(v.name): type_text(v) for v in model.graph.inputs},
        outputs={str(v.name): type_text(v) for v in model.graph.outputs},
        parity=parity,
        parameters=len(names),
        missing=tuple(min(tied) for tied in names if tied.isdisjoint(model.graph.initializers)),
        notes=notes,
    )


def _require_torch() -> None:
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise OptionError("Exporting needs torch. Install it: pip install onnx-compressor[train].") from error


def _log_of(target: Path) -> Path:
    return target.with_name(f"{target.name}.export.log")


@contextmanager
def _explained(log: Path, job: Job, said: io.StringIO) -> Iterator[None]:
    """Turn what the exporter raises into one sentence, and write all that it said to the log."""
    try:
        yield
    except FOREIGN as error:
        write_text(log, said.getvalue() + "".join(traceback.format_exception(error)))
        reason = explain(error, dict(zip(job.parameters, job.inputs, strict=False)))
        raise ModelError(f"The export failed: {reason} The full log is in {str(log)!r}.") from error


def _check(source: object, target: Path, opset: int | None, tolerance: float, force: bool) -> None:
    """Refuse, before any work, what cannot end well."""
    place = file_of(os.fspath(source)) if isinstance(source, (str, os.PathLike)) else None
    check_target(target, (place,) if place is not None and place.exists() else (), force)
    newest = onnx.defs.onnx_opset_version()
    if opset is not None and not OLDEST_OPSET <= opset <= newest:
        raise OptionError(
            f"opset must be from {OLDEST_OPSET} to {newest} with torch's exporter, got {opset}."
        )
    if not tolerance >= 0:
        raise OptionError(f"tolerance must be 0 or more, got {tolerance!r}.")


def _check_made(model: ir.Model, axes: Axes, opset: int | None) -> None:
    """Refuse a file that is not what was asked for."""
    if opset is not None and opset_of(model) != opset:
        raise ModelError(f"torch's exporter gives opset {opset_of(model)} for this model, not {opset}.")
    for value in model.graph.inputs:
        for axis, symbol in axes.get(str(value.name), {}).items():
            if value.shape is None or isinstance(value.shape[axis], int):
                raise ModelError(
                    f"Axis {axis} of input {value.name!r} is fixed in the program and cannot become {symbol!r}. "
                    "Give torch.export.export its dynamic_shapes."
                )


def _nearest(
    raw: ir.Model, runs: Sequence[Run], trainable: bool, tolerance: float
) -> tuple[ir.Model, tuple[Difference, ...], tuple[str, ...]]:
    """The cleaned model, its parity and notes; the model as torch wrote it where cleaning changes the result."""
    forget_notes(raw)
    notes: tuple[str, ...] = ()
    if trainable:
        try:
            return *compared(tidied(raw), runs, tolerance), notes
        except (CompressorError, *FOREIGN) as error:
            notes = (f"The graph is as torch wrote it, because tidying fails: {root_cause(error)}",)
    try:
        return *compared(raw, runs, tolerance), notes
    except CompressorError as error:
        hint = "another --opset." if trainable else "another --opset, or no --fold."
        raise ModelError(
            f"{error} Nothing was written. If the model draws no random numbers, try {hint}"
        ) from error
