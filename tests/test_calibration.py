"""Observers stream and merge; calibrate watches what it was asked to, on every real sample."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from compressor.calibration import calibrate
from compressor.data import open_samples
from compressor.errors import ModelError
from compressor.observers import BINS, BUDGET, Histogram, MinMax, MovingAverage, Observer, observer
from compressor.pipeline import Context
from compressor.watching import probe

HISTOGRAMS = ["percentile", "entropy", "mse"]
METHODS = ["minmax", "moving-average", *HISTOGRAMS]
RNG = np.random.default_rng(0)


def watched(method: Any, batches: list[np.ndarray], **options: Any) -> Observer:
    seen = observer(method, **options)
    for batch in batches:
        seen.observe(batch)
    return seen


def values(seed: int, count: int = 12) -> list[np.ndarray]:
    """Batches whose scale changes by powers of ten, so that histograms have to widen."""
    rng = np.random.default_rng(seed)
    scales = 10.0 ** rng.integers(-4, 4, count)
    return [(rng.normal(size=(2, 3, 7)) * s).astype(np.float32) for s in scales]


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(METHODS), st.integers(0, 10**6), st.lists(st.integers(0, 12), max_size=3))
def test_parts_observed_apart_and_merged_equal_the_whole(method: Any, seed: int, cuts: list[int]) -> None:
    batches = values(seed)
    bounds = [0, *sorted(cuts), len(batches)]
    merged = observer(method)
    for start, end in pairwise(bounds):
        merged.merge(watched(method, batches[start:end]))
    whole = watched(method, batches)
    # extremes and counts merge exactly; an average rounds in float64
    rtol = 1e-12 if method == "moving-average" else 0
    np.testing.assert_allclose(merged.range(), whole.range(), rtol=rtol)
    if isinstance(merged, Histogram) and isinstance(whole, Histogram):
        assert merged.exponent == whole.exponent
        assert np.array_equal(merged.counts, whole.counts)


@settings(deadline=None, max_examples=20)
@given(st.sampled_from(["minmax", *HISTOGRAMS]), st.integers(0, 10**6), st.randoms())
def test_the_order_of_batches_does_not_matter(method: Any, seed: int, random: Any) -> None:
    batches = values(seed)
    other = list(batches)
    random.shuffle(other)
    assert watched(method, other).range() == watched(method, batches).range()


@pytest.mark.parametrize("method", ["minmax", *HISTOGRAMS])
@pytest.mark.parametrize("size", [1, 5, 24])
def test_the_batch_size_does_not_matter(method: Any, size: int) -> None:
    data = RNG.normal(size=(24, 3, 5000)).astype(np.float32)
    parts = [data[i : i + size] for i in range(0, 24, size)]
    assert watched(method, parts).range() == watched(method, [data]).range()


def test_a_moving_average_is_the_recurrence_of_its_definition() -> None:
    batches = values(1)
    low, high = float(batches[0].min()), float(batches[0].max())
    for batch in batches:
        low, high = 0.9 * low + 0.1 * float(batch.min()), 0.9 * high + 0.1 * float(batch.max())
    np.testing.assert_allclose(watched("moving-average", batches).range(), (low, high), rtol=1e-12)


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9])
def test_a_percentile_is_within_a_bin_of_numpys(percentile: float) -> None:
    data = RNG.normal(size=(50, BUDGET)).astype(np.float32)
    low, high = watched("percentile", [data], percentile=percentile).range()
    # bins of 2^exponent / BINS; numpy interpolates between neighbours, which lie within one bin here
    width = 2.0 ** np.ceil(np.log2(np.abs(data).max())) / BINS
    expected = np.percentile(data, [100 - percentile, percentile])
    np.testing.assert_allclose((low, high), expected, atol=2 * width)


def _squared_error(data: np.ndarray, low: float, high: float) -> float:
    step = (high - low) / 255
    return float(np.mean((data - np.rint(np.clip(data, low, high) / step) * step) ** 2))


@pytest.mark.parametrize("shape", ["normal", "laplace", "relu", "outlier"])
def test_mse_is_within_two_percent_of_the_best_threshold(shape: str) -> None:
    rng = np.random.default_rng(3)
    data = rng.laplace(size=40_000) if shape == "laplace" else rng.normal(size=40_000)
    data = np.maximum(data, 0) if shape == "relu" else data
    data[0] = 30.0 if shape == "outlier" else data[0]
    data = data.astype(np.float32).reshape(20, -1)
    low, high = watched("mse", [data]).range()
    ends = min(float(data.min()), 0.0), float(data.max())
    cuts = max(-ends[0], ends[1]) * np.linspace(0.05, 1, 400)
    errors = [_squared_error(data, max(ends[0], -t), min(ends[1], t)) for t in cuts]
    assert _squared_error(data, low, high) <= 1.02 * min(errors)


def test_entropy_clips_a_far_outlier() -> None:
    data = RNG.normal(size=(50, BUDGET)).astype(np.float32)
    data[7, 0] = 100.0
    assert watched("entropy", [data]).range().high < 20
    assert watched("minmax", [data]).range().high == 100.0


def test_entropy_keeps_a_uniform_range() -> None:
    data = RNG.uniform(-1, 1, size=(50, BUDGET)).astype(np.float32)
    low, high = watched("entropy", [data]).range()
    assert low < -0.95
    assert high > 0.95


def test_entropy_keeps_most_of_a_relu() -> None:
    data = np.maximum(RNG.normal(size=(50, BUDGET)), 0).astype(np.float32)
    assert watched("entropy", [data]).range().high > 2.0  # two sigmas hold 95 % of what is not zero


def test_a_short_side_is_left_whole_where_the_long_one_is_cut() -> None:
    x = np.random.default_rng(0).normal(size=(50, 2048)).astype(np.float32)
    swish = x / (1 + np.exp(-x))
    swish[0, 0] = 50.0
    for method in ("entropy", "mse"):
        assert watched(method, [swish]).range().low == float(swish.min())


@pytest.mark.parametrize("method", METHODS)
def test_memory_does_not_grow_with_the_samples(method: Any) -> None:
    batch = RNG.normal(size=(4, 1000)).astype(np.float32)
    seen = watched(method, [batch] * 3)
    tracemalloc.start()
    for _ in range(200):
        seen.observe(batch)
    grown = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert grown < 2 * 8 * 2 * BINS + 10_000  # one array of counts replaced by another, not one per batch


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("constant", [0.0, 0.3, -2.0, 1e-30, 3e38])
def test_a_constant_tensor_has_the_range_of_its_value(method: Any, constant: float) -> None:
    low, high = watched(method, [np.full((2, 5), constant, np.float32)] * 3).range()
    value = float(np.float32(constant))
    np.testing.assert_allclose([min(low, 0), max(high, 0)], [min(value, 0), max(value, 0)], rtol=5e-3)
    assert low <= high


@pytest.mark.parametrize("method", METHODS)
def test_an_all_negative_tensor_has_a_negative_low_end(method: Any) -> None:
    data = -RNG.uniform(1, 2, size=(8, 500)).astype(np.float32)
    low, high = watched(method, [data]).range()
    assert -2.0 <= low < -1.5
    assert high < 0 or method in ("mse", "entropy")
    assert low <= high <= 0


@pytest.mark.parametrize("method", METHODS)
def test_an_empty_batch_changes_nothing(method: Any) -> None:
    seen = watched(method, [np.ones((1, 2), np.float32)])
    before = seen.range()
    seen.observe(np.zeros((0, 2), np.float32))
    assert seen.range() == before


@pytest.mark.parametrize("method", METHODS)
def test_an_observer_that_saw_nothing_has_an_empty_range(method: Any) -> None:
    assert observer(method).range() == (np.inf, -np.inf)


def test_a_histogram_samples_every_channel() -> None:
    data = np.zeros((1, 12, 768), np.float32)
    data[..., 1] = 1.0
    seen = Histogram()
    seen.observe(data)
    share = seen.counts[BINS + 1 :].sum() / seen.counts.sum()
    np.testing.assert_allclose(share, 1 / 768, rtol=0.5)


@pytest.mark.parametrize(
    ("method", "kind"), [("minmax", MinMax), ("moving-average", MovingAverage), ("mse", Histogram)]
)
def test_a_method_has_its_observer(method: Any, kind: type) -> None:
    assert type(observer(method)) is kind


def tiny(batch: int | str = "n") -> ir.Model:
    """x -> a = relu(x) -> b = log(x) and c = a + 1, the output; shape [batch, 3]."""
    info = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Log", ["x"], ["b"]),
        helper.make_node("Add", ["a", "one"], ["c"]),
    ]
    one = onnx.numpy_helper.from_array(np.ones(1, np.float32), "one")
    x, c = info("x", 1, [batch, 3]), info("c", 1, [batch, 3])
    values = [info("a", 1, [batch, 3]), info("b", 1, [batch, 3])]
    graph = helper.make_graph(nodes, "g", [x], [c], [one], value_info=values)
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def ranges(model: ir.Model, data: np.ndarray, names: list[str], method: Any = "minmax") -> dict[str, Any]:
    samples = open_samples({"x": data}, model, "calibration")
    return calibrate(model, names, samples, {n: observer(method) for n in names}, Context(threads=1))


def test_calibrate_watches_inputs_and_inner_values() -> None:
    data = RNG.normal(size=(70, 3)).astype(np.float32)
    found = ranges(tiny(), data, ["x", "a", "c"])
    assert found["x"] == (data.min(), data.max())
    assert found["a"] == (0.0, data.max())
    assert found["c"] == (1.0, data.max() + np.float32(1))


def test_an_input_alone_needs_no_run() -> None:
    data = RNG.normal(size=(5, 3)).astype(np.float32)
    assert ranges(tiny(), data, ["x"])["x"] == (data.min(), data.max())


def test_only_the_asked_tensors_are_computed() -> None:
    data = -np.ones((4, 3), np.float32)  # log(-1) is NaN, and nobody asked for it
    assert ranges(tiny(), data, ["a"]) == {"a": (0.0, 0.0)}
    found = probe(tiny(), ["a"])
    assert [v.name for v in found.graph.outputs] == ["a"]
    assert [n.op_type for n in found.graph] == ["Relu"]


@pytest.mark.parametrize("method", METHODS)
def test_nan_is_an_error_that_names_the_value_and_the_samples(method: Any) -> None:
    data = np.ones((40, 3), np.float32)
    data[37, 1] = -1.0
    with pytest.raises(ModelError, match=r"Value 'b' becomes NaN or infinite on calibration samples \[37\]"):
        ranges(tiny(), data, ["b"], method)


def test_infinity_is_an_error_too() -> None:
    data = np.ones((3, 3), np.float32)
    data[1] = 0.0
    with pytest.raises(ModelError, match=r"'b' becomes NaN or infinite on calibration samples \[1\]"):
        ranges(tiny(), data, ["b"])


def test_what_fills_a_fixed_batch_is_not_counted() -> None:
    data = np.arange(15, dtype=np.float32).reshape(5, 3)
    seen = Histogram()
    samples = open_samples({"x": data}, tiny(4), "calibration")
    calibrate(tiny(4), ["a"], samples, {"a": seen}, Context(threads=1))
    assert seen.counts.sum() == data.size


def test_progress_ends_at_the_number_of_samples() -> None:
    told: list[tuple[int, int]] = []
    context = Context(threads=1, progress=lambda what, done, total: told.append((done, total)))
    samples = open_samples({"x": np.ones((50, 3), np.float32)}, tiny(), "calibration")
    calibrate(tiny(), ["a"], samples, {"a": MinMax()}, context)
    assert told[-1] == (50, 50)


def test_the_model_stays_as_it_was() -> None:
    model = tiny()
    before = ir.to_proto(model).SerializeToString()
    ranges(model, np.ones((2, 3), np.float32), ["a"])
    assert ir.to_proto(model).SerializeToString() == before
