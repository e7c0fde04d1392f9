"""Depth first: which part of a Program can go a chunk of rows at a time, in which chunks, and that this changes nothing
but the order of sums; the sizes of caches, on which blocking depends.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastbp import MLP, backends, graph, optim
from fastbp.backends.cpu import caches, schedule, words
from fastbp.backends.cpu.executable import CpuExecutable
from fastbp.backends.cpu.schedule import Chunks, chunks_for
from fastbp.backends.division import divide
from fastbp.checks import relative_error
from fastbp.losses import LOSSES
from fastbp.plan import plan
from fastbp.scalars import ACTIVATIONS

LAYERS = (6, 12, 3)
NET = MLP(LAYERS, activation="tanh", seed=0)
BY_SUM = MLP(LAYERS, activation="tanh", loss="sse", seed=0)
CLASSIFIER = MLP(LAYERS, loss="cross_entropy", seed=0)
RNG = np.random.default_rng(0)


def step(net, batch=("X", "T"), optimizer=None, gathered=True):
    return net.training_step(batch, optimizer or optim.SGD(), gathered).program


def goes_depth_first(program, n, dtype="float64"):
    """Whether the program goes depth first for n rows."""
    return any(line.what == "depth first" for line in CpuExecutable(program, dtype).bound(n).lines)


# ---- divide --------------------------------------------------------------------------------------------------------

X, W = graph.input("x", 5), graph.param("w", (5, 3))
XW = X @ W
SMALL = W.matmul(W, ta=True)  # (3, 3), of parameters alone
DW = X.exp().matmul(XW, ta=True)  # (5, 3), a sum over rows
VALUES = {"x": RNG.normal(size=(9001, 5)), "w": RNG.normal(size=(5, 3))}
# graphs of x (n, 5) and w (5, 3) that can be divided: outputs, and the number of instructions of head, body, tail
DIVIDED = {
    "elementwise": ({"a": X.exp()}, (0, 1, 0)),
    "rows alone": ({"a": XW.tanh(), "p": XW.softmax(), "r": X.sum(axis=1)}, (0, 4, 0)),
    "several outputs": ({"a": XW.tanh(), "s": XW.sum(axis=0), "w2": W * 2.0}, (1, 2, 0)),
    "a sum of what is computed": ({"s": XW.square().sum(axis=0)}, (0, 2, 0)),
    "sums of all kinds": ({"a": XW.sum(), "b": XW.sum(axis=0), "c": XW.sum(axis=1), "d": DW}, (0, 5, 0)),
    "before": ({"a": X @ W.tanh(), "m": (XW @ SMALL).sum(axis=0)}, (2, 4, 0)),
    "after": ({"d": DW, "e": DW.tanh() * 2.0, "n": DW.square().sum()}, (0, 3, 1)),
    "a mean of the input, before": ({"c": (X - X.mean(axis=0)) @ W}, (2, 2, 0)),
    "a sum that two read": ({"s": XW.sum(axis=0), "t": XW.sum(axis=0) * 2.0}, (0, 2, 1)),
    "products with rows only": ({"g": X.exp().matmul(X.square(), ta=True)}, (0, 2, 0)),
}
# ... and that cannot
WHOLE = {
    "transposed": {"t": X.T, "a": XW},
    "a product with a transposed input": {"t": X.T @ XW},
    "rows with rows": {"a": (X.matmul(X, tb=True) @ X).sum(axis=1)},
    "rows that need a sum": {"c": XW - XW.mean(axis=0)},
    "rows that need a sum of sums": {"c": X.exp() / X.exp().sum()},
    "a sum that needs a sum": {"v": (XW - XW.mean(axis=0)).square().sum(axis=0)},
    "a product with a sum": {"y": X @ DW},
    "a product with a part of sums": {"y": X @ graph.view(graph.pack([DW]), 0, 5, 3)},
    "the input with a part of sums": {"y": (X * graph.view(graph.pack([X.exp().sum(axis=0)]), 0, 1, 5)).sum(axis=0)},
    "sums of inputs alone": {"s": X.sum(axis=0), "m": X.mean(), "g": X.matmul(X, ta=True)},
    "parameters alone": {"w2": W * 2.0},
}


@pytest.mark.parametrize("name", DIVIDED)
def test_divide(name):
    outputs, sizes = DIVIDED[name]
    program = plan(outputs)
    division = divide(program)
    assert division is not None
    assert tuple(map(len, (division.head, division.body, division.tail))) == sizes
    assert_sound(program, division)


@pytest.mark.parametrize("name", WHOLE)
def test_divide_refuses(name):
    """A part of a buffer that a sum fills depends on that sum, too."""
    assert divide(plan(WHOLE[name])) is None


PROGRAMS = {
    "forward": NET.program("forward"),
    "logits": NET.program("logits"),
    "loss": NET.program("loss"),
    "deltas": NET.program("deltas"),
    "gradient": NET.program("gradient"),
    "weighted gradient": NET.program("gradient", ("X", "T", "weight")),
    "labels": CLASSIFIER.program("gradient", ("X", "labels")),
    "step": step(NET, gathered=False),
    "gathered step": step(NET),
    "weighted step": step(NET, ("X", "T", "weight"), gathered=False),
    "gathered labels": step(CLASSIFIER, ("X", "labels")),
    "clipped step": step(NET, optimizer=optim.Adam(clip_norm=1.0, clip_value=0.1)),
    "gathered sum with weights": step(BY_SUM, ("X", "T", "weight")),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_networks_can_be_divided(name):
    """... with every gradient among the sums, and updates at the end."""
    program = PROGRAMS[name]
    division = divide(program)
    assert division is not None
    assert_sound(program, division)
    shapes = sorted(program.shape(b, 99) for b in division.sums)
    gradients = [(1, 3), (1, 12), (6, 12), (12, 3)]
    expected = {"forward": [], "logits": [], "deltas": [], "loss": [(1, 1)]}.get(name, [(1, 1), *gradients])
    assert shapes == expected
    assert all(i in division.tail for i in program.instructions if i.op == "update")
    assert all(i in division.body for i in program.instructions if i.op == "gather")


def assert_sound(program, division):
    """Every instruction stands in one part, in order, after what it reads; no part has what it must not have."""
    parts = (division.head, division.body, division.tail)
    together = [i for part in parts for i in part]
    assert sorted(map(program.instructions.index, together)) == list(range(len(program.instructions)))
    for part in parts:
        numbers = [program.instructions.index(i) for i in part]
        assert numbers == sorted(numbers)
    # what an instruction changes is seen by all later readers, and by none that comes earlier in the program
    made_at = {b: k for k, i in enumerate(together) for b in touched(program, i.outs)}
    for k, i in enumerate(together):
        for b in touched(program, i.ins):
            makers = [m for m in program.instructions[: program.instructions.index(i)] if b in touched(program, m.outs)]
            assert not makers or made_at[b] < k or i.op == "update"
    with_rows = {b for b, buffer in enumerate(program.buffers) if buffer.shape[0].per_row}
    outs = {b for i in division.body for b in i.outs}
    assert division.rows == {b for b in outs & with_rows if program.buffers[b].kind == "temp"}
    assert set(division.sums) == outs - with_rows
    assert not with_rows & {b for i in (*division.head, *division.tail) for b in i.outs}
    assert not division.rows & {b for i in (*division.head, *division.tail) for b in i.ins}
    assert not set(division.sums) & {b for i in (*division.head, *division.body) for b in i.ins}


def touched(program, indices):
    """Buffers by their base, since a part changes the whole."""
    return {b if program.buffers[b].base is None else program.buffers[b].base for b in indices}


def test_the_sum_of_gathered_weights_is_computed_ahead():
    """All rows need it, so the weights are gathered once more."""
    program = step(NET, ("X", "T", "weight"))
    found = divide(program)
    assert [program.buffers[b].name for b in found.ahead] == ["weight.batch"]
    assert [i.op for i in found.head[:2]] == ["gather", "chain"]
    assert found.head[0] in found.body
    assert divide(step(NET, ("X", "T", "weight"), gathered=False)).ahead == frozenset()


# ---- chunks --------------------------------------------------------------------------------------------------------


def chunks(layers, n, what="gradient"):
    program = MLP(layers, seed=0).program(what)
    return chunks_for(program, divide(program), n)


@pytest.mark.parametrize("n", [0, 1, 31])
def test_few_rows_are_not_divided(n):
    assert chunks((2, 400, 1), n) is None


@pytest.mark.parametrize(
    ("layers", "n", "rows"),
    [((2, 400, 1), 32, 16)]
    + [((20, 50, 20, 1), n, rows) for n, rows in ((100, 56), (128, 64), (200, 72), (256, 64), (700, 176))],
)
def test_chunks_of_few_rows(layers, n, rows):
    """Two to four pieces, of nearly as many rows each."""
    assert chunks(layers, n) == Chunks(rows, rows)


@pytest.mark.parametrize(
    ("layers", "n"),
    [((20, 50), 200), ((200, 150, 10, 10), 200), ((2, 4, 1), 200), ((784, 16, 10), 64)],
    ids=["one layer", "heavy", "little work", "more to exchange"],
)
def test_few_rows_of_others_are_not_divided(layers, n):
    assert chunks(layers, n) is None
    assert chunks((784, 16, 10), 128) is not None
    assert chunks((200, 150, 10, 10), 1000) is not None


@pytest.mark.parametrize(
    ("n", "piece"),
    [(1024, 256), (1025, 256), (8192, 256), (8193, 512), (16_384, 512), (16_385, 768), (10**6, 31_488), (10**9, None)],
)
def test_chunks_of_narrow_networks(n, piece):
    found = chunks(LAYERS, n)
    assert found.rows == 256
    assert piece is None or found == Chunks(256, piece)
    assert found.piece % found.rows == 0
    assert -(-n // found.piece) <= schedule.LIGHT.pieces


@pytest.mark.parametrize(
    ("layers", "rows"),
    # 32,000 elements of forward products
    [
        ((64, 64, 64, 64), 160), ((9, 100, 100, 100, 9), 96), ((8, 1500, 8), 32), ((1, 4000, 1), 32),
        ((256, 64, 3), 256), ((8, 1600, 8), 64), ((256, 128, 10), 224),
    ],
)  # fmt: skip
def test_chunks_shrink_with_the_width(layers, rows):
    found = chunks(layers, 10**5)
    assert found.rows == rows
    assert found.piece % rows == 0
    assert chunks(layers, 4 * rows).rows == rows
    fewer = chunks(layers, 4 * rows - 1)
    assert fewer is None or (fewer.rows == fewer.piece and -(-(4 * rows - 1) // fewer.piece) in (2, 3, 4))


@pytest.mark.parametrize(
    ("hidden", "limits"), [(1535, "LIGHT"), (1536, "LIGHT"), (1537, "HEAVY"), (4096, "HEAVY"), (4097, None)]
)
def test_wide_networks_are_not_divided(hidden, limits):
    """Both layers' 8 hidden weights are at most 24,576, or 65,536: then there are fewer, larger pieces."""
    found = chunks((8, hidden, 8), 10**5)
    if limits is None:
        assert found is None
        return
    limits = getattr(schedule, limits)
    assert found.rows == limits.rows
    assert limits.pieces // 2 < -(-(10**5) // found.piece) <= limits.pieces


