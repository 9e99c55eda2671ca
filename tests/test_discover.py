"""From a pass name to its class: the folder, and entry points of third parties."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import ClassVar, final

import onnx_ir as ir
import pytest

from compressor import discover
from compressor.errors import OptionError
from compressor.pipeline import Change, Context, Pass, Pipeline

FOLDER = Path(__file__).parents[1] / "passes"
SHIPPED = sorted(file.stem for file in FOLDER.glob("*.py") if file.stem != "__init__")
Announce = Callable[[str, str], None]


@final
class Foreign(Pass):
    """A third party's pass."""

    name: ClassVar[str] = "foreign"

    def apply(self, model: ir.Model, context: Context) -> Change:
        """Do nothing."""
        return Change()


@pytest.fixture
def announce(monkeypatch: pytest.MonkeyPatch) -> Announce:
    """Announces one entry point, name -> "module:attribute" of a module that holds Foreign."""
    module = ModuleType("their_passes")
    module.Foreign = Foreign  # type: ignore[attr-defined]
    module.number = 3  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "their_passes", module)

    def act(name: str, value: str) -> None:
        point = EntryPoint(name, value, discover.GROUP)
        monkeypatch.setattr(
            discover, "entry_points", lambda group: [point] if group == discover.GROUP else []
        )

    return act


@pytest.mark.parametrize("stem", SHIPPED)
def test_file_class_and_name_of_a_shipped_pass_agree(stem: str) -> None:
    name = stem.replace("_", "-")
    cls = discover.find(name)
    assert issubclass(cls, Pass)
    assert cls.name == name
    assert cls.__name__ == "".join(word.capitalize() for word in stem.split("_"))
    assert cls.__module__ == f"passes.{stem}"
    assert name in discover.names()


def test_lists_the_names_sorted(announce: Announce) -> None:
    announce("foreign", "their_passes:Foreign")
    assert list(discover.names()) == sorted([*(stem.replace("_", "-") for stem in SHIPPED), "foreign"])


def test_suggests_the_nearest_name() -> None:
    with pytest.raises(OptionError, match=r"^No pass named 'optimise'\. Did you mean 'optimize'\?$"):
        Pipeline.parse("optimise{x=1}")


def test_lists_all_names_when_none_is_near() -> None:
    with pytest.raises(OptionError, match=r"^No pass named 'zzz'\. Known: .*optimize.*\.$"):
        discover.find("zzz")


def test_finds_the_pass_of_a_third_party(announce: Announce) -> None:
    announce("foreign", "their_passes:Foreign")
    assert discover.find("foreign") is Foreign
    assert Pipeline.parse("foreign") == Pipeline(Foreign())


def test_a_shipped_pass_cannot_be_replaced(announce: Announce) -> None:
    announce("optimize", "their_passes:Foreign")
    assert discover.find("optimize").__module__ == "passes.optimize"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "foreign",
            "no_such_module:Foreign",
            "Pass 'foreign' (no_such_module:Foreign) cannot be loaded: No module",
        ),
        ("foreign", "their_passes:Missing", "Pass 'foreign' (their_passes:Missing) cannot be loaded: "),
        (
            "foreign",
            "their_passes:number",
            "Pass 'foreign': their_passes:number is not a Pass with that name.",
        ),
        ("other", "their_passes:Foreign", "Pass 'other': their_passes:Foreign is not a Pass with that name."),
    ],
)
def test_names_the_entry_point_that_is_broken(
    announce: Announce, name: str, value: str, message: str
) -> None:
    announce(name, value)
    with pytest.raises(OptionError, match=f"^{re.escape(message)}"):
        discover.find(name)


@pytest.mark.parametrize("code", ["def (", "raise ValueError('no')", "Foreign = undefined"])
def test_a_third_partys_module_that_fails_is_named(
    announce: Announce, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str
) -> None:
    (tmp_path / "failing_pass.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    announce("foreign", "failing_pass:Foreign")
    with pytest.raises(OptionError, match=r"^Pass 'foreign' \(failing_pass:Foreign\) cannot be loaded: "):
        discover.find("foreign")
