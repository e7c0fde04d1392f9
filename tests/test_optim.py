"""Optimisers, schedules and clipping: step by step against plain loops and PyTorch; configurations; refusals."""

from __future__ import annotations

import copy
import json
import math
import re

import numpy as np
import pytest

import fastbp
from fastbp import optim
from fastbp.errors import FastbpError, InputError
from fastbp.optim import (
    SGD,
    Adagrad,
    Adam,
    AdamW,
    CosineDecay,
    ExponentialDecay,
    Ftrl,
    Momentum,
    Nesterov,
    RMSprop,
    StepDecay,
    WarmUp,
)

BACKENDS = ("cpu", "numpy")
DTYPES = ("float32", "float64")
SIZE, STEPS = 37, 60
RTOL = {"float32": 2e-5, "float64": 1e-12}

# Every rule twice, once with settings of its own that are far from the defaults.
CASES = {
    "sgd": SGD(0.1),
    "momentum": Momentum(0.05),
    "momentum, low": Momentum(0.2, momentum=0.3),
    "nesterov": Nesterov(0.05),
    "nesterov, low": Nesterov(0.2, momentum=0.3),
    "adagrad": Adagrad(0.1),
    "adagrad, eps": Adagrad(0.3, epsilon=0.5),
    "rmsprop": RMSprop(0.01),
    "rmsprop, eps": RMSprop(0.02, rho=0.6, epsilon=0.1),
    "adam": Adam(0.01),
    "adam, eps": Adam(0.02, beta1=0.5, beta2=0.9, epsilon=0.1),
    "adam, no memory": Adam(0.02, beta1=0.0, beta2=0.0),
    "adamw": AdamW(0.01),
    "adamw, strong": AdamW(0.02, beta1=0.5, beta2=0.9, epsilon=0.1, weight_decay=0.7),
    "ftrl": Ftrl(0.1),
    "ftrl, l1 l2": Ftrl(0.2, beta=0.3, l1=0.4, l2=0.2),
}


def problem(dtype, steps=STEPS, size=SIZE):
    """A start and a gradient for every step, of very different sizes; the same for every implementation."""
    rng = np.random.default_rng(4)
    theta = rng.normal(size=size).astype(dtype)
    gradients = rng.normal(0.3, 1.0, (steps, size)) * 10.0 ** rng.uniform(-2, 1, size)
    return theta, gradients.astype(dtype)


def run(optimizer, dtype, backend, steps=STEPS):
    """theta after every step."""
    theta, gradients = problem(dtype, steps)
    state = optimizer.init(theta)
    path = []
    for g in gradients:
        optimizer.update(theta, g, state, backend=backend)
        path.append(theta.copy())
    assert state.step == steps
    return np.array(path)


def reference(o, dtype):
    """The same path in float64, an element at a time, from the formulas as published."""
    theta, gradients = problem(dtype)
    path = []
    for start, column in zip(theta.tolist(), gradients.T.tolist(), strict=True):
        path.append(element_path(o, start, column))
    return np.array(path).T


def element_path(o, w, gradients):
    rate = o.learning_rate
    v = s = 0.0
    found = []
    if isinstance(o, Ftrl):
        z = -w * (o.beta / rate + o.l2) - math.copysign(o.l1, w)
    for t, g in enumerate(gradients, 1):
        if isinstance(o, AdamW):
            w -= rate * o.weight_decay * w
        if isinstance(o, Adam):
            v = o.beta1 * v + (1 - o.beta1) * g
            s = o.beta2 * s + (1 - o.beta2) * g**2
            w -= rate * (v / (1 - o.beta1**t)) / (math.sqrt(s / (1 - o.beta2**t)) + o.epsilon)
        elif isinstance(o, Nesterov):
            v = o.momentum * v + g
            w -= rate * (g + o.momentum * v)
        elif isinstance(o, Momentum):
            v = o.momentum * v + g
            w -= rate * v
        elif isinstance(o, Adagrad):
            s += g**2
            w -= rate * g / (math.sqrt(s) + o.epsilon)
        elif isinstance(o, RMSprop):
            s = o.rho * s + (1 - o.rho) * g**2
            w -= rate * g / (math.sqrt(s) + o.epsilon)
        elif isinstance(o, Ftrl):  # algorithm 1 of McMahan et al. 2013
            change = (math.sqrt(s + g**2) - math.sqrt(s)) / rate
            z += g - change * w
            s += g**2
            w = 0.0 if abs(z) <= o.l1 else -(z - math.copysign(o.l1, z)) / ((o.beta + math.sqrt(s)) / rate + o.l2)
        else:
            w -= rate * g
        found.append(w)
    return found


