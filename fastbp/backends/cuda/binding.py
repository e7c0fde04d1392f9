"""Program + number of rows -> the table that GPU kernels read, and the launches that do it.

An instruction is a launch, or a few: products that are cut or by cuBLAS, sums in pieces.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from fastbp.backends.cuda import blas, chain_table, table
from fastbp.backends.cuda.chain_table import Part, Place, Work, parts
from fastbp.backends.cuda.rows import ALIGNMENT, CONSTS, THREADS, WORKSPACE, Cut, Rows, Slots
from fastbp.backends.cuda.tiles import LARGE, SMALL, TENSOR_TILES, TINY, TensorTile, Tile, small_tile
from fastbp.ops import N
from fastbp.program import Instruction, Program, const_value, place

MOST_BLOCKS = 1 << 16
LARGE_TILES = 100  # cards have 80 to 170 multiprocessors; not measured yet
FEW_TILES = 33  # of small ones: a quarter of a card
# Where the tiles of a product are few, its K is cut so that about WANTED_BLOCKS work, each on SHORTEST of K at least.
WANTED_BLOCKS, SHORTEST = 264, 128
# Products with at most so much of K, and as many tiles as work at once, are done with their epilogue in one launch of
# their own; cuBLAS does the others.
OWN_K, OWN_TILES = 64, 132
NARROW = 64  # where rounding operands of cuBLAS to bf16 takes longer than it saves
MOST_COPIED = 16 << 20  # bytes of inputs: a graph, whose products have fixed addresses, begins with a copy of them

MOST_LANES = 16  # threads along a row of a matrix whose rows are summed


@dataclass(frozen=True)
class Launch:
    """One kernel's launch: its name, where its row begins in the table, and how many blocks, threads, shared bytes."""

    kernel: str
    row: int
    blocks: int
    threads: int
    shared: int


@dataclass(frozen=True)
class Product:
    """A product by cuBLAS, C (m, n) = A (m, k) B (k, n), which stands among launches.

    Attributes:
        shape: m, n, k.
        a, b, out: where the matrices lie; ta, tb: whether A and B lie transposed there.
    """

    shape: tuple[int, int, int]
    a: Place
    ta: bool
    b: Place
    tb: bool
    out: Place
    kernel: str = "cublas"

    @property
    def slots(self) -> set[int]:
        """By which its matrices are reached."""
        return {self.a.slot, self.b.slot, self.out.slot}


@dataclass(frozen=True)
class Bound:
    """A Program for one number of rows.

    Attributes:
        words: the table, int64.
        launches: in order.
        consts: numbers that it reads, in slot CONSTS from ``consts_at`` on.
        workspace: bytes that it needs, in slot WORKSPACE.
        blas: where cuBLAS' own workspace begins there, in bytes.
        blas_slots: slots by which cuBLAS' workspace and operands are reached.
        captured: whether steps may be captured as a graph: no operand of cuBLAS moves from step to step.
    """

    words: np.ndarray
    launches: tuple[Launch | Product, ...]
    consts: np.ndarray
    workspace: int
    blas: int = 0
    blas_slots: tuple[int, ...] = ()
    captured: bool = True


def outside(program: Program, slots: Slots) -> dict[int, Place]:
    """Where buffers lie that come from outside."""
    return {index: Place(slot, 0) for index, slot in slots.of.items()}


def constants(program: Program, n: int, dtype: str, consts_at: int) -> tuple[np.ndarray, dict[int, Place]]:
    """The numbers that instructions read for n rows, and where they lie."""
    consts = [i for i, b in enumerate(program.buffers) if b.kind == "const"]
    values = np.array([const_value(program.buffers[i], n) for i in consts] or [0.0], dtype)
    return values, {index: Place(CONSTS, consts_at + k * values.itemsize) for k, index in enumerate(consts)}


