"""The table of cases launches every kernel on a card: what no case launches, none has tested."""

from __future__ import annotations

import pytest
from cuda_cases import CASES, LIMITS_OF

from fastbp.backends.cuda.binding import Slots, bind
from fastbp.backends.cuda.kernels import KERNELS

# of training, see test_gpu_training.py; blocks of their own also in test_blocks.py; layers, see test_gpu_kernels.py
ELSEWHERE = {"advance", "update", "blocks", "blocks_tf32", "blocks_bf16", "combine_rounded"}


@pytest.mark.parametrize("dtype", KERNELS)
def test_every_kernel_is_used(dtype):
    """By the tables of launches alone."""
    used = set()
    for case in CASES.values():
        program, _, n = case.make()
        for precision in ("highest", *(LIMITS_OF if case.one_product else ())):
            for with_blas in (False, True):
                bound = bind(program, Slots(program), n, dtype, precision, with_blas=with_blas)
                used |= {one.kernel for one in bound.launches}
    assert "cublas" in used
    assert used | ELSEWHERE >= set(KERNELS[dtype])
