"""Program + number of rows -> the CPU machine's table: addresses as slot and offset, strides, pieces.

Pieces are cut by shape alone, never by the number of threads, so that results do not depend on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from fastbp.backends.cpu import caches, schedule, straight, target
from fastbp.backends.cpu import words as cpu
from fastbp.backends.cpu.chain_table import Builder, Place, Work, added_pieces, flattened
from fastbp.backends.cpu.in_place import taken_over
from fastbp.backends.cpu.target import TILE_ROWS, TILE_VECTORS
from fastbp.backends.cpu.words import MAX_PIECES
from fastbp.backends.division import Division, divide
from fastbp.program import Instruction, Program, Result, const_value, place

# An instruction is offered to other threads from SHARE_FROM ns on, as estimated at 100 operations and 100 bytes a ns,
# 25 bytes where they take much of the second-level cache (3-809 on 122 rows took 1.4 times as long, nothing shared):
# a step of 784-30-10 on 10 rows took 21 µs with its two 5 µs products shared, 14 µs with them not.
SHARE_FROM = 20_000
# ... and from SHARE_ON on if it reads what threads have made together: a thread's first pieces are those whose rows it
# made itself. In a net with skip connections an addition took 8 µs on one thread, and 115 on one of two whose caches
# are far apart, since half of its operands came from the other one's.
SHARE_ON = 4_000
SCATTERED, COPIED = 16, 40  # bytes a ns of rows here and there, and of rows that are copied between matrices
FAR_BYTES = 25  # that a core reads in a ns of what its second-level cache does not keep
SMALL_PIECE = 100_000  # operations of a product below which a piece is not worth the claim
PIECE_ELEMENTS = 16_384  # of elementwise work: stays in the second-level cache, lasts several µs
PIECE_OPERATIONS = 1 << 22  # of a product: large enough to reuse its rows of B, small enough to share
FEWEST_PIECES, FEW_PIECES, MANY_PIECES = 8, 16, 64
ODD_PIECES = 16  # below which one more is better than an odd number, of which one of two threads does one more anyway
ALIGNMENT = 64  # bytes: temps, and the workspace itself, begin on cache lines

# Products add up chains of K_BLOCK multiply-adds. One chain over all of K would do as well, but its rounding error
# grows faster. Blocks of 256 cost next to nothing (a step of 1024x4: 249 ms against 245 with 512 and 257 with 128);
# products with few columns have shorter ones, since there array code with its several sums a column is more exact too.
K_BLOCK = 256
NARROW, NARROW_K_BLOCK = 16, 64
# Packing pays where rows of B, or columns of Aᵀ, lie further apart than FAR bytes (each on a page of its own, all in
# the same few sets of the cache), and what is copied is used often enough.
FAR = 2048
# Products with so many parameters are done in bfloat16, if that is allowed: more than any that may go depth first, so
# that a row of the output has the same bits in a batch of any size; and sums over so many rows.
PAIRED_PARAMETERS, PAIRED_K = 65_536, 32
PACKED_ROWS, PACKED_K = 64, 128
# ... and with 16 registers. A piece of a forward product has rows enough that each uses what is copied of B often, and
# its last tile is whole.
SHORT_PACKED_K = 32
NEVER = 1 << 40  # rows
TALL_PIECE, TALLEST_PIECE, LOWEST_PIECE, LOWEST_OF_SUMS = 132, 1032, 66, 36
TALL_PIECES = ((513, TALL_PIECE), (2048, 258), (NEVER, 516))  # of Aᵀ B, for the first number that is above its rows
COLUMN_PANELS = 4  # of a piece, at least
# Panels of columns from which on products go by rows of B (few_rows.py), by their rows of A, or of Aᵀ; and those with
# so many summands at most. Narrower ones took up to 2.8 times as long then.
BY_ROWS_FROM, SUMMED_FROM = {1: 2, 2: 5, 3: NEVER, 4: NEVER}, {1: 2, 2: 3, 3: 8, 4: 8}
# Vectors of columns up to which a matrix beside one row is walked down in panels, however large it is, and if its rows
# are not whole vectors; how many second levels a wider one may take, in a product of whole vectors and otherwise
ONE_PANEL, RAGGED_ROW, NEAR_WHOLE, NEAR = 8, 16, 6, 2
FEW_SUMMANDS_FROM = ((4, 4), (6, 24), (10, 40))
FEW_IN_CHUNK = ((16, 24), (28, 32))  # depth first with 16 registers
WIDE_PANELS, WIDE_SUMMANDS = 40, 24  # and where the second level does not hold C
SUMMED_PIECE, PANELS_OF_PIECE = 8, 4  # panels of a piece of a product with few rows of Aᵀ, and of one row by panels
UNDIVIDED_ROWS = 1024  # of Aᵀ B, from which on pieces have whole rows: each line of B that is copied serves more then
UNDIVIDED = 8  # panels of a forward product up to which it is shared by rows alone, if there are two tall pieces
# Rows from which on copying panels of B pays for the loops that know where they lie: where the second level holds
# neither B nor a panel, where the first does not, where B would stay in it anyway; of Aᵀ B where it would, and where A
# is packed too.
COPIED_FARTHEST, COPIED_FAR, COPIED_NEAR, COPIED_FOR_SUMS, COPIED_WITH_A = 5, 24, 48, 96, 12
# Columns up to which A B and A Bᵀ are dot products, from how many summands on, and rows of a piece at least: 216 x 2 x
# 373 took 9 µs so, 22 in tiles; with Bᵀ 8 and 25; 216 x 4 x 373 18 and 22, with Bᵀ 16 and 25; 6 columns gain nothing.
DOT_COLUMNS, DOT_COLUMNS_TURNED, DOT_SUMMANDS, NARROW_ROWS = 3, 4, 48, 64
LONG_COLUMN = 128  # numbers
FEW_SUMMANDS = 6  # up to which a gradient with SGD is made row by row, if rows are short
MOST_TURNED, SHORT_TURNED = 8, 32  # rows of A up to which Bᵀ is not copied; K up to which they are cpu.MOST_ROWS
PACKED_COLUMNS = 96  # copying a line of A costs about 8 cycles, and 96 columns use it for 96
FAR_COLUMNS = 1024  # bytes from one column of Aᵀ to the next, beyond which it pays even if the first level keeps them

Operand = tuple[int, int, int, int]
NOWHERE: Operand = (0, 0, 0, 0)


@dataclass(frozen=True)
class Line:
    """An instruction as the machine does it, for those who want to know where a step's time goes.

    Attributes:
        what: the operation with its functions.
        shape: M, N and, of a product, K.
        operations, bytes: of all its pieces.
        schedule: how it is done: pieces, packing, chunk of rows.
        inside: whether it is done a chunk of rows at a time, inside the line before.
        threads: whether threads share it.
    """

    what: str
    shape: tuple[int, ...]
    operations: int
    bytes: int
    schedule: str
    inside: bool
    shared: bool


@dataclass(frozen=True)
class Bound:
    """A Program for one number of rows.

    Attributes:
        table: int64 (instructions, WIDTH).
        kept: arrays that the table has the addresses of.
        workspace: bytes of workspace that it needs.
        private: bytes that each thread needs for itself.
        shared: whether any instruction is worth more than one thread.
        lines: what the instructions are; the clock counts them by their position here.
        dtype: of floats.
        rows: of the batch.
    """

    table: np.ndarray
    kept: tuple[np.ndarray, ...]
    workspace: int
    private: int
    shared: bool
    lines: tuple[Line, ...]
    dtype: str
    rows: int

    @cached_property
    def suits_code(self) -> bool:
        """Whether it is so small that code of its own may be worth it."""
        return straight.suits(self.table, self.rows, self.dtype)

    @cached_property
    def entry(self) -> int:
        """Address of the table's address and length."""
        return int(self._entry.ctypes.data)

    @cached_property
    def _entry(self) -> np.ndarray:
        return np.array([self.table.ctypes.data, len(self.table)], np.int64)


class Slots:
    """The numbers of the slots of a Program: those of the machine, one a buffer from outside, and one more."""

    def __init__(self, program: Program) -> None:
        outside = [i for i, b in enumerate(program.buffers) if b.base is None and b.kind not in ("temp", "const")]
        self.of = {index: cpu.PARTIALS + 1 + k for k, index in enumerate(outside)}
        self.absolute = cpu.PARTIALS + 1 + len(outside)  # address 0: an operand's offset is then its address
        self.count = self.absolute + 1


def bind(program: Program, slots: Slots, n: int, dtype: str, precision: str = "highest") -> Bound:
    """The table for n rows; ``precision`` "bf16" lets large products be done in bfloat16, where the CPU can."""
    return _Binder(program, slots, n, dtype, precision).bound()


