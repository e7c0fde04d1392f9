"""Use from several threads and processes, forked ones too, with any number of threads: it ends, with the same bits."""

from __future__ import annotations

import hashlib
import itertools
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from patience import attempts

import fastbp
from fastbp import MLP, optim
from fastbp.backends import threads as thread_count
from fastbp.backends.cpu.executable import CpuExecutable
from fastbp.backends.cpu.team import team
from fastbp.errors import InputError

TIMEOUT = 60  # seconds, after which something that should have ended is taken to hang
# networks whose batches are shared among threads: depth first, an instruction after the other, and not at all
SHARED = {
    "depth first": ([9, 24, 5], 2100),
    "in order": ([100, 700, 20], 300),
    "alone": ([4, 6, 5], 30),
}
KINDS = tuple(SHARED)
ADAM = optim.Adam(0.01)


def trained(seed: int, kind: str = "", dtype: str = "float32") -> MLP:
    """A network that the seed makes, after some steps."""
    layers, batch = SHARED[kind or KINDS[seed % len(KINDS)]]
    rng = np.random.default_rng(seed)
    x, t = rng.normal(size=(2 * batch, layers[0])), rng.normal(size=(2 * batch, layers[-1]))
    net = MLP(layers, activation="tanh", dtype=dtype, seed=seed)
    net.fit(x, t, epochs=3, batch_size=batch, optimizer=ADAM, shuffle=bool(seed % 2))
    return net


def train(*case) -> np.ndarray:
    """Its parameters alone."""
    return trained(*case).theta


def helper_works() -> bool:
    """Whether a thread of the team takes part in training."""
    fastbp.set_num_threads(2)
    train(0)
    for _ in attempts():
        before = team("float32").pieces_done()[1]
        train(0)
        if team("float32").pieces_done()[1] > before:
            return True
    return False


@pytest.fixture(autouse=True)
def threads_as_before():
    before = fastbp.get_num_threads()
    yield
    fastbp.set_num_threads(before)


@pytest.fixture(scope="module")
def alone():
    """What the seeds 0 … 7 give, one after the other, by one thread."""
    before = fastbp.get_num_threads()
    fastbp.set_num_threads(1)
    found = [train(seed) for seed in range(8)]
    fastbp.set_num_threads(before)
    return found


def assert_all_equal(found, expected):
    assert len(found) == len(expected)
    for got, one in zip(found, expected, strict=True):
        assert np.isfinite(got).all()
        np.testing.assert_array_equal(got, one)


@pytest.mark.parametrize("kind", KINDS)
def test_the_networks_are_what_they_are_taken_for(kind):
    layers, batch = SHARED[kind]
    lines = MLP(layers, seed=0).training_step(("X", "T"), ADAM, True).bound(batch).lines
    assert any(line.shared for line in lines) == (kind != "alone")
    assert any(line.what == "depth first" for line in lines) == (kind == "depth first")


# ---- the number of threads -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [2, 3, 8, 64])
@pytest.mark.parametrize("kind", KINDS)
def test_more_threads_than_cores(kind, threads, dtype):
    """They share what cores there are, and all leave when there is nothing to do."""
    fastbp.set_num_threads(1)
    expected = [train(seed, kind, dtype) for seed in range(3)]
    fastbp.set_num_threads(threads)
    assert_all_equal([train(seed, kind, dtype) for seed in range(3)], expected)


def test_another_number_of_threads_for_every_call(dtype):
    fastbp.set_num_threads(1)
    nets = [MLP([9, 24, 5], dtype=dtype, seed=0) for _ in range(10)]
    x, t = np.random.default_rng(0).normal(size=(2, 3000, 9))
    t = t[:, :5].copy()
    expected = nets[0].loss_and_grad(x, t)[1], nets[0].forward(x)
    for net, threads in itertools.product(nets, (8, 1, 2, 5, 3, 8, 1, 4, 2)):
        fastbp.set_num_threads(threads)
        assert fastbp.get_num_threads() == threads
        np.testing.assert_array_equal(net.loss_and_grad(x, t)[1], expected[0])
        np.testing.assert_array_equal(net.forward(x), expected[1])


def test_the_number_of_threads_changes_in_the_middle_of_training():
    """... from a callback, and from another thread."""
    seen, stop = [], threading.Event()

    def meddle():
        while not stop.wait(0.001):
            fastbp.set_num_threads(1 + len(seen) % 4)

    def callback(net, history):
        seen.append(net.theta.copy())
        fastbp.set_num_threads(1 + len(seen) % 5)

    x, t = np.random.default_rng(0).normal(size=(2, 4200, 5))
    nets = [MLP([5, 24, 5], seed=0) for _ in range(2)]
    fastbp.set_num_threads(1)
    nets[0].fit(x, t, epochs=30, batch_size=2100)
    thread = threading.Thread(target=meddle)
    thread.start()
    try:
        nets[1].fit(x, t, epochs=30, batch_size=2100, callbacks=[callback])
    finally:
        stop.set()
        thread.join()
    assert len(seen) == 30
    np.testing.assert_array_equal(nets[0].theta, nets[1].theta)


