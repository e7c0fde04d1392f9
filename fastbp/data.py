"""Data sets: the bundled digits, IDX (MNIST), npz and csv files, held-out splits and input scaling.

Every loader returns a :class:`Dataset` and refuses what cannot be trained on (cut-off files, missing or non-finite
values, counts that differ) with a :class:`DataError` that names the file and the place in it. Nothing is unpickled.
"""

from __future__ import annotations

import csv
import dataclasses
import gzip
import io
import itertools
import math
import os
import zipfile
import zlib
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from fastbp.errors import DataError, InputError, missing_extra, unknown

Source = str | os.PathLike[str]
Targets = NDArray[np.int64] | NDArray[np.float32]

SCALES = ("standard", "minmax", "unit", "none")
TASKS = ("auto", "classify", "regress")
PARTS = ("train", "test", "t10k")

# Labels run from 0 to K-1 and a network gets K outputs: beyond this, "labels" are row numbers or other identifiers.
MAX_CLASSES = 65536
# task="auto" reads a column of integers as classes up to this many distinct values.
MAX_AUTO_CLASSES = 50

SUPPORTED = "'digits', a folder of IDX files, an IDX file (*idx*-ubyte[.gz]), *.npz, *.csv or *.tsv"


@dataclass(frozen=True, eq=False)
class Dataset:
    """Rows of inputs with their targets.

    X: (n, d) float32, n and d at least 1.
    T: (n,) int64 class labels 0..K-1, or (n, k) float32 regression targets.
    classes: the K names that labels index into; None for regression targets.
    features: the d column names of a csv file with a header, else None.
    name: where the rows came from, for messages and titles.

    Raises InputError if shapes, dtypes or counts do not fit together.
    """

    X: NDArray[np.float32]
    T: Targets
    classes: tuple[str, ...] | None = None
    features: tuple[str, ...] | None = None
    name: str = "data"

    def __post_init__(self) -> None:
        X, T = self.X, self.T
        if X.ndim != 2 or X.dtype != np.float32 or 0 in X.shape:
            raise InputError(f"X is {X.dtype} of shape {X.shape}; needed float32 (n, d) with n and d at least 1.")
        if self.classes is None and (T.ndim != 2 or T.dtype != np.float32):
            raise InputError(
                f"T is {T.dtype} of shape {T.shape} without classes; needed float32 (n, k), or labels and classes."
            )
        if self.classes is not None and (T.ndim != 1 or T.dtype != np.int64):
            raise InputError(f"T is {T.dtype} of shape {T.shape} with classes; needed int64 labels (n,).")
        if len(T) != len(X):
            raise InputError(f"T has {len(T)} rows and X has {len(X)}; needed as many.")
        if self.classes is not None and (T.min() < 0 or T.max() >= len(self.classes)):
            raise InputError(
                f"T holds labels {T.min()}..{T.max()}; needed 0..{len(self.classes) - 1}, one of the "
                f"{len(self.classes)} classes."
            )
        if self.features is not None and len(self.features) != X.shape[1]:
            raise InputError(f"features has {len(self.features)} names; needed {X.shape[1]}, one a column of X.")

    @property
    def n(self) -> int:
        """The number of rows."""
        return len(self.X)

    @property
    def n_features(self) -> int:
        """The number of columns of X."""
        return int(self.X.shape[1])

    @property
    def n_outputs(self) -> int:
        """The outputs that a network for this data has: one a class, or one a column of T."""
        return int(self.T.shape[1]) if self.classes is None else len(self.classes)

    @property
    def is_classification(self) -> bool:
        """True when T holds class labels, False when it holds regression targets."""
        return self.classes is not None

    def take(self, rows: NDArray[np.intp]) -> Dataset:
        """The data set of the given rows (an integer or boolean index array), copied."""
        return dataclasses.replace(self, X=self.X[rows], T=self.T[rows])

    def scaled(self, scaling: Scaling) -> Dataset:
        """The same data set with ``scaling`` applied to X; fit the scaling on the training rows only."""
        return dataclasses.replace(self, X=scaling.apply(self.X))

    def split(self, test_fraction: float = 0.2, seed: int = 0) -> tuple[Dataset, Dataset]:
        """(train, test): rows drawn at random, the same ones for the same seed; each part keeps the file's order.

        The test set gets the nearest whole number of rows, but both parts at least one. Raises InputError for a
        fraction outside (0, 1), a negative seed or fewer than 2 rows.
        """
        if not 0 < test_fraction < 1:
            raise InputError(f"test_fraction={test_fraction!r}; needed a number between 0 and 1, both excluded.")
        if seed < 0:
            raise InputError(f"seed={seed!r}; needed an integer of at least 0.")
        if self.n < 2:
            raise InputError(f"{self.name} has {self.n} row; needed at least 2 to split.")
        n_test = min(max(round(self.n * test_fraction), 1), self.n - 1)
        test = np.zeros(self.n, dtype=np.bool_)
        test[np.random.default_rng(seed).permutation(self.n)[:n_test]] = True
        return self._split(test)

    def split_every(self, k: int = 5) -> tuple[Dataset, Dataset]:
        """(train, test): every k-th row, those with index % k == k - 1, is held out.

        Raises InputError for k below 2 or above the number of rows (the test set would be empty).
        """
        if not 2 <= k <= self.n:
            raise InputError(f"k={k!r}; needed an integer of at least 2 and at most {self.n}, the rows of {self.name}.")
        return self._split(np.arange(self.n) % k == k - 1)

    def _split(self, test: NDArray[np.bool_]) -> tuple[Dataset, Dataset]:
        return self.take(np.flatnonzero(~test)), self.take(np.flatnonzero(test))


