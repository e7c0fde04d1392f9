"""Pictures of training, drawn without a display."""

from __future__ import annotations

import os
from pathlib import Path

from fastbp.errors import InputError, missing_extra
from fastbp.files import replacing
from fastbp.history import History


def check(path: str | os.PathLike[str]) -> None:
    """Raise now what drawing to ``path`` would raise later.

    Raises:
        MissingExtraError: matplotlib is not installed.
        InputError: the name does not end like a format that matplotlib writes.
    """
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError as error:
        raise missing_extra("matplotlib", "plots", "Drawing") from error
    formats = sorted(FigureCanvasBase.get_supported_filetypes())
    if Path(path).suffix[1:].lower() not in formats:
        raise InputError(f"{path}: a picture's name must end in one of .{', .'.join(formats)}")


def loss_curve(history: History, path: str | os.PathLike[str]) -> None:
    """Draw training and validation loss by epoch; the loss axis is logarithmic where they span more than a decade.

    Args:
        history: of at least one epoch. Where fewer epochs were validated than trained, they are taken as the last.
        path: the picture to write, its format told by the ending (.png, .svg, .pdf, …).

    Raises:
        MissingExtraError: matplotlib is not installed.
        InputError: no epochs, or an ending that is no format.
    """
    check(path)
    if not history.epochs:
        raise InputError("history has no epochs: there is no loss to draw")
    from matplotlib.figure import Figure  # no pyplot, so that a caller's own figures and backend stay as they are
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    marker = "o" if history.epochs == 1 else None  # a line of one point is invisible
    for label, losses in (("training", history.loss), ("validation", history.validation_loss)):
        if losses:
            first = history.epochs - len(losses) + 1
            axes.plot(range(first, history.epochs + 1), losses, label=label, marker=marker)
    if history.best_epoch is not None:
        label = f"kept: epoch {history.best_epoch + 1}"
        axes.axvline(history.best_epoch + 1, color="0.6", linestyle=":", label=label)
    both = history.loss + history.validation_loss
    if min(both) > 0 and max(both) > 10 * min(both):
        axes.set_yscale("log")
    axes.set_xlabel("epoch")
    axes.set_ylabel("loss")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    axes.grid(which="both", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    with replacing(path) as file:
        figure.savefig(file, format=Path(path).suffix[1:], dpi=150)
