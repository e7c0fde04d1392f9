"""Nothing is compiled per network; kernels are kept on disk, and what can go wrong with that."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numba.core import event

import fastbp
from fastbp import MLP, graph
from fastbp.backends.cpu import loading, side_process
from fastbp.backends.cpu.team import team
from fastbp.losses import LOSSES
from fastbp.optim import OPTIMIZERS
from fastbp.scalars import ACTIVATIONS


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


class _Count(event.Listener):
    def __init__(self) -> None:
        self.started = 0

    def on_start(self, event_: object) -> None:
        self.started += 1

    def on_end(self, event_: object) -> None:
        pass


def test_a_new_network_compiles_nothing(dtype):
    X, labels = np.ones((9, 6)), np.arange(9) % 3
    MLP([6, 3], dtype=dtype).fit(X, np.eye(3)[labels], epochs=1)  # loads the machine of this dtype
    count = _Count()
    with event.install_listener("numba:compile", count):
        for k, (loss, activation) in enumerate(zip([*LOSSES, "mse"], ACTIVATIONS, strict=True)):
            net = MLP([6, 11 + k, 5, 3], activation=activation, loss=loss, dtype=dtype)
            net.fit(X, np.eye(3)[labels], epochs=2, batch_size=2 + k)
        for kind in OPTIMIZERS.values():
            net = MLP([6, 7, 3], loss="cross_entropy", dtype=dtype)
            net.fit(X, labels, epochs=2, optimizer=kind(0.01, clip_norm=1.0), sample_weight=np.ones(9))
            net.deltas(X, labels)
        x = graph.input("x", 4)
        graph.compile(x.softmax().sum(axis=0), dtype=dtype)(x=np.ones((3, 4)))
        one = np.ones((3, 3), dtype)
        fastbp.dense_backward(one, one, one, one, "tanh")
    assert count.started == 0


def test_the_listener_would_notice():
    """The test above is worth something: compiling does raise these events."""
    from numba import njit

    count = _Count()
    with event.install_listener("numba:compile", count):
        njit(lambda x: x + 1)(1)
    assert count.started > 0


NO_PLACE = """
loading.cache_folder = lambda: None
"""
DISK_FULL = """
def replacing(path):
    raise OSError(28, "No space left on device")
loading.replacing = replacing
"""


# an entry as small as can be: the machine itself takes half a minute to compile
SMALL_ENTRY = """
from fastbp.explain import _clock_entry
compiled = []
compile = loading._compiled
loading._compiled = lambda *arguments: compiled.append(1) or compile(*arguments)
call = np.array([3, -1, -1])
_clock_entry()(call.ctypes.data)
print(len(compiled), "numba" in sys.modules, (call[1:] >= 0).all())
"""
START = "import sys\nimport numpy as np\nfrom fastbp.backends.cpu import loading\n"


def test_eight_cold_processes_at_once(tmp_path):
    """They share one cache; the first compiles, the others wait for it and never import Numba, none fails."""
    code = f"{START}loading.MESSAGE_AFTER = 0.0{SMALL_ENTRY}"
    with ThreadPoolExecutor(8) as pool:
        runs = list(pool.map(lambda _: run_python(code, NUMBA_CACHE_DIR=str(tmp_path)), range(8)))
    for run in runs:
        assert run.returncode == 0, run.stderr
    assert any("compiling the clock for this machine" in run.stderr for run in runs)
    assert sorted(run.stdout.split() for run in runs) == 7 * [["0", "False", "True"]] + [["1", "True", "True"]]


def test_the_machine_is_loaded_without_numba(dtype):
    """By a process that comes after this one, which has compiled it or found it."""
    team(dtype)
    code = f"""
