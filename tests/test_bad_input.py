"""What is taken and what is refused: refusals name the argument, what came and what is needed, and change nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest

import fastbp
from fastbp.errors import InputError

BACKENDS = ("cpu", "numpy")
DTYPES = ("float32", "float64")
RNG = np.random.default_rng(0)
N = 8
X = RNG.normal(size=(N, 4))
T = RNG.random((N, 3))
LABELS = np.array([0, 1, 2, 0, 1, 2, 2, 1])


def make(loss="mse", backend="cpu", **more):
    return fastbp.MLP([4, 5, 3], loss=loss, backend=backend, seed=0, **more)


def changed(array, index, value):
    found = np.array(array, dtype=float)
    found[index] = value
    return found


def assert_refused(call, words, net=None):
    """An InputError whose message has the words, after which the network is as it was."""
    theta = None if net is None else net.theta.copy()
    with pytest.raises(InputError) as caught:
        call()
    for word in words:
        assert word in str(caught.value)
    if net is not None:
        np.testing.assert_array_equal(net.theta, theta)
        assert net.training is None
        assert net.history.epochs == 0


# ---- X: what no call takes -----------------------------------------------------------------------------------------

NEEDED = "X must be a 2-D array of numbers of shape (n, 4)"
BAD_X = {
    "one row": (X[0], [NEEDED, "(4,)"]),
    "three dimensions": (X[None], [NEEDED, "(1, 8, 4)"]),
    "scalar": (1.0, [NEEDED, "()"]),
    "narrow": (X[:, :3], [NEEDED, "(8, 3)"]),
    "wide": (np.ones((8, 5)), [NEEDED, "(8, 5)"]),
    "no columns": (np.ones((8, 0)), [NEEDED, "(8, 0)"]),
    "transposed": (X.T, [NEEDED, "(4, 8)"]),
    "empty list": ([], [NEEDED, "(0,)"]),
    "none": (None, [NEEDED, "object"]),
    "strings": (X.astype(str), [NEEDED, "dtype <U"]),
    "bytes": (X.astype("S8"), [NEEDED, "dtype |S8"]),
    "objects": (X.astype(object), [NEEDED, "dtype object"]),
    "complex": (X + 1j, [NEEDED, "dtype complex128"]),
    "times": (X.astype("timedelta64[s]"), [NEEDED, "timedelta64"]),
    "records": (np.zeros(8, [("a", float), ("b", int)]), [NEEDED, "dtype"]),
    "ragged": ([[1, 2, 3, 4], [5, 6]], [NEEDED, "different lengths"]),
    "dictionary": ({"a": 1}, [NEEDED, "object"]),
}
CALLS = {
    "forward": lambda net, x: net.forward(x),
    "call": lambda net, x: net(x),
    "logits": lambda net, x: net.logits(x),
    "predict": lambda net, x: net.predict(x),
    "loss": lambda net, x: net.loss(x, T),
    "loss_and_grad": lambda net, x: net.loss_and_grad(x, T),
    "deltas": lambda net, x: net.deltas(x, T),
    "score": lambda net, x: net.score(x, T),
    "fit": lambda net, x: net.fit(x, T),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("case", BAD_X)
def test_bad_x(case, call):
    net = make()
    value, words = BAD_X[case]
    assert_refused(lambda: CALLS[call](net, value), words, net)


# ---- T -------------------------------------------------------------------------------------------------------------

BAD_T = {
    "fewer rows": ("mse", T[:5], ["T has 5 rows", "X has 8"]),
    "more rows": ("mse", np.ones((9, 3)), ["T has 9 rows", "X has 8"]),
    "narrow": ("mse", T[:, :2], ["T must be", "(n, 3)", "(8, 2)"]),
    "one float a row": ("mse", T[:, 0], ["T must be (n, 3) numbers or (n,) integer labels 0 … 2", "(8,)", "float64"]),
    "three dimensions": ("mse", T[None], ["T must be", "(n, 3)", "(1, 8, 3)"]),
    "scalar": ("mse", 1, ["T must be", "(n, 3)", "()"]),
    "none": ("mse", None, ["T must be", "(n, 3)"]),
    "strings": ("mse", T.astype(str), ["T must be", "(n, 3)", "dtype <U"]),
    "objects": ("mse", T.astype(object), ["T must be", "(n, 3)", "dtype object"]),
    "complex": ("mse", T + 0j, ["T must be", "(n, 3)", "complex128"]),
    "ragged": ("mse", [[1, 2, 3], [4]], ["T must be", "(n, 3)", "different lengths"]),
    "nan": ("mse", changed(T, (3, 1), np.nan), ["T must be finite", "row 3, column 1 is nan", "1 such"]),
    "infinite": ("mse", changed(T, (0, 2), np.inf), ["T must be finite", "row 0, column 2 is inf"]),
    "infinite below": ("mse", changed(T, (7, 0), -np.inf), ["T must be finite", "row 7, column 0 is -inf"]),
    "infinite both ways": (
        "mse",
        changed(changed(T, (2, 0), np.inf), (5, 1), -np.inf),
        ["T must be finite", "row 2, column 0 is inf", "2 such"],
    ),
    "too large for float32": ("mse", changed(T, (2, 0), 1e300), ["T must be finite", "row 2, column 0"]),
    "above 1": ("bce", changed(T, (0, 0), 1.5), ["T", "loss='bce'", "[0, 1]", "1.5"]),
    "below 0": ("bce", changed(T, (0, 0), -0.25), ["T", "loss='bce'", "[0, 1]", "-0.25"]),
    "no probabilities": ("cross_entropy", T + 1, ["T", "loss='cross_entropy'", "[0, 1]"]),
    "label too large": (
        "cross_entropy",
        changed(LABELS, 4, 3).astype(int),
        ["T", "labels must be 0 … 2", "row 4 is 3"],
    ),
    "negative label": ("cross_entropy", changed(LABELS, 4, -1).astype(int), ["labels must be 0 … 2", "row 4 is -1"]),
    "labels from 1": ("cross_entropy", LABELS + 1, ["labels must be 0 … 2", "row 2 is 3"]),
    "huge label": ("cross_entropy", np.full(N, 2**64 - 1, np.uint64), ["labels must be 0 … 2", str(2**64 - 1)]),
    "fractional labels": ("cross_entropy", LABELS + 0.5, ["T must be", "(n,) integer labels", "(8,)", "float64"]),
    "whole floats": ("cross_entropy", LABELS.astype(float), ["T must be", "(n,) integer labels", "float64"]),
    "column of floats": ("cross_entropy", LABELS[:, None] + 0.0, ["T must be", "(n, 3)", "(8, 1)"]),
    "nan labels": ("cross_entropy", LABELS * np.nan, ["T must be", "integer labels", "float64"]),
    "names": ("cross_entropy", np.array(["cat"] * N), ["T must be", "integer labels", "dtype <U3"]),
    "fewer labels": ("cross_entropy", LABELS[:5], ["T has 5 rows", "X has 8"]),
    "one row of labels": ("cross_entropy", LABELS[None], ["T must be", "(1, 8)"]),
}
BATCH_CALLS = {
    "loss": lambda net, *batch: net.loss(*batch),
    "loss_and_grad": lambda net, *batch: net.loss_and_grad(*batch),
    "deltas": lambda net, *batch: net.deltas(*batch),
    "score": lambda net, *batch: net.score(*batch),
    "fit": lambda net, x, t, weight=None: net.fit(x, t, sample_weight=weight),
}


@pytest.mark.parametrize("call", BATCH_CALLS)
@pytest.mark.parametrize("case", BAD_T)
def test_bad_targets(case, call):
    loss, value, words = BAD_T[case]
    net = make(loss)
    assert_refused(lambda: BATCH_CALLS[call](net, X, value), words, net)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, "both", 1e300])
def test_fit_takes_finite_inputs_alone(value):
    net = make()
    x = changed(changed(X, (2, 1), np.inf), (4, 0), -np.inf) if value == "both" else changed(X, (2, 1), value)
    assert_refused(lambda: net.fit(x, T), ["X must be finite", "row 2, column 1 is"], net)


@pytest.mark.parametrize("backend", BACKENDS)
def test_forward_takes_what_is_not_finite(backend):
    """Numbers that are too large for the dtype are infinite in it; nothing warns."""
    net = make(backend=backend)
    for value in (np.nan, np.inf, -np.inf, 1e300):
        a = net.forward(changed(X, (2, 1), value))
        np.testing.assert_array_equal(np.delete(a, 2, axis=0), np.delete(net.forward(X), 2, axis=0))
        assert not np.array_equal(a[2], net.forward(X)[2])


def test_sums_that_overflow_are_no_reason_to_refuse():
    """Every number is finite; only their sum is not."""
    net = fastbp.MLP([2, 2], loss="mae", init="zeros", dtype="float64", seed=0)
    history = net.fit(np.full((4, 2), 1e308), np.full((4, 2), 1e300), epochs=1, optimizer="sgd")
    assert history.loss == pytest.approx([1e300])
    np.testing.assert_allclose(net.weights[0], 0.01 * 4 * 1e308 / 8)


# ---- sample weights ------------------------------------------------------------------------------------------------

BAD_WEIGHTS = {
    "negative": (changed(np.ones(N), 3, -0.5), ["sample_weight must not be negative", "row 3 is -0.5"]),
    "several negative": ([1, 1, -1, 1, -5, 1, 1, 1], ["sample_weight must not be negative", "row 2 is -1"]),
    "nan": (changed(np.ones(N), 3, np.nan), ["sample_weight must be finite", "row 3", "nan"]),
    "infinite": (changed(np.ones(N), 3, np.inf), ["sample_weight must be finite", "row 3", "inf"]),
    "all zero": (np.zeros(N), ["sample_weight must not be all zero"]),
    "fewer": (np.ones(5), ["sample_weight has 5 rows", "X has 8"]),
    "more": (np.ones(9), ["sample_weight has 9 rows", "X has 8"]),
    "one row": (np.ones((1, N)), ["sample_weight must be", "(n, 1)", "(1, 8)"]),
    "one a target": (np.ones((N, 3)), ["sample_weight must be", "(n, 1)", "(8, 3)"]),
    "scalar": (1.0, ["sample_weight must be", "(n, 1)", "()"]),
    "strings": (["a"] * N, ["sample_weight must be", "dtype <U1"]),
    "complex": (np.ones(N) + 0j, ["sample_weight must be", "complex128"]),
    "objects": (np.ones(N, object), ["sample_weight must be", "object"]),
    "ragged": ([[1], [2, 3]], ["sample_weight must be", "different lengths"]),
}


@pytest.mark.parametrize("call", BATCH_CALLS)
@pytest.mark.parametrize("case", BAD_WEIGHTS)
def test_bad_sample_weights(case, call):
    net = make()
    value, words = BAD_WEIGHTS[case]
    assert_refused(lambda: BATCH_CALLS[call](net, X, T, value), words, net)


# ---- no data -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["mse", "bce", "cross_entropy"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_no_rows(backend, dtype, loss):
    net = make(loss, backend, dtype=dtype)
    nothing = np.empty((0, 4))
    for call in (net.forward, net.logits, net):
        found = call(nothing)
        assert found.shape == (0, 3)
        assert found.dtype == dtype
    assert net.predict(nothing).shape == ((0,) if loss == "cross_entropy" else (0, 3))
    targets = [np.empty((0, 3)), np.empty(0, int)]
    for t in targets:
        for call in BATCH_CALLS.values():
            assert_refused(lambda call=call, t=t: call(net, nothing, t), ["X has no rows"], net)
        assert_refused(lambda t=t: net.loss(nothing, t, np.empty(0)), ["X has no rows"], net)
        assert_refused(lambda t=t: net.fit(X, LABELS, validation=(nothing, t)), ["validation", "no rows"], net)


# ---- fit -----------------------------------------------------------------------------------------------------------

COUNTS = {"zero": 0, "negative": -1, "float": 2.0, "bool": True, "numpy bool": np.True_, "string": "3", "nan": math.nan}
BAD_FITS = {
    **{
        f"{name} {case}": ({name: value}, [f"{name} must be an integer of at least 1, got {value!r}"])
        for name in ("epochs", "batch_size", "patience")
        for case, value in COUNTS.items()
    },
    "no epochs": ({"epochs": None}, ["epochs must be an integer of at least 1, got None"]),
    "batch too large": ({"batch_size": 9}, ["batch_size=9", "8 rows"]),
    "batch too large for what is trained on": ({"batch_size": 8, "validation": 0.25}, ["batch_size=8", "6 rows"]),
    "sampling": ({"sampling": "epok"}, ["sampling='epok' is unknown", "did you mean 'epoch'?"]),
    "sampling, no name": ({"sampling": None}, ["sampling=None is unknown", "'epoch', 'replacement'"]),
    "optimizer": ({"optimizer": "nesterof"}, ["optimizer='nesterof' is unknown", "did you mean 'nesterov'?"]),
    "optimizer class": ({"optimizer": fastbp.optim.SGD}, ["optimizer=<class", "is a class: pass SGD()"]),
    "learning rate": ({"optimizer": 0.1}, ["optimizer=0.1 is unknown"]),
    "negative seed": ({"seed": -1}, ["seed must be an integer of at least 0, got -1"]),
    "float seed": ({"seed": 1.0}, ["seed must be an integer of at least 0, got 1.0"]),
    "negative tol": ({"tol": -1e-9}, ["tol must be a finite number of at least 0, got -1e-09"]),
    "nan tol": ({"tol": math.nan}, ["tol must be a finite number of at least 0, got nan"]),
    "infinite tol": ({"tol": math.inf}, ["tol must be a finite number of at least 0, got inf"]),
    "string tol": ({"tol": "1"}, ["tol must be a finite number of at least 0, got '1'"]),
    "bool tol": ({"tol": True}, ["tol must be a finite number of at least 0, got True"]),
    "callback": ({"callbacks": [print, 3]}, ["callbacks must be", "(net, history)", "got 3"]),
    "a callback alone": ({"callbacks": print}, ["callbacks must be"]),
    "callbacks none": ({"callbacks": None}, ["callbacks must be", "None"]),
    "progress": ({"progress": "yes"}, ["progress must be", "'yes'"]),
    "validation 0": ({"validation": 0.0}, ["validation must be (X, T)", "fraction between 0 and 1", "0.0"]),
    "validation 1": ({"validation": 1.0}, ["validation must be (X, T)", "fraction between 0 and 1", "1.0"]),
    "validation 1, whole": ({"validation": 1}, ["validation must be (X, T)", "fraction between 0 and 1", "got 1"]),
    "validation negative": ({"validation": -0.1}, ["validation must be (X, T)", "-0.1"]),
    "validation nan": ({"validation": math.nan}, ["validation must be (X, T)", "nan"]),
    "validation bool": ({"validation": True}, ["validation must be (X, T)", "True"]),
    "validation string": ({"validation": "0.1"}, ["validation must be (X, T)", "'0.1'"]),
    "validation array": ({"validation": X}, ["validation must be (X, T)"]),
    "validation of all rows": ({"validation": 0.99}, ["validation=0.99", "8 rows", "none to train on"]),
    "validation X alone": ({"validation": (X,)}, ["validation must be (X, T)", "1 part"]),
    "validation of four": ({"validation": (X, T, T, T)}, ["validation must be (X, T)", "4 parts"]),
    "validation X": ({"validation": (X[:, :2], T)}, ["validation X must be", "(n, 4)", "(8, 2)"]),
    "validation T": ({"validation": (X, T[:, :2])}, ["validation T must be", "(n, 3)", "(8, 2)"]),
    "validation rows": ({"validation": (X, T[:2])}, ["validation T has 2 rows", "validation X has 8"]),
    "validation X nan": ({"validation": (X * np.nan, T)}, ["validation X must be finite", "row 0, column 0"]),
    "validation T nan": ({"validation": (X, T * np.nan)}, ["validation T must be finite", "row 0, column 0"]),
    "validation weight": ({"validation": (X, T, -np.ones(N))}, ["validation sample_weight must not be negative"]),
    "validation no weight": ({"validation": (X, T, np.zeros(N))}, ["validation sample_weight must not be all zero"]),
    "validation weights": ({"validation": (X, T, np.ones(3))}, ["validation sample_weight has 3 rows"]),
}


@pytest.mark.parametrize("case", BAD_FITS)
def test_bad_arguments_of_fit(case):
    net = make()
    options, words = BAD_FITS[case]
    assert_refused(lambda: net.fit(X, T, **options), words, net)
    assert net.fit(X, T, epochs=1).epochs == 1


def test_a_refused_fit_leaves_earlier_training_alone():
    net, other = make(), make()
    for one in (net, other):
        one.fit(X, T, epochs=2, batch_size=3, optimizer="momentum")
    for options, _ in BAD_FITS.values():
        with pytest.raises(InputError):
            net.fit(X, T, **{"optimizer": "adam", "seed": 9, **options})
    for one in (net, other):
        one.fit(X, T, epochs=2, batch_size=3)
    np.testing.assert_array_equal(net.theta, other.theta)
    assert net.history.loss == other.history.loss


# ---- networks ------------------------------------------------------------------------------------------------------


def mlp(*args, **more):
    return lambda: fastbp.MLP(*(args or ([4, 5, 3],)), **more)


LAYERS = "layers must be at least two widths"
BAD_NETS = {
    "one layer": (mlp([4]), [LAYERS, "[4]"]),
    "no layer": (mlp([]), [LAYERS, "[]"]),
    "a number": (mlp(4), [LAYERS, "4"]),
    "a string": (mlp("43"), [LAYERS, "'43'"]),
    "none": (mlp(None), [LAYERS, "None"]),
    "a set": (mlp({3, 4}), [LAYERS]),
    "zero": (mlp([4, 0, 3]), ["layers[1] must be an integer of at least 1, got 0"]),
    "negative": (mlp([-4, 3]), ["layers[0] must be an integer of at least 1, got -4"]),
    "float": (mlp([4, 3.0]), ["layers[1] must be an integer of at least 1, got 3.0"]),
    "bool": (mlp([True, 3]), ["layers[0] must be an integer of at least 1, got True"]),
    "text": (mlp([4, "3"]), ["layers[1] must be an integer of at least 1, got '3'"]),
    "activation": (mlp(activation="rleu"), ["activation='rleu' is unknown", "did you mean 'relu'?", "'gelu'"]),
    "activation of a layer": (mlp([4, 5, 5, 3], activation=["relu", "sofplus"]), ["did you mean 'softplus'?"]),
    "softmax inside": (mlp(activation="softmax"), ["activation='softmax' is unknown", "'sigmoid'"]),
    "unlike anything": (mlp(activation="zzzz"), ["activation='zzzz' is unknown. Valid: 'identity', "]),
    "activation none": (mlp(activation=None), ["activation", "None"]),
    "activation number": (mlp(activation=3), ["activation", "3"]),
    "nested activation": (mlp(activation=[["relu"]]), ["activation", "relu"]),
    "more activations": (mlp(activation=["relu"] * 2), ["activation has 2 names for 1 hidden layer"]),
    "fewer activations": (mlp(activation=[]), ["activation has 0 names for 1 hidden layer"]),
    "unused activation": (mlp([4, 3], activation="rleu"), ["did you mean 'relu'?"]),
    "output": (mlp(output="softmaks"), ["output='softmaks' is unknown", "did you mean 'softmax'?"]),
    "output of bce": (mlp(loss="bce", output="relu"), ["output='relu'", "loss='bce'", "output='sigmoid'"]),
    "output none of them": (mlp(output=3), ["output=3 is unknown"]),
    "loss": (mlp(loss="mes"), ["loss='mes' is unknown", "did you mean 'mse'?", "'cross_entropy'"]),
    "long loss": (mlp(loss="crossentropy"), ["did you mean 'cross_entropy'?"]),
    "loss none": (mlp(loss=None), ["loss=None is unknown"]),
    "loss list": (mlp(loss=["mse"]), ["loss=['mse'] is unknown"]),
    "reduction": (mlp(reduction="men"), ["reduction='men' is unknown", "did you mean 'mean'?", "'sum'"]),
    "reduction none": (mlp(reduction=None), ["reduction=None is unknown"]),
    "init": (mlp(init="glorott"), ["init='glorott' is unknown", "did you mean 'glorot'?", "'lecun'"]),
    "init number": (mlp(init=0.1), ["init=0.1 is unknown"]),
    "dtype": (mlp(dtype="float23"), ["dtype='float23' is unknown", "did you mean 'float32'?"]),
    "half": (mlp(dtype=np.float16), ["dtype='float16' is unknown"]),
    "integers": (mlp(dtype=int), ["dtype='int' is unknown", "'float32', 'float64'"]),
    "dtype none": (mlp(dtype=None), ["dtype=None is unknown"]),
    "backend": (mlp(backend="nunpy"), ["backend='nunpy' is unknown", "did you mean 'numpy'?"]),
    "backend number": (mlp(backend=0), ["backend=0 is unknown"]),
    "seed": (mlp(seed=-1), ["seed must be an integer of at least 0, got -1"]),
    "float seed": (mlp(seed=1.5), ["seed must be an integer of at least 0, got 1.5"]),
    "bool seed": (mlp(seed=True), ["seed must be an integer of at least 0, got True"]),
}


@pytest.mark.parametrize("case", BAD_NETS)
def test_bad_networks(case):
    call, words = BAD_NETS[case]
    assert_refused(call, words)


@pytest.mark.parametrize("call", [fastbp.use_backend, lambda name: fastbp.load("nothing", backend=name)])
def test_bad_backends_elsewhere(call):
    with pytest.raises(InputError, match=r"^backend='cpi' is unknown; did you mean 'cpu'\?"):
        call("cpi")
    with fastbp.use_backend("numpy"), pytest.raises(InputError, match="did you mean 'cpu'"):
        fastbp.use_backend("cpi")
    assert fastbp.MLP([1, 1]).backend == "cpu"


SIZE = 4 * 5 + 5 + 5 * 3 + 3
BAD_THETA = {
    "short": (np.zeros(SIZE - 1), [f"({SIZE},)", f"({SIZE - 1},)"]),
    "a column": (np.zeros((SIZE, 1)), [f"({SIZE},)", f"({SIZE}, 1)"]),
    "scalar": (0.0, [f"({SIZE},)", "()"]),
    "complex": (np.zeros(SIZE) + 0j, [f"({SIZE},)", "complex128"]),
    "strings": (["a"] * SIZE, [f"({SIZE},)", "<U1"]),
    "none": (None, [f"({SIZE},)", "object"]),
    "ragged": ([[1], [2, 3]], [f"({SIZE},)"]),
}


@pytest.mark.parametrize("case", BAD_THETA)
def test_bad_parameters(case):
    net = make()
    value, words = BAD_THETA[case]
    assert_refused(lambda: setattr(net, "theta", value), ["theta must be", *words], net)


def test_bad_vectors_to_split():
    net = make()
    assert_refused(
        lambda: net.split(np.zeros(SIZE + 1)), ["vector must have shape", f"({SIZE},)", f"({SIZE + 1},)"], net
    )


def test_one_output_takes_no_labels():
    """Integers for one output are numbers, in a vector or a column."""
    net = fastbp.MLP([4, 1], seed=0)
    t = np.array([3, -1, 7, 0, 0, 2, 100, 5])
    assert net.loss(X, t) == net.loss(X, t[:, None]) == net.loss(X, t.astype(float)) == net.loss(X, t.tolist())
    assert_refused(lambda: net.loss(X, T), ["T must be", "(n, 1)", "(8, 3)"], net)


# ---- what is taken -------------------------------------------------------------------------------------------------

KINDS = [
    "float64",
    "float32",
    "float16",
    "longdouble",
    "int64",
    "int32",
    "int8",
    "uint8",
    "uint64",
    "bool",
    ">f8",
    ">i2",
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_real_numbers_of_any_dtype(backend, dtype, kind):
    """They give what the same numbers give in the network's own dtype, and nothing is scaled."""
    rng = np.random.default_rng(1)
    x, t = (rng.integers(0, 2 if kind == "bool" else 100, s).astype(kind) for s in ((N, 4), (N, 3)))
    weight = rng.integers(0, 2, N).astype(kind)
    weight[0] = 1
    same = [v.astype(dtype) for v in (x, t, weight)]
    net, other = make(backend=backend, dtype=dtype), make(backend=backend, dtype=dtype)
    np.testing.assert_array_equal(net.forward(x), net.forward(same[0]))
    assert net.forward(x).dtype == dtype
    for one, two in zip(net.loss_and_grad(x, t, weight), net.loss_and_grad(*same), strict=True):
        np.testing.assert_array_equal(one, two)
    net.fit(x, t, epochs=2, batch_size=3, sample_weight=weight, validation=(x, t, weight))
    other.fit(*same[:2], epochs=2, batch_size=3, sample_weight=same[2], validation=tuple(same))
    np.testing.assert_array_equal(net.theta, other.theta)
    assert net.history.validation_loss == other.history.validation_loss


