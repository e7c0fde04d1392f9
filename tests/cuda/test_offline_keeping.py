"""Compiled kernels are kept on disk: compiled by one process, loaded by the next, without a driver."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings

import pytest

# Numba asks the device for its capability, and loads what it has compiled: neither can be done here.
CODE = """
from types import SimpleNamespace
from numba.cuda import codegen, dispatcher, types

device = SimpleNamespace(compute_capability=(9, 0), id=0)
dispatcher.get_current_device = lambda: device
codegen.devices = SimpleNamespace(get_context=lambda: SimpleNamespace(device=device))
dispatcher._Kernel.bind = lambda self: self._codelibrary.get_cubin(cc=(9, 0))

from fastbp.backends.cuda import keeping
from fastbp.backends.cuda.kernels import KERNELS

def change(stamp):
    keeping.source_stamp = lambda: stamp

CHANGE
for name in ("onehot", "advance", "gather"):
    kernel = keeping.kept(KERNELS["float32"][name].function, name, optimised_once=False)
    made = kernel.compile((types.int64, types.int64, types.float32))
    print(name, sum(kernel._cache_hits.values()), hash(bytes(made._codelibrary.get_cubin(cc=(9, 0)).code)))
"""


def compiled(folder, change=""):
    """By a process of its own: name -> whether it was loaded, and a hash of its machine code."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(folder), "PYTHONHASHSEED": "0"}
    code = CODE.replace("CHANGE", change)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return {name: (bool(int(hit)), code) for name, hit, code in (line.split() for line in done.stdout.splitlines())}


def test_kernels_are_compiled_once(tmp_path):
    first, second = compiled(tmp_path), compiled(tmp_path)
    assert {hit for hit, _ in first.values()} == {False}
    assert {hit for hit, _ in second.values()} == {True}
    assert [code for _, code in second.values()] == [code for _, code in first.values()]
    assert len({code for _, code in second.values()}) == 3  # two share the function that Numba sees
    changed = compiled(tmp_path, "change('other sources')")
    assert {hit for hit, _ in changed.values()} == {False}
    for path in tmp_path.rglob("*.nbc"):
        path.write_bytes(path.read_bytes()[:100])
    damaged = compiled(tmp_path)
    assert {hit for hit, _ in damaged.values()} == {False}
    assert [code for _, code in damaged.values()] == [code for _, code in first.values()]


def test_kernels_of_blocks_are_left_alone_by_the_linker():
    """CUDA 13.0's never comes to an end with those in tf32."""
    from fastbp.backends.cuda.keeping import kept
    from fastbp.backends.cuda.kernels import KERNELS

    blocks = {name: kernel for name, kernel in KERNELS["float32"].items() if name.startswith("blocks")}
    assert len(blocks) == 3
    assert all(kernel.optimised_once for kernel in blocks.values())
    made = [kept(kernel.function, name, kernel.optimised_once) for name, kernel in blocks.items()]
    assert {dispatcher.targetoptions["lto"] for dispatcher in made} == {False}


def test_a_launch_of_few_blocks_is_prepared_without_a_warning():
    """Numba thinks that few blocks are a mistake."""
    pytest.importorskip("cupy")
    from fastbp.backends.cuda import launching

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepared = launching._configured("advance", "float32", 0, 3, 32, 0, 0)
    assert (prepared.griddim, prepared.blockdim) == ((3, 1, 1), (32, 1, 1))
