"""One model on one onnxruntime provider. The only file that imports onnxruntime.

Providers are named as onnxruntime names them, or short: `cpu`, `cuda`, `tensorrt`, `openvino`, `coreml`, ...
A provider that onnxruntime would silently replace by another is refused.
"""

from __future__ import annotations

import json
import tempfile
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from compressor.errors import ModelError, OptionError, did_you_mean, root_cause
from compressor.external_data import with_weights_inside

if TYPE_CHECKING:
    from types import ModuleType

QUANTIZED_IO = "compressor.quantized_io"
"""Metadata key of a model whose inputs and outputs are stored as integers: {name: [scale, zero point]}."""

_PROTOBUF_LIMIT = 1_900_000_000
_SHORT = {"directml": "Dml", "coreml": "CoreML", "cuda": "CUDA", "cpu": "CPU", "tensorrt": "Tensorrt"}
_SHORT |= {"openvino": "OpenVINO", "rocm": "ROCM", "migraphx": "MIGraphX", "qnn": "QNN", "xnnpack": "Xnnpack"}
_SHORT |= {
    "webgpu": "WebGpu",
    "nvtensorrtrtx": "NvTensorRTRTX",
    "dnnl": "Dnnl",
    "acl": "ACL",
    "nnapi": "Nnapi",
}
_SHORT |= {"vitisai": "VitisAI", "cann": "CANN", "azure": "Azure"}
_HINTS = {
    "cuda": "Install onnxruntime-gpu and the CUDA and cuDNN libraries that it names "
    "(pip install onnxruntime-gpu[cuda,cudnn]).",
    "tensorrt": "Install onnxruntime-gpu and the TensorRT libraries.",
    "openvino": "Install onnxruntime-openvino.",
    "directml": "Install onnxruntime-directml (Windows).",
}


def provider_name(name: str) -> str:
    """onnxruntime's own name of a provider.

    >>> provider_name("cuda"), provider_name("CPUExecutionProvider")
    ('CUDAExecutionProvider', 'CPUExecutionProvider')
    """
    known = {f"{long}ExecutionProvider".lower(): f"{long}ExecutionProvider" for long in _SHORT.values()}
    full = f"{_SHORT.get(name.lower(), name)}ExecutionProvider" if name.lower() in _SHORT else name
    if full.lower() in known:
        return known[full.lower()]
    raise OptionError(f"No provider named {name!r}. {did_you_mean(name.lower(), _SHORT)}")


def short_name(provider: str) -> str:
    """The short name of a provider.

    >>> short_name("DmlExecutionProvider")
    'directml'
    """
    stem = provider_name(provider).removesuffix("ExecutionProvider")
    return next(short for short, long in _SHORT.items() if long == stem)


def available() -> tuple[str, ...]:
    """The short names of the providers that this onnxruntime was built with; some may still fail to load."""
    known = {f"{long}ExecutionProvider": short for short, long in _SHORT.items()}
    return tuple(known.get(name, name) for name in _ort().get_available_providers())


def require_provider(name: str) -> None:
    """Raise OptionError when this onnxruntime has no provider of that name."""
    short = short_name(name)
    if short not in available():
        hint = _HINTS.get(short, "Install the onnxruntime package that carries it.")
        raise OptionError(f"Provider {short!r} is not in this onnxruntime ({', '.join(available())}). {hint}")


def version() -> str:
    """The version of onnxruntime."""
    return str(_ort().__version__)


@dataclass(frozen=True)
class NodeTime:
    """Where one node ran and how long it took, from onnxruntime's profile; mean over the runs, in microseconds."""

    name: str
    operator: str
    provider: str
    microseconds: float


@dataclass(frozen=True)
class Setup:
    """How a session is made.

    Args:
        provider: name of the execution provider.
        threads: intra-op threads; 0 is onnxruntime's own choice (one per core).
        optimize: False runs the graph as it is written.
        spin: let idle threads burn their core while they wait, as onnxruntime does by default. Without, work that
            is not timed leaves the machine to others.
        integers: False computes quantized layers with the floats that their codes stand for, which are decoded at load;
            onnxruntime otherwise takes integer kernels, and rounds what some layers read that was not quantized.
        dump: a file that receives the graph as onnxruntime optimized it.
        profile: a path prefix that switches the per-node profile on.
    """

    provider: str = "cpu"
    threads: int = 0
    optimize: bool = True
    spin: bool = True
    integers: bool = True
    dump: Path | None = None
    profile: Path | None = None


