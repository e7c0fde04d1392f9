"""The same bits: for any number of threads, from run to run, for a row alone and in any batch."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from patience import attempts

import fastbp
from fastbp import MLP, optim
from fastbp.backends.cpu.team import team

RNG = np.random.default_rng(0)
NETWORKS = [
    ([300, 200, 50, 10], "gelu", "cross_entropy", 700),
    ([17, 1031, 3], "sigmoid", "mse", 130),
    ([4, 32, 16, 4], "tanh", "half_sse", 20_000),
]


def gradient(layers, activation, loss, n, dtype):
    net = MLP(layers, activation=activation, loss=loss, dtype=dtype, seed=1)
    rng = np.random.default_rng(1)
    X = rng.normal(size=(n, layers[0]))
    T = rng.integers(0, layers[-1], n) if loss == "cross_entropy" else rng.random((n, layers[-1]))
    value, g = net.loss_and_grad(X, T)
    return np.append(g, value)


@pytest.mark.parametrize("case", NETWORKS, ids=str)
def test_threads(case, dtype, two_threads):
    """... and both threads worked."""
    fastbp.set_num_threads(1)
    alone = gradient(*case, dtype)
    for threads in (2, 3, 4):
        fastbp.set_num_threads(threads)
        before = None
        for _ in attempts():
            np.testing.assert_array_equal(gradient(*case, dtype), alone)
            done = np.array(team(dtype).pieces_done())
            if before is not None and len(done) >= threads and (done[:threads] > before[:threads]).all():
                break
            before = done if before is None or len(before) != len(done) else before
        else:
            pytest.fail(f"not all of {threads} threads worked: {done}")


def test_training_with_threads(two_threads):
    X, T = RNG.normal(size=(600, 200)), RNG.integers(0, 10, 600)
    results = []
    for threads in (1, 2):
        fastbp.set_num_threads(threads)
        net = MLP([200, 300, 10], loss="cross_entropy", seed=0)
        net.fit(X, T, epochs=3, batch_size=256)
        results.append(net.theta)
    np.testing.assert_array_equal(results[0], results[1])


@pytest.mark.parametrize("layers", [[7, 13, 97], [1031, 64, 10], [784, 30, 10], [5, 1, 3]], ids=str)
@pytest.mark.parametrize("activation", ["sigmoid", "gelu", "relu"])
def test_a_row_is_the_same_alone_and_in_any_batch(layers, activation, dtype):
    net = MLP(layers, activation=activation, output="softmax", dtype=dtype, seed=0)
    X = RNG.normal(size=(333, layers[0]))
    whole = net.forward(X)
    for start, end in ((0, 1), (332, 333), (5, 12), (0, 64), (100, 333)):
        np.testing.assert_array_equal(net.forward(X[start:end]), whole[start:end])


def test_from_run_to_run():
    results = []
    for _ in range(2):
        rng = np.random.default_rng(3)
        net = MLP([20, 30, 3], seed=0)
        net.fit(rng.normal(size=(200, 20)), rng.random((200, 3)), epochs=5, optimizer=optim.Adam(0.01))
        results.append((net.theta, net.history.loss))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]


def test_several_python_threads_at_once(two_threads):
    """One has the team, the others go on alone; all get what they would get one after the other."""
    X, T = RNG.normal(size=(2000, 64)), RNG.normal(size=(2000, 8))
    found = {}

    def work(seed):
        net = MLP([64, 128, 8], seed=seed)
        net.fit(X, T, epochs=3, batch_size=500)
        found[seed] = net.theta

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    together = dict(found)
    for seed in range(4):
        work(seed)
        np.testing.assert_array_equal(found[seed], together[seed])


def test_one_network_called_by_several_python_threads_at_once():
    """Its Program, tables and workspace are shared; no call sees another's values."""
    net = MLP([40, 80, 5], activation="gelu", loss="cross_entropy", seed=0)
    inputs = [RNG.normal(size=(n, 40)) for n in (3, 64, 200, 7)]
    targets = [RNG.integers(0, 5, len(x)) for x in inputs]
    expected = [(net.forward(x), net.loss_and_grad(x, t)[1]) for x, t in zip(inputs, targets, strict=True)]
    wrong = []

    def work(k):
        for _ in range(200):
            if not np.array_equal(net.forward(inputs[k]), expected[k][0]):
                wrong.append(("forward", k))
            if not np.array_equal(net.loss_and_grad(inputs[k], targets[k])[1], expected[k][1]):
                wrong.append(("gradient", k))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
