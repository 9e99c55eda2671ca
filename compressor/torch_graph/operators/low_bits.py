"""onnxruntime's weights of 2, 4 and 8 bits in blocks, packed into bytes: MatMulNBits and GatherBlockQuantized.

Scales, and zero points that are floats, are differentiable; the codes are not.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from compressor.errors import ModelError
from compressor.torch_graph.values import Kernel

_BITS = (2, 4, 8)


def unpacked(packed: Tensor, bits: int) -> Tensor:
    """The codes in the bytes of the last axis, low bits first, as uint8; the axis grows by 8 / bits.

    >>> unpacked(torch.tensor([0x21, 0x43], dtype=torch.uint8), 4)
    tensor([1, 2, 3, 4], dtype=torch.uint8)

    Raises:
        ModelError: the codes are not of 2, 4 or 8 bits.
    """
    if bits not in _BITS:
        raise ModelError(f"Codes of {bits} bits cannot be read; known: {', '.join(map(str, _BITS))}.")
    if bits == 8:
        return packed
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
    codes: Tensor = (packed.unsqueeze(-1) >> shifts) & (2**bits - 1)
    return codes.flatten(-2)


def mat_mul_n_bits(
    a: Tensor,
    b: Tensor,
    scales: Tensor,
    zero_points: Tensor | None = None,
    g_idx: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    K: int,  # noqa: N803
    N: int,  # noqa: N803
    accuracy_level: int = 0,
    bits: int = 4,
    block_size: int,
    weight_prepacked: int = 0,
) -> Tensor:
    """a [..., K] times the weights [N, K], packed as b [N, ceil(K / block_size), block_size * bits / 8], + bias.

    Scales are per block, [N, blocks]; so are zero points, as floats or packed like b, 2^(bits - 1) where omitted.
    `g_idx` [K] names each column's block in another order. `accuracy_level`, how coarsely onnxruntime may compute,
    is not imitated.
    """
    if weight_prepacked:
        raise ModelError(
            f"MatMulNBits: weight_prepacked={weight_prepacked} is a GPU's own layout; give plain weights."
        )
    blocks = -(-K // block_size)
    codes = unpacked(b.reshape(N, blocks, -1), bits).flatten(1)[:, :K]
    block = torch.arange(K, device=a.device) // block_size if g_idx is None else g_idx.long()[:K]
    zeros = _zero_points(zero_points, bits, (N, blocks), scales)
    weights = (codes.to(scales.dtype) - zeros[:, block]) * scales.reshape(N, blocks)[:, block]
    return F.linear(a, weights.to(a.dtype), bias)


def _zero_points(given: Tensor | None, bits: int, shape: tuple[int, int], scales: Tensor) -> Tensor:
    if given is None:
        return scales.new_full(shape, 2 ** (bits - 1))
    if given.is_floating_point():
        return given.reshape(shape)
    return unpacked(given.reshape(shape[0], -1), bits)[:, : shape[1]].to(scales.dtype)


def gather_block_quantized(
    data: Tensor,
    indices: Tensor,
    scales: Tensor,
    zero_points: Tensor | None = None,
    *,
    bits: int = 4,
    block_size: int = 128,
    gather_axis: int = 0,
    quantize_axis: int = 1,
) -> Tensor:
    """Rows of a table stored in blocks of `bits` bits; an index out of range gives zeros.

    uint8 data is packed along its last axis and has the zero point 2^(bits - 1) where none is given.
    """
    along, blocked = gather_axis % data.dim(), quantize_axis % data.dim()
    if along == blocked:
        raise ModelError(
            f"GatherBlockQuantized: it gathers along the axis {along} of its blocks; not supported."
        )
    zeros, middle = None, 0
    if data.dtype == torch.uint8:
        if zero_points is not None:
            zeros = unpacked(zero_points, bits).narrow(-1, 0, scales.shape[-1]).to(scales.dtype)
        data, middle = unpacked(data, bits), 2 ** (bits - 1)
    size = data.shape[along]
    there = (indices >= -size) & (indices < size)
    index = torch.where(there, indices % size, 0).flatten()

    def taken(table: Tensor) -> Tensor:
        return table.index_select(along, index) if table.shape[along] == size else table

    def widened(grid: Tensor) -> Tensor:
        width = block_size or data.shape[blocked]
        return taken(grid).repeat_interleave(width, blocked).narrow(blocked, 0, data.shape[blocked])

    values = taken(data).to(scales.dtype)
    values = (values - (middle if zeros is None else widened(zeros))) * widened(scales)
    values = values.reshape(*data.shape[:along], *indices.shape, *data.shape[along + 1 :])
    return torch.where(there.reshape(*there.shape, *[1] * (data.dim() - along - 1)), values, 0.0)


KERNELS: dict[str, Kernel] = {
    "com.microsoft::GatherBlockQuantized": gather_block_quantized,
    "com.microsoft::MatMulNBits": mat_mul_n_bits,
}
