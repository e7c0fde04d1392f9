"""What GPU kernels are written in: intrinsics where there is a compiler for them, their twins in Numba's simulator."""

from __future__ import annotations

import os

from numba import cuda

from fastbp.errors import FastbpError

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0")
if not SIMULATED and getattr(cuda, "implementation", "") != "NVIDIA":
    raise FastbpError(
        "the cuda backend needs NVIDIA's numba-cuda, not the one that came with Numba: pip install 'fastbp[gpu]'"
    )

if SIMULATED:
    from fastbp.backends.cuda.twins import (
        address_of,
        apply,
        apply4,
        at,
        copied,
        copy1,
        copy4,
        device,
        dropout,
        itemsize,
        ldmatrix,
        ldmatrix_trans,
        load4,
        lowest,
        mma_bf16,
        mma_tf32,
        number,
        pack_bf16,
        shared,
        shifted,
        shuffle_xor,
        store2,
        store4,
        sync,
        thread,
        threads,
        to_tf32,
        update,
        walked,
    )
else:
    from fastbp.backends.cuda.ptx import (
        address_of,
        apply,
        apply4,
        at,
        copied,
        copy1,
        copy4,
        device,
        dropout,
        itemsize,
        ldmatrix,
        ldmatrix_trans,
        load4,
        lowest,
        mma_bf16,
        mma_tf32,
        number,
        pack_bf16,
        shared,
        shifted,
        shuffle_xor,
        store2,
        store4,
        sync,
        thread,
        threads,
        to_tf32,
        update,
        walked,
    )

__all__ = [
    "SIMULATED",
    "address_of",
    "apply",
    "apply4",
    "at",
    "copied",
    "copy1",
    "copy4",
    "device",
    "dropout",
    "itemsize",
    "ldmatrix",
    "ldmatrix_trans",
    "load4",
    "lowest",
    "mma_bf16",
    "mma_tf32",
    "number",
    "pack_bf16",
    "shared",
    "shifted",
    "shuffle_xor",
    "store2",
    "store4",
    "sync",
    "thread",
    "threads",
    "to_tf32",
    "update",
    "walked",
]
