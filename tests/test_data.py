"""Data sets: what each loader reads, what it refuses and how it says so, splits and scaling."""

from __future__ import annotations

import csv
import gzip
import re
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

from fastbp import data
from fastbp.errors import DataError, FastbpError, InputError, MissingExtraError

MNIST = Path(__file__).resolve().parents[2] / "shared" / "data" / "mnist"


def labelled(n, d=2, classes=("a", "b")):
    """A data set whose first column is the row's number."""
    X = np.arange(n * d, dtype=np.float32).reshape(n, d)
    X[:, 0] = np.arange(n)
    return data.Dataset(X, np.arange(n, dtype=np.int64) % len(classes), classes, name="rows")


def idx_bytes(values, code):
    """The IDX file of an array, written by the format's definition."""
    header = bytes([0, 0, code, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    return header + values.astype(values.dtype.newbyteorder(">")).tobytes()


def write(path, content):
    if isinstance(content, str):
        path.write_text(content, encoding="utf-8")
    else:
        path.write_bytes(content)
    return path


IMAGES = (np.arange(2 * 3 * 4, dtype=np.uint8) * 10).reshape(2, 3, 4)
LABELS = np.array([7, 2], dtype=np.uint8)


def write_mnist(folder, prefix="train", images=IMAGES, labels=LABELS, dot="-", gz=False):
    """An images and a labels file named as those of MNIST."""
    pack, ending = (gzip.compress, ".gz") if gz else (bytes, "")
    return (
        write(folder / f"{prefix}-images{dot}idx3-ubyte{ending}", pack(idx_bytes(images, 0x08))),
        write(folder / f"{prefix}-labels{dot}idx1-ubyte{ending}", pack(idx_bytes(labels, 0x08))),
    )


# ---- Dataset and splits ----------------------------------------------------------------------------------------------


def test_dataset_properties():
    rows = labelled(6, d=3)
    assert (rows.n, rows.n_features, rows.n_outputs, rows.is_classification) == (6, 3, 2, True)
    targets = data.Dataset(np.zeros((4, 3), np.float32), np.zeros((4, 5), np.float32))
    assert (targets.n, targets.n_features, targets.n_outputs, targets.is_classification) == (4, 3, 5, False)


X32, T32, T64 = np.zeros((3, 2), np.float32), np.zeros((3, 1), np.float32), np.array([0, 1, 1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X32.astype(np.float64), T32), r"X is float64 of shape \(3, 2\); needed float32 \(n, d\)"),
        ((X32[0], T32), r"X is float32 of shape \(2,\); needed float32 \(n, d\)"),
        ((X32[:0], T32[:0]), r"X is float32 of shape \(0, 2\); needed .* n and d at least 1"),
        ((X32, T64), r"T is int64 of shape \(3,\) without classes; needed float32 \(n, k\)"),
        ((X32, T32, ("a", "b")), r"T is float32 of shape \(3, 1\) with classes; needed int64 labels \(n,\)"),
        ((X32, T32[:2]), r"T has 2 rows and X has 3"),
        ((X32, T64 + 1, ("a", "b")), r"T holds labels 1\.\.2; needed 0\.\.1, one of the 2 classes"),
        ((X32, T64 - 1, ("a", "b")), r"T holds labels -1\.\.0; needed 0\.\.1"),
        ((X32, T64, ("a", "b"), ("one",)), r"features has 1 names; needed 2"),
    ],
)
def test_dataset_refuses(arguments, message):
    with pytest.raises(InputError, match=message):
        data.Dataset(*arguments)


@pytest.mark.parametrize(("n", "fraction", "n_test"), [(10, 0.2, 2), (11, 0.25, 3), (3, 0.01, 1), (3, 0.99, 2)])
def test_split_has_every_row_once(n, fraction, n_test):
    train, test = labelled(n).split(fraction, seed=3)
    assert (train.n, test.n) == (n - n_test, n_test)
    assert sorted([*train.X[:, 0], *test.X[:, 0]]) == list(range(n))
    for part in (train, test):
        np.testing.assert_array_equal(part.T, part.X[:, 0].astype(int) % 2)  # targets went with their rows
        assert (part.classes, part.name) == (("a", "b"), "rows")
        assert (np.diff(part.X[:, 0]) > 0).all()  # the file's order


def test_split_depends_on_the_seed_alone():
    rows = labelled(100)
    first, again, other = (rows.split(seed=seed)[1].X for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_split_every_holds_out_the_last_of_each_k():
    train, test = labelled(12).split_every()
    assert test.X[:, 0].tolist() == [4, 9]
    assert train.X[:, 0].tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 10, 11]
    train, test = labelled(12).split_every(3)
    assert test.X[:, 0].tolist() == [2, 5, 8, 11]
    np.testing.assert_array_equal(test.T, [0, 1, 0, 1])


def test_parts_are_copies():
    rows = labelled(10)
    train, _ = rows.split_every(5)
    train.X[:] = -1
    assert rows.X.min() == 0


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_split_refuses_fraction(fraction):
    with pytest.raises(InputError, match=rf"test_fraction={fraction!r}; needed a number between 0 and 1"):
        labelled(10).split(fraction)


def test_split_refuses_seed_and_single_row():
    with pytest.raises(InputError, match=r"seed=-1; needed an integer of at least 0"):
        labelled(10).split(seed=-1)
    with pytest.raises(InputError, match=r"rows has 1 row; needed at least 2"):
        labelled(1).split()


@pytest.mark.parametrize("k", [0, 1, 11])
def test_split_every_refuses_k(k):
    with pytest.raises(InputError, match=rf"k={k}; needed an integer of at least 2 and at most 10, the rows of rows"):
        labelled(10).split_every(k)


# ---- scaling ---------------------------------------------------------------------------------------------------------

COLUMNS = np.array([[1, -4, 0.1], [2, 0, 0.1], [6, 8, 0.1]], dtype=np.float32)  # the last one is constant


def test_standard_scaling():
    scaled = data.fit_scaling(COLUMNS, "standard").apply(COLUMNS)
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(scaled.std(axis=0), [1, 1, 0], atol=1e-6)
    # by hand: mean 3, deviations -2, -1, 3, variance 14 / 3
    np.testing.assert_allclose(scaled[:, 0], np.array([-2, -1, 3]) / np.sqrt(14 / 3), rtol=1e-6)


