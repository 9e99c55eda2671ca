from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from compressor import Context, Pipeline, open_samples
from compressor.data import Samples
from compressor.errors import DataError, OptionError
from compressor.pipeline import Change
from compressor.pruning.masks import Pattern
from compressor.pruning.prunable import weights
from compressor.runtime import Session, Setup, to_bytes
from passes.optimize import Optimize
from passes.prune_magnitude import PruneMagnitude
from tests.conftest import build, drawn

HEAD = '<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>\nm '


def scaled(*shape: int, seed: int = 0) -> np.ndarray:
    return np.asarray(drawn(*shape, seed=seed) / np.sqrt(np.prod(shape[1:])), np.float32)


def made(signature: str, body: str, **arrays: np.ndarray) -> ir.Model:
    return ir.from_proto(build(f"{HEAD}{signature} {{ {body} }}", **arrays))


@pytest.fixture
def cnn() -> ir.Model:
    """x[N, 4, 8, 8] -> Conv 16 -> Relu -> Conv 16 -> Relu -> GlobalAveragePool -> Gemm 40."""
    body = "c=Conv<pads=[1,1,1,1]>(x,w1) r=Relu(c) d=Conv<pads=[1,1,1,1]>(r,w2) s=Relu(d) "
    body += "p=GlobalAveragePool(s) f=Flatten(p) y=Gemm<transB=1>(f,w3)"
    arrays = {"w1": scaled(16, 4, 3, 3), "w2": scaled(16, 16, 3, 3, seed=1), "w3": scaled(40, 16, seed=2)}
    return made("(float[N,4,8,8] x) => (float[N,40] y)", body, **arrays)


def data(model: ir.Model, count: int = 64) -> Samples:
    """Inputs whose features are correlated, and of very different size."""
    shape = tuple(int(d) for d in model.graph.inputs[0].shape.dims[1:])  # type: ignore[union-attr,arg-type]
    few = drawn(count, 8, seed=5) @ drawn(8, int(np.prod(shape)), seed=6)
    size = np.geomspace(0.2, 5, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    x = (few.reshape(count, *shape) + 0.2 * drawn(count, *shape, seed=7)) * size
    return open_samples({"x": x.astype(np.float32)}, model)


def pruned(model: ir.Model, samples: Samples | None = None, **options: Any) -> tuple[ir.Model, Change]:
    """The pruned model, zeros stored as numbers, and what the pass says."""
    step = PruneMagnitude(**{"min_elements": 1, "storage": "dense", **options})
    result = Pipeline(step).run(model, Context(calibration=samples, threads=1))
    onnx.checker.check_model(ir.to_proto(result.model), full_check=True)
    return result.model, result.changes[-1]


def arrays(model: ir.Model) -> dict[str, np.ndarray]:
    return {name: weight.array for name, weight in weights(model)[0].items()}


def sparsity(found: Mapping[str, np.ndarray]) -> float:
    return 1 - sum(map(np.count_nonzero, found.values())) / sum(array.size for array in found.values())


def outputs(model: ir.Model, samples: Samples) -> np.ndarray:
    return np.concatenate([Session(model, Setup(threads=1)).run(b.feeds)[0] for b in samples.batches()])


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.83, 0.97])
def test_reaches_the_sparsity_and_changes_nothing_else(cnn: ir.Model, scope: str, share: float) -> None:
    model, change = pruned(cnn, sparsity=share, scope=scope)
    before, after = arrays(cnn), arrays(model)
    total = sum(array.size for array in before.values())
    assert sparsity(after) == pytest.approx(share, abs=(1.5 if scope == "layer" else 0.5) / total)
    assert change.figures["sparsity"] == pytest.approx(sparsity(after))
    assert all(np.array_equal(after[k][after[k] != 0], before[k][after[k] != 0]) for k in before)
    assert set(change.touched) == {"w1", "w2", "w3"}


def test_the_smallest_of_each_layer_go(cnn: ir.Model) -> None:
    model, _ = pruned(cnn, sparsity=0.6)
    for name, array in arrays(model).items():
        before = np.abs(arrays(cnn)[name])
        assert before[array == 0].max() <= before[array != 0].min()


