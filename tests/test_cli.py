"""The command line: what it prints, what it writes, how it exits."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path

import jsonschema
import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from compressor import console, inspection, load_cost, measurement
from compressor.cli import main
from compressor.latency import Protocol
from compressor.low_bit.recognition import LowBit
from tests.conftest import build

SAMPLES = Path(__file__).resolve().parent.parent / "sample_models"
MLP = str(SAMPLES / "breast_cancer_mlp.onnx")
TEST = str(SAMPLES / "breast_cancer_test.npz")
CALIBRATION = str(SAMPLES / "breast_cancer_calibration.npz")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short timing: these tests read words and files, not speeds."""
    monkeypatch.setattr(measurement, "PROTOCOL", Protocol(visits=5, visit_ms=0.2, sessions=1, warmup=1))
    monkeypatch.setattr(load_cost, "ROUNDS", 1)


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(main, [str(w) for w in words])


def test_compresses_writes_and_exits_0(tmp_path: Path) -> None:
    out = tmp_path / "small.onnx"
    done = run(MLP, "-o", out, "--data", TEST, "-p", "quantize-dynamic{min_elements=16}")
    assert done.exit_code == 0, done.output
    assert "x smaller" in done.output.splitlines()[0]
    assert "top1" in done.output.splitlines()[0]
    assert out.stat().st_size < Path(MLP).stat().st_size
    metadata = {p.key: p.value for p in onnx.load(out).metadata_props}
    assert metadata["compressor.pipeline"].startswith("quantize-dynamic{")
    assert "compressor.version" in metadata


def test_names_the_output_after_the_input_when_none_is_given(tmp_path: Path) -> None:
    model = tmp_path / "net.onnx"
    model.write_bytes(Path(MLP).read_bytes())
    assert run(model, "-p", "quantize-weights", "--quiet").exit_code == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.compressed.onnx", "net.onnx"]


def test_quiet_prints_one_line(tmp_path: Path) -> None:
    done = run(MLP, "-o", tmp_path / "o.onnx", "-p", "quantize-weights", "--data", TEST, "--quiet")
    assert len(done.output.strip().splitlines()) == 1


def test_json_is_the_report_and_fits_the_published_schema(tmp_path: Path) -> None:
    done = run(MLP, "-o", tmp_path / "o.onnx", "-p", "quantize-weights", "--data", TEST, "--json")
    published = json.loads((SAMPLES.parent / "compressor" / "report.schema.json").read_text())
    report = json.loads(done.stdout)
    jsonschema.validate(report, published)
    assert report["output"] == str(tmp_path / "o.onnx")
    assert report["after"]["bytes"] == (tmp_path / "o.onnx").stat().st_size


def test_reports_are_written_by_suffix(tmp_path: Path) -> None:
    json_file, markdown = tmp_path / "r.json", tmp_path / "r.md"
    words = ("-p", "quantize-weights", "--data", TEST, "--report", json_file, "--report", markdown)
    assert run(MLP, "-o", tmp_path / "o.onnx", *words).exit_code == 0
    assert json.loads(json_file.read_text())["pipeline"].startswith("quantize-weights{")
    assert "| file |" in markdown.read_text()


def test_a_report_with_another_suffix_is_refused_before_any_work(tmp_path: Path) -> None:
    done = run(MLP, "-o", tmp_path / "o.onnx", "--report", tmp_path / "r.txt")
    assert (done.exit_code, list(tmp_path.iterdir())) == (1, [])
    assert "must end in one of .json, .md" in done.output


def test_a_broken_limit_exits_3_and_keeps_the_candidate_beside(tmp_path: Path) -> None:
    out = tmp_path / "o.onnx"
    done = run(MLP, "-o", out, "-p", "quantize-weights", "--data", TEST, "--min-ratio", "50")
    assert done.exit_code == 3
    assert "min-ratio 50 is broken" in done.output.splitlines()[0]
    assert [p.name for p in tmp_path.iterdir()] == ["o.rejected.onnx"]


