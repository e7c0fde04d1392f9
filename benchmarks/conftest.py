"""Benchmarks: ``pytest benchmarks``. To see in a minute that they work: ``pytest benchmarks --benchmark-disable``.

``pytest`` alone does not collect them.
"""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "large: takes long on this backend; skipped where nothing is timed")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("benchmark_disable"):
        for item in items:
            if item.get_closest_marker("large"):
                item.add_marker(pytest.mark.skip(reason="large, and nothing is timed"))