def test_over_all_layers_lamp_does_not_empty_the_one_with_small_weights(cnn: ir.Model) -> None:
    cnn.graph.initializers["w2"].const_value = ir.tensor(arrays(cnn)["w2"] * np.float32(1e-3), name="w2")
    model, _ = pruned(cnn, sparsity=0.7)
    found = {name: sparsity({name: array}) for name, array in arrays(model).items()}
    assert 0.5 < found["w2"] < 0.9
    assert all(share > 0.2 for share in found.values())


def test_pruning_twice_is_pruning_once(cnn: ir.Model) -> None:
    once, _ = pruned(cnn, sparsity=0.6)
    twice, change = pruned(once, sparsity=0.6)
    assert to_bytes(twice) == to_bytes(once)
    assert change.touched == ()
    assert change.declined["model"] == "it has that many zeros already"
    assert "zero already" in change.declined["w2"]


def test_zeros_that_were_there_stay_and_count(cnn: ir.Model) -> None:
    half, _ = pruned(cnn, sparsity=0.5)
    more, _ = pruned(half, sparsity=0.8)
    assert sparsity(arrays(more)) == pytest.approx(0.8, abs=1e-3)
    assert all((arrays(more)[k][array == 0] == 0).all() for k, array in arrays(half).items())


def test_taking_nothing_away_says_so(cnn: ir.Model) -> None:
    model, change = pruned(cnn, sparsity=0)
    assert sparsity(arrays(model)) == 0
    assert change.declined == {"model": "sparsity=0 takes nothing away"}


@pytest.mark.parametrize("extra", [{}, {"reconstruct": "obs"}, {"importance": "wanda"}])
@pytest.mark.parametrize("pattern", ["2:4", "1:4"])
def test_of_each_m_inputs_of_an_output_n_stay(cnn: ir.Model, pattern: str, extra: dict[str, str]) -> None:
    model, change = pruned(cnn, data(cnn), pattern=pattern, **extra)
    keep, of = (int(part) for part in pattern.split(":"))
    for name in ("w1", "w2"):  # a group lies along the input channels, at one position of the kernel
        grouped = np.moveaxis(arrays(model)[name], 1, -1).reshape(-1, of)
        assert (np.count_nonzero(grouped, axis=1) == keep).all()
    assert (np.count_nonzero(arrays(model)["w3"].reshape(-1, of), axis=1) == keep).all()
    assert change.figures["sparsity"] == 1 - keep / of


def test_n_of_m_that_does_not_fit_is_declined_by_name(cnn: ir.Model) -> None:
    _, change = pruned(cnn, pattern="3:5")
    assert change.declined["w1"] == "its 4 inputs are not a multiple of 5"


def test_blocks_go_whole_along_outputs_and_inputs(cnn: ir.Model) -> None:
    model, change = pruned(cnn, data(cnn), pattern="block", block=(2, 4), sparsity=0.5, reconstruct="obs")
    blocks = arrays(model)["w2"].reshape(8, 2, 4, 4, 3, 3) != 0
    assert set(np.unique(blocks.mean(axis=(1, 3)))) == {0, 1}
    assert change.figures["sparsity"] == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("pattern", ["element", "2:4"])
def test_solving_the_rest_keeps_the_output_better_than_cutting(cnn: ir.Model, pattern: str) -> None:
    samples = data(cnn)
    expected = outputs(cnn, samples)
    cut, solved = (
        outputs(pruned(cnn, samples, pattern=pattern, scope="layer", reconstruct=how)[0], samples)
        for how in ("none", "obs")
    )
    assert np.linalg.norm(solved - expected) < 0.4 * np.linalg.norm(cut - expected)


def test_solving_says_what_it_brought(cnn: ir.Model) -> None:
    model, change = pruned(cnn, data(cnn), sparsity=0.7, reconstruct="obs")
    figures = change.figures
    assert 0 < float(figures["mean output error of a layer"]) < 0.6 * float(figures["that without solving"])
    assert sparsity(arrays(model)) == pytest.approx(0.7, abs=1e-3)


def test_wanda_keeps_small_weights_that_meet_large_inputs() -> None:
    weight = np.ones((8, 6), np.float32)
    weight[0] = 0.5
    model = made("(float[N,8] x) => (float[N,6] y)", "y=MatMul(x,w)", w=weight)
    x = np.ones((20, 8), np.float32)
    x[:, 0], x[:, 7] = 10, 0.1
    kept = arrays(pruned(model, open_samples({"x": x}, model), importance="wanda", sparsity=1 / 8)[0])["w"]
    assert (kept[0] == 0.5).all()
    assert (kept[7] == 0).all()
    assert (arrays(pruned(model, sparsity=1 / 8)[0])["w"][0] == 0).all()


