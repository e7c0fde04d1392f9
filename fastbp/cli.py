"""The command line: ``fastbp train``, ``predict``, ``info``, ``check`` and ``bench``.

The commands are plain functions; :func:`commands` tells click about them, so that this module can be imported, and say
what is missing, where click is not installed.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import importlib.metadata
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

import fastbp
from fastbp import data, initialisation, losses, network, optim, pictures
from fastbp.backends import BACKENDS, ON_DEVICE, gpu
from fastbp.data import Dataset, Scaling
from fastbp.errors import DataError, FastbpError, InputError, missing_extra, unknown
from fastbp.network import MLP
from fastbp.optim import Optimizer
from fastbp.scalars import ACTIVATIONS

if TYPE_CHECKING:
    import click
    from rich.console import Console

Array = npt.NDArray[Any]

HELD_OUT_EVERY = 5  # rows with index % 5 == 4
INTERRUPTED = 130  # the exit code of a program that Ctrl-C ended
EXTRAS = {"cli": ("click", "rich"), "plots": ("matplotlib",), "demo": ("scikit-learn",)}
STANDARDISED = ("mse", "mae", "huber", "half_sse", "sse")  # losses that need targets of the size of 1
PIPE_WIDTH = 160  # columns of a table that goes to no terminal
TEXT_WIDTH = 100  # columns of sentences, at most
SHOWN_FEATURES = ("sse4.2", "avx", "f16c", "fma", "amx", "neon", "sve")  # how the names that matter here begin


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; an error becomes one line on stderr and exit code 1."""
    try:
        commands().main(arguments, prog_name="fastbp")
    except (FastbpError, OSError, MemoryError) as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(1)


