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


def first_step(**environment: str) -> None:
    subprocess.run([sys.executable, "-c", FIRST_STEP], env=os.environ | environment, check=True, capture_output=True)


def test_cold(benchmark: Any, tmp_path: Path) -> None:
    if benchmark.disabled:
        pytest.skip("compiles all kernels, which is only worth its time where that is measured")

    def empty() -> tuple[tuple[()], dict[str, Any]]:
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
        return (), {"NUMBA_CACHE_DIR": str(tmp_path)}

    benchmark.group = "first gradient of a process"
    benchmark.pedantic(first_step, setup=empty, rounds=COLD_ROUNDS)


def test_warm(benchmark: Any) -> None:
    first_step()  # fills the cache, if nobody has
    benchmark.group = "first gradient of a process"
    benchmark.pedantic(first_step, rounds=WARM_ROUNDS)
