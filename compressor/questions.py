"""The functions behind `compress inspect`, `evaluate`, `bench`, `doctor` and `passes`."""

from __future__ import annotations

import inspect as python_inspect
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from compressor import cpu, metrics, runtime
from compressor.compressing import DataLike, ModelLike, Target, require_same_interface
from compressor.data import open_samples, synthetic
from compressor.discover import find, names
from compressor.errors import CompressorError, OptionError
from compressor.graph import nodes, opset
from compressor.latency import Latency
from compressor.measurement import environment, latencies, outputs_on, size_of
from compressor.model_io import invalid_reason, load
from compressor.pipeline import Progress, silent
from compressor.placement import Selection, plan
from compressor.prepare import prepare
from compressor.report import Environment, Size
from compressor.statistics import Interval
from compressor.summary import Summary, summarize

if TYPE_CHECKING:
    from compressor.metrics import Comparison
    from compressor.pipeline import Pass


@dataclass(frozen=True)
class Inspection:
    """What is in a model: name -> type and shape of its inputs and outputs, pass -> what it finds."""

    inputs: dict[str, str]
    outputs: dict[str, str]
    opset: int
    summary: Summary
    size: Size
    invalid: str | None
    compressible: dict[str, str]


@dataclass(frozen=True)
class Evaluation:
    """The score of a model, and its agreement with a reference when one was given."""

    metric: str
    score: Interval | None
    samples: int
    comparison: Comparison | None


@dataclass(frozen=True)
class Diagnosis:
    """Versions, and provider -> None when a model really runs on it, else why not."""

    environment: Environment
    providers: dict[str, str | None]
    int8: str


@dataclass(frozen=True)
class Page:
    """A pass's documentation: its docstring, and option -> (type and range, default, description)."""

    name: str
    text: str
    options: dict[str, tuple[str, str, str]]


def inspect(model: ModelLike) -> Inspection:
    """Inputs, operators, parameters, MACs, sparsity, quantized or not, and what the passes would find."""
    found = load(model)
    ready = prepare(found).model
    source = Path(model) if isinstance(model, (str, os.PathLike)) else found
    summary = summarize(found)
    shaped = summarize(ready)
    return Inspection(
        inputs={str(v.name): _type(v) for v in found.graph.inputs if v.name not in found.graph.initializers},
        outputs={str(v.name): _type(v) for v in found.graph.outputs},
        opset=opset(found),
        summary=Summary(
            summary.operators, summary.parameters, summary.nonzero, shaped.macs, summary.quantized
        ),
        size=size_of(source),
        invalid=invalid_reason(found),
        compressible=_compressible(ready),
    )


def evaluate(
    model: ModelLike,
    data: DataLike,
    *,
    reference: ModelLike | None = None,
    target: Target | None = None,
    progress: Progress = silent,
) -> Evaluation:
    """The score of `model` on `data` with its 95 % interval, and compared with `reference` when there is one."""
    where = target or Target()
    found = load(model)
    samples = open_samples(data, found, "data")
    setup = runtime.Setup(provider=runtime.short_name(where.providers[0]))
    made = outputs_on(found, samples, setup, progress)
    metric = where.metric or metrics.default_metric(made, samples.labels)
    score = metrics.score(metric, made, samples.labels, where.seed) if samples.labels is not None else None
    comparison = None
    if reference is not None:
        require_same_interface(load(reference), found)
        other = outputs_on(load(reference), samples, setup, progress)
        labels = samples.labels
        comparison = metrics.compare(metric if labels is not None else None, other, made, labels, where.seed)
    return Evaluation(metric, score, len(samples), comparison)


def bench(
    models: Sequence[ModelLike],
    *,
    data: DataLike | None = None,
    target: Target | None = None,
    progress: Progress = silent,
) -> tuple[Latency, ...]:
    """Latency of the models side by side, interleaved; ratios are against the first."""
    if isinstance(models, (str, os.PathLike)) or not models:
        raise OptionError(f"bench needs a list of models, got {models!r}.")
    where = target or Target()
    loaded = [load(model) for model in models]
    samples = (
        synthetic(loaded[0], where.batch, where.seed)
        if data is None
        else open_samples(data, loaded[0], "data")
    )
    return latencies(loaded, samples, where.setups(), where.batch, progress)


def doctor() -> Diagnosis:
    """Versions, the providers that really run a model here, and what the processor means for int8."""
    tried: dict[str, str | None] = {}
    for name in runtime.available():
        try:
            runtime.Session(_tiny(), runtime.Setup(provider=name))
            tried[name] = None
        except CompressorError as error:
            tried[name] = str(error)
    exact = cpu.multiplies_u8s8_exactly()
    fast = (
        "int8 multiplies exactly (VNNI or Arm dot product)" if exact else "no VNNI: int8 weights use 7 bits"
    )
    return Diagnosis(environment(), tried, fast)


def page(name: str) -> Page:
    """The documentation of one pass, from its docstring and fields."""
    cls = find(name)
    text = python_inspect.cleandoc(cls.__doc__ or "")
    return Page(name, text, {key: _option(cls, key) for key in cls.model_fields})


def overview() -> dict[str, str]:
    """Pass name -> the first line of its documentation, or why a third party's pass does not load."""
    return {name: _first_line(name) for name in names()}


def _first_line(name: str) -> str:
    try:
        return page(name).text.split("\n", 1)[0]
    except OptionError as error:
        return str(error)


def _option(cls: type[Pass], key: str) -> tuple[str, str, str]:
    field = cls.model_fields[key]
    kind = (
        str(field.annotation).replace("typing.", "")
        if field.annotation not in (int, float, bool, str)
        else field.annotation.__name__
    )
    limits = ", ".join(_limit(m) for m in field.metadata)
    return (f"{kind} {limits}".strip(), repr(field.default), field.description or "")


def _limit(rule: object) -> str:
    words = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    return " ".join(
        f"{sign} {getattr(rule, word):g}"
        for word, sign in words.items()
        if getattr(rule, word, None) is not None
    )


def _type(value: ir.Value) -> str:
    dims = (
        "?"
        if value.shape is None
        else "x".join(str(d) if isinstance(d, int) else str(d.value or "?") for d in value.shape)
    )
    return f"{value.dtype.name.lower() if value.dtype else 'unknown'} {dims}".strip()


def _compressible(ready: ir.Model) -> dict[str, str]:
    """Pass name -> what it would find in a prepared model."""
    found = plan(ready, Selection())
    products = [n for n in nodes(ready) if n.op_type in ("MatMul", "Gemm", "LSTM", "Attention")]
    made = {"quantize-int8": f"{len(found.compute)} convolutions and matrix products"}
    if found.declined:
        why = next(iter(found.declined.items()))
        made["quantize-int8"] += f"; {len(found.declined)} stay float (as {why[0]}: {why[1]})"
    made["quantize-dynamic"] = f"{len(products)} matrix products and LSTMs"
    return made


def _tiny() -> ir.Model:
    """y = x + x."""
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1, 2]))
    add = ir.node("Add", [x, x])
    add.outputs[0].name, add.outputs[0].type, add.outputs[0].shape = "y", x.type, x.shape
    graph = ir.Graph([x], add.outputs, nodes=[add], opset_imports={"": 13}, name="tiny")
    return ir.Model(graph, ir_version=8)
