"""Networks and training on CuPy arrays: equal to NumPy's step by step, without copies behind anybody's back.

On the fake of fake_cupy.py, whose arithmetic is NumPy's: bits are compared, not digits.
"""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import fastbp
from fastbp import MLP, feeding, layers, optim, training
from fastbp.errors import DeviceMemoryError, DivergedError, InputError, UnavailableError
from fastbp.losses import LOSSES

RNG = np.random.default_rng(0)
X, T, LABELS = RNG.normal(size=(53, 4)), RNG.normal(size=(53, 3)), RNG.integers(0, 3, 53)
WEIGHT = RNG.uniform(0.5, 2.0, 53)


@pytest.fixture
def counts(cupy):
    """Copies to the device, copies to the host, waits since the last call."""

    def since() -> tuple[int, int, int]:
        state = cupy._state
        found = (state.to_device, state.to_host, state.waits)
        state.to_device = state.to_host = state.waits = 0
        return found

    return since


def branched(backend=None):
    """Two inputs, one of row numbers; two outputs; dropout."""
    words, x = layers.Input(1, dtype="int", name="word"), layers.Input(4, name="x")
    table = layers.Embedding(5, 4)(words)
    hidden = layers.Dropout(0.3)(layers.Dense(6, "gelu", l2=0.01)(table, x))
    outputs = {"class": layers.Dense(3, "softmax")(hidden), "value": layers.Dense(2)(hidden)}
    return fastbp.Network(
        [words, x], outputs, loss={"class": "cross_entropy", "value": "huber"}, backend=backend, seed=3, dtype="float64"
    )


def both(**more):
    return [MLP([4, 5, 3], activation="tanh", seed=1, backend=b, **more) for b in ("cupy", "numpy")]


def equal(device, host):
    np.testing.assert_array_equal(device.get(), host)


# ---- calls -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", list(LOSSES))
def test_all_that_a_network_gives_is_on_the_device(cupy, counts, loss):
    mine, theirs = both(loss=loss)
    labels = loss == "cross_entropy"
    target = LABELS if labels else (T > 0).astype(float) if loss == "bce" else T
    x, t, w = (cupy.asarray(v) for v in (X, target, WEIGHT))
    counts()
    value, gradient = mine.loss_and_grad(x, t, w)
    found = [value, gradient, mine.forward(x), mine.logits(x), mine.predict(x), mine.loss(x, t), *mine.deltas(x, t)]
    found += [mine.theta, *mine.weights, *mine.biases]
    assert counts() == (0, 0, 0)
    assert value.shape == ()
    assert all(isinstance(v, cupy.ndarray) for v in found)
    value, gradient = theirs.loss_and_grad(X, target, WEIGHT)
    expected = [value, gradient, theirs.forward(X), theirs.logits(X), theirs.predict(X), theirs.loss(X, target)]
    expected += [*theirs.deltas(X, target), theirs.theta, *theirs.weights, *theirs.biases]
    for a, b in zip(found, expected, strict=True):
        equal(a, b)
    assert mine.score(x, t, w) == theirs.score(X, target, WEIGHT)
    assert (
        mine.evaluate({"X": x, "labels" if labels else "T": mine.check_batch(x, t)["labels" if labels else "T"]})[0] > 0
    )


def test_a_network_refuses_arrays_of_the_other_kind(cupy):
    mine, theirs = both()
    x, t = cupy.asarray(X), cupy.asarray(T)
    cases = [
        (r"X is a NumPy array, but CuPy arrays are needed here: pass cupy\.asarray\(X\)", lambda: mine.forward(X)),
        ("T is a NumPy array", lambda: mine.loss(x, T)),
        ("sample_weight is a NumPy array", lambda: mine.loss_and_grad(x, t, WEIGHT)),
        ("theta is a NumPy array", lambda: setattr(mine, "theta", theirs.theta)),
        ("vector is a NumPy array", lambda: mine.views(theirs.theta)),
        (r"X is a CuPy array, but NumPy arrays are needed here: pass X\.get\(\), or", lambda: theirs.forward(x)),
        ("X is a CuPy array", lambda: theirs.fit(x, T)),
        ("T is a NumPy array, but X is a CuPy array", lambda: mine.fit(x, T)),
        ("validation T is a NumPy array, but validation X", lambda: mine.fit(X, T, validation=(x, T))),
        ("sample_weight is a NumPy array, but X", lambda: mine.fit(x, t, sample_weight=WEIGHT)),
    ]  # fmt: skip
    before = mine.theta.copy()
    for message, call in cases:
        with pytest.raises(InputError, match=message):
            call()
    equal(mine.theta, before.get())
    mine.theta = cupy.ones(len(before))
    assert mine.theta.get().tolist() == [1.0] * len(before)
    assert isinstance(mine.forward(X.tolist()), cupy.ndarray)  # lists go with either


