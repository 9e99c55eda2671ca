"""The file of `compress sensitivity` as passes read it."""

from __future__ import annotations

import json
from pathlib import Path

from compressor.errors import OptionError


def drops(path: str, kind: str) -> dict[str, dict[float, float | None]]:
    """Layer -> level -> drop of the score, of the layers that have the kind; None stands for an infinite one.

    Raises:
        OptionError: there is no such file, or it is none of `compress sensitivity`.
    """
    try:
        layers = json.loads(Path(path).read_text(encoding="utf-8"))["layers"]
        return {
            name: {float(at): None if drop is None else float(drop) for at, drop in layer[kind].items()}
            for name, layer in layers.items()
            if kind in layer
        }
    except FileNotFoundError:
        raise OptionError(
            f"sensitivity: there is no file {path!r}. `compress sensitivity` writes one."
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise OptionError(
            f"sensitivity: {path!r} is not what `compress sensitivity` writes ({type(error).__name__}: {error})."
        ) from None
