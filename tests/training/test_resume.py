"""A training that was cut off anywhere goes on to the same model, and a checkpoint that does not fit is refused."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import pytorch_lightning as pl

from compressor.data import open_samples
from compressor.errors import DataError, OptionError
from compressor.pipeline import Change, Compressed, Context, Pipeline
from tests.conftest import build, drawn

ROOT = Path(__file__).parents[2]
CNN = """
<ir_version: 8, opset_import: ["" : 17]>
cnn (float[N, 2, 4, 4] x) => (float[N, 3] y) {
  c = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, wc, bc)
  n = BatchNormalization (c, scale, bias, mean, var)
  r = Relu (n)
  f = Flatten (r)
  y = Gemm (f, wg, bg)
}
"""
X = drawn(32, 2, 4, 4, seed=1)
Y = (X[:, 0].mean((1, 2)) > 0).astype(np.int64) + (X[:, 1].mean((1, 2)) > 0)
BASE = "epochs=4 batch=8 dropout=0.2 augment={'flip': 0.5, 'noise': 0.1} keep=last"
BATCHES = 4
"""In an epoch: 29 samples, as 3 are held out."""
RECIPES = {
    "ema, plateau, adamw": "average=ema ema_decay=0.9 schedule=plateau plateau_patience=0 gamma=0.5",
    "swa, one cycle, accumulation": "average=swa swa_start=0.4 schedule=one-cycle accumulate=3",
    "patience, sgd": "optimizer=sgd patience=3 schedule=constant lr_decay=0.9",
    "unfreezing, clipping, max norm": "freeze_depth=0.5 unfreeze=0.5 clip_norm=0.1 max_norm=1.0",
}


def network() -> ir.Model:
    ones, zeros = np.ones(4, np.float32), np.zeros(4, np.float32)
    statistics = {"scale": ones, "bias": zeros, "mean": zeros, "var": ones}
    weights = {"wc": drawn(4, 2, 3, 3), "bc": drawn(4), "wg": drawn(64, 3, seed=2), "bg": drawn(3)}
    return ir.from_proto(build(CNN, **weights, **statistics))


def train(recipe: str, folder: Path | None = None, **more: Any) -> Compressed:
    model, images = more.pop("model", None) or network(), more.pop("images", X)
    samples = open_samples({"x": images, "labels": Y}, model, "train")
    return Pipeline.parse(recipe).run(model, Context(train=samples, workspace=folder, **more))


def weights(made: Compressed) -> bytes:
    return ir.to_proto(made.model).SerializeToString(deterministic=True)


def trained(made: Compressed) -> Change:
    return next(change for change in reversed(made.changes) if change.recipe.startswith("finetune"))


class At(pl.Callback):
    """Does something before the given batch of the whole training, counted from 0."""

    def __init__(self, batch: int, act: Callable[[], object]) -> None:
        self.batch = batch
        self.act = act

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch * BATCHES + batch_idx == self.batch:
            self.act()


def ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def interrupted(recipe: str, folder: Path, batch: int, **more: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(recipe, folder, callbacks=[At(batch, ctrl_c)], **more)


@pytest.mark.parametrize("options", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("batch", [2, BATCHES, 11])
def test_an_interrupted_training_goes_on_to_the_same_weights(
    tmp_path: Path, options: str, batch: int
) -> None:
    recipe = f"finetune{{{BASE} lr=0.01 {options}}}"
    whole = train(recipe)
    assert weights(whole) != ir.to_proto(network()).SerializeToString(deterministic=True)
    interrupted(recipe, tmp_path, batch)
    again = train(recipe, tmp_path, resume=True)
    assert trained(again).figures["resumed after epoch"] == batch // BATCHES
    assert weights(again) == weights(whole)


def test_a_training_that_is_complete_is_not_repeated(tmp_path: Path) -> None:
    recipe = f"finetune{{{BASE} lr=0.01}}"
    whole = train(recipe, tmp_path)
    again = train(recipe, tmp_path, resume=True, callbacks=[At(0, lambda: pytest.fail("trained again"))])
    assert weights(again) == weights(whole)
    assert trained(again).figures["resumed after epoch"] == 4
    assert trained(again).figures["samples per second"] == 0


def test_a_training_that_stopped_early_stays_stopped(tmp_path: Path) -> None:
    recipe = f"finetune{{{BASE} lr=1e-12 patience=1}}"
    whole = train(recipe, tmp_path)
    assert trained(whole).figures["epochs"] == 2
    again = train(recipe, tmp_path, resume=True)
    assert weights(again) == weights(whole)
    assert trained(again).figures["epochs"] == 2


def test_a_training_that_went_astray_is_not_taken_up(tmp_path: Path) -> None:
    recipe = f"finetune{{{BASE} lr=1e30 schedule=constant}}"
    whole = train(recipe, tmp_path)
    again = train(recipe, tmp_path, resume=True)
    assert "NaN" in trained(whole).declined["training"]
    assert trained(again).declined == trained(whole).declined
    assert weights(again) == weights(whole)


def test_resuming_without_a_checkpoint_begins_at_the_beginning(tmp_path: Path) -> None:
    recipe = f"finetune{{{BASE} lr=0.01}}"
    made = train(recipe, tmp_path / "none", resume=True)
    assert trained(made).figures["resumed after epoch"] == 0
    assert weights(made) == weights(train(recipe))


def test_each_pass_of_a_pipeline_has_a_checkpoint_of_its_own(tmp_path: Path) -> None:
    recipe = f"finetune{{{BASE} lr=0.01}},finetune{{{BASE} lr=0.01 optimizer=sgd}}"
    whole = train(recipe)
    second = [At(6, ctrl_c)]
    train(f"finetune{{{BASE} lr=0.01}}", tmp_path)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path, resume=True, callbacks=second)
    assert sorted(file.name[:2] for file in tmp_path.iterdir()) == ["0-", "1-"]
    again = train(recipe, tmp_path, resume=True)
    assert [change.figures["resumed after epoch"] for change in again.changes] == [4, 1]
    assert weights(again) == weights(whole)


def test_half_a_checkpoint_hurts_nobody(tmp_path: Path) -> None:
    recipe = f"finetune{{{BASE} lr=0.01}}"
    whole = train(recipe)
    interrupted(recipe, tmp_path, 9)
    (file,) = tmp_path.iterdir()
    file.with_suffix(".writing").write_bytes(file.read_bytes()[:1000])
    assert weights(train(recipe, tmp_path, resume=True)) == weights(whole)
    assert [left.name for left in tmp_path.iterdir()] == [file.name]


@pytest.mark.parametrize(
    "change",
    [
        {"recipe": f"finetune{{{BASE} lr=0.02}}"},
        {"seed": 1},
        {"metric": "f1"},
        {"images": X + 1},
        {"model": "other"},
    ],
    ids=["recipe", "seed", "metric", "data", "model"],
)
def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    interrupted(f"finetune{{{BASE} lr=0.01}}", tmp_path, 5)
    (before,) = (file.read_bytes() for file in tmp_path.iterdir())
    if change.get("model"):
        model = network()
        model.graph.initializers["bg"].const_value = ir.tensor(drawn(3, seed=9))
        change = {"model": model}
    recipe = change.pop("recipe", f"finetune{{{BASE} lr=0.01}}")
    with pytest.raises(
        DataError, match=r"The checkpoint '.*\.ckpt' is of another training: the model, the"
    ) as caught:
        train(recipe, tmp_path, resume=True, **change)
    assert "Run without --resume" in str(caught.value)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [before]


@pytest.mark.parametrize("harm", ["cut short", "one bit", "empty", "text"])
def test_a_damaged_checkpoint_is_refused_in_one_line(tmp_path: Path, harm: str) -> None:
    recipe = f"finetune{{{BASE} lr=0.01}}"
    interrupted(recipe, tmp_path, 5)
    (file,) = tmp_path.iterdir()
    content = bytearray(file.read_bytes())
    with zipfile.ZipFile(file) as entries:  # between the entries there is padding, which no one reads
        largest = max((entries.read(entry) for entry in entries.infolist()), key=len)
    content[content.find(largest) + len(largest) // 2] ^= 1
    harmed = {"cut short": content[:-2000], "one bit": content, "empty": b"", "text": b"nothing" * 400}
    file.write_bytes(harmed[harm])
    with pytest.raises(DataError, match=r"The checkpoint '.*\.ckpt' is damaged. Remove it, or run without"):
        train(recipe, tmp_path, resume=True)


def test_the_log_of_the_interrupted_run_is_kept(tmp_path: Path) -> None:
    recipe, log = f"finetune{{{BASE} lr=0.01}}", tmp_path / "log"
    interrupted(recipe, tmp_path / "state", 9, log=log)
    before = (log / "pass-0" / "metrics.csv").read_bytes()
    train(recipe, tmp_path / "state", log=log, resume=True)
    assert (log / "pass-0" / "metrics.csv").read_bytes() == before
    after = (log / "pass-0-resumed-1" / "metrics.csv").read_text().splitlines()
    epochs = {row.split(",")[after[0].split(",").index("epoch")] for row in after[1:]}
    assert epochs == {"2", "3"}


def test_resuming_needs_a_folder() -> None:
    with pytest.raises(
        OptionError, match=r"finetune: resume needs the folder of a checkpoint. Give checkpoint="
    ):
        train(f"finetune{{{BASE} lr=0.01}}", None, resume=True)


def test_a_full_disk_while_a_checkpoint_is_written_leaves_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, save, written = f"finetune{{{BASE} lr=0.01}}", pl.Trainer.save_checkpoint, []

    def full(trainer: pl.Trainer, path: Path, *rest: Any) -> None:
        save(trainer, path, *rest)
        written.append(path)
        if len(written) == 2:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pl.Trainer, "save_checkpoint", full)
    with pytest.raises(
        OptionError, match=r"cannot be written: No space left on device. Free some space or"
    ) as caught:
        train(recipe, tmp_path)
    assert "--resume" in str(caught.value)
    monkeypatch.undo()
    assert len(list(tmp_path.iterdir())) == 1
    again = train(recipe, tmp_path, resume=True)
    assert trained(again).figures["resumed after epoch"] == 1
    assert weights(again) == weights(train(recipe))


def test_a_folder_that_cannot_be_made_is_refused_before_the_first_step(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OptionError, match=r"The checkpoint folder '.*' cannot be made: Not a directory"):
        train(f"finetune{{{BASE} lr=0.01}}", tmp_path / "file" / "folder", callbacks=[At(0, pytest.fail)])


def test_ctrl_c_gives_python_its_handler_and_warnings_back(tmp_path: Path) -> None:
    handler, filters = signal.getsignal(signal.SIGINT), list(warnings.filters)
    interrupted(f"finetune{{{BASE} lr=0.01}}", tmp_path, 1)
    assert signal.getsignal(signal.SIGINT) is handler
    assert warnings.filters == filters


KILLER = """
import os, random, signal, sys, time
from pathlib import Path

