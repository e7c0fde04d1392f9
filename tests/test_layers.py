"""Layers and Network: what a layer computes, what theta holds, what is refused and how it is worded."""

from __future__ import annotations

import numpy as np
import pytest

import fastbp
from fastbp import MLP, Network, layers
from fastbp.errors import InputError
from fastbp.layers import OUTPUTS, Activation, Concat, Dense, Dropout, Embedding, Input, apply, concat

RNG = np.random.default_rng(0)
N = 8
X = RNG.normal(size=(N, 4))
T = RNG.random((N, 3))
IDS = np.array([0, 1, 2, 3, 4, 4, 0, 2])


def of(value, x, **options):
    """What a value is for an input X (n, 4), through a Dense that changes nothing."""
    inputs = [v for v in made_of(value) if layers.is_input(v.layer)]
    last = Dense(value.cols, bias=False, name="last")
    net = Network(inputs, last(value), dtype="float64", seed=0, **options)
    net.views()["last.W"][...] = np.eye(value.cols)
    return net.forward(x), net


def made_of(value):
    found = {}
    stack = [value]
    while stack:
        one = stack.pop()
        found[one.id] = one
        stack.extend(one.inputs)
    return [found[k] for k in sorted(found)]


# ---- what layers compute ---------------------------------------------------------------------------------------------


def test_operators(backend):
    a, b = Input(4), Input(4)
    y = X[::-1] + 3.0
    cases = {
        "a + b": (a + b, X + y),
        "a - b": (a - b, X - y),
        "a * b": (a * b, X * y),
        "a / b": (a / b, X / y),
        "2 + a - 1": (2 + a - 1 + b * 0, X + 1),
        "3 - a": (3 - a + b * 0, 3 - X),
        "2 / b": (a * 0 + 2 / b, 2 / y),
        "-a / 2": (-a / 2 + 0 * b, -X / 2),
        "numpy's numbers": (np.float64(2) * a + b * np.int64(3), 2 * X + 3 * y),
        "a column": (a * Dense(1, bias=False, init="zeros", name="zero")(b) + a, X),
    }
    for name, (value, expected) in cases.items():
        np.testing.assert_allclose(of(value, [X, y], backend=backend)[0], expected, rtol=1e-13, err_msg=name)


@pytest.mark.parametrize("activation", OUTPUTS)
def test_activations(activation, backend):
    by_layer, _ = of(Activation(activation)(Input(4)), [X], backend=backend)
    x = Input(4)
    dense = Network(x, Dense(4, activation, bias=False, name="d")(x), dtype="float64", backend=backend)
    dense.theta = np.eye(4).ravel()
    np.testing.assert_allclose(by_layer, dense.forward(X), rtol=1e-12)
    np.testing.assert_allclose(dense.logits(X), X, rtol=1e-14)


def test_concat_and_apply(backend):
    a, b = Input(4), Input(2)
    y = X[:, :2] * 3
    np.testing.assert_allclose(of(concat([a, b, a]), [X, y], backend=backend)[0], np.hstack([X, y, X]), rtol=1e-14)
    assert concat([a]).cols == 4
    for value in (apply("square", a), apply(lambda node: node * node, a), apply(lambda n, m: n * m, a, a)):
        np.testing.assert_allclose(of(value, [X], backend=backend)[0], X * X, rtol=1e-14)
    halves = apply(lambda node: node.columns(1, 3), a)
    assert halves.cols == 2
    centred = apply(lambda node: node - node.mean(axis=0), a)
    np.testing.assert_allclose(of(centred, [X], backend=backend)[0], X - X.mean(axis=0), rtol=1e-10, atol=1e-15)


def test_embedding(backend):
    i = Input(dtype="int")
    found, net = of(Embedding(5, 3, name="words")(i), [IDS], backend=backend)
    np.testing.assert_allclose(found, net.views()["words.table"][IDS], rtol=1e-14)
    for ids in (IDS[:, None], IDS.astype(np.uint8), IDS.tolist()):
        np.testing.assert_array_equal(net.forward([ids]), found)
    assert abs(of(Embedding(1000, 30)(i), [IDS])[1].views()["embedding0.table"].var() - 1) < 0.05