def test_a_network_stays_on_its_device(cupy):
    with cupy.cuda.Device(1):
        net = MLP([4, 3], seed=0)
        x = cupy.asarray(X)
        assert net.forward(x).device.id == 1
    with pytest.raises(InputError, match=r"X is on device 1, but the current device is 0"):
        net.forward(x)
    for call in (net.forward, lambda x: net.fit(x, np.ones((53, 3)))):
        with pytest.raises(InputError, match=r"theta of the network is on device 1, but the current device is 0"):
            call(cupy.asarray(X) if call == net.forward else X)


def test_values_on_the_device_are_not_read(cupy, counts):
    net = MLP([4, 3], loss="cross_entropy", seed=0)
    x, labels = cupy.asarray(X), cupy.asarray(np.where(np.arange(53) == 7, 3, LABELS))
    counts()
    loss, gradient = net.loss_and_grad(x, labels)
    assert counts() == (0, 0, 0)
    assert np.isnan(float(loss))  # and not some number: 3 is no class
    assert np.isnan(gradient.get()).any()
    with pytest.raises(InputError, match="T: labels must be 0 … 2; row 7 is 3"):
        net.fit(x, labels)


def test_row_numbers_on_the_device_are_checked(cupy):
    net = branched()
    words, x = cupy.asarray(np.full((2, 1), 5)), cupy.zeros((2, 4))
    with pytest.raises(InputError, match="row numbers must be 0 … 4; row 0 is 5"):
        net.forward([words, x])


# ---- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["host", "device"])
@pytest.mark.parametrize("rule", list(optim.OPTIMIZERS))
def test_training_is_numpys_step_by_step(cupy, rule, where):
    """Same seeds, shuffles and dropout masks: the same bits after every epoch."""
    mine, theirs = both(dropout=0.2, l2=0.01)
    x, t, w = (cupy.asarray(v) for v in (X, T, WEIGHT)) if where == "device" else (X, T, WEIGHT)
    for _ in range(3):
        mine.fit(x, t, epochs=1, batch_size=8, optimizer=rule, sample_weight=w)
        theirs.fit(X, T, epochs=1, batch_size=8, optimizer=rule, sample_weight=WEIGHT)
        equal(mine.theta, theirs.theta)
        for a, b in zip(mine.training.state.vectors, theirs.training.state.vectors, strict=True):
            equal(a, b)
    assert mine.history.loss == pytest.approx(theirs.history.loss, rel=1e-12)


@pytest.mark.parametrize(
    "more",
    [
        {"shuffle": False},
        {"sampling": "replacement", "sample_weight": WEIGHT},
        {"validation": 0.25, "patience": 2, "tol": 0.1},
        {"validation": (X[:20], T[:20], WEIGHT[:20]), "sample_weight": WEIGHT},
        {"batch_size": 53},
    ],
)
@pytest.mark.parametrize("pieces", [False, True])
def test_options_of_fit(cupy, monkeypatch, more, pieces):
    if pieces:
        monkeypatch.setattr(feeding, "LIMIT", 0)
        monkeypatch.setattr(feeding, "PIECE_BYTES", 16 * 7 * 4)
    mine, theirs = both()
    arguments = {"epochs": 5, "batch_size": 8} | more
    mine.fit(X, T, **arguments)
    theirs.fit(X, T, **arguments)
    equal(mine.theta, theirs.theta)
    assert mine.history.loss == pytest.approx(theirs.history.loss, rel=1e-12)  # adds up by slices, cut by the clock
    for name in ("validation_loss", "validation_score", "learning_rate", "rows", "stopped", "best_epoch"):
        assert getattr(mine.history, name) == getattr(theirs.history, name), name


