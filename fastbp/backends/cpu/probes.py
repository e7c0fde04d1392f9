"""Kernels that only measure: the FMA peak of a core, and what reading the clock costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastbp.backends.cpu.claims import atomic_add
from fastbp.backends.cpu.simd import float_at, get_int, nanoseconds, pointer, set_int, store_at
from fastbp.backends.cpu.target import CHAINS, LINKS
from fastbp.backends.cpu.vectors import I32, Vector, VectorEmitter


@intrinsic
def _fma_chains(typingctx: Any, turns: Any, start: Any) -> Any:
    """turns · LINKS · CHAINS vector FMAs; the returned sum of all lanes 0 keeps them alive."""

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        m = VectorEmitter(builder, str(sig.args[1]))
        # from a number that LLVM does not know: it saw that a chain which began with 1 stayed there, and left it out
        first = m.splat(arguments[1])
        chains = [cgutils.alloca_once_value(builder, (first * float(k)).value) for k in range(CHAINS)]
        with cgutils.for_range(builder, arguments[0]):
            values = [Vector(m, builder.load(chain)) for chain in chains]
            for _ in range(LINKS):
                values = [m.fma(x, 0.999, 0.001) for x in values]  # tends to 1: no overflow, no subnormal numbers
            for chain, x in zip(chains, values, strict=True):
                builder.store(x.value, chain)
        total = sum((Vector(m, builder.load(chain)) for chain in chains), Vector(m, m.constant(0.0)))
        return builder.extract_element(total.value, I32(0))

    return start(types.int64, start), codegen


def make_fma_entry(dtype: str) -> Callable[..., None]:
    """Words of the call: turns; the float64 that chains begin with, and in its place then what they add up to."""
    one = np.dtype(dtype).type(1)

    def fma_entry(call):
        total = _fma_chains(get_int(call, 0), float_at(call + 8, one))
        store_at(pointer(call, 1, 1.0), 0, 1.0 * total)

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
