"""Export from torch: what is in the file, how it is checked, and what is said when it fails."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import compressor
from compressor import CompressorError, ModelError, OptionError, Session
from compressor.cli import main
from compressor.exporting import export
from compressor.exporting.failure import explain
from compressor.exporting.inputs import other_sizes, read_dynamic, read_input
from compressor.exporting.parity import Run, differences

MODELS = """
import torch
from sizes import WIDTH

def linear():
    print("a factory may print")
    return torch.nn.Linear(WIDTH, 2)

def needs(argument):
    return torch.nn.Linear(argument, 2)

def text():
    return "weights"

def broken():
    raise RuntimeError("no weights\\nfound")

ready = torch.nn.Linear(4, 2)
"""


class Branch(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:
            return x + 1
        return x - 1


class Svd(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.svd(x)[1]


class FixedRows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.randn(2, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.rows


class Noise(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.randn_like(x)


class Tagger(nn.Module):
    """Takes up to 8 tokens; gives one value per token, and their sum where a mask is given."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(9, 4)
        self.places = nn.Parameter(torch.randn(8, 4))
        self.tied = nn.Linear(4, 9, bias=False)
        self.tied.weight = self.words.weight

    def forward(
        self, ids: torch.Tensor, unused: None = None, mask: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        y = self.tied(self.words(ids) + self.places[: ids.shape[1]])
        return {"y": y} if mask is None else {"y": y, "sum": (y * mask[..., None]).sum(1)}


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(288, 4)
    )


@pytest.fixture
def models(tmp_path: Path) -> str:
    """A file of factories that imports a module beside it."""
    (tmp_path / "sizes.py").write_text("WIDTH = 4\n")
    (tmp_path / "models.py").write_text(MODELS)
    return str(tmp_path / "models.py")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "model.onnx"


@pytest.fixture(scope="module")
def program() -> torch.export.ExportedProgram:
    rows = ({0: torch.export.Dim.DYNAMIC},)
    return torch.export.export(nn.Linear(4, 2).eval(), (torch.randn(3, 4),), dynamic_shapes=rows)