def test_any_network_trains_on_the_device(cupy):
    mine, theirs = branched("cupy"), branched("numpy")
    inputs = [RNG.integers(0, 5, 53), X]
    targets = {"class": LABELS, "value": T[:, :2]}
    for net in (mine, theirs):
        net.fit(inputs, targets, epochs=3, batch_size=10, optimizer="adam")
    np.testing.assert_allclose(mine.theta.get(), theirs.theta, rtol=1e-12)
    on_device = [cupy.asarray(v) for v in inputs]
    mine.fit(on_device, {k: cupy.asarray(v) for k, v in targets.items()}, epochs=2)
    theirs.fit(inputs, targets, epochs=2)
    np.testing.assert_allclose(mine.theta.get(), theirs.theta, rtol=1e-12)
    assert set(mine.forward(on_device)) == {"class", "value"}


def test_data_goes_to_the_device_once_and_losses_come_back_once_a_slice(cupy, counts, monkeypatch):
    slices = []
    steps = training._Fit.steps

    def counted(self, first, last):
        counts()
        found = steps(self, first, last)
        slices.append((last - first, *counts()))
        return found

    monkeypatch.setattr(training._Fit, "steps", counted)
    net = MLP([4, 5, 3], dropout=0.1, seed=0)
    monkeypatch.setattr(training, "SLICE_SECONDS", 0.0)  # slices of one step
    net.fit(X, T, epochs=2, batch_size=8)
    assert slices == [(1, 3, 1, 0)] * 14  # row numbers, learning rate, key of dropout; the loss
    moved = []
    original = fastbp.arrays.Kind.moved
    monkeypatch.setattr(fastbp.arrays.Kind, "moved", lambda self, a: (moved.append(a.shape), original(self, a))[1])
    monkeypatch.setattr(training, "SLICE_SECONDS", 10.0)
    net.fit(X, T, epochs=2, batch_size=8)
    assert moved.count((53, 4)) == moved.count((53, 3)) == 1


def test_data_that_does_not_fit_comes_in_pieces_and_gives_the_same(cupy, monkeypatch):
    """Copies of the fake are as late as their stream allows: a buffer that is written too early would show."""
    whole = MLP([4, 5, 3], seed=0, dtype="float64")
    whole.fit(X, T, epochs=7, batch_size=5)
    monkeypatch.setattr(feeding, "LIMIT", 53 * 7 * 8 - 1)  # one byte too few
    sizes = []
    bring = feeding.Feeder.bring

    def noted(self, numbers):
        found = bring(self, numbers)
        sizes.append(len(numbers))
        return found

    monkeypatch.setattr(feeding.Feeder, "bring", noted)
    for rows in (1, 5, 13, 20, 1000):
        monkeypatch.setattr(feeding, "PIECE_BYTES", rows * 7 * 8)
        sizes.clear()
        parts = MLP([4, 5, 3], seed=0, dtype="float64")
        parts.fit(X, T, epochs=7, batch_size=5)
        equal(parts.theta, whole.theta.get())
        assert parts.history.loss == pytest.approx(whole.history.loss, rel=1e-12)
        assert sum(sizes) == 7 * 53
        assert max(sizes) <= max(5, min(rows, 13))
    monkeypatch.setattr(feeding, "LIMIT", 53 * 7 * 8)
    sizes.clear()
    MLP([4, 5, 3], seed=0, dtype="float64").fit(X, T, epochs=1, batch_size=5)
    assert not sizes  # that fits


def test_pieces_wait_for_the_copies_and_buffers_for_the_work(cupy, monkeypatch):
    """Copy k waits for the work on piece k - 2, and the work on piece k for its copy; the host for copy k - 2."""
    monkeypatch.setattr(feeding, "LIMIT", 0)
    feeder = feeding.Feeder({"X": np.arange(40.0).reshape(20, 2)}, 4)
    assert feeder.rows == 4
    cupy._state.log.clear()
    kept = []
    for k in range(5):
        kept.append(feeder.bring(np.arange(4 * k, 4 * k + 4))["X"])
        assert kept[-1].get()[0, 0] == 8 * k
    assert cupy._state.log == ["stream waits", "null waits"] * 5
    assert cupy._state.waits == 3
    assert kept[0].data.ptr == kept[2].data.ptr != kept[1].data.ptr
    assert list(feeder.pieces(np.array([4, 4, 2, 1, 4]))) == [(0, 1), (1, 2), (2, 4), (4, 5)]


