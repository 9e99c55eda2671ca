"""The shipped sample models: as recorded, judged on unseen data, runnable at any batch size."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from compressor.errors import ModelError

FOLDER = Path(__file__).resolve().parents[1] / "sample_models"
MANIFEST = json.loads((FOLDER / "manifest.json").read_text())
MODELS = sorted(MANIFEST["models"])
SETS = {"digits32": "image", "digits8": "rows", "breast_cancer": "features"}
PARTS = ("train", "calibration", "test")


def _load(name: str) -> ModuleType:
    """A script of the folder, which is no package."""
    spec = importlib.util.spec_from_file_location(f"sample_models_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build = _load("build")
datasets = _load("datasets")


def _part(name: str, part: str) -> dict[str, NDArray[Any]]:
    with np.load(FOLDER / f"{name}_{part}.npz") as arrays:
        return dict(arrays)


def _run(model: str, x: NDArray[np.float32]) -> NDArray[np.float32]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(FOLDER / model, options, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {MANIFEST["models"][model]["input"]: x})
    result: NDArray[np.float32] = logits
    return result


def test_every_file_has_the_recorded_sha256() -> None:
    assert build.check(FOLDER) == []


def test_ships_nothing_that_the_manifest_does_not_record() -> None:
    shipped = {path.name for pattern in ("*.onnx", "*.npz", "*.data") for path in FOLDER.glob(pattern)}
    assert shipped == set(MANIFEST["models"]) | set(MANIFEST["data"])


def test_all_files_together_stay_under_four_megabytes() -> None:
    entries = {**MANIFEST["models"], **MANIFEST["data"]}
    assert {name: (FOLDER / name).stat().st_size for name in entries} == {
        name: entry["bytes"] for name, entry in entries.items()
    }
    assert sum(entry["bytes"] for entry in entries.values()) < 4_000_000


def test_check_names_a_changed_and_a_missing_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ["manifest.json", *MANIFEST["models"], *MANIFEST["data"]]:
        shutil.copy(FOLDER / name, tmp_path)
    monkeypatch.setattr(sys, "argv", ["build.py", "--check", "--out", str(tmp_path)])
    assert build.main() == 0
    assert "as recorded" in capsys.readouterr().out

    (tmp_path / "digits8_test.npz").unlink()
    (tmp_path / "digits_lstm.onnx").write_bytes(b"other")
    assert build.main() == 1
    said = capsys.readouterr().out
    assert re.search(r"digits8_test\.npz: missing\. Rebuild it with", said)
    assert re.search(r"digits_lstm\.onnx: SHA-256 is \w{64}, recorded is \w{64}\.", said)
    assert said.count("\n") == 2


@pytest.mark.parametrize("name", SETS)
def test_no_sample_is_in_two_places(name: str) -> None:
    rows = [row.tobytes() for part in PARTS for row in _part(name, part)[SETS[name]]]
    assert len(set(rows)) == len(rows)


@pytest.mark.parametrize("name", SETS)
def test_every_part_holds_all_classes_in_proportion(name: str) -> None:
    shares = [np.bincount(labels) / len(labels) for labels in (_part(name, part)["labels"] for part in PARTS)]
    smallest = min(MANIFEST["data"][f"{name}_{part}.npz"]["n"] for part in PARTS)
    for share in shares:  # a stratified cut is at most one sample per class away from the whole set
        np.testing.assert_allclose(share, np.mean(shares, axis=0), atol=2 / smallest)


@pytest.mark.parametrize("name", SETS)
def test_shipped_data_are_those_of_the_recorded_seed(name: str) -> None:
    made = getattr(datasets, name)(MANIFEST["seed"])
    for part in PARTS:
        shipped = _part(name, part)
        assert set(shipped) == {SETS[name], "labels"}
        assert [shipped[key].dtype.name for key in (SETS[name], "labels")] == ["float32", "int64"]
        np.testing.assert_array_equal(shipped["labels"], made[part]["labels"])
        # the mean and deviation of breast_cancer are float64 sums, so float32 may differ by one rounding
        np.testing.assert_allclose(shipped[SETS[name]], made[part][SETS[name]], rtol=2**-23, atol=1e-12)


def test_digits8_and_digits32_are_the_same_digits_in_the_same_order() -> None:
    for part in PARTS:
        small, large = _part("digits8", part), _part("digits32", part)
        np.testing.assert_array_equal(small["labels"], large["labels"])
        shrunk = large["image"].reshape(-1, 8, 4, 8, 4).mean(axis=(2, 4))
        assert np.corrcoef(shrunk.ravel(), small["rows"].ravel())[0, 1] > 0.95


def test_enlarging_keeps_a_constant_image_and_the_range() -> None:
    flat = np.full((1, 8, 8), 0.375)
    np.testing.assert_allclose(datasets._enlarge(flat, 4), np.full((1, 32, 32), 0.375))
    np.testing.assert_allclose(datasets._enlarge(np.array([[[0.0, 1.0]] * 2]), 2)[0, 0], [0, 0.25, 0.75, 1])


def test_breast_cancer_is_standardised_by_its_train_part() -> None:
    features = _part("breast_cancer", "train")["features"].astype(np.float64)
    # every value carries a float32 rounding error of at most 2**-24 of the largest one
    tolerance = 2.0**-24 * float(np.abs(features).max())
    np.testing.assert_allclose(features.mean(axis=0), 0, atol=tolerance)
    np.testing.assert_allclose(features.std(axis=0), 1, atol=2 * tolerance)


def test_written_bytes_depend_on_the_arrays_alone(tmp_path: Path) -> None:
    arrays = {"x": np.arange(6, dtype=np.float32).reshape(2, 3), "labels": np.array([0, 1])}
    for name in ("one.npz", "two.npz"):
        datasets.write_npz(tmp_path / name, arrays)
    assert build.sha256(tmp_path / "one.npz") == build.sha256(tmp_path / "two.npz")
    with np.load(tmp_path / "one.npz") as back:
        np.testing.assert_array_equal(back["x"], arrays["x"])


@pytest.mark.parametrize("model", MODELS)
def test_float_accuracy_is_as_recorded(model: str) -> None:
    entry = MANIFEST["models"][model]
    test = _part(entry["data"], "test")
    top1 = np.mean(_run(model, test[entry["input"]]).argmax(axis=1) == test["labels"])
    assert len(test["labels"]) == entry["n"]
    assert abs(top1 - entry["top1"]) <= 1 / entry["n"] + 1e-9  # another processor may break one tie otherwise


def test_readme_says_what_the_manifest_says() -> None:
    assert build.readme_table(MANIFEST) in (FOLDER / "README.md").read_text()


def test_the_table_replaces_only_what_stands_between_its_marks() -> None:
    page = f"before\n{build.TABLE[0]}old\n{build.TABLE[1]}after\n"
    assert build.with_table(page, "new\n") == f"before\n{build.TABLE[0]}new\n{build.TABLE[1]}after\n"


@pytest.mark.parametrize("model", MODELS)
def test_the_batch_axis_is_dynamic_and_named_batch(model: str) -> None:
    entry = MANIFEST["models"][model]
    graph = onnx.load(FOLDER / model).graph
    assert [i.name for i in graph.input] == [entry["input"]]
    assert [o.name for o in graph.output] == ["logits"]
    for value in (*graph.input, *graph.output):
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"
    x = _part(entry["data"], "test")[entry["input"]][:8]
    together, alone = _run(model, x), np.concatenate([_run(model, x[i : i + 1]) for i in range(8)])
    build.require_same(model, together, alone)


@pytest.mark.parametrize("model", MODELS)
def test_models_are_valid_opset_18_and_carry_no_notes(model: str) -> None:
    proto = onnx.load(FOLDER / model)
    onnx.checker.check_model(proto, full_check=True)
    assert [(o.domain, o.version) for o in proto.opset_import] == [("", 18)]
    graph = proto.graph
    noted = [proto, graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer]
    assert not any(part.metadata_props or part.doc_string for part in noted)
    assert not proto.functions


def test_the_cnn_has_residual_and_depthwise_blocks() -> None:
    graph = onnx.load(FOLDER / "digits_cnn.onnx").graph
    groups = [a.i for node in graph.node for a in node.attribute if a.name == "group"]
    assert sum(group > 1 for group in groups) >= 2
    assert [node.op_type for node in graph.node].count("Add") >= 2


def test_a_wrong_export_is_refused_with_the_difference() -> None:
    wanted = np.zeros((1, 2), np.float32)
    build.require_same("m.onnx", wanted, wanted + np.float32(build.SAME / 2))
    with pytest.raises(ModelError, match=r"m\.onnx: torch and onnxruntime differ by 0\.5, more than 0\.0001"):
        build.require_same("m.onnx", wanted, wanted + np.float32(0.5))
    with pytest.raises(ModelError, match="differ by nan"):
        build.require_same("m.onnx", wanted, wanted * np.float32(np.nan))


def test_jitter_moves_images_a_little_and_keeps_shape_and_range(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.syspath_prepend(str(FOLDER))
    training = _load("training")
    torch.manual_seed(0)
    for name, array in (("digits32", "image"), ("digits8", "rows")):
        x = torch.from_numpy(_part(name, "calibration")[array])
        moved = training.jitter(x)
        assert moved.shape == x.shape
        assert 0 <= float(moved.min()) <= float(moved.max()) <= 1 + 1e-6
        assert 0 < float((moved - x).abs().mean()) < float(x.mean())