def test_a_rejected_file_of_somebody_else_is_not_replaced(tmp_path: Path) -> None:
    theirs = tmp_path / "o.rejected.onnx"
    theirs.write_bytes(b"precious")
    done = run(MLP, "-o", tmp_path / "o.onnx", "-p", "quantize-weights", "--min-ratio", "50")
    assert (done.exit_code, "exists" in done.output, theirs.read_bytes()) == (1, True, b"precious")


@pytest.mark.parametrize("words", [("--max-drop", "0.01"), ("--metric", "top1")])
def test_a_limit_on_the_metric_needs_data(tmp_path: Path, words: tuple[str, ...]) -> None:
    for command in ((MLP, "-o", tmp_path / "o.onnx"), ("check", MLP, "--reference", MLP)):
        done = run(*command, *words)
        assert (done.exit_code, "needs evaluation samples. Give --data" in done.output) == (1, True)


def test_a_pipeline_that_changes_nothing_is_said(tmp_path: Path) -> None:
    done = run(MLP, "-o", tmp_path / "o.onnx", "-p", "fold-batchnorm")
    assert (done.exit_code, "changed nothing in this model" in done.output) == (0, True)


def test_strict_writes_nothing_when_a_limit_is_broken(tmp_path: Path) -> None:
    words = ("-p", "quantize-weights", "--min-ratio", "50", "--strict")
    assert run(MLP, "-o", tmp_path / "o.onnx", *words).exit_code == 3
    assert list(tmp_path.iterdir()) == []


def test_a_slower_default_result_is_not_kept_and_the_first_line_names_the_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from compressor import proof
    from compressor.latency import Latency, Ratio, Timing

    timing = Timing(1.0, 1.0, 1.0)
    slow = Latency("cpu", 1, 1, 5, (timing, timing), (Ratio(0.8, 0.79, 0.81, 0.01, "cpu"),))
    monkeypatch.setattr(proof, "latencies", lambda *_, **__: (slow,))
    out = tmp_path / "o.onnx"
    done = run(SAMPLES / "digits_lstm.onnx", "-o", out)
    assert done.exit_code == 3
    assert "--min-speedup 0" in done.output.splitlines()[0]
    assert "o.rejected.onnx" in done.output.splitlines()[0]
    assert not out.exists()
    kept = run(SAMPLES / "digits_lstm.onnx", "-o", out, "--min-speedup", "0")
    assert (kept.exit_code, out.exists()) == (0, True)


