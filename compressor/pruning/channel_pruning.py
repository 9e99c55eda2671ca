"""Pruning channels from end to end: choosing, cutting and solving again, in one step or in several."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import onnx_ir as ir

from compressor.channels import cut, find
from compressor.data import synthetic
from compressor.pipeline import Change, Context, Pipeline
from compressor.prepare import adopt, infer_shapes
from compressor.pruning.channel_choice import Candidate
from compressor.pruning.channel_importance import Importance, Normalization, combined
from compressor.pruning.channel_scores import scores
from compressor.pruning.channel_selection import Wanted, selected
from compressor.pruning.channel_targets import Choice, Goal, Target, choose
from compressor.pruning.least_squares import Solution
from compressor.pruning.reconstruction import reconstruct
from compressor.pruning.solvable import layers
from compressor.summary import Summary, summarize

if TYPE_CHECKING:
    from compressor.data import Samples

_SAID = {"macs": "MACs", "params": "parameters", "latency": "latency"}
_MET = 1.02
"""What may be left of a target that counts as met, as a multiple of what was to be left."""


@dataclass(frozen=True)
class Plan:
    """What is to be done.

    Args:
        goal: what is to become less.
        share: how much of it goes, above 0 and below 1.
        steps: how many cuts that is made in.
        between: run between two steps.
        wanted: which groups may be cut, and how far.
        importance: what a channel is worth.
        normalize: how groups are made comparable.
        solve: whether the layers behind a cut are solved again.
        samples: for the importance and the solving.
    """

    goal: Goal
    share: float
    steps: int
    between: Pipeline
    wanted: Wanted
    importance: Importance
    normalize: Normalization
    solve: bool
    samples: Samples | None


@dataclass
class _Record:
    """What was done so far: weights that were cut, what was left and why, figures, and group -> its width."""

    touched: dict[str, None] = field(default_factory=dict)
    declined: dict[str, str] = field(default_factory=dict)
    figures: dict[str, float | str] = field(default_factory=dict)
    widths: dict[str, int] = field(default_factory=dict)


def prune(model: ir.Model, plan: Plan, context: Context) -> Change:
    """Prune in place, and say what went and what stayed."""
    infer_shapes(model)
    before = summarize(model)
    if plan.goal == "macs" and not before.macs:
        return Change(declined={"model": _uncounted(before.macs, plan.share)})
    target, record = _target(model, before, plan, context), _Record()
    for step in range(1, plan.steps + 1):
        if step > 1:
            # Checkpoints are named by the step of the pipeline, which those between would share with others.
            alone = replace(context, workspace=None, resume=False)
            adopt(model, plan.between.run(model, alone).model)
            infer_shapes(model)
        _step(model, plan, replace(target, share=plan.share * step / plan.steps), record, context)
    figures = record.figures | _figures(before, summarize(model), target.sizes, record.widths)
    # A weight whose inputs were cut may make channels that were not.
    declined = {f"{n}, its outputs" if n in record.touched else n: why for n, why in record.declined.items()}
    return Change(tuple(record.touched), declined, figures)


def _target(model: ir.Model, before: Summary, plan: Plan, context: Context) -> Target:
    sizes = {group.name: group.size for group in find(model).groups}
    whole = {"macs": before.macs or 0, "params": before.parameters}.get(plan.goal, 0)
    if plan.goal != "latency":
        return Target(plan.goal, plan.share, whole, sizes)
    held = (context.calibration, context.train, context.data)
    samples = next((given for given in held if given is not None), None) or synthetic(model, 1, context.seed)
    return Target(plan.goal, plan.share, whole, sizes, model.clone(), next(iter(samples.batches(1))).feeds)


def _step(model: ir.Model, plan: Plan, target: Target, record: _Record, context: Context) -> None:
    """One cut, in place."""
    found = find(model)
    allowed, declined = selected(found, replace(plan.wanted, sizes=target.sizes), context.provider)
    record.declined = {name: why for name, why in declined.items() if name not in record.widths}
    if not allowed:
        record.declined["model"] = _nothing(bool(found.groups), bool(record.widths))
        return
    scored, notes = scores(model, list(allowed), plan.importance, plan.samples, context)
    drops = plan.wanted.curves or {}
    candidates = [
        Candidate(g, combined(scored[g], plan.normalize), w, drops.get(g.name, {}))
        for g, w in allowed.items()
    ]
    choice = choose(model, candidates, target, context)
    kept = {c.group: c.kept(w) for c, w in zip(candidates, choice.widths, strict=True) if w < c.group.size}
    _note(record, candidates, choice, target)
    record.figures |= {f"{group.name} scored": notes[group.name] for group in kept if group.name in notes}
    if kept:
        again, unsolved = layers(model, kept) if plan.solve and plan.samples is not None else ([], {})
        whole = model.clone() if again else model
        cut(model, found, kept)
        record.declined |= unsolved
        if again and plan.samples is not None:
            record.figures |= _solved(reconstruct(model, whole, again, plan.samples, context))


def _note(record: _Record, candidates: list[Candidate], choice: Choice, target: Target) -> None:
    """Write down which groups are cut, why the others are not, and how far the target was missed."""
    for candidate, width in zip(candidates, choice.widths, strict=True):
        group = candidate.group
        if width < group.size:
            record.widths[group.name] = width
            record.touched |= {str(member.value.name): None for member in group.weights("output")}
        elif group.name not in record.widths:
            record.declined[group.name] = (
                "no width it may have is nearer" if choice.left is None else "cuts elsewhere cost less"
            )
    if choice.left is None:
        return
    record.figures[f"{_SAID[target.goal]} left"] = choice.left
    if choice.left > (1 - target.share) * _MET:
        least = all(width == c.widths[-1] for c, width in zip(candidates, choice.widths, strict=True))
        record.declined["model"] = (
            f"{choice.left:.1%} of the {_SAID[target.goal]} are left, {1 - target.share:.1%} were wanted: "
            + (
                "all that may be cut is at its least width; a larger max_ratio or a smaller round_to lets more go"
                if least
                else "no widths that are allowed come nearer"
            )
        )


def _uncounted(macs: int | None, share: float) -> str:
    why = (
        "shapes are unknown"
        if macs is None
        else "its main graph, without the bodies of If and Loop, has none"
    )
    return f"its MACs cannot be counted, {why}; params={share:g} and ratio={share:g} need no shapes"


def _nothing(groups: bool, cut_before: bool) -> str:
    if cut_before:
        return "all that may be cut is at its least width"
    return (
        "none of its groups of channels may be cut, each for the reason given"
        if groups
        else "it has no channels that can be cut"
    )


def _figures(
    before: Summary, after: Summary, sizes: Mapping[str, int], widths: Mapping[str, int]
) -> dict[str, float | str]:
    found: dict[str, float | str] = {
        "parameters before": before.parameters,
        "parameters after": after.parameters,
    }
    if before.macs and after.macs:
        found |= {"MACs before": before.macs, "MACs after": after.macs}
    gone = sum(sizes[name] - width for name, width in widths.items())
    found["channels cut"] = gone / max(sum(sizes.values()), 1)
    if widths:
        found["widths"] = ", ".join(f"{name} {sizes[name]}>{width}" for name, width in widths.items())
    return found


def _solved(solutions: Mapping[str, Solution]) -> dict[str, float | str]:
    """The mean relative error of the layers that were solved again, without and with that."""
    count = len(solutions)
    return {
        "layers solved": count,
        "error of a layer unsolved": sum(found.before for found in solutions.values()) / count,
        "error of a layer solved": sum(found.after for found in solutions.values()) / count,
    }
