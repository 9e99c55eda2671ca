"""The user's hooks, by name."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from compressor.errors import OptionError
from compressor.training.hooks import callbacks


def test_a_class_of_a_file_is_made(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("import pytorch_lightning as pl\n\nclass Note(pl.Callback):\n    pass\n")
    (made,) = callbacks([f"{file}:Note"])
    assert type(made).__name__ == "Note"


def test_what_is_no_callback_is_refused() -> None:
    with pytest.raises(OptionError, match="callback 'math:floor': no Lightning callback 'floor' in 'math'"):
        callbacks(["math:floor"])


def test_a_class_that_needs_arguments_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "import pytorch_lightning as pl\n\nclass Note(pl.Callback):\n    def __init__(self, x):\n        pass\n"
    )
    with pytest.raises(OptionError, match=r"cannot be made without arguments: .*'x'"):
        callbacks([f"{file}:Note"])


def test_without_lightning_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_lightning", None)
    with pytest.raises(
        OptionError, match=r"callback 'math:floor' needs Lightning .*: pip install onnx-compressor\[train\]"
    ):
        callbacks(["math:floor"])
