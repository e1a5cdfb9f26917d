"""Options, checking and measuring of a workload, and the description of the machine."""

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks import measure, measure_cuda
from benchmarks.workloads import Workload


def pytest_addoption(parser):
    parser.addoption("--rounds", type=int, default=measure.ROUNDS, help="timed rounds per variant")
    parser.addoption("--device", choices=("cpu", "cuda"), default="cpu", help="where to measure")
    parser.addoption(
        "--peers", choices=("all", "torch"), default="all", help="what to compare with"
    )
    parser.addoption(
        "--busy", type=int, default=0, help="cores that other processes keep busy meanwhile"
    )
    parser.addoption("--record", type=Path, help="file to append each result to once measured")


def pytest_configure(config):
    # A shell that starts a job in the background makes it ignore this signal; at it, pytest ends
    # the run and the results so far are written.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_sessionstart(session):
    if path := session.config.getoption("--record"):
        path.write_text(json.dumps({"machine_info": _machine(session.config)}) + "\n")


def _machine(config):
    return {**measure.machine(), "busy_cores": config.getoption("--busy")}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Record what a test has measured, even if a later part of it failed."""
    path, benchmark = item.config.getoption("--record"), item.funcargs.get("benchmark")
    if call.when == "call" and path and benchmark and "median_ms" in benchmark.extra_info:
        with path.open("a") as file:
            file.write(json.dumps({"extra_info": benchmark.extra_info}) + "\n")
    return (yield)


@pytest.fixture
def rounds(request):
    return request.config.getoption("--rounds")


@pytest.fixture
def peers(request):
    return request.config.getoption("--peers")


@pytest.fixture(scope="session")
def device(request):
    return request.config.getoption("--device")


@pytest.fixture(scope="session")
def meter(device):
    """The module that measures on this device."""
    return measure_cuda if device == "cuda" else measure


@pytest.fixture(scope="session")
def measured_rates(request, meter):
    """The rates of the machine; until the end, as many of its cores as asked for are busy."""
    with measure.busy_cores(request.config.getoption("--busy")):
        yield meter.rates()


@pytest.fixture
def measure_variants(benchmark, meter, rounds, measured_rates):
    """Check a workload, then measure all its variants."""

    def run(workload: Workload) -> None:
        benchmark.extra_info["left_out"] = workload.drop_failing()
        data = {f"{name}, data": variant for name, variant in workload.data.items()}
        median_ms = meter.interleaved({**workload.variants, **data}, rounds)
        benchmark.extra_info["data_ms"] = {k: median_ms.pop(f"{k}, data") for k in workload.data}
        benchmark.extra_info["median_ms"] = median_ms
        benchmark.extra_info["floor_ms"] = workload.floor_ms(measured_rates)
        benchmark.extra_info["rates"] = measured_rates
        benchmark.pedantic(workload.variants["cmrfast"], rounds=rounds)

    return run


@pytest.fixture
def run_workload(benchmark, measure_variants, meter, device, peers):
    """Build a workload on the device, measure it, and store what the tables need."""

    def run(name: str, title: str, build: Callable[[], Workload]) -> Workload:
        with torch.device(device):
            workload = build()
        if peers == "torch":
            kept = {
                k: w for k, w in workload.variants.items() if k.startswith(("cmrfast", "torch"))
            }
            workload.variants = kept
        benchmark.extra_info.update(workload=name, title=title)
        measure_variants(workload)
        benchmark.extra_info["peak_mb"] = {
            k: meter.peak_megabytes(w) for k, w in workload.variants.items()
        }
        torch.compiler.reset()
        return workload

    return run


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info.clear()  # the default includes the host name
    machine_info.update(_machine(config))
