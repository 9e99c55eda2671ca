"""Few bits per weight on trained networks: what is lost without any training, and what files and sessions cost.

    python benchmarks/low_bit.py untrained --zoo FOLDER [NAME ...]
    python benchmarks/low_bit.py sizes --zoo FOLDER [NAME ...]

FOLDER has export.py and manifest.json. `untrained` prints, for every classification model there, the points of top-1
lost to ternary, 3-, 4- and 8-bit weights with int8 activations, paired with the float model on the same samples, with
the 95 % interval; `int8` is quantize-int8, for comparison. `sizes` prints for each kind of file: how much smaller than
the float file, bits per weight with all else in the file counted as weights, load time and peak memory at load in a
process of its own, and latency as int8 time / its time against our int8 model, float included (one thread, thread CPU
time, all files interleaved in one run, 95 % interval).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx_ir as ir

from compressor import Context, Pipeline, load, metrics, open_samples, save
from compressor.data import Samples
from compressor.errors import CompressorError
from compressor.latency import Protocol, measure
from compressor.load_cost import load_costs
from compressor.measurement import outputs_on
from compressor.runtime import Setup
from compressor.summary import summarize

CLASSIFIERS = (
    "resnet8_cifar10_mlperftiny",
    "resnet20_cifar10",
    "resnet56_cifar10",
    "mobilenetv2s_cifar10",
    "dscnn_kws_mlperftiny",
    "mobilenetv1_025_vww_mlperftiny",
    "mobilenetv1_10_tinyimagenet",
    "mnist_cntk",
    "mlp_digits",
    "mlp_digits_functions",
    "crnn_lstm_fsdd",
)
UNTRAINED = {
    "ternary": "quantize-ternary{reconstruct=gptq}",
    "ternary, all layers": "quantize-ternary{reconstruct=gptq keep_first_last=False min_elements=1}",
    "3 bits": "quantize-weights{bits=3 activations='int8' reconstruct=gptq}",
    "4 bits": "quantize-weights{bits=4 activations='int8' reconstruct=gptq}",
    "8 bits": "quantize-int8",
}
SIZES = {
    "int8": "quantize-int8",
    "4 bits": "quantize-weights{bits=4 activations='int8'}",
    "3 bits": "quantize-weights{bits=3 activations='int8'}",
    "ternary": "quantize-ternary",
    "binary": "quantize-binary",
    "binary, 2 bases": "quantize-binary{method=residual bases=2}",
    "ternary, float activations": "quantize-ternary{activations=float}",
}
DYNAMIC = {
    "int8": "quantize-dynamic",
    "4 bits": "quantize-weights{bits=4},quantize-dynamic",
    "ternary": "quantize-ternary{activations=float},quantize-dynamic",
    "ternary, float activations": "quantize-ternary{activations=float}",
    "binary": "quantize-binary{activations=float},quantize-dynamic",
}
"""The same for a text model, whose activations get their ranges at run time."""
SIZED = (
    "resnet20_cifar10",
    "resnet56_cifar10",
    "mobilenetv1_10_tinyimagenet",
    "minilm_l6_v2_embed_smallvocab",
)
"""Of which models `sizes` speaks, unless told."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["untrained", "sizes"])
    parser.add_argument("names", nargs="*", help="models of the folder")
    parser.add_argument("--zoo", type=lambda text: Path(text).resolve(), required=True)
    parser.add_argument("--calibration", type=int, default=512, help="calibration samples")
    parser.add_argument("--test", type=int, default=4000, help="test samples at most")
    parser.add_argument("--only", nargs="+", help="kinds of file, by name")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8], help="for latency")
    parser.add_argument("--seconds", type=float, default=60, help="of each latency run, at most")
    parser.add_argument("--json", type=Path)
    given = parser.parse_intermixed_args()
    rows = []
    measured, names = (untrained, CLASSIFIERS) if given.what == "untrained" else (sizes, SIZED)
    for name in given.names or names:
        with tempfile.TemporaryDirectory() as folder:
            for row in measured(name, given, Path(folder)):
                print(line(row), flush=True)
                rows.append(row)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")


