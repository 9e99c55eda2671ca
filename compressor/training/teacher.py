"""The original as a teacher: its answers for a batch, from onnxruntime or torch, and kept where they fit.

teacher = Teacher(original, options, count=len(samples), device=device)
outputs, values = teacher(inputs, rows)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from compressor.errors import CompressorError, ModelError, root_cause
from compressor.runtime import Session, Setup, available
from compressor.training.answer_cache import AnswerCache
from compressor.training.exposing import matching, with_outputs
from compressor.training.options import Training

Runner = Callable[[Sequence[Tensor]], list[Tensor]]
"""The graph's inputs in order -> its outputs in order, on the teacher's device."""


class Answers(NamedTuple):
    """The original's outputs in order, and the values that `features` and `attention` name, by name."""

    outputs: tuple[Tensor, ...]
    values: dict[str, Tensor]


class Teacher:
    """The original model; called as (inputs, rows).

    Answers are kept by sample number when those of all samples fit in `cache_mb` and the inputs are not augmented:
    from the second epoch on the original does not run. They are kept in the main memory, one tensor per output, and
    not at all where an output has no batch axis or its shape differs between samples. Under autocast a teacher in
    torch computes in half precision, as the student does.

    `teacher='auto'` times both on the first batch and keeps the faster one. On the CPU it takes onnxruntime, if that
    can load the original, without timing: there onnxruntime was faster on 13 of 14 models tried and 0.3 ms slower on
    the other, and a choice by the clock would make a run with the same seed end in other last digits.

    Args:
        model: the original; it is not changed.
        options: `features`, `attention`, `teacher`, `cache_mb`, and `augment`, which switches keeping off.
        count: the number of training samples; rows are below it.
        device: where the student is; answers are given there.

    Raises:
        OptionError: a pattern of `features` or `attention` matches no value.
        ModelError: neither onnxruntime nor torch, or not the chosen one, can load the original.
    """

    def __init__(self, model: ir.Model, options: Training, count: int, device: torch.device) -> None:
        self.values = matching(model, (*options.features, *options.attention))
        self._outputs = len(model.graph.outputs)
        shown = with_outputs(model, self.values)
        self._names = [str(value.name) for value in shown.graph.outputs]
        self._runners = _runners(shown, options, device)
        self._cache = (
            None if options.augment or not count else AnswerCache(count, int(options.cache_mb * 1e6))
        )
        self._device = device

    @property
    def runs_on(self) -> str:
        """'onnxruntime' or 'torch', or both until the first batch has decided, '/' between."""
        return "/".join(self._runners)

    def __call__(self, inputs: Sequence[Tensor], rows: Tensor) -> Answers:
        """The answers for a batch.

        Args:
            inputs: the graph's inputs in order, on any device.
            rows: the samples' numbers [n].
        """
        rows = rows.cpu()
        found = self._cache.get(rows) if self._cache else None
        if found is None:
            found = self._run(inputs)
            if self._cache:
                self._cache.put(rows, found)
        found = [tensor.to(self._device, non_blocking=True) for tensor in found]
        return Answers(
            tuple(found[: self._outputs]), {name: found[self._names.index(name)] for name in self.values}
        )

    def _run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        if len(self._runners) > 1:
            self._runners = _fastest(self._runners, inputs)
        (name,) = self._runners
        try:
            return self._runners[name](inputs)
        except CompressorError as error:
            raise ModelError(f"teacher={name!r}: the original does not run on the data: {error}") from error


def _runners(model: ir.Model, options: Training, device: torch.device) -> dict[str, Runner]:
    """What can run the model, of what the options allow."""
    makers = {"onnxruntime": _onnxruntime, "torch": _torch}
    wanted = list(makers) if options.teacher == "auto" else [options.teacher]
    enough = 1 if device.type == "cpu" else len(wanted)
    found: dict[str, Runner] = {}
    reasons = []
    for name in wanted:
        if len(found) == enough:
            break
        try:
            found[name] = makers[name](model, device)
        except CompressorError as error:
            reasons.append(f"{name}: {str(error).rstrip('.')}.")
    if not found:
        raise ModelError(
            f"{options.name}: the original cannot run as a teacher. {' '.join(reasons)} Train on labels with distill=0."
        )
    return found


def _onnxruntime(model: ir.Model, device: torch.device) -> Runner:
    provider = "cuda" if device.type == "cuda" and "cuda" in available() else "cpu"
    # idle onnxruntime threads must not burn the cores that torch computes on
    session = Session(model, Setup(provider, threads=torch.get_num_threads(), spin=False))

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        arrays = [tensor.detach().cpu().numpy() for tensor in inputs]
        answers = session.run(dict(zip(session.inputs, arrays, strict=True)))
        if not all(isinstance(array, np.ndarray) for array in answers):
            raise ModelError(
                "An output is a sequence or a map, which has no gradient. Cut it from the model."
            )
        return [torch.from_numpy(array).to(device) for array in answers]

    return run


def _torch(model: ir.Model, device: torch.device) -> Runner:
    from compressor.torch_graph import to_torch

    module = to_torch(model).eval().to(device)

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        try:
            with torch.no_grad():
                answers = module(*(tensor.to(device) for tensor in inputs))
        except torch.OutOfMemoryError:
            raise  # the caller may try a smaller batch
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise ModelError(f"torch cannot run the model: {root_cause(error)}") from error
        return [answers] if isinstance(answers, Tensor) else list(answers)

    return run


def _fastest(runners: dict[str, Runner], inputs: Sequence[Tensor]) -> dict[str, Runner]:
    """The one that answers a batch first, each timed on its second call; the other is let go."""
    seconds: dict[str, float] = {}
    reasons = []
    for name, run in runners.items():
        try:
            seconds[name] = _time(run, inputs)
        except CompressorError as error:
            reasons.append(f"{name}: {str(error).rstrip('.')}.")
    if not seconds:
        raise ModelError(f"The original does not run on the data. {' '.join(reasons)}")
    best = min(seconds, key=lambda name: seconds[name])
    return {best: runners[best]}


def _time(run: Runner, inputs: Sequence[Tensor]) -> float:
    run(inputs)
    start = time.perf_counter()
    answers = run(inputs)
    for answer in answers:
        answer.cpu()  # waits for the device
    return time.perf_counter() - start
