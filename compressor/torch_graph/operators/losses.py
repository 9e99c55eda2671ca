"""Losses that ONNX knows: what a training graph ends with."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from compressor.torch_graph.values import Kernel

_NEVER = -100
"""torch's own default for `ignore_index`: no class has this number."""


def negative_log_likelihood(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    reduction: str = "mean",
    ignore_index: int | None = None,
) -> Tensor:
    """-weight x at each target class, input[N, C, ...] with target[N, ...]: each one, their "sum" or their "mean".

    The mean is weighted by the classes' weights. Targets equal to `ignore_index` count nothing.
    """
    ignored = _NEVER if ignore_index is None else ignore_index
    return F.nll_loss(input, target.long(), weight, ignore_index=ignored, reduction=reduction)


def softmax_cross_entropy(
    scores: Tensor,
    labels: Tensor,
    weights: Tensor | None = None,
    *,
    outputs: int,
    reduction: str = "mean",
    ignore_index: int | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """The negative log-likelihood of log_softmax(scores) over axis 1; that too when two outputs are wanted."""
    logarithms = F.log_softmax(scores, 1)
    loss = negative_log_likelihood(
        logarithms, labels, weights, reduction=reduction, ignore_index=ignore_index
    )
    return loss if outputs == 1 else (loss, logarithms)


KERNELS: dict[str, Kernel] = {
    "NegativeLogLikelihoodLoss": negative_log_likelihood,
    "SoftmaxCrossEntropyLoss": softmax_cross_entropy,
}