@dataclass(frozen=True, eq=False)
class Scaling:
    """The map X -> (X - shift) * factor, column by column: two arrays that are stored with a network.

    shift, factor: (d,) float32, kept as such whatever float dtype comes in. Raises InputError if they are not two
    vectors of the same length.
    """

    shift: NDArray[np.float32]
    factor: NDArray[np.float32]

    def __post_init__(self) -> None:
        for name in ("shift", "factor"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=np.float32))
        if self.shift.ndim != 1 or self.shift.shape != self.factor.shape:
            raise InputError(f"shift is {self.shift.shape} and factor is {self.factor.shape}; needed (d,) and (d,).")

    def apply(self, X: NDArray[Any]) -> NDArray[np.float32]:
        """The scaled copy of X, (n, d) -> (n, d) float32. Raises InputError if X does not have d columns."""
        if X.ndim != 2 or X.shape[1] != len(self.shift):
            raise InputError(f"X is {X.shape}; needed (n, {len(self.shift)}), the columns the scaling was fitted on.")
        scaled: NDArray[np.float32] = (X.astype(np.float32, copy=False) - self.shift) * self.factor
        return scaled

    def invert(self, scaled: NDArray[Any]) -> NDArray[Any]:
        """What :meth:`apply` was called on, in the dtype of ``scaled``. Raises InputError as it does."""
        if scaled.ndim != 2 or scaled.shape[1] != len(self.shift):
            raise InputError(f"scaled is {scaled.shape}; needed (n, {len(self.shift)}), as apply gives it.")
        return scaled / self.factor + self.shift


def fit_scaling(X: NDArray[Any], how: str = "standard") -> Scaling:
    """The scaling of the columns of X, (n, d) with n at least 1 and finite values.

    how: "standard" gives mean 0 and standard deviation 1; "minmax" gives 0..1; "unit" divides all columns by the one
    largest absolute value (0..255 images become 0..1); "none" changes nothing. A constant column is only shifted
    ("standard", "minmax": to 0), never divided. Raises InputError for another name, shape or a non-finite value.
    """
    if how not in SCALES:
        raise unknown("how", how, SCALES)
    if X.ndim != 2 or 0 in X.shape:
        raise InputError(f"X is {X.shape}; needed (n, d) with n and d at least 1.")
    if not np.isfinite(X).all():
        raise InputError("X holds NaN or infinity; needed finite values.")
    low, high = X.min(axis=0).astype(np.float64), X.max(axis=0).astype(np.float64)
    shift = np.zeros(X.shape[1])
    size = np.ones(X.shape[1])
    if how == "standard":
        shift = X.mean(axis=0, dtype=np.float64)
        # Rounding in the mean gives a constant float64 column a deviation of some 1e-17, which 1 / size would blow up.
        size = np.where(low == high, 0, X.std(axis=0, dtype=np.float64))
    elif how == "minmax":
        shift, size = low, high - low
    elif how == "unit":
        size = np.full(X.shape[1], max(-low.min(), high.max()))
    # Below the smallest normal float32 the reciprocal may overflow: such a column counts as constant.
    flat = size < np.finfo(np.float32).tiny
    factor = np.where(flat, 1.0, 1.0 / np.where(flat, 1.0, size))
    return Scaling(shift.astype(np.float32), factor.astype(np.float32))