def bind(
    program: Program,
    slots: Slots,
    n: int,
    dtype: str,
    precision: str = "highest",
    consts_at: int = 0,
    with_blas: bool = False,
) -> Bound:
    """The table for n rows; ``precision`` "tf32" or "bf16" lets products of float32 be done on tensor cores.

    Args:
        with_blas: whether cuBLAS does what it is quicker at.
        consts_at: bytes from the beginning of slot CONSTS to where this table's constants will lie.
    """
    item = np.dtype(dtype).itemsize
    precision = precision if dtype == "float32" else "highest"
    consts, where = constants(program, n, dtype, consts_at)
    where |= outside(program, slots)
    temps, size = place(program, n, item, ALIGNMENT)
    where |= {index: Place(WORKSPACE, offset) for index, offset in temps.items()}
    grid = _OverGrid(program, n, item, where, Place(WORKSPACE, _ceil(size)), precision)
    if with_blas:
        grid.use_blas()
    for instruction in program.instructions:
        grid.emit(instruction)
    workspace = max(1, grid.scratch.offset + grid.scratch_bytes)
    words, launches = np.array(grid.words or [0], np.int64), tuple(grid.launches)
    used = {slot for one in launches if isinstance(one, Product) for slot in one.slots}
    if not used:
        return Bound(words, launches, consts, workspace)
    begin, fixed = _ceil(workspace), tuple(sorted(used | {WORKSPACE}))
    return Bound(words, launches, consts, begin + blas.WORKSPACE, begin, fixed, not grid.moving & used)


