from __future__ import annotations

import json
from math import inf
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner

import compressor
from compressor.cli import main
from compressor.errors import ModelError, OptionError
from compressor.layer_sensitivity import Sensitivity
from compressor.layer_variants import rounded, sparse
from compressor.runtime import Session, Setup
from compressor.sensitivity_plot import check_plot, plot
from compressor.statistics import Interval
from tests.conftest import build, drawn

TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 16] x) => (float[N, 4] y) {
  h = MatMul(x, dull)
  r = Relu(h)
  y = MatMul(r, keen)
}
"""


@pytest.fixture
def model() -> ir.Model:
    """Two layers; the first has 20 hidden channels of which only four are large, so much of it is not missed."""
    dull = drawn(16, 20) * np.where(np.arange(20) < 4, 1.0, 1e-3).astype(np.float32)
    return ir.from_proto(build(TEXT, dull=dull, keen=drawn(20, 4, seed=1)))


@pytest.fixture
def data(model: ir.Model) -> dict[str, np.ndarray]:
    x = drawn(60, 16, seed=5)
    return {"x": x, "labels": Session(model, Setup()).run({"x": x})[0].argmax(1)}


@pytest.mark.parametrize("share", [0.0, 0.25, 0.9])
def test_sparse_zeroes_that_share_the_smallest_first(share: float) -> None:
    view = drawn(5, 2, 6)
    made = sparse(view, share)
    assert (made == 0).sum() == round(share * 60)
    assert np.abs(view[made == 0]).max(initial=0) <= np.abs(made[made != 0]).min()
    assert (made[made != 0] == view[made != 0]).all()


@pytest.mark.parametrize(("bits", "levels"), [(1, 2), (2, 3), (3, 7), (4, 15), (8, 255)])
def test_rounded_has_so_many_levels_per_row_and_fewer_bits_err_more(bits: int, levels: int) -> None:
    view = drawn(3, 1, 2000)
    made = rounded(view, bits)
    assert all(len(np.unique(row)) <= levels for row in made)
    assert len(np.unique(made[0])) > levels // 2
    errors = [np.square(view - rounded(view, b)).mean() for b in (8, 4, 3, 2, 1)]
    assert errors == sorted(errors)


def test_the_layer_that_matters_drops_more(model: ir.Model, data: dict[str, np.ndarray]) -> None:
    found = compressor.sensitivity(model, data)
    assert found.metric == "top1"
    assert found.score is not None
    assert found.score.value == 1
    assert found.layers["dull"]["sparsity"][0.7].value < 0.05 < found.layers["keen"]["sparsity"][0.9].value
    assert found.layers["dull"]["channels"][0.5].value < 0.05
    assert found.layers["keen"]["bits"][1].value > found.layers["keen"]["bits"][8].value
    assert set(found.layers["keen"]) == {"sparsity", "bits"}


def test_a_drop_is_that_of_the_model_with_only_this_layer_changed(
    model: ir.Model, data: dict[str, np.ndarray]
) -> None:
    found = compressor.sensitivity(model, data, kinds=["sparsity"], include=["keen"])
    keen = sparse(drawn(20, 4, seed=1).T[:, None, :], 0.9)[:, 0, :].T
    changed = ir.from_proto(build(TEXT, dull=model.graph.initializers["dull"].const_value.numpy(), keen=keen))
    right = Session(changed, Setup()).run({"x": data["x"]})[0].argmax(1) == data["labels"]
    assert found.layers["keen"]["sparsity"][0.9].value == pytest.approx(1 - right.mean())
    assert list(found.layers) == ["keen"]


def test_without_labels_the_model_itself_is_the_truth(model: ir.Model, data: dict[str, np.ndarray]) -> None:
    found = compressor.sensitivity(model, {"x": data["x"]}, kinds=["bits"])
    assert found.metric == "agreement"
    assert found.score is None
    assert found.layers["keen"]["bits"][8].value < 0.02


def test_prune_magnitude_takes_the_file(model: ir.Model, data: dict[str, np.ndarray], tmp_path: Path) -> None:
    found = compressor.sensitivity(model, data, kinds=["sparsity"])
    found.save(tmp_path / "s.json")
    recipe = f"prune-magnitude{{sparsity=0.5 sensitivity={str(tmp_path / 's.json')!r} min_elements=1}}"
    made = compressor.Pipeline.parse(recipe).run(model, compressor.Context()).model
    zeros = {k: (v.const_value.numpy() == 0).mean() for k, v in made.graph.initializers.items()}
    assert zeros["dull"] > zeros["keen"]


def test_the_json_holds_drops_and_intervals_and_no_infinity() -> None:
    curve = {0.5: Interval(0.1, -inf, 0.3), 0.9: Interval(inf, 0.2, inf)}
    found = Sensitivity("mse", 3, Interval(1.0, 0.5, inf), {"w": {"sparsity": curve}}, {"v": "why"})
    read = json.loads(found.to_json())
    assert read["layers"] == {"w": {"sparsity": {"0.5": 0.1, "0.9": None}}}
    assert read["intervals"] == {"w": {"sparsity": {"0.5": [None, 0.3], "0.9": [0.2, None]}}}
    assert read["score"] == [1.0, 0.5, None]
    assert read["declined"] == {"v": "why"}


def test_refuses_what_cannot_be_measured(tiny_mlp: ir.Model, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="no kind 'zeros'"):
        compressor.sensitivity(tiny_mlp, {"x": drawn(4, 4)}, kinds=["zeros"])  # type: ignore[list-item]
    with pytest.raises(ModelError, match=r"No layer of this model can be tried. w1: excluded"):
        compressor.sensitivity(tiny_mlp, {"x": drawn(4, 4)}, exclude=["*"])
    with pytest.raises(OptionError, match=r"The folder of .* does not exist"):
        Sensitivity("top1", 1, None, {}, {}).save(tmp_path / "no" / "s.json")
    with pytest.raises(OptionError, match=r"A plot is a .png or .svg file, got 's.jpg'"):
        check_plot(Path("s.jpg"))
    with pytest.raises(OptionError, match="The folder of the plot"):
        check_plot(tmp_path / "no" / "s.png")


@pytest.mark.parametrize("name", ["s.png", "s.svg"])
def test_the_plot_is_a_picture_of_that_kind(name: str, tmp_path: Path) -> None:
    curve = {0.5: Interval(0.1, 0, 0.3), 0.9: Interval(inf, 0, inf)}
    found = Sensitivity(
        "mse", 3, None, {"first_weight": {"sparsity": curve}, "b": {"bits": {8: curve[0.5]}}}, {}
    )
    plot(found, tmp_path / name)
    made = (tmp_path / name).read_bytes()
    assert made.startswith(b"\x89PNG") or (b"<svg" in made and len(made) > 5000)
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_the_command_prints_a_table_per_kind_and_writes_both_files(
    model: ir.Model, data: dict[str, np.ndarray], tmp_path: Path
) -> None:
    ir.save(model, tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", **data)
    command = ["sensitivity", str(tmp_path / "m.onnx"), "--data", str(tmp_path / "d.npz"), "--kind", "bits"]
    made = CliRunner().invoke(
        main, [*command, "-o", str(tmp_path / "s.json"), "--plot", str(tmp_path / "s.svg")]
    )
    assert made.exit_code == 0, made.output
    assert "Drop of top1 (now 1.0000) on 60 samples" in made.output
    assert "1 bit" in made.output
    assert "zeros" not in made.output
    assert set(json.loads((tmp_path / "s.json").read_text())["layers"]) == {"dull", "keen"}
    assert (tmp_path / "s.svg").stat().st_size > 5000
    refused = CliRunner().invoke(main, [*command, "--plot", "s.bmp"])
    assert refused.exit_code == 1
    assert "A plot is a .png or .svg file" in refused.output