def commands() -> click.Group:
    """The commands as click knows them.

    Raises:
        MissingExtraError: click or rich is not installed.
    """
    try:
        import click
        import rich  # noqa: F401  for the tables and the progress bar
    except ImportError as error:
        raise missing_extra(error.name or "click", "cli", "The command line") from error

    class File(click.Path):
        def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
            if str(value).endswith(("/", os.sep)):  # which a Path forgets
                raise InputError(f"{value} is a folder's name; needed a file's")
            return super().convert(value, param, ctx)

    file = File(path_type=Path, dir_okay=False)
    dtype = click.Option(["--dtype"], default="float32", show_default=True, help="float32 or float64.")
    training = [
        click.Argument(["source"], default="digits", metavar="[DATA]"),
        click.Option(
            ["--hidden"], default="64", show_default=True, help='Hidden widths: 30, or 64,64, or "" for none.'
        ),
        click.Option(
            ["--activation"],
            default="relu",
            show_default=True,
            help=f"Of the hidden layers, one or one a layer (tanh,relu): {', '.join(ACTIVATIONS)}.",
        ),
        click.Option(["--output"], help="Activation of the last layer, softmax among them; follows the loss."),
        click.Option(
            ["--loss"],
            help=f"{', '.join(losses.LOSSES)}; by default cross_entropy for classes, mse for numbers.",
        ),
        click.Option(["--init"], help=f"{', '.join(initialisation.INITS)}; follows the activation."),
        click.Option(["--optimizer"], default="adam", show_default=True, help=f"{', '.join(optim.OPTIMIZERS)}."),
        click.Option(["--learning-rate"], type=float, help="The optimizer's own by default."),
        click.Option(["--epochs"], type=int, default=20, show_default=True),
        click.Option(["--batch-size"], type=int, help="Rows a step; 32, or all if they are fewer."),
        click.Option(
            ["--backend"],
            help="cpu (compiled; the default) or numpy (plain array code); on a GPU cuda (compiled) or cupy (plain "
            "array code).",
        ),
        dtype,
        click.Option(
            ["--precision"],
            default="highest",
            show_default=True,
            help="highest; bf16: large products in bfloat16, on cuda and where the CPU can; tf32: on cuda alone.",
        ),
        click.Option(["--seed"], type=int, default=0, show_default=True, help="Of the weights and the rows' order."),
        click.Option(
            ["--scale"], help=f"{', '.join(data.SCALES)}; by default unit for images, standard for .csv and .npz."
        ),
        click.Option(["--target"], help="The target's column in a csv file, by name or index; the last by default."),
        click.Option(["--task"], help=f"What a csv file's target is: {', '.join(data.TASKS)}."),
        click.Option(["--patience"], type=int, help="Stop when the held-out loss has not improved for so many epochs."),
        click.Option(["--clip-norm"], type=float, help="Largest norm of a gradient."),
        click.Option(["--out"], type=file, help="Keep the network, its scaling and its class names: FILE.npz."),
        click.Option(["--plot"], type=file, help="Draw the loss by epoch: FILE.png."),
        click.Option(["--quiet"], is_flag=True, help="No progress bar."),
    ]
    predicting = [
        click.Argument(["model"], type=file),
        click.Argument(["source"], metavar="DATA"),
        click.Option(["--out"], type=file, help="Write there instead of to stdout: FILE.csv."),
    ]
    checking = [
        click.Option(["--backend", "backends"], multiple=True, help=f"{', '.join(BACKENDS)}; may be repeated."),
        click.Option(["--dtype", "dtypes"], multiple=True, help="float32 or float64; may be repeated."),
    ]
    measuring = [
        click.Option(["--network", "networks"], multiple=True, help="Measure this network only; may be repeated."),
        click.Option(
            ["--backend", "backends"],
            multiple=True,
            help=f"cpu or numpy; may be repeated. {' and '.join(ON_DEVICE)} are not measured here.",
        ),
        dtype,
        click.Option(["--quick"], is_flag=True, help="Fewer repetitions: rougher figures, sooner."),
        click.Option(["--json"], type=file, help="Write the figures: FILE.json."),
        click.Option(["--plot"], type=file, help="Draw the figures: FILE.png."),
        click.Option(
            ["--explain"],
            metavar="NETWORK",
            help="Where a step's time goes, line by line: one of the networks, or widths such as 784-30-10. "
            "The options below are for it.",
        ),
        click.Option(["--batch"], type=int, help="Rows a step."),
        click.Option(["--activation"], help="Of the hidden layers, one or one a layer; as in train."),
        click.Option(["--output"], help="Activation of the last layer; follows the loss."),
        click.Option(["--loss"], help=f"{', '.join(losses.LOSSES)}."),
        click.Option(["--optimizer"], help=f"{', '.join(optim.OPTIMIZERS)}; sgd by default."),
        click.Option(["--threads"], type=int, help="Threads that may be used."),
    ]

    def command(work: Callable[..., None], parameters: Sequence[click.Parameter] = ()) -> click.Command:
        return click.Command(work.__name__, callback=work, help=work.__doc__, params=list(parameters))

    group = click.Group(
        "fastbp",
        help="Compiled backpropagation for dense networks.",
        context_settings={"help_option_names": ["-h", "--help"]},
        commands=[
            command(train, training),
            command(predict, predicting),
            command(info),
            command(check, checking),
            command(bench, measuring),
        ],
    )
    return click.version_option(fastbp.__version__, prog_name="fastbp")(group)


# ---- train ---------------------------------------------------------------------------------------------------------


