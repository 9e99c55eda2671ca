"""What torch's exporter says when it fails, in one sentence: which operator or line, and what to do about it."""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

_TRACING = ("torch", "onnxscript", "onnx_ir", "onnx", "compressor")
_STATIC = re.compile(
    r"static shape of (?P<size>\d+) for dimension inputs\['(?P<name>[^']+)'\]\.shape\[(?P<axis>\d+)\]"
)
_MISSING = re.compile(r"No ONNX function found for <OpOverload\(op='(?P<operator>[\w.]+)'")
_LINE = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in .*\n\s*(?P<code>.*)')


class Line(NamedTuple):
    """A line of the user's code."""

    file: str
    number: int
    code: str

    def __str__(self) -> str:
        """As `model.py, line 12: x = x.item()`."""
        return f"{Path(self.file).name}, line {self.number}: {self.code.strip()}"


def explain(error: BaseException, names: Mapping[str, str]) -> str:
    """Why the export failed and what to do, as sentences without a line break.

    Args:
        error: what torch.onnx.export raised; its causes are read too.
        names: parameter of forward -> name of the input; torch's messages have the former.
    """
    chain = _causes(error)
    root = " ".join(str(chain[-1]).split())
    node = _translated(chain)
    line = _line(chain, node)
    at = f" ({line})" if line else ""
    if found := _MISSING.search(root):
        operator = found["operator"].replace(".", "::", 1)
        return (
            f"the operator {operator} has no ONNX form{at}. Write that line with other operators, try a newer "
            "--opset, or leave that step to the code that runs the model."
        )
    if found := _STATIC.search(root):
        name = names.get(found["name"], found["name"])
        return (
            f"axis {found['axis']} of input {name!r} cannot be dynamic: the code fixes it to {found['size']}{at}. "
            "Look for a size written as a number, or leave that --dynamic out."
        )
    if "data-dependent" in root:
        return (
            f"the code branches on the values of a tensor{at}. Write it with torch.cond or torch.where, or bound "
            "the value with torch._check."
        )
    if node is not None:
        return f"the operator {_operator(node)} cannot be translated{at}: {root[:200]} Try another --opset."
    return f"{type(chain[-1]).__name__}: {root[:200]}{at}"


def place_of(error: BaseException) -> str:
    """The innermost line of the user's code, as ` (model.py, line 12: x = y)`; empty when there is none."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({Path(error.filename).name}, line {error.lineno})"
    line = _line([error], None)
    return f" ({line})" if line else ""


def _causes(error: BaseException) -> list[BaseException]:
    """The error and what caused it, the first cause last."""
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    return chain


def _translated(chain: Sequence[BaseException]) -> Any | None:
    """The torch.fx node that was being translated; the exporter's message does not say which line made it."""
    for error in chain:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            node = frame.f_locals.get("node")
            if hasattr(node, "stack_trace") and hasattr(node, "target"):
                return node
    return None


def _operator(node: Any) -> str:
    return str(node.target).replace(".", "::", 1)


def _line(chain: Sequence[BaseException], node: Any | None) -> Line | None:
    """The innermost line of the model's code, from the node or else from the tracebacks."""
    if node is not None and node.stack_trace:
        return _innermost(node.stack_trace)
    texts = ("".join(traceback.format_tb(error.__traceback__)) for error in reversed(chain))
    return next((line for text in texts if (line := _innermost(text))), None)


def _innermost(text: str) -> Line | None:
    lines = [Line(m["file"], int(m["line"]), m["code"]) for m in _LINE.finditer(text)]
    return next((line for line in reversed(lines) if _is_theirs(line.file)), None)


def _is_theirs(file: str) -> bool:
    """Whether the file is a model's, not torch's, this package's or Python's."""
    if file.startswith("<"):
        return False
    loaded = [sys.modules[name] for name in _TRACING if name in sys.modules]
    folders = [Path(module.__file__).parent for module in loaded if module.__file__]
    path, python = Path(file), Path(traceback.__file__).parent
    installed = python in path.parents and "site-packages" not in path.parts
    return not installed and not any(folder in path.parents for folder in folders)
