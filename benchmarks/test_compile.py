"""What a user waits for: from the start of a process to its first gradient, with the kernels' cache empty and full."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FIRST_STEP = """
import numpy as np
import fastbp
net = fastbp.MLP([784, 30, 10], activation="sigmoid", loss="half_sse", seed=0)
net.loss_and_grad(np.zeros((10, 784), np.float32), np.zeros((10, 10), np.float32))
"""
COLD_ROUNDS = 3
WARM_ROUNDS = 7


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def first_step(cache: Path) -> None:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache)}
    subprocess.run([sys.executable, "-c", FIRST_STEP], env=environment, check=True, capture_output=True)


def test_cold(benchmark: Any, cache: Path) -> None:
    def empty() -> tuple[tuple[Path], dict[str, Any]]:
        shutil.rmtree(cache)
        cache.mkdir()
        return (cache,), {}

    benchmark.group = "first gradient of a process"
    benchmark.pedantic(first_step, setup=empty, rounds=COLD_ROUNDS)


def test_warm(benchmark: Any, cache: Path) -> None:
    first_step(cache)  # fills it, if test_cold has not
    benchmark.group = "first gradient of a process"
    benchmark.pedantic(first_step, args=(cache,), rounds=WARM_ROUNDS)
