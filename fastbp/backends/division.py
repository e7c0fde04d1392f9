"""Which part of a Program can go depth first: a chunk of rows through all of it, before the next chunk begins.

Instructions whose rows do not meet (products with parameters, elementwise functions, softmax) may be done for some
rows at a time, and sums over the rows (gradients of parameters, losses) a part at a time. So a Program is divided into

head    what reads no row of the batch that an instruction computes: once, before,
body    what can be done a chunk of rows at a time; its sums over rows add up,
tail    what needs the sums: once, after.

A Program in which a row depends on such a sum has no body: all its instructions are done for all rows, one after the
other. The sum of sample weights, on which every row of a weighted mean depends, is computed ahead, from the gathered
weights if need be.
"""

from __future__ import annotations

from dataclasses import dataclass

from fastbp.ops import ONE, N
from fastbp.program import Instruction, Program


@dataclass(frozen=True)
class Division:
    """A Program in three parts.

    Attributes:
        rows: temps of the body with rows of the batch.
        ahead: those of them that the head computes too, for all rows.
        sums: what the body sums over rows, in order.
    """

    head: tuple[Instruction, ...]
    body: tuple[Instruction, ...]
    tail: tuple[Instruction, ...]
    rows: frozenset[int]
    ahead: frozenset[int]
    sums: tuple[int, ...]


def divide(program: Program) -> Division | None:
    """The three parts, or None if no chunk of rows can go through on its own."""
    head: list[Instruction] = []
    body: list[Instruction] = []
    tail: list[Instruction] = []
    computed: set[int] = set()  # rows of the batch that an instruction computes
    gathered: dict[int, Instruction] = {}  # columns of numbers that are only gathered: sample weights
    ahead: set[int] = set()
    late: set[int] = set()  # what depends on a sum
    sums: list[int] = []
    for i in program.instructions:
        by_rows = any(_has_rows(program, b) for b in i.ins)
        if any(_root(program, b) != b and _root(program, b) in computed for b in i.ins):
            return None  # rows in another shape
        if any(_has_rows(program, b) for b in i.outs):
            if not _stays_in_its_rows(program, i) or _depends_on(program, i, late):
                return None
            body.append(i)
            computed.update(b for b in i.outs if _has_rows(program, b))
            summed = [b for b in i.outs if not _has_rows(program, b)]
            sums.extend(summed)
            late.update(_root(program, b) for b in summed)
            if i.op == "gather" and program.buffers[i.outs[0]].shape[1] == ONE:
                gathered[i.outs[0]] = i
        elif computed.intersection(i.ins) and gathered.keys() >= computed.intersection(i.ins):
            columns = computed.intersection(i.ins)  # their sum is what rows depend on: gathered once more, ahead
            head += [gathered[b] for b in sorted(columns - ahead)]
            head.append(i)
            ahead |= columns
        elif computed.intersection(i.ins):
            if not _adds_up(i) or _depends_on(program, i, late):
                return None
            body.append(i)
            sums.extend(i.outs)
            late.update(_root(program, b) for b in i.outs)
        elif by_rows and not _depends_on(program, i, late):
            head.append(i)  # of the input alone
        elif _depends_on(program, i, late):
            tail.append(i)
            late.update(_root(program, b) for b in i.outs)
        else:
            head.append(i)
    if not sums and not computed:
        return None
    temps = frozenset(b for b in computed if program.buffers[b].kind == "temp")
    return Division(tuple(head), tuple(body), tuple(tail), temps, frozenset(ahead), tuple(sums))


def _has_rows(program: Program, index: int) -> bool:
    rows, cols = program.buffers[index].shape
    return bool(rows.per_row or cols.per_row)


def _depends_on(program: Program, i: Instruction, late: set[int]) -> bool:
    """Whether an instruction reads a late buffer or a part of one; ``late`` holds those that are no parts."""
    return any(_root(program, b) in late for b in i.ins)


def _root(program: Program, index: int) -> int:
    base = program.buffers[index].base
    return index if base is None else base


def _stays_in_its_rows(program: Program, i: Instruction) -> bool:
    """Whether row r of the output needs row r of the inputs alone."""
    for b in i.outs:
        rows, cols = program.buffers[b].shape
        if i.op == "chain" and not rows.per_row and not cols.per_row:
            continue  # a sum
        if cols.per_row or (rows.per_row, rows.fixed) != (1, 0) or program.buffers[b].base is not None:
            return False
    match i.op:
        case "chain":
            return i.domain[0] == N and _sums_add_up(i)
        case "matmul":
            return not i.ta and not _has_rows(program, i.ins[1])
        case (
            "map" | "softmax" | "log_softmax" | "log_softmax_grad" | "logsumexp" | "onehot" | "gather" | "cross_entropy"
        ):
            return True
        case "concat" | "columns" | "pad":
            return True
        case "take":
            return not _has_rows(program, i.ins[0])
    return False


def _adds_up(i: Instruction) -> bool:
    """Whether an instruction is a sum over rows, so that the sums of two chunks add up to the sum of both."""
    match i.op:
        case "matmul":
            return i.ta and not i.tb and not i.code and not i.then
        case "sum":
            return True
        case "chain":
            return i.domain[0] == N and _sums_add_up(i)
    return False


def _sums_add_up(chain: Instruction) -> bool:
    """Whether what a chain reduces over rows is a sum."""
    return not any(r.how == "max" and r.axis != 1 for r in chain.results)
