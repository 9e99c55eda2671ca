"""The options of a DATA argument and its text form, `PATH` or `PATH{option=value ...}`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator

from compressor.errors import OptionError, did_you_mean
from compressor.language import literal, skip, word

Layout = Literal["nhwc->nchw", "nchw->nhwc", "nhw->nchw", "nhw->nhwc"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)


def _not_zero(value: float) -> float:
    if value == 0:
        raise ValueError("zero")
    return value


_Positive = Annotated[int, Field(ge=1)]
_Size = _Positive | tuple[_Positive, _Positive]
_Number = Annotated[float, Field(allow_inf_nan=False)]
_Divisor = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Scale = Annotated[float, Field(allow_inf_nan=False), AfterValidator(_not_zero)]


class DataOptions(BaseModel):
    """How samples are chosen and prepared. Order: layout, resize, crop, `* scale`, `- mean`, `/ std`, cast.

    `layout`, `resize` and `crop` act on image inputs (rank 4). `scale`, `mean` and `std` act on the float
    image inputs when there are any, else on every float input.

    Args:
        limit: at most so many samples: the first ones after `shuffle`, rows that `clean` drops not counted.
        shuffle: take the samples in an order drawn from `seed`; the same order at every reading.
        seed: of `shuffle`; 0 or more.
        batch: samples in a batch. A batch axis that is fixed in the model wins.
        scale: factor on the values, such as 1/255; in text also a fraction in quotes, scale='1/255'. Not 0.
        mean: subtracted after `scale`: a number, or one per channel of the final layout.
        std: divides after `mean`; positive: a number, or one per channel of the final layout.
        layout: 'nhwc->nchw' or 'nchw->nhwc'; from 'nhw' a channel axis of 1 is added.
        resize: the shorter side in pixels, the ratio kept, or (height, width). Bilinear, antialiased.
        crop: (height, width) cut from the centre, or one number for both.
        labels: the name of the array or column that holds the labels; 'labels' when not given.
        clean: what happens to rows that hold NaN or infinities. 'fail' names them, 'drop' leaves them out,
            'clip' puts 0 for NaN and the largest or smallest finite value of the row for an infinity.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    limit: _Positive | None = None
    shuffle: bool = False
    seed: Annotated[int, Field(ge=0)] = 0
    batch: _Positive | None = None
    scale: _Scale | None = None
    mean: _Number | tuple[_Number, ...] | None = None
    std: _Divisor | tuple[_Divisor, ...] | None = None
    layout: Layout | None = None
    resize: _Size | None = None
    crop: _Size | None = None
    labels: Annotated[str, Field(min_length=1)] | None = None
    clean: Literal["fail", "drop", "clip"] = "fail"

    @field_validator("scale", mode="before")
    @classmethod
    def _fraction(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        try:
            return float(Fraction(value))
        except (ValueError, ZeroDivisionError):
            return math.nan

    @field_validator("mean", "std")
    @classmethod
    def _some(cls, value: object) -> object:
        if value == ():
            raise ValueError("empty")
        return value


_WANTED = {
    "limit": "an integer of at least 1",
    "shuffle": "True or False",
    "seed": "an integer of at least 0",
    "batch": "an integer of at least 1",
    "scale": "a number other than 0, such as 0.5 or '1/255'",
    "mean": "a number, or one number per channel such as [0.5,0.5,0.5]",
    "std": "a positive number, or one per channel such as [0.5,0.5,0.5]",
    "layout": "one of " + ", ".join(repr(layout) for layout in LAYOUTS),
    "resize": "the shorter side or (height,width) in pixels, each an integer of at least 1",
    "crop": "one side or (height,width) in pixels, each an integer of at least 1",
    "labels": "the name of an array or column",
    "clean": "one of 'fail', 'drop', 'clip'",
}


def read_options(options: Mapping[str, object]) -> DataOptions:
    """The checked options; OptionError names the first one that is unknown or out of range.

    >>> read_options({"limit": 5, "scale": "1/4"}).scale
    0.25
    """
    try:
        return DataOptions.model_validate(dict(options))
    except ValidationError as error:
        name = str(error.errors()[0]["loc"][0])
    if name not in _WANTED:
        raise OptionError(f"no option {name!r}. {did_you_mean(name, _WANTED)}")
    raise OptionError(f"option {name!r} must be {_WANTED[name]}, got {options[name]!r}.")


_BLOCK = re.compile(r"(?P<path>.*)\{(?P<block>[^{]*)\}\s*", re.DOTALL)


def split_argument(text: str) -> tuple[str, dict[str, object]]:
    """The path and the raw options of a DATA argument; OptionError when the braces cannot be read.

    A text that is itself the path of a file or folder is taken whole, whatever braces it has.

    >>> split_argument("x.npz{limit=5 layout='nhwc->nchw'}")
    ('x.npz', {'limit': 5, 'layout': 'nhwc->nchw'})
    """
    if "{" not in text or "\0" in text or Path(text).exists():
        return text, {}
    match = _BLOCK.fullmatch(text)
    if not match:
        if "}" in text[text.rindex("{") :]:
            return text, {}
        raise OptionError(f"{text!r}: the brace is not closed. Write PATH{{option=value ...}}.")
    if not match["path"]:
        raise OptionError(f"{text!r}: there is no path before the brace. Write PATH{{option=value ...}}.")
    try:
        return match["path"], _options(match["block"])
    except OptionError as error:
        raise OptionError(f"{text!r}: {str(error).removeprefix('Pipeline: ')}") from None


def _options(block: str) -> dict[str, Any]:
    """The `key=value ...` between the braces."""
    options: dict[str, Any] = {}
    at = skip(block, 0)
    while at < len(block):
        key, at = word(block, at, "an option")
        if block[at : at + 1] != "=":
            raise OptionError(f"expected '=' after {key!r}.")
        if key in options:
            raise OptionError(f"option {key!r} is given twice.")
        options[key], at = literal(block, at + 1)
        at = skip(block, at)
    return options
