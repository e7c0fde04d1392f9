"""Every kernel on small matrices, for memory and race checkers: ``compute-sanitizer python benchmarks/gpu_small.py``.

Results are not looked at: tests/cuda/test_gpu_kernels.py does that. Every array has memory of its own, so that what is
read or written beside it is seen.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from records import ENV, SECONDS, Records
from report import ROOT

from fastbp import MLP, fit_many

TO_FINISH = 15.0  # seconds that a checker has for its summary
WAYS = ("whole steps by one block", "launches by graphs", "with cuBLAS")  # of training a small network
ROWS, BATCH = 850, 200


def works() -> Iterator[tuple[str, Callable[[], object]]]:
    """What is run, by name: first one of each kind, then the rest of the table of cases."""
    from cuda_cases import CASES, Case

    small = [case for case in CASES.values() if not case.large]
    kinds = {case.name.split()[0]: case for case in reversed(small)}
    for precision in ("tf32", "bf16"):
        for way in WAYS:
            yield f"fit, {way}, {precision}", lambda w=way, p=precision: fit(w, "float32", p)  # type: ignore[misc]
        for case in small:
            if case.one_product or (case.name.startswith("product") and case is not kinds["product"]):
                yield f"{case} {precision}", lambda c=case, p=precision: once(c, "float32", p)  # type: ignore[misc]
    for dtype in ("float32", "float64"):
        for way in WAYS:
            yield f"fit, {way}, {dtype}", lambda w=way, d=dtype: fit(w, d, "highest")  # type: ignore[misc]
        ordered: list[Case] = [*kinds.values(), *(case for case in small if case not in kinds.values())]
        for case in ordered:
            yield f"{case} {dtype}", lambda c=case, d=dtype: once(c, d, "highest")  # type: ignore[misc]


def once(case: Any, dtype: str, precision: str) -> None:
    """A case, on new arrays."""
    import cupy
    from cuda_cases import typed

    from fastbp.backends.cuda.executable import CudaExecutable

    program, values, n = case.make()
    values = {name: cupy.asarray(v) for name, v in typed(values, dtype).items() if name in program.inputs}
    CudaExecutable(program, dtype, precision).run(values, n)
    cupy.cuda.get_current_stream().synchronize()


def fit(way: str, dtype: str, precision: str, rows: int = ROWS, batch: int = BATCH) -> None:
    """Shuffled rows, a short last batch, in one of WAYS."""
    from gpu_sweeps import setting

    from fastbp.backends.cuda import binding

    rng = np.random.default_rng(0)
    nets = [
        MLP([5, 7, 3], loss="cross_entropy", dtype=dtype, backend="cuda", precision=precision, seed=k) for k in range(2)
    ]
    data = rng.normal(size=(rows, 5)), rng.integers(0, 3, rows)
    if way == "whole steps by one block":
        fit_many(nets, *data, epochs=2, batch_size=batch, optimizer="adam")
        return
    with setting(binding, **({"OWN_K": 0, "NARROW": 0} if way == "with cuBLAS" else {})):
        nets[0].fit(*data, epochs=2, batch_size=batch, optimizer="adam")


def main() -> None:
    import cupy

    cupy.cuda.set_allocator(None)  # no pool: an array is an allocation
    records, end = Records(Path(os.environ[ENV])), time.monotonic() + float(os.environ.get(SECONDS, "inf")) - TO_FINISH
    for name, work in works():
        if name in records.before:
            continue
        if time.monotonic() > end:
            records.end(name, "skipped", why="no time")
            continue
        records.begin(name)
        work()
        records.end(name, "done")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "tests" / "cuda"))
    main()
