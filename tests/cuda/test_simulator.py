"""The simulator itself: what kernels may do works, what they must not do is found."""

from __future__ import annotations

import numpy as np
import pytest
from numba import cuda, float32

from fastbp.backends.cuda import simulator
from fastbp.backends.cuda.device import (
    address_of,
    at,
    device,
    load4,
    shared,
    shifted,
    shuffle_xor,
    store4,
    sync,
    thread,
    threads,
)
from fastbp.backends.cuda.simulator import OutOfBoundsError, SimulatedError, exchange, memory, together

GLOBAL, ANYWHERE = np.int32(0), True
F32 = np.float32(1)


@pytest.fixture(autouse=True, params=simulator.ORDERS)
def order(request, monkeypatch):
    """Everything is found whoever goes first."""
    monkeypatch.setattr(simulator, "order", request.param)
    return request.param


def numbers(count, dtype=np.float32, offset=0):
    """0, 1, 2, … that kernels may reach, ``offset`` bytes behind a multiple of 64."""
    item = np.dtype(dtype).itemsize
    whole = np.zeros(count * item + 128, np.uint8)
    first = -whole.ctypes.data % 64 + offset
    found = whole[first : first + count * item].view(dtype)
    found[:] = np.arange(count)
    memory.register(found)
    return found


def launch(kernel, *arrays, blocks=1, threads=1, size=0):
    cuda.jit(kernel)[blocks, threads, 0, size](*(a.ctypes.data for a in arrays))


# ---- what kernels are made of --------------------------------------------------------------------------------------


def test_indices():
    def kernel(x):
        p = at(x, np.int64(1), GLOBAL)
        t, b = cuda.threadIdx, cuda.blockIdx
        i = (t.z * cuda.blockDim.y + t.y) * cuda.blockDim.x + t.x
        per_block = cuda.blockDim.x * cuda.blockDim.y * cuda.blockDim.z
        p[(b.y * cuda.gridDim.x + b.x) * per_block + i] = 100 * (10 * b.x + b.y) + thread()

    x = numbers(2 * 3 * 24, np.int64)
    launch(kernel, x, blocks=(2, 3), threads=(4, 3, 2))
    expected = [[100 * (10 * bx + by) + k for k in range(24)] for by in range(3) for bx in range(2)]
    np.testing.assert_array_equal(x, np.ravel(expected))


@device
def reversed_in_block(value, one):
    """What thread count - 1 - me has; has barriers."""
    memory = shared(one)
    memory[thread()] = value
    sync()
    found = memory[threads() - 1 - thread()]
    cuda.syncthreads()
    return found


def test_barriers_and_shared_memory():
    def kernel(x):
        p = at(x, F32, GLOBAL)
        own = cuda.local.array((2, 2), float32)
        assert np.isnan(own).all()
        own[1, 0] = p[cuda.grid(1)]
        for _ in range(3):
            own[1, 0] = reversed_in_block(own[1, 0], F32)
        p[cuda.grid(1)] = own[1, 0]

    x = numbers(120)
    launch(kernel, x, blocks=3, threads=40, size=160)
    np.testing.assert_array_equal(x, np.arange(120).reshape(3, 40)[:, ::-1].ravel())


def test_shared_memory_holds_nan_in_every_block_and_is_not_aligned_by_chance():
    def kernel(x):
        p, s = at(x, np.int64(1), GLOBAL), shared(np.float64(1))
        p[2 * cuda.blockIdx.x] = np.isnan(s[0]) and np.isnan(s[1])
        p[2 * cuda.blockIdx.x + 1] = address_of(s) % 32
        s[0] = s[1] = 0.0

    x = numbers(6, np.int64)
    launch(kernel, x, blocks=3, size=16)
    np.testing.assert_array_equal(x, [1, 16] * 3)


