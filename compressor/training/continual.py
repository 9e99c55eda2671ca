"""Learning new data without forgetting the old: what replay, learning without forgetting and EWC need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch import Tensor

from compressor.data import Samples
from compressor.errors import DataError
from compressor.pipeline import Context
from compressor.training.bench import Bench
from compressor.training.exposing import matching
from compressor.training.loading import loader, open_source
from compressor.training.objective import objective
from compressor.training.options import Training
from compressor.training.penalties import fisher
from compressor.training.scoring import Scorer, evaluated
from compressor.training.terms import Memory
from compressor.training.working_copy import WorkingCopy

_FISHER_SAMPLES = 256


def require_old(context: Context, options: Training) -> Samples:
    """The old samples; DataError when there are none."""
    if context.old is None:
        raise DataError(
            f"{options.name}: replay and ewc need old samples. Give --old FILE.npz, or old=... in Python."
        )
    return context.old


@dataclass(frozen=True)
class OldTask:
    """The old data as a task that is scored before and after."""

    scorer: Scorer

    @classmethod
    def opened(
        cls, context: Context, options: Training, model: ir.Model, original: ir.Model
    ) -> OldTask | None:
        """The old task when there is old data."""
        if options.replay or options.ewc:
            require_old(context, options)
        return None if context.old is None else cls(Scorer(context.old, model, original, context.metric))

    def score(self, bench: Bench, when: str) -> dict[str, float | str]:
        """The score of the module as it is, as a figure; `when` is before or after the training."""
        device = next(bench.network.parameters()).device
        return {f"old score {when}": evaluated(bench.network, self.scorer, 64, device, bench.copy.outputs)}


def memory(bench: Bench, options: Training, context: Context) -> Memory:
    """The weights as they are, and how much each matters to the old data."""
    network, device, old = bench.network, bench.machine.device, require_old(context, options)
    batches = loader(open_source(old), 32, seed=context.seed).batches(0)
    given = [(tuple(t.to(device) for t in b.inputs), b.labels) for b in batches]
    made = network(*given[0][0])
    outputs: Sequence[Tensor] = [made] if isinstance(made, Tensor) else list(made)
    if old.labels is None:
        given = [(inputs, _said(network(*inputs))) for inputs, _ in given]
        labels = torch.cat([label for _, label in given if label is not None]).cpu().numpy()
    else:
        labels = old.labels
    moved = [(inputs, None if label is None else label.to(device)) for inputs, label in given]
    loss = objective(bench.copy.source, options, labels, outputs[: bench.copy.outputs])
    information = fisher(network, loss, moved, min(_FISHER_SAMPLES, len(old)), old.fixed_batch or 1)
    anchors = {name: p.detach().clone() for name, p in network.named_parameters()}
    return Memory(anchors, information)


def attention_values(copy: WorkingCopy, options: Training) -> dict[str, bool]:
    """The matched values that are attention: name -> whether a Softmax gives them."""
    if not options.attention:
        return {}
    names = set(matching(copy.model, options.attention))
    produced = {str(v.name): node.op_type for node in copy.model.graph for v in node.outputs}
    return {name: produced.get(name) == "Softmax" for name in copy.values if name in names}


def _said(made: Tensor | Sequence[Tensor]) -> Tensor:
    """The classes that the model says."""
    first = made if isinstance(made, Tensor) else made[0]
    return first.detach().argmax(1)