def test_a_dense_on_several_values_adds_their_products(backend):
    a, b = Input(4), Input(2)
    net = Network([a, b], Dense(3, "tanh")(a, b), dtype="float64", backend=backend, seed=0)
    y = X[:, :2] * 3
    p = net.views()
    assert list(p) == ["dense0.W", "dense0.W1", "dense0.b"]
    expected = np.tanh(X @ p["dense0.W"] + y @ p["dense0.W1"] + p["dense0.b"])
    np.testing.assert_allclose(net.forward([X, y]), expected, rtol=1e-13)


def test_theta_and_its_views():
    x = Input(4)
    shared = Dense(4, name="shared")
    h = shared(shared(x))
    net = Network(x, Dense(3, bias=False)(h) + Dense(3, name="other")(h), seed=0)
    assert {name: view.shape for name, view in net.views().items()} == {
        "shared.W": (4, 4),
        "shared.b": (4,),
        "dense1.W": (4, 3),
        "other.W": (4, 3),
        "other.b": (3,),
    }
    net.theta = np.arange(net.theta.size)
    np.testing.assert_array_equal(np.concatenate([v.ravel() for v in net.views().values()]), net.theta)
    net.views()["other.b"][1] = -1.0
    assert net.theta[-2] == -1.0
    assert net.views(np.zeros_like(net.theta))["shared.W"].sum() == 0


def test_layers_hold_no_parameters():
    """Two networks of the same layers have parameters of their own."""
    x = Input(4)
    y = Dense(3)(x)
    one, other = Network(x, y, seed=0), Network(x, y, seed=1)
    assert not np.shares_memory(one.theta, other.theta)
    assert not np.array_equal(one.theta, other.theta)
    one.fit(X, T, epochs=1)
    np.testing.assert_array_equal(other.theta, Network(x, y, seed=1).theta)


def test_forms_of_inputs_and_outputs():
    a, b = Input(4, name="a"), Input(2)
    y, z = Dense(3)(a, b), Dense(1)(b)
    data = [X, X[:, :2]]
    lists = Network([a, b], [y, z], seed=0)
    dicts = Network({"left": a, "right": b}, {"many": y, "one": z}, seed=0)
    expected = lists.forward(data)
    for given in (tuple(data), {"a": data[0], 1: data[1]}):
        for got, want in zip(lists.forward(given), expected, strict=True):
            np.testing.assert_array_equal(got, want)
    for given in (data, {"right": data[1], "left": data[0]}):
        found = dicts.forward(given)
        assert list(found) == ["many", "one"]
        for got, want in zip(found.values(), expected, strict=True):
            np.testing.assert_array_equal(got, want)
    targets = [T, T[:, 0]]
    assert (
        lists.loss(data, targets) == dicts.loss(data, {"one": T[:, 0], "many": T}) == lists.loss(data, tuple(targets))
    )
    assert isinstance(Network([a], Dense(1)(a)).forward([X]), np.ndarray)
    assert isinstance(Network(a, [Dense(1)(a)]).forward(X), list)


def test_one_value_as_two_outputs(backend):
    x = Input(4)
    y = Dense(3)(x)
    net = Network(x, [y, y], loss=["mse", "mae"], loss_weights=[1, 0], backend=backend, dtype="float64", seed=0)
    assert net.loss(X, [T, T + 9]) == pytest.approx(((net(X)[0] - T) ** 2).mean())


def test_settings_and_repr():
    x = Input(4)
    net = Network(x, Dense(3)(x), loss="sse", seed=3, dtype="float64", backend="numpy")
    text = repr(net)
    for part in ("Network(X (n, 4) -> A (n, 3)", "15 parameters", "'sse'", "float64", "numpy", "seed=3"):
        assert part in text
    assert not net.averages
    assert net.loss_name == "sse"
    assert isinstance(MLP([2, 1]), Network)
    assert "skip=[[0, 2]]" in repr(MLP([3, 2, 1], skip=[(0, 2)]))
    assert "bias=False" in repr(MLP([3, 2, 1], bias=False))


def test_sizes_of_products():
    x = Input(4)
    d = Dense(4)
    assert Network(x, d(d(x))).operations_a_row() == 2 * 6 * 16
    assert MLP([4, 5, 3]).operations_a_row() == 6 * (20 + 15)


# ---- what is refused -------------------------------------------------------------------------------------------------