def test_minmax_scaling():
    scaled = data.fit_scaling(COLUMNS, "minmax").apply(COLUMNS)
    np.testing.assert_allclose(scaled, [[0, 0, 0], [0.2, 1 / 3, 0], [1, 1, 0]], rtol=1e-6)


def test_unit_scaling_has_one_factor_and_no_shift():
    scaling = data.fit_scaling(COLUMNS, "unit")
    np.testing.assert_array_equal(scaling.shift, 0)
    np.testing.assert_array_equal(scaling.factor, np.float32(1 / 8))
    np.testing.assert_array_equal(data.fit_scaling(-COLUMNS, "unit").factor, np.float32(1 / 8))


def test_no_scaling():
    np.testing.assert_array_equal(data.fit_scaling(COLUMNS, "none").apply(COLUMNS), COLUMNS)


@pytest.mark.parametrize("how", data.SCALES)
@pytest.mark.parametrize("constant", [0.0, 0.1, -3e7, 1e-42])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_constant_columns_stay_finite_and_small(how, constant, dtype):
    X = np.full((1001, 2), constant, dtype=dtype)
    scaling = data.fit_scaling(X, how)
    assert np.isfinite(scaling.factor).all()
    scaled = scaling.apply(X)
    np.testing.assert_array_equal(scaled, scaled[0, 0])
    assert abs(scaled[0, 0]) <= max(abs(constant) if how == "none" else 1, 1)
    if how in ("standard", "minmax"):
        np.testing.assert_array_equal(scaled, 0)
        np.testing.assert_array_equal(scaling.factor, 1)  # another value at test time is not blown up


def test_tiny_ranges_do_not_overflow():
    X = np.array([[0], [1e-42]], dtype=np.float32)
    for how in data.SCALES:
        assert np.isfinite(data.fit_scaling(X, how).factor).all(), how


def test_scaling_is_fitted_on_one_part_and_applied_to_both():
    train, test = labelled(10).split_every(5)  # test rows 4, 9; the train rows run from 0 to 8
    scaling = data.fit_scaling(train.X, "minmax")
    np.testing.assert_allclose(train.scaled(scaling).X[:, 0].max(), 1)
    np.testing.assert_allclose(test.scaled(scaling).X[:, 0], np.array([4, 9]) / 8, rtol=1e-6)
    assert test.X[:, 0].tolist() == [4, 9]  # the unscaled one is as it was


def test_scaling_survives_storage(tmp_path):
    scaling = data.fit_scaling(COLUMNS, "standard")
    np.savez(tmp_path / "s.npz", shift=scaling.shift, factor=scaling.factor)
    with np.load(tmp_path / "s.npz") as file:
        again = data.Scaling(file["shift"], file["factor"])
    np.testing.assert_array_equal(again.apply(COLUMNS), scaling.apply(COLUMNS))


def test_scaling_is_inverted():
    for how in data.SCALES:
        scaling = data.fit_scaling(COLUMNS, how)
        again = scaling.invert(scaling.apply(COLUMNS).astype(np.float64))
        assert again.dtype == np.float64
        np.testing.assert_allclose(again, COLUMNS, rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match=r"scaled is \(2, 1\); needed \(n, \d\)"):
        scaling.invert(np.zeros((2, 1)))


def test_scaling_refuses():
    with pytest.raises(InputError, match=r"how='standart' is unknown; did you mean 'standard'\?"):
        data.fit_scaling(COLUMNS, "standart")
    with pytest.raises(InputError, match=r"X is \(3,\); needed \(n, d\)"):
        data.fit_scaling(COLUMNS[0])
    with pytest.raises(InputError, match=r"X is \(0, 3\); needed \(n, d\) with n and d at least 1"):
        data.fit_scaling(COLUMNS[:0])
    with pytest.raises(InputError, match=r"X holds NaN or infinity"):
        data.fit_scaling(np.array([[np.nan]]))
    with pytest.raises(InputError, match=r"X is \(3, 2\); needed \(n, 3\)"):
        data.fit_scaling(COLUMNS).apply(COLUMNS[:, :2])
    with pytest.raises(InputError, match=r"shift is \(2,\) and factor is \(3,\); needed \(d,\) and \(d,\)"):
        data.Scaling(np.zeros(2, np.float32), np.ones(3, np.float32))


# ---- digits ----------------------------------------------------------------------------------------------------------


def test_digits():
    pytest.importorskip("sklearn")
    rows = data.load("digits")
    assert (rows.X.shape, rows.X.dtype, rows.T.dtype, rows.name) == ((1797, 64), np.float32, np.int64, "digits")
    assert (rows.X.min(), rows.X.max()) == (0, 1)
    assert rows.classes == tuple("0123456789")
    assert rows.T[:10].tolist() == list(range(10))


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtraError, match=r"The bundled digits needs .*'scikit-learn'.*fastbp\[demo\]"):
        data.digits()


# ---- IDX -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gz", [False, True])
@pytest.mark.parametrize(
    ("code", "dtype"), [(0x08, "u1"), (0x09, "i1"), (0x0B, "i2"), (0x0C, "i4"), (0x0D, "f4"), (0x0E, "f8")]
)
def test_idx_round_trip(tmp_path, code, dtype, gz):
    values = (np.random.default_rng(0).normal(size=(3, 2, 5)) * 50).astype(np.int8).astype(dtype)
    content = idx_bytes(values, code)
    again = data.read_idx(write(tmp_path / "values", gzip.compress(content) if gz else content))
    assert again.dtype == np.dtype(dtype)
    assert again.dtype.isnative
    assert again.flags.writeable
    np.testing.assert_array_equal(again, values)


def test_idx_known_bytes(tmp_path):
    content = bytes.fromhex("00 00 0b 02  00000002 00000001  0102 fffe")
    np.testing.assert_array_equal(data.read_idx(write(tmp_path / "f", content)), [[0x0102], [-2]])


