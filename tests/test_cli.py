"""The command line, run as its entry point runs it."""

from __future__ import annotations

import csv
import ctypes
import dataclasses
import io
import json
import os
import re
import shlex
import struct
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure

import fastbp
from fastbp import checks, cli, data, measure, network, pictures, progress
from fastbp.backends import BACKENDS, ON_DEVICE, gpu
from fastbp.errors import InputError

IN_FILE = "rows of this file, training rows included if it has any\n"
SMALL = ("--hidden", "8", "--backend", "numpy", "--quiet")


@pytest.fixture
def run(capsys):
    """Run a command line; gives its exit code, stdout and stderr."""

    def run(*arguments):
        with pytest.raises(SystemExit) as exit_:
            cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        err = re.sub(r"fastbp: compiling .*\n", "", captured.err)  # a first start on this machine says so
        return exit_.value.code or 0, captured.out, err

    return run


@pytest.fixture
def ok(run):
    """Run a command line that must succeed in silence on stderr; gives stdout."""

    def ok(*arguments):
        code, out, err = run(*arguments)
        assert (code, err) == (0, "")
        return out

    return ok


@pytest.fixture
def fails(run):
    """Run a command line that must fail with one line on stderr; gives that line."""

    def fails(*arguments):
        code, _, err = run(*arguments)
        assert code == 1
        assert err.startswith("Error: ")
        assert err.count("\n") == 1
        return err

    return fails


def table(text):
    """Header and rows of csv."""
    header, *rows = csv.reader(io.StringIO(text))
    return header, rows


def figures(out):
    """What train prints at its end, by name."""
    return dict(re.split("  +", line, maxsplit=1) for line in out.splitlines()[2:])


def facts(out):
    """What info prints, by name."""
    return dict(re.split("  +", line, maxsplit=1) for line in out.splitlines())


def write_idx(path, values):
    header = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    path.write_bytes(header + values.astype(np.uint8).tobytes())


# ---- data: three kinds of points ------------------------------------------------------------------------------------

KINDS = ("blue", "green", "red")
LABELS = np.arange(60) % 3
NOISE = np.random.default_rng(0).normal(0, 0.3, (60, 2))
POINTS = np.round(NOISE + np.array([[0, 0], [3, 0], [0, 300]])[LABELS], 3)


