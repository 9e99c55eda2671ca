from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from compressor.channels import find
from compressor.latency import Protocol
from compressor.pipeline import Context
from compressor.prepare import infer_shapes
from compressor.pruning import channel_latency, channel_targets
from compressor.pruning.channel_choice import Candidate
from compressor.pruning.channel_cost import Cost, Elements
from compressor.pruning.channel_targets import Choice, Target, choose, macs_of, shares
from compressor.summary import summarize
from tests.conftest import build, drawn
from tests.pruning.test_channel_cost import attention, network


def candidates(model: ir.Model) -> list[Candidate]:
    found = find(model).groups
    widths = [tuple(range(group.size, 0, -1)) for group in found]
    return [Candidate(g, np.arange(1.0, g.size + 1), w) for g, w in zip(found, widths, strict=True)]


def test_macs_are_what_is_asked_for_or_fewer() -> None:
    model = network()
    whole = summarize(model).macs or 0
    for share in (0.1, 0.5, 0.8):
        held = candidates(model)
        choice = choose(model, held, Target("macs", share, whole, {}), Context())
        assert choice.left == pytest.approx(macs_of(model, held, choice.widths) / whole)
        assert choice.left <= 1 - share + 1e-9


def test_parameters_are_what_is_asked_for_or_fewer() -> None:
    model = network()
    whole = summarize(model).parameters
    choice = choose(model, candidates(model), Target("params", 0.4, whole, {}), Context())
    assert choice.left is not None
    assert 0.4 < choice.left <= 0.6


def test_a_ratio_is_of_the_first_sizes() -> None:
    model = network()
    held = candidates(model)
    sizes = {candidate.group.name: 2 * len(candidate.scores) for candidate in held}
    half = choose(model, held, Target("ratio", 0.5, 0, sizes), Context())
    assert half == Choice([len(candidate.scores) for candidate in held], None)
    quarter = choose(model, held, Target("ratio", 0.75, 0, sizes), Context())
    assert quarter.widths == [len(candidate.scores) // 2 for candidate in held]


def test_products_of_activations_that_shrink_too_are_counted() -> None:
    model = attention()
    whole = summarize(model).macs or 0
    held = candidates(model)
    choice = choose(model, held, Target("macs", 0.5, whole, {}), Context())
    predicted = channel_targets.multiply_accumulates(model, [c.group for c in held])
    assert choice.left is not None
    assert choice.left == pytest.approx(0.5, abs=0.05)
    assert predicted.total(shares(held, choice.widths)) / whole > choice.left


def test_a_prediction_out_of_proportion_is_corrected() -> None:
    group = find(network()).groups[0]
    held = [Candidate(group, np.ones(100), tuple(range(100, 0, -1)))]
    cost = Cost((Elements(1.0, (((100, (0,)),),)),), 0.0)

    def left(widths: list[int]) -> float:
        return 0.3 + 0.7 * widths[0] / 100

    choice = channel_targets._reached(held, cost, Target("latency", 0.4, 0, {}), left)
    assert choice.left == pytest.approx(0.6, abs=0.02)


def test_where_nothing_comes_nearer_the_nearest_is_taken() -> None:
    group = find(network()).groups[0]
    held = [Candidate(group, np.ones(4), (4, 2))]
    cost = Cost((Elements(1.0, (((4, (0,)),),)),), 0.0)
    choice = channel_targets._reached(held, cost, Target("latency", 0.2, 0, {}), lambda w: w[0] / 4)
    assert choice == Choice([2], 0.5)


def test_latency_is_measured_against_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_latency, "DEFAULT", Protocol(visits=5, visit_ms=0.1, sessions=1))
    text = """<ir_version: 8, opset_import: ["" : 17]>
    m (float[N, 64] x) => (float[N, 8] y) { h = MatMul (x, w) r = Relu (h) y = MatMul (r, v) }"""
    model = ir.from_proto(build(text, w=drawn(64, 256), v=drawn(256, 8)))
    infer_shapes(model)
    held = [Candidate(find(model).groups[0], np.ones(256), (256, 128))]
    target = Target("latency", 0.3, 0, {}, model.clone(), {"x": drawn(1, 64)})
    choice = choose(model, held, target, Context(threads=1))
    assert choice.widths in ([256], [128])
    assert choice.left is not None
    with pytest.raises(ValueError, match="against a reference"):
        choose(model, held, Target("latency", 0.3, 0, {}, None, {"x": drawn(1, 64)}), Context(threads=1))