GOOD = idx_bytes(IMAGES, 0x08)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"bad: the file is empty"),
        (gzip.compress(b""), r"bad: the file is empty"),
        (GOOD[:-1], r"bad: cut short: 39 bytes; needed 40 for uint8 of shape \(2, 3, 4\)"),
        (GOOD + b"!!", r"bad: 2 bytes too many: 42; needed 40"),
        (GOOD[:9], r"bad: cut short in the header: 9 bytes; needed 16"),
        (b"\0\0\x08", r"bad: not an IDX file: it starts with the bytes 00 00 08;"),
        (b"\0\0\x0a" + GOOD[3:], r"bad: not an IDX file: it starts with the bytes 00 00 0a 03;"),
        (b"\0\0\x08\0", r"number of dimensions, at least 1"),
        (b"PK\x03\x04" + GOOD, r"bad: not an IDX file: it starts with the bytes 50 4b 03 04"),
        (gzip.compress(GOOD)[:-12], r"bad: the gzip data is damaged or cut short"),
        (gzip.compress(GOOD)[:-8] + bytes(8), r"bad: the gzip data is damaged or cut short .*CRC"),
        (b"\x1f\x8b" + bytes(30), r"bad: the gzip data is damaged or cut short"),
        (gzip.compress(GOOD[:-1]), r"bad: cut short: 39 bytes; needed 40"),
        # dimensions whose product would not fit into memory, or into 64 bits
        (b"\0\0\x0e\x04" + bytes(4) + b"\xff" * 12, r"bad: not an IDX file: 4 dimensions, the largest 4294967295"),
        (b"\0\0\x08\xff" + b"\0\0\0\x01" * 255 + b"!", r"bad: not an IDX file: 255 dimensions, the largest 1"),
        (b"\0\0\x0e\x03" + b"\xff" * 12, r"bad: cut short: 16 bytes; needed 63382529"),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else value,  # gzip writes the time: ids would differ by process
)
def test_idx_refuses(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        data.read_idx(write(tmp_path / "bad", content))


def test_idx_refuses_missing_file_and_folder(tmp_path):
    with pytest.raises(DataError, match=r"nowhere: no such file"):
        data.read_idx(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r": a folder; needed a file"):
        data.read_idx(tmp_path)


@pytest.mark.parametrize("gz", [False, True])
@pytest.mark.parametrize("dot", ["-", "."])
def test_load_idx_folder(tmp_path, dot, gz):
    write_mnist(tmp_path, dot=dot, gz=gz)
    rows = data.load_idx(tmp_path)
    assert rows.X.dtype == np.float32
    np.testing.assert_array_equal(rows.X, IMAGES.reshape(2, 12).astype(np.float32) / 255)
    assert rows.T.tolist() == [7, 2]
    assert rows.classes == tuple("01234567")
    assert rows.name.startswith(f"{tmp_path.name}/train-images")


def test_load_idx_parts(tmp_path):
    write_mnist(tmp_path, "t10k", labels=LABELS[::-1])
    assert data.load_idx(tmp_path).T.tolist() == [2, 7]  # the only part there is
    with pytest.raises(DataError, match=r"needed train-images-idx3-ubyte.*IDX files: t10k-images-idx3-ubyte, t10k-lab"):
        data.load_idx(tmp_path, part="train")
    write_mnist(tmp_path, "train")
    assert data.load_idx(tmp_path).T.tolist() == [7, 2]
    assert data.load_idx(tmp_path, part="train").T.tolist() == [7, 2]
    assert data.load_idx(tmp_path, part="test").T.tolist() == [2, 7]
    assert data.load_idx(tmp_path, part="t10k").T.tolist() == [2, 7]


def test_load_idx_file(tmp_path):
    images, labels = write_mnist(tmp_path)
    assert data.load_idx(images).T.tolist() == [7, 2]
    labels.rename(tmp_path / "other")
    assert data.load_idx(images, tmp_path / "other").T.tolist() == [7, 2]
    with pytest.raises(DataError, match=r"no labels file train-labels-idx1-ubyte\[\.gz\] beside it.*labels="):
        data.load_idx(images)
    write(tmp_path / "train-labels-idx1-ubyte.gz", gzip.compress(idx_bytes(LABELS, 0x08)))
    assert data.load_idx(images).T.tolist() == [7, 2]  # one file packed, the other not
    write_mnist(tmp_path, "t10k")
    packed = write(tmp_path / "t10k-images-idx3-ubyte.gz", gzip.compress(images.read_bytes()))
    assert data.load_idx(packed).T.tolist() == [7, 2]
    with pytest.raises(DataError, match=r"pictures: no labels file pictures\[\.gz\] beside it.*labels="):
        data.load_idx(images.rename(tmp_path / "pictures"))


def test_load_idx_keeps_what_is_not_uint8(tmp_path):
    values = np.array([[0.5, 300], [-2, 1]], dtype=np.float32)
    images = write(tmp_path / "images-idx2", idx_bytes(values, 0x0D))
    write(tmp_path / "labels-idx2", idx_bytes(LABELS, 0x08))
    np.testing.assert_array_equal(data.load_idx(images).X, values)
    values[1, 0] = np.inf
    write(images, idx_bytes(values, 0x0D))
    with pytest.raises(DataError, match=r"images-idx2: X, row 1, column 0: the value is inf; needed a finite"):
        data.load_idx(images)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        # a labels file that is an images file in truth: its counts agree, only the dimensions tell
        (IMAGES, IMAGES, r"train-labels-idx1-ubyte: uint8 of 3 dimensions; needed integer labels, 1 dimension"),
        (LABELS, LABELS, r"train-images-idx3-ubyte: 1 dimension; needed images.*Are these labels\?"),
        (IMAGES, LABELS[:1], r"images-idx3-ubyte holds 2 images and .*labels-idx1-ubyte 1 labels; needed as many"),
        (IMAGES[:0], LABELS[:0], r"X is empty, of shape \(0, 3, 4\)"),
    ],
)
def test_load_idx_refuses(tmp_path, images, labels, message):
    write_mnist(tmp_path, images=images, labels=labels)
    with pytest.raises(DataError, match=message):
        data.load_idx(tmp_path)