@pytest.mark.parametrize("n", [700, 1024, 5000, 10**5])
def test_chunks_depend_on_products_alone(n):
    """So a gradient has the same bits alone and inside any step."""
    found = {name: chunks_for(PROGRAMS[name], divide(PROGRAMS[name]), n) for name in PROGRAMS}
    with_gradient = {found[name] for name in PROGRAMS if name not in ("forward", "logits", "loss", "deltas")}
    assert len(with_gradient) == 1
    assert None not in with_gradient


def test_no_chunks_without_products():
    program = plan({"a": X.exp(), "s": X.square().sum(axis=0)})
    assert chunks_for(program, divide(program), 10**5) is None


@pytest.mark.parametrize("n", [1, 1000, 1024, 5000])
def test_chunks_of_products_that_are_sums_only(n):
    """No product has rows, so no width limits the chunk."""
    program = plan(DIVIDED["products with rows only"][0])
    found = chunks_for(program, divide(program), n)
    assert found is None or (found.rows <= schedule.MOST_ROWS and found.piece % found.rows == 0)


# ---- results -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 1023, 1024, 1025, 2222, 9001])
@pytest.mark.parametrize("name", [*DIVIDED, *WHOLE])
def test_graphs_are_those_of_the_array_machine(name, n, dtype):
    program = plan(DIVIDED[name][0] if name in DIVIDED else WHOLE[name])
    n = min(n, 1025) if name == "rows with rows" else n  # a matrix of n by n elements
    values = {"x": VALUES["x"][:n].astype(dtype), "w": VALUES["w"].astype(dtype)}
    expected = backends.executable(program, "numpy", "float64").run({k: v.astype(float) for k, v in values.items()}, n)
    run = backends.executable(program, "cpu", dtype)
    for _ in range(2):  # memory of the first run is used again
        for key, value in run.run(values, n).items():
            assert relative_error(value, expected[key], 1e-3) < (1e-12 if dtype == "float64" else 2e-5), key


