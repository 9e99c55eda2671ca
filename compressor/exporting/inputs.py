"""The example inputs of an export, and which of their axes are dynamic; both written as texts.

NAME=1x3x224x224:float32   an input, made up; the type may be left out
NAME=:int64                a scalar
SYMBOL                     axis 0 of every input is dynamic, as in `batch`
NAME:AXIS=SYMBOL           one axis is, as in `ids:1=sequence`
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from compressor.errors import OptionError, did_you_mean

Array = npt.NDArray[Any]
Axes = dict[str, dict[int, str]]
"""Input name -> axis -> the symbol of its size."""

_FLOATS = ("float16", "float32", "float64")
_DTYPES = (*_FLOATS, "int8", "int16", "int32", "int64", "uint8", "bool")
_INPUT = re.compile(r"(?P<name>[^=:\s]+)=(?P<shape>(\d+(x\d+)*)?)(:(?P<dtype>\w+))?")
_AXIS = re.compile(r"(?:(?P<name>[^=:\s]+):(?P<axis>-?\d+)=)?(?P<symbol>[A-Za-z_]\w*)")


def read_input(text: str, seed: int = 0) -> tuple[str, Array]:
    """The name and the made-up values: floats are standard normal, integers 0 or 1, which any embedding,
    mask and index takes.

    >>> name, array = read_input("ids=2x5:int64")
    >>> name, array.shape, array.dtype.name
    ('ids', (2, 5), 'int64')
    """
    found = _INPUT.fullmatch(text)
    if found is None:
        raise OptionError(f"Input {text!r} cannot be read. Write NAME=1x3x224x224:float32.")
    dtype = found["dtype"] or "float32"
    if dtype not in _DTYPES:
        raise OptionError(f"Input {text!r}: no element type {dtype!r}. {did_you_mean(dtype, _DTYPES)}")
    shape = tuple(int(size) for size in found["shape"].split("x") if size)
    if 0 in shape:
        raise OptionError(f"Input {text!r}: a size is 0. Give sizes of at least 1.")
    random = np.random.default_rng(seed)
    made = random.standard_normal(shape) if dtype in _FLOATS else random.integers(0, 2, shape)
    return found["name"], np.asarray(made).astype(dtype)


def read_dynamic(texts: Sequence[str], inputs: Mapping[str, Array]) -> Axes:
    """The dynamic axes of the inputs; OptionError where a text names what the inputs do not have.

    >>> read_dynamic(["batch", "x:-1=n"], {"x": np.zeros((2, 5)), "t": np.zeros(())})
    {'x': {0: 'batch', 1: 'n'}}
    """
    axes: Axes = {}
    for text in texts:
        for name, axis, symbol in _named_axes(text, inputs):
            if axes.setdefault(name, {}).setdefault(axis, symbol) != symbol:
                raise OptionError(
                    f"Dynamic axis {text!r}: axis {axis} of {name!r} is named {axes[name][axis]!r} already. "
                    "Name an axis once."
                )
    sizes(axes, inputs)
    return axes


def _named_axes(text: str, inputs: Mapping[str, Array]) -> Iterator[tuple[str, int, str]]:
    """The (input name, axis >= 0, symbol) that one text stands for."""
    found = _AXIS.fullmatch(text)
    if found is None:
        raise OptionError(f"Dynamic axis {text!r} cannot be read. Write batch, or NAME:AXIS=SYMBOL.")
    name, symbol = found["name"], found["symbol"]
    if name is None:
        yield from ((other, 0, symbol) for other, array in inputs.items() if array.ndim)
        return
    if name not in inputs:
        raise OptionError(f"Dynamic axis {text!r}: no input {name!r}. {did_you_mean(name, inputs)}")
    axis, rank = int(found["axis"]), inputs[name].ndim
    if not -rank <= axis < rank:
        raise OptionError(f"Dynamic axis {text!r}: input {name!r} has {rank} axes, counted from 0.")
    yield name, axis % rank, symbol


def sizes(axes: Axes, inputs: Mapping[str, Array]) -> dict[str, int]:
    """Symbol -> its size in these inputs; OptionError when two axes of one symbol differ."""
    found: dict[str, int] = {}
    for name, named in axes.items():
        for axis, symbol in named.items():
            size = inputs[name].shape[axis]
            if found.setdefault(symbol, size) != size:
                raise OptionError(
                    f"Dynamic axis {symbol!r} is {found[symbol]} long in one input and {size} in {name!r}. "
                    "Give equal sizes, or name the axes apart with NAME:AXIS=SYMBOL."
                )
    return found


def resized(inputs: Mapping[str, Array], axes: Axes, wanted: Mapping[str, int]) -> dict[str, Array]:
    """The inputs with their dynamic axes cut, or repeated from the start, to the wanted sizes.

    >>> resized({"x": np.array([7, 8])}, {"x": {0: "n"}}, {"n": 3})["x"]
    array([7, 8, 7])
    """
    made = dict(inputs)
    for name, named in axes.items():
        for axis, symbol in named.items():
            rows = np.arange(wanted[symbol]) % made[name].shape[axis]
            made[name] = np.take(made[name], rows, axis)
    return made


def other_sizes(given: Mapping[str, int]) -> Iterator[dict[str, int]]:
    """Sizes to check a dynamic model at: off by a few, which meets any rounding; else twice or half as long, for
    code that needs a multiple of something or has a longest length.

    >>> next(other_sizes({"batch": 2, "sequence": 2}))
    {'batch': 3, 'sequence': 4}
    """
    yield {symbol: size + 1 + i for i, (symbol, size) in enumerate(given.items())}
    yield {symbol: 2 * size for symbol, size in given.items()}
    yield {symbol: max(1, size // 2) for symbol, size in given.items()}


def sizes_text(found: Mapping[str, int]) -> str:
    """Sizes as text.

    >>> sizes_text({"batch": 2, "n": 5})
    'batch=2, n=5'
    """
    return ", ".join(f"{symbol}={size}" for symbol, size in found.items())


def type_text(value: ir.Value) -> str:
    """Element type and shape, as in 'float[batch,3]'."""
    dims = "?" if value.shape is None else ",".join(str(size) for size in value.shape)
    return f"{value.dtype.name.lower() if value.dtype else '?'}[{dims}]"
