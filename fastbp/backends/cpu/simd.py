"""Vector code for the CPU: loops around the formulas of :mod:`fastbp.scalars`, see vectors.py.

Numba does not vectorise a sigmoid written as a scalar loop, so the loops here are LLVM vector code, made through
``numba.extending.intrinsic`` for whatever width Numba compiles for.

Conventions of every intrinsic below: pointers are ``CPointer(float32)`` or ``CPointer(float64)`` and decide the
dtype; sizes and strides are int64 and count elements; a ragged end is a masked vector, computed by the same
instructions as a full one, so that an element's value never depends on where in a row it lies.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastbp import scalars
from fastbp.backends.cpu.target import VECTOR_BYTES
from fastbp.backends.cpu.vectors import (
    I32,
    I64,
    STACK_VECTORS,
    SUMS,
    Vector,
    VectorEmitter,
    add,
    below,
    higher,
    logarithm,
    reductions,
    softmaxes,
    transposed,
)
from fastbp.backends.cpu.words import BY_LABELS, WITH_GRADIENT
from fastbp.backends.llvm import declared, switch

# ---- loops ---------------------------------------------------------------------------------------------------------


def _emitter(builder: Any, pointer_type: Any) -> VectorEmitter:
    return VectorEmitter(builder, str(pointer_type.dtype))


def _offset(builder: Any, pointer: Any, index: Any) -> Any:
    return builder.gep(pointer, [index])


def keep_rolled(branch: Any) -> None:
    """Tell LLVM not to unroll the loop that this branch closes.

    The loops of products have enough independent work in one turn; unrolled four times by LLVM they ran no faster, and
    the machine took 14 s to compile instead of 10.
    """
    module = branch.function.module
    disable = module.add_metadata([ir.MetaDataString(module, "llvm.loop.unroll.disable")])
    loop = module.add_metadata([ir.MetaDataString(module, f"loop {len(module.metadata)}")])
    loop.operands = (loop, disable)  # a loop's name is a node that begins with itself
    branch.set_metadata("llvm.loop", loop)


def opaque(builder: Any, value: Any) -> Any:
    """The pointer or integer, without LLVM knowing where it comes from."""
    same = ir.FunctionType(value.type, [value.type])
    return builder.asm(same, "", "=r,0", [value], False)


def vector_loop(m: VectorEmitter, n: Any, body: Callable[[Any, Any], None]) -> None:
    """body(i, mask) for i = 0, lanes, 2 lanes, …: mask None for full vectors, then once for a ragged end."""
    b = m.builder
    lanes = I64(m.lanes)
    full = b.mul(b.sdiv(n, lanes), lanes)
    with cgutils.for_range_slice(b, I64(0), full, lanes) as (i, _):
        body(i, None)
    with b.if_then(b.icmp_signed("<", full, n)):
        body(full, m.mask(b.sub(n, full)))


def _spread(m: VectorEmitter, pointer: Any, step: Any) -> Any:
    """The pointer itself if step is 1; if it is 0, a vector of copies of its element, to be read again and again."""
    b = m.builder
    spread = cgutils.alloca_once(b, m.type)
    with b.if_then(b.icmp_signed("==", step, I64(0))):
        m.store(m.splat(b.load(pointer)), spread)
    return b.select(b.icmp_signed("==", step, I64(0)), b.bitcast(spread, pointer.type), pointer)


@intrinsic
def map_unary(typingctx: Any, code: Any, n: Any, out: Any, x: Any, x_step: Any) -> Any:
    """out_i = UNARY[code](x_(i x_step)) for i < n; overwrites. x_step is 0 (one value for all) or 1."""
    signature = types.void(types.int64, types.int64, out, x, types.int64)

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        code, n, out, x, x_step = arguments
        m = _emitter(builder, sig.args[2])
        x = _spread(m, x, x_step)

        def loop(formula: Callable[..., Any]) -> Callable[[], None]:
            def body(i: Any, mask: Any) -> None:
                value = formula(m, m.load(_offset(builder, x, builder.mul(i, x_step)), mask))
                m.store(value, _offset(builder, out, i), mask)

            return lambda: vector_loop(m, n, body)

        switch(builder, code, [loop(f) for f in scalars.UNARY.values()])
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def map_binary(
    typingctx: Any, code: Any, n: Any, out: Any, x: Any, x_step: Any, y: Any, y_step: Any, scale: Any
) -> Any:
    """out_i = BINARY[code](scale x_(i x_step), y_(i y_step)) for i < n; overwrites, also in place. Steps are 0 or 1."""
    signature = types.void(types.int64, types.int64, out, x, types.int64, y, types.int64, scale)

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        code, n, out, x, x_step, y, y_step, scale = arguments
        m = _emitter(builder, sig.args[2])
        x, y = _spread(m, x, x_step), _spread(m, y, y_step)
        factor = m.splat(scale)

        def loop(formula: Callable[..., Any]) -> Callable[[], None]:
            def body(i: Any, mask: Any) -> None:
                left = m.load(_offset(builder, x, builder.mul(i, x_step)), mask)
                right = m.load(_offset(builder, y, builder.mul(i, y_step)), mask)
                m.store(formula(m, left * factor, right), _offset(builder, out, i), mask)

            return lambda: vector_loop(m, n, body)

        switch(builder, code, [loop(f) for f in scalars.BINARY.values()])
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def map_ternary(
    typingctx: Any, code: Any, n: Any, out: Any, x: Any, x_step: Any, y: Any, y_step: Any, z: Any, z_step: Any
) -> Any:
    """out_i = TERNARY[code](x_(i x_step), y_(i y_step), z_(i z_step)) for i < n; overwrites, also in place.

    Steps are 0 or 1.
    """
    signature = types.void(types.int64, types.int64, out, x, types.int64, y, types.int64, z, types.int64)

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        code, n, out, *rest = arguments
        m = _emitter(builder, sig.args[2])
        operands = [(_spread(m, pointer, step), step) for pointer, step in zip(rest[::2], rest[1::2], strict=True)]

        def loop(formula: Callable[..., Any]) -> Callable[[], None]:
            def body(i: Any, mask: Any) -> None:
                values = [m.load(_offset(builder, p, builder.mul(i, step)), mask) for p, step in operands]
                m.store(formula(m, *values), _offset(builder, out, i), mask)

            return lambda: vector_loop(m, n, body)

        switch(builder, code, [loop(f) for f in scalars.TERNARY.values()])
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def update_vectors(typingctx: Any, code: Any, n: Any, theta: Any, g: Any, first: Any, second: Any, hyper: Any) -> Any:
    """theta, first, second = UPDATES[code](h, theta, g, first, second) in place for n elements.

    hyper points to the rule's float64 scalars; a rule with fewer states leaves the other pointers alone.
    """
    signature = types.void(types.int64, types.int64, theta, g, first, second, types.CPointer(types.float64))

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        code, n, theta, g, first, second, hyper = arguments
        m = _emitter(builder, sig.args[2])

        def scalar(k: int) -> Vector:
            value = builder.load(_offset(builder, hyper, I64(k)))
            return m.splat(builder.fptrunc(value, m.element) if m.dtype == "float32" else value)

        def loop(rule: scalars.UpdateRule) -> Callable[[], None]:
            def run() -> None:
                h = tuple(scalar(k) for k in range(len(rule.hyper)))
                written = [theta, *[first, second][: len(rule.states)]]

                def body(i: Any, mask: Any) -> None:
                    read = [theta, g, *written[1:]]
                    values = [m.load(_offset(builder, p, i), mask) for p in read]
                    for p, value in zip(written, rule.formula(m, h, *values), strict=True):
                        m.store(value, _offset(builder, p, i), mask)

                vector_loop(m, n, body)

            return run

        switch(builder, code, [loop(rule) for rule in scalars.UPDATES.values()])
        return context.get_dummy_value()

    return signature, codegen


class _Integers:
    """Vectors of unsigned integers of 32 bits, see scalars.philox."""

    def __init__(self, m: VectorEmitter) -> None:
        self.builder = m.builder
        self.lanes = m.lanes
        self.type = ir.VectorType(I32, m.lanes)
        self.wide = ir.VectorType(I64, m.lanes)

    def splat(self, x: Any) -> Any:
        b, nothing = self.builder, ir.Constant(self.type, ir.Undefined)
        return b.shuffle_vector(b.insert_element(nothing, x, I32(0)), nothing, self.constant(0))

    def constant(self, x: int) -> Any:
        return ir.Constant(self.type, [x] * self.lanes)

    def multiply(self, x: Any, constant: int) -> tuple[Any, Any]:
        b = self.builder
        product = b.mul(b.zext(x, self.wide), ir.Constant(self.wide, [constant] * self.lanes))
        high = b.lshr(product, ir.Constant(self.wide, [32] * self.lanes))
        return b.trunc(high, self.type), b.trunc(product, self.type)

    def add(self, x: Any, constant: int) -> Any:
        return self.builder.add(x, self.constant(constant))

    def xor(self, x: Any, y: Any) -> Any:
        return self.builder.xor(x, y)


@intrinsic
def dropout_mask(typingctx: Any, bits: Any, n: Any, out: Any, key: Any, first: Any) -> Any:
    """n elements of a mask from element ``first`` on: 0 or 1/(1 - rate); key points to seed and step, float64."""
    signature = types.void(types.int64, types.int64, out, types.CPointer(types.float64), types.int64)

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        bits, n, out, key, first = arguments
        b, m = builder, _emitter(builder, sig.args[2])
        integers = _Integers(m)
        seed, step = (b.trunc(b.fptosi(b.load(_offset(b, key, I64(k))), I64), I32) for k in range(2))
        threshold, number = b.trunc(bits, I32), b.trunc(b.lshr(bits, I64(32)), I32)
        keys = integers.splat(b.xor(seed, b.mul(number, I32(scalars.DROPOUT_KEY))))
        rate = b.fmul(b.uitofp(threshold, ir.DoubleType()), ir.Constant(ir.DoubleType(), 2.0**-32))
        one = ir.Constant(ir.DoubleType(), 1.0)
        scale = b.fdiv(one, b.fsub(one, rate))
        kept = m.splat(b.fptrunc(scale, m.element) if m.dtype == "float32" else scale)
        lowest, steps = integers.splat(threshold), integers.splat(step)
        each = ir.Constant(integers.type, list(range(m.lanes)))

        def body(i: Any, mask: Any) -> None:
            counters = b.add(integers.splat(b.trunc(b.add(first, i), I32)), each)
            drawn = scalars.philox(integers, counters, steps, keys)
            chosen = b.select(b.icmp_unsigned(">=", drawn, lowest), kept.value, m.constant(0.0))
            m.store(Vector(m, chosen), _offset(b, out, i), mask)

        vector_loop(m, n, body)
        return context.get_dummy_value()

    return signature, codegen


def _fold_apart(
    m: VectorEmitter, n: Any, starts: Sequence[Vector], step: Callable[[Vector, Any, Any], Vector]
) -> list[Vector]:
    """step(total, i, mask) over full vectors, then the ragged end, with SUMS totals that take turns.

    The order depends on n alone. Lanes beyond the end keep what they had.
    """
    b = m.builder
    stride = SUMS * m.lanes
    totals = [cgutils.alloca_once_value(b, start.value) for start in starts]

    def add(i: Any, which: int, mask: Any) -> None:
        old = Vector(m, b.load(totals[which]))
        new = step(old, i, mask).value
        b.store(new if mask is None else b.select(mask, new, old.value), totals[which])

    whole = b.mul(b.sdiv(n, I64(stride)), I64(stride))
    with cgutils.for_range_slice(b, I64(0), whole, I64(stride)) as (i, _):
        for which in range(SUMS):
            add(b.add(i, I64(which * m.lanes)), which, None)
    for which in range(SUMS):
        at = b.add(whole, I64(which * m.lanes))
        with b.if_then(b.icmp_signed("<", at, n)):
            add(at, which, m.mask(b.sub(n, at)))
    return [Vector(m, b.load(total)) for total in totals]


def fold(
    m: VectorEmitter,
    n: Any,
    start: float,
    step: Callable[[Vector, Any, Any], Vector],
    combine: Callable[[Vector, Vector], Vector],
) -> Vector:
    """All SUMS totals of :func:`_fold_apart` combined: a vector."""
    first, second, third, fourth = _fold_apart(m, n, [Vector(m, m.constant(start))] * SUMS, step)
    return combine(combine(first, second), combine(third, fourth))


@intrinsic
def reduce_row(typingctx: Any, code: Any, n: Any, x: Any) -> Any:
    """The sum or the maximum of n contiguous elements, in an order that n alone decides."""
    signature = x.dtype(types.int64, types.int64, x)

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        code, n, x = arguments
        m = _emitter(builder, sig.args[2])
        result = cgutils.alloca_once(builder, m.element)

        def case(start: float, combine: Callable[[Vector, Vector], Vector]) -> Callable[[], None]:
            def run() -> None:
                total = fold(
                    m, n, start, lambda old, i, mask: combine(old, m.load(_offset(builder, x, i), mask)), combine
                )
                builder.store(m.reduce(total, combine), result)

            return run

        switch(builder, code, [case(*reduction) for reduction in reductions(m)])
        return builder.load(result)

    return signature, codegen


@intrinsic
def reduce_into(typingctx: Any, code: Any, n: Any, running: Any, x: Any) -> Any:
    """n contiguous elements join SUMS vectors of running sums or maxima, element i in place i modulo their lanes."""
    signature = types.void(types.int64, types.int64, running, x)

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        code, n, running, x = arguments
        m = _emitter(builder, sig.args[2])
        places = [_offset(builder, running, I64(k * m.lanes)) for k in range(SUMS)]

        def case(start: float, combine: Callable[[Vector, Vector], Vector]) -> Callable[[], None]:
            def run() -> None:
                step = lambda old, i, mask: combine(old, m.load(_offset(builder, x, i), mask))  # noqa: E731
                totals = _fold_apart(m, n, [m.load(place) for place in places], step)
                for total, place in zip(totals, places, strict=True):
                    m.store(total, place)

            return run

        switch(builder, code, [case(*reduction) for reduction in reductions(m)])
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def squared_error(typingctx: Any, n: Any, out: Any, x: Any, y: Any, factor: Any, running: Any) -> Any:
    """out = (x - y) factor, and (x - y)² joins running sums as :func:`reduce_into` adds: a pass instead of four.

    Without ``running``, a null pointer, they begin at 0. Returns their sum, as :func:`reduce_row` would make it.
    """
    signature = out.dtype(types.int64, out, x, y, factor, running)

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        n, out, x, y, factor, running = arguments
        m = _emitter(builder, sig.args[1])
        places, times = [_offset(builder, running, I64(k * m.lanes)) for k in range(SUMS)], m.splat(factor)
        goes_on = builder.icmp_signed("!=", builder.ptrtoint(running, I64), I64(0))
        starts = [cgutils.alloca_once_value(builder, m.constant(0.0)) for _ in places]
        with builder.if_then(goes_on):
            for start, place in zip(starts, places, strict=True):
                builder.store(m.load(place).value, start)

        def step(old: Vector, i: Any, mask: Any) -> Vector:
            difference = m.load(_offset(builder, x, i), mask) - m.load(_offset(builder, y, i), mask)
            m.store(difference * times, _offset(builder, out, i), mask)
            return old + difference * difference

        totals = _fold_apart(m, n, [Vector(m, builder.load(start)) for start in starts], step)
        with builder.if_then(goes_on):
            for total, place in zip(totals, places, strict=True):
                m.store(total, place)
        first, second, third, fourth = totals
        return m.reduce(add(add(first, second), add(third, fourth)), add)

    return signature, codegen


def _stack(m: VectorEmitter) -> Any:
    """Pointer to room for STACK_VECTORS vectors on the stack."""
    room = cgutils.alloca_once(m.builder, ir.ArrayType(m.type, STACK_VECTORS))
    return m.builder.bitcast(room, m.element.as_pointer())


@intrinsic
def stack_vectors(typingctx: Any, like: Any) -> Any:
    """Room for STACK_VECTORS vectors on the stack of the calling function."""

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        return _stack(VectorEmitter(builder, str(sig.args[0])))

    return types.CPointer(like)(like), codegen


def _in_order(m: VectorEmitter, n: Any, values: Callable[[Any, Any], Vector]) -> Vector:
    """The sum of values(i, mask), n <= STACK_VECTORS lanes of them, one number after the other as lanes of rows do."""
    builder = m.builder
    room = _stack(m)

    def keep(i: Any, mask: Any) -> None:
        m.store(values(i, mask), _offset(builder, room, i))

    vector_loop(m, n, keep)
    total = cgutils.alloca_once_value(builder, m.constant(0.0))
    with cgutils.for_range(builder, n) as loop:
        term = m.splat(builder.load(_offset(builder, room, loop.index)))
        builder.store((Vector(m, builder.load(total)) + term).value, total)
    return Vector(m, builder.load(total))


def _softmax_of_a_row(in_order: bool) -> Callable[..., Any]:
    def softmax(typingctx: Any, code: Any, n: Any, out: Any, z: Any, y: Any) -> Any:
        signature = types.void(types.int64, types.int64, out, z, y)

        def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
            code, n, out, z, y = arguments
            m = _emitter(builder, sig.args[2])

            def at(pointer: Any, i: Any, mask: Any) -> Vector:
                return m.load(_offset(builder, pointer, i), mask)

            def over_row(start: float, step: Callable[[Vector, Vector], Vector]) -> Vector:
                if in_order and not start:
                    nothing = Vector(m, m.constant(0.0))
                    return _in_order(m, n, lambda i, mask: step(nothing, at(z, i, mask)))
                combine = higher if start else add
                total = fold(m, n, start, lambda old, i, mask: step(old, at(z, i, mask)), combine)
                return m.splat(m.reduce(total, combine))

            def write(formula: Callable[[Vector, Callable[[], Vector]], Vector]) -> None:
                def body(i: Any, mask: Any) -> None:
                    m.store(formula(at(z, i, mask), lambda: at(y, i, mask)), _offset(builder, out, i), mask)

                vector_loop(m, n, body)

            def write_one(value: Vector) -> None:
                builder.store(builder.extract_element(value.value, I32(0)), out)

            switch(builder, code, softmaxes(m, over_row, write, write_one))
            return context.get_dummy_value()

        return signature, codegen

    return softmax


softmax_row = intrinsic(_softmax_of_a_row(in_order=False))  # one row of n contiguous elements
softmax_row_in_order = intrinsic(_softmax_of_a_row(in_order=True))  # to the bits of softmax_lanes, n <= STACK_VECTORS


@intrinsic
def softmax_lanes(typingctx: Any, code: Any, n: Any, z: Any, y: Any) -> Any:
    """As many rows as a vector has lanes, a row in each lane: n vectors, overwritten in z."""
    signature = types.void(types.int64, types.int64, z, y)

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        code, n, z, y = arguments
        m = _emitter(builder, sig.args[2])

        def at(pointer: Any, k: Any) -> Any:
            return _offset(builder, pointer, builder.mul(k, I64(m.lanes)))

        def over_row(start: float, step: Callable[[Vector, Vector], Vector]) -> Vector:
            total = cgutils.alloca_once(builder, m.type)
            builder.store(m.constant(start), total)
            with cgutils.for_range(builder, n) as loop:
                new = step(Vector(m, builder.load(total)), m.load(at(z, loop.index)))
                builder.store(new.value, total)
            return Vector(m, builder.load(total))

        def write(formula: Callable[[Vector, Callable[[], Vector]], Vector]) -> None:
            with cgutils.for_range(builder, n) as loop:
                place = at(z, loop.index)
                m.store(formula(m.load(place), lambda: m.load(at(y, loop.index))), place)

        switch(builder, code, softmaxes(m, over_row, write, lambda value: m.store(value, z)))
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def cross_entropy_row(typingctx: Any, code: Any, n: Any, out: Any, z: Any, t: Any, label: Any, scale: Any) -> Any:
    """Σ t log_softmax(z) of one row of n contiguous elements; out = scale (t - softmax(z) Σt), its gradient, if asked.

    Exponentials stand in out until their sum is known, so that each is computed once. By labels, t is 1 at ``label``
    and 0 elsewhere, everywhere if there is no such class.
    """
    signature = z.dtype(types.int64, types.int64, out, z, t, types.int64, scale)

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        code, n, out, z, t, label, scale = arguments
        m = _emitter(builder, sig.args[3])
        result = cgutils.alloca_once(builder, m.element)
        wants_gradient = builder.icmp_signed("!=", builder.and_(code, I64(WITH_GRADIENT)), I64(0))
        unwanted = builder.bitcast(cgutils.alloca_once(builder, m.type), out.type)
        zero = ir.Constant(m.element, 0.0)

        def at(pointer: Any, i: Any, mask: Any = None) -> Vector:
            return m.load(_offset(builder, pointer, i), mask)

        def over_row(start: float, step: Callable[..., Vector], combine: Callable[[Vector, Vector], Vector]) -> Any:
            total = cgutils.alloca_once(builder, m.type)
            builder.store(m.constant(start), total)

            def body(i: Any, mask: Any) -> None:
                old = Vector(m, builder.load(total))
                new = step(old, i, mask).value
                builder.store(new if mask is None else builder.select(mask, new, old.value), total)

            vector_loop(m, n, body)
            return m.reduce(Vector(m, builder.load(total)), combine)

        def exponential(total: Vector, i: Any, mask: Any) -> Vector:
            e = below(m, at(z, i, mask), top)
            m.store(e, builder.select(wants_gradient, _offset(builder, out, i), unwanted), mask)
            return total + e

        top = m.splat(over_row(-float("inf"), lambda old, i, mask: higher(old, at(z, i, mask)), higher))
        total = m.splat(over_row(0.0, exponential, add))
        shift = m.log(total)

        def by_targets() -> None:
            targets = over_row(0.0, lambda old, i, mask: old + at(t, i, mask), add)
            factor = m.splat(scale)
            share = m.splat(targets) * factor / total

            def step(old: Vector, i: Any, mask: Any) -> Vector:
                target, place = at(t, i, mask), builder.select(wants_gradient, _offset(builder, out, i), unwanted)
                m.store(target * factor - m.load(place, mask) * share, place, mask)
                return m.fma(logarithm(m, at(z, i, mask), top, shift), target, old)

            builder.store(over_row(0.0, step, add), result)

        def by_label() -> None:
            known = builder.icmp_unsigned("<", label, n)
            own = builder.select(known, label, I64(0))
            found = logarithm(m, m.splat(builder.load(_offset(builder, z, own))), top, shift)
            builder.store(builder.select(known, builder.extract_element(found.value, I32(0)), zero), result)
            with builder.if_then(wants_gradient):
                factor = builder.select(known, scale, zero)
                share = m.splat(factor) / total

                def body(i: Any, mask: Any) -> None:
                    m.store(-(at(out, i, mask) * share), _offset(builder, out, i), mask)

                vector_loop(m, n, body)
                place = _offset(builder, out, own)
                builder.store(builder.fadd(builder.load(place), factor), place)

        switch(builder, builder.and_(code, I64(BY_LABELS)), [by_targets, by_label])
        return builder.load(result)

    return signature, codegen


@intrinsic
def cross_entropy_lanes(typingctx: Any, gradient: Any, n: Any, out: Any, z: Any, t: Any, scale: Any) -> Any:
    """As many rows of :func:`cross_entropy_row` as a vector has lanes, a row in each, by targets: n vectors each.

    The sums come to stand in the first vector of z.
    """
    signature = types.void(types.int64, types.int64, out, z, t, scale)

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        gradient, n, out, z, t, scale = arguments
        m = _emitter(builder, sig.args[2])
        zero = m.constant(0.0)

        def at(pointer: Any, k: Any) -> Any:
            return _offset(builder, pointer, builder.mul(k, I64(m.lanes)))

        def over_rows(starts: list[Any], step: Callable[..., list[Vector]]) -> list[Vector]:
            totals = [cgutils.alloca_once(builder, m.type) for _ in starts]
            for total, start in zip(totals, starts, strict=True):
                builder.store(start, total)
            with cgutils.for_range(builder, n) as loop:
                old = [Vector(m, builder.load(total)) for total in totals]
                new = step(old, *(at(vectors, loop.index) for vectors in (out, z, t)))
                for total, value in zip(totals, new, strict=True):
                    builder.store(value.value, total)
            return [Vector(m, builder.load(total)) for total in totals]

        def highest(old: list[Vector], of_out: Any, of_z: Any, of_t: Any) -> list[Vector]:
            return [higher(old[0], m.load(of_z))]

        def exponentials(old: list[Vector], of_out: Any, of_z: Any, of_t: Any) -> list[Vector]:
            e = below(m, m.load(of_z), top)
            m.store(e, of_out)
            return [old[0] + e]

        def sums(old: list[Vector], of_out: Any, of_z: Any, of_t: Any) -> list[Vector]:
            target = m.load(of_t)
            return [m.fma(logarithm(m, m.load(of_z), top, shift), target, old[0]), old[1] + target]

        def hand_back(old: list[Vector], of_out: Any, of_z: Any, of_t: Any) -> list[Vector]:
            m.store(m.load(of_t) * factor - m.load(of_out) * share, of_out)
            return []

        (top,) = over_rows([m.constant(-float("inf"))], highest)
        (total,) = over_rows([zero], exponentials)
        shift, factor = m.log(total), m.splat(scale)
        result, targets = over_rows([zero, zero], sums)
        with builder.if_then(builder.icmp_signed("!=", gradient, I64(0))):
            share = targets * factor / total
            over_rows([], hand_back)
        m.store(result, z)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def cross_entropy_in_order(typingctx: Any, gradient: Any, n: Any, out: Any, z: Any, t: Any, scale: Any) -> Any:
    """What :func:`cross_entropy_lanes` computes of a row, to the same bits, for one of n contiguous elements.

    One or two rows leave most lanes empty: a row of 20 classes took 0.6 µs, and 0.2 so.
    """
    signature = z.dtype(types.int64, types.int64, out, z, t, scale)

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        gradient, n, out, z, t, scale = arguments
        m = _emitter(builder, sig.args[2])
        exponentials, logarithms, zero = _stack(m), _stack(m), m.constant(0.0)

        def at(pointer: Any, i: Any, mask: Any = None) -> Vector:
            return m.load(_offset(builder, pointer, i), mask)

        def number(pointer: Any, k: Any) -> Vector:
            return m.splat(builder.load(_offset(builder, pointer, k)))

        def exponential(i: Any, mask: Any) -> None:
            m.store(below(m, at(z, i, mask), top), _offset(builder, exponentials, i))

        def keep_logarithm(i: Any, mask: Any) -> None:
            m.store(logarithm(m, at(z, i, mask), top, shift), _offset(builder, logarithms, i))

        def hand_back(i: Any, mask: Any) -> None:
            m.store(at(t, i, mask) * factor - at(exponentials, i) * share, _offset(builder, out, i), mask)

        highest = fold(m, n, -float("inf"), lambda old, i, mask: higher(old, at(z, i, mask)), higher)
        top = m.splat(m.reduce(highest, higher))
        vector_loop(m, n, exponential)
        total, targets, result = (cgutils.alloca_once_value(builder, zero) for _ in range(3))
        with cgutils.for_range(builder, n) as loop:
            for place, source in ((total, exponentials), (targets, t)):
                builder.store((Vector(m, builder.load(place)) + number(source, loop.index)).value, place)
        sums = [Vector(m, builder.load(place)) for place in (total, targets)]
        shift, factor = m.log(sums[0]), m.splat(scale)
        vector_loop(m, n, keep_logarithm)
        with cgutils.for_range(builder, n) as loop:
            own, target = number(logarithms, loop.index), number(t, loop.index)
            builder.store(m.fma(own, target, Vector(m, builder.load(result))).value, result)
        with builder.if_then(builder.icmp_signed("!=", gradient, I64(0))):
            share = sums[1] * factor / sums[0]
            vector_loop(m, n, hand_back)
        return builder.extract_element(builder.load(result), I32(0))

    return signature, codegen


@intrinsic
def transpose_tile(typingctx: Any, rows: Any, cols: Any, out: Any, out_stride: Any, x: Any, x_stride: Any) -> Any:
    """out (cols, rows) = xᵀ of x (rows, cols), both at most one vector long; overwrites.

    Masks are for ragged tiles alone: AVX2's masked stores take some 20 cycles each on AMD's cores, and with masks for
    all tiles packing 128 x 16 took 2.3 cycles an element instead of 0.7.
    """
    signature = types.void(types.int64, types.int64, out, types.int64, x, types.int64)

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        rows, cols, out, out_stride, x, x_stride = arguments
        m = _emitter(builder, sig.args[2])
        nothing = ir.Constant(m.mask_type, [0] * m.lanes)
        across, down = m.mask(cols), m.mask(rows)
        lanes = I64(m.lanes)
        whole = builder.and_(builder.icmp_signed(">=", rows, lanes), builder.icmp_signed(">=", cols, lanes))
        lines = [_offset(builder, x, builder.mul(I64(r), x_stride)) for r in range(m.lanes)]
        with builder.if_else(whole) as (full, ragged):
            with full:
                of_full = [m.load(line).value for line in lines], builder.block
            with ragged:
                inside = [builder.icmp_signed("<", I64(r), rows) for r in range(m.lanes)]
                masks = [builder.select(row, across, nothing) for row in inside]
                of_ragged = [m.load(line, mask).value for line, mask in zip(lines, masks, strict=True)], builder.block
        values = []
        for r in range(m.lanes):
            values.append(builder.phi(m.type))
            for loaded, block in (of_full, of_ragged):
                values[r].add_incoming(loaded[r], block)
        columns = transposed(m, [Vector(m, value) for value in values])
        places = [_offset(builder, out, builder.mul(I64(c), out_stride)) for c in range(m.lanes)]
        with builder.if_else(whole) as (full, ragged):
            with full:
                for column, place in zip(columns, places, strict=True):
                    m.store(column, place)
            with ragged:
                # rows of the output without a gap may run over into the next one, which is written later
                gapless = builder.icmp_signed("==", out_stride, rows)
                end = builder.select(gapless, builder.mul(cols, rows), I64(0))
                for c, (column, place) in enumerate(zip(columns, places, strict=True)):
                    inside_c = builder.icmp_signed("<", I64(c), cols)
                    fits = builder.icmp_signed("<=", builder.add(builder.mul(rows, I64(c)), lanes), end)
                    high = builder.or_(builder.icmp_signed(">=", rows, lanes), fits)
                    with builder.if_then(inside_c), builder.if_else(high) as (all_rows, some):
                        with all_rows:
                            m.store(column, place)
                        with some:
                            m.store(column, place, down)
        return context.get_dummy_value()

    return signature, codegen


# ---- addresses -----------------------------------------------------------------------------------------------------
# The machine's table holds addresses as int64. These turn them into pointers; nothing is checked.


@intrinsic
def pointer(typingctx: Any, address: Any, offset: Any, like: Any) -> Any:
    """Address + offset elements, as a pointer to ``like``'s type."""
    signature = types.CPointer(like)(types.int64, types.int64, like)

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        base = builder.inttoptr(arguments[0], context.get_value_type(sig.return_type))
        return builder.gep(base, [arguments[1]])

    return signature, codegen


