from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from compressor.data import Samples, open_samples
from compressor.errors import DataError, OptionError
from compressor.graph import constant
from compressor.latency import Protocol
from compressor.pipeline import Change, Compressed, Context, Pipeline
from compressor.pruning import channel_latency
from compressor.runtime import Session
from compressor.summary import summarize
from passes import prune_channels
from passes.prune_channels import PruneChannels
from tests.conftest import build, drawn

HEADER = '<ir_version: 8, opset_import: ["" : 17]>\n'
NETWORK = """m (float[N, 3, 8, 8] x) => (float[N, 5] y) {
  a = Conv <pads = [1, 1, 1, 1]> (x, first, fb) ar = Relu (a)
  d = Conv <group = 64, pads = [1, 1, 1, 1]> (ar, depth) dr = Relu (d)
  b = Conv (dr, point) br = Relu (b)
  p = GlobalAveragePool (br) f = Flatten (p) y = Gemm (f, last, lb)
}"""


def network() -> ir.Model:
    weights = {"first": drawn(64, 3, 3, 3), "fb": drawn(64), "depth": drawn(64, 1, 3, 3)}
    weights |= {"point": drawn(96, 64, 1, 1), "last": drawn(96, 5), "lb": drawn(5)}
    return ir.from_proto(build(HEADER + NETWORK, **weights))


def images(model: ir.Model, count: int = 16) -> Samples:
    return open_samples({"x": drawn(count, 3, 8, 8), "labels": np.arange(count) % 5}, model)


def prune(model: ir.Model | None = None, samples: bool = True, **options: Any) -> Compressed:
    model = model or network()
    context = Context(calibration=images(model) if samples else None, threads=1)
    return Pipeline(PruneChannels(**options)).run(model, context)


def change(**options: Any) -> Change:
    return prune(**options).changes[-1]


def size(model: ir.Model, name: str, axis: int = 0) -> int:
    array = constant(model.graph.initializers[name])
    assert array is not None
    return int(array.shape[axis])


@pytest.mark.parametrize("options", [{"ratio": 0.5}, {"macs": 0.5}, {"params": 0.5}, {}])
def test_what_is_left_runs_is_valid_and_is_smaller(options: dict[str, float]) -> None:
    made = prune(**options)
    onnx.checker.check_model(ir.to_proto(made.model), full_check=True)
    (y,) = Session(made.model).run({"x": drawn(3, 3, 8, 8)})
    assert y.shape == (3, 5)
    figures = made.changes[-1].figures
    assert figures["parameters after"] < figures["parameters before"]  # type: ignore[operator]
    assert figures["MACs after"] == summarize(made.model).macs


def test_half_of_the_macs_go_when_nothing_is_said() -> None:
    made = prune()
    assert made.pipeline.passes[0].macs == 0.5  # type: ignore[attr-defined]
    facts = made.changes[-1].figures
    assert facts["MACs after"] <= 0.5 * facts["MACs before"]  # type: ignore[operator]


def test_a_ratio_cuts_that_share_of_every_group() -> None:
    made = prune(ratio=0.5)
    assert (size(made.model, "first"), size(made.model, "point")) == (32, 48)
    assert made.changes[-1].figures["widths"] == "first 64>32, point 96>48"
    assert made.changes[-1].figures["channels cut"] == 0.5


def test_a_cut_without_solving_is_masking() -> None:
    made = prune(ratio=0.5, reconstruct="none", importance="l2")
    model = network()
    kept = {
        name: np.isin(_rows(model, name), _rows(made.model, name)).all(axis=1) for name in ("first", "depth")
    }
    assert (kept["first"] == kept["depth"]).all()
    for name, array in (("first", drawn(64, 3, 3, 3)), ("fb", drawn(64)), ("depth", drawn(64, 1, 3, 3))):
        array[~kept["first"]] = 0
        model.graph.initializers[name].const_value = ir.tensor(array, name=name)
    point = drawn(96, 64, 1, 1)
    norms = np.linalg.norm(point.reshape(96, -1), axis=1)
    point[np.argsort(-norms, kind="stable")[48:]] = 0
    model.graph.initializers["point"].const_value = ir.tensor(point, name="point")
    x = drawn(4, 3, 8, 8, seed=3)
    assert Session(made.model).run({"x": x})[0] == pytest.approx(
        Session(model).run({"x": x})[0], rel=1e-4, abs=1e-4
    )


def _rows(model: ir.Model, name: str) -> np.ndarray:
    array = constant(model.graph.initializers[name])
    assert array is not None
    return array.reshape(array.shape[0], -1)


def test_touched_are_the_weights_whose_channels_went_and_each_other_group_has_a_reason() -> None:
    found = change(ratio=0.5, exclude="point")
    assert found.touched == ("first", "depth")
    assert found.declined == {"last": "'y' is an output of the model", "point": "excluded"}


