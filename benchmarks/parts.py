"""The parts of a long run: processes of their own with a share of the time, whose end never ends the run.

A part keeps records (see records.py). Where its process is lost (killed, without its device, silent for too long) it is
started again and goes on behind the item that it was lost with, as long as every start brings it further.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from records import ENV, SECONDS, collected

POLL = 0.1  # seconds
NO_TIME = "no time"
TAIL = 4000  # characters of the output that are kept of a part that failed


@dataclass(frozen=True)
class Part:
    """One process of the run.

    Attributes:
        command: to be run in the current folder; it finds the path of its records, and how many seconds it has, in the
            environment.
        share: seconds that it should have, all starts together: see ``allotted``; least: fewer are not worth a start.
        silence: seconds without a new record after which a start is over.
        fine: exit statuses of a process that has come to its end.
        why_not: why it cannot run here, "" if it can.
        last_word: an item more, from all that it printed.
    """

    name: str
    command: tuple[str, ...]
    share: float
    least: float = 10.0
    silence: float = 90.0
    fine: tuple[int, ...] = (0,)
    why_not: str = ""
    last_word: Callable[[str], dict[str, Any]] | None = None


@dataclass
class Outcome:
    """What became of a part.

    Attributes:
        state: "done", "failed" (its process ended otherwise), "out of time", "skipped".
        starts: how often it was started.
        why: it is not done; output: the end of what it printed, then.
    """

    name: str
    state: str
    seconds: float = 0.0
    starts: int = 0
    why: str = ""
    output: str = ""
    items: list[dict[str, Any]] = field(default_factory=list)


def run_stages(
    stages: Sequence[Sequence[Part]], folder: Path, seconds: float, ended: Callable[[Outcome], None]
) -> list[Outcome]:
    """Run the stages one after the other, the parts of a stage side by side, for so many seconds in all.

    Args:
        ended: called with every outcome as soon as it is there.
    """
    deadline = time.monotonic() + seconds
    shares = [max((part.share for part in stage if not part.why_not), default=0.0) for stage in stages]
    outcomes: list[Outcome] = []
    for k, stage in enumerate(stages):
        here = functools.partial(
            _noted, folder=folder, seconds=allotted(shares[k:], deadline - time.monotonic()), ended=ended
        )
        with ThreadPoolExecutor(len(stage)) as pool:
            outcomes += pool.map(here, stage)
    return outcomes


def allotted(shares: Sequence[float], left: float) -> float:
    """Seconds for the first of the stages to come: its share if so much is left, and more where all have more."""
    total = sum(shares)
    return min(left, shares[0] * max(1.0, left / total)) if total else 0.0


def _noted(part: Part, folder: Path, seconds: float, ended: Callable[[Outcome], None]) -> Outcome:
    try:
        outcome = run_part(part, folder, seconds)
    except Exception as error:  # whatever it is, the other parts go on
        outcome = Outcome(part.name, "failed", why=f"{type(error).__name__}: {error}")
    ended(outcome)
    return outcome


def run_part(part: Part, folder: Path, seconds: float) -> Outcome:
    """Run one part for so many seconds at most."""
    if part.why_not:
        return Outcome(part.name, "skipped", why=part.why_not)
    if seconds < part.least:
        return Outcome(part.name, "skipped", why=f"no time: {max(0.0, seconds):.0f} s were left")
    records, log = folder / f"{part.name}.jsonl", folder / f"{part.name}.log"
    records.unlink(missing_ok=True)
    log.unlink(missing_ok=True)
    began = time.monotonic()
    end = began + seconds
    outcome = Outcome(part.name, "done")
    items: list[dict[str, Any]] = []
    while True:
        outcome.starts += 1
        known = len(items)
        status, why = _start(part, records, log, end)
        items = _with_reasons(collected(records, why), items)
        further = len(items) > known
        if status in part.fine:
            break
        outcome.state, outcome.why = "failed", why
        if time.monotonic() > end:
            outcome.state = "out of time"
            break
        if not further or status == 1:  # an ordinary error, which would come again
            break
        outcome.state, outcome.why = "done", ""
    outcome.seconds = round(time.monotonic() - began, 1)
    outcome.items = [i | {"state": "skipped"} if i["state"] == "lost" and i["why"] == NO_TIME else i for i in items]
    printed = log.read_text(encoding="utf-8", errors="replace")
    if part.last_word is not None and outcome.state == "done":
        outcome.items.append(part.last_word(printed))
    if outcome.state != "done" or any(i["state"] in ("failed", "lost") for i in items):
        outcome.output = printed[-TAIL:]
    return outcome


def _with_reasons(items: list[dict[str, Any]], before: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The items, where those that were lost before keep the reason that was given then."""
    kept = {i["item"]: i for i in before if i["state"] == "lost"}
    return [kept.get(i["item"], i) if i["state"] == "lost" else i for i in items]


def _start(part: Part, records: Path, log: Path, end: float) -> tuple[int, str]:
    """Start the process and wait for its end, or end it; its exit status, and what there is to say about it."""
    left = f"{max(0.0, end - time.monotonic()):.1f}"
    environment = {**os.environ, ENV: str(records), SECONDS: left, "PYTHONUNBUFFERED": "1"}
    with open(log, "ab") as output:
        process = subprocess.Popen(
            part.command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    size, news = -1, time.monotonic()
    while process.poll() is None:
        now = time.monotonic()
        current = records.stat().st_size if records.exists() else 0
        if current != size:
            size, news = current, now
        if now > end or now - news > part.silence:
            _kill(process)
            return -signal.SIGKILL, NO_TIME if now > end else f"no news for {part.silence:.0f} s"
        time.sleep(POLL)
    status = process.returncode
    return status, f"ended by signal {-status}" if status < 0 else f"exit status {status}"


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End it, and whatever it has started."""
    for how, seconds in ((signal.SIGTERM, 2.0), (signal.SIGKILL, 10.0)):
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, how)
            process.wait(seconds)
