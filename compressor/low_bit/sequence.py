"""Coding layer after layer in the order of the graph, each on what those before it, already coded, make of samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnx_ir as ir

from compressor.errors import ModelError
from compressor.low_bit import matching
from compressor.low_bit.binary_activations import BinaryInputs
from compressor.low_bit.coded_weights import CodedWeight, rows_of
from compressor.low_bit.codes import BINARY, Method
from compressor.low_bit.compensation import gptq
from compressor.low_bit.methods import encode
from compressor.low_bit.options import Coding
from compressor.low_bit.outcome import Outcome
from compressor.low_bit.signs import Sign
from compressor.pipeline import Context
from compressor.pruning.layer_inputs import Gram, source, unfolded
from compressor.pruning.prunable import Weight
from compressor.pruning.stepping import Stepping
from compressor.pruning.weight_importance import watched_uses

if TYPE_CHECKING:
    from compressor.data import Samples

_ROWS = 64
"""Rows that are taken from one sample: those of an image are much alike."""
_BROKEN = "Value {!r} becomes NaN or infinite on the samples; mend them or the model."
_SAMPLES, _BATCH = 512, 32
_BYTES = 2**30
"""Values that are kept of both models; beyond it samples are dropped."""


def code_in_order(
    outcome: Outcome,
    chosen: Mapping[str, Weight],
    methods: Mapping[str, Method],
    wanted: Coding,
    context: Context,
) -> None:
    """Code the weights; those whose inputs cannot be watched, and those that others read too, first and by themselves.

    Raises:
        ModelError: a layer reads or makes NaN or infinity on the samples.
    """
    if context.calibration is None:
        raise ValueError("the pass checks for samples")
    model = outcome.model
    order = {node: place for place, node in enumerate(model.graph)}
    uses = {name: [] if weight.shared else watched_uses(model, weight) for name, weight in chosen.items()}
    outcome.alone += [name for name, nodes in uses.items() if not nodes]
    for name in outcome.alone:
        codes = encode(rows_of(chosen[name], wanted.block), methods[name])
        outcome.put(chosen[name], codes, methods[name], wanted.block)
    waiting = sorted((nodes[0] for nodes in uses.values() if nodes), key=lambda node: order[node])
    names = {nodes[0]: name for name, nodes in uses.items() if nodes}
    pair = _Pair(model, context.calibration, context.threads)
    if wanted.signs is not None:
        outcome.inputs = BinaryInputs(model, outcome.names, wanted.signs)
    for done, node in enumerate(waiting):
        context.progress("coding layers", done, len(waiting))
        pair.reach(node)
        coded = _coded(outcome, pair, node, chosen[names[node]], (methods[names[node]], wanted))
        if wanted.match and matching.can_match(node, coded):
            last = order[waiting[done + 1]] if done + 1 < len(waiting) else len(order)
            end = matching.end_of(node)
            _match(outcome, pair, (node, end if order[end] < last else node), coded)


class _Size(NamedTuple):
    """The samples of a batch, and its rows: more where the model fixes the batch."""

    samples: int
    rows: int

    def real(self, array: np.ndarray) -> np.ndarray:
        """What belongs to samples, where the first axis is the batch."""
        return array[: self.samples] if len(array) == self.rows else array


class _Pair:
    """The model that is being coded and the one that it was, run side by side on batches of samples."""

    def __init__(self, model: ir.Model, samples: Samples, threads: int) -> None:
        self.now, self.before = Stepping(model, threads), Stepping(model.clone(), threads)
        self.sizes: list[_Size] = []
        for batch in samples.take(_SAMPLES).batches(_BATCH):
            self.now.start(batch.feeds)
            self.before.start(batch.feeds)
            self.sizes.append(_Size(batch.count, samples.rows(batch.feeds)))

    def reach(self, node: ir.Node, behind: bool = False) -> None:
        """Run both up to a node, or up to what is behind it; its inputs, or its outputs, are there then."""
        stop = self.now.position(str(node.outputs[0].name)) + behind
        kept = [str(value.name) for value in (node.outputs if behind else node.inputs) if value is not None]
        self.now.run_until(stop, kept)
        self.before.run_until(stop, kept)
        while self.now.bytes + self.before.bytes > _BYTES and len(self.now.batches) > 1:
            self.now.batches.pop()
            self.before.batches.pop()

    def values(self, name: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """A value in the model as it is and as it was, batch by batch, of real samples only."""
        sides = (self.now.batches, self.before.batches)
        now, before = (
            [size.real(batch[name]) for batch, size in zip(side, self.sizes, strict=False)] for side in sides
        )
        return now, before

    def gram(self, node: ir.Node, sign: Sign | None = None) -> Gram:
        """The sums of products of what a layer reads, or will read through a sign, and of what it read."""
        name = str(source(node).name)  # type: ignore[union-attr]
        sums: Gram | None = None
        for read, before, size in zip(*self.values(name), self.sizes, strict=False):
            now = read if sign is None else sign.applied(read)
            x, x0 = (unfolded(node, array, size.samples * _ROWS) for array in (now, before))
            if not (np.isfinite(x).all() and np.isfinite(x0).all()):
                raise ModelError(_BROKEN.format(name))
            sums = sums or Gram.zero(x)
            sums.add(x, x0)
        if sums is None:
            raise ValueError("there is a batch")
        return sums


def _coded(
    outcome: Outcome, pair: _Pair, node: ir.Node, weight: Weight, how: tuple[Method, Coding]
) -> CodedWeight:
    """Code the weight of a layer, on what the layer reads where errors are to be made up for; perhaps its input too."""
    (method, wanted), rows = how, rows_of(weight, how[1].block)
    sign = _sign(outcome, pair, node, weight) if method.name in BINARY else None
    if wanted.compensate:
        found = gptq(rows, pair.gram(node, sign), method)
        outcome.errors[str(weight.value.name)] = found.error, found.plain
    codes = found.codes if wanted.compensate else encode(rows, method)
    if sign is not None:
        node.replace_input_with(0, sign.value)
    return outcome.put(weight, codes, method, wanted.block)


def _sign(outcome: Outcome, pair: _Pair, node: ir.Node, weight: Weight) -> Sign | None:
    """The sign of what a layer reads, where inputs are to have two levels."""
    read = source(node)
    if outcome.inputs is None or read is None:
        return None
    return outcome.inputs.sign(node, weight, pair.values(str(read.name))[0])


def _match(outcome: Outcome, pair: _Pair, layer: tuple[ir.Node, ir.Node], coded: CodedWeight) -> None:
    """Give a layer the output moments that it had, in the graph and in the values behind it."""
    node, end = layer
    pair.reach(end, behind=True)
    name = str(end.outputs[0].name)
    now, before = pair.values(name)
    if not all(np.isfinite(array).all() for array in (*now, *before)):
        raise ModelError(_BROKEN.format(name))
    change = matching.affine(node, matching.Moments.of(node, before, now))
    if end is node and matching.end_of(node) is not node:
        change = change._replace(bias=np.zeros_like(change.bias), new=None)
    scaled = matching.apply(outcome.model, node, coded, change)
    outcome.scaled(coded.name, scaled, change.factor)
    for batch in pair.now.batches:
        batch[name] = change.applied(node, batch[name])
