"""What is added to the loss, or done after a step, to keep weights small or near where they were."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from compressor.errors import DataError
from compressor.training.gradients import Loss, batch_gradients


def penalized(module: nn.Module) -> list[nn.Parameter]:
    """The trainable weights that l1 and l2 act on: two axes or more, so no bias and no norm."""
    return [p for p in module.parameters() if p.requires_grad and p.ndim >= 2]


def l1(weights: Iterable[Tensor]) -> Tensor:
    """The sum of |w|; its gradient is the sign, 0 at 0.

    >>> l1([torch.tensor([[1.0, -2.0]])])
    tensor(3.)
    """
    return _sum(w.abs().sum() for w in weights)


def l2(weights: Iterable[Tensor]) -> Tensor:
    """Half the sum of w^2; its gradient is w.

    >>> l2([torch.tensor([[1.0, -2.0]])])
    tensor(2.5000)
    """
    return _sum(w.square().sum() / 2 for w in weights)


@torch.no_grad()
def max_norm_(module: nn.Module, axes: Mapping[str, int], limit: float) -> None:
    """Scale every output channel whose l2 norm is above `limit` back to it (Srivastava et al. 2014, section 5.1).

    Where a weight is parametrized the norm is that of what the module computes with (a masked weight's without what
    the mask removes) and the tensor below it is scaled.

    Args:
        module: holds the weights.
        axes: path of a weight -> its axis of output channels, which depends on the operator that reads it.
        limit: the largest norm, above 0.
    """
    for path, axis in axes.items():
        folder, _, name = path.rpartition(".")
        home = module.get_submodule(folder)
        used = getattr(home, name)
        others = [a for a in range(used.ndim) if a != axis % used.ndim]
        norms = torch.linalg.vector_norm(used, dim=others, keepdim=True)
        below = _stored(home, name)
        below.mul_((limit / norms.clamp_min(limit)).to(below.dtype))


def _stored(home: nn.Module, name: str) -> Tensor:
    """The tensor that the optimizer changes."""
    if parametrize.is_parametrized(home, name):
        return home.get_parameter(f"parametrizations.{name}.original")
    return home.get_parameter(name)


def fisher(
    module: nn.Module,
    loss: Loss,
    batches: Iterable[tuple[Sequence[Tensor], Tensor | None]],
    samples: int,
    batch: int = 1,
) -> dict[str, Tensor]:
    """The diagonal of the empirical Fisher information: the mean over samples of the squared gradient.

    Kirkpatrick et al. 2017, arXiv:1612.00796, section 2. The gradient is taken sample by sample: the square of a
    batch's mean gradient would be smaller. The module is in eval mode meanwhile; its gradients are left as they were.

    Args:
        module: the model trained on the old data.
        loss: (outputs, labels) -> scalar. At the original the gradient of distillation from the original is 0, so
            without labels let the classes that the model says be the labels.
        batches: old data, (inputs, labels) each [n, ...].
        samples: how many samples to look at.
        batch: what the file fixes its batch to; every sample is repeated so often, which leaves its gradient.

    Returns:
        Name of a trainable parameter -> its information, of the parameter's shape.

    Raises:
        DataError: there are no samples.
    """
    named = {name: p for name, p in module.named_parameters() if p.requires_grad}
    total = {name: torch.zeros_like(p) for name, p in named.items()}
    seen = 0
    for found in batch_gradients(module, named, loss, _one_by_one(batches, samples, batch)):
        for name, gradient in found.items():
            total[name] += gradient.square()
        seen += 1
    if not seen:
        raise DataError("ewc needs samples of the old data, and there are none.")
    return {name: tensor / seen for name, tensor in total.items()}


def _one_by_one(
    batches: Iterable[tuple[Sequence[Tensor], Tensor | None]], samples: int, batch: int
) -> Iterable[tuple[list[Tensor], Tensor | None]]:
    """Single samples, each repeated `batch` times along the first axis."""
    left = samples
    for inputs, labels in batches:
        for row in range(min(left, len(inputs[0]))):
            pick = torch.full((batch,), row, device=inputs[0].device)
            yield (
                [tensor[pick] for tensor in inputs],
                None if labels is None else labels[pick.to(labels.device)],
            )
            left -= 1
        if left <= 0:
            return


def ewc(
    parameters: Mapping[str, Tensor], anchors: Mapping[str, Tensor], information: Mapping[str, Tensor]
) -> Tensor:
    """Half the sum of F (w - w0)^2: elastic weight consolidation (Kirkpatrick et al. 2017, equation 3).

    Args:
        parameters: what is trained, by name.
        anchors: name -> the value after the old data, w0.
        information: name -> F, as `fisher` gives it; parameters that it lacks are free.
    """
    return _sum(
        (f * (parameters[name] - anchors[name]).square()).sum() / 2 for name, f in information.items()
    )


def _sum(terms: Iterable[Tensor]) -> Tensor:
    """The sum of scalars, 0 when there are none."""
    found = list(terms)
    return torch.stack(found).sum() if found else torch.zeros(())