def assert_same_path(path, expected, dtype):
    """Equal to rounding errors, measured by the largest value on each parameter's path."""
    assert path.shape == expected.shape
    worst = (np.abs(path - expected) / np.abs(expected).max(axis=0)).max()
    assert worst <= RTOL[dtype]


# ---- rules ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES)
def test_every_step_is_the_published_formula(case, backend, dtype):
    path = run(CASES[case], dtype, backend)
    assert path.dtype == dtype
    expected = reference(CASES[case], dtype)
    assert_same_path(path, expected, dtype)


def torch_optimizer(torch, o, parameters):
    of = torch.optim
    if isinstance(o, AdamW):
        return of.AdamW(parameters, o.learning_rate, (o.beta1, o.beta2), o.epsilon, o.weight_decay)
    if isinstance(o, Adam):
        return of.Adam(parameters, o.learning_rate, (o.beta1, o.beta2), o.epsilon)
    if isinstance(o, Momentum):
        return of.SGD(parameters, o.learning_rate, o.momentum, nesterov=isinstance(o, Nesterov))
    if isinstance(o, Adagrad):
        return of.Adagrad(parameters, o.learning_rate, eps=o.epsilon)
    if isinstance(o, RMSprop):
        return of.RMSprop(parameters, o.learning_rate, alpha=o.rho, eps=o.epsilon)
    return of.SGD(parameters, o.learning_rate)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", [c for c in CASES if not c.startswith("ftrl")])
def test_every_step_is_pytorchs(case, backend, dtype):
    torch = pytest.importorskip("torch")
    theta, gradients = problem(dtype)
    parameter = torch.nn.Parameter(torch.tensor(theta))
    theirs = torch_optimizer(torch, CASES[case], [parameter])
    expected = []
    for g in gradients:
        parameter.grad = torch.tensor(g)
        theirs.step()
        expected.append(parameter.detach().numpy().copy())
    path = run(CASES[case], dtype, backend)
    assert_same_path(path, np.array(expected), dtype)


