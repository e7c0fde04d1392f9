"""Training: batches, epochs, slices of steps, stopping, history.

``fit`` hands the backend slices of about 50 ms of whole steps (gather the rows of the batch, forward, loss, backward,
update), which run without Python; between slices it looks for Ctrl-C, draws progress and calls callbacks. On a GPU
data, parameters and optimiser state stay there; a slice's row numbers and learning rates go there and its losses come
back. ``fit_many`` does the same for several networks at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fastbp import arrays, backends, feeding, optim
from fastbp.backends.threads import alone, get_num_threads
from fastbp.errors import DeviceMemoryError, DivergedError, InputError, unknown
from fastbp.feeding import Feeder
from fastbp.history import History, Reporter
from fastbp.interrupts import held_back
from fastbp.optim import Optimizer, State

Array = npt.NDArray[Any]
# Of a network's training: from each slice that it asks for, first and last step, to the losses and weights of these
# steps and the seconds they took; in the end why it stopped.
Slices = Generator[tuple[int, int], tuple[Array, Array, float], str]
SLICE_SECONDS = 0.05
DEFAULT_BATCH = 32
SAMPLINGS = ("epoch", "replacement")
FEW_STEPS, MOST_STEPS = 8, 200_000  # the first slice has 8 times as many at most; what a slice may hold in memory
_FIRST_GUESS = 2e9  # operations a second, to size the first slice; the following ones go by the clock


@dataclass
class TrainingState:
    """What a network carries from one ``fit`` to the next, so that training goes on as if it had not stopped."""

    optimizer: Optimizer
    state: State
    seed: int
    epoch: int = 0  # epochs begun with this seed: where its sequence of orders goes on
    history: History = field(default_factory=History)

    def on(self, kind: arrays.Kind) -> TrainingState:
        """The same with the optimiser's vectors as arrays of a kind."""
        host = kind is arrays.HOST
        vectors = [arrays.on_whole_lines(arrays.to_host(v)) if host else kind.moved(v) for v in self.state.vectors]
        return replace(self, state=State(self.state.step, vectors))


class Trainable(Protocol):
    """What training needs of a network."""

    theta: Array
    seed: int
    training: TrainingState | None

    @property
    def backend(self) -> str: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def kind(self) -> arrays.Kind: ...
    def check_device(self) -> None: ...
    def check_batch(
        self, X: Any, T: Any, sample_weight: Any, *, fitting: bool, prefix: str = ""
    ) -> dict[str, Array]: ...
    def training_step(self, batch: Sequence[str], optimizer: Optimizer, gathered: bool) -> backends.Executable: ...
    def evaluate(self, batch: dict[str, Array]) -> tuple[float, float]: ...
    def operations_a_row(self) -> int: ...
    @property
    def averages(self) -> bool: ...


