"""What was won and lost, in one frozen object: JSON with a published schema, Markdown, and limits checked on it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from compressor.errors import OptionError
from compressor.latency import Latency
from compressor.metrics import Comparison
from compressor.model_io import write_text
from compressor.statistics import Interval

SUFFIXES = (".json", ".md")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Size(_Frozen):
    """A model's size: bytes on disk with its external data, the same compressed, and its weights.

    Args:
        bytes: the file, with its external data.
        deflate: those bytes after deflate.
        zstd: those bytes after zstd.
        parameters: weights, each once; those stored as packed codes are counted one by one.
        nonzero: those that are not zero.
        weight_bytes: all constants of the file: weights, their scales, and the tables and shapes that unpack them.
        bits_per_weight: the bits of those bytes for each weight; None where there is no weight.
        macs: multiply-accumulates for one sample; None when a shape that is needed is unknown.
    """

    bytes: int
    deflate: int
    zstd: int
    parameters: int
    nonzero: int
    weight_bytes: int
    bits_per_weight: float | None
    macs: int | None


class Load(_Frozen):
    """What loading a model costs: `load_cost` says how it is measured.

    Args:
        wall_ms: milliseconds to create a session on the CPU, one thread.
        cpu_ms: CPU time of that, which other programs disturb less.
        peak_bytes: memory at its peak meanwhile; None where the system does not tell.
    """

    wall_ms: float
    cpu_ms: float
    peak_bytes: int | None


class Step(_Frozen):
    """One pass as it ran."""

    recipe: str
    touched: int
    declined: Mapping[str, str]
    figures: Mapping[str, float | str]
    seconds: float


class Environment(_Frozen):
    """Where the figures come from."""

    tool: str
    python: str
    onnx: str
    onnxruntime: str
    system: str
    cpu: str
    cpu_features: tuple[str, ...]
    cores: int


class Verdict(_Frozen):
    """One limit and whether it held. `certain` is False when the interval straddles the limit."""

    limit: str
    wanted: float
    measured: float
    held: bool
    certain: bool


class Report(_Frozen):
    """Before against after. `accuracy` is None when nothing was evaluated, or a pass gave the outputs other shapes.

    `load` is of the original and of the new model, in this order; empty where it could not be measured.
    """

    model: str
    output: str | None
    pipeline: str
    before: Size
    after: Size
    accuracy: Comparison | None
    agreement: Mapping[str, Interval]
    evaluated_on: str
    made_up: bool
    latency: tuple[Latency, ...]
    load: tuple[Load, ...] = ()
    steps: tuple[Step, ...]
    notes: tuple[str, ...]
    verdicts: tuple[Verdict, ...] = ()
    environment: Environment

    @property
    def ratio(self) -> float:
        """How many times smaller the file became."""
        return self.before.bytes / max(1, self.after.bytes)

    def to_json(self) -> str:
        """The report as JSON; the schema is `compressor/report.schema.json`."""
        return self.model_dump_json(indent=2)

    def write(self, path: Path) -> None:
        """Write the report in the format that the suffix names; OptionError for another suffix."""
        check_suffix(path)
        write_text(path, self.to_json() + "\n" if path.suffix == ".json" else markdown(self))


def check_suffix(path: Path) -> None:
    """Raise OptionError unless the path ends in a format that can be written and its folder exists."""
    if path.suffix not in SUFFIXES:
        raise OptionError(f"Report {str(path)!r} must end in one of {', '.join(SUFFIXES)}.")
    if not path.parent.is_dir():
        raise OptionError(f"Report folder {str(path.parent)!r} does not exist.")


def schema() -> str:
    """The JSON schema of a report. The ends of an interval may be null: from one sample they can be infinite."""
    made = Report.model_json_schema(mode="serialization")
    for bound in made["$defs"]["Interval"]["properties"].values():
        bound["type"] = ["number", "null"]
    return json.dumps(made, indent=2, sort_keys=True) + "\n"


def headline(report: Report) -> str:
    """The verdict in one line: size, speed, accuracy."""
    parts = [_times(report.before.bytes, report.after.bytes)]
    parts += [f"{speed_words(latency)} on {latency.provider}" for latency in report.latency[:1]]
    if report.accuracy is not None:
        where = " on made-up inputs" if report.made_up else ""
        parts.append(drop_words(report.accuracy) + where)
    return ", ".join(parts) + "."


def speed_words(latency: Latency) -> str:
    """The candidate's speed against the original, as a ratio with its interval."""
    ratio = latency.ratios[-1]
    band = f"{ratio.value:.2f}x [{ratio.low:.2f}, {ratio.high:.2f}]"
    if ratio.verdict == "same":
        return f"no measurable change of speed ({band})"
    return f"{band} {'as fast' if ratio.verdict == 'faster' else 'as fast: SLOWER'}"


def drop_words(accuracy: Comparison) -> str:
    """The loss of the metric with its 95 % interval."""
    drop = accuracy.drop
    band = f"[{drop.low:+.4f}, {drop.high:+.4f}] (95 %, n={accuracy.samples})"
    if accuracy.before is None or accuracy.after is None:
        return f"{_agreement(accuracy)} lacks {drop.value:.4f} {band}"
    return f"{accuracy.metric} {accuracy.before.value:.4f} -> {accuracy.after.value:.4f}, drop {drop.value:+.4f} {band}"


