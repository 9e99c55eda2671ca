"""Samples: batches, options, checks against the model, made-up inputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from compressor.data import Samples, open_samples, split_argument, synthetic
from compressor.data.options import DataOptions, read_options
from compressor.errors import DataError, ModelError, OptionError

F32, I64 = ir.DataType.FLOAT, ir.DataType.INT64


def model_of(*inputs: tuple[str, ir.DataType, Sequence[int | str | None] | None]) -> ir.Model:
    values = [
        ir.Value(name=name, type=ir.TensorType(dtype), shape=None if dims is None else ir.Shape(dims))
        for name, dtype, dims in inputs
    ]
    return ir.Model(ir.Graph(values, [], nodes=[], opset_imports={"": 20}), ir_version=10)


VECTOR = model_of(("x", F32, ["n", 3]))
IMAGE = model_of(("x", F32, ["n", 3, 6, 4]))


def vectors(count: int) -> np.ndarray:
    return np.arange(count * 3, dtype=np.float32).reshape(count, 3)


def rows(samples: Samples, name: str = "x", size: int | None = None) -> np.ndarray:
    """All real rows of one input."""
    return np.concatenate([batch.feeds[name][: batch.count] for batch in samples.batches(size)])


def saved(path: Path, **arrays: Any) -> str:
    np.savez(path / "s.npz", **arrays)
    return str(path / "s.npz")


def test_a_path_gives_the_arrays_named_like_the_inputs_and_the_labels(tmp_path: Path) -> None:
    samples = open_samples(saved(tmp_path, x=vectors(5), labels=np.arange(5)), VECTOR)
    assert len(samples) == 5
    assert samples.inputs == ("x",)
    np.testing.assert_array_equal(rows(samples), vectors(5))
    np.testing.assert_array_equal(samples.labels, np.arange(5))
    assert repr(samples) == f"Samples({samples.source!r}, inputs=('x',))"


def test_samples_can_be_read_again_and_reading_never_changes_them() -> None:
    data = vectors(4)
    samples = open_samples(data, VECTOR)
    for batch in samples.batches():
        batch.feeds["x"][:] = 0
    np.testing.assert_array_equal(rows(samples), vectors(4))
    np.testing.assert_array_equal(data, vectors(4))


def test_the_batch_size_is_the_argument_then_the_option_then_32(tmp_path: Path) -> None:
    path = saved(tmp_path, x=vectors(70))
    assert [b.count for b in open_samples(path, VECTOR).batches()] == [32, 32, 6]
    samples = open_samples(path + "{batch=50}", VECTOR)
    assert [b.count for b in samples.batches()] == [50, 20]
    assert [b.count for b in samples.batches(35)] == [35, 35]
    with pytest.raises(OptionError, match="the batch size must be at least 1, got 0"):
        next(samples.batches(0))


def test_a_fixed_batch_axis_wins_and_the_last_batch_repeats_the_last_sample() -> None:
    samples = open_samples(vectors(6), model_of(("x", F32, [4, 3])))
    batches = list(samples.batches(32))
    assert [b.count for b in batches] == [4, 2]
    assert [b.feeds["x"].shape for b in batches] == [(4, 3), (4, 3)]
    np.testing.assert_array_equal(batches[1].feeds["x"][2:], np.repeat(vectors(6)[-1:], 2, axis=0))
    assert len(samples) == 6


def test_one_sample_is_enough() -> None:
    samples = open_samples({"x": vectors(1), "labels": np.array([7])}, VECTOR)
    assert [b.count for b in samples.batches()] == [1]
    assert samples.labels is not None
    assert samples.labels.tolist() == [7]


def test_inputs_that_are_also_initializers_need_no_data() -> None:
    model = model_of(("x", F32, ["n", 3]), ("w", F32, [3]))
    weight = model.graph.inputs[1]
    weight.const_value = ir.tensor(np.zeros(3, np.float32), name="w")
    model.graph.register_initializer(weight)
    assert open_samples(vectors(2), model).inputs == ("x",)


def test_shuffle_is_drawn_once_from_the_seed_and_keeps_labels_beside_their_rows(tmp_path: Path) -> None:
    path = saved(tmp_path, x=vectors(40), labels=np.arange(40))
    samples = open_samples(path + "{shuffle=True seed=3 limit=20}", VECTOR)
    first = rows(samples)
    np.testing.assert_array_equal(first, rows(samples, size=7))
    assert samples.labels is not None
    np.testing.assert_array_equal(first[:, 0], samples.labels * 3)
    assert len(set(samples.labels.tolist())) == 20
    assert samples.labels.tolist() != sorted(samples.labels.tolist())
    other = open_samples(path + "{shuffle=True seed=4 limit=20}", VECTOR)
    assert not np.array_equal(first, rows(other))


def test_limit_and_take_give_the_first_samples_and_never_more_than_there_are(tmp_path: Path) -> None:
    path = saved(tmp_path, x=vectors(9), labels=np.arange(9))
    samples = open_samples(path + "{limit=6}", VECTOR)
    assert (len(samples), len(samples.take(4)), len(samples.take(100))) == (6, 4, 6)
    assert samples.take(4).labels is not None
    np.testing.assert_array_equal(rows(samples.take(4)), vectors(4))
    with pytest.raises(OptionError, match="samples to take must be at least 1, got 0"):
        samples.take(0)


def test_batches_carry_the_labels_of_their_real_samples() -> None:
    data = {"x": vectors(6), "labels": np.arange(6) * 10}
    for dims in (["n", 3], [4, 3]):
        batches = list(open_samples(data, model_of(("x", F32, dims))).batches(4))
        assert [batch.labels.tolist() for batch in batches if batch.labels is not None] == [
            [0, 10, 20, 30],
            [40, 50],
        ]
    batches[0].labels[:] = 0
    assert data["labels"][1] == 10
    assert next(open_samples(vectors(6), VECTOR).batches()).labels is None


def test_samples_are_read_by_their_number_in_any_order(tmp_path: Path) -> None:
    samples = open_samples(saved(tmp_path, x=vectors(9), labels=np.arange(9)) + "{scale=2}", VECTOR)
    assert samples.numbered
    batch = samples.at(np.array([7, 0, 7, 3]))
    np.testing.assert_array_equal(batch.feeds["x"], 2 * vectors(9)[[7, 0, 7, 3]])
    assert batch.labels is not None
    assert batch.labels.tolist() == [7, 0, 7, 3]
    assert batch.count == 4
    batch.feeds["x"][:] = 0
    np.testing.assert_array_equal(rows(samples), 2 * vectors(9))
    with pytest.raises(IndexError):
        samples.at(np.array([9]))


def test_samples_that_are_read_by_number_do_not_fill_up_a_fixed_batch() -> None:
    samples = open_samples(vectors(9), model_of(("x", F32, [4, 3])))
    assert samples.at(np.array([5, 2])).feeds["x"].shape == (2, 3)
    assert samples.at(np.arange(9)).feeds["x"].shape == (9, 3)


def test_a_subset_has_the_chosen_samples_in_the_chosen_order(tmp_path: Path) -> None:
    samples = open_samples(saved(tmp_path, x=vectors(9), labels=np.arange(9)), VECTOR)
    part = samples.subset(np.array([8, 2, 5]))
    assert len(part) == 3
    assert part.labels is not None
    assert part.labels.tolist() == [8, 2, 5]
    np.testing.assert_array_equal(rows(part, size=2), vectors(9)[[8, 2, 5]])
    np.testing.assert_array_equal(part.at(np.array([1])).feeds["x"], vectors(9)[[2]])
    np.testing.assert_array_equal(rows(part.subset(np.array([2, 0]))), vectors(9)[[5, 8]])
    np.testing.assert_array_equal(rows(part.take(2)), vectors(9)[[8, 2]])
    given = {"x": vectors(9)[[8, 2, 5]], "labels": np.array([8, 2, 5])}
    assert part.fingerprint() == open_samples(given, VECTOR).fingerprint()
    assert len(samples) == 9


def test_a_subset_counts_the_samples_that_the_options_left(tmp_path: Path) -> None:
    data = vectors(9)
    data[1] = np.nan
    path = saved(tmp_path, x=data, labels=np.arange(9))
    part = open_samples(path + "{clean=drop limit=5}", VECTOR).subset(np.array([0, 1, 4]))
    assert part.labels is not None
    assert part.labels.tolist() == [0, 2, 5]
    drawn = open_samples(path + "{clean=drop shuffle=True}", VECTOR)
    assert drawn.labels is not None
    some = drawn.subset(np.array([3, 1])).labels
    assert some is not None
    assert some.tolist() == drawn.labels[[3, 1]].tolist()


def test_a_subset_fits_another_model_with_the_same_samples() -> None:
    part = open_samples(vectors(9), VECTOR).subset(np.array([4, 1]))
    other = open_samples(part, model_of(("x", F32, ["batch", "f"])))
    np.testing.assert_array_equal(rows(other), vectors(9)[[4, 1]])


def test_an_empty_subset_is_refused() -> None:
    with pytest.raises(DataError, match=r"data: a part of an array would have no samples. Give more samples"):
        open_samples(vectors(9), VECTOR).subset(np.arange(0))
    with pytest.raises(IndexError):
        open_samples(vectors(9), VECTOR).subset(np.array([9]))


def test_the_fingerprint_depends_on_the_values_and_labels_and_not_on_how_they_were_given(
    tmp_path: Path,
) -> None:
    path = saved(tmp_path, x=vectors(50), labels=np.arange(50))
    whole = open_samples(path, VECTOR).fingerprint()
    assert whole == open_samples(path + "{batch=7}", VECTOR).fingerprint()
    assert whole == open_samples({"x": vectors(50), "labels": np.arange(50)}, VECTOR).fingerprint()
    assert whole != open_samples(vectors(50), VECTOR).fingerprint()
    assert whole != open_samples(path + "{limit=49}", VECTOR).fingerprint()
    changed = vectors(50)
    changed[49, 2] += 1
    assert whole != open_samples({"x": changed, "labels": np.arange(50)}, VECTOR).fingerprint()


def test_the_value_is_scaled_then_the_mean_subtracted_then_divided(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (4, 6, 4, 3), dtype=np.uint8)
    options = "{layout='nhwc->nchw' scale='1/255' mean=[0.4,0.5,0.6] std=[0.1,0.2,0.4]}"
    got = rows(open_samples(saved(tmp_path, x=x) + options, IMAGE))
    wanted = ((x / 255 - [0.4, 0.5, 0.6]) / [0.1, 0.2, 0.4]).transpose(0, 3, 1, 2)
    # three float32 operations on values below 1 / 0.1
    np.testing.assert_allclose(got, wanted, rtol=0, atol=8 * np.finfo(np.float32).eps * 10)


def test_per_channel_numbers_follow_the_channel_axis_of_the_final_layout(tmp_path: Path) -> None:
    last = model_of(("x", F32, ["n", 6, 4, 3]))
    x = np.zeros((2, 6, 4, 3), np.float32)
    got = rows(open_samples(saved(tmp_path, x=x) + "{mean=[1,2,3]}", last))
    np.testing.assert_array_equal(got[0, 0, 0], [-1, -2, -3])
    features = rows(open_samples(saved(tmp_path, x=vectors(2)) + "{mean=[0,1,2]}", VECTOR))
    np.testing.assert_array_equal(features, [[0, 0, 0], [3, 3, 3]])


def test_layout_adds_a_channel_axis_to_grey_images(tmp_path: Path) -> None:
    grey = np.arange(2 * 6 * 4, dtype=np.uint8).reshape(2, 6, 4)
    model = model_of(("x", F32, [1, 1, 6, 4]))
    samples = open_samples(saved(tmp_path, x=grey) + "{layout='nhw->nchw' scale=1}", model)
    np.testing.assert_array_equal(rows(samples)[:, 0], grey)


def test_resize_keeps_the_ratio_and_crop_takes_the_centre(tmp_path: Path) -> None:
    x = np.zeros((1, 3, 12, 16), np.float32)
    x[:, :, :, 8:] = 1
    got = rows(open_samples(saved(tmp_path, x=x) + "{resize=6 crop=(6,4)}", IMAGE))
    assert got.shape == (1, 3, 6, 4)
    np.testing.assert_array_equal(got[0, 0, :, [0, 3]], [[0] * 6, [1] * 6])


def test_floats_and_integers_are_cast_when_nothing_is_lost() -> None:
    for source in (np.float64, np.float16, np.int64, np.bool_):
        batch = next(open_samples(vectors(2).astype(source), VECTOR).batches())
        assert batch.feeds["x"].dtype == np.float32
    ids = next(open_samples(np.array([[1, 2]], np.int32), model_of(("x", I64, ["n", 2]))).batches())
    assert ids.feeds["x"].dtype == np.int64
    small = model_of(("x", ir.DataType.UINT8, ["n", 2]))
    assert rows(open_samples(np.array([[1, 255]]), small)).tolist() == [[1, 255]]
    with pytest.raises(DataError, match="'x' wants uint8, and int64 values from -1 to 2 do not fit"):
        len(open_samples(np.array([[-1, 2]]), small))


def test_strings_go_to_string_inputs_only() -> None:
    words = np.array([["a"], ["bc"]])
    model = model_of(("x", ir.DataType.STRING, ["n", 1]))
    samples = open_samples(words, model)
    assert rows(samples).tolist() == [["a"], ["bc"]]
    assert samples.fingerprint() != open_samples(words[:1], model).fingerprint()
    with pytest.raises(DataError, match=r"'x' wants string, got float32. Give arrays of type string"):
        open_samples(vectors(1)[:, :1], model)
    with pytest.raises(DataError, match=r"'x' wants float32, got <U2. Give arrays of type float32"):
        open_samples(np.array([["a", "b", "cc"]]), VECTOR)


@pytest.mark.parametrize("source", [np.uint8, np.int64])
def test_integer_images_into_a_float_input_need_a_scale(source: type, tmp_path: Path) -> None:
    path = saved(tmp_path, x=np.zeros((2, 3, 6, 4), source))
    with pytest.raises(
        DataError, match=r"got u?int\d+ images without scale. Give scale='1/255' if the model"
    ):
        open_samples(path, IMAGE)
    assert len(open_samples(path + "{scale=1}", IMAGE)) == 2


def test_floats_into_an_integer_input_are_refused() -> None:
    with pytest.raises(
        DataError, match=r"'x' wants int64, got float32. Give whole numbers, .*x.astype\('int64'\)"
    ):
        open_samples(vectors(2), model_of(("x", I64, ["n", 3])))


@pytest.mark.parametrize(
    ("shape", "advice"),
    [
        (
            (5, 6, 4, 3),
            r"wants float32\[n,3,6,4\], got float32 arrays of shape \[n,6,4,3\]. Give layout='nhwc->nchw'",
        ),
        ((5, 3, 12, 8), r"Give resize=\(6,4\)"),
        ((3, 6, 4), r"add the batch axis with x\[None\]"),
        ((5, 3), "Give arrays of rank 4, the first axis counts the samples"),
        ((5, 2, 6, 4), "Give arrays with the sizes that the model fixes"),
    ],
)
def test_a_shape_that_does_not_fit_is_reported_with_the_fix(shape: tuple[int, ...], advice: str) -> None:
    with pytest.raises(DataError, match="calibration: input 'x'.*" + advice):
        open_samples(np.zeros(shape, np.float32), IMAGE, "calibration")


def test_channels_first_images_for_a_channels_last_model_are_told_the_layout() -> None:
    with pytest.raises(DataError, match="Give layout='nchw->nhwc'"):
        open_samples(np.zeros((2, 3, 6, 4), np.float32), model_of(("x", F32, ["n", 6, 4, 3])))


def test_steps_that_cannot_be_done_are_reported_with_the_fix(tmp_path: Path) -> None:
    path = saved(tmp_path, x=np.zeros((2, 6, 8, 3), np.float32))
    with pytest.raises(
        DataError, match=r"crop=4 is larger than the image of 8 x 3.*Or give layout='nhwc->nchw'"
    ):
        open_samples(path + "{crop=4}", model_of(("x", F32, ["n", 3, 4, 4])))
    with pytest.raises(DataError, match=r"crop=9 is larger than the image of 6 x 8. Give a resize"):
        open_samples(path + "{layout='nhwc->nchw' crop=9}", IMAGE)
    with pytest.raises(DataError, match=r"layout='nhw->nchw' needs arrays of rank 3, got shape \[n,6,8,3\]"):
        open_samples(path + "{layout='nhw->nchw'}", IMAGE)
    with pytest.raises(
        OptionError, match="option 'mean' has 2 numbers, but a sample of input 'x' has 3 channels"
    ):
        open_samples(path + "{layout='nhwc->nchw' resize=(6,4) mean=[1,2]}", IMAGE)


def test_options_that_apply_to_no_input_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, x=vectors(2))
    with pytest.raises(
        OptionError, match=r"option 'resize' is for image inputs \(rank 4\), and the model has none"
    ):
        open_samples(path + "{resize=4}", VECTOR)
    with pytest.raises(OptionError, match="option 'scale' is for float inputs, and the model has none"):
        open_samples(path + "{scale=2}", model_of(("x", I64, ["n", 3])))


def test_sizes_that_the_model_calls_by_one_name_must_agree() -> None:
    model = model_of(("ids", I64, ["n", "seq"]), ("mask", I64, ["n", "seq"]))
    data = {"ids": np.ones((2, 5), np.int64), "mask": np.ones((2, 4), np.int64)}
    with pytest.raises(
        DataError, match="'ids' has size 5 where 'mask' has 4, but the model calls both 'seq'"
    ):
        open_samples(data, model)


@pytest.mark.parametrize(
    ("dims", "text"),
    [
        ([], r"input 'y' has no batch axis \(float32\[\]\)"),
        ([2, "n", 3], r"input 'y' has its batch axis at position 1 \(float32\[2,n,3\]\)"),
        ([5, 3], r"input 'y' has no batch axis \(float32\[5,3\]\)"),
    ],
)
def test_inputs_that_do_not_share_the_batch_axis_are_named(dims: list[int | str], text: str) -> None:
    model = model_of(("x", F32, ["n", 3]), ("y", F32, dims))
    with pytest.raises(DataError, match=text + ".*Make 'y' an initializer"):
        open_samples({"x": vectors(2), "y": vectors(2)}, model)


def test_a_model_without_inputs_takes_no_data_and_an_input_must_be_a_typed_tensor() -> None:
    with pytest.raises(DataError, match="the model has no inputs that need data"):
        open_samples(vectors(2), model_of())
    sequence = ir.Value(name="s", type=ir.SequenceType(ir.TensorType(F32)))
    with pytest.raises(ModelError, match="Input 's' is a SequenceType; only tensors can be given data"):
        open_samples(vectors(2), ir.Model(ir.Graph([sequence], [], nodes=[]), ir_version=10))
    with pytest.raises(ModelError, match="Input 's' has no element type"):
        open_samples(vectors(2), ir.Model(ir.Graph([ir.Value(name="s")], [], nodes=[]), ir_version=10))


def with_bad_rows() -> np.ndarray:
    x = vectors(600)
    x[3, 1], x[7, 0], x[599, 2] = np.nan, np.inf, -np.inf
    return x


def test_rows_that_are_not_finite_are_named_by_default() -> None:
    samples = open_samples(with_bad_rows(), VECTOR, "calibration")
    with pytest.raises(
        DataError,
        match=r"calibration: 'x' holds NaN or infinite values in 3 of 600 .*: 3, 7, 599. .*clean='drop'",
    ):
        next(samples.batches())
    assert len(samples.take(3)) == 3


def test_values_that_overflow_the_type_of_the_input_are_not_finite() -> None:
    with pytest.raises(DataError, match="1 of 2 rows, counted from 0: 1"):
        len(open_samples(np.array([[0, 0, 0], [0, 1e39, 0]]), VECTOR))


def test_drop_leaves_such_rows_and_their_labels_out_and_limit_counts_what_is_left(tmp_path: Path) -> None:
    path = saved(tmp_path, x=with_bad_rows(), labels=np.arange(600))
    samples = open_samples(path + "{clean='drop'}", VECTOR)
    assert len(samples) == 597
    assert samples.labels is not None
    np.testing.assert_array_equal(rows(samples)[:, 0], samples.labels * 3)
    few = open_samples(path + "{clean='drop' limit=4}", VECTOR).labels
    assert few is not None
    assert few.tolist() == [0, 1, 2, 4]
    with pytest.raises(DataError, match="no samples are left: every row holds NaN"):
        len(open_samples(saved(tmp_path, x=np.full((2, 3), np.nan)) + "{clean='drop'}", VECTOR))


def test_clip_puts_zero_for_nan_and_the_extremes_of_the_row_for_infinities(tmp_path: Path) -> None:
    x = np.array([[-5, np.inf, -3], [np.nan, 1, -np.inf], [np.inf, np.nan, np.inf], [1e39, 0, 1]])
    got = rows(open_samples(saved(tmp_path, x=x) + "{clean='clip'}", VECTOR))
    np.testing.assert_array_equal(got[:3], [[-5, -3, -3], [0, 1, 1], [0, 0, 0]])
    assert got[3, 0] == np.finfo(np.float32).max


def test_labels_must_be_finite_too(tmp_path: Path) -> None:
    path = saved(tmp_path, x=vectors(3), y=np.array([0.5, np.nan, 1]))
    with pytest.raises(
        DataError, match="'labels' holds NaN or infinite values in 1 of 3 rows, counted from 0: 1"
    ):
        len(open_samples(path + "{labels='y'}", VECTOR))
    assert len(open_samples(path + "{labels='y' clean='drop'}", VECTOR)) == 2


def test_samples_are_given_back_as_they_are_for_the_same_inputs_and_checked_for_others() -> None:
    samples = open_samples(vectors(5), VECTOR)
    assert open_samples(samples, model_of(("x", F32, ["n", 3]))) is samples
    fixed = open_samples(samples, model_of(("x", F32, [4, 3])))
    assert [b.feeds["x"].shape for b in fixed.batches()] == [(4, 3), (4, 3)]
    with pytest.raises(
        DataError, match=r"train: the samples of an array were opened for the inputs x, .* has y"
    ):
        open_samples(samples, model_of(("y", F32, ["n", 3])), "train")
    with pytest.raises(DataError, match=r"train: input 'x' wants float32\[n,4\]"):
        open_samples(samples, model_of(("x", F32, ["n", 4])), "train")


@pytest.mark.parametrize(
    ("text", "path", "options"),
    [
        ("x.npz", "x.npz", {}),
        ("x.npz{}", "x.npz", {}),
        ("x.npz{limit=5 clean=drop}", "x.npz", {"limit": 5, "clean": "drop"}),
        ("a b.npz{mean=[1, 2], labels='a b'} ", "a b.npz", {"mean": (1, 2), "labels": "a b"}),
        ("m.py:f{shuffle=True}", "m.py:f", {"shuffle": True}),
        ("a{1}.npz", "a{1}.npz", {}),
        ("a{1}.npz{limit=2}", "a{1}.npz", {"limit": 2}),
    ],
)
def test_an_argument_is_a_path_and_options(text: str, path: str, options: dict[str, object]) -> None:
    assert split_argument(text) == (path, options)


def test_the_path_of_a_file_is_never_taken_for_options(tmp_path: Path) -> None:
    folder = tmp_path / "a{b=1}"
    folder.mkdir()
    assert split_argument(str(folder)) == (str(folder), {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x.npz{limit=5", "the brace is not closed"),
        ("{limit=5}", "there is no path before the brace"),
        ("x.npz{limit}", "expected '=' after 'limit'"),
        ("x.npz{=5}", "expected an option"),
        ("x.npz{limit=1 limit=2}", "option 'limit' is given twice"),
        ("x.npz{limit=1/0}", "'1/0' is not a Python literal"),
    ],
)
def test_an_argument_that_cannot_be_read_is_quoted_with_the_reason(text: str, message: str) -> None:
    with pytest.raises(OptionError) as caught:
        split_argument(text)
    assert str(caught.value).startswith(f"{text!r}: {message}")


@pytest.mark.parametrize(
    ("option", "value", "wanted"),
    [
        ("limit", 0, "an integer of at least 1, got 0"),
        ("limit", True, "an integer of at least 1, got True"),
        ("shuffle", 1, "True or False, got 1"),
        ("seed", -1, "an integer of at least 0, got -1"),
        ("batch", 2.5, "an integer of at least 1, got 2.5"),
        ("scale", 0, "a number other than 0"),
        ("scale", "1/0", "a number other than 0, such as 0.5 or '1/255', got '1/0'"),
        ("scale", float("inf"), "a number other than 0"),
        ("mean", "a", "a number, or one number per channel"),
        ("mean", (), "a number, or one number per channel"),
        ("std", (1.0, 0.0), "a positive number, or one per channel"),
        ("layout", "nchw", "one of 'nhwc->nchw', 'nchw->nhwc', 'nhw->nchw', 'nhw->nhwc', got 'nchw'"),
        ("resize", (1, 2, 3), "the shorter side or"),
        ("crop", 0, "one side or"),
        ("labels", "", "the name of an array or column"),
        ("clean", "skip", "one of 'fail', 'drop', 'clip', got 'skip'"),
    ],
)
def test_a_bad_option_is_named_with_what_it_may_be(option: str, value: object, wanted: str) -> None:
    with pytest.raises(OptionError) as caught:
        read_options({option: value})
    assert str(caught.value).startswith(f"option {option!r} must be {wanted}")


def test_an_unknown_option_gets_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"train: no option 'limits'. Did you mean 'limit'\?"):
        open_samples(saved(tmp_path, x=vectors(2)) + "{limits=1}", VECTOR, "train")


def test_every_option_says_what_it_may_be() -> None:
    for option in DataOptions.model_fields:
        with pytest.raises(OptionError, match=f"option '{option}' must be "):
            read_options({option: [None]})


def test_made_up_inputs_follow_types_names_and_sizes() -> None:
    model = model_of(
        ("input_ids", I64, ["n", "seq"]),
        ("attention_mask", I64, ["n", "seq"]),
        ("token_type_ids", ir.DataType.INT32, ["n", "seq"]),
        ("keep", ir.DataType.BOOL, ["n", None]),
        ("image", ir.DataType.FLOAT16, ["n", None, "h", "w"]),
        ("last", F32, ["n", "h", "w", 1]),
        ("word", ir.DataType.STRING, ["n"]),
    )
    feeds = next(synthetic(model, 5, sizes={"seq": 7}).batches()).feeds
    assert {name: x.shape for name, x in feeds.items()} == {
        "input_ids": (5, 7),
        "attention_mask": (5, 7),
        "token_type_ids": (5, 7),
        "keep": (5, 32),
        "image": (5, 3, 64, 64),
        "last": (5, 64, 64, 1),
        "word": (5,),
    }
    assert feeds["image"].dtype == np.float16
    assert feeds["keep"].dtype == np.bool_
    assert feeds["attention_mask"].all()
    assert not feeds["token_type_ids"].any()
    assert 0 <= feeds["input_ids"].min() <= feeds["input_ids"].max() <= 99


def test_made_up_inputs_are_the_same_for_a_seed_and_have_no_labels() -> None:
    one = synthetic(VECTOR, 4, seed=1)
    assert one.labels is None
    assert len(one) == 4
    assert one.fingerprint() == synthetic(VECTOR, 4, seed=1).fingerprint()
    assert one.fingerprint() != synthetic(VECTOR, 4, seed=2).fingerprint()


def test_made_up_ids_stay_inside_the_table_that_they_look_up() -> None:
    model = model_of(("ids", I64, ["n", 50]))
    table = ir.Value(name="table", const_value=ir.tensor(np.zeros((6, 2), np.float32), name="table"))
    node = ir.node("Gather", [table, model.graph.inputs[0]])
    model.graph.register_initializer(table)
    model.graph.append(node)
    ids = rows(synthetic(model, 8), "ids")
    assert set(np.unique(ids)) == set(range(6))


def test_made_up_inputs_put_the_batch_axis_where_the_model_has_it() -> None:
    model = model_of(("x", F32, ["n", 3]), ("rate", I64, []), ("state", F32, [2, "n", 4]))
    feeds = next(synthetic(model, 5, sizes={"n": 3}).batches()).feeds
    assert [feeds[name].shape for name in ("x", "rate", "state")] == [(3, 3), (), (2, 3, 4)]
    empty = list(synthetic(model_of(), 40).batches())
    assert [(b.feeds, b.count) for b in empty] == [({}, 32), ({}, 8)]


def test_made_up_inputs_need_a_count_a_shape_and_known_sizes() -> None:
    with pytest.raises(OptionError, match="synthetic: count must be at least 1, got 0"):
        synthetic(VECTOR, 0)
    with pytest.raises(OptionError, match=r"no dynamic size 'm'. Did you mean|no dynamic size 'm'. Known: n"):
        synthetic(VECTOR, sizes={"m": 1})
    with pytest.raises(OptionError, match="the size of 'n' must be at least 1, got 0"):
        synthetic(VECTOR, sizes={"n": 0})
    with pytest.raises(OptionError, match=r"no dynamic size 'm'. It has none with a name"):
        synthetic(model_of(("x", F32, [1])), sizes={"m": 1})
    with pytest.raises(DataError, match="synthetic: input 'x' has no shape"):
        synthetic(model_of(("x", F32, None)))