def kind_of(source: Source) -> str:
    """What :func:`load` reads ``source`` as, by its name: "digits", "idx" (folders too), "npz" or "csv" (.tsv too).

    Raises DataError if the file is missing or of another kind.
    """
    if source == "digits":
        return "digits"
    path = Path(source)
    name = path.name.lower()
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; needed {SUPPORTED}.")
    if path.is_dir():
        return "idx"
    if name.endswith(".npz"):
        return "npz"
    if name.endswith((".csv", ".tsv")):
        return "csv"
    if "idx" in name or "ubyte" in name:
        return "idx"
    raise DataError(f"{path}: files of this kind are not supported; needed {SUPPORTED}.")


def load(source: Source, **options: Any) -> Dataset:
    """The data set that ``source`` names.

    source: "digits", a folder of IDX files, an IDX file (its name holds "idx" or "ubyte"), .npz, .csv or .tsv. A folder
    that is itself called digits is reached as ./digits. ``options`` go to the loader: :func:`load_idx`,
    :func:`load_npz`, :func:`load_csv`. Raises DataError if the file is missing or of another kind.
    """
    kind = kind_of(source)
    if kind == "digits":
        return digits(**options)
    loaders: dict[str, Callable[..., Dataset]] = {"idx": load_idx, "npz": load_npz, "csv": load_csv}
    return loaders[kind](source, **options)


def load_inputs(
    source: Source,
    n_features: int,
    *,
    classes: Sequence[str] | None = None,
    features: Sequence[str] | None = None,
    target: str | int = -1,
) -> tuple[NDArray[np.float32], Targets | None]:
    """(X, T) for a trained network: X (n, n_features) float32, not scaled, and T None where there are no targets.

    source: what :func:`load` takes, and the same without targets: an IDX images file with no labels file beside it, an
        .npz file of inputs alone, a .csv or .tsv file without the target's column.
    n_features: the inputs that the network takes.
    classes: the names of its outputs, into which the labels in T, int64 (n,), index; default: T is numbers (n, k).
        Where ``source`` has float targets (n, k), such as rows of one 1, they are left as they are.
    features: the names of the columns that a network trained on a csv file takes. In a file with a header they are
        found by these names, in whatever order and among others; default: every column but the target, in order.
    target: the name of the target's column in training, or its index; it is left out of X wherever it is found. Where
        features are found by name, an index counts only if one column is left besides them and stands there.

    Raises DataError for what :func:`load` refuses, another number of inputs, a feature that is missing or there twice,
    and a label that is none of ``classes``; InputError if ``features`` are not ``n_features``.
    """
    if features is not None and len(features) != n_features:
        raise InputError(f"features has {len(features)} names; needed n_features={n_features}.")
    kind, path = kind_of(source), Path(source)
    if kind == "csv":
        X, T, names = _csv_inputs(path, n_features, features, target, "regress" if classes is None else "classify")
    elif (alone := _inputs_alone(path, kind)) is not None:
        X, T, names = alone, None, None
    else:
        rows = load(source)
        X, T, names = rows.X, rows.T, rows.classes
    if X.shape[1] != n_features:
        raise DataError(f"{source} has {X.shape[1]} inputs a row; the network takes {n_features}.")
    if T is None or names is None:  # no labels
        return X, T
    if classes is None:
        if any(_number(name) is None for name in names):
            raise DataError(f"{source}: the targets are texts, and the network predicts numbers; leave them out.")
        return X, np.array(names, dtype=np.float32)[T][:, np.newaxis]
    return X, _relabelled(T, names, classes, source)


def _inputs_alone(path: Path, kind: str) -> NDArray[np.float32] | None:
    """The inputs of a source that has no targets; None for others."""
    if kind == "npz":
        return _npz_without_targets(path)
    if kind == "idx" and path.is_file() and _labels_beside(path) is None:
        return _idx_inputs(path)
    return None


def _relabelled(T: Targets, names: Sequence[str], classes: Sequence[str], source: Source) -> NDArray[np.int64]:
    """Labels that index into ``names`` as those that index into ``classes``."""
    index = {name: k for k, name in enumerate(classes)}
    for label in np.unique(T):
        if names[label] not in index:
            known = ", ".join(map(repr, classes))
            raise DataError(f"{source}: the class {names[label]!r} is none of the network's: {known}.")
    # Names that no row has get any index.
    return np.array([index.get(name, 0) for name in names])[T]