def _ceil(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


class _OverGrid(Rows):
    """A launch for every row, by all blocks of a grid."""

    room_for_chains = chain_table.MOST_SHARED

    def __init__(
        self, program: Program, n: int, item: int, where: dict[int, Place], scratch: Place, precision: str
    ) -> None:
        super().__init__(program, n, item, [], where, scratch)
        self.precision = precision
        self.launches: list[Launch | Product] = []
        self.moving: set[int] = set()  # slots that move from step to step
        self._copies: dict[int, Place] = {}  # of operands of cuBLAS: where they go
        self._made: set[int] = set()  # those that have been copied
        self._with_blas = False

    def use_blas(self) -> None:
        """Have cuBLAS do what it is quicker at; call it before any instruction.

        Its operands are copied where they have to be of bf16, and inputs that move from step to step where that takes
        little: those of a graph cannot move.
        """
        self._with_blas = True
        operands = dict.fromkeys(
            index
            for i in self.program.instructions
            if i.op == "matmul" and self._suits_blas(*self.product_shape(i))
            for index in i.ins[:2]
        )
        buffers = self.program.buffers
        moving = {index for index, b in enumerate(buffers) if b.kind == "input" and b.shape[0] == N}
        moved = [*moving, *(index for index, b in enumerate(buffers) if b.kind == "output")]
        self.moving = {self.places[index].slot for index in moved if index in self.places}
        bf16 = self.precision == "bf16"
        size = 2 if bf16 else self.item
        copied = set(operands) if bf16 else set(operands) & moving
        if not bf16 and sum(self.program.size(index, self.n) for index in copied) * size > MOST_COPIED:
            # but those whose rows lie at addresses of all kinds: cuBLAS chooses by that, and bits would depend on it
            copied = {index for index in copied if self.program.shape(index, self.n)[1] * size % 16}
        temps = {index for index in copied if index in self.program.lifetimes}
        offsets, end = place(self.program, self.n, size, ALIGNMENT, temps)
        for index in operands:
            if index in copied and index not in temps:
                offsets[index] = end
                end += _ceil(self.program.size(index, self.n) * size)
        at = self.scratch.offset
        self._copies = {index: replace(self.scratch, offset=at + offset) for index, offset in offsets.items()}
        self.scratch = replace(self.scratch, offset=at + _ceil(end))

    def _suits_blas(self, m: int, n: int, k: int) -> bool:
        if not m * n * k or (self.precision == "bf16" and min(m, n, k) <= NARROW):
            return False
        return k > OWN_K or -(-m // SMALL.bm) * -(-n // SMALL.bn) > OWN_TILES

    def product(self, i: Instruction) -> None:
        m, n, k = self.product_shape(i)
        if not (self._with_blas and self._suits_blas(m, n, k)):
            super().product(i)
            return
        operands, words = self._finish(i, (m, n))
        as_it_is = not i.code and not i.then and len(i.outs) == 1 and operands[table.OUT].slot == WORKSPACE
        out = operands[table.OUT] if as_it_is else replace(self.scratch, row=n, col=1)
        a, b = (self._for_blas(index) for index in i.ins[:2])
        self.launches.append(Product((m, n, k), a, i.ta, b, i.tb, out))
        if not as_it_is:
            self._partial(m * n * self.item)
            kernel, last = "combine", i.outs[-1]
            if self.precision == "bf16" and last in self._copies:  # rounded while it is at hand
                kernel, operands[table.EXTRA] = "combine_rounded", self._copies[last]
                self._made.add(last)
            row = self.row({**operands, table.A: out}, **words, sizes=(m, n, 0))
            self.over_elements(table.COMBINE, kernel, row, m * n, 4)

    def _for_blas(self, index: int) -> Place:
        """Where an operand of cuBLAS lies, copied or rounded if that has to be."""
        x = self.operand(index)
        copy = self._copies.get(index)
        if copy is None:
            return x.place
        if index not in self._made:
            self._made.add(index)
            if self.precision == "bf16":
                row = self.row({table.OUT: copy, table.A: x.place}, sizes=(x.rows, x.cols, 0))
                blocks = min(-(-x.rows * x.cols // (4 * THREADS)), MOST_BLOCKS)
                self.launches.append(Launch("rounded", row, blocks, THREADS, 0))
            else:
                self.move(x.place, replace(copy, row=x.cols, col=1), (x.rows, x.cols), 0, x.cols)
        return copy

    def sum_rows(self, i: Instruction) -> None:
        """In pieces of rows, if there are many, whose sums are then summed in the same way."""
        x, out = self.operand(i.ins[0]), self.operand(i.outs[0])
        if not x.rows * x.cols:
            super().sum_rows(i)
            return
        lanes = min(MOST_LANES, chain_table.power_of_two(-(-x.cols // 4)))
        below, across = THREADS // lanes, -(-x.cols // (4 * lanes))
        pieces = max(1, min(-(-WANTED_BLOCKS // across), x.rows // (8 * below)))
        piece = -(-x.rows // pieces)
        pieces = -(-x.rows // piece)
        sums = out.place
        if pieces > 1:
            sums = self.scratch
            self._partial(pieces * x.cols * self.item)
        self._sum_pieces(x.place, sums, (x.rows, x.cols), pieces, piece, lanes)
        if pieces > 1:
            self._sum_pieces(sums, out.place, (pieces, x.cols), 1, pieces, lanes)

    def _sum_pieces(self, x: Place, out: Place, shape: tuple[int, int], pieces: int, piece: int, lanes: int) -> None:
        strips = -(-shape[1] // (4 * lanes))
        row = self.row({table.OUT: out, table.A: x}, sizes=(*shape, strips), pieces=pieces, piece=piece, head=lanes)
        self.launches.append(Launch("down", row, min(pieces * strips, MOST_BLOCKS), THREADS, 4 * THREADS * self.item))

    def launch(self, op: int, kernel: str, row: int, blocks: int, threads: int, shared: int) -> None:
        self.launches.append(Launch(kernel, row, min(blocks, MOST_BLOCKS), threads, shared))

    def cut(self, m: int, n: int, k: int) -> Cut:
        """On tensor cores if that is allowed, by tiles as large as keep a card busy."""
        many = -(-m // LARGE.bm) * -(-n // LARGE.bn) >= LARGE_TILES
        large = many and min(m, n) > SMALL.bn and self.item == 4
        tile: Tile | TensorTile
        if self.precision in TENSOR_TILES:
            kernel = f"{self.precision}_{'large' if large else 'small'}"
            tile = TENSOR_TILES[self.precision][large]
        elif large:
            kernel, tile = "product_large", LARGE
        elif -(-m // SMALL.bm) * -(-n // SMALL.bn) <= FEW_TILES:
            kernel, tile = "product_tiny", TINY
        else:
            kernel, tile = "product_small", small_tile(self.item)
        tiles = -(-m // tile.bm) * -(-n // tile.bn)
        pieces = min(-(-k // SHORTEST), -(-WANTED_BLOCKS // tiles)) if tiles < WANTED_BLOCKS // 2 else 1
        piece = -(-max(1, -(-k // max(1, pieces))) // 32) * 32  # whole steps of any tile, and aligned
        return Cut(kernel, tile, piece)

    def cut_chain(self, work: Work) -> tuple[int, list[Part]] | None:
        quads = -(-work.shape[0] * work.shape[1] // chain_table.QUAD)
        enough = max(32, chain_table.power_of_two(quads))  # no threads that have nothing to do, but must be waited for
        for threads in (chain_table.THREADS, 64, 32):
            if threads > enough:
                continue
            made = parts(work, self.scratch, self.item, threads)
            if max(self.registers_of(part, threads) for part in made) <= chain_table.MOST_SHARED:
                return threads, made
        return None
