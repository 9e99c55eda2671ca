"""Measuring a model, and one model against another: size, outputs on samples, accuracy, latency."""

from __future__ import annotations

import os
import platform
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from compressor import cpu
from compressor.latency import Latency, Protocol, measure
from compressor.low_bit.recognition import unpacked
from compressor.model_io import files_of, load, tool_version
from compressor.pipeline import Progress, silent
from compressor.prepare import normalized
from compressor.report import Environment, Size
from compressor.runtime import Session, Setup, runnable, version
from compressor.summary import constant_bytes, summarize

if TYPE_CHECKING:
    from compressor.data import Samples

PROTOCOL = Protocol()
_CHUNK = 1 << 22


def size_of(source: ir.Model | Path) -> Size:
    """The size of a model file with its external data, or of a model in memory as it would be written."""
    import zstandard

    deflate, zstd, total = zlib.compressobj(6), zstandard.ZstdCompressor(level=3).compressobj(), 0
    small = large = 0
    for chunk in _chunks(source):
        total += len(chunk)
        small += len(deflate.compress(chunk))
        large += len(zstd.compress(chunk))
    small += len(deflate.flush())
    large += len(zstd.flush())
    model = source if isinstance(source, ir.Model) else load(source)
    facts, held = summarize(normalized(unpacked(model))), constant_bytes(model)
    return Size(
        bytes=total,
        deflate=small,
        zstd=large,
        parameters=facts.parameters,
        nonzero=facts.nonzero,
        weight_bytes=held,
        bits_per_weight=8 * held / facts.parameters if facts.parameters else None,
        macs=facts.macs,
    )


def outputs_on(
    model: ir.Model | Path,
    samples: Samples,
    setup: Setup,
    progress: Progress = silent,
    what: str = "evaluating",
) -> list[np.ndarray]:
    """The model's outputs over all samples, each concatenated to [samples, ...]; padding of a last batch is cut."""
    session = Session(model, setup)
    parts: list[list[np.ndarray]] = []
    done = 0
    for batch in samples.batches():
        rows = samples.rows(batch.feeds)
        made = session.run(batch.feeds)
        parts.append(
            [
                np.asarray(o)[: batch.count] if np.ndim(o) and len(o) == rows else np.asarray(o)[None]
                for o in made
            ]
        )
        done += batch.count
        progress(what, done, len(samples))
    return [_joined(list(column)) for column in zip(*parts, strict=True)]


def latencies(
    models: Sequence[ir.Model | Path],
    samples: Samples,
    setups: Sequence[Setup],
    batch: int,
    progress: Progress = silent,
    seed: int = 0,
) -> tuple[Latency, ...]:
    """Interleaved latency of the models on `batch` samples in each setup, against the first model.

    Too few samples are repeated; a batch axis that the model fixes keeps its size.
    """
    feeds = next(iter(samples.batches(batch))).feeds
    have = samples.rows(feeds)
    if samples.fixed_batch is None and have < batch:
        feeds = {
            n: np.resize(a, (batch, *a.shape[1:])) if a.ndim and len(a) == have else a
            for n, a in feeds.items()
        }
    protocol = replace(PROTOCOL, seed=seed)
    return tuple(measure(models, feeds, setup, protocol, progress) for setup in setups)


def environment() -> Environment:
    """Versions and processor, for the report."""
    import onnx

    return Environment(
        tool=tool_version(),
        python=sys.version.split()[0],
        onnx=onnx.__version__,
        onnxruntime=version(),
        system=f"{platform.system()} {platform.machine()}",
        cpu=cpu.model_name(),
        cpu_features=cpu.features(),
        cores=os.cpu_count() or 1,
    )


def _chunks(source: ir.Model | Path) -> Iterator[bytes]:
    """The bytes of the model and its external data, a few MB at a time."""
    keep = None
    if isinstance(source, ir.Model):
        written, keep = runnable(source)
        if isinstance(written, bytes):
            yield written
            return
        source = Path(written)
    for file in files_of(source):
        with file.open("rb") as handle:
            while chunk := handle.read(_CHUNK):
                yield chunk
    if keep is not None:
        keep.cleanup()


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    """The batches' outputs behind each other; those whose other axes differ (detections) are padded with zeros."""
    shapes = {part.shape[1:] for part in parts}
    if len(shapes) == 1:
        return np.concatenate(parts)
    widest = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]
    wide = []
    for part in parts:
        pads = [(0, 0), *((0, most - size) for most, size in zip(widest, part.shape[1:], strict=True))]
        wide.append(np.pad(part, pads))
    return np.concatenate(wide)
