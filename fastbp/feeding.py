"""Data that is too large for a GPU's memory: brought there a piece at a time, while the piece before is computed on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fastbp.backends import gpu

Array = npt.NDArray[Any]
SHARE = 0.5  # of the free device memory is what data may take to stay there
LIMIT: int | None = None  # bytes that it may take instead, for who knows better
PIECE_BYTES = 64 << 20  # takes about 3 ms over PCIe


def fits(data: Mapping[str, Array]) -> bool:
    """Whether arrays on the host can stay on the device as a whole."""
    return sum(array.nbytes for array in data.values()) <= _room()


def _room() -> int:
    return int(SHARE * gpu.free_bytes()) if LIMIT is None else LIMIT


class Feeder:
    """Brings chosen rows to the device.

    Two buffers of pinned host memory and two on the device take turns. A stream of its own copies from one to the
    other; events say when a pinned buffer has been read, and when what is on the device has been computed on.

    Attributes:
        rows: how many rows a piece has at most.
    """

    def __init__(self, data: Mapping[str, Array], batch: int) -> None:
        a_row = sum(array.nbytes // len(array) for array in data.values())
        self.rows = max(batch, min(PIECE_BYTES, _room() // 4) // a_row)
        self._data = data
        self._cuda = gpu.cupy().cuda
        self._stream = self._cuda.Stream(non_blocking=True)
        self._pinned = [{name: self._pin(array) for name, array in data.items()} for _ in range(2)]
        self._device = [
            {name: gpu.cupy().empty((self.rows, array.shape[1]), array.dtype) for name, array in data.items()}
            for _ in range(2)
        ]
        self._free = [self._cuda.get_current_stream().record()] * 2  # when the device's buffers can be written
        self._read: list[Any] = [None, None]  # when the pinned ones have been read
        self._turn = 0

    def _pin(self, array: Array) -> Array:
        count = self.rows * array.shape[1]
        memory = self._cuda.alloc_pinned_memory(count * array.itemsize)
        return np.frombuffer(memory, array.dtype, count).reshape(self.rows, -1)

    def pieces(self, sizes: Array) -> Iterator[tuple[int, int]]:
        """First and last + 1 of the batches of those sizes that make one piece, in order."""
        first = rows = 0
        for k, size in enumerate(sizes.tolist()):
            if rows + size > self.rows:
                yield first, k
                first, rows = k, 0
            rows += size
        yield first, len(sizes)

    def bring(self, numbers: Array) -> dict[str, Any]:
        """The rows of those numbers, there when the current stream comes to them, until two calls from now."""
        turn, stream = self._turn, self._cuda.get_current_stream()
        self._free[1 - turn] = stream.record()  # all that was asked for with the piece before comes before this
        self._turn = 1 - turn
        if self._read[turn] is not None:
            self._read[turn].synchronize()
        self._stream.wait_event(self._free[turn])
        found = {}
        for name, array in self._data.items():
            pinned, there = self._pinned[turn][name][: len(numbers)], self._device[turn][name][: len(numbers)]
            np.take(array, numbers, axis=0, out=pinned, mode="clip")  # "raise" would buffer
            there.set(pinned, stream=self._stream)
            found[name] = there
        self._read[turn] = self._stream.record()
        stream.wait_event(self._read[turn])
        return found
