"""What GPU kernels are written in, in Numba's simulator: a twin in Python of every intrinsic in ``ptx.py``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastbp import scalars
from fastbp.backends.cuda import simulator
from fastbp.backends.cuda.codes import FORMULAS
from fastbp.backends.cuda.simulator import (
    BARRIER,
    WARP,
    Pointer,
    SimulatedError,
    exchange,
    memory,
    now,
    together,
)

simulator.install()
Value = Any
_BOOLEANS = (bool, np.bool_)


def device(function: Callable[..., Any]) -> Callable[..., Any]:
    """Functions that kernels call are just functions."""
    return function


def thread() -> np.int32:
    """See ptx.py, here and below."""
    number: np.int32 = now.thread.number32
    return number


def threads() -> np.int32:
    return now.threads32


def sync() -> None:
    now.thread.wait(BARRIER)


# ---- pointers ------------------------------------------------------------------------------------------------------


def at(address: Any, one: Any, space: Any) -> Pointer:
    return Pointer(int(address), type(one), type(space) in _BOOLEANS)


def shared(one: Any) -> Pointer:
    region = memory.shared
    assert region is not None
    return Pointer(region.address, type(one), True)


def address_of(pointer: Pointer) -> np.int64:
    return np.int64(pointer.address)


def shifted(pointer: Pointer, count: Any) -> Pointer:
    return pointer.shifted(count)


def load4(pointer: Pointer, index: Any) -> tuple[Any, ...]:
    return pointer.load(index, 4, 16)


def store4(pointer: Pointer, index: Any, values: tuple[Any, ...]) -> None:
    pointer.store(index, values, 16)


def number(value: Any, one: Any) -> Any:
    return type(one)(value)


def lowest(one: Any) -> Any:
    return np.finfo(type(one)).min


def itemsize(one: Any) -> np.int64:
    return np.int64(one.itemsize)


def shuffle_xor(value: Any, mask: Any) -> Any:
    return together((value, mask), _shuffled)


def _shuffled(offered: list[Any]) -> list[Any]:
    mask = int(offered[0][1])
    if not 0 <= mask < WARP or any(other != mask for _, other in offered):
        raise SimulatedError(f"lanes of a warp are shuffled by different masks, or not by 0 … {WARP - 1}")
    return [offered[lane ^ mask][0] for lane in range(WARP)]


# ---- formulas ------------------------------------------------------------------------------------------------------


class _ScalarEmitter:
    """The operations of :class:`fastbp.scalars.Emitter` on NumPy's scalars of one dtype."""

    def __init__(self, kind: type) -> None:
        self.kind = kind
        self.dtype = np.dtype(kind).name
        self.exp, self.expm1, self.log, self.log1p = np.exp, np.expm1, np.log, np.log1p
        self.tanh, self.sin, self.cos, self.sqrt, self.abs = np.tanh, np.sin, np.cos, np.sqrt, abs
        self.power = np.power

    def fma(self, x: Value, y: Value, z: Value) -> Value:
        """X y + z; of float32 the product is exact, as on the device."""
        x, y, z = (float(self.kind(v)) for v in (x, y, z))
        return self.kind(x * y + z)

    def maximum(self, x: Value, y: Value) -> Value:
        return x if x != x or x > y else self.kind(y)

    def minimum(self, x: Value, y: Value) -> Value:
        return x if x != x or x < y else self.kind(y)

    def where(self, condition: Value, x: Value, y: Value) -> Value:
        return self.kind(x if condition else y)


_EMITTERS = {kind: _ScalarEmitter(kind) for kind in (np.float32, np.float64)}
_FORMULAS = list(FORMULAS.values())
_UPDATES = list(scalars.UPDATES.values())


def apply(code: Any, x: Any, y: Any, z: Any) -> Any:
    formula, count = _FORMULAS[code]
    kind = type(x)
    return kind(formula(_EMITTERS[kind], *(x, kind(y), kind(z))[:count]))