def test_wanda_takes_the_same_share_of_each_output(cnn: ir.Model) -> None:
    model, _ = pruned(cnn, data(cnn), importance="wanda", scope="layer")
    assert (np.count_nonzero(arrays(model)["w2"].reshape(16, -1), axis=1) == 72).all()


def test_taylor_spares_what_the_loss_depends_on() -> None:
    model = made(
        "(float[N,4] x) => (float[N,2] y)", "h=MatMul(x,w) y=MatMul(h,v)", w=scaled(4, 8), v=scaled(8, 2)
    )
    model.graph.initializers["v"].const_value = ir.tensor(
        np.array([[1, -1]] + [[1e-4, 0]] * 7, np.float32), name="v"
    )
    samples = open_samples({"x": drawn(32, 4)}, model)
    kept = arrays(pruned(model, samples, importance="taylor", sparsity=0.5, include="w")[0])["w"]
    assert (kept[:, 0] != 0).all()


def test_weights_that_stay_zero_in_int8(cnn: ir.Model) -> None:
    samples = data(cnn)
    result = Pipeline.parse("prune-magnitude{sparsity=0.6 min_elements=1 storage=dense},quantize-int8").run(
        cnn, Context(calibration=samples, threads=1)
    )
    stored = {v.name: v.const_value.numpy() for v in result.model.graph.initializers.values()}  # type: ignore[union-attr]
    codes = [array for name, array in stored.items() if str(name).endswith("w2_quantized")]
    assert len(codes) == 1
    assert (codes[0] == 0).mean() >= sparsity({"w2": arrays(pruned(cnn, sparsity=0.6)[0])["w2"]}) > 0.5


def test_the_file_becomes_smaller(tmp_path: Path) -> None:
    model = made("(float[N,200] x) => (float[N,200] y)", "y=MatMul(x,w)", w=scaled(200, 200))
    result = Pipeline.parse("prune-magnitude{sparsity=0.9}").run(model, Context())
    assert len(to_bytes(result.model)) < 0.3 * len(to_bytes(model))
    dense, _ = pruned(model, sparsity=0.9)
    x = {"x": drawn(3, 200)}
    setup = Setup(threads=1)
    np.testing.assert_array_equal(Session(result.model, setup).run(x)[0], Session(dense, setup).run(x)[0])


