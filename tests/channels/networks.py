"""Blocks of the usual transformers and convolutional networks, small and random, as torch exports them."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from functools import cache

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """As most decoders write it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class Llama(nn.Module):
    """RMSNorm, grouped queries with rotary embeddings, a gated MLP; x[N, T, 16]: 4 heads of 8 share 2 keys."""

    def __init__(self, merged: bool = False) -> None:
        super().__init__()
        self.first, self.second = RMSNorm(16), RMSNorm(16)
        self.q, self.k, self.v = nn.Linear(16, 32), nn.Linear(16, 16), nn.Linear(16, 16)
        self.o = nn.Linear(32, 16)
        self.gate_up = nn.Linear(16, 40, bias=False) if merged else None
        self.gate, self.up, self.down = nn.Linear(16, 20), nn.Linear(16, 20), nn.Linear(20, 16)
        self.head = nn.Linear(16, 3)
        self.register_buffer("inverse", 1 / 100 ** (torch.arange(4) / 4))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(self.first(x))
        y = self.second(x)
        gate, up = (self.gate(y), self.up(y)) if self.gate_up is None else self.gate_up(y).chunk(2, -1)
        return self.head(x + self.down(F.silu(gate) * up))

    def attend(self, x: Tensor) -> Tensor:
        batch, count, _ = x.shape
        angle = torch.outer(torch.arange(count).float(), self.inverse)
        angle = torch.cat([angle, angle], -1)
        q, k, v = (
            layer(x).view(batch, count, heads, 8).transpose(1, 2)
            for layer, heads in ((self.q, 4), (self.k, 2), (self.v, 2))
        )
        q, k = _turned(q, angle), _turned(k, angle)
        k, v = (part[:, :, None].expand(batch, 2, 2, count, 8).reshape(batch, 4, count, 8) for part in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o(y.transpose(1, 2).reshape(batch, count, 32))


def _turned(x: Tensor, angle: Tensor) -> Tensor:
    half = torch.cat([-x[..., 4:], x[..., :4]], -1)
    return x * angle.cos() + half * angle.sin()


class Vision(nn.Module):
    """Patches, a class token, a block with merged queries, keys and values; x[N, 3, 8, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, stride=4)
        self.token, self.position = nn.Parameter(torch.randn(1, 1, 16)), nn.Parameter(torch.randn(1, 5, 16))
        self.norm1, self.norm2 = nn.LayerNorm(16), nn.LayerNorm(16)
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        self.up, self.down, self.head = nn.Linear(16, 24), nn.Linear(24, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        batch, count, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(batch, count, 3, 4, 4).permute(2, 0, 3, 1, 4).unbind(0)
        scores = ((q * 4**-0.5) @ k.transpose(-2, -1)).softmax(-1)
        x = x + self.out((scores @ v).transpose(1, 2).reshape(batch, count, 16))
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return self.head(x[:, 0])


class Windows(nn.Module):
    """Attention in shifted 2 x 2 windows with a bias per head and position (Swin); x[N, 8, 4, 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)
        self.bias = nn.Parameter(torch.randn(9, 2))
        at = torch.stack(torch.meshgrid(torch.arange(2), torch.arange(2), indexing="ij")).flatten(1)
        apart = at[:, :, None] - at[:, None, :] + 1
        self.register_buffer("apart", apart[0] * 3 + apart[1])
        self.up, self.down, self.head = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        y = torch.roll(self.norm(x), (-1, -1), (1, 2))
        y = y.view(-1, 2, 2, 2, 2, 8).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, 8)
        q, k, v = self.qkv(y).reshape(-1, 4, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.bias[self.apart.view(-1)].view(4, 4, 2).permute(2, 0, 1)
        scores = (q * 0.5 @ k.transpose(-2, -1) + bias).softmax(-1)
        y = self.out((scores @ v).transpose(1, 2).reshape(-1, 4, 8))
        y = y.view(-1, 2, 2, 2, 2, 8).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, 4, 8)
        x = x + torch.roll(y, (1, 1), (1, 2))
        return self.head((x + self.down(F.gelu(self.up(x)))).mean((1, 2)))


