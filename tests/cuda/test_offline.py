"""Every kernel compiles for every target, without a driver: no spills, no stack; registers and memory that fit."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from numba import cuda

from fastbp.backends.cuda import offline
from fastbp.backends.cuda.device import at
from fastbp.backends.cuda.kernels import KERNELS

REGISTERS, SHARED = 65_536, 99 << 10  # of a multiprocessor; bytes that a block may have on the cards that have least
SLACK = 8  # registers by which one version of ptxas may differ from another
TABLE = Path(__file__).parents[2] / "docs" / "gpu-kernels.md"
CASES = [(name, dtype) for dtype, kernels in KERNELS.items() for name in kernels]
CASES.sort(key=lambda case: not case[0].startswith("blocks"))  # the longest first: two processes share them
# two minutes, if sources have changed; if not, blocks_tf32 and bf16_small show that the table is theirs
COVERED = ("blocks", "blocks_bf16", "tf32_small", "tf32_large", "bf16_large")


class Row(NamedTuple):
    threads: int
    registers: int
    shared: int
    spills: int
    stack: int
    wide: int  # loads of 128 bits
    tensor: int


@cache
def budget():
    """Registers and bytes of shared memory by kernel, dtype and target, as the documentation has them."""
    return {case: (row.registers, row.shared) for case, row in table().items()}


@cache
def table():
    """Numbers of the documentation's rows by kernel, dtype and target."""
    rows = [line.strip("| ").split(" | ") for line in TABLE.read_text(encoding="utf-8").splitlines() if "| sm_" in line]
    return {tuple(row[:3]): Row(*map(int, row[3:])) for row in rows}


def test_the_table_has_every_kernel():
    assert set(budget()) == {(*case, target) for case in CASES for target in offline.TARGETS}


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_what_the_table_says_is_allowed(name, dtype):
    """Also of those that are not compiled again, see COVERED."""
    kernel = KERNELS[dtype][name]
    for target in offline.TARGETS:
        row = table()[name, dtype, target]
        assert (row.threads, row.shared) == (kernel.threads, kernel.shared)
        assert (row.spills, row.stack) == (0, 0)
        assert row.registers * row.threads <= REGISTERS
        assert row.shared <= SHARED
        assert row.wide or not kernel.wide
        assert row.tensor or not ("tf32" in name or "bf16" in name)


def is_as_in_the_table() -> bool:
    """Whether the table was made of these very sources, by this compiler."""
    return offline.origin() in TABLE.read_text(encoding="utf-8")


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_kernel(name, dtype):
    """On all targets in one test, which share the PTX; one's instructions say what all have."""
    if name in COVERED and is_as_in_the_table():
        pytest.skip("docs/gpu-kernels.md has been made of these very sources")
    for target in offline.TARGETS:
        if target == "sm_90a" and not name.startswith("product"):
            continue  # a minute in all for what products show, too: that the letter changes nothing
        found = offline.resources(KERNELS[dtype][name].function, dtype, target, opcodes=target == "sm_90")
        check(name, dtype, target, found)
        if target == "sm_90":
            check_opcodes(name, KERNELS[dtype][name].wide, found)


@pytest.mark.parametrize("name", ["combine", "product_large"])
def test_targets_have_the_same_ptx(name):
    """But for their names, which count what was compiled: so it is made once for all of them."""

    def plain(ptx):
        numbers = {}
        return re.sub(r"_Z\w+", lambda found: f"name {numbers.setdefault(found[0], len(numbers))}", ptx)

    function = KERNELS["float32"][name].function
    first, other = (plain(offline.ptx(function, "float32", capability)) for capability in ((8, 0), (9, 0)))
    assert other.count(".target sm_90") == 1
    assert first == other.replace(".target sm_90", ".target sm_80")


def test_the_letter_changes_nothing():
    assert all(needs == budget()[*case, "sm_90a"] for (*case, target), needs in budget().items() if target == "sm_90")


def check(name, dtype, target, found):
    kernel = KERNELS[dtype][name]
    registers, shared = budget()[name, dtype, target]
    assert abs(found.registers - registers) <= SLACK, (
        "renew docs/gpu-kernels.md: python -m fastbp.backends.cuda.offline"
    )
    assert kernel.shared == shared
    assert found.spills == 0
    assert found.local == 0
    assert found.stack == 0
    assert found.registers * kernel.threads <= REGISTERS
    assert kernel.shared <= SHARED


def check_opcodes(name, wide, found):
    assert found.opcodes
    if wide:
        of_128 = "LDG.E.128", "LD.E.128", "LDGSTS.E.BYPASS.128"  # of blocks that do many things: from any memory
        assert sum(map(found.count, of_128))
    if "tf32" in name or "bf16" in name:
        assert found.count("HMMA")


def wasteful(words, slots, one):
    """A local array with an index that is not known."""
    d, x = at(words, np.int64(1), np.int32(0)), at(slots, one, np.int32(0))
    kept = cuda.local.array(64, np.float32)
    for k in range(64):
        kept[k] = x[k]
    x[0] = kept[d[0]]


def test_local_memory_is_seen():
    found = offline.resources(wasteful, "float32", "sm_80")
    assert found.stack >= 256
    assert found.count("LDL")
