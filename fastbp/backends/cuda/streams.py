"""What comes before what, where work is asked of several of CuPy's streams: told to the device, nobody waits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Order:
    """Uses of memory that streams share, one after the other, whichever stream they are asked of."""

    def __init__(self) -> None:
        self._last: tuple[Any, Any] | None = None  # the stream of the last use, and an event behind it

    @contextmanager
    def turn(self, stream: Any) -> Iterator[None]:
        """What is asked of ``stream`` inside comes after the last use; None in the simulator, which has no streams."""
        if stream is None:
            yield
            return
        event = None
        if self._last is not None:
            before, event = self._last
            if before.ptr != stream.ptr:
                stream.wait_event(event)
        try:
            yield
        finally:
            self._last = stream, stream.record(event)

    def wait(self) -> None:
        """Until the last use is over: before its memory may become that of a stream which knows nothing of it."""
        if self._last is not None:
            self._last[1].synchronize()


@contextmanager
def between(outside: Any, inside: Any) -> Iterator[None]:
    """Work goes to the stream ``inside``, after what ``outside`` was asked for, and before what it will be asked for.

    Also where it ends in an error: what is then put back on ``outside`` must not be overtaken.
    """
    inside.wait_event(outside.record())
    try:
        with inside:
            yield
    finally:
        outside.wait_event(inside.record())
