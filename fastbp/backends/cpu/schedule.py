"""How many rows go depth first at a time on the CPU: see division.py."""

from __future__ import annotations

from dataclasses import dataclass

from fastbp.backends.division import Division
from fastbp.program import Program

# Elements of a chunk's forward products, and rows: they decide in which order sums are added up, so they are the same
# on any machine. Activations and deltas of a chunk take a few times 100 KB, in the second-level cache with the weights.
CHUNK_ELEMENTS = 32_000
MOST_ROWS, MULTIPLE = 256, 16
FEWEST_CHUNKS = 4
# More pieces than these only if each has so many rows: with 20 instead of 16 of 32 rows 49-17-715 took 1.09 times as
# long on 622 rows, 7-969 on 600 1.12, for all their gradients have to be added.
ENOUGH_PIECES, TALL_PIECE = 16, 256


@dataclass(frozen=True)
class Limits:
    """Of networks whose forward products read so many parameters at most.

    Attributes:
        rows: of a chunk, at least.
        pieces: at most; each has a gradient of its own.
    """

    parameters: int
    rows: int
    pieces: int


# Parameters, their transposes and gradients stay in the second-level cache, or most of them do; of networks with up
# to twice as many as HEAVY allows most took longer. Fewer than 32 rows at a time are too few for dW: 18-1296 on
# 100 rows took 1.3 times as long with 16, on 1000 rows 1.2; 25-1794 on 188 rows takes 1.3 times as long with 32 as an
# instruction after the other, which is how it is done with 64, since there are too few rows for that.
LIGHT = Limits(parameters=24_576, rows=32, pieces=32)
HEAVY = Limits(parameters=65_536, rows=64, pieces=16)
# Fewer rows of a light network than FEWEST_CHUNKS such chunks have go in two chunks, or up to FEW_CHUNKS of FEW_ROWS
# and more, if it has several layers, of which hardly one is worth sharing alone: 64-64-64-10 on 256 rows took 1.7 times
# as long an instruction after the other. Not for less than some 10 µs, nor if cores would rather exchange parameters
# and their gradients than compute (784-16-10 on 64 rows 0.8). Parameters count for the operations of a row with each,
# neurons for those of an activation.
FEWEST_ROWS, FEW_ROWS, FEW_CHUNKS, FEW_MULTIPLE = 32, 64, 4, 8
OF_PARAMETER, OF_NEURON, FEWEST_OPERATIONS, EXCHANGE = 6, 32, 500_000, 400


@dataclass(frozen=True)
class Chunks:
    """How many rows a chunk has, and a piece: a whole number of chunks."""

    rows: int
    piece: int


def chunks_for(program: Program, division: Division, n: int) -> Chunks | None:
    """Chunks for n rows, or None where one instruction after the other is as good.

    It depends on the forward products alone, so that a loss is the same with and without its gradient, and a gradient
    with and without an update or gathered rows; without any, as in a function of x Wᵀ, on those with Bᵀ.
    """
    products = [i for i in division.body if i.op == "matmul"]
    forward = [i for i in products if not i.ta and not i.tb] or [i for i in products if not i.ta]
    across = sum(program.buffers[i.outs[0]].shape[1].fixed for i in forward)
    shared = sum(program.size(i.ins[1], n) for i in forward)
    limits = next((limits for limits in (LIGHT, HEAVY) if shared <= limits.parameters), None)
    if not products or limits is None:
        return None
    rows = max(limits.rows, min(MOST_ROWS, CHUNK_ELEMENTS // max(1, across) // MULTIPLE * MULTIPLE))
    if n < FEWEST_CHUNKS * rows:
        operations = n * (OF_PARAMETER * shared + OF_NEURON * across)
        small = n < FEWEST_ROWS or operations < max(FEWEST_OPERATIONS, EXCHANGE * shared)
        if small or limits is HEAVY or len(forward) < 2:
            return None
        count = max(2, min(FEW_CHUNKS, n // FEW_ROWS))
        rows = -(-n // count // FEW_MULTIPLE) * FEW_MULTIPLE
        return Chunks(rows, rows)
    count, pieces = -(-n // rows), min(limits.pieces, max(ENOUGH_PIECES, n // TALL_PIECE))
    return Chunks(rows, rows * -(-count // pieces))