def test_a_group_that_the_target_does_not_need_says_so() -> None:
    found = change(macs=0.02)
    assert len(found.touched) >= 1
    assert "cuts elsewhere cost less" in found.declined.values()


def test_a_small_ratio_that_no_width_comes_near_cuts_nothing_and_says_why() -> None:
    found = change(ratio=0.05)
    assert found.touched == ()
    assert found.declined["first"] == "no width it may have is nearer"


def test_a_target_out_of_reach_cuts_what_it_may_and_says_what_was_reached() -> None:
    found = change(macs=0.99, max_ratio=0.5)
    assert found.figures["widths"] == "first 64>32, point 96>48"
    left = found.figures["MACs after"] / found.figures["MACs before"]  # type: ignore[operator]
    assert found.declined["model"] == (
        f"{left:.1%} of the MACs are left, 1.0% were wanted: all that may be cut is at its least width; "
        "a larger max_ratio or a smaller round_to lets more go"
    )


@pytest.mark.parametrize("goal", ["ratio", "macs", "params", "latency"])
def test_zero_asks_for_nothing(goal: str) -> None:
    made = prune(**{goal: 0.0})
    assert made.changes[-1].declined == {"model": f"{goal}=0 asks for no cut"}
    assert size(made.model, "first") == 64


def test_everything_excluded_is_said() -> None:
    found = change(macs=0.5, exclude="*")
    assert found.touched == ()
    assert found.declined["model"] == "none of its groups of channels may be cut, each for the reason given"


def test_a_model_without_channels_is_said() -> None:
    model = ir.from_proto(build(HEADER + "m (float[N, 4] x) => (float[N, 4] y) { y = Relu (x) }"))
    context = Context(calibration=open_samples({"x": drawn(4, 4)}, model), threads=1)
    by_macs, by_ratio = (
        Pipeline(PruneChannels(**options)).run(model, context).changes[-1] for options in ({}, {"ratio": 0.5})
    )
    assert by_macs.declined["model"] == (
        "its MACs cannot be counted, its main graph, without the bodies of If and Loop, has none; "
        "params=0.5 and ratio=0.5 need no shapes"
    )
    assert by_ratio.declined["model"] == "it has no channels that can be cut"


def test_a_group_never_goes_below_a_block() -> None:
    made = prune(params=0.99, max_ratio=0.99)
    assert (size(made.model, "first"), size(made.model, "point")) == (16, 16)


@pytest.mark.parametrize(
    "importance", ["l1", "l2", "fpgm", "bn-gamma", "taylor", "hessian", "activation", "random"]
)
def test_every_importance_reaches_the_target(importance: str) -> None:
    found = change(ratio=0.5, importance=importance, reconstruct="none")
    assert found.figures["widths"] == "first 64>32, point 96>48"
    noted = {name: text for name, text in found.figures.items() if name.endswith(" scored")}
    expected = "by l2: no normalization scales it; one that was folded is in the weights"
    assert noted == (
        dict.fromkeys(("first scored", "point scored"), expected) if importance == "bn-gamma" else {}
    )


def test_channels_that_never_count_go_first() -> None:
    model = network()
    point = drawn(96, 64, 1, 1)
    dead = np.arange(64) % 2 == 0
    point[:, dead] = 0
    model.graph.initializers["point"].const_value = ir.tensor(point, name="point")
    made = prune(model, ratio=0.5, include="first", importance="activation", reconstruct="none")
    x = drawn(4, 3, 8, 8, seed=3)
    assert Session(made.model).run({"x": x})[0] == pytest.approx(
        Session(model).run({"x": x})[0], rel=1e-4, abs=1e-4
    )


def test_solving_again_brings_outputs_nearer() -> None:
    model = network()
    x = drawn(64, 3, 8, 8)
    expected = Session(model).run({"x": x})[0]
    misses = []
    for how in ("none", "least-squares"):
        made = prune(model, ratio=0.25, importance="l1", reconstruct=how)
        misses.append(np.abs(Session(made.model).run({"x": x})[0] - expected).mean())
    assert misses[1] < misses[0] / 2


def test_figures_say_what_solving_did() -> None:
    figures = change(ratio=0.5).figures
    assert figures["layers solved"] == 3
    assert figures["error of a layer solved"] < figures["error of a layer unsolved"]  # type: ignore[operator]


def test_without_samples_the_weights_decide_and_nothing_is_solved() -> None:
    made = prune(samples=False)
    assert made.pipeline.passes[0].importance == "l2"  # type: ignore[attr-defined]
    assert made.pipeline.passes[0].reconstruct == "none"  # type: ignore[attr-defined]
    assert "layers solved" not in made.changes[-1].figures


