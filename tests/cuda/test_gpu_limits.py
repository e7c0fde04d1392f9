"""What only a card shows: matrices beyond 2³¹ bytes, memory that ends, a second device."""

from __future__ import annotations

import re

import cupy
import numpy as np
import pytest

import fastbp
from fastbp import MLP, graph, optim
from fastbp.backends.cuda.executable import CudaExecutable
from fastbp.backends.cuda.launching import CAN_CAPTURE
from fastbp.errors import DeviceMemoryError, InputError
from fastbp.plan import plan

pytestmark = pytest.mark.skipif(not CAN_CAPTURE, reason="of a card alone")
RNG = np.random.default_rng(0)
ROOM = 512 << 20  # bytes that are left free where memory is to end
COUNT = cupy.cuda.runtime.getDeviceCount()


@pytest.fixture(autouse=True)
def released():
    """What a test has taken is given back before the next."""
    yield
    cupy.get_default_memory_pool().free_all_blocks()


def needs(bytes_):
    free = cupy.cuda.Device().mem_info[0]
    if free < bytes_:
        pytest.skip(f"needs {bytes_ / 1e9:.1f} GB of device memory, {free / 1e9:.1f} are free")


def numbers(rows, cols, dtype=np.float32):
    """Small whole numbers, whose sums are exact, made on the device."""
    made = cupy.arange(rows * cols, dtype=np.int64)
    made *= 7919
    made %= 17
    return made.reshape(rows, cols).astype(dtype) - dtype(8)


def test_a_matrix_beyond_two_gigabytes():
    """5 · 10⁸ elements and more: products of its first and last rows, sums over all of it, elementwise work."""
    rows, cols = (1 << 20) + 3, 515
    needs(8 * rows * cols * 4)
    x = graph.input("x", cols)
    w = numbers(cols, 5)
    value = numbers(rows, cols)
    assert value.nbytes > 1 << 31
    outputs = {"y": x @ graph.param("w", (cols, 5)), "down": x.sum(axis=0), "all": x.sum(), "z": x * 2.0 + 1.0}
    found = CudaExecutable(plan(outputs), "float32").run({"x": value, "w": w}, rows)
    cupy.testing.assert_array_equal(found["z"][-7:], value[-7:] * 2 + 1)
    cupy.testing.assert_array_equal(found["z"][:7], value[:7] * 2 + 1)
    assert float((found["z"] - value * 2).sum(dtype=np.float64)) == rows * cols
    del found["z"]
    for part in (slice(0, 1000), slice(rows // 2, rows // 2 + 1000), slice(rows - 1000, rows)):
        cupy.testing.assert_array_equal(found["y"][part], value[part] @ w)
    exact = value.sum(axis=0, dtype=np.float64)
    cupy.testing.assert_allclose(found["down"][0], exact, rtol=1e-4, atol=20.0)
    assert float(found["all"][0, 0]) == pytest.approx(float(exact.sum()), rel=1e-4, abs=2000.0)


@pytest.mark.parametrize("precision", ["highest", "tf32", "bf16"])
def test_a_gradient_over_many_rows(precision):
    """dW of 2²⁰ rows, whose whole numbers are exact in every precision."""
    rows = (1 << 20) + 1
    x, g = graph.input("x", 67), graph.input("g", 35)
    run = CudaExecutable(plan({"dw": x.matmul(g, ta=True)}), "float32", precision)
    a, b = numbers(rows, 67), numbers(rows, 35)
    found = run.run({"x": a, "g": b}, rows)["dw"]
    cupy.testing.assert_allclose(found, a.astype(np.float64).T @ b.astype(np.float64), rtol=1e-5, atol=64.0)


def filled():
    """All memory but ROOM."""
    cupy.get_default_memory_pool().free_all_blocks()
    free = cupy.cuda.Device().mem_info[0]
    return cupy.empty(max(0, free - ROOM), np.uint8)


def test_memory_that_ends_says_which_batch_would_fit():
    """And that batch does fit."""
    wide, rows = 512, 600_000
    needs(rows * 8 * 4 + ROOM + (1 << 30))
    net = MLP([8, wide, wide, 8], backend="cuda", seed=0)
    x, t = cupy.ones((rows, 8), np.float32), cupy.ones((rows, 8), np.float32)
    theta = net.theta.get()
    net.loss_and_grad(x[:64], t[:64])  # kernels are loaded, which takes memory, too
    ballast = filled()
    with pytest.raises(
        DeviceMemoryError, match=r"600000 rows need [\d,]+ bytes.*batches of \d+ rows would fit"
    ) as said:
        net.loss_and_grad(x, t)
    fit = int(re.search(r"batches of (\d+) rows", str(said.value))[1])
    assert 0 < fit < rows
    fewer = fit * 9 // 10  # pools round sizes up
    loss, gradient = net.loss_and_grad(x[:fewer], t[:fewer])
    assert np.isfinite(float(loss))
    assert bool(cupy.isfinite(gradient).all())
    np.testing.assert_array_equal(net.theta.get(), theta)
    del ballast


def test_memory_that_ends_in_a_fit_loses_nothing():
    wide, rows = 512, 600_000
    needs(rows * 8 * 4 + ROOM + (1 << 30))
    net, same = (MLP([8, wide, wide, 8], backend="cuda", seed=0) for _ in range(2))
    x, t = cupy.ones((rows, 8), np.float32), cupy.ones((rows, 8), np.float32)
    for one in (net, same):
        one.fit(x[:1000], t[:1000], epochs=2, batch_size=100, optimizer=optim.Adam(0.001))
    ballast = filled()
    with pytest.raises(DeviceMemoryError, match="the parameters are as they were"):
        net.fit(x, t, epochs=1, batch_size=rows)
    del ballast
    np.testing.assert_array_equal(net.theta.get(), same.theta.get())
    for one in (net, same):
        one.fit(x[:1000], t[:1000], epochs=2, batch_size=100)
    np.testing.assert_array_equal(net.theta.get(), same.theta.get())


def test_data_beyond_memory_is_fed():
    """From the host, more than is free: it trains, and the loss falls."""
    rows = 3_000_000
    needs(ROOM + (2 << 30))
    X = RNG.random((rows, 100), np.float32)  # 1.2 GB, of 0.5 that are free
    T = X[:, :1] * 0.5
    net = MLP([100, 16, 1], backend="cuda", seed=0)
    net.fit(X[:1000], T[:1000], epochs=1)
    ballast = filled()
    net.fit(X, T, epochs=2, batch_size=10_000, optimizer="adam")
    del ballast
    assert net.history.loss[-1] < net.history.loss[-2]


@pytest.mark.skipif(COUNT < 2, reason=f"needs two GPUs, and there is {COUNT}")
def test_the_second_device():
    """A network there trains as one on the first, and its arrays are refused here."""
    X, T = RNG.normal(size=(200, 13)), RNG.normal(size=(200, 3))
    first = MLP([13, 130, 3], backend="cuda", seed=0)
    first.fit(X, T, epochs=3)
    with cupy.cuda.Device(1):
        second = MLP([13, 130, 3], backend="cuda", seed=0)
        second.fit(X, T, epochs=3)
        assert second.theta.device.id == 1
        x = cupy.asarray(X, np.float32)
        assert second.forward(x).device.id == 1
        theta = second.theta.get()
    np.testing.assert_array_equal(theta, first.theta.get())
    for call in (lambda: first.forward(x), lambda: second.fit(X, T), lambda: fastbp.dense(x, x.T)):
        with pytest.raises(InputError, match="on device 1, but the current device is 0"):
            call()
