"""Objects from the user's files and modules."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from compressor.errors import OptionError
from compressor.user_code import load_object


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "beside.py").write_text("NUMBER = 3\n")
    path = tmp_path / "mine.py"
    path.write_text("import beside\n\ndef three():\n    return beside.NUMBER\n\nLIMIT = 2\n")
    return path


def test_a_file_is_run_with_its_folder_importable(file: Path) -> None:
    before = list(sys.path)
    assert load_object(f"{file}:three", "it")() == 3
    assert sys.path == before


def test_a_file_that_changed_is_read_again(file: Path) -> None:
    load_object(f"{file}:three", "it")
    file.write_text("def three():\n    return 'new'\n")
    assert load_object(f"{file}:three", "it")() == "new"


def test_a_module_is_found_by_its_name() -> None:
    assert load_object("math:floor", "it")(2.5) == 2


def test_a_missing_file_is_named() -> None:
    with pytest.raises(OptionError, match=r"^it: there is no file 'none\.py'\.$"):
        load_object("none.py:f", "it")


def test_a_missing_module_is_named() -> None:
    with pytest.raises(OptionError, match="^it: 'no_such_module' cannot be imported: No module named"):
        load_object("no_such_module:f", "it")


def test_code_that_raises_is_told_in_one_line(file: Path) -> None:
    file.write_text("raise ValueError('two\\nlines')\n")
    with pytest.raises(OptionError, match="cannot be imported: two lines"):
        load_object(f"{file}:f", "it")


def test_a_wrong_name_gets_a_suggestion(file: Path) -> None:
    with pytest.raises(OptionError, match=r"it: no function 'thre' in .*Did you mean 'three'\?"):
        load_object(f"{file}:thre", "it")


def test_what_is_no_function_is_refused(file: Path) -> None:
    with pytest.raises(OptionError, match="no function 'LIMIT'"):
        load_object(f"{file}:LIMIT", "it")
