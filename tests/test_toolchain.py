"""What the build finds out about compilers, before it compiles anything."""

import importlib.util
import shutil
import sys

import pytest

from tests.support.paths import ROOT


@pytest.fixture(scope="module")
def toolchain():
    spec = importlib.util.spec_from_file_location("toolchain", ROOT / "packaging" / "toolchain.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("refused", [[], ["-fvect-cost-model=dynamic"], ["-Wno-psabi"]])
def test_flags_that_a_compiler_does_not_know_are_left_out(toolchain, tmp_path, refused):
    compiler = tmp_path / "compiler"
    cases = "|".join(refused) or "none"
    compiler.write_text(f'#!/bin/sh\nfor one; do case "$one" in {cases}) exit 1;; esac; done\n')
    compiler.chmod(0o755)
    flags = toolchain.OPTIONAL_FLAGS
    found = toolchain.known_flags([str(compiler)], flags)
    assert found == [flag for flag in flags if flag not in refused]


@pytest.mark.parametrize(
    ("name", "lacks"), [("g++", set()), ("clang++", {"-fvect-cost-model=dynamic"})]
)
def test_real_compilers(toolchain, name, lacks):
    if not shutil.which(name):
        pytest.skip(f"there is no {name}")
    found = toolchain.known_flags([name], toolchain.OPTIONAL_FLAGS)
    assert set(toolchain.OPTIONAL_FLAGS) - set(found) == lacks


def test_modes_of_the_cpu_build(toolchain, monkeypatch):
    monkeypatch.delenv("CMRFAST_CPU", raising=False)
    assert toolchain.cpu_mode() == "auto"
    for mode in ("0", "require"):
        monkeypatch.setenv("CMRFAST_CPU", mode)
        assert toolchain.cpu_mode() == mode
    monkeypatch.setenv("CMRFAST_CPU", "yes")
    with pytest.raises(SystemExit, match="CMRFAST_CPU: must be one of auto, 0, require; got 'yes'"):
        toolchain.cpu_mode()


def test_levels_to_build(toolchain, monkeypatch, tmp_path):
    monkeypatch.setattr(toolchain.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(toolchain, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.delenv("CMRFAST_CPU_LEVELS", raising=False)
    every = ["baseline", "avx2", "avx512"]
    assert list(toolchain.cpu_levels()) == every  # nobody says what the processor is
    toolchain.CPUINFO.write_text("flags\t\t: fpu sse2 avx f16c\n")
    assert list(toolchain.cpu_levels()) == every
    toolchain.CPUINFO.write_text("flags\t\t: fpu sse2 avx f16c avx2\n")
    assert list(toolchain.cpu_levels()) == ["avx2", "avx512"]
    monkeypatch.setenv("CMRFAST_CPU_LEVELS", "all")
    assert list(toolchain.cpu_levels()) == every
    monkeypatch.setenv("CMRFAST_CPU_LEVELS", "avx2 baseline")
    assert list(toolchain.cpu_levels()) == ["baseline", "avx2"]
    monkeypatch.setattr(toolchain.platform, "machine", lambda: "aarch64")
    message = "CMRFAST_CPU_LEVELS: must be all or some of baseline; got 'avx2'"
    with pytest.raises(SystemExit, match=message):
        toolchain.cpu_levels()
    for nothing_named in ("", "all"):
        monkeypatch.setenv("CMRFAST_CPU_LEVELS", nothing_named)
        assert list(toolchain.cpu_levels()) == ["baseline"]


@pytest.mark.parametrize(("system", "flag"), [("linux", False), ("darwin", True)])
def test_symbols_of_the_process_are_left_to_the_loader(toolchain, monkeypatch, system, flag):
    monkeypatch.setattr(sys, "platform", system)
    assert ("dynamic_lookup" in toolchain.link_flags()) is flag


def test_kernels_that_are_compiled_for_avx2_alone_exist(toolchain):
    assert {path.stem for path in (ROOT / "csrc/cpu").glob("*.cpp")} >= toolchain.AS_FOR_AVX2
