"""New running statistics for BatchNormalization, as an average of weights or a changed weight needs them.

Source: Izmailov et al. 2018 (arXiv:1803.05407), section 3.2; computed as torch.optim.swa_utils.update_bn does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, fx

from compressor.batchnorm import name_of
from compressor.data import Samples
from compressor.graph import constant
from compressor.torch_graph import to_torch, write_back
from compressor.torch_graph.calling import KernelModule
from compressor.torch_graph.writing import NAMES
from compressor.training.loading import loader, open_source


def recalibrate(module: fx.GraphModule, batches: Iterable[tuple[Tensor, ...]]) -> int:
    """Replace all running statistics by the mean over batches of their statistics; how many nodes were changed.

    Each normalization sees what the ones before it give while they use the batch's own statistics, as in training.
    Dropout and everything else stay in eval mode; in the end the whole module is in the mode it was in. A batch
    counts as much as any other, whatever its size; with no batch nothing changes, and 0 is returned.

    Args:
        module: from `to_torch`, on any device; changed in place.
        batches: its inputs in order, of two or more samples, on any device.

    Raises:
        DataError: a batch holds one value per channel.
    """
    found = normalizations(module)
    tensor = next((t for t in (*module.parameters(), *module.buffers())), None)
    if not found or tensor is None:
        return 0
    was = module.training
    momenta = [node.keywords["momentum"] for node in found]
    module.eval()
    for node in found:
        node.training = True
    seen = 0
    try:
        with torch.no_grad():
            for seen, inputs in enumerate(batches, 1):
                for node in found:
                    node.keywords["momentum"] = 1 - 1 / seen  # ONNX's: what stays of the old value
                module(*(x.to(tensor.device) for x in inputs))
    finally:
        for node, momentum in zip(found, momenta, strict=True):
            node.keywords["momentum"] = momentum
        module.train(was)
    return len(found) if seen else 0


def normalizations(module: torch.nn.Module) -> list[KernelModule]:
    """The modules that run BatchNormalization nodes."""
    return [
        part
        for part in module.modules()
        if isinstance(part, KernelModule) and part.kernel.__name__ == "batch_normalization"
    ]


class Recalibrated(NamedTuple):
    """A model with new statistics.

    Args:
        model: the copy.
        nodes: names of the normalizations that were changed.
        declined: name of another -> why it was left.
        samples: how many were seen.
        shift: the largest change of a mean, in standard deviations as they were.
    """

    model: ir.Model
    nodes: tuple[str, ...]
    declined: dict[str, str]
    samples: int
    shift: float


def recalibrated(model: ir.Model, train: Samples, count: int, batch: int, seed: int) -> Recalibrated:
    """A copy of the model with statistics of `count` training samples, drawn from `seed`, `batch` at a time.

    Raises:
        ModelError: the model does not run in torch.
        DataError: the samples do not fill a batch, or a batch holds one value per channel.
    """
    module = to_torch(model)
    nodes = [node for node in model.graph if node.op_type == "BatchNormalization"]
    stored = {
        node: str(node.inputs[3].name) in module.meta[NAMES] for node in nodes if node.inputs[3] is not None
    }
    declined = {
        name_of(node): "its statistics are computed in the graph" for node in nodes if not stored.get(node)
    }
    seen = 0

    def batches() -> Iterator[tuple[Tensor, ...]]:
        nonlocal seen
        for drawn in loader(open_source(train), batch, seed=seed).batches(0):
            if seen >= count:
                return
            seen += len(drawn.rows)
            yield drawn.inputs

    recalibrate(module, batches())
    written = write_back(module, model)
    changed = [node for node in nodes if stored.get(node)]
    shift = max((_shift(node, written) for node in changed), default=0.0)
    return Recalibrated(written, tuple(map(name_of, changed)), declined, seen, shift)


def _shift(node: ir.Node, written: ir.Model) -> float:
    mean, var = (np.asarray(constant(value), np.float64) for value in node.inputs[3:5])
    name = str(node.inputs[3].name) if node.inputs[3] is not None else ""
    new = constant(written.graph.initializers[name])
    epsilon = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5
    return 0.0 if new is None else float(np.max(np.abs(new - mean) / np.sqrt(np.abs(var) + epsilon)))
