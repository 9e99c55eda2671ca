"""The six feed-forward blocks of a MiniLM file, as a torch module on word embeddings: a network of linear layers."""

from __future__ import annotations

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """LayerNorm(x + W2 gelu(W1 x))."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.f1, self.f2, self.ln2 = nn.Linear(width, hidden), nn.Linear(hidden, width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = self.ln2(x + self.f2(F.gelu(self.f1(x))))
        return normed


def blocks(file: str) -> nn.Sequential:
    """The blocks with the weights of the file: [rows, 384] to [rows, 384].

    Raises:
        KeyError: the file's biases are not named `layers.0.f1.bias`.
    """
    arrays = _arrays(file)
    made = []
    for at, (w1, w2) in enumerate(zip(*_matrices(arrays), strict=True)):
        block = Block(*w1.shape)
        state = {"f1.weight": w1.T, "f2.weight": w2.T}
        for name in ("f1.bias", "f2.bias", "ln2.weight", "ln2.bias"):
            state[name] = arrays[f"layers.{at}.{name}"]
        block.load_state_dict({name: torch.tensor(array) for name, array in state.items()})
        made.append(block)
    return nn.Sequential(*made).eval()


def embedded(file: str, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """What the first layer reads of token ids [sentences, n]: float32 [tokens that the mask keeps, 384]."""
    arrays = _arrays(file)
    x = arrays["word.weight"][ids] + arrays["pos.weight"][: ids.shape[1]] + arrays["tt"]
    x = x[mask > 0]
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
    return np.asarray(x * arrays["ln.weight"] + arrays["ln.bias"], np.float32)


def _arrays(file: str) -> dict[str, np.ndarray]:
    return {i.name: numpy_helper.to_array(i) for i in onnx.load(file).graph.initializer}


def _matrices(arrays: dict[str, np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The matrices from 384 to 1536, and those back, in the order of the file."""
    held = [array for array in arrays.values() if array.ndim == 2]
    wide, width = len(arrays["layers.0.f1.bias"]), len(arrays["layers.0.f2.bias"])
    return [a for a in held if a.shape == (width, wide)], [a for a in held if a.shape == (wide, width)]
