"""Fourier transforms, whose complex numbers are a last axis of two, and the weights of mel spectra."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from compressor.torch_graph.values import TORCH_TYPES, Kernel

_REAL = 1
"""The length of the last axis of a real signal; that of a complex one is 2."""


def dft(
    input: Tensor,
    dft_length: int | list[int] | None = None,
    axis: int | list[int] | None = None,
    *,
    inverse: int = 0,
    onesided: int = 0,
) -> Tensor:
    """The discrete Fourier transform along one axis: input[..., 1 or 2] -> [..., 2].

    Args:
        input: real (1) or complex (2) numbers.
        dft_length: cuts the axis or pads it with zeros; None takes it as it is.
        axis: counted with the last axis, -2 when omitted.
        inverse: divides by the length.
        onesided: gives the first half of the spectrum; with `inverse` takes one and gives real numbers (1).
    """
    length, dim = _scalar(dft_length), _scalar(axis)
    dim = (-2 if dim is None else dim) % input.ndim
    x = _numbers(input)
    result: Tensor
    if inverse and onesided:
        result = torch.fft.irfft(x, length, dim).unsqueeze(-1)
    elif inverse:
        result = torch.view_as_real(torch.fft.ifft(x, length, dim))
    else:
        result = torch.view_as_real(_spectrum(x, length, dim, onesided))
    return result.to(input.dtype)


def stft(
    signal: Tensor,
    frame_step: int | list[int],
    window: Tensor | None = None,
    frame_length: int | list[int] | None = None,
    *,
    onesided: int = 1,
) -> Tensor:
    """The spectra of frames, each times the window: signal[N, L, 1 or 2] -> [N, frames, frequencies, 2].

    The frame is as long as the window, or as the signal when neither is given; what is left over at the end is not
    used.
    """
    length = _scalar(frame_length)
    if length is None:
        length = signal.shape[1] if window is None else window.shape[0]
    frames = _numbers(signal).unfold(1, length, _scalar(frame_step))
    if window is not None:
        frames = frames * window
    return torch.view_as_real(_spectrum(frames, length, -1, onesided)).to(signal.dtype)


def _numbers(x: Tensor) -> Tensor:
    """[..., 1] as real and [..., 2] as complex numbers [...], in a dtype that torch can transform."""
    if x.dtype in (torch.float16, torch.bfloat16):
        x = x.float()
    return x[..., 0] if x.shape[-1] == _REAL else torch.complex(x[..., 0], x[..., 1])


def _spectrum(x: Tensor, length: int | None, dim: int, onesided: int) -> Tensor:
    half = bool(onesided) and not x.is_complex()
    spectrum: Tensor = (torch.fft.rfft if half else torch.fft.fft)(x, length, dim)
    if not onesided or half:
        return spectrum
    return spectrum.narrow(dim, 0, spectrum.shape[dim] // 2 + 1)


def mel_weight_matrix(
    num_mel_bins: int,
    dft_length: int,
    sample_rate: int,
    lower_edge_hertz: float,
    upper_edge_hertz: float,
    *,
    output_datatype: int = 1,
) -> Tensor:
    """The weights [dft_length // 2 + 1, num_mel_bins] that sum a spectrum into mel bands.

    Each band is a triangle with its peak of 1 at one frequency bin; the edges of the bands are equally spaced by
    mel(f) = 2595 log10(1 + f / 700).
    """
    lowest, highest = (
        _mel(torch.tensor(f, dtype=torch.float64)) for f in (lower_edge_hertz, upper_edge_hertz)
    )
    edges = num_mel_bins + 2
    mels = lowest + (highest - lowest) / edges * torch.arange(edges, dtype=torch.float64)
    hertz = 700 * (10 ** (mels / 2595) - 1)
    bins = torch.floor((dft_length + 1) * hertz / sample_rate)
    left, centre, right = bins[:-2], bins[1:-1], bins[2:]
    at = torch.arange(dft_length // 2 + 1, dtype=torch.float64).unsqueeze(1)
    rising = torch.where(at < left, 0, (at - left) / (centre - left))
    falling = torch.where(at >= right, 0, (right - at) / (right - centre))
    weights = torch.where(at < centre, rising, falling)
    return torch.where(at == centre, 1, weights).to(TORCH_TYPES[ir.DataType(output_datatype)])


def _mel(hertz: Tensor) -> Tensor:
    return 2595 * torch.log10(1 + hertz / 700)


def _scalar(number: Any) -> Any:
    """A number that may be given as a list of one, or omitted."""
    return number[0] if isinstance(number, list) else number


KERNELS: dict[str, Kernel] = {"DFT": dft, "MelWeightMatrix": mel_weight_matrix, "STFT": stft}