x4, x2, ids = Input(4), Input(2), Input(dtype="int")
BAD_LAYERS = {
    "cols": (lambda: Input(0), ["cols must be an integer of at least 1, got 0"]),
    "cols text": (lambda: Input("x"), ["cols must be an integer", "'x'"]),
    "input name": (lambda: Input(4, name=""), ["name must be a non-empty string", "''"]),
    "input dtype": (lambda: Input(4, dtype="flat"), ["dtype='flat' is unknown; did you mean 'float'?"]),
    "int columns": (lambda: Input(4, dtype="int"), ["cols must be 1 for an Input of dtype 'int', got 4"]),
    "units": (lambda: Dense(0), ["units must be an integer of at least 1, got 0"]),
    "activation": (lambda: Dense(3, "rleu"), ["activation='rleu' is unknown", "did you mean 'relu'?"]),
    "activation none": (lambda: Dense(3, None), ["activation=None is unknown"]),
    "bias": (lambda: Dense(3, bias="no"), ["bias must be True or False, got 'no'"]),
    "init": (lambda: Dense(3, init="glorott"), ["init='glorott' is unknown", "did you mean 'glorot'?"]),
    "l1": (lambda: Dense(3, l1=-1), ["l1 must be a finite number of at least 0, got -1"]),
    "l2": (lambda: Dense(3, l2=np.nan), ["l2 must be a finite number of at least 0, got nan"]),
    "name": (lambda: Dense(3, name=3), ["name must be a non-empty string or None, got 3"]),
    "rate": (lambda: Dropout(1.0), ["rate must lie in [0, 1), got 1.0"]),
    "rate text": (lambda: Dropout("half"), ["rate must lie in [0, 1), got 'half'"]),
    "rows": (lambda: Embedding(0, 2), ["rows must be an integer of at least 1, got 0"]),
    "embedding init": (lambda: Embedding(3, 2, init=None), ["init=None is unknown"]),
    "activation layer": (lambda: Activation("softmacks"), ["activation='softmacks' is unknown", "'softmax'"]),
    "array": (lambda: Dense(3)(X), ["Dense: its arguments must be values of layers"]),
    "nothing": (lambda: Dense(3)(), ["Dense: it must be called on at least one value"]),
    "row numbers": (lambda: Dense(3)(ids), ["Dense: its arguments must be numbers, got row numbers"]),
    "row numbers added": (lambda: ids + 1, ["its arguments must be numbers, got row numbers"]),
    "numbers as rows": (lambda: Embedding(5, 2)(x4), ["Embedding: its argument must be an Input of dtype 'int'"]),
    "two values": (lambda: Dropout(0.5)(x4, x4), ["Dropout: it must be called on one value, got 2"]),
    "widths": (lambda: x4 + x2, ["add: values must have the same width, or one of them width 1; got 4 and 2"]),
    "an operand": (lambda: x4 * "2", ["mul: a value of a layer goes with values and numbers, got '2'"]),
    "an array operand": (lambda: X / x4, ["div: a value of a layer goes with values and numbers, got array"]),
    "true": (lambda: x4 - True, ["sub: a value of a layer goes with values and numbers, got True"]),
    "concat": (lambda: concat(x4), ["concat: values must be a list of values of layers"]),
    "concat nothing": (lambda: concat([]), ["concat: values must be a list of values of layers, got []"]),
    "concat text": (lambda: concat([x4, "x"]), ["Concat: its arguments must be values of layers, got 'x'"]),
    "apply name": (lambda: apply("sqare", x4), ["function='sqare' is unknown; did you mean 'square'?"]),
    "apply names": (lambda: apply("square", x4, x4), ["apply: it must be called on one value, got 2"]),
    "apply number": (lambda: apply(3, x4), ["function must be a function of nodes", "3"]),
    "apply nothing": (lambda: apply("square"), ["apply: it must be called on one value, got 0"]),
    "apply no values": (lambda: apply(lambda: 1), ["apply: function needs at least one value"]),
    "apply to a number": (
        lambda: apply(lambda node: 3, x4),
        ["apply: function must give a node of shape (n, cols), got 3"],
    ),
    "apply to a scalar": (
        lambda: apply(lambda node: node.sum(), x4),
        ["apply: function must give a node of shape (n,"],
    ),
    "apply to rows": (lambda: apply(lambda node: node, ids), ["apply: function must give a node of shape (n, cols)"]),
    "apply more": (
        lambda: apply(lambda node: node @ fastbp.graph.param("w", (4, 2)), x4),
        ["apply: function may use its arguments and numbers alone", "w"],
    ),
}


