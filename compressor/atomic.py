"""Writing so that no moment of failure hurts what is on disk: aside first, flushed, then renamed over the target.

What a killed run leaves behind carries the number of its process, and the next save to the same target sweeps it.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from compressor.errors import ModelError


@contextmanager
def staging(target: Path) -> Iterator[Path]:
    """A new folder beside `target`, removed at the end; an OSError inside becomes a ModelError about `target`."""
    _sweep(target)
    folder: Path | None = None
    try:
        made = tempfile.mkdtemp(prefix=f".{target.name}.{os.getpid()}.", suffix=".tmp", dir=target.parent)
        folder = Path(made)
        yield folder
    except OSError as error:
        raise ModelError(_reason(target, error)) from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def publish(folder: Path, names: Sequence[str], target: Path) -> tuple[Path, ...]:
    """Flush the named files of a staging folder and move them beside `target`, in that order."""
    for name in names:
        _flush(folder / name)
    for name in names:
        os.replace(folder / name, target.parent / name)
    if hasattr(os, "O_DIRECTORY"):
        _flush(target.parent)
    return tuple(target.parent / name for name in names)


def others_at_work(target: Path, folder: Path) -> bool:
    """True when another save to the same target is going on."""
    return any(other != folder for other in _leftovers(target))


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sweep(target: Path) -> None:
    """Remove the staging folders of processes that are gone."""
    for old in _leftovers(target):
        pid = old.name.removeprefix(f".{target.name}.").split(".")[0]
        if pid.isdigit() and not _alive(int(pid)):
            shutil.rmtree(old, ignore_errors=True)


def _leftovers(target: Path) -> list[Path]:
    if not target.parent.is_dir():
        return []
    start = f".{target.name}."
    return [p for p in target.parent.iterdir() if p.name.startswith(start) and p.name.endswith(".tmp")]


def _alive(pid: int) -> bool:
    if os.name == "nt":  # os.kill would send a signal there
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _reason(target: Path, error: OSError) -> str:
    cut_short = error.errno is None and "requested and" in str(error)  # numpy.tofile on a full disk
    if error.errno in (errno.ENOSPC, errno.EDQUOT) or cut_short:
        return (
            f"The disk is full: {str(target)!r} was not written and nothing was replaced. "
            "Free some space or give another -o."
        )
    return f"{str(target)!r} cannot be written: {error.strerror or error}. Nothing was replaced."
