"""A CuPy for machines without a GPU: arrays in host memory that are as strict as CuPy's about mixing with NumPy's.

It has only names and arguments that CuPy 14.2 has (test_switch.py compares them where CuPy is installed). What CuPy
allows here and there with NumPy arrays is refused everywhere. Copies between host and device are counted, and reading a
value (``bool``, ``int``, ``float``, ``item``) counts as one; copies on a stream of their own are done as late as the
stream allows, so that what does not wait for them is seen.
"""

from __future__ import annotations

import builtins as _builtins
import types as _types
import weakref as _weakref
from collections.abc import Callable as _Callable
from typing import Any as _Any

import numpy as _np

__version__ = "14.2.0"

float32, float64, int64, int32 = _np.float32, _np.float64, _np.int64, _np.int32
uint64, uint32, uint8, bool_ = _np.uint64, _np.uint32, _np.uint8, _np.bool_
finfo, iinfo, dtype = _np.finfo, _np.iinfo, _np.dtype
pi, inf, nan, newaxis = _np.pi, _np.inf, _np.nan, None


# ---- what tests look at and set --------------------------------------------------------------------------------------


class _State:
    """Copies that were made, memory that is used, and what the machine is said to be."""

    def __init__(self) -> None:
        self.to_device = self.to_host = self.waits = 0
        self.log: list[str] = []  # of streams
        self.limit = 1 << 40  # bytes of device memory
        self.used = 0
        self.devices = 2
        self.current = [0]
        self.driver, self.runtime, self.capability = 13000, 13000, "90"


_state = _State()


def _reset() -> None:
    _state.__init__()  # type: ignore[misc]
    cuda.Stream.null._waiting.clear()


class _Watch:
    """Who has to know which memory is the device's: Numba's simulator, where it runs (see cuda/conftest.py)."""

    register: _Callable[[_np.ndarray], _Any] = staticmethod(lambda place: None)
    forget: _Callable[[int], _Any] = staticmethod(lambda address: None)


_watch: _Any = _Watch


def _allocate(host: _np.ndarray, array: ndarray) -> _np.ndarray:
    """The same numbers in device memory: aligned as CuPy does, and gone with the array that owns it."""
    if _state.used + host.nbytes > _state.limit:
        raise cuda.memory.OutOfMemoryError(
            f"Out of memory allocating {host.nbytes:,} bytes (allocated so far: {_state.used:,} bytes)."
        )
    _state.used += host.nbytes
    order: _Any = "F" if host.flags.f_contiguous and not host.flags.c_contiguous else "C"
    whole = _np.empty(host.nbytes + 256, _np.uint8)
    start = -whole.ctypes.data % 256
    place = whole[start : start + host.nbytes].view(host.dtype).reshape(host.shape, order=order)
    place[...] = host
    _watch.register(place)
    _weakref.finalize(array, _free, host.nbytes, place.ctypes.data)
    return place


def _free(size: int, address: int) -> None:
    _watch.forget(address)
    _state.used = _builtins.max(0, _state.used - size)


# ---- arrays ----------------------------------------------------------------------------------------------------------


class _Flags:
    def __init__(self, flags: _Any) -> None:
        self.c_contiguous, self.f_contiguous, self.owndata = flags.c_contiguous, flags.f_contiguous, flags.owndata


def _inside(value: _Any) -> _Any:
    """What an operation works on; arrays of NumPy's are refused."""
    if isinstance(value, ndarray):
        return value._host
    if isinstance(value, (tuple, list)):
        return type(value)(_inside(v) for v in value)
    if isinstance(value, _np.ndarray):
        raise TypeError(f"Unsupported type {type(value)}")
    return value


def _outside(value: _Any, base: ndarray | None = None) -> _Any:
    """An array for a result: a view of ``base`` if it shares its memory."""
    if isinstance(value, (tuple, list)):
        return type(value)(_outside(v, base) for v in value)
    if not isinstance(value, (_np.ndarray, _np.generic)):
        return value
    host = _np.asarray(value)
    shares = base is not None and _np.may_share_memory(host, base._host)
    return ndarray._of(host, base if shares else None)


