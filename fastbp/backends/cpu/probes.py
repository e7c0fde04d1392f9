"""Kernels that only measure: the FMA peak of a core, and what reading the clock costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastbp.backends.cpu.claims import atomic_add
from fastbp.backends.cpu.simd import I32, Vector, VectorEmitter, float_at, get_int, lanes_of, nanoseconds, set_int
from fastbp.backends.cpu.target import VECTOR_REGISTERS

_CHAINS = VECTOR_REGISTERS * 3 // 4  # independent accumulators: enough to hide the latency, and none is spilled
_LINKS = 4  # FMAs of each chain a turn of the loop


@intrinsic
def _fma_chains(typingctx: Any, turns: Any, start: Any) -> Any:
    """turns · _LINKS · _CHAINS vector FMAs; whether the sum of all lanes 0 is a number keeps them alive."""

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        m = VectorEmitter(builder, str(sig.args[1]))
        # from a number that LLVM does not know: it saw that a chain which began with 1 stayed there, and left it out
        first = m.splat(arguments[1])
        chains = [cgutils.alloca_once_value(builder, (first * float(k)).value) for k in range(_CHAINS)]
        with cgutils.for_range(builder, arguments[0]):
            values = [Vector(m, builder.load(chain)) for chain in chains]
            for _ in range(_LINKS):
                values = [m.fma(x, 0.999, 0.001) for x in values]  # tends to 1: no overflow, no subnormal numbers
            for chain, x in zip(chains, values, strict=True):
                builder.store(x.value, chain)
        total = sum((Vector(m, builder.load(chain)) for chain in chains), Vector(m, m.constant(0.0)))
        lane = builder.extract_element(total.value, I32(0))
        return builder.zext(builder.fcmp_ordered("ord", lane, lane), ir.IntType(64))

    return types.int64(types.int64, start), codegen


def make_fma_entry(dtype: str) -> Callable[..., None]:
    """Words of the call: turns; the float64 that chains begin with; operations a turn, which are filled in."""
    one = np.dtype(dtype).type(1)

    def fma_entry(call):
        known = _fma_chains(get_int(call, 0), float_at(call + 8, one))
        set_int(call, 2, known * 2 * _LINKS * _CHAINS * lanes_of(one))

    return fma_entry


def make_clock_entry() -> Callable[..., None]:
    """Words of the call: how often the clock is read as the machine does around a line; nanoseconds that this adds to
    the line, and that it takes in all, which are filled in.
    """

    def clock_entry(call):
        first = nanoseconds()
        for _ in range(get_int(call, 0)):
            began = nanoseconds()
            atomic_add(call, 1, nanoseconds() - began)
        set_int(call, 2, nanoseconds() - first)

    return clock_entry
