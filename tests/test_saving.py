"""Saving, loading, pickling and copying: nothing is lost, nothing is shared, no file is half written."""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import re
import zipfile

import numpy as np
import pytest

import fastbp
from fastbp import optim
from fastbp.errors import DataError, FastbpError, InputError
from fastbp.network import extras
from fastbp.optim import SGD, Adam, CosineDecay, WarmUp

BACKENDS = ("cpu", "numpy")
DTYPES = ("float32", "float64")
RNG = np.random.default_rng(0)
X = RNG.normal(size=(23, 4))
T = np.tanh(X @ RNG.normal(size=(4, 3)))


def make(backend="cpu", dtype="float32", **more):
    return fastbp.MLP([4, 6, 3], activation="tanh", dtype=dtype, backend=backend, seed=5, **more)


def trained(backend="cpu", dtype="float32", optimizer="adam", **more):
    net = make(backend, dtype, **more)
    net.fit(X, T, epochs=3, batch_size=5, optimizer=optimizer, validation=0.2)
    return net


def assert_same(one, other):
    """Equal in everything that a network has."""
    assert type(one) is type(other)
    assert one.config() == other.config()
    assert one.dtype == other.dtype == one.theta.dtype == other.theta.dtype
    np.testing.assert_array_equal(one.theta, other.theta)
    assert one.history == other.history
    assert (one.training is None) == (other.training is None)
    if one.training is not None:
        mine, theirs = one.training, other.training
        assert mine.optimizer == theirs.optimizer
        assert type(mine.optimizer) is type(theirs.optimizer)
        assert (mine.seed, mine.epoch, mine.state.step) == (theirs.seed, theirs.epoch, theirs.state.step)
        for v, w in zip(mine.state.vectors, theirs.state.vectors, strict=True):
            assert v.dtype == w.dtype
            np.testing.assert_array_equal(v, w)


def goes_on(net, other):
    """Both train on, to the same last bit."""
    for one in (net, other):
        one.fit(X, T, epochs=4, batch_size=5, validation=0.2)
    np.testing.assert_array_equal(net.theta, other.theta)
    assert net.history.validation_loss == other.history.validation_loss
    assert net.history.learning_rate == other.history.learning_rate
    assert net.training.state.step == other.training.state.step