_KERNELS = {
    "__add__": "cupy_add",
    "__sub__": "cupy_subtract",
    "__mul__": "cupy_multiply",
    "__truediv__": "cupy_true_divide",
    "__gt__": "cupy_greater",
}


def _operator(name: str) -> _Callable[..., _Any]:
    def run(self: ndarray, *others: _Any) -> _Any:
        for other in others:
            if hasattr(other, "__cupy_override_elementwise_kernel__") and name in _KERNELS:
                return other.__cupy_override_elementwise_kernel__(
                    _types.SimpleNamespace(name=_KERNELS[name]), self, other
                )
        with _np.errstate(all="ignore"):
            return _outside(getattr(_np.ndarray, name)(self._host, *(_operand(o) for o in others)))

    return run


def _in_place(name: str) -> _Callable[..., _Any]:
    def run(self: ndarray, other: _Any) -> _Any:
        with _np.errstate(all="ignore"):
            getattr(_np.ndarray, name)(self._host, _operand(other))
        return self

    return run


def _operand(value: _Any) -> _Any:
    return _inside(_checked(value))


def _checked(value: _Any) -> _Any:
    """An array of this kind or a number, as it is."""
    if not isinstance(value, (ndarray, _np.generic, bool, int, float)):
        raise TypeError(f"Unsupported type {type(value)}")
    return value


