"""Make an ONNX model smaller and faster, keep its accuracy, and prove it on your own runtime.

    import compressor

    result = compressor.compress("model.onnx", calibration="calibration.npz", data="test.npz")
    print(result.report.ratio)
    result.save("model.int8.onnx")

Names are loaded when first used, so that importing the package costs next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compressor.compressing import Result, check, compress
    from compressor.crossvalidation import CrossValidation, crossval
    from compressor.data import Samples, open_samples
    from compressor.diagnosis import doctor
    from compressor.errors import CompressorError, DataError, GateError, ModelError, OptionError
    from compressor.evaluation import bench, evaluate
    from compressor.exporting import Exported, export
    from compressor.gate import Limits, raise_for_limits
    from compressor.inspection import inspect
    from compressor.layer_sensitivity import Sensitivity, sensitivity
    from compressor.model_io import load, save
    from compressor.pipeline import Change, Context, Pass, Pipeline, Run
    from compressor.proof import Target
    from compressor.report import Report
    from compressor.runtime import Session
    from compressor.schedule_drawing import schedule

_HOME = {
    "Change": "pipeline",
    "CompressorError": "errors",
    "Context": "pipeline",
    "CrossValidation": "crossvalidation",
    "DataError": "errors",
    "Exported": "exporting",
    "GateError": "errors",
    "Limits": "gate",
    "ModelError": "errors",
    "OptionError": "errors",
    "Pass": "pipeline",
    "Pipeline": "pipeline",
    "Report": "report",
    "Result": "compressing",
    "Run": "pipeline",
    "Samples": "data",
    "Sensitivity": "layer_sensitivity",
    "Session": "runtime",
    "Target": "proof",
    "bench": "evaluation",
    "check": "compressing",
    "compress": "compressing",
    "crossval": "crossvalidation",
    "doctor": "diagnosis",
    "evaluate": "evaluation",
    "export": "exporting",
    "inspect": "inspection",
    "load": "model_io",
    "open_samples": "data",
    "raise_for_limits": "gate",
    "save": "model_io",
    "schedule": "schedule_drawing",
    "sensitivity": "layer_sensitivity",
}

__all__ = [
    "Change",
    "CompressorError",
    "Context",
    "CrossValidation",
    "DataError",
    "Exported",
    "GateError",
    "Limits",
    "ModelError",
    "OptionError",
    "Pass",
    "Pipeline",
    "Report",
    "Result",
    "Run",
    "Samples",
    "Sensitivity",
    "Session",
    "Target",
    "bench",
    "check",
    "compress",
    "crossval",
    "doctor",
    "evaluate",
    "export",
    "inspect",
    "load",
    "open_samples",
    "raise_for_limits",
    "save",
    "schedule",
    "sensitivity",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'compressor' has no attribute {name!r}")
    return getattr(import_module(f"compressor.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
