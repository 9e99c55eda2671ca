"""The cost of calibration as a multiple of pure inference, and its memory; the start of the command line.

    python benchmarks/calibration.py MODEL.onnx CALIBRATION.npz [MODEL CALIBRATION ...]
    python benchmarks/calibration.py --memory MODEL.onnx CALIBRATION.npz
    python benchmarks/calibration.py --start

Each method runs in turn with pure inference of the same samples in the same process, one inference thread; printed are
the median of the ratios and their range, in wall time and in CPU time of the process. `--memory` compares the peak of
1x and 8x the samples, each in a process of its own. `--start` compares `compress --help` with
`python -c "import click"`, in turn, wall time.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

METHODS = ("minmax", "moving-average", "percentile", "entropy", "mse")
ROUNDS = 7


def main() -> None:
    words = sys.argv[1:]
    if words[:1] == ["--start"]:
        start()
    elif words[:1] == ["--memory"]:
        memory(*words[1:])
    elif words[:1] == ["--peak"]:
        peak(words[1], words[2], int(words[3]))
    else:
        for model, samples in zip(words[::2], words[1::2], strict=True):
            ratios(model, samples)


def planned(model: str):
    """The prepared model at operator set 13, and the names of the values that quantize-int8 watches."""
    from compressor.model_io import load
    from compressor.opset import upgrade
    from compressor.placement import Selection, plan
    from compressor.prepare import prepare

    ready = prepare(load(model)).model
    upgrade(ready, 13)
    return ready, plan(ready, Selection()).observed()


def ratios(model: str, samples: str) -> None:
    """One line per method: calibration time / inference time."""
    from compressor.calibration import calibrate
    from compressor.data import open_samples
    from compressor.observers import observer
    from compressor.pipeline import Context
    from compressor.runtime import Session, Setup

    ready, names = planned(model)
    data = open_samples(samples, ready, "calibration")
    session = Session(ready, Setup(threads=1))
    batches = [batch.feeds for batch in data.batches()]

    def infer() -> None:
        for feeds in batches:
            session.run(feeds)

    def watch(method: str) -> None:
        calibrate(ready, names, data, {n: observer(method) for n in names}, Context(threads=1))

    infer()
    cpu: dict[str, list[float]] = {method: [] for method in METHODS}
    wall: dict[str, list[float]] = {method: [] for method in METHODS}
    for _ in range(ROUNDS):
        for method in METHODS:
            base, taken = clocked(infer), clocked(lambda chosen=method: watch(chosen))
            cpu[method].append(taken[0] / base[0])
            wall[method].append(taken[1] / base[1])
    print(
        f"{Path(model).stem}: {len(data)} samples, {len(names)} values watched, inference {clocked(infer)[1]:.3f} s"
    )
    for method in METHODS:
        print(
            f"  {method:14} {middle(wall[method])} of inference in wall time, {middle(cpu[method])} in CPU time"
        )


def middle(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.2f}x [{min(ratios):.2f}, {max(ratios):.2f}]"


def clocked(act) -> tuple[float, float]:
    """CPU seconds of the process and wall seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    act()
    return time.process_time() - cpu, time.perf_counter() - wall


def memory(model: str, samples: str) -> None:
    """Peak memory for 1x and 8x the samples."""
    peaks = []
    for times in (1, 8):
        command = [sys.executable, __file__, "--peak", model, samples, str(times)]
        peaks.append(float(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    print(
        f"{Path(model).stem}: peak {peaks[0]:.0f} MB for 1x, {peaks[1]:.0f} MB for 8x: {peaks[1] / peaks[0]:.2f}x"
    )


def peak(model: str, samples: str, times: int) -> None:
    """Calibrate on the samples `times` over, read from memory-mapped files, and print this process's peak in MB."""
    import tempfile

    from compressor.data import open_samples
    from compressor.model_io import load
    from compressor.pipeline import Context, Pipeline

    original = load(model)
    with tempfile.TemporaryDirectory() as folder, np.load(samples) as arrays:
        for name in (n for n in arrays.files if n != "labels"):
            rows = arrays[name]
            out = np.lib.format.open_memmap(
                Path(folder) / f"{name}.npy",
                mode="w+",
                dtype=rows.dtype,
                shape=(times * len(rows), *rows.shape[1:]),
            )
            for at in range(times):
                out[at * len(rows) : (at + 1) * len(rows)] = rows
            del out
        data = open_samples(folder, original, "calibration")
        Pipeline.parse("quantize-int8{calibration=entropy}").run(
            original, Context(calibration=data, threads=1)
        )
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def start() -> None:
    """`compress --help` against `import click`."""
    commands = (
        [sys.executable, "-c", "import click"],
        [sys.executable, "-c", "from compressor.cli import main; main(['--help'])"],
    )
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(21):
        for command, kept in zip(commands, times, strict=True):
            begun = time.perf_counter()
            subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
            kept.append(time.perf_counter() - begun)
    ratio = statistics.median(b / a for a, b in zip(*times, strict=True))
    print(
        f"compress --help takes {ratio:.2f}x the time of import click ({statistics.median(times[0]):.3f} s)"
    )


if __name__ == "__main__":
    main()
