"""What GPU kernels are written in, in Numba's simulator: a twin in Python of every intrinsic in ``ptx.py``."""

from __future__ import annotations  # noqa: I001

from collections.abc import Callable
from typing import Any

import numpy as np

from fastbp import scalars
from fastbp.backends.cuda import simulator
from fastbp.backends.cuda.codes import FORMULAS
from fastbp.backends.cuda.simulator import Pointer, exchange, getcurrent, memory

simulator.install()
Value = Any


def device(function: Callable[..., Any]) -> Callable[..., Any]:
    """Functions that kernels call are just functions."""
    return function


def thread() -> np.int32:
    return np.int32(getcurrent().number)


def threads() -> np.int32:
    return np.int32(simulator.numba_kernel._kernel_context.blockDim.x)


def sync() -> None:
    getcurrent().syncthreads()


# ---- pointers ------------------------------------------------------------------------------------------------------


def at(address: Any, one: Any, space: Any) -> Pointer:
    found = memory.find(int(address), isinstance(space, (bool, np.bool_)))
    return Pointer(found, type(one), int(address) - found.address)


def shared(one: Any) -> Pointer:
    assert memory.shared is not None
    return Pointer(memory.shared, type(one), 0)


def address_of(pointer: Pointer) -> np.int64:
    return np.int64(pointer.address)


def shifted(pointer: Pointer, count: Any) -> Pointer:
    return pointer.shifted(count)


def _aligned(pointer: Pointer, index: Any) -> None:
    address = pointer.address + int(index) * pointer.item
    if address % 16:
        raise simulator.SimulatedFault(f"a 128-bit access to address {address:#x}, which is no multiple of 16")


def load4(pointer: Pointer, index: Any) -> tuple[Any, ...]:
    _aligned(pointer, index)
    return tuple(pointer[int(index) + e] for e in range(4))


def store4(pointer: Pointer, index: Any, values: tuple[Any, ...]) -> None:
    _aligned(pointer, index)
    for e in range(4):
        pointer[int(index) + e] = values[e]


def number(value: Any, one: Any) -> Any:
    return type(one)(value)


def lowest(one: Any) -> Any:
    return np.finfo(type(one)).min


def itemsize(one: Any) -> np.int64:
    return np.int64(np.dtype(type(one)).itemsize)


def shuffle_xor(value: Any, mask: Any) -> Any:
    values, lane = exchange(value)
    return values[lane ^ int(mask)]


# ---- formulas ------------------------------------------------------------------------------------------------------


class ScalarEmitter:
    """The operations of :class:`fastbp.scalars.Emitter` on NumPy's scalars."""

    def __init__(self, kind: type) -> None:
        self.kind = kind
        self.dtype = np.dtype(kind).name

    def __getattr__(self, name: str) -> Callable[..., Value]:  # exp, expm1, log, log1p, tanh, sin, cos, sqrt, abs
        function: Callable[..., Value] = getattr(np, name)
        return function

    def fma(self, x: Value, y: Value, z: Value) -> Value:
        return x * y + z

    def power(self, x: Value, y: Value) -> Value:
        return np.power(x, y)

    def maximum(self, x: Value, y: Value) -> Value:
        return np.maximum(self.kind(x), self.kind(y))

    def minimum(self, x: Value, y: Value) -> Value:
        return np.minimum(self.kind(x), self.kind(y))

    def where(self, condition: Value, x: Value, y: Value) -> Value:
        return self.kind(x if condition else y)


_EMITTERS = {kind: ScalarEmitter(kind) for kind in (np.float32, np.float64)}
_FORMULAS = list(FORMULAS.values())
_UPDATES = list(scalars.UPDATES.values())


def apply(code: Any, x: Any, y: Any, z: Any) -> Any:
    formula, count = _FORMULAS[int(code)]
    return type(x)(formula(_EMITTERS[type(x)], *(x, y, z)[:count]))


def update(code: Any, theta: Any, g: Any, first: Any, second: Any, hyper: Pointer) -> tuple[Any, ...]:
    rule = _UPDATES[int(code)]
    kind = type(theta)
    h = tuple(kind(hyper[k]) for k in range(len(rule.hyper)))
    states = (first, second)[: len(rule.states)]
    found = rule.formula(_EMITTERS[kind], h, theta, g, *states)
    return tuple(kind(v) for v in (*found, *(first, second)[len(rule.states) :]))


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