def test_counting_barriers():
    def kernel(x):
        p, t = at(x, np.int64(1), GLOBAL), thread()
        count, every, some = cuda.syncthreads_count(t < 3), cuda.syncthreads_and(t < 5), cuda.syncthreads_or(t == 7)
        p[t] = 100 * count + 10 * every + some

    x = numbers(5, np.int64)
    launch(kernel, x, threads=5)
    np.testing.assert_array_equal(x, 310)


def test_exchanges_within_warps():
    def kernel(x):
        p, t = at(x, np.int64(1), GLOBAL), thread()
        values, lane = exchange(t)
        total = together(t, lambda offered: [sum(offered) + k for k in range(32)])
        p[t] = shuffle_xor(np.int64(t), 5) * 10000 + int(values[31]) * 10 + (total == sum(map(int, values)) + lane)

    x = numbers(64, np.int64)
    launch(kernel, x, threads=64)
    t = np.arange(64)
    np.testing.assert_array_equal(x, (t ^ 5) * 10000 + (t // 32 * 32 + 31) * 10 + 1)


def test_pointers():
    x, y = numbers(12), numbers(3, np.float64)

    def kernel(x, y):
        p, q = at(x, F32, GLOBAL), at(y, np.float64(1), ANYWHERE)
        assert type(p[0]) is np.float32
        assert type(q[1]) is np.float64
        assert type(at(y, np.int64(1), GLOBAL)[0]) is np.int64
        second = shifted(p, 4)
        assert address_of(second) == x + 16
        assert second[np.int32(1)] == 5
        assert at(address_of(second), F32, GLOBAL)[0] == 4
        assert load4(second, np.int64(4)) == (8, 9, 10, 11)
        store4(p, 4, (q[2], q[2], q[1], q[1]))
        s = shared(F32)
        s[2] = 7.0
        assert at(address_of(s) + 8, F32, ANYWHERE)[0] == 7

    launch(kernel, x, y, size=12)
    np.testing.assert_array_equal(x, [0, 1, 2, 3, 2, 2, 1, 1, 8, 9, 10, 11])


def test_numba_can_be_given_arrays_too():
    def kernel(x):
        x[cuda.grid(1)] *= 2

    x = np.arange(6.0)
    cuda.jit(kernel)[2, 3](x)
    np.testing.assert_array_equal(x, 2 * np.arange(6.0))


# ---- memory --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("access", "message"),
    [
        (lambda p: p[5], r"element 5 .* element 1 of 6 in an array of 24 bytes"),
        (lambda p: p[np.int64(-1)], "negative"),
        (lambda p: p.__setitem__(5, F32), "element 5"),
        (lambda p: shifted(p, -2)[0], "outside"),
        (lambda p: shifted(p, 100)[0], "outside"),
        (lambda p: load4(p, 3), "elements 3 … 6"),
        (lambda p: load4(p, 0), "no multiple of 16"),
        (lambda p: store4(p, 1, (F32,) * 4), "no multiple of 16"),
        (lambda p: at(address_of(p), np.float64(1), GLOBAL)[0], "no place for a float64"),
        (lambda p: at(16, F32, GLOBAL)[0], "address 0x10 is in no array"),
        (lambda p: shared(F32)[2], "shared memory of 8 bytes"),
        (lambda p: at(address_of(shared(F32)), F32, GLOBAL), "taken for a global one"),
    ],
)
def test_accesses_that_must_not_be(access, message):
    x = numbers(6)

    def kernel(x):
        p = at(x + 4, F32, GLOBAL)
        assert shifted(p, 100) is not None  # pointing is free
        access(p)

    with pytest.raises(SimulatedError, match=message):
        launch(kernel, x, size=8)
    np.testing.assert_array_equal(x, np.arange(6))


def test_memory_is_reached_for_as_long_as_it_is_there():
    def kernel(x):
        assert at(x, F32, GLOBAL)[0] == 3

    x = numbers(4)[3:]
    address = x.ctypes.data
    memory.register(x)  # a part of what is registered already
    cuda.jit(kernel)[1, 1](address)
    del x
    with pytest.raises(OutOfBoundsError, match="in no array"):
        cuda.jit(kernel)[1, 1](address)


def test_views_and_wholes():
    def kernel(x):
        at(x, F32, GLOBAL)[0] = F32

    whole = np.zeros((4, 6), np.float32)
    middle = whole[1:3, 2:4]
    memory.register(middle)
    launch(kernel, middle)
    with pytest.raises(OutOfBoundsError):
        launch(kernel, whole)
    memory.register(whole)
    launch(kernel, whole)
    launch(kernel, middle)
    assert whole.sum() == whole[0, 0] + whole[1, 2] == 2
    memory.forget(whole.ctypes.data)
    with pytest.raises(OutOfBoundsError):
        launch(kernel, middle)
    memory.register(whole[:2])
    with pytest.raises(SimulatedError, match="overlaps"):
        memory.register(whole[1:3])


def test_empty_arrays_are_nowhere():
    def kernel(x):
        at(x, F32, GLOBAL)[0] = F32

    x = np.zeros(0, np.float32)
    memory.register(x)
    with pytest.raises(OutOfBoundsError):
        launch(kernel, x)


# ---- threads -------------------------------------------------------------------------------------------------------


def test_an_exception_says_whose_it_is():
    def kernel(x):
        sync()
        if cuda.blockIdx.x == 1 and thread() == 2:
            raise ZeroDivisionError("mine")
        sync()

    x = numbers(1)
    with pytest.raises(ZeroDivisionError, match="mine") as caught:
        launch(kernel, x, blocks=3, threads=4)
    (note,) = caught.value.__notes__
    assert "thread (2, 0, 0) of block (1, 0, 0) of " in note
    assert "test_an_exception_says_whose_it_is.<locals>.kernel" in note
    launch(lambda x: sync(), x, blocks=2, threads=4)  # and the next launch is as if nothing had been


def some_return(t):
    if t < 3:
        return
    sync()


def two_places(t):
    if t < 3:
        sync()
    else:
        sync()


def barrier_and_exchange(t):
    if t < 32:
        shuffle_xor(np.int64(t), 1)
        sync()
    elif t == 32:
        sync()
    else:
        shuffle_xor(np.int64(t), 1)
        sync()


def half_a_warp(t):
    if t < 16:
        shuffle_xor(np.int64(t), 1)


def different_masks(t):
    shuffle_xor(np.int64(t), 1 + t // 32 * (t & 1))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            some_return,
            r"do not meet at one barrier: 3 threads, 0 … 2, have ended; 61 threads, 3 … 63, wait at the barrier",
        ),
        (
            two_places,
            r"do not meet at one barrier: 3 threads, 0 … 2, wait at the barrier in test_simulator.py:\d+; 61 threads",
        ),
        (barrier_and_exchange, "warp 1 does not exchange as a whole: 1 threads, 32 … 32, wait at the barrier"),
        (half_a_warp, "warp 0 does not exchange as a whole"),
        (different_masks, "different masks"),
    ],
)
def test_who_must_meet_and_does_not(body, message):
    with pytest.raises(SimulatedError, match=message):
        launch(lambda x: body(thread()), numbers(1), threads=64)


