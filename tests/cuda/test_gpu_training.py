"""Training on a card: step by step as by array code, by launches, by graphs and by one block, on any stream, in
several threads.
"""

from __future__ import annotations

import threading

import cupy
import numpy as np
import pytest

import fastbp
from fastbp import MLP, checks, feeding, layers, optim, scalars
from fastbp.backends.cuda import executable
from fastbp.backends.cuda.executable import CudaExecutable
from fastbp.backends.cuda.launching import CAN_CAPTURE
from fastbp.errors import DivergedError
from fastbp.losses import LOSSES

RNG = np.random.default_rng(0)
ROWS, BATCH, WIDE, STEPS = (531, 64, 33, 100) if CAN_CAPTURE else (19, 8, 4, 2)  # the simulator takes a second a step
X, T, LABELS = RNG.normal(size=(ROWS, 13)), RNG.uniform(0.1, 0.9, (ROWS, 3)), RNG.integers(0, 3, ROWS)
WEIGHT = RNG.uniform(0.5, 2.0, ROWS)
LIMIT = {"highest": 1e-4, "tf32": 2e-2, "bf16": 0.1}  # of float32, of the way that the parameters went
NEVER = 1 << 30


@pytest.fixture(params=["launches", "one block"])
def way(request, monkeypatch):
    """How steps are done; by one block they are where several networks are trained at once."""
    if request.param == "one block":
        monkeypatch.setattr(CudaExecutable, "run_steps", lambda self, *of: self.run_many(*([x] for x in of))[0])
    return request.param


@pytest.fixture
def graphs(monkeypatch):
    """What has been captured."""
    found = []
    inside = executable.captured

    def captured(*arguments):
        found.append(inside(*arguments))
        return found[-1]

    monkeypatch.setattr(executable, "captured", captured)
    return found


def on_device(values):
    return {name: cupy.asarray(v) for name, v in values.items()}


def host(value):
    return value.get() if hasattr(value, "get") else value


def noted(record_property, case, precision, dtype, error, bound):
    for name, value in (("case", case), ("precision", precision), ("dtype", dtype), ("error", error), ("bound", bound)):
        record_property(name, value)
    assert error <= bound


def steps_on_both(
    activation, loss, optimizer, sizes, precision="highest", widths=(13, WIDE, 17, 3), rows=ROWS, gathered=True
):
    """Losses and parameters after steps of those numbers of rows, by array code in float64 and by cuda; the start."""
    dtype = "float64" if precision == "highest" else "float32"
    given, target = checks.batch_of(rows, widths, loss, 1)
    net = MLP(widths, activation=activation, loss=loss, backend="numpy", dtype="float64", seed=0)
    data = net.check_batch(given, target, None)
    run = net.training_step(sorted(data), optimizer, gathered)
    position = np.concatenate([[0], np.cumsum(sizes)[:-1]]) % (rows - max(sizes))
    steps = np.column_stack([sizes, position, np.arange(len(sizes))]).astype(np.int64)
    order = np.random.default_rng(0).permutation(rows)[:, None]
    results = []
    for machine, kind in ((run, "float64"), (CudaExecutable(run.program, dtype, precision), dtype)):
        state = optimizer.init(net.theta)
        values = {**data, "theta": net.theta[None], **({"order": order} if gathered else {})}
        values |= {f"state{k}": v for k, v in enumerate(state.vectors)}
        values = {k: np.array(v, v.dtype if v.dtype.kind == "i" else kind) for k, v in values.items()}
        values["hyper"] = optimizer.hyper(np.arange(float(len(sizes))))
        if machine is not run:
            values = on_device(values)
        losses = machine.run_steps(values, steps)["loss"]
        results.append((host(losses).ravel(), host(values["theta"]).ravel()))
    return *results, net.theta, machine


