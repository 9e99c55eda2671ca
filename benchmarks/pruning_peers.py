"""Structured pruning side by side with Torch-Pruning (on a torch module) and onnxsim (on the ONNX file).

    python benchmarks/pruning_peers.py resnet MODEL.onnx CALIBRATION.npz TRAIN.npz TEST.npz --peers PYTHON
    python benchmarks/pruning_peers.py handled MODEL.onnx ... --peers PYTHON

PYTHON is an interpreter that has torch-pruning 1.6.1, onnxsim 0.8.1 and all that this project needs. Each tool runs in
a process of its own. `resnet` takes a ResNet of CIFAR-10 whose shortcuts are padded, cuts it with every tool to equal
multiply-accumulates, scores it, trains every file in the same way (`--recovery`), and scores it again. The peers know
no target in MACs, so their ratio is searched by bisection; their time is that of one call at the ratio found. `handled`
asks onnxsim and us for a cut of any file, and says what was left of its MACs and whether onnxruntime runs it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
OURS = {
    "ours": "prune-channels{{macs={share}}}",
    "ours, round_to=8": "prune-channels{{macs={share} round_to=8}}",
    "ours, l2, no data": "prune-channels{{macs={share} round_to=8 importance=l2 reconstruct=none}}",
}
PEERS = (
    "torch-pruning, as written",
    "torch-pruning, l2 per layer",
    "torch-pruning, l2 global",
    "torch-pruning, taylor global",
    "onnxsim, l2",
    "onnxsim, wanda",
)
RECOVERY = "finetune{epochs=1 batch=32 lr=0.003 batchnorm='restore' distill=0.7 temperature=4.0}"
Cut = Callable[[float], Any]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["resnet", "handled", "worker"])
    parser.add_argument("files", nargs="+")
    parser.add_argument("--peers", default=sys.executable, help="interpreter that has the peers")
    parser.add_argument("--macs", type=float, default=0.5, help="share that is cut")
    parser.add_argument("--only", nargs="+", default=[*PEERS, *OURS], help="tools, by name")
    parser.add_argument("--recovery", default=RECOVERY, help="'' trains nothing")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.what == "worker":
        work(*given.files)
        return
    rows = []
    for row in {"resnet": resnet, "handled": handled}[given.what](given):
        print(json.dumps(row), flush=True)
        rows.append(row)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")


def resnet(given: argparse.Namespace) -> Iterator[dict[str, object]]:
    """One row per tool: score at equal MACs, and after the same training."""
    from compressor import Context, Pipeline, load, open_samples
    from compressor.latency import measure
    from compressor.measurement import outputs_on
    from compressor.runtime import Setup

    file, calibration, train, test = given.files
    model = load(file)
    samples = open_samples(test, model, "data")
    context = Context(train=open_samples(train, model, "train"), original=model, seed=0)
    before = outputs_on(model, samples, Setup(threads=1))
    feeds = next(iter(samples.batches(1))).feeds
    with tempfile.TemporaryDirectory() as folder:
        for tool in given.only:
            out = Path(folder) / "out.onnx"
            row = {"model": Path(file).stem, "n": len(samples)} | run(tool, given, file, calibration, out)
            if "failed" in row:
                yield row
                continue
            cut = load(out)
            row |= {"macs left": left(Path(file), out, "macs")} | scored("cut", before, cut, samples)
            ratio = measure([model, cut], feeds, Setup(threads=1)).ratios[0]
            row["times"] = [round(x, 3) for x in (ratio.value, ratio.low, ratio.high)]
            if given.recovery:
                began = time.perf_counter()
                trained = Pipeline.parse(given.recovery).run(cut, context).model
                row |= scored("trained", before, trained, samples)
                row["training, s"] = round(time.perf_counter() - began)
            yield row


def handled(given: argparse.Namespace) -> Iterator[dict[str, object]]:
    """One row per file and tool: what is left of it, and whether onnxruntime takes the result."""
    for file in given.files:
        for tool in given.only:
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "out.onnx"
                row = {"model": Path(file).stem} | run(tool, given, file, "", out)
                if "failed" not in row:
                    why = refused(Path(file), out)
                    shares = {f"{what} left": left(Path(file), out, what) for what in ("macs", "parameters")}
                    row |= {"failed": why} if why else shares
                yield row


def refused(file: Path, out: Path) -> str | None:
    """Why onnxruntime does not take the result; it is only loaded where made-up inputs do not suit the original."""
    from compressor.data import synthetic
    from compressor.model_io import load

    feeds = next(iter(synthetic(load(file), 2, 0).batches())).feeds
    return problem(out, {} if problem(file, feeds) else feeds)


def problem(file: Path, feeds: Mapping[str, np.ndarray]) -> str | None:
    """Why the file does not load, or does not run on the feeds, when there are any."""
    from compressor.errors import CompressorError
    from compressor.runtime import Session

    try:
        session = Session(file)
        if feeds:
            session.run(feeds)
    except CompressorError as error:
        return str(error)[:200]
    return None


def run(tool: str, given: argparse.Namespace, file: str, calibration: str, out: Path) -> dict[str, object]:
    """The tool's own figures, or "failed" with the last line of its error."""
    python = sys.executable if tool in OURS else given.peers
    command = [python, __file__, "worker", tool, file, calibration, str(given.macs), given.what, str(out)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    out_lines, error_lines = done.stdout.strip().splitlines(), done.stderr.strip().splitlines()
    if done.returncode or not out.exists():
        return {"tool": tool, "failed": (error_lines or ["no file"])[-1][:200]}
    figures: dict[str, object] = json.loads(out_lines[-1])
    return {"tool": tool} | figures


def work(tool: str, file: str, calibration: str, share: str, what: str, out: str) -> None:
    """Run one tool on one file, write its file, print its seconds as JSON."""
    if tool in OURS:
        cut, write, figures = ours(tool, file, calibration, float(share))
    elif tool.startswith("onnxsim"):
        cut, write, figures = onnxsim(tool, file, calibration)
    else:
        cut, write, figures = torch_pruning(tool, file, calibration)
    ratio = 0.5
    if tool not in OURS and what == "resnet":
        ratio = bisect(lambda at: figures(cut(at)), (1 - float(share)))
    began, cpu = time.perf_counter(), time.process_time()
    made = cut(ratio)
    seconds = {"seconds": time.perf_counter() - began, "CPU seconds": time.process_time() - cpu}
    write(made, out)
    print(json.dumps({"ratio": round(ratio, 4)} | {k: round(v, 3) for k, v in seconds.items()}))


def bisect(left_at: Callable[[float], float], wanted: float) -> float:
    """The ratio whose share of MACs left is nearest to the wanted one."""
    low, high = 0.0, 0.9
    tried = {}
    for _ in range(12):
        ratio = (low + high) / 2
        tried[ratio] = left_at(ratio)
        low, high = (ratio, high) if tried[ratio] > wanted else (low, ratio)
    return min(tried, key=lambda ratio: abs(tried[ratio] - wanted))


def ours(tool: str, file: str, calibration: str, share: float) -> tuple[Cut, Callable[..., object], Any]:
    """The pass with its target."""
    from compressor import Context, Pipeline, load, open_samples, save

    model = load(file)
    samples = open_samples(calibration, model, "calibration") if calibration else None
    context = Context(calibration=samples, original=model)
    recipe = OURS[tool].format(share=share)
    return (lambda _: Pipeline.parse(recipe).run(model, context).model), lambda m, o: save(m, Path(o)), None


def onnxsim(tool: str, file: str, calibration: str) -> tuple[Cut, Callable[..., object], Any]:
    """apply_structured_pruning, or its variant with calibration data."""
    import onnx
    from onnxsim import pruning, simplify  # type: ignore[import-not-found]

    model, _ = simplify(onnx.load(file))  # which folds BatchNormalization; not in the time of the tool
    whole = counted(model).macs

    def cut(ratio: float) -> Any:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        if tool == "onnxsim, l2":
            return pruning.apply_structured_pruning(copy, sparsity=ratio)
        return pruning.apply_structured_wanda_pruning(copy, batches(calibration), sparsity=ratio)

    def write(made: Any, out: str) -> None:
        del made.graph.value_info[:]
        onnx.save(made, out)

    return cut, write, lambda made: counted(made).macs / whole


def batches(calibration: str) -> list[dict[str, np.ndarray]]:
    """The calibration samples, 64 at a time, by input name."""
    with np.load(calibration) as arrays:
        feeds = {name: arrays[name] for name in arrays.files if name != "labels"}
    rows = len(next(iter(feeds.values())))
    return [{name: array[at : at + 64] for name, array in feeds.items()} for at in range(0, rows, 64)]


def torch_pruning(tool: str, file: str, calibration: str) -> tuple[Cut, Callable[..., object], Any]:
    """BasePruner on the ResNet as a torch module with the file's weights, written back to ONNX."""
    import copy

    import torch
    import torch_pruning as tp  # type: ignore[import-not-found]
    from cifar_resnet import resnet

    net, whole = resnet(file, padded="as written" in tool), counted(file).macs
    image = torch.zeros(2, 3, 32, 32)
    kind = tp.importance.GroupTaylorImportance if "taylor" in tool else tp.importance.GroupMagnitudeImportance

    def cut(ratio: float) -> Any:
        work = copy.deepcopy(net)
        pruner = tp.pruner.BasePruner(
            work,
            image,
            kind(),
            global_pruning="global" in tool,
            pruning_ratio=ratio,
            max_pruning_ratio=0.9,
            ignored_layers=[work.linear],
        )
        if "taylor" in tool:
            with np.load(calibration) as arrays:
                x, y = (torch.from_numpy(arrays[name]) for name in ("input", "labels"))
            torch.nn.functional.cross_entropy(work(x), y.long()).backward()  # type: ignore[no-untyped-call]
        pruner.step()
        return work

    def write(made: Any, out: str) -> None:
        batch = {"x": {0: torch.export.Dim("batch")}}
        torch.onnx.export(
            made, (image,), out, input_names=["input"], output_names=["logits"], dynamic_shapes=batch
        )

    return cut, write, lambda made: tp.utils.count_ops_and_params(made, image[:1])[0] / whole


def counted(model: Any) -> Any:
    """The summary of a file or of an onnx.ModelProto: what every tool's result is counted by."""
    import onnx_ir as ir

    from compressor.model_io import load
    from compressor.prepare import normalized
    from compressor.summary import summarize

    if isinstance(model, str | Path):
        return summarize(normalized(load(model)))
    del model.graph.value_info[:]  # onnxsim leaves the shapes of the original there
    return summarize(normalized(ir.from_proto(model)))


def left(file: Path, out: Path, what: str) -> float | None:
    """The share of the "macs" or "parameters" that is left; None where they cannot be counted."""
    before, after = (getattr(counted(path), what) for path in (file, out))
    return round(after / before, 3) if before and after else None


def scored(when: str, before: list[np.ndarray], model: Any, samples: Any) -> dict[str, object]:
    """Top-1 and the points lost against the original, paired."""
    from compressor import metrics
    from compressor.measurement import outputs_on
    from compressor.runtime import Setup

    after = outputs_on(model, samples, Setup(threads=1))
    found = metrics.compare("top1", before, after, samples.labels)
    drop = [round(100 * x + 0.0, 2) for x in (found.drop.value, found.drop.low, found.drop.high)]
    return {f"{when}, top1": found.after.value if found.after else None, f"{when}, lost": drop}


if __name__ == "__main__":
    main()
