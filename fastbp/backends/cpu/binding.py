"""Program + number of rows -> the CPU machine's table: addresses as slot and offset, strides, pieces.

Pieces are cut by shape alone, never by the number of threads, so that results do not depend on it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastbp.backends.cpu import machine as cpu
from fastbp.backends.cpu import simd
from fastbp.backends.cpu.gemm import K_BLOCK, TILE_ROWS, TILE_VECTORS
from fastbp.backends.cpu.team import MAX_PIECES
from fastbp.program import Instruction, Program, const_value, place

# An instruction is offered to other threads from SHARE_FROM ns on, as estimated at 100 operations and 100 bytes a ns:
# a step of 784-30-10 on 10 rows took 21 µs with its two 5 µs products shared, 14 µs with them not.
SHARE_FROM = 20_000
SMALL_PIECE = 100_000  # operations of a product below which a piece is not worth the claim
PIECE_ELEMENTS = 16_384  # of elementwise work: stays in the second-level cache, lasts several µs
PIECE_OPERATIONS = 1 << 22  # of a product: large enough to reuse its rows of B, small enough to share
FEWEST_PIECES = 8
ALIGNMENT = 64  # bytes: temps, and the workspace itself, begin on cache lines

Operand = tuple[int, int, int, int]
NOWHERE: Operand = (0, 0, 0, 0)


@dataclass(frozen=True)
class Bound:
    """A Program for one number of rows.

    Attributes:
        table: int64 (instructions, WIDTH).
        consts: the constants, which the table addresses directly.
        workspace: bytes of workspace that it needs.
        shared: whether any instruction is worth more than one thread.
    """

    table: np.ndarray
    consts: np.ndarray
    workspace: int
    shared: bool


class Slots:
    """The numbers of the slots of a Program: one a buffer that comes from outside, and two more."""

    def __init__(self, program: Program) -> None:
        outside = [i for i, b in enumerate(program.buffers) if b.base is None and b.kind not in ("temp", "const")]
        self.of = {index: k for k, index in enumerate(outside)}
        self.workspace = len(outside)
        self.absolute = self.workspace + 1  # address 0: an operand's offset is then its address
        self.count = self.absolute + 1


def bind(program: Program, slots: Slots, n: int, dtype: str) -> Bound:
    """The table for n rows."""
    return _Binder(program, slots, n, dtype).bound()


def _ceil(x: int, multiple: int) -> int:
    return -(-x // multiple) * multiple


class _Binder:
    def __init__(self, program: Program, slots: Slots, n: int, dtype: str) -> None:
        self.program = program
        self.slots = slots
        self.n = n
        self.item = 4 if dtype == "float32" else 8
        self.panel = TILE_VECTORS * simd.VECTOR_BYTES // self.item
        self.temps, self.scratch = place(program, n, self.item, ALIGNMENT)
        self.scratch_size = 0
        consts = [i for i, b in enumerate(program.buffers) if b.kind == "const"]
        self.const_at = {index: k for k, index in enumerate(consts)}
        values = [const_value(program.buffers[i], n) for i in consts]
        self.consts = np.array([*values, 1.0], dtype)  # the last one serves sums over rows
        self.rows: list[list[int]] = []

    def bound(self) -> Bound:
        self.fused = self._fused_updates()
        for instruction in self.program.instructions:
            getattr(self, f"_{instruction.op}")(instruction)
        table = np.array(self.rows, np.int64).reshape(len(self.rows), cpu.WIDTH)
        shared = bool(table[:, cpu.SHARED].any())
        return Bound(table, self.consts, self.scratch + self.scratch_size, shared)

    # ---- fusion of updates into products ----------------------------------------------------------------------

    def _fused_updates(self) -> dict[int, Instruction]:
        """Products that make a part of a gradient that only an update reads: id(product) -> update.

        The update is done on the product's tiles if the product has one block of K and one panel of columns, so that
        a tile is contiguous and the whole gradient, and if nothing reads those parameters later: dX has been taken.
        """
        found: dict[int, Instruction] = {}
        instructions = self.program.instructions
        for update in (i for i in instructions if i.op == "update"):
            (_, whole, *_), written = update.ins, update.outs
            readers = sum(self._lies_in(x, whole) for i in instructions for x in i.ins)
            if readers > 1 or self.program.buffers[whole].kind != "temp":
                continue  # somebody else, or the caller, wants the gradient
            for position, i in enumerate(instructions):
                if i.op != "matmul" or i.code or i.then or self.program.buffers[i.outs[0]].base != whole:
                    continue
                inner = self._shape(i.ins[0])[0 if i.ta else 1]
                later = [x for j in instructions[position:] if j is not update for x in j.ins]
                fits = inner <= K_BLOCK and self._shape(i.outs[0])[1] <= self.panel
                if fits and not any(self._overlaps(x, vector, i.outs[0]) for x in later for vector in written):
                    found[id(i)] = update
        return found

    def _lies_in(self, index: int, whole: int) -> bool:
        return whole in (index, self.program.buffers[index].base)

    def _overlaps(self, index: int, vector: int, part: int) -> bool:
        """Whether a buffer shares elements with the place in theta or a state that a part of the gradient is for."""
        if not self._lies_in(index, vector):
            return False
        first, size = self.program.buffers[part].offset, self.program.size(part, self.n)
        offset = self.program.buffers[index].offset
        return offset < first + size and first < offset + self.program.size(index, self.n)

    # ---- operands ------------------------------------------------------------------------------------------------

    def _shape(self, index: int) -> tuple[int, int]:
        return self.program.shape(index, self.n)

    def _where(self, index: int) -> tuple[int, int]:
        """Slot and offset in bytes."""
        buffer = self.program.buffers[index]
        if buffer.base is not None:
            slot, offset = self._where(buffer.base)
            return slot, offset + buffer.offset * self.item
        if buffer.kind == "const":
            return self.slots.absolute, self.consts.ctypes.data + self.const_at[index] * self.item
        if buffer.kind == "temp":
            return self.slots.workspace, self.temps[index]
        return self.slots.of[index], 0

    def _operand(self, index: int, shape: tuple[int, int] | None = None) -> Operand:
        """An operand with the strides that broadcast it to ``shape``."""
        rows, cols = self._shape(index)
        across = 0 if shape is not None and cols == 1 and shape[1] != 1 else 1
        down = 0 if shape is not None and rows == 1 and shape[0] != 1 else cols
        return (*self._where(index), down, across)

    def _row(
        self,
        op: int,
        sizes: tuple[int, int, int],
        block: tuple[int, int],
        nanoseconds: int,
        operands: dict[int, Operand],
        code: int = -1,
        then: int = -1,
    ) -> None:
        m, n, k = sizes
        m_block, n_block = max(1, block[0]), max(1, block[1])
        while -(-m // m_block) * -(-n // n_block) > MAX_PIECES:
            m_block, n_block = (2 * m_block, n_block) if m // m_block > n // n_block else (m_block, 2 * n_block)
        pieces = -(-m // m_block) * -(-n // n_block)
        if op in (cpu.SUM_ALL, cpu.SUM_COLUMNS):
            pieces = -(-m // m_block)  # a sum of nothing is written too
        shared = int(pieces > 1 and nanoseconds >= SHARE_FROM)
        row = [op, code, then, m, n, k, m_block, n_block, pieces, shared]
        for which in range(6):
            row.extend(operands.get(which, NOWHERE))
        self.rows.append(row)

    def _cost(self, i: Instruction) -> int:
        """A rough estimate in ns, to decide whether to share; nothing else depends on it."""
        operations = self.program.instruction_operations(i, self.n)
        return (operations + self.program.instruction_bytes(i, self.n, self.item)) // 100

    # ---- instructions ----------------------------------------------------------------------------------------------

    def _matmul(self, i: Instruction) -> None:
        out = i.outs[0]
        m, n = self._shape(out)
        k = self._shape(i.ins[0])[0 if i.ta else 1]
        slot, offset, stride, _ = self._operand(i.ins[0])
        a = (slot, offset, 1, stride) if i.ta else (slot, offset, stride, 1)
        b = self._operand(i.ins[1])
        if i.tb:
            b = (*b[:2], n, 1) if min(n, k) == 1 else self._transposed(i.ins[1])
        operands = {cpu.OUT: self._operand(out), cpu.A: a, cpu.B: b}
        if id(i) in self.fused:
            self._product_update((m, n, k), operands, i)
            return
        if i.code:
            operands[cpu.Y] = self._operand(i.ins[2], (m, n))
        if i.then:
            operands[cpu.OUT2] = self._operand(i.outs[1])
        self._product((m, n, k), operands, i)

    def _product(self, sizes: tuple[int, int, int], operands: dict[int, Operand], i: Instruction) -> None:
        code = simd.BINARY_CODES[i.code] if i.code else -1
        then = simd.UNARY_CODES[i.then] if i.then else -1
        self._row(cpu.PRODUCT, sizes, self._tiles(sizes, self._cost(i)), self._cost(i), operands, code, then)

    def _product_update(self, sizes: tuple[int, int, int], operands: dict[int, Operand], i: Instruction) -> None:
        update, n = self.fused[id(i)], sizes[1]
        theta, _, *states, hyper = update.ins
        bytes_in = self.program.buffers[i.outs[0]].offset * self.item
        places = dict(zip((cpu.OUT, cpu.Y, cpu.OUT2), (theta, *states), strict=False))
        for which, index in places.items():
            slot, offset = self._where(index)
            operands[which] = (slot, offset + bytes_in, n, 1)
        operands[cpu.EXTRA] = self._operand(hyper)
        self._row(
            cpu.PRODUCT_UPDATE,
            sizes,
            (self._tiles(sizes, self._cost(i))[0], n),
            self._cost(i),
            operands,
            simd.UPDATE_CODES[update.code],
        )

    def _tiles(self, sizes: tuple[int, int, int], nanoseconds: int) -> tuple[int, int]:
        """Piece of a product: all of it if it is not shared; else halved along its longer side until it is small."""
        m, n, k = sizes
        m_block, n_block = _ceil(m, TILE_ROWS), _ceil(n, self.panel)
        while nanoseconds >= SHARE_FROM:
            work = 2 * m_block * n_block * max(k, 1)
            pieces = -(-m // max(m_block, 1)) * -(-n // max(n_block, 1))
            if work <= SMALL_PIECE or (work <= PIECE_OPERATIONS and pieces >= FEWEST_PIECES):
                return m_block, n_block
            if m_block > TILE_ROWS and (m_block >= n_block or n_block <= self.panel):
                m_block = _ceil(m_block // 2, TILE_ROWS)
            elif n_block > self.panel:
                n_block = _ceil(n_block // 2, self.panel)
            else:
                break
        return m_block, n_block

    def _transposed(self, index: int) -> Operand:
        """Bᵀ as a matrix in the scratch that follows the temps; one product after another uses it."""
        rows, cols = self._shape(index)
        self.scratch_size = max(self.scratch_size, rows * cols * self.item)
        out = (self.slots.workspace, self.scratch, rows, 1)
        self._transposition(index, out)
        return out

    def _transposition(self, index: int, out: Operand) -> None:
        rows, cols = self._shape(index)
        lanes = simd.VECTOR_BYTES // self.item
        block = (lanes * max(1, PIECE_ELEMENTS // max(1, cols * lanes)), cols)
        operands = {cpu.OUT: out, cpu.A: self._operand(index)}
        self._row(cpu.TRANSPOSE, (rows, cols, 0), block, 2 * self.item * rows * cols // 100, operands)

    def _transpose(self, i: Instruction) -> None:
        self._transposition(i.ins[0], self._operand(i.outs[0]))

    def _map(self, i: Instruction) -> None:
        m, n = self._shape(i.outs[0])
        cost = self._cost(i)
        if all(self._shape(index) in ((m, n), (1, 1)) for index in i.ins):
            m, n = 1, m * n  # contiguous and alike: one long row
            operands = [(*self._where(x), 0, int(self.program.size(x, self.n) == n)) for x in (*i.outs, *i.ins)]
            block = (1, PIECE_ELEMENTS)
        else:
            operands = [self._operand(x, (m, n)) for x in (*i.outs, *i.ins)]
            block = (PIECE_ELEMENTS // max(n, 1), n)
        places = dict(zip((cpu.OUT, cpu.A, cpu.B), operands, strict=False))
        if len(i.ins) == 1:
            self._row(cpu.MAP_UNARY, (m, n, 0), block, cost, places, simd.UNARY_CODES[i.code])
        else:
            self._row(cpu.MAP_BINARY, (m, n, 0), block, cost, places, simd.BINARY_CODES[i.code])

    def _sum(self, i: Instruction) -> None:
        rows, cols = self._shape(i.ins[0])
        x = self._operand(i.ins[0])
        out = self._operand(i.outs[0])
        cost = self._cost(i)
        if i.axis is None:
            size = max(1, rows * cols)  # of the piece: there is one even where there is nothing to sum
            self._row(cpu.SUM_ALL, (1, rows * cols, 0), (1, size), cost, {cpu.OUT: out, cpu.A: x})
        elif i.axis == 1:
            block = (PIECE_ELEMENTS // max(cols, 1), cols)
            self._row(cpu.SUM_COLUMNS, (rows, cols, 0), block, cost, {cpu.OUT: out, cpu.A: x})
        else:  # over rows: the product of a row of ones with x, which sums in the products' fixed order
            one = (self.slots.absolute, self.consts.ctypes.data + (len(self.consts) - 1) * self.item, 0, 0)
            operands = {cpu.OUT: out, cpu.A: one, cpu.B: x}
            self._row(cpu.PRODUCT, (1, cols, rows), (1, self.panel), cost, operands)

    def _softmax(self, i: Instruction) -> None:
        m, n = self._shape(i.outs[0])
        operands = {cpu.OUT: self._operand(i.outs[0]), cpu.A: self._operand(i.ins[0])}
        cost = self._cost(i)
        logarithm = int(i.op == "log_softmax")
        self._row(cpu.SOFTMAX, (m, n, 0), (PIECE_ELEMENTS // max(n, 1), n), cost, operands, logarithm)

    _log_softmax = _softmax

    def _onehot(self, i: Instruction) -> None:
        m, n = self._shape(i.outs[0])
        operands = {cpu.OUT: self._operand(i.outs[0]), cpu.A: self._operand(i.ins[0])}
        self._row(cpu.ONEHOT, (m, n, 0), (PIECE_ELEMENTS // max(n, 1), n), self._cost(i), operands)

    def _gather(self, i: Instruction) -> None:
        m, n = self._shape(i.outs[0])
        words = n * (2 if self.program.buffers[i.outs[0]].dtype == "int" else self.item // 4)
        operands = {cpu.OUT: self._operand(i.outs[0]), cpu.A: self._operand(i.ins[0]), cpu.B: self._operand(i.ins[1])}
        self._row(cpu.GATHER, (m, words, 0), (PIECE_ELEMENTS // max(n, 1), words), self._cost(i), operands)

    def _update(self, i: Instruction) -> None:
        theta, g, *states, hyper = i.ins
        vectors = dict(zip((cpu.OUT, cpu.A, cpu.B, cpu.Y), (theta, g, *states), strict=False))
        for first, end in self._not_fused(i):
            operands = {cpu.EXTRA: self._operand(hyper)}
            for which, index in vectors.items():
                slot, offset = self._where(index)
                operands[which] = (slot, offset + first * self.item, end - first, 1)
            cost = self._cost(i) * (end - first) // self.program.size(theta, self.n)
            code = simd.UPDATE_CODES[i.code]
            self._row(cpu.UPDATE, (1, end - first, 0), (1, PIECE_ELEMENTS), cost, operands, code)

    def _not_fused(self, update: Instruction) -> list[tuple[int, int]]:
        """The ranges of theta that no product updates."""
        parts = [i.outs[0] for i in self.program.instructions if self.fused.get(id(i)) is update]
        done = sorted((self.program.buffers[p].offset, self.program.size(p, self.n)) for p in parts)
        ranges, start = [], 0
        for offset, size in [*done, (self.program.size(update.ins[0], self.n), 0)]:
            if offset > start:
                ranges.append((start, offset))
            start = offset + size
        return ranges
