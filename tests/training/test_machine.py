"""Where a training runs: device, precision, several processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from compressor.errors import DataError, OptionError
from compressor.training.machine import machine
from passes.finetune import Finetune
from tests.training.trained import distance, mlp, points, train

no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")


def test_bf16_runs_on_the_cpu_and_differs_by_its_rounding() -> None:
    exact, rounded = (train(mlp(), points(), f"epochs=3 precision={p}").model for p in ("'32'", "bf16"))
    assert 0 < distance(exact, rounded) < 0.05 * distance(exact, mlp())


@no_cuda
def test_without_cuda_auto_is_the_cpu_in_32_bits() -> None:
    found = machine(Finetune())
    assert (found.device.type, found.arguments["precision"]) == ("cpu", "32-true")


@no_cuda
def test_cuda_is_refused_in_one_line_where_there_is_none() -> None:
    with pytest.raises(OptionError) as raised:
        train(mlp(), points(), "device=cuda")
    assert str(raised.value).startswith("finetune: device='cuda', but torch sees 0 CUDA devices.")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"device": "nothing"}, "no device 'nothing'"),
        ({"device": "meta"}, "device='meta' cannot be trained on"),
        ({"device": "cpu", "precision": "16"}, "precision='16' needs CUDA"),
        ({"device": "cpu", "devices": 2, "strategy": "fsdp"}, "strategy='fsdp' needs CUDA devices"),
        ({"device": "cpu", "devices": 2, "freeze": ("w1",), "unfreeze": 0.5}, "unfreeze works on one device"),
    ],
)
def test_what_cannot_be_done_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        machine(Finetune(**options))


def test_the_strategy_is_for_several_processes() -> None:
    assert machine(Finetune(device="cpu")).arguments["strategy"] == "auto"
    two = machine(Finetune(device="cpu", devices=2)).arguments
    assert (two["strategy"], two["devices"]) == ("ddp_find_unused_parameters_true", 2)
    machines = machine(Finetune(device="cpu", nodes=2)).arguments
    assert (machines["strategy"], machines["num_nodes"]) == ("ddp_find_unused_parameters_true", 2)


SCRIPT = """
import sys
import numpy as np
from compressor.errors import OptionError
from tests.training.trained import change, distance, mlp, points, train

if __name__ == "__main__":
    x = points(16)["x"]
    data = {"x": x, "labels": np.tanh(x[:, :3])}
    two = train(mlp(), data, "batch=4 devices=2 device=cpu loss=mse shuffle=False")
    one = train(mlp(), data, "batch=8 loss=mse shuffle=False")
    assert distance(two.model, one.model) < 1e-6
    assert distance(two.model, mlp()) > 1e-2
    for name in ("score before", "score after", "best epoch", "epochs", "steps"):
        assert abs(change(two).figures[name] - change(one).figures[name]) < 1e-5, name
    try:
        train(mlp(), data, "batch=4 devices=2 device=cpu loss=mse")
    except OptionError as error:
        print("done:", error)
"""


def test_two_processes_train_as_one_with_twice_the_batch(tmp_path: Path) -> None:
    """A step of two processes is the mean of their gradients, and each takes every other batch."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, str(script)], env=env, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "done: finetune: several devices train once per run, and they have." in done.stdout


def test_more_processes_than_batches_are_refused() -> None:
    with pytest.raises(DataError, match="finetune: 1 batches cannot be shared by 2 processes"):
        train(mlp(), points(8), "batch=8 devices=2 device=cpu")
