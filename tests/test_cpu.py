"""What is read from the system's description of the processor."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from compressor import cpu

X86 = "processor\t: 0\nmodel\t\t: 85\nmodel name\t: Chip X\nflags\t\t: fpu sse avx2 avx512f {}\nmodel name\t: Chip Y\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp i8mm\nCPU part\t: 0xd40\n"
Describe = Callable[[str, str], None]


@pytest.fixture
def describe(monkeypatch: pytest.MonkeyPatch) -> Iterator[Describe]:
    """Sets the description of the processor and the machine's name; nothing stays cached."""

    def act(text: str, machine: str) -> None:
        monkeypatch.setattr(cpu, "_cpuinfo", lambda: text)
        monkeypatch.setattr(cpu.platform, "machine", lambda: machine)
        monkeypatch.setattr(cpu.platform, "processor", lambda: "")
        cpu.features.cache_clear()
        cpu.model_name.cache_clear()

    yield act
    cpu.features.cache_clear()
    cpu.model_name.cache_clear()


def test_reads_flags_and_name_on_x86(describe: Describe) -> None:
    describe(X86.format("avx512_vnni"), "x86_64")
    assert cpu.features() == ("avx2", "avx512f", "avx512_vnni")
    assert cpu.model_name() == "Chip X"


def test_reads_features_on_arm(describe: Describe) -> None:
    describe(ARM, "aarch64")
    assert cpu.features() == ("asimd", "asimddp", "i8mm")
    assert cpu.model_name() == "0xd40"


@pytest.mark.parametrize(
    ("text", "machine", "exact"),
    [
        (X86.format(""), "x86_64", False),
        (X86.format("avx512_vnni"), "x86_64", True),
        (X86.format("avx_vnni"), "AMD64", True),
        (X86.format("amx_int8"), "x86_64", True),
        (X86.format("xavx_vnni"), "x86_64", False),
        ("", "AMD64", False),
        (ARM, "aarch64", True),
        ("", "arm64", True),
    ],
)
def test_only_x86_without_vnni_needs_seven_bits(
    describe: Describe, text: str, machine: str, exact: bool
) -> None:
    describe(text, machine)
    assert cpu.multiplies_u8s8_exactly() is exact


def test_a_silent_system_has_no_features_and_the_machines_name(
    describe: Describe, monkeypatch: pytest.MonkeyPatch
) -> None:
    describe("", "riscv64")
    monkeypatch.setattr(sys, "platform", "linux")
    assert cpu.features() == ()
    assert cpu.model_name() == "riscv64"


def test_asks_sysctl_on_a_mac(describe: Describe, monkeypatch: pytest.MonkeyPatch) -> None:
    made = subprocess.CompletedProcess([], 0, stdout="FPU SSE4.2 AVX2\nAVX512F AVX512_VNNI\n")
    describe("", "x86_64")
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(cpu.subprocess, "run", lambda *args, **options: made)
    assert cpu.features() == ("avx2", "avx512f", "avx512_vnni")


def test_this_machine_has_a_name() -> None:
    assert cpu.model_name()
    assert set(cpu.features()) <= set(cpu._TELLING)