def digits() -> Dataset:
    """The 1,797 handwritten digits of 8 x 8 pixels that scikit-learn brings along: X (1797, 64) in 0..1, labels 0..9.

    Raises MissingExtraError if scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise missing_extra("scikit-learn", "demo", "The bundled digits") from error
    X, T = load_digits(return_X_y=True)
    return Dataset((X / 16).astype(np.float32), T.astype(np.int64), tuple("0123456789"), name="digits")


# ---- IDX -------------------------------------------------------------------------------------------------------------

IDX_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_idx(path: Source) -> NDArray[Any]:
    """The array in an IDX file, gzipped or not (told by the content), in the machine's byte order.

    The format: bytes 0, 0, type, dimensions; each dimension as a big-endian uint32; the values, big-endian. Types:
    0x08 uint8, 0x09 int8, 0x0B int16, 0x0C int32, 0x0D float32, 0x0E float64. Raises DataError if the file is missing
    or empty, not IDX, cut short, longer than it says, or if its gzip data is damaged.
    """
    path = _file(path)
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path}: the gzip data is damaged or cut short ({error}).") from error
    if not data:
        raise DataError(f"{path}: the file is empty; needed an IDX file.")
    if data[:2] != b"\0\0" or len(data) < 4 or data[2] not in IDX_DTYPES or data[3] == 0:
        raise DataError(
            f"{path}: not an IDX file: it starts with the bytes {data[:4].hex(' ')}; needed 00 00, a type "
            f"({', '.join(f'{code:02x}' for code in IDX_DTYPES)}) and the number of dimensions, at least 1."
        )
    dtype, start = np.dtype(IDX_DTYPES[data[2]]), 4 + 4 * data[3]
    if len(data) < start:
        raise DataError(f"{path}: cut short in the header: {len(data)} bytes; needed {start}.")
    shape = tuple(int(size) for size in np.frombuffer(data[4:start], dtype=">u4"))
    need, got = start + math.prod(shape) * dtype.itemsize, len(data)
    if got < need:
        raise DataError(f"{path}: cut short: {got} bytes; needed {need} for {dtype.name} of shape {shape}.")
    if got > need:
        raise DataError(f"{path}: {got - need} bytes too many: {got}; needed {need} for {dtype.name} of shape {shape}.")
    try:
        values = np.frombuffer(data, dtype, offset=start).reshape(shape)
    except ValueError as error:  # more dimensions than NumPy has, or no values in dimensions beyond 64 bits
        raise DataError(f"{path}: not an IDX file: {len(shape)} dimensions, the largest {max(shape)}.") from error
    return values.astype(dtype.newbyteorder("="))


def load_idx(source: Source, labels: Source | None = None, *, part: str | None = None) -> Dataset:
    """Images and labels in the IDX files of MNIST and its relatives, gzipped or not.

    source: a folder with train-images-idx3-ubyte[.gz] and train-labels-idx1-ubyte[.gz], or the same of t10k; or an
        images file.
    labels: the labels file of an images file; default: the file beside it that is called labels instead of images.
    part: "train", or "test" (also called "t10k"), of a folder; default: train if it is there, else t10k.

    X is (n, rows * columns), divided by 255 if stored as uint8, else as stored; labels are kept as they are, and
    classes are "0" to the largest one. Raises DataError for files that are missing, damaged (see :func:`read_idx`),
    empty, swapped or of different counts; InputError for another part, labels with a folder or part with a file.
    """
    path = Path(source)
    if part is not None and part not in PARTS:
        raise unknown("part", part, PARTS)
    if path.is_dir():
        if labels is not None:
            raise InputError(f"labels={os.fspath(labels)!r} goes with an images file; {path} is a folder.")
        images_path, labels_path = _idx_pair(path, part)
    else:
        if part is not None:
            raise InputError(f"part={part!r} goes with a folder; {path} is not one.")
        images_path = _file(path)
        beside = _labels_beside(images_path) if labels is None else _file(labels)
        if beside is None:
            name = _labels_name(images_path)
            raise DataError(f"{path}: no labels file {name}[.gz] beside it; name the labels file with labels=.")
        labels_path = beside
    X, T = _idx_inputs(images_path), read_idx(labels_path)
    if T.ndim != 1 or T.dtype.kind not in "ui":
        raise DataError(f"{labels_path}: {T.dtype} of {T.ndim} dimensions; needed integer labels, 1 dimension.")
    if len(X) != len(T):
        raise DataError(f"{images_path} holds {len(X)} images and {labels_path} {len(T)} labels; needed as many.")
    name = f"{path.resolve().name}/{images_path.name}" if path.is_dir() else path.name
    return Dataset(X, *_labels(T, labels_path), name=name)


def _idx_inputs(path: Path) -> NDArray[np.float32]:
    """The images in a file, a row each; 0..255 as 0..1."""
    images = read_idx(path)
    if images.ndim < 2:
        raise DataError(f"{path}: {images.ndim} dimension; needed images, at least 2 dimensions. Are these labels?")
    X = _inputs(images, "X", path)
    if images.dtype == np.uint8:
        X /= 255
    return X


def _idx_pair(folder: Path, part: str | None) -> tuple[Path, Path]:
    """The images and labels file of a part in a folder."""
    prefixes = ("train", "t10k") if part is None else ("train",) if part == "train" else ("t10k",)
    for prefix in prefixes:
        images, labels = _idx_path(folder, f"{prefix}-images", "idx3"), _idx_path(folder, f"{prefix}-labels", "idx1")
        if images and labels:
            return images, labels
        if images:
            raise DataError(f"{folder}: {images.name} is there, but {prefix}-labels-idx1-ubyte[.gz] is missing.")
        if labels:
            raise DataError(f"{folder}: {labels.name} is there, but {prefix}-images-idx3-ubyte[.gz] is missing.")
    found = sorted(path.name for path in folder.iterdir() if "ubyte" in path.name)
    needed = " or ".join(f"{prefix}-images-idx3-ubyte[.gz]" for prefix in prefixes)
    raise DataError(f"{folder}: needed {needed} with its labels; the folder's IDX files: {', '.join(found) or 'none'}.")


def _idx_path(folder: Path, stem: str, kind: str) -> Path | None:
    # Some copies of MNIST are unpacked as train-images.idx3-ubyte.
    paths = (folder / f"{stem}{dot}{kind}-ubyte{gz}" for dot in "-." for gz in ("", ".gz"))
    return next((path for path in paths if path.is_file()), None)


def _labels_name(images: Path) -> str:
    """What the labels file that belongs to an images file is called, without .gz."""
    return images.name.replace("images", "labels").replace("idx3", "idx1").removesuffix(".gz")


def _labels_beside(images: Path) -> Path | None:
    """The labels file that belongs to an images file by its name, if it is there."""
    name = _labels_name(images)
    paths = (images.with_name(name), images.with_name(f"{name}.gz"))
    return next((path for path in paths if path.is_file() and path != images), None)


# ---- npz -------------------------------------------------------------------------------------------------------------

NPZ_ALIASES = (("X", "T"), ("X", "y"), ("x", "y"), ("x", "t"), ("x_train", "y_train"), ("X_train", "y_train"))


def load_npz(path: Source, *, x: str = "X", t: str = "T") -> Dataset:
    """Inputs and targets in a file of numpy.savez; nothing is unpickled.

    x, t: the names of the two arrays. With the defaults, the first pair that the file holds of X and T, X and y, x and
        y, x and t, x_train and y_train, X_train and y_train.

    X is numbers (n, ...), flattened to (n, d) float32 and not scaled. Integers or booleans (n,) in T are class labels,
    kept as they are, with classes "0" to the largest one; floats (n,) or (n, k) are regression targets (n, k) float32;
    texts (n,) are classes as in :func:`load_csv` with task="classify".
    Raises DataError for a missing or damaged file, missing names, object arrays, other shapes or dtypes, different
    counts, no rows, or values that are not finite.
    """
    path = _file(path)
    pairs = NPZ_ALIASES if (x, t) == ("X", "T") else ((x, t),)
    with path.open("rb") as stream:
        archive = _npz_archive(stream, path)
        pair = next((pair for pair in pairs if set(pair) <= set(archive.files)), None)
        if pair is None:
            if {"theta", "settings"} <= set(archive.files):
                raise DataError(f"{path}: this is a saved network, not data.")
            raise DataError(
                f"{path}: it holds {', '.join(map(repr, archive.files)) or 'no arrays'}; "
                f"needed {' or '.join(f'{x!r} and {t!r}' for x, t in pairs)}, or name the arrays with x= and t=."
            )
        x, t = pair
        X, T = _inputs(_npz_array(archive, x, path), x, path), _npz_array(archive, t, path)
    if T.ndim == 0 or len(X) != len(T):
        raise DataError(f"{path}: {x} is {X.shape} and {t} is {T.shape}; needed as many rows.")
    if T.ndim == 1 and T.dtype.kind in "biu":
        return Dataset(X, *_labels(T, path), name=path.name)
    if T.ndim == 1 and T.dtype.kind == "U":
        texts = [text.strip() for text in T.tolist()]
        return Dataset(X, *_targets(texts, "classify", lambda row: f"{path}: {t}, row {row}"), name=path.name)
    if T.ndim > 2 or 0 in T.shape or T.dtype.kind != "f":
        needed = "integers or texts (n,), floats (n,) or (n, k)"
        raise DataError(f"{path}: {t} is {T.dtype} of shape {T.shape}; needed {needed}.")
    targets = T.reshape(len(T), -1)
    return Dataset(X, _float32(targets, lambda row, column: f"{path}: {t}, {_place(row, column)}"), name=path.name)


def _npz_without_targets(path: Path) -> NDArray[np.float32] | None:
    """The inputs of a file that holds no targets beside them; None for a file with both, or neither."""
    with path.open("rb") as stream:
        archive = _npz_archive(stream, path)
        pairs = [(x, t) for x, t in NPZ_ALIASES if x in archive.files]
        if not pairs or any(t in archive.files for _, t in pairs):
            return None
        x, _ = pairs[0]
        return _inputs(_npz_array(archive, x, path), x, path)


def _npz_archive(stream: BinaryIO, path: Path) -> Any:
    """What np.load gives for a file; opened by the caller because np.load leaves a damaged one open."""
    try:
        if not zipfile.is_zipfile(stream):
            raise zipfile.BadZipFile("no zip archive")
        stream.seek(0)
        return np.load(stream, allow_pickle=False)
    except (ValueError, RuntimeError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not an .npz file, or cut short; needed one of numpy.savez ({error}).") from error


def _npz_array(file: Any, key: str, path: Path) -> NDArray[Any]:
    try:
        values = file[key]
    except (ValueError, RuntimeError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        hint = "; save texts with .astype(str)" if "Object arrays" in str(error) else ""
        raise DataError(
            f"{path}: the array {key!r} cannot be read; needed an array of numbers{hint} ({error})."
        ) from error
    if not isinstance(values, np.ndarray):  # NumPy hands out the bytes of a member that is no array.
        raise DataError(f"{path}: {key!r} is not an array; needed an array of numbers.")
    return values


# ---- csv -------------------------------------------------------------------------------------------------------------

# In the order of preference: a comma may be part of a number or a text in a file that another one delimits.
DELIMITERS = ("\t", ";", "|", ",")
MISSING = ("", "nan", "na", "n/a", "null", "?")


def load_csv(
    path: Source,
    target: str | int = -1,
    *,
    delimiter: str | None = None,
    header: bool | None = None,
    task: str = "auto",
) -> Dataset:
    """A table of numbers with one target column, in UTF-8; every other column is a feature. Blank lines are skipped.

    target: the name of the target's column, or its index counted from 0, or from the end if negative.
    delimiter: one character; default: the first of tab ; | , that cuts the first 20 lines into as many cells each.
    header: whether the first line holds the columns' names; default: it does if none of its cells is a number or if
        ``target`` is one of them.
    task: "classify": each distinct target is a class; numbers are sorted as numbers, texts as texts.
        "regress": targets are numbers, T is (n, 1).
        "auto": classify if the targets are texts, or if they are all whole numbers with at most 50 distinct values,
        each on two lines or more on average; else regress. A column that mixes numbers and texts is an error.

    X is (n, d) float32 and not scaled. Raises DataError, with line and column, for a feature that is not a finite
    number, a missing value (empty, nan, na, n/a, null, ?) and a line with too few or too many cells, and for a file
    that is missing, not UTF-8, or has no data; InputError for a target, delimiter or task that does not exist.
    """
    if task not in TASKS:
        raise unknown("task", task, TASKS)
    if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n'):
        raise InputError(f"delimiter={delimiter!r}; needed one character, not a quote or a line break.")
    table = _open_csv(_file(path), delimiter, header, {target} if isinstance(target, str) else ())
    names = table.names
    if len(names) < 2:
        raise DataError(f"{path}: one column only; needed a target and at least one feature, or another delimiter=.")
    at = _target_column(target, table)
    X, cells, where = _read_columns(table, [j for j in range(len(names)) if j != at], at)
    T, classes = _targets(cells, task, lambda row: where(row, at))
    return Dataset(X, T, classes, tuple(names[:at] + names[at + 1 :]) if table.header else None, Path(path).name)


def _csv_inputs(
    path: Path, n_features: int, features: Sequence[str] | None, target: str | int, task: str
) -> tuple[NDArray[np.float32], Targets | None, tuple[str, ...] | None]:
    """(X, T, classes) of a file that may come without targets; see :func:`load_inputs`."""
    table = _open_csv(path, None, None, features or ())
    names = table.names
    there = table.header and target in names if isinstance(target, str) else len(names) == n_features + 1
    at = _target_column(target, table) if there else None
    if table.header and features is not None and len(set(features)) == n_features:
        columns = _columns_called(features, table)
        at = None if at in columns else at
    else:
        columns = [j for j in range(len(names)) if j != at]
        if len(columns) != n_features:
            raise DataError(
                f"{path} has {len(names)} columns{'' if table.header else ' and no header'}; "
                f"the network takes {n_features}, with or without the target {target!r}."
            )
    X, cells, where = _read_columns(table, columns, at)
    if at is None:
        return X, None, None
    return X, *_targets(cells, task, lambda row: where(row, at))


@dataclass(frozen=True)
class _Csv:
    """A csv file whose first line is read.

    names: the cells of that line, which are the columns' names if ``header``.
    records: (line number, cells) of each line of data.
    """

    path: Path
    names: list[str]
    header: bool
    records: Iterator[tuple[int, list[str]]]


def _open_csv(path: Path, delimiter: str | None, header: bool | None, known: Collection[str]) -> _Csv:
    """Open a file; by default the first line is a header if none of its cells is a number or if it holds ``known``."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}.") from error
    records = _records(text, delimiter or _delimiter(text), path)
    first = next(records, None)
    if first is None:
        raise DataError(f"{path}: the file is empty; needed lines of numbers.")
    names = [cell.strip() for cell in first[1]]
    if header is None:
        header = all(_number(name) is None for name in names) or (bool(known) and set(known) <= set(names))
    return _Csv(path, names, header, records if header else itertools.chain([first], records))