COPIES = {
    "file": lambda net, path: (net.save(path / "net.npz"), fastbp.load(path / "net.npz", backend=net.backend))[1],
    "pickle": lambda net, path: pickle.loads(pickle.dumps(net)),
    "old pickle": lambda net, path: pickle.loads(pickle.dumps(net, protocol=2)),
    "deepcopy": lambda net, path: copy.deepcopy(net),
}


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("rule", optim.OPTIMIZERS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_training_goes_on_as_if_it_had_not_stopped(backend, rule, way, tmp_path):
    net = trained(backend, optimizer=rule)
    other = COPIES[way](net, tmp_path)
    assert_same(net, other)
    goes_on(net, other)
    assert other.history.epochs == 7


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_copy_is_equal_and_independent(backend, dtype, way, tmp_path):
    net = trained(backend, dtype)
    before = copy.deepcopy(vars(net.training)), net.theta.copy()
    other = COPIES[way](net, tmp_path)
    assert other.backend == backend
    np.testing.assert_array_equal(other.forward(X), net.forward(X))
    arrays = zip((other.theta, *other.training.state.vectors), (net.theta, *net.training.state.vectors), strict=True)
    for mine, theirs in arrays:
        assert not np.shares_memory(mine, theirs)
        assert mine.flags.writeable
    other.fit(X, T, epochs=2, batch_size=5)
    other.theta += 1.0
    np.testing.assert_array_equal(net.theta, before[1])
    assert net.training.history == before[0]["history"]
    assert net.training.epoch == before[0]["epoch"]
    for mine, kept in zip(net.training.state.vectors, before[0]["state"].vectors, strict=True):
        np.testing.assert_array_equal(mine, kept)
    # views of the copy are views of its own parameters
    other.weights[0][...] = 7.0
    assert (other.theta[:24] == 7.0).all()
    assert not (net.theta == 7.0).any()


@pytest.mark.parametrize("way", COPIES)
def test_an_untrained_network(way, tmp_path):
    net = make(loss="cross_entropy", init="normal", reduction="sum")
    other = COPIES[way](net, tmp_path)
    assert_same(net, other)
    assert other.training is None
    goes_on_labels = [one.fit(X, T.argmax(axis=1), epochs=2, batch_size=5).loss for one in (net, other)]
    assert goes_on_labels[0] == goes_on_labels[1]
    np.testing.assert_array_equal(net.theta, other.theta)


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize(
    "net",
    [
        fastbp.MLP([1, 1]),
        fastbp.MLP([2, 3, 4, 5, 1], activation=["gelu", "silu", "leaky_relu"], output="softplus", loss="huber"),
        fastbp.MLP((3, 2), loss="bce", dtype=np.float64, init="zeros", seed=np.int64(12)),
        fastbp.MLP([3, 2], output="softmax", loss="half_sse", reduction="sum", backend="numpy"),
    ],
    ids=["smallest", "deep", "float64", "numpy"],
)
def test_configurations(net, way, tmp_path):
    other = COPIES[way](net, tmp_path)
    assert_same(net, other)
    assert repr(other) == repr(net)
    assert json.loads(json.dumps(net.config())) == net.config()
    again = fastbp.MLP(**net.config())
    np.testing.assert_array_equal(again.theta, net.theta)


def test_a_network_without_a_seed_keeps_the_one_it_drew(tmp_path):
    net = fastbp.MLP([4, 3])
    net.save(tmp_path / "net.npz")
    other = fastbp.load(tmp_path / "net.npz")
    assert other.seed == net.seed
    for one in (net, other):
        one.fit(X, T, epochs=2, batch_size=5)
    np.testing.assert_array_equal(net.theta, other.theta)


@pytest.mark.parametrize("way", COPIES)
def test_everything_that_fit_was_told_is_kept(way, tmp_path):
    """Schedules, clipping, another seed, stopping, and numbers that came as NumPy's."""
    net = make(dtype="float64")
    schedule = WarmUp(3, CosineDecay(np.float64(0.1), 50, 0.01))
    net.fit(
        X,
        T,
        epochs=np.int64(6),
        batch_size=np.int64(5),
        optimizer=Adam(schedule, beta1=0.8, clip_norm=0.7),
        seed=np.int64(99),
        validation=0.2,
        tol=np.float64(0.0),
        patience=np.int64(3),
    )
    other = COPIES[way](net, tmp_path)
    assert_same(net, other)
    assert other.history.best_epoch == net.history.best_epoch is not None
    goes_on(net, other)


def test_numpys_float32_as_a_learning_rate(tmp_path):
    net = trained(optimizer=SGD(np.float32(0.1)))
    assert_same(net, COPIES["file"](net, tmp_path))


def test_a_diverged_and_an_interrupted_network(tmp_path):
    net = make()
    with pytest.raises(fastbp.DivergedError):
        net.fit(X, T * 1e10, epochs=50, batch_size=5, optimizer=SGD(1e20))
    other = COPIES["file"](net, tmp_path)
    assert_same(net, other)
    assert other.history.stopped == "diverged"

    def interrupt(n, history):
        raise KeyboardInterrupt

    net.fit(X, T, epochs=3, optimizer=SGD(0.01), callbacks=[interrupt])
    assert COPIES["file"](net, tmp_path).history.stopped == "interrupted"


def test_any_bits_of_parameters_are_kept(tmp_path):
    net = make(dtype="float64")
    net.theta[:6] = [np.nan, np.inf, -np.inf, -0.0, 5e-324, 1.7976931348623157e308]
    other = COPIES["file"](net, tmp_path)
    assert other.theta.tobytes() == net.theta.tobytes()


def test_a_file_is_loaded_for_another_backend(tmp_path):
    net = trained("cpu")
    net.save(tmp_path / "net.npz")
    other = fastbp.load(tmp_path / "net.npz", backend="numpy")
    assert other.backend == "numpy"
    np.testing.assert_array_equal(net.theta, other.theta)
    with fastbp.use_backend("numpy"):
        assert fastbp.load(tmp_path / "net.npz").backend == "numpy"
    assert fastbp.load(tmp_path / "net.npz").backend == "cpu"
    with pytest.raises(InputError, match=r"^backend='numpi' is unknown; did you mean 'numpy'"):
        fastbp.load(tmp_path / "net.npz", backend="numpi")


# ---- the file ------------------------------------------------------------------------------------------------------


def test_there_is_no_pickle_inside(tmp_path):
    path = tmp_path / "net.npz"
    trained().save(path, notes=np.array(["a", "b"]), table=np.eye(2))
    with np.load(path, allow_pickle=False) as content:
        kinds = {name: content[name].dtype.kind for name in content.files}
    assert "O" not in kinds.values()
    assert {"theta", "settings", "state0", "state1", "extra_notes", "extra_table"} == set(kinds)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        for name in archive.namelist():
            assert archive.read(name).startswith(b"\x93NUMPY")


def test_the_path_is_taken_as_it_is(tmp_path, monkeypatch):
    net = make()
    for path in (tmp_path / "a.npz", str(tmp_path / "b.npz"), tmp_path / "c", tmp_path / "d.model"):
        net.save(path)
        assert_same(net, fastbp.load(path))
    monkeypatch.chdir(tmp_path)
    net.save("e.npz")
    assert sorted(os.listdir(tmp_path)) == ["a.npz", "b.npz", "c", "d.model", "e.npz"]


def test_the_file_has_the_mode_that_new_files_have(tmp_path):
    before = os.umask(0o027)
    try:
        make().save(tmp_path / "net.npz")
    finally:
        os.umask(before)
    assert (tmp_path / "net.npz").stat().st_mode & 0o777 == 0o640


def test_saving_leaves_the_network_alone(tmp_path):
    net, other = trained(), trained()
    net.save(tmp_path / "net.npz")
    net.save(tmp_path / "net.npz")
    goes_on(net, other)


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt(), MemoryError()], ids=repr)
@pytest.mark.parametrize("where", ["savez", "replace"])
def test_a_failure_leaves_the_old_file_and_nothing_else(where, error, tmp_path, monkeypatch):
    path = tmp_path / "net.npz"
    net = trained()
    net.save(path)
    old = path.read_bytes()

    def fail(file, *_, **__):
        if where == "savez":
            file.write(b"half a file")
        raise error

    monkeypatch.setattr(np if where == "savez" else os, where, fail)
    net.fit(X, T, epochs=1)
    for target in (path, tmp_path / "new.npz"):
        with pytest.raises(type(error)):
            net.save(target)
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["net.npz"]
    assert path.read_bytes() == old
    assert fastbp.load(path).history.epochs == 3


