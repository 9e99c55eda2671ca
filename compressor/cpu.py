"""What this processor can do that decides how a model is quantized."""

from __future__ import annotations

import platform
import subprocess
import sys
from functools import cache
from pathlib import Path

_TELLING = (
    *("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "avx_vnni_int8"),
    *("asimd", "asimddp", "i8mm", "sve", "bf16"),
)


@cache
def features() -> tuple[str, ...]:
    """The instruction sets among those that matter to integer kernels; empty when the system does not tell."""
    return tuple(flag for flag in _TELLING if flag in _flags())


@cache
def model_name() -> str:
    """The processor's name as the system gives it."""
    for line in _cpuinfo().splitlines():
        if line.startswith(("model name", "Hardware", "CPU part")):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def is_x86() -> bool:
    """True on x86-64."""
    return platform.machine().lower() in ("x86_64", "amd64")


def multiplies_u8s8_exactly() -> bool:
    """False on x86 without VNNI, where the 16-bit sum of two u8 x s8 products saturates and weights need 7 bits."""
    return not is_x86() or any(flag in features() for flag in ("avx_vnni", "avx512_vnni", "amx_int8"))


def _flags() -> frozenset[str]:
    for line in _cpuinfo().splitlines():
        if line.startswith(("flags", "Features")):
            return frozenset(line.split(":", 1)[1].split())
    if sys.platform == "darwin":
        return frozenset(_sysctl().lower().replace(".", "_").split())
    return frozenset()


@cache
def _cpuinfo() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def _sysctl() -> str:
    names = ["machdep.cpu.features", "machdep.cpu.leaf7_features"]
    made = subprocess.run(["sysctl", "-n", *names], capture_output=True, text=True, check=False)
    return made.stdout
