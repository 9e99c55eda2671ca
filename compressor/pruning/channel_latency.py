"""What a model costs in milliseconds by the widths of its groups, from measured pieces of it.

The graph falls into pieces: each layer with weights, and what follows it up to the next one. Each group is cut to a
few levels between its largest and its least width, and the pieces that it passes are timed by themselves, on what the
whole model feeds them. Groups without a piece in common are cut at the same time. A piece takes

    t(w_1, ..., w_m) = t_0 * f_1(w_1) * ... * f_m(w_m),    f_i(w) = t(only group i cut, to w) / t_0

with f_i interpolated between the levels. The numbers choose where to cut; whether the target is met is measured on the
whole model (`share_of`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from compressor.channels import cut, find
from compressor.graph import is_constant
from compressor.latency import DEFAULT, Protocol, measure
from compressor.pipeline import Context
from compressor.pruning.channel_choice import Candidate
from compressor.pruning.channel_cost import Cost
from compressor.runtime import Session, Setup
from compressor.watching import probe

_LEVELS = 6
_PIECE = Protocol(visits=5, visit_ms=4.0, sessions=1, warmup=2, time_limit_s=5.0)
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN", "Attention", "MatMulNBits")

Feeds = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Measured:
    """The milliseconds of one piece.

    Args:
        full: when nothing is cut.
        factors: group -> (its shares, increasing; what the time is multiplied by at each).
    """

    full: float
    factors: Mapping[int, tuple[tuple[float, ...], tuple[float, ...]]]

    @property
    def groups(self) -> frozenset[int]:
        """The groups that it depends on, by number."""
        return frozenset(self.factors)

    def at(self, shares: Sequence[float]) -> float:
        """The time when each group keeps that share."""
        found = self.full
        for group, (places, factors) in self.factors.items():
            found *= float(np.interp(shares[group], places, factors))
        return found


@dataclass(frozen=True)
class Piece:
    """A layer and what follows it: its name, the values that it reads and makes, and the groups that it passes.

    What comes before the first layer is a piece without a name.
    """

    name: str
    reads: tuple[str, ...]
    makes: tuple[str, ...]
    groups: frozenset[int]


def milliseconds(model: ir.Model, candidates: Sequence[Candidate], feeds: Feeds, context: Context) -> Cost:
    """The time of a run by widths; pieces that no candidate passes are left out.

    Args:
        model: uncut, as the candidates' groups were found in it.
        candidates: groups and their widths.
        feeds: one batch.
        context: provider, threads and progress. Pieces are timed on one thread where it leaves the number open.
    """
    parts = [piece for piece in pieces(model, candidates) if piece.groups]
    full = _times(model, parts, feeds, context)
    factors: list[dict[int, dict[float, float]]] = [{g: {1.0: 1.0} for g in piece.groups} for piece in parts]
    levels = [_levels(candidate) for candidate in candidates]
    cuts = [(together, level) for together in apart(parts) for level in range(_LEVELS)]
    for done, (together, level) in enumerate(cuts):
        here = frozenset(at for at in together if level < len(levels[at]))
        widths = [levels[at][level] if at in here else c.widths[0] for at, c in enumerate(candidates)]
        passed = [at for at, piece in enumerate(parts) if piece.groups & here]
        context.progress("timing layers", done + 1, len(cuts))
        if not passed:
            continue
        smaller = narrowed(model, candidates, widths)
        same = {piece.name: piece for piece in pieces(smaller, ())}  # a cut renames shapes that are computed
        times = _times(smaller, [same[parts[at].name] for at in passed], feeds, context)
        for at, time in zip(passed, times, strict=True):
            (group,) = parts[at].groups & here
            factors[at][group][widths[group] / candidates[group].widths[0]] = time / full[at]
    terms = [
        Measured(time, {group: _falling(points) for group, points in found.items()})
        for time, found in zip(full, factors, strict=True)
    ]
    return Cost(tuple(terms), 0.0)


def apart(parts: Sequence[Piece]) -> list[frozenset[int]]:
    """The groups of the pieces in sets, no two of a set passing the same piece."""
    found: list[set[int]] = []
    for group in sorted(set().union(*(piece.groups for piece in parts))):
        near = set().union(*(piece.groups for piece in parts if group in piece.groups))
        place = next((held for held in found if not held & near), None)
        if place is None:
            found.append({group})
        else:
            place.add(group)
    return [frozenset(held) for held in found]


def share_of(reference: ir.Model, model: ir.Model, feeds: Feeds, context: Context) -> float:
    """The time of a model as a share of the reference's, measured side by side."""
    setup = Setup(provider=context.provider, threads=context.threads)
    protocol = replace(DEFAULT, seed=context.seed)
    return 1 / measure([reference, model], feeds, setup, protocol, context.progress).ratios[0].value


