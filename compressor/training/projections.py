"""Weights of few bits in training: the optimizer moves a latent float, and the layer computes with its code.

A projection is a torch parametrization: w' = code(w) * scale, and dw'/dw = 1 (the straight-through estimator:
Courbariaux et al. 2015, arXiv:1511.00363, section 2.3; Bengio et al. 2013, arXiv:1308.3432). Unlike in quantization on
many levels, the gradient is not stopped where a weight is beyond the outermost code: a good part of them are there.

    method        code of a weight                                 scale of its row
    twn           sign(w) where |w| > 0.7 mean|w|, else 0          mean |w| of those           (1605.04711, eq. 5-6)
    optimal       the nearest of -s, 0, s                          the s of the smallest error, found by sorting
    xnor          sign(w)                                          mean |w|                     (1603.05279, sec. 3.1)
    ttq           -n, 0 or p by fixed thresholds                   n and p are trained          (1612.01064, sec. 3)
    residual      the nearest of +-a1 +-a2 ...                     the a are trained            (1711.11294, sec. 3.1.1)
    uniform       the nearest multiple                             trained                      (LSQ, 1902.08153)

With `learn` the scales of optimal and xnor are trained too, with LSQ's gradient. Trained scales are kept by their
logarithm, so that a step changes each by a share of itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from itertools import product
from math import sqrt
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from compressor.low_bit.codes import BINARY, TERNARY, Codes, Method

_TINY = 2.0**-100
"""The scale of a row of zeros whose codes cannot be zero."""
_MOST = 127


class Projection(nn.Module, ABC):
    """w' = code(w) * scale, row by row.

    `share` is how much of the projection is in force, from the latent weight (0) to its codes (1); or which weights
    have their codes, bool of the latent's shape, and are no longer moved then.

    Args:
        axis: of the latent weight; its indices are the rows.
    """

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis
        self.share: Tensor | float = 1.0

    @abstractmethod
    def codes(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Codes, whole numbers [R, n], and scale [R, 1]; the scale has a gradient where it is trained."""

    def forward(self, latent: Tensor) -> Tensor:
        """The weight that the layer computes with."""
        rows = self._rows(latent)
        projected = self._restored(self._projected(rows), latent)
        if isinstance(self.share, Tensor):
            return torch.where(self.share, projected.detach(), latent)
        return projected if self.share == 1 else self.share * projected + (1 - self.share) * latent

    def _projected(self, rows: Tensor) -> Tensor:
        with torch.no_grad():
            codes, scale = self.codes(rows.detach())
        straight: Tensor = _Straight.apply(rows, codes * scale)  # type: ignore[no-untyped-call]
        return straight

    @torch.no_grad()
    def encoded(self, latent: Tensor) -> Codes:
        """The codes and scales with which `forward` computes."""
        codes, scale = self.codes(self._rows(latent))
        return Codes(codes.to(torch.int8).cpu().numpy(), scale[:, 0].float().cpu().numpy())

    def _rows(self, latent: Tensor) -> Tensor:
        return latent.movedim(self.axis, 0).reshape(latent.shape[self.axis], -1)

    def _restored(self, rows: Tensor, latent: Tensor) -> Tensor:
        moved = latent.movedim(self.axis, 0).shape
        return rows.reshape(moved).movedim(0, self.axis)