@pytest.mark.parametrize(("d", "before"), [(1, 33), (3, 33), (300, 34), (1500, 34)])
def test_sums_of_a_last_chunk_of_one_row(d, before, dtype):
    """... are added to those of the chunks before it in its piece."""
    x, w = graph.input("x", 2), graph.param("w", (2, d))
    y = ((x @ w) * 2.0).tanh()
    outputs = {"rows": y.sum(axis=0), "all": y.sum(), "mean": (y * y).mean(axis=0), "columns": y.sum(axis=1)}
    program = plan(outputs)
    chunk = chunks_for(program, divide(program), 10**5).rows
    n = before * chunk + 1
    found = chunks_for(program, divide(program), n)
    assert found.rows == chunk
    assert n % found.piece == chunk + 1  # the last piece has a chunk before the one row
    values = {"x": RNG.normal(size=(n, 2)), "w": RNG.normal(size=(2, d))}
    expected = backends.executable(program, "numpy", "float64").run(values, n)
    got = backends.executable(program, "cpu", dtype).run({k: v.astype(dtype) for k, v in values.items()}, n)
    terms = 2.0 * np.abs(values["x"]) @ np.abs(values["w"])
    sizes = {"rows": terms.sum(0), "all": terms.sum(), "mean": terms.mean(0), "columns": terms.sum(1)}
    for name, value in expected.items():  # an error may be as large as the terms make it
        limit = (3e-7 if dtype == "float32" else 5e-15) * sizes[name].reshape(np.shape(value))
        assert np.all(np.abs(got[name] - value) <= limit), (name, np.max(np.abs(got[name] - value) / limit))


