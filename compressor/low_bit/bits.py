"""More bits for the layers that few would hurt, from the file of `compress sensitivity`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import inf, isnan

from compressor.errors import OptionError
from compressor.low_bit.codes import Method
from compressor.sensitivity_file import drops

Curve = Mapping[float, float]
"""Bits -> how much the score drops when one layer alone has that many."""
MORE = (Method("optimal"), Method("uniform", 3), Method("uniform", 4), Method("uniform", 8))
"""What a layer gets that is too sensitive for a pass's own bits, from few bits to many."""


def measured_bits(method: Method) -> int:
    """The bits under which a method is looked up: ternary codes count as 2.

    >>> [measured_bits(Method(*given)) for given in (("twn",), ("xnor",), ("residual", 3), ("uniform", 4))]
    [2, 1, 3, 4]
    """
    return max(int(-(-method.bits // 1)), method.count)


def share_out(
    curves: Mapping[str, Curve], names: Iterable[str], method: Method, most: float
) -> dict[str, Method]:
    """The method of each layer: `method` where the drop at its bits is at most `most`, else the first of `MORE`.

    Bits that were not measured count as the next fewer ones that were, of which there must be some. A layer without a
    curve keeps `method`; one for which no number of bits is good enough gets 8.

    >>> share_out({"a": {2: 0.3, 4: 0.01, 8: 0.0}}, ("a", "b"), Method("twn"), 0.02)
    {'a': Method(name='uniform', count=4), 'b': Method(name='twn', count=0)}
    """
    return {name: _fewest(curves[name], method, most) if name in curves else method for name in names}


def _fewest(curve: Curve, method: Method, most: float) -> Method:
    least = measured_bits(method)
    for choice in (method, *(more for more in MORE if measured_bits(more) > least)):
        known = [bits for bits in curve if bits <= measured_bits(choice)]
        if known and curve[max(known)] <= most:
            return choice
    return MORE[-1]


def curves(path: str) -> dict[str, Curve]:
    """Layer -> curve over bits, from a file that `compress sensitivity` wrote.

    A drop of null stands for infinite.

    Raises:
        OptionError: there is no such file, it holds no curve over bits, or one whose levels are no bits or whose drops
            are no numbers.
    """
    found: dict[str, Curve] = {
        name: {at: inf if drop is None else drop for at, drop in curve.items()}
        for name, curve in drops(path, "bits").items()
        if curve
    }
    for name, curve in found.items():
        for at, drop in curve.items():
            if not 1 <= at <= 8 or isnan(drop):
                raise OptionError(
                    f"sensitivity: in {path!r}, layer {name!r} has the drop {drop} at {at:g} bits; bits are from 1 "
                    "to 8, and drops numbers."
                )
    if not found:
        raise OptionError(
            f"sensitivity: {path!r} has no curve over bits for any layer: run compress sensitivity with --kind bits."
        )
    return found