class RowOrder:
    """The order of the rows in every epoch, from a seed; blocks of epochs are drawn at once where rows are few."""

    def __init__(self, rows: int, seed: int, sampling: str) -> None:
        self.rows = rows
        self.seed = seed
        self.replace = sampling == "replacement"
        self.block = max(1, min(1024, 65_536 // rows))
        self._kept: tuple[int, Array] | None = None

    def epochs(self, first: int, last: int) -> Array:
        """Row numbers of epochs first … last - 1, int64 (last - first, rows)."""
        blocks = [self._draw(b) for b in range(first // self.block, (last - 1) // self.block + 1)]
        drawn = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
        start = first % self.block
        return drawn[start : start + last - first]

    def _draw(self, block: int) -> Array:
        if self._kept is None or self._kept[0] != block:
            rng = np.random.default_rng([self.seed, block])
            shape = (self.block, self.rows)
            if self.replace:
                order = rng.integers(0, self.rows, shape, np.int64)
            elif self.block == 1:
                order = rng.permutation(self.rows)[None, :]
            else:
                order = rng.permuted(np.broadcast_to(np.arange(self.rows), shape), axis=1)
            self._kept = (block, order)
        return self._kept[1]


@dataclass
class _Snapshot:
    """Parameters and optimiser state at the start of an epoch of this ``fit``."""

    epoch: int
    theta: Array
    vectors: list[Array]
    step: int

    @classmethod
    def of(cls, epoch: int, theta: Array, state: State) -> _Snapshot:
        return cls(epoch, theta.copy(), [v.copy() for v in state.vectors], state.step)

    def restore(self, theta: Array, state: State) -> None:
        theta[...] = self.theta
        for mine, kept in zip(state.vectors, self.vectors, strict=True):
            mine[...] = kept
        state.step = self.step


class _Fit:
    """One call of ``fit``: the data, the compiled step, and the position in the sequence of steps.

    Steps are numbered from 0 over all epochs of the call; ``per_epoch`` of them make an epoch. Data on the host of a
    network on a GPU is fed to it in pieces.
    """

    def __init__(
        self,
        net: Trainable,
        data: dict[str, Array],
        epochs: int,
        batch_size: int,
        shuffle: bool,
        sampling: str,
        training: TrainingState,
    ) -> None:
        self.net = net
        self.training = training
        self.state = training.state
        self.epochs = epochs
        self.batch = batch_size
        self.rows = rows_of(data)
        self.per_epoch = -(-self.rows // batch_size)
        self.gathered = shuffle or sampling == "replacement"
        self.kind = net.kind
        fed = arrays.kind_of(next(iter(data.values()))) is not self.kind
        self.feeder = Feeder(data, batch_size) if fed else None
        self.ordered = self.gathered or fed
        self._kept: tuple[int, Array, Array] | None = None  # see _pattern
        self.order = RowOrder(self.rows, training.seed, sampling)
        self.first_epoch = training.epoch
        self.first_step = training.state.step
        self.weight = arrays.to_host(data.get("weight"))
        self.run = net.training_step(tuple(data), training.optimizer, self.gathered and not fed)
        self.values: dict[str, Array] = {} if fed else dict(data)
        self.values["theta"] = net.theta.reshape(1, -1)
        self.values |= {f"state{k}": v for k, v in enumerate(self.state.vectors)}

    def steps(self, first: int, last: int) -> tuple[Array, Array]:
        """Loss and weight of each of the steps first … last - 1, after running them."""
        values, table, numbers, weights = self.asked(first, last)
        if self.feeder is not None and numbers is not None:
            of_steps = {name: value for name, value in values.items() if name not in self.values}
            losses = self._fed(self.feeder, numbers, of_steps, table)
        else:
            losses = self.run.run_steps(values, table)["loss"]
        return self.done(last - first, losses), weights

    def asked(self, first: int, last: int) -> tuple[dict[str, Array], Array, Array | None, Array]:
        """What the executable needs for these steps: values and table; the row numbers, if any; the steps' weights."""
        epoch, last_epoch = first // self.per_epoch, (last - 1) // self.per_epoch
        table, weights = self._pattern(first % self.per_epoch, last - first)
        rows, position = table[:, 0], table[:, 1]
        numbers = self._numbers(epoch, last_epoch + 1) if self.ordered else None
        if self.weight is not None:
            weights = _summed(self.weight[:, 0] if numbers is None else self.weight[numbers, 0], rows, position)
        step = self.state.step + np.arange(last - first, dtype=np.float64)
        of_steps = {"hyper": self.training.optimizer.hyper(step)}
        if "dropout" in self.run.program.inputs:  # what its masks are drawn from, seed and step, below 2³²
            of_steps["dropout"] = np.column_stack([np.full(len(step), float(self.training.seed % 2**32)), step % 2**32])
        of_steps = {name: self.kind.moved(value) for name, value in of_steps.items()}
        if numbers is not None:
            numbers = numbers[position[0] : position[-1] + rows[-1]]
            if position[0]:
                table = table - np.array([0, position[0], 0])
        values = self.values | of_steps
        if numbers is not None and self.feeder is None:
            # followed by a batch of row numbers: gathering a batch asks for the next one's rows, see machine.py
            order = np.zeros((len(numbers) + 2 * self.batch, 1), np.int64)
            order[: len(numbers), 0] = numbers
            values["order"] = self.kind.moved(order)
        return values, table, numbers, weights

    def _pattern(self, start: int, steps: int) -> tuple[Array, Array]:
        """Rows, position and number of so many steps from step ``start`` of an epoch on, int64; rows as weights, too.

        Kept for the next slice, which most often begins at the start of an epoch as well.
        """
        if self._kept is None or self._kept[0] != start or len(self._kept[1]) < steps:
            number = np.arange(start, start + steps)
            table = np.empty((steps, 3), np.int64)
            within = number % self.per_epoch * self.batch
            table[:, 0] = np.minimum(self.batch, self.rows - within)
            table[:, 1] = within + number // self.per_epoch * self.rows if self.ordered else within
            table[:, 2] = np.arange(steps)
            self._kept = start, table, table[:, 0].astype(np.float64)
        _, table, weights = self._kept
        return table[:steps], weights[:steps]

    def done(self, steps: int, losses: Any) -> Array:
        """The losses of so many steps that have been run."""
        self.state.step += steps
        found: Array = np.asarray(arrays.to_host(losses), np.float64).reshape(-1)
        return found

    def _fed(self, feeder: Feeder, numbers: Array, of_steps: dict[str, Array], table: Array) -> Array:
        """The losses of steps on the rows of those numbers, which come a piece at a time; see :meth:`steps`."""
        losses = []
        for first, last in feeder.pieces(table[:, 0]):
            piece = table[first:last] - np.array([0, table[first, 1], first])
            begin = table[first, 1]
            data = feeder.bring(numbers[begin : begin + piece[-1, 1] + piece[-1, 0]])
            scalars = {name: value[first:last] for name, value in of_steps.items()}
            losses.append(self.run.run_steps(self.values | data | scalars, piece)["loss"])
        found: Array = arrays.to_host(self.kind.xp.concat(losses))
        return found

    def finite(self) -> bool:
        """Whether all parameters are."""
        return bool(self.kind.xp.isfinite(self.net.theta).all())

    def _numbers(self, first: int, last: int) -> Array:
        """Row numbers of epochs first … last - 1 of this call, one after the other."""
        if not self.gathered:
            return np.tile(np.arange(self.rows), last - first)
        return self.order.epochs(self.first_epoch + first, self.first_epoch + last).reshape(-1)


def _summed(weight: Array, rows: Array, position: Array) -> Array:
    """The sums of so many sample weights from each position on: what each step's loss counts in the epoch's."""
    total = np.concatenate([[0.0], np.cumsum(weight, dtype=np.float64)])
    difference: Array = total[position + rows] - total[position]
    return difference


@dataclass
class Options:
    """What ``fit`` is asked for, besides data: see :meth:`fastbp.Network.fit`."""

    epochs: int
    batch_size: int | None
    shuffle: bool
    sampling: str
    validation: tuple[Any, ...] | float | None
    tol: float | None
    patience: int | None
    callbacks: Sequence[Callable[[Any, History], Any]]

    def __post_init__(self) -> None:
        """Check what does not depend on data; NumPy's integers become Python's."""
        self.epochs = arrays.count("epochs", self.epochs)
        if self.batch_size is not None:
            self.batch_size = arrays.count("batch_size", self.batch_size)
        if not isinstance(self.shuffle, (bool, np.bool_)):
            raise InputError(f"shuffle must be True or False, got {self.shuffle!r}")
        if self.sampling not in SAMPLINGS:
            raise unknown("sampling", self.sampling, SAMPLINGS)
        if self.tol is not None:
            arrays.positive("tol", self.tol, zero=True)
        if self.patience is not None:
            self.patience = arrays.count("patience", self.patience)
        listed = isinstance(self.callbacks, (list, tuple))
        for callback in self.callbacks if listed else [self.callbacks]:
            if not listed or not callable(callback):
                raise InputError(f"callbacks must be a list of functions of (net, history), got {callback!r}")

    def batch_of(self, rows: int) -> int:
        """The batch size for so many rows."""
        if self.batch_size is None:
            return min(DEFAULT_BATCH, rows)
        if self.batch_size > rows:
            raise InputError(f"batch_size={self.batch_size} is larger than the data, which has {rows} rows to train on")
        return self.batch_size


def fit(
    net: Trainable,
    X: Any,
    T: Any,
    options: Options,
    *,
    optimizer: str | Optimizer | None,
    seed: int | None,
    sample_weight: Any,
    progress: bool | Reporter,
) -> History:
    """See :meth:`fastbp.Network.fit`."""
    seed = None if seed is None else arrays.count("seed", seed, 0)
    if not isinstance(progress, bool) and not all(hasattr(progress, name) for name in ("slice", "epoch", "close")):
        raise InputError(f"progress must be True, False or a Reporter, got {progress!r}")
    net.check_device()
    data, held_out = _batches(net, X, T, sample_weight, options)
    reporter = _reporter(progress, options.epochs, rows_of(data))
    watch = _watches([net], data, held_out, options, [optimizer], [seed], reporter)[0]
    history = watch.one.training.history
    try:
        history.stopped = _loop(watch.one, watch)
    except KeyboardInterrupt:
        history.stopped = "interrupted"
    finally:
        reporter.close()
    watch.keep_best()
    return history


def fit_many(
    nets: Sequence[Trainable],
    X: Any,
    T: Any,
    *,
    epochs: int = 10,
    batch_size: int | None = None,
    optimizer: str | Optimizer | Sequence[str | Optimizer] | None = None,
    shuffle: bool = True,
    sampling: str = "epoch",
    seed: int | Sequence[int] | None = None,
    validation: tuple[Any, ...] | float | None = None,
    sample_weight: Any = None,
    tol: float | None = None,
    patience: int | None = None,
    callbacks: Sequence[Callable[[Any, History], Any]] = (),
) -> list[History]:
    """Train several networks of one shape on the same data, at once: an ensemble, or a sweep of optimisers.

    Each becomes what its own ``fit`` with these arguments would make of it; on the cuda backend but for rounding: there
    networks that are small enough have a block of the GPU each, so that a hundred take about as long as one, and its
    sums go in another order. On cpu they are spread over the threads.

    Args:
        nets: networks that differ in their parameters at most: same layers, loss, dtype and backend.
        X, T, epochs, batch_size, shuffle, sampling, validation, sample_weight, tol, patience, callbacks: as in
            :meth:`fastbp.Network.fit`, for each of them.
        optimizer: one for all, or one for each.
        seed: of the order of the rows: one for all, or one for each. None: each network's own.

    Returns:
        The history of each. A network whose loss is not finite any more keeps the parameters of its last good epoch,
        its history says ``stopped == "diverged"``, and the others go on. ``seconds`` are those of all together.

    Raises:
        InputError: for a bad argument; no parameter is changed then.
    """
    listed = list(nets) if isinstance(nets, (list, tuple)) else []
    if not listed or any(not hasattr(net, "training_step") for net in listed):
        raise InputError(f"nets must be a list of networks, at least one, got {nets!r}")
    if len({id(net) for net in listed}) < len(listed):
        raise InputError("nets must be different networks: one of them is there twice")
    first = listed[0]
    for k, net in enumerate(listed):
        if (net.backend, net.dtype) != (first.backend, first.dtype):
            raise InputError(
                f"nets must have the same backend and dtype: nets[0] has {first.backend} and {first.dtype}, "
                f"nets[{k}] has {net.backend} and {net.dtype}"
            )
        net.check_device()
    optimizers = _one_each("optimizer", optimizer, len(listed))
    seeds = [None if s is None else arrays.count("seed", s, 0) for s in _one_each("seed", seed, len(listed))]
    options = Options(epochs, batch_size, shuffle, sampling, validation, tol, patience, callbacks)
    data, held_out = _batches(first, X, T, sample_weight, options)
    alike = [net.training_step(tuple(data), optim.SGD(1.0), False).program.form for net in listed]
    for k, form in enumerate(alike):
        if form != alike[0]:
            raise InputError(f"nets must have the same layers and loss: nets[{k}] differs from nets[0]")
    watches = _watches(listed, data, held_out, options, optimizers, seeds, _Silent())
    _loop_many(watches)
    for watch in watches:
        watch.keep_best()
    return [watch.one.training.history for watch in watches]


def _one_each(name: str, value: Any, count: int) -> list[Any]:
    """A value for each of ``count`` networks: the same for all unless it is a list."""
    if not isinstance(value, (list, tuple, np.ndarray)):
        return [value] * count
    if len(value) != count:
        raise InputError(f"{name} must be one for all {count} networks or a list of {count}, got {len(value)}")
    return list(value)


def _batches(
    net: Trainable, X: Any, T: Any, sample_weight: Any, options: Options
) -> tuple[dict[str, Array], dict[str, Array] | None]:
    """The batch to train on and the one to validate on."""
    data = net.check_batch(X, T, sample_weight, fitting=True)
    if not rows_of(data):
        raise InputError("X has no rows: there is nothing to fit")
    data, held_out = _hold_out(net, data, options.validation)
    options.batch_of(rows_of(data))
    return data, held_out


def _watches(
    nets: Sequence[Trainable],
    data: dict[str, Array],
    held_out: dict[str, Array] | None,
    options: Options,
    optimizers: Sequence[str | Optimizer | None],
    seeds: Sequence[int | None],
    reporter: Reporter,
) -> list[_Watch]:
    """The training of each network, about to begin; data is moved to where they are, once for all."""
    first = nets[0]
    rows = rows_of(data)
    batch_size = options.batch_of(rows)
    total = options.epochs * -(-rows // batch_size)
    try:
        held_out = None if held_out is None else _moved(first, held_out)
        data = data if first.kind is arrays.DEVICE and not _fits(data) else _moved(first, data)
        wanted = [_optimizer(net, optimizer, total) for net, optimizer in zip(nets, optimizers, strict=True)]
        watches = []
        for net, optimizer, seed in zip(nets, wanted, seeds, strict=True):
            training = _resume(net, optimizer, seed)
            one = _Fit(net, data, options.epochs, batch_size, options.shuffle, options.sampling, training)
            watches.append(_Watch(net, one, held_out, options.tol, options.patience, options.callbacks, reporter))
    except MemoryError as error:
        if first.kind is arrays.HOST:
            raise
        raise DeviceMemoryError(f"{error}; nothing has been trained yet") from error
    return watches


def _fits(data: dict[str, Array]) -> bool:
    """Whether it is on the device, or can be there as a whole."""
    return arrays.kind_of(next(iter(data.values()))) is arrays.DEVICE or feeding.fits(data)


def _moved(net: Trainable, data: dict[str, Array]) -> dict[str, Array]:
    """A batch where the network is."""
    return {name: net.kind.moved(a) if arrays.kind_of(a) is arrays.HOST else a for name, a in data.items()}


def _hold_out(
    net: Trainable, data: dict[str, Array], validation: tuple[Any, ...] | float | None
) -> tuple[dict[str, Array], dict[str, Array] | None]:
    """The batch to train on and the one to validate on: given, or the last fraction of the rows."""
    if validation is None:
        return data, None
    if isinstance(validation, tuple):
        if len(validation) not in (2, 3):
            raise InputError(
                f"validation must be (X, T), (X, T, sample_weight) or a fraction, got {len(validation)} parts"
            )
        checked = net.check_batch(*validation, *[None] * (3 - len(validation)), fitting=True, prefix="validation ")
        if not rows_of(checked):
            raise InputError("validation has no rows")
        return data, checked
    number = isinstance(validation, (int, float, np.floating)) and not isinstance(validation, bool)
    if not number or not 0.0 < validation < 1.0:
        raise InputError(f"validation must be (X, T) or a fraction between 0 and 1, got {validation!r}")
    rows = rows_of(data)
    kept = rows - max(1, round(rows * validation))
    if kept < 1:
        raise InputError(f"validation={validation} of {rows} rows leaves none to train on")
    held = {name: array[kept:] for name, array in data.items()}
    trained = {name: array[:kept] for name, array in data.items()}
    if "weight" in data:
        kind = arrays.kind_of(data["weight"]) or arrays.HOST
        arrays.weights("sample_weight of the rows to train on", trained["weight"], kept, net.dtype, kind)
        name = "sample_weight of the rows held out for validation"
        arrays.weights(name, held["weight"], rows - kept, net.dtype, kind)
    return trained, held


def rows_of(data: dict[str, Array]) -> int:
    """Rows of a batch; all its arrays have as many."""
    return len(next(iter(data.values())))


def _optimizer(net: Trainable, optimizer: str | Optimizer | None, steps: int) -> Optimizer:
    """The one asked for, or the network's own, after trying it for so many steps."""
    kept = net.training
    wanted = optim.get(optimizer) if optimizer is not None else kept.optimizer if kept else optim.Adam()
    first = kept.state.step if kept is not None and wanted == kept.optimizer else 0
    wanted.hyper(np.linspace(first, first + steps - 1, min(steps, 1000)).round())  # raises now what it would later
    return wanted


def _resume(net: Trainable, wanted: Optimizer, seed: int | None) -> TrainingState:
    """The network's own training state, with a fresh optimiser state if another optimiser is asked for."""
    kept = net.training
    if kept is None:
        kept = net.training = TrainingState(wanted, wanted.init(net.theta), net.seed if seed is None else seed)
    elif wanted != kept.optimizer:
        kept.optimizer, kept.state = wanted, wanted.init(net.theta)
    if seed is not None and seed != kept.seed:
        kept.seed, kept.epoch = seed, 0
    return kept


def _reporter(progress: bool | Reporter, epochs: int, rows: int) -> Reporter:
    if progress is True:
        from fastbp.progress import TerminalReporter

        return TerminalReporter(epochs, rows)
    return progress or _Silent()


class _Silent:
    def slice(self, epoch: int, done: float, loss: float, rows_a_second: float) -> None: ...
    def epoch(self, history: History) -> None: ...
    def close(self) -> None: ...


class _Watch:
    """What happens at the end of an epoch: validation, callbacks, stopping, the best parameters."""

    def __init__(
        self,
        net: Trainable,
        one: _Fit,
        held_out: dict[str, Array] | None,
        tol: float | None,
        patience: int | None,
        callbacks: Sequence[Callable[[Any, History], Any]],
        reporter: Reporter,
    ) -> None:
        self.net = net
        self.one = one
        self.held_out = held_out
        self.stops_early = tol is not None or patience is not None
        self.tol = 1e-4 if tol is None else tol
        self.patience = 10 if patience is None else patience
        self.callbacks = callbacks
        self.reporter = reporter
        self.every_epoch = bool(held_out or self.stops_early or callbacks)
        self.best = np.inf
        self.stale = 0
        self.kept: _Snapshot | None = None

    def epoch_ended(self) -> str:
        """Why to stop now, or ""."""
        history = self.one.training.history
        if self.held_out is not None:
            loss, score = self.net.evaluate(self.held_out)
            with held_back():
                history.validation_loss.append(loss)
                history.validation_score.append(score)
        reason = ""
        if self.stops_early:
            watched = history.validation_loss[-1] if self.held_out is not None else history.loss[-1]
            self.stale += 1
            if watched < self.best - self.tol:
                self.stale = 0
                self.best = watched
                with held_back():
                    history.best_epoch = history.epochs - 1
                    self.kept = _Snapshot.of(history.epochs, self.net.theta, self.one.state)
            if self.stale >= self.patience:
                reason = "patience"
        answers = [callback(self.net, history) for callback in self.callbacks]
        if any(isinstance(answer, (bool, np.bool_)) and answer for answer in answers):
            reason = reason or "callback"
        return reason

    def keep_best(self) -> None:
        if self.kept is not None:
            self.kept.restore(self.net.theta, self.one.state)


def _loop(one: _Fit, watch: _Watch) -> str:
    """Run slices of steps until the epochs are done or something says stop; returns why it ended."""
    slices = _slices(one, watch)
    try:
        asked = next(slices)
        while True:
            began = time.perf_counter()
            try:
                losses, weights = one.steps(*asked)
            except MemoryError as error:
                asked = slices.throw(error)
            else:
                asked = slices.send((losses, weights, time.perf_counter() - began))
    except StopIteration as end:
        return str(end.value)
    finally:
        slices.close()


def _loop_many(watches: Sequence[_Watch]) -> None:
    """The same for several networks in turns, a slice of each; their histories say why they ended."""
    trained = {k: _slices(watch.one, watch) for k, watch in enumerate(watches)}
    asked: dict[int, tuple[int, int]] = {}
    failed: list[DeviceMemoryError] = []
    together = _go_together([watch.one for watch in watches])

    def go_on(k: int, how: Callable[..., tuple[int, int]], *answer: Any) -> None:
        """To the next slice of network k, unless it ends."""
        history = watches[k].one.training.history
        try:
            asked[k] = how(*answer)
            return
        except StopIteration as end:
            history.stopped = str(end.value)
        except DivergedError:
            pass  # the history says so
        except DeviceMemoryError as error:
            failed.append(error)
        asked.pop(k, None)

    try:
        with ThreadPoolExecutor(get_num_threads()) as pool:
            with held_back():
                for k, slices in trained.items():
                    go_on(k, slices.__next__)
            while asked and not failed:
                with held_back():  # no network goes on without the others
                    numbers = list(asked)
                    began = time.perf_counter()
                    try:
                        ones = [watches[k].one for k in numbers]
                        found = _steps_of(ones, [asked[k] for k in numbers], together, pool)
                    except MemoryError as error:
                        for k in numbers:
                            go_on(k, trained[k].throw, error)
                        continue
                    elapsed = time.perf_counter() - began
                    for k, (losses, weights) in zip(numbers, found, strict=True):
                        go_on(k, trained[k].send, (losses, weights, elapsed))
    except KeyboardInterrupt:
        for k in asked:
            watches[k].one.training.history.stopped = "interrupted"
    finally:
        for slices in trained.values():
            slices.close()
    if failed:
        raise failed[0]


def _go_together(ones: Sequence[_Fit]) -> bool:
    """Whether one launch does steps of all networks: decided once, since the bits of a step depend on it."""
    first, run = ones[0], ones[0].run
    if len(ones) == 1 or not isinstance(run, backends.OnDevice) or first.feeder is not None:
        return False
    alike = len({one.run.program.form for one in ones}) == 1  # the same Program, but for names
    return alike and run.suits_many(first.batch)


def _steps_of(
    ones: Sequence[_Fit], asked: Sequence[tuple[int, int]], together: bool, pool: ThreadPoolExecutor
) -> list[tuple[Array, Array]]:
    """Losses and weights of the steps that each asks for: by one launch, on several threads, or one by one."""
    first, run = ones[0], ones[0].run
    if together and isinstance(run, backends.OnDevice):
        made = [one.asked(*steps) for one, steps in zip(ones, asked, strict=True)]
        results = run.run_many([values for values, *_ in made], [table for _, table, *_ in made])
        return [
            (one.done(last - begin, result["loss"]), weights)
            for one, (begin, last), result, (*_, weights) in zip(ones, asked, results, made, strict=True)
        ]
    if first.net.backend == "cpu":
        train = _steps_alone if len(ones) >= get_num_threads() else _Fit.steps
        return list(pool.map(train, ones, *zip(*asked, strict=True)))
    return [one.steps(*steps) for one, steps in zip(ones, asked, strict=True)]


def _steps_alone(one: _Fit, first: int, last: int) -> tuple[Array, Array]:
    """On this thread and no other: there is a network for each."""
    with alone():
        return one.steps(first, last)


def _slices(one: _Fit, watch: _Watch) -> Slices:
    """The slices of a network's training, one after the other, and all that is to be done in between."""
    total = one.epochs * one.per_epoch
    seconds_a_step, taken = _first_guess(one)
    record = _Record(one)
    snapshots = [_Snapshot.of(0, one.net.theta, one.state)]  # the newest two, taken where slices began epochs
    done = 0
    while done < total:
        # by the clock; from a careful start on, for a first guess may be far off
        size = max(1, min(int(SLICE_SECONDS / max(seconds_a_step, 1e-9)), 8 * taken, MOST_STEPS))
        last = _slice_end(done, size, total, one.per_epoch, watch.every_epoch)
        if done and done % one.per_epoch == 0:
            snapshots = [snapshots[-1], _Snapshot.of(done // one.per_epoch, one.net.theta, one.state)]
        with held_back():  # the steps, their number and their entries in the history belong together
            try:
                losses, weights, elapsed = yield done, last
            except MemoryError as error:
                if one.kind is arrays.HOST:
                    raise
                _back(one, record, snapshots[-1])
                kept = "as they were" if not snapshots[-1].epoch else f"those at the end of epoch {snapshots[-1].epoch}"
                raise DeviceMemoryError(f"{error}; the parameters are {kept}") from error
            bad = np.flatnonzero(~np.isfinite(losses))
            if len(bad):
                raise _diverged(one, record, snapshots, done + int(bad[0]))
            record.add(done, losses, weights, elapsed)
            rate = (last - done) * one.batch / elapsed
            seconds_a_step = elapsed / (last - done)
            taken = last - done
            done = last
            one.training.epoch = one.first_epoch + -(-done // one.per_epoch)
            if done % one.per_epoch == 0 and not one.finite():
                raise _diverged(one, record, snapshots, done)
        watch.reporter.slice(done // one.per_epoch, done / total, float(losses[-1]), rate)
        if done % one.per_epoch == 0:
            reason = watch.epoch_ended()
            watch.reporter.epoch(one.training.history)
            if reason:
                return reason
    return "epochs"


def _first_guess(one: _Fit) -> tuple[float, int]:
    """Seconds a step, and the number of steps that was found with: as the last epoch went, if there was one."""
    history = one.training.history
    if history.epochs and history.rows[-1] and history.seconds[-1]:
        return one.batch * history.seconds[-1] / history.rows[-1], MOST_STEPS
    return one.batch * one.net.operations_a_row() / _FIRST_GUESS, FEW_STEPS


def _slice_end(done: int, size: int, total: int, per_epoch: int, every_epoch: bool) -> int:
    """Where a slice ends: inside an epoch, or after whole epochs; after one if something happens at every end."""
    boundary = (done // per_epoch + 1) * per_epoch
    last = min(done + size, total)
    if last <= boundary:
        return last
    return boundary if every_epoch or done % per_epoch else last // per_epoch * per_epoch


class _Record:
    """Turns the losses of steps into the entries of the history."""

    def __init__(self, one: _Fit) -> None:
        self.one = one
        self.averages = one.net.averages
        self.first_entry = one.training.history.epochs
        self.first_validation = len(one.training.history.validation_loss)
        self.reset()

    def reset(self) -> None:
        """Forget the part of an epoch that has been added."""
        self.total = self.weight = self.seconds = 0.0

    def add(self, first: int, losses: Array, weights: Array, elapsed: float) -> None:
        """Steps from ``first`` on. Whole epochs go in together: one by one they took 14 µs each."""
        one = self.one
        if not self.averages:
            weights = np.ones(len(losses))
        share = elapsed / len(losses)
        start = 0
        while start < len(losses):
            left, at = len(losses) - start, (first + start) % one.per_epoch
            epochs = left // one.per_epoch if at == 0 else 0
            steps = epochs * one.per_epoch or min(left, one.per_epoch - at)
            part = slice(start, start + steps)
            shape = (max(1, epochs), -1)  # numbers of a row are added in the same order however many rows there are
            totals = (losses[part] * weights[part]).reshape(shape).sum(axis=1)
            sums, seconds = weights[part].reshape(shape).sum(axis=1), share * steps / shape[0]
            start += steps
            if not epochs:
                self.total += float(totals[0])
                self.weight += float(sums[0])
                self.seconds += seconds
                if at + steps < one.per_epoch:
                    return
                totals, sums, seconds = np.array([self.total]), np.array([self.weight]), self.seconds
                self.reset()
            self._close(totals, sums, seconds, one.state.step - (len(losses) - start) - 1)

    def _close(self, totals: Array, weights: Array, seconds: float, last_step: int) -> None:
        """Entries of epochs that follow each other, the last of which ended with that step."""
        history, count = self.one.training.history, len(totals)
        # rows drawn at random may all have weight 0
        means = np.divide(totals, weights, out=np.zeros(count), where=weights != 0) if self.averages else totals
        history.loss.extend(means.tolist())
        rate = self.one.training.optimizer.learning_rate
        if isinstance(rate, optim.Schedule):
            ends = last_step - self.one.per_epoch * np.arange(count - 1.0, -1.0, -1.0)
            history.learning_rate.extend(optim.rate_at(rate, ends).tolist())
        else:  # one number for all: with one made for each, fits of epochs of one step took 1.3 to 1.8 times as long
            history.learning_rate.extend([float(rate)] * count)
        history.seconds.extend([seconds] * count)
        history.rows.extend([self.one.rows] * count)


def _back(one: _Fit, record: _Record, snapshot: _Snapshot) -> None:
    """Go back to the start of an epoch."""
    snapshot.restore(one.net.theta, one.state)
    one.training.history.truncate(record.first_entry + snapshot.epoch, record.first_validation + snapshot.epoch)
    one.training.epoch = one.first_epoch + snapshot.epoch
    record.reset()


def _diverged(one: _Fit, record: _Record, snapshots: list[_Snapshot], bad_step: int) -> DivergedError:
    """Put back the parameters of the last good epoch, and word the error.

    Good are finite parameters at the start of an epoch whose first batch still had a finite loss. From the newest
    snapshot that is not younger, epochs are run again up to there: they give the same bits.
    """
    epoch, batch = divmod(bad_step, one.per_epoch)
    good = max(0, epoch if batch else epoch - 1)  # a first batch that fails accuses the epoch before it
    snapshot = next(s for s in reversed(snapshots) if s.epoch <= good)
    history = one.training.history
    culprit = np.array([float(max(0, one.first_step + bad_step - 1))])  # the step before the first bad loss
    rate = float(optim.rate_at(one.training.optimizer.learning_rate, culprit)[0])
    _back(one, record, snapshot)
    for again in range(snapshot.epoch, good):
        before = _Snapshot.of(again, one.net.theta, one.state)
        began = time.perf_counter()
        first, last = again * one.per_epoch, (again + 1) * one.per_epoch
        losses, weights = one.steps(first, last)
        if not one.finite():
            before.restore(one.net.theta, one.state)
            good = again
            break
        record.add(first, losses, weights, time.perf_counter() - began)
    one.training.epoch = one.first_epoch + good
    history.stopped = "diverged"
    return DivergedError(
        f"the loss is not finite any more in epoch {min(epoch, one.epochs - 1) + 1} of {one.epochs}, at learning rate "
        f"{rate:g}; the parameters at the end of epoch {good} are kept. "
        "Lower the learning rate, clip the gradient (clip_norm=1.0), or scale the inputs."
    )
