"""Ternary and binary weights side by side with onnxsim and Brevitas, on the same layers, without training.

    python benchmarks/low_bit_peers.py --zoo FOLDER --peers PYTHON

FOLDER has export.py, resnet20_cifar10 and minilm_l6_v2_embed_smallvocab; PYTHON is an interpreter with onnxsim 0.8.1,
Brevitas 0.13.4 (its extra `export`), qonnx 1.0.0 and torch. Two sets of layers: `resnet20`, the convolutions of that
network (drop: points of top-1), and `linear`, the feed-forward blocks of MiniLM on the word embeddings of STS-B (drop:
points of the cosine to the float model's outputs). Each tool runs in a process of its own, on the same 256 calibration
samples; the first and the last layer have 8 bits where the tool can. Then each file is scored and timed on stock
onnxruntime, all in one interleaved run; what only QONNX's own executor runs is scored with that.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
ZOO = {"resnet20": "resnet20_cifar10", "linear": "minilm_l6_v2_embed_smallvocab"}
METRICS = {"resnet20": "top1", "linear": "cosine"}
BATCHES = {"resnet20": (1, 8), "linear": (1, 64)}
OURS = {
    "ours, int8": "quantize-int8",
    "ours, ternary": "quantize-ternary{reconstruct=gptq}",
    "ours, ternary, float activations": "quantize-ternary{reconstruct=gptq activations=float}",
    "ours, ternary, no gptq": "quantize-ternary",
    "ours, binary": "quantize-binary{reconstruct=gptq}",
    "ours, binary, 2 bases": "quantize-binary{method=residual bases=2 reconstruct=gptq}",
}
ONNXSIM = {
    "onnxsim, ternary": "quantize_ternary",
    "onnxsim, ternary, given ternary weights": "quantize_ternary",
    "onnxsim, gguf ternary": "apply_gguf_ternary_quantization",
    "onnxsim, billm": "quantize_weight_only_billm",
    "onnxsim, pb_llm": "quantize_weight_only_pb_llm",
    "onnxsim, bwa": "apply_bwa_ptq",
}
BREVITAS = {
    "brevitas, ternary as it comes, QCDQ": "const 2",
    "brevitas, 2 bits mse, QCDQ": "mse 2",
    "brevitas, 2 bits mse + gptq, QCDQ": "mse 2 gptq",
    "brevitas, 2 bits mse + gptq, QONNX": "mse 2 gptq",
    "brevitas, binary as it comes, QCDQ": "const 1",
    "brevitas, binary as it comes, QONNX": "const 1",
    "brevitas, binary mean, QONNX": "mean 1",
}
FIXED = 100
"""The batch of files that QONNX's executor runs: it wants fixed shapes."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--zoo", type=lambda text: Path(text).resolve())
    parser.add_argument("--peers", default=sys.executable, help="interpreter that has the peers")
    parser.add_argument("--sets", nargs="+", choices=list(ZOO), default=list(ZOO))
    parser.add_argument("--only", nargs="+", default=[*ONNXSIM, *BREVITAS, *OURS], help="tools, by name")
    parser.add_argument("--test", type=int, default=4000, help="test samples at most")
    parser.add_argument("--seconds", type=float, default=60, help="of each latency run, at most")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        work(*given.worker)
        return
    rows = []
    for layers in given.sets:
        with tempfile.TemporaryDirectory() as folder:
            for row in compare(layers, given, Path(folder)):
                print(line(row), flush=True)
                rows.append(row)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")


