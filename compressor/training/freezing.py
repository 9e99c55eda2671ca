"""Which parameters stay as they are, and when frozen layers are released."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from compressor.errors import OptionError, did_you_mean
from compressor.graph import matches
from compressor.training.options import Training


def frozen(parameters: Collection[str], options: Training, depths: Mapping[str, int]) -> frozenset[str]:
    """The parameters that `freeze` names, and those of the `freeze_depth` share of layers nearest the input.

    Args:
        parameters: names of all initializers that can be trained.
        options: freeze, freeze_depth and unfreeze are read.
        depths: initializer -> layers between it and the output (`layer_depths`); 0 where it is missing.

    Raises:
        OptionError: a glob matches nothing, nothing is left to train, or unfreeze has nothing to release.
    """
    for glob in options.freeze:
        if not any(matches((name,), (glob,)) for name in parameters):
            raise OptionError(
                f"{options.name}: freeze={glob!r} matches no parameter. {did_you_mean(glob, parameters)}"
            )
    deep = _deepest(parameters, options.freeze_depth, depths)
    found = deep | {name for name in parameters if matches((name,), options.freeze)}
    if parameters and len(found) == len(parameters):
        raise OptionError(
            f"{options.name}: freeze={options.freeze!r} and freeze_depth={options.freeze_depth:g} leave nothing to "
            f"train: all {len(parameters)} parameters are frozen. Freeze fewer."
        )
    if options.unfreeze and not found:
        raise OptionError(
            f"{options.name}: unfreeze={options.unfreeze:g} has nothing to release. Give freeze or freeze_depth."
        )
    return frozenset(found)


def released(
    options: Training, depths: Mapping[str, int], frozen: Collection[str], progress: float
) -> frozenset[str]:
    """The frozen parameters that train again at `progress`, a share of the training in [0, 1].

    Gradual unfreezing (ULMFiT, 1801.06146, section 3.3): of k frozen layers the i-th from the output, i = 1..k, is
    released at unfreeze * i / k. None at progress 0, all from `unfreeze` on, and none ever where unfreeze is 0.
    """
    if not options.unfreeze:
        return frozenset()
    layers = sorted({depths.get(name, 0) for name in frozen})
    times = {layer: options.unfreeze * (place / len(layers)) for place, layer in enumerate(layers, start=1)}
    return frozenset(name for name in frozen if progress >= times[depths.get(name, 0)])


def _deepest(parameters: Collection[str], share: float, depths: Mapping[str, int]) -> set[str]:
    """The parameters of the `share` of layers, rounded to whole layers, that are farthest from the output."""
    layers = sorted({depths.get(name, 0) for name in parameters}, reverse=True)
    chosen = set(layers[: round(share * len(layers))])
    return {name for name in parameters if depths.get(name, 0) in chosen}