def test_a_file_of_curves_shares_the_sparsity_out(cnn: ir.Model, tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    layers = {"w1": {"sparsity": {"0.5": 0.3}}, "w2": {"sparsity": {"0.5": 0.0, "0.9": 0.01}}}
    path.write_text(json.dumps({"layers": layers}))
    model, change = pruned(cnn, sparsity=0.6, sensitivity=str(path))
    assert np.count_nonzero(arrays(model)["w1"]) == arrays(cnn)["w1"].size
    assert sparsity({"w2": arrays(model)["w2"]}) == pytest.approx(0.6 * (576 + 2304) / 2304, abs=1e-3)
    assert change.declined == {
        "w1": f"too sensitive, by {path}",
        "w3": f"{path} has no curve for it",
    }


def test_a_total_beyond_the_curves_says_what_was_reached_and_why(cnn: ir.Model, tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    path.write_text(json.dumps({"layers": {"w2": {"sparsity": {"0.5": 0.1}}}}))
    _, change = pruned(cnn, sparsity=0.9, sensitivity=str(path), include="w2")
    assert change.figures["sparsity"] == 0.5
    assert change.figures["sparsity wanted"] == "0.9; no layer goes beyond what was measured for it"


def test_a_file_of_curves_of_another_model_is_refused(cnn: ir.Model, tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    path.write_text(json.dumps({"layers": {"other": {"sparsity": {"0.5": 0.1}}}}))
    with pytest.raises(
        OptionError, match="has no curve for any weight to be pruned here: it is of another model"
    ):
        pruned(cnn, sensitivity=str(path))


@pytest.mark.parametrize(
    "extra", [{"scope": "global"}, {"scope": "layer"}, {"pattern": "block", "block": (99, 99)}]
)
def test_less_than_one_weight_is_nothing_and_says_so(cnn: ir.Model, extra: dict[str, Any]) -> None:
    model, change = pruned(cnn, sparsity=1e-6, **extra)
    unit = "block" if "block" in extra else "weight"
    assert (
        change.declined["model"] == f"its share of what is to go is less than one {unit}, or all that it has"
    )
    assert sparsity(arrays(model)) == 0


def test_negative_zeros_of_a_mask_become_zeros_that_can_be_stored() -> None:
    weight = scaled(64, 64)
    weight[np.abs(weight) < np.quantile(np.abs(weight), 0.9)] *= 0
    assert np.signbit(weight[weight == 0]).any()
    model = made("(float[N,64] x) => (float[N,64] y)", "y=MatMul(x,w)", w=weight)
    result = Pipeline(PruneMagnitude(sparsity=0.5)).run(model, Context()).model
    assert len(to_bytes(result)) < weight.nbytes / 2
    result, change = pruned(model, sparsity=0.5)
    assert change.touched == ()
    assert np.array_equal(arrays(result)["w"], weight)
    assert not np.signbit(arrays(result)["w"][weight == 0]).any()


def test_even_nearly_everything_leaves_each_layer_a_weight(cnn: ir.Model) -> None:
    for scope in ("global", "layer"):
        model, _ = pruned(cnn, sparsity=0.9999, scope=scope)
        assert all(array.any() for array in arrays(model).values())


def test_a_tied_weight_is_pruned_once_and_stays_tied() -> None:
    body = "a=MatMul(x,w) t=Transpose<perm=[1,0]>(w) r=Relu(a) y=MatMul(r,t)"
    model = made("(float[N,8] x) => (float[N,8] y)", body, w=scaled(8, 24))
    result, change = pruned(model, data(model), sparsity=0.5, reconstruct="obs")
    assert change.touched == ("w",)
    assert change.figures["set to zero"] == 96
    assert [node.op_type for node in result.graph] == ["MatMul", "Transpose", "Relu", "MatMul"]


def test_a_weight_that_others_read_in_another_way_is_not_solved_for_one_of_them() -> None:
    body = "a=MatMul(x,w) t=Transpose<perm=[1,0]>(w) r=Relu(a) y=MatMul(r,t)"
    model = made("(float[N,8] x) => (float[N,8] y)", body, w=scaled(8, 24))
    result, change = pruned(model, data(model), sparsity=0.5, reconstruct="obs")
    new, old = arrays(result)["w"], arrays(model)["w"]
    assert change.figures["by magnitude alone"] == "w"
    assert np.array_equal(new, np.where(new == 0, 0, old))


def test_of_two_weights_of_one_name_the_second_is_declined() -> None:
    text = (
        HEAD
        + """(bool c, float[N,8] x) => (float[N,8] y) { y = If (c) <
        then_branch = t () => (float[N,8] p) { [one] p = MatMul(x, w) },
        else_branch = e () => (float[N,8] q) { [two] q = MatMul(x, w) } > }"""
    )
    proto = build(text)
    for seed, body in enumerate(proto.graph.node[0].attribute):
        body.g.initializer.append(onnx.numpy_helper.from_array(scaled(8, 8, seed=seed), "w"))
    _, change = pruned(ir.from_proto(proto), sparsity=0.5)
    assert change.touched == ("w",)
    assert list(change.declined.values()) == ["its weight has the name of another one, 'w': rename it"]


def test_what_is_no_matrix_is_declined_by_name() -> None:
    model = made("(float[N,8] x) => (float[N] y)", "y=MatMul(x,w)", w=scaled(8))
    assert declined(model) == {"model": "no weight to prune", "w": "MatMul does not read it as a matrix"}


OTHER = {
    "LSTM": (
        "(float[5,N,8] x) => (float[5,1,N,16] y)",
        "y, h, c = LSTM<hidden_size=16>(x,w,r)",
        {"w": scaled(1, 64, 8), "r": scaled(1, 64, 16)},
    ),
    "ConvTranspose": (
        "(float[N,4,6,6] x) => (float[N,6,8,8] y)",
        "y=ConvTranspose<group=2>(x,w)",
        {"w": scaled(4, 3, 3, 3)},
    ),
    "MatMul with the weight first": (
        "(float[N,8,5] x) => (float[N,6,5] y)",
        "y=MatMul(w,x)",
        {"w": scaled(6, 8)},
    ),
    "depthwise": (
        "(float[N,8,6,6] x) => (float[N,8,4,4] y)",
        "y=Conv<group=8>(x,w)",
        {"w": scaled(8, 1, 3, 3)},
    ),
    "a batch of matrices": (
        "(float[2,5,8] x) => (float[2,5,6] y)",
        "y=MatMul(x,w)",
        {"w": scaled(2, 8, 6)},
    ),
    "fused attention": (
        "(float[N,5,8] x) => (float[N,5,8] y)",
        "y=com.microsoft.Attention<num_heads=2>(x,w,b)",
        {"w": scaled(8, 24), "b": scaled(24, 1).ravel()},
    ),
}


@pytest.mark.parametrize("case", OTHER)
@pytest.mark.parametrize("extra", [{}, {"importance": "wanda"}, {"reconstruct": "obs"}])
def test_prunes_the_weights_of_every_operator(case: str, extra: dict[str, str]) -> None:
    signature, body, held = OTHER[case]
    model = made(signature, body, **held)
    shape = [int(d) if isinstance(d, int) else 6 for d in model.graph.inputs[0].shape.dims]  # type: ignore[union-attr]
    samples = open_samples({"x": drawn(*shape)}, model)
    result, change = pruned(model, samples, sparsity=0.5, **extra)
    found = {name: array for name, array in arrays(result).items() if name in ("w", "r")}
    assert set(found) == set(held) - {"b"}
    assert sparsity(found) == pytest.approx(0.5, abs=0.01)
    alone = {"LSTM": "r", "a batch of matrices": "w"}.get(case)
    if extra:
        assert change.figures.get("by magnitude alone") == alone


def test_half_precision_stays_half() -> None:
    body = "y=MatMul(x,w)"
    model = made("(float16[N,8] x) => (float16[N,6] y)", body, w=scaled(8, 6).astype(np.float16))
    result, _ = pruned(model, sparsity=0.5)
    assert arrays(result)["w"].dtype == np.float16
    assert sparsity(arrays(result)) == 0.5


def declined(model: ir.Model, **options: Any) -> Mapping[str, str]:
    found, change = pruned(model, **options)
    untouched, _ = pruned(model, sparsity=0)
    assert change.touched == ()
    assert to_bytes(found) == to_bytes(untouched)
    return change.declined


def test_everything_excluded_says_so(cnn: ir.Model) -> None:
    found = declined(cnn, exclude="w*")
    assert found["model"] == "no weight to prune"
    assert found["w1"] == "excluded"


def test_only_what_is_included_is_pruned(cnn: ir.Model) -> None:
    _, change = pruned(cnn, include="w2")
    assert change.touched == ("w2",)
    assert change.declined["w1"] == "no include pattern fits it"


def test_small_weights_are_left_by_name(cnn: ir.Model) -> None:
    _, change = pruned(cnn, min_elements=700)
    assert change.touched == ("w2",)
    assert change.declined["w3"] == "it has 640 elements, fewer than min_elements"


def test_weights_that_are_not_finite_are_left(cnn: ir.Model) -> None:
    broken = arrays(cnn)["w2"].copy()
    broken[0, 0, 0, 0] = np.nan
    cnn.graph.initializers["w2"].const_value = ir.tensor(broken, name="w2")
    _, change = pruned(cnn)
    assert change.declined["w2"] == "it contains NaN or infinity"
    assert set(change.touched) == {"w1", "w3"}


def test_an_embedding_table_is_pruned_only_by_name() -> None:
    model = made("(int64[N] x) => (float[N,8] y)", "y=Gather(t,x)", t=scaled(40, 8))
    assert declined(model)["t"] == "an embedding table: name it in include to prune it"
    assert pruned(model, include="t")[1].touched == ("t",)


def test_weights_that_a_graph_computes_are_declined_by_name() -> None:
    signature = "(float[N,3,4,4] x, float k) => (float[N,5,2,2] y)"
    model = made(signature, "w=Mul(v,k) y=Conv(x,w)", v=scaled(5, 3, 3, 3))
    assert declined(model)["w"] == "computed in the graph from its inputs"


def test_quantized_weights_are_declined_by_name(cnn: ir.Model) -> None:
    context = Context(calibration=data(cnn), threads=1)
    codes = Pipeline.parse("quantize-int8").run(cnn, context).model
    _, change = pruned(codes)
    assert change.touched == ()
    assert change.declined["model"] == "no weight to prune"
    assert list(change.declined.values()).count("its weight is quantized: prune before it is") == 3


def test_weights_stored_as_codes_are_declined_by_name(cnn: ir.Model) -> None:
    codes = Pipeline.parse("quantize-weights{min_elements=1 bits=4 form=fold}").run(cnn, Context()).model
    found, why = weights(codes)
    assert found == {}
    assert all(reason.startswith("computed in the graph, by") for reason in why.values())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sparsity": 1.0}, "option 'sparsity' must be .*less than 1"),
        ({"sparsity": -0.1}, "option 'sparsity' must be .*greater than or equal to 0"),
        ({"pattern": "4:2"}, "pattern must be 'element', 'block', or n:m"),
        (
            {"pattern": "2:4", "sparsity": 0.7},
            "pattern '2:4' is a sparsity of 0.5; leave sparsity out, got 0.7",
        ),
        (
            {"pattern": "2:4", "sensitivity": "s.json"},
            "sensitivity shares sparsity out, and pattern '2:4' fixes it",
        ),
        ({"block": (0, 4), "pattern": "block"}, "option 'block' must be"),
        ({"block": (4, 4, 4)}, r"option 'block' must be a tuple of at most 2 items, got \(4, 4, 4\)"),
        ({"importance": "movement"}, "importance='movement' needs a training; give schedule='iterative'"),
        ({"rewind": True}, "rewind=True needs a training"),
        (
            {"schedule": "cubic", "importance": "wanda"},
            "importance='wanda' prunes at once, got schedule='cubic'",
        ),
        ({"schedule": "linear", "reconstruct": "obs"}, "reconstruct='obs' prunes at once"),
        ({"steps": 0}, "option 'steps' must be"),
    ],
)
def test_refuses_options_that_are_out_of_range_or_do_not_go_together(
    options: dict[str, Any], said: str
) -> None:
    with pytest.raises(OptionError, match=f"prune-magnitude: {said}"):
        PruneMagnitude(**options)


@pytest.mark.parametrize(
    ("option", "value"), [("importance", "wanda"), ("importance", "taylor"), ("reconstruct", "obs")]
)
def test_says_which_samples_it_lacks(cnn: ir.Model, option: str, value: str) -> None:
    with pytest.raises(DataError, match=f"prune-magnitude: {option}='{value}' needs calibration samples"):
        pruned(cnn, **{option: value})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"importance": "wanda"}, "importance='wanda' needs calibration samples"),
        ({"importance": "taylor"}, "importance='taylor' needs calibration samples"),
        ({"reconstruct": "obs"}, "reconstruct='obs' needs calibration samples"),
        ({"sensitivity": "nowhere.json"}, "there is no file 'nowhere.json'"),
    ],
)
def test_what_it_lacks_is_said_before_an_earlier_pass_runs(options: dict[str, Any], said: str) -> None:
    with pytest.raises((DataError, OptionError), match=said):
        Pipeline(Optimize(), PruneMagnitude(**options)).check(Context())


