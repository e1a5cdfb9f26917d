"""Options, the rates of the machine, and its record in the JSON."""

import pytest
import torch

from benchmarks.measure import ROUNDS, machine, rates


def pytest_addoption(parser):
    parser.addoption("--rounds", type=int, default=ROUNDS, help="timed rounds of each way")


@pytest.fixture
def rounds(request):
    return request.config.getoption("--rounds")


@pytest.fixture(scope="session")
def measured_rates():
    return rates()


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info.clear()  # the default one names the host
    machine_info.update(machine())
