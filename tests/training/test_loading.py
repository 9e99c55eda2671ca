"""The batches of training: each sample once per epoch, in an order that can be taken up again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
import torch
from PIL import Image

from compressor.data import Samples, open_samples
from compressor.errors import DataError, OptionError
from compressor.training.loading import Loader, TrainingBatch, loader, open_source
from compressor.training.order import EpochPlan
from compressor.training.sources import ahead

F32 = ir.DataType.FLOAT
COUNT = 23
X = np.arange(COUNT * 3, dtype=np.float32).reshape(COUNT, 3)


def model_of(dims: Sequence[int | str], dtype: ir.DataType = F32) -> ir.Model:
    value = ir.Value(name="x", type=ir.TensorType(dtype), shape=ir.Shape(dims))
    return ir.Model(ir.Graph([value], [], nodes=[], opset_imports={"": 20}), ir_version=10)


VECTOR = model_of(["n", 3])
IMAGE = model_of(["n", 3, "h", "w"])
SEQUENCE = model_of(["n", "t"])


def labelled(x: np.ndarray = X, model: ir.Model = VECTOR) -> Samples:
    return open_samples({"x": x, "labels": np.arange(len(x))}, model)


def function(folder: Path, body: str, model: ir.Model = VECTOR) -> Samples:
    """Samples of a function; `calls` in it is how often it was called: once to open it, then once per reading."""
    path = folder / "data.py"
    path.write_text(
        f"import numpy as np\n\ncalls = 0\n\n\ndef samples():\n    global calls\n    calls += 1\n    {body}\n"
    )
    return open_samples(f"{path}:samples", model)


VECTORS = f"yield from ((np.arange(3 * i, 3 * i + 3, dtype='float32'), i) for i in range({COUNT}))"


def sources(folder: Path) -> Iterator[Samples]:
    np.save(folder / "x.npy", X)
    np.save(folder / "labels.npy", np.arange(COUNT))
    yield open_samples(str(folder), VECTOR)
    yield function(folder, VECTORS)


def numbers(batches: Iterable[TrainingBatch]) -> list[list[int]]:
    return [batch.rows.tolist() for batch in batches]


def flat(lists: list[list[int]]) -> list[int]:
    return list(chain.from_iterable(lists))


# --- one epoch -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep_mb", [1, 0, 8 * 16 / 2**20])  # all in memory; none; a window of a few samples
def test_an_epoch_has_each_sample_once_with_its_label(tmp_path: Path, keep_mb: float) -> None:
    for samples in sources(tmp_path):
        batches = list(loader(open_source(samples, keep_mb), 5).batches(0))
        assert sorted(flat(numbers(batches))) == list(range(COUNT))
        for batch in batches:
            assert batch.labels is not None
            np.testing.assert_array_equal(batch.inputs[0], X[batch.rows])
            np.testing.assert_array_equal(batch.labels, batch.rows)


@pytest.mark.parametrize("keep_mb", [1, 0])
def test_without_shuffling_the_order_is_that_of_the_samples(tmp_path: Path, keep_mb: float) -> None:
    for samples in sources(tmp_path):
        batches = loader(open_source(samples, keep_mb), 10, shuffle=False).batches(3)
        assert flat(numbers(batches)) == list(range(COUNT))


@pytest.mark.parametrize(
    ("count", "size", "sizes"),
    [(20, 5, [5, 5, 5, 5]), (22, 5, [5, 5, 5, 5, 2]), (21, 5, [5, 5, 5, 6]), (1, 5, [1]), (3, 1, [1, 1, 1])],
)
def test_a_last_batch_of_one_sample_joins_the_one_before_it(count: int, size: int, sizes: list[int]) -> None:
    plan = EpochPlan(np.zeros(count, np.intp), size)
    assert [len(rows) for rows in plan.batches(0)] == sizes
    assert len(plan) == len(sizes)


def test_a_fixed_batch_is_always_full_and_leaves_out_other_samples_in_each_epoch() -> None:
    samples = labelled(model=model_of([4, 3]))
    batches = loader(open_source(samples), 10)
    assert len(batches) == 5
    left_out = []
    for epoch in range(8):
        seen = numbers(batches.batches(epoch))
        assert [len(rows) for rows in seen] == [4] * 5
        assert len(set(flat(seen))) == 20
        left_out.append(frozenset(range(COUNT)) - set(flat(seen)))
    assert len(set(left_out)) > 1


def test_the_samples_of_a_batch_have_one_shape(tmp_path: Path) -> None:
    body = "yield from (np.full(2 + i % 3, i, 'float32') for i in range(20))"
    for keep_mb in (1, 0):
        source = open_source(function(tmp_path, body, SEQUENCE), keep_mb)
        batches = loader(source, 4, shuffle=False)
        seen = list(batches.batches(0))
        assert len(batches) == len(seen)
        assert sorted(flat(numbers(seen))) == list(range(20))
        for batch in seen:
            assert batch.inputs[0].shape[1] == 2 + int(batch.rows[0]) % 3
            np.testing.assert_array_equal(batch.inputs[0][:, 0], batch.rows)


def test_images_of_several_sizes_are_grouped_in_memory_and_from_files(tmp_path: Path) -> None:
    folder = tmp_path / "images" / "cat"
    folder.mkdir(parents=True)
    for number in range(7):
        Image.new("RGB", (4 + number % 2, 5), (number, 0, 0)).save(folder / f"{number}.png")
    for keep_mb in (1, 0):
        source = open_source(open_samples(f"{tmp_path / 'images'}{{scale=1}}", IMAGE), keep_mb)
        seen = list(loader(source, 3).batches(0))
        assert sorted(len(batch.rows) for batch in seen) == [3, 4]
        for batch in seen:
            assert set(batch.inputs[0].shape[3:]) == {4 + int(batch.rows[0]) % 2}
            np.testing.assert_array_equal(batch.inputs[0][:, 0, 0, 0], batch.rows)


# --- order ---------------------------------------------------------------------------------------------------


def test_each_epoch_has_an_order_of_its_own_that_depends_on_the_seed_only() -> None:
    orders = [numbers(loader(open_source(labelled()), 5, seed=7).batches(epoch)) for epoch in (0, 1, 1)]
    assert orders[0] != orders[1]
    assert orders[1] == orders[2]
    assert orders[0] != numbers(loader(open_source(labelled()), 5, seed=8).batches(0))


def test_an_order_does_not_depend_on_where_the_samples_are_read_from(tmp_path: Path) -> None:
    samples = next(sources(tmp_path))
    kept, read = (numbers(loader(open_source(samples, mb), 5, seed=1).batches(2)) for mb in (1, 0))
    assert kept == read


def test_a_function_that_does_not_fit_is_shuffled_within_a_window() -> None:
    plan = EpochPlan(np.zeros(200, np.intp), 1, window=10)
    order = np.concatenate(plan.batches(0))
    assert sorted(order) == list(range(200))
    assert np.all(order <= np.arange(200) + 10)
    assert np.mean(order != np.arange(200)) > 0.8


def test_a_function_is_never_held_beyond_its_window(tmp_path: Path) -> None:
    each = 3 * 4 + 8  # bytes of a sample and its label
    source = open_source(function(tmp_path, VECTORS), 6 * each / 2**20)
    assert source.window == 6


@pytest.mark.parametrize("keep_mb", [1, 0])
def test_skipped_batches_are_those_at_the_start(tmp_path: Path, keep_mb: float) -> None:
    for samples in sources(tmp_path):
        batches = loader(open_source(samples, keep_mb), 5)
        assert numbers(batches.batches(4, skip=3)) == numbers(batches.batches(4))[3:]
        assert numbers(batches.batches(4, skip=len(batches))) == []


def test_iterating_goes_on_epoch_after_epoch_and_within_one_that_was_left() -> None:
    batches = loader(open_source(labelled()), 5)
    assert numbers(batches) == numbers(batches.batches(0))
    start = iter(batches)
    first = [next(start), next(start)]
    assert numbers(first) == numbers(batches.batches(1))[:2]
    assert numbers(batches) == numbers(batches.batches(1))[2:]
    batches.start_at(9, 1)
    assert numbers(batches) == numbers(batches.batches(9))[1:]


def test_a_saved_state_goes_on_with_the_batch_that_came_next() -> None:
    first = loader(open_source(labelled()), 5)
    whole = numbers(first.batches(0)) + numbers(first.batches(1))
    for taken in range(len(whole)):
        before, after = (loader(open_source(labelled()), 5) for _ in range(2))
        drawn: list[TrainingBatch] = []
        while len(drawn) < taken:
            drawn += list(islice(before, taken - len(drawn)))
        after.load_state_dict(before.state_dict())
        assert numbers(after) == whole[taken : 5 if taken < 5 else 10]


def test_processes_share_an_epoch_and_take_as_many_batches_each() -> None:
    whole = loader(open_source(labelled()), 5)
    assert len(whole) == 5
    parts = [Loader(whole.source, whole.plan, shard=(rank, 2)) for rank in range(2)]
    assert [len(part) for part in parts] == [2, 2]
    seen = numbers(whole.batches(0))
    assert numbers(parts[0].batches(0)) == [seen[0], seen[2]]
    assert numbers(parts[1].batches(0)) == [seen[1], seen[3]]
    assert [[rows.tolist() for rows in part.rows(0)] for part in parts] == [seen[:4:2], seen[1:4:2]]


# --- what comes out ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "wanted"),
    [
        (np.arange(COUNT, dtype=np.uint8), torch.int64),
        (np.arange(COUNT) > 4, torch.int64),
        (np.arange(COUNT, dtype=np.float64), torch.float32),
    ],
)
def test_labels_become_int64_or_float32(labels: np.ndarray, wanted: torch.dtype) -> None:
    batch = next(loader(open_source(open_samples({"x": X, "labels": labels}, VECTOR)), 5).batches(0))
    assert batch.labels is not None
    assert batch.labels.dtype == wanted
    np.testing.assert_array_equal(batch.labels, labels[batch.rows].astype(np.float64))


def test_inputs_keep_the_type_of_the_model_and_labels_may_be_missing() -> None:
    x = X.astype(ml_dtypes.bfloat16)
    batch = next(loader(open_source(open_samples(x, model_of(["n", 3], ir.DataType.BFLOAT16))), 5).batches(0))
    assert batch.inputs[0].dtype == torch.bfloat16
    assert batch.labels is None


def test_changing_a_batch_does_not_change_the_samples() -> None:
    x = X.copy()
    batches = loader(open_source(labelled(x)), 5)
    for batch in batches.batches(0):
        batch.inputs[0].zero_()
    again = next(batches.batches(0))
    np.testing.assert_array_equal(again.inputs[0], X[again.rows])
    np.testing.assert_array_equal(x, X)


def test_samples_that_fit_are_read_once(tmp_path: Path) -> None:
    source = open_source(function(tmp_path, f"assert calls <= 2; {VECTORS}"))
    batches = loader(source, 5)
    assert [len(list(batches.batches(epoch))) for epoch in range(3)] == [5, 5, 5]


def test_items_that_are_made_ahead_come_in_order_and_end_with_the_error_of_their_maker() -> None:
    def made() -> Iterator[int]:
        yield from range(3)
        raise DataError("no fourth")

    items = ahead(made())
    assert [next(items) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(DataError, match="no fourth"):
        next(items)


# --- bad input -----------------------------------------------------------------------------------------------


def test_a_batch_below_one_is_refused() -> None:
    with pytest.raises(OptionError, match="batch must be at least 1, got 0"):
        loader(open_source(labelled()), 0)


def test_too_few_samples_for_a_fixed_batch_are_refused() -> None:
    source = open_source(labelled(X[:3], model_of([4, 3])))
    with pytest.raises(
        DataError, match=r"fixes the batch at 4 samples of one shape, and there are 3 samples"
    ):
        loader(source, 4)


def test_labels_that_are_text_and_inputs_that_are_strings_are_refused() -> None:
    text = np.array(["a"] * COUNT)
    with pytest.raises(DataError, match=r"The labels of arrays \(x, labels\) are <U1, not numbers"):
        open_source(open_samples({"x": X, "labels": text}, VECTOR))
    with pytest.raises(DataError, match=r"Input 'x' is string\[n\], which torch cannot train on"):
        open_source(open_samples(text, model_of(["n"], ir.DataType.STRING)))


def test_a_function_labels_all_samples_or_none(tmp_path: Path) -> None:
    body = "yield from (np.zeros(3, 'float32') if i > 70 else (np.zeros(3, 'float32'), i) for i in range(80))"
    with pytest.raises(DataError, match=r"have labels and some have none\. Give every sample a label"):
        open_source(function(tmp_path, body))


def test_a_function_that_changes_between_calls_is_refused(tmp_path: Path) -> None:
    body = "yield from (np.zeros(3, 'float32') for i in range(9 - calls))"
    source = open_source(function(tmp_path, body), 0)
    with pytest.raises(DataError, match=r"gave 7 samples at first and fewer later\. Yield the same samples"):
        list(loader(source, 4).batches(0))


def test_a_function_whose_shapes_change_between_calls_is_refused(tmp_path: Path) -> None:
    body = "yield from (np.zeros(2 if calls < 3 else 2 + i % 2, 'float32') for i in range(9))"
    source = open_source(function(tmp_path, body, SEQUENCE), 0)
    with pytest.raises(
        DataError, match=r"do not share a batch: float32\[2\] without labels and float32\[3\]"
    ):
        list(loader(source, 4).batches(0))
