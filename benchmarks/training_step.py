"""The time of training an imported ONNX file, as ratios to the native torch module that it was exported from.

    python benchmarks/training_step.py [NAME ...]                  # one forward and backward pass
    python benchmarks/training_step.py --loop [NAME ...]           # the loop of `finetune`
    python benchmarks/training_step.py --device cuda [--loop]      # in bf16, with samples per second

Steps: the module is exported by torch's current exporter with a dynamic batch, with its optimizer (which folds
BatchNormalization) and without, and imported by `to_torch`. Same inputs, loss and train mode; the modules take turns,
and each round gives one ratio imported / native. Loops: the epochs of `finetune` take turns with epochs of the same
loop written by hand: native module, same optimizer, batches drawn from a tensor by a shuffled index. Only steps are
timed, neither set-up nor scoring.

Printed is the median of the ratios with its 95 % interval. One thread and the CPU time of the process on the CPU,
wall time on a GPU. `--json FILE` keeps the figures.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from training_networks import CLASSES, NETWORKS, Network

from compressor.data import open_samples
from compressor.exporting.silence import caught
from compressor.pipeline import Context
from compressor.timing import interval
from compressor.torch_graph import to_torch
from passes.finetune import Finetune

Step = Callable[[], Tensor]
EPOCH_STEPS = 12
"""Steps of an epoch in the comparison of loops."""
LOOP_TARGET = 1.15
"""Largest wanted time of `finetune` / the loop by hand."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NETWORKS)}; default: all")
    parser.add_argument("--loop", action="store_true", help="compare the whole loop")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, help="samples per step; default: small enough for a CPU")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    device = torch.device(arguments.device)
    rows = []
    for name in arguments.names or NETWORKS:
        network = NETWORKS[name]
        batch = arguments.batch or network.batch
        compare, target = (loops, LOOP_TARGET) if arguments.loop else (steps, network.target)
        for row in compare(network, batch, arguments.rounds, device):
            rows.append({"network": name, "batch": batch, "target": target, **row})
            print(line(rows[-1]), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


def exported(native: nn.Module, inputs: tuple[Tensor, ...], optimize: bool) -> ir.Model:
    """The ONNX form of a module, with a dynamic batch."""
    dynamic = tuple({0: torch.export.Dim("batch")} for _ in inputs)
    with caught():
        program = torch.onnx.export(
            native.eval(), inputs, dynamo=True, dynamic_shapes=dynamic, optimize=optimize, verbose=False
        )
    return ir.from_proto(program.model_proto)


def steps(network: Network, batch: int, rounds: int, device: torch.device) -> list[dict[str, Any]]:
    """The ratios of a forward and backward pass, for both ways to export."""
    native = network.make()
    inputs = network.inputs(batch)
    labels = torch.randint(0, CLASSES, (batch,)).to(device)
    forms = {"folded": exported(native, inputs, True), "plain": exported(native, inputs, False)}
    given = tuple(x.to(device) for x in inputs)
    modules = [native.to(device), *(to_torch(model).to(device) for model in forms.values())]
    with torch.no_grad():
        expected = modules[0].eval()(*given)
        for module in modules[1:]:
            torch.testing.assert_close(module(*given), expected, rtol=1e-3, atol=1e-4)
    times = interleaved([step(module.train(), given, labels) for module in modules], rounds, device)
    rows = []
    for at, form in enumerate(forms, 1):
        rows.append({"form": form, **ratio(times[:, at], times[:, 0], batch)})
    return rows


def step(module: nn.Module, inputs: tuple[Tensor, ...], labels: Tensor) -> Step:
    """One forward and backward pass."""

    def run() -> Tensor:
        module.zero_grad(set_to_none=True)
        with precision(labels.device):
            loss = F.cross_entropy(module(*inputs), labels)
        loss.backward()
        return loss

    return run


def precision(device: torch.device) -> AbstractContextManager[Any]:
    """bf16 on a GPU, float32 on the CPU."""
    return nullcontext() if device.type == "cpu" else torch.autocast(device.type, torch.bfloat16)


def interleaved(runs: Sequence[Callable[[], object]], rounds: int, device: torch.device) -> np.ndarray:
    """Seconds [rounds, runs]; each round runs all of them once, in an order of its own."""
    for run in runs:
        run()
        run()
    order = np.random.default_rng(0)
    seconds = np.empty((rounds, len(runs)))
    for row in seconds:
        for at in order.permutation(len(runs)):
            start = now(device)
            runs[at]()
            row[at] = now(device) - start
    return seconds


def now(device: torch.device) -> float:
    """Seconds of this process's CPU time, or of the wall once a GPU is done."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def ratio(ours: np.ndarray, native: np.ndarray, samples: int) -> dict[str, Any]:
    """The median of ours / native with its interval, and samples per second of both."""
    ratios = ours / native
    low, high = interval(ratios.tolist())
    speed = {"imported": samples / float(np.median(ours)), "native": samples / float(np.median(native))}
    return {"ratio": float(np.median(ratios)), "low": low, "high": high, "samples_per_s": speed}


def line(row: dict[str, Any]) -> str:
    """One printed row."""
    speed = row["samples_per_s"]
    verdict = "" if row["ratio"] <= row["target"] else f"  above {row['target']}"
    return (
        f"{row['network']:12} batch {row['batch']:<4} {row['form']:9} {row['ratio']:.3f} "
        f"[{row['low']:.3f}, {row['high']:.3f}]  {speed['imported']:.0f} of {speed['native']:.0f} samples/s{verdict}"
    )


def loops(network: Network, batch: int, rounds: int, device: torch.device) -> list[dict[str, Any]]:
    """The ratio of an epoch of `finetune` to one written by hand, on the file that keeps BatchNormalization."""
    native = network.make()
    model = exported(native, network.inputs(batch), False)
    samples = EPOCH_STEPS * batch
    inputs = network.inputs(samples)
    labels = torch.randint(0, CLASSES, (samples,))
    arrays = [x.numpy() for x in (*inputs, labels)]
    names = [*(str(value.name) for value in model.graph.inputs), "labels"]
    train = open_samples(dict(zip(names, arrays, strict=True)), model, "train")
    by_hand = hand_written(native.to(device).train(), inputs, labels, batch, rounds)
    alternating = Alternating(by_hand, device)
    context = Context(train=train, data=train.take(8), original=model, callbacks=[alternating])
    Finetune(epochs=rounds, batch=batch, warmup=0, device=str(device)).apply(model, context)
    ours, theirs = np.array(alternating.seconds[2:]).T
    return [{"form": "loop", **ratio(ours, theirs, samples)}]


def hand_written(
    native: nn.Module, inputs: tuple[Tensor, ...], labels: Tensor, batch: int, epochs: int
) -> Callable[[], None]:
    """What runs one epoch of a plain loop."""
    device = next(native.parameters()).device
    inputs, labels = tuple(x.to(device) for x in inputs), labels.to(device)
    optimizer = torch.optim.AdamW(native.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * EPOCH_STEPS)

    def epoch() -> None:
        for rows in torch.randperm(len(labels), device=device).split(batch):
            optimizer.zero_grad()
            with precision(device):
                loss = F.cross_entropy(native(*(x[rows] for x in inputs)), labels[rows])
            loss.backward()
            optimizer.step()
            schedule.step()

    return epoch


class Alternating(pl.Callback):
    """Runs the other loop before every epoch, and times both: seconds of [ours, by hand] per epoch."""

    def __init__(self, other: Callable[[], None], device: torch.device) -> None:
        self.other = other
        self.device = device
        self.seconds: list[tuple[float, float]] = []
        self._other_s = self._start = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The other loop, then this epoch begins."""
        start = now(self.device)
        self.other()
        self._start = now(self.device)
        self._other_s = self._start - start

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """This epoch ends with its last step, before it is scored."""
        if trainer.is_last_batch:
            self.seconds.append((now(self.device) - self._start, self._other_s))


if __name__ == "__main__":
    main()
