"""What is to be exported, from its text: `module_or_file.py:factory`, or a `.pt2` file of torch.export."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from compressor.errors import ModelError
from compressor.exporting.failure import place_of
from compressor.user_code import ADDRESS, FOREIGN, importable, load_object


def file_of(text: str) -> Path | None:
    """The file that a source text names, or None for a module that is found by its name."""
    found = ADDRESS.fullmatch(text)
    place = Path(found["module"] if found else text)
    return None if found and place.suffix != ".py" else place


def made_by(address: str, kinds: tuple[type, ...]) -> object:
    """What `module_or_file.py:factory` gives: the object of that name if it is one of `kinds`, else what it
    returns. Its folder can be imported from meanwhile, as when the file is run.

    Raises:
        ModelError: no such file, module or name, or the user's code raises.
    """
    found = ADDRESS.fullmatch(address)
    if found is None:
        raise ModelError(f"{address!r} is no model. Give module_or_file.py:factory, or a .pt2 file.")
    with importable(found["module"]):
        factory = load_object(
            address, address, "factory", lambda v: isinstance(v, kinds) or callable(v), ModelError
        )
        if isinstance(factory, kinds):
            return factory
        with _blamed(f"{address} (called without arguments)"):
            return factory()


@contextmanager
def _blamed(who: str) -> Iterator[None]:
    """Turn what the user's code raises into a ModelError that says where."""
    try:
        yield
    except FOREIGN as error:
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ModelError(f"{who} raised {said}{place_of(error)}.") from error
