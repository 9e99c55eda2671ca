"""New weights for chosen layers, drawn with the variance that the layer's fan-in and fan-out ask for.

| kind | distribution | source |
| --- | --- | --- |
| he | N(0, 2 / fan_in) | He et al., 1502.01852, eq. 10 |
| xavier | U(-a, a), a = sqrt(6 / (fan_in + fan_out)) | Glorot and Bengio, 2010, eq. 16 |
| orthogonal | Q of the QR decomposition of N(0, 1), with the signs that make it uniform | Saxe et al., 1312.6120 |
| uniform | U(-a, a), a = 1 / sqrt(fan_in) | LeCun et al., 1998; the default of torch's dense layers |
| normal | N(0, 0.02 ** 2) | BERT and GPT-2 |

fan_in is the number of products in one output, fan_out the number of outputs that one input reaches; a convolution's
stride is not counted, as in torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from hashlib import sha256
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from compressor.errors import OptionError, did_you_mean
from compressor.graph import FLOATS, attribute, matches
from compressor.training.depths import Use, layer_uses
from compressor.training.options import Training

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_STD = 0.02


class Layout(NamedTuple):
    """A weight as independent matrices: the groups of a convolution, the gates and directions of a recurrent layer.

    Args:
        matrices: how many.
        outputs: rows of each.
        inputs: columns of each, times `taps`.
        taps: places of a convolution's kernel; 1 elsewhere.
        inputs_first: True where the file stores [inputs, outputs, taps] rather than [outputs, inputs, taps].
    """

    matrices: int
    outputs: int
    inputs: int
    taps: int = 1
    inputs_first: bool = False


def initialized(model: ir.Model, options: Training, seed: int) -> dict[str, np.ndarray]:
    """New arrays for the weights that `initialize` names, in their own shape and type.

    What is drawn depends on the seed, the name and the shape alone. The last glob that matches decides. Of what a glob
    matches only weights of layers are drawn anew; biases stay.

    Raises:
        OptionError: a glob matches no initializer, or no floating-point weight of a layer.
    """
    uses = {str(use.weight.name): use for use in reversed(list(layer_uses(model))) if _drawable(use)}
    stored = {name for graph in model.graphs() for name in graph.initializers} | set(uses)
    kinds: dict[str, str] = {}
    for glob, kind in options.initialize.items():
        found = [name for name in uses if matches((name,), (glob,))]
        if not found:
            raise OptionError(f"{options.name}: initialize={glob!r} {_unmatched(glob, stored, uses)}")
        kinds |= dict.fromkeys(found, kind)
    return {name: _drawn(uses[name], kind, _generator(seed, name)) for name, kind in kinds.items()}


def layout(use: Use) -> Layout:
    """How the weight of a layer is stored.

    Conv [out, in / groups, k...], ConvTranspose [in, out / groups, k...], MatMul [..., in, out] on the right and
    [..., out, in] on the left, Gemm by its transA and transB, LSTM, GRU and RNN [directions, gates * out, in]. An
    embedding of Gather, [rows, width], is a dense layer from rows to width.
    """
    shape = tuple(int(size) for size in _array(use.weight).shape)
    node = use.node
    if node.op_type in _GATES:
        gates = _GATES[node.op_type]
        return Layout(shape[0] * gates, shape[1] // gates, shape[2])
    if node.op_type == "ConvTranspose":
        groups = attribute(node, "group", 1)
        return Layout(groups, shape[1], shape[0] // groups, math.prod(shape[2:]), inputs_first=True)
    if node.op_type in ("Conv", "FusedConv", "DeformConv"):
        groups = attribute(node, "group", 1)
        return Layout(groups, shape[0] // groups, shape[1], math.prod(shape[2:]))
    rows, columns = shape[-2:]
    if _inputs_first(use):
        return Layout(math.prod(shape[:-2]), columns, rows, inputs_first=True)
    return Layout(math.prod(shape[:-2]), rows, columns)


def draw(kind: str, form: Layout, rng: np.random.Generator) -> np.ndarray:
    """[matrices, outputs, inputs, taps] in float64; see the table of the module."""
    shape = (form.matrices, form.outputs, form.inputs, form.taps)
    fan_in, fan_out = form.inputs * form.taps, form.outputs * form.taps
    match kind:
        case "he":
            return rng.normal(0.0, math.sqrt(2 / fan_in), shape)
        case "xavier":
            edge = math.sqrt(6 / (fan_in + fan_out))
            return rng.uniform(-edge, edge, shape)
        case "uniform":
            edge = 1 / math.sqrt(fan_in)
            return rng.uniform(-edge, edge, shape)
        case "orthogonal":
            return np.stack([_orthogonal(form.outputs, fan_in, rng) for _ in range(form.matrices)]).reshape(
                shape
            )
        case _:
            return rng.normal(0.0, _STD, shape)


def _orthogonal(rows: int, columns: int, rng: np.random.Generator) -> np.ndarray:
    """Orthonormal rows, or columns where there are fewer of them."""
    q, r = np.linalg.qr(rng.standard_normal((max(rows, columns), min(rows, columns))))
    q = q * np.where(np.diag(r) < 0, -1.0, 1.0)
    return q if rows >= columns else q.T


def _drawn(use: Use, kind: str, rng: np.random.Generator) -> np.ndarray:
    array, form = _array(use.weight), layout(use)
    new = draw(kind, form, rng)
    if form.inputs_first:
        new = new.swapaxes(1, 2)
    return new.reshape(array.shape).astype(array.dtype)


def _inputs_first(use: Use) -> bool:
    """True where the file has [inputs, outputs] for a layer that multiplies matrices."""
    left = use.slot == 0 and use.node.op_type != "Gather"
    turned = bool(attribute(use.node, "transA" if left else "transB", 0))
    return left == (turned != _is_turned(use))


def _is_turned(use: Use) -> bool:
    """True where an odd number of Transposes lies between the weight and its layer."""
    return sum(node.op_type == "Transpose" for node in _views(use)) % 2 == 1


def _drawable(use: Use) -> bool:
    """True for a float weight whose layout is known: read directly, or as a matrix behind Transposes."""
    tensor = ir.convenience.get_const_tensor(use.weight)
    if tensor is None or tensor.dtype not in FLOATS or use.node.op_type == "Einsum":
        return False
    plain = ("Identity", "Cast", "Transpose") if len(tensor.shape) == 2 else ("Identity", "Cast")
    return all(node.op_type in plain for node in _views(use))


def _views(use: Use) -> Iterator[ir.Node]:
    """The nodes between the layer and its weight."""
    value = use.node.inputs[use.slot]
    while value is not use.weight and value is not None and (node := value.producer()) is not None:
        yield node
        value = node.inputs[0]


def _array(value: ir.Value) -> np.ndarray:
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is None:
        raise TypeError(f"{value.name} is not a constant")
    return tensor.numpy()


def _generator(seed: int, name: str) -> np.random.Generator:
    """Of its own for every name, so that another glob elsewhere changes nothing here."""
    return np.random.default_rng(int.from_bytes(sha256(f"{seed} {name}".encode()).digest()[:16], "big"))


def _unmatched(glob: str, stored: set[str], uses: dict[str, Use]) -> str:
    found = sorted(name for name in stored if matches((name,), (glob,)))
    if not found:
        return f"matches no initializer. {did_you_mean(glob, uses)}"
    return (
        f"matches {', '.join(found[:3])}, of which none is a floating-point weight of a layer with two or more axes. "
        f"{did_you_mean(glob, uses)}"
    )
