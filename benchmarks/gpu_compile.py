"""All kernels compiled into fastbp's cache on disk, in processes side by side: whoever launches them only loads them.

FASTBP_RECORDS=FILE FASTBP_SECONDS=90 python benchmarks/gpu_compile.py
python benchmarks/gpu_compile.py --kernel float32 chain    # one, in this process
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from records import ENV, SECONDS, Records

from fastbp.backends.threads import get_num_threads

LONGEST = (
    "blocks_bf16",
    "blocks_tf32",
    "blocks",
    "bf16_large",
    "tf32_large",
    "bf16_small",
    "tf32_small",
    "product_small",
    "product_large",
    "chain",
)  # to compile: from 45 s of a core to 6; the others take one or two
MOST_PROCESSES = 16  # each has a context on the card: some hundred megabytes of its memory
MOST_SECONDS = 120.0  # of one kernel
LEAST_LEFT = 3.0  # seconds, for another kernel
TO_FINISH = 1.0  # seconds from when kernels are given up to the end of this process

Kernel = tuple[str, str]  # dtype, name


def in_order(kernels: Mapping[str, Iterable[str]]) -> list[Kernel]:
    """All of a table, what takes longest to compile first."""
    every = [
        (dtype, name) for dtype in sorted(kernels, reverse=True) for name in kernels[dtype]
    ]  # float64 takes longer
    return sorted(every, key=lambda kernel: LONGEST.index(kernel[1]) if kernel[1] in LONGEST else len(LONGEST))


def compile_all(
    kernels: Sequence[Kernel], command: Callable[[Kernel], Sequence[str]], records: Records, end: float
) -> None:
    """Each by a process of its own, as many at a time as there are cores; one that fails leaves the others alone."""
    with ThreadPoolExecutor(min(MOST_PROCESSES, get_num_threads())) as pool:
        for done in [pool.submit(_compiled, kernel, command(kernel), records, end) for kernel in kernels]:
            done.result()


def _compiled(kernel: Kernel, command: Sequence[str], records: Records, end: float) -> None:
    item, began = " ".join(kernel), time.monotonic()
    if item in records.before:
        return
    if end - began < LEAST_LEFT:
        records.end(item, "skipped", why="no time")
        return
    records.begin(item)
    limit = min(MOST_SECONDS, end - began)
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=limit)
        why = done.stderr.strip()[-2000:] or f"exit status {done.returncode}" if done.returncode else ""
    except subprocess.TimeoutExpired:
        why = f"not compiled in {limit:.0f} s"
    found = {"why": why} if why else {}
    records.end(item, "failed" if why else "done", seconds=round(time.monotonic() - began, 1), **found)


def compile_one(dtype: str, name: str) -> None:
    """Compile a kernel for the current card, for the arguments that launches have, or load it if it is there."""
    from numba.cuda import types

    from fastbp.backends.cuda.launching import compiled

    kernel = compiled(name, dtype)
    kernel.compile((types.int64, types.int64, getattr(types, dtype)))
    if kernel.stats.cache_path is None:
        sys.exit("compiled, but not kept: no folder can be written (NUMBA_CACHE_DIR names one)")


def main() -> None:
    parser = argparse.ArgumentParser(description="Compile all GPU kernels; see on_a_gpu.py.")
    parser.add_argument("--kernel", nargs=2, metavar=("DTYPE", "NAME"), help="only this one, in this process")
    asked = parser.parse_args()
    if asked.kernel:
        compile_one(*asked.kernel)
        return
    from fastbp.backends.cuda.kernels import KERNELS

    records, end = Records(Path(os.environ[ENV])), time.monotonic() + float(os.environ.get(SECONDS, "inf")) - TO_FINISH
    compile_all(in_order(KERNELS), lambda kernel: (sys.executable, __file__, "--kernel", *kernel), records, end)


if __name__ == "__main__":
    main()
