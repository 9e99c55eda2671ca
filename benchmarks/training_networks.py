"""Networks of common architectures as plain torch modules, small enough to train on a CPU, each with a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 10
WORDS = 2000


@dataclass(frozen=True)
class Network:
    """A native module and what it is trained on.

    Args:
        make: builds the module.
        inputs: size -> the inputs of a batch of that many samples.
        batch: samples per step on a CPU.
        target: largest wanted time of the imported step / the native step.
    """

    make: Callable[[], nn.Module]
    inputs: Callable[[int], tuple[Tensor, ...]]
    batch: int
    target: float


class Block(nn.Module):
    """ResNet's basic block. He et al. 2016, arXiv:1512.03385."""

    def __init__(self, given: int, made: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(given, made, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(made)
        self.conv2 = nn.Conv2d(made, made, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(made)
        self.short = nn.Sequential()
        if stride > 1 or given != made:
            self.short = nn.Sequential(nn.Conv2d(given, made, 1, stride, bias=False), nn.BatchNorm2d(made))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.short(x))


def resnet(widths: tuple[int, ...], depth: int, stem: nn.Module, given: int) -> nn.Module:
    """Stages of `depth` blocks, each after the first at half the resolution."""
    blocks = []
    for stage, width in enumerate(widths):
        for at in range(depth):
            blocks.append(Block(given, width, 2 if stage and not at else 1))
            given = width
    return nn.Sequential(stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(given, CLASSES))


def resnet18() -> nn.Module:
    conv = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
    stem = nn.Sequential(conv, nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
    return resnet((64, 128, 256, 512), 2, stem, 64)


def resnet20() -> nn.Module:
    stem = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    return resnet((16, 32, 64), 3, stem, 16)


class Inverted(nn.Module):
    """MobileNetV3's block: expand, depthwise, squeeze and excite, project. Howard et al. 2019, arXiv:1905.02244."""

    def __init__(self, given: int, made: int, stride: int) -> None:
        super().__init__()
        wide = 4 * given
        self.expand = nn.Sequential(
            nn.Conv2d(given, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.Hardswish()
        )
        depthwise = nn.Conv2d(wide, wide, 5, stride, 2, groups=wide, bias=False)
        self.depthwise = nn.Sequential(depthwise, nn.BatchNorm2d(wide), nn.Hardswish())
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(wide, wide // 4, 1),
            nn.ReLU(),
            nn.Conv2d(wide // 4, wide, 1),
            nn.Hardsigmoid(),
        )
        self.project = nn.Sequential(nn.Conv2d(wide, made, 1, bias=False), nn.BatchNorm2d(made))
        self.residual = stride == 1 and given == made

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(self.expand(x))
        y = self.project(y * self.gate(y))
        return x + y if self.residual else y


def mobilenet() -> nn.Module:
    stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.Hardswish())
    sizes = [(16, 16, 1), (16, 24, 2), (24, 24, 1), (24, 40, 2), (40, 40, 1), (40, 40, 1)]
    blocks = [Inverted(*size) for size in sizes]
    head = (
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(40, 128),
        nn.Hardswish(),
        nn.Linear(128, CLASSES),
    )
    return nn.Sequential(stem, *blocks, *head)


class BertLayer(nn.Module):
    """A post-norm encoder layer with separate projections, as BERT files have them."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (
            one(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for one in (self.query, self.key, self.value)
        )
        seen = F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2)
        x = self.norm1(x + self.output(seen))
        return self.norm2(x + self.down(F.gelu(self.up(x))))


class Bert(nn.Module):
    """Four layers, 256 wide, over token ids [n, 64] and a mask of the same shape; classifies the first token."""

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, width), nn.Embedding(64, width)
        self.norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(BertLayer(width, 4) for _ in range(4))
        self.pooler, self.head = nn.Linear(width, width), nn.Linear(width, CLASSES)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.norm(self.words(ids) + self.places(torch.arange(ids.shape[1], device=ids.device)))
        additive = (1.0 - mask[:, None, None, :].to(x.dtype)) * -1e4
        for layer in self.layers:
            x = layer(x, additive)
        return self.head(torch.tanh(self.pooler(x[:, 0])))


class Vit(nn.Module):
    """Patches of 8, four of torch's encoder layers, 192 wide. Dosovitskiy et al. 2021, arXiv:2010.11929."""

    def __init__(self, width: int = 192) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.places = nn.Parameter(torch.randn(1, 65, width) * 0.02)
        layer = nn.TransformerEncoderLayer(
            width, 3, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, 4, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.token.expand(len(x), -1, -1), x), 1) + self.places
        return self.head(self.encoder(x)[:, 0])


class Recurrent(nn.Module):
    """A recurrent classifier of series [n, 32, 24] by their last step."""

    def __init__(self, layers: nn.RNNBase) -> None:
        super().__init__()
        self.layers = layers
        self.head = nn.Linear((1 + layers.bidirectional) * layers.hidden_size, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x)[0][:, -1])


def bilstm() -> nn.Module:
    """Narrow layers in both directions: what the file does to their weights at every step shows."""
    return Recurrent(nn.LSTM(24, 32, 2, batch_first=True, bidirectional=True))


def mlp() -> nn.Module:
    """Three layers; a step takes a fraction of a millisecond, so that it measures what surrounds a step."""
    return nn.Sequential(
        nn.Linear(30, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, CLASSES)
    )


def images(side: int) -> Callable[[int], tuple[Tensor, ...]]:
    return lambda size: (torch.randn(size, 3, side, side),)


def words(size: int) -> tuple[Tensor, ...]:
    mask = (torch.arange(64) < torch.randint(16, 65, (size, 1))).long()
    return torch.randint(0, WORDS, (size, 64)), mask


def series(size: int) -> tuple[Tensor, ...]:
    return (torch.randn(size, 32, 24),)


def features(size: int) -> tuple[Tensor, ...]:
    return (torch.randn(size, 30),)


NETWORKS: dict[str, Network] = {
    "resnet18": Network(resnet18, images(64), 8, 1.15),
    "resnet20": Network(resnet20, images(32), 16, 1.15),
    "mobilenetv3": Network(mobilenet, images(64), 16, 1.15),
    "bert": Network(Bert, words, 8, 1.15),
    "vit": Network(Vit, images(64), 8, 1.3),
    "lstm": Network(lambda: Recurrent(nn.LSTM(24, 96, 2, batch_first=True)), series, 32, 1.3),
    "bilstm": Network(bilstm, series, 32, 1.3),
    "gru": Network(lambda: Recurrent(nn.GRU(24, 96, 2, batch_first=True)), series, 32, 1.3),
    "mlp": Network(mlp, features, 32, 1.3),
}
