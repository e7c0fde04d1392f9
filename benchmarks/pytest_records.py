"""A plugin of pytest's that keeps records (see records.py): ``FASTBP_RECORDS=FILE pytest -p pytest_records``.

What a test says by ``record_property`` is in its record. Tests that were begun before are left out; when the device is
lost, as it is to a process after an illegal address, pytest ends with DEVICE_LOST, to be started again.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from records import DEVICE_LOST, ENV, Records, device_lost


class Keeper:
    """Writes a line when a test begins and one when it ends."""

    def __init__(self, records: Records, lost: Callable[[], str] = device_lost) -> None:
        self.records = records
        self.lost = lost

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Leave out what was begun before."""
        done = [item for item in items if item.nodeid in self.records.before]
        items[:] = [item for item in items if item.nodeid not in self.records.before]
        config.hook.pytest_deselected(items=done)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file that cannot be imported, or is left out."""
        if report.outcome != "passed":
            self.records.end(report.nodeid, report.outcome, why=_why(report))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """A test begins."""
        self.records.begin(nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test, or what is done before or after it, has ended."""
        if report.when == "call" or report.outcome != "passed":
            found = dict(report.user_properties)
            why = {"why": _why(report)} if report.outcome != "passed" else {}
            self.records.end(report.nodeid, report.outcome, seconds=round(report.duration, 3), **found, **why)
        if report.outcome == "failed" and (error := self.lost()):
            pytest.exit(f"the device is lost: {error}", returncode=DEVICE_LOST)


def _why(report: pytest.TestReport | pytest.CollectReport) -> str:
    if isinstance(report.longrepr, tuple):  # of what is skipped: file, line, reason
        return str(report.longrepr[2])
    return str(report.longrepr)[-2000:]


def pytest_configure(config: pytest.Config) -> None:
    """Keep records if there is a file to keep them in."""
    if path := os.environ.get(ENV):
        config.pluginmanager.register(Keeper(Records(Path(path))))