class Recomputed(Projection):
    """Codes and scale follow from the weight at every step: twn, optimal, xnor."""

    def __init__(self, axis: int, method: Method) -> None:
        super().__init__(axis)
        self.method = method

    def codes(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """As the module's table says."""
        size = rows.abs()
        if self.method.name == "xnor":
            return _signs(rows), size.mean(1, keepdim=True).clamp(min=_TINY)
        if self.method.name == "twn":
            kept = size > 0.7 * size.mean(1, keepdim=True)
            scale = (size * kept).sum(1, keepdim=True) / kept.sum(1, keepdim=True).clamp(min=1)
            return rows.sign() * kept, _above_zero(scale)
        scale = _above_zero(_best_ternary(size))
        return rows.sign() * (size > scale / 2), scale


class Stepped(Projection):
    """One trained scale per row: uniform, and ternary and binary ones that learn (LSQ).

    dL/ds = g * sum of dL/dw' * (code - w/s where |w/s| is within the codes, else code), g = 1 / sqrt(n top).
    """

    def __init__(self, axis: int, start: Codes, top: int, zero: bool = True) -> None:
        super().__init__(axis)
        self.top, self.zero = top, zero
        self.register_buffer("start", torch.from_numpy(np.array(start.scale))[:, None])
        self.exponent = nn.Parameter(torch.zeros(len(start.scale), 1))

    def codes(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest codes."""
        scale = self.start * self.exponent.exp()  # type: ignore[operator]
        ratio = rows / scale
        return (ratio.round().clamp(-self.top, self.top) if self.zero else _signs(rows)), scale

    def _projected(self, rows: Tensor) -> Tensor:
        codes, scale = self.codes(rows)
        stepped: Tensor = _Step.apply(rows, codes.detach(), scale, self.top)  # type: ignore[no-untyped-call]
        return stepped


class TwoSided(Projection):
    """Two trained scales per row, for the positive and the negative weights: ttq.

    The thresholds stay half of what the scales were at the start; by the nearest code, a scale that grows would leave
    ever fewer weights at it, and grow on. Both scales are multiples of 1/127 of the larger one, so that codes of eight
    bits hold them. dL/dp is the sum of dL/dw' over the weights at p, times 1 / sqrt(n) as in LSQ (Zhu et al. 2017,
    arXiv:1612.01064, equation 7).
    """

    def __init__(self, axis: int, start: Codes) -> None:
        super().__init__(axis)
        codes = start.codes.astype(np.float32)
        sides = np.stack([codes.max(1), -codes.min(1)], 1) * start.scale[:, None]
        sides = np.where(sides > 0, sides, np.maximum(sides.max(1, keepdims=True), _TINY))
        self.register_buffer("start", torch.from_numpy(sides.astype(np.float32)))
        self.exponent = nn.Parameter(torch.zeros(len(sides), 2))

    def codes(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """One of the three."""
        sides = self.start * self.exponent.exp()  # type: ignore[operator]
        scale = sides.amax(1, keepdim=True) / _MOST
        steps = (sides / scale).round()
        above, below = rows > self.start[:, :1] / 2, rows < -self.start[:, 1:] / 2  # type: ignore[index]
        return above * steps[:, :1] - below * steps[:, 1:], scale

    def _projected(self, rows: Tensor) -> Tensor:
        with torch.no_grad():
            codes, scale = self.codes(rows)
        sides = self.start * self.exponent.exp()  # type: ignore[operator]
        two: Tensor = _Two.apply(rows, codes, scale, sides)  # type: ignore[no-untyped-call]
        return two


class Bases(Projection):
    """A sum of binary bases, each with a trained scale per row: residual.

    The scales are whole multiples of a step per row, 127 steps together, so that codes of eight bits hold them.
    """

    def __init__(self, axis: int, start: Codes, count: int) -> None:
        super().__init__(axis)
        parts = np.stack([_bases(row, count) for row in start.codes]) * start.scale[:, None]
        parts = np.maximum(parts, np.maximum(parts.max(1, keepdims=True) / 256, _TINY))
        self.register_buffer("start", torch.from_numpy(parts.astype(np.float32)))
        signs = sorted(product((-1.0, 1.0), repeat=count))
        self.register_buffer("signs", torch.tensor(signs))
        self.exponent = nn.Parameter(torch.zeros(parts.shape))

    def codes(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest of the sums."""
        steps, scale, chosen = self._chosen(rows)
        return (chosen * steps[:, None]).sum(2), scale

    def _chosen(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Steps of each base [R, k], scale [R, 1], and the sign of each base in each weight [R, n, k]."""
        parts = self.start * self.exponent.exp()  # type: ignore[operator]
        scale = parts.sum(1, keepdim=True) / _MOST
        steps = (parts / scale).round()
        steps = torch.cat([steps[:, :1] + _MOST - steps.sum(1, keepdim=True), steps[:, 1:]], 1)
        levels = (steps @ self.signs.T) * scale  # type: ignore[operator]
        nearest = (rows[:, :, None] - levels[:, None]).abs().argmin(2)
        return steps, scale, self.signs[nearest]  # type: ignore[index]

    def _projected(self, rows: Tensor) -> Tensor:
        with torch.no_grad():
            steps, scale, chosen = self._chosen(rows)
            value = (chosen * steps[:, None]).sum(2) * scale
        parts = self.start * self.exponent.exp()  # type: ignore[operator]
        based: Tensor = _Based.apply(rows, value, chosen, parts)  # type: ignore[no-untyped-call]
        return based


def projection(axis: int, method: Method, start: Codes, learn: bool) -> Projection:
    """The parametrization of a method.

    Args:
        axis: of the latent weight, whose indices are the rows.
        method: how codes are found.
        start: the codes as they are; trained scales begin there.
        learn: train the scales that could be recomputed.
    """
    if method.name == "ttq":
        return TwoSided(axis, start)
    if method.name == "residual" and method.count > 1:
        return Bases(axis, start, method.count)
    if method.name == "uniform":
        return Stepped(axis, start, 2 ** (method.count - 1) - 1)
    if learn and method.name != "twn":
        return Stepped(axis, start, 1, zero=method.name in TERNARY)
    return Recomputed(axis, Method("xnor") if method.name in BINARY else method)


def projections(network: fx.GraphModule) -> dict[str, tuple[Projection, nn.Parameter]]:
    """Path of a latent weight -> its projection and the floats below it."""
    found: dict[str, tuple[Projection, nn.Parameter]] = {}
    for home_path, home in network.named_modules():
        if not parametrize.is_parametrized(home):
            continue
        for leaf, chain in home.parametrizations.items():
            for part in chain:
                if isinstance(part, Projection):
                    found[f"{home_path}.{leaf}".lstrip(".")] = (part, chain.original)
    return found


def encoded(network: fx.GraphModule, names: Mapping[str, str]) -> dict[str, Codes]:
    """Name of each latent weight -> its codes; `names` are those of `network.meta`, name -> path."""
    made = projections(network)
    return {name: made[path][0].encoded(made[path][1]) for name, path in names.items() if path in made}


def _signs(rows: Tensor) -> Tensor:
    return torch.where(rows < 0, -1.0, 1.0)


def _above_zero(scale: Tensor) -> Tensor:
    return torch.where(scale < _TINY, torch.ones_like(scale), scale)


def _best_ternary(size: Tensor) -> Tensor:
    """The s of each row with the smallest squared error: with k weights kept, s is their mean and the gain k s^2."""
    totals = size.sort(1, descending=True).values.cumsum(1)
    counts = torch.arange(1, size.shape[1] + 1, device=size.device)
    kept = (totals.square() / counts).argmax(1, keepdim=True)
    return totals.gather(1, kept) / (kept + 1)


def _bases(codes: np.ndarray, count: int) -> np.ndarray:
    """The scales of the bases, the largest first, from the codes of a row: half the distances of the highest ones."""
    levels = np.unique(np.abs(codes.astype(np.float64)))[::-1]
    gaps = [(levels[0] - level) / 2 for level in levels[1:count]]
    gaps += [0.0] * (count - 1 - len(gaps))
    return np.array([levels[0] - sum(gaps), *gaps[::-1]])


class _Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, value: Tensor) -> Tensor:
        return value

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return gradient, None


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, codes: Tensor, scale: Tensor, top: int) -> Tensor:
        ratio = rows / scale
        inside = ratio.abs() < top
        ctx.save_for_backward(codes - ratio * inside)
        ctx.factor = 1 / sqrt(rows.shape[1] * top)
        return codes * scale

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = ctx.saved_tensors
        return gradient, None, (gradient * slope).sum(1, keepdim=True) * ctx.factor, None


class _Two(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, codes: Tensor, scale: Tensor, sides: Tensor) -> Tensor:
        ctx.save_for_backward(codes)
        return codes * scale

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (codes,) = ctx.saved_tensors
        above, below = codes > 0, codes < 0
        factor = 1 / sqrt(codes.shape[1])
        moved = torch.stack([(gradient * above).sum(1), -(gradient * below).sum(1)], 1) * factor
        return gradient, None, None, moved


class _Based(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, value: Tensor, chosen: Tensor, parts: Tensor) -> Tensor:
        ctx.save_for_backward(chosen)
        return value

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (chosen,) = ctx.saved_tensors
        factor = 1 / sqrt(chosen.shape[1])
        return gradient, None, None, (gradient[:, :, None] * chosen).sum(1) * factor
