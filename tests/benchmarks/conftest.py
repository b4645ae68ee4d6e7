"""What the benchmarks share: the process set up as `bench run` sets its own up, and another that is not."""

import pytest
import torch

from bench import environment
from benchmarks.timing import AnotherProcess


@pytest.fixture(scope="session", autouse=True)
def _as_bench_runs():
    torch.set_num_threads(1)
    environment.keep_memory()


@pytest.fixture(scope="session")
def another_process():
    process = AnotherProcess()
    yield process
    process.close()


def pytest_benchmark_update_machine_info(machine_info):
    machine_info["bench"] = environment.describe()
