"""Code of their own for small steps: the bits of the machine, nothing read or written beyond the arrays, and made when
it pays.
"""

from __future__ import annotations

import ctypes
import mmap
import random
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from test_random_graphs import question_of

import fastbp
from fastbp import MLP, History, Network, layers, optim
from fastbp.backends.cpu import executable, straight, straight_elements
from fastbp.backends.cpu.executable import CpuExecutable
from fastbp.backends.cpu.target import VECTOR_BYTES
from fastbp.backends.cpu.vectors import STACK_VECTORS
from fastbp.plan import plan
from fastbp.scalars import ACTIVATIONS

NEVER = 1e9
RULES = tuple(optim.OPTIMIZERS)


Made = tuple[fastbp.Network, int, int, bool]  # a network, its inputs and outputs, and whether it is taught by labels


def has_code(net: fastbp.Network, rows: int) -> bool:
    machines = [e for e in net._executables.values() if isinstance(e, CpuExecutable)]
    return any(e._code.get(rows) is not None for e in machines)


def data(rows: int, inputs: int, outputs: int, labels: bool, dtype: str = "float32") -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(7)
    x = rng.normal(size=(rows, inputs)).astype(dtype)
    return x, rng.integers(0, outputs, rows) if labels else rng.normal(size=(rows, outputs)).astype(dtype)


def mlp(shape: tuple[int, ...], loss: str, **options: Any) -> Callable[[], Made]:
    labels = loss == "cross_entropy"
    return lambda: (MLP(shape, loss=loss, seed=2, **options), shape[0], shape[-1], labels)


def fitted(
    make: Callable[[], Made], rows: int, batch: int, monkeypatch: pytest.MonkeyPatch, *, code: bool, **options: Any
) -> tuple[fastbp.Network, History]:
    """The network after some epochs, its steps done by the machine or by code of their own, and the history."""
    with monkeypatch.context() as m:
        m.setattr(executable, "COMPILE_AFTER", 0.0 if code else NEVER)
        m.setattr(executable, "ASK_AFTER", 2)
        m.setattr(executable, "FEWEST_IN_A_ROW", 1)
        net, *sizes = make()
        x, t = data(rows, *sizes, dtype=net.dtype)
        history = net.fit(x, t, epochs=12, batch_size=batch, **options)
        assert has_code(net, batch) == code
    return net, history


def assert_same(
    make: Callable[[], Made], rows: int, batch: int, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> None:
    one, first = fitted(make, rows, batch, monkeypatch, code=True, **options)
    two, second = fitted(make, rows, batch, monkeypatch, code=False, **options)
    assert one.theta.tobytes() == two.theta.tobytes()
    assert first.loss == second.loss
    assert one.training is not None
    assert two.training is not None
    for mine, other in zip(one.training.state.vectors, two.training.state.vectors, strict=True):
        assert mine.tobytes() == other.tobytes()


# ---- the same bits -------------------------------------------------------------------------------------------------

SHAPES = [
    ((3, 1), 1), ((1, 1, 3), 2), ((2, 4, 1), 4), ((35, 1), 1), ((5, 3), 7), ((2, 40), 1), ((4, 8, 3), 8), ((7, 9), 3),
    ((3, 5, 5, 2), 5), ((8, 16, 16, 4), 1), ((1, 17, 2), 2), ((2, 3), 20), ((70, 2), 2), ((60, 2, 3), 1), ((9, 9), 5),
    ((2, 33), 1),
]  # fmt: skip
# whose products are loops over memory: whole vectors and not, blocks of K, Bᵀ by dot products and turned, more rows
LONGER = [
    ((64, 64), 1), ((64, 64, 10), 1), ((784, 10), 1), ((300, 12), 1), ((30, 41, 21), 1), ((784, 30, 10), 1),
    ((20, 61, 12), 2), ((26, 9, 21, 31), 3), ((16, 33, 16), 4), ((50, 17), 7), ((12, 20, 9), 12),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "batch"), SHAPES, ids=str)
@pytest.mark.parametrize("loss", ["half_sse", "cross_entropy"])
def test_shapes(shape, batch, loss, monkeypatch):
    if loss == "cross_entropy" and not 1 < shape[-1] <= STACK_VECTORS:
        pytest.skip("one class, or more than share vectors")
    assert_same(mlp(shape, loss, activation="tanh"), 3 * batch, batch, monkeypatch, optimizer=optim.SGD(0.1))


def skip_narrow(shape: tuple[int, ...], dtype: str) -> None:
    """Rows that share vectors have no loops, so a long step has no code."""
    if min(shape[1:]) < VECTOR_BYTES // np.dtype(dtype).itemsize:
        pytest.skip("layers narrower than a vector")