@pytest.mark.parametrize(
    ("values", "code", "message"),
    [
        (np.array([0.0, 1.0]), 0x0E, r"lab: float64 of 1 dimensions; needed integer labels"),
        (np.array([-1, 1], np.int8), 0x09, r"lab: the labels run from -1 to 1; needed 0\.\.K-1"),
        (np.array([5, 70000], np.int32), 0x0C, r"lab: the labels run from 5 to 70000; needed .*K at most 65536"),
    ],
)
def test_load_idx_refuses_labels(tmp_path, values, code, message):
    images = write(tmp_path / "images", idx_bytes(IMAGES, 0x08))
    with pytest.raises(DataError, match=message):
        data.load_idx(images, write(tmp_path / "lab", idx_bytes(values, code)))


def test_load_idx_refuses_arguments_and_incomplete_folders(tmp_path):
    with pytest.raises(DataError, match=r"needed train-images.* or t10k-images.*; the folder's IDX files: none"):
        data.load_idx(tmp_path)
    with pytest.raises(InputError, match=r"part='tset' is unknown; did you mean 'test'\?"):
        data.load_idx(tmp_path, part="tset")
    with pytest.raises(InputError, match=r"labels='x' goes with an images file"):
        data.load_idx(tmp_path, "x")
    images, labels = write_mnist(tmp_path)
    with pytest.raises(InputError, match=r"part='train' goes with a folder"):
        data.load_idx(images, part="train")
    content = labels.read_bytes()
    labels.unlink()
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte is there, but train-labels-idx1.* is missing"):
        data.load_idx(tmp_path)
    labels.write_bytes(content)
    images.unlink()
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte is there, but train-images-idx3.* is missing"):
        data.load_idx(tmp_path)


def test_mnist():
    if not (MNIST / "t10k-images-idx3-ubyte.gz").is_file():
        pytest.skip("the MNIST files are not on this machine")
    rows = data.load(MNIST)
    assert rows.X.shape == (10000, 784)
    assert (rows.X.min(), rows.X.max()) == (0, 1)
    assert rows.T[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert np.bincount(rows.T).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert rows.classes == tuple("0123456789")
    train, test = rows.split_every()
    assert (train.n, test.n) == (8000, 2000)


# ---- npz -------------------------------------------------------------------------------------------------------------

XN = np.arange(12, dtype=np.float64).reshape(4, 3)


@pytest.mark.parametrize(
    ("x", "t"), [("X", "T"), ("X", "y"), ("x", "y"), ("x", "t"), ("x_train", "y_train"), ("X_train", "y_train")]
)
def test_npz_names(tmp_path, x, t):
    np.savez(tmp_path / "f.npz", **{x: XN, t: np.array([0, 2, 0, 1])}, x_test=XN[:1], y_test=[0])
    rows = data.load_npz(tmp_path / "f.npz")
    np.testing.assert_array_equal(rows.X, XN)
    assert (rows.X.dtype, rows.T.dtype, rows.T.tolist()) == (np.float32, np.int64, [0, 2, 0, 1])
    assert rows.classes == ("0", "1", "2")


def test_npz_prefers_x_and_t(tmp_path):
    np.savez_compressed(tmp_path / "f.npz", X=XN, T=[0, 0, 1, 1], y=[1, 1, 0, 0])
    assert data.load_npz(tmp_path / "f.npz").T.tolist() == [0, 0, 1, 1]
    assert data.load_npz(tmp_path / "f.npz", t="y").T.tolist() == [1, 1, 0, 0]


def test_npz_shapes_and_targets(tmp_path):
    path = tmp_path / "f.npz"
    np.savez(path, X=XN.reshape(4, 3, 1, 1).astype(np.uint8), T=np.array([0.5, 1, 2, 3]))
    rows = data.load_npz(path)
    assert (rows.X.shape, rows.T.shape, rows.T.dtype, rows.classes) == ((4, 3), (4, 1), np.float32, None)
    np.testing.assert_array_equal(rows.X, XN)  # not divided by anything
    np.savez(path, X=XN, T=XN[:, :2])
    np.testing.assert_array_equal(data.load_npz(path).T, XN[:, :2])
    np.savez(path, X=XN, T=XN[:, 0] > 4)
    assert data.load_npz(path).T.tolist() == [0, 0, 1, 1]


def bad(row, column, value):
    values = XN.copy()
    values[row, column] = value
    return values


LABELS4 = np.array([0, 1, 1, 0])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": XN, "labels": LABELS4}, r"it holds 'images', 'labels'; needed 'X' and 'T' or 'X' and 'y' or"),
        ({}, r"it holds no arrays"),
        ({"X": XN, "T": np.array([{}, 1, 2, 3], dtype=object)}, r"the array 'T' cannot be read.*Object arrays cannot"),
        ({"X": XN[0], "T": LABELS4}, r"X is \(3,\); needed \(n, d\)"),
        ({"X": XN, "T": LABELS4[:3]}, r"X is \(4, 3\) and T is \(3,\); needed as many rows"),
        ({"X": XN, "T": np.array(1)}, r"X is \(4, 3\) and T is \(\); needed as many rows"),
        ({"X": XN[:0], "T": LABELS4[:0]}, r"X is empty, of shape \(0, 3\)"),
        ({"X": XN[:, :0], "T": LABELS4}, r"X is empty, of shape \(4, 0\)"),
        ({"X": XN.astype(str), "T": LABELS4}, r"X is of dtype <U32; needed numbers"),
        ({"X": XN + 1j, "T": LABELS4}, r"X is of dtype complex128; needed numbers"),
        ({"X": bad(2, 1, np.nan), "T": LABELS4}, r"f\.npz: X, row 2, column 1: the value is nan; needed a finite"),
        ({"X": bad(3, 0, -np.inf), "T": LABELS4}, r"f\.npz: X, row 3, column 0: the value is -inf"),
        ({"X": bad(1, 2, 1e300), "T": LABELS4}, r"f\.npz: X, row 1, column 2: the value is 1e\+300; .*float32"),
        ({"X": XN, "y": bad(1, 2, np.nan)}, r"f\.npz: y, row 1, column 2: the value is nan"),
        ({"X": XN, "T": LABELS4 - 1}, r"the labels run from -1 to 0"),
        ({"X": XN, "T": LABELS4 * 10**9}, r"the labels run from 0 to 1000000000; needed"),
        ({"X": XN, "T": LABELS4[:, None]}, r"T is int64 of shape \(4, 1\); needed integers or texts \(n,\), floats"),
        ({"X": XN, "T": LABELS4[:, None].astype(str)}, r"T is <U21 of shape \(4, 1\); needed integers or texts"),
        ({"X": XN, "T": np.array(["a", "", "b", "a"])}, r"f\.npz: T, row 1: the value is missing"),
        ({"X": XN, "T": np.array(["a"] * 4, dtype=object)}, r"'T' cannot be read.*save texts with \.astype\(str\)"),
        ({"theta": XN, "settings": np.array("{}")}, r"f\.npz: this is a saved network, not data"),
        ({"X": XN, "T": XN[:, :, None]}, r"T is float64 of shape \(4, 3, 1\); needed"),
        ({"X": XN, "T": XN[:, :0]}, r"T is float64 of shape \(4, 0\); needed"),
    ],
)
def test_npz_refuses(tmp_path, arrays, message):
    np.savez(tmp_path / "f.npz", **arrays)
    with pytest.raises(DataError, match=message):
        data.load_npz(tmp_path / "f.npz")


