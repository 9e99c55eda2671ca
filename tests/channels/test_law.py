from __future__ import annotations

import pytest

from compressor.channels.rules import RULES
from compressor.channels.rules.elementwise import unary
from tests.channels.law import broken, groups, plain
from tests.channels.middles import before_linear


def test_a_rule_that_says_too_much_breaks_the_law(monkeypatch: pytest.MonkeyPatch) -> None:
    proto = before_linear("m = GlobalAveragePool(h) f = Flatten(m) g = Softmax(f)", 8)
    assert groups(proto) == {}
    monkeypatch.setitem(RULES, "Softmax", unary(True))
    assert any("differs by" in line for line in broken(plain(proto)))


def test_a_length_that_is_not_rewritten_breaks_the_law(monkeypatch: pytest.MonkeyPatch) -> None:
    proto = before_linear("m = GlobalAveragePool(h) g = Flatten(m)", 8)
    monkeypatch.setattr("tests.channels.law.cut", lambda *_: None)
    assert any("differs by" in line for line in broken(plain(proto)))
