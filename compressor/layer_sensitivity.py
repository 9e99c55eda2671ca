"""How much the score drops when one layer alone is compressed: by sparsity, by channels cut, by bits per weight."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

import onnx_ir as ir

from compressor import metrics
from compressor.errors import ModelError, OptionError, did_you_mean
from compressor.layer_variants import LEVELS, Kind, Variant, channel_variants, weight_variants
from compressor.measurement import outputs_on
from compressor.model_io import load, write_text
from compressor.pipeline import Progress, silent
from compressor.prepare import prepare
from compressor.proof import DataLike, ModelLike, Target, check_labels, opened, require_runs
from compressor.pruning.prunable import Selection, select
from compressor.runtime import Setup, short_name
from compressor.statistics import Interval

Curve = Mapping[float, Interval]
"""Level -> the drop of the score, paired."""


@dataclass(frozen=True)
class Sensitivity:
    """The drop of the score for each layer, kind and level, every other layer as it was.

    Args:
        metric: its name.
        samples: how many the score was taken on.
        score: of the model as it is; None for agreement, where it is the truth.
        layers: weight, or group of channels by the weight that makes them -> kind -> curve.
        declined: weight -> why it was not measured.
    """

    metric: str
    samples: int
    score: Interval | None
    layers: Mapping[str, Mapping[Kind, Curve]]
    declined: Mapping[str, str]

    def to_json(self) -> str:
        """The drops as `layers[name][kind][level]`, their 95 % intervals alike under `intervals`; infinite is null."""
        drops = {
            name: {
                kind: {f"{level:g}": _finite(curve[level].value) for level in curve}
                for kind, curve in kinds.items()
            }
            for name, kinds in self.layers.items()
        }
        intervals = {
            name: {kind: {f"{at:g}": _ends(curve[at]) for at in curve} for kind, curve in kinds.items()}
            for name, kinds in self.layers.items()
        }
        score = None if self.score is None else [_finite(self.score.value), *_ends(self.score)]
        facts = {"metric": self.metric, "samples": self.samples, "score": score}
        return json.dumps(
            {**facts, "layers": drops, "intervals": intervals, "declined": dict(self.declined)}, indent=1
        )

    def save(self, path: Path) -> None:
        """Write the JSON atomically; OptionError when there is no such folder, ModelError when the disk is full."""
        check_folder(path)
        write_text(path, self.to_json())

    def kinds(self) -> tuple[Kind, ...]:
        """The kinds that were measured for any layer."""
        return tuple(kind for kind in LEVELS if any(kind in kinds for kinds in self.layers.values()))

    def levels(self, kind: Kind) -> tuple[float, ...]:
        """The levels of a kind that were measured, in the order of measuring."""
        seen = {level: None for kinds in self.layers.values() for level in kinds.get(kind, {})}
        return tuple(level for level in LEVELS[kind] if level in seen)


def check_folder(path: Path) -> None:
    """Refuse a file in a folder that is not there, before anything is measured."""
    if not path.resolve().parent.is_dir():
        raise OptionError(f"The folder of {str(path)!r} does not exist.")


def sensitivity(
    model: ModelLike,
    data: DataLike,
    *,
    kinds: Sequence[Kind] = tuple(LEVELS),
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    target: Target | None = None,
    progress: Progress = silent,
) -> Sensitivity:
    """Compress one layer at a time, in memory, and score the model each time.

    The file, as JSON, is what passes take as `sensitivity=FILE`. It takes one evaluation of the data per layer, kind
    and level (fourteen per layer in all), so a few hundred samples are a good start: DATA{limit=500}.

    Args:
        model: a path, an onnx_ir.Model or a ModelProto; stays as it was.
        data: evaluation samples; with labels the metric is computed, without it is agreement with the model itself.
        kinds: what to try on each layer: "sparsity", "channels", "bits".
        include: globs over node and weight names; empty: all but embedding tables.
        exclude: globs over node and weight names.
        target: metric, provider (the first) and seed.
        progress: called with (what, done, total).

    Raises:
        ModelError: nothing in the model can be measured.
        DataError, OptionError: something does not fit.
    """
    unknown = [kind for kind in kinds if kind not in LEVELS]
    if unknown or not kinds:
        given = unknown[0] if unknown else ""
        raise OptionError(f"sensitivity: no kind {given!r}. {did_you_mean(given, LEVELS)}")
    where = target or Target()
    original = load(model)
    require_runs(original, where)
    samples = opened(data, original, "data")
    if samples is None:
        raise OptionError("sensitivity needs data.")
    check_labels(samples, original, where)
    ready = prepare(original, samples).model
    selection = Selection(tuple(include), tuple(exclude))
    variants, declined = _variants(ready, kinds, selection)
    if not variants:
        why = "; ".join(f"{name}: {reason}" for name, reason in list(declined.items())[:2])
        raise ModelError(f"No layer of this model can be tried. {why or 'It has no weights.'}")
    setup = Setup(provider=short_name(where.providers[0]), threads=where.threads)
    before = outputs_on(ready, samples, setup)
    layers: dict[str, dict[Kind, dict[float, Interval]]] = {}
    score: Interval | None = None
    name = ""
    for done, variant in enumerate(variants):
        progress("trying layers", done, len(variants))
        after = outputs_on(variant.build(), samples, setup)
        found = metrics.compare(where.metric, before, after, samples.labels, where.seed)
        layers.setdefault(variant.layer, {}).setdefault(variant.kind, {})[variant.level] = found.drop
        score, name = found.before, found.metric
    progress("trying layers", len(variants), len(variants))
    return Sensitivity(name, len(samples), score, layers, declined)


def _variants(
    model: ir.Model, kinds: Sequence[Kind], selection: Selection
) -> tuple[list[Variant], dict[str, str]]:
    """What to try, layer by layer, and weight -> why it is not tried."""
    chosen, declined = select(model, selection)
    made: list[Variant] = []
    for weight in chosen.values():
        for kind in LEVELS:
            if kind in kinds and kind != "channels":
                made += weight_variants(model, weight, kind, LEVELS[kind])
    if "channels" in kinds:
        made += channel_variants(model, LEVELS["channels"], lambda name: name.split("#")[0] in chosen)
    order = {name: place for place, name in enumerate(chosen)}
    return sorted(made, key=lambda v: order[v.layer.split("#")[0]]), declined


def _ends(interval: Interval) -> list[float | None]:
    return [_finite(end) for end in (interval.low, interval.high)]


def _finite(number: float) -> float | None:
    return number if isfinite(number) else None
