"""What it costs to load a model: the time to create a session, and memory at its peak, in a process of its own.

A process that has loaded one model keeps memory for the next, so every figure comes from a fresh Python that imports
onnxruntime, and numpy with it, and nothing else. There a session on the CPU with one thread is created:

    time     wall and CPU time of that one call, which reads the file, from the system's cache as a rule. Other
             programs lengthen the first, not the second.
    memory   peak resident memory of the process behind that call, less the same just before it: the file as it is
             read, the constants that are evaluated, the weights in the kernels' own layout.

Both include what the first session in any process takes of onnxruntime itself (3 ms and 9 MB for a model of two
layers). The peak is VmHWM on Linux: ru_maxrss of a new process starts there at what its parent held, which can hide
all of the model. On macOS it is ru_maxrss; elsewhere, as on Windows, there is no figure.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import onnx_ir as ir

from compressor.errors import ModelError
from compressor.pipeline import Progress, silent
from compressor.report import Load
from compressor.runtime import runnable

ROUNDS = 3
_LONG_SECONDS = 3.0
_CHILD = """
import json, sys, time
import onnxruntime

def peak():
    if sys.platform == "darwin":
        import resource
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        with open("/proc/self/status") as status:
            return next((int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:")), None)
    except OSError:
        return None

onnxruntime.set_default_logger_severity(4)
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
before, wall, cpu = peak(), time.perf_counter(), time.process_time()
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
cpu, wall, after = time.process_time() - cpu, time.perf_counter() - wall, peak()
print(json.dumps([wall * 1e3, cpu * 1e3, None if None in (before, after) else after - before]))
"""


def load_costs(models: Sequence[ir.Model | Path], progress: Progress = silent) -> tuple[Load, ...]:
    """Load time and peak memory of each model: medians of three rounds over all of them, each load in a new process.

    A process takes about 0.15 s besides the load, so two small models take 1 s in all: little enough for every report.
    After 3 s no further round begins; big models are loaded once.

    Args:
        models: a file is loaded as it is; a model in memory is written to a temporary one.
        progress: called before every round.

    Raises:
        ModelError: a model does not load in a process of its own, or none can be started.
        OSError: a temporary file cannot be written.
    """
    with ExitStack() as stack:
        files = [_file(model, stack) for model in models]
        rounds: list[list[Load]] = []
        start = time.perf_counter()
        while not rounds or (len(rounds) < ROUNDS and time.perf_counter() - start <= _LONG_SECONDS):
            progress("loading in new processes", len(rounds), ROUNDS)
            rounds.append([_loaded(file) for file in files])
    return tuple(_middle(loads) for loads in zip(*rounds, strict=True))


def _middle(loads: Sequence[Load]) -> Load:
    """Each figure by itself: the slowest load need not take the most memory."""
    peaks = [load.peak_bytes for load in loads if load.peak_bytes is not None]
    return Load(
        wall_ms=median(load.wall_ms for load in loads),
        cpu_ms=median(load.cpu_ms for load in loads),
        peak_bytes=int(median(peaks)) if peaks else None,
    )


def _file(model: ir.Model | Path, stack: ExitStack) -> Path:
    """The file of the model; one in memory is written to a temporary folder that goes with the stack."""
    if isinstance(model, Path):
        return model
    source, folder = runnable(model)
    if folder is not None:
        stack.enter_context(folder)
    if not isinstance(source, bytes):
        return Path(source)
    file = Path(stack.enter_context(TemporaryDirectory(prefix="compressor-"))) / "model.onnx"
    file.write_bytes(source)
    return file


def _loaded(file: Path) -> Load:
    command = [sys.executable, "-P", "-c", _CHILD, str(file)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        wall, cpu, peak = json.loads(done.stdout)
    except subprocess.CalledProcessError as error:
        said = (error.stderr.strip().splitlines() or [f"it ended with {error.returncode}"])[-1]
        raise ModelError(f"The model does not load in a process of its own: {said[:300]}") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"A process that loads the model cannot be run: {error}.") from error
    return Load(wall_ms=wall, cpu_ms=cpu, peak_bytes=peak)