def narrowed(model: ir.Model, candidates: Sequence[Candidate], widths: Sequence[int]) -> ir.Model:
    """A copy with the candidates at these widths."""
    copy = model.clone()
    found = find(copy)
    same = {group.name: group for group in found.groups}
    kept = {same[c.group.name]: c.kept(width) for c, width in zip(candidates, widths, strict=True)}
    cut(copy, found, kept)
    return copy


def pieces(model: ir.Model, candidates: Sequence[Candidate]) -> Iterator[Piece]:
    """The main graph in pieces: a node without weights belongs to the piece of its latest input.

    Numbers of pieces never decrease along an edge, so that no path leaves a piece and comes back.
    """
    carried: dict[ir.Value, set[int]] = {}
    for number, candidate in enumerate(candidates):
        for member in candidate.group.members:
            carried.setdefault(member.value, set()).add(number)
    place: dict[ir.Value, int] = {}
    members: list[list[ir.Node]] = [[]]
    for node in model.graph:
        if node.op_type in _LAYERS and any(is_constant(v) for v in node.inputs):
            members.append([])
            at = len(members) - 1
        else:
            at = max((place.get(value, 0) for value in node.inputs if value is not None), default=0)
        members[at].append(node)
        place.update(dict.fromkeys(node.outputs, at))
    for number, held in enumerate(members):
        if held and not any(_has_body(node) for node in held):
            yield _piece(str(held[0].name) if number else "", held, carried)


def _piece(name: str, held: Sequence[ir.Node], carried: Mapping[ir.Value, set[int]]) -> Piece:
    inside = {value for node in held for value in node.outputs}
    read = dict.fromkeys(v for node in held for v in node.inputs if v is not None and v not in inside)
    reads = [str(value.name) for value in read if not is_constant(value)]
    makes = [
        str(value.name)
        for node in held
        for value in node.outputs
        if value.is_graph_output() or any(use.node not in held for use in value.uses())
    ]
    groups = frozenset(group for value in read for group in carried.get(value, ()))
    return Piece(name, tuple(reads), tuple(makes), groups)


def _has_body(node: ir.Node) -> bool:
    return any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values())


def _levels(candidate: Candidate) -> list[int]:
    """The widths to time: all below the largest, or some of them, evenly chosen, the least among them."""
    fewer = candidate.widths[1:]
    count = min(len(fewer), _LEVELS)
    return [fewer[round((at + 1) / count * len(fewer)) - 1] for at in range(count)]


def _times(model: ir.Model, parts: Sequence[Piece], feeds: Feeds, context: Context) -> list[float]:
    """Milliseconds of one run of each piece."""
    setup = Setup(provider=context.provider, threads=context.threads or 1)
    values = _values(model, parts, feeds, context)
    return [_time(model, piece, values, setup) for piece in parts]


def _values(model: ir.Model, parts: Sequence[Piece], feeds: Feeds, context: Context) -> Feeds:
    """What the pieces read, in a run of the whole model."""
    computed = {value.name for node in model.graph for value in node.outputs}
    names = [name for name in dict.fromkeys(n for piece in parts for n in piece.reads) if name in computed]
    if not names:
        return feeds
    session = Session(probe(model, names), Setup(threads=context.threads))
    return {**feeds, **dict(zip(session.outputs, session.run(feeds), strict=True))}


def _time(model: ir.Model, piece: Piece, values: Feeds, setup: Setup) -> float:
    """Milliseconds of one run of a piece."""
    graph = ir.convenience.extract(model.graph, piece.reads, piece.makes)
    for value in (*graph.inputs, *graph.outputs):
        if value.dtype is None:
            value.dtype = ir.DataType.FLOAT
    alone = ir.Model(graph, ir_version=model.ir_version)
    found = measure([alone], {name: values[name] for name in piece.reads}, setup, _PIECE)
    return found.timings[0].cpu_p50


def _falling(points: Mapping[float, float]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Shares, increasing, and factors that never rise where channels go: what says otherwise is noise."""
    shares = sorted(points)
    least = np.minimum.accumulate([points[share] for share in reversed(shares)])
    return tuple(shares), tuple(float(factor) for factor in reversed(least))
