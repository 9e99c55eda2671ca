"""Solving the layers behind a cut again, so that each gives on calibration samples what it gave before.

A layer reads in the cut model what those before it, solved already, give, and is to make of it what it made in the
whole model: first what channel pruning by least squares does (He et al. 2017, arXiv:1707.06168, section 3.1), then the
same for the layers behind, which make up for what was left over. The arithmetic is in `least_squares`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnx_ir as ir

from compressor.errors import ModelError
from compressor.pipeline import Context
from compressor.pruning.layer_inputs import unfolded
from compressor.pruning.least_squares import Solution, Sums, solve
from compressor.pruning.solvable import Layer, can_shift, input_of, matrices, write
from compressor.pruning.stepping import Stepping
from compressor.pruning.unfolding import drawn

if TYPE_CHECKING:
    from compressor.data import Batch, Samples

_ROWS = 64
"""Rows that are taken from one sample: those of an image are much alike."""
_ENOUGH, _PER_COLUMN = 8192, 8
"""Rows that settle a layer of K columns: the larger of the first and K times the second."""
_SAMPLES, _BATCH = 512, 32
_BYTES = 2**30
"""Values that are kept of the model before and after the cut; beyond it samples are dropped."""


def reconstruct(
    model: ir.Model, before: ir.Model, found: Sequence[Layer], samples: Samples, context: Context
) -> dict[str, Solution]:
    """Solve the layers again, in place; node -> its solution.

    Args:
        model: after the cut.
        before: the same model before it, with the same names.
        found: what `solvable.layers` gave before the cut.
        samples: calibration samples; no more are read than settle each layer.
        context: threads and progress.
    """
    whole, smaller = Stepping(before, context.threads), Stepping(model, context.threads)
    sizes = [_start(batch, samples, whole, smaller) for batch in samples.take(_SAMPLES).batches(_BATCH)]
    nodes = {node.name: node for node in model.graph}
    solutions: dict[str, Solution] = {}
    for done, layer in enumerate(found):
        node = nodes[layer.node]
        source = str(input_of(node, 0).name)
        whole.run_until(whole.position(layer.made) + 1, {later.made for later in found[done:]})
        smaller.run_until(smaller.position(layer.node), (source,))
        _lighten(whole, smaller)
        pairs = zip(smaller.batches, whole.batches, sizes, strict=False)
        sums = _summed(node, layer, [(x[source], y[layer.made], size) for x, y, size in pairs])
        solutions[layer.node] = solve(sums, matrices(node, len(sums.x)), can_shift(node))
        write(model, node, solutions[layer.node])
        context.progress("reconstructing", done + 1, len(found))
    return solutions


class _Size(NamedTuple):
    """The samples of a batch, and its rows: more where the model fixes the batch."""

    samples: int
    rows: int

    def real(self, array: np.ndarray) -> np.ndarray:
        """What belongs to samples, where the first axis is the batch."""
        return array[: self.samples] if len(array) == self.rows else array


def _start(batch: Batch, samples: Samples, *models: Stepping) -> _Size:
    for stepping in models:
        stepping.start(batch.feeds)
    return _Size(batch.count, samples.rows(batch.feeds))


def _lighten(*models: Stepping) -> None:
    """Drop the last batches while the values that are kept take more memory than they should."""
    while sum(stepping.bytes for stepping in models) > _BYTES and len(models[0].batches) > 1:
        for stepping in models:
            stepping.batches.pop()


def _summed(node: ir.Node, layer: Layer, batches: Sequence[tuple[np.ndarray, np.ndarray, _Size]]) -> Sums:
    """Sums over the rows that the layer reads after the cut, and what it made of them before."""
    sums: Sums | None = None
    for read, made, size in batches:
        x = unfolded(node, size.real(read), size.samples * _ROWS)
        y = _rows(node, size.real(made))[:, layer.outputs]
        y = y[drawn(len(y), size.samples * _ROWS)].reshape(x.shape[1], len(x), -1).transpose(1, 0, 2)
        if not np.isfinite(x).all() or not np.isfinite(y).all():
            raise ModelError(
                f"{node.name!r} reads or makes NaN or infinity on the samples; mend them or the model."
            )
        sums = sums or Sums.empty(len(x), x.shape[2], y.shape[2])
        sums.add(x, np.ascontiguousarray(y))
        if sums.rows >= max(_ENOUGH, _PER_COLUMN * x.shape[2]):
            break
    if sums is None:
        raise ValueError("there is a batch")
    return sums


def _rows(node: ir.Node, made: np.ndarray) -> np.ndarray:
    """The outputs of a layer as [rows, outputs], in the order of `unfolded`."""
    last = np.moveaxis(made, 1, -1) if node.op_type == "Conv" else made
    return last.reshape(-1, last.shape[-1])
