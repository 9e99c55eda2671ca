"""What a training works on: the model in its trainable form, in torch, and the samples in their parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch import fx, nn
from torch.nn.utils import parametrize

from compressor.data import Samples
from compressor.low_bit.coded_weights import CodedWeight, coded_weights
from compressor.pipeline import Context
from compressor.torch_graph import to_torch
from compressor.torch_graph.values import to_value
from compressor.torch_graph.writing import NAMES
from compressor.training.initialization import initialized
from compressor.training.machine import Machine, machine
from compressor.training.options import Training
from compressor.training.projections import projection
from compressor.training.prunable_weights import add_masks
from compressor.training.ranges import largest_scales, learn_relatively, levels
from compressor.training.splits import hold_out
from compressor.training.working_copy import WorkingCopy
from compressor.training.zeros import keep_zeros


@dataclass(frozen=True)
class Bench:
    """What a training works on.

    Args:
        copy: the model and its trainable form.
        network: that form in torch.
        train: what is trained on.
        evaluation: what is scored on.
        machine: where it runs.
        parameters: initializer name -> the parameter that the optimizer changes, each once.
        masked: path of a weight whose zeros stay -> its share of zeros.
    """

    copy: WorkingCopy
    network: fx.GraphModule
    train: Samples
    evaluation: Samples
    machine: Machine
    parameters: Mapping[str, nn.Parameter]
    masked: Mapping[str, float]


def set_up(copy: WorkingCopy, options: Training, context: Context) -> Bench:
    """The module with its weights drawn and masked as asked, and the samples in their parts."""
    coded = coded_weights(copy.source)
    learn = options.learn_ranges is True or (options.learn_ranges == "auto" and bool(coded))
    network = to_torch(copy.model, learn_ranges=learn)
    _draw(network, copy.model, options, context.seed)
    scales = _project(network, coded, learn)
    masked = keep_zeros(network) if options.keep_zeros else {}
    add_masks(network, context.gradual)
    learn_relatively(network, (largest_scales(copy.model) if learn else {}) | levels(copy.model))
    train, evaluation = _parts(context, options)
    parameters = _parameters(network) | scales
    return Bench(copy, network, train, evaluation, machine(options), parameters, masked)


def _project(network: fx.GraphModule, weights: Sequence[CodedWeight], learn: bool) -> dict[str, nn.Parameter]:
    """Give the weights of few bits their projections; name -> each scale that is trained."""
    trained: dict[str, nn.Parameter] = {}
    for coded in weights:
        path = network.meta[NAMES].get(str(coded.node.outputs[0].name))
        if path is None:
            continue
        made = projection(coded.axis, coded.method, coded.rows(), learn)
        folder, _, leaf = path.rpartition(".")
        parametrize.register_parametrization(network.get_submodule(folder), leaf, made)
        trained |= {str(coded.scale.name): parameter for parameter in made.parameters()}
    return trained


def _parts(context: Context, options: Training) -> tuple[Samples, Samples]:
    """What is trained on, and what is scored on."""
    samples = context.train
    if samples is None:
        raise TypeError("no train samples")
    if context.data is not None:
        return samples, context.data
    rows, held = hold_out(samples.labels, len(samples), options.holdout, context.seed)
    if not len(held):
        return samples, samples
    return samples.subset(rows), samples.subset(held)


def _draw(network: fx.GraphModule, model: ir.Model, options: Training, seed: int) -> None:
    """Put newly drawn weights where `initialize` asks for them."""
    if not options.initialize:
        return
    stored = dict(network.named_parameters(remove_duplicate=False))
    for name, array in initialized(model, options, seed).items():
        with torch.no_grad():
            stored[network.meta[NAMES][name]].copy_(to_value(array))


def _parameters(network: fx.GraphModule) -> dict[str, nn.Parameter]:
    """Initializer name -> the parameter that the optimizer changes, each once."""
    found: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    for name, path in network.meta[NAMES].items():
        folder, _, leaf = path.rpartition(".")
        home = network.get_submodule(folder)
        stored = getattr(home, leaf) if not parametrize.is_parametrized(home, leaf) else None
        parameter = stored if stored is not None else home.parametrizations[leaf].original  # type: ignore[index, union-attr]
        if isinstance(parameter, nn.Parameter) and id(parameter) not in seen:
            seen.add(id(parameter))
            found[name] = parameter
    return found