def test_a_recipe_file_is_the_same_language(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.txt"
    recipe.write_text("# simplify, then store weights in 8 bits\noptimize\nquantize-weights{bits=8}\n")
    assert run(MLP, "-o", tmp_path / "o.onnx", "-p", f"@{recipe}").exit_code == 0


def test_the_stored_recipe_repeats_the_result_to_the_byte(tmp_path: Path) -> None:
    one, two = tmp_path / "1.onnx", tmp_path / "2.onnx"
    words = ("--calibration", CALIBRATION, "--quiet")
    assert run(MLP, "-o", one, "-p", "quantize-int8", *words).exit_code == 0
    stored = {p.key: p.value for p in onnx.load(one).metadata_props}["compressor.pipeline"]
    assert "activations='uint8'" in stored or "activations='int8'" in stored
    assert run(MLP, "-o", two, "-p", stored, *words).exit_code == 0
    assert one.read_bytes() == two.read_bytes()


def test_says_that_accuracy_was_not_verified_without_data(tmp_path: Path) -> None:
    done = run(MLP, "-o", tmp_path / "o.onnx", "-p", "quantize-weights")
    assert "NOT verified on real data" in done.output


def test_check_passes_and_fails(tmp_path: Path) -> None:
    out = tmp_path / "o.onnx"
    run(MLP, "-o", out, "-p", "quantize-weights", "--quiet")
    gate = ("check", out, "--reference", MLP, "--data", TEST)
    assert run(*gate, "--max-drop", "0.05").exit_code == 0
    failed = run(*gate, "--max-drop", "0.05", "--min-ratio", "9")
    assert (failed.exit_code, "min-ratio 9 is broken" in failed.output) == (3, True)


def test_check_refuses_a_model_with_other_inputs() -> None:
    done = run("check", SAMPLES / "digits_cnn.onnx", "--reference", MLP)
    assert done.exit_code == 1
    assert "they cannot be compared" in done.output


def test_evaluate_scores_and_compares() -> None:
    done = run("evaluate", MLP, "--data", TEST, "--reference", MLP)
    assert done.exit_code == 0
    assert done.output.startswith("top1 0.9")
    assert "drop +0.0000" in done.output
    assert json.loads(run("evaluate", MLP, "--data", TEST, "--json").output)["samples"] == 171


def test_bench_times_models_side_by_side() -> None:
    done = run("bench", MLP, MLP)
    assert (done.exit_code, "reference" in done.output) == (0, True)
    assert len(json.loads(run("bench", MLP, MLP, "--json").output)["latency"][0]["timings"]) == 2


def test_inspect_tells_what_is_in_a_model() -> None:
    done = run("inspect", SAMPLES / "digits_cnn.onnx")
    for word in ("input image: float", "Conv", "weights", "quantize-int8:"):
        assert word in done.output
    assert json.loads(run("inspect", MLP, "--json").output)["summary"]["quantized"] == "none"


def test_inspect_tells_the_weights_of_few_bits_and_what_they_take(tmp_path: Path) -> None:
    path, long = tmp_path / "ternary.onnx", "a_rather_long_name_of_codes_as_exporters_like_to_write_them"
    text = f"""<ir_version: 8, opset_import: ["" : 13]> g (float[N, 2] x) => (float[N, 4] y) {{
      w = DequantizeLinear <axis = 1> ({long}, s) m = MatMul(x, w) y = Mul(m, f)
    }}"""
    codes, ones = np.array([[1, 0, -1, 0], [0, 0, 1, -1]], np.int8), np.ones(4, np.float32)
    onnx.save(build(text, **{long: codes, "s": ones, "f": ones}), path)
    cells = [
        [cell.strip() for cell in line.split("│")[1:-1]]
        for line in run("inspect", path).output.splitlines()
        if line.startswith("│")
    ]
    bits = 8 * (8 + 16) / 8
    assert [long, "ternary, 2 bits, 50 % zeros", "8", f"{bits:.2f}"] in cells
    assert ["those above", "1 ternary", "8", f"{bits:.2f}"] in cells
    assert ["the others", "", "4", "32.00"] in cells
    assert ["all", "", "12", f"{8 * (8 + 16 + 16) / 12:.2f}"] in cells
    (found,) = json.loads(run("inspect", path, "--json").output)["low_bit"]
    assert (found["kind"], found["bits"], found["zeros"], found["stored_bits"]) == ("ternary", 2, 0.5, bits)


def test_the_table_of_few_bits_fits_a_hundred_columns() -> None:
    long = LowBit("an/exporter/" * 12, (1, 1), "ternary", 2, 0.5, 10**9, 2.25)
    found = replace(inspection.inspect(MLP), low_bit=[long, replace(long, stored_bits=None)])
    out = Console(width=100, file=StringIO(), soft_wrap=True)
    out.print(console._low_bit_table(found))
    printed = out.file.getvalue()  # type: ignore[attr-defined]
    assert "ternary, 2 bits, 50 % zeros │ 1,000,000,000 │         2.25" in printed
    assert max(map(len, printed.splitlines())) <= 100


def test_passes_lists_all_and_shows_one() -> None:
    listed = run("passes").output
    assert all(
        name in listed for name in ("quantize-int8", "quantize-dynamic", "quantize-weights", "optimize")
    )
    page = run("passes", "quantize-int8").output
    assert "calibration = 'mse'" in page
    assert run("passes", "quantise-int8").exit_code == 1


def test_doctor_says_which_providers_work() -> None:
    done = run("doctor")
    assert (done.exit_code, "provider cpu: works" in done.output) == (0, True)
    assert json.loads(run("doctor", "--json").output)["providers"]["cpu"] is None


@pytest.mark.parametrize(
    "words", [["--max-drop", "x"], ["--threads", "-1"], ["--batch", "0"], ["--nonsense"]]
)
def test_usage_errors_exit_2(words: list[str]) -> None:
    assert run(MLP, *words).exit_code == 2


def test_help_and_version() -> None:
    assert "compress MODEL" in run("--help").output
    assert "--calibration" in run("model", "--help").output
    assert run("--version").exit_code == 0


def test_help_loads_nothing_heavy() -> None:
    code = "import sys\nfrom compressor.cli import main\ntry:\n main(['--help'])\nexcept SystemExit: pass\n"
    code += "print([m for m in ('torch','onnxruntime','onnx','numpy','pydantic','rich') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"


def test_npz_given_by_hand_with_a_broken_metric_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", features=np.zeros((3, 30), np.float32), labels=np.array([0, 1, 0]))
    done = run(MLP, "-o", tmp_path / "o.onnx", "--data", tmp_path / "d.npz", "--metric", "top2")
    assert (done.exit_code, "top" in done.output) == (1, True)


def in_a_shell(line: str) -> subprocess.CompletedProcess[str]:
    words = f"{sys.executable} -c 'from compressor.cli import main; main()'"
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line.replace('compress', words, 1)}"],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("compress inspect {m} | head -1", 0),
        ("compress inspect {m} >&-", 0),
        ("compress inspect {m} > /dev/full", 1),
        ("compress .", 1),
    ],
)
def test_odd_outputs_and_inputs_give_no_traceback(line: str, code: int) -> None:
    done = in_a_shell(line.format(m=MLP))
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == code