def apply4(code: Any, xs: tuple[Any, ...], ys: tuple[Any, ...], zs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(apply(code, *values) for values in zip(xs, ys, zs, strict=True))


def update(code: Any, theta: Any, g: Any, first: Any, second: Any, hyper: Pointer) -> tuple[Any, ...]:
    rule = _UPDATES[code]
    kind = type(theta)
    h = tuple(kind(hyper[k]) for k in range(len(rule.hyper)))
    states = (first, second)[: len(rule.states)]
    found = rule.formula(_EMITTERS[kind], h, theta, kind(g), *map(kind, states))
    return tuple(kind(v) for v in (*found, *(first, second)[len(states) :]))


class _Integers:
    """Unsigned integers of 32 bits, see scalars.philox."""

    def multiply(self, x: int, constant: int) -> tuple[int, int]:
        product = x * constant
        return product >> 32, product & 0xFFFFFFFF

    def add(self, x: int, constant: int) -> int:
        return (x + constant) & 0xFFFFFFFF

    def xor(self, x: int, y: int) -> int:
        return x ^ y


def dropout(bits: Any, element: Any, key: Pointer, one: Any) -> Any:
    number, threshold = divmod(int(bits), 1 << 32)
    seed, step = int(key[0]), int(key[1])
    keys = (seed ^ number * scalars.DROPOUT_KEY) & 0xFFFFFFFF
    drawn = scalars.philox(_Integers(), int(element) & 0xFFFFFFFF, step & 0xFFFFFFFF, keys)
    return type(one)(1.0 / (1.0 - threshold / 2.0**32) if drawn >= threshold else 0.0)


# ---- tensor cores --------------------------------------------------------------------------------------------------
# Lane 4g + t has, of A, words (row g, column t), (g + 8, t), (g, t + 4), (g + 8, t + 4); of B (row t, column g) and
# (t + 4, g); of C and the result (row g, columns 2t and 2t + 1), then of row g + 8. Columns of A and rows of B are
# counted in words: two bf16 or one tf32.


def _tf32_of(words: np.ndarray) -> np.ndarray:
    """(…) words -> (…, 1) numbers; the hardware does not look at the last 13 bits."""
    return (words & np.uint32(0xFFFFE000)).view(np.float32)[..., None]


def _bf16_of(words: np.ndarray) -> np.ndarray:
    """(…) words -> (…, 2) numbers."""
    return np.stack([words << np.uint32(16), words & np.uint32(0xFFFF0000)], -1).view(np.float32)


def _products(values: list[Any], numbers_of: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """What each lane gets, (32, 4), of what each has."""
    a, b, c = (np.array([v[k] for v in values]) for k in range(3))
    A = numbers_of(a.reshape(8, 4, 2, 2)).transpose(3, 0, 2, 1, 4).reshape(16, -1)
    B = numbers_of(b.reshape(8, 4, 2)).transpose(2, 1, 3, 0).reshape(-1, 8)
    C = c.reshape(8, 4, 2, 2).transpose(2, 0, 1, 3).reshape(16, 8)
    D = (A.astype(np.float64) @ B.astype(np.float64) + C).astype(np.float32)
    result: np.ndarray = D.reshape(2, 8, 4, 2).transpose(1, 2, 0, 3).reshape(WARP, 4)
    return result


def mma_bf16(a: Any, b: Any, c: Any) -> tuple[Any, ...]:
    return tuple(together((a, b, c), lambda values: _products(values, _bf16_of)))


def mma_tf32(a: Any, b: Any, c: Any) -> tuple[Any, ...]:
    return tuple(together((a, b, c), lambda values: _products(values, _tf32_of)))


def _in_shared_memory(pointer: Pointer) -> None:
    if pointer.region is not memory.shared:
        raise SimulatedError("an address in global memory is taken for one in shared memory")


def ldmatrix(words: Pointer, index: Any) -> tuple[Any, ...]:
    _in_shared_memory(words)
    rows, lane = exchange(words.load(index, 4, 16))
    return tuple(rows[8 * k + lane // 4][lane % 4] for k in range(4))


def _transposed(rows: list[Any]) -> np.ndarray:
    """Rows of four matrices, (32, 4) words -> the words of each lane, (32, 4)."""
    halves = np.array(rows).view(np.uint16).reshape(4, 4, 2, 8)  # matrix, pair of rows, row, column: little-endian
    return np.ascontiguousarray(halves.transpose(3, 1, 0, 2)).view(np.uint32).reshape(WARP, 4)


def ldmatrix_trans(words: Pointer, index: Any) -> tuple[Any, ...]:
    _in_shared_memory(words)
    return tuple(together(words.load(index, 4, 16), _transposed))


def _copy(target: Pointer, index: Any, source: Pointer, first: Any, there: Any, space: Any, count: int) -> None:
    """What is on its way arrives when it is waited for; until then NaN lies there."""
    _in_shared_memory(target)
    if source.region is memory.shared and not isinstance(space, (bool, np.bool_)):
        raise SimulatedError("an address in shared memory is taken for one in global memory")
    words = [x.view(np.uint32) for x in source.load(first, count, 4 * count)] if there else [np.uint32(0)] * count
    target.store(index, [np.uint32(0xFFFFFFFF)] * count, 4 * count)
    now.thread.copies.append((target, index, words))


def copy4(target: Pointer, index: Any, source: Pointer, first: Any, there: Any, space: Any) -> None:
    _copy(target, index, source, first, there, space, 4)


def copy1(target: Pointer, index: Any, source: Pointer, first: Any, there: Any, space: Any) -> None:
    _copy(target, index, source, first, there, space, 1)


def copied() -> None:
    for target, index, words in now.thread.copies:
        target.store(index, words, 4)
    now.thread.copies.clear()


def to_tf32(word: Any) -> Any:
    if int(word) & 0x7FFFFFFF > 0x7F800000:
        return np.uint32(0x7FFFFFFF)
    return np.uint32(int(word) + 0x1000 & 0xFFFFE000)


def _bf16(x: Any) -> int:
    word = int(x.view(np.uint32))
    if word & 0x7FFFFFFF > 0x7F800000:
        return 0x7FFF
    return word + 0x7FFF + (word >> 16 & 1) >> 16


def pack_bf16(low: Any, high: Any) -> Any:
    return np.uint32(_bf16(low) | _bf16(high) << 16)


def store2(pointer: Pointer, index: Any, values: tuple[Any, ...]) -> None:
    pointer.store(index, values, 8)


def walked(pointer: Pointer, count: Any, space: Any) -> Pointer:
    return pointer.shifted(count)