def _read_columns(
    table: _Csv, columns: list[int], at: int | None
) -> tuple[NDArray[np.float32], list[str], Callable[[int, int], str]]:
    """These columns as float32, the cells of the target's column, and what words the place of a row and column."""
    lines: list[int] = []
    targets: list[str] = []
    values = array("d")  # 8 bytes a cell; lists of texts would take ten times as much

    def where(row: int, j: int) -> str:
        name = repr(table.names[j]) if table.header and table.names[j] else j
        return f"{table.path}: line {lines[row]}, {'target ' if j == at else ''}column {name}"

    for line, cells in table.records:
        lines.append(line)
        if at is not None:
            targets.append(cells[at].strip())
        try:
            values.extend([float(cells[j]) for j in columns])
        except ValueError:
            j = next(j for j in columns if _number(cells[j]) is None)
            raise _bad_cell(where(-1, j), cells[j].strip()) from None
    if not lines:
        raise DataError(f"{table.path}: a header and no data; needed at least one line of numbers.")
    X = np.frombuffer(values).reshape(len(lines), len(columns))
    return _float32(X, lambda row, column: where(row, columns[column])), targets, where


def _records(text: str, delimiter: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line number, cells) of each line that is not blank, all with as many cells as the first."""
    # csv would drop a delimiter that is a space together with the spaces after it.
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True, skipinitialspace=delimiter != " ")
    width = 0
    try:
        for cells in reader:
            if len(cells) < 2 and not "".join(cells).strip():
                continue
            width = width or len(cells)
            if len(cells) != width:
                raise DataError(f"{path}: line {reader.line_num} has {len(cells)} cells; needed {width}, as above it.")
            yield reader.line_num, cells
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num} is not csv ({error}).") from error


def _delimiter(text: str) -> str:
    """The delimiter that cuts the first lines into as many cells each; failing that, the first line into most."""
    lines = [line for line in text.split("\n", 20)[:20] if line.strip()]
    widths = {delimiter: _widths(lines, delimiter) for delimiter in DELIMITERS}
    for delimiter, width in widths.items():
        if len(set(width)) == 1 and width[0] > 1:
            return delimiter
    return max(DELIMITERS, key=lambda delimiter: widths[delimiter][:1])


def _widths(lines: list[str], delimiter: str) -> list[int]:
    """The number of cells of each line; none if they cannot be cut, as a wide line by a wrong delimiter: too long."""
    try:
        return [len(cells) for cells in csv.reader(lines, delimiter=delimiter)]
    except csv.Error:
        return []


def _target_column(target: str | int, table: _Csv) -> int:
    """The index of the target's column, 0 or more."""
    path, names = table.path, table.names
    if isinstance(target, str):
        if not table.header:
            raise InputError(f"target={target!r} is a name, but {path} has no header line; needed a column's index.")
        if target not in names:
            raise unknown("target", target, names)
        if names.count(target) > 1:
            raise InputError(f"target={target!r} names {names.count(target)} columns of {path}; needed an index.")
        return names.index(target)
    if not -len(names) <= target < len(names):
        raise InputError(
            f"target={target} is out of range: {path} has {len(names)} columns; needed {-len(names)}..{len(names) - 1}."
        )
    return target % len(names)


