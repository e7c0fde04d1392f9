"""Program + number of rows -> the table that GPU kernels read, and the launches that do it.

Work is cut by shape alone, never by the card, so that results are the same on every one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fastbp.backends.cuda import chain_table, table
from fastbp.backends.cuda.chain_table import Operand, Part, Pieces, Place, Work, parts
from fastbp.backends.cuda.codes import CODES, UPDATE_CODES
from fastbp.backends.cuda.tiles import LARGE, SMALL, TENSOR_TILES, TensorTile, Tile
from fastbp.errors import InputError
from fastbp.program import Instruction, Program, Result, Step, const_value, place

ALIGNMENT = 256  # bytes: temps begin where the widest accesses may
MOST_BLOCKS = 1 << 16
THREADS = 256  # of a block that has no tile or chain to say how many
WARPS = THREADS // 32
LARGE_TILES = 100  # cards have 80 to 170 multiprocessors; not measured yet
# The gradient of a weight sums over all rows: where its tiles are few, rows are cut so that about WANTED_BLOCKS work,
# each on SHORTEST rows at least. Not measured yet.
WANTED_BLOCKS, SHORTEST = 264, 256

WORKSPACE, CONSTS = 0, 1  # the first slots


@dataclass(frozen=True)
class Launch:
    """One kernel's launch: its name, where its row begins in the table, and how many blocks, threads, shared bytes."""

    kernel: str
    row: int
    blocks: int
    threads: int
    shared: int


@dataclass(frozen=True)
class Bound:
    """A Program for one number of rows.

    Attributes:
        words: the table, int64.
        launches: in order.
        consts: numbers that it reads, in slot CONSTS from ``consts_at`` on.
        workspace: bytes that it needs, in slot WORKSPACE.
    """

    words: np.ndarray
    launches: tuple[Launch, ...]
    consts: np.ndarray
    workspace: int


class Slots:
    """Numbers of the slots: the workspace, the constants, and one for each buffer from outside."""

    def __init__(self, program: Program) -> None:
        outside = [i for i, b in enumerate(program.buffers) if b.base is None and b.kind not in ("temp", "const")]
        self.of = {index: 2 + k for k, index in enumerate(outside)}
        self.count = 2 + len(outside)


def bind(program: Program, slots: Slots, n: int, dtype: str, precision: str = "highest", consts_at: int = 0) -> Bound:
    """The table for n rows; ``precision`` "tf32" or "bf16" lets products of float32 be done on tensor cores.

    Args:
        consts_at: bytes from the beginning of slot CONSTS to where this table's constants will lie.
    """
    return _Binder(program, slots, n, dtype, precision, consts_at).bound()


