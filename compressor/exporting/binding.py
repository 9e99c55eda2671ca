"""The example inputs as a torch model takes them."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.export.graph_signature import TensorArgument
from torch.utils import _pytree as pytree

from compressor.errors import OptionError
from compressor.exporting.inputs import Array, Axes, read_dynamic, read_input, resized, sizes

Traceable = torch.nn.Module | torch.export.ExportedProgram


class Job(NamedTuple):
    """What is exported.

    Args:
        model: in the mode that it came in.
        inputs: by name, in the order of the file.
        axes: the dynamic ones among the inputs' axes.
        parameters: the names that torch has for the inputs, at least as many.
        by_name: whether forward takes the inputs by their names.
        given: symbol -> size, as the user gave it; in `inputs` it is at least 2.
    """

    model: Traceable
    inputs: dict[str, Array]
    axes: Axes
    parameters: tuple[str, ...]
    by_name: bool
    given: dict[str, int]


def bound(model: Traceable, inputs: Any, dynamic: Sequence[str]) -> Job:
    """The example inputs bound to the model, dynamic axes at least 2 long: the exporter takes 1 for a constant."""
    by_name = False
    if isinstance(model, torch.export.ExportedProgram):
        parameters, examples = _examples_of_program(model, inputs)
    else:
        signature = inspect.signature(model.forward)
        parameters = tuple(signature.parameters)
        examples = _examples(inputs, parameters)
        by_name = set(examples) <= set(parameters)
        if by_name:
            examples = {name: examples[name] for name in parameters if name in examples}
        try:
            signature.bind(*(() if by_name else examples), **(examples if by_name else {}))
        except TypeError as error:
            raise OptionError(
                f"Inputs ({', '.join(examples)}) do not fit forward({', '.join(parameters)}): {error}. "
                "Give --input NAME=SHAPE:TYPE for each."
            ) from error
    axes = read_dynamic(dynamic, examples)
    given = sizes(axes, examples)
    wanted = {symbol: max(2, size) for symbol, size in given.items()}
    return Job(model, resized(examples, axes, wanted), axes, parameters, by_name, given)


def arguments(job: Job, feeds: Mapping[str, Array]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """How forward is called, on the device of the model, with tensors that share no memory with the arrays."""
    state = itertools.chain(job.model.parameters(), job.model.buffers())
    device = next((tensor.device for tensor in state), torch.device("cpu"))
    tensors = {name: torch.from_numpy(np.array(array)).to(device) for name, array in feeds.items()}
    if not isinstance(job.model, torch.export.ExportedProgram):
        return ((), tensors) if job.by_name else (tuple(tensors.values()), {})
    leaves, shape = pytree.tree_flatten(job.model.example_inputs)
    left = iter(tensors.values())
    filled = [next(left) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
    args, kwargs = pytree.tree_unflatten(filled, shape)
    return args, kwargs


def dynamic_shapes(job: Job) -> Any:
    """The axes in the form of torch.export: by parameter of forward, those of `*args` in a tuple."""
    axes = {name: job.axes.get(name) for name in job.inputs}
    if isinstance(job.model, torch.export.ExportedProgram):
        return tuple(axes.values())
    signature = inspect.signature(job.model.forward)
    return dict((signature.bind(**axes) if job.by_name else signature.bind(*axes.values())).arguments)


def _examples(inputs: Any, parameters: Sequence[str]) -> dict[str, Array]:
    """Name -> values; a tensor without a name takes that of the parameter at its place."""
    if isinstance(inputs, Mapping):
        return {name: as_array(value) for name, value in inputs.items()}
    made: dict[str, Array] = {}
    items = [inputs] if isinstance(inputs, (str, torch.Tensor, np.ndarray)) else list(inputs)
    for place, item in enumerate(items):
        unnamed = parameters[place] if place < len(parameters) else f"input_{place}"
        name, array = read_input(item, seed=place) if isinstance(item, str) else (unnamed, as_array(item))
        if name in made:
            raise OptionError(f"Input {name!r} is given twice. Name each input once.")
        made[name] = array
    return made


def _examples_of_program(
    program: torch.export.ExportedProgram, inputs: Any
) -> tuple[tuple[str, ...], dict[str, Array]]:
    """torch's names of the inputs, and the examples: those given, else the program's own."""
    own = [leaf for leaf in pytree.tree_leaves(program.example_inputs) if isinstance(leaf, torch.Tensor)]
    tensors = {s.arg.name for s in program.graph_signature.input_specs if isinstance(s.arg, TensorArgument)}
    names = tuple(name for name in program.graph_signature.user_inputs if name in tensors)
    nothing = isinstance(inputs, (Sequence, Mapping)) and not inputs
    examples = _examples(own if nothing else inputs, names)
    if len(examples) != len(names) or len(own) != len(names):
        raise OptionError(
            f"The program takes {len(names)} inputs ({', '.join(names)}), got {len(examples)}. Give one --input for "
            "each, or none: the program's own are used."
        )
    return names, examples


def as_array(value: Any) -> Array:
    """A tensor as an array; numpy has no bfloat16, which float32 holds exactly."""
    if not isinstance(value, torch.Tensor):
        return np.asarray(value)
    plain = value.detach().cpu()
    array: Array = (plain.float() if plain.dtype == torch.bfloat16 else plain).numpy()
    return array
