"""What layers with weights read on samples: their inputs as rows of a matrix, and the sums of products of those rows.

A layer is written as Y = X W^T for each group: X float32 [groups, rows, K], a row for each output position, and
W [groups, outputs of a group, K]. K runs as in the stored weight: over the input channels of the group, then over the
kernel positions, the last fastest (`weight.reshape(outputs, -1)` of a Conv).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from compressor.errors import ModelError
from compressor.graph import attribute
from compressor.pruning.unfolding import convolution_rows, drawn, transposed_rows
from compressor.watching import watch

if TYPE_CHECKING:
    from compressor.data import Samples

_ROWS = 64
"""Rows that are taken from one sample: those of an image are much alike."""
_ENOUGH, _PER_COLUMN = 8192, 8
"""Rows that settle a sum of products of K columns: the larger of the first and K times the second."""


@dataclass
class Gram:
    """Sums over the rows of X, and of X0: the same rows in another model, as it was before it was changed.

    Args:
        products: X^T X, float64 [groups, K, K].
        crossed: X0^T X, float64 [groups, K, K]; equals `products` without another model.
        rows: how many rows were summed.
    """

    products: np.ndarray
    crossed: np.ndarray
    rows: int = 0

    @classmethod
    def zero(cls, x: np.ndarray) -> Gram:
        """The sum over no rows, for rows as those of x."""
        shape = (x.shape[0], x.shape[2], x.shape[2])
        return cls(np.zeros(shape), np.zeros(shape))

    def add(self, x: np.ndarray, x0: np.ndarray | None = None) -> None:
        """Count rows in: float32 [groups, rows, K]. Multiplied in float32 and summed in float64."""
        products = x.transpose(0, 2, 1) @ x
        self.products += products
        self.crossed += products if x0 is None else x0.transpose(0, 2, 1) @ x
        self.rows += x.shape[1]

    def __add__(self, other: Gram) -> Gram:
        """The sums over the rows of both."""
        products, crossed = self.products + other.products, self.crossed + other.crossed
        return Gram(products, crossed, self.rows + other.rows)


def source(node: ir.Node) -> ir.Value | None:
    """The value whose rows a layer multiplies by its weights; None where that is not one value of the graph."""
    if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul", "Attention", "LSTM", "GRU", "RNN"):
        return node.inputs[1 if _on_the_left(node) else 0]
    return None


def refusal(model: ir.Model, node: ir.Node, weight: int) -> str | None:
    """Why the rows that input number `weight` of a node is multiplied by cannot be had, or None."""
    read = source(node)
    if read is None:
        return f"{node.op_type} does not multiply rows by it"
    if node.op_type in ("LSTM", "GRU", "RNN") and weight != 1:
        return f"{node.op_type} multiplies it by its own state, which no value of the graph holds"
    if node.graph is not model.graph:
        return "it is in the body of a control-flow operator, where values cannot be watched"
    held = node.inputs[weight]
    if node.op_type == "MatMul" and (held is None or held.shape is None or len(held.shape) != 2):
        return "its weight is not one matrix"
    return None


def unfolded(node: ir.Node, array: np.ndarray, rows: int | None = None) -> np.ndarray:
    """What a layer read as rows: float32 [groups, rows, K]; their product with the weights is its output.

    Args:
        node: Conv, ConvTranspose (of any number of axes), Gemm, MatMul with one matrix, Attention, or LSTM, GRU and
            RNN, of which it is what W multiplies.
        array: its data input (`source`).
        rows: how many to take at most, evenly drawn; None for all, in the order of the output's positions
            [sample, *position]. Equal shapes give equal choices.

    Raises:
        ModelError: the node is none of these.
    """
    if node.op_type == "Conv":
        return convolution_rows(node, array, rows)
    if node.op_type == "ConvTranspose":
        return transposed_rows(node, array, rows)
    if source(node) is None:
        raise ModelError(f"{node.name!r}: {node.op_type} does not multiply rows by a weight.")
    turned = _on_the_left(node) or (node.op_type == "Gemm" and attribute(node, "transA", 0))
    upright = np.swapaxes(array, -1, -2) if turned and array.ndim > 1 else array
    flat = upright.reshape(-1, upright.shape[-1])
    return np.ascontiguousarray(flat[drawn(len(flat), rows)], np.float32)[None]


def grams(
    model: ir.Model,
    layers: Iterable[ir.Node],
    samples: Samples,
    threads: int = 0,
    reference: ir.Model | None = None,
) -> dict[ir.Node, Gram]:
    """The sums of products of what each layer of the main graph reads, over rows drawn from the samples.

    At most 64 rows are taken from a sample, and no more samples than settle every sum.

    Args:
        model: whose layers they are; stays as it was.
        layers: for which `refusal` has no reason.
        samples: read from the start.
        threads: of onnxruntime; 0 is its own choice.
        reference: another model with the same names, whose rows are multiplied too (`Gram.crossed`).
    """
    found: dict[ir.Node, Gram] = {}
    nodes = list(layers)
    others = repeat(None) if reference is None else _rows(reference, nodes, samples, threads)
    for (node, x), other in zip(_rows(model, nodes, samples, threads), others, strict=False):
        found.setdefault(node, Gram.zero(x)).add(x, None if other is None else other[1])
    return found


def square_norms(
    model: ir.Model, layers: Iterable[ir.Node], samples: Samples, threads: int = 0
) -> dict[ir.Node, np.ndarray]:
    """The mean square of each column of X, float64 [groups, K]: the diagonal of `grams` over its rows."""
    sums: dict[ir.Node, np.ndarray] = {}
    counts: dict[ir.Node, int] = {}
    for node, x in _rows(model, layers, samples, threads):
        sums[node] = sums.get(node, 0.0) + np.einsum("grk,grk->gk", x, x, dtype=np.float64)
        counts[node] = counts.get(node, 0) + x.shape[1]
    return {node: total / counts[node] for node, total in sums.items()}


def _rows(
    model: ir.Model, layers: Iterable[ir.Node], samples: Samples, threads: int
) -> Iterator[tuple[ir.Node, np.ndarray]]:
    """Rows of every layer, batch by batch, until each has enough."""
    reads = {node: str(value.name) for node in layers if (value := source(node)) is not None}
    missing = dict.fromkeys(reads, np.inf)
    for arrays, count in watch(model, reads.values(), samples, threads):
        for node, name in reads.items():
            x = unfolded(node, arrays[name], count * _ROWS)
            if not np.isfinite(x).all():
                raise ModelError(
                    f"Value {name!r} becomes NaN or infinite on the samples; mend them or the model."
                )
            if np.isinf(missing[node]):
                missing[node] = max(_ENOUGH, _PER_COLUMN * x.shape[2])
            missing[node] -= x.shape[1]
            yield node, x
        if all(rows <= 0 for rows in missing.values()):
            return


def _on_the_left(node: ir.Node) -> bool:
    """True for MatMul(W, x)."""
    if node.op_type != "MatMul":
        return False
    first, second = node.inputs[0], node.inputs[1]
    return first is not None and second is not None and _is_weight(first) and not _is_weight(second)


def _is_weight(value: ir.Value) -> bool:
    """True for an initializer, also behind Transpose, Identity, Cast or DequantizeLinear."""
    node = value.producer()
    while node is not None and node.op_type in ("Transpose", "Identity", "Cast", "DequantizeLinear"):
        before = node.inputs[0]
        if before is None:
            return False
        value, node = before, before.producer()
    return value.is_initializer()
