"""How much the loss depends on each weight, from its gradients on samples; no weight is changed.

What training would minimize is the loss: labels where there are some, else the model's own answers (`own_answers`).
The module is in eval mode, so that BatchNormalization is the function that is deployed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, fx, nn

from compressor.data import Samples, open_samples
from compressor.discover import find
from compressor.errors import DataError, ModelError
from compressor.pipeline import Context
from compressor.torch_graph import to_torch
from compressor.torch_graph.parameters import array_of, keyed
from compressor.torch_graph.values import to_array
from compressor.torch_graph.writing import NAMES, TRANSPOSED
from compressor.training.batch_axis import free_batch
from compressor.training.gradients import Given, Loss, batch_gradients
from compressor.training.latent import LATENT, lift
from compressor.training.loading import Loader, loader, open_source
from compressor.training.machine import machine
from compressor.training.objective import objective
from compressor.training.options import Training
from compressor.training.own_answers import own_answers
from compressor.training.reach import require_gradient

BATCH = 8
"""Samples whose mean gradient is squared; fewer are nearer to the Fisher information, and take longer."""
LIMIT = 512
"""Samples that are looked at; more hardly change which weights matter (Molchanov et al. 2019, section 4)."""
_WHO = "importance from gradients"


@dataclass(frozen=True)
class Saliency:
    """What the gradients g of the loss say of one weight w, in arrays of its shape.

    Args:
        weight: w, float32.
        gradient: the mean of g over the batches.
        square: the mean of g^2, the empirical Fisher information where a batch is one sample.
    """

    weight: np.ndarray
    gradient: np.ndarray
    square: np.ndarray

    @property
    def product(self) -> np.ndarray:
        """The mean of w g: minus the first-order change of the loss when an element becomes 0."""
        return np.asarray(self.weight * self.gradient)

    @property
    def taylor(self) -> np.ndarray:
        """The mean of (w g)^2 (Molchanov et al. 2019, arXiv:1906.10771, equation 8)."""
        return np.asarray(np.square(self.weight) * self.square)


def saliency(
    model: ir.Model,
    samples: Samples,
    names: Collection[str],
    context: Context,
    *,
    batch: int = BATCH,
    limit: int = LIMIT,
) -> dict[str, Saliency]:
    """Name of each weight -> what its gradients say. The arguments and errors are those of `gradients`.

    Two arrays of each weight's size are kept, whatever the number of samples.
    """
    work = lift(model, context.latents)
    batches = gradients(work, samples, names, context, batch=batch, limit=limit)
    arrays = _arrays(work, names)
    means = {name: (np.zeros_like(w), np.zeros_like(w)) for name, w in arrays.items()}
    for count, found in enumerate(batches, 1):
        for name, gradient in found.items():
            first, second = means[name]
            first += (gradient - first) / count
            second += (np.square(gradient) - second) / count
    return {name: Saliency(arrays[name], *means[name]) for name in arrays}


def gradients(
    model: ir.Model,
    samples: Samples,
    names: Collection[str],
    context: Context,
    *,
    batch: int = BATCH,
    limit: int = LIMIT,
) -> Iterator[Mapping[str, np.ndarray]]:
    """Name -> the gradient of the mean loss of a batch, float32 of the weight's shape; one mapping per batch.

    The same for the same seed, which draws the samples, their order, and answers where there are no labels. Only the
    current batch's gradients are held. A weight that the loss does not reach has 0.

    Args:
        model: stays as it was; the weights of a quantized model are the floats that their codes round, with
            straight-through gradients, under the names of the codes.
        samples: that the loss is taken on.
        names: of initializers, or of outputs of Constant nodes, that hold floating-point weights.
        context: the seed, and the floats behind codes where they are known.
        batch: samples per gradient; a model that fixes its batch has its own.
        limit: the largest number of samples; the first ones of a function, else drawn.

    Raises:
        ModelError: a name is no weight that can be trained, or there is none; no gradient reaches one; an operator
            that torch cannot run.
        DataError: labels do not fit, or the model gives NaN.
    """
    work = free_batch(lift(model, context.latents))
    options = _options()
    network = to_torch(work).to(machine(options).device)
    places = _places(network, names)
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    parameters = {path: network.get_parameter(path).requires_grad_(True) for path, _ in places.values()}
    chosen = open_samples(_drawn(samples, limit, context.seed), work, "samples")
    batches = loader(open_source(chosen), batch, seed=context.seed)
    loss = _loss(work, network, options, batches, chosen, context.seed)
    found = batch_gradients(network, parameters, loss, _on_device(batches, network))
    return ({name: _array(each, *place) for name, place in places.items()} for each in found)


def _options() -> Training:
    """The options of a plain fine-tuning: its loss is the one that is meant."""
    options = find("finetune")()
    if not isinstance(options, Training):
        raise TypeError("finetune does not train")
    return options


def _places(network: fx.GraphModule, names: Collection[str]) -> dict[str, tuple[str, bool]]:
    """Name -> the path of the parameter, and whether the weight is its transpose."""
    held = {name: (path, False) for name, path in network.meta[NAMES].items()}
    held |= {name: (path, True) for name, path in network.meta[TRANSPOSED].items()}
    trained = {path for path, _ in network.named_parameters()}
    found: dict[str, tuple[str, bool]] = {}
    for name in names:
        place = held.get(f"{name}{LATENT}") or held.get(name)
        if place is None or place[0] not in trained:
            raise ModelError(f"{_WHO}: {name!r} is no floating-point weight of the model. Leave it out.")
        found[name] = place
    if not found:
        raise ModelError(f"{_WHO}: the model has no floating-point weights to look at.")
    return found


def _arrays(model: ir.Model, names: Collection[str]) -> dict[str, np.ndarray]:
    """Name -> the weight as float32, for names that `gradients` has accepted."""
    stored = keyed(model)
    held = {name: latent if (latent := f"{name}{LATENT}") in stored else name for name in names}
    return {name: array_of(stored[key]).astype(np.float32) for name, key in held.items()}


def _drawn(samples: Samples, limit: int, seed: int) -> Samples:
    """At most `limit` of the samples, in their order."""
    if not samples.numbered or len(samples) <= limit:
        return samples.take(limit)
    rows = np.random.default_rng(seed).permutation(len(samples))[:limit]
    return samples.subset(np.sort(rows))


def _loss(
    model: ir.Model, network: fx.GraphModule, options: Training, batches: Loader, samples: Samples, seed: int
) -> Loss:
    """The loss on labels, or on the model's own answers; it refuses a batch for which it is no number."""
    inputs, _ = next(_on_device(batches, network))
    with torch.no_grad():
        made = network(*inputs)
    outputs = [made] if isinstance(made, Tensor) else list(made)
    labels = samples.labels
    found = (
        own_answers(model, outputs, seed) if labels is None else objective(model, options, labels, outputs)
    )
    require_gradient(_WHO, network, inputs, [term.index for term in found.terms])

    def finite(outputs: Sequence[Tensor], labels: Tensor | None) -> Tensor:
        usable = not any(bool(output.isnan().any()) for output in outputs)
        loss = found(outputs, labels) if usable else torch.tensor(torch.nan)
        if not bool(loss.isfinite()):
            raise DataError(
                f"{_WHO}: the model gives NaN or infinity for some samples. Look at these, or for an overflow."
            )
        return loss

    return finite


def _on_device(batches: Loader, network: nn.Module) -> Iterator[Given]:
    """Inputs and labels of the first epoch, where the module is."""
    device = next(network.parameters()).device
    for batch in batches.batches(0):
        labels = None if batch.labels is None else batch.labels.to(device)
        yield tuple(tensor.to(device) for tensor in batch.inputs), labels


def _array(found: Mapping[str, Tensor], path: str, transposed: bool) -> np.ndarray:
    gradient = found[path].t() if transposed else found[path]
    array: np.ndarray = to_array(gradient.float())
    return array
