"""The user's hooks: Lightning callbacks, named `module_or_file.py:Class`."""

from __future__ import annotations

from collections.abc import Sequence

from compressor.errors import OptionError, root_cause
from compressor.user_code import FOREIGN, load_object


def callbacks(addresses: Sequence[str]) -> list[object]:
    """An instance of each class named.

    Raises:
        OptionError: torch is not installed, there is no such class, it is no Lightning callback, or it cannot be made
            without arguments.
    """
    try:
        from pytorch_lightning import Callback
    except ImportError as error:
        raise OptionError(
            f"callback {', '.join(map(repr, addresses))} needs Lightning ({root_cause(error)}): "
            "pip install onnx-compressor[train]"
        ) from error

    def fits(found: object) -> bool:
        return isinstance(found, type) and issubclass(found, Callback) and found is not Callback

    made: list[object] = []
    for address in addresses:
        cls = load_object(address, f"callback {address!r}", "Lightning callback", fits)
        try:
            made.append(cls())
        except FOREIGN as error:
            raise OptionError(
                f"callback {address!r} cannot be made without arguments: {root_cause(error)}. Give a class that "
                "can, or pass an instance in Python: Run(callbacks=[...])."
            ) from error
    return made