sys.path[:0] = [sys.argv[2], sys.argv[3]]
import torch

torch.set_num_threads(1)  # a forked process must not have threads
import test_resume as t
import compressor.training.fitting

folder, draw = Path(sys.argv[1]), random.Random(int(sys.argv[4]))
recipe = "finetune{" + t.BASE.replace("epochs=4", "epochs=12") + " lr=0.01 average=ema schedule=plateau}"


def forked(name, workspace, resume):
    child = os.fork()
    if child:
        return child
    made = t.train(recipe, workspace, resume=resume)
    (folder / name).write_bytes(t.weights(made))
    os._exit(0)


def state():
    names = os.listdir(folder / "state") if (folder / "state").exists() else []
    return names, [os.stat(folder / "state" / n).st_mtime_ns for n in names if n.endswith(".ckpt")]


assert os.waitpid(forked("whole", None, False), 0)[1] == 0
kills = 0
while True:
    seen = state()
    child = forked("killed", folder / "state", True)
    changes = draw.randrange(4)  # of the folder, which is made, and then has a file written and moved by turns
    while changes and os.waitpid(child, os.WNOHANG) == (0, 0):
        if state() != seen:
            seen, changes = state(), changes - 1
    if changes:
        break
    time.sleep(draw.random() / 50)
    os.kill(child, signal.SIGKILL)
    kills += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    if kills == 5:
        os.waitpid(forked("killed", folder / "state", True), 0)
        break
print(kills)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_training_killed_at_random_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    words = [str(tmp_path), str(ROOT / "tests" / "training"), str(ROOT / "tests"), str(os.getpid())]
    made = subprocess.run(
        [sys.executable, "-c", KILLER, *words], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert made.returncode == 0, made.stderr
    assert int(made.stdout) > 0
    assert (tmp_path / "killed").read_bytes() == (tmp_path / "whole").read_bytes()
