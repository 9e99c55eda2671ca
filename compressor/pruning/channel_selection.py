"""Which groups may be cut, to which widths, and why the others stay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from compressor.channels import Found, Group
from compressor.graph import matches
from compressor.pruning.allocation import Curve
from compressor.pruning.channel_importance import makers
from compressor.pruning.channel_widths import RoundTo, inner, step, widths

Heads = Literal["whole", "width", "both"]


@dataclass(frozen=True)
class Wanted:
    """What the user lets be cut.

    Args:
        round_to: what widths are multiples of.
        max_ratio: the largest share of a group's channels that may go.
        heads: of channels that lie as heads x width, which may go.
        residual_stream: whether channels under a normalization may.
        include: globs over the names of groups and of the weights and biases that make them; empty: all.
        exclude: the same; empty: none.
        sizes: how many channels a group had at first, where some are gone already.
        curves: group -> measured drops by share cut; a group goes no further than was measured. None: not measured.
    """

    round_to: RoundTo
    max_ratio: float
    heads: Heads
    residual_stream: bool
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    sizes: Mapping[str, int]
    curves: Mapping[str, Curve] | None = None


def selected(
    found: Found, wanted: Wanted, provider: str
) -> tuple[dict[Group, tuple[int, ...]], dict[str, str]]:
    """The groups that may be cut, each with its widths, the largest first; and name -> why another may not."""
    steps = {group: step(group, wanted.round_to, provider) for group in found.groups}
    allowed = {group: _widths(group, steps[group], wanted) for group in found.groups}
    inside = inner(found.groups)
    chosen: dict[Group, tuple[int, ...]] = {}
    declined = dict(found.declined)
    for group in found.groups:
        around = inside.get(group)
        outer_goes = around is not None and len(allowed[around]) > 1
        reason = _refusal(group, wanted) or _left_to(
            group, around if outer_goes else None, inside, wanted.heads
        )
        if reason is None and len(allowed[group]) == 1:
            reason = _too_few(group, steps[group], wanted)
        if reason is None:
            chosen[group] = allowed[group]
        else:
            declined[group.name] = reason
    return chosen, declined


def _too_few(group: Group, step: int, wanted: Wanted) -> str:
    """Why a group has no width but its own, and which option would give it one."""
    if group.size <= step:
        more = "; a smaller round_to allows fewer" if step > 1 else ""
        return f"{group.size} channels are no more than the {step} that must stay{more}"
    measured = "" if wanted.curves is None else " and the ratios that were measured"
    within = f"max_ratio={wanted.max_ratio}{measured}"
    return f"{group.size} channels cannot go down by a multiple of {step} within {within}"


def _widths(group: Group, step: int, wanted: Wanted) -> tuple[int, ...]:
    first = wanted.sizes.get(group.name, group.size)
    most = wanted.max_ratio
    if wanted.curves is not None:
        most = min(most, max(wanted.curves.get(group.name, {}), default=0.0))
    return widths(group.size, step, 1 - (1 - most) * first / group.size)


def _refusal(group: Group, wanted: Wanted) -> str | None:
    names = (group.name, *(member.value.name for member in makers(group)))
    if matches(names, wanted.exclude):
        return "excluded"
    if wanted.include and not matches(names, wanted.include):
        return "no include pattern fits it"
    if wanted.curves is not None and group.name not in wanted.curves:
        return "the sensitivity file has no curve over channels for it"
    if group.normalized and not wanted.residual_stream:
        return f"{group.normalized}; residual_stream=True cuts it"
    return None


def _left_to(group: Group, around: Group | None, inside: Mapping[Group, Group], heads: Heads) -> str | None:
    """Why a group that is one factor of an axis is left, the other being cut."""
    if heads == "whole" and around is not None:
        return f"it is the width of {around.name!r}, which goes in whole heads; heads='width' cuts it"
    if heads == "width" and group in inside.values():
        return "its heads stay; heads='whole' cuts them"
    return None