class ndarray:  # noqa: N801
    """An array on the device."""

    __array_ufunc__ = None
    __array_priority__ = 100

    def __init__(self, shape: _Any, dtype: _Any = float, memptr: _Any = None) -> None:
        if memptr is not None:
            raise NotImplementedError("the fake has no memory pointers")
        self._own(_np.empty(shape, dtype))

    def _own(self, host: _np.ndarray) -> None:
        self.base: ndarray | None = None
        self._device = _state.current[-1]
        self._host = _allocate(host, self)

    @classmethod
    def _of(cls, host: _np.ndarray, base: ndarray | None = None) -> ndarray:
        made = object.__new__(cls)
        if base is None:
            made._own(host)
        else:
            made._host, made.base, made._device = host, base, base._device
        return made

    shape = property(lambda self: self._host.shape)
    dtype = property(lambda self: self._host.dtype)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    nbytes = property(lambda self: self._host.nbytes)
    itemsize = property(lambda self: self._host.itemsize)
    strides = property(lambda self: self._host.strides)
    flags = property(lambda self: _Flags(self._host.flags))
    T = property(lambda self: _outside(self._host.T, self))
    device = property(lambda self: cuda.Device(self._device))
    data = property(lambda self: _types.SimpleNamespace(ptr=self._host.ctypes.data, device_id=self._device))

    def __len__(self) -> int:
        return len(self._host)

    def __array__(self, *_: _Any, **__: _Any) -> _Any:
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct a NumPy array "
            "explicitly."
        )

    def get(self, stream: _Any = None, order: str = "C", out: _Any = None, *, blocking: bool = True) -> _np.ndarray:
        assert stream is None, "the fake copies to the host on the current stream only"
        assert out is None
        assert blocking
        _state.to_host += 1
        cuda.get_current_stream()._flush()
        return self._host.copy(order)

    def set(self, arr: _np.ndarray, stream: _Any = None) -> None:
        if not isinstance(arr, _np.ndarray):
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        if arr.dtype != self.dtype or arr.shape != self.shape:
            raise ValueError(f"{arr.dtype} {arr.shape} set to {self.dtype} {self.shape}")
        if not self._host.flags.c_contiguous:
            raise RuntimeError("Cannot set to non-contiguous array")
        _state.to_device += 1
        (stream or cuda.get_current_stream())._do(lambda: _np.copyto(self._host, arr))

    def item(self, *args: int) -> _Any:
        _state.to_host += 1
        return self._host.item(*args)

    def tolist(self) -> _Any:
        _state.to_host += 1
        return self._host.tolist()

    def __bool__(self) -> bool:
        return bool(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __format__(self, spec: str) -> str:
        return format(self.item() if self.ndim == 0 else str(self), spec)

    def __repr__(self) -> str:
        return repr(self.get())

    __str__ = __repr__

    def __getitem__(self, key: _Any) -> ndarray:
        return _outside(self._host[_index(key)], self)

    def __setitem__(self, key: _Any, value: _Any) -> None:
        self._host[_index(key)] = _operand(value)

    def __iter__(self) -> _Any:
        return (self[k] for k in range(len(self)))

    def __reduce__(self) -> _Any:
        return array, (self.get(),)

    def copy(self, order: str = "C") -> ndarray:
        return _outside(self._host.copy(order))

    __copy__ = copy

    def __deepcopy__(self, memo: _Any) -> ndarray:
        return self.copy()

    def astype(
        self, dtype: _Any, order: str = "K", casting: _Any = None, subok: _Any = None, copy: bool = True
    ) -> ndarray:
        with _np.errstate(all="ignore"):
            return _outside(self._host.astype(dtype, copy=copy), self)

    def reshape(self, *shape: _Any, order: str = "C") -> ndarray:
        return _outside(self._host.reshape(*shape), self)

    def ravel(self, order: str = "C") -> ndarray:
        return _outside(self._host.ravel(), self)

    def view(self, dtype: _Any = None) -> ndarray:
        return _outside(self._host.view(dtype), self)

    def transpose(self, *axes: _Any) -> ndarray:
        return _outside(self._host.transpose(*axes), self)

    def fill(self, value: _Any) -> None:
        self._host.fill(_operand(value))


def _index(key: _Any) -> _Any:
    for part in key if isinstance(key, tuple) else (key,):
        if isinstance(part, ndarray) and part.dtype == bool:
            _state.to_host += 1  # how many there are has to be known
    return _inside(key)


for _name in [
    "add",
    "sub",
    "mul",
    "truediv",
    "floordiv",
    "mod",
    "pow",
    "matmul",
    "and",
    "or",
    "xor",
    "lshift",
    "rshift",
]:
    setattr(ndarray, f"__{_name}__", _operator(f"__{_name}__"))
    setattr(ndarray, f"__r{_name}__", _operator(f"__r{_name}__"))
    if _name not in ("matmul",):
        setattr(ndarray, f"__i{_name}__", _in_place(f"__i{_name}__"))
for _name in ["neg", "pos", "abs", "invert", "lt", "le", "gt", "ge", "eq", "ne"]:
    setattr(ndarray, f"__{_name}__", _operator(f"__{_name}__"))
ndarray.__hash__ = None  # type: ignore[assignment]


def _method(name: str) -> _Callable[..., _Any]:
    def run(self: ndarray, axis: _Any = None, dtype: _Any = None, out: _Any = None, keepdims: bool = False) -> _Any:
        assert out is None
        more = {"dtype": dtype} if dtype is not None else {}
        more |= {"keepdims": True} if keepdims else {}
        with _np.errstate(all="ignore"):
            return _outside(getattr(self._host, name)(axis, **more))

    return run


for _name in ["sum", "mean", "var", "std", "max", "min", "any", "all", "argmax", "argmin", "argsort", "cumsum", "prod"]:
    setattr(ndarray, _name, _method(_name))


# ---- functions -------------------------------------------------------------------------------------------------------


def _call(name: str, *args: _Any, **more: _Any) -> _Any:
    first = next((a for a in args if isinstance(a, ndarray)), None)
    with _np.errstate(all="ignore"):
        return _outside(getattr(_np, name)(*_inside(args), **more), first)


def _ufunc(name: str) -> _Callable[..., _Any]:
    def function(*args: _Any) -> _Any:
        for arg in args:
            if hasattr(arg, "__cupy_override_elementwise_kernel__"):
                return arg.__cupy_override_elementwise_kernel__(function, *args)
        return _call(name, *(_checked(a) for a in args))

    function.name = f"cupy_{name}"  # type: ignore[attr-defined]  # as CuPy's are called
    return function


for _name in [
    "exp",
    "expm1",
    "log",
    "log1p",
    "tanh",
    "sin",
    "cos",
    "sqrt",
    "abs",
    "pow",
    "power",
    "maximum",
    "minimum",
    "isfinite",
    "isnan",
    "isinf",
    "sign",
    "floor",
    "square",
    "add",
    "subtract",
    "multiply",
    "divide",
    "negative",
    "greater",
    "less",
    "equal",
    "logical_and",
    "logical_or",
    "logical_not",
    "exp2",
    "log2",
    "arctan",
]:
    globals()[_name] = _ufunc(_name)


def array(
    obj: _Any, dtype: _Any = None, copy: _Any = True, order: _Any = "K", subok: bool = False, ndmin: int = 0
) -> ndarray:
    if isinstance(obj, ndarray):
        return obj.astype(dtype or obj.dtype)
    host = _np.array(obj, dtype)
    if host.dtype.kind not in "biufc":
        raise ValueError(f"Unsupported dtype {host.dtype}")
    _state.to_device += 1
    return ndarray._of(host)


def asarray(a: _Any, dtype: _Any = None, order: _Any = None, *, copy: _Any = None, blocking: bool = False) -> ndarray:
    if isinstance(a, ndarray):
        same = dtype is None or a.dtype == dtype
        return a if same and not copy else a.astype(dtype or a.dtype)
    return array(a, dtype)


def ascontiguousarray(a: _Any, dtype: _Any = None) -> ndarray:
    found = asarray(a, dtype)
    return found if found.flags.c_contiguous else found.copy()


def asnumpy(a: _Any, stream: _Any = None, order: str = "C", out: _Any = None, *, blocking: bool = True) -> _np.ndarray:
    return a.get() if isinstance(a, ndarray) else _np.asarray(a)


def get_array_module(*args: _Any) -> _Any:
    return _modules()["cupy"] if _builtins.any(isinstance(a, ndarray) for a in args) else _np


def empty(shape: _Any, dtype: _Any = float, order: str = "C") -> ndarray:
    """Not 0, but as what has been used before: NaN, or all bits."""
    host = _np.empty(shape, dtype)
    host.reshape(-1).view(_np.uint8)[...] = 0xFF
    return ndarray._of(host)


def zeros(shape: _Any, dtype: _Any = float, order: str = "C") -> ndarray:
    return ndarray._of(_np.zeros(shape, dtype))


def ones(shape: _Any, dtype: _Any = float, order: str = "C") -> ndarray:
    return ndarray._of(_np.ones(shape, dtype))


def full(shape: _Any, fill_value: _Any, dtype: _Any = None, order: str = "C") -> ndarray:
    return ndarray._of(_np.full(shape, _operand(fill_value), dtype))


def zeros_like(a: _Any, dtype: _Any = None, order: str = "K", subok: _Any = None, shape: _Any = None) -> ndarray:
    return _call("zeros_like", a, dtype=dtype)


def ones_like(a: _Any, dtype: _Any = None, order: str = "K", subok: _Any = None, shape: _Any = None) -> ndarray:
    return _call("ones_like", a, dtype=dtype)


def empty_like(a: _Any, dtype: _Any = None, order: str = "K", subok: _Any = None, shape: _Any = None) -> ndarray:
    return empty(a.shape, dtype or a.dtype)


def arange(start: _Any, stop: _Any = None, step: _Any = 1, dtype: _Any = None) -> ndarray:
    begin, end = (0, start) if stop is None else (start, stop)
    return ndarray._of(_np.arange(begin, end, step, dtype))


def astype(x: ndarray, dtype: _Any, /, *, copy: bool = True) -> ndarray:
    return x.astype(dtype, copy=copy)


def reshape(a: ndarray, newshape: _Any, order: str = "C", *, copy: _Any = None) -> ndarray:
    return a.reshape(newshape)


def broadcast_to(array: ndarray, shape: _Any) -> ndarray:
    return _call("broadcast_to", array, shape)


def take(a: ndarray, indices: ndarray, axis: _Any = None, out: _Any = None) -> ndarray:
    return _call("take", a, indices, axis=axis, mode="wrap")


def where(condition: _Any, x: _Any = None, y: _Any = None) -> _Any:
    return _call("where", condition, _checked(x), _checked(y))


def sum(a: ndarray, axis: _Any = None, dtype: _Any = None, out: _Any = None, keepdims: bool = False) -> ndarray:
    return _call("sum", a, axis=axis, dtype=dtype, keepdims=keepdims)


def mean(a: ndarray, axis: _Any = None, dtype: _Any = None, out: _Any = None, keepdims: bool = False) -> ndarray:
    return _call("mean", a, axis=axis, dtype=dtype, keepdims=keepdims)


def max(a: ndarray, axis: _Any = None, out: _Any = None, keepdims: bool = False) -> ndarray:
    return _call("max", a, axis=axis, keepdims=keepdims)


def min(a: ndarray, axis: _Any = None, out: _Any = None, keepdims: bool = False) -> ndarray:
    return _call("min", a, axis=axis, keepdims=keepdims)


def any(a: ndarray, axis: _Any = None, out: _Any = None, keepdims: bool = False) -> ndarray:
    return _call("any", a, axis=axis, keepdims=keepdims)


def all(a: ndarray, axis: _Any = None, out: _Any = None, keepdims: bool = False) -> ndarray:
    return _call("all", a, axis=axis, keepdims=keepdims)


def argmax(a: ndarray, axis: _Any = None, dtype: _Any = None, out: _Any = None, keepdims: bool = False) -> ndarray:
    return _call("argmax", a, axis=axis, keepdims=keepdims)


def average(
    a: ndarray, axis: _Any = None, weights: _Any = None, returned: bool = False, *, keepdims: bool = False
) -> _Any:
    return _call("average", a, axis=axis, weights=_inside(weights), keepdims=keepdims)


def argsort(a: ndarray, axis: int = -1, kind: _Any = None) -> ndarray:
    return _call("argsort", a, axis=axis, kind=kind)


def searchsorted(a: ndarray, v: ndarray, side: str = "left", sorter: _Any = None) -> ndarray:
    return _call("searchsorted", a, v, side=side)


def argwhere(a: ndarray) -> ndarray:
    _state.to_host += 1  # how many there are
    return _call("argwhere", a)


def concat(tup: _Any, axis: _Any = 0, out: _Any = None, *, dtype: _Any = None, casting: str = "same_kind") -> ndarray:
    return _call("concat", list(tup), axis=axis)


concatenate = concat


def stack(tup: _Any, axis: int = 0, out: _Any = None, *, dtype: _Any = None, casting: str = "same_kind") -> ndarray:
    return _call("stack", list(tup), axis=axis)


def matmul(x1: ndarray, x2: ndarray) -> ndarray:
    return _call("matmul", x1, x2)


def dot(a: ndarray, b: ndarray, out: _Any = None) -> ndarray:
    return _call("dot", a, b)


def transpose(a: ndarray, axes: _Any = None) -> ndarray:
    return _call("transpose", a, axes)


def squeeze(a: ndarray, axis: _Any = None) -> ndarray:
    return _call("squeeze", a, axis)


def clip(a: ndarray, a_min: _Any, a_max: _Any, out: _Any = None) -> ndarray:
    return _call("clip", a, a_min, a_max)


def get_default_memory_pool() -> _Any:
    return _types.SimpleNamespace(free_bytes=lambda: 0, used_bytes=lambda: _state.used)


# ---- cupy.cuda -------------------------------------------------------------------------------------------------------


class _Device:
    def __init__(self, device: int | None = None) -> None:
        self.id = _state.current[-1] if device is None else int(device)

    def __enter__(self) -> _Device:
        _state.current.append(self.id)
        return self

    def __exit__(self, *_: _Any) -> None:
        _state.current.pop()

    def use(self) -> None:
        _state.current[-1] = self.id

    def __int__(self) -> int:
        return self.id

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Device) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    def synchronize(self) -> None:
        _state.waits += 1

    compute_capability = property(lambda self: _state.capability)
    mem_info = property(lambda self: (_state.limit - _state.used, _state.limit))


