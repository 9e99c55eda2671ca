"""Old samples in the batches of new ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from compressor.data import open_samples
from compressor.errors import DataError, OptionError
from compressor.training.loading import Loader, loader, open_source
from compressor.training.replaying import replayed
from compressor.training.sources import Source


def model_of(*dims: int | str) -> ir.Model:
    value = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(dims))
    return ir.Model(ir.Graph([value], [], nodes=[], opset_imports={"": 20}), ir_version=10)


def source(
    count: int, first: int, keep_mb: float = 1, batch: int | str = "n", dtype: type = np.int64
) -> Source:
    """Samples whose two features and labels are `first`, `first` + 1, ..."""
    numbers = np.arange(first, first + count)
    x = np.repeat(numbers[:, None], 2, axis=1).astype(np.float32)
    arrays = {"x": x, "labels": numbers.astype(dtype)}
    return open_source(open_samples(arrays, model_of(batch, 2)), keep_mb)


def mixed(share: float = 0.25, keep_mb: float = 1, batch: int | str = "n") -> Loader:
    return replayed(loader(source(30, 0, keep_mb, batch), 8), source(7, 100, keep_mb, batch), share)


@pytest.mark.parametrize("keep_mb", [1, 0])
@pytest.mark.parametrize(("share", "old"), [(0.25, 2), (0.5, 4), (0.9, 7), (0.1, 1)])
def test_the_share_of_each_batch_is_old_and_each_new_sample_comes_once(
    keep_mb: float, share: float, old: int
) -> None:
    batches = list(mixed(share, keep_mb).batches(0))
    assert len(batches) == len(mixed(share, keep_mb))
    new = np.concatenate([batch.rows[batch.rows < 30] for batch in batches])
    assert sorted(new) == list(range(30))
    for batch in batches:
        assert sum(batch.rows >= 30) == old
        assert batch.rows[-old:].min() >= 30
        assert batch.labels is not None
        wanted = np.where(batch.rows < 30, batch.rows, batch.rows + 70)
        np.testing.assert_array_equal(batch.labels, wanted)
        np.testing.assert_array_equal(batch.inputs[0][:, 1], wanted)
    assert {len(batch.rows) for batch in batches[:-1]} <= {8, 9}  # 9: a last sample joined it


def test_all_old_samples_come_before_any_comes_again_across_epochs() -> None:
    batches = mixed(0.25)
    old = [batch.rows[batch.rows >= 30] for epoch in range(5) for batch in batches.batches(epoch)]
    drawn = np.concatenate(old)
    turns = drawn[: len(drawn) // 7 * 7].reshape(-1, 7)
    assert len(turns) > 4
    for turn in turns:
        assert sorted(turn) == list(range(30, 37))
    assert len({tuple(turn) for turn in turns}) > 1


def test_an_epoch_can_be_taken_up_again_at_any_batch() -> None:
    whole = [batch.rows.tolist() for batch in mixed().batches(3)]
    assert [batch.rows.tolist() for batch in mixed().batches(3, skip=2)] == whole[2:]


def test_a_fixed_batch_is_full_of_new_and_old_samples_together() -> None:
    batches = list(mixed(0.5, batch=6).batches(0))
    assert [len(batch.rows) for batch in batches] == [6] * 10


def test_new_samples_may_come_from_a_function(tmp_path: Path) -> None:
    path = tmp_path / "data.py"
    body = "    yield from ((np.full(2, i, 'float32'), i) for i in range(30))\n"
    path.write_text(f"import numpy as np\n\n\ndef samples():\n{body}")
    new = open_source(open_samples(f"{path}:samples", model_of("n", 2)), 100 / 2**20)
    assert new.window is not None
    batches = list(replayed(loader(new, 8), source(7, 100), 0.25).batches(0))
    assert sorted(np.concatenate([batch.rows[batch.rows < 30] for batch in batches])) == list(range(30))
    with pytest.raises(DataError, match=r"the old samples come from a function and do not fit in memory"):
        replayed(loader(source(30, 0), 8), new, 0.25)


def test_a_share_of_zero_changes_nothing_and_a_useless_one_is_refused() -> None:
    new = loader(source(30, 0), 8)
    assert replayed(new, source(7, 100), 0) is new
    with pytest.raises(
        OptionError, match=r"replay=0.05 of a batch of 8 is 0 samples; at least one must be old"
    ):
        replayed(new, source(7, 100), 0.05)
    with pytest.raises(OptionError, match=r"replay=1 of a batch of 8 is 8 samples"):
        replayed(new, source(7, 100), 1)
    with pytest.raises(OptionError, match="these batches have old samples already"):
        replayed(mixed(), source(7, 100), 0.25)


def test_old_samples_must_have_the_shapes_and_types_of_the_new_ones() -> None:
    new = loader(source(30, 0), 8)
    with pytest.raises(
        DataError, match=r"do not fit to the new ones.*float32\[2\], int64\[\] and .*float32\[\]"
    ):
        replayed(new, source(7, 100, dtype=np.float32), 0.25)
    wider = open_source(open_samples({"x": np.zeros((3, 5), np.float32)}, model_of("n", "f")))
    with pytest.raises(DataError, match=r"float32\[5\] without labels"):
        replayed(new, wider, 0.25)


def test_samples_of_several_shapes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.py"
    path.write_text(
        "import numpy as np\n\n\ndef samples():\n    return [np.zeros(2, 'f4'), np.zeros(3, 'f4')]\n"
    )
    ragged = open_source(open_samples(f"{path}:samples", model_of("n", "f")))
    with pytest.raises(DataError, match=r"the samples have several shapes. Give a resize or crop"):
        replayed(loader(source(30, 0), 8), ragged, 0.25)