@intrinsic
def shifted(typingctx: Any, p: Any, offset: Any) -> Any:
    """p + offset elements."""
    return p(p, types.int64), lambda context, builder, sig, a: builder.gep(a[0], [a[1]])


@intrinsic
def store_at(typingctx: Any, p: Any, index: Any, value: Any) -> Any:
    """p[index] = value."""

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        builder.store(arguments[2], builder.gep(arguments[0], [arguments[1]]))
        return context.get_dummy_value()

    return types.void(p, types.int64, p.dtype), codegen


@intrinsic
def load_at(typingctx: Any, p: Any, index: Any) -> Any:
    """p[index]."""
    return p.dtype(p, types.int64), lambda context, builder, sig, a: builder.load(builder.gep(a[0], [a[1]]))


@intrinsic
def float_at(typingctx: Any, address: Any, like: Any) -> Any:
    """The float64 at an address, as ``like``'s type."""

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        value = builder.load(builder.inttoptr(arguments[0], ir.DoubleType().as_pointer()))
        return value if sig.return_type == types.float64 else builder.fptrunc(value, ir.FloatType())

    return like(types.int64, like), codegen


@intrinsic
def get_int(typingctx: Any, address: Any, index: Any) -> Any:
    """The int64 at address + 8 index."""
    signature = types.int64(types.int64, types.int64)

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        base = builder.inttoptr(arguments[0], I64.as_pointer())
        return builder.load(builder.gep(base, [arguments[1]]))

    return signature, codegen


