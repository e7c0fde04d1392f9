"""fit: what a step and an epoch are, to the last bit; stopping, interruption, divergence; what the history says."""

from __future__ import annotations

import copy
import itertools
import math
import os
import re
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

import fastbp
from fastbp import optim, training
from fastbp.errors import DivergedError, InputError
from fastbp.optim import SGD, Adam, Momentum
from fastbp.training import RowOrder

BACKENDS = ("cpu", "numpy")
DTYPES = ("float32", "float64")
RULES = tuple(optim.OPTIMIZERS)


def data(rows=23, seed=0, inputs=4, outputs=3):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, inputs))
    return x, np.tanh(x @ rng.normal(size=(inputs, outputs)))


X, T = data()


def make(backend="cpu", dtype="float32", loss="mse", **more):
    return fastbp.MLP([4, 6, 3], activation="tanh", loss=loss, dtype=dtype, backend=backend, seed=5, **more)


def by_hand(
    net, x, t, optimizer, epochs, batch, *, weight=None, shuffle=True, sampling="epoch", seed=None, first=0, state=None
):
    """Train with loss_and_grad and update alone; the history's losses."""
    n = len(x)
    order = RowOrder(n, net.seed if seed is None else seed, sampling).epochs(first, first + epochs)
    state = optimizer.init(net.theta) if state is None else state
    losses = []
    for e in range(epochs):
        total = count = 0.0
        for start in range(0, n, batch):
            rows = order[e][start : start + batch] if shuffle or sampling != "epoch" else slice(start, start + batch)
            loss, gradient = net.loss_and_grad(x[rows], t[rows], None if weight is None else weight[rows])
            optimizer.update(net.theta, gradient, state, backend=net.backend)
            counts = len(x[rows]) if weight is None else np.asarray(weight, net.dtype)[rows].astype(float).sum()
            total += float(loss) * (counts if net.averages else 1.0)
            count += counts
        losses.append(total / count if net.averages else total)
    return losses


def assert_same_training(one, other):
    """Parameters, optimiser state and positions are the same to the last bit, and so is the history but for time."""
    np.testing.assert_array_equal(one.theta, other.theta)
    mine, theirs = one.training, other.training
    assert mine.optimizer == theirs.optimizer
    assert (mine.state.step, mine.seed, mine.epoch) == (theirs.state.step, theirs.seed, theirs.epoch)
    for v, w in zip(mine.state.vectors, theirs.state.vectors, strict=True):
        np.testing.assert_array_equal(v, w)
    assert one.history.learning_rate == other.history.learning_rate
    assert one.history.rows == other.history.rows
    assert one.history.validation_loss == other.history.validation_loss
    np.testing.assert_allclose(one.history.loss, other.history.loss, rtol=1e-13)


def assert_consistent(history, epochs, validated=0):
    for name in ("loss", "learning_rate", "seconds", "rows"):
        assert len(getattr(history, name)) == epochs, name
    assert len(history.validation_loss) == len(history.validation_score) == validated
    assert history.epochs == epochs


class Recorder:
    """A reporter that keeps what it is told, and may raise in the slice of that number."""

    def __init__(self, raises_at=None, error=KeyboardInterrupt):
        self.slices, self.epochs, self.closed = [], [], 0
        self.raises_at, self.error = raises_at, error

    def slice(self, epoch, done, loss, rows_a_second):
        self.slices.append((epoch, done, loss, rows_a_second))
        if len(self.slices) == self.raises_at:
            raise self.error

    def epoch(self, history):
        self.epochs.append(history.epochs)

    def close(self):
        self.closed += 1


@pytest.fixture(params=["one step", "usual", "endless"])
def slices(request, monkeypatch):
    """Slices of a single step, of 50 ms, and of all steps."""
    if request.param == "one step":
        monkeypatch.setattr(training, "SLICE_SECONDS", 0.0)
    elif request.param == "endless":
        monkeypatch.setattr(training, "SLICE_SECONDS", 1e9)
        monkeypatch.setattr(training, "_FIRST_GUESS", 1e18)
    return request.param


# ---- the order of the rows -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 2, 50, 30_000, 70_000])
def test_an_epoch_has_every_row_once(rows):
    order = RowOrder(rows, 3, "epoch").epochs(0, 5)
    assert order.shape == (5, rows)
    for epoch in order:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(rows))
    if rows > 2:
        assert len({epoch.tobytes() for epoch in order}) == 5
        assert (order != RowOrder(rows, 4, "epoch").epochs(0, 5)).any()


@pytest.mark.parametrize("sampling", ["epoch", "replacement"])
@pytest.mark.parametrize("rows", [7, 10_000, 70_000])
def test_the_order_does_not_depend_on_how_it_is_asked_for(rows, sampling):
    whole = RowOrder(rows, 9, sampling).epochs(0, 14)
    same = RowOrder(rows, 9, sampling)
    for first, last in ((0, 1), (1, 8), (8, 9), (5, 14), (0, 14), (13, 14)):
        np.testing.assert_array_equal(same.epochs(first, last), whole[first:last])
        np.testing.assert_array_equal(RowOrder(rows, 9, sampling).epochs(first, last), whole[first:last])


def test_rows_drawn_with_replacement():
    order = RowOrder(1000, 0, "replacement").epochs(0, 20)
    assert order.shape == (20, 1000)
    assert order.min() >= 0
    assert order.max() < 1000
    counts = np.array([np.bincount(epoch, minlength=1000) for epoch in order])
    assert (counts == 0).mean() == pytest.approx(math.exp(-1), abs=0.02)  # a row is missing with probability 1/e
    assert counts.sum(axis=0).min() > 0