def random_case(seed, layers, n, activation, loss, kind, reduction):
    """A network with biases that are not 0, and its data."""
    rng = np.random.default_rng(seed)
    labels = loss == "cross_entropy" and kind != "numbers"
    options = {"activation": activation, "loss": loss, "reduction": reduction, "dtype": "float64", "seed": seed}
    x = rng.normal(size=(n, layers[0]))
    if labels:
        t = rng.integers(0, layers[-1], n)
    elif loss == "cross_entropy":
        t = rng.dirichlet(np.ones(layers[-1]), n)
    else:
        t = rng.random((n, layers[-1]))
    weight = rng.uniform(0.1, 2.0, n) if kind == "weighted" else None
    nets = [MLP(layers, backend=name, **options) for name in ("cpu", "numpy")]
    nets[1].theta = nets[0].theta = nets[0].theta + 0.1 * rng.normal(size=nets[0].theta.shape)
    return nets, (x, t, weight)


CASES = {
    "seed": st.integers(0, 10**6),
    "layers": st.lists(st.integers(1, 70), min_size=2, max_size=6),
    "n": st.integers(1, 3000),
    "activation": st.sampled_from(list(ACTIVATIONS)),
    "loss": st.sampled_from(list(LOSSES)),
    "kind": st.sampled_from(["labels", "numbers", "weighted"]),
    "reduction": st.sampled_from(["mean", "sum"]),
}


# what to set in schedule.py, so that all of these go depth first: rows of a chunk and of a piece
def everywhere(rows=32, pieces=32, **others):
    return {
        "FEWEST_CHUNKS": 0, "LIGHT": replace(schedule.LIGHT, parameters=10**9, rows=rows, pieces=pieces), **others
    }  # fmt: skip