def _columns_called(features: Sequence[str], table: _Csv) -> list[int]:
    """The indices of the columns with these names."""
    count = Counter(table.names)
    for name in features:
        if count[name] != 1:
            found = f"there {count[name]} times" if count[name] else "missing"
            raise DataError(f"{table.path}: the column {name!r} is {found}; needed once, as the network takes it.")
    index = {name: j for j, name in enumerate(table.names)}
    return [index[name] for name in features]


def _targets(cells: list[str], task: str, where: Callable[[int], str]) -> tuple[Targets, tuple[str, ...] | None]:
    """(T, classes) of a target column; ``where`` words the place of a row."""
    numbers = [_number(cell) for cell in cells]
    texts = [row for row, number in enumerate(numbers) if number is None]
    for row, cell in enumerate(cells):
        if cell.lower() in MISSING:
            raise _bad_cell(where(row), cell)
    if texts and task == "regress":
        raise _bad_cell(where(texts[0]), cells[texts[0]])
    if texts and task == "auto" and len(texts) < len(cells):
        raise DataError(
            f"{where(texts[0])}: {cells[texts[0]]!r} is text among numbers; correct it, or say task='classify'."
        )
    if texts:
        names, labels = np.unique(np.array(cells), return_inverse=True)
        return labels.astype(np.int64), tuple(map(str, names))
    T = np.array(numbers, dtype=np.float64)
    targets = _float32(T[:, np.newaxis], lambda row, _: where(row))
    distinct, labels = np.unique(T, return_inverse=True)
    whole = bool((distinct == np.round(distinct)).all())
    if task == "classify" or (task == "auto" and whole and len(distinct) <= min(MAX_AUTO_CLASSES, len(T) // 2)):
        classes = tuple(str(int(value)) if value.is_integer() else repr(value) for value in distinct.tolist())
        return labels.astype(np.int64), classes
    return targets, None


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _bad_cell(where: str, cell: str) -> DataError:
    if cell.lower() in MISSING:
        return DataError(f"{where}: the value is missing ({cell!r}); fill it in or drop the line.")
    return DataError(f"{where}: {cell!r} is not a number.")


# ---- shared ----------------------------------------------------------------------------------------------------------


def _file(path: Source) -> Path:
    """The path of a file that exists."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: {'a folder; needed a file' if path.is_dir() else 'no such file'}.")
    return path


def _inputs(X: NDArray[Any], name: str, path: Path) -> NDArray[np.float32]:
    """X (n, ...) as (n, d) float32, a copy, checked; messages call it ``name``."""
    if X.dtype.kind not in "biuf":
        raise DataError(f"{path}: {name} is of dtype {X.dtype}; needed numbers.")
    if X.ndim < 2:
        raise DataError(f"{path}: {name} is {X.shape}; needed (n, d), at least 2 dimensions.")
    if 0 in X.shape:
        raise DataError(f"{path}: {name} is empty, of shape {X.shape}; needed at least one row and column.")
    return _float32(X.reshape(len(X), -1), lambda row, column: f"{path}: {name}, {_place(row, column)}")


def _labels(T: NDArray[Any], path: Path) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """(T as int64, classes) of integer labels (n,) that are kept as they are, n at least 1."""
    low, high = int(T.min()), int(T.max())
    if low < 0 or high >= MAX_CLASSES:
        raise DataError(f"{path}: the labels run from {low} to {high}; needed 0..K-1 with K at most {MAX_CLASSES}.")
    return T.astype(np.int64), tuple(map(str, range(high + 1)))


def _float32(values: NDArray[Any], where: Callable[[int, int], str]) -> NDArray[np.float32]:
    """The (n, d) values as float32, a copy, all finite; ``where`` words the place of a row and column."""
    with np.errstate(over="ignore"):  # what is beyond float32 becomes infinite and is refused below
        result = values.astype(np.float32)
    finite = np.isfinite(result)
    if not finite.all():
        row, column = (int(i) for i in np.argwhere(~finite)[0])
        raise DataError(f"{where(row, column)}: the value is {values[row, column]}; needed a finite float32 number.")
    return result


def _place(row: int, column: int) -> str:
    return f"row {row}, column {column}"
