"""Options, how a workload is checked and measured, and the machine's record in the JSON."""

from collections.abc import Callable

import pytest
import torch

from benchmarks import measure, measure_cuda
from benchmarks.workloads import Case


def pytest_addoption(parser):
    parser.addoption("--rounds", type=int, default=measure.ROUNDS, help="timed rounds of each way")
    parser.addoption("--device", choices=("cpu", "cuda"), default="cpu", help="where to measure")
    parser.addoption("--without", action="append", default=[], help="a way to leave out")


@pytest.fixture
def rounds(request):
    return request.config.getoption("--rounds")


@pytest.fixture
def without(request):
    return request.config.getoption("--without")


@pytest.fixture(scope="session")
def device(request):
    return request.config.getoption("--device")


@pytest.fixture(scope="session")
def meter(device):
    """The module that measures on this device."""
    return measure_cuda if device == "cuda" else measure


@pytest.fixture(scope="session")
def measured_rates(meter):
    return meter.rates()


@pytest.fixture
def record(benchmark, meter, rounds, measured_rates):
    """Check a case, then measure all its ways."""

    def run(case: Case) -> None:
        case.check()
        alone = {f"{name}, data": way for name, way in case.data.items()}
        median_ms = meter.interleaved({**case.ways, **alone}, rounds)
        benchmark.extra_info["data_ms"] = {k: median_ms.pop(f"{k}, data") for k in case.data}
        benchmark.extra_info["median_ms"] = median_ms
        benchmark.extra_info["floor_ms"] = case.floor_ms(measured_rates)
        benchmark.extra_info["rates"] = measured_rates
        benchmark.pedantic(case.ways["cmrfast"], rounds=rounds)

    return run


@pytest.fixture
def workload(benchmark, record, meter, device, without):
    """Build a workload on the device, measure it, and leave what the tables need."""

    def run(name: str, title: str, build: Callable[[], Case]) -> Case:
        with torch.device(device):
            case = build()
        for way in without:
            case.ways.pop(way, None)
        record(case)
        benchmark.extra_info.update(workload=name, title=title)
        benchmark.extra_info["peak_mb"] = {k: meter.peak_megabytes(w) for k, w in case.ways.items()}
        torch.compiler.reset()
        return case

    return run


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info.clear()  # the default one names the host
    machine_info.update(measure.machine())