class _Event:
    """The moment when a stream has done what it had to do so far."""

    def __init__(self, block: bool = False, disable_timing: bool = False, interprocess: bool = False) -> None:
        self._of: tuple[_Stream, int] | None = None

    def record(self, stream: _Any = None) -> None:
        stream = stream or _current_stream()
        self._of = (stream, stream._given)

    def synchronize(self) -> None:
        _state.waits += 1
        self._reach()()

    def _reach(self) -> _Callable[[], None]:
        """What brings that moment about, even if the event is recorded anew before it is called."""
        stream, until = self._of or (_Stream.null, 0)
        return lambda: stream._flush(until)


class _Stream:
    """Copies of a stream wait for somebody who waits for them; what the null stream does is done at once."""

    null: _Stream

    def __init__(
        self, null: bool = False, non_blocking: bool = False, ptds: bool = False, priority: _Any = None
    ) -> None:
        self._waiting: list[_Callable[[], _Any]] = []
        self._given = self._done = 0
        self._null = null
        self.ptr = 0 if null else id(self)

    def _do(self, work: _Callable[[], _Any]) -> None:
        self._waiting.append(work)
        self._given += 1
        if self._null:
            self._flush()

    def _flush(self, until: int | None = None) -> None:
        while self._waiting and (until is None or self._done < until):
            self._waiting.pop(0)()
            self._done += 1

    def __enter__(self) -> _Stream:
        _streams.append(self)
        return self

    def __exit__(self, *_: _Any) -> None:
        _streams.pop()

    def use(self) -> _Stream:
        _streams[-1] = self
        return self

    def record(self, event: _Any = None) -> _Any:
        event = event or _Event()
        event.record(self)
        return event

    def wait_event(self, event: _Any) -> None:
        _state.log.append(f"{'null' if self._null else 'stream'} waits")
        self._do(event._reach())

    def synchronize(self) -> None:
        _state.waits += 1
        self._flush()