def test_no_thread_writes_behind_the_workspace(monkeypatch):
    """A thread that is late from a call with more threads than the next one has no memory there, so it must not work.

    What it does depends on the moment: this notices once in a while, in the order of seconds.
    """
    net = MLP([9, 24, 5], seed=0)
    x, t = np.random.default_rng(0).normal(size=(2, 3000, 9))
    net.loss_and_grad(x, t[:, :5])
    guard = [np.empty(0)]

    def borrow(self, size):
        workspace = np.full(size + (1 << 20), 0xA5, np.uint8)
        guard[0] = workspace[size:]
        return workspace

    monkeypatch.setattr(CpuExecutable, "_borrow", borrow)
    for threads in (64, 2) * 100:
        fastbp.set_num_threads(threads)
        net.loss_and_grad(x, t[:, :5])
        assert len(guard[0]) == 1 << 20
        assert (guard[0] == 0xA5).all()


ASK = """
import hashlib, numpy as np, fastbp
from test_safe_use import train
found = b"".join(train(seed).tobytes() for seed in range(3))
print(fastbp.get_num_threads(), hashlib.sha256(found).hexdigest())
"""


def in_a_process(code, **environment):
    path = os.pathsep.join(sys.path)
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT,
    )


@pytest.mark.parametrize("threads", ["1", "3", "16"])
def test_the_environment_says_how_many_threads(threads, alone):
    run = in_a_process(ASK, FASTBP_NUM_THREADS=threads)
    assert run.returncode == 0, run.stderr
    digest = hashlib.sha256(b"".join(theta.tobytes() for theta in alone[:3])).hexdigest()
    assert run.stdout.split() == [threads, digest]


@pytest.mark.parametrize("wrong", ["0", "-1", "257", "two", "", "1.5", " 2", "²", "1e1"])
def test_a_wrong_number_in_the_environment_is_refused(wrong, monkeypatch):
    monkeypatch.setattr(thread_count, "_threads", None)
    monkeypatch.setenv("FASTBP_NUM_THREADS", wrong)
    with pytest.raises(InputError, match=r"FASTBP_NUM_THREADS='.*' must be an integer from 1 to 256"):
        fastbp.get_num_threads()


def test_without_the_environment_it_is_the_cores(monkeypatch):
    monkeypatch.setattr(thread_count, "_threads", None)
    monkeypatch.delenv("FASTBP_NUM_THREADS", raising=False)
    monkeypatch.setattr(thread_count.os, "sched_getaffinity", lambda _: {0, 3, 7, 8, 9}, raising=False)
    monkeypatch.setattr(thread_count, "_quota", lambda cores: 3)
    assert fastbp.get_num_threads() == 3
    monkeypatch.setattr(thread_count, "_threads", None)
    monkeypatch.setattr(thread_count, "_quota", lambda cores: 64)
    assert fastbp.get_num_threads() == 5


def test_the_environment_is_asked_once(monkeypatch):
    """... and set_num_threads comes first."""
    monkeypatch.setattr(thread_count, "_threads", None)
    monkeypatch.setenv("FASTBP_NUM_THREADS", "2")
    assert fastbp.get_num_threads() == 2
    monkeypatch.setenv("FASTBP_NUM_THREADS", "wrong")
    assert fastbp.get_num_threads() == 2
    fastbp.set_num_threads(3)
    assert fastbp.get_num_threads() == 3


# ---- threads of Python ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_python_threads_that_fit_different_networks(threads, alone):
    fastbp.set_num_threads(threads)
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            assert_all_equal(list(pool.map(train, range(8), timeout=TIMEOUT)), alone)


def test_python_threads_of_both_dtypes():
    """Each dtype has a team of its own."""
    fastbp.set_num_threads(2)
    jobs = [(seed, kind, dtype) for seed in range(2) for kind in KINDS for dtype in ("float32", "float64")]
    expected = [train(*job) for job in jobs]
    with ThreadPoolExecutor(4) as pool:
        assert_all_equal(list(pool.map(lambda job: train(*job), jobs, timeout=TIMEOUT)), expected)


def test_a_thread_of_python_that_ends_leaves_the_team_to_others(alone):
    fastbp.set_num_threads(2)
    for seed in range(8):
        found = []
        thread = threading.Thread(target=lambda s=seed, f=found: f.append(train(s)))
        thread.start()
        thread.join(TIMEOUT)
        assert_all_equal(found, alone[seed : seed + 1])


