"""Memory: a step allocates nothing, training does not grow, a batch of any size needs workspace for its chunk only."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from numba import njit
from numba.core.runtime import _nrt_python, rtsys

from fastbp import MLP, optim

RNG = np.random.default_rng(0)
# layers, rows, batch, steps, and what else the network and fit are given
CASES = {
    "tiny": ([4, 6, 3], 600, 6, 10_000, {}, {"shuffle": False}),
    "tiny, shuffled labels": ([4, 6, 3], 600, 7, 10_000, {"loss": "cross_entropy"}, {}),
    "tiny, drawn and weighted": ([4, 6, 3], 600, 6, 10_000, {}, {"sampling": "replacement", "sample_weight": 1}),
    "fused update": ([300, 10, 3], 400, 10, 10_000, {}, {}),
    "depth first": ([6, 12, 3], 11_000, 1100, 10_000, {}, {"shuffle": False}),
    "depth first, shuffled labels": ([6, 12, 3], 11_500, 1100, 10_000, {"loss": "cross_entropy"}, {}),
    "packed": ([130, 600, 100], 520, 520, 100, {}, {}),
}


def training(name, dtype="float32"):
    """A network of CASES that has been trained for an epoch, a function that trains on, and the steps of an epoch."""
    layers, rows, batch, steps, options, how = CASES[name]
    net = MLP(layers, dtype=dtype, seed=0, **options)
    x = RNG.normal(size=(rows, layers[0])).astype(dtype)
    t = RNG.integers(0, layers[-1], rows) if options else RNG.normal(size=(rows, layers[-1])).astype(dtype)
    how = {k: RNG.random(rows).astype(dtype) if k == "sample_weight" else v for k, v in how.items()}
    per_epoch = -(-rows // batch)

    def go_on(epochs, progress=False):
        net.fit(x, t, epochs=epochs, batch_size=batch, optimizer=optim.SGD(1e-5), progress=progress, **how)

    go_on(1)
    return net, go_on, steps, per_epoch


# ---- allocations ---------------------------------------------------------------------------------------------------


@pytest.fixture
def allocations():
    """Numba's count of what compiled code has allocated and freed, switched on for the test."""
    _nrt_python.memsys_enable_stats()
    yield rtsys.get_allocation_stats
    _nrt_python.memsys_disable_stats()


@pytest.mark.parametrize("name", CASES)
def test_steps_allocate_nothing(name, dtype, two_threads, allocations):
    net, go_on, steps, per_epoch = training(name, dtype)
    before, first = allocations(), net.training.state.step
    go_on(-(-steps // per_epoch))
    assert net.training.state.step - first >= steps
    assert allocations() == before


def test_the_count_would_notice(allocations):
    """The test above is worth something: an array made in compiled code does count."""
    make = njit(lambda n: np.empty(n).size)
    make(3)
    before = allocations()
    make(3)
    assert allocations().alloc == before.alloc + 1


# ---- the high-water mark -------------------------------------------------------------------------------------------

needs_proc = pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="the system has no /proc/self/status")
HIGH_WATER = """
    import json, sys
    import numpy as np
    import fastbp

    def status(word):
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) << 10 for line in file if line.startswith(word + ":"))
"""


def in_a_process(code: str, *arguments: str) -> dict[str, int]:
    """What a fresh process, whose high-water mark is its own, prints as JSON."""
    training("tiny")  # so that the kernels are on disk: compiling them takes more memory than anything here
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(HIGH_WATER) + textwrap.dedent(code), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "FASTBP_NUM_THREADS": "2", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert run.returncode == 0, run.stderr
    found: dict[str, int] = json.loads(run.stdout)
    return found


GROWTH = """
    from fastbp import training as slices
    from test_steady_state import CASES, training

    slices.MOST_STEPS = 14  # what a slice holds (its losses, its order of the rows) is the same from the start on
    FIRST, LAST = 1_000, 10_000

    class Leak:
        def __init__(self):
            self.kept = []
        def slice(self, *_):
            self.kept += [bytes(200) for _ in range(14)]
        def epoch(self, history): ...
        def close(self): ...

    def grown(net, go_on, steps, per_epoch, progress=False):
        before = status("VmHWM")
        go_on((LAST - FIRST) // per_epoch, progress)
        return status("VmHWM") - before

    trained = {name: training(name) for name in CASES if CASES[name][3] == LAST}
    for net, go_on, _, per_epoch in trained.values():
        go_on(-(-FIRST // per_epoch))
    found = {name: grown(*one) for name, one in trained.items()}
    found["a leak"] = grown(*trained["tiny"], progress=Leak())
    print(json.dumps(found))
"""
SLACK = 1 << 20  # bytes; the kernel counts pages by the dozen, and Python's allocator takes memory 1 MB at a time


@pytest.fixture(scope="module")
def grown():
    return in_a_process(GROWTH)


@needs_proc
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case[3] == 10_000])
def test_the_high_water_mark_stays_where_it_was_after_1000_steps(name, grown):
    assert grown[name] <= SLACK


@needs_proc
def test_the_high_water_mark_would_notice(grown):
    """... 200 bytes a step that are not given back."""
    assert grown["a leak"] > SLACK


# ---- one batch of a million rows -----------------------------------------------------------------------------------

MILLION = """
    rows = 10**6
    net = fastbp.MLP([64] * 6, seed=0)
    small = np.ones((8, 64), np.float32)
    net.fit(small, small, epochs=1)  # loads the kernels, whose memory is not the batch's
    x = np.empty((rows, 64), np.float32)
    np.random.default_rng(0).random(out=x, dtype=np.float32)
    t, weight = x.copy(), np.ones(rows, np.float32)
    once = {"epochs": 1, "batch_size": rows}
    calls = {
        "loss": lambda: net.loss(x, t),
        "gradient": lambda: net.loss_and_grad(x, t),
        "in order": lambda: net.fit(x, t, shuffle=False, **once),
        "in order, weighted": lambda: net.fit(x, t, shuffle=False, sample_weight=weight, **once),
        "shuffled": lambda: net.fit(x, t, **once),
    }
    found = {"data": x.nbytes + t.nbytes + weight.nbytes, "before": status("VmRSS"), "mark before": status("VmHWM")}
    for what, call in calls.items():
        call()
        found[what] = status("VmHWM")
    print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def marks():
    return in_a_process(MILLION)


@needs_proc
def test_the_measurement_begins_with_all_data_in_memory(marks):
    """... and nothing before it took more, or it would hide what comes."""
    assert marks["before"] >= marks["data"]
    assert marks["mark before"] - marks["before"] < 16e6


@needs_proc
@pytest.mark.parametrize("what", ["loss", "gradient", "in order", "in order, weighted", "shuffled"])
def test_a_batch_of_a_million_rows_fits_beside_its_data(what, marks):
    """Five layers of 64: their activations alone would take 1.3 GB."""
    assert marks[what] - marks["data"] < 300e6  # Python, Numba and the kernels included;
    assert marks[what] - marks["before"] < 64e6  # of the batch's own, gradients of pieces, weights and orders of rows