def test_an_optimizer_that_cannot_be_written_is_refused_before_anything_is(tmp_path):
    class Mine(SGD):
        pass

    net = trained(optimizer=Mine(0.1))
    with pytest.raises(InputError, match="Mine is not one of fastbp's own"):
        net.save(tmp_path / "net.npz")
    assert os.listdir(tmp_path) == []


# ---- extra arrays --------------------------------------------------------------------------------------------------


def test_extra_arrays(tmp_path):
    path = tmp_path / "net.npz"
    net = make()
    given = {"mean": np.arange(4.0), "classes": np.array(["cat", "dog"]), "state0": np.eye(2, dtype=np.int8)}
    net.save(path, **given)
    found = extras(path)
    assert set(found) == set(given)
    for name, value in given.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_array_equal(found[name], value)
    assert_same(net, fastbp.load(path))


def test_extra_objects_are_refused(tmp_path):
    """They would be pickled, and the file could not be loaded again."""
    with pytest.raises(InputError, match="things"):
        make().save(tmp_path / "net.npz", things=np.array([{}, None], dtype=object))
    assert os.listdir(tmp_path) == []


def test_extras_of_no_file(tmp_path):
    with pytest.raises(DataError, match=r"nothing\.npz does not exist"):
        extras(tmp_path / "nothing.npz")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(DataError, match=r"text\.npz"):
        extras(tmp_path / "text.npz")


# ---- files that are no networks ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "net.npz"
    trained().save(path)
    return path


def test_a_missing_file(tmp_path):
    with pytest.raises(DataError, match=r"nothing\.npz does not exist"):
        fastbp.load(tmp_path / "nothing.npz")


def test_every_truncated_file_is_refused(saved, tmp_path):
    whole = saved.read_bytes()
    path = tmp_path / "cut.npz"
    for length in [*range(0, len(whole), 61), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"cut\.npz is not a network saved by fastbp, or it is damaged"):
            fastbp.load(path)


def loaded_or_refused(path):
    """The network in a file, or None if it is refused as it has to be."""
    try:
        return fastbp.load(path)
    except FastbpError as error:
        refusal = error
    assert isinstance(refusal, DataError)
    assert path.name in str(refusal)
    return None


def test_a_changed_byte_is_noticed_or_does_not_matter(saved, tmp_path):
    whole, net = saved.read_bytes(), fastbp.load(saved)
    path = tmp_path / "changed.npz"
    refused = 0
    for position in range(0, len(whole), 17):
        changed = bytearray(whole)
        changed[position] ^= 0xFF
        path.write_bytes(changed)
        other = loaded_or_refused(path)
        refused += other is None
        assert other is None or assert_same(net, other) is None
    assert refused > 50


