"""The forms of a DATA argument: arrays, tables, image folders and functions, good and damaged."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx_ir as ir
import pytest

from compressor.data import Samples, open_samples
from compressor.data.arithmetic import bilinear, clip_rows
from compressor.errors import DataError, OptionError

F32, I64 = ir.DataType.FLOAT, ir.DataType.INT64


def model_of(*inputs: tuple[str, ir.DataType, Sequence[int | str | None]]) -> ir.Model:
    values = [ir.Value(name=n, type=ir.TensorType(t), shape=ir.Shape(dims)) for n, t, dims in inputs]
    return ir.Model(ir.Graph(values, [], nodes=[], opset_imports={"": 20}), ir_version=10)


VECTOR = model_of(("x", F32, ["n", 2]))
TWO = model_of(("a", F32, ["n"]), ("b", F32, ["n", 1]))
IMAGE = model_of(("x", F32, ["n", 3, 4, 6]))
DATA = np.arange(8, dtype=np.float32).reshape(4, 2)


def rows(samples: Samples, name: str = "x") -> np.ndarray:
    return np.concatenate([batch.feeds[name][: batch.count] for batch in samples.batches(3)])


def labels_of(samples: Samples) -> list[int]:
    assert samples.labels is not None
    return samples.labels.tolist()


# arrays


def test_with_one_input_a_single_array_of_any_name_will_do(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", whatever=DATA, labels=np.arange(4))
    np.save(tmp_path / "s.npy", DATA)
    np.testing.assert_array_equal(rows(open_samples(tmp_path / "s.npz", VECTOR)), DATA)
    np.testing.assert_array_equal(rows(open_samples(tmp_path / "s.npy", VECTOR)), DATA)


def test_labels_may_have_any_name_and_be_the_input_itself(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", x=DATA, y=np.arange(4))
    assert labels_of(open_samples(f"{tmp_path}/s.npz{{labels='y'}}", VECTOR)) == [0, 1, 2, 3]
    assert open_samples(f"{tmp_path}/s.npz{{labels=x}}", VECTOR).labels is not None
    assert open_samples(f"{tmp_path}/s.npz", VECTOR).labels is None
    with pytest.raises(DataError, match=r"labels='z': there is no array of that name. Known: x, y"):
        open_samples(f"{tmp_path}/s.npz{{labels=z}}", VECTOR)


def test_an_input_called_labels_is_an_input(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", x=DATA, labels=np.arange(4))
    model = model_of(("x", F32, ["n", 2]), ("labels", I64, ["n"]))
    samples = open_samples(tmp_path / "s.npz", model)
    assert samples.labels is None
    assert rows(samples, "labels").tolist() == [0, 1, 2, 3]


def test_only_the_members_that_are_needed_are_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", x=DATA, notes=np.array([{}], object), n=np.array(3))
    np.testing.assert_array_equal(rows(open_samples(tmp_path / "s.npz", VECTOR)), DATA)


def test_a_folder_of_npy_files_is_memory_mapped_and_names_may_be_made_safe(tmp_path: Path) -> None:
    np.save(tmp_path / "net_a_0.npy", DATA)
    np.save(tmp_path / "b.npy", DATA[:, :1])
    np.save(tmp_path / "labels.npy", np.arange(4))
    samples = open_samples(tmp_path, model_of(("net/a:0", F32, ["n", 2]), ("b", F32, ["n", 1])))
    np.testing.assert_array_equal(rows(samples, "net/a:0"), DATA)
    assert labels_of(samples) == [0, 1, 2, 3]
    assert isinstance(samples._reader.columns["b"].array, np.memmap)  # type: ignore[union-attr, attr-defined]


def test_parts_and_single_rows_leave_an_npy_file_memory_mapped(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", DATA)
    samples = open_samples(tmp_path, VECTOR)
    part = samples.subset(np.array([3, 1]))
    np.testing.assert_array_equal(part.at(np.array([0])).feeds["x"], DATA[[3]])
    for each in (samples, part):
        assert isinstance(each._reader.columns["x"].array, np.memmap)  # type: ignore[union-attr, attr-defined]
    assert samples.numbered
    assert samples.uniform


def test_pickled_objects_are_refused_and_never_loaded(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", x=np.array([{}, {}], object))
    np.save(tmp_path / "s.npy", np.array([{}, {}], object))
    for name in ("s.npz", "s.npy"):
        with pytest.raises(
            DataError, match=r"holds Python objects \(pickled, in a file\), which are never loaded"
        ):
            open_samples(tmp_path / name, VECTOR)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "s.npz").write_bytes(b"not a zip")
    with pytest.raises(DataError, match=r"data: '.*s.npz': the file is not a readable .npz"):
        open_samples(tmp_path / "s.npz", VECTOR)
    (tmp_path / "s.npy").write_bytes(b"not an array")
    with pytest.raises(DataError, match=r"'s.npy' is not a readable .npy"):
        open_samples(tmp_path / "s.npy", VECTOR)
    np.save(tmp_path / "t.npy", DATA)
    (tmp_path / "t.npy").write_bytes((tmp_path / "t.npy").read_bytes()[:-4])
    with pytest.raises(DataError, match=r"t.npy' cannot be read: .*The file is damaged"):
        len(open_samples(tmp_path / "t.npy", VECTOR))
    large = np.arange(40_000, dtype=np.float32).reshape(-1, 2)
    np.savez(tmp_path / "u.npz", x=large)
    body = bytearray((tmp_path / "u.npz").read_bytes())
    at = body.index(large[-1].tobytes())
    body[at : at + 4] = b"\x01\x02\x03\x04"
    (tmp_path / "u.npz").write_bytes(body)
    with pytest.raises(DataError, match=r"u.npz': array 'x' cannot be read: .*The file is damaged"):
        len(open_samples(tmp_path / "u.npz", VECTOR))


def test_missing_files_and_unknown_forms_list_the_forms(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"calibration: there is no file or folder '.*no.npz'. Give FILE.npz, "
    ):
        open_samples(tmp_path / "no.npz", VECTOR, "calibration")
    (tmp_path / "a.txt").write_text("1")
    with pytest.raises(DataError, match=r"files ending in '.txt' are not known. Give FILE.npz"):
        open_samples(tmp_path / "a.txt", VECTOR)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"the folder holds neither .npy files nor images"):
        open_samples(tmp_path / "empty", IMAGE)


def test_arrays_of_different_lengths_are_listed() -> None:
    with pytest.raises(DataError, match="differ in their number of samples: 'x' has 4, 'labels' has 3"):
        open_samples({"x": DATA, "labels": np.arange(3)}, VECTOR)
    with pytest.raises(DataError, match="'a' has 4, 'b' has 2"):
        open_samples({"a": DATA[:, 0], "b": DATA[:2, :1]}, TWO)


def test_arrays_that_cannot_be_samples_are_refused() -> None:
    with pytest.raises(DataError, match="there are no samples: the first axis has length 0"):
        open_samples(DATA[:0], VECTOR)
    with pytest.raises(DataError, match="array 'x' is a single number"):
        open_samples({"x": np.float32(1)}, VECTOR)  # type: ignore[dict-item]


def test_a_missing_input_lists_what_there_is() -> None:
    with pytest.raises(DataError, match=r"no array for the model's input 'b'. Did you mean 'b1'\?"):
        open_samples({"a": DATA[:, 0], "b1": DATA[:, :1]}, TWO)
    with pytest.raises(DataError, match=r"no array for the model's input 'x'. Known: p, q"):
        open_samples({"p": DATA, "q": DATA}, VECTOR)
    with pytest.raises(DataError, match=r"no array for the model's input 'x'. There are no arrays"):
        open_samples({"labels": np.arange(2)}, VECTOR)


# tables


def write_csv(folder: Path, *lines: str) -> Path:
    path = folder / "t.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_the_columns_of_a_table_are_the_features_of_a_vector_input(tmp_path: Path) -> None:
    path = write_csv(tmp_path, "p,labels,q", "1,0,2.5", "", "3,1,-4")
    samples = open_samples(path, VECTOR)
    assert rows(samples).tolist() == [[1, 2.5], [3, -4]]
    assert labels_of(samples) == [0, 1]


def test_several_inputs_take_the_columns_of_their_names(tmp_path: Path) -> None:
    path = write_csv(tmp_path, "b;y;a", "1;9;2", "3;8;4")
    samples = open_samples(f"{path}{{labels=y}}", TWO)
    assert rows(samples, "a").tolist() == [2, 4]
    assert rows(samples, "b").tolist() == [[1], [3]]
    assert labels_of(samples) == [9, 8]


def test_a_single_scalar_input_takes_its_column_and_leaves_the_labels_flat(tmp_path: Path) -> None:
    path = write_csv(tmp_path, "x,labels", "1,5", "2,6")
    for dims in (["n"], ["n", 1]):
        samples = open_samples(path, model_of(("x", F32, dims)))
        assert rows(samples).ravel().tolist() == [1, 2]
        assert samples.labels is not None
        assert samples.labels.shape == (2,)


def test_whole_numbers_in_a_table_fit_integer_inputs(tmp_path: Path) -> None:
    path = write_csv(tmp_path, "p,q", "1,2")
    assert rows(open_samples(path, model_of(("x", I64, ["n", 2])))).dtype == np.int64


def test_labels_that_are_text_are_refused_since_only_the_model_knows_their_order(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a,b,labels\n1,2,cat\n3,4,ant\n")
    with pytest.raises(DataError, match=r"the labels are text \('ant', 'cat'\). Give the numbers"):
        open_samples(path, VECTOR)


def test_an_empty_cell_is_not_finite(tmp_path: Path) -> None:
    path = write_csv(tmp_path, "p,q", "1,2", "3,")
    with pytest.raises(DataError, match="NaN or infinite values in 1 of 2 rows, counted from 0: 1"):
        len(open_samples(path, VECTOR))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("1,2", "3,4"), "the first line must hold one name per column, each once, got '1, 2'"),
        (("p,p", "3,4"), "the first line must hold one name per column"),
        (("p,q", "3,4", "5"), "row 1 .counted from 0. has 1 cells, and the first line names 2 columns"),
        (("p,q", "3,4", "5,n/a"), "column 'q' holds 'n/a' in row 1 .counted from 0., which is no number"),
        (
            ("p,q,r", "3,4,5"),
            r"'x' wants 2 features, and there are 3 columns: p, q, r\. Name the column of labels",
        ),
        (("labels", "3"), "there are no feature columns"),
        (("p,q",), "there are no samples"),
        (("",), "the file is empty"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(tmp_path: Path, lines: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_samples(write_csv(tmp_path, *lines), VECTOR)


def test_a_table_is_for_numbers_and_vectors_and_knows_its_columns(tmp_path: Path) -> None:
    path = write_csv(tmp_path, "p,q", "1,2")
    with pytest.raises(DataError, match="a table holds numbers or vectors, but input 'x' is float32"):
        open_samples(path, IMAGE)
    with pytest.raises(DataError, match=r"labels='r': there is no column of that name. Known: p, q"):
        open_samples(f"{path}{{labels=r}}", VECTOR)
    path.write_bytes(b"p,q\n\xff\xfe,1\n")
    with pytest.raises(DataError, match=r"cannot be read as .csv: "):
        open_samples(path, VECTOR)


def test_parquet_reads_like_csv(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.table({"p": [1, 3], "labels": [1, 0], "q": [2.5, -4.0]})
    parquet.write_table(table, tmp_path / "t.parquet")
    samples = open_samples(tmp_path / "t.parquet", VECTOR)
    assert rows(samples).tolist() == [[1, 2.5], [3, -4]]
    assert labels_of(samples) == [1, 0]
    (tmp_path / "t.parquet").write_bytes(b"nonsense")
    with pytest.raises(DataError, match=r"cannot be read as .parquet"):
        open_samples(tmp_path / "t.parquet", VECTOR)
    parquet.write_table(pyarrow.table({}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match="the table has no columns"):
        open_samples(tmp_path / "t.parquet", VECTOR)


def test_parquet_without_pyarrow_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "t.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"needs pyarrow: pip install 'onnx-compressor\[tables\]'"):
        open_samples(tmp_path / "t.parquet", VECTOR)


# images


def write_image(path: Path, height: int, width: int, value: int = 0) -> None:
    image = pytest.importorskip("PIL.Image")
    path.parent.mkdir(exist_ok=True)
    image.fromarray(np.full((height, width, 3), value, np.uint8)).save(path)


def test_an_image_folder_has_one_class_per_sub_folder_in_sorted_order(tmp_path: Path) -> None:
    write_image(tmp_path / "dog" / "1.png", 4, 6, 51)
    write_image(tmp_path / "cat" / "2.png", 4, 6, 102)
    write_image(tmp_path / "cat" / "1.png", 4, 6, 255)
    samples = open_samples(f"{tmp_path}{{scale='1/255'}}", IMAGE)
    assert labels_of(samples) == [0, 0, 1]
    got = rows(samples)
    assert got.shape == (3, 3, 4, 6)
    # one float32 product of a byte and 1/255
    np.testing.assert_allclose(got[:, 0, 0, 0], [1, 0.4, 0.2], rtol=2 * np.finfo(np.float32).eps)


def test_images_of_all_sizes_share_a_batch_after_resize_and_crop(tmp_path: Path) -> None:
    for at, (height, width) in enumerate([(8, 12), (16, 18), (4, 40)]):
        write_image(tmp_path / "a" / f"{at}.png", height, width, 10 * at)
    batches = list(open_samples(f"{tmp_path}{{scale=1 resize=6 crop=(4,6)}}", IMAGE).batches())
    assert [b.count for b in batches] == [3]
    np.testing.assert_array_equal(batches[0].feeds["x"][:, :, 0, 0], [[0] * 3, [10] * 3, [20] * 3])


def test_images_follow_the_channels_and_layout_of_the_input(tmp_path: Path) -> None:
    write_image(tmp_path / "1.png", 4, 6, 30)
    grey = open_samples(f"{tmp_path}{{scale=1}}", model_of(("x", F32, ["n", 1, 4, 6])))
    assert grey.labels is None
    assert rows(grey).shape == (1, 1, 4, 6)
    write_image(tmp_path / "1.png", 5, 6, 30)
    last = model_of(("x", ir.DataType.UINT8, ["n", 5, 6, 4]))
    assert rows(open_samples(tmp_path, last))[0, 0, 0].tolist() == [30, 30, 30, 255]
    free = model_of(("x", F32, ["n", None, None, None]))
    assert rows(open_samples(f"{tmp_path}{{scale=1}}", free)).shape == (1, 3, 5, 6)
    with pytest.raises(
        DataError, match=r"images have 1, 3 or 4 channels, but input 'x' is float32\[n,7,4,6\]"
    ):
        open_samples(tmp_path, model_of(("x", F32, ["n", 7, 4, 6])))


def test_images_of_several_sizes_are_grouped_when_the_model_is_free_and_refused_when_not(
    tmp_path: Path,
) -> None:
    for at, width in enumerate([6, 6, 7, 6]):
        write_image(tmp_path / f"{at}.png", 4, width)
    free = model_of(("x", F32, ["n", 3, "h", "w"]))
    assert [b.count for b in open_samples(f"{tmp_path}{{scale=1}}", free).batches()] == [2, 1, 1]
    with pytest.raises(DataError, match=r"got uint8 arrays of shape \[n,4,7,3\].*Give resize=\(4,6\)"):
        list(open_samples(f"{tmp_path}{{scale=1}}", IMAGE).batches())


def test_images_of_several_sizes_are_read_by_number_one_size_at_a_time(tmp_path: Path) -> None:
    for label, width in enumerate([6, 7, 6]):
        write_image(tmp_path / str(label) / "0.png", 4, width, label)
    free = model_of(("x", F32, ["n", 3, "h", "w"]))
    samples = open_samples(f"{tmp_path}{{scale=1}}", free)
    batch = samples.at(np.array([2, 0]))
    assert batch.labels is not None
    assert batch.labels.tolist() == [2, 0]
    assert batch.feeds["x"][:, 0, 0, 0].tolist() == [2, 0]
    with pytest.raises(
        DataError, match=r"data: 2 samples of .* have 2 different shapes, so they do not make one batch"
    ):
        samples.at(np.array([0, 1]))
    assert not samples.uniform
    assert [b.labels.tolist() for b in samples.batches() if b.labels is not None] == [[0], [1], [2]]


def test_images_have_one_shape_where_the_model_or_the_options_fix_it(tmp_path: Path) -> None:
    write_image(tmp_path / "0.png", 4, 6)
    free = model_of(("x", F32, ["n", 3, "h", "w"]))
    assert open_samples(f"{tmp_path}{{scale=1}}", IMAGE).uniform
    assert open_samples(f"{tmp_path}{{scale=1 resize=(2,2)}}", free).uniform
    assert open_samples(f"{tmp_path}{{scale=1 crop=2}}", free).uniform
    assert not open_samples(f"{tmp_path}{{scale=1 resize=2}}", free).uniform


def test_an_image_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    write_image(tmp_path / "a" / "1.png", 4, 6)
    (tmp_path / "a" / "2.png").write_bytes(b"no image")
    samples = open_samples(f"{tmp_path}{{scale=1}}", IMAGE)
    with pytest.raises(DataError, match=r"data: image '.*2.png' cannot be decoded: "):
        list(samples.batches())


def test_image_folders_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "1.png", 4, 6)
    with pytest.raises(DataError, match="a folder of images needs a model with one image input"):
        open_samples(tmp_path, VECTOR)
    with pytest.raises(DataError, match="the labels of an image folder are its sub-folders"):
        open_samples(f"{tmp_path}{{labels=y}}", IMAGE)
    write_image(tmp_path / "a" / "1.png", 4, 6)
    with pytest.raises(DataError, match=r"there are images both in .* and in its sub-folders"):
        open_samples(tmp_path, IMAGE)


def test_images_without_pillow_say_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "1.png").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(DataError, match=r"needs Pillow: pip install 'onnx-compressor\[images\]'"):
        open_samples(tmp_path, IMAGE)


@pytest.mark.parametrize("size", [(5, 9), (40, 60), (16, 7)])
def test_resizing_gives_the_pixels_of_pillow(size: tuple[int, int]) -> None:
    image = pytest.importorskip("PIL.Image")
    x = np.random.default_rng(0).integers(0, 256, (16, 23, 3), dtype=np.uint8)
    wanted = np.asarray(image.fromarray(x).resize(size[::-1], image.Resampling.BILINEAR))
    got = bilinear(bilinear(x[None], size[1], 2), size[0], 1)[0]
    # both round to whole levels once per axis
    assert np.abs(got.astype(int) - wanted.astype(int)).max() <= 1


def test_clipping_leaves_finite_rows_alone() -> None:
    x = np.array([[1.0, -2.0]])
    assert clip_rows(x) is x


# functions


def write_module(folder: Path, body: str) -> str:
    path = folder / "samples.py"
    path.write_text("import numpy as np\n" + body)
    return str(path)


@pytest.mark.parametrize(
    "sample",
    [
        "{'x': [i, 0.5], 'labels': i}",
        "(np.array([i, 0.5]), i)",
        "({'x': [i, 0.5]}, i)",
        "{'any': [i, 0.5], 'labels': i}",
    ],
)
def test_a_function_yields_dicts_tuples_or_arrays(tmp_path: Path, sample: str) -> None:
    address = write_module(tmp_path, f"def give():\n    for i in range(5):\n        yield {sample}\n")
    samples = open_samples(f"{address}:give{{batch=2}}", VECTOR)
    assert [b.count for b in samples.batches()] == [2, 2, 1]
    assert rows(samples).tolist() == [[i, 0.5] for i in range(5)]
    assert labels_of(samples) == [0, 1, 2, 3, 4]
    assert len(samples) == 5
    assert len(samples.take(3)) == 3
    assert len(samples.fingerprint()) == 64


def test_a_function_may_return_a_list_without_labels(tmp_path: Path) -> None:
    samples = open_samples(
        write_module(tmp_path, "def give():\n    return [[1, 2], [3, 4]]\n") + ":give", VECTOR
    )
    assert samples.labels is None
    assert rows(samples).tolist() == [[1, 2], [3, 4]]


def test_a_function_of_an_importable_module_is_called_anew_for_each_reading(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = ModuleType("made_up_module")
    calls: list[int] = []

    def give() -> list[np.ndarray]:
        calls.append(1)
        return list(DATA)

    module.give = give  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "made_up_module", module)
    samples = open_samples("made_up_module:give{limit=3}", VECTOR)
    before = len(calls)
    assert len(rows(samples)) == 3
    assert len(rows(samples)) == 3
    assert len(calls) == before + 2


def test_samples_of_different_lengths_do_not_share_a_batch(tmp_path: Path) -> None:
    body = "def give():\n    for n in (3, 3, 5, 3):\n        yield {'x': np.ones(n, np.int64)}\n"
    samples = open_samples(write_module(tmp_path, body) + ":give", model_of(("x", I64, ["n", "seq"])))
    assert [b.feeds["x"].shape for b in samples.batches()] == [(2, 3), (1, 5), (1, 3)]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def gave():\n    return []\n", r"no function 'give' in .*samples.py'. Did you mean 'gave'\?"),
        ("", "no function 'give' in .*samples.py'. It has none"),
        ("def give():\n    return []\n", "samples.py:give yields no samples"),
        ("def give():\n    return 5\n", "samples.py:give raised TypeError: 'int' object is not iterable"),
        ("def give():\n    raise KeyError('q')\n", r"raised KeyError: 'q' \(.*samples.py, line 3\)"),
        ("def give(a):\n    return []\n", "raised TypeError: give.. missing 1 required positional argument"),
        (
            "1 / 0\n",
            r"samples.py' cannot be imported: ZeroDivisionError: division by zero \(samples.py, line 2\)",
        ),
        ("def give(:\n", "samples.py' cannot be imported: SyntaxError: .*line 2"),
        ("def give():\n    yield {'a': [1, 2], 'b': 1}\n", "sample 0 .*no array for the model's input 'x'"),
        ("def give():\n    yield 1, 2, 3\n", r"a tuple must be \(array, label\), got 3 values"),
        ("def give():\n    yield [1, [2, 3]]\n", "sample 0 .*'x' is not an array: "),
        ("def give():\n    yield {'x': None}\n", "'x' is not an array of numbers, got NoneType"),
        (
            "def give():\n    yield [1.0, 2.0, 3.0]\n",
            r"wants float32\[n,2\], got float64 arrays of shape \[n,3\]",
        ),
    ],
)
def test_a_function_that_cannot_be_used_is_reported_at_once(tmp_path: Path, body: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_samples(write_module(tmp_path, body) + ":give", VECTOR)


def test_a_module_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"No module named 'no_such_module'. Give a file as folder/no_such_module.py:give."
    ):
        open_samples("no_such_module:give", VECTOR)
    with pytest.raises(DataError, match=r"there is no file '.*no.py'"):
        open_samples(f"{tmp_path}/no.py:give", VECTOR)
    address = write_module(tmp_path, "import no_such_module\n")
    with pytest.raises(
        DataError, match=r"samples.py' cannot be imported: No module named 'no_such_module'\.$"
    ):
        open_samples(f"{address}:give", VECTOR)


def test_a_model_with_several_inputs_needs_dicts(tmp_path: Path) -> None:
    address = write_module(tmp_path, "def give():\n    yield np.ones(2)\n")
    with pytest.raises(DataError, match="a sample must be a dict with the keys a, b"):
        open_samples(f"{address}:give", TWO)


def test_a_function_cannot_be_shuffled(tmp_path: Path) -> None:
    address = write_module(tmp_path, "def give():\n    yield np.ones(2)\n")
    with pytest.raises(
        OptionError, match=r"train: option 'shuffle' needs samples .* Shuffle in the function"
    ):
        open_samples(f"{address}:give{{shuffle=True}}", VECTOR, "train")


def test_a_function_can_neither_be_divided_nor_read_in_another_order(tmp_path: Path) -> None:
    address = write_module(tmp_path, "def give():\n    yield np.ones(2), 5\n    yield np.zeros(2), 6\n")
    samples = open_samples(f"{address}:give", VECTOR, "train")
    assert not samples.numbered
    assert samples.uniform
    with pytest.raises(
        DataError, match=r"train: .*:give come from a function, in its own order, .* cannot be divided"
    ):
        samples.subset(np.array([0]))
    with pytest.raises(DataError, match=r"cannot be read in another order. Save them as .npz"):
        samples.at(np.array([0]))
    assert [b.labels.tolist() for b in samples.batches(1) if b.labels is not None] == [[5], [6]]


def test_a_later_sample_that_does_not_fit_is_named_by_its_number(tmp_path: Path) -> None:
    address = write_module(tmp_path, "def give():\n    yield np.ones(2)\n    yield np.ones(3)\n")
    samples = open_samples(f"{address}:give", VECTOR)
    with pytest.raises(DataError, match=r"data: .*give: sample 1 \(counted from 0\): input 'x' wants"):
        list(samples.batches())


def test_a_sample_that_is_not_finite_fails_or_is_left_out(tmp_path: Path) -> None:
    body = "def give():\n    for v in (1, np.nan, 3):\n        yield np.array([v, 0.0]), v\n"
    address = write_module(tmp_path, body) + ":give"
    with pytest.raises(
        DataError, match=r"sample 1 \(counted from 0\) holds NaN or infinite values. .*clean='drop'"
    ):
        len(open_samples(address, VECTOR))
    samples = open_samples(address + "{clean=drop}", VECTOR)
    assert labels_of(samples) == [1, 3]
    assert rows(samples)[:, 0].tolist() == [1, 3]
    nothing = write_module(tmp_path, "def give():\n    yield np.array([np.nan, 0])\n") + ":give{clean=drop}"
    with pytest.raises(DataError, match="yields no samples that can be used"):
        len(open_samples(nothing, VECTOR))


def test_every_sample_of_a_function_has_a_label_or_none_has(tmp_path: Path) -> None:
    address = write_module(tmp_path, "def give():\n    yield np.ones(2), 1\n    yield np.ones(2)\n")
    with pytest.raises(
        DataError, match=r"1 of 2 samples have labels, of shapes .* Give every sample a label"
    ):
        len(open_samples(f"{address}:give", VECTOR))