def _agreement(accuracy: Comparison) -> str:
    """Which agreement with the original: of the class, or the cosine of the outputs."""
    return f"{accuracy.agrees_in} agreement with the original" if accuracy.agrees_in else accuracy.metric


def rows(report: Report) -> list[tuple[str, str, str, str]]:
    """The table of the report: figure, before, after, change."""
    before, after = report.before, report.after
    made = [
        ("file", _size(before.bytes), _size(after.bytes), _times(report.before.bytes, report.after.bytes))
    ]
    made.append(
        (
            "file, zstd",
            _size(before.zstd),
            _size(after.zstd),
            _times(before.zstd, after.zstd),
        )
    )
    made.append(
        (
            "file, deflate",
            _size(before.deflate),
            _size(after.deflate),
            _times(before.deflate, after.deflate),
        )
    )
    made.append(("weights", f"{before.parameters:,}", f"{after.parameters:,}", ""))
    made.append(("non-zero weights", f"{before.nonzero:,}", f"{after.nonzero:,}", ""))
    made.append(("bits per weight on disk", _bits(before), _bits(after), ""))
    if before.macs is not None or after.macs is not None:
        made.append(("MACs (dynamic axes as 1)", _count(before.macs), _count(after.macs), ""))
    score = report.accuracy
    if score is not None and score.before is not None and score.after is not None:
        made.append(
            (score.metric, _interval(score.before), _interval(score.after), f"drop {_interval(score.drop)}")
        )
    elif score is not None:
        made.append((_agreement(score), "", "", f"lacks {_interval(score.drop)}"))
    made += [(f"agreement: {name}", "", "", _interval(value)) for name, value in report.agreement.items()]
    for latency in report.latency:
        label = f"{latency.provider}, batch {latency.batch}, {_threads(latency.threads)}"
        first, last, ratio = latency.timings[0], latency.timings[-1], latency.ratios[-1]
        change = f"{ratio.value:.2f}x [{ratio.low:.2f}, {ratio.high:.2f}] {ratio.clock} time, noise {ratio.noise:.1%}"
        made.append((f"p50 ms ({label})", f"{first.wall_p50:.3f}", f"{last.wall_p50:.3f}", change))
        made.append((f"p95 ms ({label})", f"{first.wall_p95:.3f}", f"{last.wall_p95:.3f}", ""))
    return made + _load_rows(report.load)


def _load_rows(load: Sequence[Load]) -> list[tuple[str, str, str, str]]:
    """Load time and peak memory, as far as they are known."""
    if not load:
        return []
    first, last = load[0], load[-1]
    change = f"{first.cpu_ms / max(last.cpu_ms, 1e-3):.2f}x cpu time"
    made = [("load ms (cpu, 1 thread)", f"{first.wall_ms:.1f}", f"{last.wall_ms:.1f}", change)]
    if first.peak_bytes is not None and last.peak_bytes is not None:
        peaks = first.peak_bytes, last.peak_bytes
        made.append(("peak memory at load", _size(peaks[0]), _size(peaks[1]), _times(*peaks)))
    return made


def markdown(report: Report) -> str:
    """The report as Markdown."""
    lines = [f"# {report.model}", "", headline(report), ""]
    lines += [f"> {note}" for note in report.notes] + ([""] if report.notes else [])
    lines += ["| | before | after | change |", "| --- | --- | --- | --- |"]
    lines += [f"| {' | '.join(row)} |" for row in rows(report)]
    if report.verdicts:
        lines += ["", "| limit | wanted | measured | |", "| --- | --- | --- | --- |"]
        lines += [
            f"| {v.limit} | {v.wanted:g} | {v.measured:.4f} | {verdict_words(v)} |" for v in report.verdicts
        ]
    lines += ["", f"Evaluated on {report.evaluated_on}.", "", "## Passes", ""]
    for step in report.steps:
        figures = ", ".join(
            f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in step.figures.items()
        )
        lines.append(f"- `{step.recipe}`: {step.touched} changed, {step.seconds:.1f} s. {figures}")
        lines += [f"  - declined `{name}`: {reason}" for name, reason in step.declined.items()]
    e = report.environment
    lines += [
        "",
        "## Environment",
        "",
        f"onnx-compressor {e.tool}, onnxruntime {e.onnxruntime}, onnx {e.onnx}, Python {e.python}, {e.system}",
    ]
    lines += [
        f"{e.cpu}, {e.cores} cores: {', '.join(e.cpu_features)}",
        "",
        f"Pipeline: `{report.pipeline}`",
        "",
    ]
    return "\n".join(lines)


def verdict_words(verdict: Verdict) -> str:
    """How a limit ended, in words."""
    return ("held" if verdict.held else "BROKEN") + (
        "" if verdict.certain else " (the interval straddles the limit)"
    )


def _times(before: int, after: int) -> str:
    ratio = before / max(1, after)
    return f"{ratio:.2f}x smaller" if ratio >= 1 else f"{1 / ratio:.2f}x larger"


def _interval(value: Interval) -> str:
    return f"{value.value:.4f} [{value.low:.4f}, {value.high:.4f}]"


def _size(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


def _bits(size: Size) -> str:
    return "" if size.bits_per_weight is None else f"{size.bits_per_weight:.2f}"


def _count(number: int | None) -> str:
    if number is None:
        return "unknown"
    return f"{number / 1e6:.2f} M" if number >= 1e5 else str(number)


def _threads(count: int) -> str:
    return "all cores" if count == 0 else f"{count} thread{'s' if count > 1 else ''}"
