"""What acts differently while training: BatchNormalization and Dropout, whatever the file was exported for."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from compressor.errors import DataError
from compressor.torch_graph.values import Kernel


def batch_normalization(
    x: Tensor,
    scale: Tensor,
    b: Tensor,
    input_mean: Tensor,
    input_var: Tensor,
    *,
    epsilon: float,
    momentum: float,
    outputs: int = 1,
    spatial: int = 1,
    training: bool = False,
    training_mode: int = 0,
    version: int = 15,
) -> Tensor | tuple[Tensor, ...]:
    """Normalize each channel of x (N, C, ...) by the given statistics, while training by those of the batch.

    While training, `input_mean` and `input_var` move towards the statistics of the batch in place, as torch does
    it: by 1 - momentum, with the unbiased variance. `training_mode` 1 of the file is ONNX's own form of that: the
    moved statistics are outputs, with the biased variance, and the inputs stay. `spatial` 0 normalizes each element.

    Raises:
        DataError: a training batch that holds one value per channel, which has no variance.
    """
    if not spatial:
        flat = (t.flatten() for t in (scale, b, input_mean, input_var))
        y = batch_normalization(x.flatten(1), *flat, epsilon=epsilon, momentum=momentum, training=training)
        return y.view(x.shape)  # type: ignore[union-attr]
    if scale.dtype != input_mean.dtype:
        scale, b = scale.to(input_mean.dtype), b.to(input_mean.dtype)
    if x.dim() == 1:
        return F.batch_norm(x[:, None], input_mean, input_var, scale, b, training, 1 - momentum, epsilon)[
            :, 0
        ]
    if (training_mode or (outputs > 1 and version < 14)) and not training:
        return _with_moved_statistics((x, scale, b, input_mean, input_var), momentum, epsilon, outputs)
    if training and x.numel() == x.shape[1]:
        raise DataError(
            f"BatchNormalization cannot train on a batch with one value per channel (shape {list(x.shape)}): "
            "give batches of two or more samples, or freeze the statistics."
        )
    y = F.batch_norm(x, input_mean, input_var, scale, b, training, 1 - momentum, epsilon)
    return y if outputs == 1 else (y, input_mean, input_var, input_mean, input_var)[:outputs]


def _with_moved_statistics(
    operands: tuple[Tensor, Tensor, Tensor, Tensor, Tensor], momentum: float, epsilon: float, outputs: int
) -> Tensor | tuple[Tensor, ...]:
    x, scale, b, mean, var = operands
    y = F.batch_norm(x, None, None, scale, b, True, 0.0, epsilon)
    if outputs == 1:
        return y
    axes = [axis for axis in range(x.dim()) if axis != 1]
    batch_var, batch_mean = torch.var_mean(x.to(mean.dtype), axes, correction=0)
    moved = [old * momentum + new * (1 - momentum) for old, new in ((mean, batch_mean), (var, batch_var))]
    return (y, *moved, batch_mean, batch_var)[:outputs]


def dropout(
    data: Tensor,
    ratio: float | None = None,
    training_mode: bool | None = None,
    *,
    outputs: int = 1,
    seed: int | None = None,
    training: bool = False,
    version: int = 22,
) -> Tensor | tuple[Tensor, Tensor]:
    """Zero a share `ratio` (0.5 where omitted) of the elements and scale the rest by 1 / (1 - ratio).

    It acts while training, or when the file says so; else data passes. The second output is the mask of what stayed.
    Draws are torch's own: `seed` does not count.
    """
    acts = training or bool(training_mode)
    share = 0.5 if ratio is None else ratio
    if outputs == 1:
        return F.dropout(data, share) if acts else data
    if acts:
        y, mask = torch.native_dropout(data, share, True)
    else:
        y, mask = data, torch.ones_like(data, dtype=torch.bool)
    return y, mask if version >= 10 else mask.to(data.dtype)


KERNELS: dict[str, Kernel] = {"BatchNormalization": batch_normalization, "Dropout": dropout}