SIZES = {
    "usual": {},
    "16 rows": everywhere(MOST_ROWS=16),
    "single rows": everywhere(MOST_ROWS=1, rows=1),
    "7 rows, 3 pieces": everywhere(MOST_ROWS=7, rows=1, pieces=3),
    "few elements, one piece": everywhere(CHUNK_ELEMENTS=2000, rows=1, pieces=1),
}


@pytest.mark.parametrize("size", SIZES)
@given(**CASES)
@settings(max_examples=40, deadline=None)
def test_gradients_of_random_networks(size, seed, layers, n, activation, loss, kind, reduction):
    """... are the array machine's, whatever the chunks."""
    if loss == "cross_entropy":
        layers = [*layers[:-1], max(2, layers[-1])]
    (net, reference), batch = random_case(seed, layers, n, activation, loss, kind, reduction)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SIZES[size].items():
            patch.setattr(schedule, name, value)
        if size != "usual":
            names = ("X", "labels" if batch[1].ndim == 1 else "T", *["weight"] * (kind == "weighted"))
            assert goes_depth_first(net.program("gradient", names), n)
        value, gradient = net.loss_and_grad(*batch)
        outputs = net.forward(batch[0])
    expected_value, expected = reference.loss_and_grad(*batch)
    assert relative_error(value, expected_value) <= 1e-12
    assert relative_error(gradient, expected) <= 1e-12
    assert relative_error(outputs, reference.forward(batch[0])) <= 1e-12


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rule", optim.OPTIMIZERS)
def test_training_is_that_of_the_array_machine(rule, size, monkeypatch):
    """Gathered, with a short last batch."""
    for name, value in SIZES[size].items():
        monkeypatch.setattr(schedule, name, value)
    nets, (x, t, _) = random_case(3, [7, 20, 9, 3], 2500, "tanh", "cross_entropy", "labels", "mean")
    for net in nets:
        net.fit(x, t, epochs=2, batch_size=1100, optimizer=optim.OPTIMIZERS[rule](0.01))
    assert relative_error(nets[0].theta, nets[1].theta) <= 1e-11
    np.testing.assert_allclose(nets[0].history.loss, nets[1].history.loss, rtol=1e-12)


@pytest.mark.parametrize(("layers", "n"), [((1, 1763), 275), ((2, 300), 1000), ((3, 200), 1001), ((4, 256, 2), 900)])
@pytest.mark.parametrize("bias", [True, False])
def test_sums_for_few_inputs_go_by_rows(layers, n, bias, dtype):
    """Rows of dW that each chunk adds to, and db with them."""
    net = MLP(layers, activation="tanh", loss="mse", bias=bias, dtype=dtype, seed=0)
    lines = CpuExecutable(net.program("gradient"), dtype).bound(n).lines
    assert any(line.inside and line.what == "matmul Aᵀ" and "row by row" in line.schedule for line in lines)
    rng = np.random.default_rng(0)
    X, T = (rng.normal(size=(n, width)).astype(dtype) for width in (layers[0], layers[-1]))
    _, gradient = net.loss_and_grad(X, T)
    exact = MLP(layers, activation="tanh", loss="mse", bias=bias, dtype="float64", backend="numpy", seed=0)
    exact.theta = net.theta.astype(np.float64)
    _, expected = exact.loss_and_grad(X.astype(np.float64), T.astype(np.float64))
    assert relative_error(gradient, expected) < (1e-5 if dtype == "float32" else 1e-12)


@pytest.mark.parametrize("n", [976, 1000, 4096])
def test_the_rest_has_the_lines_of_a_whole_chunk(n):
    """Or the clock, which counts them together, would count some at the place of others, and beyond its end."""
    program = step(MLP((1, 64, 64, 1), activation="tanh", loss="mse", seed=0))
    bound = CpuExecutable(program, "float32").bound(n)
    (row,) = bound.table[bound.table[:, words.OP] == words.CHUNKS]
    assert row[words.COUNT] == row[words.REST_COUNT]
    inside = [line for line in bound.lines if line.inside]
    assert len(inside) == row[words.COUNT]
    # and they are shown with its shapes, which operations are counted by
    assert {line.shape[0] for line in inside if line.what.startswith("matmul add")} == {row[words.CHUNK]}


