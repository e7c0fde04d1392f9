"""The array machine: one plain function an instruction, on any array namespace ``xp`` (NumPy, CuPy, array-api-strict).

It is the readable reference that every other machine is tested against, so it prefers clarity to speed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fastbp import scalars
from fastbp.ops import N
from fastbp.program import Instruction, Program, const_value, place

Array = Any

ALIGNMENT = 256  # bytes, of a value in device memory


class ArrayEmitter:
    """The formulas of :mod:`fastbp.scalars` on arrays of one namespace and dtype."""

    def __init__(self, xp: Any, dtype: str) -> None:
        self.xp = xp
        self.dtype = dtype

    def __getattr__(self, name: str) -> Callable[..., Array]:  # exp, expm1, log, log1p, tanh, sin, cos, sqrt, abs
        function: Callable[..., Array] = getattr(self.xp, name)
        return function

    def _array(self, x: Array) -> Array:
        return self.xp.full((), x, dtype=getattr(self.xp, self.dtype)) if isinstance(x, (int, float)) else x

    def fma(self, x: Array, y: Array, z: Array) -> Array:
        return x * y + z

    def power(self, x: Array, y: Array) -> Array:
        return self.xp.pow(x, y)

    def maximum(self, x: Array, y: Array) -> Array:
        return self.xp.maximum(self._array(x), self._array(y))

    def minimum(self, x: Array, y: Array) -> Array:
        return self.xp.minimum(self._array(x), self._array(y))

    def where(self, condition: Array, x: Array, y: Array) -> Array:
        return self.xp.where(condition, self._array(x), self._array(y))


class ArrayExecutable:
    """A Program on one array namespace.

    Floating-point warnings stay silent: infinities and NaN are results here, as on every machine.
    """

    def __init__(self, program: Program, xp: Any, dtype: str) -> None:
        self.program = program
        self.xp = xp
        self.dtype = dtype
        self.emitter = ArrayEmitter(xp, dtype)

    def bytes_for(self, n: int) -> int:
        """Memory that n rows take beside what comes in: values on the way, and those that go out."""
        program, item = self.program, np.dtype(self.dtype).itemsize
        outputs = [i for i, b in enumerate(program.buffers) if b.kind == "output" and b.base is None]
        return place(program, n, item, ALIGNMENT)[1] + sum(program.size(i, n) for i in outputs) * item

    def run(self, values: Mapping[str, Array], n: int) -> dict[str, Array]:
        """Run all instructions for n rows.

        Args:
            values: by name, every input (rows, cols), parameter and data set; parameters of updates change in place.

        Returns:
            The outputs by name, each a matrix.
        """
        store: dict[int, Array] = {index: values[name] for name, index in self.program.inputs.items()}
        with np.errstate(all="ignore"):
            for instruction in self.program.instructions:
                _INSTRUCTIONS[instruction.op](self, instruction, store, n)
        return {name: self._read(index, store, n) for name, index in self.program.outputs.items()}

    def run_steps(self, values: Mapping[str, Array], steps: Any) -> dict[str, Array]:
        """Run once for each row (rows, position, step) of ``steps``.

        Inputs whose rows are the batch's begin at row ``position``; inputs of dtype "double" (the scalars of updates)
        are row ``step``; outputs of fixed shape come back stacked by step: (steps, rows, columns).
        """
        moving = [name for name, i in self.program.inputs.items() if self._moves(i)]
        scalars_of_steps = [
            name for name, i in self.program.inputs.items() if self.program.buffers[i].dtype == "double"
        ]
        found: dict[str, list[Array]] = {}
        for n, position, step in steps.tolist():
            here = dict(values)
            here |= {name: values[name][position : position + n, :] for name in moving}
            here |= {name: values[name][step : step + 1, :] for name in scalars_of_steps}
            for name, value in self.run(here, n).items():
                if self.program.buffers[self.program.outputs[name]].kind == "output":
                    found.setdefault(name, []).append(value)
        return {name: self.xp.stack(results) for name, results in found.items()}

    def _moves(self, index: int) -> bool:
        buffer = self.program.buffers[index]
        return buffer.kind == "input" and buffer.shape[0] == N

    def _flat_part(self, index: int, n: int) -> slice:
        buffer = self.program.buffers[index]
        return slice(buffer.offset, buffer.offset + self.program.size(index, n))

    def _read(self, index: int, store: dict[int, Array], n: int) -> Array:
        buffer = self.program.buffers[index]
        if buffer.kind == "const":
            return self.xp.full((1, 1), const_value(buffer, n), dtype=getattr(self.xp, self.dtype))
        if buffer.base is None:
            return store[index]
        whole = self.xp.reshape(store[buffer.base], (-1,))
        return self.xp.reshape(whole[self._flat_part(index, n)], self.program.shape(index, n))

    def _write(self, index: int, value: Array, store: dict[int, Array], n: int) -> None:
        """Keep a result: as a value of its own, or in its place in the buffer that it is a part of."""
        buffer = self.program.buffers[index]
        if buffer.base is None:
            store[index] = value
            return
        if buffer.base not in store:
            store[buffer.base] = self.xp.empty(self.program.shape(buffer.base, n), dtype=getattr(self.xp, self.dtype))
        store[buffer.base][0, self._flat_part(index, n)] = self.xp.reshape(value, (-1,))


def _matmul(e: ArrayExecutable, i: Instruction, store: dict[int, Array], n: int) -> None:
    a, b, *rest = (e._read(index, store, n) for index in i.ins)
    c = (a.T if i.ta else a) @ (b.T if i.tb else b)
    if i.code:
        c = scalars.BINARY[i.code](e.emitter, c, rest[0])
    if i.then:
        e._write(i.outs[-1], scalars.UNARY[i.then](e.emitter, c), store, n)
    if not i.then or len(i.outs) > 1:
        e._write(i.outs[0], c, store, n)


def _map(e: ArrayExecutable, i: Instruction, store: dict[int, Array], n: int) -> None:
    operands = [e._read(index, store, n) for index in i.operands]
    if i.scaled:
        operands[0] = operands[0] * e._read(i.ins[-1], store, n)
    result = _elementwise(e, i.code, operands)
    shape = e.program.shape(i.outs[0], n)
    if result.shape != shape or result is operands[0]:
        result = e.xp.asarray(e.xp.broadcast_to(result, shape), copy=True)  # never a view of its operand
    e._write(i.outs[0], result, store, n)


def _sum(e: ArrayExecutable, i: Instruction, store: dict[int, Array], n: int) -> None:
    e._write(i.outs[0], e.xp.sum(e._read(i.ins[0], store, n), axis=0, keepdims=True), store, n)


def _elementwise(e: ArrayExecutable, code: str, operands: list[Array]) -> Array:
    return _TABLES[len(operands)][code](e.emitter, *operands)


_TABLES = {1: scalars.UNARY, 2: scalars.BINARY, 3: scalars.TERNARY}


class _Integers:
    """Unsigned integers of 32 bits, in arrays of 64."""

    def __init__(self, xp: Any) -> None:
        self.xp = xp
        self.low = self.number(0xFFFFFFFF)

    def number(self, x: int) -> Array:
        return self.xp.full((), x, dtype=self.xp.uint64)

    def multiply(self, x: Array, constant: int) -> tuple[Array, Array]:
        product = x * self.number(constant)
        return product >> self.number(32), product & self.low

    def add(self, x: Array, constant: int) -> Array:
        return (x + self.number(constant)) & self.low

    def xor(self, x: Array, y: Array) -> Array:
        return x ^ y


def _dropout_mask(e: ArrayExecutable, key: Array, bits: int, rows: int, cols: int) -> Array:
    xp, m = e.xp, _Integers(e.xp)
    number, threshold = divmod(bits, 1 << 32)
    seed, step = (xp.astype(key[:, k : k + 1], xp.uint64) & m.low for k in range(2))
    counters = xp.arange(rows * cols, dtype=xp.uint64) & m.low
    keys = seed ^ m.number(number * scalars.DROPOUT_KEY & 0xFFFFFFFF)
    drawn = scalars.philox(m, counters, step, keys)
    kept = e.emitter.where(drawn >= m.number(threshold), 1.0 / (1.0 - threshold / 2.0**32), 0.0)
    return xp.reshape(kept, (rows, cols))


def _chain(e: ArrayExecutable, i: Instruction, store: dict[int, Array], n: int) -> None:
    values = [e._read(index, store, n) for index in i.ins]
    rows, cols = (size.at(n) for size in i.domain)
    for step in i.steps:
        operands = [values[k] for k in step.args]
        if step.code == "dropout_mask":
            values.append(_dropout_mask(e, operands[0], step.bits, rows, cols))
            continue
        if step.scale >= 0:
            operands[0] = operands[0] * values[step.scale]
        values.append(_elementwise(e, step.code, operands))
    for out, result in zip(i.outs, i.results, strict=True):
        value = e.xp.broadcast_to(values[result.value], (rows, cols))
        if result.how:
            value = _reduced(e.xp, result.how, value, result.axis)
        if result.scale >= 0:
            value = value * values[result.scale]
        e._write(out, e.xp.asarray(value, copy=True), store, n)


def _reduced(xp: Any, how: str, x: Array, axis: int | None) -> Array:
    over = (0, 1) if axis is None else axis
    if how == "max" and 0 in x.shape:  # of nothing: -inf, as the sum of nothing is 0
        rows, cols = (size if axis == 1 - k else 1 for k, size in enumerate(x.shape))
        return xp.full((rows, cols), -float("inf"), dtype=x.dtype)
    return (xp.sum if how == "sum" else xp.max)(x, axis=over, keepdims=True)


def _logsumexp(e: ArrayExecutable, i: Instruction, store: dict[int, Array], n: int) -> None:
    xp, z = e.xp, e._read(i.ins[0], store, n)
    top = _reduced(xp, "max", z, 1)
    top = xp.where(xp.isfinite(top), top, xp.where(xp.isnan(top), top, xp.zeros_like(top)))
    e._write(i.outs[0], xp.log(xp.sum(xp.exp(z - top), axis=1, keepdims=True)) + top, store, n)


def _concat(e: ArrayExecutable, i: Instruction, store: dict[int, Array], n: int) -> None:
    e._write(i.outs[0], e.xp.concat([e._read(index, store, n) for index in i.ins], axis=1), store, n)


def _columns(e: ArrayExecutable, i: Instruction, store: dict[int, Array], n: int) -> None:
    cols = e.program.shape(i.outs[0], n)[1]
    x = e._read(i.ins[0], store, n)
    e._write(i.outs[0], e.xp.asarray(x[:, i.start : i.start + cols], copy=True), store, n)


def _pad(e: ArrayExecutable, i: Instruction, store: dict[int, Array], n: int) -> None:
    x = e._read(i.ins[0], store, n)
    out = e.xp.zeros(e.program.shape(i.outs[0], n), dtype=x.dtype)
    out[:, i.start : i.start + x.shape[1]] = x
    e._write(i.outs[0], out, store, n)


def _place(e: ArrayExecutable, i: Instruction, store: dict[int, Array], n: int) -> None:
    x = e.xp.reshape(e._read(i.ins[0], store, n), (-1,))
    out = e.xp.zeros(e.program.shape(i.outs[0], n), dtype=x.dtype)
    out[0, i.start : i.start + x.shape[0]] = x
    e._write(i.outs[0], out, store, n)


def _scatter_add(e: ArrayExecutable, i: Instruction, store: dict[int, Array], n: int) -> None:
    """Out_r = Σ x_i over the rows i with index_i = r: a scan over the rows in order of their index.

    After the pass over distance d, a row holds the sum of up to 2d rows that end with it and have its index. Nothing
    depends on the index but by value, so no array library has to be asked for it, nor may add in an order of its own.
    """
    xp, x = e.xp, e._read(i.ins[0], store, n)
    index = xp.reshape(store[i.ins[1]], (-1,))
    shape, count = e.program.shape(i.outs[0], n), x.shape[0]
    if not count:
        e._write(i.outs[0], xp.zeros(shape, dtype=x.dtype), store, n)
        return
    order = xp.argsort(index * count + xp.arange(count, dtype=index.dtype))  # equal ones stay in order
    index, sums = xp.take(index, order), xp.take(x, order, axis=0)
    distance = 1
    while distance < count:
        same = xp.reshape(index[distance:] == index[:-distance], (-1, 1))
        further = sums[distance:, :] + xp.where(same, sums[:-distance, :], e.emitter._array(0.0))
        sums = xp.concat([sums[:distance, :], further], axis=0)
        distance *= 2
    rows = xp.arange(shape[0], dtype=index.dtype)
    first, after = (xp.searchsorted(index, rows, side=side) for side in ("left", "right"))
    found = xp.take(sums, xp.maximum(after - 1, xp.zeros_like(after)), axis=0)
    found = xp.where(xp.reshape(after > first, (-1, 1)), found, e.emitter._array(0.0))
    e._write(i.outs[0], found, store, n)


def _log_softmax_of(xp: Any, z: Array) -> Array:
    if not z.shape[0]:
        return z
    largest = xp.finfo(z.dtype).max
    least = xp.full((), -largest, dtype=z.dtype)
    shifted = xp.maximum(z - xp.max(z, axis=1, keepdims=True), least)  # never -inf
    return shifted - xp.log(xp.sum(xp.exp(shifted), axis=1, keepdims=True))


def _softmax(e: ArrayExecutable, i: Instruction, store: dict[int, Array], n: int) -> None:
    z = e._read(i.ins[0], store, n)
    powers = e.xp.exp(z - e.xp.max(z, axis=1, keepdims=True)) if z.shape[0] else z
    e._write(i.outs[0], powers / e.xp.sum(powers, axis=1, keepdims=True), store, n)


def _log_softmax(e: ArrayExecutable, i: Instruction, store: dict[int, Array], n: int) -> None:
    e._write(i.outs[0], _log_softmax_of(e.xp, e._read(i.ins[0], store, n)), store, n)


def _log_softmax_grad(e: ArrayExecutable, i: Instruction, store: dict[int, Array], n: int) -> None:
    g, y = (e._read(index, store, n) for index in i.ins)
    e._write(i.outs[0], g - e.xp.exp(y) * e.xp.sum(g, axis=1, keepdims=True), store, n)


def _onehot(e: ArrayExecutable, i: Instruction, store: dict[int, Array], n: int) -> None:
    """Rows of 0 and 1; NaN of what is no class, which nobody has checked where labels are on a GPU."""
    labels, count = e._read(i.ins[0], store, n), e.program.shape(i.outs[0], n)[1]
    classes = e.xp.reshape(e.xp.arange(count, dtype=labels.dtype), (1, -1))
    rows = e.xp.astype(labels == classes, getattr(e.xp, e.dtype))
    e._write(i.outs[0], e.emitter.where((labels >= 0) & (labels < count), rows, float("nan")), store, n)


def _transpose(e: ArrayExecutable, i: Instruction, store: dict[int, Array], n: int) -> None:
    e._write(i.outs[0], e.xp.asarray(e._read(i.ins[0], store, n).T, copy=True), store, n)


def _gather(e: ArrayExecutable, i: Instruction, store: dict[int, Array], n: int) -> None:
    data, order = e._read(i.ins[0], store, n), store[i.ins[1]]
    e._write(i.outs[0], e.xp.take(data, e.xp.reshape(order, (-1,)), axis=0), store, n)


def _update(e: ArrayExecutable, i: Instruction, store: dict[int, Array], n: int) -> None:
    rule = scalars.UPDATES[i.code]
    theta, g, *states, hyper = (e._read(index, store, n) for index in i.ins)
    hyper = e.xp.asarray(hyper, dtype=getattr(e.xp, e.dtype))  # they come in as float64
    scalar = tuple(hyper[0, k] for k in range(len(rule.hyper)))
    for index, new in zip(i.outs, rule.formula(e.emitter, scalar, theta, g, *states), strict=True):
        store[index][...] = new  # in place: theta and the states are the caller's


_INSTRUCTIONS: dict[str, Callable[[ArrayExecutable, Instruction, dict[int, Array], int], None]] = {
    "matmul": _matmul,
    "map": _map,
    "sum": _sum,
    "softmax": _softmax,
    "log_softmax": _log_softmax,
    "log_softmax_grad": _log_softmax_grad,
    "onehot": _onehot,
    "transpose": _transpose,
    "gather": _gather,
    "take": _gather,
    "scatter_add": _scatter_add,
    "concat": _concat,
    "columns": _columns,
    "pad": _pad,
    "place": _place,
    "chain": _chain,
    "logsumexp": _logsumexp,
    "update": _update,
}
