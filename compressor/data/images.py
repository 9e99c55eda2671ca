"""A folder of image files, with one sub-folder per class."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from compressor.data.arithmetic import Array
from compressor.data.inputs import Input
from compressor.data.rows import ArrayColumn, Rows, rows_of
from compressor.errors import DataError

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})


class ImageColumn:
    """Image files, decoded at reading: uint8 [height, width, channels] each, of sizes that may differ."""

    def __init__(self, files: Sequence[Path], mode: str) -> None:
        self._files = files
        self._mode = mode
        self.dtype: np.dtype[Any] = np.dtype(np.uint8)

    @cached_property
    def row(self) -> tuple[int, ...]:
        """The shape of the first image."""
        return decode(self._files[0], self._mode).shape

    def __len__(self) -> int:
        """The number of images."""
        return len(self._files)

    def read(self, rows: npt.NDArray[np.intp]) -> list[Array]:
        """The images with these numbers."""
        return [decode(self._files[row], self._mode) for row in rows]


def decode(file: Path, mode: str) -> Array:
    """The image as uint8 [height, width, channels]; DataError names the file. `mode`: L, RGB or RGBA."""
    try:
        from PIL import Image
    except ImportError:
        raise DataError("reading images needs Pillow: pip install 'onnx-compressor[images]'.") from None
    try:
        with Image.open(file) as image:
            pixels: Array = np.asarray(image.convert(mode))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(
            f"image {str(file)!r} cannot be decoded: {error}. Mend it or take it away."
        ) from error
    return pixels[..., None] if pixels.ndim == 2 else pixels


def read_images(folder: Path, inputs: Sequence[Input], channels_last: bool | None) -> Rows:
    """The images of a folder, sorted by path; a class is the index of its sub-folder in sorted order.

    Images that lie in the folder itself, with no sub-folder, have no labels.

    Args:
        folder: where the images or the sub-folders are.
        inputs: of the model; there must be one, of rank 4 with 1, 3 or 4 channels (3 if that is dynamic).
        channels_last: the layout that the model takes; None to tell it from the sizes of the input.

    Raises:
        DataError: no images, another kind of input, or images both beside and inside sub-folders.
    """
    if len(inputs) != 1 or not inputs[0].image:
        listed = ", ".join(f"{i.name!r} {i}" for i in inputs)
        raise DataError(
            f"a folder of images needs a model with one image input (rank 4), this one has {listed}."
        )
    classes = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    flat = _images(folder)
    files = [(file, label) for label, sub in enumerate(classes) for file in _images(sub)]
    if flat and files:
        raise DataError(
            f"there are images both in {str(folder)!r} and in its sub-folders. Move those that have no class."
        )
    if not flat and not files:
        raise DataError(
            "the folder holds neither .npy files nor images. Give one .npy file per input, or images in one "
            "sub-folder per class."
        )
    last = inputs[0].channels_last if channels_last is None else channels_last
    mode = _mode(inputs[0], last)
    name = inputs[0].name
    labels = None if flat else ArrayColumn.of("labels", np.array([label for _, label in files], np.int64))
    column = ImageColumn(flat or [file for file, _ in files], mode)
    return rows_of({name: column}, labels, {name: name, "labels": "labels"}, None if last else "nhwc->nchw")


def _images(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())


def _mode(wanted: Input, channels_last: bool) -> str:
    dims = wanted.dims or ()
    channels = dims[3] if channels_last else dims[1]
    modes: dict[object, str] = {1: "L", 3: "RGB", 4: "RGBA"}
    if not isinstance(channels, int):
        return "RGB"
    if channels not in modes:
        raise DataError(
            f"images have 1, 3 or 4 channels, but input {wanted.name!r} is {wanted}. Give an .npz instead."
        )
    return modes[channels]
