"""The score of a model in training, by the same metrics as the report's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from compressor import metrics
from compressor.data import Samples
from compressor.measurement import outputs_on
from compressor.metrics.catalogue import find
from compressor.runtime import Setup
from compressor.torch_graph.values import to_array, to_value

Rows = list[np.ndarray]


class Scorer:
    """Scores outputs on evaluation samples: by labels, or without any by the agreement with the original.

    Args:
        samples: what is evaluated on.
        model: what is trained, as it came; it says what the outputs are.
        original: what agreement is with; runs once, on onnxruntime, where it is needed.
        metric: a metric's name; None chooses by the labels.
    """

    def __init__(self, samples: Samples, model: ir.Model, original: ir.Model, metric: str | None) -> None:
        self.samples = samples
        self.labels = samples.labels
        small = outputs_on(model, samples.take(1), Setup(threads=1))
        self.metric = metric or metrics.default_metric(
            small, None if self.labels is None else self.labels[:1]
        )
        self.reference: Rows = []
        if self.metric == "agreement":
            self.reference = outputs_on(original, samples, Setup(spin=False))
        elif self.labels is not None:
            whole = [np.broadcast_to(o, (len(samples), *o.shape[1:])) for o in small]
            metrics.check_labels(self.metric, self.labels, whole)

    @property
    def higher_is_better(self) -> bool:
        """Whether a larger score is a better one."""
        return self.metric == "agreement" or find(self.metric).higher_is_better

    @property
    def name(self) -> str:
        """What the score is called."""
        if self.metric != "agreement":
            return self.metric
        return f"{metrics.compare('agreement', self.reference, self.reference, None).agrees_in} agreement"

    def batches(self, size: int) -> Iterator[tuple[tuple[Tensor, ...], int]]:
        """(inputs in graph order, how many rows are real) for each batch of the samples."""
        for batch in self.samples.batches(size):
            yield tuple(to_value(array) for array in batch.feeds.values()), batch.count

    def score(self, parts: Sequence[Rows]) -> float:
        """The score of the outputs of all batches, each [rows, ...]."""
        outputs = [np.concatenate([np.asarray(p) for p in column]) for column in zip(*parts, strict=True)]
        outputs = [o.astype(np.float32) if o.dtype.kind == "f" else o for o in outputs]
        if self.metric == "agreement":
            compared = metrics.compare("agreement", self.reference, outputs, None)
            return float(compared.after.value if compared.after is not None else np.nan)
        return float(metrics.score(self.metric, outputs, self.labels).value)


def rows_of(outputs: Sequence[Tensor], count: int, rows: int) -> Rows:
    """The outputs of one batch as arrays, without the rows that only fill a fixed batch."""
    arrays = [to_array(tensor.float() if tensor.is_floating_point() else tensor) for tensor in outputs]
    return [a[:count] if a.ndim and len(a) == rows else a[None] for a in arrays]


@torch.no_grad()
def evaluated(
    module: torch.nn.Module, scorer: Scorer, size: int, device: torch.device, outputs: int
) -> float:
    """The score of a module as it is now, in eval mode; its mode is put back."""
    mode = module.training
    module.eval().to(device)
    parts = []
    for inputs, count in scorer.batches(size):
        made = module(*(tensor.to(device) for tensor in inputs))
        listed = [made] if isinstance(made, Tensor) else list(made)
        parts.append(rows_of(listed[:outputs], count, len(inputs[0])))
    module.train(mode)
    return scorer.score(parts)
