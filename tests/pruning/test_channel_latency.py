"""What is timed is not asserted: only how a graph falls into pieces, and what is made of the times."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import onnx_ir as ir
import pytest

from compressor.channels import find
from compressor.graph import constant
from compressor.latency import Protocol
from compressor.pipeline import Context
from compressor.prepare import prepare
from compressor.pruning import channel_latency
from compressor.pruning.channel_choice import Candidate
from compressor.pruning.channel_latency import (
    Measured,
    Piece,
    apart,
    milliseconds,
    narrowed,
    pieces,
    share_of,
)
from compressor.runtime import Session
from tests.conftest import build, drawn

TEXT = """<ir_version: 8, opset_import: ["" : 17]>
m (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y) {
  z = Abs (x) a = Conv <pads = [1, 1, 1, 1]> (z, w1, b1) r = Relu (a) b = Conv (r, w2) s = Sigmoid (b)
  t = Add (s, s) c = Conv (t, w3) u = Add (c, t) y = Conv (u, w4)
}"""


def network() -> tuple[ir.Model, list[Candidate]]:
    weights = {"w1": drawn(16, 3, 3, 3), "b1": drawn(16), "w2": drawn(8, 16, 1, 1), "w3": drawn(8, 8, 1, 1)}
    model = prepare(ir.from_proto(build(TEXT, **weights, w4=drawn(4, 8, 1, 1)))).model
    groups = find(model).groups
    assert [group.name for group in groups] == ["w1", "w2"]
    widths = {"w1": (16, 8, 4), "w2": (8, 4)}
    return model, [
        Candidate(group, np.arange(group.size, dtype=float), widths[group.name]) for group in groups
    ]


FEEDS = {"x": drawn(1, 3, 8, 8)}
CONTEXT = Context(threads=1)


def test_a_layer_and_what_follows_it_are_a_piece() -> None:
    model, candidates = network()
    found = [(piece.reads, piece.makes, piece.groups) for piece in pieces(model, candidates)]
    assert found == [
        (("x",), ("z",), frozenset()),
        (("z",), ("r",), frozenset({0})),
        (("r",), ("t",), frozenset({0, 1})),
        (("t",), ("u",), frozenset({1})),
        (("u",), ("y",), frozenset({1})),
    ]


def test_pieces_with_bodies_are_left_out() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    m (float[N, 4] x, bool c) => (float[N, 4] y) {
      a = MatMul (x, w)
      b = If (c) <then_branch = t () => (float[N, 4] u) { u = Neg (a) },
                  else_branch = e () => (float[N, 4] v) { v = Exp (a) }>
      y = MatMul (b, k)
    }"""
    model = ir.from_proto(build(text, w=drawn(4, 4), k=drawn(4, 4)))
    assert [piece.makes for piece in pieces(model, ())] == [("a",), ("y",)], "without the If"


def test_groups_that_pass_the_same_piece_are_cut_apart() -> None:
    parts = [Piece(str(at), (), (), frozenset(held)) for at, held in enumerate([{0, 1}, {1, 2}, {3}])]
    assert apart(parts) == [{0, 2, 3}, {1}]
    assert apart([]) == []


def test_the_time_of_a_piece_is_the_product_of_what_its_groups_leave() -> None:
    piece = Measured(2.0, {0: ((0.5, 1.0), (0.4, 1.0)), 3: ((0.25, 0.5, 1.0), (0.1, 0.5, 1.0))})
    assert piece.groups == {0, 3}
    assert piece.at([1.0, 0.1, 0.1, 1.0]) == 2.0
    assert piece.at([0.5, 1.0, 1.0, 0.5]) == pytest.approx(2.0 * 0.4 * 0.5)
    assert piece.at([0.75, 1.0, 1.0, 1.0]) == pytest.approx(2.0 * 0.7)


def test_narrowed_is_the_model_with_the_best_channels() -> None:
    model, candidates = network()
    smaller = narrowed(model, candidates, [8, 4])
    kept = constant(smaller.graph.initializers["w2"])
    whole = constant(model.graph.initializers["w2"])
    assert kept is not None
    assert whole is not None
    assert (kept == whole[4:, 8:]).all()
    assert whole.shape == (8, 16, 1, 1), "the model stays"
    assert Session(smaller).run(FEEDS)[0].shape == (1, 4, 8, 8)


def test_every_piece_that_a_group_passes_has_a_time_that_never_rises_with_fewer_channels() -> None:
    model, candidates = network()
    cost = milliseconds(model, candidates, FEEDS, CONTEXT)
    assert [term.groups for term in cost.terms] == [{0}, {0, 1}, {1}, {1}]
    for number, candidate in enumerate(candidates):
        shares = [width / candidate.widths[0] for width in candidate.widths]
        totals = [cost.total([*([1.0] * number), share, 1.0]) for share in shares]
        assert all(first >= second > 0 for first, second in pairwise(totals))


def test_a_model_against_itself_takes_a_share_that_is_positive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_latency, "DEFAULT", Protocol(visits=5, visit_ms=0.1, sessions=1))
    model, _ = network()
    assert share_of(model, model, FEEDS, CONTEXT) > 0