def test_boolean_targets_of_bce():
    net = fastbp.MLP([4, 1], loss="bce", seed=0)
    t = LABELS > 0
    assert net.loss(X, t) == net.loss(X, t.astype(float)) == net.loss(X, t.astype(np.uint8)[:, None])
    assert net.score(X, t) == pytest.approx((net.predict(X)[:, 0] == t).mean())


def test_lists_and_tuples():
    net = make()
    np.testing.assert_array_equal(net.forward(X.tolist()), net.forward(X))
    assert net.loss([tuple(row) for row in X], T.tolist(), (1,) * N) == net.loss(X, T)
    assert net.loss(X.tolist(), LABELS.tolist()) == net.loss(X, LABELS)
    net.theta = [0.5] * SIZE
    assert (net.theta == 0.5).all()


def fortran(v):
    return np.asfortranarray(v)


def strided(v):
    wide = np.zeros([2 * s for s in v.shape], v.dtype)
    part = wide[tuple(slice(1, None, 2) for _ in v.shape)]
    part[...] = v
    return part


def backwards(v):
    return np.ascontiguousarray(v[::-1])[::-1]


def read_only(v):
    v = v.copy()
    v.flags.writeable = False
    return v


def unaligned(v):
    found = np.ndarray(v.shape, v.dtype, bytearray(v.nbytes + 1), 1)
    found[...] = v
    return found


