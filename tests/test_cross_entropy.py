"""The CPU machine's cross entropy in one instruction, against plain NumPy in float64."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from fastbp import MLP, backends, checks, graph, losses, optim
from fastbp.backends.cpu.cross_entropy import with_cross_entropy
from fastbp.backends.cpu.executable import CpuExecutable
from fastbp.nodes import Node
from fastbp.plan import plan

ROWS = [0, 1, 2, 7, 8, 9, 33, 200]
CLASSES = [2, 3, 7, 8, 9, 10, 16, 31, 32, 33, 40, 97, 1300]


def programs(classes: int, by_labels: bool):
    """The loss alone, and with the gradient of the logits, as graphs."""
    z = graph.input("z", classes)
    t = graph.input("t", 1, dtype="int").onehot(classes) if by_labels else graph.input("t", classes)
    total = losses.get("cross_entropy").total(z * 1.0, t)
    return {"loss": total}, {"loss": total, "dz": graph.gradients(total, [z])[0]}


def run(outputs: dict[str, Node], z: np.ndarray, t: np.ndarray, dtype: str) -> dict[str, np.ndarray]:
    machine = CpuExecutable(plan(outputs), dtype)
    assert "cross_entropy" in [i.op for i in machine.program.instructions]
    target = t.reshape(-1, 1) if t.ndim == 1 else np.ascontiguousarray(t, dtype)
    return machine.run({"z": np.ascontiguousarray(z, dtype), "t": target}, len(z))


def reference(z: np.ndarray, t: np.ndarray) -> tuple[float, np.ndarray]:
    """The mean loss, and its gradient."""
    z = z.astype(np.float64)
    d = z - z.max(axis=1, keepdims=True)
    logarithm = d - np.log(np.exp(d).sum(axis=1, keepdims=True))
    return -(t * logarithm).sum() / len(z), (np.exp(logarithm) * t.sum(axis=1, keepdims=True) - t) / len(z)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("by_labels", [False, True], ids=["targets", "labels"])
def test_loss_and_gradient(by_labels, classes, rows, dtype):
    rng = np.random.default_rng(classes)
    z = (5 * rng.normal(size=(rows, classes))).astype(dtype)
    labels = rng.integers(classes, size=rows)
    t = labels if by_labels else rng.random((rows, classes)).astype(dtype)
    loss_alone, both = programs(classes, by_labels)
    got, alone = run(both, z, t, dtype), run(loss_alone, z, t, dtype)
    assert got["loss"].tobytes() == alone["loss"].tobytes()
    if not rows:
        assert np.isnan(got["loss"]).all()
        return
    loss, dz = reference(z, np.eye(classes)[labels] if by_labels else t.astype(np.float64))
    limit = 4e-6 if dtype == "float32" else 1e-14
    assert abs(got["loss"].item() - loss) <= limit * loss
    assert checks.relative_error(got["dz"], dz) <= limit


@pytest.mark.parametrize("classes", [3, 10, 40])
def test_labels_are_one_hot_targets(classes, dtype):
    rng = np.random.default_rng(1)
    z, labels = rng.normal(size=(50, classes)), rng.integers(classes, size=50)
    by_label, by_target = (
        run(programs(classes, way)[1], z, t, dtype) for way, t in ((True, labels), (False, np.eye(classes)[labels]))
    )
    assert by_label["loss"].tobytes() == by_target["loss"].tobytes()
    np.testing.assert_allclose(by_label["dz"], by_target["dz"], rtol=1e-5 if dtype == "float32" else 1e-13)


@pytest.mark.parametrize("classes", [3, 10, 40])
@pytest.mark.parametrize("by_labels", [False, True], ids=["targets", "labels"])
def test_a_row_does_not_depend_on_the_others(by_labels, classes, dtype):
    rng = np.random.default_rng(2)
    z, labels = rng.normal(size=(23, classes)), rng.integers(classes, size=23)
    t = labels if by_labels else np.eye(classes)[labels]
    outputs = programs(classes, by_labels)[1]
    whole = run(outputs, z, t, dtype)["dz"]
    for first, last in ((0, 1), (3, 11), (22, 23)):
        part = run(outputs, z[first:last], t[first:last], dtype)["dz"] * ((last - first) / 23)
        np.testing.assert_allclose(part, whole[first:last], rtol=1e-6 if dtype == "float32" else 1e-14)


@pytest.mark.parametrize("special", [None, -0.0, np.inf, -np.inf, np.nan, -1e30])
@pytest.mark.parametrize("classes", [2, 3, 8, 9, 32, 33])
@pytest.mark.parametrize("by_labels", [False, True], ids=["targets", "labels"])
def test_one_row_and_two_have_the_bits_of_many(by_labels, classes, special, dtype):
    """They are done one by one, not a row in each lane. Means over 8, 1 and 2 rows are exact where these are alike."""
    rng = np.random.default_rng(classes)
    z, labels = 3 * rng.normal(size=(1, classes)), rng.integers(classes, size=1)
    if special is not None:
        z[0, rng.integers(classes)] = special
    t = labels if by_labels else rng.random((1, classes))
    outputs = programs(classes, by_labels)[1]
    many = run(outputs, z.repeat(8, axis=0), t.repeat(8, axis=0), dtype)
    for rows in (1, 2):
        few = run(outputs, z.repeat(rows, axis=0), t.repeat(rows, axis=0), dtype)
        if not np.isinf(many["loss"]):  # the sum of 8 losses may be beyond the largest number where one is not
            np.testing.assert_array_equal(few["loss"], many["loss"])
        np.testing.assert_array_equal(few["dz"] * rows, 8 * many["dz"][:rows])


@pytest.mark.parametrize("classes", [3, 10, 40])
@pytest.mark.parametrize("by_labels", [False, True], ids=["targets", "labels"])
def test_extreme_logits(by_labels, classes, dtype):
    """Impossible classes cost nothing if they are not the target, and are infinitely or hugely wrong if they are."""
    z = np.zeros((5, classes))
    z[0, 1] = -np.inf
    z[1] = [1e4, -1e4, *[0.0] * (classes - 2)]
    z[2, 0] = np.nan
    z[3] = -1e30
    z[4, 0] = np.inf
    labels = np.zeros(5, np.int64)
    t = labels if by_labels else np.eye(classes)[labels]
    rows = [run(programs(classes, by_labels)[1], z[k : k + 1], t[k : k + 1], dtype) for k in range(5)]
    np.testing.assert_allclose(rows[0]["loss"].item(), np.log(classes - 1), rtol=1e-6)
    assert rows[0]["dz"][0, 1] == 0.0
    assert rows[1]["loss"].item() == 0.0
    np.testing.assert_allclose(rows[1]["dz"], 0.0, atol=1e-30)
    np.testing.assert_allclose(rows[3]["loss"].item(), np.log(classes), rtol=1e-6)
    for k in (2, 4):
        assert np.isnan(rows[k]["loss"]).all()
        assert np.isnan(rows[k]["dz"]).all()


def test_labels_beyond_the_classes_are_no_class(dtype):
    """Nobody's network gets here with one: fit and loss refuse them."""
    for classes in (3, 40):
        for label in (-1, classes, 2**40):
            got = run(programs(classes, True)[1], np.ones((1, classes)), np.array([label]), dtype)
            assert got["loss"].item() == 0.0
            assert not got["dz"].any()


