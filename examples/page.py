"""What the examples share: the command line, the place for pictures, curves, and sets of data."""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

import fastbp


def run(main: Callable[..., object]) -> None:
    """Call ``main`` with what the command line says: an option for each of its parameters, of the default's type."""
    parser = argparse.ArgumentParser(
        description=sys.modules[main.__module__].__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, parameter in inspect.signature(main).parameters.items():
        default = parameter.default
        if name == "out":
            parser.add_argument("--out", metavar="FOLDER", help="write pictures there; none are drawn without it")
        else:
            help_ = f"default {default}"
            parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default, help=help_)
    main(**vars(parser.parse_args()))


def picture(out: str | Path, name: str) -> Path:
    """The path of a picture in the folder, which is made if it is not there."""
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    print(f"picture: {folder / name}")
    return folder / name


def draw_curves(curves: Mapping[str, Sequence[float]], path: Path, xlabel: str, ylabel: str = "loss") -> None:
    """Lines from 1 on, on a logarithmic axis."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.add_subplot()
    colours = ("#000000", "#0072B2", "#C24E00", "#009E73", "#B0588F", "#A87900", "#3A9BD9", "0.5")
    for k, (name, losses) in enumerate(curves.items()):
        style = ("-", "--", "-.", ":")[k % 4]
        axes.plot(range(1, len(losses) + 1), losses, style, color=colours[k], label=name)
    axes.set(xlabel=xlabel, ylabel=ylabel, yscale="log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(which="both", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small", ncols=2 if len(curves) > 4 else 1)
    figure.savefig(path, dpi=150)


SEGMENTS = {  # of the ten digits: top, upper left, upper right, middle, lower left, lower right, bottom
    0: "1110111",
    1: "0010010",
    2: "1011101",
    3: "1011011",
    4: "0111010",
    5: "1101011",
    6: "1101111",
    7: "1010010",
    8: "1111111",
    9: "1111011",
}


def led_digits(rows: int = 1000, noise: float = 0.3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Digits on a seven-segment display with normal noise on every segment: X (rows, 7), labels (rows,).

    After the LED display problem of Breiman, Friedman, Olshen and Stone, Classification and Regression Trees (1984).
    """
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 10, rows)
    lit = np.array([[int(segment) for segment in SEGMENTS[digit]] for digit in range(10)])
    return lit[labels] + noise * rng.normal(size=(rows, 7)), labels


def labelled(data: str, rows: int = 1000) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """(X, labels) to train on and to test on, a fifth held out.

    Args:
        data: "led"; "digits" for scikit-learn's 1,797 scanned ones (extra "demo"); or the path of IDX files (MNIST).
    """
    if data == "led":
        X, labels = led_digits(rows)
        return (X[rows // 5 :], labels[rows // 5 :]), (X[: rows // 5], labels[: rows // 5])
    train, test = fastbp.data.load(data).split_every(5)
    return (train.X, train.T), (test.X, test.T)