@pytest.mark.parametrize("case", BAD_LAYERS)
def test_bad_layers(case):
    call, words = BAD_LAYERS[case]
    with pytest.raises(InputError) as caught:
        call()
    for word in words:
        assert word in str(caught.value)


def test_shared_weights_have_one_shape():
    dense = Dense(3)
    dense(x4)
    with pytest.raises(InputError, match=r"was called on widths \[4\] first, now on \[2\]"):
        dense(x2)
    with pytest.raises(InputError, match=r"now on \[4, 4\]"):
        dense(x4, x4)


y3, y1 = Dense(3)(x4), Dense(1, "sigmoid")(x4)
BAD_NETWORKS = {
    "inputs": (lambda: Network("x", y3), ["inputs must be a value of a layer", "'x'"]),
    "no inputs": (lambda: Network([], y3), ["inputs must not be empty"]),
    "outputs": (lambda: Network(x4, None), ["outputs must be a value of a layer", "None"]),
    "outputs among them": (lambda: Network(x4, [y3, X]), ["outputs must be a value of a layer"]),
    "a layer": (lambda: Network(x4, Dense(3)), ["outputs must be a value of a layer"]),
    "keys": (lambda: Network({1: x4}, y3), ["inputs must have names as keys, got [1]"]),
    "no input": (lambda: Network(y3, y3), ["inputs must be what layers.Input gave"]),
    "unused": (lambda: Network([x4, x2], y3), ["inputs: no output depends on", "(n, 2)"]),
    "missing": (lambda: Network(x4, Dense(3)(x4, x2)), ["inputs: outputs depend on", "which is not among the inputs"]),
    "twice": (lambda: Network([x4, x4], y3), ["inputs:", "more than once"]),
    "names": (
        lambda: (lambda a, b: Network([a, b], Dense(1)(a, b)))(Input(1, name="a"), Input(1, name="a")),
        ["inputs: two of them have the same name, of ['a', 'a']"],
    ),
    "layer names": (
        lambda: Network(x4, Dense(1, name="d")(Dense(2, name="d")(x4))),
        ["name: two layers have parameters called 'd.W'"],
    ),
    "nothing to train": (lambda: Network(x4, x4 * 2.0), ["nothing to train"]),
    "loss": (lambda: Network(x4, y3, loss="mes"), ["loss='mes' is unknown", "did you mean 'mse'?"]),
    "losses of one": (lambda: Network(x4, y3, loss=["mse"]), ["loss=['mse'] is unknown"]),
    "losses": (lambda: Network(x4, [y3, y1], loss=["mse"]), ["loss must be a list or tuple of 2", "list of 1"]),
    "losses by name": (
        lambda: Network(x4, {"a": y3}, loss={"b": "mse"}),
        ["loss must be", "dict of 'a'", "dict of ['b']"],
    ),
    "loss of outputs": (lambda: Network(x4, [y3, y1], loss=["mse", None]), ["loss=None is unknown"]),
    "logits": (
        lambda: Network(x4, y3, loss="bce"),
        ["output='identity' does not go with loss='bce'", "output='sigmoid'"],
    ),
    "logits of a sum": (lambda: Network(x4, y1 + 1, loss="bce"), ["output='identity' does not go with loss='bce'"]),
    "one class": (lambda: Network(x4, Dense(1, "softmax")(x4), loss="cross_entropy"), ["needs at least two outputs"]),
    "weights": (lambda: Network(x4, [y3, y1], loss_weights=2.0), ["loss_weights must be a list or tuple of 2"]),
    "weight": (lambda: Network(x4, [y3, y1], loss_weights=[1, -1]), ["loss_weights[1] must be a finite number", "-1"]),
    "weight of one": (lambda: Network(x4, y3, loss_weights="1"), ["loss_weights must be a finite number", "'1'"]),
    "means and sums": (lambda: Network(x4, [y3, y1], loss=["mse", "sse"]), ["loss=['mse', 'sse']", "means", "sums"]),
    "reduction": (lambda: Network(x4, y3, reduction="men"), ["reduction='men' is unknown"]),
    "dtype": (lambda: Network(x4, y3, dtype="half"), ["dtype='half' is unknown"]),
    "backend": (lambda: Network(x4, y3, backend="nunpy"), ["backend='nunpy' is unknown", "'numpy'"]),
    "precision": (lambda: Network(x4, y3, precision="high"), ["precision='high' is unknown"]),
    "seed": (lambda: Network(x4, y3, seed=-1), ["seed must be an integer of at least 0, got -1"]),
    "skip": (lambda: MLP([4, 5, 3], skip=1), ["skip must be a list of pairs (source, target)", "got 1"]),
    "skip one": (lambda: MLP([4, 5, 3], skip=[3]), ["skip must be a list of pairs", "3 among them"]),
    "skip pair": (lambda: MLP([4, 5, 3], skip=(0, 2)), ["skip must be a list of pairs", "0 among them"]),
    "skip text": (lambda: MLP([4, 5, 3], skip=[("0", 2)]), ["skip: source must be an integer of at least 0, got '0'"]),
    "skip beyond": (lambda: MLP([4, 5, 3], skip=[(0, 3)]), ["skip: (0, 3) must lead over at least one layer", "1 … 2"]),
    "skip nothing": (
        lambda: MLP([4, 5, 3], skip=[(1, 2)]),
        ["skip: (1, 2) must lead over", "layer 2 receives layer 1"],
    ),
    "skip back": (lambda: MLP([4, 5, 6, 3], skip=[(3, 1)]), ["skip: (3, 1) must lead over at least one layer"]),
    "skip twice": (lambda: MLP([4, 5, 3], skip=[(0, 2), [0, 2]]), ["skip: (0, 2) is there more than once"]),
    "mlp bias": (lambda: MLP([4, 3], bias=None), ["bias must be True or False, got None"]),
    "mlp dropout": (lambda: MLP([4, 3], dropout=1), ["dropout must lie in [0, 1), got 1"]),
    "mlp l1": (lambda: MLP([4, 3], l1="1"), ["l1 must be a finite number of at least 0, got '1'"]),
    "mlp l2": (lambda: MLP([4, 3], l2=-0.1), ["l2 must be a finite number of at least 0, got -0.1"]),
}