def test_npz_texts_are_classes(tmp_path):
    path = tmp_path / "f.npz"
    for texts, classes, T in (
        (["red", "blue", " red", "green"], ("blue", "green", "red"), [2, 0, 2, 1]),
        (["10", "9", "9", "10"], ("9", "10"), [1, 0, 0, 1]),  # sorted as numbers, as in a csv file
    ):
        np.savez(path, X=XN, T=np.array(texts))
        rows = data.load_npz(path)
        assert (rows.classes, rows.T.tolist()) == (classes, T)
        assert data.load_inputs(path, 3, classes=classes[::-1])[1].tolist() == [len(classes) - 1 - t for t in T]
    assert data.load_inputs(path, 3)[1].tolist() == [[10], [9], [9], [10]]  # of a network for numbers
    np.savez(path, X=XN, T=np.array(["red", "blue", "red", "red"]))
    with pytest.raises(DataError, match=r"f\.npz: the targets are texts, and the network predicts numbers"):
        data.load_inputs(path, 3)


def test_npz_refuses_given_names(tmp_path):
    np.savez(tmp_path / "f.npz", X=XN, y=LABELS4)
    with pytest.raises(DataError, match=r"it holds 'X', 'y'; needed 'X' and 'Y', or name"):
        data.load_npz(tmp_path / "f.npz", t="Y")