def write_csv(path, columns):
    """A csv file of named columns."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


COLUMNS = {"width": POINTS[:, 0], "height": POINTS[:, 1], "kind": [KINDS[k] for k in LABELS]}


@pytest.fixture
def kinds(tmp_path, ok):
    """A network trained on a csv file with classes by name: (its file, the csv file)."""
    rows = write_csv(tmp_path / "kinds.csv", COLUMNS)
    ok("train", rows, *SMALL, "--learning-rate", "0.05", "--out", tmp_path / "kinds.npz")
    return tmp_path / "kinds.npz", rows


# ---- train and predict ----------------------------------------------------------------------------------------------


def test_digits_end_to_end(tmp_path, ok, run):
    out = ok("train", "--hidden", "16", "--epochs", "12", "--quiet", "--out", tmp_path / "net.npz")
    shown = figures(out)
    net = fastbp.load(tmp_path / "net.npz")
    kept = network.extras(tmp_path / "net.npz")
    digits = data.digits()
    train, test = digits.split_every(5)
    scaling = data.fit_scaling(train.X, "unit")
    X, held_out = scaling.apply(digits.X), scaling.apply(test.X)
    assert "1,438 rows to train on, 359 held out, 64 inputs, 10 classes" in out
    assert float(shown["held-out accuracy"]) == pytest.approx(net.score(held_out, test.T), abs=1e-4)
    assert float(shown["held-out loss"]) == pytest.approx(net.loss(held_out, test.T), rel=1e-3)
    assert net.score(held_out, test.T) > 0.85
    assert net.layers == (64, 16, 10)
    assert float(shown["steps/s"].replace(",", "")) == pytest.approx(
        float(shown["rows/s"].replace(",", "")) * 45 / 1438, rel=1e-2
    )
    assert (kept["shift"] == scaling.shift).all()
    assert (kept["factor"] == scaling.factor).all()

    code, predicted, score = run("predict", tmp_path / "net.npz", "digits")
    header, rows = table(predicted)
    outputs = net.forward(X)
    assert code == 0
    assert header == ["class", "probability"]
    assert [int(name) for name, _ in rows] == net.predict(X).tolist()
    assert (np.array([value for _, value in rows], np.float32) == outputs.max(axis=1)).all()
    assert score == f"accuracy {net.score(X, digits.T):.4f} on all 1,797 {IN_FILE}"


def test_same_seed_same_network(tmp_path, ok):
    for name in ("a.npz", "b.npz"):
        ok("train", *SMALL, "--epochs", "1", "--seed", "7", "--out", tmp_path / name)
    ok("train", *SMALL, "--epochs", "1", "--seed", "8", "--out", tmp_path / "c.npz")
    a, b, c = (fastbp.load(tmp_path / name).theta for name in ("a.npz", "b.npz", "c.npz"))
    assert (a == b).all()
    assert (a != c).any()


def test_nielsens_network_on_an_idx_folder(tmp_path, ok, run):
    labels = np.arange(100) % 4
    images = np.random.default_rng(0).integers(0, 60, (100, 4, 4))
    images[np.arange(100), labels] += 190  # a bright line, the first for 0
    write_idx(tmp_path / "train-images-idx3-ubyte", images)
    write_idx(tmp_path / "train-labels-idx1-ubyte", labels)
    nielsen = shlex.split(
        "--hidden 30 --activation sigmoid --output sigmoid --loss half_sse --init normal --optimizer sgd "
        "--learning-rate 3 --batch-size 10 --epochs 30"
    )
    out = ok("train", tmp_path, *nielsen, "--quiet", "--out", tmp_path / "net.npz")
    net = fastbp.load(tmp_path / "net.npz")
    assert (net.layers, net.activations, net.loss_name) == ((16, 30, 4), ("sigmoid", "sigmoid"), "half_sse")
    assert net.training.optimizer == fastbp.optim.SGD(3.0)
    assert net.training.state.step == 30 * 8
    assert "SGD(learning_rate=3.0)" in out
    assert float(figures(out)["held-out accuracy"]) == 1.0

    _, with_labels, score = run("predict", tmp_path / "net.npz", tmp_path)
    header, rows = table(with_labels)
    assert header == ["class", "output"]  # sigmoids are no probabilities
    assert [int(name) for name, _ in rows] == labels.tolist()
    assert score == f"accuracy 1.0000 on all 100 {IN_FILE}"
    alone = tmp_path / "alone-idx3-ubyte"
    write_idx(alone, images)
    assert run("predict", tmp_path / "net.npz", alone) == (0, with_labels, "")


def test_csv_with_classes_by_name(kinds, run, ok, tmp_path):
    model, rows = kinds
    X = POINTS.astype(np.float32)
    net = fastbp.load(model)
    kept = network.extras(model)
    scaled = data.Scaling(kept["shift"], kept["factor"]).apply(X)
    assert abs(scaled.mean()) < 0.2  # standardised, so that the larger column does not drown the other
    assert net.score(scaled, LABELS) == 1.0

    code, with_targets, score = run("predict", model, rows)
    assert (code, score) == (0, f"accuracy 1.0000 on all 60 {IN_FILE}")
    assert [name for name, _ in table(with_targets)[1]] == [KINDS[k] for k in net.predict(scaled)]
    features = {name: COLUMNS[name] for name in ("width", "height")}
    assert ok("predict", model, write_csv(tmp_path / "x.csv", features)) == with_targets
    np.savetxt(tmp_path / "bare.csv", X, "%.3f", delimiter=",")
    assert ok("predict", model, tmp_path / "bare.csv") == with_targets


def test_csv_columns_are_found_by_name(kinds, run, ok, tmp_path):
    model, rows = kinds
    expected = run("predict", model, rows)[1]
    swapped = {"height": COLUMNS["height"], "width": COLUMNS["width"]}
    noted = {"note": ["?"] * 60, **swapped}
    assert ok("predict", model, write_csv(tmp_path / "swapped.csv", swapped)) == expected
    assert ok("predict", model, write_csv(tmp_path / "noted.csv", noted)) == expected


def test_csv_target_by_name_and_by_index(tmp_path, ok, run):
    bare = tmp_path / "bare.csv"
    bare.write_text("".join(f"{KINDS[k]};{x:.3f};{y:.3f}\n" for k, (x, y) in zip(LABELS, POINTS, strict=True)))
    first = write_csv(tmp_path / "first.csv", {name: COLUMNS[name] for name in ("kind", "width", "height")})
    for source, target in ((first, "kind"), (first, "0"), (first, "-3"), (bare, "0")):
        out = ok("train", source, "--target", target, *SMALL, "--epochs", "1", "--out", tmp_path / "net.npz")
        assert "2 inputs, 3 classes" in out
        predicted = run("predict", tmp_path / "net.npz", source)
        assert predicted[2].startswith("accuracy")
    # the network of the last turn takes columns by their place
    code, out, err = run("predict", tmp_path / "net.npz", first)
    assert (code, out, err) == predicted


def test_regression(tmp_path, ok, run):
    X = np.random.default_rng(0).uniform(-1, 1, (100, 2))
    T = 2 * X[:, :1] - X[:, 1:]
    np.savez(tmp_path / "data.npz", X=X, T=T)
    np.savez(tmp_path / "x.npz", X=X)
    out = ok(
        "train", tmp_path / "data.npz", *SMALL, "--epochs", "99", "--dtype", "float64", "--out", tmp_path / "n.npz"
    )
    assert float(figures(out)["held-out R²"]) > 0.5
    net = fastbp.load(tmp_path / "n.npz")
    kept = network.extras(tmp_path / "n.npz")
    outputs = net.predict(data.Scaling(kept["shift"], kept["factor"]).apply(X))
    outputs = data.Scaling(kept["target_shift"], kept["target_factor"]).invert(outputs)
    code, predicted, score = run("predict", tmp_path / "n.npz", tmp_path / "data.npz")
    header, rows = table(predicted)
    assert (code, header) == (0, ["output"])
    assert (np.array(rows, np.float64) == outputs).all()
    assert score.startswith("R² 0.")
    assert ok("predict", tmp_path / "n.npz", tmp_path / "x.npz") == predicted


@pytest.mark.parametrize("loss", ["mse", "mae", "huber", "half_sse", "sse"])
def test_regression_in_natural_units(tmp_path, ok, run, loss):
    X = np.random.default_rng(0).uniform(-1, 1, (300, 2))
    price = 3000 + 500 * X[:, 0] - 200 * X[:, 1] ** 2
    source = write_csv(tmp_path / "price.csv", {"a": X[:, 0], "b": X[:, 1], "price": price})
    options = ("--loss", loss, "--epochs", "30", "--learning-rate", "0.01", "--out", tmp_path / "n.npz")
    shown = figures(ok("train", source, *SMALL, *options))
    assert float(shown["held-out R²"]) > 0.9
    assert shown["held-out loss"].endswith(" (of standardised targets)")
    assert shown["training loss"].endswith(" (of standardised targets)")
    kept = network.extras(tmp_path / "n.npz")
    fitted = price[np.arange(300) % 5 != 4]  # not the rows that are held out
    assert kept["target_shift"] == pytest.approx([fitted.mean()])
    assert kept["target_factor"] == pytest.approx([1 / fitted.std()])

    code, predicted, score = run("predict", tmp_path / "n.npz", source)
    found = np.array(table(predicted)[1], np.float64)[:, 0]
    r2 = 1 - ((found - price) ** 2).mean() / price.var()
    assert code == 0
    assert r2 > 0.9
    assert score == f"R² {r2:.4f} on all 300 {IN_FILE}"


def test_a_constant_target_column(tmp_path, ok, run):
    np.savez(tmp_path / "d.npz", X=POINTS, T=np.column_stack([np.full(60, 3000.0), 1e4 * POINTS[:, 0]]))
    ok("train", tmp_path / "d.npz", *SMALL, "--epochs", "99", "--out", tmp_path / "n.npz")
    header, rows = table(run("predict", tmp_path / "n.npz", tmp_path / "d.npz")[1])
    assert header == ["output0", "output1"]
    np.testing.assert_allclose(np.array(rows, np.float64)[:, 0], 3000, atol=1)


@pytest.mark.parametrize("options", [("--output", "sigmoid"), ("--loss", "bce")])
def test_targets_of_a_bounded_output_stay_as_they_are(tmp_path, ok, options):
    np.savez(tmp_path / "d.npz", X=POINTS, T=1 / (1 + np.exp(-POINTS[:, :1])))
    out = ok("train", tmp_path / "d.npz", *SMALL, *options, "--epochs", "1", "--out", tmp_path / "n.npz")
    assert "standardised" not in out
    assert not {"target_shift", "target_factor"} & set(network.extras(tmp_path / "n.npz"))


def test_a_regression_saved_without_the_targets_scaling(tmp_path, run):
    net = fastbp.MLP([2, 1], seed=0)
    net.save(tmp_path / "n.npz", shift=np.zeros(2), factor=np.ones(2))
    np.savez(tmp_path / "d.npz", X=POINTS, T=POINTS[:, :1])
    code, predicted, score = run("predict", tmp_path / "n.npz", tmp_path / "d.npz")
    assert code == 0
    np.testing.assert_allclose(np.array(table(predicted)[1], np.float32), net.predict(POINTS), rtol=1e-5)
    assert score == f"R² {net.score(POINTS, POINTS[:, :1]):.4f} on all 60 {IN_FILE}"


def test_regression_from_a_csv_column(tmp_path, ok, run):
    rows = {"a": POINTS[:, 0], "b": POINTS[:, 1], "sum": POINTS.sum(axis=1)}
    source = write_csv(tmp_path / "sum.csv", rows)
    ok("train", source, "--task", "regress", "--epochs", "1", *SMALL, "--out", tmp_path / "n.npz")
    assert run("predict", tmp_path / "n.npz", source)[2].startswith("R² ")


def test_npz_with_classes_by_name(kinds, tmp_path, ok, run):
    model, rows = kinds
    np.savez(tmp_path / "d.npz", X=POINTS, T=np.array(COLUMNS["kind"]))
    assert run("predict", model, tmp_path / "d.npz") == run("predict", model, rows)
    assert "3 classes" in ok("train", tmp_path / "d.npz", *SMALL, "--epochs", "1", "--out", tmp_path / "n.npz")
    assert {name for name, _ in table(run("predict", tmp_path / "n.npz", rows)[1])[1]} <= set(KINDS)


def test_onehot_targets_are_classes(tmp_path, ok):
    np.savez(tmp_path / "data.npz", X=POINTS, T=np.eye(3)[LABELS])
    out = ok("train", tmp_path / "data.npz", *SMALL, "--epochs", "1")
    assert "3 classes" in out
    assert "cross_entropy" in out


def test_one_feature(tmp_path, ok):
    source = write_csv(tmp_path / "one.csv", {"x": POINTS[:, 1], "kind": COLUMNS["kind"]})
    ok("train", source, *SMALL, "--epochs", "1", "--out", tmp_path / "n.npz")
    assert len(ok("predict", tmp_path / "n.npz", write_csv(tmp_path / "x.csv", {"x": POINTS[:, 1]})).split()) == 61


def test_predicting_with_a_network_that_python_saved(tmp_path, ok):
    net = fastbp.MLP([2, 3], loss="cross_entropy", backend="numpy", seed=0)
    net.save(tmp_path / "n.npz")
    np.savez(tmp_path / "x.npz", x=POINTS)
    _, rows = table(ok("predict", tmp_path / "n.npz", tmp_path / "x.npz"))
    assert [int(name) for name, _ in rows] == net.predict(POINTS).tolist()


def test_out_writes_what_stdout_gets(kinds, run, tmp_path):
    model, rows = kinds
    _, expected, _ = run("predict", model, rows)
    assert run("predict", model, rows, "--out", tmp_path / "p.csv")[:2] == (0, "")
    assert (tmp_path / "p.csv").read_text() == expected


def test_plot_patience_and_other_options(tmp_path, ok):
    options = shlex.split(
        "--hidden 6,5 --activation tanh,relu --optimizer adamw --learning-rate 0.1 --clip-norm 1 --scale minmax "
        "--patience 1 --backend numpy --quiet"
    )
    out = ok("train", *options, "--plot", tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert "64-6-5-10, tanh, relu, softmax, cross_entropy; AdamW(learning_rate=0.1, clip_norm=1.0)" in out
    assert " (patience); epoch " in figures(out)["epochs"]
    assert "64-10, softmax" in ok("train", "--hidden", "", "--epochs", "1", "--backend", "numpy", "--quiet")


def test_ctrl_c_keeps_what_was_trained(tmp_path, run, monkeypatch):
    def epoch(self, history):
        if history.epochs == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(progress.TerminalReporter, "epoch", epoch)
    code, out, err = run("train", "--hidden", "4", "--backend", "numpy", "--out", tmp_path / "n.npz")
    assert (code, err) == (130, "")
    assert figures(out)["epochs"] == "2 (interrupted)"
    assert fastbp.load(tmp_path / "n.npz").history.epochs == 2


def test_ctrl_c_before_the_first_epoch(tmp_path, run, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(progress.TerminalReporter, "slice", interrupt)
    monkeypatch.setattr(fastbp.training, "_slice_end", lambda done, *_: done + 1)
    code, _, err = run("train", "--hidden", "4", "--backend", "numpy", "--out", tmp_path / "n.npz")
    assert (code, err) == (130, "Interrupted before the first epoch ended; nothing is kept.\n")
    assert not (tmp_path / "n.npz").exists()


def test_a_network_is_kept_before_it_is_scored(tmp_path, fails, monkeypatch):
    def score(*_):
        raise MemoryError("no room for the score")

    monkeypatch.setattr(fastbp.MLP, "score", score)
    assert "no room for the score" in fails("train", *SMALL, "--epochs", "1", "--out", tmp_path / "n.npz")
    assert fastbp.load(tmp_path / "n.npz").history.epochs == 1


# ---- on a GPU, the fake of fake_cupy.py ------------------------------------------------------------------------------


@pytest.mark.parametrize("numbers", [False, True])
def test_training_on_a_gpu_is_numpys(tmp_path, ok, run, fake_cupy, numbers):
    columns = {**COLUMNS, "kind": POINTS.sum(axis=1)} if numbers else COLUMNS
    rows = write_csv(tmp_path / "rows.csv", columns)
    models = [tmp_path / f"{backend}.npz" for backend in ("numpy", "cupy")]
    shown = []
    for model in models:
        options = ("--backend", model.stem, "--hidden", "8", "--epochs", "3", "--quiet", "--out", model)
        shown.append(figures(ok("train", rows, *options)))
        assert shown[-1].pop("network") == str(model)
        for name in ("seconds", "rows/s", "steps/s"):
            del shown[-1][name]
    assert ("held-out R²" if numbers else "held-out accuracy") in shown[0]
    assert shown[0] == shown[1]
    assert (fastbp.load(models[0]).theta == fastbp.load(models[1]).theta).all()
    found = []
    for backend in ("numpy", "cupy"):
        with fastbp.use_backend(backend):
            found.append(run("predict", models[1], rows))
    assert found[0] == found[1]
    assert found[0][0] == 0


def test_check_on_a_gpu(ok, fake_cupy, monkeypatch):
    """Of many cases a few: that they run there, for test_switch.py has every operation."""
    cases = list(checks.operation_cases())[::5]
    monkeypatch.setattr(checks, "operation_cases", lambda: cases)
    monkeypatch.setattr(checks, "ACTIVATIONS", ("relu",))
    results = ok("check", "--backend", "cupy").splitlines()[1:]
    assert [line.split()[-1] for line in results] == ["passed"] * 6


def test_info_names_the_gpu(ok, fake_cupy, monkeypatch):
    monkeypatch.setattr(gpu, "installed", lambda package: package == "cupy")
    found = facts(ok("info"))
    assert found["backends"] == "cpu, numpy, cupy"
    assert found["GPU device"] == "a fake GPU (number 0)"
    assert found["GPU compute capability"] == "9.0"
    assert found["GPU memory"] == "1024.0 GiB, 1024.0 free"
    assert found["GPU driver"] == "for CUDA 13.0"
    assert found["GPU backend cupy"] == "runs"
    assert found["GPU backend cuda"].startswith("cannot run: numba-cuda not installed (pip install 'fastbp[gpu]'")


# ---- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value", "nearest"),
    [
        ("--activation", "rleu", "relu"),
        ("--output", "sofmax", "softmax"),
        ("--loss", "crossentropy", "cross_entropy"),
        ("--init", "glorrot", "glorot"),
        ("--optimizer", "adamm", "adam"),
        ("--backend", "cpuu", "cpu"),
        ("--dtype", "float16", "float64"),
        ("--scale", "standart", "standard"),
    ],
)
def test_an_unknown_name_gets_a_suggestion(fails, option, value, nearest):
    error = fails("train", option, value)
    assert f"{value!r} is unknown" in error
    assert "did you mean" in error
    assert repr(nearest) in error


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--hidden", "3,x"], "--hidden '3,x'"),
        (["--hidden", "0"], "layers[1]"),
        (["--epochs", "0"], "epochs"),
        (["--batch-size", "100000"], "batch_size"),
        (["--learning-rate", "-1"], "learning_rate"),
        (["--clip-norm", "0"], "clip_norm"),
        (["--patience", "0"], "patience"),
        (["--seed", "-1"], "seed"),
        (["--target", "kind"], "--target"),
        (["--task", "regress"], "--task"),
        (["--loss", "bce", "--output", "relu"], "output='relu'"),
        (["--hidden", "999999999999"], "allocate"),
        (["--out", "nowhere/net.npz"], "nowhere/net.npz cannot be written: the folder nowhere is not there"),
        (["--out", "nowhere/"], "nowhere/ is a folder's name; needed a file's"),
        (["--plot", "nowhere/loss.png"], "nowhere"),
        (["--plot", "loss.xyz"], "loss.xyz"),
    ],
)
def test_a_wrong_value_is_named(fails, options, named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert named in fails("train", *options, "--quiet")
    assert list(tmp_path.iterdir()) == []


def test_divergence_is_one_line(fails, tmp_path):
    np.savez(tmp_path / "d.npz", X=POINTS, T=POINTS * 1e3)
    error = fails("train", tmp_path / "d.npz", *SMALL, "--optimizer", "sgd", "--learning-rate", "1e9")
    assert "not finite" in error


def test_data_that_cannot_be_trained_on(fails, tmp_path):
    assert "no such file" in fails("train", tmp_path / "none.csv")
    four = write_csv(tmp_path / "four.csv", {"x": [1.5, 2, 3, 4], "kind": ["a", "b", "a", "b"]})
    assert "4 rows; needed at least 5" in fails("train", four)
    one = write_csv(tmp_path / "one.csv", {"x": range(10), "kind": ["a"] * 10})
    assert "at least two classes" in fails("train", one)
    fastbp.MLP([2, 3], seed=0).save(tmp_path / "net.npz")
    assert "net.npz: this is a saved network, not data." in fails("train", tmp_path / "net.npz")
    assert "'knd' is unknown; did you mean 'kind'?" in fails("train", one, "--target", "knd")


def test_usage_errors_are_clicks(run):
    code, _, err = run("train", "--epochs", "many")
    assert code == 2
    assert "'--epochs'" in err
    assert run("trian")[0] == 2


def test_models_that_cannot_be_used(fails, tmp_path):
    assert "does not exist" in fails("predict", tmp_path / "none.npz", "digits")
    np.savez(tmp_path / "other.npz", X=POINTS)
    assert "not a network" in fails("predict", tmp_path / "other.npz", "digits")
    fastbp.MLP([2, 3], loss="cross_entropy", seed=0).save(tmp_path / "n.npz", classes=np.array(["a"]))
    assert "1 class names" in fails("predict", tmp_path / "n.npz", "digits")


def test_rows_that_do_not_fit_the_network(kinds, fails, tmp_path):
    model, rows = kinds
    text = rows.read_text()

    def error(content, name="rows.csv"):
        (tmp_path / name).write_text(content)
        return fails("predict", model, tmp_path / name)

    assert "64 inputs a row; the network takes 2" in fails("predict", model, "digits")
    assert "no such file" in fails("predict", model, tmp_path / "none.csv")
    assert "no such file" in fails("predict", model, tmp_path / "none.npz")
    assert "the column 'height' is missing" in error("width,depth\n1,2\n")
    assert "4 columns and no header; the network takes 2" in error("1,2,3,4\n")
    assert "line 2, column 'height': 'x' is not a number" in error("width,height\n1,x\n")
    assert "line 3, column 'width': the value is missing" in error("width,height\n1,2\n,2\n")
    assert "line 2, column 'width': the value is inf" in error("width,height\ninf,2\n")
    assert "the class 'pink' is none of the network's" in error(text.replace("red", "pink"))
    assert "the file is empty" in error("")
    assert "no data" in error("width,height\n")
    (tmp_path / "rows.csv").write_bytes(b"width,height\n1,\xff\n")
    assert "not UTF-8" in fails("predict", model, tmp_path / "rows.csv")
    assert "not an .npz file" in error("nonsense", "rows.npz")
    np.savez(tmp_path / "rows.npz", Z=POINTS)
    assert "it holds 'Z'" in fails("predict", model, tmp_path / "rows.npz")
    np.savez(tmp_path / "rows.npz", X=np.float64(1))
    assert "at least 2 dimensions" in fails("predict", model, tmp_path / "rows.npz")
    assert "nowhere" in fails("predict", model, rows, "--out", tmp_path / "nowhere" / "p.csv")


# ---- info, check, bench ---------------------------------------------------------------------------------------------


def test_version(run):
    assert run("--version") == (0, f"fastbp, version {fastbp.__version__}\n", "")


def test_python_m_runs_it():
    done = subprocess.run([sys.executable, "-m", "fastbp.cli", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"fastbp, version {fastbp.__version__}\n"


def test_help_names_the_commands(run):
    code, out, _ = run("--help")
    assert code == 0
    assert all(name in out for name in ("train", "predict", "info", "check", "bench"))
    assert "--learning-rate" in run("train", "-h")[1]
    for command in ("train", "check", "bench"):
        assert all(name in run(command, "-h")[1] for name in BACKENDS)


def test_info(ok, monkeypatch):
    monkeypatch.setenv("FASTBP_NUM_THREADS", "1")
    found = facts(ok("info"))
    assert found["fastbp"] == fastbp.__version__
    assert found["numpy"] == np.__version__
    assert found["Python"].startswith(sys.version.split()[0])
    assert found["threads"].startswith(f"{fastbp.get_num_threads()} ")
    assert found["backends"] == ", ".join(fastbp.available_backends())
    assert os.path.isdir(found["kernels kept in"])
    assert "click" in found["extra cli"]


def test_info_finds_the_folder_that_numba_uses(tmp_path):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    program = "import sys; sys.argv = ['fastbp', 'info']; from fastbp.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    line = next(line for line in done.stdout.splitlines() if line.startswith("kernels kept in"))
    assert str(tmp_path) in line


def test_info_says_which_extra_is_missing(ok, monkeypatch):
    version = cli._version
    monkeypatch.setattr(cli, "_version", lambda *names: None if "matplotlib" in names else version(*names))
    assert "matplotlib missing: pip install 'fastbp[plots]'" in ok("info")


@pytest.fixture
def no_packages(monkeypatch):
    """A machine on which nothing for a GPU is installed."""
    monkeypatch.setattr(gpu, "installed", lambda package: False)
    gpu.missing.cache_clear()
    yield
    gpu.missing.cache_clear()


def test_info_with_and_without_a_driver(ok, monkeypatch, no_packages):
    class Driver:
        def __init__(self, name):
            pass

        def cuDriverGetVersion(self, version):
            version._obj.value = 13010

    def missing(name):
        raise OSError

    for library, driver, lacks in ((Driver, "for CUDA 13.1", ""), (missing, "missing", "; no NVIDIA driver: there is")):
        monkeypatch.setattr(ctypes, "CDLL", library)
        gpu.missing.cache_clear()
        found = facts(ok("info"))
        assert found["backends"] == "cpu, numpy"
        assert found["GPU driver"] == driver
        assert "GPU device" not in found
        for backend, packages in (("cupy", "cupy"), ("cuda", "cupy and numba-cuda")):
            said = found[f"GPU backend {backend}"]
            assert said.startswith(f"cannot run: {packages} not installed (pip install 'fastbp[gpu]' for CUDA 13, ")
            assert lacks in said


@pytest.mark.parametrize("passed", [True, False])
def test_check(run, monkeypatch, passed):
    calls = []

    def run_checks(*arguments):
        calls.append(arguments)
        result = checks.CheckResult("gradients [all]", "numpy", "float64", 12, 2.5e-9, 1e-7, True)
        return [result, dataclasses.replace(result, worst=1.0, passed=passed)]

    monkeypatch.setattr(checks, "run_checks", run_checks)
    code, out, err = run("check", "--backend", "numpy", "--backend", "cpu", "--dtype", "float64")
    assert calls == [(["numpy", "cpu"], ["float64"])]
    assert code == (0 if passed else 1)
    assert "2.50e-09" in out
    assert "passed" in out
    assert ("FAILED" in out) != passed
    assert err == ("" if passed else "1 of 2 checks failed.\n")
    run("check")
    assert calls[1] == (None, None)


def test_check_refuses_an_unknown_backend(fails):
    assert "did you mean 'cpu'?" in fails("check", "--backend", "cpuu")


def test_bench(run, monkeypatch, tmp_path):
    calls = []

    def measured(networks, backends, dtype, quick, progress):
        calls.append((networks, backends, dtype, quick))
        progress("measuring")
        return {"networks": networks}

    monkeypatch.setattr(measure, "run", measured)
    monkeypatch.setattr(measure, "table", lambda report, width: f"table of {report['networks']} in {width}")
    monkeypatch.setattr(measure, "save_json", lambda report, path: path.write_text(json.dumps(report)))
    monkeypatch.setattr(measure, "draw", lambda report, path: path.write_text("picture"))
    name = next(iter(measure.NETWORKS))
    files = ("--json", tmp_path / "r.json", "--plot", tmp_path / "r.png")
    code, out, err = run("bench", "--network", name, "--backend", "numpy", "--dtype", "float64", "--quick", *files)
    assert (code, err) == (0, "measuring\n")
    assert "table of" in out
    assert f"in {cli.PIPE_WIDTH}" in out
    assert calls == [([name], ["numpy"], "float64", True)]
    assert json.loads((tmp_path / "r.json").read_text()) == {"networks": [name]}
    assert (tmp_path / "r.png").read_text() == "picture"
    run("bench")
    assert calls[1] == (None, None, "float32", False)


def test_bench_refuses_before_it_measures(fails, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "is unknown" in fails("bench", "--network", "nonesuch")
    for backend in ON_DEVICE:
        assert f"--backend {backend}: bench measures this machine's CPU" in fails("bench", "--backend", backend)
    assert "nowhere" in fails("bench", "--json", "nowhere/r.json")
    assert "r.xyz" in fails("bench", "--plot", "r.xyz")


# ---- the loss curve --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "validation", "scale"),
    [
        ([1.0, 0.5, 0.2], [1.1, 0.6, 0.3], "linear"),
        ([1.0, 0.5, 0.2], [1.1, 0.3, 0.1], "log"),
        ([1.0, 0.1, 0.01], [], "log"),
        ([1.0, 0.1, 0.0], [], "linear"),
        ([1.0, 0.5, 0.2], [0.3], "linear"),
    ],
)
def test_loss_curve(tmp_path, monkeypatch, loss, validation, scale):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: drawn.append(self))
    pictures.loss_curve(fastbp.History(loss=loss, validation_loss=validation), tmp_path / "p.png")
    axes = drawn[0].axes[0]
    curves = {line.get_label(): line for line in axes.lines}
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_yscale()) == ("epoch", "loss", scale)
    assert curves["training"].get_xdata().tolist() == [1, 2, 3]
    assert curves["training"].get_ydata().tolist() == loss
    assert ("validation" in curves) == bool(validation)
    if validation:  # of the last epochs
        assert curves["validation"].get_xdata().tolist() == [1, 2, 3][-len(validation) :]


def test_no_curve_of_nothing(tmp_path):
    with pytest.raises(InputError, match="no epochs"):
        pictures.loss_curve(fastbp.History(), tmp_path / "p.png")


# ---- what is not installed ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("package", ["click", "rich"])
def test_without_click_or_rich_the_extra_is_named(package):
    """In a process of its own, because the base install must be able to import the module."""
    program = f"import sys; sys.modules[{package!r}] = None; sys.argv = ['fastbp', 'info']; "
    program += "from fastbp.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"Error: The command line needs the package {package!r}: pip install 'fastbp[cli]'.\n"


def test_without_matplotlib_nothing_is_trained(fails, monkeypatch, tmp_path):
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    error = fails("train", "--plot", tmp_path / "p.png", "--out", tmp_path / "n.npz")
    assert "pip install 'fastbp[plots]'" in error
    assert list(tmp_path.iterdir()) == []


def test_help_imports_nothing_heavy():
    program = (
        "import sys; from fastbp import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'numba', 'llvmlite', 'matplotlib', 'sklearn', 'rich.console'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