@pytest.mark.parametrize(("shape", "batch"), LONGER, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_longer_steps(shape, batch, dtype, loss, monkeypatch):
    if loss == "cross_entropy" and shape[-1] > STACK_VECTORS:
        pytest.skip("more classes than share vectors")
    skip_narrow(shape, dtype)
    monkeypatch.setattr(straight, "MOST_OF_ROWS", 1 << 30)  # float64 takes twice as many vectors
    monkeypatch.setattr(straight_elements, "MOST_INSTRUCTIONS", 1 << 30)
    make = mlp(shape, loss, activation="tanh", dtype=dtype)
    assert_same(make, 3 * batch, batch, monkeypatch, optimizer=optim.SGD(0.01))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("shape", "batch"), [((64, 64), 1), ((26, 9, 21, 31), 3), ((20, 33, 12), 2)], ids=str)
def test_optimisers_of_longer_steps(rule, shape, batch, monkeypatch):
    """Gradients on the stack, or parameters and states changed as their rows are summed."""
    make = mlp(shape, "mse", activation="relu")
    skip_narrow(shape, "float32")
    assert_same(make, 3 * batch, batch, monkeypatch, optimizer=optim.OPTIMIZERS[rule](learning_rate=0.01))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_activations(activation, dtype, monkeypatch):
    assert_same(mlp((3, 5, 2), "mse", activation=activation, dtype=dtype), 12, 4, monkeypatch)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("clip", [{}, {"clip_norm": 0.5}, {"clip_value": 0.1}], ids=["", "norm", "value"])
def test_optimisers(rule, clip, monkeypatch):
    make = mlp((3, 6, 2), "cross_entropy", dtype="float64")
    optimizer = optim.OPTIMIZERS[rule](learning_rate=0.01, **clip)
    assert_same(make, 12, 4, monkeypatch, optimizer=optimizer)


@pytest.mark.parametrize("loss", ["sse", "mae", "huber"])
def test_losses(loss, monkeypatch):
    assert_same(mlp((4, 3, 2), loss), 12, 4, monkeypatch)


def test_a_schedule_and_batches_of_two_sizes(monkeypatch):
    optimizer = optim.Adam(optim.ExponentialDecay(0.1, 10, 0.9))
    assert_same(mlp((4, 6, 3), "cross_entropy"), 8 * 12 + 3, 12, monkeypatch, optimizer=optimizer)


def test_sample_weights_and_replacement(monkeypatch):
    make = mlp((4, 6, 3), "cross_entropy")
    weight = np.random.default_rng(0).uniform(0.5, 2.0, 20).astype(np.float32)
    assert_same(make, 20, 5, monkeypatch, sample_weight=weight)
    assert_same(make, 20, 5, monkeypatch, sampling="replacement")


def test_networks_beyond_a_chain(monkeypatch):
    def make() -> Made:
        x = layers.Input(4)
        h = layers.Dense(5, "tanh", l2=0.01)(x)
        return Network(x, layers.Dense(2)(layers.concat([h, x])), loss="mse", seed=1), 4, 2, False

    assert_same(make, 12, 4, monkeypatch)


def test_random_graphs(monkeypatch):
    """Every operation that the emitter knows, on what nobody thought of."""
    monkeypatch.setattr(executable, "FEWEST_IN_A_ROW", 1)
    with_code = 0
    for seed in range(40):
        rng = random.Random(seed)
        n = rng.choice((1, 2, 3, 5, 9))
        q = question_of(rng, n, rng.randint(2, 12))
        program = plan({**q.outputs, "loss": q.loss, **q.gradients})
        values = {name: value for name, value in q.recipe.values.items() if name in program.inputs}
        machine = CpuExecutable(program, "float64")
        steps = np.zeros((3, 3), np.int64)
        steps[:, 0], steps[:, 2] = n, range(3)
        if "key" in values:
            continue
        expected = machine.run_steps(values, steps)
        if not machine.settle(n):
            continue
        with_code += 1
        for name, value in machine.run_steps(values, steps).items():
            assert value.tobytes() == expected[name].tobytes(), (seed, name)
    assert with_code > 15


