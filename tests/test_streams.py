"""What several streams share is used by one after the other; on the fake's streams, which are late."""

from __future__ import annotations

import pytest

from fastbp.backends.cuda.streams import Order, between


@pytest.fixture
def late(cupy):
    """Two streams that do nothing before somebody waits, and a way of asking them to note a word."""
    noted = []

    def ask(stream, word):
        stream._do(lambda: noted.append(word))

    return cupy.cuda.Stream(), cupy.cuda.Stream(), ask, noted


def test_the_next_stream_comes_after_the_last(late):
    one, other, ask, noted = late
    order = Order()
    for word, stream in enumerate((one, other, other, one)):
        with order.turn(stream):
            ask(stream, word)
    ask(other, "own work")
    one.synchronize()
    assert noted == [0, 1, 2, 3]
    other.synchronize()
    assert noted[4:] == ["own work"]


def test_one_stream_never_waits(late, cupy):
    one, _, ask, _ = late
    order = Order()
    cupy._state.log.clear()
    for word in range(3):
        with order.turn(one):
            ask(one, word)
    assert not cupy._state.log


def test_also_after_an_error(late):
    one, other, ask, noted = late
    order = Order()
    try:
        with order.turn(one):
            ask(one, "first")
            raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    with order.turn(other):
        ask(other, "second")
    other.synchronize()
    assert noted == ["first", "second"]


def test_waiting_until_the_last_use_is_over(late):
    one, _, ask, noted = late
    order = Order()
    order.wait()  # nothing to wait for
    with order.turn(one):
        ask(one, "used")
    order.wait()
    assert noted == ["used"]


def test_the_simulator_has_no_streams():
    with Order().turn(None):
        pass


@pytest.mark.parametrize("fails", [False, True])
def test_work_on_a_stream_inside_another(late, cupy, fails):
    """After what came before, before what comes after, also where it ends in an error."""
    outside, inside, ask, noted = late
    ask(outside, "before")
    try:
        with between(outside, inside):
            assert cupy.cuda.get_current_stream() is inside
            ask(inside, "inside")
            if fails:
                raise ZeroDivisionError
    except ZeroDivisionError:
        assert fails
    ask(outside, "after")
    outside.synchronize()
    assert noted == ["before", "inside", "after"]
