from __future__ import annotations

import gc
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import pytest

from compressor.errors import ModelError, OptionError
from compressor.latency import Latency, Protocol, Ratio, measure
from compressor.runtime import Setup, to_bytes
from compressor.timing import Plan, compare, interval, noise_floor, plan, starts_session

QUICK = Protocol(visits=8, visit_ms=1.0, sessions=4, warmup=1)
ONE = Setup(threads=1)


def matmul(width: int, inputs: str = "x") -> ir.Model:
    """Y = X @ W with X [batch, width] and W [width, width]."""
    x = ir.val(inputs, dtype=ir.DataType.FLOAT, shape=["N", width])
    w = ir.val("w", const_value=ir.tensor(np.full((width, width), 0.01, np.float32), name="w"))
    y = ir.Value(name="y", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["N", width]))
    node = ir.node("MatMul", inputs=[x, w], outputs=[y])
    graph = ir.Graph([x], [y], nodes=[node], initializers=[w], opset_imports={"": 17}, name="g")
    return ir.Model(graph, ir_version=8)


def wide(depth: int) -> ir.Model:
    """X [batch, 64] @ W [64, 512], then `depth` times @ [512, 512]."""
    x = ir.val("x", dtype=ir.DataType.FLOAT, shape=["N", 64])
    rows, nodes, weights, last = 64, [], [], x
    for i in range(depth + 1):
        w = ir.val(f"w{i}", const_value=ir.tensor(np.full((rows, 512), 0.01, np.float32), name=f"w{i}"))
        node = ir.node("MatMul", inputs=[last, w], outputs=[ir.Value(name=f"y{i}")])
        rows, last = 512, node.outputs[0]
        nodes.append(node)
        weights.append(w)
    last.type, last.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["N", 512])
    graph = ir.Graph([x], [last], nodes=nodes, initializers=weights, opset_imports={"": 17}, name="g")
    return ir.Model(graph, ir_version=8)


def feeds(batch: int = 4) -> dict[str, np.ndarray]:
    return {"x": np.ones((batch, 64), np.float32)}


@pytest.fixture(scope="module")
def trio() -> Latency:
    """A large model against a tiny one and against itself, as a model, bytes and a model."""
    large = wide(8)
    return measure([large, to_bytes(matmul(64)), large], feeds(16), ONE, QUICK)


@pytest.mark.parametrize("n", [5, 6, 9, 11, 20, 36, 101])
def test_the_interval_holds_the_median_of_lognormal_noise_in_93_percent_or_more(n: int) -> None:
    rng = np.random.default_rng(n)
    ratios = 1.3 * rng.lognormal(0, 0.1, (4000, n))
    ends = np.array([interval(row) for row in ratios])
    covered = np.mean((ends[:, 0] <= 1.3) & (ends[:, 1] >= 1.3))
    # 4000 draws: a standard error of 0.004 at a coverage of 0.9375, the lowest (n = 5); 3 of them below
    assert covered >= 0.9375 - 3 * math.sqrt(0.9375 * 0.0625 / 4000)


def test_the_interval_of_paired_times_forgives_a_load_that_both_models_share() -> None:
    rng = np.random.default_rng(0)
    load = rng.lognormal(0, 1.0, 36)
    ratio = compare((2 * load).tolist(), load.tolist(), 0.0, "wall")
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((2, 2, 2))


def test_the_interval_ignores_one_wild_visit() -> None:
    calm = [1.0, 1.01, 0.99, 1.02, 0.98, 1.0, 1.01, 0.99, 1.0, 1.0]
    assert interval([*calm, 50.0])[1] < 1.03


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_the_interval_of_few_values_is_their_range(n: int) -> None:
    assert interval(list(range(n))) == (0, n - 1)


def test_the_noise_floor_is_the_far_end_of_the_control_on_either_side() -> None:
    assert noise_floor([1.0, 1.0, 1.1, 1.0, 1.0]) == pytest.approx(0.1)
    assert noise_floor([1.0, 1.0, 1 / 1.1, 1.0, 1.0]) == pytest.approx(0.1)


def test_a_quiet_control_widens_nothing() -> None:
    assert noise_floor([1.0] * 9) == 0


@pytest.mark.parametrize(
    ("gain", "verdict"), [(1.10, "faster"), (1.03, "same"), (0.97, "same"), (0.90, "slower")]
)
def test_a_gain_below_the_noise_floor_gets_no_verdict(gain: float, verdict: str) -> None:
    ratio = compare([gain] * 9, [1.0] * 9, noise_floor([1.0, 1.05, 0.97, 1.01, 0.99]), "cpu")
    assert ratio.verdict == verdict