def test_permutations_are_uniform():
    order = RowOrder(3, 0, "epoch").epochs(0, 6000)
    kinds, counts = np.unique(order, axis=0, return_counts=True)
    assert len(kinds) == 6
    assert (np.abs(counts - 1000) < 150).all()


def counting_net(rows, backend="cpu", **more):
    """A net whose weight i is minus the number of times that row i was used, for row i of the identity matrix.

    The targets are so low that every absolute error has slope 1 forever.
    """
    net = fastbp.MLP([rows, 1], loss="mae", init="zeros", backend=backend, seed=2, **more)
    return net, np.eye(rows), np.full((rows, 1), -1e6)


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("batch", [1, 4, 10, 11])
@pytest.mark.parametrize("backend", BACKENDS)
def test_fit_uses_every_row_once_an_epoch(backend, batch, shuffle, slices):
    net, x, t = counting_net(11, backend, reduction="sum")
    for epochs in (1, 2, 3):
        net.fit(x, t, epochs=epochs, batch_size=batch, optimizer=SGD(1.0), shuffle=shuffle)
    np.testing.assert_array_equal(net.weights[0][:, 0], np.full(11, -6.0))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_last_short_batch_counts_with_its_own_size(backend):
    net, x, t = counting_net(11, backend)
    net.fit(x, t, epochs=1, batch_size=4, optimizer=SGD(1.0), shuffle=False)
    np.testing.assert_allclose(net.weights[0][:, 0], [-1 / 4] * 8 + [-1 / 3] * 3, rtol=1e-7)
    assert net.biases[0][0] == -3.0
    assert net.training.state.step == 3
    assert net.history.rows == [11]


@pytest.mark.parametrize("backend", BACKENDS)
def test_sampling_with_replacement_uses_the_rows_drawn(backend):
    net, x, t = counting_net(11, backend, reduction="sum")
    net.fit(x, t, epochs=3, batch_size=4, optimizer=SGD(1.0), sampling="replacement", seed=8)
    drawn = np.bincount(RowOrder(11, 8, "replacement").epochs(0, 3).ravel(), minlength=11)
    assert len(set(drawn.tolist())) > 1
    np.testing.assert_array_equal(net.weights[0][:, 0], -drawn.astype(float))
    unshuffled, x, t = counting_net(11, backend, reduction="sum")
    unshuffled.fit(x, t, epochs=3, batch_size=4, optimizer=SGD(1.0), sampling="replacement", seed=8, shuffle=False)
    np.testing.assert_array_equal(unshuffled.theta, net.theta)


def test_seeds():
    def trained(seed=None, net_seed=5, calls=1):
        net = fastbp.MLP([4, 3], seed=net_seed, init="zeros")
        for _ in range(calls):
            net.fit(X, T, epochs=2, batch_size=5, seed=seed)
        return net.theta.copy()

    assert (trained(1) == trained(1)).all()
    assert (trained(1) != trained(2)).any()
    assert (trained() == trained(5)).all()
    assert (trained() != trained(net_seed=6)).any()
    # the same seed again goes on with its sequence, it does not begin it anew
    net = fastbp.MLP([4, 3], seed=5, init="zeros")
    net.fit(X, T, epochs=4, batch_size=5, seed=1)
    assert (net.theta == trained(1, calls=2)).all()
    state = net.training
    net.fit(X, T, epochs=1, batch_size=5, seed=2)
    assert (state.seed, state.epoch) == (2, 1)


