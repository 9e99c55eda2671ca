"""The original as a teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import parser
from torch import Tensor

from compressor.errors import ModelError, OptionError
from compressor.pipeline import Change, Context
from compressor.runtime import Session
from compressor.training import teacher as teaching
from compressor.training.answer_cache import AnswerCache
from compressor.training.exposing import matching, with_outputs
from compressor.training.options import Training
from compressor.training.teacher import Teacher


class Tuning(Training):
    name: ClassVar[str] = "finetune"

    def apply(self, model: ir.Model, context: Context) -> Change:
        return Change()


CPU = torch.device("cpu")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def graph(body: str, outputs: str = "float[N, 3] y") -> ir.Model:
    imports = 'opset_import: ["" : 17, "mine" : 1]'
    return ir.from_proto(
        parser.parse_model(f"<ir_version: 8, {imports}> g (float[N, 3] x) => ({outputs}) {{ {body} }}")
    )


def answered(model: ir.Model, x: Tensor) -> list[np.ndarray]:
    return Session(model).run({"x": x.numpy()})


@pytest.mark.parametrize("kind", ["onnxruntime", "torch", "auto"])
def test_gives_what_onnxruntime_gives_and_the_named_values(tiny_mlp: ir.Model, kind: Any) -> None:
    x = drawn(5, 4)
    teacher = Teacher(tiny_mlp, Tuning(teacher=kind, features=("r",), attention=("h*",)), 0, CPU)
    outputs, values = teacher((x,), torch.arange(5))
    want = answered(with_outputs(tiny_mlp, ("h", "r")), x)
    assert teacher.values == ("h", "r")
    assert list(values) == ["h", "r"]
    for got, array in zip((*outputs, *values.values()), want, strict=True):
        # float32 sums of 8 products in another order
        torch.testing.assert_close(got, torch.from_numpy(array), rtol=1e-5, atol=1e-5)
    assert not outputs[0].requires_grad
    assert teacher.runs_on in ("onnxruntime", "torch")
    assert [v.name for v in tiny_mlp.graph.outputs] == ["y"]


def test_an_output_that_is_named_is_not_given_twice(tiny_mlp: ir.Model) -> None:
    outputs, values = Teacher(tiny_mlp, Tuning(teacher="onnxruntime", features=("y",)), 0, CPU)(
        (drawn(2, 4),), torch.arange(2)
    )
    assert len(outputs) == 1
    assert torch.equal(values["y"], outputs[0])


class Counting(Teacher):
    """Counts the batches that the original runs on."""

    runs = 0

    def _run(self, inputs: Any) -> list[Tensor]:
        self.runs += 1
        return super()._run(inputs)


def test_runs_once_on_each_sample_and_answers_in_any_order(tiny_mlp: ir.Model) -> None:
    x, teacher = drawn(6, 4), Counting(tiny_mlp, Tuning(teacher="onnxruntime"), 6, CPU)
    for rows in (torch.tensor([0, 1, 2]), torch.tensor([3, 4, 5])):
        teacher((x[rows],), rows)
    rows = torch.tensor([5, 0, 3])
    got = teacher((torch.zeros(3, 4),), rows).outputs[0]  # the inputs are not looked at any more
    assert teacher.runs == 2
    assert torch.allclose(got, torch.from_numpy(answered(tiny_mlp, x[rows])[0]), atol=1e-6)
    teacher((x[:1],), torch.tensor([0]))
    assert teacher.runs == 2


@pytest.mark.parametrize(
    ("options", "why"), [({"cache_mb": 0.00007}, "no room"), ({"augment": {"flip": 0.5}}, "new")]
)
def test_runs_again_where_answers_do_not_fit_or_inputs_are_augmented(
    tiny_mlp: ir.Model, options: dict[str, Any], why: str
) -> None:
    x, teacher = drawn(6, 4), Counting(tiny_mlp, Tuning(teacher="onnxruntime", **options), 6, CPU)
    for seed in (0, 1):
        x = drawn(6, 4, seed=seed)
        got = teacher((x,), torch.arange(6)).outputs[0]
        assert torch.allclose(got, torch.from_numpy(answered(tiny_mlp, x)[0]), atol=1e-6), why
    assert teacher.runs == 2


def test_the_cache_takes_exactly_as_much_as_it_may() -> None:
    rows, answers = torch.arange(2), [torch.ones(2, 3)]
    for limit, fits in ((4 * 3 * 4, True), (4 * 3 * 4 - 1, False)):
        cache = AnswerCache(4, limit)
        cache.put(rows, answers)
        assert (cache.get(rows) is not None) is fits


def test_the_cache_keeps_no_answers_without_a_batch_axis_or_of_another_shape() -> None:
    cache, rows = AnswerCache(4, 10**6), torch.arange(2)
    cache.put(rows, [torch.ones(2, 3), torch.tensor(1.0)])
    assert cache.get(rows) is None
    cache.put(rows, [torch.ones(2, 3)])
    cache.put(rows + 2, [torch.ones(2, 5)])
    assert cache.get(rows) is not None
    assert cache.get(rows + 2) is None
    assert cache.get(torch.tensor([1, 2])) is None


def test_auto_is_the_same_every_time_on_the_cpu(tiny_mlp: ir.Model) -> None:
    assert Teacher(tiny_mlp, Tuning(), 0, CPU).runs_on == "onnxruntime"


def test_auto_takes_torch_where_onnxruntime_cannot_load_the_original(
    tiny_mlp: ir.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ModelError("onnxruntime cannot load the model: opset 99")

    monkeypatch.setattr(teaching, "Session", refuse)
    assert Teacher(tiny_mlp, Tuning(), 0, CPU).runs_on == "torch"
    with pytest.raises(
        ModelError, match=r"teacher. onnxruntime: onnxruntime cannot load the model: opset 99. Train"
    ):
        Teacher(tiny_mlp, Tuning(teacher="onnxruntime"), 0, CPU)


def test_elsewhere_auto_takes_the_faster_of_those_that_run(
    tiny_mlp: ir.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(inputs: Sequence[Tensor]) -> list[Tensor]:
        return list(inputs)

    def fast(inputs: Sequence[Tensor]) -> list[Tensor]:
        return list(inputs)

    def broken(inputs: Sequence[Tensor]) -> list[Tensor]:
        raise ModelError("out of order")

    monkeypatch.setattr(teaching, "_time", lambda run, inputs: (run(inputs), run is slow)[1])
    runners = {"broken": broken, "slow": slow, "fast": fast}
    assert teaching._fastest(runners, [drawn(1)]) == {"fast": fast}
    with pytest.raises(ModelError, match=r"does not run on the data. broken: out of order"):
        teaching._fastest({"broken": broken}, [drawn(1)])


def test_a_runner_is_timed_on_its_second_call() -> None:
    calls = []
    assert teaching._time(lambda inputs: calls.append(inputs) or [drawn(1)], [drawn(2)]) >= 0
    assert len(calls) == 2


def test_says_once_that_the_original_cannot_run() -> None:
    with pytest.raises(
        ModelError, match=r"finetune: the original cannot run as a teacher. onnxruntime: .*torch: "
    ):
        Teacher(graph("y = mine.Odd(x)"), Tuning(), 0, CPU)
    with pytest.raises(ModelError, match=r"cannot run as a teacher. onnxruntime: .*distill=0"):
        Teacher(graph("y = mine.Odd(x)"), Tuning(teacher="onnxruntime"), 0, CPU)


@pytest.mark.parametrize("kind", ["onnxruntime", "torch", "auto"])
def test_says_that_the_original_does_not_run_on_the_data(tiny_mlp: ir.Model, kind: Any) -> None:
    teacher = Teacher(tiny_mlp, Tuning(teacher=kind), 0, CPU)
    with pytest.raises(ModelError, match="riginal does not run on the data"):
        teacher((drawn(2, 7),), torch.arange(2))


def test_says_that_an_output_is_no_tensor() -> None:
    model = graph("y = SequenceConstruct(x)", "seq(float[N, 3]) y")
    teacher = Teacher(model, Tuning(teacher="onnxruntime"), 0, CPU)
    with pytest.raises(ModelError, match="An output is a sequence or a map, which has no gradient"):
        teacher((drawn(2, 3),), torch.arange(2))


def test_patterns_match_values_in_the_order_of_the_graph(tiny_mlp: ir.Model) -> None:
    assert matching(tiny_mlp, ("y", "[hr]")) == ("h", "r", "y")
    assert matching(tiny_mlp, ()) == ()


def test_a_name_with_brackets_matches_itself(mlp_proto: onnx.ModelProto) -> None:
    mlp_proto.graph.node[0].output[0] = mlp_proto.graph.node[1].input[0] = "h[0]"
    assert matching(ir.from_proto(mlp_proto), ("h[0]",)) == ("h[0]",)


def test_exposed_values_follow_the_outputs(tiny_cnn: ir.Model) -> None:
    shown = with_outputs(tiny_cnn, ("c", "p"))
    assert [v.name for v in shown.graph.outputs] == ["y", "c", "p"]
    assert [a.shape for a in answered(shown, drawn(2, 2, 6, 6))] == [(2, 3), (2, 4, 6, 6), (2, 4, 1, 1)]


def test_suggests_the_nearest_value(tiny_mlp: ir.Model) -> None:
    with pytest.raises(OptionError, match=r"No value of the graph matches 'z'. Known: h, r, y"):
        matching(tiny_mlp, ("h", "z"))
    body = "".join(f"layer{i}_out = Relu({'x' if i == 0 else f'layer{i - 1}_out'}) " for i in range(30))
    long = graph(f"{body} y = Relu(layer29_out)")
    with pytest.raises(OptionError, match=r"'layr7_out'. Did you mean 'layer7_out'"):
        matching(long, ("layr7_out",))
    with pytest.raises(OptionError, match=r"'zz'. It has 31 values, from 'layer0_out' on"):
        matching(long, ("zz",))
