"""int8 side by side with onnxruntime.quantization.quantize_static, on the same calibration data, in one run.

    python benchmarks/side_by_side.py MODEL.onnx CALIBRATION.npz TEST.npz [more triples ...]
    python benchmarks/side_by_side.py --samples                     # the shipped sample models
    python benchmarks/side_by_side.py --zoo FOLDER [NAME ...]       # a folder with export.py and manifest.json

Per model it prints, for onnxruntime's defaults (S8S8, per tensor), its best x86 setting (pre-processed, U8S8, per
channel) and ours: the drop of the metric with its paired 95 % interval, latency as float time / int8 time (all
variants interleaved in one process, one thread, thread CPU time, batches 1 and 8), file size ratio, and the CPU
seconds of the tool in a process of its own, imports included. `--json FILE` keeps the figures.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = {
    "digits_cnn": "digits32",
    "digits_transformer": "digits32",
    "digits_lstm": "digits8",
    "breast_cancer_mlp": "breast_cancer",
}
ZOO = (
    "resnet8_cifar10_mlperftiny",
    "dscnn_kws_mlperftiny",
    "mobilenetv1_025_vww_mlperftiny",
    "resnet20_cifar10",
    "resnet56_cifar10",
    "mobilenetv2s_cifar10",
    "mobilenetv1_10_tinyimagenet",
    "mnist_cntk",
    "crnn_lstm_fsdd",
    "minilm_l6_v2_embed_smallvocab",
)
VARIANTS = ("ort default", "ort best", "ours")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("triples", nargs="*", help="MODEL CALIBRATION TEST ..., or names with --zoo")
    parser.add_argument("--samples", action="store_true")
    parser.add_argument("--zoo", type=lambda text: Path(text).resolve())
    parser.add_argument("--calibration", type=int, default=256, help="calibration samples")
    parser.add_argument("--test", type=int, default=2000, help="test samples at most")
    parser.add_argument(
        "--method", default="default", help="minmax, entropy or percentile, for all tools alike"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(*arguments.worker)
        return
    with tempfile.TemporaryDirectory() as folder:
        found = [row for case in cases(arguments, Path(folder)) for row in compare(*case, arguments.method)]
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


def cases(arguments: argparse.Namespace, folder: Path):
    """(name, model, calibration, test) of each model asked for."""
    if arguments.samples:
        here = ROOT / "sample_models"
        for name, data in SAMPLES.items():
            yield name, here / f"{name}.onnx", here / f"{data}_calibration.npz", here / f"{data}_test.npz"
    if arguments.zoo:
        for name in arguments.triples or ZOO:
            parts = {}
            for split, limit in (("calib", arguments.calibration), ("test", arguments.test)):
                parts[split] = folder / f"{name}.{split}.npz"
                command = [sys.executable, "export.py", name, split, str(parts[split]), "--limit", str(limit)]
                subprocess.run(command, cwd=arguments.zoo, check=True, stdout=subprocess.DEVNULL)
            manifest = json.loads((arguments.zoo / "manifest.json").read_text())["models"][name]
            yield name, arguments.zoo / manifest["file"], parts["calib"], parts["test"]
    elif not arguments.samples:
        for at in range(0, len(arguments.triples), 3):
            model, calibration, test = (Path(p).resolve() for p in arguments.triples[at : at + 3])
            yield model.stem, model, calibration, test


def compare(name: str, model: Path, calibration: Path, test: Path, method: str):
    """Rows for one model: run each tool in its own process, then measure all results together."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for variant in VARIANTS:
            out = Path(folder) / f"{variant.replace(' ', '_')}.onnx"
            command = [
                sys.executable,
                __file__,
                "--worker",
                variant,
                str(model),
                str(calibration),
                str(out),
                method,
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
            row = {"model": name, "variant": variant, "path": out}
            if done.returncode or not out.exists():
                row["problem"] = (done.stderr.strip().splitlines() or ["no file"])[-1][:160]
            else:
                row |= json.loads(done.stdout.strip().splitlines()[-1])
            rows.append(row)
        measure(model, test, rows)
    for row in rows:
        row.pop("path")
        print(line(row), flush=True)
    return rows


def work(variant: str, model: str, calibration: str, out: str, method: str) -> None:
    """One tool, one model; prints the CPU and wall seconds of its work, its imports included."""
    start, cpu = time.perf_counter(), time.process_time()
    if variant == "ours":
        ours(model, calibration, out, method)
    else:
        theirs(variant, model, calibration, out, method)
    used = {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - start}
    print(json.dumps(used))


def ours(model: str, calibration: str, out: str, method: str) -> None:
    """The command's default pipeline, calibration method aside, without the measurements that follow it."""
    from compressor.data import open_samples
    from compressor.defaults import FALLBACK, choose
    from compressor.model_io import load, save
    from compressor.pipeline import Context, Pipeline

    original = load(model)
    recipe = choose(original, calibrated=True).recipe
    recipe += f"{{calibration='{method}'}}" if recipe == "quantize-int8" and method != "default" else ""
    samples = open_samples(calibration, original, "calibration")
    context = Context(calibration=samples)
    made = Pipeline.parse(recipe).run(original, context)
    if not any(change.touched for change in made.changes):
        made = Pipeline.parse(FALLBACK.recipe).run(original, context)
    save(made.model, Path(out))


def theirs(variant: str, model: str, calibration: str, out: str, method: str) -> None:
    """quantize_static with its defaults, or pre-processed U8S8 per channel."""
    import onnx
    import onnxruntime
    from onnxruntime import quantization as q
    from onnxruntime.quantization.shape_inference import quant_pre_process

    onnxruntime.set_default_logger_severity(4)
    with np.load(calibration) as arrays:
        feeds = {name: arrays[name] for name in arrays.files if name != "labels"}

    class Reader(q.CalibrationDataReader):
        def __init__(self) -> None:
            rows = len(next(iter(feeds.values())))
            self._batches = iter([{k: v[i : i + 8] for k, v in feeds.items()} for i in range(0, rows, 8)])

        def get_next(self):
            return next(self._batches, None)

    methods = {"default": "MinMax", "minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}
    options = {"calibrate_method": q.CalibrationMethod[methods[method]]}
    source = model
    if variant == "ort best":
        proto = onnx.load(model)
        if proto.opset_import[0].version < 13:
            proto = onnx.version_converter.convert_version(proto, 13)
        onnx.save(proto, f"{out}.13")
        source = f"{out}.pre"
        quant_pre_process(f"{out}.13", source, skip_symbolic_shape=True)
        kinds = {"activation_type": q.QuantType.QUInt8, "weight_type": q.QuantType.QInt8, "per_channel": True}
        options |= kinds
    q.quantize_static(source, out, Reader(), **options)


def measure(model: Path, test: Path, rows: list[dict]) -> None:
    """Accuracy, latency and size of all variants that exist, beside the float model."""
    from compressor.data import open_samples
    from compressor.errors import CompressorError
    from compressor.latency import measure as time_models
    from compressor.measurement import outputs_on
    from compressor.metrics import compare as paired
    from compressor.model_io import files_of, load
    from compressor.runtime import Session, Setup

    samples = open_samples(str(test), load(model), "data")
    alive = []
    for row in rows:
        try:
            Session(row["path"]) if "problem" not in row else None
        except CompressorError as error:  # the peer's file does not load; the row says why
            row["problem"] = str(error)[:160]
        alive += [] if "problem" in row else [row]
    before = outputs_on(model, samples, Setup())
    for row in alive:
        found = paired(None, before, outputs_on(row["path"], samples, Setup()), samples.labels)
        row |= {
            "metric": found.metric,
            "drop": found.drop.value,
            "low": found.drop.low,
            "high": found.drop.high,
        }
        row["float"] = None if found.before is None else found.before.value
        row["size"] = sum(f.stat().st_size for f in files_of(model)) / row["path"].stat().st_size
    for batch in (1, 8):
        feeds = next(iter(samples.batches(batch))).feeds
        timed = time_models([model, *(row["path"] for row in alive)], feeds, Setup(threads=1))
        for row, ratio in zip(alive, timed.ratios, strict=True):
            row[f"x{batch}"] = [ratio.value, ratio.low, ratio.high]


def line(row: dict) -> str:
    """One printed row."""
    head = f"{row['model']:32} {row['variant']:12}"
    if "problem" in row:
        return f"{head} FAILED: {row['problem']}"
    speed = "  ".join(
        f"b{b} {row[f'x{b}'][0]:.2f}x [{row[f'x{b}'][1]:.2f},{row[f'x{b}'][2]:.2f}]" for b in (1, 8)
    )
    drop = f"{row['metric']} drop {row['drop'] * 100:+.2f} [{row['low'] * 100:+.2f},{row['high'] * 100:+.2f}]"
    return f"{head} {drop}  {speed}  size {row['size']:.2f}x  cpu {row['cpu_s']:.2f} s"


if __name__ == "__main__":
    main()
