"""From a trained torch module back into the ONNX file."""

from __future__ import annotations

import onnx_ir as ir
import torch

from compressor.errors import ModelError
from compressor.torch_graph.function_bodies import inline_functions
from compressor.torch_graph.own_statistics import separate
from compressor.torch_graph.parameters import keyed
from compressor.torch_graph.values import to_array

NAMES = "compressor.initializers"
"""Key in `module.meta`: initializer name -> path in the module."""

TRANSPOSED = "compressor.transposed"
"""Key in `module.meta`: initializer name -> path of the parameter that it is the transpose of."""


def tensors(module: torch.fx.GraphModule) -> dict[str, torch.Tensor]:
    """Initializer name -> what the module computes with, parametrizations applied."""
    found = {name: _at(module, path) for name, path in module.meta[NAMES].items()}
    return found | {name: _at(module, path).t() for name, path in module.meta[TRANSPOSED].items()}


def write_back(module: torch.fx.GraphModule, model: ir.Model) -> ir.Model:
    """A copy of `model` with the module's parameters and statistics; the graph stays as it is.

    Where functions of the file hold weights, they are inlined, and where BatchNormalization statistics share an
    initializer with something else, they get one: each has its own value by now.

    Args:
        module: made from `model` by `to_torch`; it may have been trained, moved, copied and parametrized since.
        model: the model that it was made from.

    Raises:
        ModelError: the module was made from another model.
    """
    written, trained = model.clone(), tensors(module)
    found = keyed(written)
    if not trained.keys() <= found.keys():
        inline_functions(written)
        separate(written)
        found = keyed(written)
    for name, tensor in trained.items():
        value = found.get(name)
        if value is None or list(_shape(value)) != list(tensor.shape):
            raise ModelError(
                f"write_back: the module holds {name!r} {list(tensor.shape)}, which the model does not have. Give the "
                "model that the module was made from."
            )
        _store(value, tensor)
    return written


def _at(module: torch.nn.Module, path: str) -> torch.Tensor:
    folder, _, leaf = path.rpartition(".")
    found = getattr(module.get_submodule(folder), leaf)
    if not isinstance(found, torch.Tensor):
        raise TypeError(f"{path} is a {type(found).__name__}")
    return found


def _shape(value: ir.Value) -> tuple[int, ...]:
    tensor = ir.convenience.get_const_tensor(value)
    return () if tensor is None else tuple(tensor.shape.numpy())


def _store(value: ir.Value, tensor: torch.Tensor) -> None:
    """Replace the data of an initializer, or of the Constant node that gives the value, keeping its type."""
    old = ir.convenience.get_const_tensor(value)
    if old is None:
        raise TypeError(f"{value.name} is not a constant")
    array = to_array(tensor)
    if array.dtype != old.dtype.numpy():
        array = array.astype(old.dtype.numpy())
    new = ir.tensor(array, dtype=old.dtype, name=value.name)
    producer = value.producer()
    if producer is not None:
        for name in list(producer.attributes):
            producer.attributes.pop(name)
        producer.attributes.add(ir.AttrTensor("value", new))
    if value.const_value is not None:
        value.const_value = new
