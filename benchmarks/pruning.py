"""What structured pruning finds, loses and gains: coverage, accuracy without training, latency.

    python benchmarks/pruning.py coverage MODEL.onnx ...
    python benchmarks/pruning.py oneshot MODEL.onnx CALIBRATION.npz TEST.npz [more triples] [--macs 0.2 0.5]
    python benchmarks/pruning.py latency MODEL.onnx CALIBRATION.npz [more pairs]

`coverage` counts, per model, the groups of channels that are found, and the weights whose output channels they hold,
out of all weights that layers read; then it times `find` on a generated graph of 1,000 nodes. `oneshot` cuts to equal
multiply-accumulates, with nothing trained: top-1, the paired drop to the original, and what is won back against plain
l1. `latency` cuts half of the MACs, then to latency targets, and times original and result side by side on one thread
of the CPU. Each prints one line of JSON per row; `--json FILE` keeps them. `pruning_peers.py` compares with others.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from compressor import Context, Pipeline, load, metrics, open_samples
from compressor.channels import find
from compressor.channels.grouping import sources
from compressor.latency import measure
from compressor.measurement import outputs_on
from compressor.prepare import infer_shapes, prepare
from compressor.runtime import Setup
from compressor.statistics import Interval
from compressor.summary import macs

Row = dict[str, object]
READ = {
    "Conv": (1,),
    "ConvTranspose": (1,),
    "ConvInteger": (1,),
    "QLinearConv": (3,),
    "Gemm": (0, 1),
    "MatMul": (0, 1),
    "MatMulInteger": (0, 1),
    "QLinearMatMul": (0, 3),
    "LSTM": (1, 2),
    "GRU": (1, 2),
    "RNN": (1, 2),
    "Gather": (0,),
}
"""Where layers read weights; of Gather, float tables (embeddings)."""
VARIANTS = {
    "l1": "macs={share} importance=l1 reconstruct=none",
    "l1, least-squares": "macs={share} importance=l1 reconstruct=least-squares",
    "default": "macs={share}",
    "l1, uniform": "ratio={ratio} importance=l1 reconstruct=none round_to=1",
    "l1, uniform, least-squares": "ratio={ratio} importance=l1 reconstruct=least-squares round_to=1",
}
"""Plain l1 where our choice says how much goes where, or at one ratio for all layers; and what is solved behind it."""
ONE = Setup(threads=1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["coverage", "oneshot", "latency"])
    parser.add_argument("files", nargs="+")
    parser.add_argument("--macs", type=float, nargs="+", default=[0.2, 0.5], help="shares that are cut")
    parser.add_argument("--latency", type=float, nargs="+", default=[0.3, 0.5], help="shares that are cut")
    parser.add_argument("--only", nargs="+", default=list(VARIANTS), help="variants of oneshot, by name")
    parser.add_argument("--round-to", default="auto", help="of the variants that are not uniform")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rows = []
    for row in {"coverage": coverage, "oneshot": oneshot, "latency": latency}[given.what](given):
        print(json.dumps(row), flush=True)
        rows.append(row)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")


def coverage(given: argparse.Namespace) -> Iterator[Row]:
    """What is found in each file, then in a generated graph."""
    for file in given.files:
        yield {"model": Path(file).stem} | counted(prepare(load(file)).model)
    yield {"model": "generated"} | counted(generated(1000))


def counted(model: ir.Model) -> Row:
    """Groups and weights, by what becomes of their channels.

    A group exists for every set of channels that must go together and that some weight makes: those found, and those
    declined, each under the name of its first weight. Channels that are an output of the model ("outputs") are no
    loss: no cut may change them. The weights are counted without `find`, to check on it: every constant of two axes
    or more that a layer reads as its weight, also through views of it. Those not "in groups" make declined channels.
    """
    nodes = model.graph.num_nodes()
    weights = {str(value.name) for value in read_weights(model)}
    began = time.perf_counter()
    found = find(model)
    seconds = time.perf_counter() - began
    grouped = {str(m.value.name) for g in found.groups for m in g.members if m.role == "output"}
    outputs = {name for name, why in found.declined.items() if "output of the model" in why}
    declined = {name: why for name, why in found.declined.items() if name not in outputs}
    return {
        "nodes": nodes,
        "groups": len(found.groups),
        "under a normalization": sum(group.normalized is not None for group in found.groups),
        "outputs": len(outputs),
        "declined": len(declined),
        "weights": len(weights),
        "in groups": len(weights & grouped),
        "reasons": examples(declined),
        "barriers": examples(found.barriers),
        "find, s": round(seconds, 3),
    }


def examples(reasons: Mapping[str, str]) -> list[str]:
    """The first few names and reasons; alike ones, names aside, once with their number."""
    alike: dict[str, list[str]] = {}
    for name, why in reasons.items():
        alike.setdefault(re.sub(r"'[^']*'", "...", why), []).append(f"{name}: {why}")
    return [f"{held[0]} ({len(held)} alike)" if len(held) > 1 else held[0] for held in alike.values()]


def read_weights(model: ir.Model) -> set[ir.Value]:
    """Constants of two axes or more that layers read as their weights, in bodies too."""
    found: set[ir.Value] = set()
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        for place in READ.get(node.op_type, ()):
            value = node.inputs[place] if place < len(node.inputs) else None
            behind = sources(value) if value is not None else set()
            if node.op_type == "Gather":
                behind = {v for v in behind if v.dtype == ir.DataType.FLOAT}
            found |= behind
    return found


def generated(nodes: int) -> ir.Model:
    """Residual blocks of inverted bottlenecks with squeeze-and-excitation, and Concat blocks, in turn."""
    rng = np.random.default_rng(0)
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 18}, name="generated")
    tape = _Tape(graph, rng)
    image = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1, 3, 8, 8]))
    graph.inputs.append(image)
    value = tape.conv(image, 3, 32)
    while graph.num_nodes() < nodes - 2:
        wide = tape.node("Relu", tape.conv(value, 32, 64))
        deep = tape.node("Relu", tape.conv(wide, 1, 64, group=64))
        gate = tape.node("Relu", tape.conv(tape.node("GlobalAveragePool", deep), 64, 16))
        gate = tape.node("Sigmoid", tape.conv(gate, 16, 64))
        block = tape.conv(tape.node("Mul", deep, gate), 64, 32)
        sides = [tape.node("Relu", tape.conv(value, 32, 16)) for _ in range(2)]
        value = tape.node("Add", tape.node("Add", value, block), tape.node("Concat", *sides, axis=1))
    value = tape.conv(tape.node("GlobalAveragePool", value), 32, 10)
    value.name = "y"
    graph.outputs.append(value)
    model = ir.Model(graph, ir_version=10)
    infer_shapes(model)
    return model


class _Tape:
    """Adds nodes to a graph."""

    def __init__(self, graph: ir.Graph, rng: np.random.Generator) -> None:
        self.graph = graph
        self.rng = rng

    def node(self, kind: str, *inputs: ir.Value, **attributes: int | list[int]) -> ir.Value:
        made = ir.node(kind, list(inputs), attributes, name=f"n{self.graph.num_nodes()}")
        made.outputs[0].name = f"v{self.graph.num_nodes()}"
        self.graph.append(made)
        return made.outputs[0]

    def conv(self, value: ir.Value, given: int, made: int, group: int = 1) -> ir.Value:
        array = self.rng.standard_normal((made, given, 1, 1), dtype=np.float32)
        weight = ir.Value(name=f"w{self.graph.num_nodes()}", const_value=ir.tensor(array))
        self.graph.register_initializer(weight)
        return self.node("Conv", value, weight, group=group)


def oneshot(given: argparse.Namespace) -> Iterator[Row]:
    """Top-1 of each variant at each share of MACs, with nothing trained."""
    for file, calibration, test in zip(*[iter(given.files)] * 3, strict=True):
        model = load(file)
        context = Context(calibration=open_samples(calibration, model, "calibration"), original=model)
        samples = open_samples(test, model, "data")
        before = outputs_on(model, samples, ONE)
        whole = macs_of(model)
        for share in given.macs:
            plain = None
            for name in given.only:
                ratio = uniform(model, share, whole, context) if "uniform" in name else None
                options = VARIANTS[name].format(share=share, ratio=ratio)
                options += "" if ratio else f" round_to={given.round_to}"
                made = Pipeline.parse(f"prune-channels{{{options}}}").run(model, context)
                after = outputs_on(made.model, samples, ONE)
                found = metrics.compare("top1", before, after, samples.labels)
                row: Row = {"model": Path(file).stem, "macs": share, "variant": name}
                row |= {"round_to": "1" if ratio else given.round_to, "n": len(samples)}
                row |= {"MACs left": round(macs_of(made.model) / whole, 3)}
                row |= {
                    "original": value(found.before),
                    "top1": value(found.after),
                    "drop": points(found.drop),
                }
                if plain is not None:
                    won = metrics.compare("top1", after, plain, samples.labels).drop
                    row["won against l1"] = points(won)
                if name == "l1":
                    plain = after
                yield row | {"seconds": round(sum(change.seconds for change in made.changes), 1)}


def uniform(model: ir.Model, share: float, whole: int, context: Context) -> float:
    """The ratio of every group's channels whose cut leaves the MACs nearest to 1 - share, by bisection."""
    low, high = 0.0, 0.75
    tried: dict[float, float] = {}
    for _ in range(7):
        ratio = (low + high) / 2
        recipe = f"prune-channels{{{VARIANTS['l1, uniform'].format(ratio=ratio)}}}"
        made = Pipeline.parse(recipe).run(model, context)
        tried[ratio] = macs_of(made.model) / whole
        low, high = (ratio, high) if tried[ratio] > 1 - share else (low, ratio)
    return min(tried, key=lambda ratio: abs(tried[ratio] - (1 - share)))


