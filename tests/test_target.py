"""The kernels follow the target that Numba compiles for."""

from __future__ import annotations

import os

import numpy as np
import pytest
from numba.core.registry import cpu_target

from fastbp import MLP
from fastbp.backends.cpu import compiling, loading, target

WIDTHS = {"haswell": 32, "nehalem": 16}


def test_it_is_numbas_target():
    assert target.target() == cpu_target.target_context.codegen().magic_tuple()


def test_vectors_have_the_targets_width():
    _, name, features = target.target()
    if name in WIDTHS:
        assert WIDTHS[name] == target.VECTOR_BYTES
    elif "+avx512f" in features:
        assert target.VECTOR_BYTES == 64
    else:
        assert target.VECTOR_BYTES in (16, 32)


def test_an_unknown_feature_string_is_answered_by_llvm():
    """Only a CPU name is given, as with NUMBA_CPU_FEATURES="": what the name implies decides."""
    triple = target.target()[0]
    if not triple.startswith("x86_64"):
        pytest.skip(f"the probe is for x86-64, this is {triple}")
    assert "zmm" in target.probe(triple, "skylake-avx512") + target.probe(triple, "znver4")
    assert "zmm" not in target.probe(triple, "haswell")
    assert "ymm" in target.probe(triple, "haswell")
    assert "ymm" not in target.probe(triple, "nehalem")


@pytest.mark.skipif("NUMBA_CPU_NAME" not in os.environ, reason="compiles anew: for the targets that scripts/test names")
def test_no_wider_registers_are_used():
    """The assembly of the whole machine. It is kept for the tests that come, if there is none."""
    from fastbp.backends.cpu.kernels import kernels
    from fastbp.backends.cpu.machine import make_enter

    made = [compiling.entry_library(make_enter("float32"), loading.ENTRY), compiling.library(kernels("float32"))]
    assembly = "".join(part.get_asm_str() for part in made)
    assert (target.VECTOR_BYTES == 64) == ("zmm" in assembly)
    assert target.VECTOR_BYTES > 16 or "ymm" not in assembly
    assert ("vfmadd" in assembly) == target.HAS_FMA
    if loading.kept("float32 kernels") is None:
        loading.keep("float32 kernels", [compiling.object_code(part) for part in made])


def test_the_machine_runs_on_this_target():
    np.testing.assert_allclose(MLP([3, 2], output="sigmoid", init="zeros").forward(np.ones((4, 3))), 0.5)