class Session:
    """A model that is loaded and ready to run.

    Args:
        model: a path, the bytes of a file, or an onnx_ir.Model.
        setup: provider, threads and switches.

    Raises:
        ModelError: onnxruntime cannot load the model; its reason is in the text.
        OptionError: the provider is missing, or onnxruntime would have used another one.
    """

    def __init__(self, model: ir.Model | bytes | Path, setup: Setup | None = None) -> None:
        self.setup = setup or Setup()
        require_provider(self.setup.provider)
        wanted = provider_name(self.setup.provider)
        source: bytes | str
        if isinstance(model, ir.Model):
            source, folder = runnable(model)
            if folder is not None:
                weakref.finalize(self, folder.cleanup)
        else:
            source = model if isinstance(model, bytes) else str(model)
        try:
            self._session = _ort().InferenceSession(
                source, _options(self.setup), providers=_chain(wanted), enable_fallback=0
            )
        except _failures() as error:
            if wanted != "CPUExecutionProvider":
                hint = _HINTS.get(short_name(wanted), "Run `compress doctor` to see what loads.")
                said = f"{_first_line(error)} {hint}"
                text = f"Provider {short_name(wanted)!r} does not load, or not with this model: {said}"
                raise OptionError(text) from error
            raise ModelError(f"onnxruntime cannot load the model: {_first_line(error)}") from error
        if wanted not in self._session.get_providers():
            hint = _HINTS.get(short_name(wanted), "Run `compress doctor` to see what loads.")
            raise OptionError(f"Provider {short_name(wanted)!r} does not load on this machine. {hint}")
        self.inputs: tuple[str, ...] = tuple(i.name for i in self._session.get_inputs())
        self.outputs: tuple[str, ...] = tuple(o.name for o in self._session.get_outputs())
        metadata = self._session.get_modelmeta().custom_metadata_map
        self._codes = _codes(metadata.get(QUANTIZED_IO, "{}"))
        self._types = {i.name: i.type for i in self._session.get_inputs()}

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The outputs in order, for inputs by name. Integer-stored inputs and outputs are taken and given as floats."""
        try:
            outputs = self._session.run(None, self._encoded(feeds))
        except _failures() as error:
            raise ModelError(f"onnxruntime cannot run the model: {_first_line(error)}") from error
        if not self._codes:
            return list(outputs)
        return [self._decoded(name, value) for name, value in zip(self.outputs, outputs, strict=True)]

    def bound(self, feeds: Mapping[str, np.ndarray]) -> Callable[[], None]:
        """A call that runs the model on inputs that already lie on the device, outputs left there."""
        binding = self._session.io_binding()
        device = "cuda" if short_name(self.setup.provider) in ("cuda", "tensorrt") else "cpu"
        arrays = {name: np.asarray(array, order="C") for name, array in self._encoded(feeds).items()}
        try:
            for name, array in arrays.items():
                binding.bind_ortvalue_input(name, _ort().OrtValue.ortvalue_from_numpy(array, device, 0))
            for name in self.outputs:
                binding.bind_output(name, device)
        except _failures() as error:
            raise ModelError(f"onnxruntime cannot take the inputs: {_first_line(error)}") from error

        def call(_held: object = arrays) -> None:  # on the CPU onnxruntime reads the arrays' own memory
            try:
                self._session.run_with_iobinding(binding)
            except _failures() as error:
                raise ModelError(f"onnxruntime cannot run the model: {_first_line(error)}") from error
            if device != "cpu":
                binding.synchronize_outputs()

        return call

    def node_times(self) -> tuple[NodeTime, ...]:
        """The per-node profile of all runs so far; needs `Setup(profile=...)`. Ends the profile."""
        if self.setup.profile is None:
            raise OptionError("node_times needs a Session made with Setup(profile=...).")
        path = Path(self._session.end_profiling())
        events = json.loads(path.read_text())
        path.unlink()
        total: dict[tuple[str, str, str], list[float]] = {}
        for event in events:
            args = event.get("args", {})
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                key = (event["name"].removesuffix("_kernel_time"), args["op_name"], args.get("provider", ""))
                total.setdefault(key, []).append(float(event["dur"]))
        return tuple(NodeTime(*key, sum(times) / len(times)) for key, times in total.items())

    def _encoded(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The feeds with integer-stored inputs quantized; what already has the stored type is taken as codes."""
        result = dict(feeds)
        for name in self._codes.keys() & result.keys():
            kind = np.dtype(self._types[name].removeprefix("tensor(").removesuffix(")"))
            if feeds[name].dtype == kind:
                continue
            scale, zero = self._codes[name]
            info = np.iinfo(kind)
            result[name] = np.clip(np.rint(feeds[name] / scale) + zero, info.min, info.max).astype(kind)
        return result

    def _decoded(self, name: str, value: np.ndarray) -> np.ndarray:
        if name not in self._codes:
            return value
        scale, zero = self._codes[name]
        return (value.astype(np.float32) - zero) * np.float32(scale)


