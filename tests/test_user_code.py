"""Objects from the user's files and modules."""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path

import pytest

from compressor.errors import DataError, OptionError
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


def test_a_file_that_changed_is_read_again(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    load_object(f"{file}:three", "it")
    before = file.stat()
    file.write_text(file.read_text().replace("beside.NUMBER", "beside.DOUBLE"))
    (file.parent / "beside.py").write_text("NUMBER, DOUBLE = 3, 6\n")
    monkeypatch.delitem(sys.modules, "beside")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size
    assert load_object(f"{file}:three", "it")() == 6


def test_files_of_one_name_in_two_folders_are_two_modules(tmp_path: Path) -> None:
    made = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        path = tmp_path / folder / "mine.py"
        path.write_text("class Mine:\n    pass\n")
        made.append(load_object(f"{path}:Mine", "it", "class"))
    names = {cls.__module__ for cls in made}
    assert len(names) == 2
    assert all(pickle.loads(pickle.dumps(cls)) is cls for cls in made)


def test_a_module_is_found_by_its_name() -> None:
    assert load_object("math:floor", "it")(2.5) == 2


def test_a_missing_file_is_named() -> None:
    with pytest.raises(OptionError, match=r"^it: there is no file 'none\.py'\.$"):
        load_object("none.py:f", "it")


@pytest.mark.parametrize("place", ["no_such_module", "no_such_module.part", "json.no_such_part"])
def test_a_missing_module_is_named_with_the_way_to_give_a_file(place: str) -> None:
    with pytest.raises(OptionError) as raised:
        load_object(f"{place}:f", "it")
    assert str(raised.value).startswith(f"it: '{place}' cannot be imported: No module named ")
    assert str(raised.value).endswith(f". Give a file as folder/{place}.py:f.")


def test_a_module_that_the_file_misses_is_named_alone(file: Path) -> None:
    file.write_text("import no_such_module\n")
    with pytest.raises(
        OptionError, match=r"mine.py' cannot be imported: No module named 'no_such_module'\.$"
    ):
        load_object(f"{file}:f", "it")


def test_an_address_needs_a_colon() -> None:
    with pytest.raises(OptionError, match=r"^it: 'mine' names no hook. Give module:name or file.py:name\.$"):
        load_object("mine", "it", "hook")


def test_syntax_errors_say_their_line(file: Path) -> None:
    file.write_text("\ndef f(:\n")
    with pytest.raises(OptionError, match=r"cannot be imported: SyntaxError: .*\(mine.py, line 2\)\.$"):
        load_object(f"{file}:f", "it")


def test_the_class_of_the_errors_is_the_callers_choice() -> None:
    with pytest.raises(DataError, match="there is no file"):
        load_object("none.py:f", "it", refusal=DataError)


def test_interrupts_pass(file: Path) -> None:
    file.write_text("raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        load_object(f"{file}:f", "it")


def test_code_that_raises_is_told_in_one_line(file: Path) -> None:
    file.write_text("raise ValueError('two\\nlines')\n")
    with pytest.raises(
        OptionError, match=r"cannot be imported: ValueError: two lines \(mine.py, line 1\)\.$"
    ):
        load_object(f"{file}:f", "it")


def test_a_wrong_name_gets_a_suggestion(file: Path) -> None:
    with pytest.raises(OptionError, match=r"it: no function 'thre' in .*Did you mean 'three'\?"):
        load_object(f"{file}:thre", "it")


def test_what_is_no_function_is_refused(file: Path) -> None:
    with pytest.raises(OptionError, match="no function 'LIMIT'"):
        load_object(f"{file}:LIMIT", "it")
