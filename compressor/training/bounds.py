"""Which axis of a weight `max_norm` leaves: that of the output channels, whose norms it bounds."""

from __future__ import annotations

import onnx_ir as ir
from torch import fx

from compressor.errors import OptionError
from compressor.placement import output_axis
from compressor.torch_graph.writing import NAMES
from compressor.training.depths import Use, layer_uses
from compressor.training.options import Training

_BOUND = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def output_axes(network: fx.GraphModule, model: ir.Model, options: Training) -> dict[str, int]:
    """Path of each weight of a layer -> its axis of output channels; OptionError when there is none."""
    paths = network.meta[NAMES]
    found = {
        paths[str(use.weight.name)]: 1 if use.node.op_type == "ConvTranspose" else output_axis(use.node)
        for use in layer_uses(model)
        if use.slot == 1 and use.node.op_type in _BOUND and use.weight.name in paths and _in_place(use)
    }
    if not found:
        raise OptionError(
            f"{options.name}: max_norm={options.max_norm:g} bounds weights of {', '.join(_BOUND)}, and none of them "
            "trains here. Leave it out."
        )
    return found


def _in_place(use: Use) -> bool:
    """Whether the layer has the axes of the weight as the file has them: at most quantizers and casts lie between."""
    value = use.node.inputs[use.slot]
    while value is not None and value is not use.weight:
        node = value.producer()
        if node is None or node.op_type not in ("QuantizeLinear", "DequantizeLinear", "Cast", "Identity"):
            return False
        value = node.inputs[0]
    return True
