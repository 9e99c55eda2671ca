"""Matrix products that stand as MatMulNBits in a stored file, as the layers that they were."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from compressor.graph import add_initializer, attribute, constant, sole_consumer
from compressor.low_bit.coded_weights import KEY, write
from compressor.low_bit.codes import Codes, Method
from compressor.low_bit.folding import folded
from compressor.low_bit.kernel_form import LAYER
from compressor.packing import Inserter, take_over, unpack
from compressor.pruning.prunable import weights


def restore(model: ir.Model, kernels: Sequence[ir.Node], names: set[str]) -> bool:
    """Let layers that `kernel_form.store` replaced stand again, their weights as plain codes; False without any."""
    written: dict[str, tuple[Codes, Method, int]] = {}
    for node in kernels:
        text = node.metadata_props.get(LAYER)
        if text is None or not isinstance(node.graph, ir.Graph):
            continue
        layer = json.loads(text)
        codes, scale = _read(node)
        weight = str(layer["weight"])
        rows = codes.reshape(-1, layer["block"]) if layer["block"] else codes
        own = scale.reshape(-1) if layer["block"] else np.ascontiguousarray(scale[:, 0])
        if weight not in model.graph.initializers:
            floats = codes.astype(np.float32)  # only their place is wanted, by `write`
            add_initializer(model.graph, weight, floats if layer["turned"] else floats.T)
            names.add(weight)
        written[weight] = (Codes(rows, own), Method.parse(node.metadata_props[KEY]), int(layer["block"]))
        _relayer(Inserter(model, node.graph, node, names), node, layer)
    found, _ = weights(model) if written else ({}, {})
    for name, (codes_, method, block) in written.items():
        write(model, found[name], codes_, method, block, names)
    return bool(written)


def _read(node: ir.Node) -> tuple[np.ndarray, np.ndarray]:
    """The codes, int8 [outputs, inputs], and the scales, [outputs, blocks], of a MatMulNBits of ours."""
    packed, scale = folded(node.inputs[1], {}), constant(node.inputs[2])
    if packed is None or scale is None:
        raise ValueError(f"{node.name}: codes that are not constant")
    inputs, outputs, bits = (attribute(node, key, 0) for key in ("K", "N", "bits"))
    digits = unpack(packed.reshape(outputs, -1), 2**bits, inputs).astype(np.int16)
    return (digits - 2 ** (bits - 1)).astype(np.int8), scale.reshape(outputs, -1)


def _relayer(place: Inserter, node: ir.Node, layer: dict[str, Any]) -> None:
    """Put the MatMul or Gemm that a MatMulNBits stands for back in its place, with its bias."""
    last, inputs = node, [node.inputs[0], place.model.graph.initializers[layer["weight"]]]
    if layer["bias"]:
        after = sole_consumer(node.outputs[0])
        if after is None or after.op_type != "Add":
            raise ValueError(f"{node.name}: its bias is gone")
        last = after
        inputs.append(after.inputs[1])
    made = ir.node(layer["operator"], inputs, {"transB": 1} if layer["turned"] else {}, name=layer["name"])
    made.outputs[0].name = place.fresh(f"{layer['name']}_restored")
    place.graph.insert_before(last, made)
    take_over(last, made.outputs[0])
    if last is not node:
        place.graph.remove(node, safe=True)