def _codes(text: str) -> dict[str, tuple[float, int]]:
    """Name -> (scale, zero point), from the metadata."""
    try:
        return {name: (float(scale), int(zero)) for name, (scale, zero) in json.loads(text).items()}
    except (ValueError, TypeError, AttributeError):
        raise ModelError(f"The model's metadata {QUANTIZED_IO!r} is damaged: {text[:80]!r}.") from None


def runnable(model: ir.Model) -> tuple[bytes | str, tempfile.TemporaryDirectory[str] | None]:
    """What onnxruntime can load: the bytes of the model, or beyond 2 GB a path in a temporary folder."""
    size = sum(
        v.const_value.nbytes
        for g in model.graphs()
        for v in g.initializers.values()
        if v.const_value is not None
    )
    if size > _PROTOBUF_LIMIT:
        folder = tempfile.TemporaryDirectory(prefix="compressor-")
        path = Path(folder.name) / "model.onnx"
        ir.save(model, path, external_data="model.onnx.data")
        return str(path), folder
    return to_bytes(model), None


def to_bytes(model: ir.Model) -> bytes:
    """The model as one protobuf message, external data included (below 2 GB)."""
    try:
        written: bytes = ir.to_proto(with_weights_inside(model)).SerializeToString()
    except ir.serde.SerdeError as error:
        raise ModelError(f"The model is damaged and cannot be written: {root_cause(error)}") from error
    return written


def optimized_graph(model: ir.Model, setup: Setup | None = None) -> ir.Model:
    """The graph that onnxruntime executes after its own optimizations."""
    base = setup or Setup()
    source, keep = runnable(model)
    with tempfile.TemporaryDirectory(prefix="compressor-") as folder:
        inside = isinstance(source, bytes)  # else dumped beside the files: the dump refers to the same data
        path = (Path(folder) if inside else Path(str(source)).parent) / "optimized.onnx"
        Session(source if isinstance(source, bytes) else Path(source), replace(base, threads=1, dump=path))
        dumped = ir.load(path)
        for value in dumped.graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = ir.tensor(value.const_value.numpy().copy(), name=value.name)
        if keep is not None:
            keep.cleanup()
        return dumped


@cache
def _ort() -> ModuleType:
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        _preload(onnxruntime)
    module: ModuleType = onnxruntime
    return module


def _preload(ort: ModuleType) -> None:
    """Let onnxruntime find CUDA and cuDNN in pip packages; it prints what it misses, which `doctor` says better."""
    import contextlib
    import io

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        ort.preload_dlls()


@cache
def _failures() -> tuple[type[Exception], ...]:
    """onnxruntime's exceptions, which share no base class of their own."""
    _ort()
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = [c for c in vars(state).values() if isinstance(c, type) and issubclass(c, Exception)]
    return (*own, ValueError, RuntimeError)


def _options(setup: Setup) -> Any:
    ort = _ort()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = setup.threads
    if not setup.spin:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not setup.optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if not setup.integers:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    if setup.dump:
        options.optimized_model_filepath = str(setup.dump)
    if setup.profile:
        options.enable_profiling = True
        options.profile_file_prefix = str(setup.profile)
    return options


def _chain(wanted: str) -> list[str]:
    """The provider, and those that take the nodes it has no kernel for: CUDA behind TensorRT, then the CPU."""
    cpu, cuda = "CPUExecutionProvider", "CUDAExecutionProvider"
    if wanted == cpu:
        return [cpu]
    behind_tensorrt = "ensor" in wanted and cuda in _ort().get_available_providers()
    return [wanted, cuda, cpu] if behind_tensorrt else [wanted, cpu]


def _first_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:297]}..."
