"""Rebuild the sample models and their data from a seed, or check the shipped files.

python sample_models/build.py             train, export, measure, write; 2 to 3 minutes on two cores
python sample_models/build.py --check     compare every file with its SHA-256; needs no torch
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from datasets import Splits
    from numpy.typing import NDArray
    from recipes import Recipe
    from torch import nn

HERE = Path(__file__).resolve().parent
TABLE = ("<!-- table: written by build.py -->\n", "<!-- end of table -->\n")
SAME = 1e-4  # largest difference of a logit between torch and onnxruntime, both float32


def main() -> int:
    """The command line; 0 when all is well, 1 when a file is missing or not as recorded."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check", action="store_true", help="compare the files with their SHA-256, write nothing"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the data split, the weights and the training")
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write to or to check")
    arguments = parser.parse_args()
    if not arguments.check:
        build(arguments.out, arguments.seed)
        return 0
    wrong = check(arguments.out)
    print("\n".join(wrong) or "All files are as recorded in manifest.json.")
    return 1 if wrong else 0


def check(folder: Path) -> list[str]:
    """One line for each file of the manifest that is missing or has another SHA-256."""
    manifest = json.loads((folder / "manifest.json").read_text())
    wrong = []
    for name, entry in {**manifest["models"], **manifest["data"]}.items():
        path = folder / name
        if not path.is_file():
            wrong.append(f"{name}: missing. Rebuild it with: python sample_models/build.py")
        elif sha256(path) != entry["sha256"]:
            wrong.append(f"{name}: SHA-256 is {sha256(path)}, recorded is {entry['sha256']}.")
    return wrong


def sha256(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def build(folder: Path, seed: int) -> None:
    """Write the data, the models, manifest.json and README.md into `folder`."""
    import datasets
    from recipes import RECIPES

    folder.mkdir(parents=True, exist_ok=True)
    manifest: dict[str, Any] = {"seed": seed, "built_with": _versions(), "models": {}, "data": {}}
    makers = (datasets.digits32, datasets.digits8, datasets.breast_cancer)
    sets = {make.__name__: make(seed) for make in makers}
    for name, splits in sets.items():
        for part, arrays in splits.items():
            path = folder / f"{name}_{part}.npz"
            datasets.write_npz(path, arrays)
            manifest["data"][path.name] = {**_fingerprint(path), "n": len(arrays["labels"])}
    for name, recipe in RECIPES.items():
        path = folder / f"{name}.onnx"
        facts = _build_model(path, recipe, sets[recipe.data], seed)
        manifest["models"][path.name] = {**_fingerprint(path), **facts}
        print(f"{path.name}: top1 {facts['top1']:.4f}, n={facts['n']}")
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    page = with_table((HERE / "README.md").read_text(), readme_table(manifest))
    (folder / "README.md").write_text(page)


def _build_model(path: Path, recipe: Recipe, splits: Splits, seed: int) -> dict[str, Any]:
    """Train, export, verify and write one model; what the manifest says of it."""
    import numpy as np
    import onnx
    import torch
    from training import export, train

    (name,) = set(splits["test"]) - {"labels"}
    module = train(recipe, splits["train"][name], splits["train"]["labels"], seed)
    x, labels = splits["test"][name], splits["test"]["labels"]
    model = export(module, name, torch.from_numpy(x[:2]))
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))
    logits = _verified(path, module, name, x)
    top1 = float(np.mean(logits.argmax(axis=1) == labels))
    shape = ["batch", *x.shape[1:]]
    return {
        "task": recipe.task,
        "data": recipe.data,
        "input": name,
        "shape": shape,
        "top1": top1,
        "n": len(x),
    }


def _verified(path: Path, module: nn.Module, name: str, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """onnxruntime's logits of x, after comparing with torch at batch sizes 1, 8 and all."""
    import torch

    from compressor.runtime import Session

    session = Session(path)
    for size in (1, 8, len(x)):
        with torch.inference_mode():
            wanted = module(torch.from_numpy(x[:size])).numpy()
        (logits,) = session.run({name: x[:size]})
        require_same(f"{path.name}, batch {size}", wanted, logits)
    return logits


def require_same(what: str, wanted: NDArray[np.float32], got: NDArray[np.float32]) -> None:
    """Raise ModelError when the logits of torch and of onnxruntime differ by more than SAME anywhere."""
    from compressor.errors import ModelError

    difference = float(abs(wanted - got).max())
    if not difference <= SAME:
        raise ModelError(
            f"{what}: torch and onnxruntime differ by {difference:.2g}, more than {SAME}."
            " The export is wrong: try another version of torch or onnxscript."
        )


def readme_table(manifest: Mapping[str, Any]) -> str:
    """The models of the manifest as a Markdown table."""
    lines = [
        "| model | task | input | data | float top-1 on test | size |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, m in manifest["models"].items():
        shape = " x ".join(str(size) for size in m["shape"])
        lines.append(
            f"| `{name}` | {m['task']} | `{m['input']}`, {shape} | `{m['data']}_*.npz`"
            f" | {m['top1']:.4f}, n={m['n']} | {m['bytes'] / 1e6:.2f} MB |"
        )
    return "\n".join(lines) + "\n"


def with_table(page: str, table: str) -> str:
    """The page with the text between the two marks replaced by the table."""
    before, rest = page.split(TABLE[0])
    _, after = rest.split(TABLE[1])
    return before + TABLE[0] + table + TABLE[1] + after


def _fingerprint(path: Path) -> dict[str, Any]:
    return {"sha256": sha256(path), "bytes": path.stat().st_size}


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("torch", "onnx", "onnxscript", "numpy", "scikit-learn")}


if __name__ == "__main__":
    sys.exit(main())
