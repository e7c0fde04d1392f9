"""How threads share the pieces of an instruction: by atomic words of the team's control block, see team.py.

The caller publishes an instruction by giving every thread a range of its pieces: a word ``end | next piece``.
Whoever wants work adds 1 to a word and so claims the piece that stood there: of its own range first, so that a core
finds in its cache what it wrote one instruction earlier, then of the others'. The caller claims too, and goes on when
all pieces are done. A thread that is late, or never comes, costs nothing: the others do its pieces. What a piece
computes depends on its number alone, so results do not depend on who did it.

Everything that a claimed piece needs (row of the table, addresses) stands in the control block and cannot change
before the piece is done, since the caller waits for it. A word read too early is harmless: the addition that claims
returns the word as it is then, and that says which piece of the present instruction was claimed.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastbp.backends.cpu.compiling import kernel
from fastbp.backends.cpu.simd import get_int, set_int
from fastbp.backends.cpu.vectors import I64
from fastbp.backends.cpu.words import CONTROL_LINE, CURRENT_BASES, CURRENT_ROW, DONE, FIELD, MASK, OPEN, RANGES

SPINS_BEFORE_YIELD = 2000
YIELDS_BEFORE_PARK = 400
# A helper waits for the next run for some 0.2 ms after the last, which is how long the calls of a loop in Python are
# apart: waking one that sleeps took 0.1 to 0.3 ms on a machine with other tenants, as long as many a call.
YIELDS_BETWEEN_RUNS = 5

sched_yield = types.ExternalFunction("sched_yield", types.int32())


@intrinsic
def atomic_add(typingctx: Any, address: Any, index: Any, value: Any) -> Any:
    """Add to the int64 at address + 8 index and return what was there."""

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        place = builder.gep(builder.inttoptr(arguments[0], I64.as_pointer()), [arguments[1]])
        return builder.atomic_rmw("add", place, arguments[2], "acq_rel")

    return types.int64(types.int64, types.int64, types.int64), codegen


@intrinsic
def atomic_load(typingctx: Any, address: Any, index: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        place = builder.gep(builder.inttoptr(arguments[0], I64.as_pointer()), [arguments[1]])
        return builder.load_atomic(place, "acquire", 8)

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def atomic_store(typingctx: Any, address: Any, index: Any, value: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        place = builder.gep(builder.inttoptr(arguments[0], I64.as_pointer()), [arguments[1]])
        builder.store_atomic(arguments[2], place, "release", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


@intrinsic
def pause(typingctx: Any) -> Any:
    """Tell the core that this is a spin loop."""

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        if context.codegen().magic_tuple()[0].startswith("x86_64"):
            nothing = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, nothing, "llvm.x86.sse2.pause"), [])
        elif context.codegen().magic_tuple()[0].startswith(("aarch64", "arm64")):
            builder.asm(ir.FunctionType(ir.VoidType(), []), "yield", "", [], True)
        return context.get_dummy_value()

    return types.void(), codegen


@kernel
def spin(count):
    """One turn of waiting: pause, and let another thread run every so often, for cores are shared."""
    if count % SPINS_BEFORE_YIELD == SPINS_BEFORE_YIELD - 1:
        sched_yield()
    else:
        pause()
    return count + 1


@kernel
def publish(control, row, bases, pieces):
    """Offer an instruction to the team. The caller has waited for the previous one."""
    set_int(control, CURRENT_ROW, row)
    set_int(control, CURRENT_BASES, bases)
    atomic_store(control, DONE, 0)
    threads = get_int(control, OPEN)
    for t in range(threads):
        first, end = pieces * t // threads, pieces * (t + 1) // threads
        atomic_store(control, RANGES + CONTROL_LINE * t, (end << FIELD) | first)


@kernel
def claim(control, thread):
    """The number of a piece that is now this thread's to do, or -1 if there is none."""
    threads = atomic_load(control, OPEN)
    for k in range(threads):
        place = RANGES + CONTROL_LINE * ((thread + k) % threads)
        word = atomic_load(control, place)
        if (word & MASK) < (word >> FIELD):
            word = atomic_add(control, place, 1)
            piece = word & MASK
            if piece < (word >> FIELD):
                return piece
    return -1


@kernel
def finish(control, thread):
    """Count a piece as done."""
    count = RANGES + CONTROL_LINE * thread + 1
    set_int(control, count, get_int(control, count) + 1)
    atomic_add(control, DONE, 1)