def test_random_networks(monkeypatch):
    """Layers that are narrower than a vector beside wider ones, gathered rows, all optimisers."""
    monkeypatch.setattr(executable, "FEWEST_IN_A_ROW", 1)
    with_code = 0
    for seed in range(30):
        rng = random.Random(seed)
        widths = [int(2 ** rng.uniform(0, 6.5)) for _ in range(rng.randint(2, 4))]
        batch, dtype = rng.randint(1, 6), rng.choice(("float32", "float64"))
        net = MLP(widths, activation=rng.choice(list(ACTIVATIONS)), loss="mse", dtype=dtype, seed=seed)
        optimizer = optim.OPTIMIZERS[rng.choice(RULES)](0.01)
        machine = net.training_step(("X", "T"), optimizer, rng.random() < 0.5)
        assert isinstance(machine, CpuExecutable)
        x, t = data(batch, widths[0], widths[-1], labels=False, dtype=dtype)
        order = np.arange(batch).reshape(-1, 1)
        given = {"X": x, "T": t, "order": np.tile(order, (3, 1)), "hyper": optimizer.hyper(np.arange(4.0))}
        values = [
            {b.name: given[b.name] if b.name in given else np.full(machine.program.shape(k, batch), 0.1, dtype)
             for k, b in enumerate(machine.program.buffers) if b.name in machine.program.inputs}
            for _ in range(2)
        ]  # fmt: skip
        for own in values:
            own["theta"] = net.theta.reshape(1, -1).copy()
        steps = np.array([[batch, 0, k] for k in range(4)])
        expected = machine.run_steps(values[0], steps)
        if not machine.settle(batch):
            continue
        with_code += 1
        found = machine.run_steps(values[1], steps)
        for name in expected:
            assert found[name].tobytes() == expected[name].tobytes(), (seed, name)
        for name, value in values[0].items():
            assert values[1][name].tobytes() == value.tobytes(), (seed, name)
    assert with_code > 15


def test_signs_of_zeros(monkeypatch):
    """The machine adds some sums to 0, so that -0 becomes 0."""
    monkeypatch.setattr(executable, "FEWEST_IN_A_ROW", 1)
    x, w = fastbp.graph.input("x", 48), fastbp.graph.param("w", (48, 3))
    for dtype, small in (("float32", 1e-30), ("float64", 1e-200)):
        machine = CpuExecutable(plan({"a": x @ w}), dtype)
        for rows in (2, 9):
            values = {"x": np.full((rows, 48), small, dtype), "w": np.full((48, 3), -small, dtype)}
            steps = np.array([[rows, 0, 0], [rows, 0, 1]])
            expected = machine.run_steps(values, steps)["a"]
            assert machine.settle(rows)
            assert machine.run_steps(values, steps)["a"].tobytes() == expected.tobytes()

    net = MLP((300, 1, 1), activation="relu", loss="mse", seed=2)
    theta = np.full((1, net.theta.size), -1.0, np.float32)
    theta[0, 300] = -0.0  # the bias of a unit that is never active: its delta is -0
    machine = net.training_step(("X", "T"), optim.SGD(0.1), False)
    assert isinstance(machine, CpuExecutable)
    for rows in (1, 2):
        values = {
            "X": np.ones((rows, 300), np.float32),
            "T": np.ones((rows, 1), np.float32),
            "hyper": np.full((2, 1), 0.1),
        }
        steps, found = np.array([[rows, 0, 0], [rows, 0, 1]]), []
        for code in (False, True):
            assert not code or machine.settle(rows)
            found.append(theta.copy())
            machine.run_steps({**values, "theta": found[-1]}, steps)
        assert found[0].tobytes() == found[1].tobytes()


def test_infinite_factors_of_a_longer_product(monkeypatch):
    """Infinities and what is no number come out as they do from the machine."""
    monkeypatch.setattr(executable, "FEWEST_IN_A_ROW", 1)
    x, w = fastbp.graph.input("x", 40), fastbp.graph.param("w", (40, 40))
    endless = fastbp.graph.constant(np.inf).broadcast_to(w.shape)
    for value in (x @ endless, endless @ w, x @ (endless * w), x @ w):
        machine = CpuExecutable(plan({"a": value.sum()}), "float64")
        values = {"x": np.ones((2, 40)), "w": np.ones((40, 40))}
        values = {name: values[name] for name in machine.program.inputs}
        steps = np.array([[2, 0, 0], [2, 0, 1]])
        expected = machine.run_steps(values, steps)["a"]
        machine.settle(2)
        assert machine.run_steps(values, steps)["a"].tobytes() == expected.tobytes()


# ---- memory --------------------------------------------------------------------------------------------------------


