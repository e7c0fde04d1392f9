"""Twins of the intrinsics: none is missing, formulas and masks are those of array code."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import numpy as np
import pytest
from numba import cuda

from fastbp import scalars
from fastbp.backends import array
from fastbp.backends.cuda import device, simulator, twins
from fastbp.backends.cuda.codes import CODES, FORMULAS, UPDATE_CODES
from fastbp.backends.cuda.simulator import SimulatedError, memory

KINDS = {"float32": np.float32, "float64": np.float64}
SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.3, -2.5, 9.0, 88.0, -104.0, 1e-30, 3e38, np.inf, -np.inf, np.nan]


def run(function):
    """Run it as the only thread of a kernel."""
    cuda.jit(function)[1, 1, 0, 0]()


def parameters(path):
    """Names of a module's public functions and of their parameters; without what Numba passes to intrinsics."""
    found = {}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            found[node.name] = [a.arg for a in node.args.args if a.arg != "typingctx"]
    return found


def test_every_intrinsic_has_a_twin():
    folder = Path(twins.__file__).parent
    theirs = parameters(folder / "ptx.py")
    ours = parameters(folder / "twins.py")
    assert ours.pop("device") == ["function"]
    assert ours == theirs
    assert set(device.__all__) == {*ours, "device", "SIMULATED"}
    assert all(getattr(device, name) is getattr(twins, name) for name in ours)


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("name", FORMULAS)
def test_formulas(name, dtype):
    kind, (formula, count) = KINDS[dtype], FORMULAS[name]
    rng = np.random.default_rng(0)
    values = np.concatenate([SPECIAL, rng.normal(size=16) * 3]).astype(dtype)
    points = [values, *(rng.permutation(values) for _ in range(2))]
    rows = np.concatenate([np.stack(points, 1), np.full((1, 3), 0.5)]).astype(dtype)
    with np.errstate(all="ignore"):
        expected = formula(array.ArrayEmitter(np, dtype), *rows.T[:count])
    found = []
    run(lambda: found.extend(twins.apply(np.int64(CODES[name]), *row) for row in rows))
    assert {type(v) for v in found} == {kind}
    # erf and its kin cancel: what a fused product keeps shows there
    np.testing.assert_allclose(found, np.broadcast_to(expected, len(rows)), rtol=2e-6 if kind is np.float32 else 1e-14)


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("name", scalars.UPDATES)
def test_updates(name, dtype):
    kind, rule = KINDS[dtype], scalars.UPDATES[name]
    rng = np.random.default_rng(0)
    theta, g, first, second = rng.uniform(0.1, 1, size=(4, 5)).astype(dtype)
    hyper = rng.uniform(0.1, 1, size=len(rule.hyper))
    memory.register(hyper)
    states = (first, second)[: len(rule.states)]
    expected = [*rule.formula(array.ArrayEmitter(np, dtype), tuple(hyper.astype(dtype)), theta, g, *states)]
    expected += [first, second][len(states) :]
    found = []

    def kernel():
        p = twins.at(hyper.ctypes.data, np.float64(1), np.int32(0))
        found.extend(twins.update(UPDATE_CODES[name], *(v[k] for v in (theta, g, first, second)), p) for k in range(5))

    run(kernel)
    assert {type(v) for row in found for v in row} == {kind}
    np.testing.assert_allclose(np.transpose(found), expected, rtol=4 * np.finfo(kind).eps)


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("rate", [0.0, 0.25, 0.9])
def test_dropout_masks_are_those_of_array_code(rate, dtype):
    kind = KINDS[dtype]
    key = np.array([[123456789.0, 41.0]])
    memory.register(key)
    bits = 3 << 32 | round(rate * 2**32)
    executable = array.ArrayExecutable.__new__(array.ArrayExecutable)
    executable.xp, executable.emitter = np, array.ArrayEmitter(np, dtype)
    expected = array._dropout_mask(executable, key, bits, 8, 25).ravel()
    found = []

    def kernel():
        p = twins.at(key.ctypes.data, np.float64(1), np.int32(0))
        found.extend(twins.dropout(np.int64(bits), np.int64(k), p, kind(1)) for k in range(200))

    run(kernel)
    assert {type(v) for v in found} == {kind}
    np.testing.assert_array_equal(found, expected)
    assert abs(np.mean(expected == 0) - rate) < 0.1


@pytest.mark.parametrize("kind", KINDS.values())
def test_numbers(kind):
    assert type(twins.number(0.1, kind(1))) is kind
    assert twins.number(0.1, kind(1)) == kind(0.1)
    assert twins.lowest(kind(1)) == np.finfo(kind).min
    assert type(twins.lowest(kind(1))) is kind
    assert twins.itemsize(kind(1)) == kind(1).itemsize


def aligned(count):
    """0, 1, 2, … from a multiple of 16 on."""
    whole = np.zeros(count + 4, np.float32)
    x = whole[-whole.ctypes.data % 16 // 4 :][:count]
    x[:] = np.arange(count)
    memory.register(x)
    return x


def test_what_is_copied_without_waiting_is_there_after_it():
    x, found = aligned(8), []

    def kernel():
        one, word, space = np.float32(1), np.uint32(1), np.int32(0)
        source, target, s = twins.at(x.ctypes.data, one, space), twins.shared(word), twins.shared(one)
        twins.copy4(target, 4, source, 4, True, space)
        twins.copy1(target, 1, source, 5, True, space)
        twins.copy4(target, 8, source, 0, False, space)
        found.append([s[k] for k in (1, 4, 5, 6, 7, 8, 11)])
        twins.copied()
        found.append([s[k] for k in (1, 4, 5, 6, 7, 8, 11)])

    cuda.jit(kernel)[1, 1, 0, 48]()
    assert np.isnan(found[0]).all()
    assert found[1] == [5, 4, 5, 6, 7, 0, 0]


@pytest.mark.parametrize(
    ("index", "first", "message"),
    [(1, 0, "multiple of 16"), (0, 1, "multiple of 16"), (8, 0, "outside"), (0, 8, "outside")],
)
def test_copies_that_must_not_be(index, first, message):
    x = aligned(8)

    def kernel():
        source, target = twins.at(x.ctypes.data, np.float32(1), np.int32(0)), twins.shared(np.uint32(1))
        twins.copy4(target, index, source, first, True, np.int32(0))

    with pytest.raises(SimulatedError, match=message):
        cuda.jit(kernel)[1, 1, 0, 32]()


def test_only_shared_memory_is_copied_to():
    x = aligned(8)

    def kernel():
        p, q = (twins.at(x.ctypes.data, one, np.int32(0)) for one in (np.uint32(1), np.float32(1)))
        twins.copy1(p, 0, q, 4, True, np.int32(0))

    with pytest.raises(SimulatedError, match="shared memory"):
        cuda.jit(kernel)[1, 1, 0, 32]()


def test_twins_say_that_they_are():
    assert device.SIMULATED
    assert inspect.getmodule(device.at) is twins
    assert simulator.numba_kernel.BlockManager.run is simulator._run_block
