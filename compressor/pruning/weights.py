"""Setting weights of a model to zero, layer by layer, in place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import reduce
from itertools import groupby
from operator import add

import numpy as np
import onnx_ir as ir

from compressor.pipeline import Context
from compressor.pruning.layer_inputs import grams, source
from compressor.pruning.masks import Pattern, keeps
from compressor.pruning.optimal_brain import solved
from compressor.pruning.prunable import Weight
from compressor.pruning.weight_importance import watched_uses

Scores = Callable[[str], np.ndarray]
"""Name of a weight -> its scores, [rows, positions, run]."""


@dataclass
class Outcome:
    """What was pruned.

    Args:
        zeros: weight -> its share of zeros afterwards.
        taken: weight -> how many were set to zero; those that had enough zeros are missing.
        errors: weight -> (what taking weights out changed of its layer's output, the same if the others had kept
            their values), for those that were solved.
        alone: weights whose magnitude decided, as what they multiply cannot be watched, or others read them too.
    """

    zeros: dict[str, float] = field(default_factory=dict)
    taken: dict[str, int] = field(default_factory=dict)
    errors: dict[str, tuple[float, float]] = field(default_factory=dict)
    alone: list[str] = field(default_factory=list)

    def put(self, name: str, weight: Weight, view: np.ndarray) -> None:
        """Store the pruned weight, and count; one that loses nothing keeps its values.

        -0.0, which a mask that is multiplied with leaves behind, becomes 0.0: the same number, and stored sparsely.
        """
        old = weight.array
        taken = int(np.count_nonzero(old)) - int(np.count_nonzero(view))
        if taken > 0:
            self.taken[name] = taken
        else:
            view = weight.view
        self.zeros[name] = float(1 - np.count_nonzero(view) / old.size)
        if taken <= 0 and not np.signbit(old[old == 0]).any():
            return
        array = weight.layout.restored(np.where(view == 0, 0, view), old.shape).astype(old.dtype)
        weight.value.const_value = ir.tensor(array, dtype=weight.value.dtype, name=weight.value.name)

    def sated(self) -> dict[str, float]:
        """Weight -> its share of zeros, for those that had enough."""
        return {name: share for name, share in self.zeros.items() if name not in self.taken}

    def figures(self, weights: Mapping[str, Weight]) -> dict[str, float | str]:
        """Totals over `weights`, those that were spared among them, the extremes, and what solving brought."""
        size = sum(weight.array.size for weight in weights.values())
        reached = float(1 - sum(np.count_nonzero(weight.array) for weight in weights.values()) / size)
        found: dict[str, float | str] = {"sparsity": reached, "set to zero": sum(self.taken.values())}
        for what, choose in (("densest layer", min), ("sparsest layer", max)):
            name = choose(self.zeros, key=lambda name: self.zeros[name])
            found[what] = f"{name} {self.zeros[name]:.1%}"
        if self.errors:
            error, plain = np.mean(list(self.errors.values()), axis=0).tolist()
            found |= {"mean output error of a layer": error, "that without solving": plain}
        if self.alone:
            found["by magnitude alone"] = ", ".join(self.alone)
        return found


def cut(
    weights: Mapping[str, Weight],
    targets: Mapping[str, float],
    scores: Scores,
    pattern: Pattern,
    by_row: bool,
) -> Outcome:
    """Set the lowest-scored weights to zero, those that are zero already first; the others stay as they are."""
    outcome = Outcome()
    for name, weight in weights.items():
        view = weight.view
        kept = keeps(np.where(view == 0, -1, scores(name)), targets[name], pattern, by_row)
        outcome.put(name, weight, np.where(kept, view, 0))
    return outcome


def reconstruct(
    model: ir.Model,
    weights: Mapping[str, Weight],
    targets: Mapping[str, float],
    pattern: Pattern,
    context: Context,
) -> Outcome:
    """Prune layer after layer in graph order, each solved to give, on what the model pruned so far hands to it, the
    output that it had in the original.

    A weight whose inputs cannot be watched, or that others read in another way, loses its smallest, and is not solved.
    """
    samples, outcome = context.calibration, Outcome()
    if samples is None:
        raise ValueError("the pass checks for samples")
    before = model.clone()
    for done, group in _stages(model, weights):
        context.progress("solving layers", done, len(weights))
        uses = {name: _solvable(model, weights[name]) for name in group}
        read = [node for nodes in uses.values() for node in nodes]
        found = grams(model, read, samples, context.threads, before)
        for name in group:
            weight = weights[name]
            seen = [found[node] for node in uses[name]]
            if seen:
                result = solved(weight.view, reduce(add, seen), targets[name], pattern)
                outcome.errors[name] = result.error, result.plain
                outcome.put(name, weight, result.weights)
                continue
            outcome.alone.append(name)
            kept = keeps(np.abs(weight.view), targets[name], pattern)
            outcome.put(name, weight, np.where(kept, weight.view, 0))
    return outcome


def _stages(model: ir.Model, weights: Mapping[str, Weight]) -> Iterator[tuple[int, list[str]]]:
    """The weights in order, those together that read the same values; and how many went before."""

    def reads(name: str) -> list[ir.Value | None]:
        return [source(node) for node in _solvable(model, weights[name])]

    done = 0
    for _, group in groupby(weights, reads):
        names = list(group)
        yield done, names
        done += len(names)


def _solvable(model: ir.Model, weight: Weight) -> list[ir.Node]:
    """The layers for whose outputs a weight can be solved; none when something else would be changed by that."""
    return [] if weight.shared else watched_uses(model, weight)