@pytest.mark.parametrize("backend", BACKENDS)
def test_ftrl_from_zero_is_the_algorithm_as_published(backend):
    """From theta = 0 there is nothing to start from but z = 0."""
    o = Ftrl(0.5, beta=0.7, l1=0.9, l2=0.1)
    theta = np.zeros(3)
    state = o.init(theta)
    z, n, w = np.zeros(3), np.zeros(3), np.zeros(3)
    for g in np.random.default_rng(1).normal(size=(30, 3)):
        change = (np.sqrt(n + g * g) - np.sqrt(n)) / o.learning_rate
        z, n = z + g - change * w, n + g * g
        w = np.where(np.abs(z) <= o.l1, 0, -(z - np.sign(z) * o.l1) / ((o.beta + np.sqrt(n)) / o.learning_rate + o.l2))
        o.update(theta, g, state, backend=backend)
        np.testing.assert_allclose(theta, w, rtol=1e-12, atol=1e-14)
    assert (w != 0).any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_ftrl_starts_from_the_parameters_that_are_there(backend):
    o = Ftrl(0.3, l1=0.2, l2=0.5)
    theta = np.array([1.5, -2.0, 0.0, 1e-3])
    moved = theta.copy()
    o.update(moved, np.zeros(4), o.init(theta), backend=backend)
    np.testing.assert_allclose(moved, theta, rtol=1e-13, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_ftrl_gives_exact_zeros(backend):
    """Where the gradient asks for less than l1, the parameter is 0 and not merely small."""
    o = Ftrl(1.0, l1=1.0)
    theta = np.linspace(-0.5, 0.5, 11)
    state = o.init(theta)
    rng = np.random.default_rng(0)
    for _ in range(50):
        o.update(theta, 0.5 * (theta - theta**3) + 0.01 * rng.normal(size=11), state, backend=backend)
    assert (theta == 0).sum() >= 3
    assert (theta != 0).any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", [c for c in CASES if not c.startswith(("ftrl", "adamw"))])
def test_no_gradient_no_step(case, backend, dtype):
    theta = problem(dtype)[0]
    moved = theta.copy()
    CASES[case].update(moved, np.zeros(SIZE), CASES[case].init(theta), backend=backend)
    np.testing.assert_array_equal(moved, theta)


@pytest.mark.parametrize("case", ["sgd", "nesterov", "adamw", "ftrl"])
def test_large_vectors_on_any_number_of_threads(case):
    """Sizes around the pieces into which the work is cut, and one that several threads share."""
    o = CASES[case]
    before = fastbp.get_num_threads()
    try:
        for size in (16_383, 16_385, 300_001):
            rng = np.random.default_rng(size)
            start, gradients = rng.normal(size=size), rng.normal(size=(3, size))
            results = []
            for threads, backend in ((1, "cpu"), (2, "cpu"), (1, "numpy")):
                fastbp.set_num_threads(threads)
                theta = start.copy()
                state = o.init(theta)
                for g in gradients:
                    o.update(theta, g, state, backend=backend)
                results.append(theta)
            np.testing.assert_array_equal(results[0], results[1])
            np.testing.assert_allclose(results[0], results[2], rtol=1e-12, atol=1e-14)
    finally:
        fastbp.set_num_threads(before)


def test_parameters_of_any_shape():
    flat, square = np.ones(6), np.ones((2, 3))
    o = Adam(0.1)
    for theta in (flat, square):
        o.update(theta, np.arange(6.0).reshape(theta.shape), o.init(theta))
    np.testing.assert_array_equal(flat, square.ravel())


def test_the_gradient_is_left_alone():
    for o in (*CASES.values(), SGD(0.1, clip_value=0.1), SGD(0.1, clip_norm=0.1)):
        theta, g = np.ones(5, np.float32), np.arange(5, dtype=np.float32)
        g.flags.writeable = False
        o.update(theta, g, o.init(theta))
        np.testing.assert_array_equal(g, np.arange(5))


# ---- schedules -----------------------------------------------------------------------------------------------------

SCHEDULES = {
    "step": (StepDecay(0.5, every=3, factor=0.2), lambda k: 0.5 * 0.2 ** (k // 3)),
    "step, default": (StepDecay(0.5, 7), lambda k: 0.5 * 0.1 ** (k // 7)),
    "exponential": (ExponentialDecay(0.5, every=3, factor=0.2), lambda k: 0.5 * 0.2 ** (k / 3)),
    "cosine": (CosineDecay(0.5, 10), lambda k: 0.25 * (1 + math.cos(math.pi * min(k, 10) / 10))),
    "cosine, final": (
        CosineDecay(0.5, 10, final=0.1),
        lambda k: 0.1 + 0.4 * 0.5 * (1 + math.cos(math.pi * min(k, 10) / 10)),
    ),
    "warm-up": (WarmUp(4, 0.5), lambda k: 0.5 * min(1, (k + 1) / 4)),
    "warm-up, step": (
        WarmUp(4, StepDecay(0.5, 3, 0.2)),
        lambda k: 0.5 * (k + 1) / 4 if k < 4 else 0.5 * 0.2 ** ((k - 4) // 3),
    ),
    "warm-up twice": (
        WarmUp(2, WarmUp(3, 0.6)),
        lambda k: 0.2 * (k + 1) / 2 if k < 2 else 0.6 * min(1, (k - 1) / 3),
    ),
}


@pytest.mark.parametrize("case", SCHEDULES)
def test_schedule_is_the_plain_formula(case):
    schedule, formula = SCHEDULES[case]
    steps = np.arange(25.0)
    np.testing.assert_allclose(schedule(steps), [formula(k) for k in range(25)], rtol=1e-13, atol=1e-16)
    np.testing.assert_allclose(schedule(steps[7:9]), [formula(7), formula(8)], rtol=1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", SCHEDULES)
def test_every_step_takes_its_own_rate(case, backend):
    """By hand, and in ``fit``, where the rates come from a table."""
    schedule, formula = SCHEDULES[case]
    theta, o = np.zeros(1), SGD(schedule)
    state = o.init(theta)
    moved = 0.0
    for k in range(15):
        o.update(theta, np.ones(1), state, backend=backend)
        moved -= formula(k)
        assert theta[0] == pytest.approx(moved, rel=1e-12)
    # the bias of a linear net whose absolute error has slope 1 goes down by the rate, step after step
    net = fastbp.MLP([1, 1], loss="mae", init="zeros", dtype="float64", backend=backend, seed=0)
    for epochs in (1, 4):
        net.fit(np.zeros((3, 1)), np.full((3, 1), -1e6), batch_size=1, epochs=epochs, optimizer=o)
    assert net.theta[1] == pytest.approx(moved, rel=1e-12)
    assert net.history.learning_rate == pytest.approx([formula(k) for k in (2, 5, 8, 11, 14)], rel=1e-12)


def test_a_schedule_of_ones_own():
    class Root(optim.Schedule):
        def __call__(self, step):
            return 1.0 / np.sqrt(step + 1.0)

    o, theta = SGD(Root()), np.zeros(1)
    state = o.init(theta)
    for _ in range(5):
        o.update(theta, np.ones(1), state)
    assert theta[0] == pytest.approx(-sum(k**-0.5 for k in range(1, 6)))
    with pytest.raises(InputError, match="Root"):
        optim.to_config(o)


def test_ftrl_with_a_rate_that_reaches_zero():
    """1/0 is no number: either the update is refused, or it leaves finite parameters; it does not warn."""
    o = Ftrl(CosineDecay(0.1, 3))
    theta = np.ones(4)
    state = o.init(theta)
    for _ in range(6):
        try:
            o.update(theta, np.ones(4), state)
        except InputError:
            break
    assert np.isfinite(theta).all()


# ---- clipping ------------------------------------------------------------------------------------------------------


def step_of(o, g, backend):
    theta = np.zeros(len(g), np.asarray(g).dtype)
    o.update(theta, g, o.init(theta), backend=backend)
    return -theta


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_clipping(backend, dtype):
    g = np.array([3.0, -4.0, 0.5, 0.0, -0.25], dtype)
    norm = math.sqrt(9 + 16 + 0.25 + 0.0625)
    tolerance = {"rtol": 1e-6 if dtype == "float32" else 1e-14}
    by_value = step_of(SGD(1.0, clip_value=0.5), g, backend)
    np.testing.assert_array_equal(by_value, np.array([0.5, -0.5, 0.5, 0.0, -0.25], dtype))
    by_norm = step_of(SGD(1.0, clip_norm=2.0), g, backend)
    np.testing.assert_allclose(by_norm, g * (2.0 / norm), **tolerance)
    assert np.linalg.norm(by_norm) == pytest.approx(2.0, rel=1e-6)
    np.testing.assert_array_equal(step_of(SGD(1.0, clip_norm=5.2), g, backend), g)
    both = step_of(SGD(1.0, clip_value=0.5, clip_norm=0.4), g, backend)
    np.testing.assert_allclose(both, by_value * (0.4 / np.linalg.norm(by_value.astype(float))), **tolerance)
    np.testing.assert_array_equal(step_of(SGD(1.0, clip_norm=1.0), np.zeros(3, dtype), backend), np.zeros(3))


@pytest.mark.parametrize("backend", BACKENDS)
def test_clipping_by_norm_is_pytorchs(backend):
    torch = pytest.importorskip("torch")
    g = np.random.default_rng(0).normal(size=50)
    for limit in (0.1, 3.0, 100.0):
        parameter = torch.nn.Parameter(torch.zeros(50, dtype=torch.float64))
        parameter.grad = torch.tensor(g)
        torch.nn.utils.clip_grad_norm_([parameter], limit)
        clipped = step_of(SGD(1.0, clip_norm=limit), g, backend)
        np.testing.assert_allclose(clipped, parameter.grad.numpy(), rtol=2e-6)  # theirs adds 1e-6 to the norm


@pytest.mark.parametrize("size", [1e25, 1e-25])
@pytest.mark.parametrize("backend", BACKENDS)
def test_clipping_by_norm_where_squares_leave_float32(backend, size):
    """The gradient is finite, and so are its norm and what is to come out."""
    clipped = step_of(SGD(1.0, clip_norm=1.0), np.full(4, size, np.float32), backend)
    np.testing.assert_allclose(clipped, min(size, 0.5), rtol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("clip", [{"clip_value": 0.3}, {"clip_norm": 0.3}, {"clip_value": 0.2, "clip_norm": 0.3}])
def test_clipping_comes_before_the_rule(backend, clip):
    theta, gradients = problem("float64")
    clipped, plain = Adam(0.1, **clip), Adam(0.1)
    one, other = theta.copy(), theta.copy()
    state, by_hand = clipped.init(one), plain.init(other)
    for g in gradients:
        clipped.update(one, g, state, backend=backend)
        bounded = np.clip(g, -clip.get("clip_value", np.inf), clip.get("clip_value", np.inf))
        norm = np.sqrt((bounded**2).sum())
        plain.update(other, bounded * min(1.0, clip.get("clip_norm", np.inf) / norm), by_hand, backend=backend)
    np.testing.assert_allclose(one, other, rtol=1e-11)


# ---- names and configurations --------------------------------------------------------------------------------------


def test_names_give_the_defaults():
    kinds = [SGD, Momentum, Nesterov, Adagrad, RMSprop, Adam, AdamW, Ftrl]
    names = ["sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw", "ftrl"]
    assert list(optim.OPTIMIZERS) == names
    for name, kind in zip(names, kinds, strict=True):
        assert optim.get(name) == kind()
        assert type(optim.get(name)) is kind
    o = Adam(0.1)
    assert optim.get(o) is o
    assert (Adam().learning_rate, Adam().beta1, Adam().beta2, Adam().epsilon) == (1e-3, 0.9, 0.999, 1e-8)


@pytest.mark.parametrize(
    "o",
    [
        *CASES.values(),
        SGD(0.1 + 0.2, clip_value=1e-3),
        AdamW(WarmUp(5, CosineDecay(0.1, 100, 1e-4)), clip_norm=1 / 3),
        Ftrl(StepDecay(0.1, 10)),
        RMSprop(WarmUp(2, ExponentialDecay(0.1, 10, 0.9))),
        Momentum(1),
        SGD(np.float64(0.1)),
        SGD(np.float32(0.1)),
        SGD(StepDecay(np.float32(0.1), np.int64(5))),
        Adam(np.float16(0.5), beta1=np.float32(0.5), epsilon=np.float32(1e-6), clip_norm=np.int64(2)),
    ],
    ids=str,
)
def test_configurations_survive_json(o):
    again = optim.from_config(json.loads(json.dumps(optim.to_config(o))))
    assert again == o
    assert type(again) is type(o)


def test_configurations_of_other_things_are_refused():
    class Mine(SGD):
        pass

    with pytest.raises(InputError, match="Mine is not one of fastbp's own"):
        optim.to_config(Mine(0.1))
    with pytest.raises(FastbpError, match="Sgdd"):
        optim.from_config({"class": "Sgdd"})


def test_optimizers_are_values():
    assert Adam(0.1) == Adam(0.1) != Adam(0.2)
    assert Momentum(0.1) != Nesterov(0.1)
    with pytest.raises(AttributeError):
        Adam(0.1).learning_rate = 0.2
    assert copy.deepcopy(AdamW(WarmUp(3, 0.1))) == AdamW(WarmUp(3, 0.1))


# ---- refusals ------------------------------------------------------------------------------------------------------

BAD_RATES = [0, 0.0, -0.1, math.nan, math.inf, "0.1", None, True, np.array([0.1]), 1j]


@pytest.mark.parametrize("rate", BAD_RATES, ids=repr)
@pytest.mark.parametrize("kind", list(optim.OPTIMIZERS.values()))
def test_bad_learning_rates(kind, rate):
    with pytest.raises(InputError, match=re.escape(f"learning_rate must be a finite number above 0, got {rate!r}")):
        kind(rate)


@pytest.mark.parametrize("value", [-0.1, 1.0, 1.5, math.nan, math.inf, True, "0.5", None], ids=repr)
@pytest.mark.parametrize(
    ("kind", "name"),
    [(Momentum, "momentum"), (Nesterov, "momentum"), (RMSprop, "rho"), (Adam, "beta1"), (AdamW, "beta2")],
)
def test_bad_fractions(kind, name, value):
    with pytest.raises(InputError, match=re.escape(f"{name} must") + ".*" + re.escape(f"got {value!r}")):
        kind(**{name: value})


@pytest.mark.parametrize("value", [-1e-9, math.nan, math.inf, True, "0", None], ids=repr)
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (Adagrad, "epsilon"),
        (RMSprop, "epsilon"),
        (Adam, "epsilon"),
        (AdamW, "weight_decay"),
        (Ftrl, "beta"),
        (Ftrl, "l1"),
        (Ftrl, "l2"),
    ],
)
def test_bad_amounts(kind, name, value):
    message = f"{name} must be a finite number of at least 0, got {value!r}"
    with pytest.raises(InputError, match=re.escape(message)):
        kind(**{name: value})


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, True, "1"], ids=repr)
@pytest.mark.parametrize("name", ["clip_value", "clip_norm"])
def test_bad_clipping(name, value):
    with pytest.raises(InputError, match=re.escape(f"{name} must be a finite number above 0, got {value!r}")):
        SGD(0.1, **{name: value})


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: StepDecay(0, 3), "initial must be a finite number above 0, got 0"),
        (lambda: StepDecay(0.1, 0), "every must be an integer of at least 1, got 0"),
        (lambda: StepDecay(0.1, 2.5), "every must be an integer of at least 1, got 2.5"),
        (lambda: StepDecay(0.1, 3, -1.0), "factor must be a finite number above 0, got -1.0"),
        (lambda: ExponentialDecay(math.inf, 3), "initial must be a finite number above 0, got inf"),
        (lambda: ExponentialDecay(0.1, True), "every must be an integer of at least 1, got True"),
        (lambda: ExponentialDecay(0.1, 3, 0), "factor must be a finite number above 0, got 0"),
        (lambda: CosineDecay(-1, 3), "initial must be a finite number above 0, got -1"),
        (lambda: CosineDecay(0.1, "3"), "steps must be an integer of at least 1, got '3'"),
        (lambda: CosineDecay(0.1, 3, -0.1), "final must be a finite number of at least 0, got -0.1"),
        (lambda: WarmUp(0, 0.1), "steps must be an integer of at least 1, got 0"),
        (lambda: WarmUp(3, 0), "then must be a finite number above 0, got 0"),
        (lambda: WarmUp(3, "cosine"), "then must be a finite number above 0, got 'cosine'"),
        (lambda: optim.get("adem"), "optimizer='adem' is unknown; did you mean 'adam'?"),
        (lambda: optim.get("Adam"), "did you mean 'adam'?"),
        (lambda: optim.get(0.1), "optimizer=0.1 is unknown"),
        (lambda: optim.get(Adam), "optimizer=<class"),
    ],
)
def test_bad_schedules_and_names(make, words):
    with pytest.raises(InputError, match=re.escape(words)):
        make()


@pytest.mark.parametrize("backend", BACKENDS)
def test_updates_that_cannot_be_done_in_place_change_nothing(backend):
    o = Adam(0.1)
    good, g = np.ones(4), np.ones(4)
    frozen = np.ones(4)
    frozen.flags.writeable = False
    cases = [
        ([1.0] * 4, g, o.init(good), "theta must be a contiguous, writable NumPy array"),
        (np.ones(8)[::2], g, o.init(good), "theta must be a contiguous, writable NumPy array"),
        (frozen, g, o.init(good), "theta must be a contiguous, writable NumPy array"),
        (np.ones(4, int), g, o.init(good), "dtype='int64' is unknown"),
        (np.ones(4, np.float16), g, o.init(good), "dtype='float16' is unknown"),
        (good, np.ones(5), o.init(good), "gradient has 5 elements, but theta has 4"),
        (good, np.ones(4, complex), o.init(good), "gradient"),
        (good, np.array(["a"] * 4), o.init(good), "gradient"),
        (good, g, o.init(np.ones(3)), "state of Adam must be 2 contiguous, writable vectors of shape (1, 4)"),
        (good, g, SGD().init(good), "state"),
        (good, g, Momentum().init(good), "state"),
    ]
    for theta, gradient, state, words in cases:
        vectors = copy.deepcopy(state.vectors)
        with pytest.raises(InputError, match=re.escape(words)):
            o.update(theta, gradient, state, backend=backend)
        np.testing.assert_array_equal(theta, np.ones(len(theta)))
        assert state.step == 0
        for mine, kept in zip(state.vectors, vectors, strict=True):
            np.testing.assert_array_equal(mine, kept)


def test_a_state_of_another_dtype_is_refused():
    """Compiled code would read and write beyond the end of its vectors."""
    o = Adam(0.1)
    theta = np.ones(4, np.float32)
    with pytest.raises(InputError, match="state"):
        o.update(theta, np.ones(4), o.init(np.ones(4)))


def test_parameters_in_the_other_byte_order_are_refused_or_updated():
    o = SGD(0.5)
    theta = np.ones(4, np.dtype(np.float64).newbyteorder("S"))
    try:
        o.update(theta, np.ones(4), o.init(theta))
    except InputError:
        np.testing.assert_array_equal(theta, np.ones(4))
    else:
        np.testing.assert_array_equal(theta, np.full(4, 0.5))


def test_an_unknown_backend():
    with pytest.raises(InputError, match=re.escape("backend='cpi' is unknown; did you mean 'cpu'?")):
        SGD().update(np.ones(2), np.ones(2), SGD().init(np.ones(2)), backend="cpi")
