"""The switch: NumPy in, NumPy out; CuPy in, CuPy out; nothing is copied between host and device behind anybody's back.

CuPy is the fake of fake_cupy.py here, which is as strict as CuPy about mixing; what needs a card is marked ``gpu``
elsewhere.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
import types

import numpy as np
import pytest

import fastbp
from fastbp import arrays, backends, checks, graph, optim, scalars
from fastbp.backends import gpu
from fastbp.errors import DeviceMemoryError, InputError, UnavailableError
from fastbp.plan import plan

RNG = np.random.default_rng(0)


@pytest.fixture
def quiet(cupy):
    """A block in which nothing is copied between host and device, nor waits for it."""

    class Quiet:
        def __init__(self, to_device: int = 0) -> None:
            self.allowed = to_device

        def __enter__(self) -> None:
            self.before = (cupy._state.to_device, cupy._state.to_host, cupy._state.waits)

        def __exit__(self, *error: object) -> None:
            after = (cupy._state.to_device, cupy._state.to_host, cupy._state.waits)
            if error[0] is None:
                assert tuple(b - a for a, b in zip(self.before, after, strict=True)) == (self.allowed, 0, 0)

    return Quiet


def on_device(cupy, *values):
    return [cupy.asarray(v) for v in values]


# ---- the fake --------------------------------------------------------------------------------------------------------


def test_the_fake_refuses_what_cupy_refuses(fake_cupy):
    x = fake_cupy.asarray([1.0, 2.0])
    for wrong in (
        lambda: np.asarray(x),
        lambda: np.ones(2) * x,
        lambda: x * np.ones(2),
        lambda: x @ np.ones(2),
        lambda: np.add(x, 1.0),
        lambda: x.__setitem__(0, np.ones(1)),
        lambda: fake_cupy.where(x > 0, x, np.ones(2)),
        lambda: fake_cupy.concat([x, np.ones(2)]),
    ):
        with pytest.raises(TypeError):
            wrong()
    assert (fake_cupy._state.to_device, fake_cupy._state.to_host) == (1, 0)
    np.testing.assert_array_equal((2.0 * x + np.float64(1.0)).get(), [3.0, 5.0])
    assert float(x[0]) == 1.0
    assert fake_cupy._state.to_host == 2


def test_the_fake_is_late_with_copies_that_nobody_waits_for(fake_cupy):
    stream, x, source = fake_cupy.cuda.Stream(non_blocking=True), fake_cupy.zeros(2), np.ones(2)
    x.set(source, stream=stream)
    source[:] = 5.0  # too early
    assert x.get().tolist() == [0.0, 0.0]
    fake_cupy.cuda.get_current_stream().wait_event(stream.record())
    assert x.get().tolist() == [5.0, 5.0]


@pytest.mark.skipif(importlib.util.find_spec("cupy") is None, reason="CuPy is not installed")
def test_the_fake_has_nothing_that_cupy_has_not():
    import cupy as real
    import fake_cupy as fake

    def compare(mine, theirs, path):
        for name in dir(mine):
            if name.startswith("_") and not (name.startswith("__") and inspect.isclass(mine)):
                continue
            if name in dir(object) or name in (
                "__module__",
                "__dict__",
                "__weakref__",
                "annotations",
                "__annotations__",
            ):
                continue
            value = getattr(mine, name)
            assert hasattr(theirs, name), f"{path}.{name}"
            if inspect.ismodule(value) or (inspect.isclass(value) and value.__module__ == fake.__name__):
                compare(value, getattr(theirs, name), f"{path}.{name}")
            elif inspect.isfunction(value) and inspect.isfunction(getattr(theirs, name)):
                known = inspect.signature(getattr(theirs, name)).parameters
                if not any(p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL) for p in known.values()):
                    mine_by_name = {
                        k for k, p in inspect.signature(value).parameters.items() if p.default is not p.empty
                    }
                    assert mine_by_name <= set(known), f"{path}.{name}"

    compare(fake, real, "cupy")


# ---- the array machine on CuPy ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_operation_runs_on_cupy_arrays(cupy, quiet, dtype):
    """Its gradient included; to the bits of NumPy, which computes for the fake, and without waiting."""
    for case in checks.operation_cases():
        outputs = {f"d{k}": node for k, node in enumerate(graph.gradients(case.loss, list(case.wrt)))}
        outputs["loss"] = case.loss
        typed = {k: v if v.dtype.kind == "i" else v.astype(dtype) for k, v in case.values.items()}
        n = len(typed["x"])
        expected = backends.executable(plan(outputs), "numpy", dtype).run(typed, n)
        values = {k: cupy.asarray(v) for k, v in typed.items()}
        with quiet():
            got = backends.executable(plan(outputs), "cupy", dtype).run(values, n)
        for name in outputs:
            assert isinstance(got[name], cupy.ndarray)
            np.testing.assert_array_equal(got[name].get(), expected[name], err_msg=f"{case.name} {name}")


def test_scatter_add_adds_in_order_and_keeps_nan_to_itself(backend):
    x, index = graph.input("x", 3), graph.input("index", 1, dtype="int")
    out = graph.compile(x.scatter_add(index, 5) if hasattr(x, "scatter_add") else _scattered(x, index), backend=backend)
    for n in (0, 1, 2, 3, 7, 64, 65, 1000):
        values, numbers = RNG.normal(size=(n, 3)), RNG.integers(0, 5, (n, 1))
        values[RNG.random((n, 3)) < 0.01] = np.nan
        expected = np.zeros((5, 3))
        for row, to in zip(values, numbers[:, 0], strict=True):
            expected[to] += row
        np.testing.assert_allclose(out(x=values, index=numbers), expected, rtol=1e-12, atol=1e-12)


def _scattered(x, index):
    """Scatter_add as the gradient of take: of Σ x ⊙ table[index]."""
    table = graph.param("table", (5, 3))
    (found,) = graph.gradients((table.take(index) * x).sum(), [table])
    return found


def test_a_label_that_is_no_class_is_nan_where_nobody_has_looked(cupy):
    f = graph.compile(graph.input("labels", 1, dtype="int").onehot(3))
    got = f(labels=cupy.asarray([[0], [3], [-1], [2]])).get()
    assert np.isnan(got[1:3]).all()
    assert got[[0, 3]].tolist() == [[1, 0, 0], [0, 0, 1]]
    with pytest.raises(InputError, match="labels must be 0 … 2; row 1 is 3"):
        f(labels=np.array([[0], [3]]))


# ---- what cannot run -------------------------------------------------------------------------------------------------


def test_importing_fastbp_imports_nothing_of_a_gpu():
    code = "import sys, fastbp; print([m for m in ('cupy', 'numba.cuda', 'numba_cuda') if m in sys.modules])"
    import subprocess

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", backends.ON_DEVICE)
def test_a_backend_that_cannot_run_says_what_is_missing(name, monkeypatch):
    monkeypatch.setattr(gpu, "installed", lambda package: False)
    monkeypatch.setattr(gpu, "driver_version", lambda: None)
    gpu.missing.cache_clear()
    try:
        packages = " and ".join(gpu.PACKAGES[name])
        for ask in (fastbp.use_backend, backends.resolve, lambda b: fastbp.MLP([2, 1], backend=b)):
            with pytest.raises(
                UnavailableError, match=rf"{packages} not installed.*fastbp\[gpu\].*gpu12.*no NVIDIA driver"
            ):
                ask(name)
        assert fastbp.available_backends() == ["cpu", "numpy"]
    finally:
        gpu.missing.cache_clear()


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("driver", 0, "no NVIDIA driver"),
        ("driver", 12040, r"too old: it is for CUDA 12\.4, but cupy is built for CUDA 13\.0: update.*gpu12"),
        ("devices", 0, "no NVIDIA GPU is visible"),
    ],
)
def test_what_cupy_finds_missing(fake_cupy, attribute, value, message):
    setattr(fake_cupy._state, attribute, value)
    with pytest.raises(UnavailableError, match=message):
        fastbp.use_backend("cupy")
    assert "cupy" not in fastbp.available_backends()


def test_a_numpy_that_numba_cuda_cannot_compile_with_is_named(fake_cupy, monkeypatch):
    monkeypatch.setattr(gpu, "installed", lambda package: True)
    monkeypatch.setitem(sys.modules, "numba.cuda", types.SimpleNamespace(implementation="NVIDIA"))
    monkeypatch.setattr(gpu.importlib.metadata, "version", lambda package: "0.30.4")
    monkeypatch.setattr(gpu, "np", types.SimpleNamespace(__version__="2.5.2"))
    with pytest.raises(
        UnavailableError, match=r"numba-cuda 0\.30\.4 cannot compile with NumPy 2\.5\.2: .*'numpy<2\.5'"
    ):
        fastbp.use_backend("cuda")
    assert "cuda" not in fastbp.available_backends()


def test_an_old_card_runs_the_array_code_alone(fake_cupy, monkeypatch):
    monkeypatch.setattr(gpu, "installed", lambda package: True)
    monkeypatch.setattr(gpu, "_without_numba", lambda: None)
    fake_cupy._state.capability = "75"
    with pytest.raises(
        UnavailableError, match=r"compute capability 7\.5, and the kernels need 8\.0; backend='cupy' can"
    ):
        fastbp.use_backend("cuda")
    assert fastbp.available_backends() == ["cpu", "numpy", "cupy"]


# ---- functions -------------------------------------------------------------------------------------------------------


def test_dense_and_its_backward_go_by_their_arrays(cupy, quiet):
    X, W, b = RNG.normal(size=(5, 3)), RNG.normal(size=(3, 2)), RNG.normal(size=2)
    for activation in scalars.ACTIVATIONS:
        A, saved = fastbp.dense(X, W, b, activation, save=True, backend="numpy")
        back = fastbp.dense_backward(A, X, W, saved, activation, backend="numpy")
        assert all(isinstance(v, np.ndarray) for v in (A, *back))
        x, w, bias = on_device(cupy, X, W, b)
        with quiet():
            a, kept = fastbp.dense(x, w, bias, activation, save=True)
            found = fastbp.dense_backward(a, x, w, kept, activation)
        for mine, theirs in zip((a, kept, *found), (A, saved, *back), strict=True):
            assert isinstance(mine, cupy.ndarray)
            np.testing.assert_array_equal(mine.get(), theirs)


def test_arrays_of_the_host_stay_there_whatever_the_default(cupy, quiet):
    with quiet():
        assert isinstance(fastbp.dense(np.ones((2, 3)), np.ones((3, 1))), np.ndarray)
        assert isinstance(fastbp.grad(lambda w: fastbp.sum(w * w))(np.ones(3)), np.ndarray)
    assert isinstance(fastbp.dense([[1.0]], [[2.0]]), cupy.ndarray)  # lists go with the default


def test_mixed_arguments_are_refused_by_name(cupy):
    X, W = RNG.normal(size=(5, 3)), RNG.normal(size=(3, 2))
    x, w = on_device(cupy, X, W)
    f = graph.compile(graph.input("x", 3) @ graph.param("w", (3, 2)))
    state, theta = optim.Momentum().init(w), w.copy()
    message = (
        r"W is a NumPy array, but X is a CuPy array: pass cupy\.asarray\(W\) .*or X\.get\(\) to compute on the host"
    )
    cases = [
        (message, lambda: fastbp.dense(x, W)),
        ("dA is a NumPy array, but X is a CuPy", lambda: fastbp.dense_backward(X @ W, x, w, None, "identity")),
        ("w is a NumPy array, but x is a CuPy", lambda: f(x=x, w=W)),
        ("gradient is a NumPy array, but theta is", lambda: optim.Momentum().update(theta, W, state)),
        (r"state\.vectors\[0\] is a NumPy", lambda: optim.Momentum().update(theta, w, optim.Momentum().init(W))),
        ("argument 1 is a NumPy array, but argument 0", lambda: fastbp.grad(lambda a, b: fastbp.sum(a @ b))(x, W)),
        (r"argument 0\['w'\] is a NumPy", lambda: fastbp.grad(lambda p: fastbp.sum(p["x"] @ p["w"]))({"x": x, "w": W})),
        ("captures, of shape .* is a NumPy", lambda: fastbp.grad(lambda a: fastbp.sum(a @ W))(x)),
        ("captures, of shape .* is a CuPy", lambda: fastbp.grad(lambda a: fastbp.sum(fastbp.matmul(a, w)))(X)),
    ]
    for expected, call in cases:
        with pytest.raises(InputError, match=expected):
            call()
    np.testing.assert_array_equal(theta.get(), W)


def test_arrays_and_backend_must_fit(cupy, monkeypatch):
    monkeypatch.setattr(gpu, "installed", lambda package: package == "cupy")
    x, w = cupy.ones((2, 3)), cupy.ones((3, 1))
    with pytest.raises(InputError, match=r"X is a CuPy array, but NumPy arrays are needed here: pass X\.get\(\), or"):
        fastbp.dense(x, w, backend="cpu")
    with pytest.raises(
        InputError, match=r"X is a NumPy array, but CuPy arrays are needed here: pass cupy\.asarray\(X\)"
    ):
        fastbp.dense(np.ones((2, 3)), np.ones((3, 1)), backend="cupy")
    with (
        fastbp.use_backend("cpu"),
        pytest.raises(UnavailableError, match=r"backend='cuda' cannot run here.*'cupy' can"),
    ):
        fastbp.dense(x, w)  # goes to cuda, which needs a package that is not there
    with fastbp.use_backend("cpu"):
        assert isinstance(fastbp.dense(x, w, backend="cupy"), cupy.ndarray)


def test_arrays_of_another_device(cupy):
    with cupy.cuda.Device(1):
        x = cupy.ones((2, 3))
        assert fastbp.dense(x, cupy.ones((3, 1))).device.id == 1
    with pytest.raises(InputError, match=r"X is on device 1, but the current device is 0: .*Device\(1\)"):
        fastbp.dense(x, cupy.ones((3, 1)))


def test_a_compiled_graph_goes_by_each_call(cupy, quiet):
    x, w = graph.input("x", 3), graph.param("w", (3, 1))
    loss = ((x @ w).sigmoid() - 1.0).square().mean()
    f = graph.compile([loss, *graph.gradients(loss, [w])])
    X, W = RNG.normal(size=(7, 3)), RNG.normal(size=(3, 1))
    x_device, w_device = on_device(cupy, X, W)
    with fastbp.use_backend("numpy"):
        expected = f(x=X, w=W)
    with quiet():
        got = f(x=x_device, w=w_device)
        assert got[0].shape == ()
    for mine, theirs in zip(got, expected, strict=True):
        assert isinstance(mine, cupy.ndarray)
        np.testing.assert_array_equal(mine.get(), theirs)
    assert isinstance(f(x=X, w=W)[1], np.ndarray)


def test_row_numbers_are_checked_on_the_device_too(cupy):
    """They lead to addresses, so this one waits."""
    f = graph.compile(graph.param("t", (4, 2)).take(graph.input("i", 1, dtype="int")))
    table = cupy.ones((4, 2))
    assert f(t=table, i=cupy.asarray([[3]])).shape == (1, 2)
    with pytest.raises(InputError, match="must be 0 … 3; row 0 is 4"):
        f(t=table, i=cupy.asarray([[4]]))


def test_plain_functions_on_the_device(cupy, quiet):
    def loss(w, x, labels, scale):
        z = fastbp.tanh(x @ w) * scale
        return -fastbp.mean(fastbp.log_softmax(z)[np.arange(len(x)), labels])

    W, X, labels = RNG.normal(size=(3, 4)), RNG.normal(size=(6, 3)), RNG.integers(0, 4, 6)
    w, x, numbers = on_device(cupy, W, X, labels)
    v, tangent = on_device(cupy, np.ones_like(W), X)
    for make in (fastbp.value_and_grad, fastbp.function, fastbp.hvp):
        more = (np.ones_like(W),) if make is fastbp.hvp else ()
        expected = make(loss, backend="numpy")(W, X, labels, 2.0, *more)
        f = make(loss)
        on = (v,) if more else ()
        got = f(w, x, numbers, 2.0, *on)  # traced
        again = f(w, x, numbers, 2.0, *on)
        for mine, theirs in zip(*(r if isinstance(r, tuple) else (r,) for r in (got, expected)), strict=True):
            assert isinstance(mine, cupy.ndarray)
            np.testing.assert_allclose(mine.get(), theirs, rtol=1e-12)
        for a, b in zip(*(r if isinstance(r, tuple) else (r,) for r in (again, got)), strict=True):
            np.testing.assert_array_equal(a.get(), b.get())
    g = fastbp.jvp(lambda w, x: fastbp.tanh(x @ w))
    got = g((w, x), (None, tangent))
    expected = fastbp.jvp(lambda w, x: fastbp.tanh(x @ w), backend="numpy")((W, X), (None, X))
    for mine, theirs in zip(got, expected, strict=True):
        np.testing.assert_array_equal(mine.get(), theirs)
    f = fastbp.value_and_grad(lambda w, x, t: fastbp.mean((fastbp.tanh(x @ w) - t) ** 2.0 * 3.0))
    t = cupy.zeros((6, 4))
    f(w, x, t)
    with quiet():
        value, gradient = f(w, x, t)
        assert value.shape == ()
        assert gradient.shape == (3, 4)


def test_captured_arrays_are_read_anew_and_constants_moved_once(cupy, quiet):
    shift = cupy.ones(3)

    def f(x):
        return fastbp.sum(x * np.arange(3.0) + shift + np.float32(1.0))

    compiled = fastbp.function(f)
    x = cupy.ones(3)
    assert float(compiled(x)) == 9.0
    shift[...] = 2.0
    with quiet():
        again = compiled(x)
    assert float(again) == 12.0


def test_cupy_functions_write_down_too(cupy):
    half = cupy.full(3, 0.5)

    def f(x):
        return fastbp.sum(cupy.tanh(half * x) + cupy.maximum(x, half))

    x = cupy.asarray([-1.0, 0.0, 2.0])
    expected = fastbp.grad(lambda x: fastbp.sum(np.tanh(0.5 * x) + np.maximum(x, 0.5)))(x.get())
    np.testing.assert_allclose(fastbp.grad(f)(x).get(), expected)
    with pytest.raises(fastbp.errors.TraceError, match=r"cupy\.arctan is not among"):
        fastbp.grad(lambda x: fastbp.sum(cupy.arctan(x)))(x)


def test_the_functions_compute_on_arrays_of_both_kinds(cupy, quiet):
    X = RNG.normal(size=(4, 3))
    calls = [
        fastbp.tanh, fastbp.gelu, fastbp.softmax, fastbp.logsumexp, fastbp.sum, fastbp.max, fastbp.transpose,
        lambda x: fastbp.matmul(x, x.T), lambda x: fastbp.maximum(x, 0.0), lambda x: fastbp.power(x, 2.0),
        lambda x: fastbp.clip(x, 0.0, 1.0), lambda x: fastbp.where(x > 0, x, 0.0), lambda x: fastbp.reshape(x, (3, 4)),
        lambda x: fastbp.concatenate([x, x]),
    ]  # fmt: skip
    (x,) = on_device(cupy, X)
    for call in calls:
        with quiet():
            got = call(x)
        assert isinstance(got, cupy.ndarray)
        np.testing.assert_array_equal(got.get(), call(X))


def test_a_trace_on_the_device_is_shown_from_the_host(cupy):
    (w,) = on_device(cupy, np.array([1.0, -2.0]))
    found = fastbp.trace(lambda w: fastbp.sum(fastbp.square(w)), w)
    assert isinstance(found.gradients[0], np.ndarray)
    assert found.gradients[0].tolist() == [2.0, -4.0]
    assert "square" in str(found)


@pytest.mark.parametrize("rule", list(optim.OPTIMIZERS))
def test_updates_stay_on_the_device(cupy, quiet, rule):
    optimizer = optim.OPTIMIZERS[rule](clip_norm=1.0, clip_value=0.5)
    T, G = RNG.normal(size=(2, 11))
    t, g = on_device(cupy, T, G)
    mine, theirs = optimizer.init(t), optimizer.init(T)
    for _ in range(3):
        with quiet(to_device=1):  # the rule's scalars
            optimizer.update(t, g, mine)
        optimizer.update(T, G, theirs, backend="numpy")
    np.testing.assert_array_equal(t.get(), T)
    for a, b in zip(mine.vectors, theirs.vectors, strict=True):
        np.testing.assert_array_equal(a.get(), b)


def test_too_little_memory_says_which_batch_would_fit(cupy):
    X, W = RNG.normal(size=(1000, 8)), RNG.normal(size=(8, 1000))
    x, w = on_device(cupy, X, W)
    cupy._state.limit = cupy._state.used + 2_000_000
    with pytest.raises(
        DeviceMemoryError, match=r"1000 rows need 8,000,000 bytes .* 2,000,000 are free; batches of 250 rows"
    ):
        fastbp.dense(x, w)
    assert fastbp.dense(x[:250], w).shape == (250, 1000)
    assert issubclass(DeviceMemoryError, MemoryError)
    cupy._state.limit = cupy._state.used
    with pytest.raises(DeviceMemoryError, match=r"an array of shape \(2, 3\) needs 48 bytes, and 0 are free"):
        arrays.DEVICE.moved(np.ones((2, 3)))