import sys
import numpy as np
import fastbp
X = np.ones((5, 3))
net = fastbp.MLP([3, 4, 2], dtype={dtype!r})
net.fit(X, X[:, :2], epochs=1)
print(np.isfinite(net.forward(X)).all(), "numba" in sys.modules)
"""
    run = run_python(code)
    assert run.stdout.split() == ["True", "False"], run.stderr


@pytest.mark.parametrize("trouble", [NO_PLACE, DISK_FULL], ids=["no place", "disk full"])
def test_a_cache_that_cannot_be_written_is_reported_and_survived(trouble, tmp_path):
    code = f"{START}{trouble}{SMALL_ENTRY}print(_clock_entry() is _clock_entry())"
    run = run_python(code, NUMBA_CACHE_DIR=str(tmp_path))
    assert run.returncode == 0, run.stderr
    assert run.stderr.count("fastbp cannot keep its compiled kernels") == 1
    assert run.stdout.split() == ["1", "True", "True", "True"]  # compiled once
    assert [path.suffix for path in tmp_path.iterdir()] in ([], [".lock"])  # no part of a file


@pytest.mark.parametrize("damage", [b"", b"half", b"other"])
def test_a_damaged_file_is_compiled_anew(damage, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "cache_folder", lambda: tmp_path)
    loading.keep("some", [b"code of an entry", b"", b"of kernels"])
    assert loading.kept("some") == [b"code of an entry", b"", b"of kernels"]
    assert loading.kept("another") is None
    assert loading.kept("some", "explain.py") is None  # of other sources
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes({b"": b"", b"half": whole[:-3], b"other": whole[:-1] + b"X"}[damage])
    assert loading.kept("some") is None


# ---- the process that compiles kernels meanwhile -------------------------------------------------------------------

ANSWERS = {
    "right": "out.write(b'stamp' + hashlib.sha256(b'there').digest() + b'there')",
    "with something before it": "out.write(b'hello stamp' + hashlib.sha256(b'there').digest() + b'there')",
    "of other sources": "out.write(b'other' + hashlib.sha256(b'there').digest() + b'there')",
    "half": "out.write(b'stamp' + hashlib.sha256(b'there').digest() + b'the')",
    "nothing": "pass",
    "a failure": "raise SystemExit(3)",
}


def _another_python(folder, monkeypatch, name, does):
    """An executable of that name, which does so with whatever it is asked to run."""
    path = folder / name
    path.write_text(f"#!{sys.executable}\nimport hashlib, sys, time\nout = sys.stdout.buffer\n{does}\n")
    path.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(path))
    monkeypatch.setattr(side_process, "code_of", lambda dtype: f"{dtype} here".encode())


@pytest.mark.skipif(os.name == "nt", reason="a script with a first line that says what runs it")
@pytest.mark.parametrize("answer", ANSWERS)
def test_only_a_whole_answer_of_the_other_process_counts(answer, tmp_path, monkeypatch, two_threads):
    _another_python(tmp_path, monkeypatch, "python3", ANSWERS[answer])
    with side_process.compiling("float32", b"stamp") as code:
        assert code() == [b"there" if answer == "right" else b"float32 here"]


@pytest.mark.skipif(os.name == "nt", reason="a script with a first line that says what runs it")
def test_the_other_process_ends_with_what_it_was_started_for(tmp_path, monkeypatch, two_threads):
    """An error in this one, or Ctrl-C, does not wait for it."""
    _another_python(tmp_path, monkeypatch, "python3", "time.sleep(1000)")
    with pytest.raises(KeyboardInterrupt), side_process.compiling("float32", b"stamp"):
        raise KeyboardInterrupt


@pytest.mark.skipif(os.name == "nt", reason="a script with a first line that says what runs it")
def test_the_other_process_is_not_waited_for_without_end(tmp_path, monkeypatch, two_threads):
    _another_python(tmp_path, monkeypatch, "python3", "time.sleep(1000)")
    monkeypatch.setattr(side_process, "PATIENCE", 0.1)
    with side_process.compiling("float32", b"stamp") as code:
        assert code() == [b"float32 here"]


CASES = ["no core", "no Python", "another program", "PythonWin", "frozen", "not there", "an odd path"]


@pytest.mark.parametrize("case", CASES)
def test_there_may_be_no_other_process(case, tmp_path, monkeypatch, two_threads):
    name = {"another program": "blender", "PythonWin": "PythonWin.exe"}.get(case, "python3")
    _another_python(tmp_path, monkeypatch, name, ANSWERS["half" if case == "an odd path" else "right"])
    if case == "no core":
        fastbp.set_num_threads(1)
    elif case == "no Python":
        monkeypatch.setattr(sys, "executable", None)
    elif case == "frozen":
        monkeypatch.setattr(sys, "frozen", True, raising=False)
    elif case == "not there":
        monkeypatch.setattr(sys, "executable", str(tmp_path / "python4"))
    elif case == "an odd path":
        monkeypatch.setattr(sys, "path", [*sys.path, tmp_path, "a\0b"])
    with side_process.compiling("float64", b"stamp") as code:
        assert code() == [b"float64 here"]


def test_the_other_process_sends_what_is_loaded(monkeypatch):
    """As it does, but for a dtype that costs nothing to compile."""
    code = "from fastbp.backends.cpu import side_process as s; s.code_of = str.encode; s.send('some code', b'stamp')"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    assert found == b"stamp" + hashlib.sha256(b"some code").digest() + b"some code"


def test_the_other_process_finds_this_package(tmp_path, monkeypatch, two_threads):
    """Not one that has come to be before it on the path."""
    (tmp_path / "fastbp").mkdir()
    (tmp_path / "fastbp" / "__init__.py").write_text("raise SystemExit(3)")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    seen = []
    monkeypatch.setattr(subprocess, "Popen", lambda *_, env, **__: seen.append(env["PYTHONPATH"]))
    side_process._started("float32")
    assert seen[0].split(os.pathsep)[:2] == [str(loading.PACKAGE.parent), str(tmp_path)]


def test_a_kernel_apart_says_what_it_takes():
    from numba import njit
    from numba.core.errors import TypingError

    from fastbp.backends.cpu.kernels import apply_unary

    with pytest.raises(TypingError, match="fastbp_apply_unary takes"):
        njit(lambda: apply_unary(0, 1.0, 2, 3, 4))()


def test_folders_of_the_cache(tmp_path, monkeypatch):
    """The one that is asked for, or the first that can be written; none if that one cannot."""
    folder = loading.cache_folder.__wrapped__
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "new" / "one"))
    assert folder() == tmp_path / "new" / "one"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file" / "below"))
    assert folder() is None
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    monkeypatch.setattr(loading, "__file__", str(tmp_path / "file" / "loading.py"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "platform", "linux")
    assert folder() == tmp_path / "cache" / "fastbp"


def test_a_change_in_any_kernel_source_changes_the_stamp(monkeypatch):
    before = loading.source_stamp()
    read = Path.read_bytes
    for name in loading.COMPILED_SOURCES:
        with monkeypatch.context() as patch:
            changed = loading.PACKAGE / name
            patch.setattr(Path, "read_bytes", lambda path, changed=changed: read(path) + b"#" * (path == changed))
            assert loading.source_stamp() != before
    assert loading.source_stamp() == before


def test_every_source_that_is_compiled_is_listed():
    """What machine.py imports, directly or not, of this package; importing fastbp alone compiles nothing."""
    code = """
import sys
import fastbp
before = set(sys.modules)
import fastbp.backends.cpu.machine
print(*(name for name in set(sys.modules) - before if name.startswith("fastbp.backends.cpu.")))
"""
    found = {name.split(".")[-1] for name in run_python(code).stdout.split()}
    listed = {Path(name).stem for name in loading.COMPILED_SOURCES if "backends/cpu/" in name}
    assert found == listed


def test_importing_fastbp_does_not_import_numba():
    run = run_python(
        "import sys, fastbp; print('numba' in sys.modules, 'rich' in sys.modules, 'sklearn' in sys.modules)"
    )
    assert run.stdout.split() == ["False", "False", "False"], run.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork")
def test_after_a_fork(two_threads):
    """A child gets a team of its own, even if the parent's helpers were at work."""
    net = MLP([200, 300, 10], seed=0)
    X, T = np.ones((2000, 200)), np.ones((2000, 10))
    expected = net.loss_and_grad(X, T)[1]
    child = os.fork()
    if child == 0:
        same = np.array_equal(net.loss_and_grad(X, T)[1], expected)
        os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0
