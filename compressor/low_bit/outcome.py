"""What coding the weights of a model did: the codes, the floats behind them, and figures over all."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from compressor.low_bit.binary_activations import BinaryInputs
from compressor.low_bit.coded_weights import CodedWeight, write
from compressor.low_bit.codes import Codes, Method
from compressor.pruning.prunable import Weight


@dataclass
class Outcome:
    """What was written.

    Args:
        model: that gets the codes.
        names: every name in use.
        coded: weight -> as it stands now.
        weights: weight -> as it was.
        floats: weight -> the floats that its codes stand for.
        errors: weight -> (what coding changed of its layer's output, the same without making up for it), for those
            where errors were made up for.
        matched: weights of layers whose outputs have the moments that they had.
        alone: weights whose inputs cannot be watched, if samples were to be looked at.
        inputs: which layers got inputs of two levels; None where none was to get them.
    """

    model: ir.Model
    names: set[str]
    coded: dict[str, CodedWeight] = field(default_factory=dict)
    weights: dict[str, Weight] = field(default_factory=dict)
    floats: dict[str, ir.TensorProtocol] = field(default_factory=dict)
    errors: dict[str, tuple[float, float]] = field(default_factory=dict)
    matched: list[str] = field(default_factory=list)
    alone: list[str] = field(default_factory=list)
    inputs: BinaryInputs | None = None

    def put(self, weight: Weight, codes: Codes, method: Method, block: int) -> CodedWeight:
        """Write a weight as codes, and keep its floats."""
        name, tensor = str(weight.value.name), weight.value.const_value
        if tensor is None:
            raise ValueError(f"{name} is no initializer")
        self.floats[name] = tensor
        self.weights[name] = weight
        self.coded[name] = write(self.model, weight, codes, method, block, self.names)
        return self.coded[name]

    def scaled(self, name: str, coded: CodedWeight, factor: np.ndarray) -> None:
        """Let a weight whose rows were scaled stand as `coded`; its floats are scaled with it."""
        self.coded[name] = coded
        self.matched.append(name)
        array, layout = self.floats[name].numpy(), self.weights[name].layout
        view = layout.view(array) * factor.astype(np.float32)[:, None, None]
        self.floats[name] = ir.tensor(np.ascontiguousarray(layout.restored(view, array.shape)), name=name)

    def latents(self) -> dict[str, ir.TensorProtocol]:
        """Name of codes -> the floats that they stand for."""
        return {str(coded.codes.name): self.floats[name] for name, coded in self.coded.items()}

    def figures(self) -> dict[str, float | str]:
        """How many weights were coded, their zeros and bits, how far they are from the floats, and their outputs."""
        size = zeros = 0
        held = lost = whole = 0.0
        for name, coded in self.coded.items():
            floats, decoded = self.floats[name].numpy().astype(np.float64), coded.decoded()
            size, zeros = size + floats.size, zeros + floats.size - int(np.count_nonzero(decoded))
            held += coded.method.bits * floats.size + 32 * len(coded.rows().scale)
            lost, whole = lost + np.square(floats - decoded).sum(), whole + np.square(floats).sum()
        found: dict[str, float | str] = {
            "layers": len(self.coded),
            "share of zeros": zeros / size,
            "mean bits": held / size,
            "relative error of the weights": float(np.sqrt(lost / whole)),
        }
        if self.errors:
            error, plain = np.mean(list(self.errors.values()), axis=0).tolist()
            found |= {"mean output error of a layer": error, "that without compensation": plain}
        if self.inputs is not None:
            found["inputs of two levels"] = len(self.inputs.signs)
        if self.matched:
            found["outputs matched"] = len(self.matched)
        if self.alone:
            found["samples of no use to"] = ", ".join(self.alone)
        return found