@intrinsic
def set_int(typingctx: Any, address: Any, index: Any, value: Any) -> Any:
    """Write the int64 at address + 8 index."""
    signature = types.void(types.int64, types.int64, types.int64)

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        base = builder.inttoptr(arguments[0], I64.as_pointer())
        builder.store(arguments[2], builder.gep(base, [arguments[1]]))
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def lowest_of(typingctx: Any, like: Any) -> Any:
    """Minus infinity of ``like``'s type."""

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        return ir.Constant(context.get_value_type(sig.return_type), -float("inf"))

    return like(like), codegen


@intrinsic
def lanes_of(typingctx: Any, like: Any) -> Any:
    """Elements a vector of ``like``'s type, a compile-time constant."""

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        return I64(VECTOR_BYTES * 8 // sig.args[0].bitwidth)

    return types.int64(like), codegen


def prefetch(builder: Any, place: Any, level: int, *, to_write: bool = False) -> None:
    """Ask for the line of a place, which need not be a valid address, into the cache of a level: 1 or 2."""
    byte = ir.IntType(8).as_pointer()
    signature = ir.FunctionType(ir.VoidType(), [byte, I32, I32, I32])
    function = declared(builder.module, signature, "llvm.prefetch.p0")
    builder.call(function, [builder.bitcast(place, byte), I32(int(to_write)), I32(4 - level), I32(1)])  # 1: data


@intrinsic
def copy_and_prefetch(typingctx: Any, words: Any, out: Any, source: Any, next_source: Any) -> Any:
    """Copy words of 4 bytes, and ask for as many at ``next_source``, which need not be a valid address."""
    signature = types.void(types.int64, types.int64, types.int64, types.int64)

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        words, *addresses = arguments
        m = VectorEmitter(builder, "float32")
        out, source, coming = (builder.inttoptr(a, m.element.as_pointer()) for a in addresses)

        def body(i: Any, mask: Any) -> None:
            m.store(m.load(_offset(builder, source, i), mask), _offset(builder, out, i), mask)
            prefetch(builder, _offset(builder, coming, i), level=2)

        vector_loop(m, words, body)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def itemsize_of(typingctx: Any, like: Any) -> Any:
    """Bytes an element of ``like``'s type, a compile-time constant."""
    return types.int64(like), lambda context, builder, sig, a: I64(sig.args[0].bitwidth // 8)


@intrinsic
def nanoseconds(typingctx: Any) -> Any:
    """A clock that only goes forward (POSIX clock_gettime)."""
    monotonic = 6 if sys.platform == "darwin" else 1

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        time = cgutils.alloca_once(builder, ir.ArrayType(I64, 2))
        seconds = builder.bitcast(time, I64.as_pointer())
        signature = ir.FunctionType(I32, [I32, I64.as_pointer()])
        function = declared(builder.module, signature, "clock_gettime")
        builder.call(function, [I32(monotonic), seconds])
        whole = builder.mul(builder.load(seconds), I64(1_000_000_000))
        return builder.add(whole, builder.load(builder.gep(seconds, [I64(1)])))

    return types.int64(), codegen