def test_npz_refuses_other_files(tmp_path):
    path = tmp_path / "f.npz"
    np.savez(path, X=XN, T=LABELS4)
    whole = path.read_bytes()
    np.save(tmp_path / "f.npy", XN)
    for content in (b"", b"text", whole[: len(whole) // 2], (tmp_path / "f.npy").read_bytes(), b"#!/bin/sh\n" + whole):
        write(path, content)
        with pytest.raises(DataError, match=r"f\.npz: not an \.npz file, or cut short; needed one of numpy\.savez"):
            data.load_npz(path)
    at = whole.index(XN.tobytes())
    write(path, whole[:at] + b"\xff" + whole[at + 1 :])
    with pytest.raises(DataError, match=r"the array 'X' cannot be read.*CRC"):
        data.load_npz(path)
    with pytest.raises(DataError, match=r"gone\.npz: no such file"):
        data.load_npz(tmp_path / "gone.npz")


# ---- csv -------------------------------------------------------------------------------------------------------------

FLOWERS = "width,length,kind\n1,2.5,rose\n-3e1,4,aster\n5,6,rose\n"


def test_csv_with_text_classes(tmp_path):
    rows = data.load_csv(write(tmp_path / "f.csv", FLOWERS))
    np.testing.assert_array_equal(rows.X, np.array([[1, 2.5], [-30, 4], [5, 6]], dtype=np.float32))
    assert (rows.X.dtype, rows.T.dtype) == (np.float32, np.int64)
    assert rows.classes == ("aster", "rose")
    assert rows.T.tolist() == [1, 0, 1]
    assert rows.features == ("width", "length")
    assert rows.name == "f.csv"


@pytest.mark.parametrize("target", ["width", 0, -3])
def test_csv_target(tmp_path, target):
    rows = data.load_csv(write(tmp_path / "f.csv", "width,length,height\n.5,2,3\n1,4,6\n"), target)
    assert rows.features == ("length", "height")
    np.testing.assert_array_equal(rows.X, [[2, 3], [4, 6]])
    np.testing.assert_array_equal(rows.T, [[0.5], [1]])
    assert rows.classes is None


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_csv_delimiter_is_found(tmp_path, delimiter):
    path = write(tmp_path / "f.csv", FLOWERS.replace(",", delimiter))
    assert data.load_csv(path).features == ("width", "length")
    assert data.load_csv(path, delimiter=delimiter).T.tolist() == [1, 0, 1]


def test_csv_delimiter_in_quotes_text_or_given(tmp_path):
    rows = data.load_csv(write(tmp_path / "f.csv", 'a,"b;c",kind\n1, "2", "x, y"\n3,4,z;\n'))
    assert rows.features == ("a", "b;c")
    assert rows.classes == ("x, y", "z;")
    rows = data.load_csv(write(tmp_path / "f.csv", "1;2;a,b\n3;4;c,d\n"))  # commas cut evenly too
    assert rows.classes == ("a,b", "c,d")
    rows = data.load_csv(write(tmp_path / "f.csv", "1 2 x\n3 4 y\n"), delimiter=" ")
    np.testing.assert_array_equal(rows.X, [[1, 2], [3, 4]])


def test_csv_wide_lines(tmp_path):
    # longer than csv's limit on one cell, which is what a wrong delimiter makes of it
    wide = "\n".join(",".join(["0.12345678"] * 20000) for _ in range(3))
    assert data.load_csv(write(tmp_path / "f.csv", wide)).X.shape == (3, 19999)


def test_csv_header(tmp_path):
    path = write(tmp_path / "f.csv", "1,2,a\n3,4,b\n")
    rows = data.load_csv(path)
    assert (rows.n, rows.features, rows.classes) == (2, None, ("a", "b"))
    rows = data.load_csv(path, header=True)
    assert (rows.n, rows.features, rows.classes) == (1, ("1", "2"), ("b",))
    rows = data.load_csv(path, "a")  # the first line holds the target's name, so it is a header
    assert (rows.n, rows.features) == (1, ("1", "2"))
    assert data.load_csv(write(path, "1,a\n2,b\n3,a\n")).n == 3  # one number is enough: no header
    with pytest.raises(DataError, match=r"line 1, column 0: 'x' is not a number"):
        data.load_csv(write(path, "x,y\n1,2\n"), header=False)


def test_csv_line_ends_blank_lines_and_byte_order_mark(tmp_path):
    rows = data.load_csv(write(tmp_path / "f.csv", b"\xef\xbb\xbfx, kind\r\n\r\n1,a \r\n   \r\n 2 , b\r\n\r\n"))
    assert (rows.features, rows.classes) == (("x",), ("a", "b"))
    np.testing.assert_array_equal(rows.X, [[1], [2]])


def numbered(targets):
    return "x,t\n" + "".join(f"{row}.5,{target}\n" for row, target in enumerate(targets))


@pytest.mark.parametrize(
    ("targets", "task", "classes"),
    [
        ([3, 10, 3, 10], "auto", ("3", "10")),  # sorted as numbers
        (["1.0", 1, "-2.0", -2], "auto", ("-2", "1")),
        ([0.5, 1, 0.5, 1], "auto", None),
        (list(range(50)) * 2, "auto", tuple(map(str, range(50)))),
        (list(range(51)) * 2, "auto", None),
        ([1, 2, 3, 4], "auto", None),  # a class of each row's own is none
        ([1, 2, 3, 4], "classify", ("1", "2", "3", "4")),
        ([0.5, 2, 0.5], "classify", ("0.5", "2")),
        (["b", "a", "b"], "auto", ("a", "b")),
        (["a", 1, "a"], "classify", ("1", "a")),
        ([3, 10, 3, 10], "regress", None),
    ],
)
def test_csv_task(tmp_path, targets, task, classes):
    rows = data.load_csv(write(tmp_path / "f.csv", numbered(targets)), task=task)
    assert rows.classes == classes
    if classes is None:
        assert rows.T.dtype == np.float32
        np.testing.assert_array_equal(rows.T, np.array(targets, dtype=np.float32)[:, np.newaxis])
    else:
        names = [str(t).removesuffix(".0") for t in targets]
        assert [rows.classes[label] for label in rows.T] == names


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("", {}, r"f\.csv: the file is empty"),
        ("\n  \n", {}, r"f\.csv: the file is empty"),
        ("a,b\n", {}, r"f\.csv: a header and no data"),
        ("a\n1\n2\n", {}, r"f\.csv: one column only; needed a target .* another delimiter="),
        ("a,b\n1,2\n1,2,3\n", {}, r"f\.csv: line 3 has 3 cells; needed 2, as above it"),
        ("a,b,c\n\n1,2\n", {}, r"f\.csv: line 3 has 2 cells; needed 3"),
        ("a,b,t\n1,2,x\n1,two,x\n", {}, r"f\.csv: line 3, column 'b': 'two' is not a number"),
        ("t,a,b\nx,1,2\nx,1,1O\n", {"target": "t"}, r"f\.csv: line 3, column 'b': '1O' is not a number"),
        ("a,t,b\n1,x,2\n1,x, o \n", {"target": 1}, r"f\.csv: line 3, column 'b': 'o' is not a number"),
        ("1,2,x\n1,two,x\n", {}, r"f\.csv: line 2, column 1: 'two' is not a number"),
        ("a,b,t\n1,2,x\n1, ,x\n", {}, r"f\.csv: line 3, column 'b': the value is missing \(''\)"),
        ("a,b,t\n1,2,x\nN/A,2,x\n", {}, r"f\.csv: line 3, column 'a': the value is missing \('N/A'\)"),
        ("a,b,t\n1,2,x\nNaN,2,x\n", {}, r"f\.csv: line 3, column 'a': the value is nan; needed a finite"),
        ("t,a,b\n3,2,1\n4,2,nan\n", {"target": 0}, r"line 3, column 'b': the value is nan"),
        ("a,b,t\n1,2,x\n\n1,inf,x\n", {}, r"f\.csv: line 4, column 'b': the value is inf"),
        ("a,b,t\n1,1e39,x\n", {}, r"f\.csv: line 2, column 'b': the value is 1e\+39; needed a finite float32"),
        ("a,t\n1,x\n2,\n", {}, r"f\.csv: line 3, target column 't': the value is missing \(''\)"),
        ("a,t\n1,2\n2,nan\n", {}, r"f\.csv: line 3, target column 't': the value is missing \('nan'\)"),
        ("a,t\n1,x\n2,?\n", {"task": "classify"}, r"line 3, target column 't': the value is missing \('\?'\)"),
        ("a,t\n1,2\n2,-inf\n", {}, r"f\.csv: line 3, target column 't': the value is -inf"),
        ("a,t\n1,2\n2,big\n3,4\n", {}, r"line 3, target column 't': 'big' is text among numbers.*task='classify'"),
        ("a,t\n1,2\n2,big\n", {"task": "regress"}, r"f\.csv: line 3, target column 't': 'big' is not a number"),
        ('a,t\n1,"2\n3,4\n', {}, r"f\.csv: line \d is not csv \(unexpected end of data\)"),
        (b"a,t\n1,caf\xe9\n", {}, r"f\.csv: not UTF-8 text: byte 9 is 0xe9"),
    ],
)
def test_csv_refuses_content(tmp_path, content, options, message):
    with pytest.raises(DataError, match=message):
        data.load_csv(write(tmp_path / "f.csv", content), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "kidn"}, r"target='kidn' is unknown; did you mean 'kind'\? Valid: 'width', 'length', 'kind'"),
        ({"target": 3}, r"target=3 is out of range: .*f\.csv has 3 columns; needed -3\.\.2"),
        ({"target": -4}, r"target=-4 is out of range"),
        ({"target": "kind", "header": False}, r"target='kind' is a name, but .*f\.csv has no header line"),
        ({"task": "regres"}, r"task='regres' is unknown; did you mean 'regress'\?"),
        ({"delimiter": ", "}, r"delimiter=', '; needed one character"),
        ({"delimiter": '"'}, r"delimiter='\"'; needed one character"),
        ({"delimiter": ""}, r"delimiter=''; needed one character"),
    ],
)
def test_csv_refuses_arguments(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        data.load_csv(write(tmp_path / "f.csv", FLOWERS), **options)


def test_csv_refuses_ambiguous_target(tmp_path):
    path = write(tmp_path / "f.csv", "a,t,t\n1,2,3\n")
    with pytest.raises(InputError, match=r"target='t' names 2 columns of .*f\.csv; needed an index"):
        data.load_csv(path, "t")


def test_csv_agrees_with_what_csv_writes(tmp_path):
    X = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    names = [f'kind "{i % 3}", with\na line' for i in range(30)]
    with open(tmp_path / "f.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([*map(repr, row), name] for row, name in zip(X.tolist(), names, strict=True))
    rows = data.load_csv(tmp_path / "f.csv")
    np.testing.assert_array_equal(rows.X, X)
    assert [rows.classes[label] for label in rows.T] == names


# ---- load ------------------------------------------------------------------------------------------------------------


def test_load_goes_by_the_kind_of_source(tmp_path):
    images, _ = write_mnist(tmp_path, gz=True)
    assert data.load(tmp_path).T.tolist() == [7, 2]
    assert data.load(str(images)).T.tolist() == [7, 2]
    np.savez(tmp_path / "f.npz", X=XN, T=LABELS4)
    assert data.load(tmp_path / "f.npz").T.tolist() == [0, 1, 1, 0]
    assert data.load(write(tmp_path / "F.CSV", FLOWERS)).n == 3
    assert data.load(write(tmp_path / "f.tsv", FLOWERS.replace(",", "\t"))).n == 3


def test_load_passes_options_on(tmp_path):
    rows = data.load(write(tmp_path / "f.csv", "a,b\n1,2\n3,4\n"), target="a", task="classify")
    assert rows.classes == ("1", "3")
    with pytest.raises(TypeError, match=r"target"):
        data.load(tmp_path, target="a")


def test_load_refuses(tmp_path):
    with pytest.raises(DataError, match=rf"^{re.escape(str(tmp_path / 'gone.csv'))}: no such file or folder; needed"):
        data.load(tmp_path / "gone.csv")
    with pytest.raises(DataError, match=r"^digit: no such file or folder; needed 'digits', a folder"):
        data.load("digit")
    with pytest.raises(DataError, match=r"f\.xlsx: files of this kind are not supported; needed 'digits'.*\.csv or"):
        data.load(write(tmp_path / "f.xlsx", "x"))


def test_kind_of(tmp_path):
    images, _ = write_mnist(tmp_path, gz=True)
    assert [data.kind_of(source) for source in ("digits", tmp_path, images)] == ["digits", "idx", "idx"]
    for name, kind in (("f.npz", "npz"), ("F.CSV", "csv"), ("f.tsv", "csv")):
        assert data.kind_of(str(write(tmp_path / name, ""))) == kind
    with pytest.raises(DataError, match=r"f\.xlsx: files of this kind are not supported"):
        data.kind_of(write(tmp_path / "f.xlsx", ""))


# ---- load_inputs -----------------------------------------------------------------------------------------------------


def test_inputs_of_idx_files(tmp_path):
    images, labels = write_mnist(tmp_path)
    expected = data.load(images).X
    for source in (tmp_path, images):
        X, T = data.load_inputs(source, 12, classes=tuple("01234567"))
        np.testing.assert_array_equal(X, expected)
        assert (T.tolist(), T.dtype) == ([7, 2], np.int64)
    with pytest.raises(DataError, match=r"labels-idx1-ubyte: 1 dimension; needed images.*Are these labels\?"):
        data.load_inputs(labels, 12)
    labels.unlink()
    X, T = data.load_inputs(images, 12)
    np.testing.assert_array_equal(X, expected)
    assert (X.dtype, T) == (np.float32, None)
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte\[\.gz\] is missing"):
        data.load_inputs(tmp_path, 12)


@pytest.mark.parametrize("x", ["X", "x", "x_train", "X_train"])
def test_inputs_of_npz_files(tmp_path, x):
    path = tmp_path / "f.npz"
    np.savez(path, **{x: XN, "note": 1})
    X, T = data.load_inputs(path, 3)
    np.testing.assert_array_equal(X, XN)
    assert (X.dtype, T) == (np.float32, None)
    np.savez(path, **{x: XN[0]})
    with pytest.raises(DataError, match=rf"f\.npz: {x} is \(3,\); needed \(n, d\), at least 2 dimensions"):
        data.load_inputs(path, 3)
    np.savez(path, **{x: bad(2, 1, np.nan)})
    with pytest.raises(DataError, match=rf"f\.npz: {x}, row 2, column 1: the value is nan"):
        data.load_inputs(path, 3)


def test_inputs_of_npz_files_with_targets(tmp_path):
    path = tmp_path / "f.npz"
    np.savez(path, X=XN, y=LABELS4)
    assert data.load_inputs(path, 3, classes=("0", "1"))[1].tolist() == [0, 1, 1, 0]
    T = data.load_inputs(path, 3)[1]  # of a network for numbers
    assert (T.tolist(), T.dtype) == ([[0], [1], [1], [0]], np.float32)
    np.savez(path, X=XN, y=np.eye(2)[LABELS4])
    assert data.load_inputs(path, 3, classes=("0", "1"))[1].tolist() == np.eye(2)[LABELS4].tolist()
    np.savez(path, Z=XN)
    with pytest.raises(DataError, match=r"it holds 'Z'; needed 'X' and 'T' or"):
        data.load_inputs(path, 3)


def test_labels_are_indices_into_the_networks_classes(tmp_path):
    path = write(tmp_path / "f.csv", FLOWERS)
    assert data.load_inputs(path, 2, classes=("rose", "tulip", "aster"))[1].tolist() == [0, 2, 0]
    with pytest.raises(DataError, match=r"f\.csv: the class 'aster' is none of the network's: 'rose', 'tulip'"):
        data.load_inputs(path, 2, classes=("rose", "tulip"))
    np.savez(tmp_path / "f.npz", X=XN, T=[5, 3, 3, 5])  # no row of the classes 0, 1, 2 and 4
    assert data.load_inputs(tmp_path / "f.npz", 3, classes=("5", "3"))[1].tolist() == [0, 1, 1, 0]


WL = ("width", "length")


@pytest.mark.parametrize(
    ("content", "options", "T"),
    [
        # by name
        ("width,length\n1,2\n3,4\n", {"features": WL}, None),
        ("length;note;width\n2;good;1\n4;;3\n", {"features": WL}, None),
        ("length,kind,width\n2,8,1\n4,9,3\n", {"features": WL, "target": "kind"}, [8, 9]),
        ("length,kind,width\n2,8,1\n4,9,3\n", {"features": WL, "target": 1}, [8, 9]),
        ("length,kind,width\n2,8,1\n4,9,3\n", {"features": WL, "target": -2}, [8, 9]),
        ("length,note,width\n2,,1\n4,,3\n", {"features": WL}, None),  # the target was the last column
        ("kind,width,note,length\n8,1,,2\n9,3,,4\n", {"features": WL, "target": "kind"}, [8, 9]),
        ("kind,width,note,length\n8,1,,2\n9,3,,4\n", {"features": WL, "target": 0}, None),
        ("2,1,x\n2,1,5\n4,3,6\n", {"features": ("1", "2"), "target": "x"}, [5, 6]),  # names that are numbers
        # by place
        ("1,2\n3,4\n", {"features": WL}, None),
        ("1,2\n3,4\n", {"target": "kind"}, None),
        ("1,2,8\n3,4,9\n", {"features": WL}, [8, 9]),
        ("8,1,2\n9,3,4\n", {"target": 0}, [8, 9]),
        ("a,b\n1,2\n3,4\n", {}, None),
        ("a,kind,b\n1,8,2\n3,9,4\n", {"target": "kind"}, [8, 9]),
        ("a,a\n1,2\n3,4\n", {"features": ("a", "a")}, None),  # names that tell nothing apart
    ],
)
def test_inputs_of_csv_files(tmp_path, content, options, T):
    X, found = data.load_inputs(write(tmp_path / "f.csv", content), 2, **options)
    assert (X.tolist(), X.dtype) == ([[1, 2], [3, 4]], np.float32)
    if T is None:
        assert found is None
    else:
        assert (found.tolist(), found.dtype) == ([[t] for t in T], np.float32)


def test_inputs_of_csv_files_of_one_column(tmp_path):
    for content in ("x\n1\n2\n", "1\n2\n"):
        X, T = data.load_inputs(write(tmp_path / "f.csv", content), 1, features=("x",))
        assert (X.tolist(), T) == ([[1], [2]], None)


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("", {}, r"f\.csv: the file is empty"),
        ("width,length\n", {}, r"f\.csv: a header and no data"),
        ("1,2,3,4\n", {}, r"f\.csv has 4 columns and no header; the network takes 2, with or without the target -1"),
        ("a,b,c\n1,2,3\n", {"target": "kind"}, r"f\.csv has 3 columns; the network takes 2"),
        ("1,2,3\n", {"target": "kind"}, r"f\.csv has 3 columns and no header; the network takes 2"),
        ("a,kind\n1,2\n", {"target": "kind"}, r"f\.csv has 2 columns; the network takes 2"),
        ("width,height\n1,2\n", {"features": WL}, r"f\.csv: the column 'length' is missing; needed once"),
        ("width,length,width\n1,2,3\n", {"features": WL}, r"f\.csv: the column 'width' is there 2 times; needed once"),
        ("length,width\n1,2\n1,x\n", {"features": WL}, r"f\.csv: line 3, column 'width': 'x' is not a number"),
        ("length,width\n,2\n", {"features": WL}, r"f\.csv: line 2, column 'length': the value is missing"),
        ("1,2\n1,inf\n", {"features": WL}, r"f\.csv: line 2, column 1: the value is inf"),
        ("1,2,8\n1,2,x\n", {}, r"f\.csv: line 2, target column 2: 'x' is not a number"),
        ("1,2,a\n1,2,?\n", {"classes": ("a",)}, r"f\.csv: line 2, target column 2: the value is missing"),
    ],
)
def test_inputs_of_csv_files_are_refused(tmp_path, content, options, message):
    with pytest.raises(DataError, match=message):
        data.load_inputs(write(tmp_path / "f.csv", content), 2, **options)