def _ceil(x: int, multiple: int) -> int:
    return -(-x // multiple) * multiple


def block_of(k: int, n: int) -> int:
    """The length of the blocks of K: about K_BLOCK, and all alike, for a short last one would cost as much to add."""
    about = NARROW_K_BLOCK if n <= NARROW else K_BLOCK
    blocks = max(1, (k + about // 2) // about)
    return max(1, -(-k // blocks))


class _Common:
    """What the tables of one Program have in common.

    Attributes:
        places: slot and offset in bytes of every buffer that is not a part of another.
        scratch: bytes of private memory that packing needs, so far.
        kept: arrays that the table has the addresses of.
        lines: what the rows are, so far.
    """

    def __init__(self, program: Program, slots: Slots, n: int, dtype: str, precision: str) -> None:
        self.program = program
        self.slots = slots
        self.n = n
        self.pairs = precision == "bf16" and dtype == "float32" and target.HAS_BF16
        self.dtype = dtype
        self.item = 4 if dtype == "float32" else 8
        self.panel = TILE_VECTORS * target.VECTOR_BYTES // self.item
        consts = [i for i, b in enumerate(program.buffers) if b.kind == "const"]
        # the last three serve sums over rows, the zeros beside a matrix, and the log Σ exp of nothing
        self.consts = np.array([*(const_value(program.buffers[i], n) for i in consts), 1.0, 0.0, -np.inf], dtype)
        self.places = {index: (slot, 0) for index, slot in slots.of.items()}
        for k, index in enumerate(consts):
            self.places[index] = (slots.absolute, self.consts.ctypes.data + k * self.item)
        at = self.consts.ctypes.data + len(consts) * self.item
        self.one: Operand = (slots.absolute, at, 0, 0)
        self.zero: Operand = (slots.absolute, at + self.item, 0, 0)
        self.lowest: Operand = (slots.absolute, at + 2 * self.item, 0, 0)
        self.scratch = 0
        self.kept: list[np.ndarray] = [self.consts]
        self.lines: list[Line] = []

    @cached_property
    def deltas(self) -> set[int]:
        """See :func:`deltas`."""
        return deltas(self.program)


class _Binder:
    """A Program's table for n rows: depth first where that pays, else an instruction after the other."""

    def __init__(self, program: Program, slots: Slots, n: int, dtype: str, precision: str) -> None:
        self.program = program
        self.n = n
        self.common = _Common(program, slots, n, dtype, precision)

    def bound(self) -> Bound:
        division = divide(self.program)
        chunks = schedule.chunks_for(self.program, division, self.n) if division is not None else None
        if division is not None and chunks is not None:
            table, workspace, private = self._depth_first(division, chunks)
        else:
            table, workspace, private = self._in_order()
        words = table.words()
        private = _ceil(max(private, self.common.scratch), ALIGNMENT)
        shared = bool(words[:, cpu.SHARED].any())
        return Bound(
            words, tuple(self.common.kept), workspace, private, shared, tuple(self.common.lines), self.common.dtype,
            self.n,
        )  # fmt: skip

    def _in_order(self) -> tuple[_Table, int, int]:
        """An instruction after the other, each for all rows; bytes of workspace and of private memory."""
        program = self.program
        temps, size = place(program, self.n, self.common.item, ALIGNMENT, taken_over=taken_over(program))
        self.common.places |= {index: (cpu.WORKSPACE, offset) for index, offset in temps.items()}
        table = _Table(self.common, self.n, scratch=size)
        table.emit(self.program.instructions, fused_updates(self.program, self.n, self.common.panel, self.common.item))
        return table, size + table.scratch_needed, 0

    def _depth_first(self, division: Division, chunks: schedule.Chunks) -> tuple[_Table, int, int]:
        """Head, chunks, the sums over the pieces, tail; bytes of workspace and of private memory.

        The workspace begins with a slot of sums a piece; all temps without rows follow, then parameters transposed or
        copied into panels.
        """
        common, program, n = self.common, self.program, self.n
        pieces = -(-n // chunks.piece)
        in_slot, slot_bytes = self._sums_in_slot(division)
        workspace = pieces * slot_bytes
        for index in program.lifetimes:
            if index not in division.rows or index in division.ahead:
                common.places[index] = (cpu.WORKSPACE, workspace)
                workspace += _ceil(program.size(index, n) * common.item, ALIGNMENT)
        table = _Table(common, n, scratch=workspace)
        table.emit(division.head)
        workspace += table.scratch_needed
        table.scratch, table.scratch_needed = workspace, 0
        ready: dict[tuple[int, bool], Operand] = {}
        for i in division.body:
            if i.op != "matmul" or i.ta or (i.ins[1], i.tb) in ready:
                continue
            rows, cols = program.shape(i.ins[1], n)
            if i.tb and goes_by_dots(rows, cols, True):
                continue
            if min(rows, cols) > 1 if i.tb else target.NARROW and rows >= SHORT_PACKED_K and cols > common.panel:
                ready[i.ins[1], i.tb] = table.transposed(i) if i.tb else table.in_panels(i)
                table.scratch += _ceil(table.scratch_size, ALIGNMENT)
                table.scratch_size = 0
        private = self._chunks(table, division, chunks, ready, in_slot, slot_bytes)
        updated = table.add_pieces(division, in_slot, pieces, slot_bytes // common.item)
        table.emit(division.tail, updated=updated)
        return table, table.scratch + max(table.scratch_size, table.scratch_needed), private

    def _sums_in_slot(self, division: Division) -> tuple[dict[int, int], int]:
        """Offset in bytes of every sum in a slot, and the slot's size; parts of one buffer lie as they do there."""
        buffers, item = self.program.buffers, self.common.item
        offsets, at = {}, 0
        for index in sorted(division.sums, key=lambda b: (_root(self.program, b), buffers[b].offset)):
            offsets[index] = at
            at += self.program.size(index, self.n) * item
        return offsets, _ceil(at, ALIGNMENT)

    def _chunks(
        self,
        table: _Table,
        division: Division,
        chunks: schedule.Chunks,
        ready: dict[tuple[int, bool], Operand],
        in_slot: dict[int, int],
        slot_bytes: int,
    ) -> int:
        """The row that does the body, with tables for a whole chunk and for the rest; bytes of private memory."""
        common, program, n = self.common, self.program, self.n
        part = Program(program.buffers, division.body, {}, program.kept)
        temps, size = place(part, chunks.rows, common.item, ALIGNMENT, division.rows, taken_over(part))
        sums = {index: (cpu.PARTIALS, offset) for index, offset in in_slot.items()}
        moves = np.zeros((common.slots.count, 2), np.int64)
        moves[cpu.PARTIALS, 1] = slot_bytes
        for index, slot in common.slots.of.items():
            buffer = program.buffers[index]
            if buffer.shape[0].per_row and buffer.kind != "data":
                moves[slot, 0] = buffer.shape[1].fixed * (8 if buffer.dtype == "int" else common.item)
        pieces = -(-n // chunks.piece)
        number = len(common.lines)
        common.lines.append(
            Line(
                "depth first",
                (n,),
                part.operations(n),
                part.bytes(n, common.item),
                f"{pieces} of {chunks.piece} rows, {chunks.rows} at a time",
                False,
                pieces > 1,
            )
        )
        tables: list[np.ndarray] = []
        scratch = 0  # what instructions need comes first in a thread's memory: known when they have been laid out once
        for rows in 2 * (n % chunks.rows or chunks.rows, chunks.rows):
            del common.lines[number + 1 :]  # all do the same: those of a whole chunk stay
            common.places |= {index: (cpu.PRIVATE, scratch + offset) for index, offset in temps.items()}
            inner = _Table(common, rows, ready=ready, sums=sums, like=chunks.rows)
            inner.emit(division.body)
            scratch = max(scratch, _ceil(common.scratch, ALIGNMENT))
            tables.append(inner.words())
        rest, whole = tables[2:]
        tables = [whole, rest]
        common.kept += [*tables, moves]
        table.chunks(number, chunks, tables, moves)
        return cpu.chunk_header(common.slots.count) + scratch + size


def _root(program: Program, index: int) -> int:
    base = program.buffers[index].base
    return index if base is None else base


# ---- fusion of updates into products -------------------------------------------------------------------------------


def fused_updates(program: Program, n: int, panel: int, item: int) -> dict[int, Instruction]:
    """Products and sums that make a part of a gradient that only an update reads: id(instruction) -> update.

    SGD is done on a tile in registers. Other rules are done on tiles of products that have one panel of columns, so
    that a tile is contiguous. K has to be one stretch, and nothing may read those parameters later: dX has been taken.
    """
    found: dict[int, Instruction] = {}
    for update in (i for i in program.instructions if i.op == "update"):
        whole = only_for_update(program, update)
        if whole is None:
            continue
        for position, i in enumerate(program.instructions):
            product = i.op == "matmul" and not i.code and not i.then
            sums = i.op == "sum" and update.code == "sgd"
            if not (product or sums) or program.buffers[i.outs[0]].base != whole:
                continue
            k = program.shape(i.ins[0], n)[0 if i.ta or sums else 1]
            rows, cols = program.shape(i.outs[0], n)
            if sums and is_long_column(k, cols):
                continue
            cols = rows if cols == 1 else cols  # a column is done as a row
            later = [x for j in program.instructions[position:] if j is not update for x in j.ins]
            fits = k <= longest_of(k, cols, panel, item) and (update.code == "sgd" or cols <= panel)
            first, size = program.buffers[i.outs[0]].offset, program.size(i.outs[0], n)
            if fits and not reads_range(program, n, later, update, first, size):
                found[id(i)] = update
    return found


def bias_sums(program: Program, n: int, fused: dict[int, Instruction]) -> dict[int, Instruction]:
    """Products Aᵀ dZ and the sums of dZ's rows that lie right behind them, dW and db: id(product) -> sum.

    Such a sum is one more row of the product, with ones for A. Either both have an update fused into them or none.
    A long column is summed as a chain.
    """
    found: dict[int, Instruction] = {}
    sums: dict[int, list[Instruction]] = {}  # of a matrix, so far
    read: set[int] = set()  # by an instruction that came before
    for i in program.instructions:
        is_gradient = i.op == "matmul" and i.ta and not i.tb and not i.code and not i.then
        if is_gradient and not is_long_column(*program.shape(i.ins[1], n)):
            out = program.buffers[i.outs[0]]
            behind = out.offset + out.shape[0].fixed * out.shape[1].fixed
            for j in sums.get(i.ins[1], []):
                to = program.buffers[j.outs[0]]
                adjacent = to.base is not None and (to.base, to.offset) == (out.base, behind)
                if adjacent and fused.get(id(i)) is fused.get(id(j)) and j.outs[0] not in read:
                    found[id(i)] = j
        elif i.op == "sum":
            sums.setdefault(i.ins[0], []).append(i)
        read.update(i.ins)
    return found


def deltas(program: Program) -> set[int]:
    """The products dZ Wᵀ that are steps of a backward pass: X W came before, and there is Xᵀ dZ. By id."""
    products = [i for i in program.instructions if i.op == "matmul"]
    of_gradients: dict[int, set[int]] = {}  # X by dZ
    for i in products:
        if i.ta and not i.tb:
            of_gradients.setdefault(i.ins[1], set()).add(i.ins[0])
    found: set[int] = set()
    forward: dict[int, set[int]] = {}  # X by W, so far
    for i in products:
        left, right = i.ins[:2]
        if not i.ta and not i.tb:
            forward.setdefault(right, set()).add(left)
        elif not i.ta and forward.get(right, set()) & of_gradients.get(left, set()):
            found.add(id(i))
    return found


def only_for_update(program: Program, update: Instruction) -> int | None:
    """The gradient of an update, if nobody else wants it."""
    whole = update.ins[1]
    readers = sum(_root(program, x) == whole for i in program.instructions for x in i.ins)
    return whole if readers == 1 and program.buffers[whole].kind == "temp" else None


def reads_range(program: Program, n: int, reads: list[int], update: Instruction, first: int, size: int) -> bool:
    """Whether any of the buffers shares one of ``size`` elements, from ``first`` on, with theta or a state."""
    for x in reads:
        for vector in update.outs:
            offset = program.buffers[x].offset
            if _root(program, x) == vector and offset < first + size and first < offset + program.size(x, n):
                return True
    return False


def longest_of(k: int, n: int, panel: int, item: int) -> int:
    """The longest stretch of K, in whole blocks, of which a panel of B takes a quarter of the second-level cache.

    No longer than K takes, for what is packed has room for a stretch.
    """
    block = block_of(k, n)
    return min(block * max(1, caches.second_level() // (4 * panel * item) // block), _ceil(max(k, 1), block))


def is_long_column(rows: int, cols: int) -> bool:
    """Whether a sum over rows is one of a column that is worth vectors of running sums, as a chain has them.

    As a product it would add one number at a time, each after the one before.
    """
    return cols == 1 and rows >= LONG_COLUMN


def goes_by_dots(n: int, k: int, turned: bool) -> bool:
    """Whether a product A B or A Bᵀ with N columns is made of dot products, however many rows it has."""
    return target.NARROW and 1 < n <= (DOT_COLUMNS_TURNED if turned else DOT_COLUMNS) and k >= DOT_SUMMANDS


def _few_pieces(sizes: tuple[int, int], block: tuple[int, int]) -> tuple[int, int]:
    """The block, doubled until there are no more pieces than a team can be handed."""
    (m, n), (m_block, n_block) = sizes, (max(1, b) for b in block)
    while -(-m // m_block) * -(-n // n_block) > MAX_PIECES:
        m_block, n_block = (2 * m_block, n_block) if m // m_block > n // n_block else (m_block, 2 * n_block)
    return m_block, n_block


class _Table:
    """Rows of the machine's table.

    Attributes:
        scratch, scratch_size, scratch_needed: offset of memory for transposed operands and sums of pieces in the
            workspace, the bytes in use, and the most that were.
    """

    def __init__(
        self,
        common: _Common,
        n: int,
        scratch: int = 0,
        ready: dict[tuple[int, bool], Operand] | None = None,
        sums: dict[int, tuple[int, int]] | None = None,
        like: int = 0,
    ) -> None:
        """For n rows. The last three are for the tables of chunks.

        Args:
            ready: right operands that are in panels already, by buffer and whether as their transpose.
            sums: where sums go.
            like: rows of a whole chunk: the rest has the same lines, which the clock counts together.
        """
        self.common = common
        self.program = common.program
        self.item = common.item
        self.panel = common.panel
        self.n = n
        self.scratch = scratch
        self.scratch_size = self.scratch_needed = 0
        self.in_chunk = ready is not None
        self.ready = ready or {}
        self.sums = sums or {}
        self.like = like or n
        self.rows: list[list[int]] = []
        self.divided: set[int] = set()  # buffers that threads have written together
        self.fused: dict[int, Instruction] = {}
        self.updated: dict[int, list[tuple[int, int]]] = {}
        self.biases: dict[int, Instruction] = {}

    def words(self) -> np.ndarray:
        return np.array(self.rows, np.int64).reshape(len(self.rows), cpu.WIDTH)

    def emit(
        self,
        instructions: Iterable[Instruction],
        fused: dict[int, Instruction] | None = None,
        updated: dict[int, list[tuple[int, int]]] | None = None,
    ) -> None:
        """Rows for instructions. Those in ``fused`` do their part of an update; ``updated`` is what is done of each."""
        self.fused = fused or {}
        self.updated = updated or {}
        self.biases = bias_sums(self.program, self.like, self.fused)
        sums = {id(i) for i in self.biases.values()}
        for instruction in instructions:
            if id(instruction) in sums:
                continue  # it comes with its product
            self.instruction = instruction
            getattr(self, f"_{instruction.op}")(instruction)

    # ---- operands ------------------------------------------------------------------------------------------------

    def _shape(self, index: int) -> tuple[int, int]:
        return self.program.shape(index, self.n)

    def _where(self, index: int) -> tuple[int, int]:
        """Slot and offset in bytes."""
        if index in self.sums:
            return self.sums[index]
        buffer = self.program.buffers[index]
        if buffer.base is not None:
            slot, offset = self._where(buffer.base)
            return slot, offset + buffer.offset * self.item
        return self.common.places[index]

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
        blocking: tuple[int, int, int, int, int] = (0, 0, 0, 0, 0),
        what: str = "",
        notes: Iterable[str] = (),
    ) -> None:
        m, n, k = sizes
        m_block, n_block = _few_pieces((m, n), block)
        pieces = -(-m // m_block) * -(-n // n_block)
        if op == cpu.CHAIN:
            pieces = max(1, pieces)  # a sum of nothing is written too
        shared = int(pieces > 1 and self._is_shared(nanoseconds))
        number = len(self.common.lines)
        sums = int(any(index in self.sums for index in self.instruction.outs))
        row = [op, code, then, m, n, k, m_block, n_block, pieces, shared, *blocking, sums, number]
        for which in range(6):
            row.extend(operands.get(which, NOWHERE))
        self.rows.append(row)
        self.common.lines.append(self._line(op, sizes, pieces, bool(shared), what, notes))

    def _is_shared(self, nanoseconds: int) -> bool:
        """Whether an instruction that takes so long is offered to other threads."""
        if not self._is_worth_sharing(nanoseconds):
            return False
        self.divided.update(_root(self.program, index) for index in self.instruction.outs)
        return True

    def _is_worth_sharing(self, nanoseconds: int) -> bool:
        goes_on = any(_root(self.program, index) in self.divided for index in self.instruction.ins)
        return not self.in_chunk and nanoseconds >= (SHARE_ON if goes_on else SHARE_FROM)

    def _is_far_larger(self, elements: int) -> bool:
        """Whether a matrix that is read once a step is worth several threads: if no core's cache keeps it.

        One that it keeps would be cut in other ways forward, backward and in the update, and change caches every time:
        12-160-2-685-668-8 on one row took 488 µs on two threads whose caches are far apart, 140 on one.
        """
        return elements * self.item > 4 * caches.second_level()

    def _line(
        self, op: int, sizes: tuple[int, int, int], pieces: int, shared: bool, what: str, notes: Iterable[str]
    ) -> Line:
        i, total = self.instruction, self.common.n
        operations, moved = 0, 2 * self.item * sizes[0] * sizes[1]
        shape: tuple[int, ...] = sizes[:2]
        if op in (cpu.PRODUCT, cpu.PRODUCT_UPDATE):
            shape = sizes if what else (*self._shape(i.outs[0]), sizes[2])  # even if it is done as its transpose
        if not what:
            what = i.title
            parts = [i, *([self.biases[id(i)]] if id(i) in self.biases else [])]
            operations = sum(self.program.instruction_operations(x, total) for x in parts)
            moved = self.program.instruction_bytes(i, total, self.item)
        schedule = [f"{pieces} pieces" if pieces > 1 else "", *notes]
        return Line(what, shape, operations, moved, ", ".join(filter(None, schedule)), self.in_chunk, shared)

    def _cost(self, i: Instruction) -> int:
        """A rough estimate in ns, to decide whether to share; nothing else depends on it."""
        operations = self.program.instruction_operations(i, self.n)
        moved = self.program.instruction_bytes(i, self.n, self.item)
        if i.op in ("gather", "take", "scatter_add"):
            return operations // 100 + moved // SCATTERED
        near = 4 * moved <= caches.second_level()
        return operations // 100 + moved // (100 if near else FAR_BYTES)

    # ---- products --------------------------------------------------------------------------------------------------

    def _matmul(self, i: Instruction) -> None:
        out = i.outs[0]
        m, n = self._shape(out)
        k = self._shape(i.ins[0])[0 if i.ta else 1]
        slot, offset, stride, _ = self._operand(i.ins[0])
        a = (slot, offset, 1, stride) if i.ta else (slot, offset, stride, 1)
        b, b_panel, how = self._operand(i.ins[1]), self.panel, 0
        if i.tb and min(n, k) == 1:
            b = (*b[:2], n, 1)
        elif (i.ins[1], i.tb) in self.ready:
            b, b_panel = self.ready[i.ins[1], i.tb], k * self.panel
        elif i.tb:
            how = cpu.PACK_T
        operands = {cpu.OUT: self._operand(out), cpu.A: a, cpu.B: b}
        code, then = cpu.BINARY_CODES[i.code] if i.code else -1, -1
        if i.code:
            operands[cpu.Y] = self._operand(i.ins[2], (m, n))
            plain, _, act = i.code.partition("_")
            two = bool(act and i.then)  # only one function fits behind a bias that is added in registers
            if plain == "add" and self._shape(i.ins[2]) == (1, n) and not two:
                how, code = how | cpu.BIAS, -1
                if act:
                    then = cpu.UNARY_CODES[act]
                    operands[cpu.OUT2] = operands[cpu.OUT]
        if i.then:
            then = cpu.UNARY_CODES[i.then]
            operands[cpu.OUT2] = self._operand(i.outs[-1])
        if id(i) in self.biases:
            how |= cpu.ONES
            operands[cpu.Y] = self.common.one
        if n == 1 and (m > 1 or not i.ta):  # the same for one row as for many, so that its bits are
            self._column(i, (m, k), operands, how, code, then)
        elif id(i) in self.fused:
            self._updating(i, (m, n, k), operands, b_panel, how)
        elif not i.ta and goes_by_dots(n, k, i.tb):
            self._narrow_product((m, n, k), operands, self._cost(i), how | cpu.FEW_COLUMNS, code, then)
        elif self._has_few_summands((m, n, k), i) and b_panel == self.panel:
            self._outer_product((m, n, k), operands, self._cost(i), how, code, then)
        else:
            self._product((m, n, k), operands, b_panel, self._cost(i), how, code, then)

    def _column(
        self, i: Instruction, sizes: tuple[int, int], operands: dict[int, Operand], how: int, code: int, then: int
    ) -> None:
        """A product with one column, done as its transpose, one row: a column would leave most of a vector empty.

        bᵀ A for Aᵀ b, to the same bits, and for a column A without gaps, which is a row; for any other A b the dot
        products of A's rows with b.
        """
        m, k = sizes
        a, b = operands[cpu.A], operands[cpu.B]
        turned = {which: (*place[:2], 0, place[2]) for which, place in operands.items()}  # a column is a row
        if how & cpu.ONES:  # and what lay below it is beside it
            how = how & ~cpu.ONES | cpu.TOTAL
        turned[cpu.A] = (*b[:2], 0, b[2])
        if i.ta or (k == 1 and a[2] == 1):
            if how & cpu.BIAS:
                how, code = how & ~cpu.BIAS, cpu.BINARY_CODES["add"]
            turned[cpu.B] = (*a[:2], a[3] if i.ta else m, 1)
            if id(i) in self.fused:
                self._updating(i, (1, m, k), turned, self.panel, how)
            else:
                self._product((1, m, k), turned, self.panel, self._cost(i), how, code, then)
            return
        turned[cpu.B] = (*a[:2], a[2], 1)
        moved = m * k * self.item
        cost = moved // FAR_BYTES if moved > caches.second_level() else self._cost(i)
        self._product_with_few_rows((1, m, k), turned, cost, how | cpu.PACK_T | cpu.DOTS, code, then)

    def _updating(
        self, i: Instruction, sizes: tuple[int, int, int], operands: dict[int, Operand], panel: int, how: int = 0
    ) -> None:
        """A product or sum that makes a part of the gradient, with its part of the update."""
        update, n = self.fused[id(i)], sizes[1]
        theta, _, *states, hyper = update.ins
        first = self.program.buffers[i.outs[0]].offset
        size = self.program.size(i.outs[0], self.n) + (n if how & cpu.ONES else bool(how & cpu.TOTAL))
        self.updated.setdefault(id(update), []).append((first, size))
        for which, index in zip((cpu.OUT, cpu.Y, cpu.OUT2), (theta, *states), strict=False):
            slot, offset = self._where(index)
            operands[which] = (slot, offset + first * self.item, n, 1)
        operands[cpu.EXTRA] = self._operand(hyper)
        most = cpu.MOST_SUMMANDS if n >= COLUMN_PANELS * self.panel else FEW_SUMMANDS
        narrow = sizes[2] == 1 and 1 < n <= cpu.MOST_UPDATED
        if update.code == "sgd" and 0 < sizes[2] <= most and (n > self.panel or narrow):  # to the same bits as tiles
            pieces = FEWEST_PIECES if self._is_far_larger(sizes[0] * n) else 1
            if sizes[2] == 1 and self._suits_panels(sizes[0], n, NEAR):
                how |= cpu.BY_PANELS
            blocking = (block_of(sizes[2], n), 0, 0, how | cpu.SGD | cpu.SUMMANDS, self.panel)
            order = "panel by panel" if how & cpu.BY_PANELS else "row by row"
            notes = ("sgd", order, *(["with db"] if how & (cpu.ONES | cpu.TOTAL) else []))
            block = (-(-sizes[0] // pieces), n)
            self._row(cpu.PRODUCT, sizes, block, self._cost(i), operands, blocking=blocking, notes=notes)
            return
        if update.code == "sgd":
            self._product(sizes, operands, panel, self._cost(i), how | cpu.SGD)
            return
        m_block, _ = self._tiles(sizes, self._cost(i), TILE_ROWS, self.panel)
        code = cpu.UPDATE_CODES[update.code]
        blocking = (block_of(sizes[2], n), 0, 0, 0, panel)
        notes = (update.code,)
        self._row(cpu.PRODUCT_UPDATE, sizes, (m_block, n), self._cost(i), operands, code, -1, blocking, notes=notes)

    def _product(
        self,
        sizes: tuple[int, int, int],
        operands: dict[int, Operand],
        b_panel: int,
        cost: int,
        how: int = 0,
        code: int = -1,
        then: int = -1,
        what: str = "",
    ) -> None:
        """A product with its blocking; see gemm.product."""
        m, n, k = sizes
        (_, _, a_row, a_col), (_, _, b_row, _) = operands[cpu.A], operands[cpu.B]
        parameters = m * n if a_row == 1 else k * n
        if self.common.pairs and not self.in_chunk and parameters > PAIRED_PARAMETERS and k >= PAIRED_K and a_row:
            self._product_of_pairs(sizes, operands, cost, how, code, then)
            return
        turned = bool(how & cpu.PACK_T)
        if (a_row == 1 or not self.in_chunk) and self._has_few_rows(sizes, turned, b_panel, a_row != 1):
            self._product_with_few_rows(sizes, operands, cost, how, code, then, what)
            return
        first, second = caches.first_level(), caches.second_level()
        longest = longest_of(k, n, self.panel, self.item)
        forward = a_row != 1
        plain_b = not turned and b_panel == self.panel and n > self.panel and not self.in_chunk
        far_b, copied_from = self._copies_of_b(b_row * self.item, n, k, forward) if plain_b else (False, NEVER)
        far_a = a_row == 1 and not self.in_chunk and self._is_far_a(a_col * self.item, m, n, k)
        whole_b = 2 * k * _ceil(n, self.panel) * self.item <= second  # all of B fits the second-level cache
        lowest = 4 * PACKED_ROWS if far_b or far_a or turned else TILE_ROWS
        narrowest = _ceil(-(-n // 2), self.panel) if far_a else self.panel
        if copied_from == COPIED_NEAR:
            lowest = LOWEST_PIECE
        elif copied_from == COPIED_FOR_SUMS and not far_a:
            lowest, narrowest = LOWEST_OF_SUMS, COLUMN_PANELS * self.panel
        elif target.NARROW and far_a:
            halves = 1 if n < 2 * PACKED_COLUMNS or m >= UNDIVIDED_ROWS else 2
            narrowest = _ceil(-(-n // halves), self.panel)
            lowest = max(LOWEST_PIECE, _ceil(-(-m // FEWEST_PIECES), TILE_ROWS))
            if far_b:
                lowest = next(piece for rows, piece in TALL_PIECES if m < rows)
        elif target.NARROW and (far_b or (turned and not whole_b)):
            narrowest = COLUMN_PANELS * self.panel
            if n <= UNDIVIDED * self.panel and m >= 2 * TALL_PIECE:
                narrowest = _ceil(n, self.panel)
            down = -(-FEWEST_PIECES // -(-n // narrowest))  # pieces below each other, if there shall be a few
            lowest = min(TALLEST_PIECE, max(TALL_PIECE, _ceil(-(-m // down), TILE_ROWS)))
        if target.NARROW and (far_a or far_b) and n <= narrowest:  # no other way to share
            lowest = min(lowest, _ceil(-(-m // 2), TILE_ROWS))
        if 2 * k * n * self.item <= first or (turned and whole_b and m > lowest):
            narrowest = _ceil(n, self.panel)  # B stays in a cache: whole rows, one after the other
        # with a long K every piece reads much of A and B, which do not stay in a cache
        many = FEW_PIECES if a_row == 1 and k > longest else MANY_PIECES
        m_block, n_block = self._tiles(sizes, cost, lowest, narrowest, many)
        height, width = min(m, m_block), min(n, n_block)
        stays = target.NARROW and height * width * self.item <= second // 4  # a small C, from stretch to stretch
        if a_row == 1 and not how & cpu.SGD and (k > longest or stays):  # A and B of a stretch fit the second level
            block = block_of(k, n)
            longest = min(longest, block * max(1, second // (2 * (height + width) * self.item) // block))
        strip = max(1, m_block)
        if height >= copied_from:
            how |= cpu.PACK_B
        if far_a and width >= (min(n, PACKED_COLUMNS) if target.NARROW else 2 * self.panel):
            how |= cpu.PACK_A
            if target.NARROW and height >= COPIED_WITH_A and n >= self.panel and not turned:
                how |= cpu.PACK_B
            strip = _ceil(strip, target.group_of(self.panel))
        elif m <= m_block and n <= self.panel and k <= longest and m * n * self.item <= first:
            how |= cpu.SMALL | cpu.BY_STRIP
        elif target.NARROW and (how & cpu.PACK_B or (turned and not whole_b)):
            how |= cpu.BY_STRIP
            strip = _ceil(max(PACKED_ROWS, min(m_block, second // (2 * max(1, width) * self.item))), TILE_ROWS)
        elif not how & cpu.PACK_B and k <= longest and (whole_b or 2 * k * width * self.item <= second):
            how |= cpu.BY_STRIP
            strips = -(-height // max(TILE_ROWS, first // (2 * max(1, width) * self.item)))
            strip = _ceil(-(-height // max(1, strips)), TILE_ROWS)
        if how & (cpu.PACK_A | cpu.PACK_B | cpu.PACK_T):
            group = target.group_of(self.panel)
            groups = -(-min(strip, height) // group) if how & cpu.PACK_A else 0
            length = min(k, longest)
            across = _ceil(width, self.panel) if turned and how & cpu.BY_STRIP else target.TOGETHER * self.panel
            packed_a = groups * target.room_for_group(length, group, target.VECTOR_BYTES // self.item)
            room = (longest if groups else length) * across + packed_a
            self.common.scratch = max(self.common.scratch, room * self.item)
        blocking = (block_of(k, n), longest, strip, how, b_panel)
        signs = (
            (cpu.PACK_A, "A packed"),
            (cpu.PACK_B | cpu.PACK_T, "B packed"),
            (cpu.SGD, "sgd"),
            (cpu.ONES | cpu.TOTAL, "with db"),
        )
        notes = [word for bit, word in signs if how & bit]
        self._row(cpu.PRODUCT, sizes, (m_block, n_block), cost, operands, code, then, blocking, what, notes)

    def _copies_of_b(self, stride: int, n: int, k: int, forward: bool) -> tuple[bool, int]:
        """Whether rows of B lie far apart, and from how many rows on its panels are copied to where they do not.

        Far is ``stride`` bytes, if each row is on a page of its own, or all lie in a few sets of the caches.
        With 16 registers copies pay sooner, since a loop that knows where they lie takes fewer instructions: 512 x 784
        on 24 rows ran at 0.72 of the peak with packing, at 0.51 without; 128 x 300 at 0.79 and 0.86, and on 48 rows at
        0.87 and 0.86. Panels of a B beyond the second level come faster four at a time, even for few rows: 1089 x 1978
        on 5, 8 and 19 rows took 0.7, 0.6 and 0.5 of the time.
        """
        far = stride > FAR and k >= PACKED_K
        if not target.NARROW:
            return far, PACKED_ROWS if far else NEVER
        if k < SHORT_PACKED_K:
            return False, NEVER
        if not forward:
            far = far or k > caches.rows_that_stay(2, stride)
            return far, PACKED_ROWS if far else COPIED_FOR_SUMS
        if k > 2 * caches.rows_that_stay(2, stride) or n * k * self.item > 2 * caches.second_level():
            return True, COPIED_FARTHEST
        far = far or k > caches.rows_that_stay(1, stride)
        return far, COPIED_FAR if far else COPIED_NEAR

    def _is_far_a(self, stride: int, m: int, n: int, k: int) -> bool:
        """The same for columns of Aᵀ. Each of their lines serves nearly three tiles, if it stays in the first level.

        With 16 registers and few columns, copying A costs much of what the product does, and pays only where those
        lines are not even in the second level, or so many that they leave the first and A is large: 1395 x 79 on 911
        rows ran at 0.65 of the peak with packing, at 0.21 without; 784 x 48 on 512 at 0.71 and 0.65; 256 x 64 on 128 at
        0.71 and 0.79.
        """
        if not target.NARROW:
            return stride > FAR and k >= 4 * PACKED_K and n >= 2 * self.panel
        if n >= PACKED_COLUMNS:
            return k >= SHORT_PACKED_K and (stride > FAR_COLUMNS or 2 * k > caches.rows_that_stay(1, stride))
        if n > self.panel:
            large = 2 * m * k * self.item >= caches.second_level() and k * caches.LINE >= caches.first_level()
            return large or k > caches.rows_that_stay(2, stride)
        return k > caches.second_level() // (8 * caches.LINE)

    def _has_few_rows(self, sizes: tuple[int, int, int], turned: bool, b_panel: int, forward: bool) -> bool:
        """Whether a product is done by few_rows.py.

        Where panels of Bᵀ would be copied for few rows: 4 x 300 x 100 takes a third of the time then, 8 x 300 x 300
        two thirds, 12 x 300 x 300 as long. By rows of B where rows are long enough for their number: of A, 2 x 400 x
        300 takes 0.64 of the time and 2 x 64 x 100 1.12, 3 x 71 x 296 1.4; of Aᵀ, 2 x 128 x 12 0.53, 3 x 256 x 100
        0.65, 4 x 64 x 100 1.26. By rows of B, too, where it is beyond the second level.
        """
        m, n, k = sizes
        if turned:
            return forward and m <= (cpu.MOST_ROWS if k < SHORT_TURNED else MOST_TURNED)
        if not 0 < m <= cpu.MOST_ROWS or b_panel != self.panel:
            return False
        if n >= (BY_ROWS_FROM if forward else SUMMED_FROM)[m] * self.panel:
            return True
        if m == 1 and forward and self._suits_panels(k, n, NEAR_WHOLE):
            return True
        return forward and n > self.panel and k * n * self.item > caches.second_level()

    def _product_with_few_rows(
        self,
        sizes: tuple[int, int, int],
        operands: dict[int, Operand],
        cost: int,
        how: int,
        code: int,
        then: int,
        what: str = "",
    ) -> None:
        """A product that is shared by columns, if at all; see few_rows.py."""
        m, n, k = sizes
        if how & cpu.PACK_T and how & cpu.BIAS:  # left to the epilogue
            how, code = how & ~cpu.BIAS, cpu.BINARY_CODES["add"]
        summed = m > 1 and operands[cpu.A][2] == 1  # rows of Aᵀ
        far = self._is_far_larger(k * n) or ((how & cpu.DOTS or summed) and self._is_worth_sharing(cost))
        if how & cpu.PACK_T and m == 1 and k >= DOT_SUMMANDS and id(self.instruction) in self.common.deltas:
            how |= cpu.DOTS  # a delta of one row on its own may be summed in another order than in a batch
        narrowest = (SUMMED_PIECE if summed else 1) * self.panel
        alone = m == 1 and k > 0 and not how & (cpu.PACK_T | cpu.ONES) and not self.in_chunk
        if alone and self._suits_panels(k, n, NEAR_WHOLE):
            how, narrowest = how | cpu.BY_PANELS, PANELS_OF_PIECE * self.panel
        if how & cpu.BY_PANELS and n < 2 * narrowest:
            far = False  # a rest narrower than a vector would begin among columns of the piece before it
        n_block = max(narrowest, _ceil(-(-n // 4), self.panel)) if far else n  # long rows
        rows = m + 1 if how & cpu.ONES else m
        self.common.scratch = max(self.common.scratch, 2 * rows * n_block * self.item)
        blocking = (block_of(k, n), 0, 0, how | cpu.FEW_ROWS, self.panel)
        kinds = ((cpu.DOTS, "dot products"), (cpu.PACK_T, "B turned"), (cpu.BY_PANELS, "panel by panel"))
        notes = [next((note for bit, note in kinds if how & bit), "row by row")]
        notes += [word for bit, word in ((cpu.SGD, "sgd"), (cpu.ONES | cpu.TOTAL, "with db")) if how & bit]
        self._row(cpu.PRODUCT, sizes, (m, n_block), cost, operands, code, then, blocking, what, notes)

    def _suits_panels(self, rows: int, n: int, whole: int) -> bool:
        """Whether one row beside a matrix is done by one_row.py: where the matrix has short rows, or lies near.

        Rows that end within a vector begin anywhere in one: long ones are better stored from where a vector begins.
        523 x 64 forward 3.1 and 1.6 µs, its update 4.0 and 2.4; 1000 x 33 4.9 and 2.4, 7.9 and 4.4; 800 x 800 84 and
        60 forward; 20000 x 64 562 and 110, 279 and 142. 1536 x 1536 takes as long or longer, as does the update of
        5000 x 128 on two threads.

        Args:
            whole: how many second levels the matrix may take, if it has long rows of whole vectors.
        """
        vectors, rest = divmod(n * self.item, target.VECTOR_BYTES)
        near = rows * n * self.item <= (NEAR if rest else whole) * caches.second_level()
        return vectors > 0 and (vectors <= ONE_PANEL or (near and (vectors < RAGGED_ROW or not rest)))

    def _has_few_summands(self, sizes: tuple[int, int, int], i: Instruction) -> bool:
        """Whether rows of C are made in the order of memory, as sums of few rows of B.

        122 x 809 x 3 takes 0.6 of the time, 39 x 194 x 1 0.53: a call for every tile takes longer than what is to be
        done in it, and C would be written a line here, a line there. Where the second level does not hold C, 700 x 1500
        x 24 takes 0.6 of the time, but 60 x 1500 x 24 1.1, and tiles with packed panels do 700 x 1500 x 32 in 0.87.
        """
        m, n, k = sizes
        if i.ta or i.tb or m < 2 or k == 0:
            return False
        wide = n >= WIDE_PANELS * self.panel and k <= WIDE_SUMMANDS
        if wide and not self.in_chunk and m * n * self.item > caches.second_level():
            return True
        limits = FEW_SUMMANDS_FROM + (FEW_IN_CHUNK if self.in_chunk and target.NARROW else ())
        return any(k <= most and n >= panels * self.panel for most, panels in limits)

    def _outer_product(
        self, sizes: tuple[int, int, int], operands: dict[int, Operand], cost: int, how: int, code: int, then: int
    ) -> None:
        """A product with few summands, by rows; it is shared by them."""
        m, n, k = sizes
        rows = max(1, PIECE_ELEMENTS // n) if self._is_worth_sharing(cost) else m
        blocking = (block_of(k, n), 0, 0, how | cpu.OUTER, self.panel)
        self._row(cpu.PRODUCT, sizes, (rows, n), cost, operands, code, then, blocking, notes=["row by row"])

    def _narrow_product(
        self, sizes: tuple[int, int, int], operands: dict[int, Operand], cost: int, how: int, code: int, then: int
    ) -> None:
        """A product with few columns, by dot products; it is shared by rows."""
        m, n, k = sizes
        lanes = target.VECTOR_BYTES // self.item
        rows = max(NARROW_ROWS, _ceil(-(-m // MANY_PIECES), lanes)) if self._is_worth_sharing(cost) else max(1, m)
        self.common.scratch = max(self.common.scratch, (n * k + lanes) * self.item)
        blocking = (block_of(k, n), 0, 0, how, self.panel)
        self._row(cpu.PRODUCT, sizes, (rows, n), cost, operands, code, then, blocking, notes=["dot products"])

    def _product_of_pairs(
        self, sizes: tuple[int, int, int], operands: dict[int, Operand], cost: int, how: int, code: int, then: int
    ) -> None:
        """A product in bfloat16; see gemm.product_of_pairs. All rows of a piece are packed once for all its columns."""
        m, n, k = sizes
        block = block_of(-(-k // 2), n)  # in pairs
        longest = 2 * block * max(1, caches.second_level() // (4 * self.panel * self.item) // block)
        m_block, n_block = self._tiles(sizes, cost, 4 * PACKED_ROWS, _ceil(-(-n // 2), self.panel))
        room = (longest // 2 * self.panel + _ceil(min(m, m_block), self.panel) * -(-min(k, longest) // 2)) * self.item
        self.common.scratch = max(self.common.scratch, room)
        signs = ((cpu.PAIRS, "bfloat16"), (cpu.SGD, "sgd"), (cpu.ONES, "with db"))
        how |= cpu.PAIRS
        notes = [word for bit, word in signs if how & bit]
        blocking = (block, longest, 0, how, self.panel)
        self._row(cpu.PRODUCT, sizes, (m_block, n_block), cost, operands, code, then, blocking, notes=notes)

    def _tiles(
        self, sizes: tuple[int, int, int], cost: int, lowest: int, narrowest: int, many: int = MANY_PIECES
    ) -> tuple[int, int]:
        """Piece of a product: all of it if it is not shared; else halved along its longer side until it is small."""
        m, n, k = sizes
        m_block, n_block, lowest = _ceil(m, TILE_ROWS), _ceil(n, self.panel), max(lowest, TILE_ROWS)
        while self._is_worth_sharing(cost):
            work = 2 * m_block * n_block * max(k, 1)
            pieces = -(-m // max(m_block, 1)) * -(-n // max(n_block, 1))
            small = work <= max(PIECE_OPERATIONS, 2 * m * n * k // many)
            if work <= SMALL_PIECE or (small and pieces >= FEWEST_PIECES):
                break
            if m_block > lowest and (m_block >= n_block or n_block <= narrowest):
                m_block = max(lowest, _ceil(m_block // 2, TILE_ROWS))
            elif n_block > narrowest:
                n_block = max(narrowest, _ceil(n_block // 2, self.panel))
            else:
                break
        if target.NARROW:  # with tiles of every height all pieces can have about as many rows: 128 are 4 times 32
            down, across = -(-m // max(m_block, 1)), -(-n // max(n_block, 1))
            if 1 < down * across < ODD_PIECES and down * across % 2:
                down, across = (down + 1, across) if down > 1 else (down, across + 1)
                n_block = min(n_block, _ceil(-(-n // across), self.panel))
            m_block = -(-m // max(1, down))
        return m_block, n_block

    def transposed(self, i: Instruction) -> Operand:
        """Bᵀ of a product as a matrix in panels, in the scratch that follows the temps."""
        self.instruction, index = i, i.ins[1]
        rows, cols = self._shape(index)
        self.scratch_size = max(self.scratch_size, cols * _ceil(rows, self.panel) * self.item)
        out = (cpu.WORKSPACE, self.scratch, self.panel, 1)
        self._transposition(index, out, cols * self.panel, "transpose")
        return out

    def in_panels(self, i: Instruction) -> Operand:
        """B of a product as a matrix in panels, in the scratch that follows the temps."""
        self.instruction, index = i, i.ins[1]
        rows, cols = self._shape(index)
        self.scratch_size = max(self.scratch_size, rows * _ceil(cols, self.panel) * self.item)
        out = (cpu.WORKSPACE, self.scratch, self.panel, 1)
        operands, blocking = {cpu.OUT: out, cpu.A: self._operand(index)}, (0, 0, 0, 0, rows * self.panel)
        cost = 2 * self.item * rows * cols // COPIED
        block = (max(1, PIECE_ELEMENTS // cols), cols)
        self._row(cpu.PANELS, (rows, cols, 0), block, cost, operands, blocking=blocking, what="into panels")
        return out

    def _transposition(self, index: int, out: Operand, panel: int, what: str = "") -> None:
        rows, cols = self._shape(index)
        lanes = target.VECTOR_BYTES // self.item
        block = (lanes * max(1, PIECE_ELEMENTS // max(1, cols * lanes)), cols)
        operands = {cpu.OUT: out, cpu.A: self._operand(index)}
        cost = 2 * self.item * rows * cols // 100
        self._row(cpu.TRANSPOSE, (rows, cols, 0), block, cost, operands, blocking=(0, 0, 0, 0, panel), what=what)

    def _transpose(self, i: Instruction) -> None:
        self._transposition(i.ins[0], self._operand(i.outs[0]), self.panel)

    # ---- chunks ----------------------------------------------------------------------------------------------------

    def chunks(self, number: int, chunks: schedule.Chunks, tables: list[np.ndarray], moves: np.ndarray) -> None:
        """The row that takes pieces of the rows through tables of their own."""
        row = [0] * cpu.WIDTH
        pieces = -(-self.n // chunks.piece)
        row[cpu.OP], row[cpu.NUMBER], row[cpu.M], row[cpu.M_BLOCK] = cpu.CHUNKS, number, self.n, chunks.piece
        row[cpu.CHUNK], row[cpu.PIECES], row[cpu.SHARED] = chunks.rows, pieces, int(pieces > 1)
        (whole, rest), (count, rest_count) = (t.ctypes.data for t in tables), map(len, tables)
        row[cpu.TABLE], row[cpu.COUNT], row[cpu.REST_TABLE], row[cpu.REST_COUNT] = whole, count, rest, rest_count
        row[cpu.MOVES], row[cpu.SLOTS] = moves.ctypes.data, len(moves)
        self.rows.append(row)

    def add_pieces(
        self, division: Division, in_slot: dict[int, int], pieces: int, stride: int
    ) -> dict[int, list[tuple[int, int]]]:
        """Add up the slots of the pieces, as the product of a row of ones with them; with the update, if it is SGD.

        Args:
            in_slot: offset in bytes of every sum in a slot.
            pieces, stride: number of slots, and elements from one to the next.

        Returns:
            what has been updated: (offset, elements) by id of the update.
        """
        updates = {only_for_update(self.program, i): i for i in division.tail if i.op == "update" and i.code == "sgd"}
        updated: dict[int, list[tuple[int, int]]] = {}
        for first, at, size in self._runs(in_slot):
            operands = {
                cpu.OUT: (*self._where(first), size, 1),
                cpu.A: self.common.one,
                cpu.B: (cpu.PARTIALS, at, stride, 1),
            }
            how, buffer = 0, self.program.buffers[first]
            update = updates.get(buffer.base)
            self.instruction = division.body[-1] if update is None else update
            if update is not None:
                reads = [x for j in division.tail if j is not update for x in j.ins]
                if not reads_range(self.program, self.n, reads, update, buffer.offset, size):
                    how = cpu.SGD
                    slot, offset = self._where(update.ins[0])
                    operands[cpu.OUT] = (slot, offset + buffer.offset * self.item, size, 1)
                    operands[cpu.EXTRA] = self._operand(update.ins[-1])
                    updated.setdefault(id(update), []).append((buffer.offset, size))
            cost = pieces * size * (self.item + 2) // 100
            self._product((1, size, pieces), operands, self.panel, cost, how, what="add pieces")
        return updated

    def _runs(self, in_slot: dict[int, int]) -> list[tuple[int, int, int]]:
        """(first buffer, offset in a slot, elements) of sums that follow each other without a gap in one buffer."""
        runs: list[tuple[int, int, int]] = []
        for index, at in in_slot.items():
            buffer, size = self.program.buffers[index], self.program.size(index, self.n)
            if runs:
                first, start, length = runs[-1]
                before = self.program.buffers[first]
                if buffer.base is not None and (buffer.base, buffer.offset) == (before.base, before.offset + length):
                    runs[-1] = (first, start, length + size)
                    continue
            runs.append((index, at, size))
        return runs

    def _map(self, i: Instruction) -> None:
        m, n = self._shape(i.outs[0])
        cost = self._cost(i)
        buffers = (*i.outs, *i.operands)
        if all(self._shape(index) in ((m, n), (1, 1)) for index in i.operands):
            m, n = 1, m * n  # contiguous and alike: one long row
            operands = [self._long(x, n) for x in buffers]
            block = (1, PIECE_ELEMENTS)
        else:
            operands = [self._operand(x, (m, n)) for x in buffers]
            block = (PIECE_ELEMENTS // max(n, 1), n)
        places = dict(zip((cpu.OUT, cpu.A, cpu.B), operands, strict=False)) | {cpu.EXTRA: self._number(i)}
        if len(i.operands) == 1:
            self._row(cpu.MAP_UNARY, (m, n, 0), block, cost, places, cpu.UNARY_CODES[i.code])
        else:
            self._row(cpu.MAP_BINARY, (m, n, 0), block, cost, places, cpu.BINARY_CODES[i.code])

    # ---- chains ----------------------------------------------------------------------------------------------------

    def _chain(self, i: Instruction) -> None:
        rows, cols = (size.at(self.n) for size in i.domain)
        ins, outs = (tuple(self._in_memory(b) for b in side) for side in (i.ins, i.outs))
        self._work(Work((rows, cols), ins, i.steps, i.results), outs, self._cost(i))

    def _piece_of(self, builder: Builder) -> tuple[int, int]:
        """Rows and columns of a piece of a chain."""
        rows, cols = builder.work.shape
        if self.in_chunk or not cols:
            return rows, cols
        along_rows = any(r.how and r.axis == 1 for r in builder.work.results)
        if rows == 1 or (cols > PIECE_ELEMENTS // 4 and not along_rows):
            return rows, PIECE_ELEMENTS
        # several: their sums are added in pieces, too
        return _ceil(max(4, PIECE_ELEMENTS // cols), builder.height), cols

    def _in_memory(self, index: int) -> Place:
        shape = (1, 1) if self.program.buffers[index].dtype == "double" else self._shape(index)  # a mask's key
        return Place(*self._where(index), *shape)

    def _work(self, work: Work, outs: Sequence[Place], cost: int, what: str = "") -> None:
        """A chain in pieces; sums of pieces are added up by another chain."""
        work = flattened(work, self.in_chunk)
        rows, cols = work.shape
        builder = Builder(work, self.item)
        m_block, n_block = _few_pieces((rows, cols), self._piece_of(builder))
        pieces = max(1, -(-rows // m_block) * -(-cols // n_block))
        to, parts, size = list(outs), [], self.scratch_size
        for k, (result, out) in enumerate(zip(work.results, outs, strict=True)):
            cut = {None: pieces > 1, 0: rows > m_block, 1: False}[result.axis]  # no piece has all that is reduced
            if result.how and cut:
                each = out.rows * out.cols
                to[k] = Place(cpu.WORKSPACE, self.scratch + size, out.rows, out.cols, each * self.item)
                parts.append((result, Place(cpu.WORKSPACE, self.scratch + size, pieces, each), out))
                size += _ceil(pieces * each * self.item, ALIGNMENT)
        table = builder.table(to, n_block)
        self.common.kept.append(table.words)
        self.common.scratch = max(self.common.scratch, table.scratch)
        self._row(cpu.CHAIN, (rows, cols, 0), (m_block, n_block), cost, {}, table.words.ctypes.data, what=what)
        before, self.scratch_size = self.scratch_size, size
        self.scratch_needed = max(self.scratch_needed, size)
        for result, pieces_of, out in parts:
            self._work(added_pieces(result, pieces_of), [out], pieces_of.rows * pieces_of.cols // 10, "add pieces")
        self.scratch_size = before

    def _long(self, index: int, size: int) -> Operand:
        """An operand as one row of ``size`` elements, or one number for all."""
        return (*self._where(index), 0, int(self.program.size(index, self.n) == size))

    def _number(self, i: Instruction) -> Operand:
        """The number that an instruction multiplies by."""
        return self._operand(i.ins[-1]) if i.scaled else self.common.one

    def _sum(self, i: Instruction) -> None:
        """Over rows: the product of a row of ones with x, which sums in the products' fixed order."""
        rows, cols = self._shape(i.ins[0])
        operands = {cpu.OUT: self._operand(i.outs[0]), cpu.A: self.common.one, cpu.B: self._operand(i.ins[0])}
        if is_long_column(self.program.shape(i.ins[0], self.like)[0], cols):
            column = replace(self._in_memory(i.ins[0]), rows=1, cols=rows)
            work = Work((1, rows), (column,), (), (Result(0, "sum", None),))
            self._work(work, [self._in_memory(i.outs[0])], self._cost(i), i.title)
        elif id(i) in self.fused:
            self._updating(i, (1, cols, rows), operands, self.panel)
        else:
            self._product((1, cols, rows), operands, self.panel, self._cost(i))

    def _softmax(self, i: Instruction) -> None:
        m, n = self._shape(i.ins[0])
        places = (self._operand(index) for index in (*i.outs, *i.ins))
        operands = dict(zip((cpu.OUT, cpu.A, cpu.B), places, strict=False))
        codes = {
            "softmax": cpu.PROBABILITIES,
            "log_softmax": cpu.LOGARITHMS,
            "log_softmax_grad": cpu.LOGARITHMS_GRAD,
            "logsumexp": cpu.LOG_SUM_EXP,
        }
        block = (PIECE_ELEMENTS // max(n, 1), n)
        self._row(cpu.SOFTMAX, (m, n, 0), block, self._cost(i), operands, codes[i.op])

    _log_softmax = _softmax
    _log_softmax_grad = _softmax

    def _cross_entropy(self, i: Instruction) -> None:
        m, n = self._shape(i.ins[0])
        operands = {cpu.OUT: self._operand(i.outs[0]), cpu.A: self._operand(i.ins[0]), cpu.B: self._operand(i.ins[1])}
        code = cpu.BY_LABELS if i.code == "labels" else 0
        if i.then == "grad":
            code |= cpu.WITH_GRADIENT
            operands |= {cpu.OUT2: self._operand(i.outs[1]), cpu.EXTRA: self._operand(i.ins[2])}
        block = (PIECE_ELEMENTS // max(n, 1), n)
        self._row(cpu.CROSS_ENTROPY, (m, n, 0), block, self._cost(i), operands, code)

    def _logsumexp(self, i: Instruction) -> None:
        if self._shape(i.ins[0])[1]:
            self._softmax(i)
        else:
            self._copy(i, self._operand(i.outs[0]), self.common.lowest, 1)

    def _onehot(self, i: Instruction) -> None:
        m, n = self._shape(i.outs[0])
        operands = {cpu.OUT: self._operand(i.outs[0]), cpu.A: self._operand(i.ins[0])}
        self._row(cpu.ONEHOT, (m, n, 0), (PIECE_ELEMENTS // max(n, 1), n), self._cost(i), operands)

    def _gather(self, i: Instruction) -> None:
        m, n = self._shape(i.outs[0])
        words = n * (2 if self.program.buffers[i.outs[0]].dtype == "int" else self.item // 4)
        operands = {cpu.OUT: self._operand(i.outs[0]), cpu.A: self._operand(i.ins[0]), cpu.B: self._operand(i.ins[1])}
        self._row(
            cpu.GATHER,
            (m, words, 0 if i.op == "take" else m),
            (PIECE_ELEMENTS // max(n, 1), words),
            self._cost(i),
            operands,
        )

    _take = _gather

    def _scatter_add(self, i: Instruction) -> None:
        rows, cols = self._shape(i.outs[0])
        count = self._shape(i.ins[0])[0]
        operands = {cpu.OUT: self._operand(i.outs[0]), cpu.A: self._operand(i.ins[0]), cpu.B: self._operand(i.ins[1])}
        # every piece looks through all row numbers
        self._row(cpu.SCATTER, (rows, cols, count), (-(-rows // FEWEST_PIECES), cols), self._cost(i), operands)

    def _concat(self, i: Instruction) -> None:
        wide, at = self._shape(i.outs[0])[1], 0
        for part in i.ins:
            cols = self._shape(part)[1]
            self._copy(i, self._part(i.outs[0], at, wide), self._operand(part), cols)
            at += cols

    def _columns(self, i: Instruction) -> None:
        wide, cols = self._shape(i.ins[0])[1], self._shape(i.outs[0])[1]
        self._copy(i, self._operand(i.outs[0]), self._part(i.ins[0], i.start, wide), cols)

    def _pad(self, i: Instruction) -> None:
        wide, cols = self._shape(i.outs[0])[1], self._shape(i.ins[0])[1]
        end = i.start + cols
        self._copy(i, self._part(i.outs[0], i.start, wide), self._operand(i.ins[0]), cols)
        for first, stop in ((0, i.start), (end, wide)):
            if stop > first:
                self._copy(i, self._part(i.outs[0], first, wide), self.common.zero, stop - first)

    def _place(self, i: Instruction) -> None:
        size, whole = self.program.size(i.ins[0], self.n), self._shape(i.outs[0])[1]
        end = i.start + size
        self._copy(i, self._part(i.outs[0], i.start, whole), (*self._where(i.ins[0]), size, 1), size, rows=1)
        for first, stop in ((0, i.start), (end, whole)):
            if stop > first:
                self._copy(i, self._part(i.outs[0], first, whole), self.common.zero, stop - first, rows=1)

    def _part(self, index: int, column: int, wide: int) -> Operand:
        """A matrix from one of its columns on."""
        slot, offset = self._where(index)
        return slot, offset + column * self.item, wide, 1

    def _copy(self, i: Instruction, to: Operand, source: Operand, cols: int, rows: int | None = None) -> None:
        """Copy rows of ``cols`` elements."""
        rows = self._shape(i.outs[0])[0] if rows is None else rows
        block = (max(1, PIECE_ELEMENTS // cols), cols)
        cost = 2 * self.item * rows * cols // COPIED
        operands, code = {cpu.OUT: to, cpu.A: source}, cpu.UNARY_CODES["copy"]
        self._row(cpu.MAP_UNARY, (rows, cols, 0), block, cost, operands, code, what=i.title)

    def _update(self, i: Instruction) -> None:
        theta, g, *states, hyper = i.ins
        vectors = dict(zip((cpu.OUT, cpu.A, cpu.B, cpu.Y), (theta, g, *states), strict=False))
        for first, end in self._not_updated(i):
            operands = {cpu.EXTRA: self._operand(hyper)}
            for which, index in vectors.items():
                slot, offset = self._where(index)
                operands[which] = (slot, offset + first * self.item, end - first, 1)
            cost = self._cost(i) * (end - first) // self.program.size(theta, self.n)
            code = cpu.UPDATE_CODES[i.code]
            self._row(cpu.UPDATE, (1, end - first, 0), (1, PIECE_ELEMENTS), cost, operands, code)

    def _not_updated(self, update: Instruction) -> list[tuple[int, int]]:
        """The ranges of theta that nothing has updated yet."""
        ranges, start = [], 0
        for offset, size in [*sorted(self.updated.get(id(update), [])), (self.program.size(update.ins[0], self.n), 0)]:
            if offset > start:
                ranges.append((start, offset))
            start = offset + size
        return ranges