def test_a_trainable_file_keeps_names_and_batchnorm_and_equals_torch_at_two_sizes(out: Path) -> None:
    torch.manual_seed(0)
    model = cnn()
    model[1].eval()
    made = export(model, out, "image=1x3x8x8", dynamic="batch")
    file = onnx.load(out)
    onnx.checker.check_model(file)
    weights = {w.name for w in file.graph.initializer}
    assert weights >= {name for name, _ in model.named_parameters()} | {"1.running_mean", "1.running_var"}
    assert [n.op_type for n in file.graph.node if n.op_type in ("Conv", "BatchNormalization", "Dropout")] == [
        "Conv",
        "BatchNormalization",
    ]
    assert (made.parameters, made.missing, made.notes) == (6, (), ())
    assert made.inputs == {"image": "float[batch,3,8,8]"}
    assert [d.sizes for d in made.parity] == [{"batch": 2}, {"batch": 1}]
    assert all(d.relative < 1e-5 for d in made.parity)
    assert not any(n.metadata_props or n.doc_string for n in file.graph.node)
    assert "compressor.version" in {p.key for p in file.metadata_props}
    x = np.random.default_rng(0).standard_normal((5, 3, 8, 8), np.float32)
    was_training = {name: m.training for name, m in model.named_modules()}
    assert was_training == {"": True, "0": True, "1": False, "2": True, "3": True, "4": True, "5": True}
    expected = model.eval()(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(Session(out).run({"image": x})[0], expected, atol=1e-5)


def test_a_folded_file_has_no_batchnorm_and_equals_torch_too(out: Path) -> None:
    made = export(cnn(), out, "image=2x3x8x8", trainable=False)
    assert "BatchNormalization" not in {n.op_type for n in onnx.load(out).graph.node}
    assert made.missing == ("1.weight", "1.bias")
    assert made.parity[0].relative < 1e-5


def test_a_sequence_axis_is_dynamic_and_inputs_are_bound_by_name(out: Path) -> None:
    dynamic = ["batch", "ids:1=length", "mask:-1=length"]
    made = export(Tagger(), out, ["mask=2x8", "ids=2x8:int64"], dynamic=dynamic)
    assert made.inputs == {"ids": "int64[batch,length]", "mask": "float[batch,length]"}
    assert list(made.outputs.values()) == ["float[batch,length,9]", "float[batch,9]"]
    # 10 tokens are too many for the model, 16 too, so it is checked at half of them.
    assert [d.sizes for d in made.parity[::2]] == [{"batch": 2, "length": 8}, {"batch": 1, "length": 4}]
    ids = np.array([[1, 2, 8], [4, 5, 6], [7, 8, 0]])
    assert Session(out).run({"ids": ids, "mask": np.ones((3, 3), np.float32)})[0].shape == (3, 3, 9)


def test_a_tied_weight_is_one_initializer(out: Path) -> None:
    made = export(Tagger(), out, torch.tensor([[1, 2, 3]]))
    assert (made.parameters, made.missing, list(made.inputs)) == (2, (), ["ids"])
    shapes = [tuple(w.dims) for w in onnx.load(out).graph.initializer]
    assert shapes.count((9, 4)) == 1


def test_an_output_size_that_torch_declares_wrongly_is_made_dynamic(out: Path) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(3, 4, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.lstm(x)[0]

    made = export(Recurrent(), out, "x=2x5x3", dynamic=("batch", "x:1=time"))
    assert list(made.outputs.values()) == ["float[batch,time,4]"]
    assert len(made.parity) == 2
    assert [n.op_type for n in onnx.load(out).graph.node].count("LSTM") == 1


def test_a_pt2_file_brings_its_inputs_and_its_dynamic_axes(
    program: torch.export.ExportedProgram, tmp_path: Path, out: Path
) -> None:
    torch.export.save(program, tmp_path / "model.pt2")
    made = export(tmp_path / "model.pt2", out, dynamic="rows", opset=18)
    assert (made.inputs, made.opset) == ({"input": "float[rows,4]"}, 18)
    assert [d.sizes for d in made.parity] == [{"rows": 3}, {"rows": 4}]
    assert (made.parameters, made.missing) == (2, ())
    (tmp_path / "cut.pt2").write_bytes((tmp_path / "model.pt2").read_bytes()[:900])
    with pytest.raises(ModelError, match=r"cut.pt2' is truncated, or not a file of torch.export.save"):
        export(tmp_path / "cut.pt2", out, force=True)


def test_the_axes_and_inputs_of_a_program_are_its_own(
    program: torch.export.ExportedProgram, out: Path
) -> None:
    with pytest.raises(ModelError, match="Axis 1 of input 'input' is fixed in the program and cannot become"):
        export(program, out, dynamic="input:1=columns")
    with pytest.raises(OptionError, match=r"takes 1 inputs \(input\), got 2"):
        export(program, out, ["a=3x4", "b=3x4"])
    assert list(out.parent.iterdir()) == []


def test_a_program_in_training_mode_is_refused(out: Path) -> None:
    trained = torch.export.export(nn.Dropout(0.5).train(), (torch.ones(2, 2),))
    with pytest.raises(ModelError, match=r"training mode: 'dropout' would .* Call model.eval\(\)"):
        export(trained, out)


@pytest.mark.parametrize(
    ("model", "inputs", "dynamic", "says"),
    [
        (
            Branch(),
            "x=2x4",
            (),
            r"branches on the values of a tensor \(test_exporting.py, line \d+: if x.sum",
        ),
        (
            Svd(),
            "x=4x4",
            (),
            r"operator aten::_linalg_svd has no ONNX form \(test_exporting.py, line \d+: ret",
        ),
        (
            FixedRows(),
            "rows=2x4",
            "batch",
            r"axis 0 of input 'rows' cannot be dynamic: the code fixes it to 2",
        ),
    ],
    ids=["control flow", "operator", "fixed axis"],
)
def test_a_failure_is_one_line_and_the_rest_is_in_a_log(
    model: nn.Module, inputs: str, dynamic: str, says: str, out: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ModelError, match=says) as caught:
        export(model, out, inputs, dynamic=dynamic)
    log = out.with_name("model.onnx.export.log")
    assert list(out.parent.iterdir()) == [log]
    assert "Traceback (most recent call last)" in log.read_text()
    assert str(log) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_what_differs_from_torch_is_not_written_unless_the_tolerance_allows_it(out: Path) -> None:
    with pytest.raises(ModelError, match=r"differs from torch by .*; 0.001 is allowed \(--tolerance\)"):
        export(Noise(), out, "x=2x4")
    assert list(out.parent.iterdir()) == []
    made = export(Noise(), out, "x=2x4", tolerance=100.0)
    assert made.parity[0].relative > 1e-3


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("linear.py:made", "there is no file 'linear.py'"),
        ("model.pt2", "There is no file 'model.pt2'"),
        ("no_such_package.x:made", "No module named 'no_such_package'"),
        ("model.bin", "'model.bin' is no model. Give module_or_file.py:factory, or a .pt2 file"),
        ("MODELS:linaer", "no factory 'linaer' in .*. Did you mean 'linear'"),
        ("MODELS:broken", r"raised RuntimeError: no weights found \(models.py, line 16: raise RuntimeError"),
        ("MODELS:needs", "called without arguments.* raised TypeError: needs.. missing 1 required"),
        ("MODELS:text", "gives is of type str. Give a torch.nn.Module, or a factory that returns one"),
        (3, "The source is of type int"),
    ],
)
def test_a_source_that_is_no_module_is_refused(source: str, says: str, models: str, out: Path) -> None:
    place = source.replace("MODELS", models) if isinstance(source, str) else source
    with pytest.raises(ModelError, match=says):
        export(place, out, "x=2x4")
    assert list(out.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("inputs", "dynamic", "says"),
    [
        ("x2x4", (), "Input 'x2x4' cannot be read. Write NAME=1x3x224x224:float32"),
        ("x=2x4:flot32", (), "no element type 'flot32'. Did you mean 'float32'"),
        ("x=2x0", (), "a size is 0"),
        (("x=2x4", "x=2x4"), (), "'x' is given twice"),
        (("a=2x4", "b=2x4"), (), r"\(a, b\) do not fit forward\(input\): too many positional arguments"),
        ((), (), "missing a required argument: 'input'"),
        ("x=2x5", (), r"raises on the inputs x float32\[2, 5\]: RuntimeError: mat1 and mat2"),
        ("x=2x4", "batch size", "Dynamic axis 'batch size' cannot be read. Write batch, or NAME:AXIS=SYMBOL"),
        ("x=2x4", "y:0=n", "no input 'y'. Known: x"),
        ("x=2x4", "x:2=n", "input 'x' has 2 axes"),
        ("x=2x4", ("batch", "x:0=n"), "axis 0 of 'x' is named 'batch' already"),
        ("x=2x4", ("x:0=n", "x:1=n"), "Dynamic axis 'n' is 2 long in one input and 4 in 'x'"),
    ],
)
def test_inputs_and_axes_that_do_not_fit_are_refused(inputs: str, dynamic: str, says: str, out: Path) -> None:
    with pytest.raises(CompressorError, match=says):
        export(nn.Linear(4, 2), out, inputs, dynamic=dynamic)
    assert list(out.parent.iterdir()) == []


