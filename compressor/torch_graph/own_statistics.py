"""BatchNormalization statistics that share their bytes with something else get bytes of their own.

Exporters write equal constants once, so in a model that is hardly trained the mean of a BatchNormalization, all zeros,
may be the bias of another. Training moves the two apart.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compressor.graph import add_initializer, nodes, unique_name

_STATISTICS = {3: "mean", 4: "var"}


def separate(model: ir.Model) -> tuple[str, ...]:
    """Give every mean and variance that something else reads too an initializer of its own, in place; their names."""
    made: list[str] = []
    for node in nodes(model):
        if node.op_type != "BatchNormalization" or len(node.inputs) < 5:
            continue
        for index, what in _STATISTICS.items():
            array = _shared(node, index)
            if array is None:
                continue
            name = unique_name(model.graph, f"{node.inputs[1].name if node.inputs[1] else ''}_{what}")
            node.replace_input_with(index, add_initializer(model.graph, name, array))
            made.append(name)
    return tuple(made)


def _shared(node: ir.Node, index: int) -> np.ndarray | None:
    """The data of a statistic that has another reader, or stands behind an Identity; None when it is its own."""
    value = node.inputs[index]
    source = value
    while (
        source is not None and (producer := source.producer()) is not None and producer.op_type == "Identity"
    ):
        source = producer.inputs[0]
    tensor = None if source is None else ir.convenience.get_const_tensor(source)
    if source is None or value is None or tensor is None or source.is_graph_input():
        return None
    return np.array(tensor.numpy()) if source is not value or len(list(source.uses())) > 1 else None
