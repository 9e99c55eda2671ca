"""Models with real data: the samples of this repository, and a folder of others where there is one.

The folder is `COMPRESSOR_ZOO`, or `shared/zoo` beside the checkout; it holds manifest.json, models/ and data/.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "sample_models"
FOLDER = Path(os.environ.get("COMPRESSOR_ZOO", ROOT.parent / "shared" / "zoo"))
ABSENT = "no zoo of further models: set COMPRESSOR_ZOO to its folder"

Feeds = dict[str, np.ndarray]


def sample_names() -> list[str]:
    return sorted(path.stem for path in SAMPLES.glob("*.onnx"))


def sample(name: str, rows: int) -> tuple[Path, Feeds]:
    """A sample model and the first test rows of its data."""
    found = json.loads((SAMPLES / "manifest.json").read_text())["models"][f"{name}.onnx"]
    with np.load(SAMPLES / f"{found['data']}_test.npz") as arrays:
        return SAMPLES / f"{name}.onnx", {found["input"]: arrays[found["input"]][:rows]}


def names() -> list[str]:
    """The models of the zoo; none where there is no zoo."""
    return list(_manifest()) if (FOLDER / "manifest.json").exists() else []


def fixed_batch(name: str) -> bool:
    """Whether the file says how many samples a batch has."""
    inputs = _manifest()[name]["inputs"]
    return not inputs or isinstance(inputs[0][2][0], int)


def model(name: str, rows: int) -> tuple[Path, Feeds]:
    """A model of the zoo and real inputs; a file that fixes its batch has that many rows."""
    entry = _manifest()[name]
    path = FOLDER / entry["file"]
    rows = entry["inputs"][0][2][0] if entry["inputs"] and fixed_batch(name) else rows
    if entry["metric"] == "parity":
        return path, _stored(name, entry, rows)
    if entry["metric"] == "stsb":
        return path, _sentences(entry, rows)
    if entry["metric"] == "vad":
        return path, _speech(rows)
    stored = entry["dataset"]["test"]
    return path, {entry["inputs"][0][0]: _prepared(_rows(stored, rows), entry["preprocess"])}


def _manifest() -> dict[str, Any]:
    models: dict[str, Any] = json.loads((FOLDER / "manifest.json").read_text())["models"]
    return models


def _stored(name: str, entry: dict[str, Any], rows: int) -> Feeds:
    with np.load(FOLDER / "data" / "parity" / f"{name}.npz") as arrays:
        first = {key: arrays[f"in0/{key}"] for key, _, _ in entry["inputs"]}
    return first if fixed_batch(name) else {key: np.repeat(a, rows, 0)[:rows] for key, a in first.items()}


def _sentences(entry: dict[str, Any], rows: int) -> Feeds:
    with np.load(FOLDER / "data" / "stsb_tokens.npz") as arrays:
        tokens = arrays["test_a"][:rows].astype(np.int64)
        if entry.get("small_vocab"):
            tokens = arrays["small_vocab_remap"].astype(np.int64)[tokens] * (tokens > 0)
    mask = (tokens > 0).astype(np.int64)
    longest = int(mask.sum(1).max())
    return {"input_ids": tokens[:, :longest], "attention_mask": mask[:, :longest]}


def _speech(rows: int) -> Feeds:
    """Chunks of 64 + 512 samples at 16 kHz, an empty state."""
    with np.load(FOLDER / "data" / "vad_testset.npz") as arrays:
        audio = arrays["audio"][32000 : 32000 + rows * 576].astype(np.float32) / 32768
    state = np.zeros((2, rows, 128), np.float32)
    return {"input": audio.reshape(rows, 576), "sr": np.array(16000, np.int64), "state": state}


def _rows(name: str, rows: int) -> np.ndarray:
    """The first test rows of a data file, encoded images decoded."""
    with np.load(FOLDER / "data" / f"{name}.npz") as arrays:
        if "test_img" not in arrays:
            return arrays["x_test"][:rows]
        raw, offsets = arrays["test_img"].tobytes(), arrays["test_off"]
    from io import BytesIO

    from PIL import Image

    parts = (raw[offsets[i] : offsets[i + 1]] for i in range(rows))
    return np.stack([np.asarray(Image.open(BytesIO(part)).convert("RGB")) for part in parts])


def _prepared(x: np.ndarray, how: dict[str, Any]) -> np.ndarray:
    """(x * scale - mean) / std + offset, in the layout that the model takes."""
    x = x.astype(np.float32)[..., :: -1 if how.get("channels") == "BGR" else 1] * np.float32(
        how.get("scale", 1)
    )
    x = (x - np.float32(how.get("mean", 0))) / np.float32(how.get("std", 1)) + np.float32(
        how.get("offset", 0)
    )
    if how.get("layout") == "NCHW":
        x = x.transpose(0, 3, 1, 2) if x.ndim == 4 else x[:, None]
    return np.ascontiguousarray(x, np.float32)
