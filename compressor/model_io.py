"""Reading a model file safely, and writing one so that no moment of failure can hurt what is on disk.

A save goes to a folder beside the target, is flushed, loaded in onnxruntime and, when the input passed the ONNX
checker, checked; only then is it renamed over the target. External data gets a name made of its content, so an
old model and its old data stay whole until the new model is in place.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from compressor.atomic import others_at_work, publish, staging
from compressor.errors import ModelError, OptionError, root_cause
from compressor.external_data import (
    external_tensors,
    locate,
    location,
    with_attributes_inside,
    with_weights_inside,
)
from compressor.graph import nodes, opset

OLDEST_OPSET = 7
PIPELINE_KEY = "compressor.pipeline"
VERSION_KEY = "compressor.version"
_EXTERNAL_FROM = 1_900_000_000
_SMALL = 256
"""Bytes up to which a tensor stays in the model file when the others go to a data file."""


def load(model: str | os.PathLike[str] | ir.Model | onnx.ModelProto) -> ir.Model:
    """The model, external data memory-mapped. A path, an onnx_ir.Model (returned as it is) or a ModelProto.

    Raises:
        ModelError: no such file, not an ONNX file, truncated, external data missing, too short or outside the
            folder, an operator set older than 7, or a node that reads what nothing gives.
    """
    if isinstance(model, ir.Model):
        return with_attributes_inside(model)
    if isinstance(model, onnx.ModelProto):
        for tensor in external_tensors(model):
            raise ModelError(
                f"The ModelProto keeps {tensor.name!r} in the file {location(tensor)!r}, in a folder that it does not "
                "name. Give the path of the model instead."
            )
        return _checked(_from_proto(model, "The model"), "The model")
    if not isinstance(model, (str, os.PathLike)):
        raise ModelError(f"A model is a path, an onnx_ir.Model or a ModelProto, got {type(model).__name__}.")
    path = Path(model)
    proto = _read(path)
    locate(proto, path)
    return _checked(with_attributes_inside(_from_proto(proto, str(path))), str(path))


def files_of(path: Path) -> tuple[Path, ...]:
    """The model file and the external data files that it names."""
    names = {location(tensor) for tensor in external_tensors(_read(path))}
    return (path, *(path.parent / name for name in sorted(names)))


def invalid_reason(model: ir.Model) -> str | None:
    """Why the ONNX checker refuses the model, or None when it accepts it. Weights are left out of the check."""
    from onnx_ir.passes.common import CheckerPass

    try:
        CheckerPass()(with_weights_inside(with_attributes_inside(model)))
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return " ".join(str(error).split())[:300]
    except ir.serde.SerdeError as error:
        return root_cause(error)
    return None


def is_ours(path: Path) -> bool:
    """True for a model file that this tool wrote, judged by its metadata."""
    if not path.is_file():
        return False
    try:
        return any(entry.key == VERSION_KEY for entry in _read(path).metadata_props)
    except ModelError:
        return False


def check_target(target: Path, sources: tuple[Path, ...], force: bool) -> None:
    """Raise before any work is done when `target` cannot be written or must not be.

    Raises:
        OptionError: the folder is missing or read-only, the target is a folder, exists (without force), or is the
            input or the place of its weights.
    """
    folder = target.parent
    if not folder.is_dir():
        raise OptionError(f"Output folder {str(folder)!r} does not exist. Create it, or give another -o.")
    if target.is_dir():
        raise OptionError(
            f"Output {str(target)!r} is a folder. Give a file name, such as {target / 'model.onnx'}."
        )
    for source in sources:
        if target.resolve() == source.resolve() or (target.exists() and target.samefile(source)):
            raise OptionError(
                f"Output {str(target)!r} is the input. The input is never overwritten: give another -o."
            )
        if source.parent.resolve() == folder.resolve() and _is_data_of(target, source.name):
            raise OptionError(
                f"Output {str(target)!r} would replace {source.name!r}, which holds the input's weights. "
                "Give another -o."
            )
    if target.exists() and not force:
        raise OptionError(f"Output {str(target)!r} exists. Give another -o, or --force to replace it.")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OptionError(f"Output folder {str(folder)!r} cannot be written: {error.strerror}.") from error


def save(
    model: ir.Model,
    target: str | os.PathLike[str],
    *,
    metadata: Mapping[str, str] | None = None,
    must_be_valid: bool = False,
    external: bool = False,
) -> tuple[Path, ...]:
    """Write `model` to `target` atomically; returns the files written, the model first.

    Args:
        model: stays as it was.
        target: replaced only when the new file is complete, flushed, and runs in onnxruntime. Data files that
            earlier saves to the same target wrote are then removed, unless `model` still reads them.
        metadata: entries added to the file's metadata.
        must_be_valid: refuse to write what the ONNX checker refuses.
        external: keep weights in a data file beside the model; always so from 1.9 GB on.

    Raises:
        ModelError: the disk is full or not writable, or the result does not load. Nothing was replaced.
    """
    from compressor.runtime import Session

    path = Path(target)
    out = as_written(with_attributes_inside(model), metadata or {})
    if must_be_valid and (reason := invalid_reason(out)):
        raise ModelError(f"The result does not pass the ONNX checker, so it was not written: {reason}")
    with staging(path) as work:
        _write(out, work / path.name, external)
        Session(work / path.name)
        names = sorted(file.name for file in work.iterdir() if file.name != path.name)
        written = publish(work, [*names, path.name], path)
        if not others_at_work(path, work):
            _remove_old_data(path, {*written, *_read_by(model)})
    return written[::-1]


def as_written(model: ir.Model, metadata: Mapping[str, str]) -> ir.Model:
    """A copy as it goes to disk: with the metadata, without the shapes of inner values, which every loader infers
    again and which take room in small files."""
    out = model.clone()
    out.metadata_props.update(metadata)
    for node in out.graph:
        if node.domain in ("", "ai.onnx") and not any(
            a.type == ir.AttributeType.GRAPH for a in node.attributes.values()
        ):
            for value in node.outputs:
                if not value.is_graph_output():
                    value.type = value.shape = None
    return out


def write_text(target: Path, text: str) -> None:
    """Write a small file atomically; ModelError says why it cannot be."""
    with staging(target) as work:
        (work / target.name).write_text(text, encoding="utf-8")
        publish(work, [target.name], target)


def tool_version() -> str:
    """The installed version of onnx-compressor."""
    try:
        return installed("onnx-compressor")
    except PackageNotFoundError:
        return "0+source"


def _write(model: ir.Model, path: Path, external: bool) -> None:
    weights = [
        v.const_value for g in model.graphs() for v in g.initializers.values() if v.const_value is not None
    ]
    if external or sum(tensor.nbytes for tensor in weights) > _EXTERNAL_FROM:
        data = f"{path.name}.{_digest(weights)[:12]}.data"
        ready = with_weights_inside(
            model, _SMALL
        )  # onnx_ir would close the maps of small tensors, which others use
        try:
            ir.save(ready, path, format="protobuf", external_data=data, size_threshold_bytes=_SMALL)
        except ir.serde.SerdeError as error:
            raise ModelError(f"The model is damaged and cannot be written: {root_cause(error)}") from error
    else:
        from compressor.runtime import to_bytes

        path.write_bytes(to_bytes(model))


class _Hash:
    """A file that keeps only the digest of what is written to it."""

    def __init__(self) -> None:
        self.sha = hashlib.sha256()

    def write(self, data: bytes | memoryview) -> int:
        """Take the bytes in."""
        self.sha.update(data)
        return len(data)


def _digest(weights: list[ir.TensorProtocol]) -> str:
    """A digest of the tensors and their layout, without a copy of those that lie in a file."""
    made = _Hash()
    for tensor in weights:
        made.write(f"{tensor.name} {tensor.dtype} {tensor.shape}".encode())
        if isinstance(tensor, ir.ExternalTensor):
            tensor.tofile(made)
        else:
            made.write(tensor.tobytes())
    return made.sha.hexdigest()


def _is_data_of(target: Path, name: str) -> bool:
    """True for the name of a data file that a save to `target` writes."""
    return re.fullmatch(re.escape(target.name) + r"\.[0-9a-f]{12}\.data", name) is not None


def _read_by(model: ir.Model) -> set[Path]:
    """The data files that the model reads."""
    tensors = (v.const_value for g in model.graphs() for v in g.initializers.values())
    return {Path(t.path).resolve() for t in tensors if isinstance(t, ir.ExternalTensor)}


def _remove_old_data(target: Path, keep: set[Path]) -> None:
    wanted = {path.resolve() for path in keep}
    for file in target.parent.iterdir():
        if _is_data_of(target, file.name) and file.resolve() not in wanted:
            file.unlink(missing_ok=True)


def _read(path: Path) -> onnx.ModelProto:
    if not path.exists():
        raise ModelError(f"No file {str(path)!r}.")
    if path.is_dir():
        raise ModelError(f"{str(path)!r} is a folder; give the .onnx file in it.")
    proto, raw = onnx.ModelProto(), b""
    try:
        raw = path.read_bytes()
        proto.ParseFromString(raw)
    except OSError as error:
        raise ModelError(f"{str(path)!r} cannot be read: {error.strerror}.") from error
    except DecodeError:
        cut = raw[:1] == b"\x08" and len(raw) > 1
        what = "is truncated or damaged: copy or export it again" if cut else "is not an ONNX file"
        raise ModelError(f"{str(path)!r} {what}.") from None
    if not proto.HasField("graph"):
        raise ModelError(f"{str(path)!r} is not an ONNX model: it contains no graph.")
    return proto


def _from_proto(proto: onnx.ModelProto, source: str) -> ir.Model:
    try:
        found = ir.from_proto(proto)
    except ir.serde.SerdeError as error:
        raise ModelError(f"{source} cannot be read: {root_cause(error)}. Export it again.") from error
    for graph in found.graphs():
        for name, value in graph.initializers.items():
            tensor = value.const_value
            if tensor is not None and not isinstance(tensor, ir.ExternalTensor):
                _require_whole(tensor, f"{source} is damaged: the initializer {name!r}")
    return found


def _require_whole(tensor: ir.TensorProtocol, who: str) -> None:
    """Look at the data, which for raw bytes makes no copy."""
    if tensor.dtype == ir.DataType.UNDEFINED:
        raise ModelError(f"{who} has no element type. Export it again.")
    try:
        tensor.numpy()
    except (ValueError, TypeError) as error:
        raise ModelError(f"{who} does not fit its shape: {root_cause(error)}. Export it again.") from error


def _checked(model: ir.Model, source: str) -> ir.Model:
    found = opset(model)
    imports = model.graph.opset_imports
    if not imports:
        raise ModelError(
            f"{source} names no operator set: it is truncated or damaged. Copy or export it again."
        )
    uses_default = "" in imports or "ai.onnx" in imports or any(node.domain == "" for node in nodes(model))
    if found < OLDEST_OPSET and uses_default:
        raise ModelError(
            f"{source} uses operator set {found}; {OLDEST_OPSET} is the oldest that is supported. Export it again."
        )
    if lost := next(_unproduced(model), None):
        raise ModelError(
            f"{source} is not valid: no node and no input gives the value {lost!r}. Export it again."
        )
    try:
        model.clone()  # every pass starts from a clone; impossible wiring fails here
    except RuntimeError as error:
        raise ModelError(f"{source} is not valid: {root_cause(error)}. Export it again.") from error
    return model


def _unproduced(model: ir.Model) -> Iterator[str]:
    """The names of values that are read and come from nowhere."""
    bodies = [model.graph.all_nodes(), *(function.all_nodes() for function in model.functions.values())]
    read = (value for body in bodies for node in body for value in node.inputs)
    for value in (*read, *model.graph.outputs):
        known = value is None or value.producer() or value.is_graph_input() or value.is_initializer()
        if value is not None and not known:
            yield str(value.name)
