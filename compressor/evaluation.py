"""The score of a model on samples, and the latency of several side by side."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compressor import metrics, runtime
from compressor.data import open_samples, synthetic
from compressor.errors import OptionError
from compressor.latency import Latency
from compressor.measurement import latencies, outputs_on
from compressor.model_io import load
from compressor.pipeline import Progress, silent
from compressor.proof import DataLike, ModelLike, Target, require_same_interface
from compressor.statistics import Interval

if TYPE_CHECKING:
    from compressor.metrics import Comparison


@dataclass(frozen=True)
class Evaluation:
    """The score of a model, and its agreement with a reference when one was given."""

    metric: str
    score: Interval | None
    samples: int
    comparison: Comparison | None


def evaluate(
    model: ModelLike,
    data: DataLike,
    *,
    reference: ModelLike | None = None,
    target: Target | None = None,
    progress: Progress = silent,
) -> Evaluation:
    """The score of `model` on `data` with its 95 % interval, and compared with `reference` when there is one."""
    where = target or Target()
    found = load(model)
    samples = open_samples(data, found, "data")
    setup = runtime.Setup(provider=runtime.short_name(where.providers[0]))
    made = outputs_on(found, samples, setup, progress)
    metric = where.metric or metrics.default_metric(made, samples.labels)
    score = metrics.score(metric, made, samples.labels, where.seed) if samples.labels is not None else None
    comparison = None
    if reference is not None:
        require_same_interface(load(reference), found)
        other = outputs_on(load(reference), samples, setup, progress)
        labels = samples.labels
        comparison = metrics.compare(metric if labels is not None else None, other, made, labels, where.seed)
    return Evaluation(metric, score, len(samples), comparison)


def bench(
    models: Sequence[ModelLike],
    *,
    data: DataLike | None = None,
    target: Target | None = None,
    progress: Progress = silent,
) -> tuple[Latency, ...]:
    """Latency of the models side by side, interleaved; ratios are against the first."""
    if isinstance(models, (str, os.PathLike)) or not models:
        raise OptionError(f"bench needs a list of models, got {models!r}.")
    where = target or Target()
    loaded = [load(model) for model in models]
    samples = (
        synthetic(loaded[0], where.batch, where.seed)
        if data is None
        else open_samples(data, loaded[0], "data")
    )
    return latencies(loaded, samples, where.setups(), where.batch, progress)