_Stream.null = _Stream(null=True)
_streams = [_Stream.null]


def _current_stream(device_id: _Any = None) -> _Stream:
    return _streams[-1]


class _OutOfMemoryError(MemoryError):
    pass


class _CUDARuntimeError(RuntimeError):
    pass


def _device_count() -> int:
    return _state.devices


cuda = _types.ModuleType("cupy.cuda")
cuda.Device, cuda.Stream, cuda.Event = _Device, _Stream, _Event  # type: ignore[attr-defined]
cuda.get_current_stream = _current_stream  # type: ignore[attr-defined]
cuda.alloc_pinned_memory = bytearray  # type: ignore[attr-defined]
cuda.memory = _types.ModuleType("cupy.cuda.memory")  # type: ignore[attr-defined]
cuda.memory.OutOfMemoryError = _OutOfMemoryError
cuda.runtime = _types.ModuleType("cupy.cuda.runtime")  # type: ignore[attr-defined]
cuda.runtime.CUDARuntimeError = _CUDARuntimeError
cuda.runtime.getDeviceCount = _device_count
cuda.runtime.driverGetVersion = lambda: _state.driver
cuda.runtime.runtimeGetVersion = lambda: _state.runtime
cuda.runtime.getDeviceProperties = lambda device: {"name": b"a fake GPU", "multiProcessorCount": 4}


def _modules() -> dict[str, _types.ModuleType]:
    """What to put into ``sys.modules``."""
    import sys

    return {"cupy": sys.modules[__name__], "cupy.cuda": cuda}