def test_swapping_the_models_inverts_the_ratio_and_its_interval() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.lognormal(1, 0.1, 15).tolist(), rng.lognormal(0, 0.1, 15).tolist()
    ab, ba = compare(a, b, 0.02, "cpu"), compare(b, a, 0.02, "cpu")
    assert (ab.low, ab.value, ab.high) == pytest.approx((1 / ba.high, 1 / ba.value, 1 / ba.low))


def test_false_verdicts_on_equal_models_are_rarer_than_two_percent() -> None:
    rng = np.random.default_rng(2)
    false = 0
    for _ in range(1000):
        # per session (9 of them) an offset of 1 %, per visit 1 %, and one visit in ten up to 30 % off
        offsets = np.repeat(rng.normal(0, 0.01, (9, 3)), 4, axis=0)
        wild = rng.random((36, 3)) < 0.1
        times = np.exp(offsets + rng.normal(0, 0.01, (36, 3)) + wild * rng.uniform(0, 0.3, (36, 3)))
        noise = noise_floor((times[:, 0] / times[:, 1]).tolist())
        false += compare(times[:, 0].tolist(), times[:, 2].tolist(), noise, "cpu").verdict != "same"
    assert false / 1000 < 0.02


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(1.01, 1.1, "faster"), (0.9, 0.99, "slower"), (1.0, 1.1, "same")]
)
def test_the_verdict_needs_the_whole_interval_on_one_side_of_one(
    low: float, high: float, verdict: str
) -> None:
    assert Ratio((low + high) / 2, low, high, 0.0, "cpu").verdict == verdict


def test_a_tiny_model_runs_many_times_per_visit_and_a_slow_one_once() -> None:
    assert plan((50e-6, 0.5), 0.1, Protocol(visit_ms=20)).runs == (400, 1)


@pytest.mark.parametrize("run_s", [1e-5, 1e-3, 0.03, 0.1, 0.3, 0.6, 1.0])
@pytest.mark.parametrize("session_s", [0.05, 1.0, 4.0])
def test_the_plan_stays_within_the_time_limit_and_makes_five_visits(run_s: float, session_s: float) -> None:
    protocol = Protocol()
    p = plan((run_s,) * 3, session_s, protocol)
    spent = p.sessions * session_s + p.visits * sum(run_s * (p.settle + n) for n in p.runs)
    assert 5 <= p.visits <= protocol.visits
    assert 1 <= p.sessions <= min(protocol.sessions, p.visits)
    assert spent <= protocol.time_limit_s * (1 + 1e-9)


def test_beyond_the_time_limit_the_plan_is_the_least() -> None:
    assert plan((20.0, 20.0, 20.0), 60.0, Protocol()) == Plan(visits=5, sessions=1, settle=0, runs=(1, 1, 1))


def test_there_are_no_more_sessions_than_visits() -> None:
    assert plan((1e-3,), 0.01, Protocol(visits=5, sessions=9)).sessions == 5


@pytest.mark.parametrize(("visits", "sessions"), [(36, 9), (11, 3), (5, 5), (7, 1)])
def test_every_planned_session_is_started_once(visits: int, sessions: int) -> None:
    p = Plan(visits, sessions, 1, (1,))
    assert sum(starts_session(v, p) for v in range(visits)) == sessions


def test_a_hundredfold_difference_is_seen(trio: Latency) -> None:
    assert trio.ratios[0].verdict == "faster"
    assert trio.ratios[0].value > 5


def test_a_model_against_itself_is_one_within_its_interval_or_nearly(trio: Latency) -> None:
    itself = trio.ratios[1]
    # few short visits on a busy machine may miss 1 a little; that is not what a difference looks like
    assert itself.low <= 1 <= itself.high or abs(math.log(itself.value)) < math.log(2)


def test_the_result_names_its_setting(trio: Latency) -> None:
    assert (trio.provider, trio.batch, trio.threads) == ("cpu", 16, 1)
    assert (trio.visits, len(trio.timings), len(trio.ratios)) == (QUICK.visits, 3, 2)


def test_intervals_hold_their_value_and_percentiles_are_ordered(trio: Latency) -> None:
    assert all(r.low <= r.value <= r.high and r.noise >= 0 for r in trio.ratios)
    assert all(0 < t.wall_p50 <= t.wall_p95 and t.cpu_p50 > 0 for t in trio.timings)


