"""Tests of the CUDA machine, in three kinds, each in a process of its own (Numba decides when it is imported).

* sim: in Numba's simulator, where NUMBA_ENABLE_CUDASIM=1 is set: ``NUMBA_ENABLE_CUDASIM=1 pytest -m sim tests/cuda``
* offline: kernels are compiled, not run: ``pytest -m offline tests/cuda``
* gpu: on a card: ``pytest -m gpu tests/cuda``, or ``scripts/test-gpu`` for all that needs one

The environment decides between sim and the others; what cannot run is skipped with the reason, and pytest fails where a
kind was asked for and nothing was left of it. With FASTBP_REHEARSE=1, too, the simulator runs the gpu tests that it can
afford: to see, without a card, that they would run on one.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0")
REHEARSED = os.environ.get("FASTBP_REHEARSE", "0") not in ("", "0")
HERE = Path(__file__).parent

MISSING = [name for name in ("numba_cuda", "greenlet") if importlib.util.find_spec(name) is None]
if SIMULATED and not MISSING:
    import fake_cupy

    from fastbp.backends.cuda.simulator import memory

    sys.modules |= fake_cupy._modules()
    fake_cupy._watch = memory  # kernels reach the fake's arrays, and only those


def kind_of(path: Path) -> str:
    """Which kind the tests of a file are."""
    return next((kind for kind in ("offline", "gpu") if path.stem.startswith(f"test_{kind}")), "sim")


def why_not(kind: str, config: pytest.Config) -> str:
    """Why the tests of a kind cannot run in this process; empty if they can."""
    if kind == "sim":
        if not SIMULATED:
            return "simulated kernels need a process with NUMBA_ENABLE_CUDASIM=1"
        return f"not installed: {', '.join(MISSING)} (extra test)" if MISSING else ""
    if kind == "gpu" and SIMULATED and REHEARSED:
        return ""
    if SIMULATED:
        return f"{kind}: needs a process without NUMBA_ENABLE_CUDASIM"
    if kind == "offline":
        if "numba_cuda" in MISSING:
            return "not installed: numba-cuda (extra test)"
        only_here = all(
            (config.invocation_params.dir / a.split("::")[0]).resolve().is_relative_to(HERE) for a in config.args
        )
        if not only_here and "offline" not in config.option.markexpr:
            return "kernels are compiled in a process of their own: pytest -m offline tests/cuda"
    if kind == "gpu":
        from fastbp.backends import gpu

        return gpu.missing("cuda") or ""
    return ""


class NotHere(pytest.Module):
    """A file that is not even imported."""

    reason = ""

    def collect(self) -> Iterator[pytest.Item]:
        """Nothing."""
        pytest.skip(self.reason, allow_module_level=True)
        yield from ()


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """Leave out what cannot run here."""
    reason = why_not(kind_of(module_path), parent.config)
    if not reason:
        return None
    module = NotHere.from_parent(parent, path=module_path)
    module.reason = reason
    return module


def pytest_itemcollected(item: pytest.Item) -> None:
    """Every test is marked with its kind."""
    item.add_marker(kind_of(item.path))