def test_a_part_of_a_warp_exchanges_nothing():
    with pytest.raises(SimulatedError, match="warp 1 does not exchange as a whole: it has 8 lanes"):
        launch(lambda x: shuffle_xor(F32, 1), numbers(1), threads=40)


def test_warps_may_exchange_while_others_wait():
    def kernel(x):
        if thread() >= 32:
            for _ in range(thread() // 32):
                shuffle_xor(F32, 1)
        sync()

    launch(kernel, numbers(1), threads=96)


def test_order(order):
    def kernel(x):
        seen.append(int(thread()))

    seen = []
    launch(kernel, numbers(1), threads=50)
    expected = {"forward": list(range(50)), "backward": list(range(50))[::-1], "random": seen}[order]
    assert seen == expected
    assert sorted(seen) == list(range(50))
    if order == "random":
        assert seen != sorted(seen)
        assert seen != sorted(seen)[::-1]


# ---- races ---------------------------------------------------------------------------------------------------------


def write_and_read(p, t):
    p[t] = F32
    return p[(t + 1) % threads()]


def both_write(p, t):
    p[t // 2] = F32


def read_then_write(p, t):
    found = p[(t + 1) % threads()]
    p[t] = found


def in_quads(p, t):
    if t == 0:
        load4(p, 0)
    else:
        p[3] = F32


@pytest.mark.parametrize("is_shared", [False, True])
@pytest.mark.parametrize("body", [write_and_read, both_write, read_then_write, in_quads])
def test_races_within_a_block(body, is_shared):
    def kernel(x):
        p = shared(F32) if is_shared else at(x, F32, GLOBAL)
        sync()
        body(p, thread())
        sync()

    where = "shared memory of 32 bytes" if is_shared else "an array of 16 bytes"
    who = r"thread \(\d, 0, 0\) wrote it and thread \(\d, 0, 0\) (read|wrote) it"
    with pytest.raises(
        SimulatedError, match=rf"byte \d+ of {where}: {who}, with no barrier in between, before the barrier"
    ):
        launch(kernel, numbers(4), threads=2 if body is in_quads else 4, size=32)


def test_a_race_before_the_end():
    with pytest.raises(SimulatedError, match="before the end"):
        launch(lambda x: both_write(at(x, F32, GLOBAL), thread()), numbers(2), threads=4)


def test_a_race_can_say_which_lines_met(monkeypatch):
    monkeypatch.setattr(simulator, "lines", True)
    line = write_and_read.__code__.co_firstlineno
    message = rf"wrote it in test_simulator.py:{line + 1} and thread .* read it in test_simulator.py:{line + 2}"
    with pytest.raises(SimulatedError, match=message):
        launch(lambda x: write_and_read(at(x, F32, GLOBAL), thread()), numbers(4), threads=4)


def test_no_race():
    """With a barrier; by one thread alone; where all only read."""

    def kernel(x):
        p, s, t = at(x, F32, GLOBAL), shared(F32), thread()
        s[t] = p[t] + p[7]
        sync()
        p[t] = s[(t + 1) % threads()]
        p[t] = p[t] + s[0]
        sync()
        s[t] = p[(t + 1) % threads()]

    launch(kernel, numbers(8), threads=4, size=16)


def first_writes(p, b):
    if b == 0:
        p[0] = F32
    else:
        _ = p[0]


def second_writes(p, b):
    return first_writes(p, 1 - b)


def each_writes(p, b):
    p[0] = F32


@pytest.mark.parametrize("body", [first_writes, second_writes, each_writes])
def test_races_between_blocks(body):
    x = numbers(4)
    message = (
        r"byte 0 of an array of 16 bytes: block \(0, 0, 0\) (wrote|read) it and block \(1, 0, 0\) (writes|reads) it"
    )
    with pytest.raises(SimulatedError, match=message):
        launch(lambda x: body(at(x, F32, GLOBAL), cuda.blockIdx.x), x, blocks=2)
    for _ in range(2):  # of two launches neither
        launch(lambda x: body(at(x, F32, GLOBAL), 0), x)


def test_races_need_not_be_looked_for(monkeypatch):
    monkeypatch.setattr(simulator, "races", False)
    launch(lambda x: both_write(at(x, F32, GLOBAL), thread()), numbers(4), threads=4, blocks=2)


def test_infinities_are_no_warnings():
    def kernel(x):
        p = at(x, F32, GLOBAL)
        p[0] = p[0] * np.float32(1e38) * np.float32(1e38) - p[1] / np.float32(0)

    x = numbers(2)
    x[0] = 1
    launch(kernel, x)
    assert np.isnan(x[0])


def test_outside_of_kernels_there_are_no_threads():
    with pytest.raises(AttributeError, match="outside of a simulated kernel"):
        _ = cuda.threadIdx