def test_load_inputs_refuses(tmp_path):
    path = write(tmp_path / "f.csv", FLOWERS)
    with pytest.raises(InputError, match=r"features has 2 names; needed n_features=3"):
        data.load_inputs(path, 3, features=WL)
    with pytest.raises(InputError, match=r"target=3 is out of range: .*f\.csv has 3 columns; needed -3\.\.2"):
        data.load_inputs(path, 2, target=3)
    np.savez(tmp_path / "f.npz", X=XN)
    with pytest.raises(DataError, match=r"f\.npz has 3 inputs a row; the network takes 2"):
        data.load_inputs(tmp_path / "f.npz", 2)
    with pytest.raises(DataError, match=r"gone\.csv: no such file or folder"):
        data.load_inputs(tmp_path / "gone.csv", 2)


# ---- damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["f.npz", "f.csv", "f-idx", "f-idx.gz"])
def test_damaged_files_are_refused_by_name_or_read(tmp_path, name):
    """Each byte of a small file changed in turn, and the file cut before it: no other error, no warning."""
    np.savez(tmp_path / "f.npz", X=XN, T=LABELS4)
    write(tmp_path / "f.csv", FLOWERS)
    write(tmp_path / "f-idx", GOOD)
    write(tmp_path / "f-idx.gz", gzip.compress(GOOD, mtime=0))
    options = {"labels": write(tmp_path / "labels", idx_bytes(LABELS, 0x08))} if "idx" in name else {}
    path, messages = tmp_path / name, []
    whole = path.read_bytes()
    data.load(path, **options)
    for at in range(len(whole)):
        for content in (whole[:at], whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :]):
            path.write_bytes(content)
            try:
                data.load(path, **options)
            except FastbpError as error:
                messages.append(str(error))
    assert len(messages) > len(whole) / 2
    assert all(name in message for message in messages)