def test_what_else_is_read_stays():
    """A log-softmax that somebody wants, and weighted losses, are done as they are written."""
    z, t, w = graph.input("z", 3), graph.input("t", 3), graph.input("w", 1)
    logarithms = z.log_softmax()
    total = -(logarithms * t).sum()
    for outputs in (
        {"loss": total, "dz": graph.gradients(total, [z])[0], "log": logarithms},
        {"loss": -(logarithms * t * w).sum()},
        {"loss": -(logarithms * t).sum(axis=1)},
        {"loss": total, "dz": graph.gradients(total, [z])[0], "dt": graph.gradients(total, [t])[0]},
        {"loss": total + total.square(), "dz": graph.gradients(total + total.square(), [z])[0]},
    ):
        program = plan(outputs)
        assert with_cross_entropy(program) == program
        machine = CpuExecutable(program, "float64")
        rng = np.random.default_rng(0)
        values = {"z": rng.normal(size=(9, 3)), "t": rng.random((9, 3)), "w": rng.random((9, 1))}
        found, expected = machine.run(values, 9), backends.executable(program, "numpy", "float64").run(values, 9)
        for name, value in found.items():
            np.testing.assert_allclose(value, expected[name], rtol=1e-12, err_msg=name)


def test_networks_train_by_it():
    net = MLP([4, 5, 3], loss="cross_entropy")
    step = net.training_step(("X", "labels"), optim.SGD(0.1), False)
    names = [i.op for i in step.program.instructions]
    assert "cross_entropy" in names
    assert not {"onehot", "log_softmax", "log_softmax_grad", "map"} & set(names)


@pytest.mark.parametrize("n", [1, 3, 400])
def test_rows_that_are_not_the_batchs(n, dtype):
    """Of a parameter of five rows, whatever the batch has; with its gradient before or after the loss."""
    z, t, x = graph.param("z", (5, 40)), graph.param("t", (5, 40)), graph.input("x", 2)
    total = -(z.log_softmax() * t).sum()
    rng = np.random.default_rng(0)
    values = {"z": rng.normal(size=(5, 40)), "t": rng.random((5, 40)), "x": rng.normal(size=(n, 2))}
    typed = {name: value.astype(dtype) for name, value in values.items()}
    (dz,) = graph.gradients(total, [z])
    for outputs in ({"loss": total, "dz": dz, "y": x * 2.0}, {"dz": dz, "y": x * 2.0, "loss": total}):
        program = plan(outputs)
        machine = CpuExecutable(program, dtype)
        assert "cross_entropy" in [i.op for i in machine.program.instructions]
        found, expected = machine.run(typed, n), backends.executable(program, "numpy", "float64").run(values, n)
        for name, value in expected.items():
            assert checks.relative_error(found[name], value) <= (4e-6 if dtype == "float32" else 1e-14), name


def test_a_gradient_that_is_made_first_does_not_wait_for_the_loss():
    z, t = graph.input("z", 3), graph.input("t", 3)
    total = losses.get("cross_entropy").total(z, t)
    program = plan({"loss": total, "dz": graph.gradients(total, [z])[0].square()})
    (chain,) = (i for i in program.instructions if i.op == "chain" and i.results[0].how)
    others = [i for i in program.instructions if i is not chain]
    program = dataclasses.replace(program, instructions=(*others, chain))
    values = {"z": np.random.default_rng(0).normal(size=(9, 3)), "t": np.eye(3)[[0, 1, 2] * 3]}
    machine = CpuExecutable(program, "float64")
    assert "cross_entropy" in [i.op for i in machine.program.instructions]
    found, expected = machine.run(values, 9), backends.executable(program, "numpy", "float64").run(values, 9)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-12, err_msg=name)
