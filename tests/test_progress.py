"""The progress bar: what it shows in a terminal and in a log, and that nothing is left behind."""

from __future__ import annotations

import functools
import io
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import rich.console

import fastbp
from fastbp import progress
from fastbp.errors import DivergedError, MissingExtraError
from fastbp.progress import TerminalReporter

RNG = np.random.default_rng(0)
X = RNG.standard_normal((60, 3))
T = (X[:, 0] > 0).astype(np.int64)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    """Stderr as a terminal of 100 columns."""
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "LINES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    screen = Terminal()
    monkeypatch.setattr(rich.console, "Console", functools.partial(rich.console.Console, file=screen))
    return screen


def plain(screen):
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())


def network():
    return fastbp.MLP([3, 4, 2], loss="cross_entropy", backend="numpy", seed=1)


def test_fit_draws_a_bar_and_finishes_it(terminal):
    history = network().fit(X, T, epochs=3, validation=(X, T), progress=True)
    last = plain(terminal).strip().splitlines()[-1]
    assert last.startswith("epoch 3/3 ")
    assert f"loss {history.loss[-1]:.4g}" in last
    assert f"score {history.validation_score[-1]:.4f}" in last
    assert re.search(r"[\d,.]+( M)? rows/s  0:00 left", last)
    shown, hidden = "\x1b[?25h", "\x1b[?25l"  # the cursor
    assert terminal.getvalue().rindex(shown) > terminal.getvalue().rindex(hidden)


def test_no_bar_is_left_behind_by_an_error(terminal):
    net = fastbp.MLP([3, 4, 1], backend="numpy", seed=1)
    with pytest.raises(DivergedError):
        net.fit(X * 1e3, X[:, :1] * 1e3, epochs=50, optimizer=fastbp.optim.SGD(1e3), progress=True)
    assert terminal.getvalue().count("\x1b[?25h") == terminal.getvalue().count("\x1b[?25l")


def test_rate_and_time_left(terminal, monkeypatch):
    clock = iter([0.0, 10.0, 20.0, 20.0])
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    reporter = TerminalReporter(epochs=4, rows=1000)
    reporter.slice(0, 0.25, 0.5, 2000.0)  # the first slice may have waited for a compiler: the clock starts at its end
    reporter.slice(1, 0.50, 0.5, 1000.0)
    reporter.close()
    last = plain(terminal).strip().splitlines()[-1]
    assert last.startswith("epoch 2/4 ")
    assert last.endswith("loss 0.5  1,333 rows/s  0:20 left")  # 2000 rows in 0.5 + 1 s; a quarter takes 10 s


def test_80_columns_are_enough(terminal, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    clock = iter([0.0, 10.0, 5990.0, 5990.0, 5990.0])
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    reporter = TerminalReporter(epochs=1000, rows=60_000)
    reporter.slice(0, 0.001, 0.5, 12_345_678.0)
    reporter.epoch(fastbp.History(loss=[0.00012345], validation_score=[0.96944]))
    reporter.slice(500, 0.5005, 0.5, 12_345_678.0)
    reporter.close()
    last = plain(terminal).strip().splitlines()[-1]
    assert last.startswith("epoch 501/1000 ")
    assert last.endswith(" loss 0.0001234  score 0.9694  12.35 M rows/s  99:40 left")
    assert len(last) <= 80


def test_close_is_idempotent_and_needs_no_slice(terminal):
    reporter = TerminalReporter(2, 10)
    reporter.close()
    assert terminal.getvalue() == ""
    reporter.slice(0, 0.5, 0.3, 100.0)
    reporter.close()
    drawn = terminal.getvalue()
    reporter.close()
    assert terminal.getvalue() == drawn


def test_a_short_training_leaves_a_log_empty(capsys):
    network().fit(X, T, epochs=3, progress=True)
    assert capsys.readouterr() == ("", "")


def test_a_log_gets_a_plain_line_an_epoch(capsys, monkeypatch):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    history = network().fit(X, T, epochs=2, validation=(X, T), progress=True)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert [line.split("  ")[0] for line in lines] == ["epoch 1/2", "epoch 2/2"]
    assert f"loss {history.loss[0]:.4g}  score {history.validation_score[0]:.4f}" in lines[0]
    assert "\x1b" not in err


def test_lines_of_a_log_keep_their_distance(capsys, monkeypatch):
    times = iter([0.0] + [t for second in range(1, 31) for t in (second, second)])
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(times)))
    reporter = TerminalReporter(30, 10)
    history = fastbp.History()
    for epoch in range(1, 31):
        reporter.slice(epoch, epoch / 30, 0.5, 10.0)
        history.loss.append(0.5)
        reporter.epoch(history)
    reporter.close()
    assert [line.split("  ")[0] for line in capsys.readouterr().err.splitlines()] == [
        "epoch 10/30",
        "epoch 20/30",
        "epoch 30/30",
    ]


def test_scores_of_an_earlier_fit_are_not_shown(capsys, monkeypatch):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    net = network()
    net.fit(X, T, epochs=1, validation=(X, T))
    net.fit(X, T, epochs=1, progress=True)
    assert "score" not in capsys.readouterr().err


def test_without_rich_fit_names_the_extra(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "rich"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=r"'rich': pip install 'fastbp\[cli\]'"):
        network().fit(X, T, epochs=1, progress=True)
