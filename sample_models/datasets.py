"""The three data sets as float32 arrays ready to feed, cut into disjoint train / calibration / test parts.

The data ship inside scikit-learn, so nothing is fetched.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]
Splits = dict[str, Arrays]

DIGITS_PARTS = (256, 640)
BREAST_CANCER_PARTS = (114, 171)


def digits32(seed: int) -> Splits:
    """`image`: N x 1 x 32 x 32 in 0..1, the 8x8 digits enlarged (bilinear); `labels`: 0..9.

    Values are rounded to multiples of 1/16, the resolution of the originals: the files are a third as large.
    """
    images, labels = _digits()
    large = np.round(16 * _enlarge(images, 4)) / 16
    return _split("image", large[:, None].astype(np.float32), labels, DIGITS_PARTS, seed)


def digits8(seed: int) -> Splits:
    """`rows`: N x 8 x 8 in 0..1, eight rows of eight pixels; `labels`: 0..9. The same cut as digits32."""
    images, labels = _digits()
    return _split("rows", images.astype(np.float32), labels, DIGITS_PARTS, seed)


def breast_cancer(seed: int) -> Splits:
    """`features`: N x 30, standardised by the mean and deviation of the train part; `labels`: 1 is benign."""
    from sklearn.datasets import load_breast_cancer

    source = load_breast_cancer()
    splits = _split("features", source.data, source.target, BREAST_CANCER_PARTS, seed)
    train = splits["train"]["features"]
    mean, deviation = np.mean(train, axis=0), np.std(train, axis=0)
    for part in splits.values():
        part["features"] = ((part["features"] - mean) / deviation).astype(np.float32)
    return splits


def write_npz(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """A compressed .npz whose bytes depend on the arrays alone: every entry has the same fixed date."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            archive.writestr(entry, buffer.getvalue(), zipfile.ZIP_DEFLATED, compresslevel=9)


def _digits() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    from sklearn.datasets import load_digits

    source = load_digits()
    return source.images / 16, source.target


def _enlarge(images: NDArray[np.float64], factor: int) -> NDArray[np.float64]:
    """Bilinear interpolation of N x S x S at half-pixel centres, edges repeated.

    >>> _enlarge(np.array([[[0.0, 1.0], [0.0, 1.0]]]), 2)[0, 0].tolist()
    [0.0, 0.25, 0.75, 1.0]
    """
    size = images.shape[-1]
    at = np.clip((np.arange(size * factor) + 0.5) / factor - 0.5, 0, size - 1)
    weights = np.maximum(0, 1 - np.abs(at[:, None] - np.arange(size)))
    enlarged: NDArray[np.float64] = weights @ images @ weights.T
    return enlarged


def _split(name: str, x: NDArray[Any], labels: NDArray[Any], parts: tuple[int, int], seed: int) -> Splits:
    """Three disjoint parts with the classes in proportion; `parts` counts calibration and test samples."""
    from sklearn.model_selection import train_test_split

    calibration, test = parts
    index = np.arange(len(labels))
    rest, held = train_test_split(index, test_size=test, stratify=labels, random_state=seed)
    train, quiet = train_test_split(rest, test_size=calibration, stratify=labels[rest], random_state=seed)
    chosen = {"train": train, "calibration": quiet, "test": held}
    return {
        part: {name: x[order], "labels": labels[order].astype(np.int64)} for part, order in chosen.items()
    }