@pytest.mark.parametrize("case", BAD_NETWORKS)
def test_bad_networks(case):
    call, words = BAD_NETWORKS[case]
    with pytest.raises(InputError) as caught:
        call()
    for word in words:
        assert word in str(caught.value)


def make(**options):
    i, x = Input(name="id", dtype="int"), Input(4)
    h = Dense(5, "tanh")(Embedding(5, 2)(i), x)
    return Network(
        [i, x],
        {"price": Dense(3)(h), "yes": Dense(1, "sigmoid")(h)},
        loss={"price": "mse", "yes": "bce"},
        seed=0,
        **options,
    )


GOOD_T = {"price": T, "yes": IDS < 2}
BAD_BATCHES = {
    "an array": (X, GOOD_T, ["X must be a list or tuple of 2, or a dict of 'id', 1; got a ndarray"]),
    "too few": ([IDS], GOOD_T, ["X must be a list or tuple of 2", "got a list of 1"]),
    "wrong names": ({"id": IDS, "x": X}, GOOD_T, ["a dict of 'id', 1; got a dict of ['id', 'x']"]),
    "shape": ([IDS, X[:, :3]], GOOD_T, ["X[1] must be a 2-D array of numbers of shape (n, 4)", "(8, 3)"]),
    "rows": ([IDS, X[:5]], GOOD_T, ["X[1] has 5 rows, but X['id'] has 8"]),
    "floats": ([IDS + 0.0, X], GOOD_T, ["X['id'] must be (n,) or (n, 1) integers", "float64"]),
    "bools": ([IDS > 1, X], GOOD_T, ["X['id'] must be (n,) or (n, 1) integers", "bool"]),
    "wide": ([np.stack([IDS, IDS], 1), X], GOOD_T, ["X['id'] must be (n,) or (n, 1) integers", "(8, 2)"]),
    "deep": ([IDS[:, None, None], X], GOOD_T, ["X['id'] must be (n,) or (n, 1) integers", "(8, 1, 1)"]),
    "beyond": ([IDS + 1, X], GOOD_T, ["X['id']: row numbers must be 0 … 4; row 4 is 5"]),
    "below": ([IDS - 1, X], GOOD_T, ["X['id']: row numbers must be 0 … 4; row 0 is -1"]),
    "huge": ([np.full(N, 2**63, np.uint64), X], GOOD_T, ["X['id']: row numbers must be", str(2**63)]),
    "targets": ([IDS, X], T, ["T must be a list or tuple of 2, or a dict of 'price', 'yes'; got a ndarray"]),
    "target names": ([IDS, X], {"price": T}, ["T must be a list", "got a dict of ['price']"]),
    "target shape": ([IDS, X], [T[:, :2], IDS < 2], ["T['price'] must be", "(n, 3)", "(8, 2)"]),
    "target rows": ([IDS, X], [T, IDS[:3] < 2], ["T['yes'] has 3 rows, but X['id'] has 8"]),
    "target nan": ([IDS, X], [T * np.nan, IDS < 2], ["T['price'] must be finite"]),
    "probabilities": ([IDS, X], [T, IDS], ["T['yes']: targets of loss='bce' must lie in [0, 1]"]),
    "nothing": ([IDS[:0], X[:0]], [T[:0], IDS[:0]], ["X has no rows"]),
}
CALLS = {
    "loss": lambda net, x, t: net.loss(x, t),
    "loss_and_grad": lambda net, x, t: net.loss_and_grad(x, t),
    "deltas": lambda net, x, t: net.deltas(x, t),
    "score": lambda net, x, t: net.score(x, t),
    "fit": lambda net, x, t: net.fit(x, t),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("case", BAD_BATCHES)
def test_bad_batches(case, call):
    net = make()
    x, t, words = BAD_BATCHES[case]
    theta = net.theta.copy()
    with pytest.raises(InputError) as caught:
        CALLS[call](net, x, t)
    for word in words:
        assert word in str(caught.value)
    np.testing.assert_array_equal(net.theta, theta)
    assert net.training is None


def test_fit_takes_finite_inputs_alone():
    with pytest.raises(InputError, match=r"X\[1\] must be finite; row 0, column 0 is nan"):
        make().fit([IDS, X * np.nan], GOOD_T)
    with pytest.raises(InputError, match=r"validation X\['id'\]: row numbers must be 0 … 4"):
        make().fit([IDS, X], GOOD_T, validation=([IDS + 1, X], GOOD_T))
    with pytest.raises(InputError, match=r"validation T\['yes'\] has 3 rows, but validation X\['id'\] has 8"):
        make().fit([IDS, X], GOOD_T, validation=([IDS, X], [T, [0, 1, 0]]))


def test_row_numbers_in_functions_are_checked_too():
    """They would read beyond the table."""
    i, x = Input(dtype="int"), Input(4)
    with pytest.raises(InputError, match="apply: row numbers go with a matrix of fixed rows, not with one of a batch"):
        Network([i, x], Dense(2)(apply(lambda k, node: node.take(k), i, x)))
    net = Network([i, x], Dense(2)(apply(lambda k, node: (node.T @ node).take(k), i, x)), seed=0)
    net.forward([IDS % 4, X])
    with pytest.raises(InputError, match=r"X\[0\]: row numbers must be 0 … 3; row 4 is 4"):
        net.forward([IDS, X])
    net = Network(i, Dense(2)(apply(lambda k: k.onehot(5), i)), seed=0)
    net.forward(IDS)
    with pytest.raises(InputError, match=r"X: row numbers must be 0 … 4"):
        net.forward(IDS + 1)
    net = Network(i, Dense(2)(Embedding(3, 2)(i) + Embedding(9, 2)(i)), seed=0)
    with pytest.raises(InputError, match=r"X: row numbers must be 0 … 2"):
        net.forward(IDS)


def test_layers_say_what_they_are():
    assert repr(Dense(3, "relu")) == (
        "Dense(units=3, activation='relu', bias=True, init=None, l1=0.0, l2=0.0, name=None)"
    )
    assert "(n, 4)" in repr(x4)
    assert Concat().config() == {"class": "Concat"}