@pytest.mark.parametrize(
    "options",
    [
        {"importance": "taylor"},
        {"importance": "hessian"},
        {"importance": "activation"},
        {"reconstruct": "least-squares"},
    ],
)
def test_asks_for_the_samples_that_an_option_needs(options: dict[str, str]) -> None:
    ((name, value),) = options.items()
    with pytest.raises(
        DataError, match=f"prune-channels: {name}='{value}' needs calibration samples. Give --calib"
    ):
        prune(samples=False, **options)


def test_two_targets_are_one_too_many() -> None:
    with pytest.raises(OptionError, match="prune-channels: one target at a time, got ratio and latency"):
        PruneChannels(ratio=0.5, latency=0.5)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"macs": -0.1}, "option 'macs' must be greater than or equal to 0, got -0.1"),
        ({"ratio": 1.0}, "option 'ratio' must be less than 1, got 1.0"),
        ({"max_ratio": 1.0}, "option 'max_ratio' must be less than 1, got 1.0"),
        ({"iterative": 0}, "option 'iterative' must be greater than or equal to 1, got 0"),
        ({"round_to": 0}, "option 'round_to' must be 'auto' or greater than 0, got 0"),
    ],
)
def test_a_value_out_of_range_is_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(OptionError, match=f"prune-channels: {text}"):
        PruneChannels(**options)


def test_steps_end_where_one_step_ends_with_what_lies_between_them_run() -> None:
    options: dict[str, Any] = {"ratio": 0.5, "importance": "l2", "reconstruct": "none", "include": "point"}
    once = prune(**options)
    twice = prune(**options, iterative=2, between="fold-batchnorm")
    for name in ("point", "last"):
        assert (_rows(once.model, name) == _rows(twice.model, name)).all()
    assert twice.changes[-1].figures["widths"] == "point 96>48"
    assert "point" not in twice.changes[-1].declined


def test_steps_bound_the_share_of_a_group_together() -> None:
    made = prune(macs=0.99, max_ratio=0.5, iterative=3, between="fold-batchnorm", samples=False)
    assert (size(made.model, "first"), size(made.model, "point")) == (32, 48)


def test_what_runs_between_steps_is_checked_first() -> None:
    lacking = r"prune-channels: between='finetune\{epochs=1\}' cannot run. finetune needs train samples"
    with pytest.raises(DataError, match=lacking):
        prune(iterative=2)
    with pytest.raises(OptionError, match=r"prune-channels: between='nonsense' cannot run\. No pass named"):
        prune(iterative=2, between="nonsense")


def test_a_recipe_between_the_steps_of_a_single_step_is_refused() -> None:
    with pytest.raises(OptionError, match="between='optimize' runs between steps, and there is one: give it"):
        PruneChannels(between="optimize")


def test_where_shapes_are_unknown_a_target_in_macs_names_those_that_work() -> None:
    text = """m (float[N, 16] x, int64[K] s) => (float[N, 5] y, float[A, B] z) {
      a = MatMul (x, w) r = Relu (a) y = MatMul (r, v) q = Reshape (x, s) z = MatMul (q, u) }"""
    model = ir.from_proto(build(HEADER + text, w=drawn(16, 64), v=drawn(64, 5), u=drawn(16, 5)))
    assert PruneChannels(macs=0.3).apply(model, Context()).declined == {
        "model": "its MACs cannot be counted, shapes are unknown; params=0.3 and ratio=0.3 need no shapes"
    }
    PruneChannels(params=0.3).apply(model, Context())
    assert size(model, "w", 1) == 32


def test_a_latency_target_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_latency, "DEFAULT", Protocol(visits=5, visit_ms=0.1, sessions=1))
    monkeypatch.setattr(channel_latency, "_PIECE", Protocol(visits=5, visit_ms=0.1, sessions=1))
    for samples in (True, False):
        figures = change(latency=0.3, reconstruct="none", samples=samples).figures
        assert figures["latency left"] > 0  # type: ignore[operator]


def test_a_quantized_model_is_cut_with_its_scales() -> None:
    text = """m (float[N, 3, 8, 8] x) => (float[N, 5, 8, 8] y) {
      wd = DequantizeLinear <axis = 0> (w, s) a = Conv (x, wd) r = Relu (a)
      vd = DequantizeLinear <axis = 0> (v, t) y = Conv (r, vd) }"""
    rng = np.random.default_rng(0)
    codes = {"w": (32, 3, 1, 1), "v": (5, 32, 1, 1)}
    weights = {name: rng.integers(-99, 99, shape).astype(np.int8) for name, shape in codes.items()}
    model = ir.from_proto(build(HEADER + text, **weights, s=np.abs(drawn(32)), t=np.abs(drawn(5))))
    found = prune(model, ratio=0.5)
    assert [size(found.model, name) for name in ("w", "s", "v")] == [16, 16, 5]
    assert size(found.model, "v", 1) == 16
    codes_stay = [why for why in found.changes[-1].declined.values() if why.startswith("not solved again")]
    assert codes_stay == ["not solved again: the weights are stored as codes; prune before quantizing"]
    assert found.changes[-1].figures["widths"] == "w 32>16"
    assert "w scored" not in found.changes[-1].figures, "activations count behind DequantizeLinear too"