class ConvNeXt(nn.Module):
    """Depthwise convolution, a norm over channels behind a permutation, two linear layers, a scale; x[N, 3, 8, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.deep = nn.Conv2d(3, 8, 2, stride=2), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.scale, self.head = nn.Parameter(torch.randn(8)), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.deep(x).permute(0, 2, 3, 1))
        y = self.scale * self.down(F.gelu(self.up(y)))
        return self.head((x + y.permute(0, 3, 1, 2)).mean((2, 3)))


class Bert(nn.Module):
    """Embeddings, a post-norm encoder layer with a mask, a pooled head; tokens[N, T]."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(11, 16), nn.Embedding(6, 16)
        self.norm = nn.LayerNorm(16)
        self.layer = nn.TransformerEncoderLayer(16, 4, 24, activation="gelu", batch_first=True)
        self.pooler, self.head = nn.Linear(16, 10), nn.Linear(10, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.norm(self.words(tokens) + self.places(torch.arange(tokens.shape[1])))
        x = self.layer(x)
        return self.head(torch.tanh(self.pooler(x[:, 0])))


class Pooled(nn.Module):
    """Recurrent layers one behind the other, the second in both directions; x[N, 5, 4]."""

    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU]) -> None:
        super().__init__()
        self.first, self.second = kind(4, 6), kind(6, 5, bidirectional=True)
        self.head = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.first(x.transpose(0, 1))[0])[0]
        return self.head(y.mean(0))


class Excited(nn.Module):
    """A convolution, squeeze-and-excitation of a residual branch, GroupNorm; x[N, 3, 8, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.norm = (
            nn.Conv2d(3, 8, 3),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.GroupNorm(4, 8),
        )
        self.squeeze, self.excite, self.head = nn.Linear(8, 4), nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y = self.norm(self.conv(x))
        weight = torch.sigmoid(self.excite(F.relu(self.squeeze(y.mean((2, 3))))))
        return self.head((x + y * weight[:, :, None, None]).mean((2, 3)))


class Gated(nn.Module):
    """A decoder's output layer that is the embedding, behind a gated MLP; tokens[N, 5]."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.gate = nn.Embedding(11, 8), nn.Linear(8, 24)
        self.down = nn.Linear(12, 8)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens)
        a, b = self.gate(x).chunk(2, -1)
        return F.linear(x + self.down(torch.sigmoid(a) * b), self.words.weight)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "llama": (Llama, (5, 16)),
    "llama, merged": (lambda: Llama(merged=True), (5, 16)),
    "vision": (Vision, (3, 8, 8)),
    "windows": (Windows, (8, 4, 4)),
    "convnext": (ConvNeXt, (3, 8, 8)),
    "bert": (Bert, (6,)),
    "tied": (Gated, (5,)),
    "lstm": (lambda: Pooled(nn.LSTM), (5, 4)),
    "gru": (lambda: Pooled(nn.GRU), (5, 4)),
    "excited": (Excited, (3, 8, 8)),
}
"""Name -> the module, and the shape of a sample: of tokens where it is one number."""


@cache
def exported(name: str) -> onnx.ModelProto:
    """The network as torch's older exporter writes it, with a dynamic batch: shapes computed wherever they can be."""
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    network = make().eval()
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.1)
    sample = torch.randint(11, (2, *shape)) if len(shape) == 1 else torch.randn(2, *shape)
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own
        torch.onnx.export(
            network, (sample,), file, dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "batch"}}
        )
    return onnx.load_from_string(file.getvalue())


def feeds(name: str) -> Callable[[int], dict[str, np.ndarray]]:
    """Batch size -> an input of the network."""
    shape, generator = NETWORKS[name][1], np.random.default_rng(0)

    def draw(batch: int) -> dict[str, np.ndarray]:
        if len(shape) == 1:
            return {"x": generator.integers(0, 11, (batch, *shape))}
        return {"x": generator.standard_normal((batch, *shape)).astype(np.float32)}

    return draw
