"""What flows through an imported graph: torch tensors, and numpy arrays of the types that torch does not compute with.

Strings, 4-bit and 2-bit integers and the 4-bit float stay numpy arrays; sequences are lists, an absent optional is
None.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch

Kernel = Callable[..., Any]
"""One operator: inputs positional, attributes keyword-only; see the package's docstring for the calling rules."""

TORCH_TYPES: dict[ir.DataType, torch.dtype] = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.DOUBLE: torch.float64,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
    ir.DataType.BOOL: torch.bool,
    ir.DataType.INT8: torch.int8,
    ir.DataType.INT16: torch.int16,
    ir.DataType.INT32: torch.int32,
    ir.DataType.INT64: torch.int64,
    ir.DataType.UINT8: torch.uint8,
    ir.DataType.UINT16: torch.uint16,
    ir.DataType.UINT32: torch.uint32,
    ir.DataType.UINT64: torch.uint64,
    ir.DataType.COMPLEX64: torch.complex64,
    ir.DataType.COMPLEX128: torch.complex128,
    ir.DataType.FLOAT8E4M3FN: torch.float8_e4m3fn,
    ir.DataType.FLOAT8E4M3FNUZ: torch.float8_e4m3fnuz,
    ir.DataType.FLOAT8E5M2: torch.float8_e5m2,
    ir.DataType.FLOAT8E5M2FNUZ: torch.float8_e5m2fnuz,
    ir.DataType.FLOAT8E8M0: torch.float8_e8m0fnu,
}
"""ONNX element type -> torch dtype; a type that is absent stays a numpy array."""

_BITS = {
    np.dtype(ml_dtypes.bfloat16): (np.int16, torch.bfloat16),
    np.dtype(ml_dtypes.float8_e4m3fn): (np.uint8, torch.float8_e4m3fn),
    np.dtype(ml_dtypes.float8_e4m3fnuz): (np.uint8, torch.float8_e4m3fnuz),
    np.dtype(ml_dtypes.float8_e5m2): (np.uint8, torch.float8_e5m2),
    np.dtype(ml_dtypes.float8_e5m2fnuz): (np.uint8, torch.float8_e5m2fnuz),
    np.dtype(ml_dtypes.float8_e8m0fnu): (np.uint8, torch.float8_e8m0fnu),
}
_BACK = {kind: (bits, dtype) for dtype, (bits, kind) in _BITS.items()}


def torch_type(number: int) -> torch.dtype | None:
    """The torch dtype of an ONNX element type number, None when torch does not compute with it."""
    return TORCH_TYPES.get(ir.DataType(number))


def onnx_type(tensor: torch.Tensor) -> ir.DataType:
    """The ONNX element type of a tensor."""
    return next(kind for kind, dtype in TORCH_TYPES.items() if dtype == tensor.dtype)


def to_value(array: Any) -> Any:
    """An array as what flows in the graph; lists and None stay what they are.

    >>> to_value(np.array([1, 2], np.int8))
    tensor([1, 2], dtype=torch.int8)
    """
    if array is None or isinstance(array, torch.Tensor):
        return array
    if isinstance(array, list):
        return [to_value(item) for item in array]
    array = np.asarray(array)
    if array.dtype in _BITS:
        bits, kind = _BITS[array.dtype]
        return torch.from_numpy(np.ascontiguousarray(array).view(bits).copy()).view(kind).reshape(array.shape)
    if array.dtype.kind in "SU":
        return array.astype(object)
    if array.dtype.kind in "OV" or array.dtype.type.__module__.startswith("ml_dtypes"):
        return array
    return torch.from_numpy(np.array(array, order="C", copy=True))


def to_array(value: Any) -> Any:
    """What flows in the graph as an array, detached; the inverse of `to_value`."""
    if isinstance(value, list | tuple):
        return [to_array(item) for item in value]
    if not isinstance(value, torch.Tensor):
        return value
    tensor = value.detach().cpu().contiguous()
    if tensor.dtype in _BACK:
        bits, dtype = _BACK[tensor.dtype]
        raw = tensor.view(torch.int16 if bits is np.int16 else torch.uint8)
        return raw.numpy().view(dtype).reshape(tuple(tensor.shape))
    return tensor.numpy()
