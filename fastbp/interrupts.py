"""Ctrl-C at a moment that suits."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """SIGINT waits until the block is done, for things that belong together; then its handler is called as ever.

    Within such a block, and outside the main thread, which alone receives signals, nothing has to be done.
    """
    handler = signal.getsignal(signal.SIGINT)
    inside = isinstance(handler, _Caught)
    if threading.current_thread() is not threading.main_thread() or not callable(handler) or inside:
        yield
        return
    caught = _Caught()
    signal.signal(signal.SIGINT, caught)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if caught.arguments:
            handler(*caught.arguments)


class _Caught:
    """A handler that remembers what it was called with."""

    arguments: tuple[Any, ...] = ()

    def __call__(self, *arguments: Any) -> None:
        self.arguments = arguments