class _Binder:
    def __init__(self, program: Program, slots: Slots, n: int, dtype: str, precision: str, consts_at: int) -> None:
        self.program = program
        self.n = n
        self.item = 4 if dtype == "float32" else 8
        self.precision = precision if dtype == "float32" else "highest"
        consts = [i for i, b in enumerate(program.buffers) if b.kind == "const"]
        self.consts = np.array([const_value(program.buffers[i], n) for i in consts] or [0.0], dtype)
        temps, size = place(program, n, self.item, ALIGNMENT)
        self.places = {index: Place(slot, 0) for index, slot in slots.of.items()}
        self.places |= {index: Place(CONSTS, consts_at + k * self.item) for k, index in enumerate(consts)}
        self.places |= {index: Place(WORKSPACE, offset) for index, offset in temps.items()}
        self.scratch = Place(WORKSPACE, -(-size // ALIGNMENT) * ALIGNMENT)  # behind the temps: pieces of sums
        self.scratch_bytes = 0
        self.words: list[int] = []
        self.launches: list[Launch] = []

    def bound(self) -> Bound:
        for instruction in self.program.instructions:
            self._emit(instruction)
        words = np.array(self.words or [0], np.int64)
        return Bound(words, tuple(self.launches), self.consts, max(1, self.scratch.offset + self.scratch_bytes))

    # ---- operands ------------------------------------------------------------------------------------------------

    def _operand(self, index: int) -> Operand:
        """A buffer, row by row."""
        buffer = self.program.buffers[index]
        rows, cols = self.program.shape(index, self.n)
        base = index if buffer.base is None else buffer.base
        place = self.places[base]
        return Operand(replace(place, offset=place.offset + buffer.offset * self.item, row=cols, col=1), rows, cols)

    def _broadcast(self, index: int, shape: tuple[int, int]) -> Place:
        return self._operand(index).over(shape)

    def _partial(self, bytes_: int) -> None:
        """Ask for so much memory behind the temps, until the next instruction."""
        self.scratch_bytes = max(self.scratch_bytes, bytes_)

    # ---- rows ----------------------------------------------------------------------------------------------------

    def _row(
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
        if max(sizes) >= 2**31 or pieces >= 2**31:
            raise InputError(f"a matrix of {sizes[0]} by {sizes[1]} is too large for one kernel: take smaller batches")
        first = len(self.words)
        self.words += [code, then, *sizes, pieces, piece, head, how]
        for which in range(6):
            self.words += operands.get(which, Place(0, 0, 0, 0)).words
        return first

    def _launch(self, kernel: str, row: int, blocks: int, threads: int = THREADS, shared: int = 0) -> None:
        self.launches.append(Launch(kernel, row, max(1, min(blocks, MOST_BLOCKS)), threads, shared))

    def _over_elements(self, kernel: str, row: int, elements: int) -> None:
        """A launch with a thread for each element."""
        if elements:
            self._launch(kernel, row, -(-elements // THREADS))

    # ---- instructions --------------------------------------------------------------------------------------------

    def _emit(self, i: Instruction) -> None:
        match i.op:
            case "matmul":
                self._product(i)
            case "chain":
                domain = i.domain[0].at(self.n), i.domain[1].at(self.n)
                self._chain(i, domain, i.steps, i.results)
            case "map":
                step = Step(i.code, tuple(range(len(i.operands))), len(i.ins) - 1 if i.scaled else -1)
                self._chain(i, self.program.shape(i.outs[0], self.n), (step,), (Result(len(i.ins)),))
            case "sum":
                self._chain(i, self.program.shape(i.ins[0], self.n), (), (Result(0, "sum", 0),))
            case "softmax" | "log_softmax" | "log_softmax_grad" | "logsumexp":
                self._softmax(i)
            case "transpose":
                x, out = self._operand(i.ins[0]), self._operand(i.outs[0])
                self._move(replace(x.place, row=1, col=x.cols), out.place, (out.rows, out.cols), 0, out.cols)
            case "concat":
                self._concat(i)
            case "columns":
                x, out = self._operand(i.ins[0]), self._operand(i.outs[0])
                self._move(self._column(x.place, i.start), out.place, (out.rows, out.cols), 0, out.cols)
            case "pad":
                x, out = self._operand(i.ins[0]), self._operand(i.outs[0])
                self._move(x.place, out.place, (out.rows, out.cols), i.start, x.cols)
            case "place":
                x, out = self._operand(i.ins[0]), self._operand(i.outs[0])
                self._move(x.place, out.place, (1, out.rows * out.cols), i.start, x.rows * x.cols)
            case "onehot":
                out = self._operand(i.outs[0])
                operands = {table.OUT: out.place, table.A: self._operand(i.ins[0]).place}
                row = self._row(operands, sizes=(out.rows, out.cols, 0))
                self._over_elements("onehot", row, out.rows * out.cols)
            case "gather" | "take":
                self._gather(i)
            case "scatter_add":
                x, out = self._operand(i.ins[0]), self._operand(i.outs[0])
                operands = {table.OUT: out.place, table.A: x.place, table.B: self._operand(i.ins[1]).place}
                row = self._row(operands, sizes=(out.rows, out.cols, x.rows))
                self._over_elements("scatter", row, out.rows * out.cols)
            case "update":
                self._update(i)

    def _column(self, place: Place, start: int) -> Place:
        return replace(place, offset=place.offset + start * self.item)

    def _move(self, x: Place, out: Place, shape: tuple[int, int], start: int, width: int) -> None:
        operands = {table.OUT: out, table.A: x}
        row = self._row(operands, sizes=(*shape, width), head=start)
        self._over_elements("move", row, shape[0] * shape[1])

    def _concat(self, i: Instruction) -> None:
        out, at = self._operand(i.outs[0]), 0
        for index in i.ins:
            x = self._operand(index)
            self._move(x.place, self._column(out.place, at), (x.rows, x.cols), 0, x.cols)
            at += x.cols

    def _gather(self, i: Instruction) -> None:
        out = self._operand(i.outs[0])
        bytes_ = 8 if self.program.buffers[i.outs[0]].dtype == "int" else self.item
        operands = {
            table.OUT: out.place,
            table.A: self._operand(i.ins[0]).place,
            table.B: self._operand(i.ins[1]).place,
        }
        words = out.cols * bytes_ // 4
        row = self._row(operands, sizes=(out.rows, words, 0))
        self._over_elements("gather", row, out.rows * words)

    def _softmax(self, i: Instruction) -> None:
        code = {
            "softmax": table.PROBABILITIES,
            "log_softmax": table.LOGARITHMS,
            "log_softmax_grad": table.LOGARITHMS_GRAD,
            "logsumexp": table.LOG_SUM_EXP,
        }[i.op]
        x = self._operand(i.ins[0])
        operands = {
            table.OUT: self._operand(i.outs[0]).place,
            table.A: x.place,
            table.B: self._operand(i.ins[-1]).place,
        }
        row = self._row(operands, code=code, sizes=(x.rows, x.cols, 0))
        if x.rows:
            self._launch("softmax", row, -(-x.rows // WARPS))

    def _update(self, i: Instruction) -> None:
        theta, g, *states, hyper = (self._operand(index) for index in i.ins)
        operands = {
            table.OUT: theta.place,
            table.A: g.place,
            table.B: (states[0] if states else g).place,
            table.Y: (states[1] if len(states) > 1 else g).place,
            table.EXTRA: hyper.place,
        }
        size = theta.rows * theta.cols
        row = self._row(operands, code=UPDATE_CODES[i.code], sizes=(len(states), size, 0))
        self._over_elements("update", row, size)

    # ---- products ------------------------------------------------------------------------------------------------

    def _product(self, i: Instruction) -> None:
        a, b = (self._operand(index) for index in i.ins[:2])
        m, k = (a.cols, a.rows) if i.ta else (a.rows, a.cols)
        n = b.rows if i.tb else b.cols
        if not m * n:
            return
        x = replace(a.place, row=1, col=a.cols) if i.ta else a.place
        w = replace(b.place, row=1, col=b.cols) if i.tb else b.place
        finish = self._finish(i, (m, n))
        over_rows = self.program.buffers[i.ins[0]].shape[0 if i.ta else 1].per_row > 0
        kernel, tile = self._kernel(m, n)
        tiles = -(-m // tile.bm) * -(-n // tile.bn)
        pieces = min(-(-k // SHORTEST), -(-WANTED_BLOCKS // tiles)) if over_rows and tiles < WANTED_BLOCKS // 2 else 1
        piece = -(-max(1, -(-k // max(1, pieces))) // 32) * 32  # whole steps of any tile, and aligned
        pieces = max(1, -(-k // piece))
        shared = tile.shared_bytes(self.item)
        if pieces == 1:
            row = self._row({**finish[0], table.A: x, table.B: w}, **finish[1], sizes=(m, n, k), piece=piece)
            self._launch(kernel, row, tiles, tile.threads, shared)
            return
        self._partial(pieces * m * n * self.item)
        sums = replace(self.scratch, row=n)
        row = self._row({table.OUT: sums, table.A: x, table.B: w}, sizes=(m, n, k), pieces=pieces, piece=piece)
        self._launch(kernel, row, tiles * pieces, tile.threads, shared)
        row = self._row({**finish[0], table.A: sums}, **finish[1], sizes=(m, n, 0), pieces=pieces)
        self._over_elements("combine", row, m * n)

    def _kernel(self, m: int, n: int) -> tuple[str, Tile | TensorTile]:
        """Which product: on tensor cores if that is allowed, by tiles as large as keep a card busy."""
        large = -(-m // LARGE.bm) * -(-n // LARGE.bn) >= LARGE_TILES and self.item == 4
        size = "large" if large else "small"
        if self.precision in TENSOR_TILES:
            return f"{self.precision}_{size}", TENSOR_TILES[self.precision][large]
        return f"product_{size}", LARGE if large else SMALL

    def _finish(self, i: Instruction, shape: tuple[int, int]) -> tuple[dict[int, Place], dict[str, int]]:
        """Operands and words of a product's epilogue."""
        operands = {table.OUT: self._operand(i.outs[0]).place}
        both = len(i.outs) > 1
        if both:
            operands[table.OUT2] = self._operand(i.outs[1]).place
        if i.code:
            operands[table.Y] = self._broadcast(i.ins[2], shape)
        code, then = (CODES[name] if name else table.NONE for name in (i.code, i.then))
        return operands, {"code": code, "then": then, "how": table.BOTH if both else 0}

    # ---- chains --------------------------------------------------------------------------------------------------

    def _chain(self, i: Instruction, domain: tuple[int, int], steps: Sequence[Step], results: Sequence[Result]) -> None:
        ins, outs = (tuple(self._operand(k) for k in side) for side in (i.ins, i.outs))
        work = Work(domain, ins, tuple(steps), tuple(results), outs)
        for threads in (chain_table.THREADS, 64, 32):
            made = parts(work, self.scratch, self.item, threads)
            if max(self._registers(part, threads) for part in made) <= chain_table.MOST_SHARED:
                self._parts(made, threads)
                return
        self._step_by_step(work)

    def _registers(self, part: Part, threads: int) -> int:
        """Bytes of a block's registers."""
        return part.registers * threads * chain_table.QUAD * self.item

    def _parts(self, made: Sequence[Part], threads: int) -> None:
        """A row and a launch for each table, and what adds up their pieces' sums."""
        used = 0
        for part in made:
            row = self._row({}, sizes=(*part.shape, 0), pieces=part.pieces, head=table.WIDTH)
            self.words += part.words
            self._launch("chain", row, part.pieces, threads, self._registers(part, threads))
            for sums in part.sums:
                self._add_pieces(sums, replace(self.scratch, offset=self.scratch.offset + used))
                used += sums.pieces * sums.elements * self.item
        self._partial(used)

    def _add_pieces(self, sums: Pieces, at: Place) -> None:
        """Join what every piece made, in order: of one element by a chain, in one block; else a thread an element."""
        result = sums.result
        if sums.elements == 1:
            here = Operand(at, 1, sums.pieces)
            ins = (here,) if sums.factor is None else (here, Operand(sums.factor, 1, 1))
            whole = replace(result, value=0, axis=None, scale=len(ins) - 1 or -1)
            work = Work((1, sums.pieces), ins, (), (whole,), (sums.out,))
            (part,) = parts(work, at, self.item, one_piece=True)
            row = self._row({}, sizes=(*part.shape, 0), head=table.WIDTH)
            self.words += part.words
            self._launch("chain", row, 1, chain_table.THREADS, self._registers(part, chain_table.THREADS))
            return
        operands = {table.OUT: sums.out.place, table.A: at}
        code = table.NONE
        if sums.factor is not None:
            operands[table.Y], code = replace(sums.factor, row=0, col=0), CODES["mul"]
        how = table.MAXIMA if result.how == "max" else 0
        row = self._row(operands, code=code, sizes=(1, sums.elements, 0), pieces=sums.pieces, how=how)
        self._over_elements("combine", row, sums.elements)

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
            self._parts(
                parts(Work(work.shape, ins, (alone,), (Result(len(ins)),), (out,)), begin, self.item),
                chain_table.THREADS,
            )
            values.append(out)
        for result, out in zip(work.results, work.outs, strict=True):
            ins = (values[result.value], *([values[result.scale]] if result.scale >= 0 else []))
            reduced = replace(result, value=0, scale=len(ins) - 1 or -1)
            self._parts(
                parts(Work(work.shape, ins, (), (reduced,), (out,)), self.scratch, self.item), chain_table.THREADS
            )
        self.scratch_bytes += len(work.steps) * bytes_
        self.scratch = begin