def test_evaluate_refuses_a_reference_with_other_inputs() -> None:
    done = run("evaluate", MLP, "--data", TEST, "--reference", SAMPLES / "digits_lstm.onnx")
    assert (done.exit_code, "they cannot be compared" in done.output) == (1, True)


def test_an_empty_pipeline_is_refused(tmp_path: Path) -> None:
    done = run(MLP, "-o", tmp_path / "o.onnx", "-p", "")
    assert (done.exit_code, "The pipeline is empty" in done.output) == (1, True)


def test_a_metric_of_the_user_that_raises_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def bad(outputs, labels):\n    raise ValueError('no')\n")
    done = run("evaluate", MLP, "--data", TEST, "--metric", f"{tmp_path}/mine.py:bad")
    assert (done.exit_code, "raised ValueError: no." in done.output) == (1, True)
    assert len(done.output.strip().splitlines()) == 1


def test_the_gate_says_when_it_judges_agreement_for_lack_of_labels(tmp_path: Path) -> None:
    with np.load(TEST) as arrays:
        np.savez(tmp_path / "d.npz", features=arrays["features"])
    done = run("check", MLP, "--reference", MLP, "--data", tmp_path / "d.npz", "--max-drop", "0.5")
    assert done.exit_code == 0
    assert "max-drop (of agreement: no labels)" in done.output
    assert "top1 agreement with the original" in done.output


def test_ctrl_c_while_a_binary_module_loads_is_an_interruption(monkeypatch: pytest.MonkeyPatch) -> None:
    def pressed(*_: object, **__: object) -> None:
        raise ImportError("initialization failed") from KeyboardInterrupt()

    monkeypatch.setattr("compressor.inspection.inspect", pressed)
    done = run("inspect", MLP)
    assert (done.exit_code, done.output.split(":")[0]) == (1, "Interrupted")


def test_a_module_that_cannot_be_loaded_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ImportError("no such library")

    monkeypatch.setattr("compressor.inspection.inspect", broken)
    assert isinstance(run("inspect", MLP).exception, ImportError)
