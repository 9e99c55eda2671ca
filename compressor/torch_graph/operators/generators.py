"""Tensors made from nothing but numbers: random ones, identities, ranges, windows."""

from __future__ import annotations

import onnx_ir as ir
import torch
from torch import Tensor

from compressor.torch_graph.values import TORCH_TYPES, Kernel

_HAMMING = 25 / 46
"""The weight that ONNX gives the constant of the Hamming window; signal libraries round it to 0.54."""


def random_normal(
    *, shape: list[int], dtype: int = 1, mean: float = 0.0, scale: float = 1.0, seed: float | None = None
) -> Tensor:
    """Draws from the normal distribution with mean `mean` and standard deviation `scale`."""
    generator = _generator(seed, torch.get_default_device())
    return (torch.randn(shape, generator=generator) * scale + mean).to(_type(dtype))


def random_normal_like(
    input: Tensor,
    *,
    dtype: int | None = None,
    mean: float = 0.0,
    scale: float = 1.0,
    seed: float | None = None,
) -> Tensor:
    """Draws from the normal distribution in the shape, and unless told in the dtype, of a tensor."""
    drawn = torch.randn(input.shape, device=input.device, generator=_generator(seed, input.device))
    return (drawn * scale + mean).to(_type_or(dtype, input))


def random_uniform(
    *, shape: list[int], dtype: int = 1, low: float = 0.0, high: float = 1.0, seed: float | None = None
) -> Tensor:
    """Draws from [low, high)."""
    generator = _generator(seed, torch.get_default_device())
    return (torch.rand(shape, generator=generator) * (high - low) + low).to(_type(dtype))


def random_uniform_like(
    input: Tensor, *, dtype: int | None = None, low: float = 0.0, high: float = 1.0, seed: float | None = None
) -> Tensor:
    """Draws from [low, high) in the shape, and unless told in the dtype, of a tensor."""
    drawn = torch.rand(input.shape, device=input.device, generator=_generator(seed, input.device))
    return (drawn * (high - low) + low).to(_type_or(dtype, input))


def bernoulli(input: Tensor, *, dtype: int | None = None, seed: float | None = None) -> Tensor:
    """1 with the probability that the input gives, else 0."""
    return torch.bernoulli(input, generator=_generator(seed, input.device)).to(_type_or(dtype, input))


def multinomial(input: Tensor, *, dtype: int = 6, sample_size: int = 1, seed: float | None = None) -> Tensor:
    """`sample_size` class numbers per row, drawn with the unnormalized log-probabilities input[N, C]."""
    chances = torch.softmax(input, -1)
    generator = _generator(seed, input.device)
    return torch.multinomial(chances, sample_size, replacement=True, generator=generator).to(_type(dtype))


def eye_like(input: Tensor, *, dtype: int | None = None, k: int = 0) -> Tensor:
    """1 on the diagonal that lies k columns to the right of the main one, 0 elsewhere, in the shape of a matrix."""
    rows, columns = (torch.arange(size, device=input.device) for size in input.shape)
    return (columns - k == rows.unsqueeze(1)).to(_type_or(dtype, input))


def range_of(start: float, limit: float, delta: float, *, result_type: torch.dtype) -> Tensor:
    """start, start + delta, ... as far as they are before the limit."""
    if (limit - start) * delta <= 0:
        return torch.empty(0, dtype=result_type)
    return torch.arange(start, limit, delta, dtype=result_type)


def hann_window(size: int, *, periodic: int = 1, output_datatype: int = 1) -> Tensor:
    """1/2 - 1/2 cos(2 pi n / N), N being size, or size - 1 of a window that is not periodic."""
    return torch.hann_window(size, bool(periodic), dtype=torch.float64).to(_type(output_datatype))


def hamming_window(size: int, *, periodic: int = 1, output_datatype: int = 1) -> Tensor:
    """25/46 - 21/46 cos(2 pi n / N), N as for `hann_window`."""
    window = torch.hamming_window(size, bool(periodic), _HAMMING, 1 - _HAMMING, dtype=torch.float64)
    return window.to(_type(output_datatype))


def blackman_window(size: int, *, periodic: int = 1, output_datatype: int = 1) -> Tensor:
    """0.42 - 1/2 cos(2 pi n / N) + 0.08 cos(4 pi n / N), N as for `hann_window`."""
    return torch.blackman_window(size, bool(periodic), dtype=torch.float64).to(_type(output_datatype))


def _type(number: int) -> torch.dtype:
    return TORCH_TYPES[ir.DataType(number)]


def _type_or(number: int | None, like: Tensor) -> torch.dtype:
    return like.dtype if number is None else _type(number)


def _generator(seed: float | None, device: torch.device) -> torch.Generator | None:
    """A node with a seed draws the same numbers at every call; one without draws from torch's own state."""
    return None if seed is None else torch.Generator(device).manual_seed(int(seed))


KERNELS: dict[str, Kernel] = {
    "Bernoulli": bernoulli,
    "BlackmanWindow": blackman_window,
    "EyeLike": eye_like,
    "HammingWindow": hamming_window,
    "HannWindow": hann_window,
    "Multinomial": multinomial,
    "RandomNormal": random_normal,
    "RandomNormalLike": random_normal_like,
    "RandomUniform": random_uniform,
    "RandomUniformLike": random_uniform_like,
    "Range": range_of,
}