# ---- fit is the loop that one would write --------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 5, 23])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rule", RULES)
def test_fit_is_the_hand_written_loop_to_the_last_bit(rule, backend, dtype, batch):
    net, other = make(backend, dtype), make(backend, dtype)
    history = net.fit(X, T, epochs=3, batch_size=batch, optimizer=rule)
    losses = by_hand(other, X, T, optim.get(rule), 3, batch)
    np.testing.assert_array_equal(net.theta, other.theta)
    assert (net.theta != make(backend, dtype).theta).any()
    np.testing.assert_allclose(history.loss, losses, rtol=1e-13)
    assert net.training.state.step == 3 * -(-23 // batch)


OPTIONS = {
    "as they come": {"shuffle": False},
    "replacement": {"sampling": "replacement"},
    "another seed": {"seed": 77},
    "weights": {"sample_weight": np.random.default_rng(1).uniform(0.1, 2.0, 23)},
    "weights, as they come": {"sample_weight": np.arange(1, 24), "shuffle": False},
}


@pytest.mark.parametrize("loss", ["mse", "sse", "bce", "cross_entropy", "labels"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", OPTIONS)
def test_options_of_fit_are_those_of_the_loop(options, backend, loss, slices):
    t = T
    if loss == "bce":
        t = (T + 1) / 2
    elif loss in ("cross_entropy", "labels"):
        t = T.argmax(axis=1)
    name = "cross_entropy" if loss == "labels" else loss
    if loss == "cross_entropy":
        t = np.eye(3)[t]
    o = SGD(0.02, clip_norm=0.5, clip_value=0.3)
    net, other = make(backend, loss=name), make(backend, loss=name)
    chosen = OPTIONS[options]
    history = net.fit(X, t, epochs=3, batch_size=5, optimizer=o, **chosen)
    same = {("weight" if k == "sample_weight" else k): v for k, v in chosen.items()}
    losses = by_hand(other, X, t, o, 3, 5, **same)
    np.testing.assert_array_equal(net.theta, other.theta)
    np.testing.assert_allclose(history.loss, losses, rtol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_batch_modes(backend):
    """Full batch, single rows, and 32 or all rows if nothing is said (S5)."""
    rng = np.random.default_rng(0)
    x, t = rng.normal(size=(40, 4)), rng.normal(size=(40, 3))
    for rows, batch, steps in ((40, 40, 1), (40, 1, 40), (40, None, 2), (20, None, 1), (32, None, 1), (33, None, 2)):
        net = make(backend)
        net.fit(x[:rows], t[:rows], epochs=2, batch_size=batch)
        assert net.training.state.step == 2 * steps
    full, unshuffled = make(backend, "float64"), make(backend, "float64")
    full.fit(x, t, epochs=5, batch_size=40, optimizer="sgd")
    unshuffled.fit(x, t, epochs=5, batch_size=40, optimizer="sgd", shuffle=False)
    np.testing.assert_allclose(full.theta, unshuffled.theta, rtol=1e-12, atol=1e-14)


def plain_step(theta, x, t, rate, sequential=False):
    """One step of gradient descent on ½|A - T|² of a deep sigmoid net, mean over rows, written out.

    With ``sequential`` each layer is changed before the gradient goes down through it, which is wrong.
    """
    widths = [3, 5, 4, 5, 2]
    parts, at = [], 0
    for a, b in itertools.pairwise(widths):
        parts.append((theta[at : at + a * b].reshape(a, b).copy(), theta[at + a * b : at + (a + 1) * b].copy()))
        at += (a + 1) * b
    values = [x]
    for w, b in parts:
        values.append(1 / (1 + np.exp(-(values[-1] @ w + b))))
    g = (values[-1] - t) / len(x)
    for k in reversed(range(len(parts))):
        w, b = parts[k]
        dz = g * values[k + 1] * (1 - values[k + 1])
        old = w.copy()
        w -= rate * values[k].T @ dz
        b -= rate * dz.sum(axis=0)
        g = dz @ (w if sequential else old).T
    return np.concatenate([np.concatenate([w.ravel(), b]) for w, b in parts])


@pytest.mark.parametrize("backend", BACKENDS)
def test_all_parameters_are_replaced_at_once(backend):
    """S1: the gradient goes down through the weights from before the step, even if the step is huge."""
    rng = np.random.default_rng(6)
    x, t = rng.normal(size=(9, 3)), rng.random((9, 2))
    widths, options = [3, 5, 4, 5, 2], {"activation": "sigmoid", "output": "sigmoid", "loss": "half_sse"}
    net = fastbp.MLP(widths, init="normal", dtype="float64", backend=backend, seed=1, **options)
    start, rate = net.theta.copy(), 50.0
    gradient = net.loss_and_grad(x, t)[1].copy()
    np.testing.assert_array_equal(net.theta, start)
    right, wrong = (plain_step(start, x, t, rate, sequential) for sequential in (False, True))
    assert np.abs(right - wrong).max() > 0.1
    for shuffle in (False, True):
        net.theta = start
        net.fit(x, t, epochs=1, batch_size=9, optimizer=SGD(rate), shuffle=shuffle)
        np.testing.assert_allclose(net.theta, start - rate * gradient, rtol=1e-11, atol=1e-12)
        np.testing.assert_allclose(net.theta, right, rtol=1e-10, atol=1e-11)


# ---- going on ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rule", RULES)
def test_two_times_five_epochs_are_ten(rule, backend, slices):
    whole, parts = make(backend), make(backend)
    whole.fit(X, T, epochs=10, batch_size=6, optimizer=rule)
    parts.fit(X, T, epochs=5, batch_size=6, optimizer=rule)
    kept = parts.fit(X, T, epochs=5, batch_size=6)
    assert_same_training(whole, parts)
    assert kept is parts.history
    assert_consistent(kept, 10)
    other = make(backend)
    by_hand(other, X, T, optim.get(rule), 10, 6)
    np.testing.assert_array_equal(whole.theta, other.theta)


@pytest.mark.parametrize("options", [*OPTIONS, "schedule"])
def test_parts_of_any_size_are_the_whole(options, slices):
    chosen = dict(OPTIONS.get(options, {}))
    schedule = optim.WarmUp(7, optim.CosineDecay(0.1, 30, 0.01))
    chosen["optimizer"] = Adam(schedule if options == "schedule" else 0.01)
    whole, parts = make(), make()
    whole.fit(X, T, epochs=9, batch_size=6, **chosen)
    for epochs in (1, 3, 1, 4):
        parts.fit(X, T, epochs=epochs, batch_size=6, **chosen)
    assert_same_training(whole, parts)


def test_orders_go_on_over_the_blocks_in_which_they_are_drawn(slices):
    """Of 20 000 rows the orders of three epochs are drawn at once."""
    rng = np.random.default_rng(0)
    x, t = rng.normal(size=(20_000, 1)), rng.normal(size=(20_000, 1))
    assert RowOrder(20_000, 0, "epoch").block == 3
    nets = [fastbp.MLP([1, 1], seed=0) for _ in range(3)]
    nets[0].fit(x, t, epochs=8, batch_size=3000, optimizer="sgd")
    for epochs in (2, 5, 1):
        nets[1].fit(x, t, epochs=epochs, batch_size=3000, optimizer="sgd")
    by_hand(nets[2], np.float32(x), np.float32(t), SGD(), 8, 3000)
    for net in nets[1:]:
        np.testing.assert_array_equal(nets[0].theta, net.theta)


def test_another_optimizer_starts_afresh():
    net = make()
    net.fit(X, T, epochs=2, optimizer=Adam(0.01))
    assert net.training.optimizer == Adam(0.01)
    net.fit(X, T, epochs=1, optimizer=Adam(0.01))  # the same settings: the same optimiser goes on
    assert net.training.state.step == 3
    net.fit(X, T, epochs=1)
    assert net.training.state.step == 4
    at, epoch = net.theta.copy(), net.training.epoch
    net.fit(X, T, epochs=1, optimizer=Momentum(0.01))
    assert (net.training.state.step, len(net.training.state.vectors)) == (1, 1)
    other = make()
    other.theta = at
    by_hand(other, X, T, Momentum(0.01), 1, 23, first=epoch)
    np.testing.assert_array_equal(net.theta, other.theta)
    assert net.history.epochs == 5


def test_parameters_set_between_fits_are_used():
    net, other = make(), make()
    for one in (net, other):
        one.fit(X, T, epochs=1, optimizer="sgd")
        one.theta = np.linspace(-1, 1, len(one.theta))
        one.weights[1][:] *= 0.5
    net.fit(X, T, epochs=1)
    by_hand(other, X, T, SGD(), 1, 23, first=1)
    np.testing.assert_array_equal(net.theta, other.theta)


def test_views_stay_views():
    net = make()
    weights, biases = net.weights, net.biases
    net.fit(X, T, epochs=2)
    for now, before in zip((*net.weights, *net.biases), (*weights, *biases), strict=True):
        assert np.shares_memory(now, before)
        np.testing.assert_array_equal(now, before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_results_do_not_depend_on_the_number_of_threads(dtype):
    rng = np.random.default_rng(0)
    x, t = rng.normal(size=(500, 64)), rng.normal(size=(500, 16))
    before = fastbp.get_num_threads()
    nets = []
    try:
        for threads in (1, 2, 3):
            fastbp.set_num_threads(threads)
            net = fastbp.MLP([64, 160, 16], activation="silu", dtype=dtype, backend="cpu", seed=0)
            net.fit(x, t, epochs=3, batch_size=256, optimizer=Adam(0.01, clip_norm=1.0), validation=0.1)
            nets.append(net)
        step = nets[0].training_step(("X", "T"), Adam(0.01, clip_norm=1.0), True)
        assert step.bound(256).shared, "this net is too small to be shared among threads: the test shows nothing"
    finally:
        fastbp.set_num_threads(before)
    for net in nets[1:]:
        assert_same_training(nets[0], net)
        assert nets[0].history.loss == net.history.loss


@pytest.mark.parametrize("loss", ["mse", "bce", "cross_entropy"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_whose_weights_are_all_zero_changes_nothing(backend, loss, slices):
    """Its loss and gradient are 0, not 0/0; the other batches and the history do not see it."""
    t = {"mse": T, "bce": (T + 1) / 2, "cross_entropy": T.argmax(axis=1)}[loss]
    weight = np.ones(23)
    weight[5:10] = 0
    net, other = make(backend, loss=loss), make(backend, loss=loss)
    o = SGD(0.1)
    history = net.fit(X, t, epochs=1, batch_size=5, optimizer=o, shuffle=False, sample_weight=weight)
    keep = weight > 0
    expected = by_hand(other, X[keep], t[keep], o, 1, 5, shuffle=False, weight=weight[keep])
    np.testing.assert_array_equal(net.theta, other.theta)
    np.testing.assert_allclose(history.loss, expected, rtol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_epoch_whose_weights_are_all_zero(backend):
    """With replacement it happens that no row that counts is drawn: then nothing changes, and the loss is 0."""
    weight = np.zeros(23)
    weight[4] = 1
    net = make(backend)
    history = net.fit(X, T, epochs=30, optimizer=SGD(0.1), sampling="replacement", sample_weight=weight)
    missed = (RowOrder(23, 5, "replacement").epochs(0, 30) != 4).all(axis=1)
    assert missed.any()
    assert np.isfinite(history.loss).all()
    np.testing.assert_array_equal(np.array(history.loss) == 0, missed)


# ---- the history ---------------------------------------------------------------------------------------------------


def test_history():
    net = make()
    assert_consistent(net.history, 0)
    history = net.fit(X, T, epochs=4, batch_size=5, optimizer=SGD(optim.StepDecay(0.1, 5, 0.5)))
    assert isinstance(history, fastbp.History)
    assert history is net.history
    assert_consistent(history, 4)
    assert history.rows == [23] * 4
    assert history.learning_rate == pytest.approx([0.1, 0.05, 0.025, 0.0125])  # of steps 4, 9, 14 and 19
    assert all(s > 0 for s in history.seconds)
    assert history.stopped == "epochs"
    assert history.best_epoch is None
    assert history.loss[-1] < history.loss[0]
    for value in (*history.loss, *history.seconds, *history.learning_rate):
        assert type(value) is float


def test_the_loss_of_an_epoch_is_from_before_its_updates():
    net = make(dtype="float64")
    losses = []
    for _ in range(3):
        losses.append(float(net.loss(X, T)))
        net.fit(X, T, epochs=1, batch_size=23, optimizer=SGD(0.5), shuffle=False)
    assert net.history.loss == pytest.approx(losses, rel=1e-13)


def test_epochs_take_numpys_integers_too():
    for kind in (np.int64, np.int32, np.int8, np.uint8):
        net = make()
        net.fit(X, T, epochs=kind(2), batch_size=kind(5), patience=kind(3), seed=kind(1))
        assert net.training.state.step == 10


# ---- validation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_validation(backend, loss, weighted, slices):
    """A fraction is that part of the rows, from the end; the entries are loss and score after the epoch."""
    t = T if loss == "mse" else T.argmax(axis=1)
    weight = np.random.default_rng(0).uniform(0.5, 2.0, 23) if weighted else None
    held = (X[17:], t[17:]) if weight is None else (X[17:], t[17:], weight[17:])
    fraction, given, plain = (make(backend, loss=loss) for _ in range(3))
    seen = []
    fraction.fit(X, t, epochs=4, batch_size=5, sample_weight=weight, validation=0.25)
    given.fit(
        X[:17],
        t[:17],
        epochs=4,
        batch_size=5,
        sample_weight=None if weight is None else weight[:17],
        validation=held,
        callbacks=[lambda net, history: seen.append((float(net.loss(*held)), net.score(*held)))],
    )
    plain.fit(X[:17], t[:17], epochs=4, batch_size=5, sample_weight=None if weight is None else weight[:17])
    assert_same_training(fraction, given)
    np.testing.assert_array_equal(plain.theta, given.theta)
    history = given.history
    assert_consistent(history, 4, validated=4)
    assert history.rows == [17] * 4
    assert list(zip(history.validation_loss, history.validation_score, strict=True)) == seen
    assert fraction.history.validation_score == history.validation_score


def test_validation_score_is_accuracy_or_r2():
    labels = T.argmax(axis=1)
    net = make(loss="cross_entropy")
    history = net.fit(X, labels, epochs=1, validation=(X, labels))
    assert history.validation_score == [pytest.approx((net.predict(X) == labels).mean())]
    net = make()
    history = net.fit(X, T, epochs=1, validation=(X, T))
    residual, total = ((T - net.forward(X)) ** 2).sum(axis=0), ((T - T.mean(axis=0)) ** 2).sum(axis=0)
    assert history.validation_score == [pytest.approx((1 - residual / total).mean(), rel=1e-5)]


def test_validation_rows_without_weight_are_refused_before_training():
    weight = np.ones(23)
    weight[17:] = 0
    net = make()
    start = net.theta.copy()
    with pytest.raises(InputError, match="validation"):
        net.fit(X, T, epochs=1, sample_weight=weight, validation=0.25)
    np.testing.assert_array_equal(net.theta, start)
    with pytest.raises(InputError, match="sample_weight"):
        net.fit(X, T, epochs=1, sample_weight=1 - weight, validation=0.25)
    np.testing.assert_array_equal(net.theta, start)
    assert net.training is None


def test_the_smallest_validation_part_is_one_row():
    net = make()
    assert net.fit(X, T, epochs=1, validation=0.001).rows == [22]


# ---- stopping ------------------------------------------------------------------------------------------------------


def stopping_rule(watched, tol, patience):
    """(epochs run, best epoch) by the rule in words: stop when ``patience`` epochs in a row did not lower the best
    loss by more than tol.
    """
    best, at = math.inf, 0
    for epoch, loss in enumerate(watched):
        if loss < best - tol:
            best, at = loss, epoch
        if epoch - at >= patience:
            return epoch + 1, at
    return len(watched), at


@pytest.mark.parametrize("watch", ["training", "validation"])
@pytest.mark.parametrize(
    ("tol", "patience"), [(None, 3), (0.0, 1), (0.0, 4), (1e-3, None), (0.02, 2), (0.05, 1), (0, 100), (1e9, 2)]
)
def test_tol_and_patience(tol, patience, watch, slices):
    """The epochs run and the parameters kept are those that the rule in words gives on a run without stopping."""
    rng = np.random.default_rng(0)
    x, t = rng.normal(size=(12, 4)), rng.normal(size=(12, 3))
    options = {"batch_size": 4, "optimizer": Adam(0.05)}
    if watch == "validation":
        options["validation"] = (rng.normal(size=(8, 4)), 0.2 * rng.normal(size=(8, 3)))
    free, path, states = make(), [], []

    def keep(net, history):
        path.append(net.theta.copy())
        states.append(copy.deepcopy(net.training.state))

    free.fit(x, t, epochs=40, callbacks=[keep], **options)
    watched = free.history.validation_loss if watch == "validation" else free.history.loss
    epochs, best = stopping_rule(watched, 1e-4 if tol is None else tol, 10 if patience is None else patience)
    net = make()
    history = net.fit(x, t, epochs=40, tol=tol, patience=patience, **options)
    assert_consistent(history, epochs, validated=epochs if watch == "validation" else 0)
    assert history.stopped == ("patience" if epochs < 40 else "epochs")
    assert history.best_epoch == best
    np.testing.assert_array_equal(net.theta, path[best])
    assert history.loss == pytest.approx(free.history.loss[:epochs], rel=1e-13)
    # the optimiser is the one that belongs to these parameters
    assert net.training.state.step == states[best].step
    for mine, kept in zip(net.training.state.vectors, states[best].vectors, strict=True):
        np.testing.assert_array_equal(mine, kept)
    assert np.isfinite(net.fit(x, t, epochs=2, batch_size=4).loss).all()


def test_stopping_on_rising_validation_loss_keeps_the_first_epoch():
    """Training towards T is training away from -T."""
    net, one = make(), make()
    history = net.fit(X, T, epochs=50, optimizer=SGD(0.3), validation=(X, -T), patience=4)
    one.fit(X, T, epochs=1, optimizer=SGD(0.3))
    assert (history.epochs, history.best_epoch, history.stopped) == (5, 0, "patience")
    np.testing.assert_array_equal(net.theta, one.theta)
    assert history.validation_loss[0] == min(history.validation_loss)


def test_best_epoch_counts_from_the_first_fit():
    net = make()
    net.fit(X, T, epochs=3, optimizer=SGD(0.3))
    history = net.fit(X, T, epochs=50, validation=(X, -T), patience=2)
    assert (history.epochs, history.best_epoch) == (6, 3)


def test_nothing_stops_early_unless_asked():
    history = make().fit(X, T, epochs=30, optimizer=SGD(1e-9), validation=(X, -T))
    assert (history.epochs, history.stopped, history.best_epoch) == (30, "epochs", None)


# ---- callbacks and progress ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_callbacks_see_every_epoch(backend, slices):
    net, other = make(backend), make(backend)
    path, seen = [], []

    def keep(n, history):
        assert n is net
        assert history is net.history
        seen.append(history.epochs)
        path.append(n.theta.copy())

    net.fit(X, T, epochs=5, batch_size=5, callbacks=[keep, lambda n, h: seen.append(-h.epochs)])
    assert seen == [1, -1, 2, -2, 3, -3, 4, -4, 5, -5]
    for at in path:
        other.fit(X, T, epochs=1, batch_size=5)
        np.testing.assert_array_equal(at, other.theta)


@pytest.mark.parametrize("value", [True, np.True_], ids=["bool", "numpy bool"])
def test_a_callback_that_returns_true_ends_training(value):
    """A comparison of NumPy's numbers, such as ``net.loss(X, T) < 0.1``, is a np.bool_."""
    calls = []
    net = make()
    stop = [lambda n, h: value if h.epochs >= 3 else not value, lambda n, h: calls.append(h.epochs)]
    history = net.fit(X, T, epochs=10, callbacks=stop)
    assert (history.epochs, history.stopped, calls) == (3, "callback", [1, 2, 3])
    assert net.fit(X, T, epochs=2).stopped == "epochs"


@pytest.mark.parametrize("value", [None, False, 0, 1, "yes", [1]])
def test_only_true_ends_training(value):
    assert make().fit(X, T, epochs=2, callbacks=[lambda n, h: value]).stopped == "epochs"


def test_callbacks_may_change_the_parameters():
    net = make()
    net.fit(X, T, epochs=3, optimizer="sgd", callbacks=[lambda n, h: n.theta.fill(0.0)])
    assert (net.theta == 0).all()


def test_an_error_in_a_callback_goes_through():
    reporter, net = Recorder(), make()

    def fail(n, history):
        raise OSError("no more paper")

    with pytest.raises(OSError, match="no more paper"):
        net.fit(X, T, epochs=3, callbacks=[fail], progress=reporter)
    assert reporter.closed == 1
    assert_consistent(net.history, 1)
    assert net.fit(X, T, epochs=1).epochs == 2


@pytest.mark.parametrize("watched", [False, True])
def test_progress_is_reported(watched, slices):
    reporter = Recorder()
    net = make()
    net.fit(X, T, epochs=6, batch_size=5, progress=reporter, callbacks=[lambda n, h: None] if watched else ())
    epochs, done, losses, rates = map(list, zip(*reporter.slices, strict=True))
    assert epochs == sorted(epochs)
    assert all(0 <= e <= 6 for e in epochs)
    assert done == sorted(set(done))
    assert done[-1] == 1.0
    assert done[0] > 0
    assert np.isfinite(losses).all()
    assert min(rates) > 0
    assert reporter.closed == 1
    assert reporter.epochs[-1] == 6
    assert reporter.epochs == sorted(set(reporter.epochs))
    if watched or slices == "one step":
        assert reporter.epochs == [1, 2, 3, 4, 5, 6]
    if slices == "one step":
        assert done == pytest.approx([k / 30 for k in range(1, 31)])


# ---- interruption --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [1, 7, 10, 30])
@pytest.mark.parametrize("backend", BACKENDS)
def test_ctrl_c_keeps_what_has_been_learned(backend, at, monkeypatch):
    monkeypatch.setattr(training, "SLICE_SECONDS", 0.0)
    net, other = make(backend), make(backend)
    reporter = Recorder(raises_at=at)
    history = net.fit(X, T, epochs=6, batch_size=5, optimizer="adam", progress=reporter)
    assert history.stopped == "interrupted"
    assert reporter.closed == 1
    assert net.training.state.step == at
    # the parameters are those after so many steps of the loop
    order, state = RowOrder(23, 5, "epoch").epochs(0, 6), Adam().init(other.theta)
    for k in range(at):
        rows = order[k // 5][k % 5 * 5 : k % 5 * 5 + 5]
        Adam().update(other.theta, other.loss_and_grad(X[rows], T[rows])[1], state, backend=backend)
    np.testing.assert_array_equal(net.theta, other.theta)
    assert_consistent(history, at // 5)
    # training goes on with the next order, at the optimiser's step
    again = net.fit(X, T, epochs=2, batch_size=5)
    assert again.stopped == "epochs"
    assert_consistent(again, at // 5 + 2)
    by_hand(other, X, T, Adam(), 2, 5, first=-(-at // 5), state=state)
    np.testing.assert_array_equal(net.theta, other.theta)


def test_ctrl_c_with_patience_keeps_the_best_parameters(monkeypatch):
    monkeypatch.setattr(training, "SLICE_SECONDS", 0.0)
    net, one = make(), make()
    options = {"batch_size": 5, "optimizer": SGD(0.3), "validation": (X, -T)}
    history = net.fit(X, T, epochs=50, patience=20, progress=Recorder(raises_at=19), **options)
    one.fit(X, T, epochs=1, **options)
    assert (history.stopped, history.best_epoch) == ("interrupted", 0)
    np.testing.assert_array_equal(net.theta, one.theta)


@pytest.mark.parametrize(("seconds", "first"), [(1e-3, 200), (1e3, 1)])
def test_the_first_slice_of_steps_goes_by_the_last_epoch(seconds, first, monkeypatch):
    """All of a short fit at once where an epoch took little time, a step where it took long."""
    rng = np.random.default_rng(0)
    x, t = rng.normal(size=(40, 3)), rng.normal(size=(40, 2))
    net = fastbp.MLP([3, 4, 2], seed=0)
    net.fit(x, t, epochs=1, batch_size=2)
    net.training.history.seconds[-1] = seconds
    asked, steps = [], training._Fit.steps

    def noted(one, first, last):
        asked.append((first, last))
        return steps(one, first, last)

    monkeypatch.setattr(training._Fit, "steps", noted)
    net.fit(x, t, epochs=10, batch_size=2)
    assert asked[0] == (0, first)


def test_ctrl_c_in_a_callback():
    def interrupt(n, history):
        if history.epochs == 2:
            raise KeyboardInterrupt

    net, other = make(), make()
    assert net.fit(X, T, epochs=9, callbacks=[interrupt]).stopped == "interrupted"
    other.fit(X, T, epochs=2)
    assert_same_training(net, other)


INTERRUPTED = """
    import signal, sys, time
    import numpy as np
    import fastbp
    from fastbp.optim import Adam

    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell started it all behind the scenes

    class Reporter:
        def __init__(self):
            self.begun = False
        def slice(self, *_):
            if not self.begun:
                self.begun = True
                print("running", flush=True)
        def epoch(self, history): ...
        def close(self): ...

    rng = np.random.default_rng(0)
    x, t = rng.normal(size=(64, 8)), rng.normal(size=(64, 2))
    net, again = (fastbp.MLP([8, 32, 2], activation="tanh", seed=1, backend="cpu") for _ in range(2))
    net.fit(x, t, epochs=1, batch_size=64, optimizer=Adam(1e-6))
    for _ in range(4):
        history = net.fit(x, t, epochs=10**9, batch_size=64, progress=Reporter())
        print("stopped", history.stopped, flush=True)
    # an epoch is one step, so the same training can be done without interruption
    steps = net.training.state.step
    again.fit(x, t, epochs=steps, batch_size=64, optimizer=Adam(1e-6))
    assert np.isfinite(net.theta).all(), "parameters are not finite"
    lengths = [len(v) for v in (history.loss, history.learning_rate, history.seconds, history.rows)]
    assert lengths == [steps] * 4, f"{steps} steps, but {lengths} entries of the history"
    assert net.training.epoch == steps, f"{steps} steps, but {net.training.epoch} epochs begun"
    assert (net.theta == again.theta).all(), f"the parameters are not those after {steps} steps"
    print("kept", flush=True)
"""


def test_a_real_ctrl_c():
    """SIGINT while compiled steps run, four times: training ends at once, and the parameters, the optimiser's state,
    the position and the history belong together.
    """
    code = textwrap.dedent(INTERRUPTED)
    environment = {**os.environ, "FASTBP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as child:
        try:
            for _ in range(4):
                assert child.stdout.readline() == "running\n"
                with pytest.raises(subprocess.TimeoutExpired):
                    child.wait(0.2)
                began = time.monotonic()
                child.send_signal(signal.SIGINT)
                assert child.stdout.readline() == "stopped interrupted\n"
                assert time.monotonic() - began < 3.0  # said to be about 50 ms; machines are shared
            out, errors = child.communicate(timeout=60)
        finally:
            child.kill()
    said = [line for line in errors.splitlines() if not line.startswith("fastbp: compiling")]
    assert (out, said) == ("kept\n", [])
    assert child.returncode == 0


# ---- divergence ----------------------------------------------------------------------------------------------------


def growing(rate, dtype="float32", backend="cpu", rows=12):
    """A linear net and data on which gradient descent with a rate that is too large grows by a factor a step."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(rows, 2))
    t = x @ np.array([[1.0], [-2.0]])
    return fastbp.MLP([2, 1], loss="half_sse", dtype=dtype, backend=backend, seed=0), x, t, SGD(rate)


def last_good_epoch(net, x, t, o, batch):
    """By hand: epochs done before the first batch whose loss is not finite; an epoch is good if the batch after it has
    a finite loss.
    """
    state, order = o.init(net.theta), RowOrder(len(x), net.seed, "epoch")
    with np.errstate(all="ignore"):
        for epoch in range(1000):
            rows = order.epochs(epoch, epoch + 1)[0]
            for start in range(0, len(x), batch):
                here = rows[start : start + batch]
                loss, gradient = net.loss_and_grad(x[here], t[here])
                if not np.isfinite(loss):
                    return epoch if start else epoch - 1
                o.update(net.theta, gradient, state, backend=net.backend)
    raise AssertionError("it does not diverge")


@pytest.mark.parametrize("batch", [12, 5, 1])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_diverging_run_keeps_the_last_good_epoch(backend, dtype, batch, slices):
    net, x, t, o = growing(40.0, dtype, backend)
    by_loop, *_ = growing(40.0, dtype, backend)
    good = last_good_epoch(by_loop, x, t, o, batch)
    assert good >= 1, "the case is too wild to show anything"
    reporter = Recorder()
    with pytest.raises(DivergedError) as caught:
        net.fit(x, t, epochs=500, batch_size=batch, optimizer=o, progress=reporter)
    message = str(caught.value)
    assert re.search(r"not finite any more in epoch \d+ of 500, at learning rate 40;", message)
    assert f"the parameters at the end of epoch {good} are kept" in message
    accused = int(re.search(r"in epoch (\d+)", message)[1])
    assert accused in (good + 1, good + 2)  # the batch after a bad epoch is the next epoch's first
    assert np.isfinite(net.theta).all()
    assert reporter.closed == 1
    assert net.history.stopped == "diverged"
    assert_consistent(net.history, good)
    independent, *_ = growing(40.0, dtype, backend)
    independent.fit(x, t, epochs=good, batch_size=batch, optimizer=o)
    assert_same_training(net, independent)
    # it goes on from there
    for one in (net, independent):
        one.fit(x, t, epochs=3, batch_size=batch, optimizer=SGD(1e-3))
        assert one.history.stopped == "epochs"
        assert_consistent(one.history, good + 3)
    assert_same_training(net, independent)


@pytest.mark.parametrize("epochs", [1, 2, 10])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_run_that_diverges_at_once_keeps_the_start(backend, epochs, slices):
    net, x, t, o = growing(1e38, "float32", backend)
    start = net.theta.copy()
    with pytest.raises(DivergedError, match=r"at learning rate 1e\+38; the parameters at the end of epoch 0 are kept"):
        net.fit(100 * x, 100 * t, epochs=epochs, batch_size=12, optimizer=o)
    np.testing.assert_array_equal(net.theta, start)
    assert_consistent(net.history, 0)
    assert (net.training.state.step, net.training.epoch) == (0, 0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_divergence_in_a_later_fit(backend, slices):
    """What earlier calls did stays, in the parameters, the history and the optimiser's state."""
    nets = [growing(40.0, "float32", backend)[0] for _ in range(2)]
    _, x, t, _ = growing(40.0)
    for net in nets:
        net.fit(x, t, epochs=3, batch_size=5, optimizer=Momentum(1e-3))
    with pytest.raises(DivergedError) as caught:
        nets[0].fit(x, t, epochs=200, batch_size=5, optimizer=Momentum(30.0))
    good = int(re.search(r"at the end of epoch (\d+) are kept", str(caught.value))[1])
    if good:
        nets[1].fit(x, t, epochs=good, batch_size=5, optimizer=Momentum(30.0))
        assert_same_training(*nets)
    assert_consistent(nets[0].history, 3 + good)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_divergence_with_validation(backend, dtype):
    """Scores of parameters that have gone are no numbers, but no reason to warn or to stop differently either."""
    net, x, t, o = growing(40.0, dtype, backend)
    plain, *_ = growing(40.0, dtype, backend)
    for one, options in ((net, {"validation": (x, t)}), (plain, {})):
        with pytest.raises(DivergedError):
            one.fit(x, t, epochs=500, batch_size=5, optimizer=o, **options)
    np.testing.assert_array_equal(net.theta, plain.theta)
    assert_consistent(net.history, plain.history.epochs, validated=plain.history.epochs)


def test_divergence_with_validation_after_epochs_without(slices):
    """The entries of validation are fewer than the epochs; those of the epochs that are undone go, no others."""
    net, x, t, _ = growing(40.0)
    net.fit(x, t, epochs=3, batch_size=12, optimizer=SGD(1e-3))
    with pytest.raises(DivergedError) as caught:
        net.fit(100 * x, 100 * t, epochs=5, batch_size=12, optimizer=SGD(1e36), validation=(x, t))
    good = int(re.search(r"at the end of epoch (\d+) are kept", str(caught.value))[1])
    assert_consistent(net.history, 3 + good, validated=good)


def test_divergence_with_patience():
    """The best epoch is one that the history still has."""
    net, x, t, _ = growing(40.0)
    schedule = optim.StepDecay(1e-2, 4, 1e30)  # four good epochs, then one huge step
    with pytest.raises(DivergedError):
        net.fit(x, t, epochs=20, batch_size=12, optimizer=SGD(schedule), patience=20)
    assert np.isfinite(net.theta).all()
    assert net.history.best_epoch is None or net.history.best_epoch < net.history.epochs


def test_divergence_names_the_learning_rate_of_its_time(slices):
    """With a schedule it is the rate that did it, not the one at the end of a slice."""
    net, x, t, _ = growing(40.0)
    schedule = optim.StepDecay(1e-3, 20, 1e12)  # 1e-3 for 20 epochs, 1e9 for 20 more, then 1e21
    with pytest.raises(DivergedError) as caught:
        net.fit(x, t, epochs=200, batch_size=12, optimizer=SGD(schedule))
    assert "at learning rate 1e+09;" in str(caught.value)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("batch", [1, 2])
def test_parameters_that_overflow_unseen_by_the_loss(backend, batch):
    """A weight of -inf behind a relu leaves the loss finite: what is kept has to be finite all the same."""
    net = fastbp.MLP([1, 1, 1], activation="relu", loss="mae", init="zeros", backend=backend, seed=0)
    net.theta = [1e-20, 0.0, 1.0, 0.0]
    x, t = np.full((2, 1), 1e20), np.zeros((2, 1))
    start = net.theta.copy()
    with pytest.raises(DivergedError):
        net.fit(x, t, epochs=4, batch_size=batch, optimizer=SGD(1e19), shuffle=False)
    assert np.isfinite(net.theta).all()
    np.testing.assert_array_equal(net.theta, start)


# ---- the example of the notes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_learning_the_exclusive_or(backend):
    x, t = np.array([[0, 0], [0, 1], [1, 0], [1, 1]]), np.array([[0], [1], [1], [0]])
    net = fastbp.MLP([2, 8, 1], activation="tanh", loss="bce", backend=backend, seed=0)
    net.fit(x, t, epochs=400, batch_size=4, optimizer=Adam(0.05))
    np.testing.assert_array_equal(net.predict(x), t)
    assert net.score(x, t) == 1.0


@pytest.mark.parametrize("backend", ["cpu", "numpy"])
def test_slices_are_short_from_the_first_on(backend):
    """So that Ctrl-C is heard: a first guess of a tiny network's speed may be far off."""
    sizes = []

    class Watch:
        def slice(self, epoch, done, loss, rows_a_second):
            sizes.append(done)

        def epoch(self, history): ...

        def close(self): ...

    net = fastbp.MLP([2, 4, 1], backend=backend, seed=0)
    net.fit(np.ones((4, 2)), np.ones((4, 1)), epochs=3000, batch_size=4, progress=Watch())
    assert sizes[0] * 3000 <= 64
    assert len(sizes) >= 3


def test_a_schedule_that_the_optimizer_cannot_use_is_refused_before_training():
    net = fastbp.MLP([2, 3, 1], seed=0)
    start = net.theta.copy()
    with pytest.raises(InputError, match="must stay above 0"):
        net.fit(np.ones((8, 2)), np.ones((8, 1)), epochs=50, optimizer=optim.Ftrl(optim.CosineDecay(0.1, 20)))
    np.testing.assert_array_equal(net.theta, start)
    assert net.training is None
