"""The kernels follow the target that Numba compiles for."""

from __future__ import annotations

import os

import numpy as np
import pytest

from fastbp import MLP
from fastbp.backends.cpu import compiling, machine, simd

WIDTHS = {"haswell": 32, "nehalem": 16}


def test_vectors_have_the_targets_width():
    _, name, features = simd.target()
    if name in WIDTHS:
        assert WIDTHS[name] == simd.VECTOR_BYTES
    elif "+avx512f" in features:
        assert simd.VECTOR_BYTES == 64
    else:
        assert simd.VECTOR_BYTES in (16, 32)


def test_an_unknown_feature_string_is_answered_by_llvm():
    """Only a CPU name is given, as with NUMBA_CPU_FEATURES="": what the name implies decides."""
    triple = simd.target()[0]
    if not triple.startswith("x86_64"):
        pytest.skip(f"the probe is for x86-64, this is {triple}")
    assert "zmm" in simd._probe(triple, "skylake-avx512") + simd._probe(triple, "znver4")
    assert "zmm" not in simd._probe(triple, "haswell")
    assert "ymm" in simd._probe(triple, "haswell")
    assert "ymm" not in simd._probe(triple, "nehalem")


@pytest.mark.skipif(
    "NUMBA_CPU_NAME" not in os.environ, reason="compiles anew: run for the targets that scripts/test names"
)
def test_no_wider_registers_are_used():
    """The assembly of the whole machine, which is at hand only where it was compiled: by this process, or anew."""
    from numba import njit, types

    enter = machine.team("float32").compiled
    if not enter.stats.cache_misses:
        enter = njit(nogil=True, error_model="numpy")(machine._make_enter(compiling.source_stamp()))
        enter.compile((types.int64,) * 8 + (types.float32,))
    assembly = next(iter(enter.inspect_asm().values()))
    assert (simd.VECTOR_BYTES == 64) == ("zmm" in assembly)
    assert simd.VECTOR_BYTES > 16 or "ymm" not in assembly
    assert ("vfmadd" in assembly) == simd.HAS_FMA


def test_the_machine_runs_on_this_target():
    np.testing.assert_allclose(MLP([3, 2], output="sigmoid", init="zeros").forward(np.ones((4, 3))), 0.5)