def test_gradients_are_taken_on_training_samples_where_there_are_any(cnn: ir.Model) -> None:
    Pipeline(PruneMagnitude(importance="taylor")).check(Context(train=data(cnn)))


def test_says_what_taylor_needs_installed(cnn: ir.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compressor.pruning.weight_importance.find_spec", lambda name: None)
    with pytest.raises(OptionError, match="importance='taylor' needs torch, which is not installed"):
        pruned(cnn, data(cnn), importance="taylor")


def test_with_a_schedule_it_leaves_the_weights_to_the_training(cnn: ir.Model) -> None:
    step = PruneMagnitude(
        schedule="cubic",
        sparsity=0.8,
        steps=7,
        importance="movement",
        min_elements=600,
        pattern="block",
        block=(1, 4),
    )
    change = step.apply(cnn, Context())
    (later,) = change.gradual
    assert change.touched == ()
    assert set(later.targets) == set(later.layouts) == {"w2", "w3"}
    total = 2304 * later.targets["w2"] + 640 * later.targets["w3"]
    assert total == pytest.approx(0.8 * 2944, abs=4)
    assert (later.schedule, later.steps, later.importance) == ("cubic", 7, "movement")
    assert later.pattern == Pattern.parse("block", (1, 4))
    assert sparsity(arrays(cnn)) == 0


def test_a_schedule_without_a_training_is_refused(cnn: ir.Model) -> None:
    with pytest.raises(
        OptionError, match="prune-magnitude prunes during the training: put finetune behind it"
    ):
        Pipeline.parse("prune-magnitude{schedule=cubic}").run(cnn, Context())