def macs_of(model: ir.Model) -> int:
    """Multiply-accumulates of one sample."""
    copy = model.clone()
    infer_shapes(copy)
    return macs(copy) or 0


def value(score: Interval | None) -> float | None:
    """A score without its interval."""
    return None if score is None else score.value


def points(drop: Interval) -> list[float]:
    """A paired difference with its 95 % interval, in points."""
    return [round(100 * x + 0.0, 2) for x in (drop.value, drop.low, drop.high)]


def latency(given: argparse.Namespace) -> Iterator[Row]:
    """Original time / cut time, one thread, batch 1, and whether latency targets are met."""
    targets = [("macs", 0.5, more) for more in ("", " round_to=8", " round_to=1")]
    targets += [("latency", share, "") for share in given.latency]
    for file, calibration in zip(*[iter(given.files)] * 2, strict=True):
        model = load(file)
        samples = open_samples(calibration, model, "calibration")
        context = Context(calibration=samples, original=model, threads=1)
        feeds = next(iter(samples.batches(1))).feeds
        for goal, share, more in targets:
            made = Pipeline.parse(f"prune-channels{{{goal}={share}{more}}}").run(model, context)
            ratio = measure([model, made.model], feeds, ONE).ratios[0]
            row: Row = {"model": Path(file).stem, "target": f"{goal}={share}{more}"}
            row |= {"MACs left": round(macs_of(made.model) / macs_of(model), 3)}
            row |= {"times": [round(x, 3) for x in (ratio.value, ratio.low, ratio.high)]}
            if goal == "latency":
                row["off the target, %"] = round(100 * (1 / ratio.value / (1 - share) - 1), 1)
                row["declined"] = made.changes[-1].declined.get("model")
            yield row | {"seconds": round(sum(change.seconds for change in made.changes), 1)}


if __name__ == "__main__":
    main()