def compare(layers: str, given: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """One row per tool."""
    from compressor import load, metrics, open_samples
    from compressor.latency import Protocol, measure
    from compressor.measurement import outputs_on
    from compressor.runtime import Setup

    source = str(given.zoo / "models" / f"{ZOO[layers]}.onnx")
    model, calibration, test = prepared(layers, source, given, folder)
    samples = open_samples(str(test), load(model), "data")
    before = outputs_on(model, samples, Setup(threads=1))
    rows = []
    for tool in given.only:
        out = folder / f"{len(rows)}.onnx"
        row = {"set": layers, "tool": tool, "file": out, "n": len(samples)}
        row |= run(given, tool, "make", layers, source, model, calibration, out)
        if "failed" not in row:
            row["smaller"] = model.stat().st_size / out.stat().st_size
            after, row["refused"] = answers(given, out, samples, test)
            if after is not None:
                truth = before[0] if samples.labels is None else samples.labels
                drop = metrics.compare(METRICS[layers], before, after, truth).drop
                row["drop"] = [drop.value, drop.low, drop.high]
        rows.append(row)
    alive = [row for row in rows if row.get("refused", "failed") is None]
    for batch in BATCHES[layers]:
        feeds = next(iter(samples.batches(batch))).feeds
        protocol = Protocol(time_limit_s=given.seconds)
        timed = measure([model, *(row["file"] for row in alive)], feeds, Setup(threads=1), protocol)
        for row, ratio in zip(alive, timed.ratios, strict=True):
            row[f"batch {batch}"] = [ratio.value, ratio.low, ratio.high]
    yield from ({key: value for key, value in row.items() if key != "file"} for row in rows)


def prepared(layers: str, source: str, given: argparse.Namespace, folder: Path) -> tuple[Path, Path, Path]:
    """The float model and its calibration and test samples."""
    files = []
    for split, limit in (("calib", 256), ("test", given.test)):
        files.append(folder / f"{split}.npz")
        command = [sys.executable, "export.py", ZOO[layers], split, str(files[-1]), "--limit", str(limit)]
        subprocess.run(command, cwd=given.zoo, check=True, stdout=subprocess.DEVNULL)
    if layers == "resnet20":
        return Path(source), *files  # type: ignore[return-value]
    import torch
    from feed_forward import blocks, embedded

    for file, limit in zip(files, (256, given.test), strict=True):
        with np.load(file) as arrays:
            rows = embedded(source, arrays["input_ids"], arrays["attention_mask"])
        chosen = np.random.default_rng(0).permutation(len(rows))[:limit]
        np.savez(file, input=rows[chosen])
    model, example = folder / "linear.onnx", torch.zeros(2, 384)
    batch = ({0: torch.export.Dim("batch")},)
    torch.onnx.export(
        blocks(source), (example,), model, input_names=["input"], output_names=["y"],
        dynamic_shapes=batch, external_data=False, verbose=False,
    )  # fmt: skip
    return model, *files  # type: ignore[return-value]


def answers(
    given: argparse.Namespace, out: Path, samples: Any, test: Path
) -> tuple[list[np.ndarray] | None, str | None]:
    """The file's outputs on the test samples (None: nothing runs it), and why stock onnxruntime does not take it."""
    from compressor.errors import CompressorError
    from compressor.measurement import outputs_on
    from compressor.runtime import Setup

    try:
        return outputs_on(out, samples, Setup(threads=1)), None
    except CompressorError as error:
        refused = str(error)[:200]
    made = out.with_suffix(".npy")
    row = run(given, "qonnx", "execute", out, test, made)
    return (None if "failed" in row else [np.load(made)]), refused


def run(given: argparse.Namespace, tool: str, *arguments: object) -> dict[str, Any]:
    """The worker's own figures, or "failed" with the last line of its error."""
    python = sys.executable if tool in OURS else given.peers
    command = [python, "-W", "ignore", __file__, "--worker", tool, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode or not Path(str(arguments[-1])).exists():
        lines = [text for text in done.stderr.splitlines() if text.strip()]
        return {"failed": (lines or ["no file"])[-1][:200]}
    figures: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures


def work(tool: str, what: str, *arguments: str) -> None:
    """In a process of its own: make the tool's file, or execute one, and print the CPU seconds as JSON."""
    if what == "execute":
        execute(*arguments)
    elif tool in OURS:
        ours(tool, *arguments[2:])
    elif tool in ONNXSIM:
        onnxsim(tool, *arguments[2:])
    else:
        brevitas(tool, *arguments)
    print(json.dumps({"cpu": time.process_time()}))


def ours(tool: str, model: str, calibration: str, out: str) -> None:
    """One of our passes."""
    from compressor import Context, Pipeline, load, open_samples, save

    original = load(model)
    context = Context(calibration=open_samples(calibration, original, "calibration"), original=original)
    save(Pipeline.parse(OURS[tool]).run(original, context).model, Path(out))


def onnxsim(tool: str, model: str, calibration: str, out: str) -> None:
    """One of onnxsim's functions, on the model as its simplifier leaves it."""
    import onnx
    import onnxsim as peer  # type: ignore[import-not-found]
    from onnxsim import onnx_simplifier

    made, _ = peer.simplify(onnx.load(model))
    if "given" in tool:
        round_to_ternary(made)
    function = getattr(peer, ONNXSIM[tool], None) or getattr(onnx_simplifier, ONNXSIM[tool])
    with np.load(calibration) as arrays:
        samples = arrays["input"]
    data = {"calibration_data": [{"input": samples[at : at + 64]} for at in range(0, len(samples), 64)]}
    made = function(made, **({} if "ternary" in tool else data))
    read = {name for node in made.graph.node for name in node.input}
    kept = [held for held in made.graph.initializer if held.name in read]
    del made.graph.initializer[:]  # the gguf function leaves the float weights in, which nobody reads
    made.graph.initializer.extend(kept)
    onnx.save(made, out)


def round_to_ternary(model: Any) -> None:
    """Give every matrix the ternary weights of TWN, per output, in floats: what onnxsim's option looks for."""
    from onnx import numpy_helper

    readers = {name: node for node in model.graph.node for name in node.input[1:2]}
    for held in model.graph.initializer:
        if len(held.dims) != 2 or held.name not in readers:
            continue
        array = numpy_helper.to_array(held)
        turned = any(a.name == "transB" and a.i for a in readers[held.name].attribute)
        rows = array if turned else array.T
        size = np.abs(rows)
        kept = size > 0.7 * size.mean(1, keepdims=True)
        scale = ((size * kept).sum(1) / np.maximum(kept.sum(1), 1)).astype(np.float32)
        rows = np.sign(rows) * kept * scale[:, None]
        held.CopyFrom(numpy_helper.from_array(rows if turned else np.ascontiguousarray(rows.T), held.name))


def brevitas(tool: str, layers: str, source: str, model: str, calibration: str, out: str) -> None:
    """Brevitas on the network as a torch module with the file's weights, calibrated, its biases corrected."""
    import torch
    from brevitas.export import export_onnx_qcdq, export_qonnx  # type: ignore[import-not-found]
    from brevitas.graph.calibrate import bias_correction_mode, calibration_mode  # type: ignore[import-not-found]
    from brevitas.graph.gptq import gptq_mode  # type: ignore[import-not-found]

    torch.manual_seed(0)
    net = quantized(layers, source, BREVITAS[tool])
    with np.load(calibration) as arrays:
        batches = torch.from_numpy(arrays["input"]).split(64)
    with torch.no_grad():
        with calibration_mode(net):
            for batch in batches:
                net(batch)
        net(batches[0])  # scales of weights are found in the first pass that quantizes
        if "gptq" in tool:
            with gptq_mode(net, use_quant_activations=True, create_weight_orig=False, act_order=True) as gptq:
                for _ in range(gptq.num_layers):
                    for batch in batches:
                        gptq.model(batch)
                    gptq.update()
        with bias_correction_mode(net):
            for batch in batches:
                net(batch)
    names = {"input_names": ["input"], "output_names": ["y"], "opset_version": 17, "dynamo": False}
    if "QONNX" in tool:
        export_qonnx(net, args=torch.zeros(FIXED, *batches[0].shape[1:]), export_path=out, **names)
    else:
        free = {"dynamic_axes": {"input": {0: "batch"}, "y": {0: "batch"}}}
        export_onnx_qcdq(net, args=batches[0][:2], export_path=out, **names, **free)


def quantized(layers: str, source: str, kind: str) -> Any:
    """The network in Brevitas' layers: weights by `kind`, 8 bits at both ends, int8 activations.

    A ResNet goes through Brevitas' graph mode, which also quantizes its additions and so is fast in onnxruntime; that
    mode has no padded shortcuts, so they are written as convolutions of zeros and ones. The linear blocks go through
    its layer-wise mode.
    """
    import brevitas.graph.quantize as graph  # type: ignore[import-not-found]
    from brevitas.quant import Int8WeightPerChannelFloat  # type: ignore[import-not-found]
    from torch import nn

    few = weight_quantizer(kind)
    ends = {"resnet20": ("conv1", "linear"), "linear": ("0.f1", "5.f2")}[layers]
    known = graph.COMPUTE_LAYER_MAP if layers == "resnet20" else graph.LAYERWISE_COMPUTE_LAYER_MAP
    table = dict(known)
    for layer in (nn.Conv2d, nn.Linear):
        made, options = known[layer]
        chosen = lambda module, name: Int8WeightPerChannelFloat if name in ends else few  # noqa: E731
        table[layer] = (made, options | {"weight_quant": chosen})
    if layers == "resnet20":
        from cifar_resnet import resnet

        traced = graph.preprocess_for_quantize(resnet(source, padded=False), merge_bn=False)
        return graph.quantize(traced, compute_layer_map=table).eval()
    from feed_forward import blocks

    return graph.layerwise_quantize(blocks(source), compute_layer_map=table).eval()


def weight_quantizer(kind: str) -> Any:
    """Brevitas' ternary or binary quantizer as it comes (a scale of 0.1), or with scales from the weights."""
    from brevitas.inject.enum import (  # type: ignore[import-not-found]
        ScalingImplType,
        ScalingPerOutputType,
        StatsOp,
    )
    from brevitas.quant import Int8WeightPerChannelFloatMSE
    from brevitas.quant.binary import SignedBinaryWeightPerTensorConst  # type: ignore[import-not-found]
    from brevitas.quant.ternary import SignedTernaryWeightPerTensorConst  # type: ignore[import-not-found]

    if kind.startswith("mse"):
        return Int8WeightPerChannelFloatMSE.let(bit_width=2)  # its range is narrow: -1, 0, 1
    if kind == "mean 1":
        return SignedBinaryWeightPerTensorConst.let(
            scaling_impl_type=ScalingImplType.STATS,
            scaling_stats_op=StatsOp.AVE,
            scaling_per_output_type=ScalingPerOutputType.CHANNEL,
            scaling_min_val=1e-10,
        )
    return SignedTernaryWeightPerTensorConst if kind == "const 2" else SignedBinaryWeightPerTensorConst


def execute(file: str, test: str, out: str) -> None:
    """Run a file on QONNX's own executor; its batch is fixed, so the last one is filled up, and cut again."""
    from qonnx.core.modelwrapper import ModelWrapper  # type: ignore[import-not-found]
    from qonnx.core.onnx_exec import execute_onnx  # type: ignore[import-not-found]
    from qonnx.util.cleanup import cleanup_model  # type: ignore[import-not-found]

    model = cleanup_model(ModelWrapper(file))
    given, made = model.graph.input[0].name, model.graph.output[0].name
    with np.load(test) as arrays:
        samples = arrays["input"]
    padded = np.resize(samples, (-(-len(samples) // FIXED) * FIXED, *samples.shape[1:]))
    parts = [
        execute_onnx(model, {given: padded[at : at + FIXED]})[made] for at in range(0, len(padded), FIXED)
    ]
    np.save(out, np.concatenate(parts)[: len(samples)])


def line(row: dict[str, Any]) -> str:
    """One row of the table."""
    head = f"| {row['set']} | {row['tool']} | "
    if "failed" in row:
        return f"{head}failed: {row['failed']} | | | | | |"
    drop = "not run"
    if "drop" in row:
        value, low, high = (100 * x + 0.0 for x in row["drop"])
        drop = f"{value:+.2f} [{low:+.2f}, {high:+.2f}]"
    speeds = []
    for batch in BATCHES[row["set"]]:
        times = row.get(f"batch {batch}")
        speeds.append("{:.2f} [{:.2f}, {:.2f}]".format(*times) if times else "")
    runs = "yes" if row["refused"] is None else f"no: {row['refused']}"
    return f"{head}{drop} | {row['smaller']:.2f} | {runs} | {' | '.join(speeds)} | {row['cpu']:.1f} |"


if __name__ == "__main__":
    main()