def test_memory_that_does_not_suffice_loses_nothing(cupy, monkeypatch):
    net = MLP([4, 5, 3], seed=0)
    net.fit(X, T, epochs=2, batch_size=8)
    before, epochs, step = net.theta.copy(), net.history.epochs, net.training.state.step
    limit = cupy._state.limit

    steps = training._Fit.steps

    def tight(at, room):
        """So little memory is free at that step of the next fit."""

        def run(self, first, last):
            if first <= at < last:
                cupy._state.limit = cupy._state.used + room
            return steps(self, first, last)

        monkeypatch.setattr(training._Fit, "steps", run)

    tight(0, 5000)
    with pytest.raises(DeviceMemoryError, match=r"batches of \d+ rows would fit; the parameters are as they were"):
        net.fit(X, T, epochs=2, batch_size=53)
    cupy._state.limit = limit
    equal(net.theta, before.get())
    assert (net.history.epochs, net.training.state.step) == (epochs, step)
    monkeypatch.setattr(training._Fit, "steps", steps)
    monkeypatch.setattr(training, "SLICE_SECONDS", 0.0)
    same = copy.deepcopy(net)
    same.fit(X, T, epochs=1, batch_size=8)
    tight(9, 1000)
    with pytest.raises(DeviceMemoryError, match="the parameters are those at the end of epoch 1"):
        net.fit(X, T, epochs=2, batch_size=8)
    cupy._state.limit = limit
    equal(net.theta, same.theta.get())
    assert net.training.state.step == same.training.state.step
    assert net.training.epoch == same.training.epoch
    assert net.history.loss == pytest.approx(same.history.loss, rel=1e-12)


def test_data_for_which_there_is_no_memory_at_all(cupy):
    net = MLP([4, 3], seed=0)
    before = net.theta.get()
    cupy._state.limit = cupy._state.used + 100
    with pytest.raises(DeviceMemoryError, match="nothing has been trained yet"):
        net.fit(X, T)
    equal(net.theta, before)


def test_divergence_goes_back_on_the_device(cupy):
    mine, theirs = both()
    for net in (mine, theirs):
        with pytest.raises(DivergedError):
            net.fit(X, T, epochs=50, optimizer=optim.SGD(1e4), batch_size=8)
    equal(mine.theta, theirs.theta)
    assert np.isfinite(theirs.theta).all()


# ---- keeping ---------------------------------------------------------------------------------------------------------


def test_files_know_nothing_of_devices(cupy, tmp_path):
    nets = both(dtype="float64")
    for net in nets:
        net.fit(X, T, epochs=2)
        net.save(tmp_path / f"{net.backend}.npz", note=net.theta)
    contents = [dict(np.load(tmp_path / f"{net.backend}.npz")) for net in nets]
    for name in contents[0]:
        if name != "settings":
            np.testing.assert_array_equal(contents[0][name], contents[1][name])
    on_host = fastbp.load(tmp_path / "cupy.npz", backend="cpu")
    on_device = fastbp.load(tmp_path / "numpy.npz", backend="cupy")
    assert isinstance(on_host.theta, np.ndarray)
    assert isinstance(on_device.theta, cupy.ndarray)
    assert all(isinstance(v, cupy.ndarray) for v in on_device.training.state.vectors)
    for net in (nets[1], on_device):
        net.fit(X, T, epochs=2)
    equal(on_device.theta, nets[1].theta)


def test_pickles_hold_numpy_arrays(cupy, monkeypatch):
    net = both()[0]
    net.fit(X, T, epochs=1)
    state = net.__getstate__()
    assert isinstance(state["_theta"], np.ndarray)
    assert all(isinstance(v, np.ndarray) for v in state["training"].state.vectors)
    for same in (pickle.loads(pickle.dumps(net)), copy.deepcopy(net)):
        same.fit(X, T, epochs=1)
        again = copy.deepcopy(net)
        again.fit(X, T, epochs=1)
        equal(same.theta, again.theta.get())
        assert same.theta.data.ptr != net.theta.data.ptr
    kept = pickle.dumps(net)
    cupy._state.devices = 0
    fastbp.backends.gpu.missing.cache_clear()
    with pytest.raises(UnavailableError, match="no NVIDIA GPU is visible"):
        pickle.loads(kept)


def test_switching_off_the_fake_leaves_nothing_behind():
    assert fastbp.available_backends() == [
        "cpu",
        "numpy",
        *(b for b in ("cuda", "cupy") if not fastbp.backends.gpu.missing(b)),
    ]