@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("layout", [fortran, strided, backwards, read_only, unaligned])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_arrays_of_any_layout_are_taken_and_left_alone(backend, dtype, layout, labels):
    loss = "cross_entropy" if labels else "huber"
    plain = [X.astype(dtype), LABELS.copy() if labels else T.astype(dtype), np.arange(1, N + 1).astype(dtype)]
    given = [layout(v) for v in plain]
    for v, same in zip(given, plain, strict=True):
        np.testing.assert_array_equal(v, same)
    net, other = make(loss, backend, dtype=dtype), make(loss, backend, dtype=dtype)
    np.testing.assert_array_equal(net.forward(given[0]), other.forward(plain[0]))
    np.testing.assert_array_equal(net.predict(given[0]), other.predict(plain[0]))
    assert net.score(*given) == other.score(*plain)
    for one, two in zip(net.loss_and_grad(*given), other.loss_and_grad(*plain), strict=True):
        np.testing.assert_array_equal(one, two)
    for one, two in zip(net.deltas(*given), other.deltas(*plain), strict=True):
        np.testing.assert_array_equal(one, two)
    for shuffle in (True, False):
        for one, (x, t, w) in ((net, given), (other, plain)):
            one.fit(x, t, sample_weight=w, epochs=2, batch_size=3, shuffle=shuffle, validation=(x, t, w), patience=5)
            one.fit(x, t, sample_weight=w, epochs=1, validation=0.25)
    np.testing.assert_array_equal(net.theta, other.theta)
    for v, same, original in zip(given, plain, (X, LABELS if labels else T, np.arange(1, N + 1)), strict=True):
        np.testing.assert_array_equal(v, same)
        np.testing.assert_array_equal(same, original.astype(same.dtype))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_broadcast_array_is_taken(backend):
    net = make(backend=backend)
    x = np.broadcast_to(X[:1], (6, 4))
    np.testing.assert_array_equal(net.forward(x), net.forward(np.repeat(X[:1], 6, axis=0)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_results_are_the_callers_own(backend, dtype):
    """Writing into a result changes neither the network nor the data, and later calls do not change it."""
    net = make(backend=backend, dtype=dtype, output="identity")
    x, t = X.astype(dtype), T.astype(dtype)
    start = net.theta.copy()
    loss, gradient = net.loss_and_grad(x, t)
    results = [net.forward(x), net.logits(x), gradient, *net.deltas(x, t)]
    kept = [r.copy() for r in results]
    net.loss_and_grad(2 * x, t)
    net.deltas(2 * x, t)
    net.forward(2 * x)
    for result, copy in zip(results, kept, strict=True):
        np.testing.assert_array_equal(result, copy)
        for v in (net.theta, x, t):
            assert not np.shares_memory(result, v)
        result[...] = 9.0
    np.testing.assert_array_equal(net.theta, start)
    np.testing.assert_array_equal(x, X.astype(dtype))
    assert net.loss(x, t) == loss


def test_a_gradient_is_split_like_the_parameters():
    net = make()
    gradient = net.loss_and_grad(X, T)[1]
    weights, biases = net.split(gradient)
    assert [w.shape for w in weights] == [w.shape for w in net.weights] == [(4, 5), (5, 3)]
    assert [b.shape for b in biases] == [b.shape for b in net.biases] == [(5,), (3,)]
    parts = [part.ravel() for pair in zip(weights, biases, strict=True) for part in pair]
    np.testing.assert_array_equal(np.concatenate(parts), gradient)
    assert all(np.shares_memory(w, gradient) for w in (*weights, *biases))