def test_the_clock_is_the_threads_own_only_with_one_thread(
    trio: Latency, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compressor.latency.sys", SimpleNamespace(platform="linux"))
    one = measure([matmul(64)] * 2, feeds(), Setup(provider="CPUExecutionProvider", threads=1), QUICK)
    two = measure([matmul(64)] * 2, feeds(), Setup(threads=2), QUICK)
    assert (one.ratios[0].clock, two.ratios[0].clock) == ("cpu", "wall")
    assert two.timings[0].cpu_p50 == two.timings[0].wall_p50


def test_the_clock_is_wall_where_the_threads_clock_is_coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compressor.latency.sys", SimpleNamespace(platform="win32"))
    assert measure([matmul(64)] * 2, feeds(), ONE, QUICK).ratios[0].clock == "wall"


def test_one_model_has_a_timing_and_no_ratio() -> None:
    alone = measure([matmul(64)], feeds(), ONE, QUICK)
    assert (len(alone.timings), alone.ratios) == (1, ())


def test_a_path_is_a_model_too(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(to_bytes(matmul(64)))
    assert measure([path], feeds(3), ONE, QUICK).batch == 3


def test_a_model_too_large_for_one_message_leaves_no_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compressor.runtime._PROTOBUF_LIMIT", 0)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert measure([matmul(64)], feeds(), ONE, QUICK).visits == QUICK.visits
    assert not list(tmp_path.iterdir())


def test_progress_is_told_after_every_round() -> None:
    told: list[tuple[str, int, int]] = []
    measure([matmul(64)], feeds(), ONE, QUICK, lambda *state: told.append(state))
    assert told == [("timing", n + 1, QUICK.visits) for n in range(QUICK.visits)]


def test_past_the_time_limit_five_visits_are_made() -> None:
    protocol = Protocol(visits=50, visit_ms=1.0, time_limit_s=1e-6)
    assert measure([matmul(64)] * 2, feeds(), ONE, protocol).visits == 5


@pytest.mark.parametrize("switch", [gc.enable, gc.disable])
def test_garbage_collection_is_off_while_timing_and_as_before_after(switch: Callable[[], None]) -> None:
    was, during = gc.isenabled(), []
    try:
        switch()
        before = gc.isenabled()
        measure([matmul(64)], feeds(), ONE, QUICK, lambda *_: during.append(gc.isenabled()))
        after = gc.isenabled()
    finally:
        (gc.enable if was else gc.disable)()
    assert set(during) == {False}
    assert after == before


def test_garbage_collection_is_back_after_an_error() -> None:
    was = gc.isenabled()
    with pytest.raises(ModelError):
        measure([b"no model"], feeds(), ONE, QUICK)
    assert gc.isenabled() == was


def test_no_model_is_refused() -> None:
    with pytest.raises(OptionError, match="at least one model is needed, got none"):
        measure([], feeds(), ONE, QUICK)


@pytest.mark.parametrize(
    ("models", "number"),
    [([matmul(64), matmul(32)], 2), ([matmul(32), matmul(64)], 1), ([matmul(64), matmul(64, "z")], 2)],
    ids=["candidate of another width", "reference of another width", "another input name"],
)
def test_a_model_that_does_not_run_on_the_feeds_is_named(models: list[ir.Model], number: int) -> None:
    with pytest.raises(ModelError, match=f"Latency: model {number}: onnxruntime cannot run"):
        measure(models, feeds(), ONE, QUICK)


def test_a_model_that_does_not_load_is_named() -> None:
    with pytest.raises(ModelError, match="Latency: model 2: onnxruntime cannot load"):
        measure([matmul(64), b"no model"], feeds(), ONE, QUICK)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"visits": 4}, "visits must be at least 5, got 4"),
        ({"sessions": 0}, "sessions must be at least 1, got 0"),
        ({"warmup": -1}, "warmup must be at least 0, got -1"),
        ({"visit_ms": 0.0}, "visit_ms must be above 0 and finite, got 0.0"),
        ({"time_limit_s": math.inf}, "time_limit_s must be above 0 and finite, got inf"),
        ({"time_limit_s": math.nan}, "time_limit_s must be above 0 and finite, got nan"),
    ],
)
def test_a_protocol_out_of_range_is_refused(options: dict[str, float], text: str) -> None:
    with pytest.raises(OptionError, match=text):
        Protocol(**options)  # type: ignore[arg-type]
