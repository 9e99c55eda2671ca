"""What this machine offers: versions, providers that really run a model, processor features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir

from compressor import cpu, runtime
from compressor.errors import CompressorError
from compressor.measurement import environment
from compressor.report import Environment

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Diagnosis:
    """Versions, and provider -> None when a model really runs on it, else why not."""

    environment: Environment
    providers: dict[str, str | None]
    int8: str


def doctor() -> Diagnosis:
    """Versions, the providers that really run a model here, and what the processor means for int8."""
    tried: dict[str, str | None] = {}
    for name in runtime.available():
        try:
            runtime.Session(_tiny(), runtime.Setup(provider=name))
            tried[name] = None
        except CompressorError as error:
            tried[name] = str(error)
    exact = cpu.multiplies_u8s8_exactly()
    fast = (
        "int8 multiplies exactly (VNNI or Arm dot product)" if exact else "no VNNI: int8 weights use 7 bits"
    )
    return Diagnosis(environment(), tried, fast)


def _tiny() -> ir.Model:
    """y = x + x."""
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1, 2]))
    add = ir.node("Add", [x, x])
    add.outputs[0].name, add.outputs[0].type, add.outputs[0].shape = "y", x.type, x.shape
    graph = ir.Graph([x], add.outputs, nodes=[add], opset_imports={"": 13}, name="tiny")
    return ir.Model(graph, ir_version=8)
