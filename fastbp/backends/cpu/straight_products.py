"""The products of small steps (straight.py): straight-line code, or loops over matrices in memory.

The order of every sum is that of gemm.py and few_rows.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastbp import scalars
from fastbp.backends.cpu import words
from fastbp.backends.cpu.straight_elements import Element, Elements, UnsuitableError, Written
from fastbp.backends.cpu.target import TILE_VECTORS
from fastbp.backends.cpu.vectors import I64, Vector, add, sums_of_lanes, transposed
from fastbp.backends.cpu.words import OUT, OUT2, A, B, Y

ACCUMULATORS = 12  # vectors of a product that are summed at once
MOST_SUMMANDS = 16  # of a gradient in a loop

_UNARY, _BINARY = (list(t.values()) for t in (scalars.UNARY, scalars.BINARY))
_RULES = list(scalars.UPDATES.values())
Group = list[tuple[int, int]]  # elements that share a vector


class Products(Elements):
    """The instructions PRODUCT and PRODUCT_UPDATE."""

    def _product(self) -> None:
        row, m = self.row, self.m
        how, code, then = row[words.HOW], row[words.CODE], row[words.THEN]
        written: list[Written] = []
        hyper = self._hyper(1) if how & words.SGD else ()
        if how & words.SGD:
            slot, offset, stride, _ = self._operand(OUT)
            done = self._update_in_loop(scalars.UPDATES["sgd"], hyper, [(slot, offset, stride * self.item)])
        else:
            done = self._gradient_in_loop()
        for group, total in self._sums(done):
            out, value = tuple(self._in_row(OUT, i, j) for i, j in group), total
            if how & words.BIAS:
                value = value + self._vector(self._element(*self._in_row(Y, 0, j)) for _, j in group)
            if how & words.SGD:
                theta = self._vector(self._element(*place) for place in out)
                (value,) = scalars.UPDATES["sgd"].formula(m, hyper, theta, value)
            if code >= 0:
                value = _BINARY[code](m, value, self._read(Y, group))
            written.append((out, value))
            if then >= 0:
                written.append((tuple(self._in_row(OUT2, i, j) for i, j in group), _UNARY[then](m, value)))
        self._write(written)

    def _product_update(self) -> None:
        rule, n = _RULES[self.row[words.CODE]], self.row[words.N]
        written: list[Written] = []
        begins = [self._operand(which)[:2] for which in (OUT, Y, OUT2)[: 1 + len(rule.states)]]
        hyper = self._hyper(len(rule.hyper))
        done = self._update_in_loop(rule, hyper, [(slot, offset, n * self.item) for slot, offset in begins])
        for group, gradient in self._sums(done):
            places = [tuple((slot, at + (i * n + j) * self.item) for i, j in group) for slot, at in begins]
            theta, *states = (self._vector(self._element(*place) for place in of) for of in places)
            new = rule.formula(self.m, hyper, theta, gradient, *states)
            written += zip(places, new, strict=True)
        self._write(written)

    def _sums(self, first: int) -> list[tuple[Group, Vector]]:
        """The elements of A B from a row on, a vector at a time, in the order of gemm.py or that of dot products."""
        row = self.row
        m, n, how = row[words.M], row[words.N], row[words.HOW]
        plain = how & (words.FEW_ROWS | words.SUMMANDS | words.FEW_COLUMNS | words.OUTER | words.SMALL | words.PACK_T)
        if how & words.PAIRS or (not plain and row[words.PANEL] != TILE_VECTORS * self.lanes):
            raise UnsuitableError("bfloat16, or B in panels")
        elements = [(i, j) for i in range(first, m) for j in range(n)]
        elements += [(m, j) for j in range(n if how & words.ONES else 0)]
        elements += [(0, n)] if how & words.TOTAL else []
        groups = self._groups(elements, n)
        if not groups:
            return []
        if self.in_loops and n >= self.lanes and not how & (words.ONES | words.TOTAL | words.FEW_COLUMNS):
            in_loop = self._turned_in_loop if how & (words.PACK_T | words.DOTS) else self._chains_in_loop
            sums = in_loop(groups)
            if sums is not None:
                return list(zip(groups, sums, strict=True))
        if how & (words.DOTS | words.FEW_COLUMNS):
            return [(group, self._dots(group)) for group in groups]
        found: list[tuple[Group, Vector]] = []
        for start in range(0, len(groups), ACCUMULATORS):
            some = groups[start : start + ACCUMULATORS]
            found += zip(some, self._chains(some), strict=True)
            self._check_length()
        return found

    def _of_a(self, i: int, k: int) -> Element:
        """Of A, which may have one more row, of ones."""
        return Element(None, 1.0) if i == self.row[words.M] else self._element(*self._at(A, i, k))

    def _of_b(self, k: int, j: int) -> Element:
        """Of B, which may be given as its transpose, or have one more column, of ones."""
        if j == self.row[words.N]:
            return Element(None, 1.0)
        turned = self.row[words.HOW] & (words.PACK_T | words.DOTS)
        return self._element(*(self._in_row(B, j, k) if turned else self._in_row(B, k, j)))

    def _dots(self, group: Group) -> Vector:
        """A vector of sums for each, which are then added pairwise."""
        m, k = self.m, self.row[words.K]
        totals = []
        for i, j in group:
            total = Vector(m, m.constant(0.0))
            for start in range(0, k, self.lanes):
                here = range(start, min(k, start + self.lanes))
                x = self._vector([self._of_a(i, q) for q in here], 0.0)
                total = m.fma(x, self._vector([self._of_b(q, j) for q in here], 0.0), total)
            totals.append(total)
        result = sums_of_lanes(m, totals + totals[-1:] * (self.lanes - len(totals)))
        # few columns have a bias added to them, or 0: -0 becomes 0
        few = self.row[words.HOW] & words.FEW_COLUMNS and not self.row[words.HOW] & words.BIAS
        return result + 0.0 if few else result

    def _chains(self, groups: list[Group]) -> list[Vector]:
        """A chain of fused multiply-adds for every block of K."""
        m, k, block = self.m, self.row[words.K], max(1, self.row[words.BLOCK])
        zero = Vector(m, m.constant(0.0))
        totals: list[Vector] = []
        for start in range(0, max(k, 1), block):
            sums = [zero for _ in groups]
            for q in range(start, min(k, start + block)):
                for number, group in enumerate(groups):
                    x = self._vector([self._of_a(i, q) for i, _ in group])
                    y = self._vector([self._of_b(q, j) for _, j in group])
                    # few summands are not added to 0, see one_row.update_by_panels
                    fresh = q == 0 and self.row[words.HOW] & words.SUMMANDS
                    sums[number] = x * y + self._added(group) if fresh else m.fma(x, y, sums[number])
            totals = [t + s for t, s in zip(totals, sums, strict=True)] if totals else sums
        return totals

    def _added(self, group: Group) -> Vector:
        """-0, which changes no number, or 0 for what :func:`machine._total` sums, which turns -0 into 0."""
        return self._vector(Element(None, 0.0 if j == self.row[words.N] else -0.0) for _, j in group)

    # ---- in loops --------------------------------------------------------------------------------------------------

    def _begins(self, groups: Sequence[Sequence[tuple[int, int]]]) -> list[int]:
        """The column where the vector of a group begins in memory: the last one of a row ends with the row."""
        return [min(group[0][1], self.row[words.N] - self.lanes) for group in groups]

    def _chains_in_loop(self, groups: list[Group]) -> list[Vector] | None:
        """:meth:`_chains`, with a loop over each block of K."""
        n, k, block = self.row[words.N], self.row[words.K], max(1, self.row[words.BLOCK])
        of_b = self._matrix(k, n, self._of_b) if k > 1 else None
        if of_b is None or self.row[words.HOW] & words.SUMMANDS:
            return None
        lines = {i: self._line([self._of_a(i, q) for q in range(k)]) for i in dict.fromkeys(g[0][0] for g in groups)}
        found: list[Vector] = []
        for first in range(0, len(groups), ACCUMULATORS):
            some = groups[first : first + ACCUMULATORS]
            begins, rows = self._begins(some), [group[0][0] for group in some]
            together = max(1, ACCUMULATORS // len(some))  # blocks, so that no chain waits for itself
            totals: list[Vector] = []
            starts = list(range(0, k, block))
            whole = k // block // together * together
            for blocks in [starts[q : q + together] for q in range(0, whole, together)] + [[q] for q in starts[whole:]]:
                sums = self._blocks_in_loop(blocks, min(block, k - blocks[0]), rows, begins, lines, of_b)
                for own in sums:
                    totals = [t + s for t, s in zip(totals, own, strict=True)] if totals else own
            found += [self._first_lanes(t, g[0][1] - j) for t, g, j in zip(totals, some, begins, strict=True)]
        return found

    def _blocks_in_loop(
        self, blocks: list[int], length: int, rows: list[int], begins: list[int],
        of_a: Mapping[int, tuple[Any, int]], of_b: tuple[Any, int],
    ) -> list[list[Vector]]:  # fmt: skip
        """The sums of blocks of K of one length, by where they begin: of vectors in those rows and columns of C.

        ``of_a`` and ``of_b`` are where rows of A and the matrix B lie, with the bytes from one summand to the next.
        """
        b, m, zero = self.builder, self.m, Vector(self.m, self.m.constant(0.0))
        size = len(rows)

        def body(turn: Any, sums: list[Vector]) -> list[Vector]:
            new: list[Vector] = []
            for start in blocks:
                q = b.add(turn, I64(start))
                line = b.gep(of_b[0], [b.mul(q, I64(of_b[1]))])
                x = {i: self._number_at(of_a[i][0], b.mul(q, I64(of_a[i][1]))) for i in dict.fromkeys(rows)}
                y = {j: self._vector_at(line, j * self.item) for j in dict.fromkeys(begins)}
                old = sums[len(new) : len(new) + size]
                new += [m.fma(x[i], y[j], total) for i, j, total in zip(rows, begins, old, strict=True)]
            return new

        sums = self._loop(length, [zero] * size * len(blocks), body)
        return [sums[at : at + size] for at in range(0, len(sums), size)]

    def _turned_in_loop(self, groups: list[Group]) -> list[Vector] | None:
        """:meth:`_chains` or :meth:`_dots` where B is given as its transpose, as many of its rows a turn as lanes."""
        m, b, item, lanes = self.m, self.builder, self.item, self.lanes
        rows, n, k = self.row[words.M], self.row[words.N], self.row[words.K]
        of_b = self._matrix(n, k, lambda j, q: self._of_b(q, j)) if k else None
        if of_b is None:
            return None
        starts = range(0, k, lanes)
        dots = bool(self.row[words.HOW] & words.DOTS)
        a = [[self._of_a(i, q) for q in range(k)] for i in range(rows)]
        if dots:  # all that does not change from turn to turn comes first
            x = [[self._vector(of_row[q : q + lanes], 0.0) for q in starts] for of_row in a]
        else:
            x = [[self._vector([e] * lanes) for e in of_row] for of_row in a]
        zero, room = Vector(m, m.constant(0.0)), self._room(rows * n)

        def some_rows(first: Any) -> None:
            line = b.gep(of_b[0], [b.mul(first, I64(of_b[1]))])
            of_rows = [[self._part(line, lane * of_b[1] + q * item, min(lanes, k - q)) for q in starts]
                       for lane in range(lanes)]  # fmt: skip
            to = b.gep(room, [b.mul(first, I64(item))])
            columns = []
            if not dots:
                for part in zip(*of_rows, strict=True):
                    columns += transposed(m, list(part))
            for i in range(rows):
                if dots:
                    totals = []
                    for of_row in of_rows:
                        total = zero
                        for own, other in zip(x[i], of_row, strict=True):
                            total = m.fma(own, other, total)
                        totals.append(total)
                    result = sums_of_lanes(m, totals)
                else:
                    result = self._sum_of_products(x[i], columns[:k])
                self._store_at(to, i * n * item, result, range(lanes))

        def body(turn: Any, values: list[Vector]) -> list[Vector]:
            some_rows(b.mul(turn, I64(lanes)))
            return values

        self._loop(n // lanes, [], body)
        if n % lanes:
            some_rows(I64(n - lanes))
        return [self._vector(Element(room, (i * n + j) * item, True) for i, j in group) for group in groups]

    def _sum_of_products(self, x: Sequence[Vector], y: Sequence[Vector]) -> Vector:
        """The sum of one product or more, block by block."""
        m, block = self.m, max(1, self.row[words.BLOCK])
        totals = []
        for start in range(0, len(x), block):
            own = Vector(m, m.constant(0.0))
            for q in range(start, min(len(x), start + block)):
                fresh = q == 0 and self.row[words.HOW] & words.SUMMANDS  # as in _chains
                own = x[q] * y[q] if fresh else m.fma(x[q], y[q], own)
            totals.append(own)
        return functools.reduce(add, totals)

    def _update_in_loop(self, rule: Any, hyper: tuple[Vector, ...], places: list[tuple[int, int, int]]) -> int:
        """Rows of parameters and states changed by a gradient of few summands; how many have been.

        Args:
            places: slot, offset and bytes from row to row of the parameters and of each state.
        """
        m, row = self.m, self.row
        if not self._has_rows_of_few_summands() or any(slot not in self.parameters for slot, _, _ in places):
            return 0
        rows: int = row[words.M]
        n = row[words.N]
        for slot, first, stride in places:
            self._stays_in_memory(slot, first, first + (rows - 1) * stride + n * self.item)
        here = [(self.builder.gep(self.bases[slot], [I64(first)]), stride) for slot, first, stride in places]

        def new(gradient: Vector, theta: Vector, *states: Vector) -> tuple[Vector, ...]:
            found: tuple[Vector, ...] = rule.formula(m, hyper, theta, gradient, *states)
            return found

        self._rows_in_loop(here, new)
        return rows

    def _gradient_in_loop(self) -> int:
        """Rows of a gradient of few summands, to the stack; how many have been."""
        row = self.row
        slot, offset, stride, _ = self._operand(OUT)
        more = row[words.HOW] & (words.BIAS | words.PACK_T) or row[words.CODE] >= 0 or row[words.THEN] >= 0
        if not self._has_rows_of_few_summands() or more or slot != words.WORKSPACE:
            return 0
        rows: int = row[words.M]
        n = row[words.N]
        room = self._room(rows * n)
        self._rows_in_loop([(room, n * self.item)], lambda gradient, _: (gradient,))
        for i in range(rows):
            for j in range(n):
                place = slot, offset + (i * stride + j) * self.item
                self.known[place] = Element(room, (i * n + j) * self.item, True)
        return rows

    def _has_rows_of_few_summands(self) -> bool:
        """Whether an instruction's product is worth a loop over its rows."""
        row = self.row
        suits = row[words.N] >= self.lanes and row[words.M] > 1 and 0 < row[words.K] <= MOST_SUMMANDS
        return self.in_loops and suits and not row[words.HOW] & (words.TOTAL | words.DOTS | words.FEW_COLUMNS)

    def _rows_in_loop(self, places: list[tuple[Any, int]], new: Callable[..., tuple[Vector, ...]]) -> None:
        """What a rule makes of rows of a product of few summands and of what lies there, row after row.

        Args:
            places: address and bytes from row to row of each matrix.
        """
        b, row, few = self.builder, self.row, 4
        rows, n, k = row[words.M], row[words.N], row[words.K]
        begins = self._begins(self._groups([(0, j) for j in range(n)], n))
        y = [[self._vector(self._of_b(q, j + lane) for lane in range(self.lanes)) for j in begins] for q in range(k)]
        lines = [self._line([self._of_a(i, q) for i in range(rows)]) for q in range(k)]
        # a few vectors are read before they are written: the last one may overlap the one before it
        starts = [v for v in range(0, len(begins), few) if v == 0 or v < len(begins) - 1]
        some = [range(v, end) for v, end in zip(starts, [*starts[1:], len(begins)], strict=True)]

        def body(turn: Any, values: list[Vector]) -> list[Vector]:
            x = [self._number_at(line, b.mul(turn, I64(stride))) for line, stride in lines]
            here = [b.gep(base, [b.mul(turn, I64(stride))]) for base, stride in places]
            for numbers in some:
                olds = [[self._vector_at(line, begins[v] * self.item) for line in here] for v in numbers]
                for v, old in zip(numbers, olds, strict=True):
                    gradient = self._sum_of_products(x, [of_q[v] for of_q in y])
                    for line, value in zip(here, new(gradient, *old), strict=True):
                        self._store_at(line, begins[v] * self.item, value, range(self.lanes))
            return values

        self._loop(rows, [], body)
