"""The GPU kernels: one for each operation of the table, one that takes a Program from step to step, and those in which
every block does many operations for itself.

A kernel takes the address of its instruction's words, that of the slots' addresses, and the number 1 of the dtype:
three scalars, since a launch gets slower with each argument.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numba import cuda, float32, float64

from fastbp.backends.cuda import elementwise, gemm, rowwise
from fastbp.backends.cuda.blocks import KERNELS as OF_BLOCKS
from fastbp.backends.cuda.blocks import SHARED
from fastbp.backends.cuda.device import address_of, at, shared, shifted, sync, thread, threads
from fastbp.backends.cuda.table import (
    A_POSITION,
    A_STEP,
    ADDRESSES,
    APART,
    BEGINNING,
    BLOCK_HEAD,
    BY_POSITION,
    BY_STEP,
    BYTES,
    CHAIN,
    COMBINE,
    DONE,
    FROM,
    GATHER,
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
    SLOT_WIDTH,
    SLOTS,
    SOFTMAX,
    STEP_NUMBER,
    STEP_POSITION,
    STEP_SCRIPT,
    STEP_WIDTH,
    STEPS,
    STEPS_SLOT,
    UPDATE,
)
from fastbp.backends.cuda.tensor_cores import product_on_tensor_cores
from fastbp.backends.cuda.tiles import LARGE, TENSOR_TILES, TINY, small_tile

GLOBAL, ANYWHERE = np.int32(0), True  # what pointers point into: see ptx.at
TYPES = {"float32": float32, "float64": float64}


def _over_grid(operation: Callable[..., None]) -> Callable[..., None]:
    """The kernel in which all blocks of a grid do one operation."""

    def kernel(words, slots, one):
        d, addresses = at(words, np.int64(1), GLOBAL), at(slots, np.int64(1), GLOBAL)
        operation(d, addresses, cuda.blockIdx.x, cuda.gridDim.x, one, GLOBAL)

    return kernel


def advance(words, slots, one):
    """Move the slots to the step after the one before: see table.py. One block."""
    moving, addresses = at(words, np.int64(1), GLOBAL), at(slots, np.int64(1), GLOBAL)
    step = at(moving[STEPS], np.int64(1), GLOBAL)
    done = moving[DONE]
    position, number = step[3 * done + 1], step[3 * done + 2]
    k = thread()
    while k < moving[MOVING]:
        first = MOVING_HEAD + k * MOVING_WIDTH
        moved = moving[first + BEGINNING] + position * moving[first + A_POSITION] + number * moving[first + A_STEP]
        addresses[moving[first + NUMBER]] = moved
        k += threads()
    sync()
    if thread() == 0:
        moving[DONE] = done + 1


def _of_blocks(product: Callable[..., None]) -> Callable[..., None]:
    """The kernel in which each block takes its own steps, all instructions of a step one after the other."""

    def blocks(words, slots, one):
        table, block = at(words, np.int64(1), GLOBAL), np.int64(cuda.blockIdx.x)
        outer = at(slots + 8 * block * table[APART], np.int64(1), GLOBAL)
        memory = address_of(shared(one))
        inner = at(memory + table[ADDRESSES], np.int64(1), ANYWHERE)
        steps = at(outer[table[STEPS_SLOT]], np.int64(1), GLOBAL)
        for s in range(steps[0], steps[1]):
            step = shifted(steps, 2 + STEP_WIDTH * s)
            mine = thread()
            while mine < table[SLOTS]:
                slot = shifted(table, BLOCK_HEAD + SLOT_WIDTH * mine)
                begin = memory if slot[FROM] == NONE else outer[slot[FROM]]
                moved = step[STEP_POSITION] * slot[BY_POSITION] + step[STEP_NUMBER] * slot[BY_STEP]
                inner[mine] = begin + slot[BYTES] + moved
                mine += threads()
            sync()
            script = shifted(table, table[table[SCRIPTS] + step[STEP_SCRIPT]])
            for k in range(script[0]):
                d = shifted(table, script[1 + k])
                op = d[OP]
                if op == PRODUCT:
                    product(d, inner, 0, 1, one, ANYWHERE)
                elif op == CHAIN:
                    elementwise.chain(d, inner, 0, 1, one, ANYWHERE)
                elif op == UPDATE:
                    elementwise.update_all(d, inner, 0, 1, one, ANYWHERE)
                elif op == SOFTMAX:
                    rowwise.softmax(d, inner, 0, 1, one, ANYWHERE)
                elif op == GATHER:
                    rowwise.gather(d, inner, 0, 1, one, ANYWHERE)
                elif op == COMBINE:
                    gemm.combine(d, inner, 0, 1, one, ANYWHERE)
                elif op == ONEHOT:
                    rowwise.onehot(d, inner, 0, 1, one, ANYWHERE)
                elif op == MOVE:
                    rowwise.move(d, inner, 0, 1, one, ANYWHERE)
                elif op == SCATTER:
                    rowwise.scatter(d, inner, 0, 1, one, ANYWHERE)
                sync()

    return blocks


@dataclass(frozen=True)
class Kernel:
    """A kernel's source.

    Attributes:
        function: of (words, slots, one).
        threads: of a block, at most; shared: bytes of dynamic shared memory, at most.
        wide: whether it has to have 128-bit loads.
        optimised_once: whether the linker leaves it as it is. That of CUDA 13.0 never comes to an end with the kernels
            of blocks in tf32, 13.5's takes 14 s.
    """

    function: Callable[..., None]
    threads: int = 256
    shared: int = 0
    wide: bool = False
    optimised_once: bool = False


def _kernels(dtype: str) -> dict[str, Kernel]:
    item = np.dtype(dtype).itemsize
    found = {
        "chain": Kernel(_over_grid(elementwise.chain), 128, 96 << 10, wide=True),
        "combine": Kernel(_over_grid(gemm.combine), wide=True),
        "softmax": Kernel(_over_grid(rowwise.softmax)),
        "move": Kernel(_over_grid(rowwise.move)),
        "onehot": Kernel(_over_grid(rowwise.onehot)),
        "gather": Kernel(_over_grid(rowwise.gather)),
        "scatter": Kernel(_over_grid(rowwise.scatter)),
        "update": Kernel(_over_grid(elementwise.update_all), wide=True),
        "down": Kernel(_over_grid(elementwise.down), 256, 4 * 256 * item, wide=True),
        "advance": Kernel(advance, 32),
    }
    for name, tile in (("tiny", TINY), ("small", small_tile(item)), ("large", LARGE)):
        if name != "large" or item == 4:  # 64 sums of float64 do not fit the registers
            product = gemm.product_of(tile, TYPES[dtype])
            found[f"product_{name}"] = Kernel(_over_grid(product), tile.threads, tile.shared_bytes(item), wide=True)
    if item == 4:
        found["rounded"] = Kernel(_over_grid(elementwise.rounded), wide=True)
        found["combine_rounded"] = Kernel(_over_grid(gemm.combine_rounded), wide=True)
    for precision, tiles in (TENSOR_TILES if item == 4 else {}).items():
        for name, tensor_tile in zip(("small", "large"), tiles, strict=True):
            product = product_on_tensor_cores(tensor_tile)
            found[f"{precision}_{name}"] = Kernel(
                _over_grid(product), tensor_tile.threads, tensor_tile.shared_bytes(), wide=True
            )
    for precision, (name, of_block) in OF_BLOCKS.items():
        if precision == "highest":
            product = gemm.product_of(small_tile(item), TYPES[dtype])
            found[name] = Kernel(_of_blocks(product), of_block.threads, SHARED, wide=True, optimised_once=True)
        elif item == 4:
            product = product_on_tensor_cores(TENSOR_TILES[precision][0])
            found[name] = Kernel(_of_blocks(product), of_block.threads, SHARED, wide=True, optimised_once=True)
    return found


KERNELS: Mapping[str, Mapping[str, Kernel]] = {dtype: _kernels(dtype) for dtype in TYPES}
