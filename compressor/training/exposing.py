"""Values inside a graph as further outputs, to compare a student with the original there."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import onnx_ir as ir

from compressor.errors import OptionError, did_you_mean
from compressor.graph import FLOATS, matches


def matching(model: ir.Model, globs: Sequence[str]) -> tuple[str, ...]:
    """The names of the float values that the patterns match, in the order of the graph.

    Constants and the graph's inputs are not among them, nor are values in the bodies of If, Loop and Scan.

    Raises:
        OptionError: a pattern matches none; it suggests the nearest name.
    """
    known = _values(model)
    for glob in globs:
        if not any(_fits(name, glob) for name in known):
            hint = did_you_mean(glob, known) if len(known) < 20 else _nearest(glob, known)
            raise OptionError(f"No value of the graph matches {glob!r}. {hint}")
    return tuple(name for name in known if any(_fits(name, glob) for glob in globs))


def with_outputs(model: ir.Model, globs: Sequence[str]) -> ir.Model:
    """A copy of the model whose outputs are its own and behind them the values that the patterns match.

    A value that is an output already is not added. Pass the names of `matching` to get the same values of two models.

    Raises:
        OptionError: a pattern matches none.
    """
    names = matching(model, globs)
    copy = model.clone()
    values = _values(copy)
    for name in names:
        value = values[name]
        if value.is_graph_output():
            continue
        if value.dtype is None:
            value.dtype = ir.DataType.FLOAT  # a graph output must have a type
        copy.graph.outputs.append(value)
    return copy


def shared(places: Mapping[str, int], original: Collection[str], globs: Sequence[str]) -> dict[str, int]:
    """The values to match that the original has too, each name -> its place; a pass before adds some of its own.

    Raises:
        OptionError: of what a pattern matches, the original has none.
    """
    found = {name: place for name, place in places.items() if name in original}
    for glob in globs:
        if not any(_fits(name, glob) for name in found):
            ours = next(name for name in places if _fits(name, glob))
            raise OptionError(
                f"Of what {glob!r} matches, as {ours!r}, nothing is in the original too, with which it is compared. "
                "Give names that the earlier passes leave as they are."
            )
    return found


def _values(model: ir.Model) -> dict[str, ir.Value]:
    """What the nodes give, by name; a value of unknown type is taken for a float."""
    produced = (v for node in model.graph if node.op_type != "Constant" for v in node.outputs)
    return {str(v.name): v for v in produced if v.name and (v.dtype is None or v.dtype in FLOATS)}


def _fits(name: str, glob: str) -> bool:
    """True for the name itself too: exporters write brackets into names."""
    return name == glob or matches((name,), (glob,))


def _nearest(glob: str, known: dict[str, ir.Value]) -> str:
    """A short hint where a list of all names would fill the screen."""
    hint = did_you_mean(glob, known)
    return hint if hint.startswith("Did") else f"It has {len(known)} values, from {next(iter(known))!r} on."
