"""Training several networks at once."""

from __future__ import annotations

import signal
import threading
import time

import numpy as np
import pytest

import fastbp
from fastbp import MLP, InputError, fit_many, optim
from fastbp.backends.cpu.team import Team

RNG = np.random.default_rng(0)
X, T = RNG.normal(size=(50, 3)), RNG.integers(0, 3, 50)
ASKED = {"epochs": 4, "batch_size": 8, "validation": 0.2}


def nets(count, backend="cpu", **kinds):
    return [MLP([3, 7, 3], loss="cross_entropy", backend=backend, seed=s, **kinds) for s in range(count)]


@pytest.mark.parametrize("backend", ["cpu", "numpy"])
def test_each_is_trained_as_by_its_own_fit(backend):
    """To the last bit, with optimisers and seeds of their own, also when it goes on."""
    optimizers = [optim.SGD(0.1), optim.Adam(0.01), optim.Momentum(0.05, clip_norm=1.0)]
    alone, together = nets(3, backend), nets(3, backend)
    for _ in range(2):
        histories = fit_many(together, X, T, optimizer=optimizers, seed=[1, 2, 3], **ASKED)
        for k, (net, other) in enumerate(zip(alone, together, strict=True)):
            own = net.fit(X, T, optimizer=optimizers[k], seed=k + 1, **ASKED)
            assert own.loss == histories[k].loss
            assert own.validation_loss == histories[k].validation_loss
            np.testing.assert_array_equal(net.theta, other.theta)


def test_one_for_all_and_defaults():
    alone, together = nets(2), nets(2)
    histories = fit_many(together, X, T)
    for net, other, history in zip(alone, together, histories, strict=True):
        assert net.fit(X, T).loss == history.loss
        np.testing.assert_array_equal(net.theta, other.theta)
        assert history.stopped == "epochs"


def test_one_that_diverges_leaves_the_others_alone():
    alone, together = nets(2), nets(2)
    histories = fit_many(together, X, T, optimizer=[optim.SGD(0.1), optim.SGD(1e38)], **ASKED)
    expected = alone[0].fit(X, T, optimizer=optim.SGD(0.1), **ASKED)
    assert [h.stopped for h in histories] == ["epochs", "diverged"]
    assert histories[0].loss == expected.loss
    assert np.isfinite(together[1].theta).all()
    np.testing.assert_array_equal(together[0].theta, alone[0].theta)


def test_each_stops_on_its_own():
    """Patience and callbacks end one network's training, not the others'."""
    stopped = nets(3)
    histories = fit_many(
        stopped, X, T, callbacks=[lambda net, history: net is stopped[1] and history.epochs == 2], **ASKED
    )
    assert [(h.stopped, h.epochs) for h in histories] == [("epochs", 4), ("callback", 2), ("epochs", 4)]
    histories = fit_many(nets(2), X, T, epochs=50, tol=1e9, patience=2)
    assert [h.stopped for h in histories] == ["patience", "patience"]


@pytest.mark.parametrize(("count", "used"), [(2, {1}), (1, {2})])
def test_a_thread_for_each_if_there_are_enough(count, used, monkeypatch):
    """Two networks of which each wants both threads would wait for each other's helpers."""
    found = set()
    run = Team.run

    def seen(team, threads, prepared):
        found.add(threads)
        run(team, threads, prepared)

    fastbp.set_num_threads(2)  # as conftest leaves it
    monkeypatch.setattr(Team, "run", seen)
    layers, rows = (20, 60, 60, 5), 600
    asked = {"epochs": 2, "batch_size": 300, "optimizer": "sgd"}
    x, t = RNG.normal(size=(rows, layers[0])), RNG.normal(size=(rows, layers[-1]))
    trained = [MLP(layers, loss="mse", seed=s) for s in range(count)]
    fit_many(trained, x, t, **asked)
    assert found == used
    found.clear()
    again = MLP(layers, loss="mse", seed=0)
    again.fit(x, t, **asked)
    assert found == {2}
    np.testing.assert_array_equal(again.theta, trained[0].theta)


def test_ctrl_c_ends_all_after_whole_slices():
    together = nets(3)
    given = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored: nohup … &
    try:
        threading.Timer(0.3, signal.raise_signal, [signal.SIGINT]).start()
        began = time.perf_counter()
        histories = fit_many(together, np.tile(X, (200, 1)), np.tile(T, 200), epochs=100_000)
        assert time.perf_counter() - began < 30
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, given)
    assert [h.stopped for h in histories] == ["interrupted"] * 3
    assert len({net.training.state.step for net in together}) == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"nets": []}, "nets must be a list of networks"),
        ({"nets": [1]}, "nets must be a list of networks"),
        ({"nets": nets(1) * 2}, "there twice"),
        ({"nets": [*nets(1), *nets(1, "numpy")]}, "the same backend and dtype"),
        ({"nets": [*nets(1), *nets(1, dtype="float64")]}, "the same backend and dtype"),
        ({"nets": [*nets(1), MLP([3, 8, 3], loss="cross_entropy")]}, "nets\\[1\\] differs"),
        ({"nets": [*nets(1), *nets(1, activation="tanh")]}, "nets\\[1\\] differs"),
        ({"optimizer": ["sgd"]}, "optimizer must be one for all 2 networks"),
        ({"optimizer": ["sgd", "sdg"]}, "optimizer"),
        ({"seed": [1, 2, 3]}, "seed must be one for all 2 networks"),
        ({"seed": [1, -2]}, "seed"),
        ({"epochs": 0}, "epochs"),
        ({"batch_size": 51}, "batch_size=51"),
    ],
)
def test_bad_input_changes_nothing(given, message):
    asked = {"nets": nets(2), **given}
    trained = asked.pop("nets")
    before = [net.theta.copy() for net in trained if isinstance(net, MLP)]
    with pytest.raises(InputError, match=message):
        fit_many(trained, X, T, **asked)
    for net, theta in zip(trained, before, strict=False):
        np.testing.assert_array_equal(net.theta, theta)
        assert net.training is None
