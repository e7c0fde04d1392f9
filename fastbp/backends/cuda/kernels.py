"""The GPU kernels: one for each operation of the table, and one that takes a Program from step to step.

A kernel takes the address of its instruction's words, that of the slots' addresses, and the number 1 of the dtype:
three scalars, since a launch gets slower with each argument.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numba import cuda, float32, float64

from fastbp.backends.cuda import elementwise, gemm, rowwise
from fastbp.backends.cuda.device import address_of, at, device, shared, sync, thread, threads
from fastbp.backends.cuda.table import (
    A_POSITION,
    A_STEP,
    BEGINNING,
    CHAIN,
    COMBINE,
    COUNT,
    DONE,
    GATHER,
    LIST,
    MOVE,
    MOVING,
    MOVING_HEAD,
    MOVING_WIDTH,
    NONE,
    NUMBER,
    ONEHOT,
    OP,
    PRODUCT,
    SCATTER,
    SCRIPTS,
    SHARED_AT,
    SOFTMAX,
    STATE_MOVING,
    STATE_SLOTS,
    STATE_WIDTH,
    STEPS,
    UPDATE,
    WANTED,
)
from fastbp.backends.cuda.tensor_cores import product_on_tensor_cores
from fastbp.backends.cuda.tiles import LARGE, SMALL, TENSOR_TILES

GLOBAL, ANYWHERE = np.int32(0), True  # what pointers point into: see ptx.at
WORKSPACE = 0  # the first slot
RESIDENT_SHARED = 96 << 10  # bytes: what cards that have the least allow
TYPES = {"float32": float32, "float64": float64}


def _over_grid(operation: Callable[..., None]) -> Callable[..., None]:
    """The kernel in which all blocks of a grid do one operation."""

    def kernel(words, slots, one):
        d, addresses = at(words, np.int64(1), GLOBAL), at(slots, np.int64(1), GLOBAL)
        operation(d, addresses, cuda.blockIdx.x, cuda.gridDim.x, one, GLOBAL)

    return kernel


@device
def _advance(moving, addresses):
    """Move the slots to the next step; that step's first word. Has a barrier: all threads of a block call it."""
    step = at(moving[STEPS], np.int64(1), GLOBAL)
    done = moving[DONE]
    position, number = step[3 * done + 1], step[3 * done + 2]
    for k in range(thread(), moving[MOVING], threads()):
        first = MOVING_HEAD + k * MOVING_WIDTH
        moved = moving[first + BEGINNING] + position * moving[first + A_POSITION] + number * moving[first + A_STEP]
        addresses[moving[first + NUMBER]] = moved
    first_word = step[3 * done]
    sync()
    if thread() == 0:
        moving[DONE] = done + 1
    return first_word


def advance(words, slots, one):
    """Move the slots to the step after the one before: see table.py. One block."""
    _advance(at(words, np.int64(1), GLOBAL), at(slots, np.int64(1), GLOBAL))


def _resident(product: Callable[..., None]) -> Callable[..., None]:
    """The kernel in which each block runs whole steps of a network of its own, all instructions one after the other."""

    def resident(words, states, one):
        script, state = at(words, np.int64(1), GLOBAL), at(states, np.int64(1), GLOBAL)
        mine = cuda.blockIdx.x * STATE_WIDTH
        moving = at(state[mine + STATE_MOVING], np.int64(1), GLOBAL)
        addresses = at(state[mine + STATE_SLOTS], np.int64(1), GLOBAL)
        if script[SHARED_AT] != NONE and thread() == 0:
            addresses[WORKSPACE] = address_of(shared(one)) + script[SHARED_AT]
        sync()
        for _ in range(script[WANTED]):
            first = SCRIPTS + 2 * _advance(moving, addresses)
            sync()
            rows = at(script[first + LIST], np.int64(1), GLOBAL)
            for k in range(script[first + COUNT]):
                d = at(rows[k], np.int64(1), GLOBAL)
                op = d[OP]
                if op == PRODUCT:
                    product(d, addresses, 0, 1, one, ANYWHERE)
                elif op == CHAIN:
                    elementwise.chain(d, addresses, 0, 1, one, ANYWHERE)
                elif op == UPDATE:
                    elementwise.update_all(d, addresses, 0, 1, one, ANYWHERE)
                elif op == SOFTMAX:
                    rowwise.softmax(d, addresses, 0, 1, one, ANYWHERE)
                elif op == GATHER:
                    rowwise.gather(d, addresses, 0, 1, one, ANYWHERE)
                elif op == COMBINE:
                    gemm.combine(d, addresses, 0, 1, one, ANYWHERE)
                elif op == ONEHOT:
                    rowwise.onehot(d, addresses, 0, 1, one, ANYWHERE)
                elif op == MOVE:
                    rowwise.move(d, addresses, 0, 1, one, ANYWHERE)
                elif op == SCATTER:
                    rowwise.scatter(d, addresses, 0, 1, one, ANYWHERE)
                sync()

    return resident


@dataclass(frozen=True)
class Kernel:
    """A kernel's source.

    Attributes:
        function: of (words, slots, one).
        threads: of a block, at most; shared: bytes of dynamic shared memory, at most.
        wide: whether it has to have 128-bit loads.
    """

    function: Callable[..., None]
    threads: int = 256
    shared: int = 0
    wide: bool = False


def _kernels(dtype: str) -> dict[str, Kernel]:
    item = np.dtype(dtype).itemsize
    found = {
        "chain": Kernel(_over_grid(elementwise.chain), 128, 96 << 10, wide=True),
        "combine": Kernel(_over_grid(gemm.combine)),
        "softmax": Kernel(_over_grid(rowwise.softmax)),
        "move": Kernel(_over_grid(rowwise.move)),
        "onehot": Kernel(_over_grid(rowwise.onehot)),
        "gather": Kernel(_over_grid(rowwise.gather)),
        "scatter": Kernel(_over_grid(rowwise.scatter)),
        "update": Kernel(_over_grid(elementwise.update_all)),
        "advance": Kernel(advance, 32),
    }
    for name, tile in (("small", SMALL), ("large", LARGE)):
        if name == "small" or item == 4:  # 64 sums of float64 do not fit the registers
            product = gemm.product_of(tile, TYPES[dtype])
            found[f"product_{name}"] = Kernel(_over_grid(product), tile.threads, tile.shared_bytes(item), wide=True)
    for precision, tiles in TENSOR_TILES.items() if item == 4 else ():
        for name, tensor_tile in zip(("small", "large"), tiles, strict=True):
            product = product_on_tensor_cores(tensor_tile)
            found[f"{precision}_{name}"] = Kernel(
                _over_grid(product), tensor_tile.threads, tensor_tile.shared_bytes(), wide=True
            )
    small = gemm.product_of(SMALL, TYPES[dtype])
    found["resident"] = Kernel(_resident(small), SMALL.threads, RESIDENT_SHARED)
    return found


KERNELS: Mapping[str, Mapping[str, Kernel]] = {dtype: _kernels(dtype) for dtype in TYPES}