@pytest.fixture
def at_the_end_of_a_page() -> Callable[[np.ndarray], np.ndarray]:
    """Copies that end where memory ends that may be read or written."""
    if sys.platform not in ("linux", "darwin"):
        pytest.skip("needs mprotect")
    libc, kept = ctypes.CDLL(None, use_errno=True), []

    def copied(x: np.ndarray) -> np.ndarray:
        page = mmap.PAGESIZE
        size = -(-x.nbytes // page) * page
        memory = mmap.mmap(-1, size + page)
        kept.append(memory)
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        assert libc.mprotect(ctypes.c_void_p(start + size), ctypes.c_size_t(page), 0) == 0
        place = np.frombuffer(memory, x.dtype, x.size, size - x.nbytes).reshape(x.shape)
        place[...] = x
        return place

    return copied


@pytest.mark.parametrize("gathered", [False, True], ids=["in order", "gathered"])
@pytest.mark.parametrize(("shape", "batch"), [*SHAPES[:8], *LONGER[:8]], ids=str)
def test_nothing_beyond_the_arrays(shape, batch, gathered, at_the_end_of_a_page, monkeypatch):
    if shape in dict(LONGER):
        skip_narrow(shape, "float32")
    net = MLP(shape, activation="tanh", loss="mse", seed=2)
    machine = net.training_step(("X", "T"), optim.SGD(0.1), gathered)
    assert isinstance(machine, CpuExecutable)
    x, t = data(batch, shape[0], shape[-1], labels=False)
    order = np.zeros((3 * batch, 1), np.int64)
    order[:batch, 0] = range(batch)
    values = {"X": x, "T": t, "theta": net.theta.reshape(1, -1), "hyper": np.full((4, 1), 0.1)}
    values |= {"order": order} if gathered else {}
    steps = np.array([[batch, 0, k] for k in range(4)])
    expected = {name: value.copy() for name, value in values.items()}
    machine.run_steps(expected, steps)
    monkeypatch.setattr(executable, "FEWEST_IN_A_ROW", 1)
    assert machine.settle(batch)
    own = {name: at_the_end_of_a_page(value) for name, value in values.items()}
    machine.run_steps(own, steps)
    for name, value in own.items():
        assert value.tobytes() == expected[name].tobytes(), name


# ---- when ----------------------------------------------------------------------------------------------------------


def test_code_is_made_when_steps_have_taken_long_enough(monkeypatch):
    net = MLP((2, 3, 1), seed=0)
    x, t = data(8, 2, 1, labels=False)
    net.fit(x, t, epochs=20, batch_size=4)
    assert not has_code(net, 4)
    monkeypatch.setattr(executable, "COMPILE_AFTER", 0.02)
    for _ in range(50):
        net.fit(x, t, epochs=20_000, batch_size=4)
        if has_code(net, 4):
            return
    raise AssertionError("never")


@pytest.mark.parametrize(("shape", "batch"), [((784, 30, 10), 10), ((40, 34), 1), ((8, 16, 16, 4), 500)], ids=str)
def test_the_machine_does_what_is_large(shape, batch, monkeypatch):
    monkeypatch.setattr(executable, "COMPILE_AFTER", 0.0)
    net = MLP(shape, loss="cross_entropy", seed=0)
    x, t = data(2 * batch, shape[0], shape[-1], labels=True)
    net.fit(x, t, epochs=2 * executable.FEWEST_IN_A_ROW, batch_size=batch)
    assert not has_code(net, batch)


def test_the_stack_stays_small(monkeypatch):
    """A gradient that would take more of it than 64 KB is left to the machine."""
    for room in (straight_elements.MOST_ROOM, 2 * straight_elements.MOST_ROOM):
        monkeypatch.setattr(straight_elements, "MOST_ROOM", room)
        net = MLP((100, 100), loss="mse", seed=0, dtype="float64")
        machine = net.training_step(("X", "T"), optim.Adam(0.01), False)
        assert isinstance(machine, CpuExecutable)
        assert machine.settle(1) == (room > 80_000)


def test_what_a_step_costs_is_measured_on_the_machine():
    """The clock counts instructions, which code of its own does not have."""
    net = MLP((2, 3, 1), loss="mse", seed=0)
    machine = net.training_step(("X", "T"), optim.SGD(0.1), False)
    assert isinstance(machine, CpuExecutable)
    x, t = data(4, 2, 1, labels=False)
    values = {"X": x, "T": t, "theta": net.theta.reshape(1, -1), "hyper": np.full((1, 1), 0.1)}
    assert machine.settle(4)
    assert machine.timed_steps(values, 4, 50).min() > 0


def test_several_threads_at_once(monkeypatch):
    monkeypatch.setattr(executable, "COMPILE_AFTER", 0.0)
    net = MLP((3, 4, 2), loss="mse", seed=0)
    machine = net.training_step(("X", "T"), optim.SGD(0.1), False)
    assert isinstance(machine, CpuExecutable)
    x, t = data(4, 3, 2, labels=False)
    steps = np.array([[4, 0, 0]] * 100)

    def trained(_: int) -> bytes:
        values = {"X": x, "T": t, "theta": net.theta.reshape(1, -1).copy(), "hyper": np.full((1, 1), 0.1)}
        for _ in range(5):
            machine.run_steps(values, steps)
        return values["theta"].tobytes()

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(trained, range(12)))
    assert machine._code[4] is not None
    assert len(set(found)) == 1