@pytest.mark.parametrize("activation", scalars.ACTIVATIONS)
@pytest.mark.parametrize("loss", LOSSES)
def test_steps(activation, loss, way, record_property):
    """Every activation and loss: shuffled rows, three numbers of them, losses of every step."""
    expected, found, _, _ = steps_on_both(activation, loss, optim.Adam(0.01), [BATCH, BATCH, BATCH // 2 + 1, BATCH, 1])
    error = max(checks.relative_error(f, e) for f, e in zip(found, expected, strict=True))
    noted(record_property, f"steps by {way} {activation} {loss}", "highest", "float64", error, 1e-9)


@pytest.mark.parametrize("gathered", [False, True])
@pytest.mark.parametrize("rule", ["sgd", "adam"])
def test_many_steps(rule, gathered, way, record_property):
    """Hundreds in one call; launches by graphs of two numbers of rows where there are graphs."""
    sizes = [BATCH, BATCH, BATCH, BATCH - 3] * STEPS
    optimizer = optim.OPTIMIZERS[rule](0.01)
    expected, found, _, run = steps_on_both("tanh", "mse", optimizer, sizes, gathered=gathered)
    error = max(checks.relative_error(f, e) for f, e in zip(found, expected, strict=True))
    noted(record_property, f"many steps by {way}, {rule}, gathered {gathered}", "highest", "float64", error, 1e-7)
    captured = {n: here.graph is not None for n, here in run._bound.items()}
    assert captured == ({BATCH: CAN_CAPTURE, BATCH - 3: CAN_CAPTURE} if way == "launches" else {})


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_steps_on_tensor_cores(precision, record_property):
    expected, found, start, _ = steps_on_both(
        "sigmoid",
        "half_sse",
        optim.SGD(0.1),
        [8 * BATCH] * 6,
        precision,
        widths=(6 * WIDE, 4 * WIDE, 66, 10),
        rows=16 * BATCH,
    )
    error = np.linalg.norm(found[1] - expected[1]) / np.linalg.norm(expected[1] - start)
    noted(record_property, "steps", precision, "float32", float(error), LIMIT[precision])


@pytest.mark.parametrize("precision", ["highest", "tf32", "bf16"])
def test_graphs_give_the_bits_of_launches(precision, graphs, monkeypatch):
    found = []
    for limit in (NEVER, 1):
        assert not graphs
        monkeypatch.setattr(executable, "WORTH_A_GRAPH", limit)
        net = MLP([13, 40, 3], activation="gelu", backend="cuda", precision=precision, seed=0)
        net.fit(X, T, epochs=3 if CAN_CAPTURE else 1, batch_size=BATCH // 2, optimizer="adam")
        found.append(net.theta.get())
    assert bool(graphs) == CAN_CAPTURE
    np.testing.assert_array_equal(found[0], found[1])


@pytest.mark.parametrize("more", [{}, {"dropout": 0.2, "l2": 0.01}, {"skip": [(0, 2)]}], ids=str)
@pytest.mark.parametrize("rule", optim.OPTIMIZERS)
def test_fit(rule, more, way, record_property):
    """Shuffles, masks, weights, a short last batch, the loss of every epoch: as array code has them."""
    nets = [
        MLP([13, WIDE, 3], activation="tanh", seed=1, dtype="float64", backend=b, **more) for b in ("numpy", "cuda")
    ]
    for net in nets:
        net.fit(X, T, epochs=2, batch_size=BATCH, optimizer=rule, sample_weight=WEIGHT)
    assert nets[1].history.loss == pytest.approx(nets[0].history.loss, rel=1e-8)
    error = checks.relative_error(nets[1].theta.get(), nets[0].theta)
    noted(record_property, f"fit by {way} {rule} {more}", "highest", "float64", error, 1e-7)


@pytest.mark.parametrize("precision", LIMIT)
def test_a_fit_that_learns_is_the_same_again(precision, way):
    """Classes that can be told apart; twice, to the same bits."""
    centres = RNG.normal(size=(3, 13)) * 2
    points = centres[LABELS] + RNG.normal(size=(ROWS, 13)) * 0.3
    found = []
    for _ in range(2):
        net = MLP([13, 64, 3], loss="cross_entropy", backend="cuda", precision=precision, seed=0)
        net.fit(points, LABELS, epochs=STEPS // 5 + 1, batch_size=BATCH // 2, optimizer="adam")
        found.append(net.theta.get())
        assert net.score(cupy.asarray(points, np.float32), cupy.asarray(LABELS)) > 0.99 or not CAN_CAPTURE
    np.testing.assert_array_equal(found[0], found[1])


def test_data_in_pieces_gives_the_bits_of_data_as_a_whole(way, monkeypatch):
    found = []
    for limit in (None, 0):
        monkeypatch.setattr(feeding, "LIMIT", limit)
        monkeypatch.setattr(feeding, "PIECE_BYTES", (BATCH + 6) * 16 * 4)
        net = MLP([13, WIDE, 3], backend="cuda", seed=0)
        net.fit(X, T, epochs=5, batch_size=BATCH // 2, optimizer="adam")
        found.append(net.theta.get())
    np.testing.assert_array_equal(found[0], found[1])


def test_a_network_beyond_a_chain():
    def branched(backend):
        words, x = layers.Input(1, dtype="int", name="word"), layers.Input(13, name="x")
        hidden = layers.Dropout(0.3)(layers.Dense(40, "gelu", l2=0.01)(layers.Embedding(50, 8)(words), x))
        outputs = {"class": layers.Dense(3, "softmax")(hidden), "value": layers.Dense(2)(hidden)}
        loss = {"class": "cross_entropy", "value": "huber"}
        return fastbp.Network([words, x], outputs, loss=loss, backend=backend, seed=3, dtype="float64")

    nets = [branched("numpy"), branched("cuda")]
    for net in nets:
        net.fit([LABELS * 7, X], {"class": LABELS, "value": T[:, :2]}, epochs=3, batch_size=BATCH, optimizer="adam")
    np.testing.assert_allclose(nets[1].theta.get(), nets[0].theta, rtol=1e-7, atol=1e-12)


def test_divergence_goes_back():
    nets = [MLP([13, WIDE, 3], seed=1, dtype="float64", backend=b) for b in ("numpy", "cuda")]
    for net in nets:
        with pytest.raises(DivergedError):
            net.fit(X, T, epochs=50, optimizer=optim.SGD(1e4), batch_size=BATCH)
    np.testing.assert_allclose(nets[1].theta.get(), nets[0].theta, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("own", [False, True])
def test_any_stream(own):
    """What a stream was asked for before comes before, and what it is asked for after comes after, without waiting."""
    if own and not CAN_CAPTURE:
        pytest.skip("simulated kernels do not wait for streams")
    net = MLP([13, WIDE, 3], seed=1, backend="cuda", dtype="float64")
    expected = MLP([13, WIDE, 3], seed=1, backend="numpy", dtype="float64")
    stream = cupy.cuda.Stream(non_blocking=True) if own else cupy.cuda.Stream.null
    cupy.cuda.Device().synchronize()
    with stream:
        x, t = cupy.zeros(X.shape), cupy.zeros(T.shape)
        for _ in range(20):  # a while of work
            x += cupy.asarray(X) / 20
            t += cupy.asarray(T) / 20
        _, gradient = net.loss_and_grad(x, t)
        x.fill(0.0)
        doubled = (gradient * 2.0).get()
        net.fit(X, T, epochs=2, batch_size=BATCH, optimizer="adam")
        theta = net.theta.get()
    np.testing.assert_allclose(doubled, 2.0 * expected.loss_and_grad(X, T)[1], rtol=1e-9, atol=1e-14)
    expected.fit(X, T, epochs=2, batch_size=BATCH, optimizer="adam")
    np.testing.assert_allclose(theta, expected.theta, rtol=1e-8, atol=1e-12)


@pytest.mark.skipif(not CAN_CAPTURE, reason="the simulator runs one thread at a time")
def test_two_threads(way):
    """Each trains its own network, one captures while the other launches; both at once use one network's gradient."""
    shared = MLP([13, WIDE, 3], seed=1, backend="cuda", dtype="float64")
    alone = MLP([13, WIDE, 3], seed=2, backend="cuda")
    alone.fit(X, T, epochs=3, batch_size=BATCH // 2)
    x, t = cupy.asarray(X), cupy.asarray(T)
    expected = shared.loss_and_grad(x, t)[1].get()
    found, errors = {}, []

    def work(k):
        try:
            net = MLP([13, WIDE, 3], seed=2, backend="cuda")
            net.fit(X, T, epochs=3, batch_size=BATCH // 2)
            found[k] = net.theta.get(), [shared.loss_and_grad(x, t)[1].get() for _ in range(20)]
        except Exception as error:
            errors.append(error)

    workers = [threading.Thread(target=work, args=(k,)) for k in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not errors
    for theta, gradients in found.values():
        np.testing.assert_array_equal(theta, alone.theta.get())
        for gradient in gradients:
            np.testing.assert_array_equal(gradient, expected)


@pytest.mark.skipif(not CAN_CAPTURE, reason="simulated kernels do not wait for streams")
def test_a_network_called_on_two_streams():
    """Its tables and its workspace are the same for both: what the second is asked for waits for the first."""
    net = MLP([13, WIDE, 3], seed=1, backend="cuda")
    x, t = cupy.asarray(X, np.float32), cupy.asarray(T, np.float32)
    expected = [net.loss_and_grad(k * x, t)[1].get() for k in (1, 2)]
    streams = [cupy.cuda.Stream(non_blocking=True) for _ in range(2)]
    a = cupy.ones((4096, 4096), np.float32)
    cupy.cuda.Device().synchronize()
    found = []
    for turn in range(20):
        with streams[turn % 2]:
            if turn % 2 == 0:
                a @ a  # the first is late
            found.append(net.loss_and_grad((1 + turn % 2) * x, t)[1])
    for turn, gradient in enumerate(found):
        with streams[turn % 2]:
            np.testing.assert_array_equal(gradient.get(), expected[turn % 2])


@pytest.mark.skipif(not CAN_CAPTURE, reason="the simulator is never late")
def test_a_gradient_waits_for_nothing():
    """It comes back while the device still works on what it was asked for before."""
    net = MLP([13, WIDE, 3], seed=1, backend="cuda")
    x, t = cupy.asarray(X, np.float32), cupy.asarray(T, np.float32)
    net.loss_and_grad(x, t)  # loads kernels
    a = cupy.ones((4096, 4096), np.float32)
    a @ a
    cupy.cuda.Device().synchronize()
    for _ in range(50):  # 10 ms at 700 TFLOP/s
        a @ a
    busy = cupy.cuda.get_current_stream().record()
    net.loss_and_grad(x, t)
    assert not busy.done
    busy.synchronize()