def test_the_team_is_given_back_after_an_error(alone):
    """Whatever ends a run, the next one has helpers again."""
    fastbp.set_num_threads(2)
    train(0)
    ours = team("float32")
    with pytest.raises(TypeError):
        ours.run(2, ("no address",) * 6)
    assert helper_works()
    assert_all_equal([train(0)], alone[:1])


def test_helpers_sleep_when_nothing_comes(alone):
    """They wait awake for the next run, but not for long; whoever sleeps is woken."""
    assert helper_works()
    ours = team("float32")
    end = time.monotonic() + TIMEOUT
    while not all(ours._asleep) and time.monotonic() < end:
        time.sleep(1e-3)
    assert all(ours._asleep)
    assert helper_works()
    assert_all_equal([train(0)], alone[:1])


# ---- processes -----------------------------------------------------------------------------------------------------

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
# since Python 3.12 a fork of a process with threads warns, and one of a process that has imported JAX
may_warn = pytest.mark.filterwarnings("ignore:.*fork")


def in_children(seeds):
    """train(seed) for each of the seeds, in two forked processes."""
    with multiprocessing.get_context("fork").Pool(2) as pool:
        return pool.map_async(train, seeds).get(TIMEOUT)


@forks
@may_warn
@pytest.mark.parametrize("threads", [1, 2, 8])
def test_children_of_a_process_that_has_trained(threads, alone):
    """The threads of the team do not survive a fork: the child hires its own; the parent's go on."""
    fastbp.set_num_threads(threads)
    for _ in range(2):
        assert_all_equal([train(seed) for seed in range(2)], alone[:2])
        assert_all_equal(in_children(range(8)), alone)
    assert_all_equal([train(seed) for seed in range(8)], alone)


def test_a_process_may_end_while_its_helpers_are_awake():
    code = """
import numpy as np, fastbp
fastbp.set_num_threads(2)
net = fastbp.MLP([200, 300, 10], seed=0)
for _ in range(3):
    net.loss_and_grad(np.ones((2000, 200)), np.ones((2000, 10)))
print("done")
"""
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=TIMEOUT)
        assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


@forks
@may_warn
def test_a_child_has_a_team_of_its_own():
    assert helper_works()
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply_async(helper_works).get(TIMEOUT)
    assert helper_works()


@forks
@may_warn
def test_a_fork_while_another_thread_trains(alone):
    """The child's copy of the team is free, whoever had the parent's."""
    fastbp.set_num_threads(2)
    stop, count = threading.Event(), []

    def keep_training():
        while not stop.is_set():
            train(0)
            count.append(1)

    thread = threading.Thread(target=keep_training)
    thread.start()
    try:
        for _ in range(5):
            assert_all_equal(in_children((0, 1, 3)), [alone[0], alone[1], alone[3]])
    finally:
        stop.set()
        thread.join(TIMEOUT)
    assert count
    assert_all_equal([train(0)], alone[:1])


@forks
@may_warn
def test_a_child_of_a_child(alone):
    fastbp.set_num_threads(2)
    train(0)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            train(0)
            grandchild = os.fork()
            same = np.array_equal(train(1), alone[1])
            if grandchild == 0:
                os._exit(0 if same else 1)
            status = 0 if same and os.waitpid(grandchild, 0)[1] == 0 else 1
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("backend", ["loky", "threading", "multiprocessing"])
@may_warn
def test_joblib(backend, alone):
    joblib = pytest.importorskip("joblib")
    fastbp.set_num_threads(2)
    train(0)
    with joblib.parallel_config(backend=backend, n_jobs=2):
        found = joblib.Parallel(timeout=TIMEOUT)(joblib.delayed(train)(seed) for seed in range(8))
    assert_all_equal(found, alone)
    if backend == "loky":
        joblib.externals.loky.get_reusable_executor().shutdown()


@may_warn
def test_networks_travel_between_processes():
    """A trained network comes back whole, and goes on as if it had never been away."""
    joblib = pytest.importorskip("joblib")
    here = trained(3)
    (there,) = joblib.Parallel(n_jobs=2, timeout=TIMEOUT)([joblib.delayed(trained)(3)])
    joblib.externals.loky.get_reusable_executor().shutdown()
    x, t = np.random.default_rng(0).normal(size=(2, 2100, 9))
    for net in (here, there):
        net.fit(x, t[:, :5], epochs=2, batch_size=2100)
    np.testing.assert_array_equal(here.theta, there.theta)
    assert here.history.loss == there.history.loss
    assert there.training.state.step == here.training.state.step
