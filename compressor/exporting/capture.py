"""A torch model: loading it, running it, and letting torch's exporter translate it."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx_ir as ir
import torch
from torch.utils import _pytree as pytree

from compressor.errors import ModelError
from compressor.exporting.binding import Job, Traceable, arguments, as_array, dynamic_shapes
from compressor.exporting.failure import place_of
from compressor.exporting.inputs import other_sizes, resized, sizes
from compressor.exporting.parity import Run
from compressor.exporting.source import made_by
from compressor.user_code import FOREIGN


def loaded(source: object) -> Traceable:
    """The model that a source is, names or makes; ModelError when it is none, or a program in training mode."""
    kinds = (torch.nn.Module, torch.export.ExportedProgram)
    found = source
    if isinstance(source, (str, os.PathLike)):
        text = os.fspath(source)
        found = _program(Path(text)) if text.endswith(".pt2") else made_by(text, kinds)
    if not isinstance(found, kinds):
        who = "The source" if found is source else f"What {source} gives"
        raise ModelError(
            f"{who} is of type {type(found).__name__}. Give a torch.nn.Module, or a factory that returns one."
        )
    if isinstance(found, torch.export.ExportedProgram):
        _require_eval(found)
    return found


@contextmanager
def evaluating(model: Traceable) -> Iterator[None]:
    """Eval mode inside; afterwards each submodule is in the mode that it was in."""
    if not isinstance(model, torch.nn.Module):
        yield
        return
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def torch_runs(job: Job) -> tuple[Run, ...]:
    """What torch gives at the sizes of the export and, with dynamic axes, at the first others that it takes."""
    program = job.model if isinstance(job.model, torch.export.ExportedProgram) else None
    call: Callable[..., object] = job.model if program is None else program.module()

    def run(at: dict[str, int]) -> Run:
        feeds = resized(job.inputs, job.axes, at)
        args, kwargs = arguments(job, feeds)
        with torch.no_grad():
            leaves = pytree.tree_leaves(call(*args, **kwargs))
        return Run(at, feeds, [as_array(leaf) for leaf in leaves if isinstance(leaf, torch.Tensor)])

    traced = sizes(job.axes, job.inputs)
    try:
        first = run(traced)
    except FOREIGN as error:
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        shapes = ", ".join(f"{name} {a.dtype}{list(a.shape)}" for name, a in job.inputs.items())
        raise ModelError(f"The model raises on the inputs {shapes}: {said}{place_of(error)}.") from error
    enlarged = {symbol: size for symbol, size in job.given.items() if size != traced[symbol]}
    for at in other_sizes(traced) if traced else ():
        try:
            return first, run(at | enlarged)
        except FOREIGN:
            continue  # a length that the model does not take; the next may be one
    return (first,)


def translated(job: Job, first: Run, opset: int | None, trainable: bool) -> ir.Model:
    """torch's own export. What it raises is as various as its parts."""
    args, kwargs = arguments(job, first.feeds)
    program = torch.onnx.export(
        job.model,
        args,
        kwargs=kwargs,
        input_names=list(job.inputs),
        dynamic_shapes=dynamic_shapes(job) if job.axes else None,
        opset_version=opset,
        dynamo=True,
        verbose=False,
        optimize=not trainable,
    )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    made: ir.Model = program.model
    return made


def parameter_names(model: Traceable) -> list[set[str]]:
    """The names of each parameter; a tied one has several."""
    if not isinstance(model, torch.nn.Module):
        return [{name} for name, _ in model.named_parameters()]
    groups: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), set()).add(name)
    return list(groups.values())


def _program(path: Path) -> torch.export.ExportedProgram:
    if not path.is_file():
        raise ModelError(f"There is no file {str(path)!r}.")
    try:
        return torch.export.load(path)
    except (*FOREIGN, zipfile.BadZipFile, pickle.UnpicklingError) as error:
        raise ModelError(
            f"{str(path)!r} is truncated, or not a file of torch.export.save. Save the program again."
        ) from error


def _require_eval(program: torch.export.ExportedProgram) -> None:
    """Refuse a program that was captured in training mode: it cannot be switched back."""
    training_argument = {"aten.dropout.default": 2, "aten.batch_norm.default": 5}
    for node in program.graph.nodes:
        at = training_argument.get(str(node.target))
        if at is not None and len(node.args) > at and node.args[at] is True:
            raise ModelError(
                f"The program was captured in training mode: {node.name!r} would stay random or depend on the batch. "
                "Call model.eval() before torch.export.export."
            )
