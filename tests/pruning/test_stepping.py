from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from compressor.prepare import infer_shapes
from compressor.pruning.stepping import Stepping
from compressor.runtime import Session
from tests.conftest import build, drawn

TEXT = """<ir_version: 8, opset_import: ["" : 17]>
m (float[N, 4] x, float[N, 4] z) => (float[N, 4] y) {
  a = Gemm (x, w1, b) r = Relu (a) s = Sigmoid (x) c = MatMul (r, w2) d = Add (c, s) y = Add (d, z)
}"""


def model() -> ir.Model:
    made = ir.from_proto(build(TEXT, w1=drawn(4, 4), w2=drawn(4, 4, seed=1), b=drawn(4)))
    infer_shapes(made)
    return made


def feeds(seed: int = 0) -> dict[str, np.ndarray]:
    return {"x": drawn(2, 4, seed=seed), "z": drawn(2, 4, seed=seed + 1)}


def stepping(made: ir.Model) -> Stepping:
    found = Stepping(made, 1)
    for seed in (0, 5):
        found.start(feeds(seed))
    return found


@pytest.mark.parametrize("stops", [(6,), (1, 6), (2, 3, 4, 6), (1, 2, 3, 4, 5, 6), (3, 3, 6)])
def test_gives_what_one_run_gives_wherever_it_stops(stops: tuple[int, ...]) -> None:
    made = model()
    steps = stepping(made)
    for stop in stops:
        steps.run_until(stop, ("y",))
    for seed, values in zip((0, 5), steps.batches, strict=True):
        assert values["y"] == pytest.approx(Session(made).run(feeds(seed))[0], rel=1e-6)


def test_keeps_only_what_is_still_read() -> None:
    steps = stepping(model())
    steps.run_until(3)
    assert [set(values) for values in steps.batches] == [{"r", "s", "z"}] * 2
    assert steps.bytes == 2 * 3 * 2 * 4 * 4


def test_a_wanted_value_stays_until_the_next_stop() -> None:
    steps = stepping(model())
    steps.run_until(2, ("a",))
    assert "a" in steps.batches[0]
    steps.run_until(3)
    assert "a" not in steps.batches[0]


def test_weights_that_change_between_stops_are_used() -> None:
    made = model()
    steps = stepping(made)
    steps.run_until(3)
    made.graph.initializers["w2"].const_value = ir.tensor(np.zeros((4, 4), np.float32), name="w2")
    steps.run_until(6, ("y",))
    first = feeds()
    assert steps.batches[0]["y"] == pytest.approx(1 / (1 + np.exp(-first["x"])) + first["z"], rel=1e-5)


def test_finds_nodes_and_values_by_name() -> None:
    made = model()
    made.graph[3].name = "product"
    steps = Stepping(made, 1)
    assert (steps.position("product"), steps.position("c"), steps.position("x")) == (3, 3, -1)


def test_values_that_bodies_read_are_kept_to_the_end() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    m (float[N, 4] x, bool c) => (float[N, 4] y) {
      a = Relu (x) b = Sigmoid (x)
      y = If (c) <then_branch = t () => (float[N, 4] u) { u = Neg (a) },
                  else_branch = e () => (float[N, 4] v) { v = Exp (a) }>
    }"""
    made = ir.from_proto(build(text))
    infer_shapes(made)
    steps = Stepping(made, 1)
    given = {"x": drawn(2, 4), "c": np.array(True)}
    steps.start(given)
    steps.run_until(2)
    steps.run_until(3, ("y",))
    assert steps.batches[0]["y"] == pytest.approx(Session(made).run(given)[0])
