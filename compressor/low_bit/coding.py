"""Writing the weights of a model as codes: which bits each gets, how its codes are found, and what that lost."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import onnx_ir as ir

from compressor.errors import OptionError
from compressor.low_bit import bits
from compressor.low_bit.coded_weights import rows_of
from compressor.low_bit.codes import Method
from compressor.low_bit.methods import encode
from compressor.low_bit.options import EIGHT, Coding, select, spared
from compressor.low_bit.outcome import Outcome
from compressor.low_bit.sequence import code_in_order
from compressor.packing import names_of
from compressor.pipeline import Change, Context
from compressor.pruning.prunable import Weight


def code(model: ir.Model, wanted: Coding, context: Context, among: Collection[str] | None = None) -> Change:
    """Write the weights of a model as codes, in place.

    Args:
        model: prepared, of operator set 13 or later.
        wanted: which weights, and how.
        context: calibration samples where they are to be looked at, threads and progress.
        among: names of the weights that were chosen already; None chooses by `wanted`.

    Raises:
        OptionError: the sensitivity file cannot be read, or knows none of the layers.
    """
    chosen, declined = select(model, wanted, among)
    if not chosen:
        return Change(declined={"model": "no weight to code", **declined})
    methods, kept = _methods(model, chosen, wanted)
    if wanted.method != EIGHT and set(methods.values()) == {EIGHT}:
        why = "every layer is the first, the last or too sensitive: give keep_first_last=False, or other bits"
        return Change(declined={"model": why, **kept, **declined})
    outcome = Outcome(model, names_of(model))
    if wanted.compensate or wanted.match or wanted.signs:
        code_in_order(outcome, chosen, methods, wanted, context)
    else:
        for name, weight in chosen.items():
            outcome.put(
                weight, encode(rows_of(weight, wanted.block), methods[name]), methods[name], wanted.block
            )
    if outcome.inputs is not None:
        declined |= outcome.inputs.declined
    figures = outcome.figures()
    if kept:
        figures["more bits"] = "; ".join(
            f"{name} {_bits(methods[name])}: {why}" for name, why in kept.items()
        )
    return Change(tuple(outcome.coded), declined, figures, outcome.latents())


def _methods(
    model: ir.Model, chosen: Mapping[str, Weight], wanted: Coding
) -> tuple[dict[str, Method], dict[str, str]]:
    """The method of each weight, and weight -> why it gets more bits than wanted."""
    methods = dict.fromkeys(chosen, wanted.method)
    if wanted.sensitivity:
        known = bits.curves(wanted.sensitivity)
        if not known.keys() & chosen.keys():
            raise OptionError(
                f"sensitivity: {wanted.sensitivity!r} has no curve for any weight to be coded here: it is of another "
                "model, or of other layers. `compress sensitivity` writes one for this model."
            )
        methods = bits.share_out(known, chosen, wanted.method, wanted.max_layer_drop)
    kept = {name: "too sensitive" for name, method in methods.items() if method != wanted.method}
    for name, why in spared(model, chosen, wanted).items():
        if bits.measured_bits(methods[name]) < bits.measured_bits(EIGHT):
            methods[name], kept[name] = EIGHT, why
    return methods, kept


def _bits(method: Method) -> str:
    return f"{bits.measured_bits(method)} bits"
