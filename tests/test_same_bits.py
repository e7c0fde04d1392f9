"""Each way in which the CPU machine does its work gives the same bits: on any number of threads, gathered or in order,
in ``fit`` or in a loop of one's own, and for a row alone or in any batch.

Every network here is made to go one of these ways, and every test asserts that it did.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from patience import attempts

import fastbp
from fastbp import MLP, graph, optim
from fastbp.backends import executable
from fastbp.backends.cpu import binding, caches, schedule, target, words
from fastbp.backends.cpu.executable import CpuExecutable
from fastbp.backends.cpu.team import team
from fastbp.plan import plan
from fastbp.training import RowOrder

RNG = np.random.default_rng(0)
RULES = tuple(optim.OPTIMIZERS)
THREADS = (1, 2, 3, 4)


@dataclass(frozen=True)
class Way:
    """A network and a batch that go one way through the machine; ``sign`` is what its schedule says then."""

    layers: tuple[int, ...]
    rows: int
    batch: int
    what: str = ""
    sign: str = ""
    activation: str = "tanh"

    def data(self, dtype: str, target: str):
        rng = np.random.default_rng(1)
        x = rng.normal(size=(self.rows, self.layers[0])).astype(dtype)
        if target.startswith("labels"):
            t = rng.integers(0, self.layers[-1], self.rows)
        else:
            t = rng.normal(size=(self.rows, self.layers[-1])).astype(dtype)
        weight = rng.uniform(0.1, 2.0, self.rows).astype(dtype) if "weighted" in target else None
        return x, t, weight

    def net(self, dtype: str, target: str, **options) -> MLP:
        losses = {"labels": "cross_entropy", "numbers": "mse", "sums": "sse"}
        loss = losses[target.partition(" ")[0]]
        return MLP(self.layers, activation=self.activation, loss=loss, dtype=dtype, seed=3, **options)

    def goes(self, lines, sign: str = "") -> bool:
        """Whether the schedule says so, and it is work for several threads."""
        return any(line.shared for line in lines) and any(
            self.what in line.what and (sign or self.sign) in line.schedule for line in lines
        )


# batches that end with a chunk that is not whole, and epochs with a batch that is not
DEPTH_FIRST = Way((13, 29, 10, 7), 3100, 1700, "depth first")
DEPTH_FIRST_GELU = Way((13, 29, 7), 3100, 1700, "depth first", activation="gelu")
MANY_CHUNKS = Way((5, 40, 3), 20_000, 11_000, "depth first", activation="relu")
PACKED = Way((130, 1100, 100), 560, 530, "matmul", "packed")
FUSED = Way((4001, 10, 3), 90, 33, "matmul Aᵀ")  # its schedule says which rule
WAYS = {"depth first": DEPTH_FIRST, "gelu": DEPTH_FIRST_GELU, "many chunks": MANY_CHUNKS, "packed": PACKED}
TARGETS = ("numbers", "labels", "numbers weighted", "labels weighted")


@pytest.fixture(params=WAYS)
def way(request):
    return WAYS[request.param]


@pytest.fixture(autouse=True)
def threads_as_before():
    before = fastbp.get_num_threads()
    yield
    fastbp.set_num_threads(before)


def assert_same_for_any_threads(run, dtype):
    """run() gives the same arrays for 1, 2, 3, 4 threads, with helpers that did work."""
    fastbp.set_num_threads(1)
    alone = run()
    assert all(np.isfinite(x).all() for x in alone)
    for threads in THREADS[1:]:
        fastbp.set_num_threads(threads)
        for _ in attempts():
            before = team(dtype).pieces_done()
            for got, expected in zip(run(), alone, strict=True):
                np.testing.assert_array_equal(got, expected)
            if sum(team(dtype).pieces_done()[1:]) > sum(before[1:]):
                break
        else:
            pytest.fail(f"no helper of {threads} threads worked")


# ---- threads -------------------------------------------------------------------------------------------------------


def test_forward_and_deltas_with_threads(way, dtype):
    x, t, _ = way.data(dtype, "numbers")
    for what in ("forward", "deltas"):
        run = executable(way.net(dtype, "numbers").program(what), "cpu", dtype)
        assert way.goes(run.bound(way.rows).lines), what

    def outputs():
        net = way.net(dtype, "numbers")  # a new one: nothing is kept of how another number of threads did it
        return [net.forward(x), *net.deltas(x, t)]

    assert_same_for_any_threads(outputs, dtype)


@pytest.mark.parametrize("target", TARGETS)
def test_gradients_with_threads(way, dtype, target):
    x, t, weight = way.data(dtype, target)
    names = ("X", "labels" if "labels" in target else "T", *["weight"] * (weight is not None))
    run = executable(way.net(dtype, target).program("gradient", names), "cpu", dtype)
    assert way.goes(run.bound(way.rows).lines)
    assert_same_for_any_threads(lambda: list(way.net(dtype, target).loss_and_grad(x, t, weight)), dtype)


@pytest.mark.parametrize("shuffle", [True, False], ids=["gathered", "in order"])
@pytest.mark.parametrize("target", TARGETS)
def test_training_with_threads(way, dtype, target, shuffle):
    x, t, weight = way.data(dtype, target)
    names = ("X", "labels" if "labels" in target else "T", *["weight"] * (weight is not None))
    depth_first = way.what == "depth first"
    if not (depth_first and shuffle and weight is not None):  # such a batch goes an instruction after the other
        run = way.net(dtype, target).training_step(names, optim.SGD(0.01), shuffle)
        assert way.goes(run.bound(way.batch).lines)

    def train():
        net = way.net(dtype, target)
        net.fit(x, t, epochs=2, batch_size=way.batch, shuffle=shuffle, optimizer=optim.SGD(0.01), sample_weight=weight)
        return [net.theta, np.array(net.history.loss)]

    assert_same_for_any_threads(train, dtype)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("way", [DEPTH_FIRST, PACKED, FUSED], ids=["depth first", "packed", "fused"])
def test_optimisers_with_threads(way, dtype, rule):
    x, t, _ = way.data(dtype, "numbers")
    optimizer = optim.OPTIMIZERS[rule](0.01)
    lines = way.net(dtype, "numbers").training_step(("X", "T"), optimizer, True).bound(way.batch).lines
    assert way.goes(lines, sign=optimizer.rule if way is FUSED else "")
    if rule == "sgd":
        assert any("sgd" in line.schedule for line in lines)

    def train():
        net = way.net(dtype, "numbers")
        net.fit(x, t, epochs=2, batch_size=way.batch, optimizer=optimizer)
        return [net.theta, *net.training.state.vectors]

    assert_same_for_any_threads(train, dtype)


# ---- rows ----------------------------------------------------------------------------------------------------------


FEW_ROWS = [(30, 300, 200, 7), (5, 40, 17, 33, 2), (3, 700, 400, 130), (70, 3, 300, 4, 60, 2, 90), (1, 1, 9)]


@pytest.mark.parametrize("layers", FEW_ROWS, ids=str)
def test_a_row_and_its_deltas_are_the_same_in_a_small_batch(layers, dtype):
    """With few rows products are made in other ways: by rows of B, by squares of Bᵀ."""
    net = MLP(layers, activation="tanh", loss="sse", dtype=dtype, seed=0)
    x, t = RNG.normal(size=(300, layers[0])), RNG.normal(size=(300, layers[-1]))
    whole, whole_deltas = net.forward(x), net.deltas(x, t)
    for n in range(1, 20):
        rows = slice(7 * n, 8 * n)
        np.testing.assert_array_equal(net.forward(x[rows]), whole[rows])
        for got, expected in zip(net.deltas(x[rows], t[rows]), whole_deltas, strict=True):
            np.testing.assert_array_equal(got, expected[rows])


@pytest.mark.parametrize(("n", "k"), [(200, 300), (17, 48), (5, 700)])
def test_a_row_times_a_transposed_matrix_is_the_same_in_any_batch(n, k, dtype):
    """Forward, also where the same weights encode and decode; only deltas of a gradient are summed in another order."""
    x, w = RNG.normal(size=(40, n)).astype(dtype), (RNG.normal(size=(n, k)) / k).astype(dtype)
    decode = fastbp.function(lambda x, w: fastbp.tanh(x @ w) @ fastbp.transpose(w))

    def loss(w, x):
        return fastbp.sum((fastbp.tanh(x @ w) @ fastbp.transpose(w) - x) ** 2)

    whole = decode(x, w)
    for rows in (1, 2, 5, 9):
        np.testing.assert_array_equal(decode(x[:rows], w), whole[:rows])
    for row in range(40):
        one = x[row : row + 1]
        assert fastbp.value_and_grad(loss)(w, one)[0] == fastbp.function(loss)(w, one)


@pytest.mark.parametrize("threads", [1, 2])
def test_deltas_of_one_row_are_dot_products(threads, dtype):
    """In a gradient with and without an update, the same."""
    net = MLP([30, 300, 200, 7], loss="mse", dtype=dtype, seed=0)
    x, t = RNG.normal(size=(1, 30)).astype(dtype), RNG.normal(size=(1, 7)).astype(dtype)
    program = net.training_step(("X", "T"), optim.SGD(0.01), False)
    found = {n: [line.schedule for line in program.bound(n).lines if "Bᵀ" in line.what] for n in (1, 2)}
    assert found == {1: ["B turned", "dot products"], 2: ["B turned", "B turned"]}  # from 7 units, and from 200
    fastbp.set_num_threads(threads)
    _, gradient = net.loss_and_grad(x, t)
    before = net.theta.copy()
    net.fit(x, t, epochs=1, batch_size=1, optimizer=optim.SGD(1.0))
    np.testing.assert_array_equal(net.theta, before - gradient)


BATCHES = (1, 2, 7, 16, 255, 256, 257, 1023, 1024, 1025, 1279, 1281, 8191, 20_000)


@pytest.mark.parametrize("activation", ["sigmoid", "gelu", "relu"])
@pytest.mark.parametrize("layers", [(4, 32, 16, 4), (1, 1), (17, 3), (50, 64, 2), (60, 4, 70, 3)], ids=str)
def test_a_row_is_the_same_alone_and_depth_first(layers, activation, dtype):
    """Its output and, where the loss is a sum over the rows, its deltas."""
    net = MLP(layers, activation=activation, loss="sse", dtype=dtype, seed=0)
    x, t = RNG.normal(size=(20_000, layers[0])), RNG.normal(size=(20_000, layers[-1]))
    run = executable(net.program("forward"), "cpu", dtype)
    assert [any(line.what == "depth first" for line in run.bound(n).lines) for n in (1, 20_000)] == [False, True]
    fastbp.set_num_threads(2)
    whole, whole_deltas = net.forward(x), net.deltas(x, t)
    for n in BATCHES:
        for start in {0, 20_000 - n, int(RNG.integers(0, 20_001 - n))}:
            rows = slice(start, start + n)
            np.testing.assert_array_equal(net.forward(x[rows]), whole[rows])
            for got, expected in zip(net.deltas(x[rows], t[rows]), whole_deltas, strict=True):
                np.testing.assert_array_equal(got, expected[rows])


@pytest.mark.parametrize("target", ["numbers", "labels"])
@pytest.mark.parametrize("way", [DEPTH_FIRST, PACKED], ids=["depth first", "packed"])
def test_gathered_rows_are_rows(way, dtype, target):
    """A shuffled epoch of one batch gives what the same rows give in that order."""
    x, t, _ = way.data(dtype, target)
    options = {"epochs": 1, "batch_size": way.rows, "optimizer": optim.Adam(0.01)}
    shuffled, ordered = way.net(dtype, target), way.net(dtype, target)
    shuffled.fit(x, t, **options)
    order = RowOrder(way.rows, shuffled.seed, "epoch").epochs(0, 1)[0]
    ordered.fit(x[order], t[order], shuffle=False, **options)
    np.testing.assert_array_equal(shuffled.theta, ordered.theta)
    assert shuffled.history.loss == ordered.history.loss


# ---- a loop of one's own -------------------------------------------------------------------------------------------


def by_hand(net, x, t, optimizer, batch, epochs, weight=None, order=None):
    state = optimizer.init(net.theta)
    for e in range(epochs):
        for start in range(0, len(x), batch):
            rows = slice(start, start + batch) if order is None else order[e][start : start + batch]
            _, gradient = net.loss_and_grad(x[rows], t[rows], None if weight is None else weight[rows])
            optimizer.update(net.theta, gradient, state, backend=net.backend)
    return state


def assert_same(net, other, state):
    assert np.isfinite(net.theta).all()
    np.testing.assert_array_equal(net.theta, other.theta)
    for one, another in zip(net.training.state.vectors, state.vectors, strict=True):
        np.testing.assert_array_equal(one, another)


@pytest.mark.parametrize("clipped", [False, True], ids=["", "clipped"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("way", [DEPTH_FIRST, PACKED, FUSED], ids=["depth first", "packed", "fused"])
def test_fit_is_the_loop(way, dtype, rule, clipped):
    """A clipped gradient is no longer updated where it is made."""
    x, t, _ = way.data(dtype, "numbers")
    optimizer = optim.OPTIMIZERS[rule](0.01, clip_norm=0.1 if clipped else None)
    net, other = way.net(dtype, "numbers"), way.net(dtype, "numbers")
    if rule == "sgd":
        lines = net.training_step(("X", "T"), optimizer, False).bound(way.batch).lines
        assert any("sgd" in line.schedule for line in lines) != clipped
    net.fit(x, t, epochs=2, batch_size=way.batch, optimizer=optimizer, shuffle=False)
    assert_same(net, other, by_hand(other, x, t, optimizer, way.batch, 2))


@pytest.mark.parametrize("target", TARGETS)
def test_fit_in_order_is_the_loop(way, dtype, target):
    x, t, weight = way.data(dtype, target)
    net, other, optimizer = way.net(dtype, target), way.net(dtype, target), optim.SGD(0.02)
    net.fit(x, t, epochs=2, batch_size=way.batch, optimizer=optimizer, shuffle=False, sample_weight=weight)
    assert_same(net, other, by_hand(other, x, t, optimizer, way.batch, 2, weight))


@pytest.mark.parametrize("sampling", ["epoch", "replacement"])
@pytest.mark.parametrize("target", ["numbers", "labels", "sums weighted"])
def test_fit_gathered_is_the_loop(way, dtype, target, sampling):
    """... also with weights, where the loss is not divided by their sum."""
    x, t, weight = way.data(dtype, target)
    net, other = way.net(dtype, target), way.net(dtype, target)
    optimizer = optim.Momentum(1e-6 if target.startswith("sums") else 0.02)
    net.fit(x, t, epochs=2, batch_size=way.batch, optimizer=optimizer, sampling=sampling, sample_weight=weight)
    order = RowOrder(way.rows, net.seed, sampling).epochs(0, 2)
    assert_same(net, other, by_hand(other, x, t, optimizer, way.batch, 2, weight, order))


# ---- networks that nobody chose ------------------------------------------------------------------------------------

WIDTHS = st.lists(st.one_of(st.integers(1, 130), st.sampled_from([1, 2, 24, 25, 48, 49])), min_size=2, max_size=4)
KINDS = {
    "layers": WIDTHS,
    "n": st.integers(1, 400),
    "activation": st.sampled_from(["tanh", "gelu", "relu"]),
    "dtype": st.sampled_from(["float32", "float64"]),
}


def random_net(layers, n, activation, dtype, backend="cpu"):
    rng = np.random.default_rng(n)
    x, t = (rng.normal(size=(n, width)).astype(dtype) for width in (layers[0], layers[-1]))
    return MLP(layers, activation=activation, loss="half_sse", dtype=dtype, backend=backend, seed=1), x, t


@pytest.mark.parametrize("rule", RULES)
@given(batch=st.integers(1, 400), shuffle=st.booleans(), **KINDS)
@example(batch=8, shuffle=False, layers=[60, 1], n=8, activation="tanh", dtype="float64")
@example(batch=8, shuffle=True, layers=[3, 100, 1, 100], n=20, activation="tanh", dtype="float32")
@settings(max_examples=25, deadline=None)
def test_fit_of_a_random_network_is_the_loop(rule, batch, shuffle, layers, n, activation, dtype):
    """... to the last bit, and the same loop on the array machine nearly so."""
    batch = min(max(batch, n // 5), n)
    kind = optim.OPTIMIZERS[rule]
    optimizer = kind(1e-3)
    net, x, t = random_net(layers, n, activation, dtype)
    other, reference = (random_net(layers, n, activation, dtype, name)[0] for name in ("cpu", "numpy"))
    net.fit(x, t, epochs=1, batch_size=batch, optimizer=optimizer, shuffle=shuffle)
    order = RowOrder(n, net.seed, "epoch").epochs(0, 1) if shuffle else None
    assert_same(net, other, by_hand(other, x, t, optimizer, batch, 1, order=order))
    if dtype == "float64" and rule in ("sgd", "momentum", "nesterov"):  # the others divide by what may be nearly 0
        by_hand(reference, x, t, optimizer, batch, 1, order=order)
        np.testing.assert_allclose(net.theta, reference.theta, rtol=1e-10, atol=1e-12)


@given(start=st.floats(0, 1), length=st.integers(1, 40), **KINDS)
@settings(max_examples=150, deadline=None)
def test_a_row_of_a_random_network_is_the_same_in_any_batch(start, length, layers, n, activation, dtype):
    net, x, _ = random_net(layers, n, activation, dtype)
    first = int(start * (n - 1))
    rows = slice(first, first + length)
    np.testing.assert_array_equal(net.forward(x[rows]), net.forward(x)[rows])


# ---- caches --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(1 << 10, 16 << 10), (48 << 10, 2 << 20), (1 << 20, 1 << 30)], ids=str)
@pytest.mark.parametrize("rule", ["sgd", "adam"])
@pytest.mark.parametrize(
    "way", [DEPTH_FIRST, PACKED, FUSED, Way((64, 70, 30), 600, 600)], ids=["depth first", "packed", "fused", "plain"]
)
def test_results_do_not_depend_on_the_caches(way, dtype, rule, sizes, monkeypatch):
    """They decide how products are blocked and which updates are done in them, and no more."""
    x, t, _ = way.data(dtype, "numbers")

    def train():
        net = way.net(dtype, "numbers")
        net.fit(x, t, epochs=2, batch_size=way.batch, optimizer=optim.OPTIMIZERS[rule](0.01))
        return net.theta, net.forward(x), net.loss_and_grad(x, t)[1]

    expected = train()
    monkeypatch.setattr(caches, "first_level", lambda: sizes[0])
    monkeypatch.setattr(caches, "second_level", lambda: sizes[1])
    for got, one in zip(train(), expected, strict=True):
        np.testing.assert_array_equal(got, one)


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 7, 10])
def test_parameters_are_updated_row_by_row_to_the_same_bits(batch, dtype, monkeypatch):
    """In the order of memory, or a tile after the other."""
    rng = np.random.default_rng(0)
    x, t = rng.normal(size=(3 * batch, 401)).astype(dtype), rng.normal(size=(3 * batch, 3)).astype(dtype)

    def train():
        net = MLP([401, 701, 3], activation="tanh", loss="mse", dtype=dtype, seed=0)
        net.fit(x, t, epochs=2, batch_size=batch, optimizer=optim.SGD(0.01), shuffle=False)
        lines = net.training_step(("X", "T"), optim.SGD(0.01), False).bound(batch).lines
        return net.theta, any("row by row" in line.schedule and "sgd" in line.schedule for line in lines)

    found = []
    for most in (words.MOST_SUMMANDS, 0):
        monkeypatch.setattr(words, "MOST_SUMMANDS", most)
        monkeypatch.setattr(words, "MOST_UPDATED", words.MOST_UPDATED * bool(most))
        found.append(train())
    assert [by_rows for _, by_rows in found] == [True, False]
    np.testing.assert_array_equal(found[0][0], found[1][0])


@pytest.mark.parametrize("rule", ["sgd", "momentum"])
@pytest.mark.parametrize("inputs", [2, 3, 4])
def test_gradients_of_few_rows_are_the_same_by_rows_and_by_tiles(inputs, rule, dtype, monkeypatch):
    """Of a layer with one unit, of one with one input, and of one with a few, with all of their biases."""
    monkeypatch.setattr(schedule, "FEWEST_OPERATIONS", binding.NEVER)
    rng = np.random.default_rng(0)
    x, t = rng.normal(size=(200, inputs)).astype(dtype), rng.normal(size=(200, 301)).astype(dtype)
    found, by_rows = [], []
    for change in (False, True):
        for limits in ("SUMMED_FROM", "BY_ROWS_FROM") if change else ():
            monkeypatch.setattr(binding, limits, dict.fromkeys(range(1, 5), binding.NEVER))
        net = MLP([inputs, 259, 1, 301], activation="tanh", loss="mse", dtype=dtype, seed=0)
        net.fit(x, t, epochs=2, batch_size=100, optimizer=optim.OPTIMIZERS[rule](0.01), shuffle=False)
        lines = net.training_step(("X", "T"), optim.OPTIMIZERS[rule](0.01), False).bound(100).lines
        found.append(net.theta)
        by_rows.append(sum("matmul Aᵀ" in line.what and "row by row" in line.schedule for line in lines))
    assert by_rows == [3, 0]
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("activation", ["identity", "tanh", "gelu"])
@pytest.mark.parametrize("inputs", [1, 4, 10, 23])
def test_rows_of_few_summands_are_the_same_by_rows_and_by_tiles(inputs, activation, dtype, monkeypatch):
    x, t = RNG.normal(size=(500, inputs)), RNG.normal(size=(500, 100))
    found, by_rows = [], []
    for change in (False, True):
        if change:
            monkeypatch.setattr(binding, "FEW_SUMMANDS_FROM", ())
            monkeypatch.setattr(binding, "WIDE_SUMMANDS", 0)
        for threads in (1, 2):
            fastbp.set_num_threads(threads)
            net = MLP([inputs, 701, 100], activation=activation, loss="mse", dtype=dtype, seed=0)
            first = net.training_step(("X", "T"), optim.SGD(), False).bound(500).lines[0]
            by_rows.append("row by row" in first.schedule)
            net.fit(x, t, epochs=2, batch_size=500, optimizer=optim.SGD(0.01))
            found.append((net.forward(x), net.theta))
    assert by_rows == [True, True, False, False]
    for outputs, theta in found[1:]:
        np.testing.assert_array_equal(outputs, found[0][0])
        np.testing.assert_array_equal(theta, found[0][1])


@pytest.mark.parametrize(("inputs", "panels"), [(11, 24), (16, 24), (17, 32), (28, 32)])
def test_rows_of_few_summands_are_the_same_depth_first(inputs, panels, dtype, monkeypatch):
    x, t = RNG.normal(size=(1100, inputs)), RNG.normal(size=(1100, 5))
    panel = target.TILE_VECTORS * target.VECTOR_BYTES // np.dtype(dtype).itemsize
    found, by_rows = [], []
    for limits in (binding.FEW_IN_CHUNK, ()):
        monkeypatch.setattr(binding, "FEW_IN_CHUNK", limits)
        net = MLP([inputs, panels * panel + 1, 5], activation="tanh", loss="mse", dtype=dtype, seed=0)
        lines = net.training_step(("X", "T"), optim.SGD(), False).bound(1100).lines
        by_rows.append(sum(line.inside and "row by row" in line.schedule for line in lines))
        net.fit(x, t, epochs=2, batch_size=1100, optimizer=optim.SGD(0.01))
        found.append((net.forward(x), net.forward(x[:1]), net.theta))
    assert by_rows == [int(target.NARROW), 0]
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(found[0][0][:1], found[0][1])


ALWAYS = {
    "FAR": -1,
    **dict.fromkeys(("PACKED_K", "SHORT_PACKED_K", "PACKED_ROWS", "PACKED_COLUMNS"), 1),
    **dict.fromkeys(("COPIED_FARTHEST", "COPIED_FAR", "COPIED_NEAR", "COPIED_FOR_SUMS", "COPIED_WITH_A"), 1),
    **dict.fromkeys(("MOST_TURNED", "SHORT_TURNED"), 0),
    "FEW_SUMMANDS_FROM": (),
}
NEVER = dict.fromkeys(("FAR", "PACKED_K", "SHORT_PACKED_K"), 1 << 40)


@pytest.mark.parametrize("k", [1, 3, 4, 7, 32, 131, 515])
@pytest.mark.parametrize(("m", "n"), [(6, 32), (20, 17), (97, 128), (200, 50), (40, 300)])
@pytest.mark.parametrize("turned", [False, True], ids=["B", "Bᵀ"])
@pytest.mark.parametrize("transposed", [False, True], ids=["A", "Aᵀ"])
def test_a_product_does_not_depend_on_what_was_copied(transposed, turned, m, n, k, dtype, monkeypatch):
    """Loops that are unrolled for copied operands, and those for any others, with every number of steps left over."""
    rng = np.random.default_rng(k)
    a, b = rng.normal(size=(k, m) if transposed else (m, k)), rng.normal(size=(n, k) if turned else (k, n))
    x = graph.param("x", a.shape) if transposed else graph.input("x", k)
    program = graph.compile(x.matmul(graph.param("w", b.shape), ta=transposed, tb=turned), dtype=dtype).program
    values = {"x": a.astype(dtype), "w": b.astype(dtype)}
    found, copied = [], []
    for settings_, stay in ((NEVER, 1 << 40), (ALWAYS, 0)):
        for name, value in settings_.items():
            monkeypatch.setattr(binding, name, value)
        monkeypatch.setattr(caches, "rows_that_stay", lambda level, stride, stay=stay: stay)
        monkeypatch.setattr(caches, "second_level", lambda stay=stay: max(stay, 1 << 19))
        run = CpuExecutable(program, dtype)
        rows = k if transposed else m
        (out,) = run.run(values, rows).values()
        found.append(out.tobytes())
        copied.append("packed" in " ".join(line.schedule for line in run.bound(rows).lines))
    assert found[0] == found[1]
    np.testing.assert_allclose(
        np.frombuffer(found[0], dtype).reshape(m, n), (a.T if transposed else a) @ (b.T if turned else b),
        rtol=0, atol=k * 4e-6 if dtype == "float32" else 1e-11,
    )  # fmt: skip
    assert not copied[0] or turned
    assert copied[1] or min(k, n) == 1


def test_one_summand_is_the_same_in_few_columns_and_many(dtype):
    """Signs of zeros, infinities and NaN too: products with K = 1 go row by row where there are several panels."""
    x = np.array([[0.0], [-0.0], [-1.5], [np.inf], [np.nan]], dtype)
    w = np.resize(np.array([0.0, -0.0, 2.5, -np.inf, 1e-40, -3.0, 7.0], dtype), (1, 97))
    x = np.resize(x, (600, 1))
    product = fastbp.function(lambda x, w: x @ w)
    with np.errstate(invalid="ignore"):
        few = [product(x, np.ascontiguousarray(w[:, j : j + 8])) for j in range(0, 97, 8)]
    np.testing.assert_array_equal(product(x, w).view(f"i{x.itemsize}"), np.hstack(few).view(f"i{x.itemsize}"))


@pytest.mark.parametrize("columns", [1, 2, 7, 8, 9, 20, 31, 32, 33])
def test_a_row_of_a_softmax_is_the_same_alone_and_among_many(columns, dtype):
    """Up to two rows are done one by one, more with a row in each lane."""
    rng = np.random.default_rng(columns)
    values = 3 * rng.normal(size=(11, columns))
    for row, special in enumerate((np.inf, -np.inf, np.nan, -0.0, 1e30, -1e30)):
        values[row, rng.integers(columns)] = special
    values[6] = -np.inf
    values = values.astype(dtype)
    x = graph.input("x", columns)
    loss = (x.log_softmax() * x).sum()
    outputs = {"p": x.softmax(), "l": x.log_softmax(), "s": x.logsumexp(axis=1), "g": graph.gradients(loss, [x])[0]}
    machine = CpuExecutable(plan(outputs), dtype)
    many = machine.run({"x": values}, 11)
    for first, last in ((0, 1), (3, 5), (5, 6), (6, 7), (9, 11)):
        few = machine.run({"x": values[first:last]}, last - first)
        for name in outputs:
            np.testing.assert_array_equal(few[name], many[name][first:last])