def train(
    source: str,
    hidden: str,
    activation: str,
    output: str | None,
    loss: str | None,
    init: str | None,
    optimizer: str,
    learning_rate: float | None,
    epochs: int,
    batch_size: int | None,
    backend: str | None,
    dtype: str,
    precision: str,
    seed: int,
    scale: str | None,
    target: str | None,
    task: str | None,
    patience: int | None,
    clip_norm: float | None,
    out: Path | None,
    plot: Path | None,
    quiet: bool,
) -> None:
    """Train a network on DATA and score it on every fifth row, which is held out.

    DATA is the word digits (the default), a folder of IDX files such as MNIST's, or an .npz, .csv or .tsv file. The
    widths of the input and the output come from the data. Numbers to predict are standardised, unless the loss is bce
    or cross_entropy or --output is not identity; predict gives them in their own units again.
    """
    _check_writable(out, plot)
    if scale is not None and scale not in data.SCALES:
        raise unknown("scale", scale, data.SCALES)
    rows = _training_data(source, target, task)
    fitted, held_out = rows.split_every(HELD_OUT_EVERY)
    scaling = data.fit_scaling(fitted.X, scale or _default_scale(source))
    fitted, held_out = fitted.scaled(scaling), held_out.scaled(scaling)
    net = MLP(
        [rows.n_features, *_widths(hidden), rows.n_outputs],
        activation=_activations(activation),
        output=output,
        loss=loss or ("cross_entropy" if rows.is_classification else "mse"),
        init=init,
        dtype=dtype,
        precision=precision,
        backend=backend,
        seed=seed,
    )
    target_scaling = None
    if not rows.is_classification and net.loss_name in STANDARDISED and net.activations[-1] == "identity":
        target_scaling = data.fit_scaling(fitted.T, "standard")
        fitted, held_out = (dataclasses.replace(part, T=target_scaling.apply(part.T)) for part in (fitted, held_out))
    changes = {"learning_rate": learning_rate, "clip_norm": clip_norm}
    rule = dataclasses.replace(optim.get(optimizer), **{k: v for k, v in changes.items() if v is not None})
    print(f"{rows.name}: {fitted.n:,} rows to train on, {held_out.n:,} held out, {_targets_in_words(rows)}")
    print(f"{'-'.join(map(str, net.layers))}, {', '.join(net.activations)}, {net.loss_name}; {_in_words(rule)}")
    history = net.fit(
        fitted.X,
        fitted.T,
        epochs=epochs,
        batch_size=batch_size,
        optimizer=rule,
        validation=(held_out.X, held_out.T),
        patience=patience,
        progress=not quiet,
    )
    if not history.epochs:
        print("Interrupted before the first epoch ended; nothing is kept.", file=sys.stderr)
        sys.exit(INTERRUPTED)
    if out is not None:  # first of all, so that nothing that fails later costs the training
        net.save(out, **_kept(rows, scaling, target_scaling, target))
    X, T = net.kind.moved(held_out.X), net.kind.moved(held_out.T)
    seconds = sum(history.seconds)
    steps = history.epochs * -(-fitted.n // (batch_size or min(fastbp.training.DEFAULT_BATCH, fitted.n)))
    of_what = "" if target_scaling is None else " (of standardised targets)"
    figures = {
        f"held-out {_score_name(net, held_out.T)}": f"{net.score(X, T):.4f}",
        "held-out loss": f"{float(net.loss(X, T)):.4g}{of_what}",
        "training loss": f"{history.loss[-1]:.4g}{of_what}",
        "epochs": f"{history.epochs}{_ending(history)}",
        "seconds": f"{seconds:.3g}",
        "rows/s": f"{sum(history.rows) / seconds:,.0f}",
        "steps/s": f"{steps / seconds:,.0f}",
    }
    if out is not None:
        figures["network"] = str(out)
    if plot is not None:
        pictures.loss_curve(history, plot)
        figures["plot"] = str(plot)
    _print_pairs(figures)
    if history.stopped == "interrupted":
        sys.exit(INTERRUPTED)


def _print_pairs(pairs: Mapping[str, str]) -> None:
    width = max(map(len, pairs))
    for name, value in pairs.items():
        print(f"{name:<{width}}  {value}")


def _check_writable(out: Path | None, plot: Path | None = None) -> None:
    """Refuse files that could not be written, before the work whose results go there."""
    for path in (out, plot):
        if path is not None and not (path.parent.is_dir() and os.access(path.parent, os.W_OK)):
            wrong = "cannot be written to" if path.parent.is_dir() else "is not there"
            raise InputError(f"{path} cannot be written: the folder {path.parent} {wrong}")
    if plot is not None:
        pictures.check(plot)


def _training_data(source: str, target: str | None, task: str | None) -> Dataset:
    options: dict[str, Any] = {}
    if target is not None:
        options["target"] = _column(target)
    if task is not None:
        options["task"] = task
    if options and data.kind_of(source) != "csv":
        raise InputError(f"--target and --task say how to read a .csv or .tsv file; {source} is none")
    rows = data.load(source, **options)
    if not rows.is_classification and _is_onehot(rows.T):
        classes = tuple(map(str, range(rows.n_outputs)))
        rows = dataclasses.replace(rows, T=rows.T.argmax(axis=1).astype(np.int64), classes=classes)
    if rows.classes is not None and len(rows.classes) < 2:
        raise DataError(f"{rows.name}: all rows are of the class {rows.classes[0]!r}; needed at least two classes")
    if rows.n < HELD_OUT_EVERY:
        raise DataError(f"{rows.name} has {rows.n} rows; needed at least {HELD_OUT_EVERY}, to hold out every fifth")
    return rows


def _default_scale(source: str) -> str:
    """One factor for all pixels; a shift and a factor for each column of a table."""
    return "unit" if data.kind_of(source) in ("digits", "idx") else "standard"


def _is_onehot(T: Array) -> bool:
    """Whether T (n, k) are classes as rows of zeros with one 1."""
    return T.shape[1] > 1 and bool(((T == 0) | (T == 1)).all() and (T.sum(axis=1) == 1).all())


def _column(target: str) -> str | int:
    try:
        return int(target)
    except ValueError:
        return target


def _widths(hidden: str) -> list[int]:
    try:
        return [int(width) for width in hidden.split(",")] if hidden.strip() else []
    except ValueError:
        raise InputError(f"--hidden {hidden!r}: needed widths such as 30 or 64,64") from None


def _activations(names: str) -> str | list[str]:
    return names.split(",") if "," in names else names


def _targets_in_words(rows: Dataset) -> str:
    kind = "classes" if rows.is_classification else "numbers to predict" if rows.n_outputs > 1 else "number to predict"
    return f"{rows.n_features:,} inputs, {rows.n_outputs:,} {kind}"


def _in_words(rule: Optimizer) -> str:
    """The optimiser with what is not its default, and its learning rate in any case."""
    told = {f.name: getattr(rule, f.name) for f in dataclasses.fields(rule)}
    chosen = [f"{k}={v}" for k, v in told.items() if k == "learning_rate" or v != getattr(type(rule), k)]
    return f"{type(rule).__name__}({', '.join(chosen)})"


def _score_name(net: MLP, T: Array) -> str:
    """What ``net.score`` gives for these targets."""
    return "accuracy" if T.dtype.kind == "i" or net.loss_name == "bce" or _is_onehot(T) else "R²"


def _ending(history: fastbp.History) -> str:
    kept = "" if history.best_epoch is None else f"; epoch {history.best_epoch + 1} is kept"
    return ("" if history.stopped == "epochs" else f" ({history.stopped})") + kept


def _kept(rows: Dataset, scaling: Scaling, target_scaling: Scaling | None, target: str | None) -> dict[str, Array]:
    """What ``predict`` needs besides the network, as arrays to save with it."""
    kept: dict[str, Array] = {"shift": scaling.shift, "factor": scaling.factor}
    if target_scaling is not None:
        kept |= {"target_shift": target_scaling.shift, "target_factor": target_scaling.factor}
    if rows.classes is not None:
        kept["classes"] = np.array(rows.classes)
    if rows.features is not None:
        kept["csv_features"] = np.array(rows.features)
    if target is not None:
        kept["csv_target"] = np.array(_column(target))
    return kept


# ---- predict -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Model:
    """A saved network with what :func:`train` kept beside it.

    Attributes:
        scaling: of the inputs; None if none was kept.
        target_scaling: of the numbers that the network was trained on; None if none was kept.
        classes: names of the outputs; None for regression.
        features: names of the columns of a csv file with a header.
        target: the name or the index of the target's column in a csv file; the last, -1, if none was kept.
    """

    net: MLP
    scaling: Scaling | None
    target_scaling: Scaling | None
    classes: list[str] | None
    features: list[str] | None
    target: str | int

    @classmethod
    def load(cls, path: Path) -> Model:
        """Read what ``net.save`` wrote, with or without the arrays of :func:`train`."""
        net = fastbp.load(path)
        if not isinstance(net, MLP):
            raise DataError(f"{path} holds a {type(net).__name__}; predict takes an MLP: use fastbp.load from Python")
        kept = network.extras(path)
        classes = kept["classes"].ravel().astype(str).tolist() if "classes" in kept else None
        if classes is None and net.loss_name == "cross_entropy":
            classes = list(map(str, range(net.layers[-1])))
        if classes is not None and len(classes) != net.layers[-1]:
            raise DataError(f"{path}: {len(classes)} class names are kept with a network of {net.layers[-1]} outputs")
        scaling, target_scaling = (
            Scaling(kept[f"{of}shift"], kept[f"{of}factor"]) if {f"{of}shift", f"{of}factor"} <= set(kept) else None
            for of in ("", "target_")
        )
        return cls(
            net,
            scaling,
            target_scaling,
            classes,
            kept["csv_features"].tolist() if "csv_features" in kept else None,
            kept["csv_target"].item() if "csv_target" in kept else -1,
        )


def predict(model: Path, source: str, out: Path | None) -> None:
    """Predict the rows of DATA with the network in MODEL.

    Writes csv, a line a row below a header: the name of the likeliest class and its probability, or the numbers. DATA
    is what train takes, and may come without targets; where it has some, the score goes to stderr. Columns of a csv
    file with a header are found by their names.
    """
    _check_writable(out)
    found = Model.load(model)
    width, kind = found.net.layers[0], found.net.kind
    X, T = data.load_inputs(source, width, classes=found.classes, features=found.features, target=found.target)
    if found.scaling is not None:
        X = found.scaling.apply(X)
    outputs = kind.to_host(found.net.forward(kind.moved(X)))
    if found.target_scaling is not None:
        outputs = found.target_scaling.invert(outputs)
        T = None if T is None else found.target_scaling.apply(T)  # as the network was trained
    if T is not None:
        score = f"{_score_name(found.net, T)} {found.net.score(kind.moved(X), kind.moved(T)):.4f}"
        print(f"{score} on all {len(X):,} rows of this file, training rows included if it has any", file=sys.stderr)
    if out is None:
        _write_predictions(sys.stdout, outputs, found)
    else:
        with out.open("w", newline="", encoding="utf-8") as file:
            _write_predictions(file, outputs, found)


def _write_predictions(file: IO[str], outputs: Array, model: Model) -> None:
    writer = csv.writer(file, lineterminator="\n")
    if model.classes is None:
        names = ["output"] if outputs.shape[1] == 1 else [f"output{k}" for k in range(outputs.shape[1])]
        writer.writerow(names)
        writer.writerows(outputs.astype(str).tolist())  # the shortest digits that give the same number again
        return
    # Sigmoids that were trained apart do not sum to 1.
    writer.writerow(["class", "probability" if model.net.activations[-1] == "softmax" else "output"])
    best = outputs.argmax(axis=1)
    values = outputs[np.arange(len(outputs)), best].astype(str).tolist()
    writer.writerows((model.classes[k], value) for k, value in zip(best.tolist(), values, strict=True))


# ---- info ----------------------------------------------------------------------------------------------------------


def info() -> None:
    """Show versions, the CPU that kernels are compiled for, the GPU, and what is missing."""
    from fastbp.backends.cpu.loading import cache_folder
    from fastbp.backends.cpu.target import VECTOR_BYTES, target

    triple, name, features = target()
    names = ("numpy", "numba", "llvmlite")
    facts = {
        "fastbp": fastbp.__version__,
        "Python": f"{platform.python_version()} ({platform.platform()})",
        **{package: _version(package) or "missing" for package in names},
        "cupy": _version("cupy", "cupy-cuda13x", "cupy-cuda12x") or "not installed",
        "numba-cuda": _version("numba-cuda") or "not installed",
        "CPU": f"{name} ({triple})",
        "CPU features": _features_in_words(features),
        "vectors": f"{VECTOR_BYTES} bytes: {VECTOR_BYTES // 4} float32, {VECTOR_BYTES // 8} float64",
        "threads": f"{fastbp.get_num_threads()} (FASTBP_NUM_THREADS or set_num_threads changes it)",
        "kernels kept in": str(cache_folder() or "nowhere; set NUMBA_CACHE_DIR to a writable folder"),
        "backends": ", ".join(fastbp.available_backends()),
        **{f"GPU {name}": fact for name, fact in gpu.describe().items()},
        **{f"extra {extra}": _extra_in_words(extra, packages) for extra, packages in EXTRAS.items()},
    }
    _print_pairs(facts)


def _version(*packages: str) -> str | None:
    """The version of the first of these packages that is installed."""
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(package)
    return None


def _features_in_words(features: str) -> str:
    enabled = [feature[1:] for feature in features.split(",") if feature.startswith("+")]
    return " ".join(name for name in enabled if name.startswith(SHOWN_FEATURES)) or "those that the CPU's name implies"


def _extra_in_words(extra: str, packages: Sequence[str]) -> str:
    versions = {package: _version(package) for package in packages}
    if None in versions.values():
        missing = ", ".join(package for package, version in versions.items() if version is None)
        return f"{missing} missing: pip install 'fastbp[{extra}]'"
    return ", ".join(f"{package} {version}" for package, version in versions.items())


# ---- check and bench -----------------------------------------------------------------------------------------------


def check(backends: Sequence[str], dtypes: Sequence[str]) -> None:
    """Check gradients and results on every backend.

    The exit code is 1 if one is wrong.
    """
    from rich.table import Table

    from fastbp.checks import run_checks

    results = run_checks(list(backends) or None, list(dtypes) or None)
    table = Table("what", "backend", "dtype", box=None, pad_edge=False)
    for heading in ("cases", "worst", "limit"):
        table.add_column(heading, justify="right")
    table.add_column()
    for result in results:
        numbers = (f"{result.cases:,}", f"{result.worst:.2e}", f"{result.limit:.2e}")
        outcome = "[green]passed" if result.passed else "[red]FAILED"
        table.add_row(result.what, result.backend, result.dtype, *numbers, outcome)
    _console().print(table)
    failed = sum(not result.passed for result in results)
    if failed:
        print(f"{failed} of {len(results)} checks failed.", file=sys.stderr)
        sys.exit(1)


def bench(
    networks: Sequence[str],
    backends: Sequence[str],
    dtype: str,
    quick: bool,
    json: Path | None,
    plot: Path | None,
    explain: str | None,
    **of_one: Any,
) -> None:
    """Measure training and prediction on this machine.

    With --explain NETWORK: every line of one network's training step on the cpu backend, beside what this machine could
    do at most.
    """
    from fastbp import measure

    for backend in backends:
        if backend in ON_DEVICE:
            raise InputError(f"--backend {backend}: bench measures this machine's CPU; scripts/test-gpu measures a GPU")
    given = [name for name, value in of_one.items() if value is not None]
    if explain is not None:
        _check_alone(networks, backends, plot)
        _explain(explain, dtype, quick, json, **of_one)
        return
    if given:
        raise InputError(f"--{given[0]} is for one network: say which with --explain NETWORK")
    _check_writable(json, plot)
    report = measure.run(
        list(networks) or None,
        list(backends) or None,
        dtype=dtype,
        quick=quick,
        progress=lambda line: print(line, file=sys.stderr),
    )
    console = _console()
    console.print(measure.table(report, console.width))
    if json is not None:
        measure.save_json(report, json)
    if plot is not None:
        measure.draw(report, plot)


def _check_alone(networks: Sequence[str], backends: Sequence[str], plot: Path | None) -> None:
    """Refuse what does not go with --explain."""
    for backend in map(fastbp.backends.resolve, backends):
        if backend != "cpu":
            raise InputError(f"--explain shows the lines of the cpu backend's table; --backend {backend} has none")
    for option, value in (("--network", networks), ("--plot", plot)):
        if value:
            raise InputError(f"{option} does not go with --explain, which takes one network and prints a table")


def _explain(
    name: str,
    dtype: str,
    quick: bool,
    json: Path | None,
    *,
    batch: int | None,
    activation: str | None,
    output: str | None,
    loss: str | None,
    optimizer: str | None,
    threads: int | None,
) -> None:
    from fastbp import explain

    _check_writable(json)
    hidden = None if activation is None else _activations(activation)
    network = explain.network_of(name, batch=batch, activation=hidden, output=output, loss=loss)
    found = explain.explain(network, optimizer=optimizer or "sgd", dtype=dtype, threads=threads, quick=quick)
    console = _console()
    text = min(console.width, TEXT_WIDTH)
    console.print(explain.summary(found), width=text)
    console.print("", explain.table(found, console.width), "", sep="\n")
    console.print(explain.notes(found), width=text)
    if json is not None:
        explain.save_json(found, json)


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)


if __name__ == "__main__":
    main()