@pytest.mark.parametrize("n", [1, 15, 16, 17, 31, 33, 160, 161, 1000])
@pytest.mark.parametrize("size", [size for size in SIZES if size != "usual"])
def test_rows_are_the_same_in_any_chunks(size, n, dtype, monkeypatch):
    """Bit by bit: what has rows does not depend on how they are cut."""
    net = MLP([9, 33, 17, 3], activation="gelu", loss="sse", dtype=dtype, seed=0)
    x, t = RNG.normal(size=(n, 9)), RNG.normal(size=(n, 3))
    whole = [net.forward(x), *net.deltas(x, t)]
    for name, value in SIZES[size].items():
        monkeypatch.setattr(schedule, name, value)
    again = MLP([9, 33, 17, 3], activation="gelu", loss="sse", dtype=dtype, seed=0)
    assert goes_depth_first(again.program("forward"), n, dtype)
    for got, expected in zip([again.forward(x), *again.deltas(x, t)], whole, strict=True):
        np.testing.assert_array_equal(got, expected)


# ---- caches --------------------------------------------------------------------------------------------------------


@pytest.fixture
def sysfs(tmp_path, monkeypatch):
    """A folder of caches as Linux describes them, empty at first, and a function that adds one."""

    def add(level, kind, size):
        folder = tmp_path / f"index{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        for name, text in (("level", level), ("type", kind), ("size", size)):
            if text is not None:
                (folder / name).write_text(f"{text}\n")

    monkeypatch.setattr(caches, "Path", lambda _: tmp_path)
    answers = {"SC_LEVEL1_DCACHE_SIZE": 7, "SC_LEVEL2_CACHE_SIZE": 11}
    monkeypatch.setattr(caches.os, "sysconf", lambda name: answers[name])
    return add


def sizes():
    return caches.first_level.__wrapped__(), caches.second_level.__wrapped__()


def test_caches_of_sysfs(sysfs):
    sysfs(1, "Instruction", "64K")
    sysfs(1, "Data", "48K")
    sysfs(2, "Unified", "2M")
    sysfs(3, "Unified", "32M")
    assert sizes() == (48 << 10, 2 << 20)


def test_rows_that_share_sets_of_a_cache(monkeypatch):
    monkeypatch.setattr(caches, "first_level", lambda: 32 << 10)
    monkeypatch.setattr(caches, "second_level", lambda: 512 << 10)
    monkeypatch.setattr(caches, "ways", lambda _: 8)
    assert [caches.rows_that_stay(1, stride) for stride in (64, 512, 2048, 4096, 1 << 20)] == [256, 32, 8, 4, 4]
    assert [caches.rows_that_stay(1, stride) for stride in (4, 120, 4096 + 64, 3136)] == [256] * 4
    assert [caches.rows_that_stay(2, stride) for stride in (512, 4096)] == [512, 64]


def test_ways_of_caches(sysfs, tmp_path):
    sysfs(1, "Data", "48K")
    assert caches.ways.__wrapped__(1) == caches.WAYS
    for text, ways in (("12", 12), ("0", caches.WAYS), ("many", caches.WAYS)):
        for folder in tmp_path.iterdir():
            (folder / "ways_of_associativity").write_text(f"{text}\n")
        assert caches.ways.__wrapped__(1) == ways


@pytest.mark.parametrize("wrong", [(None, "Data", "8K"), (1, None, "8K"), (1, "Data", None), (1, "Data", "8G")])
@pytest.mark.parametrize("text", ["", "K", "8", "eightK"])
def test_caches_that_are_not_understood_are_passed_over(sysfs, wrong, text):
    sysfs(*wrong)
    sysfs(1, "Data", text)
    assert sizes() == (7, 11)  # sysconf's
    sysfs(1, "Data", "16K")
    assert sizes() == (16 << 10, 11)


@pytest.mark.parametrize("answer", [0, -1, ValueError("unrecognized configuration name"), OSError("no")], ids=str)
def test_caches_that_nobody_knows(sysfs, answer, monkeypatch):
    def sysconf(name):
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(caches.os, "sysconf", sysconf)
    assert sizes() == (caches.FIRST, caches.SECOND)
    monkeypatch.delattr(caches.os, "sysconf")  # as on Windows
    assert sizes() == (caches.FIRST, caches.SECOND)
