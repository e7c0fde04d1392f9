"""These tests run in a process of their own, in Numba's CUDA simulator: NUMBA_ENABLE_CUDASIM=1."""

from __future__ import annotations

import os
import sys

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0")
collect_ignore = [] if SIMULATED else ["test_machine.py"]

if SIMULATED:
    import fake_cupy

    sys.modules["cupy"] = fake_cupy
