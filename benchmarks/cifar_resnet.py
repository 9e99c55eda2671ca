"""The ResNets of CIFAR-10 as a torch module, with the weights of an ONNX file whose normalizations are folded."""

from __future__ import annotations

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

WIDTHS = (16, 32, 64)


class Padded(nn.Module):
    """Every second pixel, with channels of zeros on both sides. He et al. 2016, arXiv:1512.03385, option A."""

    def __init__(self, extra: int) -> None:
        super().__init__()
        self.extra = extra

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.extra, self.extra))


def convolved(given: int, made: int) -> nn.Conv2d:
    """The same as `Padded`, as a convolution whose weights are 0 and 1."""
    layer = nn.Conv2d(given, made, 1, stride=2, bias=False)
    before = (made - given) // 2
    with torch.no_grad():
        layer.weight.zero_()
        for channel in range(given):
            layer.weight[before + channel, channel] = 1.0
    return layer


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, given: int, made: int, padded: bool) -> None:
        super().__init__()
        stride = 1 if given == made else 2
        self.conv1 = nn.Conv2d(given, made, 3, stride, 1)
        self.conv2 = nn.Conv2d(made, made, 3, 1, 1)
        self.short: nn.Module = nn.Identity()
        if given != made:
            self.short = Padded((made - given) // 2) if padded else convolved(given, made)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x))) + self.short(x))


class ResNet(nn.Module):
    """A first convolution, three stages of `depth` blocks, the mean of the image, a linear layer."""

    def __init__(self, depth: int, padded: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, 1, 1)
        given = WIDTHS[0]
        for stage, made in enumerate(WIDTHS, 1):
            blocks = [Block(given if not at else made, made, padded) for at in range(depth)]
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
            given = made
        self.linear = nn.Linear(WIDTHS[-1], 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        for stage in ("layer1", "layer2", "layer3"):
            x = self.get_submodule(stage)(x)
        made: Tensor = self.linear(x.mean((2, 3)))
        return made


def resnet(file: str, padded: bool) -> ResNet:
    """The network of the file, with its shortcuts padded as there, or written as convolutions.

    Raises:
        RuntimeError: the file's weights are not named `layer1.0.conv1.weight` and `layer1.0.conv1.weight_bias`.
    """
    held = onnx.load(file).graph.initializer
    arrays = {i.name.replace(".weight_bias", ".bias"): torch.tensor(numpy_helper.to_array(i)) for i in held}
    depth = len({name.split(".")[1] for name in arrays if name.startswith("layer1.")})
    net = ResNet(depth, padded).eval()
    missing, _ = net.load_state_dict(arrays, strict=False)
    unset = [name for name in missing if ".short." not in name]
    if unset:
        raise RuntimeError(f"{file!r} has no weights {unset[:3]!r}")
    return net
