"""Cleaning what torch's exporter writes, so that it reads well and stays trainable."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
import onnx_ir.passes.common as common

from compressor.exporting.inputs import Array


def forget_notes(model: ir.Model) -> None:
    """Drop the stack traces and paths that the exporter notes at every node and value, in place."""
    common.ClearMetadataAndDocStringPass()(model)
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
        value.doc_string = None


def tidied(model: ir.Model) -> ir.Model:
    """A copy with functions inlined and shape arithmetic folded, every initializer untouched under its name.

    The exporter's own optimizer would fold BatchNormalization into the weights before it and rename transposed
    weights; without it, a convolution takes fifteen nodes.
    """
    from onnxscript.optimizer import fold_constants

    made = model.clone()
    if made.functions:
        common.InlinePass()(made)
    weights = set(made.graph.initializers)

    def foldable(node: ir.Node) -> bool | None:
        return False if any(v is not None and v.name in weights for v in node.inputs) else None

    fold_constants(made, onnx_shape_inference=False, should_fold=foldable)
    common.IdentityEliminationPass()(made)
    common.RemoveUnusedNodesPass()(made)
    common.RemoveUnusedOpsetsPass()(made)
    return made


def relax_outputs(model: ir.Model, runs: Sequence[tuple[dict[str, int], Sequence[Array]]]) -> None:
    """Make output sizes dynamic that the file fixes but that change from run to run, in place.

    Args:
        model: its graph outputs are in the order of the arrays.
        runs: symbol -> size, and the outputs there. torch declares the traced size behind an LSTM, for example.
    """
    for index, value in enumerate(model.graph.outputs):
        if value.shape is None:
            continue
        for axis, size in enumerate(value.shape):
            seen = [outputs[index].shape[axis] for _, outputs in runs]
            if isinstance(size, int) and set(seen) != {size}:
                same = (s for s in runs[0][0] if [at[s] for at, _ in runs] == seen)
                value.shape = ir.Shape([*value.shape[:axis], next(same, None), *value.shape[axis + 1 :]])
