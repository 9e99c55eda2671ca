"""The four sample models as plain torch modules. Each maps one input tensor to `logits`, N x classes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm and a shortcut; N x channels x H x W in and out."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """x plus its correction, rectified."""
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(x + self.norm2(self.conv2(y)))


class DepthwiseBlock(nn.Module):
    """A depthwise 3x3 and a pointwise 1x1 convolution, each with BatchNorm and ReLU6, as in MobileNet.

    The shortcut is there only when the shape does not change.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels_in, channels_in, 3, stride, 1, groups=channels_in, bias=False)
        self.norm1 = nn.BatchNorm2d(channels_in)
        self.pointwise = nn.Conv2d(channels_in, channels_out, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.shortcut = stride == 1 and channels_in == channels_out

    def forward(self, x: Tensor) -> Tensor:
        """N x channels_in x H x W to N x channels_out x H/stride x W/stride."""
        y = F.relu6(self.norm1(self.depthwise(x)))
        y = F.relu6(self.norm2(self.pointwise(y)))
        return x + y if self.shortcut else y


class DigitsCnn(nn.Module):
    """Residual CNN with depthwise-separable blocks: image N x 1 x 32 x 32 in 0..1 to logits N x 10."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 32, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(32)
        self.stage1 = nn.Sequential(*(ResidualBlock(32) for _ in range(4)))
        self.down1 = DepthwiseBlock(32, 64, stride=2)
        self.stage2 = nn.Sequential(*(ResidualBlock(64) for _ in range(3)))
        self.down2 = DepthwiseBlock(64, 128, stride=2)
        self.stage3 = DepthwiseBlock(128, 128)
        self.head = nn.Linear(128, 10)

    def forward(self, image: Tensor) -> Tensor:
        """Logits of the ten digits."""
        x = F.relu(self.stem_norm(self.stem(image)))
        x = self.down1(self.stage1(x))
        x = self.down2(self.stage2(x))
        x = self.stage3(x)
        logits: Tensor = self.head(x.mean(dim=(2, 3)))
        return logits


class Attention(nn.Module):
    """Multi-head self-attention over N x tokens x width."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Every token looks at every token."""
        q, k, v = (
            each(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for each in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(q, k, v)
        attended: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return attended


class EncoderLayer(nn.Module):
    """Pre-norm transformer layer: attention, then a GELU feed-forward net twice as wide, both residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """N x tokens x width in and out."""
        x = x + self.attention(self.norm1(x))
        changed: Tensor = x + self.down(F.gelu(self.up(self.norm2(x))))
        return changed


class DigitsTransformer(nn.Module):
    """Small vision transformer over 4x4 patches: image N x 1 x 32 x 32 in 0..1 to logits N x 10."""

    def __init__(self, width: int = 96, heads: int = 4, layers: int = 3) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 4, stride=4)
        self.position = nn.Parameter(0.02 * torch.randn(1, 64, width))
        self.layers = nn.Sequential(*(EncoderLayer(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, image: Tensor) -> Tensor:
        """Logits of the ten digits, from the mean of the 64 tokens."""
        tokens = self.patches(image).flatten(2).transpose(1, 2) + self.position
        logits: Tensor = self.head(self.norm(self.layers(tokens)).mean(dim=1))
        return logits


class DigitsLstm(nn.Module):
    """LSTM that reads a digit row by row: rows N x 8 x 8 in 0..1 to logits N x 10."""

    def __init__(self, hidden: int = 128) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, hidden, batch_first=True)
        self.head = nn.Linear(hidden, 10)

    def forward(self, rows: Tensor) -> Tensor:
        """Logits of the ten digits, from the state after the last row."""
        states, _ = self.lstm(rows)
        logits: Tensor = self.head(states[:, -1])
        return logits


class BreastCancerMlp(nn.Module):
    """Two hidden layers: features N x 30, standardised, to logits N x 2 (malignant, benign)."""

    def __init__(self, hidden: int = 128) -> None:
        super().__init__()
        self.hidden1 = nn.Linear(30, hidden)
        self.hidden2 = nn.Linear(hidden, hidden)
        self.head = nn.Linear(hidden, 2)

    def forward(self, features: Tensor) -> Tensor:
        """Logits of malignant and benign."""
        x = F.relu(self.hidden1(features))
        logits: Tensor = self.head(F.relu(self.hidden2(x)))
        return logits
