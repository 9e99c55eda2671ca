"""From a stored array to what an input of the model takes: layout, resize, crop, arithmetic, cast.

value = (x * scale - mean) / std
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from compressor.data.arithmetic import Array, bilinear, clip_rows, relayout, target_size
from compressor.data.inputs import Input, is_float, is_integer, shape_text
from compressor.data.options import DataOptions
from compressor.errors import DataError, OptionError

Numbers = float | tuple[float, ...] | None


@dataclass(frozen=True)
class Preparation:
    """How the samples of one input are prepared; fields as in DataOptions, None where one does not apply."""

    input: Input
    layout: str | None = None
    resize: int | tuple[int, int] | None = None
    crop: int | tuple[int, int] | None = None
    scale: float | None = None
    mean: Numbers = None
    std: Numbers = None
    clip: bool = False

    @property
    def arithmetic(self) -> bool:
        """Whether scale, mean or std is given."""
        return (self.scale, self.mean, self.std) != (None, None, None)

    def shape(self, row: Sequence[int]) -> tuple[int, ...]:
        """The shape of a sample after preparation, from that before. DataError when a step cannot be done."""
        if self.layout:
            if len(row) + 1 != self.layout.index("-"):
                raise DataError(
                    f"input {self.input.name!r}: layout={self.layout!r} needs arrays of rank "
                    f"{self.layout.index('-')}, got {shape_text(row)}. Leave the layout out or give another."
                )
            row = relayout(np.broadcast_to(np.zeros((), bool), (1, *row)), self.layout).shape[1:]
        if (self.resize or self.crop) and len(row) == 3:
            at = 0 if self._channels_last else 1
            height, width = target_size(row[at], row[at + 1], self.resize)
            height, width = self._crop_size(height, width)
            row = (*row[:at], height, width, *row[at + 2 :])
        return tuple(row)

    def check_channels(self, row: Sequence[int]) -> None:
        """OptionError when mean or std does not have one number per channel of a prepared sample."""
        for option, value in (("mean", self.mean), ("std", self.std)):
            if not isinstance(value, tuple):
                continue
            channels = row[self._channel_axis(row, len(value))] if row else 1
            if channels != len(value) or not row:
                raise OptionError(
                    f"option {option!r} has {len(value)} numbers, but a sample of input {self.input.name!r} "
                    f"has {channels} channels (shape {list(row)}). Give one number, or one per channel."
                )

    def apply(self, x: Array) -> Array:
        """The rows `x` [n, ...] as the input takes them: a new array [n, ...] of the model's element type.

        What is not finite stays so, unless `clip`; DataError when an integer is out of the input's range.
        """
        if self.clip and is_float(x.dtype):
            x = clip_rows(x)
        if self.layout:
            x = relayout(x, self.layout)
        if (self.resize or self.crop) and x.ndim == 4:
            x = self._resized(x)
        if self.arithmetic:
            x = self._scaled(x)
        return self._cast(x)

    @property
    def _channels_last(self) -> bool:
        return self.layout.endswith("c") if self.layout else self.input.channels_last

    def _channel_axis(self, row: Sequence[int], channels: int) -> int:
        """The channel axis of a sample of shape `row`."""
        if self.input.image or self.layout:
            return len(row) - 1 if self._channels_last else 0
        return 0 if row[0] == channels else len(row) - 1

    def _crop_size(self, height: int, width: int) -> tuple[int, int]:
        if self.crop is None:
            return height, width
        wanted = (self.crop, self.crop) if isinstance(self.crop, int) else self.crop
        if wanted[0] > height or wanted[1] > width:
            raise DataError(
                f"input {self.input.name!r}: crop={self.crop!r} is larger than the image of {height} x "
                f"{width}. Give a resize that is at least as large."
            )
        return wanted

    def _resized(self, x: Array) -> Array:
        at = 1 if self._channels_last else 2
        height, width = target_size(x.shape[at], x.shape[at + 1], self.resize)
        x = bilinear(bilinear(x, width, at + 1), height, at)
        h, w = self._crop_size(height, width)
        top, left = round((height - h) / 2), round((width - w) / 2)
        window = (slice(top, top + h), slice(left, left + w))
        return x[(slice(None),) * at + window]

    def _scaled(self, x: Array) -> Array:
        work = np.float64 if self.input.dtype == np.float64 else np.float32
        with np.errstate(over="ignore", invalid="ignore"):
            x = x.astype(work)
            if self.scale is not None:
                x *= work(self.scale)
            if self.mean is not None:
                x -= self._per_channel(self.mean, x).astype(work)
            if self.std is not None:
                x /= self._per_channel(self.std, x).astype(work)
        return x

    def _per_channel(self, value: float | tuple[float, ...], x: Array) -> Array:
        if not isinstance(value, tuple):
            return np.asarray(value)
        axis = 1 + self._channel_axis(x.shape[1:], len(value))
        return np.asarray(value).reshape([len(value) if a == axis else 1 for a in range(x.ndim)])

    def _cast(self, x: Array) -> Array:
        dtype = self.input.dtype
        with np.errstate(over="ignore", invalid="ignore"):
            out: Array = np.array(x, dtype=dtype, order="C")
        if is_integer(x.dtype) and is_integer(dtype) and not _same_integers(out, x):
            raise DataError(
                f"input {self.input.name!r} wants {dtype}, and {x.dtype} values from {x.min()} to {x.max()} "
                "do not fit in it. Give values that do."
            )
        if self.clip and is_float(x.dtype) and dtype.kind == "f":
            top = np.finfo(dtype).max
            np.clip(out, -top, top, out=out)
        return out


def _same_integers(out: Array, x: Array) -> bool:
    """Whether the cast `out` holds the values of `x`; signs too, as int64 and uint64 share bit patterns."""
    if out.dtype == x.dtype or np.can_cast(x.dtype, out.dtype, "safe"):
        return True
    return np.array_equal(out.astype(x.dtype), x) and not np.any((out < 0) != (x < 0))


def preparations(inputs: Sequence[Input], options: DataOptions) -> dict[str, Preparation]:
    """Input name -> how it is prepared. OptionError when an option applies to no input of the model."""
    images = {i.name for i in inputs if i.image}
    floats = {i.name for i in inputs if i.floating}
    scaled = floats & images or floats
    for option in ("layout", "resize", "crop"):
        if getattr(options, option) is not None and not images:
            raise OptionError(f"option {option!r} is for image inputs (rank 4), and the model has none.")
    for option in ("scale", "mean", "std"):
        if getattr(options, option) is not None and not scaled:
            raise OptionError(f"option {option!r} is for float inputs, and the model has none.")
    steps = {i.name: Preparation(i, clip=options.clean == "clip") for i in inputs}
    for name in images:
        steps[name] = replace(steps[name], layout=options.layout, resize=options.resize, crop=options.crop)
    for name in scaled:
        steps[name] = replace(steps[name], scale=options.scale, mean=options.mean, std=options.std)
    return steps
