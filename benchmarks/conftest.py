"""Options, the rates of the machine, and its record in the JSON."""

import pytest
import torch

from benchmarks import measure, measure_cuda


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


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info.clear()  # the default one names the host
    machine_info.update(measure.machine())
