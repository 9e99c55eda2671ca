"""Models of two convolutions, or a convolution and a product, with something between them."""

from __future__ import annotations

import numpy as np
import onnx

from tests.conftest import build, drawn


def between(
    body: str, read: int = 8, opset: int = 17, size: str = "H, W", **more: np.ndarray
) -> onnx.ModelProto:
    """x [N, 3, 6, 6] -> Conv of 8 channels: `h` -> `body`, making `g` of `read` channels -> Conv -> y [N, 2, ...]."""
    text = f"""<ir_version: 8, opset_import: ["" : {opset}]>
    m (float[N, 3, 6, 6] x) => (float[N, 2, {size}] y) {{
      h = Conv(x, wa, ba)
      {body}
      y = Conv(g, wz)
    }}"""
    own = {"wa": drawn(8, 3, 1, 1), "ba": drawn(8, seed=1), "wz": drawn(2, read, 1, 1, seed=2)}
    return build(text, **own, **more)


def before_linear(body: str, read: int, opset: int = 17, **more: np.ndarray) -> onnx.ModelProto:
    """x [N, 3, 6, 6] -> Conv of 8 channels: `h` -> `body`, making `g` [N, read] -> MatMul -> y [N, 3]."""
    text = f"""<ir_version: 8, opset_import: ["" : {opset}]>
    m (float[N, 3, 6, 6] x) => (float[N, 3] y) {{
      h = Conv(x, wa, ba)
      {body}
      y = MatMul(g, wz)
    }}"""
    own = {"wa": drawn(8, 3, 1, 1), "ba": drawn(8, seed=1), "wz": drawn(read, 3, seed=2)}
    return build(text, **own, **more)


def ints(*numbers: int) -> np.ndarray:
    """int64."""
    return np.array(numbers, np.int64)
