"""Instructions of a Program -> rows of the table that GPU kernels read, for one number of rows of the batch.

Work is cut by shape alone, never by the card, so that results are the same on every one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fastbp.backends.cuda import chain_table, table
from fastbp.backends.cuda.chain_table import Operand, Part, Pieces, Place, Work, parts
from fastbp.backends.cuda.codes import CODES, UPDATE_CODES
from fastbp.backends.cuda.tiles import TensorTile, Tile
from fastbp.errors import InputError
from fastbp.program import Instruction, Program, Result, Step

ALIGNMENT = 256  # bytes: temps begin where the widest accesses may
THREADS = 256  # of a block that has no tile or chain to say how many
BUSY = 16 * 132  # blocks that keep a large card busy: twice as many as it has room for
LARGEST = 2**31 - 2**16  # of a size: kernels count in int32, and a step beyond the end
WORKSPACE, CONSTS = 0, 1  # the first slots


class Slots:
    """Numbers of the slots: the workspace, the constants, one for each buffer from outside, and one for steps."""

    def __init__(self, program: Program) -> None:
        outside = [i for i, b in enumerate(program.buffers) if b.base is None and b.kind not in ("temp", "const")]
        self.of = {index: 2 + k for k, index in enumerate(outside)}
        self.steps = 2 + len(outside)  # of blocks that do several, see blocks.py
        self.count = self.steps + 1


@dataclass(frozen=True)
class Cut:
    """How a product is cut: the tile and the kernel that has it, and the rows of K in a piece."""

    kernel: str
    tile: Tile | TensorTile
    piece: int


class Rows(ABC):
    """Writes rows; what becomes of them is said by those that inherit.

    Attributes:
        words: the table, to which rows are added.
        places: where every buffer that is no part of another lies.
        scratch: memory behind all others, where sums of pieces may lie until the next instruction.
        scratch_bytes: how much of it has been asked for.
        room_for_chains: bytes of shared memory for a chain's registers and a copy of its table; 0 for no copies.
    """

    room_for_chains = 0

    def __init__(
        self, program: Program, n: int, item: int, words: list[int], places: Mapping[int, Place], scratch: Place
    ) -> None:
        self.program = program
        self.n = n
        self.item = item
        self.words = words
        self.places = places
        self.scratch = scratch
        self.scratch_bytes = 0

    @abstractmethod
    def launch(self, op: int, kernel: str, row: int, blocks: int, threads: int, shared: int) -> None:
        """Have the row done: by so many blocks, if the table's kernels are launched one by one."""

    @abstractmethod
    def cut(self, m: int, n: int, k: int) -> Cut:
        """How to cut a product (m, k)(k, n)."""

    @abstractmethod
    def cut_chain(self, work: Work) -> tuple[int, list[Part]] | None:
        """Threads and tables of a chain, or None where its values do not fit."""

    def emit(self, instruction: Instruction) -> None:
        """The rows of an instruction."""
        i = instruction
        match i.op:
            case "matmul":
                self.product(i)
            case "chain":
                domain = i.domain[0].at(self.n), i.domain[1].at(self.n)
                self._chain(i, domain, i.steps, i.results)
            case "map":
                step = Step(i.code, tuple(range(len(i.operands))), len(i.ins) - 1 if i.scaled else -1)
                self._chain(i, self.program.shape(i.outs[0], self.n), (step,), (Result(len(i.ins)),))
            case "sum":
                self.sum_rows(i)
            case "softmax" | "log_softmax" | "log_softmax_grad" | "logsumexp":
                self._softmax(i)
            case "transpose":
                x, out = self.operand(i.ins[0]), self.operand(i.outs[0])
                self.move(replace(x.place, row=1, col=x.cols), out.place, (out.rows, out.cols), 0, out.cols)
            case "concat":
                self._concat(i)
            case "columns":
                x, out = self.operand(i.ins[0]), self.operand(i.outs[0])
                self.move(self._column(x.place, i.start), out.place, (out.rows, out.cols), 0, out.cols)
            case "pad":
                x, out = self.operand(i.ins[0]), self.operand(i.outs[0])
                self.move(x.place, out.place, (out.rows, out.cols), i.start, x.cols)
            case "place":
                x, out = self.operand(i.ins[0]), self.operand(i.outs[0])
                self.move(x.place, out.place, (1, out.rows * out.cols), i.start, x.rows * x.cols)
            case "onehot":
                out = self.operand(i.outs[0])
                operands = {table.OUT: out.place, table.A: self.operand(i.ins[0]).place}
                row = self.row(operands, sizes=(out.rows, out.cols, 0))
                self.over_elements(table.ONEHOT, "onehot", row, out.rows * out.cols)
            case "gather" | "take":
                self._gather(i)
            case "scatter_add":
                x, out = self.operand(i.ins[0]), self.operand(i.outs[0])
                operands = {table.OUT: out.place, table.A: x.place, table.B: self.operand(i.ins[1]).place}
                row = self.row(operands, sizes=(out.rows, out.cols, x.rows))
                self.over_elements(table.SCATTER, "scatter", row, out.rows * out.cols)
            case "update":
                self._update(i)

    def sum_rows(self, i: Instruction) -> None:
        """The rows of a sum over the rows of a matrix."""
        self._chain(i, self.program.shape(i.ins[0], self.n), (), (Result(0, "sum", 0),))

    # ---- operands ------------------------------------------------------------------------------------------------

    def operand(self, index: int) -> Operand:
        """A buffer, row by row."""
        buffer = self.program.buffers[index]
        rows, cols = self.program.shape(index, self.n)
        place = self.places[index if buffer.base is None else buffer.base]
        return Operand(replace(place, offset=place.offset + buffer.offset * self.item, row=cols, col=1), rows, cols)

    def _broadcast(self, index: int, shape: tuple[int, int]) -> Place:
        return self.operand(index).over(shape)

    def _partial(self, bytes_: int) -> None:
        """Ask for so much memory behind the temps, until the next instruction."""
        self.scratch_bytes = max(self.scratch_bytes, bytes_)

    # ---- rows ----------------------------------------------------------------------------------------------------

    def row(
        self,
        operands: dict[int, Place],
        *,
        code: int = table.NONE,
        then: int = table.NONE,
        sizes: tuple[int, int, int] = (0, 0, 0),
        pieces: int = 1,
        piece: int = 0,
        head: int = 0,
        how: int = 0,
    ) -> int:
        """Add a row; where it begins."""
        if max(*sizes, pieces) >= LARGEST:
            raise InputError(f"a matrix of {sizes[0]} by {sizes[1]} is too large for one kernel: take smaller batches")
        first = len(self.words)
        self.words += [0, code, then, *sizes, pieces, piece, head, how]
        for which in range(6):
            self.words += operands.get(which, Place(0, 0, 0, 0)).words
        return first

    def _launch(self, op: int, kernel: str, row: int, blocks: int, threads: int = THREADS, shared: int = 0) -> None:
        self.words[row + table.OP] = op
        self.launch(op, kernel, row, max(1, blocks), threads, shared)

    def over_elements(self, op: int, kernel: str, row: int, elements: int, each: int = 1) -> None:
        """A launch with a thread for ``each`` elements, at most BUSY blocks: they go on where others end."""
        if elements:
            self._launch(op, kernel, row, min(BUSY, -(-elements // (each * THREADS))))

    def _column(self, place: Place, start: int) -> Place:
        return replace(place, offset=place.offset + start * self.item)

    def move(self, x: Place, out: Place, shape: tuple[int, int], start: int, width: int) -> None:
        operands = {table.OUT: out, table.A: x}
        row = self.row(operands, sizes=(*shape, width), head=start)
        self.over_elements(table.MOVE, "move", row, shape[0] * shape[1])

    def _concat(self, i: Instruction) -> None:
        out, at = self.operand(i.outs[0]), 0
        for index in i.ins:
            x = self.operand(index)
            self.move(x.place, self._column(out.place, at), (x.rows, x.cols), 0, x.cols)
            at += x.cols

    def _gather(self, i: Instruction) -> None:
        out = self.operand(i.outs[0])
        bytes_ = 8 if self.program.buffers[i.outs[0]].dtype == "int" else self.item
        operands = {
            table.OUT: out.place,
            table.A: self.operand(i.ins[0]).place,
            table.B: self.operand(i.ins[1]).place,
        }
        words = out.cols * bytes_ // 4
        row = self.row(operands, sizes=(out.rows, words, 0))
        self.over_elements(table.GATHER, "gather", row, out.rows * words)

    def _softmax(self, i: Instruction) -> None:
        code = {
            "softmax": table.PROBABILITIES,
            "log_softmax": table.LOGARITHMS,
            "log_softmax_grad": table.LOGARITHMS_GRAD,
            "logsumexp": table.LOG_SUM_EXP,
        }[i.op]
        x = self.operand(i.ins[0])
        operands = {
            table.OUT: self.operand(i.outs[0]).place,
            table.A: x.place,
            table.B: self.operand(i.ins[-1]).place,
        }
        row = self.row(operands, code=code, sizes=(x.rows, x.cols, 0))
        if x.rows:
            self._launch(table.SOFTMAX, "softmax", row, -(-x.rows // (THREADS // 32)))

    def _update(self, i: Instruction) -> None:
        theta, g, *states, hyper = (self.operand(index) for index in i.ins)
        operands = {
            table.OUT: theta.place,
            table.A: g.place,
            table.B: (states[0] if states else g).place,
            table.Y: (states[1] if len(states) > 1 else g).place,
            table.EXTRA: hyper.place,
        }
        size = theta.rows * theta.cols
        row = self.row(operands, code=UPDATE_CODES[i.code], sizes=(len(states), size, 0))
        self.over_elements(table.UPDATE, "update", row, size, 4)

    # ---- products ------------------------------------------------------------------------------------------------

    def product_shape(self, i: Instruction) -> tuple[int, int, int]:
        """m, n and k of a product (m, k)(k, n)."""
        a, b = (self.program.shape(index, self.n) for index in i.ins[:2])
        m, k = (a[1], a[0]) if i.ta else a
        return m, b[0] if i.tb else b[1], k

    def product(self, i: Instruction) -> None:
        """The rows of a product."""
        a, b = (self.operand(index) for index in i.ins[:2])
        m, n, k = self.product_shape(i)
        if not m * n:
            return
        x = replace(a.place, row=1, col=a.cols) if i.ta else a.place
        w = replace(b.place, row=1, col=b.cols) if i.tb else b.place
        finish = self._finish(i, (m, n))
        cut = self.cut(m, n, k)
        tiles = -(-m // cut.tile.bm) * -(-n // cut.tile.bn)
        pieces = max(1, -(-k // cut.piece))
        kernel, threads, shared = cut.kernel, cut.tile.threads, cut.tile.shared_bytes(self.item)
        if pieces == 1:
            row = self.row({**finish[0], table.A: x, table.B: w}, **finish[1], sizes=(m, n, k), piece=cut.piece)
            self._launch(table.PRODUCT, kernel, row, tiles, threads, shared)
            return
        self._partial(pieces * m * n * self.item)
        sums = replace(self.scratch, row=n)
        row = self.row({table.OUT: sums, table.A: x, table.B: w}, sizes=(m, n, k), pieces=pieces, piece=cut.piece)
        self._launch(table.PRODUCT, kernel, row, tiles * pieces, threads, shared)
        row = self.row({**finish[0], table.A: sums}, **finish[1], sizes=(m, n, 0), pieces=pieces)
        self.over_elements(table.COMBINE, "combine", row, m * n, 4)

    def _finish(self, i: Instruction, shape: tuple[int, int]) -> tuple[dict[int, Place], dict[str, int]]:
        """Operands and words of a product's epilogue."""
        out = self.operand(i.outs[0])
        operands = {table.OUT: out.place}
        both = len(i.outs) > 1
        if both:
            operands[table.OUT2] = self.operand(i.outs[1]).place
        if i.code:
            operands[table.Y] = self._broadcast(i.ins[2], shape)
        code, then = (CODES[name] if name else table.NONE for name in (i.code, i.then))
        return operands, {"code": code, "then": then, "how": table.BOTH if both else 0}

    # ---- chains --------------------------------------------------------------------------------------------------

    def _chain(self, i: Instruction, domain: tuple[int, int], steps: Sequence[Step], results: Sequence[Result]) -> None:
        ins, outs = (tuple(self.operand(k) for k in side) for side in (i.ins, i.outs))
        work = Work(domain, ins, tuple(steps), tuple(results), outs)
        found = self.cut_chain(work)
        if found is None:
            self._step_by_step(work)
        else:
            self._parts(*found)

    def registers_of(self, part: Part, threads: int) -> int:
        """Bytes of a block's registers."""
        return part.registers * threads * chain_table.QUAD * self.item

    def _small(self, work: Work) -> None:
        """A chain that always fits."""
        found = self.cut_chain(work)
        assert found is not None
        self._parts(*found)

    def _parts(self, threads: int, made: Sequence[Part]) -> None:
        """A row and a launch for each table, and what adds up their pieces' sums."""
        used = 0
        for part in made:
            self._table(part, threads)
            for sums in part.sums:
                self._add_pieces(sums, replace(self.scratch, offset=self.scratch.offset + used), threads)
                used += sums.pieces * sums.elements * self.item
        self._partial(used)

    def _table(self, part: Part, threads: int) -> None:
        """A row, the table behind it, and its launch; its block has a copy of the table, if there is room."""
        registers = self.registers_of(part, threads)
        copied = registers if registers + 8 * len(part.words) <= self.room_for_chains else 0
        sizes = (*part.shape, copied)
        row = self.row({}, sizes=sizes, pieces=part.pieces, piece=len(part.words), head=table.WIDTH)
        self.words += part.words
        shared = registers + 8 * len(part.words) * bool(copied)
        self._launch(table.CHAIN, "chain", row, part.pieces, threads, shared)

    def _add_pieces(self, sums: Pieces, at: Place, threads: int) -> None:
        """Join what every piece made, in order: of one element by a chain, in one block; else a thread an element."""
        result = sums.result
        if sums.elements == 1:
            here = Operand(at, 1, sums.pieces)
            ins = (here,) if sums.factor is None else (here, Operand(sums.factor, 1, 1))
            whole = replace(result, value=0, axis=None, scale=len(ins) - 1 or -1)
            work = Work((1, sums.pieces), ins, (), (whole,), (sums.out,))
            (part,) = parts(work, at, self.item, threads, alone=True)
            self._table(part, threads)
            return
        operands = {table.OUT: sums.out.place, table.A: at}
        code = table.NONE
        if sums.factor is not None:
            operands[table.Y], code = replace(sums.factor, row=0, col=0), CODES["mul"]
        how = table.MAXIMA if result.how == "max" else 0
        row = self.row(operands, code=code, sizes=(1, sums.elements, 0), pieces=sums.pieces, how=how)
        self.over_elements(table.COMBINE, "combine", row, sums.elements, 4)

    def _step_by_step(self, work: Work) -> None:
        """A chain of its own for every step and result, values in memory: where registers do not suffice."""
        rows, cols = work.shape
        bytes_ = -(-rows * cols * self.item // ALIGNMENT) * ALIGNMENT
        begin, values = self.scratch, list(work.ins)
        self.scratch = replace(begin, offset=begin.offset + len(work.steps) * bytes_)
        for k, step in enumerate(work.steps):
            out = Operand(replace(begin, offset=begin.offset + k * bytes_, row=cols, col=1), rows, cols)
            used = [*step.args, *([step.scale] if step.scale >= 0 else [])]
            alone = replace(step, args=tuple(range(len(step.args))), scale=len(step.args) if step.scale >= 0 else -1)
            ins = tuple(values[v] for v in used)
            self._small(Work(work.shape, ins, (alone,), (Result(len(ins)),), (out,)))
            values.append(out)
        for result, out in zip(work.results, work.outs, strict=True):
            ins = (values[result.value], *([values[result.scale]] if result.scale >= 0 else []))
            reduced = replace(result, value=0, scale=len(ins) - 1 or -1)
            self._small(Work(work.shape, ins, (), (reduced,), (out,)))
        self.scratch_bytes += len(work.steps) * bytes_
        self.scratch = begin