def npz(**content):
    file = io.BytesIO()
    np.savez(file, **content)
    return file.getvalue()


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        b"PK\x03\x04",
        pickle.dumps({"theta": [1.0]}),
        npy(np.arange(3)),
        npz(),
        npz(theta=np.zeros(45)),
        npz(theta=np.zeros(45), settings=np.array("no json")),
        npz(theta=np.zeros(45), settings=np.array("[1, 2]")),
        npz(theta=np.zeros(45), settings=np.array("{}")),
        npz(settings=np.array([{"format": 1}], dtype=object)),
    ],
    ids=["empty", "text", "zip", "pickle", "npy", "npz", "bare", "no json", "list", "no format", "object"],
)
def test_foreign_files_are_refused(content, tmp_path):
    path = tmp_path / "foreign.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"foreign\.npz is not a network saved by fastbp, or it is damaged"):
        fastbp.load(path)


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="not a network saved by fastbp"):
        fastbp.load(tmp_path)


def test_loading_runs_no_pickle(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "crater"),)

    pickle.loads(pickle.dumps(Bomb()))
    (tmp_path / "crater").rmdir()  # it is there: the bomb works
    bombs = np.array([Bomb()], dtype=object)
    for content in (pickle.dumps(Bomb()), npz(theta=bombs, extra_theta=bombs)):
        (tmp_path / "bomb.npz").write_bytes(content)
        for read in (fastbp.load, extras):
            with pytest.raises(DataError):
                read(tmp_path / "bomb.npz")
            assert not (tmp_path / "crater").exists()


def rewritten(saved, path, change):
    """The saved file after ``change(settings, arrays)``."""
    with np.load(saved) as content:
        arrays = {name: content[name] for name in content.files}
    settings = json.loads(str(arrays.pop("settings")))
    change(settings, arrays)
    path.write_bytes(npz(settings=np.array(json.dumps(settings)), **arrays))


CHANGES = {
    "layer": lambda s, a: s["config"].update(layers=[4, 7, 3]),
    "no layer": lambda s, a: s["config"].update(layers=[]),
    "activation": lambda s, a: s["config"].update(activation=["tanhh"]),
    "loss": lambda s, a: s["config"].pop("loss") and s["config"].update(losss="mse"),
    "no config": lambda s, a: s.pop("config"),
    "no training": lambda s, a: s.pop("training"),
    "optimizer": lambda s, a: s["training"]["optimizer"].update({"class": "Adem"}),
    "setting": lambda s, a: s["training"]["optimizer"].update(beta1=2.0),
    "history": lambda s, a: s["training"]["history"].update(more=[]),
    "no theta": lambda s, a: a.pop("theta"),
    "short theta": lambda s, a: a.update(theta=a["theta"][:-1]),
    "text theta": lambda s, a: a.update(theta=a["theta"].astype(str)),
    "no state": lambda s, a: a.pop("state1"),
    "no first state": lambda s, a: a.pop("state0"),
    "more states": lambda s, a: a.update(state2=a["state1"]),
    "short state": lambda s, a: a.update(state1=a["state1"][:, :-1]),
    "flat state": lambda s, a: a.update(state1=a["state1"][0]),
    "text state": lambda s, a: a.update(state1=a["state1"].astype(str)),
    "state of another dtype": lambda s, a: a.update(state1=a["state1"].astype(np.float16)),
    "step": lambda s, a: s["training"].update(step="3"),
    "negative step": lambda s, a: s["training"].update(step=-1),
    "epoch": lambda s, a: s["training"].update(epoch=None),
    "seed": lambda s, a: s["training"].update(seed=-3),
}


@pytest.mark.parametrize("change", CHANGES)
def test_files_that_contradict_themselves_are_refused(change, saved, tmp_path):
    """A state of another size or dtype would let compiled code write beyond its end."""
    path = tmp_path / "other.npz"
    rewritten(saved, path, CHANGES[change])
    net = loaded_or_refused(path)
    # what is not refused must be harmless: converted to what it has to be
    assert net is None or change in ("state of another dtype", "flat state")
    for vector in net.training.state.vectors if net else ():
        assert vector.dtype == net.dtype
        assert vector.size == net.theta.size
        assert vector.flags.c_contiguous


def test_a_file_of_a_later_format(saved, tmp_path):
    rewritten(saved, tmp_path / "new.npz", lambda s, a: s.update(format=2))
    with pytest.raises(DataError, match=re.escape("has format 2; this fastbp reads format 1")):
        fastbp.load(tmp_path / "new.npz")


def test_what_is_rewritten_unchanged_is_loaded(saved, tmp_path):
    rewritten(saved, tmp_path / "same.npz", lambda s, a: None)
    assert_same(fastbp.load(saved), fastbp.load(tmp_path / "same.npz"))
