"""Who may import whom, and what importing the package may cost."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ENGINE = sorted((ROOT / "compressor").rglob("*.py"))
PASSES = sorted((ROOT / "passes").glob("*.py"))
DOORS: dict[str, tuple[str, ...]] = {
    "onnxruntime": ("runtime.py",),
    "click": ("cli.py",),
    "rich": ("console.py",),
    "torch": ("torch_graph/", "training/", "exporting/"),
    "pytorch_lightning": ("training/",),
    "kornia": ("training/",),
    "matplotlib": ("sensitivity_plot.py",),
    "passes": (),
}
"""Package -> the files and folders of the engine that may import it."""


@cache
def imported(file: Path) -> set[str]:
    """The dotted names that a file imports, anywhere in it, those for types only left out."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
        if isinstance(node, ast.Import):
            found.update(name.name for name in node.names)
        if isinstance(node, ast.ImportFrom) and node.module:
            found.update({node.module, *(f"{node.module}.{name.name}" for name in node.names)})
    return found


@pytest.mark.parametrize("package", DOORS)
def test_a_heavy_or_outward_package_comes_in_by_its_doors_only(package: str) -> None:
    users = [file for file in ENGINE if any(n.split(".")[0] == package for n in imported(file))]
    places = [file.relative_to(ROOT / "compressor").as_posix() for file in users]
    assert not [place for place in places if not place.startswith(DOORS[package])]


@pytest.mark.parametrize("file", PASSES, ids=lambda file: file.stem)
def test_a_pass_imports_the_engine_only(file: Path) -> None:
    refused = ("passes", "click", "rich", "onnxruntime", "torch", "pytorch_lightning", "kornia")
    refused += tuple(f"compressor.{name}" for name in ("cli", "console", "discover", "report"))
    assert not [n for n in imported(file) if any(n == r or n.startswith(f"{r}.") for r in refused)]


def test_discover_names_passes_only_at_run_time() -> None:
    assert 'import_module("passes")' in (ROOT / "compressor" / "discover.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("module", ["compressor", "compressor.cli"])
def test_importing_costs_next_to_nothing(module: str) -> None:
    heavy = [
        "torch",
        "onnxruntime",
        "onnx",
        "onnx_ir",
        "pydantic",
        "numpy",
        "scipy",
        "sklearn",
        "PIL",
        "pyarrow",
    ]
    code = f"import sys, {module}; print([m for m in {heavy} if m in sys.modules])"
    made = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert made.stdout.strip() == "[]"


def test_every_public_name_can_be_imported() -> None:
    import compressor

    assert all(getattr(compressor, name) is not None for name in compressor.__all__)
    assert dir(compressor) == sorted(compressor.__all__)


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    import compressor

    with pytest.raises(AttributeError, match="module 'compressor' has no attribute 'Nothing'"):
        _ = compressor.Nothing
