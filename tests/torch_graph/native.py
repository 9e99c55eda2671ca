"""Small torch modules of the usual kinds, and their exports to ONNX."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache

import onnx_ir as ir
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Residual(nn.Module):
    """Convolutions with BatchNorm around a shortcut; x[N, 3, 8, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_bn = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv, self.conv_bn = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6, momentum=0.3)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem_bn(self.stem(x)))
        x = F.relu(x + self.conv_bn(self.conv(x)))
        return self.head(F.max_pool2d(x, 2).mean((2, 3)))


class Perceptron(nn.Sequential):
    """Linear layers with the usual activations; x[N, 5]."""

    def __init__(self) -> None:
        layers = (nn.Linear(5, 8), nn.GELU(), nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 3), nn.LogSoftmax(-1))
        super().__init__(*layers)


class Encoder(nn.Module):
    """A transformer block, pre-norm; x[N, 6, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Recurrent(nn.Module):
    """An LSTM or GRU in both directions, and a linear head; x[N, 5, 4]."""

    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU]) -> None:
        super().__init__()
        self.cells = kind(4, 6, bidirectional=True, batch_first=True)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cells(x)[0][:, -1])


class Tied(nn.Module):
    """An embedding that is the output layer too; tokens[N, 5]."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.mix = nn.Linear(6, 6)

    def forward(self, tokens: Tensor) -> Tensor:
        return F.linear(torch.tanh(self.mix(self.embedding(tokens))), self.embedding.weight)


class UNet(nn.Module):
    """One level down by a stride, up by a transposed convolution, and a skip; x[N, 2, 8, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.down = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=1)
        self.norm, self.out = nn.GroupNorm(2, 8), nn.Conv2d(8, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = F.elu(self.into(x))
        second = F.leaky_relu(self.down(first))
        return torch.sigmoid(self.out(self.norm(torch.cat([first, self.up(second)], 1))))


class Mobile(nn.Module):
    """Depthwise convolution, squeeze-and-excitation, a grouped convolution; x[N, 4, 8, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(4, 8, 3, padding=1, groups=4)
        self.bn = nn.BatchNorm2d(8)
        self.squeeze, self.excite = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)
        self.grouped = nn.Conv2d(8, 6, 3, stride=2, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.bn(self.depthwise(x)))
        weight = F.hardsigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        return self.grouped(x * weight).flatten(1)


class Conditional(nn.Module):
    """One of two layers, by the sign of the input's sum; x[N, 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda y: self.left(y).relu(), lambda y: self.right(y).tanh(), (x,))


MODULES: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Tensor]]] = {
    "residual": (Residual, lambda n: torch.randn(n, 3, 8, 8)),
    "perceptron": (Perceptron, lambda n: torch.randn(n, 5)),
    "encoder": (Encoder, lambda n: torch.randn(n, 6, 8)),
    "lstm": (lambda: Recurrent(nn.LSTM), lambda n: torch.randn(n, 5, 4)),
    "gru": (lambda: Recurrent(nn.GRU), lambda n: torch.randn(n, 5, 4)),
    "tied": (Tied, lambda n: torch.randint(11, (n, 5))),
    "unet": (UNet, lambda n: torch.randn(n, 2, 8, 8)),
    "mobile": (Mobile, lambda n: torch.randn(n, 4, 8, 8)),
    "conditional": (Conditional, lambda n: torch.randn(n, 4)),
}
"""Name -> the module, and an input for a batch of n."""


def made(name: str) -> tuple[nn.Module, Callable[[int], Tensor]]:
    """The module in float64 and eval mode, and what draws its input; no two weights are equal, as after training."""
    torch.manual_seed(0)
    make, draw = MODULES[name]
    module = make().double().eval()
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.1)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.running_mean)
            nn.init.uniform_(part.running_var, 0.5, 2)
    return module, lambda n: _double(draw(n))


@cache
def both_exports(name: str) -> tuple[ir.Model, ir.Model]:
    """The module as torch's current exporter writes it, and after the exporter's optimizer; the batch is dynamic."""
    module, draw = made(name)
    batch = ({0: torch.export.Dim("batch", min=1, max=1024)},)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own
        program = torch.onnx.export(
            module, (draw(3),), dynamo=True, optimize=False, dynamic_shapes=batch, verbose=False
        )
        assert program is not None
        plain = program.model.clone()
        program.optimize()
    return plain, program.model


def _double(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x
