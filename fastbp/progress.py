"""A progress bar in the terminal while ``fit`` runs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from fastbp.errors import missing_extra
from fastbp.history import History

if TYPE_CHECKING:
    from rich.progress import Progress

REDRAW_SECONDS = 0.1
LINE_SECONDS = 10.0  # between lines where there is no terminal: a log of a short training stays empty


class TerminalReporter:
    """Draws one bar over all epochs on stderr; see :class:`fastbp.history.Reporter`.

    Where stderr is no terminal it writes a plain line instead, at the end of an epoch and at most every 10 seconds.

    Args:
        epochs: of this call of ``fit``.
        rows: of an epoch.

    Raises:
        MissingExtraError: rich is not installed.
    """

    def __init__(self, epochs: int, rows: int) -> None:
        try:
            from rich.console import Console
        except ImportError as error:
            raise missing_extra("rich", "cli", "A progress bar") from error
        self._console = Console(stderr=True, markup=False, highlight=False)
        self._live = self._console.is_terminal and not self._console.is_dumb_terminal
        self._epochs = epochs
        self._rows = epochs * rows
        self._epoch = 0
        self._done = 0.0
        self._busy = 0.0  # seconds inside slices
        self._batch_loss = 0.0
        self._loss: float | None = None  # the mean of the last epoch that ended
        self._score: float | None = None
        self._first: tuple[float, float] | None = None  # when the first slice had ended, and what was done then
        self._drawn = time.monotonic()
        self._bar: Progress | None = None

    def slice(self, epoch: int, done: float, loss: float, rows_a_second: float) -> None:
        now = time.monotonic()
        self._busy += (done - self._done) * self._rows / rows_a_second
        self._done, self._batch_loss = done, loss
        self._epoch = epoch + (done * self._epochs > epoch + 1e-6)  # begun, not ended; rounding must not begin one
        self._first = self._first or (now, done)
        if self._live and (self._bar is None or now - self._drawn >= REDRAW_SECONDS):
            self._draw(now)

    def epoch(self, history: History) -> None:
        self._loss = history.loss[-1]
        # An earlier fit may have left scores that say nothing about this epoch.
        scored = len(history.validation_score) == history.epochs
        self._score = history.validation_score[-1] if scored else None
        now = time.monotonic()
        if not self._live and now - self._drawn >= LINE_SECONDS:
            self._drawn = now
            self._console.print(f"epoch {self._epoch}/{self._epochs}  {self._figures(now)}", soft_wrap=True)

    def close(self) -> None:
        if self._bar is not None:
            self._draw(time.monotonic())
            self._bar.stop()
            self._bar = None

    def _draw(self, now: float) -> None:
        if self._bar is None:  # only now, because what fails before the first step must not leave a bar behind
            self._bar = self._make_bar()
        self._drawn = now
        self._bar.update(
            self._bar.task_ids[0],
            completed=self._done,
            description=f"epoch {self._epoch}/{self._epochs}",
            figures=self._figures(now),
        )
        self._bar.start()  # does nothing the second time
        self._bar.refresh()

    def _make_bar(self) -> Progress:
        from rich.progress import BarColumn, Progress, TextColumn

        # No refreshing thread: it would take time from the kernels, and slices come often enough.
        bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[figures]}", markup=False),
            console=self._console,
            auto_refresh=False,
            expand=True,
        )
        bar.add_task("", total=1.0, figures="")
        return bar

    def _figures(self, now: float) -> str:
        """Loss, validation score if any, rows a second inside the slices so far, and the time left by the clock.

        The loss of a single batch jumps about, so it is shown only until an epoch has ended.
        """
        figures = [f"loss {self._batch_loss if self._loss is None else self._loss:.4g}"]
        if self._score is not None:
            figures.append(f"score {self._score:.4f}")
        rate = self._done * self._rows / self._busy
        figures.append(f"{rate:,.0f} rows/s" if rate < 1e6 else f"{rate / 1e6:.2f} M rows/s")  # fits 80 columns
        if self._first is not None and self._done > self._first[1]:
            began, at = self._first
            left = round((now - began) * (1.0 - self._done) / (self._done - at))
            figures.append(f"{left // 60}:{left % 60:02d} left")
        return "  ".join(figures)