def test_options_and_outputs_that_cannot_be_are_refused(out: Path) -> None:
    with pytest.raises(OptionError, match=r"opset must be from 18 to .*, got 17"):
        export(nn.Linear(4, 2), out, "x=2x4", opset=17)
    with pytest.raises(OptionError, match="tolerance must be 0 or more, got nan"):
        export(nn.Linear(4, 2), out, "x=2x4", tolerance=float("nan"))
    with pytest.raises(OptionError, match=r"Output folder .* does not exist"):
        export(nn.Linear(4, 2), out.parent / "none" / "model.onnx", "x=2x4")
    out.write_bytes(b"mine")
    with pytest.raises(OptionError, match=r"exists. Give another -o, or --force"):
        export(nn.Linear(4, 2), out, "x=2x4")
    assert out.read_bytes() == b"mine"


def test_without_torch_it_says_what_to_install(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(OptionError, match=r"needs torch. Install it: pip install onnx-compressor\[train\]"):
        export("models.py:linear", out, "x=2x4")


def test_the_command_line_exports_prints_the_parity_and_exits_1_when_refused(models: str, out: Path) -> None:
    out.with_name("model.onnx.export.log").write_text("of an attempt before")
    words = ["export", f"{models}:linear", "-o", str(out), "--input", "x=1x4:float32", "--dynamic", "batch"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    assert "parity with torch, linear batch=2:" in done.output
    assert "2 of 2 parameters under their own names" in done.output
    assert "a factory may print" not in done.output
    assert list(out.parent.iterdir()) == [out]
    refused = CliRunner().invoke(main, words)
    assert (refused.exit_code, refused.output.count("\n")) == (1, 1)
    words[1] = f"{models}:ready"
    again = CliRunner().invoke(main, [*words, "--force", "--json"])
    assert json.loads(again.stdout)["inputs"] == {"x": "float[batch,4]"}
    assert compressor.load(out).graph.outputs[0].shape == ir.Shape(["batch", 2])


def test_integers_are_0_or_1_and_floats_are_spread() -> None:
    assert set(read_input("mask=50:int64")[1]) == {0, 1}
    assert read_input("flag=20:bool")[1].dtype == np.bool_
    assert read_input("t=:float64")[1].shape == ()
    assert read_input("x=9:float16")[1].std() > 0.1


def test_a_scalar_has_no_batch_axis_and_sizes_of_two_symbols_are_told_apart() -> None:
    inputs = {"x": np.zeros((2, 2)), "t": np.zeros(())}
    assert read_dynamic(["batch", "x:1=n"], inputs) == {"x": {0: "batch", 1: "n"}}
    assert next(other_sizes({"batch": 2, "n": 2})) == {"batch": 3, "n": 4}


def test_a_difference_is_relative_to_the_largest_value_and_infinite_where_one_is_nan() -> None:
    run = Run({}, {}, [np.array([1.0, -10.0]), np.array([np.nan]), np.array([np.nan, 0.0])])
    got = [np.array([1.0, -9.0]), np.array([1.0]), np.array([np.nan, 0.0])]
    made = differences(["a", "b", "c"], run, got)
    assert [(d.absolute, d.relative) for d in made] == [(1.0, 0.1), (np.inf, np.inf), (0.0, 0.0)]
    with pytest.raises(ModelError, match=r"'a' has shape \[2\] in torch and \[1, 2\] on onnxruntime"):
        differences(["a", "b", "c"], run, [got[0][None], *got[1:]])
    with pytest.raises(ModelError, match="torch gives 3 outputs and the ONNX model 1"):
        differences(["a"], run, got[:1])


def test_what_could_not_be_done_is_noted(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(model: ir.Model) -> ir.Model:
        raise RuntimeError("an operator without a name")

    monkeypatch.setattr("compressor.exporting.tidied", refuse)
    monkeypatch.setattr("compressor.exporting.capture.other_sizes", lambda given: ())
    made = export(nn.Linear(4, 2), out, "x=2x4", dynamic="batch")
    assert made.notes == (
        "The graph is as torch wrote it, because tidying fails: an operator without a name",
        "Checked at batch=2 only: torch itself raises at the other sizes tried.",
    )


def test_another_opset_than_the_wanted_one_is_refused(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.onnx.export
    monkeypatch.setattr(torch.onnx, "export", lambda *a, **k: real(*a, **{**k, "opset_version": 18}))
    with pytest.raises(ModelError, match="torch's exporter gives opset 18 for this model, not 19"):
        export(nn.Linear(4, 2), out, "x=2x4", opset=19)


def test_an_exporter_that_gives_nothing_has_failed(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.onnx, "export", lambda *a, **k: None)
    with pytest.raises(ModelError, match=r"The export failed: RuntimeError: torch.onnx.export returned no"):
        export(nn.Linear(4, 2), out, "x=2x4")


def test_a_translation_that_fails_names_the_operator_and_the_line_that_made_it() -> None:
    trace = 'File "folder/model.py", line 3, in forward\n    y = f(x)\n'

    def translate(node: SimpleNamespace) -> None:
        raise ValueError("no luck.")

    with pytest.raises(ValueError) as caught:
        translate(SimpleNamespace(stack_trace=trace, target="aten.foo.default"))
    assert explain(caught.value, {}) == (
        "the operator aten::foo.default cannot be translated (model.py, line 3: y = f(x)): no luck. "
        "Try another --opset."
    )
