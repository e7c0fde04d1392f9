"""Small steps as straight-line code, compiled by LLVM for one Program and one number of rows.

The machine spends some 60 ns on every instruction of its table, however little there is to compute: a network of ten or
a hundred parameters takes no more for a whole step. So a table that is run often becomes a function of its own: a loop
over the steps, in which nothing is looked up. Values between instructions have no memory; they are lanes of vectors,
and LLVM keeps them in registers. Parameters are vectors, too, from the first step to the last, but for those of
products that are large enough for loops (straight_products.py).

Every result has the bits that the machine gives it: the same functions, and sums in the same order.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from llvmlite import binding, ir

from fastbp import scalars
from fastbp.backends.cpu import chain_words as chain
from fastbp.backends.cpu import words
from fastbp.backends.cpu.straight_elements import BYTE, Element, UnsuitableError, Where, Written
from fastbp.backends.cpu.straight_products import Products
from fastbp.backends.cpu.target import VECTOR_BYTES, target
from fastbp.backends.cpu.vectors import (
    I32,
    I64,
    STACK_VECTORS,
    SUMS,
    Vector,
    add,
    below,
    higher,
    logarithm,
    reductions,
    softmaxes,
)
from fastbp.backends.cpu.words import EXTRA, OUT, OUT2, A, B, Y

# Of a table that is worth it: operations on vectors, or these times rows, for with many rows the machine's tiles are
# better; vectors of parameters and states. One row: 784-30-10 has 12,194 operations and takes 0.8 of the time,
# 784-100-10 40,357 and 0.8, 256-256 32,896 and 1.05. 32-32-32-10 on 8 rows 6968 and 0.83, on 16 rows 13,344 and 1.2;
# 64-64-64-10 on 4 rows 13,684 and 0.96, on 16 rows 48,112 and 1.6. 2-4-1 on 100 rows 658 and 0.4.
MOST_OPERATIONS, MOST_OF_ROWS, MOST_CARRIED = 1600, 56_000, 256
# Products are loops over matrices in memory from so many operations on: 16-32-8 on one row takes 0.33 of the time, 0.52
# without loops, 0.42 with loops from 128 on; other small networks 1.0 to 1.5 times as long without.
LOOP_FROM = 64
NAME = "steps"

_UNARY, _BINARY, _TERNARY = (list(t.values()) for t in (scalars.UNARY, scalars.BINARY, scalars.TERNARY))
_RULES = list(scalars.UPDATES.values())


def _itself(vector: Vector) -> Vector:
    return vector


class Steps:
    """A loop over steps that run one table, as compiled code.

    ``run(bases, plan, count)``: the addresses of the slots; (table, position, step) of each step, of which the first is
    not read; and how many there are. All are addresses and int64, as in a call of the machine.
    """

    def __init__(self, module: ir.Module) -> None:
        binding.initialize_native_target()
        binding.initialize_native_asmprinter()
        triple, cpu, features = target()
        machine = binding.Target.from_triple(triple).create_target_machine(cpu=cpu, features=features, opt=3)
        code = binding.parse_assembly(str(module))
        # What straight-line code needs. LLVM's usual passes take longer to no use, and one of them has ended the
        # process on vectors of another length ("cast<Ty>() argument of incompatible type").
        passes = binding.create_new_module_pass_manager()
        passes.add_instruction_combine_pass()
        passes.add_dead_code_elimination_pass()
        passes.run(code, binding.create_pass_builder(machine, binding.PipelineTuningOptions()))
        self._engine = binding.create_mcjit_compiler(code, machine)  # owns the code
        self._engine.finalize_object()
        function = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
        self.run: Callable[[int, int, int], None] = function(self._engine.get_function_address(NAME))


def suits(table: np.ndarray, rows: int, dtype: str) -> bool:
    """Whether a table for so many rows may be worth code of its own."""
    if not len(table) or table[:, words.SHARED].any() or not np.isin(table[:, words.OP], list(_Emitter.METHODS)).all():
        return False
    operations = int(_operations(table, dtype).sum())
    return operations <= MOST_OPERATIONS or operations * rows <= MOST_OF_ROWS


def _operations(table: np.ndarray, dtype: str) -> np.ndarray:
    """On vectors, by instruction."""
    rows, cols, inner = table[:, [words.M, words.N, words.K]].T
    vectors = -(-rows * cols * np.dtype(dtype).itemsize // VECTOR_BYTES)
    products = np.isin(table[:, words.OP], (words.PRODUCT, words.PRODUCT_UPDATE))
    found: np.ndarray = vectors * (2 + inner * products)
    return found


def steps_for(
    table: np.ndarray, dtype: str, absolute: int, moves: Mapping[int, tuple[int, int]], parameters: Iterable[int]
) -> Steps | None:
    """Code for a bound table, or None if it is too long or has what is not done here.

    Args:
        absolute: the slot whose offsets are addresses.
        moves: slots whose address differs from step to step: bytes a position and a step.
        parameters: slots that updates may change.
    """
    try:
        first = _Emitter(table, dtype, absolute, moves, frozenset(parameters), ())
        layout = tuple(dict.fromkeys(places for places, _ in first.updated))
        if len(layout) > MOST_CARRIED:
            return None
        # again, with parameters in vectors as updates leave them
        return Steps(_Emitter(table, dtype, absolute, moves, frozenset(parameters), layout).module)
    except UnsuitableError:
        return None


class _Emitter(Products):
    """Emits the loop."""

    METHODS: Mapping[int, str] = {
        words.PRODUCT: "_product",
        words.PRODUCT_UPDATE: "_product_update",
        words.MAP_UNARY: "_map",
        words.MAP_BINARY: "_map",
        words.CHAIN: "_chain",
        words.SOFTMAX: "_softmax",
        words.CROSS_ENTROPY: "_cross_entropy",
        words.GATHER: "_gather",
        words.ONEHOT: "_onehot",
        words.UPDATE: "_update",
    }

    def __init__(
        self,
        table: np.ndarray,
        dtype: str,
        absolute: int,
        moves: Mapping[int, tuple[int, int]],
        parameters: frozenset[int],
        layout: tuple[tuple[Where, ...], ...],
    ) -> None:
        self.module = ir.Module(NAME)
        self.module.triple = target()[0]
        function = ir.Function(self.module, ir.FunctionType(ir.VoidType(), [BYTE, BYTE, I64]), NAME)
        b = ir.IRBuilder(function.append_basic_block("entry"))
        super().__init__(b, dtype, absolute, parameters)
        bases, plan, count = function.args
        slots = 1 + max(absolute, int(table[:, words.OPERANDS :: 4].max()), *moves, words.PARTIALS)
        self.bases = [b.load(self._place(bases, 8 * slot, BYTE)) for slot in range(slots)]
        begun = [self._vector([Element(self.bases[slot], byte, True) for slot, byte in group]) for group in layout]
        self.memo.clear()
        entry, loop, end = b.block, b.append_basic_block("step"), b.append_basic_block("end")
        b.branch(loop)
        b.position_at_end(loop)
        turn = b.phi(I64)
        turn.add_incoming(I64(0), entry)
        carried = [b.phi(self.m.type) for _ in layout]
        for group, phi, vector in zip(layout, carried, begun, strict=True):
            phi.add_incoming(vector.value, entry)
            self._keep(group, Vector(self.m, phi))
        line = b.gep(plan, [b.mul(turn, I64(24))])
        position, step = (b.load(self._place(line, 8 * word, I64)) for word in (1, 2))
        for slot, (a_position, a_step) in moves.items():
            moved = b.add(b.mul(position, I64(a_position)), b.mul(step, I64(a_step)))
            self.bases[slot] = b.gep(self.bases[slot], [moved])
        for row, in_loops in zip(table.tolist(), _operations(table, dtype) >= LOOP_FROM, strict=True):
            self.row, self.in_loops = row, bool(in_loops)
            getattr(self, self.METHODS[row[words.OP]])()
            self._forget_memory()
            self._check_length()
        ended = [self._vector([self.known[place] for place in group]) for group in layout]
        following = b.add(turn, I64(1))
        for phi, vector in zip((turn, *carried), (following, *(v.value for v in ended)), strict=True):
            phi.add_incoming(vector, b.block)
        b.cbranch(b.icmp_signed("<", following, count), loop, end)
        b.position_at_end(end)
        for group, vector in zip(layout, ended, strict=True):
            self._store(group, vector)
        b.ret_void()

    # ---- elementwise -----------------------------------------------------------------------------------------------

    def _elements(self, done: Container[tuple[int, int]] = ()) -> list[list[tuple[int, int]]]:
        rows, cols = self.row[words.M], self.row[words.N]
        return self._groups([e for i in range(rows) for j in range(cols) if (e := (i, j)) not in done], cols)

    def _update(self) -> None:
        rule = _RULES[self.row[words.CODE]]
        which = (OUT, B, Y)[: 1 + len(rule.states)]
        written: list[Written] = []
        hyper = self._hyper(len(rule.hyper))
        for group in self._elements(self._updated_in_memory(rule, hyper, which)):
            theta, gradient, *states = (self._read(operand, group) for operand in (OUT, A, *which[1:]))
            new = rule.formula(self.m, hyper, theta, gradient, *states)
            places = [tuple(self._in_row(operand, i, j) for i, j in group) for operand in which]
            written += zip(places, new, strict=True)
        self._write(written)

    def _updated_in_memory(
        self, rule: Any, hyper: tuple[Vector, ...], which: Sequence[int]
    ) -> Container[tuple[int, int]]:
        """Elements of one row whose gradient lies on the stack: they are updated in loops."""
        cols, slots = self.row[words.N], {self._operand(operand)[0] for operand in which}
        done: set[tuple[int, int]] = set()
        if not self.in_loops or self.row[words.M] != 1 or not slots <= self.parameters:
            return done
        gradients = [self._element(*self._at(A, 0, j)) for j in range(cols)]
        first = 0
        while first < cols:
            one, end = gradients[first], first + 1
            while end < cols and gradients[end] == one._replace(at=one.at + (end - first) * self.item):
                end += 1
            if one.in_memory and end - first >= 2 * self.lanes:
                self._update_run(rule, hyper, one, [self._in_row(operand, 0, first) for operand in which], end - first)
                done |= {(0, j) for j in range(first, end)}
            first = end
        return done

    def _update_run(
        self, rule: Any, hyper: tuple[Vector, ...], gradient: Element, places: Sequence[Where], count: int
    ) -> None:
        """So many elements from those places on, whose gradient begins there."""
        b, (turns, rest) = self.builder, divmod(count, self.lanes)
        for slot, byte in places:
            self._stays_in_memory(slot, byte, byte + count * self.item)
        begins = [(gradient.source, int(gradient.at)), *((self.bases[slot], byte) for slot, byte in places)]
        lines = [b.gep(base, [I64(byte)]) for base, byte in begins]

        def update(byte: Any, size: int) -> None:
            here = [b.gep(line, [byte]) for line in lines]
            gradient, theta, *states = (self._part(line, 0, size) for line in here)
            for line, new in zip(here[1:], rule.formula(self.m, hyper, theta, gradient, *states), strict=True):
                self._store_at(line, 0, new, range(size))

        def body(turn: Any, values: list[Vector]) -> list[Vector]:
            update(b.mul(turn, I64(VECTOR_BYTES)), self.lanes)
            return values

        self._loop(turns, [], body)
        if rest:
            update(I64(turns * VECTOR_BYTES), rest)

    def _map(self) -> None:
        code, written = self.row[words.CODE], []
        for group in self._elements():
            x = self._read(A, group)
            if self.row[words.OP] == words.MAP_UNARY:
                value = _UNARY[code](self.m, x)
            else:
                value = _BINARY[code](self.m, x * self._number(*self._operand(EXTRA)[:2]), self._read(B, group))
            written.append((tuple(self._in_row(OUT, i, j) for i, j in group), value))
        self._write(written)

    # ---- rows ------------------------------------------------------------------------------------------------------

    def _gather(self) -> None:
        """Rows of the batch are where they are in the data set: nothing is copied."""
        b, size = self.builder, 4 * self.row[words.N]
        (to, offset, _, _), (data, first, _, _), (order, index, _, _) = (self._operand(w) for w in (OUT, A, B))
        if to != words.WORKSPACE or data in self.parameters:
            raise UnsuitableError("rows that go out, or of what is not in memory while steps run")
        for r in range(self.row[words.M]):
            number = b.load(self._place(self.bases[order], index + 8 * r, I64))
            line = b.gep(self.bases[data], [b.add(b.mul(number, I64(size)), I64(first))])
            for byte in range(0, size, 4):
                self.known[to, offset + r * size + byte] = Element(line, byte, True)

    def _rows(self) -> Iterator[tuple[list[int], list[Vector]]]:
        """Rows that share vectors, a row in each lane, and a vector for each column of A."""
        rows, n = self.row[words.M], self.row[words.N]
        if n > STACK_VECTORS:
            raise UnsuitableError("long rows")
        for start in range(0, rows, self.lanes):
            some = list(range(start, min(rows, start + self.lanes)))
            yield some, self._columns(A, some)

    def _columns(self, which: int, rows: list[int]) -> list[Vector]:
        n = self.row[words.N]
        return [self._vector(self._element(*self._in_row(which, r, c)) for r in rows) for c in range(n)]

    def _in_rows(self, which: int, rows: list[int], columns: list[Vector]) -> Iterator[Written]:
        """Columns back to where rows belong."""
        elements = [(r, c) for r in range(len(rows)) for c in range(len(columns))]
        for group in self._groups(elements, len(columns)):
            vector = self._vector(Element(columns[c].value, r) for r, c in group)
            yield tuple(self._in_row(which, rows[r], c) for r, c in group), vector

    def _softmax(self) -> None:
        m, code = self.m, self.row[words.CODE]
        written: list[Written] = []
        for rows, z in self._rows():
            y = self._columns(B, rows) if code == words.LOGARITHMS_GRAD else z
            out: list[Vector] = []

            def over_row(start: float, step: Callable[[Vector, Vector], Vector], z: list[Vector] = z) -> Vector:
                return functools.reduce(step, z, Vector(m, m.constant(start)))

            def write(
                formula: Callable[[Vector, Callable[[], Vector]], Vector],
                pairs: Sequence[tuple[Vector, Vector]] = tuple(zip(z, y, strict=True)),
                out: list[Vector] = out,
            ) -> None:
                out += [formula(own, functools.partial(_itself, other)) for own, other in pairs]

            softmaxes(m, over_row, write, out.append)[code]()
            written += self._in_rows(OUT, rows, out)
        self._write(written)

    def _onehot(self) -> None:
        written: list[Written] = []
        for start in range(0, self.row[words.M], self.lanes):
            rows = list(range(start, min(self.row[words.M], start + self.lanes)))
            written += self._in_rows(OUT, rows, self._labelled(A, rows))
        self._write(written)

    def _cross_entropy(self) -> None:
        """As simd.cross_entropy_lanes does it."""
        m, code = self.m, self.row[words.CODE]
        zero = Vector(m, m.constant(0.0))
        written: list[Written] = []
        for rows, z in self._rows():
            t = self._labelled(B, rows) if code & words.BY_LABELS else self._columns(B, rows)
            top = Vector(m, m.constant(-float("inf")))
            for column in z:
                top = higher(top, column)
            exponentials, total = [below(m, column, top) for column in z], zero
            for e in exponentials:
                total = total + e
            shift, result, targets = m.log(total), zero, zero
            for column, own in zip(z, t, strict=True):
                result, targets = m.fma(logarithm(m, column, top, shift), own, result), targets + own
            written += self._in_rows(OUT, rows, [result])
            if code & words.WITH_GRADIENT:
                factor = self._number(*self._operand(EXTRA)[:2])
                share = targets * factor / total
                grad = [own * factor - e * share for own, e in zip(t, exponentials, strict=True)]
                written += self._in_rows(OUT2, rows, grad)
        self._write(written)

    def _labelled(self, which: int, rows: list[int]) -> list[Vector]:
        """The columns of a matrix with a 1 in each row where its label says."""
        m, b = self.m, self.builder
        slot, offset, _, _ = self._operand(which)
        labels = ir.Constant(ir.VectorType(I64, self.lanes), [-1] * self.lanes)
        for lane, r in enumerate(rows):
            source, byte, _ = self._element(slot, offset + 8 * r)
            labels = b.insert_element(labels, b.load(self._place(source, int(byte), I64)), I32(lane))
        return [
            Vector(m, b.select(b.icmp_signed("==", labels, ir.Constant(labels.type, [c] * self.lanes)),
                               m.constant(1.0), m.constant(0.0)))
            for c in range(self.row[words.N])
        ]  # fmt: skip

    # ---- chains ----------------------------------------------------------------------------------------------------

    def _chain(self) -> None:
        """A chain that is one block."""
        _Chain(self).emit()


class _Chain:
    """The operations of a chain's table, see chain.py; all of it is one block of ``rows`` by ``cols``."""

    def __init__(self, emitter: _Emitter) -> None:
        self.of = emitter
        self.m = emitter.m
        address = emitter.row[words.CODE]
        head = (ctypes.c_int64 * chain.HEADER).from_address(address)[:]
        count = sum(head[k] for k in (chain.PROLOGUE, chain.BODY, chain.EPILOGUE))
        length = chain.HEADER + head[chain.PLACES] * chain.PLACE + count * chain.OPERATION
        table = (ctypes.c_int64 * length).from_address(address)[:]
        after = chain.HEADER + head[chain.PLACES] * chain.PLACE
        self.places = [table[k : k + chain.PLACE] for k in range(chain.HEADER, after, chain.PLACE)]
        self.operations = [table[k : k + chain.OPERATION] for k in range(after, length, chain.OPERATION)]
        self.rows, self.cols = emitter.row[words.M], emitter.row[words.N]
        self.size = self.rows * self.cols
        if not self.size or self.rows > head[chain.HEIGHT] or self.cols > head[chain.WIDTH]:
            raise UnsuitableError("several blocks, or none")

    def emit(self) -> None:
        for place in [p for p in self.of.known if p[0] == self.of.OWN]:
            del self.of.known[place]
        for kind, code, *operands in self.operations:
            self._operate(kind, code, *operands)

    def _where(self, number: int, element: int = 0) -> Where:
        """Elements of a place lie side by side."""
        place = self.places[number]
        slot = self.of.OWN if place[chain.SLOT] == chain.OWN else place[chain.SLOT]
        return slot, place[chain.OFFSET] + element * self.of.item

    def _read(self, number: int, elements: Iterable[int]) -> Vector:
        """Elements, or one number for all of them."""
        step = self.places[number][chain.STEP]
        return self.of._vector(self.of._element(*self._where(number, e * step)) for e in elements)

    def _read_from(self, number: int, first: int, elements: range) -> Vector:
        return self._read(number, range(first + elements.start, first + elements.stop))

    def _factor(self, number: int) -> Vector:
        return self.of._number(*self._where(number)) if number >= 0 else Vector(self.m, self.m.constant(1.0))

    def _groups(self, size: int) -> list[range]:
        return [range(k, min(size, k + self.of.lanes)) for k in range(0, size, self.of.lanes)]

    def _write(self, out: int, values: Iterable[tuple[range, Vector]]) -> None:
        self.of._write([(tuple(self._where(out, e) for e in group), value) for group, value in values])

    def _folded(self, code: int, size: int, values: Callable[[range], Vector]) -> Vector:
        """The sum or the maximum of elements, as simd.reduce_row makes it, in all lanes."""
        m, lanes = self.m, self.of.lanes
        start, combine = reductions(m)[code]
        totals = [Vector(m, m.constant(start))] * SUMS
        for number, group in enumerate(self._groups(size)):
            old = totals[number % SUMS]
            new = combine(old, values(group))
            if len(group) < lanes:
                mask = ir.Constant(m.mask_type, [int(lane < len(group)) for lane in range(lanes)])
                new = Vector(m, m.builder.select(mask, new.value, old.value))
            totals[number % SUMS] = new
        first, second, third, fourth = totals
        return m.splat(m.reduce(combine(combine(first, second), combine(third, fourth)), combine))

    def _operate(self, kind: int, code: int, out: int, x: int, y: int, z: int, c: int, scale: int) -> None:
        m, groups = self.m, self._groups(self.size)
        match kind:
            case chain.UNARY:
                self._write(out, [(g, _UNARY[code](m, self._read(x, g))) for g in groups])
            case chain.BINARY:
                factor = self._factor(c)
                self._write(out, [(g, _BINARY[code](m, self._read(x, g) * factor, self._read(y, g))) for g in groups])
            case chain.TERNARY:
                operands = [[self._read(k, g) for k in (x, y, z)] for g in groups]
                self._write(out, [(g, _TERNARY[code](m, *o)) for g, o in zip(groups, operands, strict=True)])
            case chain.SQUARED_ERROR if code:
                errors = {g.start: self._read(x, g) - self._read(y, g) for g in groups}
                factor = self._factor(c)
                total = self._folded(words.SUM, self.size, lambda g: errors[g.start] * errors[g.start])
                self._write(out, [(g, errors[g.start] * factor) for g in groups])
                self._write(z, [(range(1), total * self._factor(scale))])
            case chain.REDUCE_WHOLE:
                total = self._folded(code, self.size, lambda g: self._read(x, g))
                self._write(out, [(range(1), total * self._factor(c))])
            case chain.REDUCE_ROWS:
                for r in range(self.rows):
                    first = r * self.cols
                    total = self._folded(code, self.cols, functools.partial(self._read_from, x, first))
                    self._write(out, [(range(r, r + 1), total * self._factor(c))])
            case chain.TILE:
                self._copy(out, [(x, e % self.cols) for e in range(self.size)])
            case chain.SPREAD:
                self._copy(out, [(x, e // self.cols) for e in range(self.size)])
            case chain.CLEAR | chain.CLEAR_MAX:
                start = Element(None, -float("inf") if kind == chain.CLEAR_MAX else 0.0)
                self.of.known.update((self._where(out, e), start) for e in range(code))
            case chain.END_COLUMNS:
                self._end_columns(code, out, x, c)
            case _:
                raise UnsuitableError("a mask, or several blocks")

    def _copy(self, out: int, sources: list[tuple[int, int]]) -> None:
        """Other names for what is there already."""
        for e, (number, element) in enumerate(sources):
            self.of.known[self._where(out, e)] = self.of._element(*self._where(number, element))

    def _end_columns(self, code: int, out: int, running: int, c: int) -> None:
        """The rows of the block added up, or their maximum."""
        combine = (add, self.m.maximum)[code]
        written = []
        for group in self._groups(self.cols):
            total = self._read(running, group)
            for r in range(1, self.rows):
                total = combine(total, self._read_from(running, r * self.cols, group))
            written.append((group, total * self._factor(c) + 0.0))
        self._write(out, written)