def test_the_same_seed_gives_the_same_model() -> None:
    first, second = (prune(ratio=0.5, importance="random") for _ in range(2))
    assert (_rows(first.model, "first") == _rows(second.model, "first")).all()


def test_an_uncut_group_keeps_its_very_tensor() -> None:
    model = network()
    before = model.graph.initializers["lb"].const_value
    made = prune(model, ratio=0.5, reconstruct="none")
    assert made.model.graph.initializers["lb"].const_value is before


def stages() -> ir.Model:
    """Two stages with a shortcut between them that takes every second row and column, and pads channels."""
    text = """m (float[N, 3, 8, 8] x) => (float[N, 5] y) {
      a = Conv <pads = [1, 1, 1, 1]> (x, first) ar = Relu (a)
      b = Conv <pads = [2, 2, 2, 2]> (ar, inner) br = Relu (b)
      c = Conv <pads = [2, 2, 2, 2], strides = [2, 2]> (br, second)
      s = Slice (ar, starts, ends, axes, steps) p = Pad (s, pads)
      d = Add (c, p) dr = Relu (d)
      g = GlobalAveragePool (dr) f = Flatten (g) y = Gemm (f, last) }"""
    weights = {
        "first": drawn(64, 3, 3, 3),
        "inner": drawn(64, 64, 5, 5) / 40,
        "second": drawn(96, 64, 5, 5) / 40,
    }
    whole = {"starts": [0, 0], "ends": [8, 2**63 - 1], "axes": [2, 3], "steps": [2, 2]}
    ranges = {name: np.array(numbers, np.int64) for name, numbers in whole.items()}
    pads = np.array([0, 16, 0, 0, 0, 16, 0, 0], np.int64)
    return ir.from_proto(build(HEADER + text, **weights, last=drawn(96, 5), **ranges, pads=pads))


def test_on_the_cpu_shortcuts_become_convolutions_of_equal_results() -> None:
    options: dict[str, Any] = {"ratio": 0.5, "importance": "l2", "reconstruct": "none", "round_to": 8}
    made, other = (
        Pipeline(PruneChannels(**options)).run(stages(), Context(provider=provider))
        for provider in ("cpu", "cuda")
    )
    kinds, before = ([node.op_type for node in found.model.graph] for found in (made, other))
    assert (kinds.count("Conv"), kinds.count("Slice"), kinds.count("Pad")) == (4, 0, 0)
    assert (before.count("Conv"), before.count("Slice"), before.count("Pad")) == (3, 1, 1)
    assert made.changes[-1].figures["shortcuts as convolutions"] == 1
    assert "shortcuts as convolutions" not in other.changes[-1].figures
    x = drawn(3, 3, 8, 8)
    assert Session(made.model).run({"x": x})[0] == pytest.approx(
        Session(other.model).run({"x": x})[0], rel=1e-4
    )


@pytest.mark.parametrize(("goal", "said"), [("macs", "MACs"), ("params", "parameters")])
def test_what_is_left_is_counted_with_shortcuts_as_convolutions(goal: str, said: str) -> None:
    made = prune(stages(), samples=False, **{goal: 0.5})
    figures, summary = made.changes[-1].figures, summarize(made.model)
    assert figures["shortcuts as convolutions"] == 1
    assert (figures["MACs after"], figures["parameters after"]) == (summary.macs, summary.parameters)
    assert figures[f"{said} left"] == figures[f"{said} after"] / figures[f"{said} before"]  # type: ignore[operator]
    assert figures[f"{said} left"] <= 0.51  # type: ignore[operator]


@pytest.mark.parametrize(("goal", "said"), [("macs", "MACs"), ("params", "parameters")])
def test_shortcuts_stay_where_convolutions_would_miss_the_target(
    goal: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prune_channels, "_MET", 0.5)
    found = prune(stages(), samples=False, **{goal: 0.5})
    assert [node.op_type for node in found.model.graph].count("Slice") == 1
    change = found.changes[-1]
    left, before, after = (change.figures[f"{said} {when}"] for when in ("left", "before", "after"))
    assert left == after / before  # type: ignore[operator]
    why = change.declined["shortcuts"]
    assert why.startswith("as convolutions they would leave ")
    assert why.endswith(f"% of the {said}")


def test_a_model_that_is_not_cut_keeps_its_shortcuts() -> None:
    found = prune(stages(), samples=False, exclude="*")
    assert [node.op_type for node in found.model.graph].count("Slice") == 1