def untrained(name: str, given: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """One row per number of bits: the points lost."""
    model, calibration, test = opened(name, given, folder)
    before = outputs_on(model, test, Setup(threads=1))
    for kind, recipe in UNTRAINED.items():
        if given.only and kind not in given.only:
            continue
        row = {"model": name, "kind": kind, "n": len(test)}
        began = time.process_time()
        made = coded(model, recipe, calibration)
        if isinstance(made, str):
            yield row | {"failed": made}
            continue
        row["CPU seconds"] = round(time.process_time() - began, 1)
        found = metrics.compare("top1", before, outputs_on(made, test, Setup(threads=1)), test.labels)
        row["float"] = None if found.before is None else found.before.value
        row["drop"] = [100 * x + 0.0 for x in (found.drop.value, found.drop.low, found.drop.high)]
        yield row


def sizes(name: str, given: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """One row per kind of file, the float file's first."""
    model, calibration, test = opened(name, given, folder)
    rows: list[dict[str, Any]] = [{"model": name, "kind": "float", "file": path(name, given.zoo)}]
    for kind, recipe in (DYNAMIC if name.startswith("minilm") else SIZES).items():
        if given.only and kind not in ("int8", *given.only):
            continue
        made = coded(model, recipe, calibration)
        row = {"model": name, "kind": kind, "file": folder / f"{len(rows)}.onnx"}
        if isinstance(made, str):
            yield row | {"failed": made}
            continue
        save(made, row["file"])
        rows.append(row)
    costs(rows, summarize(model).parameters)
    others = [row for row in rows if row["kind"] != "int8"]
    int8 = next(row["file"] for row in rows if row["kind"] == "int8")
    for batch in given.batch:
        feeds = next(iter(test.batches(batch))).feeds
        protocol = Protocol(time_limit_s=given.seconds)
        timed = measure([int8, *(row["file"] for row in others)], feeds, Setup(threads=1), protocol)
        for row, ratio in zip(others, timed.ratios, strict=True):
            row[f"batch {batch}"] = [ratio.value, ratio.low, ratio.high]
    yield from ({key: value for key, value in row.items() if key != "file"} for row in rows)


def costs(rows: list[dict[str, Any]], parameters: int) -> None:
    """Write bytes, bits per weight, load time and peak memory into the rows."""
    whole = rows[0]["file"].stat().st_size
    for row, cost in zip(rows, load_costs([row["file"] for row in rows]), strict=True):
        size = row["file"].stat().st_size
        row |= {"bytes": size, "smaller": whole / size, "bits per weight": 8 * size / parameters}
        row |= {"load CPU ms": cost.cpu_ms, "peak MiB": None}
        if cost.peak_bytes is not None:
            row["peak MiB"] = cost.peak_bytes / 2**20


def coded(model: ir.Model, recipe: str, calibration: Samples) -> ir.Model | str:
    """The model behind the recipe, or why there is none."""
    context = Context(calibration=calibration, original=model, seed=0)
    try:
        return Pipeline.parse(recipe).run(model, context).model
    except CompressorError as error:
        return str(error)[:200]


def opened(name: str, given: argparse.Namespace, folder: Path) -> tuple[ir.Model, Samples, Samples]:
    """The float model, its calibration samples and its test samples."""
    model = load(path(name, given.zoo))
    parts = []
    for split, limit in (("calib", given.calibration), ("test", given.test)):
        file = folder / f"{split}.npz"
        command = [sys.executable, "export.py", name, split, str(file), "--limit", str(limit)]
        subprocess.run(command, cwd=given.zoo, check=True, stdout=subprocess.DEVNULL)
        parts.append(open_samples(str(file), model, "calibration" if split == "calib" else "data"))
    return model, parts[0], parts[1]


def path(name: str, zoo: Path) -> Path:
    """The file of a model."""
    return zoo / str(json.loads((zoo / "manifest.json").read_text())["models"][name]["file"])


def line(row: dict[str, Any]) -> str:
    """One row of the table."""
    head = f"| {row['model']} | {row['kind']} | "
    if "failed" in row:
        return f"{head}failed: {row['failed']} |"
    if "drop" in row:
        value, low, high = row["drop"]
        cells = [
            f"{100 * row['float']:.2f}",
            f"{value:+.2f} [{low:+.2f}, {high:+.2f}]",
            str(row["CPU seconds"]),
        ]
        return head + " | ".join(cells) + " |"
    cells = [f"{row['bytes']}", f"{row['smaller']:.2f}", f"{row['bits per weight']:.2f}"]
    cells += [f"{row['load CPU ms']:.1f}", "" if row["peak MiB"] is None else f"{row['peak MiB']:.1f}"]
    for key in (key for key in row if key.startswith("batch ")):
        cells.append("{:.2f} [{:.2f}, {:.2f}]".format(*row[key]))
    return head + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
